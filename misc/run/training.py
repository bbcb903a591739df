"""What all trainings share: length, batches and state, and the loop."""

import itertools
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from misc.errors import InputError, ProcessLost
from misc.files.soundness import unsound_weight
from misc.run.board import board
from misc.run.config import Config
from misc.run.device import Arriving, one_size, resolve_device, set_seed
from misc.run.distributed import (
    GradientSums,
    is_first_process,
    max_over_processes,
    n_processes,
    rank,
    sums_by_nccl,
)
from misc.run.done import made_with
from misc.run.journal import Journal
from misc.run.limits import LOST_CONNECTION, lacks_memory
from misc.run.loaders import Stream, generator, training_loader
from misc.run.notices import notice
from misc.run.progress import progress
from misc.run.record import metrics_log, read_losses
from misc.run.step import Inputs, Step
from misc.run.stopping import GRACE_SECONDS, is_told, stop_deferred, told
from misc.run.training_state import Part, TrainingState

FEWEST_COMPARED = 10
"""Steps from which on a loss's start and end tell more than the chance of single batches."""


class TrainingSet(Protocol):
    """Crops, indexed with (epoch, index): `seed`, the run's and a `Stream`, determines them and their order."""

    seed: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Any]: ...


class KeptTensor:
    """A tensor that a training computes once, from its starting weights, and then keeps in its state."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def to(self, device: torch.device) -> None:
        """Move it to where the training runs."""
        self.value = None if self.value is None else self.value.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What the state holds of it."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an interrupted run has computed."""
        self.value = state["value"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the flags say of a training, whatever its data, its loss and its optimiser.

    Attributes:
        step: the declaration of its step.
        args: all flags.
        n_steps: of the optimiser.
        steps_per_epoch: no whole number where an epoch ends within a step.
        batches_per_step: as in `fit`.
    """

    step: Step
    args: Config
    n_steps: int
    steps_per_epoch: float
    batches_per_step: int = 1

    @classmethod
    def of_epochs(cls, step: Step, args: Config, *, n_images: int, batch_size: int, n_epochs: int) -> "Training":
        """One of whole epochs, each without its incomplete last batch."""
        steps_per_epoch = n_images // batch_size
        return cls(step=step, args=args, n_steps=steps_per_epoch * n_epochs, steps_per_epoch=steps_per_epoch)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return resolve_device(self.args.device)

    def batches_from(self, crops: TrainingSet, batch_size: int) -> Callable[[int], DataLoader]:
        """A function of a number, counted from 0, that gives this process's share of the batches from that one on."""
        return partial(
            training_loader,
            crops,
            batch_size=batch_size,
            n_batches=self.n_steps * self.batches_per_step,
            seed=crops.seed,
            num_workers=self.args.num_workers,
            device=self.device,
        )

    def state(self, parts: Mapping[str, Part], inputs: Inputs) -> TrainingState:
        """Its state on disk, which is taken up by a training of equal settings and `inputs` alone.

        `parts`: all that changes from step to step.
        """
        return TrainingState(
            self.args.result_dir,
            self.step.name,
            parts=parts,
            made_with=made_with(self.step, self.args, inputs),
            minutes=self.args.state_minutes,
            n_steps=self.n_steps,
            resume=self.args.resume,
        )

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `fit` that say the same in every training."""
        return {
            "n_steps": self.n_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "batches_per_step": self.batches_per_step,
            "seed": self.args.seed,
            "name": self.step.name,
            "result_dir": self.args.result_dir,
            "tensorboard": self.args.tensorboard,
        }


def fit(
    batches_from: Callable[[int], Iterable[Any]],
    loss_of: Callable[[Any], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    n_steps: int,
    steps_per_epoch: float,
    batch_size: int,
    seed: int,
    name: str,
    result_dir: str,
    rate_flag: str,
    other_help: str = "",
    state: TrainingState,
    after_step: Callable[[int], dict[str, float]] | None = None,
    follows: Container[int] = (),
    batches_per_step: int = 1,
    tensorboard: str = "",
) -> None:
    """Run `n_steps` of an optimiser on `loss_of(batch)["total"]`, with a bar and JSON lines.

    It goes on from `state`, if that is of this training, and saves it now and then and at the end. Of several processes
    each calls it with its share of the batches, and gets the same parameters. The losses of a step are read while the
    device is at the next one; before `after_step`, and before the state is saved, nothing is left unread.

    Args:
        batches_from: the batches from a number on, counted from 0.
        loss_of: batch -> named scalars, among them `total`. With several processes: those of the whole batch, whose
            gradient is of this process's part (as `misc.run.distributed.sum_over_processes` has it).
        batch_size: images a batch, for the speed shown.
        seed: of the run. What a network draws, as for dropout, depends on it, the step and the process alone, so that a
            training can be taken up after any step.
        name: of the bar and of `<result_dir>/metrics/<name>.jsonl`.
        rate_flag: the learning rate's flag, named if the loss stops being finite (`InputError`).
        other_help: what else to do then, beside lowering it.
        after_step: called after the steps of `follows`, with the number of steps done; what it returns joins the JSON
            line.
        batches_per_step: batches whose losses and gradients are averaged for a step, one after the other.
        tensorboard: folder that the JSON lines' numbers go to, too; or empty.
    """
    done = state.restore()
    batches = iter(batches_from(done * batches_per_step))
    n_kept = done - (state.unfinished_line is not None)
    device = optimizer.param_groups[0]["params"][0].device
    with (
        metrics_log(result_dir, name, n_kept=n_kept) as write_line,
        board(tensorboard, result_dir, name, n_kept=n_kept) as curves,
        progress(total=n_steps, initial=done, desc=name, unit="step") as bar,
        stop_deferred(),
        one_size(),
        GradientSums(optimizer, n_passes=batches_per_step) as gradients,
        Journal(
            name=name,
            steps_per_epoch=steps_per_epoch,
            images_per_step=batches_per_step * batch_size,
            advice=f"lower --{rate_flag}" + (f", or {other_help}" if other_help else ""),
            after_step=after_step,
            follows=follows,
            state=state,
            write_line=write_line,
            curves=curves,
            bar=bar,
        ) as journal,
    ):
        if state.unfinished_line is not None:
            journal.follow(done, state.unfinished_line)
        started = time.perf_counter()
        for step, group in enumerate(_groups(batches, batches_per_step, state=state, done=done), start=done + 1):
            optimizer.zero_grad(set_to_none=True)
            set_seed(int(generator((seed, Stream.NETWORKS), step, rank()).integers(2**32)))
            with _saved_if_cut_short(state, step - 1, device):
                of_batches = [_backward(loss_of(batch), share=1 / batches_per_step) for batch in group]
                gradients.finish()
            optimizer.step()
            losses = Arriving(_mean_of(of_batches))
            rate, now = optimizer.param_groups[0]["lr"], time.perf_counter()
            journal.put(step, tuple(of_batches[0]), losses, rate=rate, seconds=now - started)
            started = now
            if journal.is_followed(step):
                journal.catch_up()
                started = time.perf_counter()
            with _saved_if_cut_short(state, step, device):
                any_is_told = _any_is_told()
            if any_is_told:
                state.save(step)
                raise told()
            state.save_if_due(step)
        journal.catch_up()
    if unsound_weight({str(i): p for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}):
        raise InputError(f"{name}: the weights have grown without bounds by step {n_steps}; lower --{rate_flag}.")
    state.save(n_steps)
    if is_first_process():
        _tell_if_worse(read_losses(result_dir, name).get("total", []), name=name, rate_flag=rate_flag)


def _tell_if_worse(losses: Sequence[float], *, name: str, rate_flag: str) -> None:
    """Tell the log of a loss that ended above its start: each the mean of a tenth of the steps."""
    if len(losses) < FEWEST_COMPARED:
        return
    n_steps = math.ceil(len(losses) / 10)
    start, end = fmean(losses[:n_steps]), fmean(losses[-n_steps:])
    if end > start:
        notice(
            f"{name}: the loss ended above its start ({start:.4f} in the first {n_steps} steps, {end:.4f} in the "
            f"last), so it may have learned nothing; lower --{rate_flag}, or train for longer"
        )


def _groups(
    batches: Iterator[Any], batches_per_step: int, *, state: TrainingState, done: int
) -> Iterator[tuple[Any, ...]]:
    """The batches of each step. If their workers are gone, killed or told to end, the state is saved."""
    groups = zip(*[batches] * batches_per_step, strict=False)
    for step in itertools.count(done):
        try:
            group = next(groups, None)
        except (RuntimeError, MemoryError, *LOST_CONNECTION):
            if step:
                state.save(step)
            if not is_told(grace=GRACE_SECONDS):
                raise
            raise told() from None
        if group is None:
            return
        yield group


@contextmanager
def _saved_if_cut_short(state: TrainingState, done: int, device: torch.device) -> Iterator[None]:
    """For what changes no weight: if the memory does not suffice, or another process is gone, `state` is saved.

    No process gets further in a step than to the sums of its gradients until all have come there. So the weights of the
    first process, who saves, are those after `done` steps of all, wherever the others are. Where the GPU has yet to
    compute what a collective has returned, with NCCL, nobody knows whether weights are made of whole sums once a
    process is gone: then nothing is saved.
    """
    try:
        yield
    except Exception as error:
        is_lost = isinstance(error, ProcessLost)
        if done and (not sums_by_nccl(device) if is_lost else lacks_memory(error)):
            state.save(done)
        raise


def _any_is_told() -> bool:
    """Whether any of the processes was told to end, so that all end after the same step."""
    if n_processes() == 1:
        return is_told()
    return bool(max_over_processes(torch.tensor(int(is_told()))))


def _backward(losses: dict[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Add this batch's share to the gradients; returns the losses without their graph."""
    (share * losses["total"]).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _mean_of(of_batches: list[dict[str, Tensor]]) -> Tensor:
    """The mean of each loss over the batches of a step, in one tensor: one transfer from the device."""
    return torch.stack([torch.stack([*losses.values()]) for losses in of_batches]).mean(dim=0)
