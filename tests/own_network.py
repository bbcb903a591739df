"""A network of one's own, for `--cam_network`, `--irn_network` and `--deeplab_network`: five convolutions."""

from collections.abc import Sequence

from torch import nn

from net import irn
from net.backbone import Backbone
from net.classifier import ClassActivation, Classifier
from net.deeplab import BackboneDeepLab


class FiveConvolutions(Backbone):
    """Stage outputs have ceil(H / stride) x ceil(W / stride) cells. Without batch norm, none needs to be frozen.

    Softplus is smooth, so that rounding moves results a little but decides nothing, as it can at the kink of a ReLU or
    between equal values under a maximum: tests compare runs of this network to the last digits.
    """

    channels = (16, 16, 32, 32, 64)
    strides = (4, 4, 8, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        inputs, steps = (3, *self.channels), (4, 1, 2, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs[i], inputs[i + 1], 5, stride=steps[i], padding=2), nn.Softplus(beta=5))
            for i in range(len(steps))
        )

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        return [(block,) for block in self.blocks]


class Net(Classifier):
    def __init__(self, n_classes: int) -> None:
        super().__init__(FiveConvolutions(), n_classes)


class CAM(ClassActivation):
    def __init__(self, n_classes: int) -> None:
        super().__init__(FiveConvolutions(), n_classes)


class AffinityDisplacementLoss(irn.AffinityDisplacementLoss):
    def __init__(self) -> None:
        super().__init__(FiveConvolutions(), irn.TRAIN_RADIUS)


class EdgeDisplacement(irn.EdgeDisplacement):
    def __init__(self) -> None:
        super().__init__(FiveConvolutions())


class DeepLab(BackboneDeepLab):
    def __init__(self, n_classes: int) -> None:
        super().__init__(FiveConvolutions(), n_classes)
