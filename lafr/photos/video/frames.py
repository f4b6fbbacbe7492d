"""One frame as it is shown and as it is stored, and the output stream."""

from typing import Any

import numpy as np

# swscale's bilinear, with accurate rounding and full chroma both ways: its default darkens a frame by a level.
EXACT = 0x2 | 0x40000 | 0x2000 | 0x4000
LIMITED = 1  # the range 16..235, which an undescribed video has

# The encoder of each format with its options, for a loss that is hard to see; other formats become H.264.
ENCODERS = {
    "h264": ("libx264", {"crf": "16"}),
    "hevc": ("libx265", {"crf": "18", "x265-params": "log-level=error"}),
    "vp8": ("libvpx", {"crf": "8", "b": "20M"}),
    "vp9": ("libvpx-vp9", {"crf": "20", "b": "0", "row-mt": "1", "cpu-used": "4"}),
    "av1": ("libsvtav1", {"crf": "20", "preset": "8"}),
}


def stream_like(video: Any, frame: Any, writing: Any, scale: int = 1) -> Any:
    """Add to `writing` a video stream that describes itself as `video` does, in a format that its container holds.

    Its frames are `scale` times as large as `frame`.
    """
    import av

    name = video.codec_context.name
    name = "av1" if name in ("libdav1d", "libaom-av1") else name  # PyAV gives the decoder's name
    name = name if name in ENCODERS and name in writing.supported_codecs else "h264"
    name = name if name in writing.supported_codecs else "vp9"
    encoder, options = ENCODERS[name]
    out = writing.add_stream(encoder, rate=video.guessed_rate or video.average_rate, options=dict(options))
    context = out.codec_context
    out.width, out.height = frame.width * scale, frame.height * scale
    pixel_formats = [f.name for f in av.codec.Codec(encoder, "w").video_formats or ()]
    out.pix_fmt = frame.format.name if frame.format.name in pixel_formats else "yuv420p"
    out.time_base = context.time_base = video.time_base
    for description in ("color_range", "colorspace", "color_trc", "color_primaries"):
        setattr(context, description, getattr(video.codec_context, description))
    if video.sample_aspect_ratio:
        context.sample_aspect_ratio = video.sample_aspect_ratio
    matrix = display_matrix(frame)
    if matrix is not None:
        out.set_display_matrix([int(value) for value in matrix])
    out.metadata.update({k: v for k, v in video.metadata.items() if k in ("language", "title", "handler_name")})
    return out


def to_encode(frame: Any, pix_fmt: str, changed: np.ndarray | None) -> Any:
    """Return the decoded `frame` for the encoder, or the RGB pixels `changed [H, W, 3]` in its place."""
    import av

    if changed is not None:
        new = av.VideoFrame.from_ndarray(changed, format="rgb24").reformat(
            format=pix_fmt,
            dst_colorspace=frame.colorspace,
            dst_color_range=frame.color_range or LIMITED,
            interpolation=EXACT,
        )
    else:
        new = frame if frame.format.name == pix_fmt else frame.reformat(format=pix_fmt, interpolation=EXACT)
    new.pts, new.time_base = frame.pts, frame.time_base
    new.pict_type = 0  # the encoder chooses its own key frames
    return new


def rgb(frame: Any) -> np.ndarray:
    """Return the pixels of a decoded frame as 8-bit RGB `[H, W, 3]`."""
    return frame.reformat(format="rgb24", interpolation=EXACT).to_ndarray()


def display_matrix(frame: Any) -> np.ndarray | None:
    """Return the display matrix (nine numbers), by which a player turns the frame; None without one."""
    data = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    return None if data is None else np.frombuffer(bytes(data), np.int32)


def turn(frame: Any) -> tuple[bool, bool, bool]:
    """Return how `frame` is shown: whether x and y are exchanged, and then which of them is mirrored.

    A player draws a stored pixel at x' = a x + c y, y' = b x + d y. Other angles become the nearest quarter turn.
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in matrix[:5])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def upright(stored: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Return stored pixels `[H, W, 3]` as they are shown."""
    exchanged, mirror_x, mirror_y = turn
    shown = stored.swapaxes(0, 1) if exchanged else stored
    return np.ascontiguousarray(shown[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def as_stored(shown: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Undo `upright`."""
    exchanged, mirror_x, mirror_y = turn
    stored = shown[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return np.ascontiguousarray(stored.swapaxes(0, 1) if exchanged else stored)
