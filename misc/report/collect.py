"""Reading what a run left behind. Whatever is missing is left out, and named."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from misc.record import METRICS_FOLDER, RUNS_FOLDER, SCORES_FOLDER

TRAININGS = ("train_classifier", "train_cam", "train_irn")
EVALUATIONS = {"eval_cam": "CAM", "eval_ir_label": "CAM + CRF", "eval_sem_seg": "Masks after IRN"}


@dataclass
class Arm:
    """One training of the comparison (W-OoD, or the control without OoD data).

    Attributes:
        name: as shown.
        scores: evaluation name -> its JSON, for those that were done on this data set.
        losses: training name -> {"step": [...], loss name: [...]}.
        steps: the last record of each step: {"step", "seconds", "peak_memory_mib"}.
        runs: run records on this data set, oldest first.
    """

    name: str
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def miou(self, evaluation: str) -> float | None:
        """mIoU of an evaluation, None where it was not done."""
        scored = self.summary(evaluation)
        return None if scored is None else scored["miou"]

    def summary(self, evaluation: str) -> dict[str, Any] | None:
        """Scores of an evaluation: iou, miou, precision, recall; of CAMs at the best background score."""
        content = self.scores.get(evaluation)
        return None if content is None else content.get("best", content)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file; None if it is missing or damaged (the report then lists its content as missing)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _read_losses(path: Path) -> dict[str, list[float]]:
    """{column: values} of a file of JSON lines; of columns that each line has. Empty if there is no such file."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    if not lines:
        return {}
    columns = [name for name in lines[0] if all(line.get(name) is not None for line in lines)]
    return {name: [line[name] for line in lines] for name in columns}


def collect_arm(name: str, result_dir: str | Path, voc12_root: str) -> Arm:
    """Everything in a result folder that belongs to the data set at `voc12_root`."""
    folder, arm = Path(result_dir), Arm(name)
    for path in sorted((folder / RUNS_FOLDER).glob("*.json")):
        content = _read_json(path)
        if content is not None and content.get("config", {}).get("voc12_root") == voc12_root:
            arm.runs.append(content)
    for evaluation in EVALUATIONS:
        content = _read_json(folder / SCORES_FOLDER / f"{evaluation}.json")
        if content is not None and content.get("voc12_root") == voc12_root:
            arm.scores[evaluation] = content
    if arm.runs:  # losses carry no data set of their own
        for training in TRAININGS:
            if losses := _read_losses(folder / METRICS_FOLDER / f"{training}.jsonl"):
                arm.losses[training] = losses
    last = {step["step"]: step for run in arm.runs for step in run.get("done", [])}
    arm.steps = list(last.values())
    return arm
