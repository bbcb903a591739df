"""Training of DeepLab-v2 (Chen et al., TPAMI 2017): its input, the losses of the multi-scale network, the optimiser."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.imutils import IGNORE_LABEL, nearest_labels, resize_label
from misc.run.distributed import sum_over_processes
from misc.torchutils import PolySGD

PYRAMID_SCALES = (0.5, 0.75)
"""Scales of the input beside 1 (section 4.1.2)."""
MOMENTUM = 0.9
ASPP_WEIGHT_RATE, ASPP_BIAS_RATE = 10, 20
"""Learning rates of the ASPP as multiples of the backbone's."""
DECAY_INTERVAL = 10
"""Steps between two updates of the learning rate."""
BACKGROUND = 0


def scaled_pair(image: np.ndarray, label: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A training image and its label map at a random scale, as deeplab-pytorch resizes them.

    OpenCV's bilinear on float32 does not antialias: what it makes of a smaller scale is not what PIL makes of it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 ids.
        scale: of both sides, which are floored (at least one pixel).

    Returns:
        (h, w, 3) float32 RGB in 0 .. 255, and (h, w) uint8 by PIL's nearest.
    """
    height, width = (max(1, int(side * scale)) for side in label.shape)
    resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return resized, resize_label(label, (height, width))


def largest_logits(scale_logits: Sequence[Tensor]) -> Tensor:
    """Logit maps (B, C, h_s, w_s) of several scales -> their maximum, at the size of the first."""
    first, *others = scale_logits
    size = first.shape[-2:]
    resized = [F.interpolate(logits, size, mode="bilinear", align_corners=False) for logits in others]
    return torch.stack([first, *resized]).amax(dim=0)


def _means_of(kinds: Sequence[Tensor], logits: Tensor) -> Tensor:
    """The mean cross entropy of each kind of pixels, of all processes' images; 0 for a kind without any.

    `kinds`: for each one the (B, h, w) int64 labels, 255 at all other pixels.
    """
    sums = [F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum") for labels in kinds]
    counts = [(labels != IGNORE_LABEL).sum().to(logits) for labels in kinds]
    totals, n_pixels = sum_over_processes(torch.stack([torch.stack(sums), torch.stack(counts)]))
    return totals / n_pixels.clamp_min(1)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that count, of all processes' images; 0 where none does.

    Args:
        logits: (B, C, h, w).
        labels: (B, h, w) int64 ids, 255 ignored.
    """
    return _means_of([labels], logits).sum()


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of two means: cross entropy over the background pixels and over the foreground pixels of the batch.

    The batch is that of all processes. A kind of which it has no pixels counts 0. (The balanced seeding loss of DSRG,
    Huang et al., CVPR 2018.)

    Args:
        logits: (B, C, h, w).
        labels: (B, h, w) int64 ids, 0 the background, 255 ignored.
    """
    is_background = labels == BACKGROUND
    kinds = [labels.masked_fill(others, IGNORE_LABEL) for others in (~is_background, is_background)]
    return _means_of(kinds, logits).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "balanced": balanced_cross_entropy,
    "plain": plain_cross_entropy,
}
"""What `--deeplab_loss` names."""


def multiscale_losses(scale_logits: Sequence[Tensor], labels: Tensor, *, loss: str = "plain") -> dict[str, Tensor]:
    """The cross entropies of the logit maps at scale 1, 0.5, 0.75 and of their maximum, each at its own resolution.

    Args:
        scale_logits: (B, C, h_s, w_s) of each scale.
        labels: (B, H, W) uint8 ids, 255 ignored; reduced to each map's size as PIL's nearest does.
        loss: one of `LOSSES`.

    Returns:
        `scale_1`, `scale_0.5`, `scale_0.75`, `max`, and `total`, their sum.
    """
    maps = [*scale_logits, largest_logits(scale_logits)]
    names = [*(f"scale_{scale:g}" for scale in (1, *PYRAMID_SCALES)), "max"]
    losses = {
        name: LOSSES[loss](logits, nearest_labels(labels, logits.shape[-2:]).long())
        for name, logits in zip(names, maps, strict=True)
    }
    return {**losses, "total": sum(losses.values())}


def deeplab_optimizer(
    backbone: list[nn.Parameter],
    aspp_weights: list[nn.Parameter],
    aspp_biases: list[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    max_step: int,
) -> PolySGD:
    """SGD with momentum 0.9; the ASPP's weights learn 10 times, its biases 20 times as fast, these without decay."""
    groups = [
        {"params": backbone, "lr": lr, "weight_decay": weight_decay},
        {"params": aspp_weights, "lr": ASPP_WEIGHT_RATE * lr, "weight_decay": weight_decay},
        {"params": aspp_biases, "lr": ASPP_BIAS_RATE * lr, "weight_decay": 0.0},
    ]
    return PolySGD(groups, lr=lr, momentum=MOMENTUM, max_step=max_step, decay_interval=DECAY_INTERVAL)
