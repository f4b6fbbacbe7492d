"""Videos: all but the faces is unchanged as a player shows it; faces are tracked and do not flicker."""

import itertools
import os
import weakref
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from lafr.data.packaged import read_pil
from lafr.errors import InputError
from lafr.photos.detectors import Detection
from lafr.photos.guard import THRESHOLD
from lafr.photos.restorer import FaceReport, PhotoRestorer, PhotoResult
from lafr.photos.sharpness import DETAIL, LOST
from lafr.photos.video import container_for, restore_video
from lafr.photos.video.frames import as_stored, upright
from lafr.photos.video.tracking import OneEuro, Tracker
from lafr.weights import locate

av = pytest.importorskip("av", reason="PyAV is missing: pip install 'lafr[video]'")

FACE = (196, 60, 252, 152)  # the astronaut's, in the whole photograph
POINTS = np.array([(203.2, 101.5), (246.8, 104.0), (225.0, 127.0), (201.0, 140.0), (245.0, 141.0)])
BASE = Fraction(1, 600)
TICKS = [20 * i for i in range(12)] + [240 + 60 * i for i in range(8)]  # thirty frames a second, then ten


@dataclass
class Painter:
    """In a restorer's place: paints the box of each face red."""

    faces: int = 1
    stop_after: int | None = None

    def __post_init__(self):
        self.photos, self.alive, self.most = [], [], 0

    def detect(self, photo):
        if self.stop_after is not None and len(self.photos) == self.stop_after:
            raise KeyboardInterrupt
        self.photos.append(photo.resize((64, 64)))
        self.alive.append(weakref.ref(photo))
        self.most = max(self.most, sum(ref() is not None for ref in self.alive))
        scale = photo.width / 512
        box = tuple(value * scale for value in FACE)
        return [Detection(box, POINTS * scale, 0.9)] * self.faces

    def __call__(self, photo, fidelity, aligned, detections, limits):
        painted = photo.copy()
        for detection in detections:
            ImageDraw.Draw(painted).rectangle(detection.box, fill=(200, 30, 30))
        reports = [FaceReport(d.box, d.points, d.score, 60, "restored") for d in detections]
        return PhotoResult(painted, reports, False, 0.0)


@pytest.fixture(scope="module")
def photo():
    return read_pil(locate("astronaut")).resize((256, 256))


def make_video(path, photo, full_range=False, rotation=None, tone=True, codec="libx264", pix_fmt="yuv420p"):
    """A photograph that brightens, at uneven times; BT.709 colours and one second of a tone."""
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=30, options={"crf": "8"} if codec == "libx264" else {})
        stored = as_stored(np.asarray(photo), (True, False, True)) if rotation == 90 else np.asarray(photo)
        video.height, video.width, video.pix_fmt = *stored.shape[:2], pix_fmt
        context = video.codec_context
        context.time_base, context.color_range = BASE, 2 if full_range else 1
        context.colorspace = context.color_trc = context.color_primaries = 1
        if rotation is not None:
            video.set_display_rotation(rotation)
        audio = out.add_stream("aac", rate=48000) if tone else None
        out.metadata["title"] = "a tone & a face"
        for number, ticks in enumerate(TICKS):
            pixels = np.clip(stored.astype(int) + number, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=1, dst_color_range=2 if full_range else 1)
            frame.pts, frame.time_base = ticks, BASE
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if tone:
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)
            sound = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
            sound.rate, sound.pts = 48000, 0
            out.mux(audio.encode(sound))
            out.mux(audio.encode())
    return path


def frames_of(path):
    with av.open(str(path)) as reading:
        return [(frame.time, frame.to_ndarray(format="rgb24").astype(int)) for frame in reading.decode(video=0)]


def audio_of(path):
    with av.open(str(path)) as reading:
        return [(float(p.pts * p.time_base), bytes(p)) for p in reading.demux(audio=0) if p.pts is not None]


def description_of(path):
    with av.open(str(path)) as reading:
        stream, first = reading.streams.video[0], next(reading.decode(video=0))
        return {
            "codec": stream.codec_context.name,
            "streams": [s.type for s in reading.streams],
            "pixels": (stream.width, stream.height, stream.pix_fmt),
            "colour": (stream.color_range, stream.colorspace, stream.color_trc, stream.color_primaries),
            "rotation": first.rotation,
            "title": reading.metadata.get("title"),
        }


@pytest.mark.parametrize(("name", "full_range"), [("in.mp4", False), ("in.mkv", True)])
def test_times_rotation_colours_and_the_audio_packets_survive(name, full_range, photo, tmp_path):
    source = make_video(tmp_path / name, photo, full_range, rotation=90)
    report = restore_video(source, tmp_path / f"out {name}", Painter(), progress=False)
    assert (report.frames, report.faces, report.tracks, report.copied) == (20, 20, 1, False)
    before, after = frames_of(source), frames_of(tmp_path / f"out {name}")
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-3)
    assert np.ptp(np.diff([time for time, _ in after])) > 0.05  # the uneven rate was kept, not evened
    assert audio_of(tmp_path / f"out {name}") == audio_of(source) != []
    assert description_of(tmp_path / f"out {name}") == description_of(source)
    face = as_stored(np.asarray(_mask(256)), (True, False, True))
    for (_, old), (_, new) in zip(before, after, strict=True):
        moved = (new - old)[~face].mean(0)
        assert abs(moved).max() < (1.2 if full_range else 0.6)  # levels; swscale rounds down in full range


def _mask(side):
    drawn = Image.new("1", (side, side))
    box = [value * side / 512 for value in FACE]
    ImageDraw.Draw(drawn).rectangle((box[0] - 6, box[1] - 6, box[2] + 6, box[3] + 6), fill=1)
    return drawn


def test_a_turned_video_is_restored_upright_and_painted_where_a_player_shows_the_face(photo, tmp_path):
    painter = Painter()
    source = make_video(tmp_path / "turned.mp4", photo, rotation=90)
    restore_video(source, tmp_path / "out.mp4", painter, progress=False)
    seen, meant = (np.asarray(image, int) for image in (painter.photos[0], photo.resize((64, 64))))
    assert abs(seen - meant).mean() < 3
    stored = frames_of(tmp_path / "out.mp4")[0][1]
    shown = np.rot90(stored)  # 90 degrees counterclockwise, as the metadata say
    x, y = (FACE[0] + FACE[2]) // 4, (FACE[1] + FACE[3]) // 4
    assert shown[y, x] == pytest.approx((200, 30, 30), abs=12)


def test_as_stored_undoes_upright():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
    for turn in itertools.product([False, True], repeat=3):  # exchanged, mirrored in x, in y
        assert np.array_equal(as_stored(upright(pixels, turn), turn), pixels)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name", "wanted"),
    [
        ("libx264", "yuv420p10le", "in.mkv", "h264"),
        ("mpeg4", "yuv420p", "in.avi", "h264"),
        pytest.param("libx265", "yuv420p", "in.mp4", "hevc", marks=pytest.mark.slow),  # its encoder is
    ],
)
def test_codec_and_bits_are_kept_where_they_can_be_written_and_the_codec_is_h264_elsewhere(
    codec, pix_fmt, name, wanted, photo, tmp_path
):
    source = make_video(tmp_path / name, photo, tone=False, codec=codec, pix_fmt=pix_fmt)
    restore_video(source, tmp_path / f"out {name}", Painter(), progress=False)
    found = description_of(tmp_path / f"out {name}")
    assert (found["codec"], found["pixels"]) == (wanted, (256, 256, pix_fmt))
    assert len(frames_of(tmp_path / f"out {name}")) == len(frames_of(source))


def test_a_video_without_faces_is_copied_byte_for_byte(photo, tmp_path):
    source = make_video(tmp_path / "in.mp4", photo)
    report = restore_video(source, tmp_path / "out.MP4", Painter(faces=0), progress=False)
    assert report.copied and report.faces == 0
    assert (tmp_path / "out.MP4").read_bytes() == source.read_bytes()


def test_an_interruption_keeps_the_old_target_and_leaves_no_other_file(photo, tmp_path):
    source = make_video(tmp_path / "in.mp4", photo)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.mp4").write_text("older", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        restore_video(source, tmp_path / "out" / "out.mp4", Painter(stop_after=5), progress=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["out.mp4"]
    assert (tmp_path / "out" / "out.mp4").read_text(encoding="utf-8") == "older"


def test_one_frame_is_held_at_a_time(photo, tmp_path):
    painter = Painter()
    restore_video(make_video(tmp_path / "in.mp4", photo), tmp_path / "out.mp4", painter, progress=False)
    assert len(painter.alive) == 20 and painter.most <= 2


DAMAGED = {
    "missing.mp4": "does not exist",
    "noise.mp4": "damaged or not a video",
    "empty.mkv": "damaged or not a video",
    "torn.mp4": "damaged",
    "torn.mkv": "truncated",
    "sound.mp4": "holds no video",
}


def test_a_damaged_video_is_one_line_and_leaves_no_file(photo, tmp_path):
    for name, words in DAMAGED.items():
        path = damaged(tmp_path / name, photo)
        with pytest.raises(InputError, match=words) as raised:
            restore_video(path, tmp_path / "out" / "out.mp4", Painter(), progress=False)
        assert name in str(raised.value) and "\n" not in str(raised.value)
        assert not list((tmp_path / "out").iterdir() if (tmp_path / "out").is_dir() else [])


@pytest.mark.parametrize(
    ("codec", "offset", "said"), [("mpeg4", 40, "are damaged"), ("libx265", 4, "could not be decoded")]
)
def test_frames_that_the_decoder_drops_or_fills_in_are_counted_in_a_warning(codec, offset, said, photo, tmp_path):
    path = make_video(tmp_path / "in.mp4", photo, tone=False, codec=codec)
    assert not restore_video(path, tmp_path / "whole.mp4", Painter(), progress=False).warnings
    data, start = bytearray(path.read_bytes()), position_of_packet(path, len(TICKS) - 3) + offset
    data[start : start + 2] = b"\xff\xff"  # in an HEVC packet after its length: a kind of unit that no decoder knows
    path.write_bytes(data)
    (warning,) = restore_video(path, tmp_path / "out.mp4", Painter(), progress=False).warnings
    assert said in warning and f"of {len(TICKS)} frames" in warning


def position_of_packet(path, number):
    with av.open(str(path)) as reading:
        return next(itertools.islice(reading.demux(video=0), number, None)).pos


def damaged(path, photo):
    name = path.name
    if name.startswith("torn"):
        make_video(path, photo)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    elif name == "noise.mp4":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif name == "empty.mkv":
        path.touch()
    elif name == "sound.mp4":
        with av.open(str(path), "w") as out:
            audio = out.add_stream("aac", rate=48000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts = 48000, 0
            out.mux([*audio.encode(sound), *audio.encode()])
    return path


def test_a_container_that_cannot_hold_the_audio_is_named_with_the_remedy(photo, tmp_path):
    source = make_video(tmp_path / "in.mp4", photo)
    with pytest.raises(InputError, match=r"out\.webm.*extension of the source, \.mp4"):
        restore_video(source, tmp_path / "out.webm", Painter(), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
    # the source's own extension is no remedy where the target has it
    with pytest.raises(InputError, match=r"out\.mp4.*extension of Matroska, \.mkv"):
        restore_video(subtitled(tmp_path / "text.mkv", photo).rename(tmp_path / "text.mp4"), tmp_path / "out.mp4",
                      Painter(), progress=False)  # fmt: skip
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="smoothing must be a time in seconds"):
            restore_video(source, tmp_path / "out.mp4", Painter(), smoothing=wrong)


def subtitled(path, photo):
    """A Matroska video with SubRip subtitles, which MP4 does not hold."""
    plain, text = make_video(path.with_name("plain.mp4"), photo, tone=False), path.with_name("text.srt")
    text.write_text("1\n00:00:00,000 --> 00:00:00,500\nhello\n\n", encoding="utf-8")
    with av.open(str(plain)) as one, av.open(str(text)) as two, av.open(str(path), "w") as out:
        streams = [(two, two.streams.subtitles[0]), (one, one.streams.video[0])]
        copies = [out.add_stream_from_template(stream) for _, stream in streams[::-1]][::-1]
        for (reading, stream), copied in zip(streams, copies, strict=True):
            for packet in reading.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    out.mux(packet)
    plain.unlink()
    text.unlink()
    return path


def test_a_container_that_mp4_cannot_replace_is_kept_and_its_streams_with_it(photo, tmp_path):
    source = subtitled(tmp_path / "in.mkv", photo)
    assert container_for(source) == ".mkv"
    assert container_for(make_video(tmp_path / "in.mp4", photo)) == ".mp4"
    assert container_for(make_video(tmp_path / "in.avi", photo, tone=False, codec="mpeg4")) == ".mp4"
    restore_video(source, tmp_path / "out.mkv", Painter(), progress=False)
    assert sorted(description_of(tmp_path / "out.mkv")["streams"]) == ["subtitle", "video"]
    painter = Painter()
    with pytest.raises(InputError, match=r"out\.mp4"):
        restore_video(source, tmp_path / "out.mp4", painter, progress=False)
    assert painter.photos == []  # said before the first frame


def test_uncompressed_sound_that_mp4_refuses_goes_into_matroska(photo, tmp_path):
    path = tmp_path / "in.avi"
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mjpeg", rate=25), out.add_stream("pcm_s16le", rate=48000)
        video.width, video.height, video.pix_fmt, audio.layout = *photo.size, "yuvj420p", "stereo"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.asarray(photo), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(video.encode(frame))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 11520), np.int16), format="s16", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48000, 0, Fraction(1, 48000)
        out.mux([*video.encode(None), *audio.encode(sound), *audio.encode(None)])
    target = tmp_path / f"out{container_for(path)}"
    report = restore_video(path, target, Painter(), progress=False)
    assert report.faces == 3 and description_of(target)["streams"] == ["video", "audio"]


def test_force_and_upscale_reach_the_frames_and_the_faces_that_are_left_are_counted(photo, tmp_path):
    asked = []

    class Left(Painter):
        def __call__(self, photo, fidelity, aligned, detections, limits, **how):
            asked.append(how)
            reports = [FaceReport(d.box, d.points, d.score, 60, "left", "too small: 9 px") for d in detections]
            return PhotoResult(photo.resize((2 * photo.width, 2 * photo.height)), reports, False, 0.0)

    source = make_video(tmp_path / "in.mp4", photo)
    report = restore_video(source, tmp_path / "out.mp4", Left(), progress=False, force=True, upscale=2)
    assert asked == [{"force": True, "upscale": 2}] * 20
    assert (report.copied, report.left) == (False, {"too small": 20})
    assert description_of(tmp_path / "out.mp4")["pixels"] == (512, 512, "yuv420p")


def test_a_face_near_the_guards_threshold_is_restored_in_every_frame_or_in_none(photo, tmp_path, monkeypatch):
    source = make_video(tmp_path / "in.mp4", photo, tone=False)
    for first, restored in ((0.02, 20), (-0.02, 0)):
        alike = itertools.cycle([THRESHOLD + first, THRESHOLD - first])  # flickers around it
        monkeypatch.setattr("lafr.photos.guard.likeness", lambda before, after, alike=alike: [next(alike)])
        photos = PhotoRestorer(Brighter(), lambda image: [Detection(tuple(v / 2 for v in FACE), POINTS / 2, 0.9)])
        report = restore_video(source, tmp_path / "out.mp4", photos, force=True)
        assert (report.frames, report.faces) == (20, restored)
    monkeypatch.setattr("lafr.photos.guard.likeness", lambda before, after: [1.0])
    monkeypatch.setattr("lafr.photos.faces.lost_detail", lambda *given: 0.0)  # not left for what it was alone
    for first, restored in ((0.02, 0), (-0.02, 20)):
        held = itertools.cycle([DETAIL + first, DETAIL - first])
        monkeypatch.setattr("lafr.photos.restorer.held_detail", lambda before, after, share, held=held: [next(held)])
        assert restore_video(source, tmp_path / "out.mp4", photos).faces == restored
    monkeypatch.setattr("lafr.photos.restorer.held_detail", lambda before, after, share: [0.0])
    for first, restored in ((0.1, 0), (-0.1, 20)):  # larger than the model
        lost = itertools.cycle([LOST + first, LOST - first])
        monkeypatch.setattr("lafr.photos.faces.lost_detail", lambda face, resolution, lost=lost: next(lost))
        assert restore_video(source, tmp_path / "out.mp4", photos).faces == restored
    # a change that is clear is followed
    alike = iter([THRESHOLD + 0.02] * 10 + [0.2] * 5 + [0.9] * 5)
    monkeypatch.setattr("lafr.photos.guard.likeness", lambda before, after: [next(alike)])
    assert restore_video(source, tmp_path / "out.mp4", photos, force=True).faces == 15


class Brighter(nn.Module):
    """In a restorer's place: what it returns is brighter."""

    resolution = 32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, lq):
        return lq + 0.3


def test_the_input_is_never_overwritten(photo, tmp_path):
    source = make_video(tmp_path / "in.mp4", photo)
    (tmp_path / "link.mp4").symlink_to(source)
    with pytest.raises(InputError, match="overwrite its input"):
        restore_video(source, tmp_path / "link.mp4", Painter(), progress=False)


def still(rng, frames=300, noise=1.5):
    return POINTS + rng.normal(0, noise, (frames, 5, 2))


def test_the_flicker_of_a_still_face_falls_at_least_four_times():
    noisy, side = still(np.random.default_rng(0)), 100.0
    smooth = OneEuro(smoothing=0.4)
    smoothed = np.array([smooth(points, i / 30, side) for i, points in enumerate(noisy)])
    steps = [np.linalg.norm(np.diff(points[30:].mean(1), axis=0), axis=1).mean() for points in (noisy, smoothed)]
    spread = [points[30:].std(0).mean() for points in (noisy, smoothed)]
    assert spread[0] > 4 * spread[1]
    assert steps[0] > 8 * steps[1]


def test_a_face_that_crosses_its_own_width_in_a_second_is_followed_within_a_twentieth_of_it():
    side, smooth = 100.0, OneEuro(smoothing=0.4)
    for i in range(90):
        moving = POINTS + np.array([side * i / 30, 0])
        lag = np.abs(smooth(moving, i / 30, side) - moving).max()
    assert lag < side / 20


def test_smoothing_is_the_same_in_seconds_at_any_frame_rate():
    spreads = []
    for rate in 15, 60:
        smooth = OneEuro(smoothing=0.4)
        step = [smooth(POINTS + (0.0 if i / rate < 2 else 3.0), i / rate, 100.0)[0, 0] for i in range(4 * rate)]
        spreads.append(step[int(2.4 * rate)] - POINTS[0, 0])
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


def test_after_a_cut_the_points_are_those_of_the_new_face():
    tracker = Tracker()
    face = Detection((0, 0, 100, 100), POINTS, 0.9)
    tracker([face], 0.0)
    other = Detection(
        (40, 10, 140, 110), POINTS + np.array([40, 10]), 0.9
    )  # overlaps, yet no face moves so far in a frame
    assert np.array_equal(tracker([other], 1 / 30)[0].points, other.points)


def test_two_faces_keep_their_own_histories_when_the_detector_changes_their_order():
    tracker, rng = Tracker(), np.random.default_rng(2)
    left, right = (
        Detection((0, 0, 100, 100), POINTS, 0.9),
        Detection((300, 0, 400, 100), POINTS + np.array([300, 0]), 0.9),
    )
    for i in range(30):
        pair = [left, right] if rng.random() < 0.5 else [right, left]
        for given, smoothed in zip(pair, tracker(pair, i / 30), strict=True):
            assert np.allclose(smoothed.points, given.points)
    assert tracker.started == 2


def test_a_face_that_was_away_for_longer_than_the_memory_is_a_new_one():
    tracker = Tracker(memory=0.5)
    face = Detection((0, 0, 100, 100), POINTS, 0.9)
    for time in 0.0, 0.4, 0.8, 2.0:
        tracker([face], time)
    assert tracker.started == 2


@pytest.mark.slow  # the miniature restores twenty frames
def test_the_miniature_restores_a_video_and_leaves_what_is_around_the_face(tmp_path):
    from lafr.models.restorer import Restorer
    from lafr.photos.detectors import YuNet
    from lafr.photos.restorer import PhotoRestorer

    photo = read_pil(locate("astronaut"))
    blurred = photo.resize((128, 128)).resize((512, 512))
    source = make_video(tmp_path / "in.mp4", blurred)
    report = restore_video(source, tmp_path / "out.mp4", PhotoRestorer(Restorer.from_pretrained("mini"), YuNet()))
    assert (report.frames, report.faces, report.tracks) == (20, 20, 1)
    moved = [
        abs(new - old).mean(2)
        for (_, old), (_, new) in zip(frames_of(source), frames_of(tmp_path / "out.mp4"), strict=True)
    ]
    face = np.zeros((512, 512), bool)
    face[20:220, 130:320] = True
    inside, outside = (np.mean([difference[part].mean() for difference in moved]) for part in (face, ~face))
    assert outside < 1.5 < inside


def test_chapters_are_kept_and_bits_and_transparency_are_said_to_be_lost(photo, tmp_path):
    plain = make_video(tmp_path / "plain.mp4", photo, pix_fmt="yuv420p10le", tone=False)
    source = tmp_path / "in.mkv"
    chapter = {"id": 1, "start": 0, "end": 300, "time_base": BASE, "metadata": {"title": "one"}}
    with av.open(str(plain)) as reading, av.open(str(source), "w") as out:
        out.set_chapters([chapter])
        copied = out.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    report = restore_video(source, tmp_path / "out.mkv", Painter(), progress=False)
    with av.open(str(tmp_path / "out.mkv")) as reading:
        assert [one["metadata"]["title"] for one in reading.chapters()] == ["one"]
    assert "10 bits a colour are 8" in "; ".join(report.warnings)
    clear = make_video(tmp_path / "in.webm", photo, codec="libvpx-vp9", pix_fmt="yuva420p", tone=False)
    assert restore_video(clear, tmp_path / "out.webm", Painter(), progress=False).warnings == (
        "its transparency is not kept",
    )


def test_a_pipe_and_a_stream_that_pyav_stumbles_over_end_no_folders_run(photo, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert container_for(tmp_path / "pipe.mp4") == ".mp4"
    with pytest.raises(InputError, match=r"pipe\.mp4.*no regular file"):
        restore_video(tmp_path / "pipe.mp4", tmp_path / "out.mp4", Painter(), progress=False)
    source = make_video(tmp_path / "in.mp4", photo)
    monkeypatch.setattr("lafr.photos.video.stream_like", lambda *_: None.name)  # of a codec that is not known
    assert container_for(source) == ".mp4"
