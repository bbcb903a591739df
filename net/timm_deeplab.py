"""DeepLab-v2 on a model of timm, with output stride 16."""

from net.deeplab import N_VOC_LABELS, BackboneDeepLab
from net.timm_backbone import TimmBackbone


class DeepLab(BackboneDeepLab):
    """`(B, 3, H, W) -> (B, C, h, w)`; a module for `--deeplab_network` offers this class."""

    def __init__(self, backbone: str, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__(TimmBackbone(backbone), n_classes)
