"""Evaluation: restore a test set by several methods, score the PNG files, compare. Resumable, in several processes.

`Plan` -> `evaluate` -> `publish`. `methods` says what is compared, `restored` writes the images, `scoring` and
`latents` measure, `progress` and `cache_keys` decide what a stopped run keeps. `outputs` finds other methods' images,
`checking` decides whether a folder is the set it claims to be, `sweep` draws the fidelity-realism curve. `tables`,
`published` and `report` show results.
"""

import importlib

_MODULES = {
    "Evaluation": "summary",
    "Method": "methods",
    "Plan": "plan",
    "Processes": "progress",
    "Result": "run",
    "best_median_worst": "summary",
    "evaluate": "run",
    "mean_and_interval": "summary",
    "publish": "publishing",
    "restore_and_score": "batches",
    "standard_methods": "methods",
    "trained_on": "summary",
    "write_scores": "summary",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    """Load a public name on first use: tables of stored results are made without torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"lafr.evaluation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lafr.evaluation' has no attribute {name!r}")
