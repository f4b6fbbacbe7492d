"""The web page without a browser: limits, privacy, and what a visitor reads."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import pack
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lafr.commands.doors import as_hydra
from lafr.data.degradation.first_order import Degradation
from lafr.errors import InputError, setting
from lafr.photos.demo.examples import FILES, GROUP, installed_examples
from lafr.photos.demo.guard import Guard
from lafr.photos.demo.limits import Limits, read_upload, time_limit
from lafr.photos.demo.shown import comparison, face_list, slider_pair, summary
from lafr.photos.demo.visits import kept_for, remove_older
from lafr.photos.restorer import FaceReport, PhotoResult
from scripts.benchmarks.faults.page import ASKED, trials

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RECIPE = Degradation(blur_sigma=(2, 3), down=(2.5, 3.5), noise_sigma=(4, 8), jpeg_quality=(40, 60))


@dataclass
class Mirror:
    """In a photo restorer's place: mirrors the photo and reports two faces."""

    restorer: object

    def __call__(self, photo, fidelity=0.0, force=False, progress=None):
        faces = [
            FaceReport((10, 10, 30, 30), np.zeros((5, 2)), 0.9, 40, "restored", "", ("<b>blurred</b>",)),
            FaceReport((40, 10, 60, 30), np.zeros((5, 2)), 0.9, 20, "left", "too small: 20 px & <i>less</i>"),
        ]
        return PhotoResult(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), faces, False, 0.5)


class Unchanged(Mirror):
    """In a photo restorer's place: finds no face."""

    def __call__(self, photo, fidelity=0.0, force=False, progress=None):
        return PhotoResult(photo, [], False, 0.5)


@pytest.fixture
def mirror():
    return Mirror(nn.Identity())


def png_header(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header says otherwise."""
    data = BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    chunk = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return data.getvalue()[:12] + chunk + pack(">I", crc32(chunk)) + data.getvalue()[33:]


def test_a_bad_upload_is_refused_by_its_name_and_the_limit(tmp_path):
    for name, data, words in (
        ("huge (1).png", png_header(20_000, 20_000), "179 megapixels; the limit is 25"),
        ("large.png", png_header(6_000, 5_000), "30 megapixels; the limit is 25"),
        ("heavy.png", b"\x89PNG" * 600_000, "2 MB; the limit is 1 MB"),
        ("page.jpg", b"<!doctype html><title>no photo</title>", "not an image"),
        ("torn.png", png_header(200, 200)[:60], "damaged or truncated"),
        ("none.png", b"", "not an image"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=words) as raised:
            read_upload(tmp_path / name, Limits(megabytes=1, megapixels=25))
        assert name in str(raised.value)
        assert str(tmp_path) not in str(raised.value)  # the server's folder is not shown to a visitor
    with pytest.raises(InputError, match=r"'gone.png' .* 5 min"):  # swept away
        read_upload(tmp_path / "gone.png", Limits(keep_seconds=300))


def test_a_request_stops_before_the_batch_that_begins_after_its_time():
    restorer, batch, done = nn.Conv2d(3, 3, 3), torch.zeros(1, 3, 32, 32), 0
    with pytest.raises(InputError, match=r"longer than 0\.05 s"), time_limit(restorer, 0.05):
        for _ in range(1000):
            restorer(batch)
            time.sleep(0.001)
            done += 1
    assert 0 < done < 1000
    restorer(batch)  # the limit went with the request


def test_what_is_older_goes_and_what_is_newer_stays(tmp_path):
    for name, age in ("old", 400), ("new", 100):
        (tmp_path / name).mkdir()
        (tmp_path / name / "face.png").write_text("x", encoding="utf-8")
        for path in (tmp_path / name / "face.png", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    remove_older(tmp_path, 300)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "face.png").is_file()


def test_the_folder_of_visitors_is_private_swept_and_gone_even_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError), kept_for(0.2) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "face.png").write_text("x", encoding="utf-8")
        deadline = time.monotonic() + 5
        while (folder / "face.png").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not (folder / "face.png").exists()
        (folder / "later.png").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_every_face_is_told_with_its_reason_and_nothing_in_it_is_markup(mirror):
    photo = Image.new("RGB", (80, 60), "navy")
    html = face_list(photo, mirror(photo))
    assert "<b>Face 1</b>, 40 px: restored" in html
    assert "left as it is: too small: 20 px &amp; &lt;i&gt;less&lt;/i&gt;" in html
    assert "&lt;b&gt;blurred" in html
    assert html.count("<img") == 3  # before and after; before alone where nothing was done
    assert html.count('src="data:image/jpeg;base64,') == 3  # no file for them
    assert summary(mirror(photo)) == "1 of 2 faces restored, 1 left as it was, in 0.5 s."
    assert "No face was found" in summary(PhotoResult(photo, [], False, 0.1))


def test_before_and_after_have_one_size_also_when_the_result_is_larger():
    before, after = slider_pair(Image.new("L", (1000, 500)), Image.new("RGBA", (4000, 2000)))
    assert before.size == after.size == (1600, 800)
    assert before.mode == after.mode == "RGB"


def test_a_photo_without_a_restored_face_is_shown_without_a_slider(mirror):
    photo = Image.new("RGB", (80, 60), "navy")
    assert comparison(photo, mirror(photo)).count("<img") == 2
    assert "--ratio: 1.3333" in comparison(photo, mirror(photo))
    unchanged = comparison(photo, Unchanged(None)(photo))
    assert unchanged.count("<img") == 1 and "<input" not in unchanged


def test_the_examples_are_degraded_public_domain_photos_the_same_every_time():
    pytest.importorskip("skimage", reason="the photos come with scikit-image: pip install 'lafr[samples]'")
    pytest.importorskip("matplotlib", reason="and with matplotlib: pip install 'lafr[samples]'")
    made = installed_examples(RECIPE)
    assert set(made) == {*FILES, GROUP}
    assert {package for package, _ in FILES.values()} == {"skimage", "matplotlib"}  # not insightface's stills
    first, second = made["Astronaut"](), made["Astronaut"]()
    assert first.tobytes() == second.tobytes()
    assert first.resize((64, 64)).size != made[GROUP]().size and made[GROUP]().height == 512


gradio = pytest.importorskip("gradio", reason="Gradio is missing: pip install 'lafr[demo]'")


@pytest.fixture
def reached(monkeypatch):
    """Every host that this process looks up or connects to."""
    hosts, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def connecting(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            hosts.append(address[0])
        return connect(self, address)

    def looking_up(host, *rest, **more):
        hosts.append(host.decode() if isinstance(host, bytes) else host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    return hosts


@pytest.fixture
def page(mirror, tmp_path, monkeypatch, reached):
    from lafr.photos.demo import running

    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.png").write_text("in the server's own folder", encoding="utf-8")
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    with running(mirror, limits=Limits(megabytes=1, total_megabytes=2), examples={}) as address:
        yield address
    assert list((tmp_path / "kept").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("kept", "secret.png", "saved model")] == []


def upload(address: str, name: str, data: bytes):
    import httpx

    return httpx.post(f"{address}gradio_api/upload", files={"files": (name, data)}, trust_env=False)


def test_a_page_is_private_by_default_and_asks_nobody(page, tmp_path, reached):
    """One page for all of it: a start takes a second."""
    import httpx

    port = int(page.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):  # 127.0.0.2 would be answered by a server on every address
        socket.create_connection(("127.0.0.2", port), timeout=5)
    start = httpx.get(page, trust_env=False).text
    settings = json.loads(start.split("window.gradio_config = ", 1)[1].split(";</script>", 1)[0])
    assert settings["analytics_enabled"] is False and settings.get("run_history") is False
    theme = httpx.get(f"{page}theme.css", trust_env=False).text
    for fetched in re.findall(
        r"""(?:url\(|@import|<link[^>]+href=|<script[^>]+src=)\s*["']?([^"')\s>]+)""", theme + start
    ):
        assert not re.match(r"(?:https?:)?//", fetched), fetched
    sent = upload(page, "me.png", b"x" * 1000)
    assert sent.status_code == 200
    stored = Path(sent.json()[0])
    assert stored.is_relative_to(tmp_path / "kept") and stored.is_file()
    assert upload(page, "big.png", b"x" * 2_000_000).status_code == 413
    for path in ("/etc/passwd", tmp_path / "secret.png", SCRIPTS / "demo.py"):
        assert httpx.get(f"{page}gradio_api/file={path}", trust_env=False).status_code == 403
    assert httpx.get(f"{page}gradio_api/file={stored}", trust_env=False).status_code == 200
    # two files of 1 MB fill the quota of this page
    answers = [upload(page, f"{number}.png", bytes([number]) * 900_000).status_code for number in range(3)]
    assert answers == [200, 200, 507]
    assert {str(host) for host in reached} <= {"127.0.0.1", "127.0.0.2", "localhost"}


def test_eight_clients_get_each_their_own_photo_and_hostile_requests_are_refused(tmp_path):
    """The long form, with the miniature: `python -m scripts.benchmarks faults kinds=[page]`."""
    found = list(trials(32, 0, tmp_path, photo_restorer=Unchanged(nn.Identity())))
    assert [trial for trial in found if trial.outcome != "held"] == []
    assert {trial.what for trial in found} == ASKED.keys()


def test_the_pages_own_names_are_answered_and_no_others(tmp_path):
    async def app(scope, receive, send):
        raise AssertionError("not asked here")

    def guarded(host, *names):
        return Guard(app, host, names, tmp_path, 1, 1, 1)

    for host, names, own, foreign in (
        ("127.0.0.1", (), "127.0.0.1:7860 localhost [::1]:80 127.0.0.1", "10.0.0.1 a.example x@localhost [::1 0.0.0.0"),
        ("0.0.0.0", ("faces.example",), "10.0.0.1:80 Faces.Example localhost", "b.faces.example faces.example.evil"),
        ("box.local", (), "box.local:7860", "box"),
    ):
        answered = guarded(host, *names)
        assert [name for name in own.split() if not answered.is_own(name)] == []
        assert [name for name in foreign.split() if answered.is_own(name)] == []


def test_a_name_of_a_file_is_no_markup_and_a_failure_tells_nothing_of_the_server(mirror, tmp_path):
    from lafr.photos.demo.page import restore

    name = "![x](http:__example.com)<script>.png"
    (tmp_path / name).write_text("no photo", encoding="utf-8")
    said, view, faces, _ = restore(mirror, tmp_path, Limits(), str(tmp_path / name), 0.0, False)
    assert said.startswith("<b>Not restored:</b> &#x27;![x](http:") and "&lt;script&gt;" in said
    assert "value" not in view and faces == ""  # the photo stays in view
    mirror.restorer = None  # the time limit cannot be set: an error of ours
    Image.new("RGB", (80, 60)).save(tmp_path / "good.png")
    said, *_ = restore(mirror, tmp_path, Limits(), str(tmp_path / "good.png"), 0.0, False)
    assert said == "<b>Not restored:</b> something went wrong here."


def test_an_error_names_a_parameter_by_its_label(mirror, tmp_path):
    from lafr.photos.demo.page import LABELS, restore

    Image.new("RGB", (80, 60)).save(tmp_path / "good.png")

    def refuse(photo, **_):
        raise InputError("fidelity", 2, "a number from 0 to 1", f"or give {setting('force', True)}")

    refuse.restorer = mirror.restorer
    said, *_ = restore(refuse, tmp_path, Limits(), str(tmp_path / "good.png"), 2.0, False)
    assert f"“{LABELS['fidelity']}” must" in said and f"“{LABELS['force']}”" in said and "fidelity" not in said


def test_the_download_is_the_whole_result_under_the_photos_name(mirror, tmp_path):
    from lafr.photos.demo.page import restore

    photo = Image.effect_noise((800, 600), 50).convert("RGB")
    photo.save(tmp_path / "aunt.jpg", quality=95)
    *_, download = restore(mirror, tmp_path / "", Limits(), str(tmp_path / "aunt.jpg"), 0.0, False)
    saved = Image.open(download.value["path"] if isinstance(download.value, dict) else download.value)
    assert Path(saved.filename).name == "aunt_restored.png"
    with Image.open(tmp_path / "aunt.jpg") as given:
        assert saved.tobytes() == given.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


def test_a_port_that_is_taken_is_one_line_with_the_remedy(mirror, tmp_path, monkeypatch):
    from lafr.photos.demo import running

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"{port}.*another port") as raised, running(mirror, port=port):
            pass
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("lafr-demo-*"))


def test_a_port_or_a_limit_that_is_no_number_is_refused_by_its_name(mirror):
    from lafr.photos.demo import running

    for port in ("x", -1, 1 << 16):
        with pytest.raises(InputError, match="port"), running(mirror, port=port):
            pass
    for wrong in ({"seconds": -1}, {"megabytes": "many"}, {"waiting": 0}):
        with pytest.raises(InputError) as caught:
            Limits(**wrong)
        assert as_hydra(caught.value.parameter) == f"limits.{next(iter(wrong))}"


def test_without_gradio_the_extra_to_install_is_named(mirror, monkeypatch):
    from lafr.photos.demo import running

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'lafr\[demo\]'"), running(mirror):
        pass


@pytest.mark.slow  # starts the command itself
def test_a_stopped_server_leaves_no_file_and_warns_when_everyone_may_come(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "cwd").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "kept")}
    call = [sys.executable, str(SCRIPTS / "demo.py"), "host=0.0.0.0"]
    pipe = subprocess.PIPE
    server = subprocess.Popen(call, env=environment, cwd=tmp_path / "cwd", stdout=pipe, stderr=pipe, text=True)
    address = server.stdout.readline().split()[1].replace("0.0.0.0", "127.0.0.1")
    stored = Path(upload(address, "me.png", b"x" * 1000).json()[0])
    assert stored.is_relative_to(tmp_path / "kept") and stored.is_file()
    server.send_signal(signal.SIGTERM)
    stdout, stderr = server.communicate(timeout=60)
    assert server.returncode == 0 and "every visitor's file is removed" in stdout
    assert "warning: host=0.0.0.0" in stderr
    assert list((tmp_path / "kept").iterdir()) == [] and list((tmp_path / "cwd").iterdir()) == []
