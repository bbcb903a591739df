"""Convolutions that PyTorch lacks: padded as in TensorFlow, and, on a CPU, dilated ones that are trained fast.

oneDNN has no fast way to the gradient of a dilated convolution's weights, and its result has to be copied into
another layout twice. Here it is one matrix product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class SamePaddedConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding: ceil(size / stride) cells, an odd pixel more at the right and bottom.

    Strides are 1 or 2, kernels not smaller, and there is no dilation.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # cuDNN takes about 0.1 s to prepare a depthwise convolution for each new size, PyTorch's own kernel nothing. In
        # a training, whose crops are of one size (`misc.run.device.one_size`), that is done once
        if x.device.type == "cuda" and self.groups > 1 and not torch.backends.cudnn.benchmark:
            with torch.backends.cudnn.flags(enabled=False):
                return self._padded(x, weight, bias)
        return self._padded(x, weight, bias)

    def _padded(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1 and kernel % 2:
            return F.conv2d(x, weight, bias, padding=kernel // 2, groups=self.groups)
        # TensorFlow's (ceil(side / stride) - 1) * stride + kernel - side, in a form that torch.export can reason about
        rows, columns = [kernel - stride + side % stride for side in x.shape[-2:]]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, weight, bias, stride=stride, groups=self.groups)


def convolve(convolution: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`convolution` of x (B, C, H, W) with another weight and bias; the result and its gradients are PyTorch's own.

    These gradients can't be differentiated once more.
    """
    if weight.requires_grad and torch.is_grad_enabled() and _is_slow(convolution, x):
        return _SameSize.apply(x, weight, bias, convolution.dilation)
    return convolution._conv_forward(x, weight, bias)


def _is_slow(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is one that `_SameSize` computes, and oneDNN does slowly."""
    sides = convolution.kernel_size
    half = tuple((side - 1) // 2 * d for side, d in zip(sides, convolution.dilation, strict=True))
    keeps_size = convolution.stride == (1, 1) and convolution.padding == half and all(side % 2 for side in sides)
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and keeps_size and max(convolution.dilation) > 1 and _is_plain(convolution)


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.groups == 1 and convolution.padding_mode == "zeros"


class _SameSize(torch.autograd.Function):
    """A dilated convolution of stride 1 that keeps the size of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        ctx.padding = tuple((side - 1) // 2 * d for side, d in zip(weight.shape[2:], dilation, strict=True))
        return F.conv2d(x, weight, bias, padding=ctx.padding, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        how = {"padding": ctx.padding, "dilation": ctx.dilation}
        return (
            conv2d_input(x.shape, weight, gradient, **how) if needs_x else None,
            _of_weight(x, gradient, weight.shape[2:], **how) if needs_weight else None,
            gradient.sum(dim=(0, 2, 3)) if needs_bias else None,
            None,
        )


def _of_weight(x: Tensor, gradient: Tensor, kernel: torch.Size, padding: tuple, dilation: tuple) -> Tensor:
    """x (B, C, H, W), gradient (B, O, H, W) -> (O, C, *kernel).

    Each entry is a sum over the pixels, of x times the gradient at the place to which the tap takes it.
    """
    (height, width), (dy, dx) = x.shape[2:], dilation
    padded = F.pad(gradient, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    corners = [(y * dy, x * dx) for y in reversed(range(kernel[0])) for x in reversed(range(kernel[1]))]
    shifted = torch.cat([padded[:, top : top + height, left : left + width] for top, left in corners], dim=3)
    product = shifted.flatten(0, 2).T @ x.permute(0, 2, 3, 1).flatten(0, 2)
    return product.view(*kernel, -1, x.shape[1]).permute(2, 3, 0, 1)
