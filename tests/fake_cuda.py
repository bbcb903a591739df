"""CUDA tensors where there is no GPU: PyTorch's fake ones, which have a shape, a type and a device, but no values.

What is made on the wrong device fails as it would on a GPU, and what would make the processor wait for the GPU is
counted. Backward passes need a driver: a gradient is taken for granted.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from misc.run.device import AMPERE, set_precision

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parent.parent
WATCHED = tuple(str(ROOT / folder) for folder in ("misc", "net", "step", "voc12"))
aten = torch.ops.aten
_FUSED = (aten.cudnn_convolution_relu.default, aten.cudnn_convolution_add_relu.default)


class Waits:
    """Where the processor has waited for the GPU so far, as lines of code, and which copies are still on their way.

    `n_fused`: convolutions that cuDNN was given with what follows them.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.n_fused = 0
        self.pinned, self.on_its_way = WeakIdKeyDictionary(), WeakIdKeyDictionary()

    def note(self, what: str) -> None:
        """Count one, by the innermost line of the project."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(WATCHED)]
        where = f"{Path(frames[-1].filename).relative_to(ROOT)}: {frames[-1].line}" if frames else "a test"
        self.lines.append(f"{what} by {where}")

    def require_arrived(self, tensor: Tensor) -> None:
        """Fail where a copy is read that nobody has waited for."""
        if tensor in self.on_its_way:
            raise AssertionError("a copy from the GPU is read before it has arrived")

    def all_arrived(self) -> None:
        """What an event says once it was waited for."""
        self.on_its_way.clear()


class _Event:
    """As `torch.cuda.Event`."""

    waits: Waits

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None:
        self.waits.all_arrived()


def _value(tensor: Tensor) -> Any:
    """What a fake number is taken for: finite, found, not empty."""
    return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1


class _Operations(TorchDispatchMode):
    """Answers what asks for values, as if all conditions held, and counts what would wait."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._read(args[0])
        if func is aten.is_pinned.default:
            return args[0] in self._waits.pinned
        if func is aten._pin_memory.default:
            assert args[0].device.type == "cpu", "only tensors of the CPU can be pinned"
            pinned = aten.clone.default(args[0])
            self._waits.pinned[pinned] = True
            return pinned
        if func is aten.nonzero.default:
            return self._places(args[0])
        if func is aten.convolution.default:
            devices = {tensor.device for tensor in args[:3] if tensor is not None}
            if len(devices) > 1:  # of which some versions of PyTorch say nothing
                raise RuntimeError(f"a convolution of tensors on more than one device: {devices}")
        if func in _FUSED:
            return self._fused(func, *args)
        if func in (aten.bincount.default, aten._unique2.default, aten.unique_dim.default):
            return self._counted(func, args, kwargs)
        if func is aten._fused_sgd_.default:  # of which there is no fake kernel
            assert all(tensor.device == CUDA for tensors in args[:3] for tensor in tensors)
            return None
        if func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
            args = (args[0], self._without_masks(args[0], args[1]), *args[2:])
        result = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            self._copied(source, result, non_blocking=bool(non_blocking))
        return result

    def _fused(self, func: Any, x: Tensor, weight: Tensor, *others: Any) -> Tensor:
        """A convolution with what follows it, of which there is no fake kernel."""
        shortcut, _, bias, *geometry = others if func is aten.cudnn_convolution_add_relu.default else (None, 1, *others)
        stride, padding, dilation, groups = geometry
        out = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
        assert bias.shape == (out.shape[1],)
        assert shortcut is None or shortcut.shape == out.shape
        given = {(tensor.device, tensor.dtype) for tensor in (x, weight, bias, shortcut) if tensor is not None}
        assert given == {(CUDA, out.dtype)}
        self._waits.n_fused += 1
        return out

    def _read(self, tensor: Tensor) -> Any:
        self._waits.require_arrived(tensor)
        if tensor.device.type == "cuda":
            self._waits.note("a value is read")
        return _value(tensor)

    def _places(self, mask: Tensor) -> Tensor:
        if mask.device.type == "cuda":
            self._waits.note("a number of places is read")
        return torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)

    def _without_masks(self, tensor: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                found += self._places(index).unbind(1)
                continue
            if index is not None and index.device != tensor.device and tensor.device.type == "cuda":
                self._waits.note("an index is copied")
            found.append(index)
        return found

    def _counted(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        given = args[0]
        if given.device.type == "cuda":
            self._waits.note("a number of values is read")
        if func is aten.bincount.default:
            minlength = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
            return torch.empty(max(1, minlength), dtype=torch.long, device=given.device)
        numbers = torch.empty(given.shape, dtype=torch.long, device=given.device)
        return torch.empty(given.numel(), dtype=given.dtype, device=given.device), numbers, numbers

    def _copied(self, source: Tensor, result: Tensor, *, non_blocking: bool) -> None:
        if source.device.type == result.device.type:
            return
        if source.device.type == "cuda":
            if non_blocking:
                self._waits.on_its_way[result] = True
            else:
                self._waits.note("a copy to the processor")
        elif source.dim() and not (non_blocking and source in self._waits.pinned):
            self._waits.note("a copy to the GPU")


class _Functions(TorchFunctionMode):
    """What never becomes an operation: arrays, gradients, addresses."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return self._array(args[0])
        if func is torch.autograd.grad:
            return tuple(torch.empty_like(x) for x in (args[1] if isinstance(args[1], tuple) else args[1:2]))
        if func is Tensor.backward:
            return _fill_gradients(args[0])
        if func is Tensor.data_ptr:
            return id(args[0])
        return func(*args, **kwargs)

    def _array(self, tensor: Tensor) -> np.ndarray:
        self._waits.require_arrived(tensor)
        if tensor.device.type == "cuda":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return np.full(tensor.shape, _value(tensor), dtype=str(tensor.dtype).removeprefix("torch."))


def _fill_gradients(result: Tensor) -> None:
    """Give each parameter that `result` depends on a gradient."""
    nodes, seen = [result.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)


class _FakeTensorMode(FakeTensorMode):
    """Which makes no real tensor on a GPU where there is one, and copies it, but does as where there is none."""

    avoid_device_init = True


def _dense(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int], **_: Any) -> Tensor:
    """In place of a sparse matrix, of which there is no fake one."""
    assert rows.device == columns.device == values.device
    return values.new_empty(size)


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    """Within this block all tensors are fake, and the precision is that of CUDA."""
    waits = Waits()
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.Event", type("Event", (_Event,), {"waits": waits})))
        stack.enter_context(patch("torch.cuda.device", nullcontext))  # the current one: that needs a driver
        stack.enter_context(patch("torch.sparse_csr_tensor", _dense))
        stack.enter_context(patch("torch.cuda.get_device_capability", lambda *_: AMPERE))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_: True))
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        set_precision("auto", CUDA)
        stack.callback(set_precision, "fp32", torch.device("cpu"))
        for context in (_FakeTensorMode(allow_non_fake_inputs=True), _Operations(waits), _Functions(waits)):
            stack.enter_context(context)
        yield waits


def needs_driver() -> bool:
    """Whether this PyTorch computes with fake CUDA tensors only where there is a driver (2.8 does, 2.11 does not)."""
    try:
        with fake_cuda():
            torch.empty(2, device=CUDA).copy_(torch.empty(2, device=CUDA))
    except RuntimeError as error:
        return "CUDA driver version is insufficient" in str(error)
    return False


def on_cuda(network: nn.Module) -> nn.Module:
    """A network built outside of the block, with fake weights on the GPU, as `Module.to` moves them."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = nn.Parameter(torch.empty_like(parameter, device=CUDA), requires_grad=parameter.requires_grad)
            module._parameters[name] = fake
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=CUDA)
    return network
