"""Classifier and CAM on EfficientNet-Lite0. A module for `--cam_network` offers these two classes."""

from net.classifier import N_VOC_CLASSES, ClassActivation, Classifier
from net.efficientnet_lite import EfficientNetLite0


class Net(Classifier):
    """The classifier: `(B, 3, H, W) -> (logits (B, C), features (B, D))`."""

    def __init__(self, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(EfficientNetLite0(), n_classes)


class CAM(ClassActivation):
    """Class activation maps of the same weights: `(2, 3, H, W) -> (C, h, w)`."""

    def __init__(self, n_classes: int = N_VOC_CLASSES) -> None:
        super().__init__(EfficientNetLite0(), n_classes)
