"""JPEG compression and decompression on batches of tensors, bit-exact to libjpeg, with chroma at half resolution.

All lossy steps of baseline JPEG are here in whole numbers (held in float64, which is exact up to 2^53): colour
conversion, chroma averages, the integer DCT "islow" (Loeffler, Ligtenberg & Moschytz, ICASSP 1989), quantisation and
libjpeg's triangular chroma upsampling. Entropy coding, which is lossless, is omitted. The result is the same on every
machine and device; OpenCV's and Pillow's libjpeg-turbo give the same pixels.
"""

import torch
from torch import Tensor

# Quantisation tables at quality 50, row by row: ITU T.81, Annex K.1
LUMA = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]  # fmt: skip
CHROMA = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
]  # fmt: skip


def jpeg_roundtrip(image: Tensor, quality: Tensor, sizes: Tensor) -> Tensor:
    """Return a batch of images after JPEG.

    Args:
        image: `[B, 3, H, W]`, whole numbers 0..255 in float64; H and W multiples of 16.
        quality: `[B]`, 1..100.
        sizes: `[B, 2]`, each image's own height and width; what `image` holds beyond them is ignored.

    Returns:
        `[B, 3, H, W]` likewise; values beyond an image's own size are undefined.
    """
    y, cb, cr = to_ycc(replicate(image, sizes))  # [B, H, W] each
    half = (sizes + 1) // 2
    chroma = halved(torch.stack([cb, cr], 1))  # [B, 2, H/2, W/2]
    # libjpeg's padding: to the right it repeats pixels before it halves them, below afterwards
    chroma = replicate(chroma, torch.stack([half[:, 0], torch.full_like(half[:, 1], chroma.shape[3])], 1))
    # jpeg_quality_scaling: per cent by which the tables are scaled, 100 at quality 50
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality).to(image)
    y = through_blocks(y[:, None], LUMA, scale)[:, 0]
    chroma = doubled(through_blocks(chroma, CHROMA, scale), half)
    return to_rgb(y, *chroma.unbind(1))


def replicate(planes: Tensor, sizes: Tensor) -> Tensor:
    """Return `[B, C, H, W]` with the last row and column of each image's own size repeated to the end."""
    for axis in (0, 1):
        length = planes.shape[2 + axis]
        index = torch.minimum(torch.arange(length, device=planes.device), sizes[:, axis, None].to(planes.device) - 1)
        planes = take(planes, index, 2 + axis)
    return planes


def take(planes: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return rows (dim 2) or columns (dim 3) `index [B, n]` of `[B, C, H, W]`."""
    shape = list(planes.shape)
    shape[dim] = index.shape[1]
    view = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
    return planes.gather(dim, view.to(planes.device).expand(shape))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Return C's `x >> bits` of whole numbers held in float64: division by a power of two, rounded down."""
    return torch.floor(x * 2.0**-bits)


def _fixed(x: float) -> int:
    """Return libjpeg's FIX(x): a constant as a fixed-point number with 16 fractional bits."""
    return int(x * 65536 + 0.5)


def to_ycc(rgb: Tensor) -> list[Tensor]:
    """Return Y, Cb, Cr `[B, H, W]` (jccolor.c: 16-bit fixed point)."""
    r, g, b = rgb.unbind(1)
    # half rounds to the nearest; the chroma's "- 1" keeps 255.5 from becoming 256
    half, offset = 1 << 15, 128 << 16
    return [
        _shift(_fixed(0.299) * r + _fixed(0.587) * g + _fixed(0.114) * b + half, 16),
        _shift(-_fixed(0.16874) * r - _fixed(0.33126) * g + _fixed(0.5) * b + offset + half - 1, 16),
        _shift(_fixed(0.5) * r - _fixed(0.41869) * g - _fixed(0.08131) * b + offset + half - 1, 16),
    ]


def to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """Return RGB `[B, 3, H, W]` (jdcolor.c)."""
    half = 1 << 15
    cb, cr = cb - 128, cr - 128
    r = y + _shift(_fixed(1.402) * cr + half, 16)
    g = y + _shift(-_fixed(0.34414) * cb - _fixed(0.71414) * cr + half, 16)
    b = y + _shift(_fixed(1.772) * cb + half, 16)
    return torch.stack([r, g, b], 1).clamp(0, 255)


def halved(planes: Tensor) -> Tensor:
    """Return means of 2 x 2, rounded down and up in turn along a row (jcsample.c, h2v2_downsample)."""
    total = planes[..., ::2, ::2] + planes[..., ::2, 1::2] + planes[..., 1::2, ::2] + planes[..., 1::2, 1::2]
    bias = 1 + torch.arange(total.shape[-1], device=planes.device) % 2  # 1, 2, 1, 2, ...: no drift on average
    return _shift(total + bias, 2)


def doubled(planes: Tensor, sizes: Tensor) -> Tensor:
    """Return planes twice as large: each pixel a mean of four with weights 9:3:3:1 (jdsample.c, h2v2_fancy_upsample).

    Where an image's own chroma is at most 2 pixels wide, libjpeg repeats pixels instead.
    """
    near, far = _neighbours(planes.shape[2], sizes[:, 0])
    rows = 3 * take(planes, near, 2) + take(planes, far, 2)
    near, far = _neighbours(planes.shape[3], sizes[:, 1])
    bias = 8 - torch.arange(2 * planes.shape[3], device=planes.device) % 2
    fancy = _shift(3 * take(rows, near, 3) + take(rows, far, 3) + bias, 4)
    repeated = planes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.where(sizes[:, 1, None, None, None].to(planes.device) > 2, fancy, repeated)


def _neighbours(length: int, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the near and the far pixel, `[B, 2 length]` each, of each doubled pixel of planes `own [B]` long."""
    position = torch.arange(2 * length, device=own.device)
    near, far = position // 2, position // 2 + position % 2 * 2 - 1
    last = own[:, None] - 1
    return torch.minimum(near, last), torch.minimum(far.clamp(min=0), last)


def _dct_matrix() -> Tensor:
    """Return the islow DCT of one axis as `[8, 8]` whole numbers: 2^13 sqrt(8) times the orthonormal one, rounded.

    Its odd half is three rotations with shared products, so the entries are sums of rounded constants.
    """
    c = {
        name: round(value * 8192)
        for name, value in {
            "a": 0.298631336,
            "b": 0.390180644,
            "c": 0.541196100,
            "d": 0.765366865,
            "e": 0.899976223,
            "f": 1.175875602,
            "g": 1.501321110,
            "h": 1.847759065,
            "i": 1.961570560,
            "j": 2.053119869,
            "k": 2.562915447,
            "l": 3.072711026,
        }.items()
    }
    even = [[8192] * 4, [c["c"] + c["d"], c["c"], -c["c"], -c["c"] - c["d"]], [8192, -8192, -8192, 8192],
            [c["c"], c["c"] - c["h"], c["h"] - c["c"], -c["c"]]]  # fmt: skip
    # columns: x0 - x7, x1 - x6, x2 - x5, x3 - x4
    odd = [
        [c["g"] - c["e"] - c["b"] + c["f"], c["f"], c["f"] - c["b"], c["f"] - c["e"]],
        [c["f"], c["l"] - c["k"] - c["i"] + c["f"], c["f"] - c["k"], c["f"] - c["i"]],
        [c["f"] - c["b"], c["f"] - c["k"], c["j"] - c["k"] - c["b"] + c["f"], c["f"]],
        [c["f"] - c["e"], c["f"] - c["i"], c["f"], c["a"] - c["e"] - c["i"] + c["f"]],
    ]
    matrix = torch.zeros(8, 8, dtype=torch.float64)
    for k in range(4):
        matrix[2 * k] = torch.tensor(even[k] + even[k][::-1])
        matrix[2 * k + 1] = torch.tensor(odd[k] + [-x for x in odd[k][::-1]])
    return matrix


DCT = _dct_matrix()


def through_blocks(planes: Tensor, table: list[int], scale: Tensor) -> Tensor:
    """Return `[B, C, H, W]` after DCT, quantisation by `table` scaled to `scale [B]` per cent, and inverse DCT."""
    dct = DCT.to(planes)
    step = torch.tensor(table, dtype=planes.dtype, device=planes.device).view(8, 8)
    step = torch.floor((step * scale[:, None, None] + 50) / 100).clamp(1, 255)[:, None, None, None]  # [B,1,1,1,8,8]
    blocks = (planes - 128).unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # [B, C, h, w, 8, 8]
    # jfdctint.c: rows, then columns; the added half of the divisor makes each shift round to the nearest
    x = _shift(blocks @ dct.T + (1 << 10), 11)
    x = _shift(dct @ x + (1 << 14), 15)
    x = x.sign() * torch.floor((x.abs() + 4 * step) / (8 * step))  # the islow DCT is scaled by 8
    # jidctint.c: columns, then rows
    x = _shift(dct.T @ (x * step) + (1 << 10), 11)
    x = _shift(x @ dct + (1 << 17), 18)
    return (x + 128).clamp(0, 255).transpose(3, 4).flatten(4, 5).flatten(2, 3)
