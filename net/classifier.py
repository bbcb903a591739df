"""The multi-label classifier and its class activation maps, on any backbone (W-OoD section 3, IRN section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from net.backbone import Backbone

N_VOC_CLASSES = 20
FROZEN_STAGES = (0, 2)
"""Stem, layer1 and layer2 keep their ImageNet weights: they are not in the original's optimiser."""


class Classifier(nn.Module):
    """Backbone -> global average pool -> 1x1 convolution without bias.

    Trainable: the last two stages, with the weight and bias of their batch norms, and the classifier.
    """

    def __init__(self, backbone: Backbone, n_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], n_classes, kernel_size=1, bias=False)
        for parameter in backbone.stage_parameters(*FROZEN_STAGES):
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images -> logits (B, C) and pooled features (B, D)."""
        pooled = self.backbone(images)[-1].mean(dim=(2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1), pooled.flatten(1)

    def logit_maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C, h, w): the classifier at every cell of the last stage."""
        return self.classifier(self.backbone(images)[-1])

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trainable parameters of the backbone, and those of the classifier."""
        backbone = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return backbone, list(self.classifier.parameters())


class ClassActivation(Classifier):
    """The same network and weights, read as class activation maps."""

    def forward(self, pair: Tensor) -> Tensor:
        """(2, 3, H, W): an image and its mirror image -> (C, h, w), relu(first) + mirrored relu(second)."""
        return self.activation(pair[:1], pair[1:])[0]

    def activation(self, images: Tensor, mirrored: Tensor) -> Tensor:
        """`forward` of B images (B, 3, H, W) and their mirror images, in the same order -> (B, C, h, w)."""
        maps = F.relu(self.logit_maps(torch.cat([images, mirrored])))
        of_images, of_mirrored = maps.chunk(2)
        return of_images + of_mirrored.flip(-1)
