"""What TensorBoard shows of a run while it goes on: `--tensorboard DIR`. The package is optional."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import InputError
from misc.run.distributed import is_first_process

FLUSH_SECONDS = 10
N_PICTURES = 4
"""Images whose CAMs are shown at each look."""


class Board:
    """The event files of one step; without a writer it does nothing."""

    def __init__(self, writer: Any | None) -> None:
        self._writer = writer

    def numbers(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a point to the curve of each value that is a number."""
        for name, value in values.items() if self._writer else ():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """Add a picture, (H, W, 3) uint8."""
        if self._writer:
            self._writer.add_image(name, picture, step, dataformats="HWC")


def require_board() -> None:
    """Raise `InputError` unless TensorBoard's writer is there."""
    _writer_class()


@contextmanager
def board(folder: str, result_dir: str, name: str, *, n_kept: int | None = None) -> Iterator[Board]:
    """The board of the step `name` in `<folder>/<result_dir>/<name>`; a silent one if `folder` is empty.

    Of several processes the first one alone writes. `n_kept`: steps whose points stay, of a training that goes on;
    later ones of an interrupted run are hidden.
    """
    if not folder or not is_first_process():
        yield Board(None)
        return
    purge = {} if n_kept is None else {"purge_step": n_kept + 1}
    place = Path(folder, _run_name(Path(result_dir)), name)
    with _writer_class()(str(place), flush_secs=FLUSH_SECONDS, **purge) as writer:
        yield Board(writer)


def _run_name(result_dir: Path) -> Path:
    """What tells runs apart: the result folder as seen from the working folder, or its last two parts."""
    path = result_dir.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-2:])


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard, which is missing; run `pip install tensorboard`, or leave "
            "the flag out: the same numbers are in <result_dir>/metrics/."
        ) from error
