"""Progress bars."""

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from misc.run.distributed import is_first_process
from misc.run.stopping import raise_if_told


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
    return _Bar(*args, disable=not is_first_process(), **options)
