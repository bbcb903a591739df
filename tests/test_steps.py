"""What each step that is no training hands to the functions that do its work, and where it puts what they return."""

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import IRN_WEIGHTS, TOY_SIZES, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import read_image, read_label, write_label
from misc.files.instancefile import Detections
from misc.imutils import normalize, to_chw
from misc.run.config import parse_config, switches
from misc.run.forecast import forecast
from net.build import load_network
from voc12.classes import voc_palette

# No value is a default or another flag's
FLAGS = {
    "conf_fg_thres": 0.41,
    "conf_bg_thres": 0.13,
    "crf": "torch",
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
    monkeypatch.setattr("net.irn.MIN_PADDED_SIDE", 16)  # or every small image takes the time of 512 x 512
    return toy


def run(toy, step, **flags):
    run_sample.run(toy.flags(**FLAGS | switches(step) | flags))


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


HANDED_ON = {
    "cam_to_ir_label": (
        "step.cam_to_ir_label.confident_label",
        lambda image, high_res, keys, **_: np.full(image.shape[:2], keys[0] + 1, np.uint8),
        {"foreground_score": 0.41, "background_score": 0.13, "backend": "torch"},
    ),
    "make_sem_seg": (
        "step.make_sem_seg_labels.semantic_masks",
        lambda cams, walk, keys, sizes, **_: [
            torch.full(size, int(k[0]) + 1, dtype=torch.uint8) for k, size in zip(keys, sizes, strict=True)
        ],
        {"power": 1.3, "background_score": 0.31},
    ),
    "make_ins_seg": (
        "step.make_ins_seg_labels.detect_instances",
        lambda cam, walk, displacement, keys, size, **_: Detections(
            np.array([0.5], np.float32), np.ones((1, *size), bool), np.array(keys)
        ),
        {"background_score": 0.33},
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


@pytest.mark.parametrize("step", ["make_sem_seg", "make_ins_seg"])
def test_flags_reach_the_walk(ready, monkeypatch, step):
    calls = watch(monkeypatch, "voc12.inference.RandomWalks")
    run(ready, step)
    assert settings(calls, ["beta", "exp_times"]) == (7, 3)


def test_on_a_gpu_labels_are_refined_there_beside_the_reading(ready, monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("step.cam_to_ir_label.device_of", lambda backend, device: gpu)
    path, instead, _ = HANDED_ON["cam_to_ir_label"]
    calls = watch(monkeypatch, path, instead)
    run(ready, "cam_to_ir_label", num_workers=1)
    assert settings(calls, ["backend", "device"]) == ("torch", gpu)
    assert len(calls) == 6  # in this process
    assert class_in_output("cam_to_ir_label", ready.ids[1])[0] == 2


def test_palette_masks_hold_the_same_in_colour(ready):
    run(ready, "make_sem_seg")
    for image_id in ready.ids[:6]:
        plain = read_label(f"result/sem_seg_ood/{image_id}.png")
        with Image.open(f"result/sem_seg_ood/palette/{image_id}.png") as image:
            np.testing.assert_array_equal(np.array(image), plain)
            np.testing.assert_array_equal(np.array(image.convert("RGB")), voc_palette()[plain])


def test_an_image_may_be_called_as_another_ones_masks_once_were(ready, monkeypatch):
    """`a`, whose coloured mask the original calls `a_palette.png`, beside an image `a_palette`, in either order."""
    names, made_of = ("a", "a_palette"), ready.ids[:2]
    for image_id, source in zip(names, made_of, strict=True):
        Path("result/cam_ood", f"{source}.npy").rename(f"result/cam_ood/{image_id}.npy")
        Path(ready.root, "JPEGImages", f"{source}.jpg").rename(ready.root / "JPEGImages" / f"{image_id}.jpg")
    watch(monkeypatch, *HANDED_ON["make_sem_seg"][:2])
    for order in (names, names[::-1]):
        Path("two.txt").write_text("".join(f"{image_id}\n" for image_id in order))
        run(ready, "make_sem_seg", infer_list="two.txt", sem_seg_out_dir=f"result/{order[0]}_first")
        for number, image_id in enumerate(names):
            for path in (f"{image_id}.png", f"palette/{image_id}.png"):
                label = read_label(f"result/{order[0]}_first/{path}")
                assert (np.unique(label), label.shape) == ([1 + number], TOY_SIZES[number])


def normalised_pair(toy, image_id):
    image = normalize(torch.from_numpy(to_chw(read_image(toy.root / "JPEGImages" / f"{image_id}.jpg"))))
    return torch.stack([image, image.flip(-1)])


@torch.no_grad()
def test_what_the_walk_starts_from_is_each_images_own(ready, monkeypatch):
    """Size, class, CAM at stride 4, and the network's answer to the normalised image and its mirror image."""
    for number, image_id in enumerate(ready.ids):
        height, width = TOY_SIZES[number]
        cam = torch.full((1, -(-height // 4), -(-width // 4)), 0.1 * number)
        camfile.save(f"result/cam_ood/{image_id}.npy", [number % 3], cam, torch.ones(1, height, width))
    calls = watch(monkeypatch, "step.make_ins_seg_labels.detect_instances", HANDED_ON["make_ins_seg"][1])
    walks = watch(monkeypatch, "voc12.inference.RandomWalks")
    run(ready, "make_ins_seg")
    assert [call["size"] for call in calls] == list(TOY_SIZES[:6])
    assert [call["keys"].tolist() for call in calls] == [[0], [1], [2], [0], [1], [2]]
    assert [call["cam"].unique().item() for call in calls] == pytest.approx([0.1 * number for number in range(6)])
    network = load_network("tests.own_network", "EdgeDisplacement", IRN_WEIGHTS, torch.device("cpu"))
    for call, walk, image_id in zip(calls, walks, ready.ids[:6], strict=True):
        edge, displacement = network(normalised_pair(ready, image_id))
        torch.testing.assert_close(walk["edges"], [edge])
        torch.testing.assert_close(call["displacement"], displacement)


def test_advcam_climbs_from_the_normalised_image_and_its_mirror_image(ready, monkeypatch):
    calls = watch(monkeypatch, *HANDED_ON["make_advcam"][:2])
    run(ready, "make_advcam")
    pairs = {tuple(pairs[1.0].shape[2:]): pairs for call in calls for pairs in call["images"]}
    for image_id, (height, width) in zip(ready.ids[:6], TOY_SIZES, strict=False):
        at_scale = pairs[height, width]
        torch.testing.assert_close(at_scale[1.0], normalised_pair(ready, image_id))
        assert {scale: tuple(pair.shape) for scale, pair in at_scale.items()} == {
            scale: (2, 3, round(height * scale), round(width * scale)) for scale in (0.5, 1.0, 1.5, 2.0)
        }


def test_a_cam_of_another_size_is_told_before_its_label_is_made(ready):
    camfile.save(f"result/cam_ood/{ready.ids[0]}.npy", [0], torch.ones(1, 3, 3), torch.ones(1, 9, 9))
    with pytest.raises(InputError, match=r"2099_000001.npy is not of the size of its image; make it again"):
        run(ready, "cam_to_ir_label")


def test_cams_are_made_at_the_scales_that_are_asked_for(ready, monkeypatch):
    calls = watch(monkeypatch, "misc.cam.batch_scale_maps")
    run(ready, "make_cam")
    sizes = [[tuple(at_scale.shape[-2:]) for at_scale in call["images"]] for call in calls]
    assert sorted(sizes) == sorted(
        [(h, w), (round(0.75 * h), round(0.75 * w)), (round(h / 4), round(w / 4))] for h, w in TOY_SIZES[:6]
    )
    for number, image_id in enumerate(ready.ids[:6]):
        keys, _, high_res = camfile.load(f"result/cam_ood/{image_id}.npy")
        assert (keys.tolist(), high_res.shape[1:]) == ([number % 3], TOY_SIZES[number])


@pytest.mark.parametrize(("step", "folder"), [("make_cam", "cam_ood"), ("make_advcam", "cam_ood_advcam")])
def test_the_numbers_of_cam_files_and_their_disk_are_those_that_are_asked_for(ready, step, folder):
    ids, found, needed = ready.ids[:6], {}, {}
    for numbers in ("float32", "float16"):
        for image_id in ids:
            camfile.cam_path(f"result/{folder}", image_id).unlink()
        flags = {"cam_files": numbers, "adv_iter": 1}
        config = parse_config(ready.flags(**FLAGS | switches(step) | flags))
        (row,) = forecast(config, [importlib.import_module(f"step.{step}")], {})
        run(ready, step, **flags)
        files = [np.load(f"result/{folder}/{image_id}.npy", allow_pickle=True).item() for image_id in ids]
        assert {str(content["high_res"].dtype) for content in files} == {numbers}
        found[numbers], needed[numbers] = [content["high_res"] for content in files], row.disk[f"result/{folder}"]
    for high_res, halves in zip(*found.values(), strict=True):
        np.testing.assert_allclose(halves, high_res, rtol=0, atol=2**-12)
    assert needed["float16"] == pytest.approx(3.2 / 6 * needed["float32"], rel=0.01)


def only_outputs_of(toy, folder):
    """Of all folders that evaluations read, only one has files, and these of the images of val alone."""
    for other in ("cam_ood", "cam_ood_advcam", "ir_label", "sem_seg_ood", "ins_seg_ood"):
        for path in Path("result", other).iterdir():
            if other != folder or path.stem not in toy.ids[6:]:
                path.unlink()


def scores_of_val(toy, step, title):
    """What an evaluation saves and tells of the two images of val, an aeroplane and a bottle."""
    run(toy, step, chainer_eval_set="val")
    scored = json.loads(Path(f"result/scores/{step}.json").read_text())
    assert (scored["set"], scored["images"]) == ("val", 2)
    miou = scored.get("best", scored)["miou"]
    assert f" {title} mIoU {miou:.4f} " in Path("sample_train_eval.log").read_text()
    return scored


def truth_of(toy, image_id):
    return read_label(toy.root / "SegmentationClass" / f"{image_id}.png")


@pytest.mark.parametrize(
    ("step", "folder", "title"), [("eval_cam", "cam_ood", "CAM"), ("eval_advcam", "cam_ood_advcam", "AdvCAM")]
)
def test_evaluations_of_cams(ready, step, folder, title):
    """The threshold apart separates object and background; of those that are asked for none does."""
    only_outputs_of(ready, folder)
    n_pixels, n_background = 0, 0
    for image_id in ready.ids[6:]:
        truth = truth_of(ready, image_id)
        key = int(truth[(truth > 0) & (truth < 255)][0]) - 1
        high_res = torch.where(torch.from_numpy(truth) == 0, 0.25, 0.29)[None]
        camfile.save(f"result/{folder}/{image_id}.npy", [key], high_res, high_res)
        n_pixels += (truth != 255).sum()
        n_background += (truth == 0).sum()
    scored = scores_of_val(ready, step, title)
    assert scored["folder"] == f"result/{folder}"
    assert scored["miou_at_cam_eval_thres"] == 1
    assert scored["miou_by_threshold"].keys() == {"0.2", "0.3"}
    # Above the threshold nothing: all is background
    assert scored["miou_by_threshold"]["0.3"] == pytest.approx(n_background / n_pixels / 3)
    assert scored["best"]["miou"] == max(scored["miou_by_threshold"].values()) < 1
    assert scored["two_fold"] == {"thresholds": [0.3, 0.3], "miou": scored["miou_by_threshold"]["0.3"]}


@pytest.mark.parametrize(
    ("step", "folder", "title"), [("eval_ir_label", "ir_label", "CAM + CRF"), ("eval_sem_seg", "sem_seg_ood", "mask")]
)
def test_evaluations_of_masks(ready, step, folder, title):
    """One image is unsure everywhere, which counts as background, the other is right."""
    only_outputs_of(ready, folder)
    unsure, right = (truth_of(ready, image_id) for image_id in ready.ids[6:])
    write_label(f"result/{folder}/{ready.ids[6]}.png", np.full_like(unsure, 255))
    scored = scores_of_val(ready, step, title)
    assert scored["folder"] == f"result/{folder}"
    background = (unsure == 0).sum() + (right == 0).sum()
    of_background = background / (background + (unsure == 1).sum())
    assert scored["iou"] == pytest.approx([of_background, 0, 1, None], nan_ok=True)
    assert scored["miou"] == pytest.approx((of_background + 0 + 1) / 3)
