"""What a comparison of arms has found, as numbers, as a page of Markdown and as a figure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.arms import CONTROL
from misc.report.charts import dots_by_arm
from misc.report.collect import CAM_EVALUATIONS, EVALUATIONS, Arm

OTHER_HALF = ", other half's score"
STEP_OF = {"eval_deeplab_crf": "eval_deeplab"}
"""{evaluation: the step that makes it}, where its name is another."""


@dataclass(frozen=True)
class Result:
    """What one arm has reached with one seed.

    Attributes:
        scores: {column: mIoU in per cent}, of what was evaluated.
        seconds: of the arm's steps, without the classifier that all arms of a seed share.
        gib: {"process" or "gpu": peak memory of the largest step, GiB}.
        device: of the arm's last run.
    """

    scores: Mapping[str, float]
    seconds: float
    gib: Mapping[str, float]
    device: str


Results = Mapping[str, Mapping[int, Result]]
"""{arm: {seed: result}}, of those that have ended well."""


def result_of(found: Arm, steps: Iterable[str]) -> Result:
    """What a result folder says of these steps; what others left there is of an earlier run, and does not count."""
    steps = {*steps}
    scores: dict[str, float | None] = {}
    for evaluation, title in EVALUATIONS.items():
        if evaluation not in found.scores or STEP_OF.get(evaluation, evaluation) not in steps:
            continue
        scores[title] = found.miou(evaluation)
        if evaluation in CAM_EVALUATIONS:
            scores[title + OTHER_HALF] = found.scores[evaluation]["two_fold"]["miou"]
    done = [step for step in found.steps if step["step"] in steps]
    peaks = [step["peak_memory_mib"] for step in done]
    return Result(
        scores={title: 100 * miou for title, miou in scores.items() if miou is not None},
        seconds=sum(step["seconds"] for step in done),
        gib={place: max(peak.get(place, 0) for peak in peaks) / 1024 for place in set().union(*peaks)},
        device=found.runs[-1]["device"] if found.runs else "unknown",
    )


def summary(values: Mapping[int, float], control: Mapping[int, float]) -> dict[str, float | None]:
    """Statistics of one column of an arm, given its values and the control's by seed; None where there are too few.

    Returns:
        `mean` and `std` over the seeds (the standard deviation of a sample, from two seeds on); `difference`: the mean
        over the seeds that both have of what the arm has more than the control, and its `standard_error`.
    """
    more = [values[seed] - control[seed] for seed in values if seed in control]
    return {
        "mean": statistics.mean(values.values()) if values else None,
        "std": statistics.stdev(values.values()) if len(values) > 1 else None,
        "difference": statistics.mean(more) if more else None,
        "standard_error": statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else None,
    }


def columns_of(results: Results) -> list[str]:
    """The scores that any arm has, in the order of the chain."""
    titles = [name for title in EVALUATIONS.values() for name in (title, title + OTHER_HALF)]
    present = {title for by_seed in results.values() for result in by_seed.values() for title in result.scores}
    return [title for title in titles if title in present]


def values_of(results: Results, arm: str, column: str) -> dict[int, float]:
    """{seed: score} of an arm."""
    return {seed: result.scores[column] for seed, result in results.get(arm, {}).items() if column in result.scores}


def summaries(results: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """{arm: {column: `summary`}}; the control's own differences are None."""
    return {
        arm: {
            column: summary(
                values_of(results, arm, column), {} if arm == CONTROL else values_of(results, CONTROL, column)
            )
            for column in columns_of(results)
        }
        for arm in results
    }


def content(
    results: Results, *, differs_in: Mapping[str, str], failed: Mapping[str, Mapping[int, str]]
) -> dict[str, Any]:
    """All numbers, as JSON holds them."""
    summed = summaries(results)
    return {
        name: {
            "differs_in": differs_in[name],
            "seeds": {str(seed): vars(result) for seed, result in results[name].items()},
            "failed": {str(seed): reason for seed, reason in failed.get(name, {}).items()},
            "summary": summed[name],
        }
        for name in results
    }


def page(results: Results, *, differs_in: Mapping[str, str], failed: Mapping[str, Mapping[int, str]], head: str) -> str:
    """The page in Markdown: the table, each arm's flags, the seeds one by one, and what failed."""
    columns, summed = columns_of(results), summaries(results)
    places = sorted({place for by_seed in results.values() for result in by_seed.values() for place in result.gib})
    costs = ["seconds", *(f"{place}, GiB" for place in places)]
    rows = [
        [
            name,
            str(len(by_seed)),
            *(_cell(summed[name][column]) for column in columns),
            *_costs(by_seed.values(), places),
        ]
        for name, by_seed in results.items()
    ]
    seeds = [
        [str(seed), name, *(_number(result.scores.get(column)) for column in columns), *_costs([result], places)]
        for name, by_seed in results.items()
        for seed, result in by_seed.items()
    ]
    lost = [f"* {name}, seed {seed}: {reason}" for name, by_seed in failed.items() for seed, reason in by_seed.items()]
    devices = sorted({result.device for by_seed in results.values() for result in by_seed.values()})
    parts = [
        head,
        f"Device: {', '.join(devices) or 'none'}.",
        _table(["arm", "seeds", *columns, *costs], rows),
        "mIoU in per cent: mean ± standard deviation over the seeds, and in brackets the difference to the control, "
        "seed by seed, ± its standard error.",
        _table(
            ["arm", "differs from the recipe in"],
            [[name, f"`{text}`" if text.startswith("-") else text] for name, text in differs_in.items()],
        ),
        _table(["seed", "arm", *columns, *costs], sorted(seeds, key=lambda row: int(row[0]))),
        *(["Failed, and in no mean:", "\n".join(lost)] if lost else []),
    ]
    return "\n\n".join(parts) + "\n"


def figure(results: Results) -> bytes | None:
    """The scores of all arms and seeds as a PNG file; None if there is none."""
    scores = {
        column: {arm: list(values.values()) for arm in results if (values := values_of(results, arm, column))}
        for column in columns_of(results)
    }
    return dots_by_arm(scores, reference=CONTROL)


def _costs(results: Iterable[Result], places: Sequence[str]) -> list[str]:
    """Mean seconds and largest peaks."""
    results = list(results)
    if not results:
        return ["-"] * (1 + len(places))
    seconds = statistics.mean(result.seconds for result in results)
    return [f"{seconds:.0f}", *(f"{max(result.gib.get(place, 0) for result in results):.1f}" for place in places)]


def _cell(summed: Mapping[str, float | None]) -> str:
    text = _number(summed["mean"]) + _spread(summed["std"])
    if summed["difference"] is None:
        return text
    return f"{text} ({summed['difference']:+.1f}{_spread(summed['standard_error'])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {value:.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
