"""Networks by the name of their module, as `--cam_network`, `--irn_network` and `--deeplab_network` give it.

`MODULE:BACKBONE` is a module that offers many backbones, with the name of one; `--backbone` adds it to all three.

docs/own_networks.md tells what such a module must offer.
"""

import ast
import importlib
import inspect
import operator
import warnings
from collections.abc import Container, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misc.errors import InputError, first_three, reason_of, requirement
from misc.files import look
from misc.files.checkpointfile import checkpoint_file
from misc.run.config import BACKBONE_MARK, Config
from misc.run.device import UnfilledNetworks
from misc.run.notices import notice
from misc.run.step import Files, Inputs
from net.trial import problem_of_answer
from net.weights import load_weights

FLAGS = {
    "Net": "cam_network",
    "CAM": "cam_network",
    "AffinityDisplacementLoss": "irn_network",
    "EdgeDisplacement": "irn_network",
    "DeepLab": "deeplab_network",
}
"""The flag that names the module of each class."""
ATTRIBUTES = {
    "Net": ("backbone", "trainable_parameters"),
    "CAM": (),
    "AffinityDisplacementLoss": (
        "backbone",
        "trainable_parameters",
        "edge_and_displacement",
        "mean_shift.running_mean",
    ),
    "EdgeDisplacement": (),
    "DeepLab": ("prepare", "load_start", "trainable_parameters"),
}
"""What the steps use of each class besides calling it."""
ADVCAM_ATTRIBUTES = ("logit_maps", "classifier.weight")
"""What AdvCAM uses of `CAM` as well."""
TIMM_MODULES = {"cam_network": "net.timm_cam", "irn_network": "net.timm_irn", "deeplab_network": "net.timm_deeplab"}
INIT = "__init__.py"
OUR_PACKAGES = ("misc", "net", "step", "voc12")
GUIDE = "docs/own_networks.md says what a network must offer"


def build_network(module_name: str, class_name: str, *, needs: tuple[str, ...] = (), **arguments: Any) -> nn.Module:
    """`module_name.class_name(**arguments)`, with the argument `backbone` where `module_name` names one, too.

    Raises `InputError` if there is no such module or class, if the class does not take the arguments, or if the
    network lacks one of its `ATTRIBUTES` or of `needs`.
    """
    flag = f"--{FLAGS[class_name]}"
    module_name, _, backbone = module_name.partition(BACKBONE_MARK)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"{flag}: network module {module_name} can't be imported ({error}); {GUIDE}.") from error
    network_class = getattr(module, class_name, None)
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise InputError(f"{flag}: network module {module_name} has no class {class_name}; {GUIDE}.")
    takes_backbone = "backbone" in inspect.signature(network_class).parameters
    if takes_backbone != bool(backbone):
        raise InputError(
            f"{flag}: {module_name} offers many backbones; name one with --backbone, such as resnet50."
            if takes_backbone
            else f"{flag}: {module_name} takes no --backbone, here {backbone}; pass {flag} "
            f"{TIMM_MODULES[FLAGS[class_name]]}, or MODULE:{backbone} to other networks instead of --backbone."
        )
    if takes_backbone:
        arguments["backbone"] = backbone
    try:
        inspect.signature(network_class).bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "without arguments"
        raise InputError(f"{flag}: {module_name}.{class_name}({given}) can't be called: {error}; {GUIDE}.") from error
    network = network_class(**arguments)
    missing = [name for name in (*ATTRIBUTES[class_name], *needs) if not _has(network, name)]
    if missing:
        raise InputError(f"{flag}: {module_name}.{class_name} lacks {', '.join(missing)}; {GUIDE}.")
    return network


def _has(network: nn.Module, dotted_name: str) -> bool:
    try:
        operator.attrgetter(dotted_name)(network)
    except AttributeError:
        return False
    return True


def source_file(module_name: str) -> Files:
    """The files on which a network's results depend. Raises `InputError` if there is no such module.

    That module's; of timm's models also the one that holds timm's version; of a module of somebody's own also those
    that it imports and that lie with it, and these, in turn.
    """
    name = module_name.partition(BACKBONE_MARK)[0]
    try:
        file = getattr(importlib.import_module(name), "__file__", None)
    except ModuleNotFoundError as error:
        raise InputError(f"there is no network {module_name} ({error}); {GUIDE}.") from error
    if file is None:
        return Files([])
    if name.partition(".")[0] not in OUR_PACKAGES:
        return Files(_files_with(name, Path(file)))
    return Files([file, find_spec("timm.version").origin] if name in TIMM_MODULES.values() else [file])


def _files_with(name: str, file: Path) -> list[str]:
    """The `file` of a module, and those that it imports from the folder that it was found in, from there on.

    They are looked for on the disk, so that it does not matter which of them have been imported yet. Neither modules of
    this project are among them, whose steps have versions, nor installed ones.
    """
    root = file.parents[name.count(".") + (file.name == INIT)]
    if {"site-packages", "dist-packages"} & {*root.parts}:
        return [str(file)]
    found, pending = [], [file, *_places(root, name)]
    while pending:
        path = pending.pop()
        if str(path) not in found and path.is_file():
            found.append(str(path))
            pending += [place for imported in _imported_by(path, root) for place in _places(root, imported)]
    return found


def _places(root: Path, name: str) -> list[Path]:
    """Where below `root` a module `a.b` may lie, and the packages that it is in."""
    parts = name.split(".")
    if parts[0] in OUR_PACKAGES:
        return []
    folders = [root.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return [*(folder / INIT for folder in folders), folders[-1].with_name(f"{parts[-1]}.py")]


def _imported_by(path: Path, root: Path) -> list[str]:
    """Names of the modules that a file may import, counted from `root`; none where it is no sound Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the module's own import has warned already
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names, package = [], path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *(node.module or "").split(".")] if node.module else [*above]
            names += [".".join([*base, *of]) for of in ([], *([alias.name] for alias in node.names)) if [*base, *of]]
    return names


def inputs_of_network(args: Config, network: str, weights: str, classes: Sequence[str]) -> Inputs:
    """What all results of a trained network depend on; `network`, `weights`: the flags of its module and checkpoint."""
    return {
        network: source_file(getattr(args, network)),
        weights: Files([checkpoint_file(getattr(args, weights))]),
        "class_list": classes,
    }


def input_of_start(source: str, module_name: str, class_name: str) -> Files | str:
    """What a flag for starting weights gives the training of `module_name.class_name`: a file, or the word itself.

    `auto` is a file of any content where the class names one, `auto_start`. All else that it stands for is the same in
    every run (`net.weights.load_imagenet`).
    """
    if source == "auto":
        module = importlib.import_module(module_name.partition(BACKBONE_MARK)[0])
        source = getattr(getattr(module, class_name, None), "auto_start", source)
    return source if source in ("auto", "none") else Files([checkpoint_file(source)])


def load_network(module_name: str, class_name: str, weights: str, device: torch.device, **arguments: Any) -> nn.Module:
    """The network with the weights of a checkpoint, on `device`, in evaluation mode. Raises `InputError` for either."""
    with UnfilledNetworks(keep_layout=True):  # the checkpoint fills all of it
        network = build_network(module_name, class_name, **arguments)
    load_weights(network, weights)
    return network.to(device).eval()


def require_network(
    module_name: str, class_name: str, weights: str, *, planned: Container[str], **arguments: Any
) -> nn.Module:
    """The network, on the CPU; `InputError` unless a checkpoint fits it or will be made (`planned`)."""
    network = build_network(module_name, class_name, **arguments)
    require_answer(module_name, network, class_name, n_classes=arguments.get("n_classes"))
    if weights not in planned:
        load_weights(network, weights)
    return network


@requirement
def require_answer(module_name: str, network: nn.Module, class_name: str, *, n_classes: int | None = None) -> None:
    """Raise `InputError` if a network of somebody's own gives other outputs than the steps use.

    It is tried out once a run, on the CPU; the project's own are taken on trust. What it raises itself is not caught,
    unless there is a GPU, which it may need.
    """
    if module_name.partition(".")[0] in OUR_PACKAGES:
        return
    key, called = ("answer", module_name, class_name, n_classes), f"--{FLAGS[class_name]}: {module_name}.{class_name}"
    try:
        problem = look.remembered(key, lambda: problem_of_answer(network, class_name, n_classes))
    except Exception as error:
        if not torch.cuda.is_available():
            raise
        notice(f"{called} can't be tried out beforehand on the CPU ({reason_of(error)})")
        return
    if problem:
        raise InputError(f"{called} {problem}; {GUIDE}.")


@requirement
def require_cell_classifier(module_name: str, network: nn.Module) -> None:
    """Raise `InputError` unless a `CAM` network's classifier is linear in each cell: the closed form of Grad-CAM."""
    weight, bias = network.classifier.weight, getattr(network.classifier, "bias", None)
    if bias is not None or weight.flatten(1).shape != weight.shape[:2]:
        given = f"{tuple(weight.shape)} with{'out' if bias is None else ''} bias"
        raise InputError(
            f"--{FLAGS['CAM']}: AdvCAM needs a classifier of shape (C, D, 1, 1) without bias, {module_name}.CAM has "
            f"one of {given}; {GUIDE}."
        )


@requirement
def require_same_weights(module_name: str, trained: nn.Module, class_name: str, **arguments: Any) -> None:
    """Raise `InputError` unless the module has a second class whose weights are those of the one that is trained."""
    shapes, expected = (
        {name: tensor.shape for name, tensor in network.state_dict().items()}
        for network in (build_network(module_name, class_name, **arguments), trained)
    )
    differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if differing:
        raise InputError(
            f"--{FLAGS[class_name]}: {module_name}.{class_name} has not the weights of {type(trained).__name__} "
            f"({first_three(differing)} differ in name or shape); {GUIDE}."
        )
