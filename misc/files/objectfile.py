"""Pickled objects in `.npy` files, as the IRN family exchanges them, read without running pickled code.

A pickle calls functions by name, with arguments of its choice. Each name that is admitted here leads to a stand-in of
this module: it notes what the pickle says of an array or a tensor, and the array is built afterwards, from what was
checked: a plain type of numbers, a shape, and just as many bytes. NumPy's own functions would take a pickle's word for
types with fields or objects, which can point anywhere in memory.

The bytes of an array stay in the file until it is built: who asks for one part of a dict does not read the others.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from misc.errors import InputError, raise_if_of_the_machine, reason_of
from misc.files.atomic import atomic_path
from misc.files.pickles import BoundedUnpickler, load_tensors, ordered_dict, require
from misc.files.regular import regular

# NumPy 2 renamed its private package; files that name the old one load in every NumPy
_NUMPY_MODULES = {"numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric"}

_NUMBERS, _TEXT, _OBJECTS = re.compile(r"b1|[iu][1248]|f[248]"), re.compile(r"U[1-9]\d*"), re.compile(r"O[48]")
_TENSOR_NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
_OBJECT_STATE = (3, "|", None, None, None, -1, -1, 63)
_BYTE_ORDERS = ("<", ">", "|", "=")
_READ_AHEAD = 8192  # bytes; Python 3.14 would read 128 KiB at each place, more than the parts that are asked for


class _Sealed:
    """What a pickle can name or make, but not change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it changes what it may only use")


class _BytesInFile(_Sealed):
    """Bytes that a pickle has passed over."""

    __slots__ = ("_file", "_place", "_size")

    def __init__(self, file: BinaryIO, size: int) -> None:
        """The next `size` bytes of the file, which goes on behind them."""
        self._file, self._place, self._size = file, file.tell(), size
        file.seek(size, io.SEEK_CUR)

    def read(self) -> bytes:
        place = self._file.tell()
        self._file.seek(self._place)
        content = self._file.read(self._size)
        self._file.seek(place)
        return content


class _Function(_Sealed):
    """An admitted function."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)


class _PickledType:
    """Stands for `numpy.dtype`: the type's name, such as `f4`, and the state that follows it."""

    __slots__ = ("_numbers", "name", "state")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        require(type(name) is str and (align, copy) == (False, True), "an array of a type that is not plain")
        self.name, self.state, self._numbers = name, None, None

    def __setstate__(self, state: object) -> None:
        self.state, self._numbers = state, None

    def byte_order(self) -> str:
        """All that a plain type's state may say: no fields, no metadata."""
        state = self.state
        require(type(state) is tuple and len(state) == 8, f"an array of the type {self.name} with a foreign state")
        version, order, *fields = state[:5]
        plain = (version, fields) == (3, [None, None, None]) and order in _BYTE_ORDERS
        require(plain, f"an array of the type {self.name} with fields, expected plain numbers")
        return order

    def numbers(self) -> np.dtype:
        """The type, if it is one of numbers or truth values."""
        if self._numbers is None:  # label files have one type and 100,000 arrays
            known = _NUMBERS.fullmatch(self.name)
            require(known is not None, f"an array of the type {self.name}, expected numbers or truth values")
            self._numbers = np.dtype(self.name).newbyteorder(self.byte_order())
        return self._numbers


def _bytes(content: object) -> bytes | bytearray:
    if type(content) is _BytesInFile:
        return content.read()
    if type(content) is str:  # bytes of Python 2, which `encoding="latin1"` has made text
        return content.encode("latin1")
    require(type(content) in (bytes, bytearray), "an array without bytes")
    return content


def _build_array(kind: object, shape: object, content: object, *, order: str) -> np.ndarray:
    """A new array in the machine's byte order, if the bytes are as many as shape and type say."""
    require(type(kind) is _PickledType, "an array without a type")
    dtype, content = kind.numbers(), _bytes(content)
    sides = type(shape) is tuple and len(shape) <= 32 and all(type(side) is int and side >= 0 for side in shape)
    require(sides and math.prod(shape) * dtype.itemsize == len(content), "an array whose bytes don't fit its shape")
    if dtype.kind == "b":  # a truth value is 0 or 1 in memory, whatever the file holds
        return np.ndarray(shape, np.uint8, content, order=order) != 0
    return np.ndarray(shape, dtype, content, order=order).astype(dtype.newbyteorder("="))


class _PickledArray:
    """Stands for `numpy.ndarray`: an array of which all is told by the state that follows it."""

    __slots__ = ("_boxed", "_parts")

    def __init__(self) -> None:
        self._boxed = self._parts = None

    def __setstate__(self, state: object) -> None:
        whole = type(state) is tuple and len(state) == 5 and state[0] == 1
        require(whole, "an array with a foreign state")
        _, shape, kind, is_fortran, content = state
        if type(content) is list:
            self._boxed = shape, kind, content
        else:
            self._parts = kind, shape, content, "F" if is_fortran in (1, True) else "C"

    def build(self) -> np.ndarray:
        require(self._parts is not None, "an array of objects, expected numbers")
        *parts, order = self._parts
        return _build_array(*parts, order=order)

    def unbox(self) -> object:
        """The one object of an array of shape (): what `np.save` makes of anything but an array."""
        shape, kind, content = self._boxed or (None, None, [])
        boxed = type(kind) is _PickledType and _OBJECTS.fullmatch(kind.name) and kind.state == _OBJECT_STATE
        require(bool(boxed) and shape == () and len(content) == 1, "an array that holds something else than one object")
        return content[0]


def _reconstruct(kind: object, shape: object, code: object) -> _PickledArray:
    """`numpy.core.multiarray._reconstruct`: an empty array, to be filled by its state."""
    require(kind is _PickledArray and shape == (0,) and code in (b"b", "b"), "an array that is made in a foreign way")
    return _PickledArray()


def _scalar(kind: object, content: object = b"") -> np.generic | str:
    """`numpy.core.multiarray.scalar`: a number, or text."""
    require(type(kind) is _PickledType, "a number without a type")
    if _TEXT.fullmatch(kind.name):
        encoding = "utf-32-be" if kind.byte_order() == ">" else "utf-32-le"
        return _bytes(content).decode(encoding).rstrip("\0")
    return _build_array(kind, (), content, order="C")[()]


def _frombuffer(content: object, kind: object, shape: object, order: object) -> np.ndarray:
    """`numpy.core.numeric._frombuffer`: the arrays of pickle protocol 5."""
    require(order in ("C", "F"), "an array of a foreign order")
    return _build_array(kind, shape, content, order=order)


def _latin1(text: object, encoding: object) -> bytes:
    """`_codecs.encode`: bytes, which pickles of protocol 2 hold as text."""
    require(type(text) is str and encoding == "latin1", "it encodes something else than an array's bytes")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`: those of an array without entries, in pickles of protocol 2."""
    return b""


class _PickledStorage(_Sealed):
    """Stands for `torch.storage._load_from_bytes`: a tensor's numbers, as `torch.save` wrote them."""

    __slots__ = ("content",)

    def __init__(self, content: object) -> None:
        self.content = content

    def build(self) -> Tensor:
        """(N,) all numbers."""
        content = bytes(_bytes(self.content))
        try:
            storage = load_tensors(content)
        except Exception as error:  # foreign bytes make the parser fail in any way
            raise pickle.UnpicklingError("a tensor whose numbers can't be read") from error
        require(type(storage) is torch.storage.TypedStorage, "a tensor without numbers")
        require(storage.dtype in _TENSOR_NUMBERS, f"a tensor of the type {storage.dtype}, expected numbers")
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)


class _PickledTensor(_Sealed):
    """Stands for `torch._utils._rebuild_tensor_v2`; gradients and hooks, which follow the strides, are left out."""

    __slots__ = ("offset", "sides", "storage", "strides")

    def __init__(self, storage: object, offset: object, sides: object, strides: object, *_: object) -> None:
        self.storage, self.offset, self.sides, self.strides = storage, offset, sides, strides

    def build(self) -> Tensor:
        require(type(self.storage) is _PickledStorage, "a tensor without numbers")
        offset, sides, strides = self.offset, self.sides, self.strides
        require(type(sides) is type(strides) is tuple and len(sides) == len(strides), "a tensor of a foreign shape")
        counts = all(type(count) is int and count >= 0 for count in (offset, *sides, *strides))
        require(counts, "a tensor of a foreign shape")
        numbers, size = self.storage.build(), math.prod(sides)
        last = offset + sum((side - 1) * stride for side, stride in zip(sides, strides, strict=True))
        require(size == 0 or (size <= len(numbers) and last < len(numbers)), "a tensor larger than its numbers")
        return torch.as_strided(numbers, sides, strides, offset).clone() if size else numbers.new_empty(sides)


class _PickledTensorOfArray(_Sealed):
    """Stands for `torch.from_numpy`."""

    __slots__ = ("array",)

    def __init__(self, array: object) -> None:
        require(type(array) is _PickledArray, "a tensor without numbers")
        self.array = array

    def build(self) -> Tensor:
        return torch.from_numpy(self.array.build())


_MULTIARRAY = {"_reconstruct": _Function(_reconstruct), "scalar": _Function(_scalar)}
NUMPY_STAND_INS = {
    "numpy.dtype": _PickledType,
    "numpy.ndarray": _PickledArray,
    **{f"numpy.{core}.multiarray.{name}": it for core in ("core", "_core") for name, it in _MULTIARRAY.items()},
    **{f"numpy.{core}.numeric._frombuffer": _Function(_frombuffer) for core in ("core", "_core")},
}
"""{name: stand-in} of NumPy's names that pickles of numbers and arrays hold, in NumPy 1 and 2."""

_ADMITTED = {
    **NUMPY_STAND_INS,
    "_codecs.encode": _Function(_latin1),
    **dict.fromkeys(("__builtin__.bytes", "builtins.bytes"), _Function(_no_bytes)),
    "collections.OrderedDict": _Function(ordered_dict),
    "torch._utils._rebuild_tensor_v2": _PickledTensor,
    "torch.from_numpy": _PickledTensorOfArray,
    "torch.storage._load_from_bytes": _PickledStorage,
}


class _ArrayUnpickler(BoundedUnpickler):
    """Admits dicts, lists, numbers, strings, NumPy arrays and torch tensors, nothing else."""

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None

    def load_bytes(self) -> None:
        """The instruction that holds an array's bytes, from 256 bytes and up to 4 GB."""
        (size,) = struct.unpack("<I", self.read(4))
        in_frame = self._unframer.current_frame is not None  # one that protocol 4 has read already
        self.append(self.read(size) if in_frame else _BytesInFile(self._file, size))

    dispatch = {**BoundedUnpickler.dispatch, pickle.BINBYTES[0]: load_bytes}


def _built(value: object) -> object:
    return value.build() if type(value) in (_PickledArray, _PickledTensor, _PickledTensorOfArray) else value


class _PortablePickler(pickle._Pickler):
    """Names NumPy's functions by modules that old and new NumPy know, so that older projects read our files.

    A tensor is the same bytes whenever it is written, which PyTorch's own pickles, with addresses in memory, are not.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return torch.from_numpy, (obj.detach().cpu().contiguous().numpy(),)
        return NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None)
        if obj is torch.from_numpy:
            place = "torch\nfrom_numpy"
        elif module in _NUMPY_MODULES:
            place = f"{_NUMPY_MODULES[module]}\n{name or obj.__qualname__}"
        else:
            super().save_global(obj, name)
            return
        self.write(pickle.GLOBAL + f"{place}\n".encode())
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


def load_object(path: str | Path, *, kind: str, only: Collection[str] | None = None) -> dict:
    """The dict in a file of `save_object` or of `np.save`, of any NumPy, Python and pickle protocol.

    Its values are numbers, text, lists of those, arrays of numbers or truth values, and tensors.

    `only`: the keys that are wanted, if not all are. The arrays of others are not looked at, nor read from the disk,
    but for those that protocols below 3 wrote.

    Raises `InputError`, calling the file a `kind`, if it is missing, truncated, foreign or holds anything else.
    """
    path = Path(path)
    try:
        with regular(path).open("rb", buffering=_READ_AHEAD) as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read_header = np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if shape != () or dtype.kind != "O":
                raise ValueError(f"an array of shape {shape} and type {dtype}")
            boxed = _ArrayUnpickler(file, encoding="latin1").load()
            require(type(boxed) is _PickledArray, "it holds no array")
            content = _built(boxed.unbox())
            if type(content) is dict:
                content = {key: _built(value) for key, value in content.items() if only is None or key in only}
    except FileNotFoundError as error:
        raise InputError(f"{kind} {path} is missing.") from error
    except Exception as error:  # foreign bytes make the parser fail in any way
        raise_if_of_the_machine(error)
        raise InputError(f"{kind} {path} can't be read ({reason_of(error)}); make it again.") from error
    if type(content) is not dict:
        raise InputError(f"{kind} {path} holds a {type(content).__name__}, expected a dict; make it again.")
    return content


def require_size(
    maps: np.ndarray | Tensor, size: tuple[int, int], *, kind: str, path: str | Path, of: str = "its image"
) -> None:
    """Raise `InputError`, calling the file a `kind`, unless its `maps` (K, H, W) have the `size` (H, W) of `of`."""
    if tuple(maps.shape[1:]) != tuple(size):
        raise InputError(f"{kind} {path} is not of the size of {of}; make it again.")
