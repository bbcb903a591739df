"""The inter-pixel relation network: class boundaries and displacements, on any backbone (IRN sections 4 and 5)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.errors import InputError
from misc.files.camfile import MAP_STRIDE
from misc.imutils import cells_of
from misc.pair_losses import pair_losses
from net.backbone import N_STAGES, Backbone
from net.build import GUIDE

TRAIN_RADIUS = 10
EDGE_CHANNELS = 32
MIN_PADDED_SIDE, PAD_MULTIPLE = 512, 16


class MeanShift(nn.Module):
    """In evaluation, subtract a stored vector: the mean displacement over the data set. In training, do nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean.view(1, -1, 1, 1)


class _Upsample(nn.Upsample):
    """Bilinear upsampling by a whole factor, on CUDA as two matrix products.

    PyTorch's kernel there gives a thread one pixel of all channels and images, so that small maps of many channels
    leave most of the GPU idle. With TF32 the products round the maps as the convolutions after them do.
    """

    def __init__(self, factor: int) -> None:
        super().__init__(scale_factor=factor, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._as_products(x) if x.device.type == "cuda" else super().forward(x)

    def _as_products(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        columns = self._weights(width, x)
        rows = columns if height == width else self._weights(height, x)
        return rows @ (x @ columns.T)

    def _weights(self, n_cells: int, like: Tensor) -> Tensor:
        """(n_cells * factor, n_cells): what each cell adds to each pixel, along one side."""
        unit_vectors = torch.eye(n_cells, device=like.device, dtype=like.dtype)[None]
        return F.interpolate(unit_vectors, scale_factor=self.scale_factor, mode="linear", align_corners=False)[0].T


def _head(in_channels: int, out_channels: int, *, groups: int, upsample: int) -> nn.Sequential:
    """1x1 convolution, group norm, upsampling, ReLU, in this order."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.GroupNorm(groups, out_channels),
    ]
    if upsample > 1:
        layers.append(_Upsample(upsample))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _crop_like(x: Tensor, reference: Tensor) -> Tensor:
    return x[..., : reference.shape[-2], : reference.shape[-1]]


class AffinityDisplacement(nn.Module):
    """Edge and displacement heads on the five stages of a frozen backbone.

    The backbone only extracts features: it has no gradients and is always in evaluation mode.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        channels, strides = tuple(backbone.channels), tuple(backbone.strides)
        is_sound = len(channels) == len(strides) == N_STAGES and not any(stride % MAP_STRIDE for stride in strides)
        if not is_sound or strides[:2] != (MAP_STRIDE, MAP_STRIDE):
            raise InputError(
                f"--irn_network: {type(backbone).__name__} has stages of {channels} channels at strides {strides}; "
                f"expected five stages, at strides 4, 4 and multiples of 4; {GUIDE}."
            )
        c1, c2, c3, c4, c5 = channels
        to_edge = [stride // MAP_STRIDE for stride in strides]
        to_tap3 = [max(1, stride // strides[2]) for stride in strides]

        self.fc_edge1 = _head(c1, EDGE_CHANNELS, groups=4, upsample=to_edge[0])
        self.fc_edge2 = _head(c2, EDGE_CHANNELS, groups=4, upsample=to_edge[1])
        self.fc_edge3 = _head(c3, EDGE_CHANNELS, groups=4, upsample=to_edge[2])
        self.fc_edge4 = _head(c4, EDGE_CHANNELS, groups=4, upsample=to_edge[3])
        self.fc_edge5 = _head(c5, EDGE_CHANNELS, groups=4, upsample=to_edge[4])
        self.fc_edge6 = nn.Conv2d(5 * EDGE_CHANNELS, 1, kernel_size=1)

        self.fc_dp1 = _head(c1, 64, groups=8, upsample=1)
        self.fc_dp2 = _head(c2, 128, groups=16, upsample=1)
        self.fc_dp3 = _head(c3, 256, groups=16, upsample=1)
        self.fc_dp4 = _head(c4, 256, groups=16, upsample=to_tap3[3])
        self.fc_dp5 = _head(c5, 256, groups=16, upsample=to_tap3[4])
        self.fc_dp6 = _head(768, 256, groups=16, upsample=to_edge[2])
        self.fc_dp7 = nn.Sequential(
            *_head(448, 256, groups=16, upsample=1), nn.Conv2d(256, 2, kernel_size=1, bias=False)
        )
        self.mean_shift = MeanShift(2)

    def train(self, mode: bool = True) -> "AffinityDisplacement":
        super().train(mode)
        self.backbone.eval()
        return self

    def edge_and_displacement(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images -> edge logits (B, 1, h, w) and displacement (B, 2, h, w) at stride 4.

        Displacement channel 0 is y, channel 1 is x; the unit is one cell.
        """
        with torch.no_grad():
            taps = self.backbone(images)
        if not self.training:
            # The CPU's group norm rounds worse where channels are last in memory (up to 1e-4)
            taps = [tap.contiguous() for tap in taps]
        x1, x2, x3, x4, x5 = taps

        edges = (self.fc_edge1(x1), self.fc_edge2(x2), self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5))
        edge = self.fc_edge6(torch.cat([_crop_like(e, x2) for e in edges], dim=1))

        dp1, dp2, dp3 = self.fc_dp1(x1), self.fc_dp2(x2), self.fc_dp3(x3)
        dp4, dp5 = (_crop_like(dp, dp3) for dp in (self.fc_dp4(x4), self.fc_dp5(x5)))
        dp_up3 = _crop_like(self.fc_dp6(torch.cat([dp3, dp4, dp5], dim=1)), dp2)
        displacement = self.mean_shift(self.fc_dp7(torch.cat([dp1, dp2, dp_up3], dim=1)))
        return edge, displacement

    forward = edge_and_displacement

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the edge branch, and those of the displacement branch."""
        heads = [(name, list(module.parameters())) for name, module in self.named_children()]
        edge = [parameter for name, parameters in heads if name.startswith("fc_edge") for parameter in parameters]
        displacement = [parameter for name, parameters in heads if name.startswith("fc_dp") for parameter in parameters]
        return edge, displacement


def _padded_side(side: int) -> int:
    return max(MIN_PADDED_SIDE, math.ceil(side / PAD_MULTIPLE) * PAD_MULTIPLE)


class EdgeDisplacement(AffinityDisplacement):
    """Inference on a whole image and its mirror image."""

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """(2, 3, H, W) normalised image and mirror image -> edge (1, h, w) in [0, 1], displacement (2, h, w).

        h, w = ceil(H / 4), ceil(W / 4). The input is zero-padded at the right and the bottom to 512 x 512 (a quirk of
        the original, kept: the group norms see the padding); a longer side is padded to the next multiple of 16,
        where the original breaks.
        """
        return self._of_pairs([pair])[0]

    def batch(self, pairs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """`forward` of several pairs that are padded to one size, as one batch; equal up to rounding.

        A subclass with a `forward` of its own is called pair by pair.
        """
        if type(self).forward is not EdgeDisplacement.forward:
            return [self(pair) for pair in pairs]
        return self._of_pairs(pairs)

    def _of_pairs(self, pairs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        sizes = [tuple(pair.shape[-2:]) for pair in pairs]
        padded = [F.pad(pair, _padding(size)) for pair, size in zip(pairs, sizes, strict=True)]
        edges, displacements = self.edge_and_displacement(torch.cat(padded))
        outputs = []
        for number, (height, width) in enumerate(sizes):
            h, w = cells_of((height, width))
            edge, mirrored = edges[2 * number : 2 * number + 2, :, :h, :w]
            displacement = displacements[2 * number, :, :h, :w]
            outputs.append((torch.sigmoid(edge / 2 + mirrored.flip(-1) / 2), displacement))
        return outputs

    @staticmethod
    def padded_size(size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of an image -> the size that it is padded to."""
        return _padded_side(size[0]), _padded_side(size[1])


def _padding(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What `F.pad` adds to an image of (H, W)."""
    return 0, _padded_side(size[1]) - size[1], 0, _padded_side(size[0]) - size[0]


class AffinityDisplacementLoss(AffinityDisplacement):
    """Training: the heads with their losses on pairs of cells."""

    def __init__(self, backbone: Backbone, radius: int) -> None:
        super().__init__(backbone)
        self.radius = radius

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(B, 3, 4h, 4w) normalised images, (B, h, w) uint8 labels with 255 for unsure -> the losses.

        The dict is that of `misc.pair_losses.pair_losses`: scalars pos, neg, dp_fg, dp_bg and total.
        """
        edge, displacement = self.edge_and_displacement(images)
        return pair_losses(torch.sigmoid(edge), displacement, labels, radius=self.radius)
