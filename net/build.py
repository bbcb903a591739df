"""Networks by the name of their module, as `--cam_network` and `--irn_network` give it."""

import importlib
from collections.abc import Container
from typing import Any

import torch
from torch import nn

from misc.errors import InputError
from net.weights import load_weights


def build_network(module_name: str, class_name: str, **arguments: Any) -> nn.Module:
    """`module_name.class_name(**arguments)`. Raises `InputError` if there is no such module or class."""
    try:
        network = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise InputError(
            f"network module {module_name} can't be imported ({error}); expected such as net.resnet50_cam."
        ) from error
    except AttributeError as error:
        raise InputError(
            f"network module {module_name} has no class {class_name}; expected as in net.resnet50_cam."
        ) from error
    return network(**arguments)


def load_network(module_name: str, class_name: str, weights: str, device: torch.device, **arguments: Any) -> nn.Module:
    """The network with the weights of a checkpoint, on `device`, in evaluation mode. Raises `InputError` for either."""
    network = build_network(module_name, class_name, **arguments)
    load_weights(network, weights)
    return network.to(device).eval()


def require_network(
    module_name: str, class_name: str, weights: str, *, planned: Container[str], **arguments: Any
) -> None:
    """Raise `InputError` unless there is such a network, and a checkpoint that fits it or will be made (`planned`)."""
    network = build_network(module_name, class_name, **arguments)
    if weights not in planned:
        load_weights(network, weights)
