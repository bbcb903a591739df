"""The state of a training on disk, so that a run that was killed goes on where it was saved last.

A resumed training computes what an uninterrupted one does: batches depend on seed, epoch and index alone
(`misc.run.loaders.ShuffledBatches`), what networks draw on seed and step; weights, momentum and learning rates are in
the state.
"""

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from misc.errors import InputError, reason_of
from misc.files.atomic import atomic_path
from misc.files.pickles import load_tensors
from misc.files.resultfiles import METRICS_FOLDER, STATE_FOLDER
from misc.files.soundness import unsound_weight
from misc.run.distributed import is_first_process, require_equal
from misc.run.notices import notice
from misc.run.record import GROWING

log = logging.getLogger(__name__)

SUFFIX = ".pth"


class Part(Protocol):
    """Something that changes in a training: a network, an optimiser, a choice of checkpoints."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Raises any error for a state that is not of this part, such as one of other shapes."""


class TrainingState:
    """`<result_dir>/state/<name>.pth`: the last saved step of a training that has not finished."""

    def __init__(
        self,
        result_dir: str,
        name: str,
        *,
        parts: Mapping[str, Part],
        made_with: Mapping[str, Any],
        minutes: float,
        n_steps: int | None = None,
        resume: bool = True,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            parts: all that changes from step to step, in the state in which the training starts.
            made_with: whatever determines the training (starting weights, data, settings), as JSON can hold it. A
                state that was made with something else is not taken up.
            minutes: between two saves; 0: after every step.
            n_steps: of the whole training.
            resume: whether to take up a state of an earlier run.
        """
        self.path = state_path(result_dir, name)
        self._name, self._parts, self._seconds, self._resume = name, parts, 60 * minutes, resume
        self._n_steps = n_steps
        self._made_with = json.dumps(made_with, sort_keys=True)
        self._done: int | None = None
        self.unfinished_line: dict[str, Any] | None = None
        """What was said of the last step done, if the run was told to end before all of it was known."""
        self.before_saving: Callable[[], Any] | None = None
        """Called before the state is saved: what belongs to the steps done may still be under way."""
        self._saved_at = time.monotonic()

    def restore(self) -> int:
        """Fill the parts from the file, if it is of this very training; returns the steps done so far, 0 if none.

        The file is read at the first call; one that is damaged, or of more steps than there are, changes nothing.
        Raises `InputError` if it can't be read now, or if several processes do not agree on the training and its state.
        """
        if self._done is None:
            self._done = self._restore()
        return self._done

    def _restore(self) -> int:
        content = self._read() if self._resume else None
        done = 0 if content is None or not self._take_up(content) else content["step"]
        require_equal(f"{self._made_with} after {done} steps", name=self._name)
        if done == 0:
            return 0
        log.info("%s goes on after step %d of an interrupted run (%s)", self._name, done, self.path)
        return done

    def _take_up(self, content: dict[str, Any]) -> bool:
        """Fill the parts, all or none. Returns whether the content fits them."""
        before = copy.deepcopy({name: part.state_dict() for name, part in self._parts.items()})
        try:
            if type(content["step"]) is not int or not 0 < content["step"] <= (self._n_steps or math.inf):
                raise ValueError(f"it is of step {content['step']!r}")
            for name, part in self._parts.items():
                part.load_state_dict(content["parts"][name])
                if isinstance(part, nn.Module) and (weight := unsound_weight(part.state_dict())):
                    raise ValueError(f"{weight} holds NaN, infinity or numbers without bounds")
        except Exception as error:  # a damaged file makes whoever uses it fail in any way
            for name, part in self._parts.items():
                part.load_state_dict(before[name])
            self._set_aside(error)
            return False
        self.unfinished_line = content.get("unfinished_line")
        return True

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            content = load_tensors(self.path)
            made_with = content["made_with"]
        except (OSError, MemoryError) as error:  # the file may be whole
            raise InputError(
                f"the state of {self._name}, {self.path}, can't be read now ({error}); make it readable, or pass "
                "--resume False to start anew."
            ) from error
        except Exception as error:  # foreign bytes make the parser fail in any way
            self._set_aside(error)
            return None
        if made_with != self._made_with:
            log.info(
                "%s starts anew: %s is of an interrupted run with other settings, versions, data or starting weights",
                self._name,
                self.path,
            )
            return None
        return content

    def _set_aside(self, error: Exception) -> None:
        """Give a damaged state another name, under which nothing replaces it."""
        if not is_first_process():
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged{number}")).exists():
            number += 1
        os.replace(self.path, aside)
        reason = reason_of(error)
        notice(f"{self.path} is damaged ({reason}), and is now {aside}: {self._name} starts anew")

    def save_if_due(self, step: int) -> None:
        """Save the state after `step` steps if the last save was long enough ago.

        Of several processes the first one alone looks at its clock: the others have nothing to save, and no reason to
        wait for what is under way.
        """
        if is_first_process() and time.monotonic() - self._saved_at >= self._seconds:
            self.save(step)

    def save(self, step: int, *, unfinished_line: dict[str, Any] | None = None) -> None:
        """Write the state after `step` steps; of several processes, whose parts are equal, the first one does it.

        `unfinished_line`: what is known of that step, if what follows a step is still to be done.
        """
        if self.before_saving is not None:
            self.before_saving()
        if not is_first_process():
            return
        content = {
            "step": step,
            "n_steps": self._n_steps,
            "made_with": self._made_with,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "unfinished_line": unfinished_line,
        }
        with atomic_path(self.path) as temporary:
            torch.save(content, temporary)
        self._saved_at = time.monotonic()

    def finish(self, write: Callable[[], Any], *paths: str | Path) -> None:
        """Have the first process write the result, at `paths`; then the state is needed no longer, and is removed."""
        if is_first_process():
            write()
            self.path.unlink(missing_ok=True)
            log.info("wrote %s", " and ".join(map(str, paths)))


def state_path(result_dir: str | Path, name: str) -> Path:
    """Where the state of a training lies."""
    return Path(result_dir) / STATE_FOLDER / f"{name}{SUFFIX}"


def saved_step(result_dir: str | Path, name: str) -> tuple[int, int] | None:
    """(steps done, steps in all) of an interrupted training, read without its weights; None if no state tells it."""
    path = state_path(result_dir, name)
    if not path.is_file():
        return None
    try:
        content = load_tensors(path, mapped=True)
        done, n_steps = content["step"], content["n_steps"]
    except Exception:  # a damaged state is dealt with when its training begins
        return None
    are_numbers = type(done) is int and type(n_steps) is int
    return (done, n_steps) if are_numbers and 0 < done <= n_steps else None


def remove_unfinished_metrics(result_dir: str | Path) -> None:
    """Remove the growing losses of trainings that have left no state: nobody goes on with them."""
    for path in (Path(result_dir) / METRICS_FOLDER).glob(f"*{GROWING}"):
        if not state_path(result_dir, path.name.removesuffix(GROWING)).is_file():
            path.unlink()
