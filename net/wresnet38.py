"""ResNet-38, wide instead of deep (Wu et al., "Wider or Deeper", Pattern Recognition 2019), with output stride 8.

The layers have the names of the public PyTorch ports of this network, so that their state dicts fit. Blocks begin with
the batch norm ("pre-activation"), and the features end with one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from net.backbone import DILATED_STRIDES, Backbone, FrozenStatsBatchNorm2d

STEM_CHANNELS = 64
# Of each group of blocks of two 3x3 convolutions: name, blocks, inner and outer channels, stride, dilation
GROUPS = (
    ("b2", 3, 128, 128, 2, 1),
    ("b3", 3, 256, 256, 2, 1),
    ("b4", 6, 512, 512, 2, 1),
    ("b5", 3, 512, 1024, 1, 2),
)
# Of the last two blocks, which are bottlenecks: name, channels, dilation, dropout
BOTTLENECKS = (("b6", 2048, 4, 0.3), ("b7", 4096, 4, 0.5))


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


class _Block(nn.Module):
    """Norm, 3x3, norm, 3x3; the shortcut is a convolution of the activated input where the shape changes.

    The first convolution of a group that begins to be dilated is not dilated yet.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.bn_branch2a = FrozenStatsBatchNorm2d(inputs)
        first_dilation = 1 if first else dilation
        self.conv_branch2a = _convolution(inputs, inner, 3, stride=stride, dilation=first_dilation)
        self.bn_branch2b1 = FrozenStatsBatchNorm2d(inner)
        self.conv_branch2b1 = _convolution(inner, outputs, 3, dilation=dilation)
        self.has_convolution = inputs != outputs or stride != 1
        if self.has_convolution:
            self.conv_branch1 = _convolution(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(activated) if self.has_convolution else x
        inner = self.bn_branch2b1.after(self.conv_branch2a, activated, relu=True)
        return shortcut + self.conv_branch2b1(inner)


class _Bottleneck(nn.Module):
    """Norm, 1x1, norm, dropout, dilated 3x3, norm, dropout, 1x1; the shortcut is a convolution."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = FrozenStatsBatchNorm2d(inputs)
        self.conv_branch2a = _convolution(inputs, outputs // 4, 1)
        self.bn_branch2b1 = FrozenStatsBatchNorm2d(outputs // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _convolution(outputs // 4, outputs // 2, 3, dilation=dilation)
        self.bn_branch2b2 = FrozenStatsBatchNorm2d(outputs // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = _convolution(outputs // 2, outputs, 1)
        self.conv_branch1 = _convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn_branch2a(x))
        inner = self.dropout_2b1(self.bn_branch2b1.after(self.conv_branch2a, activated, relu=True))
        inner = self.dropout_2b2(self.bn_branch2b2.after(self.conv_branch2b1, inner, relu=True))
        return self.conv_branch1(activated) + self.conv_branch2b2(inner)


class WideResNet38(Backbone):
    """ResNet-38 without its classifier. It expects images normalised with ImageNet's mean and deviation."""

    channels = (256, 256, 512, 1024, 4096)
    strides = DILATED_STRIDES

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = _convolution(3, STEM_CHANNELS, 3)
        inputs = STEM_CHANNELS
        for group, n_blocks, inner, outputs, stride, dilation in GROUPS:
            for number in range(n_blocks):
                first = number == 0
                block = _Block(inputs, inner, outputs, stride=stride if first else 1, dilation=dilation, first=first)
                self.add_module(group if first else f"{group}_{number}", block)
                inputs = outputs
        for name, outputs, dilation, dropout in BOTTLENECKS:
            self.add_module(name, _Bottleneck(inputs, outputs, dilation=dilation, dropout=dropout))
            inputs = outputs
        self.bn7 = FrozenStatsBatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.to(memory_format=torch.channels_last)

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        blocks = {name: block for name, block in self.named_children() if name.startswith("b") and name != "bn7"}
        of_group = {group: [blocks[name] for name in blocks if name.split("_")[0] == group] for group, *_ in GROUPS}
        return (
            (self.conv1a, *of_group["b2"], of_group["b3"][0]),
            of_group["b3"][1:],
            of_group["b4"],
            of_group["b5"],
            (blocks["b6"], blocks["b7"], self.bn7, self.relu),
        )
