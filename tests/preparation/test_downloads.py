"""Downloads: whole or resumed; two files are never mixed, a web page is never taken for an archive."""

import contextlib
import http.server
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from lafr.errors import InputError
from lafr.preparation.downloads import download, public

DATA = np.random.default_rng(0).bytes(3_000_000)


@dataclass
class Site:
    """What a server on this machine sends, and what it was asked."""

    data: bytes = DATA
    tag: str | None = '"one"'
    ranges: bool = True
    length: bool = True
    kind: str = "application/zip"
    status: int = 200
    breaks_after: int | None = None
    sent: int = 0
    asked: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            site.asked.append(wanted)
            if site.status != 200:
                self.send_error(site.status)
                return
            part = wanted if site.ranges and self.headers.get("If-Range") == site.tag else None
            start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
            body = site.data[start:]
            self.send_response(206 if part else 200)
            self.send_header("Content-Type", site.kind)
            if site.tag:
                self.send_header("ETag", site.tag)
            if site.length:
                self.send_header("Content-Length", str(len(body)))
            if part:
                self.send_header("Content-Range", f"bytes {start}-{len(site.data) - 1}/{len(site.data)}")
            self.end_headers()
            body = body[: site.breaks_after]
            with contextlib.suppress(ConnectionError):  # the other side hangs up
                for start in range(0, len(body), 1 << 20):
                    self.wfile.write(body[start : start + (1 << 20)])
                    site.sent += 1 << 20

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}/sets/faces.zip"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_broken_download_resumes_with_the_rest_alone(site, tmp_path):
    site.breaks_after = 2_000_000
    with pytest.raises(ConnectionError, match=r"broke off after 2,000,000 of 3,000,000 bytes"):
        download(site.address, tmp_path / "new" / "x")
    site.breaks_after = None
    target = download(site.address, tmp_path / "new" / "x")
    assert target.read_bytes() == DATA
    assert site.asked == [None, "bytes=2000000-"]


def test_what_is_whole_is_not_asked_for_again(site, tmp_path):
    download(site.address, tmp_path / "x")
    assert download(site.address, tmp_path / "x").read_bytes() == DATA
    assert site.asked == [None]


def test_a_stop_between_the_last_byte_and_the_name_costs_no_request(site, tmp_path):
    download(site.address, tmp_path / "x").rename(tmp_path / "x.beginning")
    assert download(site.address, tmp_path / "x").read_bytes() == DATA
    assert site.asked == [None]


@pytest.mark.parametrize("change", ["the file", "the address", "no ranges", "no validator"])
def test_two_files_are_never_mixed(change, site, tmp_path):
    site.breaks_after = 2_000_000
    site.tag = None if change == "no validator" else site.tag
    with pytest.raises(ConnectionError):
        download(site.address, tmp_path / "x")
    site.breaks_after = None
    site.ranges = change != "no ranges"
    if change in ("the file", "the address"):
        site.data = bytes(reversed(DATA))
    if change == "the file":
        site.tag = '"two"'
    address = f"{site.address}?v=2" if change == "the address" else site.address
    assert download(address, tmp_path / "x").read_bytes() == site.data
    assert len(site.asked) == 2


def test_a_web_page_is_not_taken_for_an_archive(site, tmp_path):
    site.kind, site.data = "text/html; charset=utf-8", b"<html>Virus scan warning</html>"
    with pytest.raises(InputError, match=r"is a web page, not an archive; .* download it by hand"):
        download(site.address, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [True, False])
def test_too_large_a_file_is_refused_and_not_kept(length, site, tmp_path):
    site.length, site.data = length, DATA * 20
    words = "has 60,000,000 bytes, 2,000,000 are the most" if length else "has more than 2,000,000 bytes"
    with pytest.raises(InputError, match=words):
        download(site.address, tmp_path / "x", most_bytes=2_000_000)
    assert list(tmp_path.iterdir()) == []
    assert site.sent < len(site.data) / 2  # nobody waited for the rest


def test_a_file_that_is_not_there_is_said_with_its_address(site, tmp_path):
    site.status = 404
    with pytest.raises(ConnectionError, match=r"faces\.zip.*Not Found") as error:
        download(site.address, tmp_path / "x")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_note_starts_again_and_an_address_may_hold_any_letter(site, tmp_path):
    for damage in ("{", "[]", '{"address": "http://x", "validator": "x"}'):
        (tmp_path / "x.json").write_text(damage)
        (tmp_path / "x.beginning").write_bytes(b"of another file")
        assert download(f"{site.address}?ü ü", tmp_path / "x").read_bytes() == site.data
        (tmp_path / "x").unlink()
    with pytest.raises(InputError, match=r"source must be .*http://\[x"):
        download("http://[x", tmp_path / "x")


def test_an_address_is_told_without_its_secrets():
    assert public("https://me:word@host.org:8/a/b.zip?token=1#x") == "https://host.org:8/a/b.zip"
