"""IRN on ResNet-18. A module for `--irn_network` offers these two classes."""

from net import irn
from net.backbone import resnet18


class EdgeDisplacement(irn.EdgeDisplacement):
    """Inference: `(2, 3, H, W) -> (edge (1, h, w), displacement (2, h, w))`."""

    def __init__(self) -> None:
        super().__init__(resnet18())


class AffinityDisplacementLoss(irn.AffinityDisplacementLoss):
    """Training: images and reduced label maps -> the losses."""

    def __init__(self, radius: int = irn.TRAIN_RADIUS) -> None:
        super().__init__(resnet18(), radius)
