"""Videos: every face of every frame restored, its alignment smoothed over time; all other streams copied.

PyAV (`pip install 'lafr[video]'`) decodes and encodes. One frame is held at a time: memory does not grow with length.
"""

import importlib.util
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from lafr.errors import InputError, need
from lafr.photos.guard import LARGE, limits_after
from lafr.photos.restorer import PhotoRestorer, PhotoResult
from lafr.photos.video.frames import as_stored, rgb, stream_like, to_encode, turn, upright
from lafr.photos.video.tracking import Tracker
from lafr.storage import atomic_write

COPIED = ("audio", "subtitle")
KEPT = (".mov", ".mkv", ".webm", ".m4v")  # containers of an output, besides MP4; Matroska holds any stream
TRIED = 3  # packets of each copied stream, before the first frame
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics, ITU-T H.273


@dataclass(frozen=True)
class VideoReport:
    """What was done to a video: `faces` counts restored faces over all frames, `tracks` faces followed through time."""

    frames: int
    faces: int
    tracks: int
    copied: bool  # no face was restored: the target is the source, byte for byte
    seconds: float
    warnings: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)  # reason -> faces that were left, over all frames


def restore_video(
    source: str | Path,
    target: str | Path,
    photo_restorer: PhotoRestorer,
    fidelity: float = 0.0,
    smoothing: float = 0.4,
    progress: bool = True,
    only_center_face: bool = False,
    force: bool = False,
    upscale: int = 1,
) -> VideoReport:
    """Restore the faces of `source` into `target`, whose extension names the container.

    Timestamps, rotation, colour description, pixel format, audio, subtitles and metadata are kept; frames without a
    restored face go to the encoder as they were decoded. A stop leaves no half-written target.

    Args:
        photo_restorer: finds and restores the faces of each frame.
        fidelity: 0..1, see `Restorer`.
        smoothing: of the alignment, in seconds; 0 turns it off.
        progress: show a progress bar.
        only_center_face: restore in each frame only the face nearest to its middle.
        force, upscale: see `PhotoRestorer`.

    Raises InputError for a source that is missing, damaged or holds no video, and for a target that can't hold it.
    """
    source, target = Path(source), Path(target)
    if not source.is_file():  # a pipe would block for ever
        state = "is no regular file" if source.exists() else "does not exist"
        raise InputError(f"video {str(source)!r} {state}; give the path of a video file")
    if not 0 <= smoothing < inf:  # also false for NaN
        raise InputError("smoothing", smoothing, "a time in seconds, 0 for none")
    if target.exists() and target.samefile(source):
        raise InputError(f"{str(target)!r} would overwrite its input; choose another output")
    need("av", "'lafr[video]'")
    started, tracker = time.monotonic(), Tracker(smoothing)
    reports: list[VideoReport] = []
    left: Counter[str] = Counter()
    switches = {"only_center_face": only_center_face, "force": force}
    how: dict[str, Any] = {"fidelity": fidelity, "aligned": False}
    how |= {name: True for name, is_on in switches.items() if is_on}
    how |= {"upscale": upscale} if upscale > 1 else {}

    def restore(photo: Image.Image, seconds: float) -> tuple[Image.Image, int]:
        detections = tracker(photo_restorer.detect(photo), seconds)
        if not detections and upscale == 1:
            return photo, 0
        # a face near the guard's threshold would flicker between restored and left
        limits = [limits_after(track.left) for track in tracker.shown]
        result = cast(PhotoResult, photo_restorer(photo, detections=detections, limits=limits, **how))
        for track, face in zip(tracker.shown, result.faces, strict=True):
            if face.likeness is not None or face.reason.startswith(LARGE):
                track.left = face.reason
        left.update(face.reason.partition(":")[0] for face in result.faces if face.status == "left")
        return result.image, sum(face.status == "restored" for face in result.faces)

    def write(temporary: Path) -> None:
        frames, faces, warnings = _transcode(source, temporary, target, restore, progress, upscale)
        copied = faces == 0 and upscale == 1 and source.suffix.lower() == target.suffix.lower()
        if copied:
            shutil.copyfile(source, temporary)
        seconds = time.monotonic() - started
        reports.append(VideoReport(frames, faces, tracker.started, copied, seconds, warnings, dict(left)))

    atomic_write(target, write)
    return reports[0]


def container_for(source: str | Path) -> str:
    """Return the extension of a video's output: ".mp4" where MP4 holds all of its streams, else its own or ".mkv".

    Tried on the first packets, as some streams are refused only then; of a file that cannot be read ".mp4".
    """
    source = Path(source)
    own = source.suffix.lower()
    if not source.is_file() or importlib.util.find_spec("av") is None:
        return ".mp4"  # reported when the video is read
    with tempfile.TemporaryDirectory() as folder:
        for extension in dict.fromkeys((".mp4", own if own in KEPT else ".mkv", ".mkv")):
            try:
                _try_container(source, Path(folder) / f"trial{extension}")
            except InputError:
                return ".mp4"
            except Exception:  # FFmpeg refuses it, or PyAV stumbles over a stream: no file may end a folder's run
                continue
            return extension
    return ".mp4"


def _try_container(source: Path, trial: Path) -> None:
    """Write the header and the first packets of each copied stream; raises what the container refuses."""
    import av

    with _opened(source) as reading, av.open(str(trial), "w") as writing:
        video = _video(reading, source)
        first = _first_frame(source)
        stream_like(video, first, writing)
        copies = {stream: _copy(stream, writing) for stream in reading.streams if stream.type in COPIED}
        writing.start_encoding()
        if not copies:
            return
        left = dict.fromkeys(copies, TRIED)
        for count, packet in enumerate(reading.demux(list(copies))):
            if packet.dts is not None and left[packet.stream]:
                left[packet.stream] -= 1
                packet.stream = copies[packet.stream]
                writing.mux(packet)
            if count > 1000 or not any(left.values()):
                break


def _transcode(
    source: Path, temporary: Path, target: Path, restore: Callable, progress: bool, upscale: int
) -> tuple[int, int, tuple[str, ...]]:
    """Write `source` with every frame passed through `restore`; return frames, restored faces and warnings."""
    import av

    frames = faces = concealed = 0
    with _opened(source) as reading:
        video = _video(reading, source)
        first = _first_frame(source)  # the header needs its format before anything is written
        try:
            with av.open(str(temporary), "w") as writing, _bar(video, progress) as bar:
                writing.metadata.update(reading.metadata)
                writing.set_chapters(reading.chapters())
                kept = [stream for stream in reading.streams if stream is video or stream.type in COPIED]
                copies = {
                    s: _copy(s, writing) if s is not video else stream_like(s, first, writing, upscale) for s in kept
                }
                out = copies[video]
                writing.start_encoding()  # a container that cannot hold a stream says so before the first frame
                for item in _demuxed(reading, video, kept, source):
                    if isinstance(item, av.Packet):
                        item.stream = copies[item.stream]
                        writing.mux(item)
                        continue
                    frame, count = _restored(item, out.pix_fmt, restore, upscale)
                    writing.mux(out.encode(frame))
                    frames, faces, concealed = frames + 1, faces + count, concealed + item.is_corrupt
                    bar.update()
                writing.mux(out.encode(None))
        except (av.FFmpegError, _Unsuited) as error:
            reason = getattr(error, "strerror", None) or error
            same = source.suffix.lower() == target.suffix.lower()
            other = "of Matroska, .mkv" if same else f"of the source, {source.suffix}"
            raise InputError(f"cannot write {str(target)!r} ({reason}); give it the extension {other}") from None
        lost = _lost(source, frames) if frames < video.frames else 0  # 0 where a container doesn't count its frames
        damage = [(lost, "could not be decoded"), (concealed, "are damaged, and the decoder filled them in")]
        said = [f"{count} of {frames + lost} frames {what}; get a whole copy" for count, what in damage if count]
        return frames, faces, (*said, *_warnings(reading, video, first.format, copies))


def _lost(source: Path, frames: int) -> int:
    """Return how many frames of a video to be shown are missing among those decoded, a packet for each frame."""
    with _opened(source) as reading:
        packets = reading.demux(_video(reading, source))
        shown = sum(packet.size > 0 and not packet.is_discard for packet in packets)  # discarded: before the first cut
    return max(0, shown - frames)


class _Unsuited(Exception):
    """A container that can't hold a stream."""


def _copy(stream: Any, writing: Any) -> Any:
    try:
        return writing.add_stream_from_template(stream)
    except ValueError as error:
        raise _Unsuited(str(error)) from None


def _opened(source: Path) -> Any:
    import av

    try:
        return av.open(str(source))
    except av.FFmpegError as error:
        raise InputError(f"{str(source)!r} is damaged or not a video ({error.strerror}); get a whole copy") from None


def _video(reading: Any, source: Path) -> Any:
    from av.stream import Disposition

    for stream in reading.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # a cover image is a stream too
            stream.thread_type = "AUTO"
            return stream
    raise InputError(f"{str(source)!r} holds no video; give a video file, or an image to restore as a photo")


def _first_frame(source: Path) -> Any:
    with _opened(source) as reading:
        video = _video(reading, source)
        for frame in _demuxed(reading, video, [video], source):
            return frame
    raise InputError(f"{str(source)!r} holds no frame that can be decoded; get a whole copy")


def _bar(video: Any, progress: bool) -> tqdm:
    return tqdm(total=video.frames or None, desc="restore", unit=" frames", dynamic_ncols=True, disable=not progress)


def _warnings(reading: Any, video: Any, pixels: Any, copies: dict) -> tuple[str, ...]:
    """Return what the output cannot keep of a video whose frames have the format `pixels`."""
    said = [f"{stream.type} stream {stream.index} is not copied" for stream in reading.streams if stream not in copies]
    if transfer := HDR.get(video.color_trc):
        said.append(f"{transfer} (HDR) video: faces are restored as if it were SDR")
    if (bits := max(part.bits for part in pixels.components)) > 8:
        said.append(f"its {bits} bits a colour are 8 in frames with a restored face")
    # VP9's alpha is a second stream inside the first, which FFmpeg's own decoder passes over
    alpha = {key.lower(): value for key, value in video.metadata.items()}.get("alpha_mode")
    if any(part.is_alpha for part in pixels.components) or alpha == "1":
        said.append("its transparency is not kept")
    return tuple(said)


def _demuxed(reading: Any, video: Any, streams: list, source: Path) -> Iterator:
    """Yield the frames of `video` and the packets of the other `streams`, in the file's order."""
    import av

    seen, end = None, 0.0
    try:
        for packet in reading.demux(streams):
            if packet.stream is not video:
                if packet.dts is not None:  # None: the empty packet that flushes
                    end = max(end, float(packet.dts * packet.time_base))
                    yield packet
                continue
            for frame in packet.decode():
                if frame.pts is None:  # raw streams have no timestamps
                    frame.time_base = video.time_base
                    later = 0 if seen is None else seen + 1 / (video.guessed_rate or 25)
                    frame.pts = round(later / video.time_base)
                seen = frame.pts * frame.time_base
                yield frame
    except av.FFmpegError as error:
        raise InputError(
            f"{str(source)!r} is damaged at {float(seen or 0):.1f} s ({error.strerror}); get a whole copy"
        ) from None
    _require_whole(reading, max(end, float(seen or 0)), source)


def _require_whole(reading: Any, end: float, source: Path) -> None:
    """Raise InputError when all streams stop long before the header's end: FFmpeg reads a torn file as if whole."""
    import av

    length = (reading.duration or 0) / av.time_base
    end -= max(0, reading.start_time or 0) / av.time_base
    if end < 0.9 * length - 0.5:
        raise InputError(f"{str(source)!r} ends at {end:.1f} s of {length:.1f} s: it is truncated; get a whole copy")


def _restored(frame: Any, pix_fmt: str, restore: Callable, upscale: int = 1) -> tuple[Any, int]:
    """Return the frame to encode and the number of restored faces; without one its pixels are those decoded."""
    shown = upright(rgb(frame), turn(frame))
    photo, count = restore(Image.fromarray(shown), float(frame.pts * frame.time_base))
    changed = as_stored(np.asarray(photo), turn(frame)) if count or upscale > 1 else None
    return to_encode(frame, pix_fmt, changed), count
