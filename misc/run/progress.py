"""Progress bars."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from misc.run.distributed import is_first_process
from misc.run.stopping import raise_if_told


class _Screen:
    """The standard error. It may lead into a file on a full disk: what can't be shown there is left out."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def __eq__(self, other: object) -> bool:  # tqdm clears a bar away for messages to the same screen
        return other is sys.stderr or isinstance(other, _Screen)

    __hash__ = object.__hash__

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


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
