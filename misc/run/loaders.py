"""The order in which samples are drawn, and the loaders that bring them."""

import gc
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from itertools import chain, islice
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate, default_convert, get_worker_info

from misc.errors import reason_of
from misc.run.distributed import share
from misc.run.limits import SHARED_MEMORY, allowed_files, free_bytes
from misc.run.parallel import START_METHOD, launched_here
from misc.run.stopping import raise_if_told, stop_deferred

PIXELS_A_PLACE = 512 * 512
"""An image with more pixels takes more than one place of a batch, so that memory stays bounded."""


class Stream(IntEnum):
    """The random streams of a run's seed: each training has its own, so that no two draw the same orders and crops.

    `NETWORKS` is for what networks themselves draw in a training, as for dropout.
    """

    CLASSIFIER = 0
    CAM = 1
    CAM_OOD = 2
    IRN = 3
    DEEPLAB = 4
    NETWORKS = 5


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
    return _loader(dataset, batch_sampler=batches, n_loads=len(batches), num_workers=num_workers, device=device)


def places(size: tuple[int, int]) -> int:
    """How many places of a batch an image of (H, W) takes."""
    return math.ceil(size[0] * size[1] / PIXELS_A_PLACE)


def size_groups(
    sizes: Sequence[tuple[int, int]], batch_size: int, *, n_parts: Sequence[int] | None = None
) -> list[list[int]]:
    """Groups of images of equal size, with at most `batch_size` parts together.

    Args:
        sizes: (H, W) of each image.
        n_parts: how many of the `batch_size` places each image takes, at least one; default: its `places`. An image
            with more than `batch_size` parts is a group alone.

    Returns:
        The indices of each group's images; each image is in one group, sizes come in the order of their first image.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    groups = []
    for size, indices in by_size.items():
        room = 0
        for index in indices:
            needed = max(1, places(size) if n_parts is None else n_parts[index])
            if needed > room:
                groups.append([])
                room = batch_size
            groups[-1].append(index)
            room -= needed
    return groups


class GroupedLoader:
    """Groups of items of a dataset, one list a group, read by worker processes; `len` counts the groups."""

    def __init__(
        self,
        dataset: Dataset,
        groups: Sequence[Sequence[int]],
        *,
        num_workers: int,
        device: torch.device,
        keep_workers: bool = False,
    ) -> None:
        """`keep_workers` if they are read more than once; each item then comes from the same worker every time."""
        self._sizes = [len(group) for group in groups]
        order = np.fromiter(chain.from_iterable(groups), dtype=np.int64)  # goes to every process
        self._items = sequential_loader(
            Subset(dataset, order), num_workers=num_workers, device=device, keep_workers=keep_workers
        )

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[Any]]:
        items = iter(self._items)
        return (list(islice(items, size)) for size in self._sizes)


def sequential_loader(
    dataset: Dataset,
    *,
    num_workers: int,
    device: torch.device,
    keep_workers: bool = False,
) -> DataLoader:
    """All items in order, one at a time; `keep_workers` if they are read more than once."""
    return _loader(
        dataset,
        batch_size=None,
        n_loads=len(dataset),
        num_workers=num_workers,
        device=device,
        keep_workers=keep_workers,
    )


def batch_loader(dataset: Dataset, *, batch_size: int, num_workers: int, device: torch.device) -> DataLoader:
    """All items in order, in batches, of which each of several processes has its share; the last may be smaller."""
    batches = [range(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    batches = share(batches)
    return _loader(dataset, batch_sampler=batches, n_loads=len(batches), num_workers=num_workers, device=device)


class _Loader(DataLoader):
    """A loader that notices a lost worker where the next item is waited for, within seconds, and nowhere else.

    PyTorch's own raises an error in the middle of whatever is under way when the system tells of it.
    """

    def __iter__(self) -> Iterator[Any]:
        with stop_deferred():  # an exception while its processes are started would leave the iterator in pieces
            before = signal.getsignal(signal.SIGCHLD)
            iterator = super().__iter__()
            if signal.getsignal(signal.SIGCHLD) is not before:  # set by PyTorch, once, and in the main thread alone
                signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
        raise_if_told()
        return iterator


def _loader(
    dataset: Dataset,
    *,
    n_loads: int,
    num_workers: int,
    device: torch.device,
    keep_workers: bool = False,
    **options: Any,
) -> DataLoader:
    """A loader with `num_workers` processes, or one for each of the `n_loads` items or batches if these are fewer."""
    num_workers = min(num_workers, n_loads)
    return _Loader(
        dataset,
        num_workers=num_workers,
        persistent_workers=keep_workers and num_workers > 0,
        multiprocessing_context=START_METHOD if num_workers > 0 else None,
        pin_memory=device.type == "cuda",
        collate_fn=_convert if options.get("batch_size", 1) is None else _collate,
        worker_init_fn=_set_up_worker,
        **options,
    )


# How items come from a worker to the process that uses them. Shared memory is fastest, and some containers have 64 MB
# of it, less than two large images at four scales take. What does not fit there would be lost, or end the worker.

ROOM_FACTOR = 4
"""Each worker has two items under way, of which others that look for room at the same moment don't know."""
FILES_A_WORKER = 64
"""Descriptors that the items of a worker may take in shared memory; more than they do."""


class _Sent:
    """A tensor that leaves its process by value, through a pipe, and arrives as a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable, tuple]:
        return torch.from_numpy, (self._tensor.numpy(),)


def _collate(items: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The batch of some items."""
    if _may_share(items):
        return default_collate(items)
    # Not `default_collate`, which would place the batch in shared memory
    return _sent({name: torch.stack([item[name] for item in items]) for name in items[0]})


def _convert(item: Any) -> Any:
    """An item that is no batch, with tensors for arrays."""
    item = default_convert(item)
    return item if _may_share(item) else _sent(item)


def _may_share(data: Any) -> bool:
    """Whether the tensors in `data` may leave this process through shared memory, or need not leave it."""
    worker = get_worker_info()
    if worker is None or sys.platform != "linux":
        return True
    n_senders = worker.num_workers * launched_here()
    needed = ROOM_FACTOR * n_senders * sum(tensor.nbytes for tensor in _tensors_in(data))
    return needed <= free_bytes(SHARED_MEMORY) and FILES_A_WORKER * n_senders <= allowed_files()


def _tensors_in(data: Any) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, dict | list):
        for part in data.values() if isinstance(data, dict) else data:
            yield from _tensors_in(part)


def _sent(data: Any) -> Any:
    """`data` with `_Sent` for its tensors."""
    if isinstance(data, Tensor):
        return _Sent(data)
    if isinstance(data, dict):
        return {name: _sent(part) for name, part in data.items()}
    return [_sent(part) for part in data] if isinstance(data, list) else data


def _set_up_worker(_number: int) -> None:
    """Let a worker end when it can't send an item, of which Python would tell on the screen and go on.

    The process that uses the items notices that, and would wait for the lost one for ever. What a worker has inherited
    it never collects as garbage: memory that belongs to CUDA in the other process can't be freed in this one.
    """
    gc.freeze()

    def end(error: Exception, _item: Any) -> None:
        os.write(2, f"a process that loads images can't send them: {reason_of(error)}\n".encode())
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)
