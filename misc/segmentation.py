"""Whole images through a segmentation network: class ids, without and with dense CRF."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.crf import Backend, crf_inference_softmax, device_of, refine_softmax
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


def plain_masks(model: nn.Module, images: Iterable[Tensor], *, device: torch.device) -> Iterator[np.ndarray]:
    """The most probable class of each pixel, (H, W) uint8, of each image, (3, H, W) uint8."""
    for image in images:
        yield class_probabilities(model, image.to(device)).argmax(dim=0).to(torch.uint8).cpu().numpy()


def plain_and_refined_masks(
    model: nn.Module, images: Iterable[Tensor], *, device: torch.device, workers: int, backend: Backend = "auto"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`plain_masks`, each with the same after dense CRF (`backend`, see `misc.crf`).

    On a GPU the CRF runs there, else in `workers` processes beside the network. These are sent the network's own
    logits: those of full size would take 64 times the memory.
    """
    if device_of(backend, device).type != "cpu":
        return (_plain_and_refined_on_device(model, image.to(device)) for image in images)

    @torch.no_grad()
    def network_logits(image: Tensor) -> np.ndarray:
        return model.network_logits(image[None].to(device)).cpu().numpy()

    inputs = ((image.numpy().transpose(1, 2, 0), network_logits(image)) for image in images)
    return ordered_map(partial(_plain_and_refined, backend=backend), inputs, workers=workers, flag="crf_workers")


def _plain_and_refined_on_device(model: nn.Module, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    probabilities = class_probabilities(model, image)
    refined = refine_softmax(image.permute(1, 2, 0), probabilities)
    plain, refined = (mask.to(torch.uint8).cpu().numpy() for mask in (probabilities.argmax(dim=0), refined))
    return plain, refined


def _plain_and_refined(inputs: tuple[np.ndarray, np.ndarray], *, backend: Backend) -> tuple[np.ndarray, np.ndarray]:
    image, logits = inputs
    probabilities = _probabilities(torch.from_numpy(logits), image.shape[:2]).numpy()
    refined = crf_inference_softmax(image, probabilities, backend=backend)
    return probabilities.argmax(axis=0).astype(np.uint8), refined.astype(np.uint8)
