"""CAM files, `ID.npy`: the one reader and writer of the format that the IRN family exchanges."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from misc.errors import InputError, reason_of
from misc.files.objectfile import load_object, require_size, save_object
from misc.files.paths import Paths

MAP_STRIDE = 4
"""Pixels per cell of `cam` in these files, and of IRN's edges, displacements and training labels."""
NUMBERS = {"float32": np.float32, "float16": np.float16}
"""{name: type} of the numbers in `high_res`."""


def bytes_per_pixel(numbers: str, n_classes: float) -> float:
    """Of the files of images that carry `n_classes` each; for each class a number a pixel, and a float32 a cell."""
    return n_classes * (np.dtype(NUMBERS[numbers]).itemsize + np.dtype(np.float32).itemsize / MAP_STRIDE**2)


def cam_path(folder: str | Path, image_id: str) -> Path:
    """Where the CAM of an image lies."""
    return Path(folder) / f"{image_id}.npy"


def cam_paths(folder: str | Path, ids: Iterable[str]) -> Paths:
    """Where the CAMs of many images lie."""
    return Paths(folder, (f"{image_id}.npy" for image_id in ids))


def save(
    path: str | Path, keys: np.ndarray | Tensor, cam: Tensor, high_res: np.ndarray | Tensor, *, numbers: str = "float32"
) -> None:
    """Write the pickled dict {keys: int64 (K,), cam: float32 tensor (K, h, w), high_res: array (K, H, W)}.

    `numbers`: those of `high_res`, one of `NUMBERS`. `cam` stays float32 beside float16, since the family's random walk
    multiplies it with float32 matrices.

    Raises `InputError`, and writes nothing, for maps with NaN or infinity.
    """
    high_res = torch.as_tensor(high_res).cpu().float().numpy()
    with np.errstate(over="ignore"):  # numbers beyond float16 become infinity
        high_res = np.ascontiguousarray(high_res, dtype=NUMBERS[numbers])
    content = {
        "keys": np.asarray(keys, dtype=np.int64),
        "cam": torch.as_tensor(cam).cpu().float().contiguous(),
        "high_res": high_res,
    }
    if not all(_is_finite(content[name]) for name in ("cam", "high_res")):
        raise InputError(
            f"CAM file {path} is not written, for the network gave NaN or infinity; name other weights, or train these "
            "again with a lower learning rate."
        )
    save_object(path, content)


def _is_finite(maps: np.ndarray | Tensor) -> bool:
    return bool(np.isfinite(np.asarray(maps)).all())


def load(path: str | Path, n_classes: int | None = None) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """keys int64 (K,), cam (K, h, w) float32 tensor, high_res (K, H, W) float32 array; also files of the original.

    Raises `InputError` for a missing, truncated or foreign file, for maps with NaN or infinity, and for keys that are
    not below `n_classes`.
    """
    keys, cam, high_res = _load(path, n_classes, "cam", "high_res")
    return keys, torch.from_numpy(cam), high_res


def load_cam(
    path: str | Path, n_classes: int | None = None, *, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, Tensor]:
    """keys and cam as `load` gives them; `high_res` is neither read from the disk nor checked.

    Raises `InputError` as `load` does, and for a cam that is not of `size` (h, w), where that is given.
    """
    keys, cam = _load(path, n_classes, "cam")
    if size is not None:
        require_size(cam, size, kind="CAM file", path=path)
    return keys, torch.from_numpy(cam)


def load_high_res(
    path: str | Path, n_classes: int | None = None, *, size: tuple[int, int] | None = None, of: str = "its image"
) -> tuple[np.ndarray, np.ndarray]:
    """keys and high_res as `load` gives them; `cam` is neither read from the disk nor checked.

    Raises `InputError` as `load` does, and for high_res that is not of `size` (H, W), where that is given: the size
    `of` what the sentence names.
    """
    keys, high_res = _load(path, n_classes, "high_res")
    if size is not None:
        require_size(high_res, size, kind="CAM file", path=path, of=of)
    return keys, high_res


def _float32(maps: Any) -> np.ndarray:
    return maps.float().numpy() if isinstance(maps, Tensor) else np.asarray(maps, dtype=np.float32)


def _load(path: str | Path, n_classes: int | None, *maps: str) -> list[np.ndarray]:
    """keys, and these `maps` as float32."""
    names = ("keys", *maps)
    content = load_object(path, kind="CAM file", only=names)
    if missing := {*names} - content.keys():
        raise InputError(f"CAM file {path} lacks {', '.join(sorted(missing))}; make it again.")
    *others, last = names
    told = f"{', '.join(others)} {{}} {last}"
    try:
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinity
            keys = np.asarray(content["keys"], dtype=np.int64)
            arrays = [_float32(content[name]) for name in maps]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        problem = f"{told.format('or')} is no array ({reason_of(error)})"
        raise InputError(f"CAM file {path}: {problem}; make it again.") from error
    if keys.ndim != 1 or any(array.ndim != 3 or len(array) != len(keys) for array in arrays):
        raise InputError(f"CAM file {path}: {told.format('and')} don't fit together; make it again.")
    if not all(map(_is_finite, arrays)):
        raise InputError(f"CAM file {path} holds NaN or infinity; make it again, with other weights.")
    if n_classes is not None and not ((keys >= 0) & (keys < n_classes)).all():
        raise InputError(f"CAM file {path} has classes {keys.tolist()}, the class list has {n_classes}; make it again.")
    return [keys, *arrays]
