"""What each step that is no training hands to the functions that do its work, and where it puts what they return."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import OWN_NETWORKS, TOY_SIZES, make_all_inputs

import run_sample
from misc import camfile, instancefile
from misc.config import switches
from misc.imutils import read_label
from misc.instances import Detections
from voc12.classes import voc_palette

# No value is a default or another flag's
FLAGS = {
    "conf_fg_thres": 0.41,
    "conf_bg_thres": 0.13,
    "np_power": 1.3,
    "sem_seg_bg_thres": 0.31,
    "ins_seg_bg_thres": 0.33,
    "beta": 7,
    "exp_times": 3,
    "adv_iter": 4,
    "AD_coeff": 5,
    "AD_stepsize": 0.06,
    "score_th": 0.45,
    "advcam_batch_size": 2,
    "cam_eval_sweep": (0.2, 0.3),
    "cam_eval_thres": 0.27,
    "cam_scales": (1.0, 0.75, 0.25),
    "make_cam_batch_size": 9,
    "infer_list": "voc12/train.txt",
    "train_list": "voc12/train.txt",
}


@pytest.fixture
def ready(toy, monkeypatch):
    """The toy data with all inputs of all steps."""
    make_all_inputs(toy)
    monkeypatch.setattr("misc.crf.has_densecrf", lambda: True)
    monkeypatch.setattr("net.irn.MIN_PADDED_SIDE", 16)  # or every small image takes the time of 512 x 512
    return toy


def run(toy, step, **flags):
    run_sample.run(toy.flags(**OWN_NETWORKS | FLAGS | switches(step) | flags))


def watch(monkeypatch, path, instead=None):
    """The arguments of all calls of a function, by name; it does its work, or `instead` is called."""
    module, name = path.rsplit(".", 1)
    function = getattr(__import__(module, fromlist=[name]), name)
    calls = []

    def watched(*args, **options):
        given = inspect.signature(function).bind(*args, **options)
        given.apply_defaults()
        calls.append(dict(given.arguments))
        return (instead or function)(*args, **options)

    monkeypatch.setattr(path, watched)
    return calls


def settings(calls, names):
    """The values of some arguments, which all calls share."""
    (values,) = {tuple(call[name] for name in names) for call in calls}
    return values


WALK = {"beta": 7, "exp_times": 3}
HANDED_ON = {
    "cam_to_ir_label": (
        "step.cam_to_ir_label.confident_label",
        lambda image, high_res, keys, **_: np.full(image.shape[:2], keys[0] + 1, np.uint8),
        {"foreground_score": 0.41, "background_score": 0.13},
    ),
    "make_sem_seg": (
        "step.make_sem_seg_labels.semantic_mask",
        lambda cam, edge, keys, size, **_: np.full(size, keys[0] + 1, np.uint8),
        {"power": 1.3, "background_score": 0.31, **WALK},
    ),
    "make_ins_seg": (
        "step.make_ins_seg_labels.detect_instances",
        lambda cam, edge, displacement, keys, size, **_: Detections(
            np.array([0.5], np.float32), np.ones((1, *size), bool), np.array(keys)
        ),
        {"background_score": 0.33, **WALK},
    ),
    "make_advcam": (
        "step.make_advcam.advcam_batch",
        lambda model, images, size, keys, *_, **__: [
            (torch.full((len(k), 1, 1), 0.5), torch.full((len(k), *size), 1 + float(k[0]))) for k in keys
        ],
        {"n_iter": 4, "coefficient": 5, "step": 0.06, "score_threshold": 0.45},
    ),
}


def class_in_output(step, image_id):
    """The one class that a step's output for an image holds, from 1, and the output's size."""
    if step == "make_ins_seg":
        found = instancefile.load(f"result/ins_seg_ood/{image_id}.npy")
        return found.classes[0] + 1, found.masks.shape[1:]
    if step == "make_advcam":
        (key,), _, high_res = camfile.load(f"result/cam_ood_advcam/{image_id}.npy")
        assert np.unique(high_res) == key + 1
        return key + 1, high_res.shape[1:]
    label = read_label(f"result/{'ir_label' if step == 'cam_to_ir_label' else 'sem_seg_ood'}/{image_id}.png")
    (class_id,) = np.unique(label)
    return class_id, label.shape


@pytest.mark.parametrize("step", HANDED_ON)
def test_flags_reach_the_work_and_each_image_its_own_file(ready, monkeypatch, step):
    path, instead, expected = HANDED_ON[step]
    calls = watch(monkeypatch, path, instead)
    run(ready, step)
    assert settings(calls, expected) == tuple(expected.values())
    for number, (image_id, size) in enumerate(zip(ready.ids[:6], TOY_SIZES, strict=False)):
        assert class_in_output(step, image_id) == (1 + number % 3, size)


def test_palette_masks_hold_the_same_in_colour(ready):
    run(ready, "make_sem_seg")
    for image_id in ready.ids[:6]:
        plain = read_label(f"result/sem_seg_ood/{image_id}.png")
        with Image.open(f"result/sem_seg_ood/{image_id}_palette.png") as image:
            np.testing.assert_array_equal(np.array(image), plain)
            np.testing.assert_array_equal(np.array(image.convert("RGB")), voc_palette()[plain])


def test_what_the_walk_starts_from_is_each_images_own(ready, monkeypatch):
    """Size, class, CAM at stride 4 and the network's answer to the normalised image and its mirror image."""
    for number, image_id in enumerate(ready.ids):
        height, width = TOY_SIZES[number]
        cam = torch.full((1, -(-height // 4), -(-width // 4)), 0.1 * number)
        camfile.save(f"result/cam_ood/{image_id}.npy", [number % 3], cam, torch.ones(1, height, width))
    calls = watch(monkeypatch, "step.make_ins_seg_labels.detect_instances")
    run(ready, "make_ins_seg")
    assert [call["size"] for call in calls] == list(TOY_SIZES[:6])
    assert [call["keys"].tolist() for call in calls] == [[0], [1], [2], [0], [1], [2]]
    assert [call["cam"].unique().item() for call in calls] == pytest.approx([0.1 * number for number in range(6)])


def test_cams_are_made_at_the_scales_that_are_asked_for(ready, monkeypatch):
    calls = watch(monkeypatch, "step.make_cam.batch_scale_maps")
    run(ready, "make_cam")
    sizes = [[tuple(at_scale.shape[-2:]) for at_scale in call["images"]] for call in calls]
    assert sorted(sizes) == sorted(
        [(h, w), (round(0.75 * h), round(0.75 * w)), (round(h / 4), round(w / 4))] for h, w in TOY_SIZES[:6]
    )
    for number, image_id in enumerate(ready.ids[:6]):
        keys, _, high_res = camfile.load(f"result/cam_ood/{image_id}.npy")
        assert (keys.tolist(), high_res.shape[1:]) == ([number % 3], TOY_SIZES[number])


@pytest.mark.parametrize(
    ("step", "folder", "suffix", "title"),
    [
        ("eval_cam", "cam_ood", ".npy", "CAM"),
        ("eval_advcam", "cam_ood_advcam", ".npy", "AdvCAM"),
        ("eval_ir_label", "ir_label", ".png", "CAM + CRF"),
        ("eval_sem_seg", "sem_seg_ood", ".png", "mask"),
    ],
)
def test_evaluations_read_their_own_folder_and_set(ready, step, folder, suffix, title):
    """What other evaluations read is not there; the score is saved and told under the step's own name."""
    for other in ("cam_ood", "cam_ood_advcam", "ir_label", "sem_seg_ood", "ins_seg_ood"):
        kept = set(ready.ids[6:]) if other == folder else set()
        for path in Path("result", other).iterdir():
            if path.stem not in kept:
                path.unlink()
    run(ready, step, chainer_eval_set="val")
    scored = json.loads(Path(f"result/scores/{step}.json").read_text())
    assert (scored["set"], scored["images"], scored["folder"]) == ("val", 2, f"result/{folder}")
    assert f" {title} mIoU {scored.get('best', scored)['miou']:.4f} " in Path("sample_train_eval.log").read_text()
    if suffix == ".npy":
        assert scored["miou_by_threshold"].keys() == {"0.2", "0.3"}
        assert scored["best_threshold"] == 0.2  # of equals the first
        # CAMs of 1 everywhere: every pixel has the class of its image, at any background score
        assert scored["miou_at_cam_eval_thres"] == scored["miou_by_threshold"]["0.3"] == scored["best"]["miou"]
    else:
        assert scored["miou"] == 1
