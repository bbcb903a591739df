"""Reading pickles so that none can crash this process: for files of NumPy and of PyTorch."""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from misc.files.regular import regular

DEEPEST_TUPLE = 8
"""Arrays and tensors have tuples within tuples, three deep."""
A_SET = "a set"
"""What the error says of a pickle that would make one."""
OLD_FORMAT_PICKLES = 5
"""Pickles at the start of a file of `torch.save` before PyTorch 1.6: magic number, version, system, content, keys."""


def require(condition: bool, problem: str) -> None:
    """Raise `UnpicklingError` with a `problem` unless the condition holds."""
    if not condition:
        raise pickle.UnpicklingError(problem)


def ordered_dict(pairs: object = ()) -> dict:
    """`collections.OrderedDict` of a list of pairs, which Python 2 pickled, or of nothing."""
    require(type(pairs) in (list, tuple), "a dict that is made in a foreign way")
    items = [tuple(pair) for pair in pairs]
    _require_plain_keys(key for key, _ in items)
    return dict(items)


def _require_plain_keys(keys: Iterable[object]) -> None:
    require(not any(isinstance(key, (tuple, frozenset)) for key in keys), "a dict whose keys are tuples")


def _shallow(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that makes a tuple."""

    def load_shallow(unpickler: Any) -> None:
        load(unpickler)
        made = unpickler.stack[-1]
        for part in made:
            if type(part) is tuple:
                unpickler.note_nested(made)
                return

    return load_shallow


def _with_plain_keys(load: Callable[[Any], None], *, items: slice) -> Callable[[Any], None]:
    """An instruction that fills a dict with these items of the stack: keys and values in turn."""

    def load_plain(unpickler: Any) -> None:
        _require_plain_keys(unpickler.stack[items][::2])
        load(unpickler)

    return load_plain


def _refuse_set(_: Any) -> NoReturn:
    raise pickle.UnpicklingError(A_SET)


_LOAD = pickle._Unpickler.dispatch
_TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
_SETS = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)
_BOUNDED = {
    **{code: _shallow(_LOAD[code]) for (code,) in _TUPLES},
    **{code: _with_plain_keys(_LOAD[code], items=slice(None)) for (code,) in (pickle.SETITEMS, pickle.DICT)},
    pickle.SETITEM[0]: _with_plain_keys(_LOAD[pickle.SETITEM[0]], items=slice(-2, None)),
    **{code: _refuse_set for (code,) in _SETS},
}


class BoundedUnpickler(pickle._Unpickler):
    """Python's own reader in Python. The one in C, and all that hashes, are crashed by a few bytes more than needed.

    The hash of a tuple calls itself for its parts, however deep: a million tuples within each other as a key of a dict
    end the process. So keys are no tuples, and these are not deep. The reader in C also takes memory for the largest
    number that a pickle gives to an object, whereas this one takes it for the objects that there are.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._depths: dict[int, tuple[int, tuple]] = {}

    def note_nested(self, made: tuple) -> None:
        """Note how deep a tuple with tuples is. Raises `UnpicklingError` if that is too deep."""
        depth = 1 + max(self._depths.get(id(part), (1,))[0] for part in made if type(part) is tuple)
        require(depth <= DEEPEST_TUPLE, "tuples within tuples")
        self._depths[id(made)] = depth, made  # kept, so that no other object gets its id

    dispatch = {**_LOAD, **_BOUNDED}


class _Unbuilt(dict):
    """Stands for whatever a pickle names, makes and fills, and does nothing."""

    __hash__ = object.__hash__

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


def _unbuilt_dict(pairs: object = ()) -> _Unbuilt:
    ordered_dict(pairs)
    return _Unbuilt()


class _DryRun(BoundedUnpickler):
    """Goes through a pickle without making anything of it."""

    def find_class(self, module: str, name: str) -> Any:
        require(name not in ("set", "frozenset", "Counter"), A_SET)
        return _unbuilt_dict if name == "OrderedDict" else _Unbuilt

    def persistent_load(self, pid: object) -> Any:
        return _Unbuilt()


def _require_harmless(file: BinaryIO) -> None:
    """Raise an error for a file of `torch.save` that would crash `torch.load` or fill the memory.

    `torch.save` does not compress, so that what an archive unpacks to is no more than its size.
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(OLD_FORMAT_PICKLES):
            _DryRun(file).load()
        return
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        require(all(part.compress_type == zipfile.ZIP_STORED for part in parts), "a compressed archive")
        require(sum(part.file_size for part in parts) <= size, "an archive whose parts overlap")
        require(len({part.filename for part in parts}) == len(parts), "an archive that has a part twice")
        for part in parts:
            if part.filename.endswith(".pkl"):
                _DryRun(io.BytesIO(archive.read(part))).load()


def load_tensors(source: str | Path | bytes, *, mapped: bool = False) -> Any:
    """The content of a file of `torch.save`, on the CPU, without running pickled code (`weights_only=True`).

    Args:
        source: its path, or its bytes.
        mapped: read no tensor of the file at this path before it is used.

    Raises any error for a file that is truncated or foreign.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else regular(source).open("rb") as file:
        _require_harmless(file)
        file.seek(0)
        return torch.load(source if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
