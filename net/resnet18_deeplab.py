"""DeepLab-v2 on ResNet-18 with output stride 16, for small data sets and quick runs."""

from net.backbone import resnet18
from net.deeplab import N_VOC_LABELS, BackboneDeepLab


class DeepLab(BackboneDeepLab):
    """`(B, 3, H, W) -> (B, C, h, w)`; a module for `--deeplab_network` offers this class."""

    def __init__(self, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__(resnet18(), n_classes)
