"""The multi-label classifier: what it is trained for, and what it says of images (W-OoD section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.imutils import normalize


def classification_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(B, 3, H, W) normalised images, (B, C) labels 0/1 -> (B,) multi-label soft margin losses.

    Args:
        model: a classifier `Net`, (B, 3, H, W) -> (logits (B, C), features).
    """
    logits, _ = model(images)
    return F.multilabel_soft_margin_loss(logits, labels, reduction="none")


@torch.no_grad()
def class_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, h, w) uint8 on the model's device -> (B, C): the probability of each class, independent of the others.

    NaN where the network gives NaN or infinity. `model`: as for `classification_losses`.
    """
    logits, _ = model(normalize(images))
    logits = logits.float()
    return torch.where(logits.isfinite(), logits.sigmoid(), torch.nan)
