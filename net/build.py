"""Networks by the name of their module, as `--cam_network` and `--irn_network` give it."""

import importlib
from typing import Any

from torch import nn

from misc.errors import InputError


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
