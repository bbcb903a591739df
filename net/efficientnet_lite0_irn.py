"""IRN on EfficientNet-Lite0. A module for `--irn_network` offers these two classes."""

from net import irn
from net.efficientnet_lite import EfficientNetLite0


class EdgeDisplacement(irn.EdgeDisplacement):
    """Inference: `(2, 3, H, W) -> (edge (1, h, w), displacement (2, h, w))`."""

    def __init__(self) -> None:
        super().__init__(EfficientNetLite0())


class AffinityDisplacementLoss(irn.AffinityDisplacementLoss):
    """Training: images and reduced label maps -> the losses."""

    def __init__(self, radius: int = irn.TRAIN_RADIUS) -> None:
        super().__init__(EfficientNetLite0(), radius)
