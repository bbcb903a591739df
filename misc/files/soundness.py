"""What numbers weights and maps may be: a training that diverged leaves NaN, infinity, or numbers without bounds."""

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e10
"""Far beyond any trained network (EfficientNet-Lite0's largest is 566): products of a few such numbers overflow."""


def unsound_weight(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN, infinity or a number beyond `LARGEST_WEIGHT`, None if all are sound.

    Tensors of integers are. All tensors are on one device, from which there is one transfer.
    """
    of_floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not of_floats:
        return None
    largest = torch.stack([tensor.detach().abs().amax().double() for tensor in of_floats.values()]).tolist()
    # Of NaN no comparison is true
    return next((name for name, number in zip(of_floats, largest, strict=True) if not number <= LARGEST_WEIGHT), None)
