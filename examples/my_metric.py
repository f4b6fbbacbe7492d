"""A metric of one's own. What is registered with it is what tables, cards and plots say of it."""

from torch import Tensor

from lafr.images import as_saved
from lafr.metrics import LOWER, register


@register("mae", label="MAE", unit="levels", direction=LOWER, digits=2)
def mean_absolute_error(image: Tensor, hq: Tensor) -> Tensor:
    """Mean absolute error of the pixels that a PNG would hold.

    Maps images `[B, 3, R, R]` in [-1, 1] to one number for each, `[B]`.
    """
    return (as_saved(image) - as_saved(hq)).abs().mean((1, 2, 3)) * 127.5
