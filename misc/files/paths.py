"""Many paths in few bytes; whether two are one place."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np


def same_path(path: Any, other: Any) -> bool:
    """Whether two paths name one place, however it is written; False for what is no path or no name."""
    if not (isinstance(path, str | os.PathLike) and isinstance(other, str | os.PathLike)):
        return False
    try:
        return os.path.realpath(path) == os.path.realpath(other)
    except (OSError, ValueError):  # no name that a file could have
        return False


class Paths(Sequence[str]):
    """The paths of files in a folder. An index gives one as text; a slice or an array of indices, those of several.

    All names lie in one text. A list of a million texts takes ten times the memory, and every process that
    loads images would come to have a copy of it: reading a text counts its references, which writes beside it.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str]) -> None:
        """`folder`: "" for names that are paths themselves."""
        names = list(names)
        self._start, self._text = os.path.join(folder, ""), "".join(names)
        self._bounds = np.zeros(len(names) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in names], out=self._bounds[1:])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[str, str, bytes]:
        return self._start, self._text, self._bounds.tobytes()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def _name(self, index: int) -> str:
        return self._text[self._bounds[index] : self._bounds[index + 1]]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return self._start + self._name(range(len(self))[index])
        return Paths(self._start, map(self._name, np.arange(len(self))[index].tolist()))

    def __iter__(self) -> Iterator[str]:
        bounds = pairwise(map(int, self._bounds))
        return (self._start + self._text[first:last] for first, last in bounds)
