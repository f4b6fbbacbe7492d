"""Pictures of every common kind arrive as the pixels they show."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from lafr.errors import InputError
from lafr.images import (
    as_given,
    as_images,
    as_saved,
    from_pil,
    from_uint8,
    list_images,
    read_image,
    read_pil,
    require_batch,
    to_pil,
    to_uint8,
    write_image,
)


@pytest.fixture
def rgb():
    """8 x 8 noise: no two pixels alike."""
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def pixels(path) -> np.ndarray:
    return to_uint8(read_image(path)).permute(1, 2, 0).numpy()


def smooth(size: int = 32) -> np.ndarray:
    """Soft colours that JPEG hardly changes; the left is dark and the right is bright."""
    ramp = np.linspace(40, 200, size)
    return np.stack([np.tile(ramp, (size, 1)), np.full((size, size), 120.0), np.tile(ramp[:, None], (1, size))], 2)


def test_rgb_values_are_channels_first_and_span_minus_one_to_one(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert torch.equal(image, torch.from_numpy(rgb.astype(np.float32) / 127.5 - 1).permute(2, 0, 1))


def test_sixteen_bit_gray_keeps_its_meaning(tmp_path):
    values = np.array([[0, 257], [32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "I;16"
    assert pixels(tmp_path / "a.png").tolist() == [[[0] * 3, [1] * 3], [[128] * 3, [255] * 3]]


def test_gray_is_the_same_in_all_channels(tmp_path):
    Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[0] * 3, [100] * 3], [[200] * 3, [255] * 3]]


def test_transparency_is_blended_over_white(tmp_path, rgb):
    alpha = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    assert np.abs(pixels(tmp_path / "rgba.png") - (rgb * share + 255 * (1 - share))).max() <= 1
    Image.merge("LA", [Image.fromarray(rgb[..., 0]), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    assert np.abs(pixels(tmp_path / "la.png") - (rgb[..., :1] * share + 255 * (1 - share))).max() <= 1


def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_cmyk_is_not_inverted(tmp_path):
    face = smooth()
    Image.fromarray(face.round().astype(np.uint8)).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(pixels(tmp_path / "a.jpg") - face).max() <= 8


def test_every_exif_orientation_comes_out_upright(tmp_path):
    face = smooth()
    # what a camera held that way would store: the inverse of what a viewer does
    stored = {
        1: face,
        2: face[:, ::-1],
        3: face[::-1, ::-1],
        4: face[::-1],
        5: face.swapaxes(0, 1),
        6: np.rot90(face, 1),
        7: face[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(face, -1),
    }
    for orientation, held in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(np.ascontiguousarray(held).round().astype(np.uint8))
        picture.save(tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif)
        assert np.abs(pixels(tmp_path / "a.jpg") - face).max() <= 8, orientation
        (opened,) = as_images(Image.open(tmp_path / "a.jpg"))
        assert opened.tobytes() == read_pil(tmp_path / "a.jpg").tobytes()


def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(smooth(64).round().astype(np.uint8)).save(whole)
    (tmp_path / "truncated.jpg").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    said = {
        "truncated.jpg": "truncated",
        "text.png": "not an image",
        "empty.png": "not an image",
        "folder.png": "cannot be opened",
        "missing.png": "does not exist",
    }
    for name, words in said.items():
        with pytest.raises(InputError, match=words) as error:
            read_pil(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_an_aligned_face_is_square(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "wide.png")
    Image.new("RGB", (40, 39)).save(tmp_path / "rounded.png")
    with pytest.raises(InputError, match="40 x 30, not square"):
        read_image(tmp_path / "wide.png", 16)
    assert read_image(tmp_path / "rounded.png", 16).shape == (3, 16, 16)


def test_the_256_levels_survive_the_way_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_as_saved_is_what_a_png_gives_back(tmp_path):
    image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))  # a third lies outside [-1, 1]
    write_image(image, tmp_path / "a.png")
    assert torch.equal(as_saved(image), read_image(tmp_path / "a.png"))
    write_image(image, tmp_path / "a.jpg")  # at quality 75, colours halved, noise is off by a fifth of the range
    assert (as_saved(image) - read_image(tmp_path / "a.jpg")).abs().mean() < 0.05


def test_a_full_disk_leaves_nothing_behind_and_an_older_picture_whole(tmp_path, monkeypatch):
    write_image(torch.zeros(3, 8, 8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def half_a_file(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_a_file)
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match="No space left on device; free space"):
            write_image(torch.ones(3, 8, 8), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot write .*taken/a.png"):
        write_image(torch.zeros(3, 8, 8), tmp_path / "taken" / "a.png")


def test_a_folder_is_listed_in_name_order_without_hidden_and_other_files(tmp_path):
    for name in ("b.JPG", "a/z.png", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a/z.png", "b.JPG", "c.webp"]
    with pytest.raises(InputError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        list_images(tmp_path / "empty")


def tensors(images):
    return [image if isinstance(image, torch.Tensor) else from_pil(image) for image in images]


def test_an_image_in_any_form_is_the_same_image_and_comes_back_in_its_form(tmp_path, rgb):
    picture = Image.fromarray(rgb)
    picture.save(tmp_path / "a.png")
    expected = from_pil(picture)
    low = (expected + 1) / 2  # [0, 1]
    for given, black in (
        (picture, -1),
        (str(tmp_path / "a.png"), -1),
        (tmp_path / "a.png", 0),
        (rgb, 0),
        (rgb[None], -1),
        (expected, -1),
        (expected[None], -1),
        (low, 0),
        (low.double(), 0),
        (expected.permute(1, 2, 0).numpy(), -1),
        (low.permute(1, 2, 0).numpy().astype(np.float64), 0),
        ([picture, rgb, tmp_path / "a.png", expected], -1),
        ((low, picture), 0),
    ):
        images = tensors(as_images(given, low=black))
        for image in images:
            torch.testing.assert_close(image.float(), expected, rtol=0, atol=1e-6)
        back = as_given(given, images)
        if isinstance(given, list | tuple):
            assert isinstance(back, list) and len(back) == len(given) == len(images)
        elif isinstance(given, np.ndarray | torch.Tensor):
            assert type(back) is type(given) and back.shape == given.shape
            assert (np.asarray(back) == given).all() if given is rgb else True
        else:
            assert back.tobytes() == picture.tobytes()


def test_what_is_no_image_is_refused_with_its_type_shape_dtype_or_range(rgb):
    levels = torch.from_numpy(rgb).permute(2, 0, 1)
    for given, words in (
        ([], "empty"),
        (None, "None"),
        ([rgb, 7], "image 1 is 7"),
        (rgb.astype(np.int64), "int64"),
        (np.moveaxis(rgb, 2, 0), r"uint8 .*\[3, 8, 8\]"),
        ([rgb[None]], r"image 0 .*\[1, 8, 8, 3\]"),
        (rgb.astype(np.float32), r"values from \d to 2"),
        (levels.float(), r"values from \d to 2"),
        (levels, "uint8"),
        (torch.zeros(1, 8, 8), r"\[1, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"\[0, 3, 8, 8\]"),
        (torch.full((3, 8, 8), torch.nan), "nan"),
    ):
        with pytest.raises(InputError, match=words):
            as_images(given)
    with pytest.raises(InputError, match=r"-1 to -1.*\[0, 1\]"):
        as_images(-torch.ones(3, 8, 8), low=0)
    require_batch(torch.full((1, 3, 8, 8), 1.0005))  # what resizing in float may add
    assert to_pil(as_images(torch.ones(3, 8, 8))[0]).getpixel((0, 0)) == (255, 255, 255)
