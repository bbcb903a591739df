"""TensorBoard's files hold what the JSON lines and the scores hold; without the package one sentence says so."""

import json
import sys
from pathlib import Path

import pytest
from support import NO_STEPS

import run_sample
from misc.errors import InputError
from misc.files.jsonfile import read_dict
from misc.run.board import _run_name, board

STEPS = ("train_classifier", "train_cam", "make_cam", "eval_cam")


def test_a_missing_package_is_said_before_any_work(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr("step.train_classifier.run", lambda args: pytest.fail("work began"))
    with pytest.raises(
        InputError, match="--tensorboard needs the package tensorboard, which is missing; run `pip inst"
    ):
        run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True, "tensorboard": "board"}))


def test_without_the_flag_nothing_is_loaded_or_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with board("", str(tmp_path), "train_cam") as shown:
        shown.numbers(1, {"total": 1.0})
    assert not list(tmp_path.iterdir())


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_training_that_goes_on_hides_the_points_after_its_state(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    for first, n_kept in ((1, 0), (3, 2)):
        with board(str(tmp_path), "result", "train_cam", n_kept=n_kept) as shown:
            for step in range(first, 6):
                shown.numbers(step, {"step": step, "total": 10.0 * first + step, "validation_loss": None})
    events = read_events(tmp_path / "result/train_cam")
    assert [(e.step, e.value) for e in events.Scalars("total")] == [(1, 11), (2, 12), (3, 33), (4, 34), (5, 35)]
    assert events.Tags()["scalars"] == ["total"]


def test_curves_and_cams_of_a_run_are_there(toy):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    flags = NO_STEPS | {f"{step}_pass": True for step in STEPS} | {"tensorboard": "board", "cam_select": "best_miou"}
    run_sample.run(toy.flags(**flags))
    for step in ("train_classifier", "train_cam"):
        lines = [json.loads(line) for line in Path(f"result/metrics/{step}.jsonl").read_text().splitlines()]
        events = read_events(f"board/result/{step}")
        for name in ("total", "lr", "images_per_second"):
            points = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in lines]
            assert [(event.step, event.value) for event in events.Scalars(name)] == points
    assert events.Scalars("cam_miou")
    assert 0 < len([name for name in events.Tags()["images"] if name.startswith("CAM/")]) <= 4
    events, found = read_events("board/result/eval_cam"), read_dict(Path("result/scores/eval_cam.json"))
    curve = {f"{event.step / 1000:g}": event.value for event in events.Scalars("miou_by_background_score")}
    assert curve == {score: pytest.approx(miou, rel=1e-5) for score, miou in found["miou_by_threshold"].items()}
    assert len(events.Tags()["images"]) == 4


def test_runs_of_two_working_folders_have_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [_run_name(Path(path)) for path in ("result", "runs/a/result", "runs/b/result", "/elsewhere/a/result")]
    assert [*map(str, names)] == ["result", "runs/a/result", "runs/b/result", "a/result"]
