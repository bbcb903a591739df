"""Seeds, devices, precision, the optimiser, and the order in which training samples are drawn."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import IntEnum
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from misc.distributed import share
from misc.errors import InputError
from misc.parallel import launched_local_rank

PIXELS_A_PLACE = 512 * 512
"""An image with more pixels takes more than one place of a batch, so that memory stays bounded."""


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> a device; auto takes CUDA where there is a GPU.

    Of several processes on a machine each has a GPU of its own. `InputError` for CUDA without a GPU, or with too few.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch finds no GPU here; pass --device cpu, or install a CUDA build of PyTorch."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    if launched_local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"each process needs a GPU, and here are {torch.cuda.device_count()}; start no more than these "
            "(torchrun --nproc_per_node), or pass --device cpu."
        )
    return torch.device(name, launched_local_rank())


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


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries may draw from NumPy's global generator)
    torch.manual_seed(seed)


_backbone_dtype: torch.dtype | None = None


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision that runs on `device`: auto is tf32 on CUDA; elsewhere both are fp32."""
    if name in ("auto", "tf32"):
        return "tf32" if device.type == "cuda" else "fp32"
    return name


def set_precision(name: str, device: torch.device) -> str:
    """Choose the precision of this process, as torch's own switches are; returns its resolved name.

    `fp32`: float32 everywhere. `tf32`: matrix products and convolutions on tensor cores with 10 bits of mantissa (CUDA
    only; elsewhere it is fp32). `bf16`: backbones in bfloat16, all else (heads, losses, weights) as in tf32.
    """
    global _backbone_dtype
    name = resolve_precision(name, device)
    tensor_cores = device.type == "cuda" and name != "fp32"
    torch.set_float32_matmul_precision("high" if tensor_cores else "highest")
    torch.backends.cudnn.allow_tf32 = tensor_cores
    _backbone_dtype = torch.bfloat16 if name == "bf16" else None
    return name


@contextmanager
def backbones_in_float32() -> Iterator[None]:
    """Whatever `set_precision` said: for what outlives this process."""
    global _backbone_dtype
    kept, _backbone_dtype = _backbone_dtype, None
    try:
        yield
    finally:
        _backbone_dtype = kept


def backbone_precision(device: torch.device) -> AbstractContextManager:
    """The context in which a backbone runs on `device`: bfloat16 where `set_precision` said so."""
    if _backbone_dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=_backbone_dtype)


class PolySGD(torch.optim.SGD):
    """SGD whose learning rates decay as lr0 * (1 - step / max_step) ** power; held once step >= max_step.

    The rate is set before each step, or before each `decay_interval`-th and held in between.
    """

    def __init__(
        self,
        param_groups: list[dict],
        lr: float,
        *,
        momentum: float,
        max_step: int,
        power: float = 0.9,
        decay_interval: int = 1,
    ) -> None:
        super().__init__(param_groups, lr, momentum=momentum)
        self.max_step = max_step
        self.power = power
        self.decay_interval = decay_interval
        self.global_step = 0
        self._initial_lrs = [group["lr"] for group in self.param_groups]

    def step(self, closure=None):  # noqa: ANN001, ANN201 (as in torch.optim.SGD)
        if self.global_step < self.max_step and self.global_step % self.decay_interval == 0:
            decay = (1 - self.global_step / self.max_step) ** self.power
            for group, initial in zip(self.param_groups, self._initial_lrs, strict=True):
                group["lr"] = initial * decay
        self.global_step += 1
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "global_step": self.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.global_step = state_dict["global_step"]


class PolyOptimizer(PolySGD):
    """The optimiser of the classifier and of IRN.

    Quirk of the original, kept: `weight_decay` goes into SGD's *momentum* slot, so that the momentum is 1e-4 rather
    than 0.9, while weight decay acts only through the groups that carry it.
    """

    def __init__(
        self, param_groups: list[dict], lr: float, weight_decay: float, max_step: int, power: float = 0.9
    ) -> None:
        super().__init__(param_groups, lr, momentum=weight_decay, max_step=max_step, power=power)


def two_rate_optimizer(
    base: list[torch.nn.Parameter], fast: list[torch.nn.Parameter], *, lr: float, weight_decay: float, max_step: int
) -> PolyOptimizer:
    """The optimiser of the classifier and of IRN: `fast` parameters learn 10 times as fast as `base`."""
    groups = [
        {"params": base, "lr": lr, "weight_decay": weight_decay},
        {"params": fast, "lr": 10 * lr, "weight_decay": weight_decay},
    ]
    return PolyOptimizer(groups, lr=lr, weight_decay=weight_decay, max_step=max_step)


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
        order = [index for group in self._groups for index in group]
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
