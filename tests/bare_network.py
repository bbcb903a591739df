"""Networks that share no code with `net/`: they have what docs/own_networks.md lists, and no more."""

import torch
from torch import Tensor, nn

from misc.imutils import normalize
from misc.pair_losses import pair_losses


class Net(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        # Called backbone.0.0.weight, which in the original's files means another layer
        self.backbone = nn.Sequential(nn.Sequential(nn.Conv2d(3, 12, 9, stride=8, padding=4), nn.ReLU()))
        self.classifier = nn.Conv2d(12, n_classes, 1, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.backbone(images).mean(dim=(2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1), pooled.flatten(1)

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return list(self.backbone.parameters()), list(self.classifier.parameters())


class CAM(Net):
    def logit_maps(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))

    def forward(self, pair: Tensor) -> Tensor:
        maps = self.logit_maps(pair).relu()
        return maps[0] + maps[1].flip(-1)


class _MeanShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # A batch norm has a counter, num_batches_tracked, that is no weight in the original's files
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.edge = nn.Conv2d(8, 1, 1)
        self.displacement = nn.Conv2d(8, 2, 1, bias=False)
        self.mean_shift = _MeanShift()

    def edge_and_displacement(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        shift = 0 if self.training else self.mean_shift.running_mean.view(1, 2, 1, 1)
        return self.edge(features), self.displacement(features) - shift


class AffinityDisplacementLoss(_Heads):
    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        edge, displacement = self.edge_and_displacement(images)
        return pair_losses(edge.sigmoid(), displacement, labels, radius=5)

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return list(self.edge.parameters()), list(self.displacement.parameters())


class EdgeDisplacement(_Heads):
    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        edge, displacement = self.edge_and_displacement(pair)
        return (edge[0] / 2 + edge[1].flip(-1) / 2).sigmoid(), displacement[0]


class DeepLab(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 9, stride=8, padding=4), nn.ReLU())
        self.head = nn.Conv2d(8, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    @staticmethod
    def prepare(images: Tensor, boxes: Tensor | None = None) -> Tensor:
        return normalize(images, boxes)

    def load_start(self, source: str) -> None:
        if source != "none":
            self.load_state_dict(torch.load(source, weights_only=True))

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        return list(self.body.parameters()), [self.head.weight], [self.head.bias]
