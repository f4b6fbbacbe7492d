"""A test set of one's own: a folder of sharp faces, of which every second pixel is lost."""

from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from lafr.data.benchmarks import Pair
from lafr.images import list_images, read_image


class Halved:
    """Named, as each of its images is; `benchmark[i]` is a `Pair` and the same pixels every time.

    Args:
        root: folder of aligned faces.
        resolution: side in pixels of the model's images.
    """

    name = "halved"

    def __init__(self, root: str, resolution: int):
        self.paths, self.resolution = list_images(Path(root)), resolution

    def __len__(self) -> int:
        return len(self.paths)

    def stem(self, index: int) -> str:
        """Return the name of image `index`."""
        return self.paths[index].stem

    def __getitem__(self, index: int) -> Pair:
        hq: Tensor = read_image(self.paths[index], self.resolution)  # [3, R, R] in [-1, 1]
        lq = interpolate(hq[None, :, ::2, ::2], scale_factor=2, mode="nearest")[0]
        return Pair(self.stem(index), lq, hq)
