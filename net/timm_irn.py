"""IRN on a model of timm. A module for `--irn_network` offers these two classes."""

from net import irn
from net.timm_backbone import TimmBackbone


class EdgeDisplacement(irn.EdgeDisplacement):
    """Inference: `(2, 3, H, W) -> (edge (1, h, w), displacement (2, h, w))`."""

    def __init__(self, backbone: str) -> None:
        super().__init__(TimmBackbone(backbone))


class AffinityDisplacementLoss(irn.AffinityDisplacementLoss):
    """Training: images and reduced label maps -> the losses."""

    def __init__(self, backbone: str, radius: int = irn.TRAIN_RADIUS) -> None:
        super().__init__(TimmBackbone(backbone), radius)
