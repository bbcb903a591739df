"""Hard out-of-distribution images: the size at which images are scored, and their ranking (W-OoD section 3.1)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from misc.cam import NETWORK_STRIDE
from misc.run.loaders import places

HASH_SIDE = 8
"""Cells a side of the perceptual hash."""
NEAR = 5.0
"""Mean difference of two hashes, of 255, up to which images are near-duplicates."""


def scoring_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size at which an image of (H, W) is scored, one of few: (H', W'), multiples of the network's stride.

    make_cam at scale 1 shows the classifier an image at its own size. A data set's photographs have few sizes and about
    that of the training's crops, a pool's have any. So a larger image is reduced until its longer side is `long_side`,
    as train_cam reduces the OoD images that it clusters, and is never enlarged. Then both sides go to the nearest
    multiple of 16. That moves an edge by at most 8 pixels, half a cell of the map in which the classifier looks, whose
    last cell would otherwise lie partly on padding: the classifier sees the whole image, in the same number of cells or
    one less. Photographs of all sizes come in some dozens of sizes, so that batches fill.
    """
    scale = min(1.0, long_side / max(size))
    height, width = (max(1, round(side * scale / NETWORK_STRIDE)) * NETWORK_STRIDE for side in size)
    return height, width


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (192,) uint8: the image's colours in 8 x 8 cells.

    Images of equal content have nearly equal hashes, whatever their size and compression: they differ by the mean of
    the absolute differences. (Hashes of single bits, which compare neighbouring cells, are random where an image is
    even, as skies and water are, and such images are what this is for.)
    """
    cells = Image.fromarray(image).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    return np.asarray(cells).reshape(-1)


def by_size(items: Iterable[Mapping[str, Any]], batch_size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Batches of items whose "image" tensors (3, h, w) have equal shapes, each as soon as it is full, others at last.

    `batch_size`: places of a batch, of which a large image takes several (`misc.run.loaders.places`).
    """
    waiting: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for item in items:
        shape = tuple(item["image"].shape[1:])
        batch = waiting.setdefault(shape, [])
        batch.append(item)
        if (len(batch) + 1) * places(shape) > batch_size:
            yield waiting.pop(shape)
    yield from waiting.values()


@dataclass(frozen=True)
class Ranking:
    """Images of a pool, by their numbers.

    Attributes:
        candidates: those to be looked at, the strongest first.
        n_hard: how many reach the score from which on an image is hard.
        duplicates: {image: the better candidate of which it is a near-duplicate}.
        surplus: hard ones beyond what is asked for of their class.
    """

    candidates: list[int]
    n_hard: int
    duplicates: dict[int, int]
    surplus: list[int]


def rank(
    probabilities: np.ndarray, classes: Sequence[int], hashes: np.ndarray, *, hard_score: float, per_class: int
) -> Ranking:
    """Rank images by how strongly the classifier fires on them, and leave out what adds nothing (W-OoD section 3.1).

    Args:
        probabilities: (N,) of each image's most probable class; of equal ones the first image comes first.
        classes: N, the most probable class.
        hashes: (N, 192) uint8, of `perceptual_hash`.
        hard_score: the probability from which on an image is hard; others are no candidates.
        per_class: candidates of a class, at most.
    """
    hard = [int(n) for n in np.argsort(-probabilities, kind="stable") if probabilities[n] >= hard_score]
    kept = np.zeros((len(hard), hashes.shape[1]), dtype=np.int16)
    candidates: list[int] = []
    duplicates: dict[int, int] = {}
    surplus: list[int] = []
    n_of_class: dict[int, int] = {}
    for number in hard:
        differences = np.abs(kept[: len(candidates)] - hashes[number]).mean(axis=1)
        if (differences <= NEAR).any():
            duplicates[number] = candidates[int(differences.argmin())]
        elif n_of_class.get(classes[number], 0) == per_class:
            surplus.append(number)
        else:
            kept[len(candidates)] = hashes[number]
            candidates.append(number)
            n_of_class[classes[number]] = n_of_class.get(classes[number], 0) + 1
    return Ranking(candidates, len(hard), duplicates, surplus)
