"""What IRN finds in an image, `ID.npy`, in half precision: kept for the steps that make masks of it later."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from misc.errors import InputError
from misc.files.camfile import MAP_STRIDE
from misc.files.objectfile import load_object, save_object

BYTES_PER_PIXEL = 3 * torch.float16.itemsize / MAP_STRIDE**2
"""An edge and a displacement of two numbers for each cell."""
_KIND, _NAMES = "file of IRN's output", ("edge", "displacement")
_LARGEST = torch.finfo(torch.float16).max


def irn_path(folder: str | Path, image_id: str) -> Path:
    """Where the output for an image lies."""
    return Path(folder) / f"{image_id}.npy"


def in_half_precision(x: Tensor) -> Tensor:
    """float32 -> float16, finite where `x` is."""
    return x.clamp(-_LARGEST, _LARGEST).half()


def save(path: str | Path, edge: Tensor, displacement: Tensor) -> None:
    """Write the pickled dict {edge: (1, h, w), displacement: (2, h, w)} of float16 arrays.

    The tensors are in half precision already, and on the CPU.
    """
    save_object(path, {name: x.numpy() for name, x in zip(_NAMES, (edge, displacement), strict=True)})


def load(path: str | Path) -> tuple[Tensor, Tensor]:
    """edge and displacement as `save` got them, as float32. Raises `InputError` for a file that it did not write."""
    content = load_object(path, kind=_KIND, only=_NAMES)
    arrays = [content.get(name) for name in _NAMES]
    if not all(isinstance(array, np.ndarray) and array.dtype == np.float16 for array in arrays):
        raise InputError(f"{_KIND} {path} lacks {' or '.join(_NAMES)} in half precision; remove it to have it made.")
    edge, displacement = (torch.from_numpy(array).float() for array in arrays)
    return edge, displacement
