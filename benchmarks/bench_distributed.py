"""Trainings in several processes: `python benchmarks/bench_distributed.py measure` or `model`; both print a table.

`measure`: two processes of one thread each against one of two threads, on the CPU and on the same batches, from one
update to the next. Both run in turn, so that other work on the machine hits both, and the median of the pairs' ratios
is printed, with the bytes that the collectives of an update are given.

`model`: the time of an update on many GPUs, computed from the FLOPs of `count_flops.py` and the speeds of links that
`Assumptions` names. Nothing is measured for it.
"""

import argparse
import dataclasses
import math
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm

from benchmarks import workloads
from benchmarks.count_flops import Part, count
from benchmarks.measure import Way, Worker, machine_name
from benchmarks.workloads import CPU_SIZES, Inputs, Sizes, Workload
from misc.run.config import Config, parse_config
from misc.run.distributed import BUCKET_BYTES, process_group
from misc.run.parallel import usable_cores

CPU = torch.device("cpu")
N_PROCESSES = 2
SIZES = dataclasses.replace(CPU_SIZES, crop=128, deeplab_crop=65, irn_crop=256, timed_updates=4)
TO_THE_END = ExitStack()
"""What a process holds as long as it lives."""
MIB, MILLISECONDS = 2**20, 1e3
TRAININGS = {
    "train_cam": workloads.wood_step,
    "train_irn": workloads.irn_step,
    "train_deeplab": workloads.deeplab_step,
}


# Measured


class Transfers:
    """Counts what the collectives of each update are given; those that run beside the backward pass are gradients."""

    def __init__(self) -> None:
        self._sums = {"gradient bytes": 0, "other bytes": 0, "gradient calls": 0, "other calls": 0}
        self._of_updates: list[list[int]] = []

    def __enter__(self) -> "Transfers":
        self._collectives = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
        for name, collective in self._collectives.items():
            setattr(dist, name, partial(self._count, collective))
        self._hook = register_optimizer_step_post_hook(lambda *_: self._of_updates.append([*self._sums.values()]))
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        for name, collective in self._collectives.items():
            setattr(dist, name, collective)

    def _count(self, collective: Callable, tensor: torch.Tensor | list[torch.Tensor], *args: object, **how: object):  # noqa: ANN202
        kind = "gradient" if how.get("async_op") else "other"
        self._sums[f"{kind} bytes"] += sum(t.nbytes for t in (tensor if isinstance(tensor, list) else [tensor]))
        self._sums[f"{kind} calls"] += 1
        return collective(tensor, *args, **how)

    def of_an_update(self) -> dict[str, np.ndarray]:
        """The medians, by name: an update of a training's first steps has more, before it."""
        medians = np.median(np.diff(self._of_updates, axis=0), axis=0)
        return dict(zip(self._sums, medians, strict=True))


def free_port() -> int:
    """One of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prepare(make: Callable[..., Workload], arguments: tuple, *, rank: int, n_processes: int, port: int) -> Way:
    """The training of a workload as process `rank` of several runs it, with its share of the cores."""
    torch.set_num_threads(max(1, usable_cores() // n_processes))
    if n_processes > 1:
        settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        settings |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), n_processes)
        os.environ.update({name: str(value) for name, value in settings.items()})
        TO_THE_END.enter_context(process_group(lambda: CPU))
    transfers = TO_THE_END.enter_context(Transfers())
    way = workloads.prepare(make, arguments, "ours", device=CPU.type, precision="fp32")
    return dataclasses.replace(way, result=transfers.of_an_update)


class Processes:
    """A training in several processes."""

    def __init__(self, make: Callable[..., Workload], arguments: tuple, n_processes: int, *, log: Path) -> None:
        settings = {"n_processes": n_processes, "port": free_port()}
        self._ways = [partial(prepare, make, arguments, rank=rank, **settings) for rank in range(n_processes)]
        self._log = log

    def __enter__(self) -> "Processes":
        with ExitStack() as stack:
            self._workers = [stack.enter_context(Worker(way, device=CPU, log=self._log)) for way in self._ways]
            self._pool = stack.enter_context(ThreadPoolExecutor(len(self._workers)))
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def seconds(self) -> float:
        """Of an update: of the slowest process."""
        return max(run.seconds for run in self._pool.map(Worker.run, self._workers))

    def transfers(self) -> dict[str, np.ndarray]:
        """Of an update, by each process (`Transfers`)."""
        return self._workers[0].result()


def compare(make: Callable[..., Workload], data: Inputs, sizes: Sizes, *, repeats: int, log: Path) -> str:
    """A training in one process and in two: the cells of its row."""
    arguments = (data, sizes)
    workload = make(*arguments)  # which draws the images, once for all processes
    with (
        Processes(make, arguments, 1, log=log) as one,
        Processes(make, arguments, N_PROCESSES, log=log) as several,
    ):
        pairs = []
        for number in range(repeats):  # a training's first updates, which are not timed, warm up
            times = {arm: arm.seconds() for arm in ((one, several), (several, one))[number % 2]}
            pairs.append((times[one], times[several]))
        found = several.transfers()
    ratios = [alone / together for alone, together in pairs]
    alone, together = (statistics.median(times) for times in zip(*pairs, strict=True))
    cells = (
        workload.on,
        f"{alone:.2f}",
        f"{together:.2f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        f"{found['gradient bytes'] / MIB:.1f} in {found['gradient calls']:.0f}",
        f"{found['other bytes']:,.0f} in {found['other calls']:.0f}",
    )
    return " | ".join(cells)


def measure(names: Sequence[str], *, sizes: Sizes, repeats: int) -> str:
    """The table of the trainings called `names`, as Markdown."""
    lines = [
        f"{machine_name(CPU)}; {repeats} pairs\n",
        "| training | batch | one process, s an update | two, s | one / two | gradients: MiB, transfers | "
        "other collectives: bytes, calls |",
        "| --- " * 7 + "|",
    ]
    for name in tqdm(names, unit="training"):
        with tempfile.TemporaryDirectory(prefix="bench_distributed_") as folder:
            data = Inputs(Path(folder, "data"), Path(folder, "weights"), CPU.type)
            try:
                row = compare(TRAININGS[name], data, sizes, repeats=repeats, log=Path(folder, "output.txt"))
            except Exception:
                print(Path(folder, "output.txt").read_text()[-3000:], file=sys.stderr)
                raise
        lines.append(f"| `{name}` | {row} |")
    return "\n".join(lines)


# Computed


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted, none of it measured.

    Attributes:
        peak: FLOP/s of a GPU: an A100's tensor cores in TF32.
        share: of it, that a step's convolutions attain, however few images a GPU gets.
        gpus_per_machine: joined by NVLink.
        nvlink: bytes/s of a GPU in each direction: an A100's.
        infiniband, ethernet: bytes/s of a machine in each direction, 200 Gb/s and 100 Gb/s.
        link_share: of a link's bytes/s, that a transfer attains.
        latency_within, latency_between: seconds of a collective beside its bytes, in one machine and in several.
    """

    peak: float = 156e12
    share: float = 0.4
    gpus_per_machine: int = 8
    nvlink: float = 300e9
    infiniband: float = 25e9
    ethernet: float = 12.5e9
    link_share: float = 0.8
    latency_within: float = 30e-6
    latency_between: float = 100e-6


@dataclass(frozen=True)
class Update:
    """A training's update in one process, at a batch of `batch` images.

    Attributes:
        passes: forward and backward passes of such a batch for an update; the last one sends the gradients.
        flops, backward: of a pass, and of its backward part.
        gradient_bytes: that each process sends.
        n_small: other collectives of an update (`measure` counts them).
    """

    batch: int
    passes: int
    flops: float
    backward: float
    gradient_bytes: int
    n_small: int


@dataclass(frozen=True)
class Times:
    """Seconds of an update on several GPUs: all, the gradients' transfer, and the part of it that is waited for."""

    total: float
    transfer: float
    exposed: float


def update_time(update: Update, *, batch: int, n_gpus: int, between: float, assumed: Assumptions) -> Times:
    """The time of an update of a batch of `batch` images on `n_gpus` GPUs.

    The GPU with the most images, ceil(batch / n_gpus), determines it. A ring sends 2 (n - 1) / n times the gradients'
    bytes over its slowest link, beside the last backward pass. What takes longer than that pass is waited for, and the
    last bucket's transfer in any case, which begins when the pass ends. The other collectives take their latency.

    Args:
        between: bytes/s of a machine's link to others, passed once in each direction by the ring.
    """
    images = math.ceil(batch / n_gpus)
    rate = assumed.peak * assumed.share
    compute, backward = (images / update.batch * flops / rate for flops in (update.flops, update.backward))
    compute *= update.passes
    if n_gpus == 1:
        return Times(compute, 0, 0)
    within = n_gpus <= assumed.gpus_per_machine
    bandwidth = assumed.link_share * (assumed.nvlink if within else min(assumed.nvlink, between))
    latency = assumed.latency_within if within else assumed.latency_between
    transfer = latency + 2 * (n_gpus - 1) / n_gpus * update.gradient_bytes / bandwidth
    n_buckets = math.ceil(update.gradient_bytes / BUCKET_BYTES)
    exposed = max(transfer - backward, transfer / n_buckets)
    return Times(compute + exposed + update.n_small * latency, transfer, exposed)


SMALL_COLLECTIVES = {"train_cam": 8, "train_irn": 2, "train_deeplab": 5}
"""Of a pass, beside gradients, with the question whether a process was told to end."""


def updates(config: Config) -> dict[str, Update]:
    """The trainings of the model at the settings of the flags."""
    parts = {part.step: part for part in count(config) if part.gradient_bytes}
    passes = {"train_deeplab": config.deeplab_iter_size}
    batches = {
        "train_cam": config.cam_batch_size,
        "train_irn": config.irn_batch_size,
        "train_deeplab": config.deeplab_batch_size,
    }

    def update_of(name: str, part: Part) -> Update:
        n_passes = passes.get(name, 1)
        n_small = n_passes * (SMALL_COLLECTIVES[name] - 1) + 1
        return Update(batches[name], n_passes, part.flops, part.backward, part.gradient_bytes, n_small)

    return {name: update_of(name, parts[name]) for name in TRAININGS}


def model(trainings: dict[str, Update], n_gpus: Sequence[int], assumed: Assumptions) -> str:
    """The table of an update's time, as Markdown: the default batch as far as it goes, then one that grows."""
    lines = [
        "| training | GPUs | batch | images a GPU | link | update, ms | gradients' transfer, ms | of it waited for, ms "
        "| images/s, times one GPU's |",
        "| --- " * 9 + "|",
    ]
    links = {"InfiniBand": assumed.infiniband, "Ethernet": assumed.ethernet}
    for name, update in trainings.items():
        fewest = math.ceil(update.batch / assumed.gpus_per_machine)
        alone = update_time(update, batch=update.batch, n_gpus=1, between=math.inf, assumed=assumed)
        for n in sorted({1, update.batch, *n_gpus}):
            batch = max(update.batch, n * fewest) if n > update.batch else update.batch
            grown = "" if batch == update.batch else " (grown)"
            within = n <= assumed.gpus_per_machine
            for link, between in [("NVLink" if n > 1 else "-", math.inf)] if within else links.items():
                times = update_time(update, batch=batch, n_gpus=n, between=between, assumed=assumed)
                speedup = batch / times.total / (update.batch / alone.total)
                of_update = " | ".join(
                    f"{MILLISECONDS * seconds:.3g}" for seconds in (times.total, times.transfer, times.exposed)
                )
                lines.append(
                    f"| `{name}` | {n} | {batch}{grown} | {math.ceil(batch / n)} | {link} | {of_update} | "
                    f"{speedup:.1f} ({speedup / n:.0%}) |"
                )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure", help="two processes against one, on the CPU")
    measured.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="NAME")
    measured.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    computed = commands.add_parser("model", help="an update's time on many GPUs; computed, not measured")
    computed.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    for item in dataclasses.fields(Assumptions):
        computed.add_argument(f"--{item.name}", type=type(item.default), default=item.default)
    options = parser.parse_args(arguments)
    numbers = [options.repeats] if options.command == "measure" else [*options.gpus, *_assumed(options).values()]
    if min(numbers) <= 0:
        parser.error("expected numbers above zero")
    return options


def _assumed(options: argparse.Namespace) -> dict[str, float]:
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(Assumptions)}


def main() -> None:
    """Print the table that the command line asks for."""
    options = parse()
    if options.command == "measure":
        print(measure(options.trainings, sizes=SIZES, repeats=options.repeats))
    else:
        print(model(updates(parse_config([])), options.gpus, Assumptions(**_assumed(options))))


if __name__ == "__main__":
    main()
