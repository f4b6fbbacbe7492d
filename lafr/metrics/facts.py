"""What is true of a metric wherever it is measured: unit, which way is better, decimals shown, definition."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Facts of one metric.

    Args:
        unit: of its numbers; empty for a number without one.
        direction: "↑" where more is better, "↓" where less is.
        digits: decimals shown.
        definition: what exactly is computed, in one line.
    """

    unit: str
    direction: str
    digits: int
    definition: str


_COSINE = "cosine of the embeddings of restored and HQ"
_ARCFACE = "angle between embeddings of ArcFace's gray ResNet-18, the whole crop at 128 px"
_SSIM = "Gaussian window 11 of sigma 1.5, population covariance, border mirrored"

FACTS = {
    "psnr_rgb": Facts("dB", "↑", 2, "RGB, 8-bit, no crop; mean of the images' dB"),
    "psnr_y": Facts("dB", "↑", 2, "Y of BT.601 (16 to 235), 8-bit RGB, no crop; mean of the images' dB"),
    "ssim_rgb": Facts("", "↑", 4, f"mean over R, G and B; {_SSIM}"),
    "ssim_y": Facts("", "↑", 4, f"Y of BT.601 (16 to 235); {_SSIM}"),
    "lpips_vgg": Facts("", "↓", 4, "LPIPS 0.1, VGG16, RGB in [-1, 1], at the images' own size"),
    "lpips_alex": Facts("", "↓", 4, "LPIPS 0.1, AlexNet, RGB in [-1, 1], at the images' own size"),
    "st_lpips_vgg": Facts("", "↓", 4, "shift-tolerant LPIPS, VGG16; not comparable with LPIPS"),
    "st_lpips_alex": Facts("", "↓", 4, "shift-tolerant LPIPS, AlexNet; not comparable with LPIPS"),
    "dists": Facts("", "↓", 4, "DISTS, VGG16, RGB in [0, 1], at the images' own size"),
    "fid_ffhq": Facts("", "↓", 2, "FID to FFHQ at 512 px, all 70,000 images"),
    "fid_ffhq_50k": Facts("", "↓", 2, "FID to FFHQ at 512 px, 50,000 of its images"),
    "fid_hq": Facts("", "↓", 2, "FID to the set's own HQ images"),
    "kid": Facts("", "↓", 4, "KID to the set's own HQ images: cubic kernel, mean over 100 subsets of up to 1,000"),
    "niqe": Facts("", "↓", 3, "Y of BT.601 rounded, blocks of 96 px, LIVE's pristine model"),
    "niqe_pyiqa": Facts("", "↓", 3, "Y of YIQ (0 to 255) rounded, blocks of 96 px, LIVE's pristine model"),
    "musiq": Facts("", "↑", 2, "MUSIQ trained on KonIQ-10k, 0 to 100"),
    "maniqa": Facts("", "↑", 4, "MANIQA trained on KonIQ-10k, 20 crops of 224 px, 0 to 1"),
    "clipiqa": Facts("", "↑", 4, "CLIP-IQA, RN50, pyiqa's five pairs of prompts, 0 to 1"),
    "topiq_face": Facts("", "↑", 4, "TOPIQ for faces trained on CGFIQA-40k, 512 px, no alignment of its own, 0 to 1"),
    "deg": Facts("degrees", "↓", 2, f"{_ARCFACE}, OpenCV's 8-bit gray; all pairs"),
    "deg_vqfr": Facts("degrees", "↓", 2, f"{_ARCFACE}, OpenCV's 8-bit gray; pairs under 1 degree left out"),
    "ida_rad": Facts("radians", "↓", 4, f"{_ARCFACE}, red and blue exchanged, in [0, 1]"),
    "lmd": Facts("pixels at 512", "↓", 4, "mean distance of the 98 WFLW points of AWing FAN"),
    "lmd_68": Facts("pixels at 512", "↓", 4, "mean distance of dlib's 68 points"),
    "identity_distance_dlib": Facts("", "↓", 4, "Euclidean distance of the embeddings of restored and HQ"),
} | {
    f"identity_cos_{network}": Facts("", "↑", 4, _COSINE)
    for network in ("mini", "irse50", "clip", "sface", "insightface", "adaface")
}
