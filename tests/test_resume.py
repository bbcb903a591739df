"""A training that was interrupted goes on where it was saved, and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import NO_STEPS, TOY_CLASSES

import run_sample
from misc.files.checkpointfile import classes_beside
from misc.files.images import read_label, write_label
from misc.run.loaders import ShuffledBatches
from misc.run.training_state import TrainingState
from misc.torchutils import PolyOptimizer
from net.weights import read_checkpoint, save_weights
from tests.own_network import Net
from voc12.classes import read_classes, save_named, write_classes

WEIGHTS = {
    "train_classifier": ("cam_init_weights_name", "sess/res50_cam_orig.pth"),
    "train_cam": ("cam_weights_name", "sess/res50_cam_ood.pth"),
    "train_irn": ("irn_weights_name", "sess/res50_irn_ood.pth"),
    "train_deeplab": ("deeplab_weights_name", "sess/deeplab_v2_ood.pth"),
}


@pytest.fixture
def ready(toy):
    """The toy data with all that any training reads."""
    torch.manual_seed(1)
    save_weights(Net(n_classes=3), "sess/res50_cam_orig.pth")
    for image_id in toy.ids:
        mask = read_label(toy.root / "SegmentationClass" / f"{image_id}.png")
        for folder in ("ir_label", "sem_seg_ood"):
            write_label(f"result/{folder}/{image_id}.png", mask)
    return toy


def train(toy, step, **flags):
    """Train; returns the weights and the lines of losses, speeds left out."""
    flags = {"cam_num_epoches": 2, "irn_num_epoches": 2, "deeplab_max_iter": 6, "state_minutes": 0, **flags}
    run_sample.run(toy.flags(**NO_STEPS | {f"{step}_pass": True} | flags))
    name = flags.get(WEIGHTS[step][0], WEIGHTS[step][1])
    lines = [json.loads(line) for line in Path(f"result/metrics/{step}.jsonl").read_text().splitlines()]
    return read_checkpoint(name), [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def train_until(monkeypatch, last, toy, step, **flags):
    """Train with an interruption after the step `last`, the state before it being the last one saved."""

    def save_or_stop(state, done):
        if done == last:
            raise KeyboardInterrupt
        state.save(done)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save_if_due", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train(toy, step, **flags)


def messages():
    return Path("sample_train_eval.log").read_text()


def test_no_two_trainings_draw_from_the_same_random_stream(ready, monkeypatch):
    seeds, prepare = [], ShuffledBatches.__init__

    def recorded(batches, *args, seed, **kwargs):
        seeds.append(seed)
        prepare(batches, *args, seed=seed, **kwargs)

    def stop(batches):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShuffledBatches, "__init__", recorded)
    monkeypatch.setattr(ShuffledBatches, "__iter__", stop)
    for step in WEIGHTS:
        with pytest.raises(KeyboardInterrupt):
            train(ready, step, seed=7, distance_lambda=0)
    assert {run_seed for run_seed, _ in seeds} == {7}
    assert len({int(stream) for _, stream in seeds}) == len(seeds) == 5


@pytest.mark.parametrize("step", WEIGHTS)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(ready, monkeypatch, step):
    flag, _ = WEIGHTS[step]
    other = {flag: "sess/other.pth"}
    expected, losses = train(ready, step, **other)
    assert len(losses) == 6
    train_until(monkeypatch, 4, ready, step, **other)
    weights, lines = train(ready, step, **other)
    assert f"{step} goes on after step 3 of an interrupted run" in messages()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines == losses
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    assert not list(Path("result/state").iterdir())


def test_what_was_chosen_before_the_interruption_counts(ready, monkeypatch):
    flags = {"cam_select_interval": 1, "cam_batch_size": 1, "cam_num_epoches": 1}
    expected, losses = train(ready, "train_cam", **flags)
    assert [line["step"] for line in losses if "cam_miou" in line] == [5, 6]
    train_until(monkeypatch, 6, ready, "train_cam", **flags)
    path = Path("result/state/train_cam.pth")
    state = torch.load(path, weights_only=True)
    assert state["parts"]["selection"]["best_step"] == 5
    state["parts"]["selection"]["best_miou"] = 2.0  # higher than any
    torch.save(state, path)
    kept, _ = train(ready, "train_cam", **flags)
    assert "kept the weights of step 5 of 6: CAM mIoU 2.0000" in messages()
    assert torch.equal(kept["classifier.weight"], state["parts"]["selection"]["best_state"]["classifier.weight"])
    assert expected.keys() == kept.keys()


KILLED = """
import time
import run_sample
from misc.run.training_state import TrainingState

save = TrainingState.save

def save_or_wait(state, done):
    if done == 3:
        print("is to be killed", flush=True)
        time.sleep(600)
    save(state, done)

TrainingState.save = save_or_wait
run_sample.leave(run_sample.main())
"""


def test_a_killed_process_loses_what_came_after_the_last_save(ready, monkeypatch):
    """It waits to be killed where it has taken its third step and saved two."""
    monkeypatch.setenv("PYTHONPATH", str(Path(run_sample.__file__).parent), prepend=os.pathsep)
    arguments = {"deeplab_max_iter": 40, "state_minutes": 0}
    expected, _ = train(ready, "train_deeplab", **arguments)
    line = ready.flags(**NO_STEPS | {"train_deeplab_pass": True} | arguments)
    process = subprocess.Popen([sys.executable, "-c", KILLED, *line], stdout=subprocess.PIPE, text=True)
    assert "is to be killed\n" in process.stdout
    process.kill()
    process.communicate()
    assert torch.load("result/state/train_deeplab.pth", weights_only=True)["step"] == 2
    weights, lines = train(ready, "train_deeplab", **arguments)
    assert "train_deeplab goes on after step 2 " in messages()
    assert [line["step"] for line in lines] == [*range(1, 41)]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_a_state_at_the_end_is_taken_for_the_result(ready, monkeypatch):
    expected, losses = train(ready, "train_irn")

    def stop(*_arguments, **_keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("step.train_irn._store_mean_displacement", stop)
        with pytest.raises(KeyboardInterrupt):
            train(ready, "train_irn")
    monkeypatch.setattr(PolyOptimizer, "step", lambda self: pytest.fail("a step was done again"))
    weights, lines = train(ready, "train_irn")
    assert lines == losses
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_no_names_of_other_weights_lie_there_while_a_checkpoint_is_written(tmp_path):
    weights = tmp_path / "x.pth"
    names = classes_beside(weights)
    write_classes(names, ["cat"])

    def save(path):
        assert path == weights
        assert not names.exists()  # the weights of before, or the new ones

    save_named(weights, TOY_CLASSES, save=save)
    assert read_classes(names) == TOY_CLASSES


@pytest.mark.parametrize("step", ["train_classifier", "train_cam", "train_deeplab"])
def test_a_training_that_is_killed_while_it_saves_completes_that_when_it_goes_on(ready, monkeypatch, step):
    """At its weights and at its class names: never do the names of other weights lie there."""

    def stop(*_arguments, **_keywords):
        raise KeyboardInterrupt

    weights = Path(WEIGHTS[step][1])
    save_weights(Net(n_classes=3), weights)
    before, names = weights.read_bytes(), classes_beside(weights)
    for place, replaced in (("net.weights.atomic_path", False), ("voc12.classes.write_classes", True)):
        write_classes(names, ["cat"])
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            with pytest.raises(KeyboardInterrupt):
                train(ready, step)
        assert not names.exists()
        assert (weights.read_bytes() != before) == replaced
    with monkeypatch.context() as patch:
        patch.setattr(PolyOptimizer, "step", lambda self: pytest.fail("a step was done again"))
        train(ready, step)
    assert read_classes(names) == TOY_CLASSES


OTHER_TRAININGS = {
    "other settings": {"deeplab_learning_rate": 1e-3},
    "another seed": {"seed": 1},
    "another precision": {"precision": "bf16"},
    "other data": {"deeplab_train_list": "voc12/val.txt"},
    "other starting weights": {"deeplab_init_weights": "sess/start.pth"},
}


@pytest.mark.parametrize("name", OTHER_TRAININGS)
def test_another_training_starts_anew_and_says_so(ready, monkeypatch, name):
    train(ready, "train_deeplab", deeplab_weights_name="sess/start.pth", deeplab_max_iter=1)
    train_until(monkeypatch, 3, ready, "train_deeplab")
    _, lines = train(ready, "train_deeplab", **OTHER_TRAININGS[name])
    assert "train_deeplab starts anew: result/state/train_deeplab.pth is of an interrupted run with other" in messages()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("change", [0, 1])
def test_other_masks_start_it_anew_and_the_same_ones_made_again_do_not(ready, monkeypatch, change):
    train_until(monkeypatch, 3, ready, "train_deeplab")
    path = Path(f"result/sem_seg_ood/{ready.ids[0]}.png")
    mask = read_label(path)
    path.unlink()
    write_label(path, np.where(mask == 0, np.uint8(change), mask))
    train(ready, "train_deeplab")
    assert ("train_deeplab starts anew" in messages()) == bool(change)
    assert ("train_deeplab goes on after step 2" in messages()) == (not change)


def test_resuming_can_be_declined_and_a_damaged_state_does_no_harm(ready, monkeypatch):
    expected, _ = train(ready, "train_deeplab")
    for flags, said in (({"resume": False}, None), ({}, "notice: result/state/train_deeplab.pth is damaged")):
        train_until(monkeypatch, 3, ready, "train_deeplab", **flags)
        if said:
            Path("result/state/train_deeplab.pth").write_bytes(b"damaged")
        weights, lines = train(ready, "train_deeplab", **flags)
        assert "goes on after step" not in messages()
        assert said is None or said in messages()
        assert len(lines) == 6
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_states_are_saved_at_the_given_interval(ready, monkeypatch):
    saved = []
    monkeypatch.setattr(TrainingState, "save", lambda state, step: saved.append(step))
    train(ready, "train_classifier", state_minutes=60)
    assert saved == [6]  # the end alone
    saved.clear()
    train(ready, "train_classifier", state_minutes=0)
    assert saved == [1, 2, 3, 4, 5, 6, 6]
