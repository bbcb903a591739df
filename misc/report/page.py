"""The page: from collected results and pictures to one self-contained HTML file."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import matplotlib
import numpy as np

from misc.report.charts import class_bars, loss_curves, threshold_curves
from misc.report.collect import (
    EVALUATIONS,
    INSTANCE_EVALUATION,
    OPTIONAL,
    REPORT_STEP,
    SEGMENTATION_EVALUATIONS,
    TRAININGS,
    Arm,
    differ_in_ood_data_alone,
)
from misc.report.pictures import Captioned, data_uri, thumbnail_uri
from misc.report.templates import render
from misc.run.config import changed_flags, to_arguments

TEMPLATE = "page.html.jinja"
CHARTS = {"losses": loss_curves, "thresholds": threshold_curves, "classes": class_bars}
MIB_PER_GIB = 1024


@dataclass(frozen=True)
class ImageRow:
    """An image of the contact sheet: its pictures, and its mean IoU (per cent) before and after, where known."""

    image_id: str
    classes: list[str]
    pictures: list[Captioned]
    before: float | None = None
    after: float | None = None

    @property
    def gain(self) -> float | None:
        """Points gained; None where one of the two is not known."""
        return None if self.before is None or self.after is None else self.after - self.before


def chart_files(arms: Sequence[Arm]) -> dict[str, bytes]:
    """The charts for which there are data, as PNG files by name."""
    with matplotlib.rc_context({"text.parse_math": False}):  # a class may be called $1
        made = {name: draw(arms) for name, draw in CHARTS.items()}
    return {name: content for name, content in made.items() if content is not None}


def render_page(
    arms: Sequence[Arm],
    groups: dict[str, list[ImageRow]],
    segmented: list[ImageRow],
    charts: dict[str, bytes],
    *,
    trained_on: int | None,
    data_name: str,
    examples: Sequence[Captioned],
    legend: dict[str, tuple[int, int, int]],
    gain_note: str,
    skipped: Sequence[str],
    command_of: Callable[[str], str],
    has_masks: bool,
) -> str:
    """The report as HTML.

    Args:
        arms: W-OoD, and the control where there is one.
        groups: title -> images.
        segmented: images of the segmentation network's evaluation.
        charts: PNG files of `chart_files`.
        trained_on: how many images of that evaluation the network was trained on; None where it is not known.
        data_name: of the data set.
        examples: pictures that explain the idea.
        legend: class name -> colour.
        gain_note: what gains compare.
        skipped: what could not be read, a sentence each.
        command_of: step -> the command that runs it alone, on the same data.
        has_masks: whether there are masks to evaluate on.
    """
    wood = arms[0]
    return render(
        TEMPLATE,
        data_name=data_name,
        made=f"{datetime.now():%d %B %Y, %H:%M}",
        headline=_headline(arms),
        tiles=_tiles(arms),
        missing=[
            *_missing(wood, groups, command_of, has_masks=has_masks),
            *({"what": what, "how": ""} for what in skipped),
        ],
        examples=[{"picture": thumbnail_uri(picture), "caption": caption} for caption, picture in examples],
        arms=arms,
        fair_control=len(arms) > 1 and differ_in_ood_data_alone(*arms),
        table=_table(arms),
        charts={name: data_uri(charts[name], "png") if name in charts else "" for name in CHARTS},
        groups=[{"title": title, "rows": [_row(row) for row in rows]} for title, rows in groups.items() if rows],
        segmentation=_segmentation(wood),
        trained_on=_trained_on(trained_on),
        segmented=[_row(row) for row in segmented],
        legend=[{"name": name, "colour": f"rgb{tuple(map(int, colour))}"} for name, colour in legend.items()],
        gain_note=gain_note,
        facts=_facts(arms),
        report_command=command_of(REPORT_STEP),
        steps=[_step(arm.name, step) for arm in arms for step in arm.steps],
        runs=[_run(run) for arm in arms for run in arm.runs],
    )


def _percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def _mean(value: float | list[float | None] | None) -> float | None:
    """A number as it is, values per class as their mean over the classes that have one."""
    if not isinstance(value, list):
        return value
    known = [number for number in value if number is not None]
    return float(np.mean(known)) if known else None


def _headline(arms: Sequence[Arm]) -> str:
    wood, control = arms[0].miou("eval_cam"), arms[1].miou("eval_cam") if len(arms) > 1 else None
    masks = arms[0].miou("eval_sem_seg")
    sentences = []
    if wood is not None and control is not None:
        difference = 100 * (wood - control)
        sentences.append(
            f"With out-of-distribution images the class activation maps reach {_percent(wood)} % mIoU, without them "
            f"{_percent(control)} %: {abs(difference):.1f} points {'more' if difference >= 0 else 'less'}."
        )
    elif wood is not None:
        sentences.append(f"The class activation maps reach {_percent(wood)} % mIoU.")
    if masks is not None:
        sentences.append(f"The masks after IRN reach {_percent(masks)} %{_what_beats_masks(arms[0])}.")
    if segmented := _segmentation(arms[0]):
        sentences.append(segmented)
    return " ".join(sentences)


def _what_beats_masks(wood: Arm) -> str:
    """What to say where IRN's masks are below maps or labels of the same images; empty where they are not."""
    images, masks = wood.scores["eval_sem_seg"]["set"], wood.miou("eval_sem_seg") or 0
    better = [
        f"{EVALUATIONS[name]} ({_percent(wood.miou(name))} %)"
        for name in ("eval_cam", "eval_advcam", "eval_ir_label")
        if name in wood.scores and wood.scores[name]["set"] == images and (wood.miou(name) or 0) > masks
    ]
    if not better:
        return ""
    return (
        f", below {' and '.join(better)}: most often because IRN was trained for too few steps (smaller "
        "--irn_batch_size or more --irn_num_epoches), or --sem_seg_bg_thres does not fit these CAMs"
    )


def _segmentation(wood: Arm) -> str:
    """What the segmentation network reaches, in a sentence; empty if it was not evaluated."""
    reached = [
        f"{title} {_percent(wood.miou(name))} % ({wood.scores[name]['images']} images of {wood.scores[name]['set']})"
        for name, title in SEGMENTATION_EVALUATIONS.items()
        if name in wood.scores
    ]
    if not reached:
        return ""
    sets = {wood.scores[name]["set"] for name in SEGMENTATION_EVALUATIONS if name in wood.scores}
    training = wood.segmentation_training
    trained = ""
    if training is not None:
        folder = training.get("deeplab_mask_dir")
        trained = f" trained on {f'masks of {folder}' if folder else 'the masks'}"
    of_masks = wood.scores.get("eval_sem_seg")
    other = "" if of_masks is None or of_masks["set"] in sets else ", other images than those of the figures before"
    return f"A segmentation network{trained}: {', '.join(reached)}{other}."


def _trained_on(n_images: int | None) -> str:
    """Whether the segmentation network was evaluated on images that it was trained on, in a sentence."""
    if n_images is None:
        return "Whether it was trained on some of these images is not recorded here."
    if n_images == 0:
        return "None of these images was in its training list."
    return f"{n_images} of these images {'was' if n_images == 1 else 'were'} in its training list, too."


def _tiles(arms: Sequence[Arm]) -> list[dict[str, str]]:
    tiles = []
    for arm in reversed(arms):
        if arm.miou("eval_cam") is not None:
            kind = "wood" if arm is arms[0] else "control"
            tiles.append({"kind": kind, "value": _percent(arm.miou("eval_cam")), "label": f"CAM mIoU, {arm.name}"})
    for evaluation in ("eval_advcam", "eval_ir_label", "eval_sem_seg", *SEGMENTATION_EVALUATIONS):
        if (miou := arms[0].miou(evaluation)) is not None:
            label = f"{EVALUATIONS[evaluation]} mIoU, {arms[0].name}"
            tiles.append({"kind": "mask", "value": _percent(miou), "label": label})
    if arms[0].instance_ap is not None:
        ap, iou_threshold = arms[0].instance_ap
        label = f"Instance AP at IoU {iou_threshold:g}, {arms[0].name}"
        tiles.append({"kind": "mask", "value": _percent(ap), "label": label})
    return tiles


def _missing(
    wood: Arm, groups: dict[str, list[ImageRow]], command_of: Callable[[str], str], *, has_masks: bool
) -> list[dict[str, str]]:
    missing = [
        {"what": f"Loss curves of {name}", "how": command_of(name)}
        for name in TRAININGS
        if name not in wood.losses and name not in OPTIONAL
    ]
    not_done = [
        (f"Evaluation: {title}", name)
        for name, title in EVALUATIONS.items()
        if name not in wood.scores and name not in (*OPTIONAL, *wood.outdated)
    ]
    if has_masks:
        missing += [{"what": what, "how": command_of(name)} for what, name in not_done]
    else:
        missing += [{"what": f"{what} (the data set has no masks to compare with)", "how": ""} for what, _ in not_done]
    titles = {**EVALUATIONS, INSTANCE_EVALUATION: "Instance AP"}
    missing += [
        {"what": f"Evaluation: {titles[name]} (its score is of earlier files; {step}: {why})", "how": command_of(step)}
        for name, (step, why) in wood.outdated.items()
    ]
    if not any(groups.values()):
        missing.append({"what": "Pictures (there are no CAM files)", "how": command_of("make_cam")})
    return missing


def _table(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    rows = []
    for evaluation, title in EVALUATIONS.items():
        summaries = [arm.summary(evaluation) for arm in arms]
        if not any(summaries):
            continue
        known = [scored["miou"] for scored in summaries if scored and scored["miou"] is not None]
        best = max(known) if len(known) > 1 else None
        cells = []
        for scored in summaries:
            for name in ("miou", "precision", "recall"):
                number = _mean(scored[name]) if scored else None
                cells.append({"text": _percent(number), "best": best is not None and name == "miou" and number == best})
        done = next(arm.scores[evaluation] for arm in arms if evaluation in arm.scores)
        images = f"{done['images']} images of {done['set']}"
        rows.append({"name": title, "images": images + _counted_classes(summaries), "cells": cells})
    return rows


def _counted_classes(summaries: Sequence[dict[str, Any] | None]) -> str:
    """Of how many classes the mIoU of each arm is the mean, where it is not of all; empty where it is."""
    ious = [scored["iou"] for scored in summaries if scored]
    counts = [sum(value is not None for value in iou) for iou in ious]
    n_classes = len(ious[0])
    return "" if {*counts} == {n_classes} else f"; {' and '.join(map(str, counts))} of {n_classes} classes"


def _row(row: ImageRow) -> dict[str, Any]:
    return {
        "name": f"{row.image_id} ({', '.join(row.classes) or 'no class'})",
        "gain": row.gain,
        "before": row.before,
        "after": row.after,
        "pictures": [{"data": thumbnail_uri(picture), "caption": caption} for caption, picture in row.pictures],
    }


def _facts(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """What the W-OoD training ran on (or, without one, the last recorded run)."""
    wood = arms[0]
    if not wood.runs:
        return []
    run = wood.last_run_of("train_cam") or wood.runs[-1]
    config = run["config"]
    networks = [str(config.get("cam_network")), str(config.get("irn_network"))]
    if training := wood.segmentation_training:
        networks.append(f"{training.get('deeplab_network')} (start: {training.get('deeplab_init_weights')})")
    return [
        ("data", f"{config.get('voc12_root')}; training list {config.get('train_list')}"),
        ("OoD images", f"{config.get('ood_root')} ({config.get('ood_list')})"),
        ("networks", ", ".join(networks)),
        ("seed", str(config.get("seed"))),
        ("device", run["device"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
        ("time of all steps below", _time(sum(step["seconds"] for arm in arms for step in arm.steps))),
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _step(arm_name: str, step: dict[str, Any]) -> dict[str, str]:
    memory = ", ".join(
        (f"GPU {mib / MIB_PER_GIB:.1f} GiB" if where == "gpu" else f"{mib / MIB_PER_GIB:.1f} GiB")
        for where, mib in step["peak_memory_mib"].items()
    )
    return {"name": step["step"], "arm": arm_name, "time": _time(step["seconds"]), "memory": memory}


def _run(run: dict[str, Any]) -> dict[str, str]:
    return {
        "started": run["started"].replace("T", " "),
        "steps": ", ".join(run["steps"]),
        "config": shlex.join(to_arguments(changed_flags(run["config"]))),
    }
