"""The state of a training on disk, so that a run that was killed goes on where it was saved last.

A resumed training computes what an uninterrupted one does: batches depend on seed, epoch and index alone
(`misc.run.loaders.ShuffledBatches`); weights, momentum, learning rates and random numbers are in the state.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from misc.errors import reason_of
from misc.files.atomic import atomic_path
from misc.files.pickles import load_tensors
from misc.files.soundness import unsound_weight
from misc.run.distributed import is_first_process, require_equal

log = logging.getLogger(__name__)

FOLDER, SUFFIX = "state", ".pth"


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
        resume: bool = True,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            parts: all that changes from step to step, in the state in which the training starts.
            made_with: whatever determines the training (starting weights, data, settings), as JSON can hold it. A
                state that was made with something else is not taken up.
            minutes: between two saves; 0: after every step.
            resume: whether to take up a state of an earlier run.
        """
        self.path = Path(result_dir) / FOLDER / f"{name}{SUFFIX}"
        self._name, self._parts, self._seconds, self._resume = name, parts, 60 * minutes, resume
        self._made_with = json.dumps(made_with, sort_keys=True)
        self._generators: dict[str, Any] | None = None
        self._saved_at = time.monotonic()

    def restore(self, *, n_steps: float = math.inf) -> int:
        """Fill the parts from the file, if it is of this very training; returns the steps done so far, 0 if none.

        A file that is damaged, or of more than `n_steps`, changes nothing.
        Raises `InputError` if several processes do not agree on the training and its state.
        """
        content = self._read() if self._resume else None
        done = 0 if content is None or not self._take_up(content, n_steps=n_steps) else content["step"]
        require_equal(f"{self._made_with} after {done} steps", name=self._name)
        if done == 0:
            return 0
        log.info("%s goes on after step %d of an interrupted run (%s)", self._name, done, self.path)
        return done

    def _take_up(self, content: dict[str, Any], *, n_steps: float) -> bool:
        """Fill the parts, all or none. Returns whether the content fits them."""
        before = copy.deepcopy({name: part.state_dict() for name, part in self._parts.items()})
        try:
            if type(content["step"]) is not int or not 0 < content["step"] <= n_steps:
                raise ValueError(f"it is of step {content['step']!r}")
            for name, part in self._parts.items():
                part.load_state_dict(content["parts"][name])
                if isinstance(part, nn.Module) and (weight := unsound_weight(part.state_dict())):
                    raise ValueError(f"{weight} holds NaN, infinity or numbers without bounds")
            _require_generators(content["generators"])
        except Exception as error:  # a damaged file makes whoever uses it fail in any way
            for name, part in self._parts.items():
                part.load_state_dict(before[name])
            log.info("notice: %s can't be used (%s): %s starts anew", self.path, reason_of(error), self._name)
            return False
        self._generators = content["generators"]
        return True

    def restore_generators(self) -> None:
        """Set the random generators as they were: for after the loaders have started, who draw from them, too."""
        if self._generators is None:
            return
        torch.set_rng_state(self._generators["cpu"])
        if torch.cuda.is_available() and len(self._generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._generators["cuda"])

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            content = load_tensors(self.path)
            made_with = content["made_with"]
        except Exception as error:  # foreign bytes make the parser fail in any way
            log.info("notice: %s can't be read (%s): %s starts anew", self.path, reason_of(error), self._name)
            return None
        if made_with != self._made_with:
            log.info(
                "%s starts anew: %s is of an interrupted run with other settings, data or starting weights",
                self._name,
                self.path,
            )
            return None
        return content

    def save_if_due(self, step: int) -> None:
        """Save the state after `step` steps if the last save was long enough ago."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save(step)

    def save(self, step: int) -> None:
        """Write the state after `step` steps; of several processes, whose parts are equal, the first one does it."""
        if not is_first_process():
            return
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        content = {
            "step": step,
            "made_with": self._made_with,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "generators": {"cpu": torch.get_rng_state(), "cuda": cuda},
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


def _require_generators(states: dict[str, Any]) -> None:
    """Raise an error for states that random generators can't have."""
    torch.Generator().set_state(states["cpu"])
    for state in states["cuda"]:
        if torch.cuda.is_available():
            torch.Generator("cuda").set_state(state)
