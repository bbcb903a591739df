"""Batches that the memory does not take are halved, and what does not fit at all is one sentence; nothing is lost."""

import re

import numpy as np
import pytest
import torch
from support import NO_STEPS, give_all_one_size, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files import camfile
from misc.run import training
from misc.run.fitting import Fitting, one_image
from misc.run.limits import OneTooLarge
from net.deeplab import Segmenter
from tests.own_network import CAM, EdgeDisplacement
from tests.test_resume import WEIGHTS, messages, train
from voc12.dataloader import ClassificationCrops, TopLeftCrops

ERRORS = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    "NumPy": MemoryError("Unable to allocate 9 bytes"),
}
GPU_ERROR = ERRORS["GPU"]


@pytest.fixture(autouse=True)
def _not_tried_out_before(monkeypatch):
    """Networks see the images of the steps alone."""
    monkeypatch.setattr("net.build.problem_of_answer", lambda *_: "")


def run(toy, **flags):
    run_sample.run(toy.flags(**NO_STEPS | flags))


# A batch


def tried(fitting, n_parts, *, room, error=GPU_ERROR, size=(9, 9)):
    """The batch sizes that `fitting` tries where `room` parts fit."""
    sizes = []

    def work(at_once):
        sizes.append(at_once)
        if at_once > room:
            raise error

    fitting.run(work, n_parts, size=size, example="a.jpg")
    return sizes


@pytest.mark.parametrize("kind", ERRORS)
def test_half_as_many_are_tried_and_kept_for_the_next_ones(kind):
    fitting = Fitting(12, parts="images")
    assert tried(fitting, 9, room=100) == [9]
    assert tried(fitting, 12, room=3, error=ERRORS[kind]) == [12, 6, 3]
    assert tried(fitting, 12, room=12) == [3]
    assert tried(fitting, 2, room=1) == [2, 1]


def test_large_images_take_several_places():
    fitting = Fitting(12, parts="images")
    assert tried(fitting, 9, room=2, size=(1024, 512)) == [6, 3, 1]
    assert tried(fitting, 9, room=9) == [2]


def test_one_that_does_not_fit_is_an_error_of_its_own_and_other_errors_stay_what_they_are():
    with pytest.raises(OneTooLarge, match="an image of 9 x 7 pixels, a.jpg"):
        tried(Fitting(2, parts="images"), 2, room=0, size=(9, 7))
    for error in (RuntimeError("size mismatch"), InputError("a file is damaged")):
        with pytest.raises(type(error)) as caught:
            tried(Fitting(2, parts="images"), 2, room=1, error=error)
        assert caught.value is error
        with pytest.raises(type(error)), one_image((9, 9), "a.jpg"):
            raise error


def test_results_come_in_the_order_of_the_items():
    taken = []

    def squares(items):
        taken.append(len(items))
        if len(items) > 2:
            raise GPU_ERROR
        return [item**2 for item in items]

    assert Fitting(4, parts="images").each(squares, range(5), size=(9, 9), example="a.jpg") == [0, 1, 4, 9, 16]
    assert taken == [4, 2, 2, 1]


# The steps that run in batches


def limit(monkeypatch, owner, name, n_of, *, room, error=GPU_ERROR):
    """Let a method of a network fail for more than `room` images; returns how many it was called with."""
    method, sizes = getattr(owner, name), []

    def limited(self, given):
        sizes.append(n_of(given))
        if sizes[-1] > room:
            raise error
        return method(self, given)

    monkeypatch.setattr(owner, name, limited)
    return sizes


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
def test_cams_of_a_batch_that_does_not_fit_are_those_of_smaller_ones(toy, monkeypatch, kind):
    make_all_inputs(toy)
    give_all_one_size(toy)
    flags = {"make_cam_pass": True, "make_cam_batch_size": 4, "cam_scales": (1.0,)}
    run(toy, **flags, cam_out_dir="result/whole")
    sizes = limit(monkeypatch, CAM, "logit_maps", lambda images: len(images) // 2, room=2, error=ERRORS[kind])
    run(toy, **flags)
    assert sizes == [4, 2, 2, 2]
    memory = {"GPU": "GPU memory", "CPU": "memory"}[kind]
    assert messages().count(f"notice: no {memory} for 4 images at once; going on with 2") == 1
    for image_id in toy.ids[:6]:
        (keys, *maps), (_, *whole) = (camfile.load(f"result/{f}/{image_id}.npy") for f in ("cam_ood", "whole"))
        assert len(keys)
        for given, expected in zip(maps, whole, strict=True):
            np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


def test_irn_takes_smaller_batches(toy, monkeypatch):
    make_all_inputs(toy)
    give_all_one_size(toy)
    (toy.work / "three.txt").write_text("".join(f"{image_id}\n" for image_id in toy.ids[:3]))
    for number, image_id in enumerate(toy.ids[:3]):
        camfile.save(f"result/cam_ood/{image_id}.npy", [number], torch.ones(1, 12, 16), torch.ones(1, 48, 64))
    sizes = limit(monkeypatch, EdgeDisplacement, "batch", len, room=2)
    run(toy, make_sem_seg_pass=True, infer_list="three.txt", irn_infer_batch_size=3, exp_times=1)
    assert sizes == [3]  # one alone is no batch
    assert "notice: no GPU memory for 3 images at once; going on with 1" in messages()


ONE = {
    "make_cam": (CAM, "logit_maps", "lower --cam_scales, or pass --device cpu, or free some of it"),
    "make_advcam": (CAM, "logit_maps", "pass --device cpu, or free some of it"),
    "make_sem_seg": (EdgeDisplacement, "forward", "pass --device cpu, or free some of it"),
    "make_ins_seg": (EdgeDisplacement, "forward", "pass --device cpu, or free some of it"),
    "eval_deeplab": (Segmenter, "network_logits", "pass --device cpu, or free some of it"),
    "predict": (Segmenter, "network_logits", "lower --predict_long_side, or pass --device cpu, or free some of it"),
}


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("step", ONE)
def test_one_image_that_does_not_fit_is_one_sentence(toy, monkeypatch, step, refined):
    owner, name, advice = ONE[step]
    make_all_inputs(toy)
    limit(monkeypatch, owner, name, len, room=0)
    flags = {"predict_input": toy.root / "JPEGImages", "predict_crf": refined, "deeplab_crf": refined}
    with pytest.raises(InputError) as caught:
        run(toy, **{f"{step}_pass": True}, **flags)
    expected = (
        rf"{step}: the GPU's memory does not suffice for an image of \d+ x \d+ pixels, \S+\.jpg "
        rf"\(20.00 MiB more were asked for\); {re.escape(advice)}; what is finished is kept\."
    )
    assert re.fullmatch(expected, str(caught.value))


# Trainings

FLAGS = {
    "train_classifier": "--cam_batch_size or --cam_crop_size",
    "train_cam": "--cam_batch_size, --ood_batch_size, --cam_crop_size or --ood_long_side",
    "train_irn": "--irn_batch_size or --irn_crop_size",
    "train_deeplab": "--deeplab_batch_size or --deeplab_crop_size",
}


@pytest.mark.parametrize("step", FLAGS)
def test_a_training_whose_memory_runs_out_loses_no_step(toy, monkeypatch, step):
    make_all_inputs(toy)
    rare = {"state_minutes": 60}
    expected, losses = train(toy, step, **rare, **{WEIGHTS[step][0]: "sess/other.pth"})
    backward, began = training._backward, []

    def fail(given, *, share):
        began.append(given)
        if len(began) == 4:
            raise GPU_ERROR
        return backward(given, share=share)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_backward", fail)
        with pytest.raises(InputError) as caught:
            train(toy, step, **rare)
    assert str(caught.value) == (
        f"{step}: the GPU's memory does not suffice (20.00 MiB more were asked for); lower {FLAGS[step]}, or pass "
        "--device cpu, or free some of it; what is finished is kept."
    )
    state = torch.load(f"result/state/{step}.pth", weights_only=True)
    done = 3 // (2 if step == "train_deeplab" else 1)  # whose steps have two batches each
    assert state["step"] == done
    weights, lines = train(toy, step, **rare)
    assert f"{step} goes on after step {done} " in messages()
    assert lines == losses
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("owner", "name", "error", "calls"),
    [
        (TopLeftCrops, "__getitem__", GPU_ERROR, 3),  # after a step, in the validation of an epoch
        (ClassificationCrops, "__getitem__", ERRORS["NumPy"], 10),  # while the images of a later step are read
    ],
)
def test_nor_where_it_runs_out_after_a_step_or_between_two(toy, monkeypatch, owner, name, error, calls):
    make_all_inputs(toy)
    rare = {"state_minutes": 60}
    expected, losses = train(toy, "train_classifier", **rare, cam_init_weights_name="sess/other.pth")
    work, called = getattr(owner, name), []

    def fail(*args, **kwargs):
        called.append(1)
        if len(called) == calls:
            raise error
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(InputError, match=r"train_classifier: the .*memory does not suffice"):
            train(toy, "train_classifier", **rare)
    weights, lines = train(toy, "train_classifier", **rare)
    assert "train_classifier goes on after step " in messages()
    assert lines == losses
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights.items())
