"""Reading what a run left behind. Whatever is missing or damaged is left out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from misc.files.jsonfile import is_number, read_dict
from misc.files.paths import same_path
from misc.files.resultfiles import RUNS_FOLDER, SCORES_FOLDER
from misc.run.done import DoneSteps
from misc.run.record import LARGEST_SHOWN, read_losses

MAKERS = (
    *("train_classifier", "train_cam", "make_cam", "make_advcam", "cam_to_ir_label", "train_irn"),
    *("make_sem_seg", "make_ins_seg", "train_deeplab"),
)
"""The steps whose results are scored, or made into what is, in the order of the chain."""
TRAININGS = ("train_classifier", "train_cam", "train_irn", "train_deeplab")
SEGMENTATION_EVALUATIONS = {"eval_deeplab": "DeepLab", "eval_deeplab_crf": "DeepLab + CRF"}
EVALUATIONS = {
    "eval_cam": "CAM",
    "eval_advcam": "AdvCAM",
    "eval_ir_label": "CAM + CRF",
    "eval_sem_seg": "Masks after IRN",
    **SEGMENTATION_EVALUATIONS,
}
INSTANCE_EVALUATION = "eval_ins_seg"
CAM_EVALUATIONS = ("eval_cam", "eval_advcam")
"""Over background scores."""
OPTIONAL = ("eval_advcam", "train_deeplab", *SEGMENTATION_EVALUATIONS)
"""The report does not miss these."""
REPORT_STEP = "make_report"
# What makes two trainings comparable: all but the OoD data
SHARED_FLAGS = ("cam_init_weights_name", "cam_num_epoches", "cam_learning_rate", "cam_batch_size", "train_list", "seed")

Record = dict[str, Any]


@dataclass
class Arm:
    """One training of the comparison (W-OoD, or the control without OoD data).

    Attributes:
        name: as shown.
        scores: evaluation name -> its JSON, for those that were done on this data set and class list.
        outdated: evaluation name -> a step behind it that is no longer up to date, and why; its score is left out.
        losses: training name -> {"step": [...], loss name: [...]}.
        instance_ap: the mean instance AP and its IoU threshold, where it was measured on this data set.
        runs: records of the runs on this data set that did more than a report, oldest first.
        segmentation_training: flags of the training on this data set whose weights the segmentation evaluations used,
            where it is recorded.
    """

    name: str
    scores: dict[str, Record] = field(default_factory=dict)
    outdated: dict[str, tuple[str, str]] = field(default_factory=dict)
    losses: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    instance_ap: tuple[float, float] | None = None
    runs: list[Record] = field(default_factory=list)
    segmentation_training: Record | None = None

    @property
    def steps(self) -> list[Record]:
        """The last record of each step that was done: {"step", "seconds", "peak_memory_mib"}."""
        return list({step["step"]: step for run in self.runs for step in run["done"]}.values())

    def last_run_of(self, step: str) -> Record | None:
        """The latest run in which `step` was done."""
        return next((run for run in reversed(self.runs) if step in _done(run)), None)

    def leave_out(self, evaluation: str, *, step: str, why: str) -> None:
        """Take a score, where there is one, for one of earlier files, since `step` is no longer up to date."""
        if evaluation == INSTANCE_EVALUATION:
            known, self.instance_ap = self.instance_ap, None
        else:
            known = self.scores.pop(evaluation, None)
        if known is not None:
            self.outdated[evaluation] = step, why
        if self.segmentation_scores is None:
            self.segmentation_training = None

    @property
    def segmentation_scores(self) -> Record | None:
        """Scores of a segmentation evaluation (both are made in one go), None where none was done."""
        return next((self.scores[name] for name in SEGMENTATION_EVALUATIONS if name in self.scores), None)

    def summary(self, evaluation: str) -> Record | None:
        """Scores of an evaluation: iou, miou, precision, recall; of CAMs at the best background score."""
        content = self.scores.get(evaluation)
        return None if content is None else content.get("best", content)

    def miou(self, evaluation: str) -> float | None:
        """mIoU of an evaluation, None where it was not done."""
        scored = self.summary(evaluation)
        return None if scored is None else scored["miou"]


def differ_in_ood_data_alone(arm: Arm, other: Arm) -> bool:
    """Whether both W-OoD trainings are recorded and agree in everything that makes a fair comparison."""
    runs = [each.last_run_of("train_cam") for each in (arm, other)]
    return None not in runs and len({tuple(str(run["config"].get(f)) for f in SHARED_FLAGS) for run in runs}) == 1


def _done(run: Record) -> set[str]:
    return {step["step"] for step in run["done"]}


def _is_run(record: Record) -> bool:
    """Whether a run record has all that the report reads, as a run writes it."""
    kinds = {"started": str, "config": dict, "steps": list, "done": list, "versions": dict, "device": str}
    return (
        all(isinstance(record.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(step, str) for step in record["steps"])
        and all(map(_is_done_step, record["done"]))
        and isinstance(record["config"].get("work_dir", ""), str)
    )


def _is_done_step(step: Any) -> bool:
    return (
        isinstance(step, dict)
        and isinstance(step.get("step"), str)
        and is_number(step.get("seconds"), low=0, high=LARGEST_SHOWN)
        and isinstance(step.get("peak_memory_mib"), dict)
        and all(is_number(mib, low=0, high=LARGEST_SHOWN) for mib in step["peak_memory_mib"].values())
    )


def _is_score(content: Record, *, over_thresholds: bool) -> bool:
    """Whether an evaluation has all that the report reads, as a run writes it."""
    kinds = {"images": int, "set": str, "folder": str, "classes": list}
    scored = content.get("best") if over_thresholds else content
    return (
        all(isinstance(content.get(name), kind) for name, kind in kinds.items())
        and isinstance(scored, dict)
        and ("best" in content) == over_thresholds
        and _is_share(scored.get("miou", LARGEST_SHOWN))
        and all(_are_shares(scored.get(name), content["classes"]) for name in ("iou", "precision", "recall"))
        and (not over_thresholds or _is_curve(content))
    )


def _is_share(value: Any) -> bool:
    """Whether a value is a score: a number from 0 to 1, or None where there was nothing to measure."""
    return value is None or is_number(value, low=0, high=1)


def _are_shares(values: Any, classes: list) -> bool:
    return isinstance(values, list) and len(values) == len(classes) and all(map(_is_share, values))


def _is_curve(content: Record) -> bool:
    curve = content.get("miou_by_threshold")
    return (
        is_number(content.get("best_threshold"), low=0, high=1)
        and isinstance(curve, dict)
        and all(re.fullmatch(r"(\d+\.?\d*|\.\d+)(e-\d+)?", score) and _is_share(miou) for score, miou in curve.items())
    )


def evaluation_step(evaluation: str) -> str:
    """The step that does an evaluation."""
    return "eval_deeplab" if evaluation in SEGMENTATION_EVALUATIONS else evaluation


def steps_behind(evaluation: str, records: Mapping[str, Record], places: Mapping[str, Any]) -> list[str]:
    """The steps whose results an evaluation scores, in the chain's order, and at the end the evaluation's own step.

    Args:
        records: {step: its record}, as `misc.run.done.DoneSteps` writes them; a step without one is left out.
        places: flags, with the places that count: what a step has written to another one is not scored.
    """
    step = evaluation_step(evaluation)
    used, behind = {*records[step]["inputs"]}, [step]
    for maker in reversed(MAKERS):
        record = records.get(maker)
        read = [places.get(flag) for flag in used]
        if record and any(same_path(place, other) for place in record["places"].values() for other in read):
            used |= record["inputs"].keys()
            behind.insert(0, maker)
    return behind


def _segmentation_training(scores: Record, records: Iterable[Record], roots: Sequence[str]) -> Record | None:
    """Flags of the run that wrote the weights of a segmentation evaluation: the last one before that evaluation."""
    latest = found = None
    for record in records:
        config = record["config"]
        if not same_path(config.get("deeplab_weights_name"), scores.get("weights")):
            continue
        if "train_deeplab" in _done(record):
            latest = config
        if "eval_deeplab" in _done(record) and config.get("deeplab_eval_set") == scores["set"]:
            found = latest
    return found if found and _is_one_of(roots, found.get("voc12_root")) else None


def _is_one_of(roots: Sequence[str], place: Any) -> bool:
    return any(same_path(place, root) for root in roots)


def collect_arm(name: str, result_dir: str | Path, voc12_root: str, class_names: Iterable[str]) -> Arm:
    """Everything in a result folder that belongs to the data set at `voc12_root` with these mask values."""
    folder, arm, class_names = Path(result_dir), Arm(name), list(class_names)
    roots_of = cache(DoneSteps(folder).roots_of)

    def is_ours(root: Any, step: str) -> bool:
        return _is_one_of(roots_of(step, voc12_root), root)

    records = [record for path in sorted((folder / RUNS_FOLDER).glob("*.json")) if _is_run(record := read_dict(path))]
    owner: dict[str, bool] = {}
    for record in records:
        root, steps = record["config"].get("voc12_root"), _done(record)
        owner.update({step: is_ours(root, step) for step in steps})
        if record["steps"] != [REPORT_STEP] and all(is_ours(root, step) for step in steps or {REPORT_STEP}):
            arm.runs.append(record)
    for evaluation in EVALUATIONS:
        content = read_dict(folder / SCORES_FOLDER / f"{evaluation}.json")
        ours = is_ours(content.get("voc12_root"), evaluation_step(evaluation)) and content.get("classes") == class_names
        if ours and _is_score(content, over_thresholds=evaluation in CAM_EVALUATIONS):
            arm.scores[evaluation] = content
    if arm.segmentation_scores is not None:
        arm.segmentation_training = _segmentation_training(
            arm.segmentation_scores, records, roots_of("train_deeplab", arm.segmentation_scores["voc12_root"])
        )
    instances = read_dict(folder / SCORES_FOLDER / f"{INSTANCE_EVALUATION}.json")
    ap = instances.get("map"), instances.get("iou_threshold")
    ours = is_ours(instances.get("voc12_root"), INSTANCE_EVALUATION) and instances.get("classes") == class_names[1:]
    if ours and all(is_number(number, low=0, high=1) for number in ap):
        arm.instance_ap = ap
    for training in TRAININGS:  # losses carry no data set: the last run that wrote them tells it
        losses = read_losses(folder, training) if owner.get(training) else {}
        if losses:
            arm.losses[training] = losses
    return arm
