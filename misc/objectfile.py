"""Pickled objects in `.npy` files, as the IRN family exchanges them, read without running pickled code."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misc.errors import InputError
from misc.files import atomic_path

# NumPy 2 renamed its private package; files that name the old one load in every NumPy
_NUMPY_MODULES = {"numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric"}


def _load_storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _numpy_functions() -> dict[str, Any]:
    array, scalar = np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0]
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    return {f"multiarray.{array.__name__}": array, "multiarray.scalar": scalar, "numeric._frombuffer": frombuffer}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits dicts, lists, numbers, strings, NumPy arrays and torch tensors, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
            "torch.storage._load_from_bytes": _load_storage,
        }
        for package in ("numpy.core", "numpy._core"):
            allowed.update({f"{package}.{key}": value for key, value in _numpy_functions().items()})
        try:
            return allowed[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


class _PortablePickler(pickle._Pickler):
    """Names NumPy's functions by modules that old and new NumPy know, so that older projects read our files."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None)
        if module not in _NUMPY_MODULES:
            super().save_global(obj, name)
            return
        self.write(pickle.GLOBAL + f"{_NUMPY_MODULES[module]}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch = {**pickle._Pickler.dispatch, type(np.zeros(1).__reduce__()[0]): save_global}


def save_object(path: str | Path, content: dict) -> None:
    """Write a dict as `np.save(path, content)` does: a pickled array of one object."""
    boxed = np.empty((), dtype=object)
    boxed[()] = content
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        _PortablePickler(file, protocol=3).dump(boxed)


def load_object(path: str | Path, *, kind: str) -> dict:
    """The dict in a file of `save_object` or of `np.save`.

    Raises `InputError`, calling the file a `kind`, if it is missing, truncated, foreign or holds anything but arrays.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read_header = np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"an array of shape {shape} and type {dtype}")
            content = _ArrayUnpickler(file).load().item()
    except FileNotFoundError as error:
        raise InputError(f"{kind} {path} is missing.") from error
    except Exception as error:  # foreign bytes make the parser fail in any way
        raise InputError(f"{kind} {path} can't be read ({error}); make it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{kind} {path} holds a {type(content).__name__}, expected a dict; make it again.")
    return content
