"""Class activation maps: the multi-scale builder, and reading label maps off them (IRN section 3)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.crf import CPU, Backend, crf_inference_labels
from misc.errors import InputError
from misc.imutils import IGNORE_LABEL, cells_of, mirror_pair, normalize, resize_image, scaled_size, to_chw
from misc.run.device import to_device

NETWORK_STRIDE = 16
PEAK_EPSILON = 1e-5


def _require_keys(keys: Sequence[int] | np.ndarray, *, n_classes: int) -> None:
    """Raise `ValueError` unless `keys` are numbers of different classes: a row of 0 and 1 is none."""
    numbers = np.asarray(keys)
    is_sound = numbers.dtype.kind in "iu" and numbers.ndim == 1 and len({*numbers.tolist()}) == len(numbers)
    if len(numbers) and not (is_sound and numbers.min() >= 0 and numbers.max() < n_classes):
        raise ValueError(f"keys must be different classes in 0 .. {n_classes - 1}, not {[*keys]}")


def _sum_resized(maps: Sequence[Tensor], size: tuple[int, ...], keys: Sequence[int]) -> Tensor:
    _require_keys(keys, n_classes=len(maps[0]))
    if len(keys) == 0:
        return maps[0].new_zeros(0, *size)
    labelled = (torch.stack([m[int(key)] for key in keys]) for m in maps)  # a tensor of keys would wait for the GPU
    return sum(F.interpolate(m[None], size, mode="bilinear", align_corners=False)[0] for m in labelled)


def _divide_by_peak(maps: Tensor) -> Tensor:
    return maps / (maps.amax(dim=(1, 2), keepdim=True) + PEAK_EPSILON)


def merge_scales(maps: Sequence[Tensor], size: tuple[int, int], keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """CAMs of several scales -> the CAM at stride 4 and at full size, of the labelled classes.

    Args:
        maps: (C, h_s, w_s) of each scale, not negative.
        size: (H, W) of the image.
        keys: the K labelled classes, 0-based.

    Returns:
        cam (K, ceil(H/4), ceil(W/4)) and high_res (K, H, W), each map divided by its maximum + 1e-5.

    Raises `ValueError` for keys that are no classes, or not different.
    """
    return _divide_by_peak(_sum_resized(maps, cells_of(size), keys)), merge_high_res(maps, size, keys)


def merge_high_res(maps: Sequence[Tensor], size: tuple[int, int], keys: Sequence[int]) -> Tensor:
    """The second result of `merge_scales` alone."""
    full_size = tuple(NETWORK_STRIDE * math.ceil(side / NETWORK_STRIDE) for side in size)
    return _divide_by_peak(_sum_resized(maps, full_size, keys)[:, : size[0], : size[1]])


@torch.no_grad()
def batch_scale_maps(model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """The CAMs of B images of equal size at each scale: (B, C, h', w') each.

    Args:
        model: a `CAM` network, (2, 3, h, w) -> (C, h', w'). Where it offers `activation(images (B, 3, h, w), mirrored)
            -> (B, C, h', w')`, the images run as one batch.
        images: the images at each scale, (B, 3, h_s, w_s) uint8 on the model's device.

    Raises `ValueError` for images that are not uint8, whose numbers could be of any range.
    """
    for at_scale in images:
        if not isinstance(at_scale, Tensor) or at_scale.dtype != torch.uint8:
            given = at_scale.dtype if isinstance(at_scale, Tensor) else type(at_scale).__name__
            raise ValueError(f"images must be tensors of torch.uint8, RGB in 0 .. 255, not {given}")
    normalized = [normalize(at_scale) for at_scale in images]
    if hasattr(model, "activation"):
        return [model.activation(at_scale, at_scale.flip(-1)) for at_scale in normalized]
    return [torch.stack([model(mirror_pair(image)) for image in at_scale]) for at_scale in normalized]


def scale_maps(model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """The same for one image, (3, h_s, w_s) at each scale: (C, h', w') each, for `merge_scales`."""
    return [maps[0] for maps in batch_scale_maps(model, [image[None] for image in images])]


def scale_maps_of_items(
    model: nn.Module, items: Sequence[Mapping[str, Any]], *, device: torch.device
) -> list[list[Tensor]]:
    """The same for images of equal size, which run as one batch: of each, (C, h', w') at each scale.

    `items`: their "images" are (3, h_s, w_s) uint8 at each scale; `device`: that of the model.
    """
    by_scale = zip(*(item["images"] for item in items), strict=True)
    batches = [torch.stack([to_device(image, device) for image in at_scale]) for at_scale in by_scale]
    maps = batch_scale_maps(model, batches)
    return [[at_scale[number] for at_scale in maps] for number in range(len(items))]


@torch.no_grad()
def cam_of_image(
    model: nn.Module, image: np.ndarray, keys: Sequence[int], *, scales: Sequence[float], device: torch.device
) -> np.ndarray:
    """Full-size CAMs (K, H, W) of the classes `keys` (0-based) of an image (H, W, 3) uint8, at several scales.

    `model`: a network of CAMs on `device`, in evaluation mode. Raises `InputError` if it gives NaN or infinity.
    """
    size = image.shape[:2]
    scaled = (torch.from_numpy(to_chw(resize_image(image, scaled_size(size, scale)))) for scale in scales)
    high_res = merge_high_res(scale_maps(model, [each.to(device) for each in scaled]), size, keys)
    if not high_res.isfinite().all():
        raise InputError("the network of the CAMs gives NaN or infinity; name other weights, or train it again.")
    return high_res.cpu().numpy()


def label_map(maps: np.ndarray, keys: Sequence[int] | np.ndarray, background_score: float) -> np.ndarray:
    """`class_ids` of maps that are an array: (K, H, W) -> (H, W) uint8."""
    return class_ids(torch.from_numpy(maps), keys, background_score).numpy()


def class_ids(maps: Tensor, keys: Sequence[int] | np.ndarray, background_score: float) -> Tensor:
    """(K, H, W) maps of the classes `keys` (0-based) -> (H, W) uint8 class ids, 0 for background, on their device.

    Arg-max over the background, with a constant score, and the classes; the background wins a draw, and so does the
    class that comes first. K may be 0. Raises `ValueError` for keys that are not the classes of K maps.
    """
    if len(keys) != len(maps):
        raise ValueError(f"{len(maps)} maps need as many keys, not {[*keys]}")
    _require_keys(keys, n_classes=IGNORE_LABEL - 1)
    if len(keys) == 0:
        return maps.new_zeros(maps.shape[1:], dtype=torch.uint8)
    ids = to_device(torch.from_numpy(np.asarray(keys, dtype=np.int64) + 1).to(torch.uint8), maps.device)
    best, first = maps.max(dim=0)
    return ids.take(first).masked_fill_(~(best > background_score), 0)


def confident_label(
    image: np.ndarray,
    high_res: np.ndarray,
    keys: Sequence[int],
    *,
    foreground_score: float,
    background_score: float,
    backend: Backend = "auto",
    device: torch.device = CPU,
) -> np.ndarray:
    """CAM -> label map of the pixels one can be sure of, for IRN's training (IRN section 4.1).

    Arg-max and dense CRF twice: with a high background score only confident foreground is left, with a low one only
    confident background.

    Args:
        image: (H, W, 3) uint8 RGB.
        high_res: (K, H, W) float32 maps of the classes `keys` (0-based).
        backend, device: of dense CRF (`misc.crf`).

    Returns:
        (H, W) uint8: a class id where the first says so, 0 where both say background, 255 elsewhere.
    """

    ranks = [label_map(high_res, range(len(keys)), score) for score in (foreground_score, background_score)]
    foreground, background = crf_inference_labels(image, ranks, n_labels=len(keys) + 1, backend=backend, device=device)
    label = np.append(0, np.asarray(keys, dtype=np.int64) + 1).astype(np.uint8)[foreground]
    label[(foreground == 0) & (background != 0)] = IGNORE_LABEL
    return label
