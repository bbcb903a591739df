"""CAM files, `ID.npy`: the one reader and writer of the format that the IRN family exchanges."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from misc.errors import InputError, reason_of
from misc.files.objectfile import load_object, save_object
from misc.files.paths import Paths

BYTES_PER_PIXEL = 6
"""Of the files of VOC's images, which carry 1.5 classes: a float32 a pixel and class, and a sixteenth for stride 4."""


def cam_path(folder: str | Path, image_id: str) -> Path:
    """Where the CAM of an image lies."""
    return Path(folder) / f"{image_id}.npy"


def cam_paths(folder: str | Path, ids: Iterable[str]) -> Paths:
    """Where the CAMs of many images lie."""
    return Paths(folder, (f"{image_id}.npy" for image_id in ids))


def save(path: str | Path, keys: np.ndarray | Tensor, cam: Tensor, high_res: np.ndarray | Tensor) -> None:
    """Write the pickled dict {keys: int64 (K,), cam: float32 tensor (K, h, w), high_res: float32 array (K, H, W)}.

    Raises `InputError`, and writes nothing, for maps with NaN or infinity.
    """
    content = {
        "keys": np.asarray(keys, dtype=np.int64),
        "cam": torch.as_tensor(cam).cpu().float().contiguous(),
        "high_res": np.ascontiguousarray(torch.as_tensor(high_res).cpu().float().numpy()),
    }
    if not _are_finite(content["cam"], content["high_res"]):
        raise InputError(
            f"CAM file {path} is not written, for the network gave NaN or infinity; name other weights, or train these "
            "again with a lower learning rate."
        )
    save_object(path, content)


def _are_finite(cam: Tensor, high_res: np.ndarray) -> bool:
    return bool(cam.isfinite().all()) and bool(np.isfinite(high_res).all())


def load(path: str | Path, n_classes: int | None = None) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """keys int64 (K,), cam (K, h, w) float32 tensor, high_res (K, H, W) float32 array; also files of the original.

    Raises `InputError` for a missing, truncated or foreign file, for maps with NaN or infinity, and for keys that are
    not below `n_classes`.
    """
    content = load_object(path, kind="CAM file")
    if missing := {"keys", "cam", "high_res"} - content.keys():
        raise InputError(f"CAM file {path} lacks {', '.join(sorted(missing))}; make it again.")
    try:
        keys = np.asarray(content["keys"], dtype=np.int64)
        cam = torch.as_tensor(content["cam"]).float()
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinity
            high_res = np.asarray(content["high_res"], dtype=np.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        problem = f"keys, cam or high_res is no array ({reason_of(error)})"
        raise InputError(f"CAM file {path}: {problem}; make it again.") from error
    if not (keys.ndim == 1 and cam.ndim == high_res.ndim == 3 and len(keys) == len(cam) == len(high_res)):
        raise InputError(f"CAM file {path}: keys, cam and high_res don't fit together; make it again.")
    if not _are_finite(cam, high_res):
        raise InputError(f"CAM file {path} holds NaN or infinity; make it again, with other weights.")
    if n_classes is not None and not ((keys >= 0) & (keys < n_classes)).all():
        raise InputError(f"CAM file {path} has classes {keys.tolist()}, the class list has {n_classes}; make it again.")
    return keys, cam, high_res
