"""Reading and writing network weights: our files, the originals' checkpoints, torchvision's ImageNet files.

The originals store each weight under up to three names. Here each has one, the canonical name: torchvision's for the
backbone, `classifier.weight`, and the heads of IRN by their attribute (`fc_edge1.0.weight`, ...). `load_weights` maps
every known layout to canonical names and then checks name by name.
"""

import importlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from misc.errors import InputError, first_three, raise_if_of_the_machine, reason_of
from misc.files.atomic import atomic_path
from misc.files.checkpointfile import checkpoint_file
from misc.files.checksum import digest_in_name
from misc.files.objectfile import NUMPY_STAND_INS
from misc.files.pickles import A_SET, load_tensors
from misc.files.regular import regular
from misc.files.soundness import LARGEST_WEIGHT, unsound_weight
from net.backbone import Backbone

log = logging.getLogger(__name__)

BACKBONE_PREFIX = "backbone."
MULTISCALE_PREFIX = "base."
ASPP_PREFIX = "aspp."
HEAD_PREFIXES = (ASPP_PREFIX, "classifier.")
"""Weights whose first dimension counts the classes."""

# What the originals' names stand for. Their networks cut the backbone at different places.
_COMMON_ALIASES = (
    (r"resnet50\.", ""),
    (r"stage1\.0\.", "conv1."),
    (r"stage1\.1\.", "bn1."),
    # The package's file of EfficientNet-Lite0
    (r"_blocks\.(\d+)\._", r"blocks.\1."),
    (r"_", ""),
)
_ANY_CLASSIFIER_ALIASES = (
    *_COMMON_ALIASES,
    (r"stage1\.4\.", "layer1."),
    (r"stage([234])\.0\.", r"layer\1."),
    (r"newly_added\.0\.", "classifier."),
)
_CLASSIFIER_ALIASES = (  # W-OoD's
    *_ANY_CLASSIFIER_ALIASES,
    (r"backbone\.0\.0\.", "layer3."),
    (r"backbone\.1\.0\.", "layer4."),
)
_WHOLE_CLASSIFIER_ALIASES = (  # that of IRN and AdvCAM, whose `backbone` holds all stages
    *_ANY_CLASSIFIER_ALIASES,
    (r"backbone\.0\.0\.", "conv1."),
    (r"backbone\.0\.1\.", "bn1."),
    (r"backbone\.0\.4\.", "layer1."),
    (r"backbone\.1\.0\.", "layer2."),
    (r"backbone\.2\.0\.", "layer3."),
    (r"backbone\.3\.0\.", "layer4."),
)
_IRN_ALIASES = (
    *_COMMON_ALIASES,
    (r"stage2\.0\.", "layer1."),
    (r"stage3\.0\.", "layer2."),
    (r"stage4\.0\.", "layer3."),
    (r"stage5\.0\.", "layer4."),
    (r"backbone\.0\.0\.", "conv1."),
    (r"backbone\.0\.1\.", "bn1."),
    (r"backbone\.([1234])\.0\.", r"layer\1."),
    (r"(?:fc_dp7|dp_layers\.6)\.4\.running_mean", "mean_shift.running_mean"),
    *((rf"edge_layers\.{i}\.", f"fc_edge{i + 1}.") for i in range(6)),
    *((rf"dp_layers\.{i}\.", f"fc_dp{i + 1}.") for i in range(7)),
)
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "weights", "weight", "network", "net")
"""Under which names trainings keep the weights in a checkpoint, the first that is there counts."""
BACKBONE_NAME = "backbone"
"""Under which name a checkpoint keeps that of its backbone, if its module offers many."""
SAFETENSORS = ".safetensors"
MXNET_START = (0x112).to_bytes(8, "little")
"""The first bytes of a file of MXNet's arrays."""
# The last block of ResNet-101's third stage, in torchvision's and in MSRA's names
_TORCHVISION_RESNET101, _MSRA_RESNET101 = "layer3.22.conv1.weight", "layer4.block23.reduce.conv.weight"
ANOTHER_START = "pass another --deeplab_init_weights, or a --deeplab_network such as net.resnet101_deeplab"
# Names, without what wraps them, that one layout alone has, and what stands for what in it
_LAYOUTS = (
    (re.compile(r"(fc_edge|fc_dp|edge_layers|dp_layers)"), _IRN_ALIASES),
    (re.compile(r"backbone\.0\.4\."), _WHOLE_CLASSIFIER_ALIASES),
)
# Not weights: step counters, pixel pair tables (they depend on crop and radius), an ImageNet file's own classifier
_DROPPED = re.compile(r"(.*\.)?num_batches_tracked|path_indices\d*|disp_target|_?fc\.(weight|bias)")


_WRAPPED = re.compile(r"\A((module|_orig_mod)\.)+")
"""What DataParallel and torch.compile put before the names of the network that they wrap."""


def _bare_name(name: str) -> str:
    return _WRAPPED.sub("", name).removeprefix(MULTISCALE_PREFIX)


def _aliases(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """What the names of a state dict stand for: those of the layout that they are in."""
    bare = [_bare_name(name) for name in names]
    known = (aliases for mark, aliases in _LAYOUTS if any(mark.match(name) for name in bare))
    return next(known, _CLASSIFIER_ALIASES)


def _canonical_name(name: str, aliases: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in aliases:
        renamed, count = re.subn(rf"\A{pattern}", replacement, name)
        if count:
            return renamed
    return name.removeprefix(BACKBONE_PREFIX)


def canonical_state(state: Mapping[str, Tensor], *, origin: str = "state dict") -> dict[str, Tensor]:
    """A state dict of any known layout -> {canonical name: tensor}, each weight once.

    Raises `InputError`, naming the weight and `origin`, if copies of one weight disagree.
    """
    aliases = _aliases(state)
    canonical: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = _bare_name(name)
        if _DROPPED.fullmatch(bare):
            continue
        known = canonical.setdefault(_canonical_name(bare, aliases), tensor)
        if known is not tensor and not torch.equal(known, tensor):
            raise InputError(f"{origin}: the copies of {_canonical_name(bare, aliases)} disagree; the file is damaged.")
    return canonical


def _canonical_tensors(module: nn.Module) -> dict[str, Tensor]:
    """{canonical name: tensor} of a module's own weights."""
    return {
        name.removeprefix(MULTISCALE_PREFIX).removeprefix(BACKBONE_PREFIX): tensor
        for name, tensor in module.state_dict().items()
    }


def load_weights(module: nn.Module, source: str | Path | Mapping[str, Tensor]) -> None:
    """Fill `module` from a checkpoint file or a state dict, in our layout or the original's.

    Raises `InputError`, naming file and tensor, for a missing, extra or misshapen tensor, for one that is no plain
    array of finite numbers, for copies that disagree, or for the weights of another backbone.
    """
    if isinstance(source, Mapping):
        state, origin = source, "state dict"
    else:
        state, origin = read_checkpoint(source), str(source)
    _require_backbone(module, state, origin=origin)
    wanted = module.state_dict()
    if state.keys() == wanted.keys():  # our own layout: names as they are, whatever they mean in the original's
        given = state
    else:
        given, wanted = canonical_state(state, origin=origin), _canonical_tensors(module)
        given = module.from_published(given) if isinstance(module, Backbone) else given
    _fill(wanted, given, kind=type(module).__name__, origin=origin)


def load_starting_weights(network: nn.Module, source: str | Path) -> None:
    """Fill a segmentation network from a checkpoint of its kind, or all but its ASPP from one of its backbone.

    The ASPP keeps its random weights where the file has none, or one of other branches or for another number of
    classes. Surplus tensors outside the backbone, such as other heads, are named in the log and left out.

    Raises `InputError` as `load_weights` does, also for a backbone of more blocks, and for a ResNet-101 whose strides
    lie elsewhere: no conversion between torchvision's and MSRA's is exact.
    """
    state = read_checkpoint(source, instead=ANOTHER_START)
    _require_backbone(network, state, origin=str(source))
    wanted, given = _canonical_tensors(network), canonical_state(state, origin=str(source))
    if _MSRA_RESNET101 in wanted and _TORCHVISION_RESNET101 in given:
        raise InputError(
            f"{source} is torchvision's ResNet-101, with the stride of a stage in the 3x3 convolution; this network "
            "has it in the first 1x1, so that no conversion is exact: pass --deeplab_network net.resnet101_deeplab, "
            "which takes the file as it is."
        )
    if _TORCHVISION_RESNET101 in wanted and _MSRA_RESNET101 in given:
        raise InputError(
            f"{source} is MSRA's ResNet-101, with the stride of a stage in the first 1x1 convolution; this network "
            "has it in the 3x3, so that no conversion is exact: pass --deeplab_network net.deeplab_v2, "
            "which takes the file as it is."
        )
    aspp = {name: tensor.shape for name, tensor in wanted.items() if name.startswith(ASPP_PREFIX)}
    if aspp != {name: tensor.shape for name, tensor in given.items() if name.startswith(ASPP_PREFIX)}:
        log.info("%s has no ASPP for these classes: it starts from random weights", source)
        wanted = {name: tensor for name, tensor in wanted.items() if name not in aspp}
    parts = {_top_module(name) for name in wanted}  # a surplus block in one of these is of another network
    surplus = sorted(name for name in given if _top_module(name) not in parts)
    if surplus:
        log.info(
            "%s: %d tensors have no place in this network and are left out: %s",
            source,
            len(surplus),
            ", ".join(surplus),
        )
    given = {name: tensor for name, tensor in given.items() if _top_module(name) in parts}
    _fill(wanted, given, kind=type(network).__name__, origin=str(source))


class WeightsOfBackbone(dict[str, Tensor]):
    """A state dict from a checkpoint that names its backbone."""

    def __init__(self, state: Mapping[str, Tensor], *, backbone: str) -> None:
        super().__init__(state)
        self.backbone = backbone


def _backbone_name(module: nn.Module) -> str:
    """The name of a network's backbone; empty for one whose module offers no other."""
    backbone = getattr(module, "backbone", module)
    return backbone.name if isinstance(backbone, Backbone) else ""


def _require_backbone(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Raise `InputError` if both network and checkpoint name a backbone, and not the same."""
    ours, theirs = _backbone_name(module), getattr(state, "backbone", "")
    if ours and theirs and ours != theirs:
        raise InputError(
            f"{origin} holds weights of the backbone {theirs}, and --backbone gives {ours}: pass --backbone {theirs}, "
            "or name the weights of the other."
        )


def _top_module(name: str) -> str:
    return name.partition(".")[0]


def _fill(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], *, kind: str, origin: str) -> None:
    """Copy `given` into `wanted`, tensors by canonical name, if they fit name by name; else raise `InputError`."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        others = f" and has {len(extra)} others ({first_three(extra)})" if extra else ""
        raise InputError(
            f"{origin} is no checkpoint of {kind}: it lacks {len(missing)} tensors ({first_three(missing)}){others}."
        )
    if extra:
        raise InputError(
            f"{origin} is no checkpoint of {kind}: it has {len(extra)} tensors too many ({first_three(extra)})."
        )
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
            other_classes = name.startswith(HEAD_PREFIXES) and tensor.shape[1:] == given[name].shape[1:]
            hint = "; pass the --class_list of the classes that it was trained on" if other_classes else ""
            raise InputError(f"{origin} does not fit {kind}: {name} has shape {shapes}{hint}.")
    if name := unsound_weight({name: given[name].to(tensor.dtype) for name, tensor in wanted.items()}):
        raise InputError(
            f"{origin}: {name} holds NaN, infinity or numbers beyond {LARGEST_WEIGHT:g}, as a training that diverged "
            "leaves them; name other weights, or train these again with a lower learning rate."
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])


def find_checkpoint(path: str | Path, *, instead: str = "train it") -> Path:
    """`path`, or the same name with the original's doubled ending `.pth.pth`, or without it.

    Raises `InputError` if there is none; `instead` is what the message advises besides a download.
    """
    found = checkpoint_file(path)
    if not found.is_file():
        raise InputError(
            f"checkpoint {path} is missing: {instead}, or download it into {Path(path).parent}/ (see sess/README.md)."
        )
    return found


def read_checkpoint(path: str | Path, *, instead: str = "train it") -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; never runs pickled code (`weights_only=True`).

    It may lie in a dict, under a name such as `state_dict` or `model`, beside other things that a training keeps.

    Raises `InputError` for a missing (`instead` as in `find_checkpoint`), truncated or foreign file.
    """
    path = find_checkpoint(path, instead=instead)
    advice = "it is truncated or no PyTorch state dict; download or train it again."
    _require_not_of_mxnet(path)
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in NUMPY_STAND_INS.items()]):
            content = _load_safetensors(path) if path.suffix == SAFETENSORS else load_tensors(path)
    except InputError:
        raise
    except (OSError, MemoryError) as error:  # the file may be whole
        raise_if_of_the_machine(error)
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise InputError(f"checkpoint {path} can't be read now ({reason}); make it readable, and try again.") from error
    except Exception as error:  # foreign bytes make the parser fail in any way
        if foreign := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            advice = f"it holds {foreign[1]}, which is no plain data and is never loaded; save its state dict alone."
        elif str(error) == A_SET:
            advice = "it holds a set, as a whole network does, which is never loaded; save its state dict alone."
        raise InputError(f"checkpoint {path} can't be read: {advice}") from error
    if _is_state_dict(content):
        return _of_plain_tensors(content, path)
    backbone = content.get(BACKBONE_NAME) if isinstance(content, dict) else None
    entries = _state_dicts(content)
    if not entries:
        raise InputError(f"checkpoint {path} holds something else than a state dict: {advice}")
    chosen = next((name for name in WRAPPERS if name in entries), None)
    if chosen is None and len(entries) > 1:
        raise InputError(
            f"checkpoint {path} holds {len(entries)} state dicts ({first_three(sorted(entries))}), none under the name "
            f"{' or '.join(WRAPPERS[:2])}; save the one that you mean as a file of its own."
        )
    name = chosen or next(iter(entries))
    state = _of_plain_tensors(entries[name], path)
    if isinstance(backbone, str):
        return WeightsOfBackbone(state, backbone=backbone)
    log.info("%s: the weights are those under %r", path, name)
    return state


def _require_not_of_mxnet(path: Path) -> None:
    """Raise `InputError` for a file of MXNet, as the weights of ResNet-38 were published."""
    try:
        with regular(path).open("rb") as file:
            start = file.read(len(MXNET_START))
    except OSError:
        return  # the reader says so
    if start == MXNET_START:
        raise InputError(
            f"checkpoint {path} is of MXNet, which is not read here: convert it to a PyTorch state dict where mxnet is "
            "installed (convert_mxnet_to_torch in network/resnet38d.py of github.com/jiwoon-ahn/psa does), and save "
            "that with torch.save."
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """The content of a file as the hub of timm's models offers it."""
    try:
        safetensors = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} needs the package safetensors, which is missing; run `pip install safetensors`."
        ) from error
    return safetensors.load(regular(path).read_bytes())


_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def _of_plain_tensors(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state`, if its tensors are plain arrays in memory. Raises `InputError`, naming the first that is none."""
    for name, tensor in state.items():
        if problem := _problem_of(tensor):
            raise InputError(f"checkpoint {path}: {name} {problem}, expected a plain tensor; save its state dict anew.")
    return state


def _problem_of(tensor: Tensor) -> str | None:
    # Others have no sizes or numbers that could be asked for, so the order of the questions counts
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is a sparse or nested tensor"
    if tensor.is_quantized or tensor.dtype not in _NUMBERS:
        return f"has numbers of the type {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.device.type != "cpu":
        return f"has no numbers (it is on the device {tensor.device})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has the shape {tuple(tensor.shape)}, for which the file lacks numbers"
    return None


def _is_state_dict(content: object) -> bool:
    return isinstance(content, dict) and len(content) > 0 and all(map(_is_weight, content.items()))


def _is_weight(item: tuple[object, object]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor)


def _state_dicts(content: object) -> dict[str, dict[str, Tensor]]:
    """{name: state dict} of those that a dict holds."""
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and _is_state_dict(value)}


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write the module's state dict, each weight once, under the module's own names, and its backbone's name, if any.

    Raises `InputError`, and writes nothing, if a weight is NaN, infinite or beyond `LARGEST_WEIGHT`.
    """
    if name := unsound_weight(module.state_dict()):
        raise InputError(
            f"{path} is not written: {name} of the network would hold NaN, infinity or numbers beyond "
            f"{LARGEST_WEIGHT:g}; train it with a lower learning rate."
        )
    content: dict[str, Any] = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    if backbone := _backbone_name(module):
        content = {WRAPPERS[0]: content, BACKBONE_NAME: backbone}
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # a path's name would be among the bytes
        torch.save(content, file)


def _require_published(path: Path, *, flag: str) -> None:
    """Raise `InputError` if the file's name tells another content: `auto` means the same weights in every run."""
    digest = digest_in_name(path.name)
    problem = digest.mismatch(path) if digest is not None else None
    if problem is not None:
        raise InputError(
            f"--{flag} auto: {path} is not the file that was published under this name ({problem}); download it again, "
            f"or pass --{flag} {path} to start from it as it is."
        )


def load_imagenet(
    backbone: nn.Module, source: str, *, folder: str | Path = "sess", flag: str = "imagenet_weights"
) -> None:
    """ImageNet weights for `backbone`: those that it has a source for, torchvision's V1 weights, a file, or none.

    Args:
        backbone: a `Backbone`; of another module's weights `auto` knows nothing.
        source: `auto`: the backbone's own source; where it has none, a file of torchvision's in `folder`
            (either of its names), else torchvision's download;
            `none`: leave the random weights; anything else: the path of a file.
        flag: the flag that gave `source`, for messages.

    Raises `InputError` for a bad file, or if nothing is found and the download fails.
    """
    if source == "none":
        return
    if source != "auto":
        load_weights(backbone, source)
        return
    known = isinstance(backbone, Backbone)
    try:
        known_source = backbone.imagenet_source() if known else None
    except InputError as error:
        raise InputError(f"--{flag} auto: {error}") from error
    if known_source is not None:
        load_weights(backbone, known_source)
        return
    if not known or backbone.imagenet_weights is None:
        raise InputError(f"--{flag} auto: this backbone has no ImageNet weights; name a file, or none.")
    for path in (Path(folder) / name for name in backbone.imagenet_files):
        if path.is_file():
            _require_published(path, flag=flag)
            load_weights(backbone, path)
            return
    url = backbone.imagenet_weights.url
    try:
        state = backbone.imagenet_weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = str(getattr(error, "reason", error))
        raise InputError(
            f"ImageNet weights can't be downloaded ({reason}); put {url} into {folder}/, or pass --{flag} FILE."
        ) from error
    load_weights(backbone, state)
