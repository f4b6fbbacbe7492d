"""What the page's server answers: requests to its own name, by its own page, and no more bytes than fit its quota."""

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api/"
# Of Gradio's about 80 routes the page needs these. The others fetch addresses, run functions or show traces.
READ = {
    "/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json",
    *(API + name for name in ("config", "info", "app_id", "user", "token", "startup-events", "queue/data")),
    *(API + name for name in ("upload_progress", "login_check")),
}  # fmt: skip
READ_BELOW = "/static/", "/assets/", "/svelte/", API + "heartbeat/", API + "file=", "/theme.css"
WRITE = {API + name for name in ("upload", "queue/join", "cancel", "reset")}
UPLOAD = API + "upload"
OTHER_BYTES = 100_000  # of a request that uploads nothing
FRAME_BYTES = 100_000  # around the file in an upload

# Gradio's page has inline scripts, and compiles handlers from text.
POLICY = "; ".join(
    [
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "media-src 'self' data: blob:",
        "worker-src 'self' blob:", "connect-src 'self' data: blob:", "object-src 'none'", "base-uri 'self'",
        "form-action 'self'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses what the page does not need, and adds headers that keep other pages out.

    A web site that a visitor has open can send requests to this server: directly, with its own `Origin`, or under a
    name of its own that it lets point here (DNS rebinding), with its own `Host`.

    Args:
        app: what answers the other requests.
        host: address that the server listens on.
        names: further names it is reached by, such as a proxy's.
        folder: where visitors' files lie.
        upload_bytes: of one file.
        total_bytes: of all files in `folder`.
        functions: of the page; a request names one by its number.
    """

    def __init__(
        self,
        app: App,
        host: str,
        names: Iterable[str],
        folder: Path,
        upload_bytes: float,
        total_bytes: float,
        functions: int,
    ):
        self.functions = functions
        self.app, self.folder, self.upload_bytes, self.total_bytes = app, folder, upload_bytes, total_bytes
        self.loopback = is_loopback(host)
        self.names = {name.lower() for name in (*names, host, *([] if self.loopback else own_names()))}
        self.arriving = 0.0  # bytes of uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = self.refusal(scope) if scope["type"] == "http" else (403, "no such service")
        if refused:
            await answer(send, scope["type"], *refused)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS]
                message["headers"] = own + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        uploads = scope["path"].rstrip("/") == UPLOAD
        if scope["type"] == "http" and scope["method"] == "POST" and not uploads:
            body = await whole(receive)
            if not is_call(body, self.functions):
                await answer(send, scope["type"], 400, "no request of the page")
                return
            receive = again(body, receive)
        size = _length(scope) if uploads else 0
        self.arriving += size
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self.arriving -= size

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason when a request is not answered."""
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            return 421, "this server has another name"
        fields = dict(headers)
        # browsers send the origin with each request that can change something, and of other sites' scripts
        if "origin" in fields and urlsplit(fields["origin"]).netloc.lower() != hosts[0].lower():
            return 403, "requests of other sites are refused"
        method, path = scope["method"], scope["path"]
        if fields.get("sec-fetch-site") == "cross-site" and fields.get("sec-fetch-mode") != "navigate":
            return 403, "requests of other sites are refused"
        reads = path in READ or path.rstrip("/") in READ or path.startswith(READ_BELOW)
        if not (reads if method in ("GET", "HEAD") else method == "POST" and path.rstrip("/") in WRITE):
            return 404, "no such page"
        # Gradio would fetch the address
        if path.startswith(API + "file=") and "://" in path.replace(":/", "://"):
            return 403, "only files of this server"
        return self._too_large(scope, fields) if method == "POST" else None

    def _too_large(self, scope: Scope, fields: dict[str, str]) -> tuple[int, str] | None:
        if not fields.get("content-length", "").isdigit():
            return 411, "the length of the request is missing"
        size, uploads = _length(scope), scope["path"].rstrip("/") == UPLOAD
        if size > (self.upload_bytes + FRAME_BYTES if uploads else OTHER_BYTES):
            return 413, "this is too large"
        if uploads and used(self.folder) + self.arriving + size > self.total_bytes:
            return 507, "no room for more photos at the moment; try again in some minutes"
        return None

    def is_own(self, host: str) -> bool:
        """Return whether the `Host` of a request names this server; the port may be a proxy's."""
        try:
            name = "" if "@" in host else (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            # no name, so nothing that could be pointed here; on loopback, other addresses are foreign all the same
            return ipaddress.ip_address(name).is_loopback or not self.loopback
        except ValueError:
            return name == "localhost" or name in self.names


async def whole(receive: Receive) -> bytes:
    """Return the body of a request; its stated length, which the server holds it to, was checked."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands out a body that was received already, and then what follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def is_call(body: bytes, functions: int) -> bool:
    """Return whether a body is what the page sends: an object that names a function there is, or none, and no address.

    Gradio would fetch a file whose path is an address.
    """
    try:
        call = json.loads(body)
        function, data = call.get("fn_index", 0), call.get("data") or []
        files = [item for item in data if isinstance(item, dict)]
        fetched = any(":/" in str(item.get("path")) for item in files)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return False
    return not fetched and isinstance(function, int) and 0 <= function < functions


def own_names() -> list[str]:
    """Return the names of this machine."""
    return [socket.gethostname(), socket.getfqdn(), f"{socket.gethostname().partition('.')[0]}.local"]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def used(folder: Path) -> int:
    """Return the bytes of all files below a folder; they may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def _length(scope: Scope) -> int:
    return next((int(value) for name, value in scope["headers"] if name.lower() == b"content-length"), 0)


async def answer(send: Send, kind: str, status: int, reason: str) -> None:
    """Answer a request that is refused; a connection for messages is closed."""
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": reason}).encode()
    own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **HEADERS}
    headers = [(name.encode(), value.encode()) for name, value in own.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
