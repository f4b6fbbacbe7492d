"""Numbers in the sentences of the pages: each is computed from the JSON, or the constant in the code, that it states.

`SENTENCES` maps a piece of a sentence, with a format in braces for each number, to the function that returns its
numbers. `python -m scripts.benchmarks pages` writes them wherever the piece stands. `unsourced` finds what looks like
a measurement and is in no such piece.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path

from lafr.storage import read_json

ROOT = Path(__file__).resolve().parents[2]
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
# a number with a unit, a decimal point or an exponent; counts, sizes in pixels and settings are not looked for
MEASURED = re.compile(
    r"(?<![\w.,-])\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+|x\b| ?(?:%|dB|times|GB|MB|seconds|minutes|hours|s|ms|h)(?!\w))"
    r"|(?<![\w.,-])\d[\d,]*\.\d[\d.]*"
)
# what has digits and measures nothing, or is what others state
NAMES = re.compile(
    r"\d+\.\d+\.\d+"  # a version
    r"|(?:Stable Diffusion |SD |\()(?:1\.5|2\.1)\b|\b3\.1[1-9]\b|others from 2\.11"  # models, Python, torch
    r"|(?:Apache-|CC BY(?:-NC-SA)? )\d\.0|arXiv 2505\.\d+|doi 10\.\d+\S*|BT\.601"
    r"|95 %"  # of an interval
    r"|70 % less|0\.9 % of FFHQ|7\.5 M trained parameters"  # the paper's, as the sentences say
    r"|12, 24 or 80 GB"  # sizes of cards
    r"|the goal was [\d.]+x(?: and [\d.]+x)?|goal of [\d.]+|\| \d+x \| missing|batch \d+, ms"  # goals
    r"|2\.25 times"  # Winograd's F(2 x 2, 3 x 3): 36 multiplications in 16
    r"|a seeded 5 %|200 GB, 500,000 members, 200 MB a member or 100 times"  # settings
)


def record(name: str) -> dict:
    """Return the JSON `results/NAME.json`."""
    return read_json(ROOT / "results" / f"{name}.json")


def mean(method: str, metric: str) -> float:
    """Return the mean of a metric on london for one of the miniature's rows."""
    return record("mini/london")["rows"][method][metric]["mean"]


def closer() -> list[float]:
    """Return by how many per cent the adapter brings the latent closer to that of the sharp face."""
    latents = record("mini/london")["latents"]
    return [100 * (1 - latents["latent_gap_after"] / latents["latent_gap_before"])]


def one_step() -> list[float]:
    """Return the perceptual distance before and after the UNet."""
    return [mean("adapter only", "st_lpips_vgg"), mean("LAFR", "st_lpips_vgg")]


def spread() -> list[float]:
    """Return the range of PSNR, in tenths of a dB and rounded up, over the adapters: they lie within it."""
    found = [mean(method, "psnr_rgb") for method in ("LAFR", "one hard code", "no adapter", "conv adapter")]
    return [ceil(10 * (max(found) - min(found))) / 10]


def likeness() -> list[float]:
    """Return SFace's cosine to the ground truth of the input and of LAFR."""
    return [mean("LQ input", "identity_cos_sface"), mean("LAFR", "identity_cos_sface")]


def few_faces() -> list[float]:
    """Return by how much 600 and 60 faces stay behind all of them, in dB."""
    methods = record("findings")["claims"]["faces"]["methods"]
    return [-methods[name]["difference"]["psnr_rgb"]["mean"] for name in ("600 faces", "60 faces")]


def smallest(roll: str) -> int:
    """Return the least size from which on every face of this roll was found."""
    tried = record("benchmarks/small_faces")
    found = {int(size): count for size, count in tried["found"][roll]["by_size"].items()}
    return min(size for size in found if all(found[more] == tried["faces"] for more in found if more >= size))


def cached_steps() -> list[float]:
    """Return a step's time with cached latents, in per cent of that without, for each stage."""
    return [100 * stage["ratio"] for stage in record("benchmarks/latents")["stages"].values()]


def speeds(name: str = "inference", method: str = "LAFR bfloat16") -> list[float]:
    """Return LAFR's speed relative to the reference, with the exact and the tiny decoder."""
    found = record(f"benchmarks/{name}")["batches"]["1"]
    return [found[row]["parts"]["whole"]["speed"] for row in (method, f"{method}, tiny decoder")]


def shares(method: str, parts: Sequence[str], name: str = "inference") -> list[float]:
    """Return what parts of a method reach of the matrix product's rate, in per cent."""
    made = record(f"benchmarks/{name}")
    found = made["batches"]["1"][method]
    ceiling = made["matmul_gmacs_per_second"][found["dtype"]]
    timed = [found["parts"][part] for part in parts]
    return [100 * part["gmacs"] / part["seconds"] / ceiling for part in timed]


def prior_pays() -> list[float]:
    """Return the first and last prior that restored, the gain in dB, and the most between two seeds."""
    restored = {int(images): of for images, of in record("benchmarks/prior")["restored"].items()}
    before, after = sorted(restored)[-2:]
    gain = sum(restored[after]) / len(restored[after]) - sum(restored[before]) / len(restored[before])
    return [before, after, gain, max(max(of) - min(of) for of in restored.values())]


def speed_of_the_prior() -> list[float]:
    """Return the images a second of the prior's last part."""
    trained = read_json(ROOT / "data" / "mini" / "training.json")["experiments"]["mini_prior"]["prior"]
    return [trained["steps"] * trained["batch_size"] / trained["seconds"]]


def networks() -> list[float]:
    """Return millions of values of the recogniser and of the landmarker, and megabytes of all three networks."""
    sizes = record("mini_networks/london")["parameters"]
    weights = (ROOT / "data" / "mini" / "networks").rglob("*.safetensors")
    return [sizes["recogniser"] / 1e6, sizes["landmarker"] / 1e6, sum(file.stat().st_size for file in weights) / 1e6]


def resembling(*pairs: str) -> list[float]:
    """Return Spearman's correlation of the pairwise similarities of two recognisers each."""
    return [record("mini_networks/london")["spearman"][pair] for pair in pairs]


def regions() -> list[float]:
    """Return the parser's mean IoU without the inner mouth on london, and of all regions on the validation faces."""
    own = record("mini_networks/london")["region_iou"]
    others = [iou for region, iou in own.items() if region != "inner_mouth"]
    return [sum(others) / len(others), record("mini_networks/val")["region_iou_mean"]]


def ahead() -> list[float]:
    """Return how far, in dB, the best other row is ahead of LAFR, and LAFR of the hard code."""
    best = max(mean(method, "psnr_rgb") for method in ("no adapter", "conv adapter"))
    own = mean("LAFR", "psnr_rgb")
    return [best - own, own - mean("one hard code", "psnr_rgb")]


def press_photos() -> list[float]:
    """Return the gain in PSNR, and the perceptual distance before and after, on the packaged photos."""
    rows = record("mini/mini")["rows"]
    before, after = rows["LQ input"], rows["LAFR"]
    gain = after["psnr_rgb"]["mean"] - before["psnr_rgb"]["mean"]
    return [gain, before["st_lpips_vgg"]["mean"], after["st_lpips_vgg"]["mean"]]


def left_unchanged() -> list[float]:
    """Return the thresholds of a face that is left unchanged."""
    from lafr.photos import faces

    return [faces.PROFILE, 100 * faces.OUTSIDE, faces.SMALLEST]


def of_faces(name: str) -> list[float]:
    """Return a constant of `lafr.photos.faces`."""
    from lafr.photos import faces

    return [getattr(faces, name)]


def guard() -> list[float]:
    """Return the likeness below which a restored face is someone else's."""
    from lafr.photos.guard import THRESHOLD

    return [THRESHOLD]


def sharp_already() -> list[float]:
    """Return the share of a restored face's detail, in per cent, from which its input is sharp already."""
    from lafr.photos.sharpness import DETAIL

    return [100 * DETAIL]


def severity() -> list[float]:
    """Return the margin and the boundary between the two sets called CelebA-Test, in dB."""
    from lafr.data.severity import BOUNDARY, MARGIN

    return [MARGIN, BOUNDARY]


def published() -> list[int]:
    """Return how many values `data/published.csv` has."""
    return [len((ROOT / "data" / "published.csv").read_text(encoding="utf-8").splitlines()) - 1]


SENTENCES: dict[str, Callable[[], Sequence[float]]] = {
    "moves the latent {:.0f} % closer to the sharp face's": closer,
    "brings the perceptual distance from {:.2f} to {:.2f}": one_step,
    "all adapters and none lie within {:.1f} dB of each other": spread,
    "likeness by SFace falls from {:.2f} to {:.2f}": likeness,
    "With 600 faces in the last stage instead of all it loses {:.2f} dB, with 60 it loses {:.2f} dB": few_faces,
    "in {:.0f} megapixels upright faces are found from {:.0f} px on": lambda: [
        record("benchmarks/small_faces")["megapixels"],
        smallest("0"),
    ],
    "smaller than about {:.0f} px, or {:.0f} px where it is turned": lambda: [smallest("0"), smallest("90")],
    "take {:.0f} %, {:.0f} % and {:.0f} % of the time": cached_steps,
    "refused: {:.1f} M trained values": lambda: [record("parameters")["trained_in_all"] / 1e6],
    "| `codebook` | {:,.0f} |": lambda: [record("benchmarks/training")["recipes"]["LAFR"]["stages"]["codebook"]],
    "| `alignment` | {:,.0f} |": lambda: [record("benchmarks/training")["recipes"]["LAFR"]["stages"]["alignment"]],
    "| `restoration` | {:,.0f} |": lambda: [record("benchmarks/training")["recipes"]["LAFR"]["stages"]["restoration"]],
    "{:.2f}x with the exact decoder and {:.2f}x with the tiny one": speeds,
    "the decoder reaches {:.0f} %, the encoder {:.0f} %, the UNet {:.0f} %": lambda: shares(
        "LAFR bfloat16", ("decoder", "encoder", "UNet")
    ),
    "the reference reaches {:.0f} % of it in the decoder": lambda: shares("reference", ("decoder",)),
    "{:.2f}x exact and {:.2f}x tiny": lambda: speeds("inference_avx2", "LAFR float32"),
    "as a matrix product does, the UNet at {:.0f} % of it": lambda: shares("LAFR float32", ("UNet",), "inference_avx2"),
    "more than {:.1f} times the model's resolution": lambda: of_faces("LARGEST"),
    "more than {:.0f} degrees; over {:.0f} % outside the photo; under {:.0f} px": left_unchanged,
    "restored face less than {:.1f} like the input's": guard,
    "the input holds {:.0f} % of the detail": sharp_already,
    "under {:.1f} dB severe": lambda: severity()[1:],
    "(within {:.0f} dB of {:.1f}: a warning)": severity,
    "{:.0f} values that others printed": published,
    "small decoder ({:.2f} M values for {:.2f} M)": lambda: [
        record("benchmarks/decoders")["values"][decoder] / 1e6 for decoder in ("tiny", "base")
    ],
    "recogniser ({:.2f} M values), landmarker and parser ({:.2f} M each) of the loss; {:.1f} MB": networks,
    "from {:,.0f} to {:,.0f} the latent restoration gained {:.2f} dB, less than the {:.2f} dB between": prior_pays,
    "its images, at the {:.1f} a second": speed_of_the_prior,
    "agrees with SFace on who resembles whom at {:.2f}": lambda: resembling("mini_recogniser, sface"),
    "Its teacher agrees at {:.2f}": lambda: resembling("sface, faceplugin_feature (teacher)"),
    "SFace and dlib agree with each other at {:.2f}": lambda: resembling("sface, dlib"),
    "they find a quarter, the recogniser {:.0f} %": lambda: [
        100 * record("mini_networks/london")["finds_itself"]["mini_recogniser"]["x16, mirrored, moved, recoloured"]
    ],
    "The parser's mean IoU is {:.2f}": lambda: [record("mini_networks/london")["region_iou_mean"]],
    "The other five regions reach {:.2f}; on the validation faces, who smile, all six reach {:.2f}": regions,
    "PSNR rises by {:.0f} dB, the perceptual distance nearly halves": lambda: [
        mean("LAFR", "psnr_rgb") - mean("LQ input", "psnr_rgb")
    ],
    "ahead of the residual codes by {:.2f} dB at most, these ahead of one hard code by {:.2f} dB": ahead,
    "PSNR rises by {:.1f} dB, the perceptual distance falls from {:.2f} to {:.2f}": press_photos,
    "the default's gap on london is {:.3f} for the input's {:.3f}": lambda: [
        record("mini/london")["latents"][f"latent_gap_{side}"] for side in ("after", "before")
    ],
}


def pattern(sentence: str) -> re.Pattern[str]:
    """Return what finds the sentence with any numbers, across line breaks."""
    pieces = (re.escape(piece).replace(r"\ ", r"\s+") for piece in re.split(r"\{[^}]*\}", sentence))
    return re.compile(f"({NUMBER})".join(pieces))


def filled(text: str) -> str:
    """Return a page with the numbers of every sentence that it holds."""
    for sentence, numbers in SENTENCES.items():
        found = pattern(sentence)
        if not found.search(text):
            continue
        formats = re.findall(r"\{([^}]*)\}", sentence)
        shown = [f"{value:{form.removeprefix(':')}}" for value, form in zip(numbers(), formats, strict=True)]
        text = found.sub(partial(replaced, shown=shown), text)
    return text


def replaced(match: re.Match[str], shown: Sequence[str]) -> str:
    """Return the matched sentence with its groups replaced."""
    made, at = "", match.start()
    for group, number in enumerate(shown, start=1):
        made += match.string[at : match.start(group)] + number
        at = match.end(group)
    return made + match.string[at : match.end()]


def unsourced(text: str) -> list[str]:
    """Return what looks like a measurement in a page's prose and is in no sentence of `SENTENCES`."""
    text = re.sub(r"<!-- \w+: \S+ -->\n.*?<!-- end -->", "", text, flags=re.DOTALL)  # generated from a JSON
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for sentence in SENTENCES:
        text = pattern(sentence).sub("", text)
    text = re.sub(r"^    .*$|`[^`]*`|\]\([^)]*\)|https?://\S+", "", text, flags=re.MULTILINE)  # code, addresses
    prose = NAMES.sub("", re.sub(r"\s+", " ", text))
    return [match[0] for match in MEASURED.finditer(prose)]
