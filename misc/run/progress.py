"""Progress bars."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from misc.run.distributed import is_first_process
from misc.run.stopping import raise_if_told


class _Screen:
    """The standard error. It may lead into a file on a full disk: then a bar is not shown any longer."""

    def __init__(self) -> None:
        self._is_lost = False
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def __eq__(self, other: object) -> bool:  # tqdm flushes the screen, and clears a bar away for other messages on it
        return other is self or (other is sys.stderr and not self._is_lost)

    __hash__ = object.__hash__

    def write(self, text: str) -> None:
        self._try(sys.stderr.write, text)

    def flush(self) -> None:
        self._try(sys.stderr.flush)

    def _try(self, function: Callable[..., Any], *args: Any) -> None:
        if not self._is_lost:
            try:
                function(*args)
            except OSError:
                self._is_lost = True


class _Bar(tqdm):
    """A bar that also ends a run whose signal was swallowed, as Python does within callbacks."""

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            raise_if_told()
            yield item

    def update(self, n: float | None = 1) -> bool | None:
        raise_if_told()
        return super().update(n)


def progress(*args: Any, **options: Any) -> tqdm:
    """A bar of tqdm; of several processes the first one alone shows it."""
    return _Bar(*args, disable=not is_first_process(), file=_Screen(), **options)
