"""Requests to the web page from eight clients at once: each gets its own photo back, and whatever else is refused."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from scripts.benchmarks.faults import Trial

CLIENTS = 8
API = "/gradio_api/"
SIDE = 96  # pixels of a client's photo


@dataclass(frozen=True)
class Visitor:
    """One client of the page.

    Args:
        client: an `httpx.Client` whose base is the page's address.
        number: of the client; its photos differ from the others'.
        secret: a file of the server's that no visitor may read.
    """

    client: Any
    number: int
    secret: Path

    def upload(self, name: str, data: bytes) -> Any:
        """Send a file; returns the answer."""
        return self.client.post(f"{API}upload", files={"files": (name, data)})

    def restored(self, path: str, session: str) -> dict:
        """Ask for a restoration; returns the last message."""
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, 0, False]
        body = dict(data=data, fn_index=0, session_hash=session)
        joined = self.client.post(f"{API}queue/join", json=body)
        if joined.status_code != 200:
            return {"msg": "refused", "status": joined.status_code}
        with self.client.stream("GET", f"{API}queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") in ("process_completed", "unexpected_error", "close_stream"):
                    return message
        return {}


def photo(number: int) -> Image.Image:
    """Return a photo without a face, which comes back with the pixels it has; each number's is another."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE - 16), Image.Resampling.BICUBIC)  # a square could be a face


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """Return an image file."""
    data = BytesIO()
    image.save(data, kind)
    return data.getvalue()


# --- what is asked: each returns what is wrong, or "" -----------------------------------------------------------------

Ask = Callable[[Visitor, int], str]


def own_photo(visitor: Visitor, number: int) -> str:
    """Restore a photo and fetch the download: it is this client's, whatever the other seven do."""
    mine = photo(100 * visitor.number + number)
    sent = visitor.upload("me.png", encoded(mine))
    if sent.status_code != 200:
        return f"upload: {sent.status_code}"
    done = visitor.restored(sent.json()[0], f"own-{visitor.number}-{number}")
    if not done.get("success"):
        return f"not restored: {done}"
    download = done["output"]["data"][3]["value"]["path"]
    got = visitor.client.get(f"{API}file={download}")
    if got.status_code != 200:
        return f"download: {got.status_code}"
    with Image.open(BytesIO(got.content)) as image:
        return "" if image.convert("RGB").tobytes() == mine.tobytes() else "another client's photo"


def bad_photo(data: bytes, visitor: Visitor, number: int) -> str:
    """Send what is no photo: the page says so."""
    sent = visitor.upload(f"bad {number}.png", data)
    if sent.status_code != 200:
        return "" if 400 <= sent.status_code < 500 else f"upload: {sent.status_code}"
    done = visitor.restored(sent.json()[0], f"bad-{visitor.number}-{number}")
    said = str(done.get("output", {}).get("data", [""])[0])
    return "" if done.get("success") and said.startswith("<b>Not restored:</b> &#x27;") else f"{said} {done.get('msg')}"


def status(allowed: set[int], method: str, path: str, visitor: Visitor, number: int, **more: Any) -> str:
    """Send a request that must be refused with one of the statuses, without what the server keeps."""
    answer = visitor.client.request(method, path.replace("SECRET", str(visitor.secret)), **more)
    if b"the server's own" in answer.content or b"root:" in answer.content:
        return f"{path}: read a file"
    missing = {"content-security-policy", "x-frame-options", "x-content-type-options"} - set(answer.headers)
    if missing:
        return f"{path}: no {', '.join(missing)}"
    return "" if answer.status_code in allowed else f"{method} {path}: {answer.status_code}"


def other_path(path: str, visitor: Visitor, number: int) -> str:
    """Ask for the restoration of a file that nobody uploaded."""
    done = visitor.restored(path.replace("SECRET", str(visitor.secret)), f"path-{visitor.number}-{number}")
    return "" if not done.get("success") and "root:" not in str(done) else f"{path}: {done}"


def foreign(field: str, value: str) -> list[Ask]:
    """Return a reading and a writing request with a header of another site's."""
    headers = {field: value}
    join: dict[str, Any] = dict(json=dict(data=[None, 0, False], fn_index=0, session_hash="foreign"))
    return [
        partial(status, {403, 421}, "GET", "/", headers=headers),
        partial(status, {403, 421}, "POST", f"{API}queue/join", headers=headers, **join),
    ]


GIF_BOMB = b"GIF89a" + b"\xff" * 4 + bytes(3) + b"\x2c" + bytes(4) + b"\xff" * 4 + b"\0\x02\0;"  # 65535 x 65535
BODIES = (b"{", b"[]", b"null", b"", b"\xff", b"[" * 50_000, b'{"fn_index": 99}', b'{"fn_index": "0"}', b" " * 200_000)
ROUTES = (
    "file=/etc/passwd", "file=SECRET", "file=..%2f..%2f..%2fetc/passwd", "file=http://127.0.0.1:9/a.png",
    "file=http:/127.0.0.1:9/a.png", "file=file:///etc/passwd", "proxy=http://127.0.0.1:9/", "dev/reload", "monitoring",
    "run/predict", "call/restore", "deep_link", "vibe-code", "profiling/traces", "stream/a/b/c/playlist.m3u8",
)  # fmt: skip
# row -> how often of each sixteen, and what is asked in turn
ASKED: dict[str, tuple[int, list[Ask]]] = {
    "its own photo": (6, [own_photo]),
    "no photo": (3, [partial(bad_photo, data) for data in (
        b"", b"<svg/>", bytes(5000), encoded(photo(0))[:300], GIF_BOMB, b"PK\x03\x04" + bytes(99),
    )]),
    "another Host": (1, [ask for host in ("evil.example", "127.0.0.1.evil.example:7860", "10.0.0.1", "a@127.0.0.1")
                         for ask in foreign("host", host)]),
    "another Origin": (1, [ask for origin in ("http://evil.example", "null", "https://127.0.0.1", "http://localhost:1")
                           for ask in foreign("origin", origin)]),
    "a route of Gradio's or outside": (2, [
        *(partial(status, {403, 404}, "GET", API + route) for route in ROUTES),
        *(partial(status, {403, 404}, "GET", path) for path in ("/static/..%2f..%2fetc/passwd", "/assets/%2e%2e/x")),
        *(partial(status, {404}, method, "/") for method in ("PUT", "DELETE", "OPTIONS", "TRACE")),
    ]),
    "a file nobody sent": (1, [partial(other_path, path) for path in (
        "/etc/passwd", "SECRET", "../../etc/passwd", "http://127.0.0.1:9/a.png", "\0",
    )]),
    "a body of another form": (1, [
        partial(status, {400, 413, 422}, "POST", f"{API}queue/join", content=body,
                headers={"content-type": "application/json"}) for body in BODIES
    ]),
    "too large": (1, [
        partial(status, {413}, "POST", f"{API}upload", files={"files": ("big.png", bytes(3_000_000))}),
        partial(status, {411}, "POST", f"{API}upload", content=iter([b"x" * 1000])),
    ]),
}  # fmt: skip


def plan(count: int, seed: int) -> list[tuple[str, Ask]]:
    """Return what is asked, mixed: rows by their shares, each row's requests in turn."""
    order = [row for row, (share, _) in ASKED.items() for _ in range(share)]
    rows = [order[number % len(order)] for number in range(count)]
    asked = [(row, ASKED[row][1][rows[:number].count(row) % len(ASKED[row][1])]) for number, row in enumerate(rows)]
    random.Random(seed).shuffle(asked)
    return asked


def trials(count: int, seed: int, folder: Path, photo_restorer: Any = None) -> Iterator[Trial]:
    """Start the page, with the miniature unless another restorer is given, and ask `count` times from eight clients."""
    import httpx

    from lafr.photos.demo import Limits, running

    if photo_restorer is None:
        from lafr.models.restorer import Restorer
        from lafr.photos.detectors import YuNet
        from lafr.photos.restorer import PhotoRestorer

        photo_restorer = PhotoRestorer(Restorer.from_pretrained("mini"), YuNet())
    secret = folder / "secret.png"
    secret.write_text("the server's own", encoding="utf-8")
    limits = Limits(megabytes=2, total_megabytes=200, waiting=2 * CLIENTS)
    with patch.object(tempfile, "tempdir", str(folder)), running(photo_restorer, limits=limits) as address:

        def ask(one: tuple[int, tuple[str, Ask]]) -> Trial:
            number, (row, request) = one
            # a client of its own each time: a refused upload closes the connection
            with httpx.Client(base_url=address, trust_env=False, verify=False, timeout=120) as client:
                try:
                    wrong = request(Visitor(client, number, secret), number)
                except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                    wrong = f"{type(error).__name__}: {error}"
            silent = "another client's" in wrong or "read a file" in wrong
            return Trial(row, f"request {number}", "held" if not wrong else "silent" if silent else "lost", wrong)

        with ThreadPoolExecutor(CLIENTS) as clients:
            yield from clients.map(ask, enumerate(plan(count, seed)))
    left = [path.name for path in folder.iterdir() if path != secret]
    if left:
        yield Trial("a file is left", "after the end", "silent", ", ".join(left))
