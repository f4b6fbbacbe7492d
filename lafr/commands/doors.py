"""How each command spells the parameters that an error message names: `InputError.told(spell)`.

In Python a parameter is an argument's name (`decode_crop=None`). A Hydra command spells it as an override
(`trainer.decode_crop=null`), an argparse command as an option (`--force`, `--upscale 2`).
"""

import argparse
import ast

from lafr.errors import Spell, as_python

# parameter -> key of the composed configuration, where the two differ. A name that several functions give to different
# things is qualified by its owner, as in "Restorer.folder"; Python's spelling leaves the owner out.
HYDRA_KEYS = {
    # the model
    "Restorer.folder": "model.folder",
    "Base.folder": "model.build.folder",
    "expect": "model.build.expect",
    "offline": "model.build.offline",
    "sha256": "model.build.sha256",
    "text": "model.build.text",
    "timestep": "model.build.timestep",
    "variant": "model.build.variant",
    "code_dim": "adapter.code_dim",
    "heads": "adapter.heads",
    "num_codes": "adapter.num_codes",
    "temperature": "adapter.temperature",
    "top_k": "adapter.top_k",
    # faces to train on, and images to score
    "root": "data.root",
    "lq": "data.lq",
    "hq": "data.hq",
    "file_list": "data.file_list",
    "folders": "data.folders",
    "image_column": "data.image_column",
    "min_score": "data.min_score",
    "name_column": "data.name_column",
    "num_images": "data.num_images",
    "path": "data.path",
    "rank_by_score": "data.rank_by_score",
    "scores": "data.scores",
    "shards": "data.shards",
    "split": "data.split",
    "validation_list": "data.validation_list",
    # evaluation
    "curve_x": "curve.x",
    "curve_y": "curve.y",
    # degradation
    "jpeg_quality": "degradation.jpeg_quality",
    "kernel_size": "degradation.kernel_size",
    # training
    "PairStream.batch_size": "stage.NAME.batch_size",
    "accumulation": "trainer.accumulation",
    "cache_latents": "trainer.cache_latents",
    "latent_cache": "trainer.latent_cache",
    "decode_crop": "trainer.decode_crop",
    "mixed_precision": "trainer.mixed_precision",
    "monitor": "stage.NAME.monitor",
    "optimizer": "trainer.optimizer",
    "patience": "stage.NAME.patience",
    "trackers": "trainer.trackers",
    "validate_every": "trainer.validate_every",
}
# parameter -> option of `lafr restore`, where the two differ
OPTIONS = {"Restorer.folder": "model", "extension": "ext"}


def as_hydra(parameter: str, value: str | None = None) -> str:
    """Spell a parameter as a Hydra override: `trainer.decode_crop=null`.

    Args:
        parameter: its name in Python, perhaps qualified by its owner.
        value: as Python writes it (`None`, `True`, `'none'`); None for the key alone.
    """
    key = HYDRA_KEYS.get(parameter, parameter.rpartition(".")[2])
    return key if value is None else f"{key}={_in_yaml(value)}"


def as_option(parser: argparse.ArgumentParser) -> Spell:
    """Return the function that spells a parameter as an option of `parser`: `--force`, `--upscale 2`."""
    actions = {action.dest: action for action in parser._actions}

    def spell(parameter: str, value: str | None = None) -> str:
        name = OPTIONS.get(parameter, parameter.rpartition(".")[2])
        action = actions.get(name)
        if action is None:
            return as_python(parameter, value)
        if not action.option_strings:  # a positional argument
            return str(action.metavar)
        option = action.option_strings[-1]
        if value is None:
            return option
        if action.nargs == 0:  # a switch
            return option if value == str(action.const) else f"no {option}"
        return f"{option} {_in_yaml(value)}"

    return spell


def _in_yaml(value: str) -> str:
    """Return a value's Python expression in YAML's words."""
    words = {"None": "null", "True": "true", "False": "false"}
    if value in words:
        return words[value]
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return given if isinstance(given, str) else value
