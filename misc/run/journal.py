"""What a training tells of its steps, each while the next one is computed: JSON lines, curves and the bar."""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from misc.errors import InputError, ProcessLost
from misc.files.jsonfile import jsonable
from misc.run.board import Board
from misc.run.device import Arriving, one_size
from misc.run.limits import lacks_memory
from misc.run.stopping import stop_deferred
from misc.run.training_state import TrainingState


@dataclass(kw_only=True)
class Journal:
    """The line of each step of a training, with what follows the step.

    For use in a `with` statement, in which the state is not saved before what is kept is noted.

    Attributes:
        name: of the training.
        steps_per_epoch: for the epoch in a line, a fraction.
        images_per_step: for the speed, of all processes.
        advice: what to do if a loss stops being finite.
        after_step: called after the steps of `follows`, with the number of steps done; what it returns joins the line.
        state: saved with the line if `after_step` is cut short.
        write_line: appends a line to the file of JSON lines.
        curves: get the line's numbers, too.
        bar: shows the losses, the rate and the speed.
    """

    name: str
    steps_per_epoch: float
    images_per_step: int
    advice: str
    after_step: Callable[[int], dict[str, float]] | None
    follows: Container[int]
    state: TrainingState
    write_line: Callable[[dict[str, Any]], None]
    curves: Board
    bar: tqdm
    _unread: Callable[[], None] | None = None

    def __enter__(self) -> "Journal":
        self.state.before_saving = self.catch_up
        return self

    def __exit__(self, *raised: object) -> None:
        self.state.before_saving = None  # else networks, momentum and loaders would be held in a circle

    def is_followed(self, step: int) -> bool:
        """Whether something follows that step."""
        return self.after_step is not None and step in self.follows

    def put(self, step: int, names: Iterable[str], losses: Arriving, *, rate: float, seconds: float) -> None:
        """Note the step before, while the device is at this one, and keep this one.

        `losses`: one a name, on their way from the device; `rate`: the learning rate; `seconds`: since the step before.
        Raises `InputError` if a loss of the step before is not finite.
        """
        self.catch_up()
        self._unread = partial(self._note, step, names, losses, rate, seconds)

    def catch_up(self) -> None:
        """Note what is kept. Raises `InputError` if a loss is not finite."""
        note, self._unread = self._unread, None
        if note is not None:
            note()

    def follow(self, step: int, line: dict[str, Any]) -> None:
        """Do what follows a step, and tell its line.

        That may take long, and need not be finished when the run is told to end: then the line is kept in the state.
        """
        try:
            with stop_deferred(False), one_size(False):
                line.update(self.after_step(step) if self.after_step else {})
        except (KeyboardInterrupt, ProcessLost, RuntimeError, MemoryError) as error:
            if isinstance(error, KeyboardInterrupt | ProcessLost) or lacks_memory(error):
                self.state.save(step, unfinished_line=line)
            raise
        self._tell(step, line)

    def _note(self, step: int, names: Iterable[str], losses: Arriving, rate: float, seconds: float) -> None:
        values = dict(zip(names, losses.wait().tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise InputError(f"{self.name}: the loss is no longer finite at step {step} ({values}); {self.advice}.")
        speed = self.images_per_step / seconds
        line = {"step": step, "epoch": step / self.steps_per_epoch, "lr": rate, **values, "images_per_second": speed}
        (self.follow if self.is_followed(step) else self._tell)(step, line)
        shown = {key: f"{value:.4f}" for key, value in values.items()}
        self.bar.set_postfix(**shown, lr=f"{rate:.2e}", img_s=f"{speed:.1f}")
        self.bar.update()

    def _tell(self, step: int, line: dict[str, Any]) -> None:
        self.write_line(jsonable(line))
        self.curves.numbers(step, line)
