"""Charts as PNG bytes."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from misc.report.collect import EVALUATIONS, Arm
from misc.report.fonts import drawable, families

COLOURS = {"W-OoD": "#1f6fb2", "Control": "#d9822b", "AdvCAM": "#2f8f5b"}
MASK_COLOURS = {"eval_sem_seg": "#3b3b3b", "eval_deeplab": "#7a4ea3", "eval_deeplab_crf": "#b59ad0"}
LEGEND_COLUMNS = 3
LOWEST_BARS = 1.8
"""Inches: a lower figure has no room beside its legend and axis."""
NOT_LOSSES = ("step", "epoch", "lr", "images_per_second", "validation_loss", "cam_miou")
RIGHT_AXIS = ("distance",)
"""Terms of another size, whose weight in the total is small."""
LOSS_COLOURS = ("#1f6fb2", "#7a4ea3", "#2f8f5b", "#c2503b", "#3b3b3b")
DPI = 130


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _tidy(axes) -> None:  # noqa: ANN001 (matplotlib's Axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _smooth(values: Sequence[float], width: int) -> np.ndarray:
    kernel = np.ones(width) / width
    padded = np.concatenate([np.full(width - 1, values[0]), values])
    return np.convolve(padded, kernel, mode="valid")


def loss_curves(arms: Sequence[Arm]) -> bytes | None:
    """A panel a training and arm, each term of the loss a line (running mean over the raw values). None if no data."""
    panels = [(arm.name, training, losses) for arm in arms for training, losses in arm.losses.items()]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for position, (arm_name, training, losses) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, position)
        terms = [name for name in losses if name not in NOT_LOSSES]
        for name, colour in zip(terms, LOSS_COLOURS, strict=False):
            right = name in RIGHT_AXIS
            side = axes.twinx() if right else axes
            side.plot(losses["step"], losses[name], color=colour, alpha=0.2, linewidth=0.8)
            smooth = _smooth(losses[name], max(1, len(losses[name]) // 15))
            side.plot(losses["step"], smooth, color=colour, linewidth=1.6)
            axes.plot([], [], color=colour, label=f"{name} (right axis)" if right else name)
            if right:
                side.spines["top"].set_visible(False)
                side.tick_params(axis="y", colors=colour, labelsize=8)
        axes.set_title(training if len(arms) == 1 else f"{training}, {arm_name}", fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        _tidy(axes)
    return _png(figure)


def threshold_curves(arms: Sequence[Arm]) -> bytes | None:
    """mIoU of the CAMs against the background score, the chosen score marked. None if no CAM was evaluated."""
    known = [(arm.name, arm.scores["eval_cam"]) for arm in arms if "eval_cam" in arm.scores]
    known += [(EVALUATIONS["eval_advcam"], arm.scores["eval_advcam"]) for arm in arms if "eval_advcam" in arm.scores]
    if not known:
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, content in known:
        points = {float(score): miou for score, miou in content["miou_by_threshold"].items() if miou is not None}
        axes.plot(points.keys(), [100 * miou for miou in points.values()], "o-", color=COLOURS[name], label=name)
        best = content["best_threshold"]
        if content["best"]["miou"] is not None:
            axes.plot([best], [100 * content["best"]["miou"]], "o", ms=13, mfc="none", mew=2, color=COLOURS[name])
            label = f"{100 * content['best']['miou']:.1f} at {best:g}"
            axes.annotate(
                label, (best, 100 * content["best"]["miou"]), (0, 10), textcoords="offset points", ha="center"
            )
    axes.margins(x=0.06, y=0.18)
    axes.set_xlabel("background score")
    axes.set_ylabel("CAM mIoU, %")
    axes.legend(frameon=False)
    _tidy(axes)
    return _png(figure)


def class_bars(arms: Sequence[Arm]) -> bytes | None:
    """IoU of each class that occurs: CAMs of both arms, the masks, and the segmentation network's.

    None if nothing was evaluated.
    """
    series = []
    for arm in reversed(arms):
        if scored := arm.summary("eval_cam"):
            series.append((f"CAM, {arm.name}", COLOURS[arm.name], arm.scores["eval_cam"]["classes"], scored["iou"]))
    for evaluation, colour in MASK_COLOURS.items():
        if scored := arms[0].summary(evaluation):
            series.append((EVALUATIONS[evaluation], colour, arms[0].scores[evaluation]["classes"], scored["iou"]))
    if not series:
        return None
    names = [name for k, name in enumerate(series[0][2]) if any(iou[k] is not None for *_, iou in series)]
    rows = [series[0][2].index(name) for name in names]
    inches = max(LOWEST_BARS, 0.8 + 0.18 * (len(series) + 1) * len(names))
    figure = Figure(figsize=(7.2, inches), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for number, (label, colour, _, iou) in enumerate(series):
        values = [100 * (iou[k] or 0) for k in rows]
        positions = np.arange(len(names)) + number * height
        axes.barh(positions, values, height * 0.92, color=colour, label=label)
        for y, value in zip(positions, values, strict=True):
            axes.text(value + 0.6, y, f"{value:.0f}", va="center", fontsize=7, color="#555555")
    labels = [drawable(name).replace("$", r"\$") for name in names]  # a pair of $ would be a formula
    axes.set_yticks(np.arange(len(names)) + height * (len(series) - 1) / 2, labels, fontfamily=families(names))
    axes.invert_yaxis()
    axes.set_xlabel("IoU, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=LEGEND_COLUMNS)
    return _png(figure)


def dots_by_arm(scores: Mapping[str, Mapping[str, Sequence[float]]], *, reference: str) -> bytes | None:
    """A panel a score, a row an arm: a dot a value, a bar at their mean, a dashed line at the mean of `reference`.

    Args:
        scores: {title: {arm: values in per cent}}.

    None if there is no value.
    """
    titles = [title for title, by_arm in scores.items() if by_arm]
    if not titles:
        return None
    names = list(dict.fromkeys(name for title in titles for name in scores[title]))
    figure = Figure(figsize=(1.6 + 2.4 * len(titles), 1.0 + 0.32 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        for name, values in scores[title].items():
            row = names.index(name)
            colour = COLOURS["Control"] if name == reference else COLOURS["W-OoD"]
            axes.plot(values, [row] * len(values), "o", ms=5, alpha=0.5, mew=0, color=colour)
            axes.plot(np.mean(values), row, "|", ms=15, mew=2.5, color=colour)
        if reference in scores[title]:
            axes.axvline(np.mean(scores[title][reference]), color=COLOURS["Control"], linewidth=0.9, linestyle="--")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("mIoU, %", fontsize=9)
        axes.margins(x=0.12)
        _tidy(axes)
    panels[0].set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return _png(figure)
