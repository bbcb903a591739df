"""Two small images through a network of somebody's own before any step begins: does it give what the steps use?

Shapes that differ from docs/own_networks.md would else be noticed when the first step uses them, hours later.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from misc.files.camfile import MAP_STRIDE
from net.backbone import Backbone

SIZE = (96, 128)
"""Pixels: sides that all strides up to 32 divide."""
CELLS = (SIZE[0] // MAP_STRIDE, SIZE[1] // MAP_STRIDE)


@torch.no_grad()
def problem_of_answer(network: nn.Module, class_name: str, n_classes: int | None) -> str:
    """What is wrong with a network's outputs for two images, as the end of a sentence; empty if nothing is.

    Args:
        network: of the class `class_name` in a module for the flag of that class.
        n_classes: with which it was made; None for IRN, which knows no classes.

    What the network raises itself is not caught.
    """
    images = torch.linspace(-2, 2, 2 * 3 * SIZE[0] * SIZE[1]).view(2, 3, *SIZE)
    was_training = network.training
    network.eval()
    try:
        return _CHECKS[class_name](network, images, n_classes)
    finally:
        network.train(was_training)


def _problem_of_stages(network: nn.Module, images: Tensor) -> str:
    """What is wrong with the stages of a `Backbone`, all of which IRN's heads use."""
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, Backbone):
        return ""
    declared = [
        (channels, *(-(-side // stride) for side in SIZE))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=False)
    ]
    found = [tuple(output.shape[1:]) for output in backbone(images)]
    if found == declared:
        return ""
    return (
        f"has a backbone whose stages give {found} of images of {SIZE}, and whose channels {tuple(backbone.channels)} "
        f"and strides {tuple(backbone.strides)} declare {declared}"
    )


def _of_classifier(network: nn.Module, images: Tensor, n_classes: int) -> str:
    logits, features = _several(network(images), 2)
    if _shape(logits) != (2, n_classes) or _rank(features) != 2:
        return f"gives {_shape(logits)} and {_shape(features)}; expected logits (2, {n_classes}) and features (2, D)"
    return ""


def _of_cam(network: nn.Module, images: Tensor, n_classes: int) -> str:
    maps = network(images)
    if _rank(maps) != 3 or len(maps) != n_classes:
        return f"gives {_shape(maps)} of an image and its mirror image; expected ({n_classes}, h, w)"
    return "gives negative values; expected maps that end in a ReLU" if (maps < 0).any() else ""


def _of_irn(network: nn.Module, images: Tensor, n_classes: None) -> str:
    if problem := _problem_of_stages(network, images):
        return problem
    expected = (1, *CELLS), (2, *CELLS)
    edge, displacement = _several(network(images), 2)
    if (_shape(edge), _shape(displacement)) != expected:
        given = f"gives {_shape(edge)} and {_shape(displacement)} of an image of {SIZE} and its mirror image"
        return f"{given}; expected an edge {expected[0]} and a displacement {expected[1]}, at stride {MAP_STRIDE}"
    if (edge < 0).any() or (edge > 1).any():
        return "gives edges that are not in 0 .. 1; expected those of a sigmoid"
    return ""


def _of_irn_training(network: nn.Module, images: Tensor, n_classes: None) -> str:
    """Without its losses, which are sums over all processes: the first one alone tries networks out."""
    if problem := _problem_of_stages(network, images):
        return problem
    expected = (2, 1, *CELLS), (2, 2, *CELLS)
    edge, displacement = _several(network.edge_and_displacement(images), 2)
    if (_shape(edge), _shape(displacement)) != expected:
        given = f"gives {_shape(edge)} and {_shape(displacement)} of two images of {SIZE}"
        return f"{given} as edge_and_displacement; expected {expected[0]} and {expected[1]}, at stride {MAP_STRIDE}"
    return ""


def _of_segmentation(network: nn.Module, images: Tensor, n_classes: int) -> str:
    logits = network(images)
    if _rank(logits) != 4 or logits.shape[:2] != (2, n_classes):
        return f"gives {_shape(logits)} of two images; expected logits (2, {n_classes}, h, w), the background's first"
    return ""


def _several(output: object, n: int) -> tuple:
    """The parts of an output, None for those that it lacks."""
    return tuple(output) if isinstance(output, tuple | list) and len(output) == n else (output, None)


def _shape(output: object) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _rank(output: object) -> int:
    return output.dim() if isinstance(output, Tensor) else 0


_CHECKS: Mapping[str, Callable[[nn.Module, Tensor, int | None], str]] = {
    "Net": _of_classifier,
    "CAM": _of_cam,
    "AffinityDisplacementLoss": _of_irn_training,
    "EdgeDisplacement": _of_irn,
    "DeepLab": _of_segmentation,
}
