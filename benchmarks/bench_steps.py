"""Each step against the plain way, in one run on the same inputs: `python benchmarks/bench_steps.py`.

Ours is what the step runs. The plain way (`plain.py`) is the original's: dense matrix powers, gradients of the whole
network, pair labels made on the CPU, one image at a time, an evaluation pass for each threshold. Each has a process of
its own; after a warm-up both run in turn, so that a change of the machine's speed hits both, and medians are printed.

The plain random walk of a 500 x 375 image takes minutes on a CPU. There it is extrapolated from a smaller map, and said
so, unless `--full` asks for it, which also trains DeepLab on a crop of the authors' size in place of two small ones.
The table goes to the screen and to benchmarks/results/, its numbers to a JSON file beside it, from which `--add` takes
those of the steps that are not measured again.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from benchmarks import workloads
from benchmarks.measure import (
    BenchmarkError,
    Run,
    Worker,
    copy_bandwidth,
    difference,
    machine_name,
    matrix_rate,
    release_memory,
)
from benchmarks.table import (
    Conditions,
    Cost,
    LargeWalk,
    Report,
    Row,
    Step,
    file_name,
    load,
    other_device,
    page,
    require_same,
    save,
)
from benchmarks.workloads import CPU_SIZES, GPU_SIZES, WALK_SQUARINGS, Inputs, Sizes, walk_cells
from misc.errors import InputError
from misc.files.atomic import atomic_path
from misc.run.config import Config
from misc.run.device import resolve_device, set_precision
from misc.run.plan import require_writable

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS = get_args(get_type_hints(Config)["precision"])


class Bench:
    """What all measurements of a run share."""

    def __init__(
        self, device: torch.device, sizes: Sizes, folder: Path, *, precision: str, repeats: int, full: bool
    ) -> None:
        self.device, self.sizes, self.folder, self.repeats = device, sizes, folder, repeats
        self.dense = full or device.type == "cuda"
        precision = set_precision(precision, device)
        self.conditions = Conditions(
            device=device.type,
            machine=machine_name(device),
            precision=precision,
            repeats=repeats,
            date=date.today().isoformat(),
            matrix_rate=matrix_rate(device, precision),
            copy_bandwidth=copy_bandwidth(device),
        )
        release_memory(device)
        self._n_inputs = 0

    def inputs(self) -> Inputs:
        """A place for the data of a workload."""
        self._n_inputs += 1
        return Inputs(self.folder / f"data{self._n_inputs}", self.folder / "weights", self.device.type)

    def _worker(self, prepare: Callable) -> Worker:
        prepare = partial(prepare, device=self.device.type, precision=self.conditions.precision)
        return Worker(prepare, device=self.device, log=self.folder / "output.txt")

    def compare(self, make: Callable, *arguments: object, plain: bool = True, plain_once: bool = False) -> Row:
        """Measure the workload `make(*arguments)`; the plain way not at all, or once without a warm-up, if so asked."""
        workload = make(*arguments)
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(self._worker(partial(workloads.prepare, make, arguments, name)))
                for name in (("ours", "plain") if plain else ("ours",))
            }
            first = {name: worker.warm_up(count=name == "ours") for name, worker in workers.items()}
            runs = {name: [] for name in workers}
            for _ in range(self.repeats):
                for name, worker in workers.items():
                    if not (plain_once and name == "plain"):
                        runs[name].append(worker.run())
            results = [worker.result() for worker in workers.values()]
        if plain_once and plain:
            runs["plain"] = [first["plain"]]
        costs = {name: _cost(runs[name], first[name]) for name in workers}
        return Row(
            on=workload.on,
            ours=costs["ours"],
            plain=costs.get("plain"),
            images_per_second=workload.images / costs["ours"].seconds,
            floor=max(
                first["ours"].flops / self.conditions.matrix_rate, workload.bytes / self.conditions.copy_bandwidth
            ),
            difference=difference(*results) if plain else None,
            date=self.conditions.date,
        )


def _cost(runs: list[Run], first: Run) -> Cost:
    """Of a way, from its runs and the first, whose memory was watched."""
    seconds = [run.seconds for run in runs]
    return Cost(statistics.median(seconds), (min(seconds), max(seconds)), first.host_mib, first.gpu_mib)


# The rows of each step


def _one_row(make: Callable, bench: Bench) -> list[Row]:
    return [bench.compare(make, bench.inputs(), bench.sizes)]


def _walk_rows(bench: Bench) -> list[Row]:
    def compare(size: workloads.Size, **how: bool) -> Row:
        return bench.compare(workloads.random_walk, bench.inputs(), size, bench.sizes.walks, **how)

    return _rows_up_to_target(bench, bench.sizes.walk, compare)


def _mask_rows(bench: Bench) -> list[Row]:
    def compare(size: workloads.Size, **how: bool) -> Row:
        n_plain = 1 if how.get("plain_once") else bench.sizes.plain_masks
        return bench.compare(workloads.sem_seg, bench.inputs(), size, bench.sizes.masks, n_plain, **how)

    return _rows_up_to_target(bench, bench.sizes.walk[-1:], compare)


def _rows_up_to_target(bench: Bench, small: Sequence[workloads.Size], compare: Callable[..., Row]) -> list[Row]:
    """Both ways on small images, then on that of the target, where the plain one may have to be extrapolated."""
    rows = [compare(size) for size in small]
    target = bench.sizes.walk_target
    if bench.dense:
        return [*rows, compare(target, plain_once=bench.device.type == "cpu")]
    plain = extrapolate_walk(
        rows[-1].plain.seconds,
        cells=walk_cells(small[-1]),
        at=walk_cells(target),
        matrix_rate=matrix_rate(bench.device, "fp32"),
    )
    return [*rows, replace(compare(target, plain=False), plain=Cost(plain), extrapolated=True)]


def _large_walk_rows(bench: Bench) -> list[Row]:
    return [
        replace(bench.compare(workloads.random_walk, bench.inputs(), size, 1, plain=False), pixels=size[0] * size[1])
        for size in bench.sizes.walk_large
    ]


def extrapolate_walk(seconds: float, *, cells: int, at: int, matrix_rate: float) -> float:
    """Seconds of the dense walk on a map of `at` cells, from those on a smaller one of `cells`.

    Only the squarings grow, at the rate (FLOP/s) of a large matrix product, than which they are no faster. All else is
    taken as constant, so that the plain way is not overstated.
    """
    return seconds + WALK_SQUARINGS * 2 * (at**3 - cells**3) / matrix_rate


STEPS = {
    "random_walk": Step(
        "random walk 500 x 375",
        "image",
        _walk_rows,
        {"cpu": 1500, "cuda": 50},
        note="the plain way is 26 TFLOP of dense products at the machine's full matrix rate, from which ours, sparse "
        "products, gains nothing. The CPU's target stems from a machine on which the original took 846 s, that is "
        "31 GFLOP/s.",
    ),
    "random_walk_large": LargeWalk("random walk 2000 x 1500", "image", _large_walk_rows, {"cpu": 4096, "cuda": 2048}),
    "make_sem_seg_labels": Step("make_sem_seg_labels, whole step", "image", _mask_rows, {"cpu": 100, "cuda": 20}),
    "train_cam": Step(
        "W-OoD training step", "update", partial(_one_row, workloads.wood_step), {"cpu": 1.3, "cuda": 2.5}
    ),
    "train_irn": Step(
        "train_irn, data to update", "update", partial(_one_row, workloads.irn_step), {"cpu": 1.5, "cuda": 5}
    ),
    "make_cam": Step("make_cam", "image", partial(_one_row, workloads.cams), {"cpu": 1.2, "cuda": 4}),
    "make_advcam": Step("make_advcam", "iteration", partial(_one_row, workloads.advcams), {"cpu": 2, "cuda": 4}),
    "eval_cam": Step(
        "eval_cam over 7 thresholds", "image", partial(_one_row, workloads.evaluation), {"cpu": 4, "cuda": 4}
    ),
    "cam_to_ir_label": Step(
        "cam_to_ir_label, all cores",
        "image",
        partial(_one_row, workloads.refinement),
        {"cpu": 1.7, "cuda": 1.7},
        words={"cuda": "CPU work, no core idle: "},
    ),
    "crf_of_labels": Step(
        "dense CRF against pydensecrf, two label maps, all cores",
        "image",
        partial(_one_row, workloads.crf_of_labels),
        {"cpu": 1, "cuda": 10},
    ),
    "crf_of_classes": Step(
        "dense CRF against pydensecrf, 21 classes, all cores",
        "image",
        partial(_one_row, workloads.crf_of_classes),
        {"cpu": 1.3, "cuda": 10},
    ),
    "train_deeplab": Step("DeepLab training step", "update", partial(_one_row, workloads.deeplab_step), {"cpu": 1.25}),
    "eval_deeplab": Step(
        "eval_deeplab with CRF, all cores", "image", partial(_one_row, workloads.segmentation), {"cpu": 1.3}
    ),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of both ways, as in run_sample.py")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="NAME", help=", ".join(STEPS))
    parser.add_argument(
        "--full",
        action="store_true",
        help="on the CPU too measure the dense walk of 500 x 375, and DeepLab on a crop of the authors' size: minutes",
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median is taken")
    parser.add_argument("--add", action="store_true", help="keep what --output holds of other steps, same machine")
    parser.add_argument("--missing", action="store_true", help="leave out what --output holds already; implies --add")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/bench_steps_{cpu,gpu}.md")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def to_measure(options: argparse.Namespace, report: Report) -> list[str]:
    """The steps that are asked for, in their order; with `--missing` those that `report` has no rows of."""
    kept = {name for name, rows in report.measured.items() if options.missing and not isinstance(rows, str)}
    return [name for name in STEPS if name in options.steps and name not in kept]


def run(options: argparse.Namespace) -> bool:
    """Measure the steps, write the page after each; whether all went well. Raises `InputError` for bad input."""
    device = resolve_device(options.device)
    output = options.output or RESULTS / f"{file_name(device.type)}.md"
    require_writable(output.parent, flag="output")
    sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES
    if options.full and device.type == "cpu":
        sizes = replace(sizes, deeplab_crop=GPU_SIZES.deeplab_crop, deeplab_batch=1)
    data = output.with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="bench_steps_") as folder:
        bench = Bench(
            device, sizes, Path(folder), precision=options.precision, repeats=options.repeats, full=options.full
        )
        report = Report(bench.conditions, {})
        earlier = load(data) if options.add or options.missing else None
        if earlier:
            require_same(earlier.conditions, report.conditions, data)
            report.measured.update(earlier.measured)
        other = load(output.with_name(f"{file_name(other_device(device.type))}.json"))
        bar = tqdm(to_measure(options, report), unit="step")
        for name in bar:
            bar.set_description(name)
            started = time.perf_counter()
            try:
                report.measured[name] = STEPS[name].rows(bench)
                result = STEPS[name].outcome(report.measured[name], device.type)[0]
            except BenchmarkError as error:
                report.measured[name] = result = "failed: " + " ".join(str(error).replace("|", "/").split())
            tqdm.write(f"{name}: {result} ({time.perf_counter() - started:.0f} s)")
            save(data, report)
            with atomic_path(output) as temporary:
                temporary.write_text(page(STEPS, report, other))
    print(f"\n{output.read_text()}\nwritten to {output}")
    return not any(isinstance(report.measured[name], str) for name in options.steps)


def main() -> int:
    """Run from the command line; returns the exit code."""
    try:
        return 0 if run(parse()) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
