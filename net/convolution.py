"""Convolutions that PyTorch lacks: padded as in TensorFlow, one kernel with what follows them, dilated ones on a CPU.

On a GPU bias, shortcut and ReLU are passes over memory, nearly as long as the convolutions. cuDNN does all in one.

On a CPU without AVX-512 oneDNN has no fast way to the gradient of a dilated convolution's weights, and its result has
to be copied into another layout twice. Here it is one matrix product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from misc.errors import reason_of
from misc.run.device import may_fuse_relu
from misc.run.notices import notice

_NOT_FUSED: set[torch.device] = set()
"""GPUs for which cuDNN has refused to do all in one kernel."""


class SamePaddedConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding: ceil(size / stride) cells, an odd pixel more at the right and bottom.

    Strides are 1 or 2, kernels not smaller, and there is no dilation.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1 and kernel % 2:
            return self._convolved(x, weight, bias, kernel // 2)
        # TensorFlow's (ceil(side / stride) - 1) * stride + kernel - side, in a form that torch.export can reason about
        rows, columns = [kernel - stride + side % stride for side in x.shape[-2:]]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self._convolved(x, weight, bias, 0)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        whole_image = not (torch.backends.cudnn.benchmark or torch.compiler.is_compiling())
        if x.device.type == "cuda" and self.groups > 1 and whole_image:
            return _WithoutCudnn.apply(*_autocast(x, weight, bias), self.stride, (padding, padding), self.groups)
        return F.conv2d(x, weight, bias, self.stride, padding, groups=self.groups)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors of one device as autocast would cast them for a convolution; it knows only PyTorch's own operations."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or any(x.dtype == torch.float64 for x in tensors if x is not None):
        return [*tensors]
    dtype = torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


class _WithoutCudnn(torch.autograd.Function):
    """A convolution in groups by PyTorch's own kernels.

    cuDNN takes about 0.1 s to prepare a depthwise one for each new size of images, these nothing. In a training, whose
    crops are of one size (`misc.run.device.one_size`), it does so once, and then takes half the time of these.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = (None if bias is None else [len(bias)], stride, padding, (1, 1), False, [0, 0], groups)
        with torch.backends.cudnn.flags(enabled=False):
            return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.backends.cudnn.flags(enabled=False):
            gradients = torch.ops.aten.convolution_backward(
                gradient, *ctx.saved_tensors, *ctx.settings, ctx.needs_input_grad[:3]
            )
        return *gradients, None, None, None


def convolve(
    convolution: nn.Conv2d,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`convolution` of x (B, C, H, W) with another weight and bias, plus `shortcut`, through a ReLU where asked.

    The result and its gradients are PyTorch's own, up to rounding. These gradients can't be differentiated once more.
    """
    given = (x, weight, bias, shortcut)
    if relu and _is_fused(convolution, x, needs_gradient=any(t is not None and t.requires_grad for t in given)):
        return _Fused.apply(*_autocast(*given), convolution.stride, convolution.padding, convolution.dilation)
    if _is_product(convolution, x):
        out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    elif weight.requires_grad and torch.is_grad_enabled() and _is_slow(convolution, x):
        out = _SameSize.apply(x, weight, bias, convolution.dilation)
    else:
        out = convolution._conv_forward(x, weight, bias)
    if shortcut is not None:
        out = out.add_(shortcut)
    return F.relu(out, inplace=True) if relu else out


def _is_fused(convolution: nn.Conv2d, x: Tensor, *, needs_gradient: bool) -> bool:
    """Whether cuDNN shall do all in one kernel: where it sees a size often, since it prepares such kernels for long.

    That is in trainings (`misc.run.device.one_size`), and where there is a gradient, as that of AdvCAM's iterations.
    """
    if torch.compiler.is_compiling():  # which has kernels of its own, and can't see into cuDNN's
        return False
    often = torch.backends.cudnn.benchmark or (needs_gradient and torch.is_grad_enabled())
    has_kernel = x.dtype != torch.float64 and _is_plain(convolution) and not isinstance(convolution.padding, str)
    return often and has_kernel and x.device not in _NOT_FUSED and may_fuse_relu(x.device)


def _is_product(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether it shall be a matrix product: 1x1 convolutions of whole images on CUDA.

    cuDNN prepares each convolution for each new size of images, which takes several times as long as computing it; for
    a matrix product next to nothing is prepared. In a training's backward pass, however, cuDNN is the faster one.
    """
    is_one_by_one = convolution.kernel_size == convolution.stride == (1, 1) and convolution.padding == (0, 0)
    whole_image = not (torch.backends.cudnn.benchmark or torch.is_grad_enabled())
    is_known = _is_plain(convolution) or type(convolution) is SamePaddedConv2d and convolution.groups == 1
    return x.device.type == "cuda" and whole_image and is_one_by_one and is_known


class _Fused(torch.autograd.Function):
    """relu(convolution + bias + shortcut) by one of cuDNN's kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        geometry = (stride, padding, dilation)
        try:
            if shortcut is None:
                out = torch.cudnn_convolution_relu(x, weight, bias, *geometry, 1)
            else:
                out = torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *geometry, 1)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # cuDNN has no such kernel for this GPU, or none that finds room for its work
            _NOT_FUSED.add(x.device)
            notice(
                f"cuDNN can't convolve and apply ReLU in one kernel here ({reason_of(error)}); going on with a kernel "
                "for each, which is slower"
            )
            out = F.conv2d(x, weight, bias, *geometry)
            out = F.relu(out if shortcut is None else out.add_(shortcut), inplace=True)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry = geometry
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        *needs, needs_shortcut = ctx.needs_input_grad[:4]
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        gradients = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], *ctx.geometry, False, [0, 0], 1, needs
        )
        return *gradients, gradient if needs_shortcut else None, None, None, None


def _is_slow(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is one that `_SameSize` computes, and oneDNN does slowly."""
    sides = convolution.kernel_size
    half = tuple((side - 1) // 2 * d for side, d in zip(sides, convolution.dilation, strict=True))
    keeps_size = convolution.stride == (1, 1) and convolution.padding == half and all(side % 2 for side in sides)
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    is_dilated = max(convolution.dilation) > 1
    return on_cpu and keeps_size and is_dilated and _is_plain(convolution) and not _is_done_by_onednn()


def _is_done_by_onednn() -> bool:
    """Whether oneDNN has a fast way to the weights' gradient of a dilated convolution on this processor."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it computes as PyTorch's own class does, with zeros around the image and all channels together."""
    own = type(convolution)._conv_forward is nn.Conv2d._conv_forward
    return own and convolution.groups == 1 and convolution.padding_mode == "zeros"


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
