"""Classifier and CAM on a model of timm. A module for `--cam_network` offers these two classes."""

from net.classifier import N_VOC_CLASSES, ClassActivation, Classifier
from net.timm_backbone import TimmBackbone


class Net(Classifier):
    """The classifier: `(B, 3, H, W) -> (logits (B, C), features (B, D))`."""

    def __init__(self, backbone: str, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(TimmBackbone(backbone), n_classes)


class CAM(ClassActivation):
    """Class activation maps of the same weights: `(2, 3, H, W) -> (C, h, w)`."""

    def __init__(self, backbone: str, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(TimmBackbone(backbone), n_classes)
