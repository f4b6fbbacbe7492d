"""Download a file over http(s), resuming a broken download."""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lafr.errors import InputError
from lafr.storage import DamagedError, read_sealed, write_sealed

CHUNK = 1 << 20
BY_HAND = "download it by hand and give the file instead of the address"


def is_address(source: str) -> bool:
    """Return whether a source is an http(s) address, not a path."""
    return source.lower().startswith(("http://", "https://"))


def download(address: str, target: Path, most_bytes: int = 200_000_000_000, timeout: float = 60) -> Path:
    """Return `target`, downloaded from `address` unless it was downloaded before.

    The beginning of a broken download is kept next to it, and the next call requests the rest if the server's file is
    still the same (HTTP If-Range).

    Args:
        address: http or https.
        target: file to write; its folder is made.
        most_bytes: largest file that is accepted.
        timeout: longest silence of the server, in seconds.

    Raises InputError when the server sends a web page or too much, ConnectionError when it can't be reached, refuses
    or breaks off.
    """
    public(address)  # raises where it is no address
    beginning, notes = target.with_name(f"{target.name}.beginning"), target.with_name(f"{target.name}.json")
    known = _noted(notes, address)
    if target.is_file() and known:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    have = beginning.stat().st_size if beginning.is_file() and known.get("validator") else 0
    request = urllib.request.Request(_quoted(address), headers={"User-Agent": "lafr"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-range", known["validator"])
    try:
        if not have or have != known["bytes"]:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                _save(answer, address, beginning, notes, have, most_bytes)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"cannot download {address!r} ({reason}); run the same command again to resume, or {BY_HAND}"
        ) from None
    beginning.replace(target)
    return target


def _noted(notes: Path, address: str) -> dict:
    """Return what is noted of a download from `address`; {} where nothing is, and where the note is damaged."""
    try:
        known = read_sealed(notes)
    except DamagedError:  # or missing: it is downloaded from its start
        return {}
    return known if known["address"] == address else {}


def _quoted(address: str) -> str:
    """Return an address in the ASCII of HTTP; what is quoted already stays as it is."""
    return urllib.parse.quote(address, safe="%/:?#[]@!$&'()*+,;=~")


def _save(answer: Any, address: str, beginning: Path, notes: Path, have: int, most_bytes: int) -> None:
    """Write a response: appended to `have` bytes if it is the rest of the file (206), from the start if whole (200)."""
    if answer.headers.get_content_type() == "text/html":
        raise InputError(f"{address!r} is a web page, not an archive; open it in a browser, {BY_HAND}")
    whole = answer.status != 206
    have = 0 if whole else have
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else None
    if total is not None and total > most_bytes:
        raise InputError(f"{address!r} has {total:,} bytes, {most_bytes:,} are the most; {BY_HAND}")
    tag = answer.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
    write_sealed({"address": address, "validator": validator, "bytes": total}, notes)
    with (
        open(beginning, "wb" if whole else "ab") as file,
        tqdm(desc="download", initial=have, total=total, unit="B", unit_scale=True) as bar,
    ):
        while data := answer.read(CHUNK):
            have += len(data)
            if have > most_bytes:
                break
            file.write(data)
            bar.update(len(data))
    if have > most_bytes:
        beginning.unlink()
        notes.unlink()
        raise InputError(f"{address!r} has more than {most_bytes:,} bytes; {BY_HAND}")
    if total is not None and have != total:
        raise ConnectionError(f"it broke off after {have:,} of {total:,} bytes")


def public(address: str) -> str:
    """Return an address without user, query and fragment, which may hold secrets; InputError where it is none."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError as error:
        raise InputError("source", address, "an address of the form https://HOST/FILE", str(error)) from None
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
