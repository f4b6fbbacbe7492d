"""Whole photos: every face is found, restored or left with its reason, and nothing else changes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from lafr.alignment import FFHQ_512
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_pil, read_pil, resize_pil, to_pil
from lafr.models.restorer import Restorer
from lafr.photos import guard
from lafr.photos.detectors import Detection
from lafr.photos.pasting import Place
from lafr.photos.restorer import PhotoRestorer
from lafr.photos.sharpness import DETAIL
from lafr.weights import locate


class Brighter(nn.Module):
    """Stands for a restorer: adds detail to each crop and counts the batches."""

    def __init__(self, resolution: int = 128):
        super().__init__()
        self.resolution, self.batches, self.asked = resolution, [], []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, lq, **more):
        self.batches.append(len(lq))
        self.asked.append(more)
        stripes = torch.linspace(0, 40 * torch.pi, self.resolution).sin()
        return lq + 0.3 * stripes + self.weight


def face(x: float, y: float, side: float, points=FFHQ_512) -> Detection:
    """A frontal face whose crop has its corner at (x, y)."""
    at = (points + 0.5) * side / 512 - 0.5 + (x, y)
    low, high = at.min(0) - 0.15 * side, at.max(0) + 0.15 * side
    return Detection((*low, *high), at, 0.9)


def restore(photo, faces, resolution=128, **arguments):
    photos = PhotoRestorer(Brighter(resolution), lambda image: list(faces), batch_size=2, guard=False)
    return photos(photo, aligned=False, **arguments)


NOISE = Image.fromarray(np.random.default_rng(0).integers(60, 190, (300, 400, 3), dtype=np.uint8))


def covered(size, faces, scale=1) -> np.ndarray:
    """Return where the faces' ellipses lie."""
    box = (0, 0, size[0] * scale, size[1] * scale)
    return np.min([Place.of(f.points, scale).radius(box) for f in faces], axis=0) < 1


def test_only_the_faces_change():
    faces = [face(10, 20, 120), face(250, 60, 100)]
    result = restore(NOISE, faces)
    assert [f.status for f in result.faces] == ["restored"] * 2 and not result.aligned
    inside, changed = covered(NOISE.size, faces), (np.asarray(result.image) != np.asarray(NOISE)).any(2)
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.7


def test_of_chosen_faces_the_others_keep_their_pixels():
    faces = [face(10, 20, 120), face(250, 60, 100)]
    result = restore(NOISE, faces, only=[1])
    assert [(f.status, f.reason) for f in result.faces] == [("left", "not chosen"), ("restored", "")]
    left = covered(NOISE.size, faces[:1])
    assert np.array_equal(np.asarray(result.image)[left], np.asarray(NOISE)[left])
    with pytest.raises(InputError, match=r"only .*2 faces.*\[2\]"):
        restore(NOISE, faces, only=[2])


PROFILE = np.array([(190, 240), (215, 240), (140, 310), (200, 370), (225, 370)], float)


@pytest.mark.parametrize(
    ("found", "reason", "force"),
    [
        (face(10, 20, 30), "too small: 1", True),
        (face(50, 20, 193), "larger than the model, and sharp: its crop is 193 px wide and the model's 128 px", True),
        (face(50, 20, 191), "", False),
        (face(50, 20, 150, PROFILE), "in profile: turned by about 80", True),
        (face(-70, 20, 150), "cut by the border: ", True),
        (face(-20, 20, 150), "", False),
    ],
)
def test_a_face_that_restoring_would_not_better_is_left_and_says_why(found, reason, force):
    (report,) = restore(NOISE, [found]).faces
    assert report.reason.startswith(reason) and report.status == ("left" if reason else "restored")
    if force:
        result = restore(NOISE, [found], force=True)
        assert result.faces[0].status == "restored"
        assert np.asarray(result.image).tobytes() != NOISE.tobytes()


def test_a_photo_in_any_form_is_restored_alike_and_a_list_returns_a_list(tmp_path):
    NOISE.save(tmp_path / "a.png")
    tensor, faces = from_pil(NOISE), [face(10, 20, 120)]
    expected = restore(NOISE, faces).image.tobytes()
    for photo in (tmp_path / "a.png", np.array(NOISE), tensor):
        assert restore(photo, faces).image.tobytes() == expected
    for several in ([NOISE, tmp_path / "a.png"], tensor[None], np.array(NOISE)[None]):
        assert [result.image.tobytes() for result in restore(several, faces)] == [expected] * len(several)
    with pytest.raises(InputError, match=r"values from 60 to 189"):
        restore((tensor + 1) * 127.5, faces)


def test_only_the_face_nearest_to_the_middle_is_restored():
    faces = [face(10, 20, 120), face(130, 90, 100), face(290, 60, 100)]
    result = restore(NOISE, faces, only_center_face=True)
    assert [one.status for one in result.faces] == ["left", "restored", "left"]
    assert [one.index for one in result.crops] == [1] and result.crops[0].after.size == (128, 128)
    assert restore(NOISE, [], only_center_face=True).faces == []
    with pytest.raises(InputError, match="only"):
        restore(NOISE, faces, only_center_face=True, only=[0])


def test_warnings_name_what_is_doubtful_about_a_restored_face():
    assert restore(NOISE, [face(-40, 20, 150)]).faces[0].warnings[0].endswith("% of it lies outside the photo")
    pair = restore(NOISE, [face(10, 20, 120), face(60, 20, 120)]).faces
    assert [f.warnings for f in pair] == [("overlaps face 1",), ("overlaps face 0",)]
    assert restore(NOISE, [face(10, 20, 100), face(200, 20, 100)]).faces[0].warnings == ()


def test_a_face_that_the_model_returns_as_nan_is_left_and_the_others_are_restored():
    faces = [face(10, 20, 120), face(250, 60, 100)]
    model = Brighter()
    forward = model.forward
    model.forward = lambda lq, **more: torch.cat([torch.full_like(lq[:1], torch.nan), forward(lq[1:])])
    photos = PhotoRestorer(model, lambda image: faces, guard=False)
    result = photos(NOISE, aligned=False)
    assert [one.status for one in result.faces] == ["left", "restored"] and "NaN" in result.faces[0].reason
    left = covered(NOISE.size, faces[:1])
    assert np.array_equal(np.asarray(result.image)[left], np.asarray(NOISE)[left])
    alone = photos(NOISE.crop((0, 0, 128, 128)), aligned=True)
    assert alone.faces[0].status == "left" and alone.image.tobytes() == NOISE.crop((0, 0, 128, 128)).tobytes()


def test_an_overlapping_face_that_is_left_keeps_its_middle():
    faces = [face(10, 20, 180), face(90, 60, 120)]
    box = (0, 0, *NOISE.size)
    middles = [Place.of(one.points).radius(box) < 0.2 for one in faces]
    moved = abs(np.asarray(restore(NOISE, faces, only=[0]).image, int) - np.asarray(NOISE))
    assert moved[middles[1]].mean() < 0.3 * moved[middles[0]].mean()


def test_a_photo_without_faces_comes_back_as_it_was_and_says_so():
    result = restore(NOISE, [])
    assert result.image.tobytes() == NOISE.tobytes()
    assert result.faces == [] and result.warnings == ("no face found",)


def test_faces_go_through_the_model_in_batches_and_fidelity_only_when_asked_for():
    faces = [face(10 + 60 * i, 20, 60) for i in range(5)]
    photos = PhotoRestorer(Brighter(), lambda image: faces, batch_size=2, guard=False)
    photos(NOISE, aligned=False)
    assert photos.restorer.batches == [2, 2, 1] and photos.restorer.asked == [{}] * 3
    photos.equal_batches = True
    photos(NOISE, aligned=False, fidelity=0.5)
    assert photos.restorer.batches[3:] == [2, 2, 2] and photos.restorer.asked[3:] == [{"fidelity": 0.5}] * 3


@pytest.mark.parametrize("upscale", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_enlarged_photo_is_lanczos_except_for_the_faces(upscale):
    found = face(30, 20, 100)
    result = restore(NOISE, [found], upscale=upscale)
    size = (400 * upscale, 300 * upscale)
    assert result.image.size == size
    plain = np.asarray(NOISE.resize(size, Image.Resampling.LANCZOS))
    inside = covered(NOISE.size, [found], upscale)
    changed = (np.asarray(result.image) != plain).any(2)
    assert not changed[~inside].any() and changed[inside].mean() > 0.7
    assert result.faces[0].box == found.box  # of the photo as given
    with pytest.raises(InputError, match=r"upscale .*1, 2 or 4.* 3"):
        restore(NOISE, [found], upscale=3)


def test_the_photo_is_turned_upright_and_keeps_its_metadata():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    photo = NOISE.rotate(90, expand=True)
    photo.info = {"exif": exif.tobytes(), "dpi": (300, 300), "icc_profile": b"a profile"}
    photo.getexif()[0x0112] = 6
    result = restore(photo, [])
    assert result.image.tobytes() == NOISE.tobytes()
    assert result.image.info["dpi"] == (300, 300) and result.image.info["icc_profile"] == b"a profile"
    again = Image.Exif()
    again.load(result.image.info["exif"])
    assert 0x0112 not in again and again[0x010F] == "a camera"
    assert "exif" in photo.info and photo.size == (300, 400)  # what was given isn't changed


@pytest.fixture(scope="module")
def mini():
    return PhotoRestorer(Restorer.from_pretrained("mini"))


@pytest.fixture(scope="module")
def astronaut():
    return read_pil(locate("astronaut"))


def test_an_aligned_face_is_told_from_a_photo_and_restored_as_the_model_does_alone(mini, astronaut):
    with torch.no_grad():
        for side in (128, 512):  # the larger one is blurred: it holds no more detail than the model's
            picture = aligned("astronaut").filter(ImageFilter.GaussianBlur(4)).resize((side, side))
            result = mini(picture)
            assert result.aligned and result.warnings == () and len(result.faces) == 1
            assert len(result.faces[0].warnings) == (side > 128)
            assert result.image.tobytes() == mini.restorer(picture).tobytes()
            expected = to_pil(mini.restorer(from_pil(resize_pil(picture, 128))[None])[0])
            assert result.image.tobytes() == expected.tobytes()
    photos = {
        "square photo": (astronaut, False),
        "wide crop": (aligned("t1_0").crop((0, 0, 512, 400)), False),
        "aligned": (aligned("t1_2").resize((128, 128)), True),
        "large and sharp": (aligned("t1_2"), False),
        "blurred": (aligned("t1_5").filter(ImageFilter.GaussianBlur(12)), True),
        "large empty square": (Image.new("RGB", (700, 700)), False),
        "one pixel": (Image.new("RGB", (1, 1)), False),
    }
    for name, (photo, is_aligned) in photos.items():
        assert mini.judge(photo)[0] is is_aligned, name


def test_a_restoration_that_looks_like_someone_else_is_left_unless_the_guard_is_off(mini, astronaut):
    class Other(Brighter):
        def forward(self, lq, **more):
            return from_pil(aligned("t1_0").resize((128, 128)))[None].expand_as(lq)

    small = aligned("astronaut").resize((128, 128)).filter(ImageFilter.GaussianBlur(1.5))
    for photo in (astronaut.filter(ImageFilter.GaussianBlur(2)), small):
        (report,) = mini(photo).faces
        assert report.status == "restored" and report.likeness > 0.5
        result = PhotoRestorer(Other())(photo)
        (report,) = result.faces
        assert (report.status, report.likeness < 0.5) == ("left", True) and "someone else" in report.reason
        assert result.image.tobytes() == photo.tobytes() and result.crops == ()
        result = PhotoRestorer(Other(), guard=False)(photo)
        assert result.faces[0].status == "restored" and result.image.tobytes() != photo.tobytes()


def test_a_face_that_was_as_sharp_before_is_left_unless_forced_and_a_noisy_or_blurred_one_is_restored(mini, astronaut):
    small, rng = aligned("astronaut").resize((128, 128)), np.random.default_rng(0)
    for photo in (astronaut, small):
        result = mini(photo)
        (report,) = result.faces
        assert report.status == "left" and report.held_detail > DETAIL
        assert report.reason.startswith("sharp already") and result.image.tobytes() == photo.tobytes()
        assert mini(photo, force=True).faces[0].status == "restored"
        assert PhotoRestorer(mini.restorer, guard=False)(photo).faces[0].status == "restored"
        noisy = np.asarray(photo) + rng.normal(0, 20, np.asarray(photo).shape)
        for worse in (Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), photo.filter(ImageFilter.GaussianBlur(2))):
            (report,) = mini(worse).faces
            assert report.status == "restored" and report.held_detail < DETAIL


def test_an_aligned_gray_face_of_sixteen_bits_keeps_them_and_every_detection_has_its_own_limits():
    gray = Image.fromarray(np.asarray(aligned("astronaut").resize((128, 128)).convert("L")).astype(np.uint16) * 257)
    result = PhotoRestorer(Brighter(), guard=False)(gray, aligned=True)
    assert result.image.mode == gray.mode and np.asarray(result.image).max() > 255
    with pytest.raises(InputError, match=r"limits .*one for each of the 2 faces"):
        restore(NOISE, [face(10, 20, 120), face(250, 60, 100)], limits=[guard.Limits()])


def test_the_user_has_the_last_word_on_what_is_aligned(mini, astronaut):
    assert mini.judge(astronaut, aligned=True)[0] is True
    assert mini.judge(aligned("astronaut"), aligned=False)[0] is False
    with pytest.raises(InputError, match="40 x 20, not square"):
        mini.judge(Image.new("RGB", (40, 20)), aligned=True)
    with pytest.raises(InputError, match=r"aligned .*maybe"):
        mini.judge(astronaut, aligned="maybe")


def test_a_square_is_taken_for_aligned_with_a_warning_where_no_detector_can_look():
    def missing(image):
        raise InputError("yunet is missing: pip install it")

    photos = PhotoRestorer(Brighter(), missing, guard=False)
    result = photos(Image.new("RGB", (128, 128)))
    assert result.aligned and "yunet is missing" in result.warnings[0]
    with pytest.raises(InputError, match="yunet is missing"):
        photos(Image.new("RGB", (128, 100)))


def seams(before: np.ndarray, after: np.ndarray, faces) -> list[float]:
    """Return by how much the mean colour steps more across each mask's border than it did, in levels, worst channel."""
    steps = []
    for one in faces:
        radius = Place.of(one.points).radius((0, 0, before.shape[1], before.shape[0]))
        inner, outer = (radius > 0.85) & (radius < 1), (radius >= 1) & (radius < 1.15)
        step = [image[inner].mean(0) - image[outer].mean(0) for image in (before.astype(float), after.astype(float))]
        steps.append(float(abs(step[1] - step[0]).max()))
    return steps


def collage(names: dict[str, tuple[int, int, int]]) -> Image.Image:
    """Return packaged faces (side, x, y) in one scene, softened as an old photo."""
    scene = Image.radial_gradient("L").resize((900, 600)).point(lambda v: 90 + v // 3).convert("RGB")
    for name, (side, x, y) in names.items():
        crop = aligned(name).resize((side, side), Image.Resampling.LANCZOS)
        scene.paste(crop, (x, y))
    return scene.resize((450, 300), Image.Resampling.BOX).resize((900, 600), Image.Resampling.BICUBIC)


PLACES = {
    "astronaut": (150, 40, 50),
    "t1_0": (120, 300, 30),
    "t1_1": (180, 520, 60),
    "t1_2": (160, 60, 320),
    "t1_3": (100, 380, 400),
    "t1_5": (190, 620, 330),
}


@pytest.mark.parametrize(
    ("name", "frontal"),
    [
        ("astronaut", 1),
        pytest.param("collage", 6, marks=pytest.mark.slow),  # 5 s each on a core
        pytest.param("insightface_t1", 5, marks=pytest.mark.slow),
    ],
)
def test_every_frontal_face_is_found_and_no_seam_is_seen(mini, name, frontal):
    photo = collage(PLACES) if name == "collage" else read_pil(locate(name))
    result = mini(photo, force=True)
    before, after = np.asarray(photo), np.asarray(result.image)
    assert sum(one.status == "restored" for one in result.faces) >= frontal
    assert len(result.faces) <= 6
    outside = ~covered(photo.size, result.faces)
    assert np.array_equal(before[outside], after[outside])
    assert max(seams(before, after, result.faces)) < 2


def test_a_gray_photo_stays_gray_through_the_model(mini, astronaut):
    for mode in ("L", "RGB"):
        photo = astronaut.filter(ImageFilter.GaussianBlur(2)).convert("L").convert(mode)
        result = mini(photo)
        assert result.image.mode == mode and result.faces[0].status == "restored"
        assert result.image.tobytes() != photo.tobytes()
        assert (np.ptp(np.asarray(result.image.convert("RGB")), axis=2) == 0).all()
