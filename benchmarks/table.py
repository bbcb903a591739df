"""The table of the benchmark: what a step is measured by, its target, and the page in Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from misc.errors import InputError
from misc.files.atomic import write_json
from misc.files.jsonfile import jsonable

DEVICE_TITLES = {"cpu": "CPU", "cuda": "GPU"}
LINEAR_SLACK = 1.5
"""Linear in pixels: time per pixel grows at most by this from the smallest to the largest image."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cost:
    """What one way costs, per unit; None is what was not measured.

    Attributes:
        seconds: the median.
        spread: the fastest and the slowest run.
        host_mib: peak memory of the process and its workers.
        gpu_mib: peak memory of the GPU's tensors; 0 where a step does not use it.
    """

    seconds: float
    spread: tuple[float, float] | None = None
    host_mib: float | None = None
    gpu_mib: float | None = None

    @property
    def judged_mib(self) -> float:
        """The memory that a target is about: the GPU's where it is used."""
        return self.gpu_mib or self.host_mib


@dataclass(frozen=True)
class Row:
    """A workload, measured; None is what was not.

    Attributes:
        on: the inputs.
        floor: the seconds of the arithmetic and the bytes alone, at the speed of this machine.
        difference: between the results of the two ways (`measure.difference`).
        date: of the run, since `--add` joins several.
        pixels: of an image, where rows of several sizes are compared.
        extrapolated: whether `plain` was concluded from a smaller map.
    """

    on: str
    ours: Cost
    plain: Cost | None
    images_per_second: float
    floor: float
    difference: float | None
    date: str
    pixels: int = 0
    extrapolated: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the plain way ours is."""
        return None if self.plain is None else self.plain.seconds / self.ours.seconds


Measured = dict[str, list[Row] | str]
"""The rows of each step, or why there are none."""


@dataclass(frozen=True)
class Conditions:
    """What was measured on, and how; rates are FLOP/s and bytes/s of this machine (see `measure`)."""

    device: str
    machine: str
    precision: str
    repeats: int
    date: str
    matrix_rate: float
    copy_bandwidth: float


@dataclass(frozen=True)
class Report:
    """All that was measured on a device; the conditions are those of the last run."""

    conditions: Conditions
    measured: Measured


@dataclass(frozen=True)
class Step:
    """A step of the benchmark.

    Attributes:
        title, unit: what the row is called; what its seconds are per.
        rows: measures them; the last row is the one that the target is about.
        targets: how many times as fast as the plain way, for each type of device that has a target.
        words: what a target is about, before its number, where that is more than speed.
        note: why the target can be missed; shown where it is.
    """

    title: str
    unit: str
    rows: Callable[..., list[Row]]
    targets: Mapping[str, float]
    words: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def target_text(self, device: str) -> str:
        """The target, in words."""
        return f"{self.words.get(device, '')}>= {self.targets[device]:,g} x" if device in self.targets else "-"

    def outcome(self, rows: Sequence[Row], device: str) -> tuple[str, str]:
        """What was measured, and whether that meets the target."""
        row, target = rows[-1], self.targets.get(device)
        measured = f"{_digits(row.ratio)} x" + (" (extrapolated)" if row.extrapolated else "")
        if target is None:
            return measured, "-"
        verdict = "met" if row.ratio >= target else "not met"
        return measured, f"{verdict} (extrapolated)" if row.extrapolated else verdict


class LargeWalk(Step):
    """Judged by memory, and by the growth of time with the image, since the plain way does not fit."""

    def target_text(self, device: str) -> str:
        return f"fits in {self.targets[device] / 1024:g} GiB" + (", linear in pixels" if device == "cpu" else "")

    def outcome(self, rows: Sequence[Row], device: str) -> tuple[str, str]:
        small, large = rows[0], rows[-1]
        pixels, seconds = large.pixels / small.pixels, large.ours.seconds / small.ours.seconds
        fits, linear = large.ours.judged_mib <= self.targets[device], seconds <= LINEAR_SLACK * pixels
        measured = f"{large.ours.judged_mib:,.0f} MiB; {pixels:.1f} x the pixels, {seconds:.1f} x the time"
        return measured, "met" if fits and (linear or device != "cpu") else "not met"


def _digits(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _time_text(cost: Cost | None) -> str:
    """The median, and the spread where there is one."""
    if cost is None:
        return "-"
    spread = f" ({_digits(cost.spread[0])} - {_digits(cost.spread[1])})" if cost.spread else ""
    return _digits(cost.seconds) + spread


def _memory_text(cost: Cost | None) -> str:
    """The host's, and the GPU's where it is used."""
    if cost is None or cost.host_mib is None:
        return "-"
    return f"{cost.host_mib:,.0f}" + (f", GPU {cost.gpu_mib:,.0f}" if cost.gpu_mib else "")


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def other_device(device: str) -> str:
    """`cuda` for `cpu` and the other way round."""
    return next(other for other in DEVICE_TITLES if other != device)


def file_name(device: str) -> str:
    """Of a device's page and of its numbers, without the ending."""
    return f"bench_steps_{DEVICE_TITLES[device].lower()}"


def summary_table(steps: Mapping[str, Step], reports: Mapping[str, Report]) -> str:
    """Target and outcome of every step on both types of device, from the reports of those that were measured.

    Args:
        steps: by name, in the order of the table.
        reports: by device.
    """
    titles = [f"{DEVICE_TITLES[each]}: target | measured | " for each in DEVICE_TITLES]
    lines = [f"| ours against the plain way | {' | '.join(titles)} |", "| --- |" + " --- | --- | --- |" * 2]
    for name, step in steps.items():
        cells = [step.title]
        for each in DEVICE_TITLES:
            rows = reports[each].measured.get(name, NOT_MEASURED) if each in reports else NOT_MEASURED
            outcome = (rows, "") if isinstance(rows, str) else step.outcome(rows, each)
            cells += [step.target_text(each), *outcome]
        lines.append(_cells(*cells))
    return "\n".join(lines)


def detail_table(steps: Mapping[str, Step], measured: Measured) -> str:
    """All that was measured."""
    head = (
        "step",
        "on",
        "ours, s",
        "plain, s",
        "ratio",
        "images/s",
        "ours, MiB",
        "plain, MiB",
        "floor, s",
        "differ by",
        "date",
    )
    lines = [_cells(*head), "| --- " * len(head) + "|"]
    for name in steps:
        rows = measured.get(name, NOT_MEASURED)
        if isinstance(rows, str):
            continue
        for row in rows:
            mark = " (extrapolated)" if row.extrapolated else ""
            lines.append(
                _cells(
                    f"{name}, per {steps[name].unit}",
                    row.on,
                    _time_text(row.ours),
                    _time_text(row.plain) + mark,
                    _digits(row.ratio) + mark,
                    _digits(row.images_per_second),
                    _memory_text(row.ours),
                    _memory_text(row.plain),
                    f"{row.floor:.2g} ({row.floor / row.ours.seconds:.0%})",
                    "-" if row.difference is None else f"{row.difference:.0e}",
                    row.date,
                )
            )
    return "\n".join(lines)


def _notes(steps: Mapping[str, Step], report: Report) -> str:
    """Why targets were missed, a line each."""
    lines = []
    device = report.conditions.device
    for name, step in steps.items():
        rows = report.measured.get(name, NOT_MEASURED)
        if step.note and not isinstance(rows, str) and step.outcome(rows, device)[1].startswith("not met"):
            lines.append(f"* {step.title}, {DEVICE_TITLES[device]}: {step.note}\n")
    return "".join(lines)


def page(steps: Mapping[str, Step], report: Report, other: Report | None) -> str:
    """The whole page, in Markdown; `other` is what was measured on the other type of device."""
    on = report.conditions
    reports = {each.conditions.device: each for each in (report, other) if each}
    machines = "\n".join(
        f"* {DEVICE_TITLES[device]}: {each.conditions.machine}; {each.conditions.precision}."
        for device, each in sorted(reports.items())
    )
    rate, bandwidth = f"{on.matrix_rate / 1e9:,.0f} GFLOP/s", f"{on.copy_bandwidth / 1e9:,.0f} GB/s"
    return f"""# Steps against the plain way, {DEVICE_TITLES[on.device]}

{machines}

Medians of {on.repeats} runs (fastest - slowest); random weights, ResNet-50 where no other network is named; drawn
images. Printed by `python benchmarks/bench_steps.py`.

{summary_table(steps, reports)}

{"".join(_notes(steps, each) for each in reports.values())}
{detail_table(steps, report.measured)}

* Plain: `benchmarks/plain.py`, the original's arithmetic on the same files. "Extrapolated": the time on the largest
  of the smaller maps, plus that of the additional FLOPs of the squarings at the rate of a large matrix product; all
  else is taken as constant, which understates the plain way. `--full` measures it. Where the plain way gets fewer
  images than ours, they are the first of ours; what a way takes to start, network and processes included, is then
  spread over fewer. Its walk is in full float32 whatever the precision, as ours is.
* Not timed: the checks of the input that `run_sample.py` makes before a run. Trainings are timed from one update to
  the next, without those at the start and at the end for which the loaders' workers have nothing to make.
* cam_to_ir_label, eval_deeplab: the plain way is one process, with pydensecrf.
* Dense CRF alone: both ways use all cores, a process each (on a GPU ours runs there); the plain one is pydensecrf. On
  cores its time is that of the CPU over the number of cores, in which other work on the machine counts little.
* On the CPU our way keeps freed memory for the next tensors (`misc.run.memory.keep_freed_memory`), as `run_sample.py`
  does; the plain way leaves that to the C library.
* Memory, MiB: the peak of the process and its workers, PyTorch itself included, and that of the GPU's tensors where the
  step has any; of trainings that of the first updates.
* Floor: the FLOPs of our way (convolutions, matrix products) at the {rate} of a large matrix product here, or, for
  walks, CRF and evaluation, the bytes that our way has to move at the {bandwidth} of a large copy, whichever takes
  longer; in brackets its share of our time. For networks it counts FLOPs only: batch norms, activations and pooling,
  which are bound by the memory, are above it, as are decoding, resizing and writing of files.
* Differ by: largest difference of the two ways' results, relative to the largest value; of labels the share of pixels.
* Date: rows of an earlier run were kept by `--add`; the rates above are those of the last one, {on.date}, a row's floor
  is at the rates of its own.
"""


def save(path: Path, report: Report) -> None:
    """Write the report as JSON, for `load`."""
    write_json(path, jsonable(asdict(report)))


def load(path: Path) -> Report | None:
    """The report of an earlier run; None if there was no such run. Raises `InputError` for another file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        measured = {
            name: rows if isinstance(rows, str) else [_row(**row) for row in rows]
            for name, rows in content["measured"].items()
        }
        return Report(Conditions(**content["conditions"]), measured)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is no report of this version of the benchmark; delete it.") from error


def _row(ours: dict, plain: dict | None, **others: object) -> Row:
    return Row(ours=_cost(**ours), plain=plain and _cost(**plain), **others)


def _cost(spread: list[float] | None, **others: float | None) -> Cost:
    return Cost(spread=spread and tuple(spread), **others)


def require_same(earlier: Conditions, now: Conditions, path: Path) -> None:
    """Raise `InputError` if the report at `path` was measured on another machine or in another way."""
    for name in ("machine", "precision", "repeats"):
        before, after = getattr(earlier, name), getattr(now, name)
        if before != after:
            raise InputError(
                f"--add: {path} was measured with {name} {before}, now it is {after}; name another --output."
            )
