"""Measuring: a process for each way, wall time, peak memory, FLOPs, and the speed of the machine itself."""

import gc
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from misc.run.memory import peak_memory_mib, reset_peak_memory
from misc.run.parallel import usable_cores

SAMPLING_SECONDS, CLOSING_SECONDS = 0.1, 10
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
SPEED_RUNS = 4
WARM_UP_UPDATES = 3
"""Of a training: its first ones, of which the last two count."""
SHARED_MEMORY = Path("/dev/shm")


class BenchmarkError(Exception):
    """A way failed; the message tells how."""


@dataclass(frozen=True)
class Way:
    """One way of a step, ready to run.

    Attributes:
        call: does the work once.
        result: what the last call computed, by name; not timed.
        units: what the time is divided by, such as the images of a call.
        untimed_updates: None to time the call; else the call trains, and the time is that between its updates, all
            that belongs to them included, but for this many (at least 1) at the start and as many at the end.
        busy_cores: None for the time of the wall; else the call keeps this many cores busy, and the time is that of the
            CPU, of this process and of the workers that ended with the call, over this number. It is that of the wall
            where nothing else runs, and hardly more where something does.
    """

    call: Callable[[], object]
    result: Callable[[], dict[str, np.ndarray]]
    units: int = 1
    untimed_updates: int | None = None
    busy_cores: int | None = None

    def clock(self) -> float:
        """Seconds, from some start."""
        if self.busy_cores is None:
            return time.perf_counter()
        spent = os.times()
        return (spent.user + spent.system + spent.children_user + spent.children_system) / self.busy_cores


@dataclass(frozen=True)
class Run:
    """What a call of a `Way` took: per unit, and peak memory in MiB where it is known (see `Worker.warm_up`)."""

    seconds: float
    flops: float = 0.0
    host_mib: float = float("nan")
    gpu_mib: float | None = None


def synchronize(device: torch.device) -> None:
    """Wait for what was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Hand back what the GPU keeps in store for this process: the benchmark and both ways share its memory."""
    gc.collect()  # a training that was ended in the middle has left some in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def require_shared_memory(n_bytes: int) -> None:
    """Raise `BenchmarkError` if there is less for loaders' batches: the system would kill the workers (Linux)."""
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < n_bytes:
        raise BenchmarkError(
            f"the plain way's batches take {n_bytes / 2**20:,.0f} MiB of shared memory, {SHARED_MEMORY} has "
            f"{free / 2**20:,.0f} MiB (in a container: --shm-size)"
        )


class Enough(Exception):
    """Ends a training of which no more updates are wanted."""


class UpdateClock:
    """When each update of whatever optimiser runs meanwhile was done, and the FLOPs so far.

    On a GPU these moments are events in its queue, so that nobody waits for it: the next update is prepared meanwhile,
    as it is without a clock. `at_most`: after how many updates `Enough` is raised.
    """

    def __init__(
        self, device: torch.device, counter: FlopCounterMode | None = None, *, at_most: int | None = None
    ) -> None:
        self._device, self._counter, self._at_most = device, counter, at_most
        self._moments: list[float | torch.cuda.Event] = []
        self.flops: list[float] = []

    def __enter__(self) -> "UpdateClock":
        self._hook = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def __len__(self) -> int:
        return len(self._moments)

    def _note(self, *_: object) -> None:
        if self._device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._moments.append(moment)
        self.flops.append(self._counter.get_total_flops() if self._counter else 0)
        if len(self) == self._at_most:
            raise Enough

    def per_update(self, first: int, last: int) -> tuple[float, float]:
        """Seconds and FLOPs of an update, from the one of number `first` to that of number `last`."""
        if last <= first:
            raise BenchmarkError(f"{len(self)} updates are too few: {first + 1} or more at each end are not timed")
        synchronize(self._device)
        begin, end = self._moments[first], self._moments[last]
        seconds = begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
        return seconds / (last - first), (self.flops[last] - self.flops[first]) / (last - first)


def _matrix_product_flops(a: Tensor, b: Tensor, *_: object, **__: object) -> int:
    """Of a @ b; a sparse matrix counts with its entries (torch's own formula takes it for a dense one)."""
    entries = a.numel() if a.layout == torch.strided else a._nnz()
    return 2 * entries * b.shape[1]


def _added_product_flops(_summand: Tensor, a: Tensor, b: Tensor, *_: object, **__: object) -> int:
    """Of a @ b added to a matrix: as the product counts."""
    return _matrix_product_flops(a, b)


def _fused_convolution_flops(_x: Tensor, weight: Tensor, *_: object, out_val: Tensor, **__: object) -> int:
    """Of a convolution with what follows it: as one alone, which torch's own formulas count."""
    return 2 * out_val.numel() * weight[0].numel()


for _formula in (_matrix_product_flops, _added_product_flops, _fused_convolution_flops):
    _formula._get_raw = True  # the counter hands over tensors in place of shapes


class _TotalOnly:
    """In place of the counter's tracker of modules, whose hooks fail where a gradient of a module's input is taken."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """Counts convolutions and matrix products, forward and backward, of all modules together."""
    aten = torch.ops.aten
    formulas = {aten.mm: _matrix_product_flops, aten.addmm: _added_product_flops}
    formulas |= dict.fromkeys((aten.cudnn_convolution_relu, aten.cudnn_convolution_add_relu), _fused_convolution_flops)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _TotalOnly()
    return counter


def warm_up(way: Way, device: torch.device, *, count: bool) -> Run:
    """As `run_once`, but of a training the first updates alone, which take up what there is to take up."""
    if way.untimed_updates is None:
        return run_once(way, device, count=count)
    counter = flop_counter() if count else None
    with counter or nullcontext(), UpdateClock(device, counter, at_most=WARM_UP_UPDATES) as clock, suppress(Enough):
        way.call()
    return Run(*clock.per_update(0, len(clock) - 1))


def run_once(way: Way, device: torch.device, *, count: bool = False) -> Run:
    """Time a call; with `count` its FLOPs too."""
    counter = flop_counter() if count else None
    synchronize(device)
    with counter or nullcontext(), UpdateClock(device, counter) as clock:
        started = way.clock()
        way.call()
        synchronize(device)
        seconds = way.clock() - started
    if way.untimed_updates is None:
        return Run(seconds / way.units, counter.get_total_flops() / way.units if counter else 0.0)
    return Run(*clock.per_update(way.untimed_updates - 1, len(clock) - way.untimed_updates - 1))


class Worker:
    """A `Way` in a process of its own, so that its peak memory is its own, driven from here.

    `prepare()` makes the way there. What it prints goes to the end of the file `log`.
    """

    def __init__(self, prepare: Callable[[], Way], *, device: torch.device, log: Path) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, device, log, get_start_method()))
        self._log = log
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # at which the process ends, unless it is in the middle of a run
        self._process.join(CLOSING_SECONDS)
        self._process.terminate()
        self._process.join()

    def warm_up(self, *, count: bool) -> Run:
        """The first run, or a training's beginning, with the peak memory of the process, its workers and the GPU."""
        return self._ask("warm up", count, sample=True)

    def run(self) -> Run:
        """A run, timed."""
        return self._ask("run")

    def result(self) -> dict[str, np.ndarray]:
        """What the last run computed."""
        return self._ask("result")

    def _ask(self, *command: object, sample: bool = False) -> Any:
        tree_mib = 0.0
        try:
            self._connection.send(command)
            while sample and not self._connection.poll(SAMPLING_SECONDS):
                tree_mib = max(tree_mib, tree_memory_mib(self._process.pid))
            kind, answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise BenchmarkError(
                f"the process ended with code {self._process.exitcode} (-9: out of memory?); see {self._log}"
            ) from error
        if kind == "failed":
            raise BenchmarkError(answer)
        if sample:
            run, peaks = answer
            host = max(peaks.get("process", float("nan")), tree_mib)
            return Run(run.seconds, run.flops, host, peaks.get("gpu"))
        return answer


def _serve(
    connection: Connection, prepare: Callable[[], Way], device: torch.device, log: Path, start_method: str
) -> None:
    """The other end of a `Worker`: does what it is asked to until the pipe closes."""
    with log.open("a") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    # A spawned process would spawn its loaders' workers too, which takes seconds; they start as they do elsewhere
    set_start_method(start_method, force=True)
    try:
        way = prepare()
        while True:
            try:
                command = connection.recv()
            except EOFError:
                return
            match command:
                case ("warm up", count):
                    reset_peak_memory(device)
                    answer = (warm_up(way, device, count=count), peak_memory_mib(device))
                case ("run",):
                    answer = run_once(way, device)
                case ("result",):
                    answer = way.result()
            release_memory(device)
            connection.send(("done", answer))
    except Exception as error:  # told to the process that asked, which goes on with the other steps
        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def tree_memory_mib(pid: int) -> float:
    """Memory of a process and its descendants, shared pages split between them (Linux; elsewhere 0)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended, or there is no /proc
        return 0.0
    pss = next((line for line in rollup.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(pss.split()[1]) / 1024 + sum(tree_memory_mib(int(child)) for child in children)


def difference(ours: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> float | None:
    """The largest difference between arrays of one name; None if no name is in both.

    Of floating-point arrays relative to the largest magnitude, of labels the share of cells that differ.
    """
    found = []
    for name in ours.keys() & plain.keys():
        a, b = ours[name], plain[name]
        if a.shape != b.shape:
            raise BenchmarkError(f"{name} has shape {a.shape} in our way and {b.shape} in the plain one")
        if np.issubdtype(a.dtype, np.floating):
            found.append(float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)))
        else:
            found.append(float((a != b).mean()))
    return max(found, default=None)


def processor_name() -> str:
    """Model of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine_name(device: torch.device) -> str:
    """Model of the CPU, cores, the GPU where it is used, and the versions that matter."""
    parts = [
        f"{processor_name()}, {usable_cores()} cores",
        f"torch {torch.__version__} with {torch.get_num_threads()} threads",
    ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
        parts.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    return "; ".join(parts)


def _fastest(function: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(SPEED_RUNS + 1):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, the fastest of several, in a precision that `set_precision` has set.

    Tried as a product and as a 1x1 convolution, for which torch has different libraries.
    """
    side = MATRIX_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image = a.T.reshape(1, side, 32, side // 32).contiguous(memory_format=torch.channels_last)
    weight = b.view(side, side, 1, 1).clone().to(memory_format=torch.channels_last)
    ways = (lambda: a @ b, lambda: F.conv2d(image, weight))
    return 2 * side**3 / min(_fastest(way, device) for way in ways)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy, the fastest of several."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device.type] / _fastest(lambda: target.copy_(source), device)
