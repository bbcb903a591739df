"""Whole images through a segmentation network: class ids, without and with dense CRF."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from misc.crf import crf_inference_softmax
from misc.parallel import ordered_map


@torch.no_grad()
def class_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(3, H, W) uint8 RGB on the model's device -> (C, H, W) float32, summing to 1 over the classes.

    `model`: (1, 3, H, W) uint8 -> logits (1, C, H, W), as `net.deeplab.Segmenter`.
    """
    return model(image[None])[0].float().softmax(dim=0)


def plain_masks(model: nn.Module, images: Iterable[Tensor], *, device: torch.device) -> Iterator[np.ndarray]:
    """The most probable class of each pixel, (H, W) uint8, of each image, (3, H, W) uint8."""
    for image in images:
        yield class_probabilities(model, image.to(device)).argmax(dim=0).to(torch.uint8).cpu().numpy()


def plain_and_refined_masks(
    model: nn.Module, images: Iterable[Tensor], *, device: torch.device, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`plain_masks`, each with the same after dense CRF, which runs in `workers` processes beside the network."""
    inputs = (
        (image.numpy().transpose(1, 2, 0), class_probabilities(model, image.to(device)).cpu().numpy())
        for image in images
    )
    return ordered_map(_plain_and_refined, inputs, workers=workers, flag="crf_workers")


def _plain_and_refined(inputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    image, probabilities = inputs
    refined = crf_inference_softmax(image, probabilities)
    return probabilities.argmax(axis=0).astype(np.uint8), refined.astype(np.uint8)
