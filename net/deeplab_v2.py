"""DeepLab-v2 as published: ResNet-101 of the MSRA kind, with the layer names of that family of checkpoints.

MSRA's ResNet has the stride of a stage in the first 1x1 convolution; torchvision's, in the 3x3.
`net.resnet101_deeplab` is the same on torchvision's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from misc.imutils import subtract_bgr_mean
from misc.run.device import backbone_precision
from misc.run.recipes import DEEPLAB_START
from net.backbone import FrozenStatsBatchNorm2d, run_in_order
from net.deeplab import ASPP, N_VOC_LABELS, MultiScale, SegmentationBase, freeze_norms
from net.weights import load_starting_weights

__all__ = ["DeepLab", "DeepLabV2", "MultiScale"]

STEM_CHANNELS = 64
EXPANSION = 4
# Of each stage: blocks, inner channels, stride, dilation
STAGES = {
    "layer2": (3, 64, 1, 1),
    "layer3": (4, 128, 2, 1),
    "layer4": (23, 256, 1, 2),
    "layer5": (3, 512, 1, 4),
}


def _conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, bn=FrozenStatsBatchNorm2d(outputs)))


class _Bottleneck(nn.Module):
    """1x1 (with the stride), dilated 3x3, 1x1, and the shortcut, which has a convolution where a stage begins."""

    def __init__(self, inputs: int, inner: int, *, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.reduce = _conv_bn(inputs, inner, 1, stride=stride)
        self.conv3x3 = _conv_bn(inner, inner, 3, dilation=dilation)
        self.increase = _conv_bn(inner, outputs, 1)
        self.shortcut = _conv_bn(inputs, outputs, 1, stride=stride) if first else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.reduce.bn.after(self.reduce.conv, x, relu=True)
        inner = self.conv3x3.bn.after(self.conv3x3.conv, inner, relu=True)
        return self.increase.bn.after(self.increase.conv, inner, shortcut=run_in_order(self.shortcut, x), relu=True)


def _stage(inputs: int, n_blocks: int, inner: int, stride: int, dilation: int) -> nn.Sequential:
    blocks = OrderedDict()
    for number in range(n_blocks):
        first = number == 0
        blocks[f"block{number + 1}"] = _Bottleneck(
            inputs if first else EXPANSION * inner,
            inner,
            stride=stride if first else 1,
            dilation=dilation,
            first=first,
        )
    return nn.Sequential(blocks)


class DeepLabV2(SegmentationBase):
    """ResNet-101 (MSRA) with output stride 8 -> ASPP: `(B, 3, H, W) -> (B, C, h, w)`."""

    auto_start = DEEPLAB_START

    def __init__(self, n_classes: int = N_VOC_LABELS) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            OrderedDict(
                conv1=_conv_bn(3, STEM_CHANNELS, 7, stride=2),
                relu=nn.ReLU(),
                # MaxPool2d(ceil_mode=True) without its case distinction, so that torch.export admits any size: a zero
                # beside values after a ReLU changes no maximum
                border=nn.ZeroPad2d((0, 1, 0, 1)),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        inputs = STEM_CHANNELS
        for name, (n_blocks, inner, stride, dilation) in STAGES.items():
            self.add_module(name, _stage(inputs, n_blocks, inner, stride, dilation))
            inputs = EXPANSION * inner
        self.aspp = ASPP(inputs, n_classes)
        freeze_norms(self)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        with backbone_precision(images.device):
            x = run_in_order([*self.layer1.conv1, *list(self.layer1)[1:]], x)
            for name in STAGES:
                x = getattr(self, name)(x)
        return x.to(images.dtype)

    @staticmethod
    def prepare(images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """As Caffe's networks expect them: see `misc.imutils.subtract_bgr_mean`."""
        return subtract_bgr_mean(images, boxes)

    def load_start(self, source: str) -> None:
        if source != "none":
            load_starting_weights(self, self.auto_start if source == "auto" else source)


DeepLab = DeepLabV2
