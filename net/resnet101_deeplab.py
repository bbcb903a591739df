"""DeepLab-v2 on torchvision's ResNet-101 with output stride 8, which takes torchvision's weights as they are."""

from net.backbone import dilated_resnet101
from net.deeplab import N_VOC_LABELS, BackboneDeepLab


class DeepLab(BackboneDeepLab):
    """`(B, 3, H, W) -> (B, C, h, w)`; a module for `--deeplab_network` offers this class."""

    def __init__(self, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__(dilated_resnet101(), n_classes)
