"""The table of the benchmark: what a step is measured by, its target, and the page in Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from misc.errors import InputError
from misc.files import write_json
from misc.metrics import jsonable

DEVICE_TITLES = {"cpu": "CPU", "cuda": "GPU"}
LINEAR_SLACK = 1.5
"""Linear in pixels: time per pixel grows at most by this from the smallest to the largest image."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A workload, measured; times are seconds per unit, memory is in MiB, None is what was not measured.

    Attributes:
        on: the inputs.
        pixels: of an image, where rows of several sizes are compared.
        floor: the time of the arithmetic and the bytes alone, at the speed of this machine.
        difference: between the results of the two ways (`measure.difference`).
        extrapolated: whether `plain` was concluded from smaller maps.
    """

    on: str
    ours: float
    plain: float | None
    ours_mib: float
    plain_mib: float | None
    images_per_second: float
    floor: float
    difference: float | None
    pixels: int = 0
    extrapolated: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the plain way ours is."""
        return None if self.plain is None else self.plain / self.ours


Measured = Mapping[str, list[Row] | str]
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
class Step:
    """A step of the benchmark.

    Attributes:
        title, unit: what the row is called; what its seconds are per.
        rows: measures them; the last row is the one that the target is about.
        targets: how many times as fast as the plain way, for each type of device that has a target.
    """

    title: str
    unit: str
    rows: Callable[..., list[Row]]
    targets: Mapping[str, float]

    def target_text(self, device: str) -> str:
        """The target, in words."""
        return f">= {self.targets[device]:,g} x" if device in self.targets else "-"

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
        pixels, seconds = large.pixels / small.pixels, large.ours / small.ours
        fits, linear = large.ours_mib <= self.targets[device], seconds <= LINEAR_SLACK * pixels
        measured = f"{large.ours_mib:,.0f} MiB; {pixels:.1f} x the pixels, {seconds:.1f} x the time"
        return measured, "met" if fits and (linear or device != "cpu") else "not met"


def _digits(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def summary_table(steps: Mapping[str, Step], measured: Measured, device: str) -> str:
    """Target and outcome of every step; those of the other type of device were not measured in this run.

    Args:
        steps: by name, in the order of the table.
        measured: the rows of each step, or why there are none.
        device: `cpu` or `cuda`.
    """
    titles = [f"{DEVICE_TITLES[each]}: target | measured | " for each in DEVICE_TITLES]
    lines = [f"| ours against the plain way | {' | '.join(titles)} |", "| --- |" + " --- | --- | --- |" * 2]
    for name, step in steps.items():
        cells = [step.title]
        for each in DEVICE_TITLES:
            rows = measured.get(name, NOT_MEASURED) if each == device else NOT_MEASURED
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
                    _digits(row.ours),
                    _digits(row.plain) + mark,
                    _digits(row.ratio) + mark,
                    _digits(row.images_per_second),
                    f"{row.ours_mib:,.0f}",
                    "-" if row.plain_mib is None else f"{row.plain_mib:,.0f}",
                    f"{row.floor:.2g}",
                    "-" if row.difference is None else f"{row.difference:.0e}",
                )
            )
    return "\n".join(lines)


def page(steps: Mapping[str, Step], measured: Measured, on: Conditions) -> str:
    """The whole page, in Markdown."""
    peak = "GPU's tensors" if on.device == "cuda" else "process and its workers, PyTorch itself included"
    rate, bandwidth = f"{on.matrix_rate / 1e9:,.0f} GFLOP/s", f"{on.copy_bandwidth / 1e9:,.0f} GB/s"
    return f"""# Steps against the plain way, {DEVICE_TITLES[on.device]}

{on.machine}; {on.date}.

Medians of {on.repeats} runs, {on.precision}; ResNet-50 with random weights, drawn images. The page is printed by
`python benchmarks/bench_steps.py`.

{summary_table(steps, measured, on.device)}

{detail_table(steps, measured)}

* Plain: `benchmarks/plain.py`, the original's arithmetic on the same files. "Extrapolated": the time on the largest
  of the smaller maps, plus that of the additional FLOPs of the squarings at the rate of a large matrix product; all
  else is taken as constant, which understates the plain way. `--full` measures it.
* Memory: the peak of the {peak}.
* Floor: the FLOPs of our way (convolutions, matrix products) at the {rate} of a large matrix product here, or the bytes
  that any way has to move at the {bandwidth} of a large copy, whichever takes longer.
* Differ by: largest difference of the two ways' results, relative to the largest value; of labels the share of pixels.
"""


def save(path: Path, measured: Measured, on: Conditions) -> None:
    """Write the rows as JSON, for `load`."""
    rows = {name: r if isinstance(r, str) else [asdict(row) for row in r] for name, r in measured.items()}
    write_json(path, jsonable({"conditions": asdict(on), "measured": rows}))


def load(path: Path, on: Conditions) -> dict[str, list[Row] | str]:
    """The rows of an earlier run; none if there was no such run.

    Raises `InputError` if they were measured on another machine or in another way.
    """
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    for name in ("machine", "precision", "repeats"):
        before, now = content["conditions"][name], asdict(on)[name]
        if before != now:
            raise InputError(
                f"--add: {path} was measured with {name} {before}, now it is {now}; name another --output."
            )
    return {name: r if isinstance(r, str) else [Row(**row) for row in r] for name, r in content["measured"].items()}
