"""What the settings of a training run may be, checked before a model is loaded: a wrong one of the last stage too."""

from collections.abc import Mapping
from math import inf
from typing import Any

from lafr.errors import InputError, require_whole

# parameter of a stage or of the trainer -> its least value; of 0 steps between two checkpoints there would be none
LEAST = {
    "max_steps": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "patience": 1,
    "accumulation": 1,
    "decode_crop": 1,
    "num_workers": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_images": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
}
# parameter -> least and most; the least is included only where it is 0, of what may be left out
RANGES = {
    "learning_rate": (0, inf),
    "clip_norm": (0, inf),
    "weight_decay": (0, inf),
    "ema_decay": (0, 1),
    "feature_cache_gb": (0, inf),
}
MAY_BE_0 = ("learning_rate", "weight_decay", "feature_cache_gb")
OPTIONAL = ("patience", "validate_every", "decode_crop", "ema_decay")  # None: never
# diffusers' schedules but the one that asks for rules
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
CHOICES = {"schedule": SCHEDULES, "mixed_precision": ("no", "bf16", "fp16"), "optimizer": ("adamw", "adamw8bit")}
OWNED = {"batch_size": "PairStream.batch_size"}  # an evaluation has one too


def require_settings(given: Mapping[str, Any]) -> None:
    """Raise InputError unless those of a run's settings that are checked here, by their names, are such as it can use.

    Others are not looked at.
    """
    for name, value in given.items():
        if value is None and name in OPTIONAL:
            continue
        if name in LEAST:
            require_whole(LEAST[name], **{OWNED.get(name, name): value})
        elif name in RANGES:
            require_number(name, value, *RANGES[name])
        elif name in CHOICES and value not in CHOICES[name]:
            raise InputError(name, value, f"one of {', '.join(CHOICES[name])}")


def require_number(name: str, value: object, low: float, high: float) -> None:
    """Raise InputError unless a value is a number between two others, finite."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    # NaN fails every comparison
    if number is None or not (low < number < high or (number == 0 and name in MAY_BE_0)):
        least = "0 or more" if name in MAY_BE_0 else f"above {low}"
        raise InputError(name, value, f"a number, {least}" + (f" and below {high:g}" if high < inf else ""))
