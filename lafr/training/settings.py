"""What the numbers of a training run may be, checked before a model is loaded: a wrong one of the last stage too."""

from collections.abc import Mapping
from typing import Any

from lafr.errors import require_whole

# parameter of a stage or of the trainer -> its least value; of 0 steps between two checkpoints there would be none
LEAST = {
    "max_steps": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "patience": 1,
    "accumulation": 1,
    "num_workers": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_images": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
}
OPTIONAL = ("patience", "validate_every")  # None: never
OWNED = {"batch_size": "PairStream.batch_size"}  # an evaluation has one too


def require_numbers(given: Mapping[str, Any]) -> None:
    """Raise InputError unless the whole numbers among a run's settings, by their names, are such as it can use."""
    for name in (name for name in LEAST if name in given):
        if given[name] is not None or name not in OPTIONAL:
            require_whole(LEAST[name], **{OWNED.get(name, name): given[name]})
