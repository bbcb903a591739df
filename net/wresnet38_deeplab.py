"""DeepLab-v2 on ResNet-38 with output stride 8, which takes the state dicts of its public PyTorch ports as they are."""

from net.deeplab import N_VOC_LABELS, BackboneDeepLab
from net.wresnet38 import WideResNet38


class DeepLab(BackboneDeepLab):
    """`(B, 3, H, W) -> (B, C, h, w)`; a module for `--deeplab_network` offers this class."""

    def __init__(self, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__(WideResNet38(), n_classes)
