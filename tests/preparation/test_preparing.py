"""Every dataset command on small archives: what it makes and refuses; an interrupted run makes the same bytes."""

import hashlib
import io
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from test_archives import PACKINGS, write_zip
from test_downloads import site  # noqa: F401 - a fixture

import lafr.commands.prepare as prepare_data
from lafr.data.benchmarks import PairedBenchmark
from lafr.data.severity import psnr, require_severity, sharpness
from lafr.errors import InputError, UnwritableError
from lafr.images import from_pil, list_images, read_pil
from lafr.metrics.fidelity import psnr_rgb
from lafr.preparation import preparing
from lafr.preparation.indexes import sha256_of
from lafr.weights import locate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZE = 48
FLAT = {"ffhq": "data/ffhq512", "folder": "data/mine", "congress": "data/congress"}
PAIRS = {"celeba_test": 21.0, "celeba_test_mild": 25.4}  # dB
REAL = ("lfw_test", "webphoto_test", "wider_test", "celebchild_test")
DATASETS = (*FLAT, *PAIRS, *REAL)


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("prepare_data", list(overrides))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("lafr.provenance.provenance", lambda command, seed: {"command": command, "versions": {}})


def run(capsys, name: str, **options) -> str:
    """Run `prepare_data.py dataset=NAME KEY=VALUE ...` in this process; return what it prints."""
    size = {} if name == "congress" else {"resolution": SIZE}
    changed = {key: str(value) if isinstance(value, Path) else value for key, value in (size | options).items()}
    prepare_data.main(OmegaConf.merge(composed(f"dataset={name}"), changed))
    return capsys.readouterr().out


def hq(seed: int, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    return (0.5 * np.asarray(coarse, float) + 0.5 * rng.integers(0, 256, (size, size, 3))).astype(np.uint8)


def lq(clear: np.ndarray, decibel: float) -> np.ndarray:
    """Return a smoothed copy with this PSNR."""
    small = Image.fromarray(clear).resize((8, 8), Image.BOX).resize(clear.shape[:2], Image.BICUBIC)
    change = np.asarray(small, float) - clear
    return np.round(clear + change * np.sqrt(255**2 / 10 ** (decibel / 10) / np.square(change).mean())).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def faces(number: int = 4, size: int = SIZE) -> dict[str, bytes]:
    return {f"{i:05d}.png": png(hq(i, size)) for i in range(number)}


def pairs(decibel: float, number: int = 4) -> dict[str, bytes]:
    clear = {f"{i:05d}.png": hq(i) for i in range(number)}
    files = {f"x/hq/{name}": png(pixels) for name, pixels in clear.items()}
    return files | {f"x/lq/{name}": png(lq(pixels, decibel)) for name, pixels in clear.items()}


def material(name: str) -> dict[str, bytes]:
    """Return what a dataset's source holds, four images or pairs."""
    if name in PAIRS:
        return pairs(PAIRS[name])
    if name == "congress":
        photo = read_pil(locate("astronaut")).crop((100, 0, 350, 230))
        photos = {f"repo/congress/original/{i}.png": photo.rotate(3 * i) for i in range(4)}
        return {path: png(np.asarray(image)) for path, image in photos.items()} | {"repo/congress/225/0.png": b"small"}
    if name == "ffhq":
        return {f"ffhq/images1024x1024/00000/{stem}": data for stem, data in faces(size=2 * SIZE).items()} | {
            "ffhq/thumbnails128x128/00000/00000.png": b"small"
        }
    return faces()


def tree(folder: Path = Path(".")) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def options(name: str, source: Path, **more) -> dict:
    return {"source": source, "count": 4} | ({"output": "data/mine"} if name == "folder" else {}) | more


# congress, which looks for faces, is made in the test of photos without one
@pytest.mark.parametrize(
    ("name", "packing"), zip([name for name in DATASETS if name != "congress"], [*PACKINGS] * 2, strict=False)
)
def test_every_dataset_is_made_from_every_kind_of_source(name, packing, tmp_path, capsys):
    source = PACKINGS[packing](tmp_path / f"x.{packing}", material(name))
    out = run(capsys, name, **options(name, source))
    root = Path(FLAT.get(name, f"data/{name}"))
    index = json.loads((root / "index.json").read_text(encoding="utf-8"))
    sheet = ".sheet.png" if name in FLAT else "sheet.png"
    listed = {file["file"] for file in index["files"]}
    assert {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} == listed | {"index.json", sheet}
    assert [p.name for p in Path("data").iterdir()] == [root.name]
    for file in index["files"]:
        assert sha256_of(root / file["file"]) == file["sha256"]
    assert len(listed) == (8 if name in PAIRS else 4) and index["images"] == 4
    assert index["sources"][index["files"][-1]["part"]]["name"] == source.name
    assert str(tmp_path) not in (root / "index.json").read_text(encoding="utf-8")
    assert str(root) in out and "4 pairs" in out if name in PAIRS else "4 images" in out
    if name in FLAT:  # a folder to train from: every picture in it is a face
        assert len(list_images(root)) == 4
        assert {read_pil(path).size for path in list_images(root)} == {(SIZE, SIZE)}
    else:
        assert len(PairedBenchmark(name, None, SIZE, hq="hq" if name in PAIRS else None, count=4)) == 4


def test_images_that_fit_keep_their_pixels_and_others_are_resized_by_the_named_filter(tmp_path, capsys):
    source = write_zip(tmp_path / "x.zip", faces(2) | {"large.png": png(hq(9, 2 * SIZE))})
    run(capsys, "folder", source=source, output="o", filter="bicubic")
    for i in range(2):
        assert np.array_equal(np.asarray(Image.open(f"o/{i:05d}.png")), hq(i))
    expected = Image.fromarray(hq(9, 2 * SIZE)).resize((SIZE, SIZE), Image.BICUBIC)
    assert np.array_equal(np.asarray(Image.open("o/large.png")), np.asarray(expected))


def test_the_hash_of_the_pixels_is_that_of_their_bytes_whatever_the_file(tmp_path, capsys):
    run(capsys, "folder", source=write_zip(tmp_path / "x.zip", faces(1)), output="o")
    index = json.loads(Path("o/index.json").read_text(encoding="utf-8"))
    assert index["files"][0]["pixels_sha256"] == hashlib.sha256(hq(0).tobytes()).hexdigest()


def test_photos_without_a_face_are_left_out_only_as_far_as_allowed_and_said(tmp_path, capsys):
    photos = dict(list(material("congress").items())[:1])
    source = write_zip(tmp_path / "x.zip", photos | {"original/none.png": png(hq(0))})
    with pytest.raises(InputError, match=r"1 of 2 images, first .*none\.png.*allow_missing=1"):
        run(capsys, "congress", source=source, allow_missing=0)
    assert tree() == {}
    with pytest.raises(InputError, match=r"congress has 1 images, not 2"):  # images written are counted
        run(capsys, "congress", source=source, count=2)
    assert tree() == {}
    out = run(capsys, "congress", source=source, count=1)
    assert "left out: original/none.png: no face found" in out
    left_out = json.loads(Path("data/congress/index.json").read_text(encoding="utf-8"))["left_out"]
    assert [file["member"] for file in left_out] == ["original/none.png"]
    assert [read_pil(path).size for path in list_images("data/congress")] == [(512, 512)]


def test_a_part_of_ffhq_can_be_named_or_counted(tmp_path, capsys):
    source = write_zip(tmp_path / "x.zip", faces(5))
    (tmp_path / "some.txt").write_text("# two of them\n00001.png\n\n# and\n00003\n", encoding="utf-8")
    run(capsys, "ffhq", source=source, only=tmp_path / "some.txt")
    assert [p.name for p in list_images("data/ffhq512")] == ["00001.png", "00003.png"]
    with pytest.raises(InputError, match=r"holds 5 images, the set has 4.*count=5"):
        run(capsys, "ffhq", source=source, count=4, output="o")
    (tmp_path / "some.txt").write_text("00001\n00007\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"lacks 1 of 2 images in the list, first \['00007'\]"):
        run(capsys, "ffhq", source=source, only=tmp_path / "some.txt", output="o")
    with pytest.raises(InputError, match=r"lacks \d+ of 700 images"):  # its lists are not here: those that LAFR carries
        run(capsys, "ffhq_600", source=source, output="o")


def test_two_sources_make_pairs_matched_by_name(tmp_path, capsys):
    files = pairs(21.0)
    for part in ("lq", "hq"):
        write_zip(tmp_path / f"{part}.zip", {f"any/{Path(n).name}": d for n, d in files.items() if f"/{part}/" in n})
    two = {part: tmp_path / f"{part}.zip" for part in ("lq", "hq")}
    pin = sha256_of(two["lq"])
    out = run(capsys, "celeba_test", source=two["lq"], source_hq=two["hq"], sha256=pin, count=4)
    assert "21.00 dB: severe" in out
    index = json.loads(Path("data/celeba_test/index.json").read_text(encoding="utf-8"))
    assert {part: source["name"] for part, source in index["sources"].items()} == {"lq": "lq.zip", "hq": "hq.zip"}
    for file in (file for file in index["files"] if file["part"] == "lq"):
        assert file["psnr_rgb"] == pytest.approx(21.0, abs=0.05)
        assert np.array_equal(read_pil(f"data/celeba_test/{file['reference']}"), hq(int(file["name"])))


@cache
def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(101_000_000))
    return buffer.getvalue()


def refused(name: str, case: str, tmp_path: Path) -> tuple[Path, dict, str]:
    """Return a source with one thing wrong, the options to go with it, and the error's words."""
    files, source = material(name), tmp_path / "x.zip"
    first = max(files, key=lambda name: len(files[name]))
    if case == "corrupt":
        write_zip(source, files)
        with zipfile.ZipFile(source) as archive:
            info = archive.getinfo(first)
        data = bytearray(source.read_bytes())
        data[info.header_offset + 30 + len(first) + info.compress_size // 2] ^= 0x55
        source.write_bytes(data)
        return source, {}, "is damaged or truncated"
    if case == "a corrupt image":
        half = files[first][: len(files[first]) // 2]
        return write_zip(source, files | {first: half}), {}, f"'{first}' in 'x.zip' is"
    if case == "truncated":
        whole = write_zip(source, files).read_bytes()
        source.write_bytes(whole[: len(whole) * 2 // 3])
        return source, {}, "is damaged or truncated"
    if case == "traversal":
        return write_zip(source, files | {"../../x.png": b"x"}), {}, "leads out of its folder"
    if case == "bomb":
        source.write_bytes(bomb())
        return source, {}, "unpacks to more than 100,000,000"
    if case == "link":
        with zipfile.ZipFile(write_zip(source, files), "a") as archive:
            link = zipfile.ZipInfo("link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        return source, {}, "link or a device"
    if case == "wrong count":
        return write_zip(source, files), {"count": 5}, "holds 4 images, the set has 5"
    if case == "wrong hash":
        return write_zip(source, files), {"sha256": "0" * 64}, f"not {'0' * 64}"
    return write_zip(source, files | {f"2/{first}": b"x", first: b"x"}), {}, "remove one"


CASES = ("corrupt", "a corrupt image", "truncated", "traversal", "bomb", "link", "wrong count", "wrong hash", "twins")


@pytest.mark.parametrize("name", ["ffhq", "celeba_test", "lfw_test"])  # a flat set, pairs, LQ images alone
def test_a_set_refuses_what_is_wrong_in_one_line_and_leaves_no_file(name, tmp_path, capsys):
    for case in CASES:
        source, wrong, words = refused(name, case, tmp_path)
        with pytest.raises(InputError) as error:
            run(capsys, name, **options(name, source) | wrong)
        assert words in str(error.value), case
        assert "\n" not in str(error.value), case
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "here", source], case


def test_without_a_source_every_dataset_says_where_to_get_it(capsys):
    for name in DATASETS:
        with pytest.raises(InputError, match=name) as error:
            run(capsys, name, **options(name, None))
        assert error.value.parameter == "source"
        assert name == "folder" or "https://" in str(error.value)
    assert tree() == {}


@pytest.mark.parametrize(("name", "decibel", "other"), [("celeba_test", 25.4, "_mild"), ("celeba_test_mild", 21, "")])
def test_a_mislabelled_celeba_test_is_refused_with_its_true_name(name, decibel, other, tmp_path, capsys):
    source = write_zip(tmp_path / "x.zip", pairs(decibel))
    with pytest.raises(InputError, match=rf"{decibel:.2f} dB.*dataset='celeba_test{other}'"):
        run(capsys, name, source=source, count=4)
    assert tree() == {}


def swapped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.replace("/lq/", "/x/").replace("/hq/", "/lq/").replace("/x/", "/hq/"): d for name, d in files.items()}


WRONG_PAIRS = {
    "swapped": (swapped, "LQ and HQ are swapped: in 4 of 4"),
    "identical": (lambda f: f | {"x/lq/00001.png": f["x/hq/00001.png"]}, "1 of 4 LQ images equal their HQ image"),
    "one renamed": (
        lambda f: {name.replace("lq/00002", "lq/other"): d for name, d in f.items()},
        "pairs do not match: 1 images without a reference ['other.png'], 1 references without an image ['00002.png']",
    ),
    "no folders": (lambda f: {name.replace("/", "_"): d for name, d in f.items()}, "no images in a folder 'lq'"),
}


def test_wrong_pairs_are_refused(tmp_path, capsys):
    for case, (change, words) in WRONG_PAIRS.items():
        source = write_zip(tmp_path / "x.zip", change(pairs(21.0)))
        with pytest.raises(InputError) as error:
            run(capsys, "celeba_test", source=source, count=4)
        assert words in str(error.value), case
        assert tree() == {}


def test_psnr_is_skimages_and_the_metrics():
    clear = hq(0)
    rough = lq(clear, 21.0)
    assert psnr(rough, clear) == pytest.approx(peak_signal_noise_ratio(clear, rough), abs=1e-9)
    images = [from_pil(Image.fromarray(pixels))[None] for pixels in (rough, clear)]
    assert psnr(rough, clear) == pytest.approx(psnr_rgb(*images).item(), abs=1e-4)
    assert psnr(clear, clear) == float("inf")


@pytest.mark.parametrize("degrade", ["blur", "noise under blur"])
def test_a_degraded_astronaut_is_less_sharp_than_the_astronaut(degrade):
    clear = read_pil(locate("astronaut"))
    small = np.asarray(clear.resize((128, 128), Image.BOX), float)
    if degrade != "blur":
        small = small + np.random.default_rng(0).normal(0, 20, small.shape)
    rough = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize(clear.size, Image.BILINEAR)
    assert sharpness(np.asarray(rough)) < sharpness(np.asarray(clear))


def test_the_sets_are_parted_between_what_is_published_of_each():
    assert require_severity("mild", [25.35], [False])["severity"] == "mild"
    for restored in (19.5, 22.2):  # restorations; its LQ images have no row
        assert require_severity("severe", [restored], [False])["severity"] == "severe"


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


def stop_at(monkeypatch, call: int) -> list[str]:
    """Stop in the given call that writes an image; return the list of what is written."""
    written, write = [], preparing.write_image

    def stopping(image, path):
        if len(written) == call:
            raise Stop
        written.append(Path(path).name)
        write(image, path)

    monkeypatch.setattr(preparing, "write_image", stopping)
    return written


@pytest.mark.parametrize(("name", "packing"), [("celeba_test", "zip"), ("ffhq", "folder"), ("lfw_test", "tar.gz")])
def test_a_stopped_run_resumes_and_makes_the_same_bytes(name, packing, tmp_path, capsys, monkeypatch):
    source = PACKINGS[packing](tmp_path / "x", material(name))
    run(capsys, name, **options(name, source))
    whole = tree()
    shutil.rmtree("data")
    number = 8 if name in PAIRS else 4
    for call in (0, 1, number - 1, number):  # before the first, amid, before the last, at the sheet
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, call)
            run(capsys, name, **options(name, source))
        assert all(path.startswith(f"{FLAT.get(name, f'data/{name}')}.part/") for path in tree())
        with monkeypatch.context() as patch:
            written = stop_at(patch, 99)
            run(capsys, name, **options(name, source))
        assert len(written) == number - call + 1  # the rest and the sheet: nothing is made twice
        assert tree() == whole
        shutil.rmtree("data")


def test_what_a_stop_left_half_is_made_again(tmp_path, capsys, monkeypatch):
    source = write_zip(tmp_path / "x.zip", faces())
    run(capsys, "lfw_test", source=source, count=4)
    whole = tree()
    shutil.rmtree("data")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 3)
        run(capsys, "lfw_test", source=source, count=4)
    part = Path("data/lfw_test.part")
    (part / "set/lq/00001.png").write_bytes(b"torn")
    (part / "set/lq/.00003.0123456789abcdef.png").write_bytes(b"cut off")
    journal = (part / "done.jsonl").read_text(encoding="utf-8")
    (part / "done.jsonl").write_text(journal[:-20], encoding="utf-8")
    run(capsys, "lfw_test", source=source, count=4)
    assert tree() == whole


@pytest.mark.parametrize("stopped", [True, False])
def test_another_source_or_setting_is_refused_and_what_was_made_stays(stopped, tmp_path, capsys, monkeypatch):
    source = write_zip(tmp_path / "x.zip", faces())
    with monkeypatch.context() as patch:
        if stopped:
            stop_at(patch, 2)
        try:
            run(capsys, "lfw_test", source=source, count=4)
        except Stop:
            assert stopped
    before = tree()
    other = write_zip(tmp_path / "y.zip", faces(4, SIZE + 2))
    for change, words in [
        ({"source": other}, "sha256 of lq: "),
        ({"source": source, "filter": "bicubic"}, "settings.filter: lanczos -> bicubic"),
    ]:
        with pytest.raises(InputError) as error:
            run(capsys, "lfw_test", count=4, **change)
        assert words in str(error.value) and "another output" in str(error.value)
        assert tree() == before
    run(capsys, "lfw_test", source=source.rename(tmp_path / "renamed.zip"), count=4)


def test_a_finished_set_is_verified_with_and_without_its_source(tmp_path, capsys):
    source = write_zip(tmp_path / "x.zip", faces())
    run(capsys, "lfw_test", source=source, count=4)
    before = tree()
    assert "data/lfw_test is complete: 4 images" in run(capsys, "lfw_test", source=source, count=4)
    assert "data/lfw_test is complete: 4 images" in run(capsys, "lfw_test", count=4)
    assert tree() == before
    file = Path("data/lfw_test/lq/00002.png")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"00002\.png' was altered"):
        run(capsys, "lfw_test", count=4)
    file.unlink()
    with pytest.raises(InputError, match=r"00002\.png' is missing"):
        run(capsys, "lfw_test", count=4)


@pytest.mark.parametrize("place", ["data/lfw_test", "data/lfw_test.part"])
def test_a_folder_that_holds_other_files_is_not_touched(place, tmp_path, capsys):
    source = write_zip(tmp_path / "x.zip", faces())
    Path(place).mkdir(parents=True)
    Path(place, "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"):
        run(capsys, "lfw_test", source=source, count=4)
    assert tree() == {f"{place}/mine.txt": b"mine"}


def test_a_set_is_not_made_inside_its_own_source(tmp_path, capsys):
    PACKINGS["folder"](Path("faces"), faces())
    with pytest.raises(InputError, match=r"output .*source"):
        run(capsys, "folder", source="faces", output="faces/small")


def test_a_full_disk_leaves_what_is_done(tmp_path, capsys, monkeypatch):
    source = write_zip(tmp_path / "x.zip", faces())
    with monkeypatch.context() as patch:
        written = stop_at(patch, 99)
        patch.setattr(
            "PIL.Image.Image.save",
            lambda self, path, save=Image.Image.save, **how: _full() if len(written) > 2 else save(self, path, **how),
        )
        with pytest.raises(UnwritableError, match=r"cannot write .* free space"):
            run(capsys, "lfw_test", source=source, count=4)
    assert len(list_images("data/lfw_test.part")) == 2
    # also where the line of an image cannot be written, or the sheet of all images
    for broken, left in ((no_line, 3), (no_sheet, 4)):
        with monkeypatch.context() as patch:
            broken(patch)
            with pytest.raises(UnwritableError, match=r"cannot write .* free space"):
                run(capsys, "lfw_test", source=source, count=4)
        assert len(list_images("data/lfw_test.part")) == left
    assert "prepared 4 images" in run(capsys, "lfw_test", source=source, count=4)


def _full():
    raise OSError(28, "No space left on device")


def no_line(patch):
    patch.setattr("lafr.storage.JsonLines._ends_a_line", staticmethod(lambda file: _full()))


def no_sheet(patch):
    save = Image.Image.save

    def save_all_but_the_sheet(self, path, **how):
        return _full() if "sheet" in str(path) else save(self, path, **how)

    patch.setattr("PIL.Image.Image.save", save_all_but_the_sheet)


def test_an_address_is_downloaded_resumed_unpacked_and_not_fetched_again(site, tmp_path, capsys):  # noqa: F811
    site.data = write_zip(tmp_path / "x.zip", faces()).read_bytes()
    site.breaks_after = 5000
    address = f"{site.address}?token=secret"
    with pytest.raises(ConnectionError, match="broke off after 5,000 of"):
        run(capsys, "lfw_test", source=address, count=4)
    assert sorted(tree()) == [f"data/lfw_test.part/download_lq.{end}" for end in ("beginning", "json")]
    site.breaks_after = None
    run(capsys, "lfw_test", source=address, count=4)
    assert site.asked == [None, "bytes=5000-"]
    assert [p.name for p in Path("data").iterdir()] == ["lfw_test"]
    text = Path("data/lfw_test/index.json").read_text(encoding="utf-8")
    assert json.loads(text)["sources"]["lq"]["sha256"] == sha256_of(tmp_path / "x.zip")
    assert "secret" not in text and site.address in text
    assert "is complete" in run(capsys, "lfw_test", source=address, count=4)
    assert len(site.asked) == 2
    with pytest.raises(InputError, match="another source"):
        run(capsys, "lfw_test", source=f"{site.address}.new", count=4)


def test_a_download_that_is_a_web_page_or_has_a_wrong_hash_leaves_nothing(site, tmp_path, capsys):  # noqa: F811
    site.data = write_zip(tmp_path / "x.zip", faces()).read_bytes()
    with pytest.raises(InputError, match="the sha256 of"):
        run(capsys, "lfw_test", source=site.address, sha256="0" * 64)
    site.kind = "text/html"
    with pytest.raises(InputError, match="is a web page"):
        run(capsys, "lfw_test", source=site.address)
    assert list(Path(".").iterdir()) == []


def test_without_a_dataset_the_sheet_is_written_as_before_and_global_randomness_is_not_moved(capsys):
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    prepare_data.main(composed("output=o", "draws=2", "resolution=32"))
    assert sorted(tree()) == [
        "o/astronaut_draws.json",
        "o/astronaut_sheet.png",
        "o/lq/astronaut_00.png",
        "o/lq/astronaut_01.png",
    ]
    assert torch.equal(torch.random.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


def test_the_command_in_an_index_names_no_folder_of_this_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["scripts/prepare_data.py"])
    arguments = ["dataset=lfw_test", "source=/home/me/x (1).zip", "only=data/a.txt", "output=/d/o"]
    public = prepare_data.public_command(arguments)
    assert public == "python scripts/prepare_data.py dataset=lfw_test 'source=x (1).zip' only=data/a.txt output=o"
