"""Whole images through a segmentation network: class ids, without and with dense CRF."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.crf import Backend, crf_inference_softmax, device_of, refine_softmax
from misc.errors import InputError
from misc.run.device import to_device
from misc.run.fitting import one_image
from misc.run.parallel import ordered_map


def at_full_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) logits of a network -> (B, C, H, W), bilinear."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def pixel_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(3, H, W) uint8 RGB on the model's device -> (C, H, W) float32, summing to 1 over the classes.

    `model`: as `net.deeplab.Segmenter`, whose `network_logits` takes (1, 3, H, W) uint8.
    """
    return _probabilities(model.network_logits(image[None]), image.shape[-2:])


def _probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return at_full_size(logits.float(), size)[0].softmax(dim=0)


def masks_of_images(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    device: torch.device,
    paths: Sequence[str | Path],
    crf: bool,
    workers: int,
    backend: Backend = "auto",
) -> Iterator[tuple[np.ndarray, ...]]:
    """The most probable class of each pixel, (H, W) uint8, of each image, (3, H, W) uint8; with `crf` also refined.

    On a GPU dense CRF (`backend`, see `misc.crf`) runs there, else in `workers` processes beside the network. These are
    sent the network's own logits: those of full size would take 64 times the memory at stride 8.

    `paths`: the images' files. Raises `InputError`, naming one, where the network gives NaN or infinity.
    """
    pairs = zip(paths, images, strict=True)
    if not crf:
        return ((_plain(model, image, device, path),) for path, image in pairs)
    if device_of(backend, device).type != "cpu":
        return (_plain_and_refined_on_device(model, image, device, path) for path, image in pairs)

    @torch.no_grad()
    def network_logits(image: Tensor, path: str | Path) -> np.ndarray:
        with one_image(tuple(image.shape[1:]), path):
            logits = model.network_logits(to_device(image, device)[None]).cpu().numpy()
        _require_finite(bool(np.isfinite(logits).all()), path)
        return logits

    inputs = ((image.numpy().transpose(1, 2, 0), network_logits(image, path)) for path, image in pairs)
    return ordered_map(partial(_plain_and_refined, backend=backend), inputs, workers=workers, flag="crf_workers")


def _require_finite(is_finite: bool, path: str | Path) -> None:
    if not is_finite:
        raise InputError(
            f"--deeplab_weights_name: the network gives NaN or infinity for {path}; name other weights, or train these "
            "again with a lower --deeplab_learning_rate."
        )


def _plain(model: nn.Module, image: Tensor, device: torch.device, path: str | Path) -> np.ndarray:
    with one_image(tuple(image.shape[1:]), path):
        probabilities = pixel_probabilities(model, to_device(image, device))
        is_finite = probabilities.isfinite().all()
        mask = probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()  # waits for the device: asking is free
    _require_finite(bool(is_finite), path)
    return mask


def _plain_and_refined_on_device(
    model: nn.Module, image: Tensor, device: torch.device, path: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    with one_image(tuple(image.shape[1:]), path):
        image = to_device(image, device)
        probabilities = pixel_probabilities(model, image)
        _require_finite(bool(probabilities.isfinite().all()), path)
        refined = refine_softmax(image.permute(1, 2, 0), probabilities)
        plain, refined = (mask.to(torch.uint8).cpu().numpy() for mask in (probabilities.argmax(dim=0), refined))
    return plain, refined


def _plain_and_refined(inputs: tuple[np.ndarray, np.ndarray], *, backend: Backend) -> tuple[np.ndarray, np.ndarray]:
    image, logits = inputs
    probabilities = _probabilities(torch.from_numpy(logits), image.shape[:2]).numpy()
    refined = crf_inference_softmax(image, probabilities, backend=backend)
    return probabilities.argmax(axis=0).astype(np.uint8), refined.astype(np.uint8)
