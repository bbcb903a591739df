"""Which images are held out: at random, with about the same share of each class."""

from collections.abc import Sequence

import numpy as np


def held_out(labels: np.ndarray, share: float, *, seed: int, settled: Sequence[bool | None]) -> np.ndarray:
    """(N,) bool: the images of the validation list.

    Iterative stratification (Sechidis et al., ECML 2011): the images of the rarest class are dealt out first, each to
    the list that lacks most of the class; what an image carries beside it counts as dealt out, too. Images without any
    class count as a class of their own.

    Args:
        labels: (N, C) bool.
        share: of the validation list, of each class.
        settled: for each image whether it is held out already; None where that is to be chosen.
    """
    groups = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    result = np.array([bool(place) for place in settled], dtype=bool)
    is_open = np.array([place is None for place in settled], dtype=bool)
    # What the lists lack yet of each group, and of all images
    shares = np.array([1 - share, share])[:, None]
    lacking, lacking_images = shares * groups.sum(axis=0), shares[:, 0] * len(groups)
    for number in np.flatnonzero(~is_open):
        lacking[int(result[number])] -= groups[number]
        lacking_images[int(result[number])] -= 1
    order = np.random.default_rng(seed).permutation(len(groups))
    of_group = [order[groups[order, group] & is_open[order]] for group in range(groups.shape[1])]
    remaining = groups[is_open].sum(axis=0)
    while remaining.any():
        group = int(np.where(remaining > 0, remaining, np.iinfo(remaining.dtype).max).argmin())
        for number in of_group[group]:
            if not is_open[number]:
                continue
            place = int((lacking[1, group], lacking_images[1]) > (lacking[0, group], lacking_images[0]))
            result[number], is_open[number] = bool(place), False
            lacking[place] -= groups[number]
            lacking_images[place] -= 1
            remaining -= groups[number]
    return result
