"""The GPU memory that a step needs at its peak, told beforehand for the project's own networks.

`gpu_memory.csv` holds what `python benchmarks/count_memory.py --write` has counted: bytes that a step takes whatever
its batch (weights, gradients, momentum), and bytes for each pixel that goes through its network. A step with several
rows for a network has several moments that can be the peak. All is in float32.
"""

import csv
import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from misc.run.config import Config
from misc.run.distributed import n_processes
from misc.run.loaders import places
from misc.run.step import Step

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("step", "network", "bytes", "bytes_per_pixel", "bytes_per_ood_pixel")

Moment = tuple[float, ...]
"""Bytes whatever the batch, and bytes for a pixel of each kind."""


class RunBatches:
    """How many pixels the batches of this run have, in each of its processes (`misc.run.step.Batches`).

    `sizes`: gives the (H, W) of some of the step's images, which stand for all; the largest counts.
    """

    def __init__(self, sizes: Callable[[], Sequence[tuple[int, int]]]) -> None:
        self._sizes = sizes

    def crops(self, batch_size: int, side: int) -> int:
        """Of a training's batch, which the processes share."""
        return math.ceil(batch_size / n_processes()) * side**2

    def photographs(self, batch_size: int) -> int:
        """Of a batch of whole images, with as many as fit into `batch_size` places of 512 x 512 pixels."""
        return max((max(1, batch_size // places(size)) * math.prod(size) for size in self._sizes()), default=0)


@lru_cache(maxsize=1)
def counted() -> dict[tuple[str, str], list[Moment]]:
    """{(step, network module): its moments}, from the table."""
    moments: dict[tuple[str, str], list[Moment]] = {}
    with TABLE.open(newline="") as file:
        for step, network, *numbers in list(csv.reader(file))[1:]:
            moments.setdefault((step, network), []).append(tuple(float(number) for number in numbers if number))
    return moments


def gpu_memory(step: Step, config: Config, batches: RunBatches) -> int | None:
    """Bytes at a step's peak on a GPU; None where they are not known: other networks, steps or precisions."""
    if step.on_gpu is None or config.precision == "bf16":
        return None
    moments = counted().get((step.name, getattr(config, step.on_gpu.network)))
    if moments is None:
        return None
    pixels = step.on_gpu.pixels(config, batches)
    return int(max(sum(map(operator.mul, moment, (1, *pixels))) for moment in moments))
