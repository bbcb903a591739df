"""Whole images through a segmentation network: class ids, without and with dense CRF."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.crf import crf_inference_softmax
from misc.errors import InputError
from misc.run.parallel import ordered_map


def at_full_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) logits of a network -> (B, C, H, W), bilinear."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def class_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(3, H, W) uint8 RGB on the model's device -> (C, H, W) float32, summing to 1 over the classes.

    `model`: as `net.deeplab.Segmenter`, whose `network_logits` takes (1, 3, H, W) uint8.
    """
    return _probabilities(model.network_logits(image[None]), image.shape[-2:])


def _probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return at_full_size(logits.float(), size)[0].softmax(dim=0)


def plain_masks(
    model: nn.Module, images: Iterable[Tensor], *, device: torch.device, paths: Sequence[Path]
) -> Iterator[np.ndarray]:
    """The most probable class of each pixel, (H, W) uint8, of each image, (3, H, W) uint8.

    `paths`: the images' files. Raises `InputError`, naming one, where the network gives NaN or infinity.
    """
    for path, image in zip(paths, images, strict=True):
        probabilities = class_probabilities(model, image.to(device))
        is_finite = probabilities.isfinite().all()
        mask = probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()  # waits for the device, so that asking is free
        _require_finite(bool(is_finite), path)
        yield mask


def plain_and_refined_masks(
    model: nn.Module, images: Iterable[Tensor], *, device: torch.device, paths: Sequence[Path], workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`plain_masks`, each with the same after dense CRF, which runs in `workers` processes beside the network.

    The processes are sent the network's own logits: those of full size would take 64 times the memory.
    """

    @torch.no_grad()
    def network_logits(image: Tensor, path: Path) -> np.ndarray:
        logits = model.network_logits(image[None].to(device)).cpu().numpy()
        _require_finite(bool(np.isfinite(logits).all()), path)
        return logits

    pairs = zip(paths, images, strict=True)
    inputs = ((image.numpy().transpose(1, 2, 0), network_logits(image, path)) for path, image in pairs)
    return ordered_map(_plain_and_refined, inputs, workers=workers, flag="crf_workers")


def _require_finite(is_finite: bool, path: Path) -> None:
    if not is_finite:
        raise InputError(
            f"--deeplab_weights_name: the network gives NaN or infinity for {path}; name other weights, or train these "
            "again with a lower --deeplab_learning_rate."
        )


def _plain_and_refined(inputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    image, logits = inputs
    probabilities = _probabilities(torch.from_numpy(logits), image.shape[:2]).numpy()
    refined = crf_inference_softmax(image, probabilities)
    return probabilities.argmax(axis=0).astype(np.uint8), refined.astype(np.uint8)
