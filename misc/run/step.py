"""What a step of the chain says of itself, in its own file, beside `check`, `inputs`, `outputs` and `run`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from misc.run.config import Config

PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless")


@dataclass(frozen=True)
class Files:
    """Files whose content counts, in this order."""

    paths: Sequence[str | Path]


Inputs = Mapping[str, Files | Any]
"""{flag: what it gives}: files, or what was read, as bytes or as JSON can hold it."""


class Batches(Protocol):
    """How many pixels the batches of a run have, in each of its processes."""

    def crops(self, batch_size: int, side: int) -> int:
        """Of a training's batch, which the processes share."""

    def photographs(self, batch_size: int) -> int:
        """Of a batch of whole images, with as many as fit into `batch_size` places of 512 x 512 pixels."""


@dataclass(frozen=True)
class OnGpu:
    """What decides how much GPU memory a step needs, beside its network.

    Attributes:
        network: the flag that names the network.
        pixels: how many of them go through it at once: of each kind, where there are two.
    """

    network: str
    pixels: Callable[[Config, Batches], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The declaration of a step, `STEP` in its module; its switch in `Config` gives its place in the order.

    Attributes:
        name: that of its switch, without `_pass`.
        description: what it does, on one line: that of its switch, of the log and of the README.
        reads: flags that name what it reads: data, lists, folders, weights and, beside these, their networks.
        writes: flags that name what it writes.
        flags: settings that determine the result, given what is read.
        shared: whether the processes that torchrun starts share its work; else the first process alone does it.
        packages: those whose versions can change the result.
        remembered: whether its result is remembered; else it runs at each call, and looks itself for what is there.
        bytes_per_pixel: what it writes for each pixel of its images, roughly, by the flag that names the folder, to
            tell beforehand whether that fits; None where it writes little.
        memory_flags: those that, lowered, let it need less memory, to tell which where that does not suffice; the
            processes first, since the others change the result or its speed.
        on_gpu: what its GPU memory depends on, to tell beforehand how much that is; None where it is not told.
        version: raised when the step's own code gives another result than before, so that it is made again.
    """

    name: str
    description: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    flags: tuple[str, ...] = ()
    shared: bool = False
    packages: tuple[str, ...] = PACKAGES
    remembered: bool = True
    bytes_per_pixel: Callable[[Config], Mapping[str, float]] | None = None
    memory_flags: tuple[str, ...] = ()
    on_gpu: OnGpu | None = None
    version: int = 1


class StepModule(Protocol):
    """A module in `step/`; `inputs` and `outputs` are those of a step that is remembered."""

    STEP: Step

    def check(self, args: Config, planned: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Raise `InputError` for bad input; return what the step will make."""

    def inputs(self, args: Config) -> Inputs:
        """What the result is made from, by the flags of `STEP.reads`; callable once `check` has passed."""

    def outputs(self, args: Config) -> list[str | Path]:
        """The files that the step writes."""

    def run(self, args: Config) -> None:
        """Do it."""
