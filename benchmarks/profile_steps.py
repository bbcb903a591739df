"""Where the time of a computation goes: `python benchmarks/profile_steps.py [--steps NAME ...]`.

The steps run as they are, on one image or batch of those of `bench_steps.py`, while PyTorch's profiler notes every
operation: of a training two updates, of the others the whole step. On a GPU it is the time of its kernels.
Dense CRF, which runs in processes of its own on a CPU, is done by the profiled one here. The page goes to
benchmarks/results/; `OMP_NUM_THREADS` sets the number of threads.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_steps, workloads
from benchmarks.measure import Enough, Way, flop_counter, machine_name, matrix_rate, synchronize
from benchmarks.table import DEVICE_TITLES
from benchmarks.workloads import CPU_SIZES, GPU_SIZES, Inputs, Sizes, Workload
from misc.errors import InputError
from misc.files.atomic import atomic_path
from misc.run.device import resolve_device, set_precision
from misc.run.plan import require_writable
from voc12.inference import DEVICE_BATCH

STEPS: Mapping[str, Callable[..., Workload]] = {
    "train_deeplab": workloads.deeplab_step,
    "eval_deeplab": partial(workloads.segmentation, crf_workers=0),
    "make_cam": workloads.cams,
    "train_cam": workloads.wood_step,
    "make_advcam": workloads.advcams,
    "train_irn": workloads.irn_step,
    "make_sem_seg_labels": lambda data, sizes: workloads.sem_seg(data, sizes.walk_target, sizes.masks, 1),
}
UPDATES = 2
"""Of a training, that are profiled."""
ITERATIONS = 4
"""Of AdvCAM."""
TOP = 8
"""Operations that are named."""
OPTIMISER, OTHER, OUTSIDE = "optimiser", "other operations", "no operation: Python, files, waiting"
LOADER = "enumerate(DataLoader)"
"""What the name of waiting for the next batch begins with."""
KINDS = {
    "convolution": ("convolution", "conv2d", "conv_"),
    "matrix product": ("mm", "addmm", "bmm"),
    "batch norm": ("batch_norm", "rsqrt"),
    "activation": ("relu", "clamp_min", "threshold", "softmax", "sigmoid"),
    "pooling": ("pool", "mean"),
    "resizing": ("upsample",),
    "sums of weighted rows (dense CRF)": ("embedding_bag",),
    "copies and layout": ("copy", "clone", "cat", "fill", "zero", "pad", "col2im", "im2col", "index", "flip", "stack"),
    "sums and products (folded norms, residuals)": ("mul", "add", "sub", "div", "sum"),
}
"""Kinds of operations and what their names hold; the first kind that fits."""


@dataclass(frozen=True)
class Profile:
    """Of a step, per unit of its work.

    Attributes:
        on: the inputs.
        seconds: while it was profiled.
        flops: of its convolutions and matrix products.
        kinds, operations: seconds of each; these without those that they call.
        calls: of each operation.
    """

    on: str
    seconds: float
    flops: float
    kinds: Mapping[str, float]
    operations: Mapping[str, float]
    calls: Mapping[str, float]


def kind_of(name: str) -> str:
    """The kind of an operation such as `aten::add_`."""
    # A product's name is part of others' (`mm` in `common`), so that short ones are matched whole
    words = {*name.removeprefix("aten::").strip("_").split("_"), name.removeprefix("aten::")}
    for kind, parts in KINDS.items():
        if any(part in words or (len(part) > 3 and part in name.lower()) for part in parts):
            return kind
    return OTHER


def _belongs_to_optimiser(event: FunctionEvent) -> bool:
    while event is not None:
        if event.name.startswith("Optimizer.step"):
            return True
        event = event.cpu_parent
    return False


class _Watch:
    """The profiler, from `begin` to `end`, and the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu], acc_events=True)
        self.seconds = 0.0

    def begin(self) -> None:
        synchronize(self._device)
        self.profiler.start()
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        synchronize(self._device)
        self.seconds += time.perf_counter()
        self.profiler.stop()


def _watch_updates(way: Way, counter: FlopCounterMode, watch: _Watch) -> None:
    """Of a training: the first update warms up, the second is counted, the next ones are profiled, more are not run."""
    n_updates = 0
    counting = ExitStack()  # which ends with the training, however that ends

    def after_update(*_: object) -> None:
        nonlocal n_updates
        n_updates += 1
        if n_updates == 1:
            counting.enter_context(counter)
        elif n_updates == 2:
            counting.close()
            watch.begin()
        elif n_updates == 2 + UPDATES:
            watch.end()
            raise Enough

    hook = register_optimizer_step_post_hook(after_update)
    try:
        with counting:
            way.call()
    except Enough:
        return
    finally:
        hook.remove()


def measure(workload: Workload, way: Way, device: torch.device) -> Profile:
    """Count the FLOPs of a step, which warms up, then profile it."""
    counter, watch = flop_counter(), _Watch(device)
    if way.untimed_updates is None:
        with counter:
            way.call()
        watch.begin()
        way.call()
        watch.end()
        n_units, n_counted = way.units, way.units
    else:
        _watch_updates(way, counter, watch)
        n_units, n_counted = UPDATES, 1
    seconds = watch.seconds / n_units
    kinds, operations, calls = Counter(), Counter(), Counter()
    for event in watch.profiler.events():
        if event.device_type != DeviceType.CPU:
            continue
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        own /= 1e6 * n_units
        if not event.name.startswith(LOADER):
            kinds[OPTIMISER if _belongs_to_optimiser(event) else kind_of(event.name)] += own
        operations[event.name] += own
        calls[event.name] += 1 / n_units
    kinds[OUTSIDE] = max(0.0, seconds - sum(kinds.values()))
    return Profile(workload.on, seconds, counter.get_total_flops() / n_counted, kinds, operations, calls)


def _fewer(sizes: Sizes, device: torch.device) -> Sizes:
    """As much work as a profile needs."""
    one = {flag: getattr(sizes, flag)[:1] for flag in ("cam", "advcam", "segmented")}
    masks = 2 * DEVICE_BATCH if device.type == "cuda" else 1
    return replace(sizes, timed_updates=UPDATES, adv_iter=ITERATIONS, masks=masks, **one)


def section(name: str, of_step: Profile, rate: float) -> str:
    """A step's part of the page; `rate`: FLOP/s of a large matrix product."""
    step = bench_steps.STEPS[name]
    floor = of_step.flops / rate
    kinds = sorted(of_step.kinds.items(), key=lambda item: -item[1])
    operations = sorted(of_step.operations.items(), key=lambda item: -item[1])[:TOP]

    def share(seconds: float) -> str:
        return f"{seconds / of_step.seconds:.1%}"

    lines = [
        f"## {name}: {step.title}",
        "",
        f"{of_step.on}: {of_step.seconds:.3g} s per {step.unit} while profiled. Floor: {floor:.2g} s, "
        f"{floor / of_step.seconds:.0%} of it.",
        "",
        "| kind of operation | share of the time |",
        "| --- | --- |",
        *(f"| {kind} | {share(seconds)} |" for kind, seconds in kinds if seconds >= of_step.seconds / 1000),
        "",
        f"| operation | calls per {step.unit} | share of the time |",
        "| --- | --- | --- |",
        *(f"| {operation} | {of_step.calls[operation]:,.0f} | {share(seconds)} |" for operation, seconds in operations),
    ]
    return "\n".join(lines)


def page(profiles: Mapping[str, Profile], *, device: torch.device, precision: str, rate: float) -> str:
    """The whole page, in Markdown."""
    sections = "\n\n".join(section(name, of_step, rate) for name, of_step in profiles.items())
    return f"""# Where the time goes, {DEVICE_TITLES[device.type]}

{machine_name(device)}; {precision}; {date.today().isoformat()}. Printed by `python benchmarks/profile_steps.py`. The
profiler's own work is part of the times, and so is whatever else runs on the machine: shares tell more than seconds.

Floor: the FLOPs of convolutions and matrix products at the {rate / 1e9:,.0f} GFLOP/s of a large matrix product here. An
operation's time is its own, without that of the operations that it calls.

{sections}
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=bench_steps.PRECISIONS, default="auto", help="as in run_sample.py")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="NAME", help=", ".join(STEPS))
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/profile_{cpu,gpu}.md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Profile the steps and write the page. Raises `InputError` for bad input."""
    device = resolve_device(options.device)
    output = options.output or bench_steps.RESULTS / f"profile_{DEVICE_TITLES[device.type].lower()}.md"
    require_writable(output.parent, flag="output")
    precision = set_precision(options.precision, device)
    rate = matrix_rate(device, precision)
    sizes = _fewer(GPU_SIZES if device.type == "cuda" else CPU_SIZES, device)
    profiles = {}
    with tempfile.TemporaryDirectory(prefix="profile_steps_") as folder:
        for name in options.steps:
            make, data = STEPS[name], Inputs(Path(folder) / name, Path(folder) / "weights", device.type)
            way = workloads.prepare(make, (data, sizes), "ours", device=device.type, precision=precision)
            profiles[name] = measure(make(data, sizes), way, device)
            text = page(profiles, device=device, precision=precision, rate=rate)
            with atomic_path(output) as temporary:
                temporary.write_text(text)
    print(f"\n{text}\nwritten to {output}")


def main() -> int:
    """Run from the command line; returns the exit code."""
    try:
        run(parse())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
