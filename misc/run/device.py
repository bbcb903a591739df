"""The device of this process: its precision, its random generators, and what makes CUDA fast.

A GPU works through a queue that the processor fills, and idles where that runs empty, as it does whenever the processor
waits for a result. So numbers go to the GPU from page-locked memory (`to_device`), results come back while the next
ones are computed (`Arriving`), and a training reads its losses one step late (`misc.run.training.fit`).
"""

import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from misc.errors import InputError, reason_of
from misc.run.notices import notice
from misc.run.parallel import SHARE_GPUS, gpus_are_shared, launched_here, launched_local_rank

AMPERE = (8, 0)
"""The compute capability from which on NVIDIA's GPUs have tensor cores for TF32 and bfloat16."""
NVIDIA_DRIVER, NVIDIA_TOOL = Path("/proc/driver/nvidia/version"), "nvidia-smi"
"""What is there where NVIDIA's driver is, the tool alone in WSL."""
HIDES_GPUS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which a user, or SLURM, wants none."""
THOR = {(10, 1), (11, 0)}
"""The compute capability of one chip, which CUDA 13 calls otherwise."""


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> a device; auto takes CUDA where there is a GPU.

    Of several processes on a machine each has a GPU of its own, unless they are to share them (`gpus_are_shared`).
    `InputError` for CUDA without a GPU, or with too few.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device cuda: PyTorch finds no GPU here ({_why_no_gpu()}); pass --device cpu, or see docs/install.md, "
            "which tells what may be missing."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    n_gpus = torch.cuda.device_count()
    n_here = max(launched_here(), launched_local_rank() + 1)  # which all processes of a machine find alike
    if n_here > n_gpus and not gpus_are_shared():
        raise InputError(
            f"each process needs a GPU, and here are {n_gpus}; start no more than these (torchrun --nproc_per_node), "
            f"pass --device cpu, or, to try it, set {SHARE_GPUS}=1, with which processes share a GPU and are slow."
        )
    return torch.device(name, launched_local_rank() % n_gpus)


def _is_nvidia(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's: PyTorch calls AMD's `cuda` as well."""
    return device.type == "cuda" and torch.version.hip is None


def _why_no_gpu() -> str:
    """Why PyTorch finds no GPU, in its own words."""
    try:
        torch.cuda.init()
    except Exception as error:  # of one of PyTorch's own kinds
        return reason_of(error)
    return "none is visible"


def tell_of_device(name: str, precision: str, device: torch.device) -> None:
    """Tell the log what makes a run slow: a GPU that is there and can't be used, or that lacks `precision`.

    `name`: what `device` was resolved from.
    """
    if precision == "bf16" and _is_nvidia(device) and torch.cuda.get_device_capability(device) < AMPERE:
        notice(f"--precision bf16 is slow on {_described(device)}, which has no arithmetic of bfloat16")
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in HIDES_GPUS
    has_driver = NVIDIA_DRIVER.exists() or shutil.which(NVIDIA_TOOL) is not None
    if name == "auto" and device.type == "cpu" and has_driver and not is_hidden:
        notice(
            f"the CPU does all the work: PyTorch finds no GPU, though NVIDIA's driver is here ({_why_no_gpu()}); "
            "docs/install.md tells what may be missing, and --device cpu is without this notice"
        )


def _described(gpu: torch.device) -> str:
    """A GPU of NVIDIA's, by its name and what it can."""
    major, minor = torch.cuda.get_device_capability(gpu)
    return f"the GPU here ({torch.cuda.get_device_name(gpu)}, compute capability {major}.{minor})"


def require_code_for(device: torch.device) -> None:
    """Raise `InputError` for a GPU that this PyTorch has no code for, or that can't be asked what it is."""
    if not _is_nvidia(device):
        return
    try:
        capability, gpu = torch.cuda.get_device_capability(device), _described(device)
    except Exception as error:  # the driver's and PyTorch's own kinds
        raise InputError(
            f"--device: the GPU can't be used ({reason_of(error)}); pass --device cpu, or name another one in "
            "CUDA_VISIBLE_DEVICES."
        ) from error
    known = torch.cuda.get_arch_list()
    if known and not any(_runs_on(capability, architecture) for architecture in known):
        raise InputError(
            f"--device: PyTorch {torch.__version__} has no code for {gpu}, but for {', '.join(known)}; install a build "
            "that has it (docs/install.md tells which), or pass --device cpu."
        )


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """Whether code for `sm_86` or `compute_90`, as PyTorch names what it is built for, runs on a GPU."""
    kind, _, number = architecture.partition("_")
    built_for = divmod(int("".join(filter(str.isdigit, number))), 10)
    if kind == "compute":  # which the driver translates for all later ones
        return built_for <= capability
    return (built_for[0] == capability[0] and built_for[1] <= capability[1]) or {built_for, capability} <= THOR


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries may draw from NumPy's global generator)
    torch.manual_seed(seed)


_backbone_dtype: torch.dtype | None = None


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision that runs on `device`: auto and tf32 are tf32 on CUDA and fp32 elsewhere."""
    if name in ("auto", "tf32"):
        return "tf32" if device.type == "cuda" else "fp32"
    return name


def set_precision(name: str, device: torch.device) -> str:
    """Choose the precision of this process, as torch's own switches are; returns its resolved name.

    `fp32`: float32 everywhere. `tf32`: matrix products and convolutions on tensor cores with 10 bits of mantissa (CUDA
    only; elsewhere it is fp32). `bf16`: backbones in bfloat16, all else (heads, losses, weights) as in tf32.
    """
    global _backbone_dtype
    name = resolve_precision(name, device)
    tensor_cores = device.type == "cuda" and name != "fp32"
    torch.set_float32_matmul_precision("high" if tensor_cores else "highest")
    torch.backends.cudnn.allow_tf32 = tensor_cores
    _backbone_dtype = torch.bfloat16 if name == "bf16" else None
    return name


@contextmanager
def backbones_in_float32() -> Iterator[None]:
    """Whatever `set_precision` said: for what outlives this process."""
    global _backbone_dtype
    kept, _backbone_dtype = _backbone_dtype, None
    try:
        yield
    finally:
        _backbone_dtype = kept


def backbone_precision(device: torch.device) -> AbstractContextManager:
    """The context in which a backbone runs on `device`: bfloat16 where `set_precision` said so."""
    if _backbone_dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=_backbone_dtype)


@contextmanager
def one_size(yes: bool = True) -> Iterator[None]:
    """cuDNN's benchmark mode, for a training, whose crops are all of one size; `yes` False leaves the mode.

    cuDNN then tries its algorithms on the first batch and keeps the fastest. Whole images are of many sizes, and each
    one would be tried for longer than it is computed: for these the mode stays off.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = yes
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def may_fuse_relu(device: torch.device) -> bool:
    """Whether cuDNN shall add bias and shortcut and apply ReLU in the kernel that convolves: with TF32 or 16 bits.

    Each of them is a pass over memory otherwise, and together they take nearly as long as the convolutions. In full
    float32 nothing is gained; GPUs before NVIDIA's Ampere, and AMD's, have no such kernels or other ones.
    """
    cudnn = torch.backends.cudnn
    return (
        _is_nvidia(device) and cudnn.enabled and cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= AMPERE
    )


def may_fuse(parameters: Iterable[Tensor]) -> bool:
    """Whether an optimiser shall update these parameters by one kernel for many of them: on CUDA.

    SGD reads and writes little for each weight, so that the time goes into starting kernels. On the CPU it does not.
    """
    return all(parameter.device.type == "cuda" for parameter in parameters)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`, without waiting for the copy.

    Only page-locked memory is copied while the processor goes on. What a loader brings is in it already; all else of
    the CPU is put there first, which PyTorch keeps until the copy is done.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


class Arriving:
    """A tensor on its way to the CPU: the copy begins at once, and `wait` gives it when it is there, in any thread."""

    def __init__(self, x: Tensor) -> None:
        self._copied = None
        self._x = x.detach()
        self._device = x.device
        if x.device.type == "cuda":
            self._x = self._x.to("cpu", non_blocking=True)  # into page-locked memory
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> Tensor:
        """The tensor on the CPU."""
        if self._copied is not None:
            with torch.cuda.device(self._device):  # each thread has a current one of its own, at first the first GPU
                self._copied.synchronize()
        return self._x


def when_arrived(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with the tensors for those of the arguments that are `Arriving`."""
    return function(*(arg.wait() if isinstance(arg, Arriving) else arg for arg in args))


class UnfilledNetworks(TorchFunctionMode):
    """Within this block networks are built with whatever lies in memory, for weights that take its place or for none.

    Random weights, and their copies in channels-last order, take most of a build's time.
    """

    def __init__(self, *, keep_layout: bool = False) -> None:
        """`keep_layout`: whether channels are last where the network has it so, for one that is to compute."""
        super().__init__()
        self._keep_layout = keep_layout

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            return args[0] if args else kwargs["tensor"]
        if func is Tensor.to and not self._keep_layout:
            kwargs.pop("memory_format", None)
        return func(*args, **kwargs)


_FILLING = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.trunc_normal_),
    }
)
