"""Evaluation: a set's rows restored to PNG files, scored from them, resumable, in several processes.

`rows` says what is compared, `pictures` makes it, `scoring` and `latents` measure, `ledger` and `identity` decide what
a stopped run may keep, `evaluating` is the run, `summary` what is printed. `outputs` finds other methods' pictures,
`checking` tells whether a folder is the set it is called, `sweep` draws the fidelity-realism curve.
"""

from lafr.evaluation.ledger import Processes
from lafr.evaluation.rows import Row, standard_rows
from lafr.evaluation.run import evaluate
from lafr.evaluation.summary import Evaluation, best_median_worst, mean_and_interval, trained_on, write_scores

__all__ = [
    "Evaluation",
    "Processes",
    "Row",
    "best_median_worst",
    "evaluate",
    "mean_and_interval",
    "standard_rows",
    "trained_on",
    "write_scores",
]
