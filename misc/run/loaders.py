"""The order in which samples are drawn, and the loaders that bring them."""

import math
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from misc.run.distributed import share

PIXELS_A_PLACE = 512 * 512
"""An image with more pixels takes more than one place of a batch, so that memory stays bounded."""


class Stream(IntEnum):
    """The random streams of a run's seed: each training has its own, so that no two draw the same orders and crops."""

    CLASSIFIER = 0
    CAM = 1
    CAM_OOD = 2
    IRN = 3
    DEEPLAB = 4


def generator(seed: Sequence[int], *place: int) -> np.random.Generator:
    """The random numbers of a place, such as an epoch, or an epoch and an index, in the stream of a `seed`.

    `seed`: the run's seed and a `Stream`. Other seeds, streams and places have other numbers.
    """
    run_seed, *stream = seed
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=(*stream, *place)))


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): each epoch is a new order, its incomplete last batch is left out.

    The order depends on seed and epoch alone, and a dataset draws its augmentation from the `generator` of (seed,
    epoch, index), so that the number of worker processes changes no sample. Of several processes each has its share of
    every batch.
    """

    def __init__(self, n_items: int, *, batch_size: int, n_batches: int, seed: tuple[int, ...], first: int = 0) -> None:
        """Batches `first` to `n_batches`, counted from 0, the end excluded."""
        if n_items < batch_size:
            raise ValueError(f"{n_items} items make no batch of {batch_size}")
        self.n_items, self.batch_size, self.seed = n_items, batch_size, seed
        self.batches = range(first, n_batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.n_items // self.batch_size
        order_of_epoch = None
        for batch in self.batches:
            epoch, position = divmod(batch, per_epoch)
            if epoch != order_of_epoch:
                order = generator(self.seed, epoch).permutation(self.n_items)
                order_of_epoch = epoch
            start = position * self.batch_size
            yield [(epoch, int(index)) for index in share(order[start : start + self.batch_size])]


def training_loader(
    dataset: Dataset,
    first: int = 0,
    *,
    batch_size: int,
    n_batches: int,
    seed: tuple[int, ...],
    num_workers: int,
    device: torch.device,
) -> DataLoader:
    """`n_batches` shuffled batches, without those before `first`, of a dataset that is indexed with (epoch, index)."""
    batches = ShuffledBatches(len(dataset), batch_size=batch_size, n_batches=n_batches, seed=seed, first=first)
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=device.type == "cuda")


def places(size: tuple[int, int]) -> int:
    """How many places of a batch an image of (H, W) takes."""
    return math.ceil(size[0] * size[1] / PIXELS_A_PLACE)


def size_groups(
    sizes: Sequence[tuple[int, int]], batch_size: int, *, n_parts: Sequence[int] | None = None
) -> list[list[int]]:
    """Groups of images of equal size, with at most `batch_size` parts together.

    Args:
        sizes: (H, W) of each image.
        n_parts: how many of the `batch_size` places each image takes, at least one; default: one each. An image with
            more than `batch_size` parts is a group alone.

    Returns:
        The indices of each group's images; each image is in one group, sizes come in the order of their first image.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    groups = []
    for indices in by_size.values():
        room = 0
        for index in indices:
            needed = 1 if n_parts is None else max(1, n_parts[index])
            if needed > room:
                groups.append([])
                room = batch_size
            groups[-1].append(index)
            room -= needed
    return groups


class GroupedLoader:
    """Groups of items of a dataset, one list a group, read by worker processes; `len` counts the groups."""

    def __init__(
        self, dataset: Dataset, groups: Sequence[Sequence[int]], *, num_workers: int, device: torch.device
    ) -> None:
        self._dataset, self._groups = dataset, groups
        self._options = {"num_workers": num_workers, "device": device}

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[list[Any]]:
        order = np.fromiter(chain.from_iterable(self._groups), dtype=np.int64)  # goes to every process
        items = iter(sequential_loader(Subset(self._dataset, order), **self._options))
        return (list(islice(items, len(group))) for group in self._groups)


def sequential_loader(
    dataset: Dataset,
    *,
    num_workers: int,
    device: torch.device,
    keep_workers: bool = False,
) -> DataLoader:
    """All items in order, one at a time; `keep_workers` if they are read more than once."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=keep_workers and num_workers > 0,
    )


def batch_loader(dataset: Dataset, *, batch_size: int, num_workers: int, device: torch.device) -> DataLoader:
    """All items in order, in batches, of which each of several processes has its share; the last may be smaller."""
    batches = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    return DataLoader(dataset, batch_sampler=share(batches), num_workers=num_workers, pin_memory=device.type == "cuda")
