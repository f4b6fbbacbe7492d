"""Evaluation: restore a test set by several methods, score the PNG files, compare. Resumable, in several processes.

`Plan` -> `evaluate` -> `publish`. `methods` says what is compared, `restored` writes the images, `scoring` and
`latents` measure, `progress` and `cache_keys` decide what a stopped run keeps. `outputs` finds other methods' images,
`checking` tells whether a folder is the set it claims to be, `sweep` draws the fidelity-realism curve.
"""

from lafr.evaluation.batches import restore_and_score
from lafr.evaluation.methods import Method, standard_methods
from lafr.evaluation.plan import Plan
from lafr.evaluation.progress import Processes
from lafr.evaluation.run import Result, evaluate
from lafr.evaluation.summary import Evaluation, best_median_worst, mean_and_interval, trained_on, write_scores

__all__ = [
    "Evaluation",
    "Method",
    "Plan",
    "Processes",
    "Result",
    "best_median_worst",
    "evaluate",
    "mean_and_interval",
    "restore_and_score",
    "standard_methods",
    "trained_on",
    "write_scores",
]
