"""Latents of the same faces in one plane, and how far they are from the ground truth's."""

from collections.abc import Mapping, Sequence

import numpy as np


def in_plane_of(reference: str, latents: Mapping[str, Sequence[np.ndarray]]) -> dict:
    """Return the latents in the plane of the first two principal components of one of them.

    Args:
        reference: whose plane it is.
        latents: name -> a vector a face, the same faces in the same order.

    Returns:
        "points": name -> (x, y) of each face, about the reference's mean; "explained": the components' shares of
        the reference's variance; "distances": name -> mean absolute difference to the reference's vector of the
        same face.
    """
    vectors = {name: np.stack(of).astype(np.float64) for name, of in latents.items()}
    mean = vectors[reference].mean(0)
    _, values, components = np.linalg.svd(vectors[reference] - mean, full_matrices=False)
    # a component's sign is arbitrary: the largest entry is positive, so that the same faces make the same plot
    plane = components[:2] * np.sign(components[:2][[0, 1], np.abs(components[:2]).argmax(1)])[:, None]
    return {
        "points": {name: np.round((of - mean) @ plane.T, 3).tolist() for name, of in vectors.items()},
        "explained": [float(v) for v in values[:2] ** 2 / (values**2).sum()],
        "distances": {
            name: float(np.abs(of - vectors[reference]).mean()) for name, of in vectors.items() if name != reference
        },
    }
