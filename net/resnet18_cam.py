"""Classifier and CAM on ResNet-18. A module for `--cam_network` offers these two classes."""

from net.backbone import resnet18
from net.classifier import N_VOC_CLASSES, ClassActivation, Classifier


class Net(Classifier):
    """The classifier: `(B, 3, H, W) -> (logits (B, C), features (B, D))`."""

    def __init__(self, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(resnet18(), n_classes)


class CAM(ClassActivation):
    """Class activation maps of the same weights: `(2, 3, H, W) -> (C, h, w)`."""

    def __init__(self, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(resnet18(), n_classes)
