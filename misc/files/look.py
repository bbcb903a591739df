"""One look at the disk a run: a folder is listed once, a file's size and time are asked for once, a list is read once.

On a network file system each question costs a millisecond, and a run asks the same of the same hundred thousand files
in every step. Within `one_look` the answers are kept, for the checks of all steps and for their work. Outside of it
each question goes to the disk.

What a run writes itself must not be hidden by an older answer: `forget` its folders when a step has ended.
"""

import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from misc.errors import InputError

Result = TypeVar("Result")

MISSING, _NOT_ASKED = -1, -2
"""In the rows of `states`: no file that can be looked at; a row that is not filled yet."""


class Folder:
    """The names in a folder, listed when this is made, and the states of its files, each asked for once."""

    def __init__(self, path: str) -> None:
        """A missing folder has no names. Raises `InputError` if the folder may not be listed."""
        self.path = path
        try:
            names = sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise InputError(f"folder {path} can't be listed ({error.strerror}); allow it or name another.") from error
        self._place_of = {name: place for place, name in enumerate(names)}
        self._states: np.ndarray | None = None
        self._by_stem: dict[tuple[str, ...], dict[str, str]] = {}
        self._hidden: dict[tuple[str, ...], dict[str, list[str]]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._place_of

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        return iter(self._place_of)

    def __len__(self) -> int:
        return len(self._place_of)

    def by_stem(self, suffixes: tuple[str, ...]) -> dict[str, str]:
        """{stem: name} of the names with one of the `suffixes`, in any case; of several the first suffix counts."""
        if suffixes not in self._by_stem:
            rank_of = {suffix: rank for rank, suffix in enumerate(suffixes)}
            ranks, names, hidden = {}, {}, {}
            for name in self:
                stem, suffix = os.path.splitext(name)
                rank = rank_of.get(suffix.lower())
                if rank is None:
                    continue
                if stem in names:
                    loser = name if rank > ranks[stem] else names[stem]
                    hidden.setdefault(stem, []).append(loser)
                    if loser == name:
                        continue
                ranks[stem], names[stem] = rank, name
            self._by_stem[suffixes], self._hidden[suffixes] = names, hidden
        return self._by_stem[suffixes]

    def hidden(self, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
        """{stem: other names with it} of those that `by_stem` leaves out."""
        self.by_stem(suffixes)
        return self._hidden[suffixes]

    def states(self, names: Sequence[str]) -> np.ndarray:
        """(N, 3) int64: size, time of change (ns) and inode of each file, links followed; -1 where there is no file."""
        if self._states is None:
            self._states = np.full((len(self) + 1, 3), _NOT_ASKED, dtype=np.int64)
            self._states[-1] = MISSING  # the place of every other name
        places = np.fromiter((self._place_of.get(name, -1) for name in names), dtype=np.int64, count=len(names))
        for number in np.flatnonzero(self._states[places, 0] == _NOT_ASKED).tolist():
            self._states[places[number]] = _state(f"{self.path}/{names[number]}")
        return self._states[places]


def _state(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return MISSING, MISSING, MISSING
    if not stat.S_ISREG(found.st_mode):
        return MISSING, MISSING, MISSING
    return found.st_size, found.st_mtime_ns, found.st_ino


class _Look:
    def __init__(self) -> None:
        self.folders: dict[str, Folder] = {}
        self.results: dict[Hashable, Any] = {}
        self._real_paths: dict[str, str] = {}

    def real_path(self, folder: str | os.PathLike[str]) -> str:
        """However a folder is written, it is one."""
        path = os.path.abspath(folder)
        if path not in self._real_paths:
            self._real_paths[path] = os.path.realpath(path)
        return self._real_paths[path]


_current: _Look | None = None


@contextmanager
def one_look() -> Iterator[None]:
    """Keep the answers of this module's functions until the block ends; a block within another has its own."""
    global _current
    outer, _current = _current, _Look()
    try:
        yield
    finally:
        _current = outer


def folder_at(path: str | os.PathLike[str]) -> Folder:
    """The folder at `path`, listed now or, within `one_look`, when it was asked for first.

    A folder without names may be one that a step will fill: it is listed anew whenever it is asked for.
    """
    if _current is None:
        return Folder(os.fspath(path))
    real_path = _current.real_path(path)
    known = _current.folders.get(real_path) or Folder(os.fspath(path))
    if len(known):
        _current.folders[real_path] = known
    return known


def states(paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
    """(N, 3) int64: size, time of change (ns) and inode of each file, links followed; -1 where there is no file."""
    if _current is None:
        return np.array([_state(os.fspath(path)) for path in paths], dtype=np.int64).reshape(-1, 3)
    parts = [os.fspath(path).rpartition("/") for path in paths]
    rows = [
        folder_at(f"{folder}{slash}" or ".").states([name for *_, name in group])
        for (folder, slash), group in groupby(parts, key=lambda part: part[:2])
    ]
    return np.concatenate([np.zeros((0, 3), dtype=np.int64), *rows])


def digest(paths: Sequence[str | os.PathLike[str]]) -> str:
    """A text that changes with the names, sizes, times, inodes or order of files; folders don't count.

    Raises `InputError` for a file that is not there.
    """
    of_files = states(paths)
    for number in np.flatnonzero(of_files[:, 0] == MISSING):
        raise InputError(f"{paths[number]} was there and is gone; put it back, or take it out of its list.")
    names = "\n".join(os.fspath(path).rpartition("/")[2] for path in paths)
    return blake2b(names.encode("utf-8", "surrogateescape") + of_files.tobytes(), digest_size=8).hexdigest()


def remembered(key: Hashable, make: Callable[[], Result]) -> Result:
    """What `make()` gives; within `one_look` it is called once for each `key`, and its result must not be changed."""
    if _current is None:
        return make()
    if key not in _current.results:
        _current.results[key] = make()
    return _current.results[key]


def read_once(path: str | os.PathLike[str], read: Callable[[], Result], *key: Hashable) -> Result:
    """What `read()` makes of the file at `path`; within `one_look` it reads anew only if the file has changed.

    `key`: whatever else the result depends on, beginning with what it is.
    """
    if _current is None:
        return read()
    path = os.path.abspath(path)
    return remembered((path, _state(path), *key), read)


def forget(paths: Iterable[str | os.PathLike[str]]) -> None:
    """List these folders, those below them and those of these files anew when they are asked for again."""
    if _current is None:
        return
    for path in map(_current.real_path, paths):
        below = os.path.join(path, "")
        for known in [*_current.folders]:
            if known in (path, os.path.dirname(path)) or known.startswith(below):
                del _current.folders[known]
