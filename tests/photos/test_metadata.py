"""What a file says of its pixels (profile, gamma, EXIF, resolution, transparency) survives, or its loss is reported."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage import data
from torch import nn

import lafr.images
from lafr.errors import InputError
from lafr.images import read_photo, write_photo
from lafr.photos.canvas import Canvas
from lafr.photos.restorer import PhotoRestorer
from lafr.photos.restoring import restore_files

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def face():
    return Image.fromarray(data.astronaut()[15:175, 145:305])


class Same(nn.Module):
    resolution = 64

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, lq):
        return lq


def through(photo: Image.Image, path) -> tuple[Image.Image, tuple[str, ...]]:
    """Return a photo as it is after a restoration without faces is written to `path`, and what was said to be lost."""
    written, lost = write_photo(Canvas(photo).image(), path)
    return Image.open(written), lost


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(photo: Image.Image, path, **chunks: bytes) -> None:
    """Write a PNG with further chunks before its pixels."""
    stream = BytesIO()
    photo.save(stream, "PNG")
    body = stream.getvalue()
    start = body.index(b"IDAT") - 4
    more = b"".join(chunk(kind.encode(), content) for kind, content in chunks.items())
    path.write_bytes(body[:start] + more + body[start:])


def test_a_cmyk_jpeg_with_exif_in_sub_directories_keeps_it(tmp_path, face):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[40961] = 1
    face.convert("CMYK").save(tmp_path / "a.jpg", exif=exif)
    photo, _ = read_photo(tmp_path / "a.jpg")
    made, lost = through(photo, tmp_path / "out.png")
    assert made.format == "TIFF" and made.mode == "CMYK" and lost == ()
    assert made.getexif()[0x010F] == "a camera" and made.getexif().get_ifd(0x8769)[40961] == 1


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_metadata_that_cannot_be_written_is_left_out_and_named_and_the_rest_is_kept(tmp_path, face, extension):
    photo = face.copy()
    photo.info = {"icc_profile": SRGB, "dpi": ("a", "b"), "exif": 7}
    made, lost = through(photo, tmp_path / f"out.{extension}")
    assert made.info["icc_profile"] == SRGB
    assert any("EXIF" in one for one in lost)
    assert any("resolution" in one for one in lost)


def test_the_depth_is_that_of_the_mode_not_of_numbers_that_hold_a_16(tmp_path, face):
    face.resize((720, 40)).save(tmp_path / "a.bmp")  # rows of 2160 bytes
    assert read_photo(tmp_path / "a.bmp")[1] == ()


def test_lab_is_converted_and_its_profile_dropped(tmp_path, face):
    lab = ImageCms.createProfile("LAB")
    profile = ImageCms.ImageCmsProfile(lab).tobytes()
    converted = ImageCms.profileToProfile(face, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    converted.save(tmp_path / "a.tif", icc_profile=profile)
    made, lost = through(read_photo(tmp_path / "a.tif")[0], tmp_path / "out.png")
    assert made.mode == "RGB" and "icc_profile" not in made.info
    assert len(lost) == 1 and "Lab" in lost[0]
    assert np.abs(np.asarray(made, int) - np.asarray(face)).mean() < 3


def test_gamma_and_other_colour_facts_of_a_png_are_kept_or_applied(tmp_path, face):
    linear = Image.fromarray(((np.asarray(face) / 255.0) ** 2.2 * 255).round().astype(np.uint8))
    facts = dict(gAMA=struct.pack(">I", 100000), cHRM=struct.pack(">8I", *range(8)), cICP=b"\x09\x10\x00\x01")
    with_chunks(linear, tmp_path / "all.png", **facts)
    photo, _ = read_photo(tmp_path / "all.png")
    through(photo, tmp_path / "out.png")
    body = (tmp_path / "out.png").read_bytes()
    for kind, content in facts.items():
        assert chunk(kind.encode(), content) in body
    assert "cICP" in through(photo, tmp_path / "out.jpg")[1][0]
    with_chunks(linear, tmp_path / "gamma.png", gAMA=facts["gAMA"])
    photo, said = read_photo(tmp_path / "gamma.png")
    assert len(said) == 1 and "1.00" in said[0]
    made, lost = through(photo, tmp_path / "shown.webp")
    assert lost == () and np.abs(np.asarray(made, int) - np.asarray(face)).mean() < 6  # as bright as it is shown
    with_chunks(face, tmp_path / "usual.png", gAMA=struct.pack(">I", 45455), sRGB=b"\0")
    assert read_photo(tmp_path / "usual.png")[1] == ()


def test_a_transparent_gray_or_colour_stays_transparent(tmp_path, face):
    for mode, colour in ("L", 90), ("RGB", (10, 20, 30)):
        flat = Image.new(mode, (20, 20), colour)
        flat.paste({"L": 200, "RGB": (1, 2, 3)}[mode], (0, 0, 10, 20))
        flat.save(tmp_path / "a.png", transparency=colour)
        made, _ = through(read_photo(tmp_path / "a.png")[0], tmp_path / "out.png")
        alpha = np.asarray(made.convert("RGBA"))[..., 3]
        assert (alpha[:, :10] == 255).all() and (alpha[:, 10:] == 0).all()


def test_an_aligned_face_keeps_profile_resolution_exif_alpha_and_gray(face):
    photos = PhotoRestorer(Same(), lambda image: [], guard=False)
    small = face.resize((64, 64))
    alpha = Image.linear_gradient("L").resize((64, 64))
    for mode in ("RGB", "RGBA", "L", "LA"):
        photo = small.convert(mode)
        if mode.endswith("A"):
            photo.putalpha(alpha)
        photo.info = {"icc_profile": SRGB, "dpi": (300, 300), "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}
        result = photos(photo, aligned=True)
        assert result.image.mode == mode and result.image.info["dpi"] == (300, 300)
        assert result.image.info["icc_profile"] == SRGB and "exif" in result.image.info
        if mode.endswith("A"):
            assert result.image.getchannel("A").tobytes() == alpha.tobytes()
        else:
            assert np.abs(np.asarray(result.image, int) - np.asarray(photo)).max() <= 1
    gray = small.convert("L").convert("RGB")
    assert np.ptp(np.asarray(photos(gray, aligned=True).image), axis=2).max() == 0


def test_a_sharp_portrait_larger_than_the_model_keeps_its_size_unless_forced(face):
    photos = PhotoRestorer(Same(), lambda image: [], guard=False)
    portrait = face.resize((300, 300), Image.Resampling.LANCZOS)
    left = photos(portrait, aligned=True)
    assert left.image.tobytes() == portrait.tobytes()
    assert (left.faces[0].status, left.crops) == ("left", ()) and "300 px" in left.faces[0].reason
    forced = photos(portrait, aligned=True, force=True)
    assert forced.image.size == (64, 64)
    (warning,) = forced.faces[0].warnings
    assert "300 px" in warning and "64 px" in warning


def test_a_heic_photo_keeps_what_it_says_and_without_its_package_the_cure_is_named(tmp_path, face, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is missing: pip install 'lafr[heic]'")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    wide = face.crop((0, 0, 160, 100))
    wide.save(tmp_path / "a.heic", exif=exif.tobytes(), icc_profile=SRGB, quality=95)
    photos = PhotoRestorer(Same(), lambda image: [], guard=False)
    how = dict(side_by_side=False, progress=False)
    (path,) = restore_files(photos, [tmp_path / "a.heic"], tmp_path / "out", **how).done
    with Image.open(path) as made:
        assert made.size == (100, 160) and made.info["icc_profile"] == SRGB
        assert made.getexif()[0x010F] == "a camera" and made.getexif().get(0x0112, 1) == 1
        upright = np.asarray(wide.transpose(Image.Transpose.ROTATE_270), int)
        assert np.abs(np.asarray(made.convert("RGB")) - upright).mean() < 6
    formats = tuple(name for name in lafr.images.formats() if name != "HEIF")
    monkeypatch.setattr("lafr.images.formats", lambda: formats)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.heic").read_bytes())  # whatever its name says
    face.save(tmp_path / "c.png")
    outcome = restore_files(photos, [tmp_path / name for name in ("a.heic", "b.png", "c.png")], tmp_path / "no", **how)
    assert [path.name for path in outcome.done] == ["c.png"] and len(outcome.errors) == 2
    assert all("HEIC" in line and "lafr[heic]" in line for line in outcome.skipped)


def test_an_image_with_too_many_pixels_is_refused_by_its_header(tmp_path, face):
    face.save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png", max_megapixels=0.0256)[0].size == (160, 160)
    with pytest.raises(InputError, match="max_megapixels"):
        read_photo(tmp_path / "a.png", max_megapixels=0.025)
