"""DeepLab-v2 on any backbone: atrous spatial pyramid pooling and the multi-scale wrapper (Chen et al., TPAMI 2017).

A module for `--deeplab_network` offers a class `DeepLab` (a `SegmentationBase`), `n_classes` counting the background.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.deeplab import PYRAMID_SCALES, largest_logits
from misc.errors import InputError
from misc.imutils import normalize
from misc.segmentation import at_full_size
from net.backbone import Backbone, FrozenStatsBatchNorm2d, folded_once
from net.build import GUIDE, load_network
from net.weights import load_imagenet, load_starting_weights

N_VOC_LABELS = 21
ASPP_RATES = (6, 12, 18, 24)
"""Dilations at an output stride of 8 (section 3.2, ASPP-L)."""
ASPP_RATES_STRIDE = 8
ASPP_WEIGHT_STD = 0.01
SMALLEST_SIDE = 2
"""Pixels: the smallest scale of the multi-scale network halves its input."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel 3x3 convolutions with different dilations, summed.

    Weights start from N(0, 0.01), biases from 0.
    """

    def __init__(self, channels: int, n_classes: int, rates: Sequence[int] = ASPP_RATES) -> None:
        super().__init__()
        for number, rate in enumerate(rates):
            branch = nn.Conv2d(channels, n_classes, kernel_size=3, padding=rate, dilation=rate)
            nn.init.normal_(branch.weight, std=ASPP_WEIGHT_STD)
            nn.init.zeros_(branch.bias)
            self.add_module(f"c{number}", branch)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> logits (B, C, h, w).

        The taps of all branches are one 1x1 convolution, after which the few channels of the logits are shifted and
        summed rather than the many of the features: faster by far, most of all where the weights' gradients are.
        """
        branches = [*self.children()]
        if torch.compiler.is_compiling():  # torch.export can hardly reason about the sizes of what follows
            return sum(branch(features) for branch in branches)
        # A tap to the left of a pixel is, seen from its own place, one that adds to the right: hence mirrored
        taps = [branch.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2) for branch in branches]
        products = F.conv2d(features, torch.cat(taps)[..., None, None]).flatten(2)
        of_branches = products.split([len(each) for each in taps], dim=1)
        sums = [
            F.fold(each, features.shape[-2:], branch.kernel_size, branch.dilation, branch.padding)
            for each, branch in zip(of_branches, branches, strict=True)
        ]
        return sum(sums) + sum(branch.bias for branch in branches)[:, None, None]


class SegmentationBase(nn.Module):
    """Features -> ASPP: the network at one scale.

    A subclass fills `aspp` and gives `features`; `auto_start` where `auto` stands for a file of any content. Batch norm
    is frozen, its weight and bias too: of a ResNet the recipe trains convolutions alone.
    """

    aspp: ASPP

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) prepared images -> (B, D, h, w)."""
        raise NotImplementedError

    @staticmethod
    def prepare(images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) RGB in 0 .. 255 -> the float32 images that the weights expect; outside of the boxes zero.

        Whole images are uint8, training crops float32. `boxes` (B, 4) as in `misc.imutils.normalize`.
        """
        return normalize(images, boxes)

    def load_start(self, source: str) -> None:
        """Fill the network, or all but the ASPP, from `auto`, a file or `none`. Raises `InputError` for a bad file."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) prepared images -> logits (B, C, h, w)."""
        return self.aspp(self.features(images))

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """All of the backbone but its batch norms, the weights of the ASPP, and the ASPP's biases."""
        aspp = dict(self.aspp.named_parameters())
        in_aspp = {id(parameter) for parameter in aspp.values()}
        backbone = [p for p in self.parameters() if p.requires_grad and id(p) not in in_aspp]
        weights = [parameter for name, parameter in aspp.items() if name.endswith("weight")]
        return backbone, weights, [parameter for name, parameter in aspp.items() if name.endswith("bias")]


def freeze_norms(module: nn.Module) -> None:
    """Freeze the weight and bias of every batch norm (their statistics are frozen anyway)."""
    for part in module.modules():
        if isinstance(part, FrozenStatsBatchNorm2d):
            part.requires_grad_(False)


class BackboneDeepLab(SegmentationBase):
    """DeepLab on a `Backbone`, whose ImageNet weights fit exactly.

    At an output stride of 16 the ASPP's dilations are halved: the same field of view in the image. Raises `InputError`
    for a stride, such as 32, at which they would not be whole numbers.
    """

    def __init__(self, backbone: Backbone, n_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        stride = backbone.strides[-1]
        if any(rate * ASPP_RATES_STRIDE % stride for rate in ASPP_RATES):
            raise InputError(
                f"--deeplab_network: {type(backbone).__name__} has an output stride of {stride}, at which the ASPP's "
                f"dilations are no whole numbers; expected a stride such as 8 or 16; {GUIDE}."
            )
        rates = [rate * ASPP_RATES_STRIDE // stride for rate in ASPP_RATES]
        self.aspp = ASPP(backbone.channels[-1], n_classes, rates)
        freeze_norms(self)

    def features(self, images: Tensor) -> Tensor:
        return self.backbone(images)[-1]

    def load_start(self, source: str) -> None:
        if source in ("auto", "none"):
            load_imagenet(self.backbone, source, flag="deeplab_init_weights")
        else:
            load_starting_weights(self, source)


class MultiScale(nn.Module):
    """The network at the scales 1, 0.5 and 0.75 of its input, and the maximum of the three logit maps."""

    def __init__(self, base: SegmentationBase) -> None:
        super().__init__()
        self.base = base

    def scale_logits(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) prepared images -> logits at the scales 1, 0.5, 0.75, each at its own resolution."""
        # The factor itself is the ratio, whatever the floored size is
        resized = [F.interpolate(images, scale_factor=s, mode="bilinear", align_corners=False) for s in PYRAMID_SCALES]
        with folded_once():
            return [self.base(x) for x in (images, *resized)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) prepared images -> logits (B, C, h, w), the maximum over the scales."""
        return largest_logits(self.scale_logits(images))


class Segmenter(nn.Module):
    """What a user calls: photographs in, logits at their size out."""

    def __init__(self, network: MultiScale) -> None:
        super().__init__()
        self.network = network

    def network_logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> logits (B, C, h, w) float32, at the network's own resolution."""
        prepared = self.network.base.prepare(images)
        # A plain question of each side, which torch.export answers from the range of the sizes
        if any(side < SMALLEST_SIDE for side in images.shape[-2:]):
            prepared = F.interpolate(prepared, [max(side, SMALLEST_SIDE) for side in images.shape[-2:]])
        return self.network(prepared)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> logits (B, C, H, W) float32."""
        return at_full_size(self.network_logits(images), images.shape[-2:])


def load_segmenter(module_name: str, weights: str, device: torch.device, *, n_classes: int) -> Segmenter:
    """The network of a module with the weights of a checkpoint, in evaluation mode. Raises `InputError` for either."""
    return Segmenter(MultiScale(load_network(module_name, "DeepLab", weights, device, n_classes=n_classes))).eval()
