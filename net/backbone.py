"""The image backbone behind one small interface, and torchvision's ResNets behind that.

CAM, IRN and DeepLab code uses a backbone only through `Backbone`: five stages, the channels and the stride of each.
Another network is put in place by a class that gives these three.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.resnet import BasicBlock, Bottleneck

from misc.imutils import IMAGENET_MEAN, IMAGENET_STD
from misc.run.device import backbone_precision
from net.convolution import convolve

N_STAGES = 5


class Backbone(nn.Module):
    """A network of five stages.

    Attributes that a subclass fills:
        channels: channels of each stage's output.
        strides: pixels of the image per cell of each stage's output, not decreasing; the first two are 4.
        imagenet_weights: torchvision's description of ImageNet weights, or None where there are none.
        imagenet_files: names under which torchvision has published these weights.
        name: as `--backbone` gives it, where a module offers many backbones; it travels with checkpoints.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    imagenet_weights: WeightsEnum | None = None
    imagenet_files: tuple[str, ...] = ()
    name: str = ""

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The modules of each stage, in the order in which they run."""
        raise NotImplementedError

    def imagenet_source(self) -> Path | Mapping[str, Tensor] | None:
        """Where else than at torchvision there are ImageNet weights: the file in an installed package, or a state dict.

        Raises `InputError` if the package is missing; the flag that asked for it is named by `net.weights`.
        """
        return None

    def from_published(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{canonical name: tensor} of a published file -> the weights of this backbone in it."""
        return state

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> the five stage outputs, (B, channels[i], ceil(H / strides[i]), ...).

        They have the type of the images and their channels last in memory, which is the faster layout for convolutions.
        """
        outputs, x = [], images.contiguous(memory_format=torch.channels_last)
        with backbone_precision(images.device):
            for stage in self.stages():
                x = run_in_order(stage, x)
                outputs.append(x)
        return [output.to(images.dtype) for output in outputs]

    def stage_parameters(self, first: int, last: int) -> Iterator[nn.Parameter]:
        """Parameters of the stages `first` to `last`, counted from 0, both included."""
        for stage in self.stages()[first : last + 1]:
            for module in stage:
                yield from module.parameters()


class Renormalized(nn.Module):
    """Images normalised with ImageNet's mean and deviation -> normalised with those of other weights, of 0 .. 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([[*mean], [*std]])
        self.is_needed = ([*mean], [*std]) != ([*IMAGENET_MEAN], [*IMAGENET_STD])  # readable on the meta device, too
        self.register_buffer("scale", (ours[1] / theirs[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.offset if self.is_needed else images


_Folded = tuple[Tensor, Tensor]
"""Weight and bias: of a convolution and the norm after it, in one, or of a norm."""
_shared: dict[tuple[nn.Module, Tensor], _Folded] | None = None
"""Within `folded_once`, by norm and weight: what was folded there."""


@contextmanager
def folded_once() -> Iterator[None]:
    """Within this block a trained convolution is folded with its norm once, whatever the number of passes through it.

    For a loss of several passes: all use the same folded weights, whose gradients are summed before they go on to the
    trained ones. No weight may change within the block, and one backward pass has to serve all passes. What is under
    `torch.utils.checkpoint` folds for itself, since it runs again in the backward pass, after the block.
    """
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


class _Kept:
    """What was made of tensors, as long as nothing in them changes. (Changes through their `data` leave no sign.)

    What inference mode makes can't be part of a training, so that it serves inference mode alone.
    """

    def __init__(self) -> None:
        self._state: tuple = ()
        self._made: _Folded | None = None

    def made_of(self, sources: Sequence[Tensor], make: Callable[[], _Folded]) -> _Folded:
        of_sources = ((source.data_ptr(), source._version, source.dtype) for source in sources)
        state = (torch.is_inference_mode_enabled(), *of_sources)
        if self._made is None or self._state != state:
            self._state, self._made = state, make()
        return self._made


def _may_run_again() -> bool:
    """Whether a checkpoint, or anything else that hooks into what is saved for the backward pass, is at work."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(False) is not None


class FrozenStatsBatchNorm2d(nn.Module):
    """Batch norm that always uses its running statistics, in training too (IRN and W-OoD freeze every batch norm).

    Weight and bias stay parameters: they are trained where their stage is. (torchvision's `FrozenBatchNorm2d` makes
    them buffers.)
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._constant_fold, self._constant_norm = _Kept(), _Kept()

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def after(self, convolution: nn.Conv2d, x: Tensor, *, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """`self(convolution(x))`, plus `shortcut`, through a ReLU where asked.

        Frozen statistics make the norm part of the weights, so that it takes no pass over the pixels.
        """
        return convolve(convolution, x, *self._folded(convolution.weight), shortcut=shortcut, relu=relu)

    def _folded(self, weight: Tensor) -> _Folded:
        """Of the convolution's weight and this norm; constant ones are kept as long as nothing in them changes."""
        if torch.compiler.is_compiling():
            return self._fold(weight)
        sources = (weight, *self._sources())
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            self._constant_fold = _Kept()  # a copy from an adversarial step would only take memory
            if _shared is None or _may_run_again():
                return self._fold(weight)
            if (self, weight) not in _shared:
                _shared[self, weight] = self._fold(weight)
            return _shared[self, weight]
        return self._constant_fold.made_of(sources, lambda: tuple(folded.detach() for folded in self._fold(weight)))

    def _fold(self, weight: Tensor) -> _Folded:
        scale, bias = self._scale_and_bias()
        return weight * scale.view(-1, 1, 1, 1), bias

    def _scale_and_bias(self) -> _Folded:
        """The norm is `scale * x + bias`; that of frozen weights (DeepLab's) is kept, too."""
        is_constant = not any(source.requires_grad for source in self._sources())
        if torch.compiler.is_compiling() or not is_constant:
            return self._made_affine()
        return self._constant_norm.made_of(self._sources(), self._made_affine)

    def _made_affine(self) -> _Folded:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _sources(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.running_mean, self.running_var

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_constant_fold": _Kept(), "_constant_norm": _Kept()}


def run_in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Modules one after the other; a frozen norm, and a ReLU after it, are part of the convolution before them.

    They are then computed as one, so that hooks on this norm and this ReLU don't run.
    """
    left = deque(modules)
    while left:
        module = left.popleft()
        folds = isinstance(module, nn.Conv2d) and module.bias is None
        if folds and left and isinstance(left[0], FrozenStatsBatchNorm2d):
            norm = left.popleft()
            relu = bool(left) and type(left[0]) is nn.ReLU
            if relu:
                left.popleft()
            x = norm.after(module, x, relu=relu)
        else:
            x = module(x)
    return x


class _FoldedBasicBlock(BasicBlock):
    """torchvision's block with its norms folded into the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1.after(self.conv1, x, relu=True)
        return self.bn2.after(self.conv2, out, shortcut=_shortcut(self, x), relu=True)


class _FoldedBottleneck(Bottleneck):
    """torchvision's block with its norms folded into the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1.after(self.conv1, x, relu=True)
        out = self.bn2.after(self.conv2, out, relu=True)
        return self.bn3.after(self.conv3, out, shortcut=_shortcut(self, x), relu=True)


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    return x if block.downsample is None else run_in_order(block.downsample, x)


DILATED_STRIDES = (4, 4, 8, 8, 8)


class ResNet(models.ResNet, Backbone):
    """torchvision's ResNet without its classifier.

    The last stage keeps stride 1 and no dilation: output stride 16. Or, `dilated`, the last two stages keep stride 1,
    and dilations make up for it: output stride 8, with the values of the strided network on that one's grid.
    """

    strides = (4, 4, 8, 16, 16)

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        imagenet_weights: WeightsEnum,
        imagenet_files: tuple[str, ...],
        *,
        dilated: bool = False,
    ) -> None:
        super().__init__(
            block,
            list(layers),
            norm_layer=FrozenStatsBatchNorm2d,
            replace_stride_with_dilation=[False, dilated, dilated],
        )
        del self.fc, self.avgpool
        self.channels = (64, *(width * block.expansion for width in (64, 128, 256, 512)))
        self.to(memory_format=torch.channels_last)
        self.imagenet_weights, self.imagenet_files = imagenet_weights, imagenet_files
        if dilated:
            self.strides = DILATED_STRIDES
            return
        first_block = self.layer4[0]
        strided = first_block.conv2 if isinstance(first_block, Bottleneck) else first_block.conv1
        strided.stride = first_block.downsample[0].stride = (1, 1)

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        stem = (self.conv1, self.bn1, self.relu, self.maxpool)
        return stem, (self.layer1,), (self.layer2,), (self.layer3,), (self.layer4,)

    forward = Backbone.forward


def resnet50() -> ResNet:
    """ResNet-50, the backbone of the paper (stride in the 3x3 convolution)."""
    # torchvision renamed its files in 2021; both hold the V1 weights
    files = ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth")
    return ResNet(_FoldedBottleneck, (3, 4, 6, 3), models.ResNet50_Weights.IMAGENET1K_V1, files)


def resnet18() -> ResNet:
    """ResNet-18, for small data sets and quick runs."""
    files = ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth")
    return ResNet(_FoldedBasicBlock, (2, 2, 2, 2), models.ResNet18_Weights.IMAGENET1K_V1, files)


def dilated_resnet101() -> ResNet:
    """ResNet-101 with output stride 8, for segmentation (stride in the 3x3 convolution, as torchvision's weights)."""
    files = ("resnet101-63fe2227.pth", "resnet101-5d3b4d8f.pth")
    return ResNet(_FoldedBottleneck, (3, 4, 23, 3), models.ResNet101_Weights.IMAGENET1K_V1, files, dilated=True)
