"""Whether the miniature is worth shipping: fixed thresholds on one evaluation, and a blind visual comparison.

Both read what `lafr eval` leaves: one number per image and metric, and the restored images. Nothing here looks at a
model, so nothing can be tuned to it; the images for the eye are chosen by the severity of the input alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lafr.errors import InputError
from lafr.evaluation.plan import LQ as INPUT
from lafr.evaluation.summary import mean_and_interval
from lafr.images import read_pil
from lafr.storage import atomic_write, write_json

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # method -> metric -> image -> value

EYE_IMAGES = 24  # compared by eye
EYE_WINS = 20  # of them the restored one must be preferred in so many
GAP, MARGIN = 8, 22  # pixels between the two sides, and above them for the number


@dataclass(frozen=True)
class Measure:
    """One line of the gate: what was measured, for the input and for the method, and whether it suffices.

    `failed` images are left out of both means: one of the two could not be measured.
    """

    name: str
    input: float
    method: float
    wanted: str
    passed: bool
    failed: int = 0


def by_severity(psnr_of_input: Mapping[str, float], count: int = EYE_IMAGES) -> list[str]:
    """Return `count` images, spread evenly from the most to the least degraded, by the input's PSNR.

    Raises InputError where there are fewer: an image would be shown twice.
    """
    if len(psnr_of_input) < count:
        raise InputError(
            f"{count} images are compared by eye and the set has {len(psnr_of_input)}; choose a larger set"
        )
    ordered = sorted(psnr_of_input, key=lambda image: (psnr_of_input[image], image))
    middles = (np.arange(count) + 0.5) * len(ordered) / count
    return [ordered[int(position)] for position in middles]


def thirds(psnr_of_input: Mapping[str, float]) -> list[list[str]]:
    """Return the images in three parts by the PSNR of their input: the least, the middle and the most degraded."""
    ordered = sorted(psnr_of_input, key=lambda image: (psnr_of_input[image], image), reverse=True)
    return [part.tolist() for part in np.array_split(ordered, 3)]


def most_degraded_third(psnr_of_input: Mapping[str, float]) -> list[str]:
    """Return the third of the images whose input has the lowest PSNR, the lowest first."""
    return thirds(psnr_of_input)[-1][::-1]


def measures(scores: Scores, method: str, seed: int = 0) -> list[Measure]:
    """Return the gate's lines for a method, over the images that both could be measured on.

    Metrics as in `configs/metrics/mini.yaml`.
    """
    severe = most_degraded_third(scores[INPUT]["psnr_rgb"])

    def line(name: str, metric: str, wanted: str, holds: Callable, images: Sequence[str] | None = None) -> Measure:
        chosen = images or list(scores[INPUT][metric])
        before, after = measured_on_both(scores, method, metric, chosen)
        if not len(before):
            raise InputError(f"{metric} failed on every image; the gate cannot be passed without it")
        failed = len(chosen) - len(before)
        return Measure(name, float(before.mean()), float(after.mean()), wanted, bool(holds(before, after)), failed)

    def clearly_above(before: np.ndarray, after: np.ndarray) -> bool:
        low = mean_and_interval(after - before, seed)["low"]
        return low is not None and low > 0

    def mean_is(compare: Callable[[float, float], bool]) -> Callable:
        return lambda before, after: compare(before.mean(), after.mean())

    sface, beyond = "identity_cos_sface", "above the input's beyond the paired 95 % interval"
    return [
        line("identity, SFace", sface, beyond, clearly_above),
        line(
            "identity, SFace, most degraded third", sface, "input + 0.05", mean_is(lambda b, a: a >= b + 0.05), severe
        ),
        line("identity, dlib distance", "identity_distance_dlib", "below the input's", mean_is(lambda b, a: a < b)),
        line("PSNR", "psnr_rgb", "input + 1.5 dB", mean_is(lambda b, a: a >= b + 1.5)),
        line("ST-LPIPS vgg", "st_lpips_vgg", "0.60 of the input's", mean_is(lambda b, a: a <= 0.60 * b)),
        line("landmarks, LMD", "lmd_68", "0.80 of the input's", mean_is(lambda b, a: a <= 0.80 * b)),
    ]


def measured_on_both(scores: Scores, method: str, metric: str, images: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric of the input and of a method, on those of `images` where neither failed."""
    before, after = (np.array([scores[side][metric][image] for image in images]) for side in (INPUT, method))
    both = np.isfinite(before) & np.isfinite(after)
    return before[both], after[both]


def blind_pairs(folders: Mapping[str, Path], method: str, images: Sequence[str], seed: int, out: Path) -> None:
    """Write `out/NN.png`, the input and the restored image at 2x in an order drawn by `seed`, and `key.json`.

    Args:
        folders: method -> folder of its images, `IMAGE.png`.
        method: the one to compare with the input.
        images: names, in the order of the files.
        seed: of the order of the sides and of the images; a reader must see the key only after the votes.
        out: folder that is written.
    """
    rng = np.random.default_rng(seed)
    key = []
    for number, index in enumerate(rng.permutation(len(images))):
        image = images[index]
        sides = [INPUT, method] if rng.random() < 0.5 else [method, INPUT]
        shown = [read_pil(folders[side] / f"{image}.png").convert("RGB") for side in sides]
        shown = [picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS) for picture in shown]
        width, height = shown[0].size
        sheet = Image.new("RGB", (2 * width + GAP, height + MARGIN), "white")
        ImageDraw.Draw(sheet).text((4, 4), f"{number:02d}    left: A    right: B", "black")
        sheet.paste(shown[0], (0, MARGIN))
        sheet.paste(shown[1], (width + GAP, MARGIN))
        atomic_write(out / f"{number:02d}.png", sheet.save)
        key.append({"number": number, "image": image, "A": sides[0], "B": sides[1]})
    write_json(key, out / "key.json")


def require_votes(votes: str) -> dict[str, str]:
    """Return a pair's number ("07") -> A, B or "=", of a letter a pair; raises InputError for others or too few."""
    if votes and (len(votes) != EYE_IMAGES or set(votes) - set("AB=")):
        raise InputError("votes", votes, f"{EYE_IMAGES} letters, one a pair: A, B or =")
    return {f"{number:02d}": vote for number, vote in enumerate(votes)}


def wins(votes: Mapping[str, str], key: Path, method: str) -> int:
    """Return in how many pairs the method was preferred; `votes` maps a pair's number ("07") to A, B or "=".

    A pair without a vote, or with "=", is not a win.
    """
    records = json.loads(key.read_text(encoding="utf-8"))
    return sum(record.get(votes.get(f"{record['number']:02d}", "="), None) == method for record in records)
