"""Slow: the whole chain on real photographs, with ResNet-50, small enough for two cores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support import ALL_STEPS, NO_STEPS
from torch.nn import functional as F

import run_sample
from misc.files import camfile, instancefile

pytestmark = pytest.mark.slow

CLASSES = 21
N_TRAIN, N_VAL, N_OOD = 12, 4, 12
BLUR = 6.0


@pytest.fixture
def small_subset(voc_subset, tmp_path, monkeypatch):
    """The subset's real files under shorter lists; returns the flags that lead there."""
    root = tmp_path / "devkit"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / folder).symlink_to(voc_subset / folder)
    for split, number in (("train", N_TRAIN), ("val", N_VAL)):
        ids = (voc_subset / f"ImageSets/Segmentation/{split}.txt").read_text().splitlines()[:number]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
    names = (voc_subset / "ood_list.txt").read_text().splitlines()[:N_OOD]
    (tmp_path / "ood_list.txt").write_text("\n".join(names))
    monkeypatch.chdir(tmp_path)
    return {
        "voc12_root": root,
        "train_list": "voc12/train.txt",
        "infer_list": "voc12/train.txt",
        "ood_root": voc_subset / "OoD_images",
        "ood_list": tmp_path / "ood_list.txt",
    }


def run(flags):
    run_sample.run([text for name, value in flags.items() for text in (f"--{name}", *str(value).split())])


def independent_miou(pairs):
    """Mean IoU of (prediction, truth) arrays by set sizes, class by class; 255 in the truth is left out."""
    intersections, unions = np.zeros(CLASSES), np.zeros(CLASSES)
    for prediction, truth in pairs:
        for k in range(CLASSES):
            here, there = (prediction == k) & (truth != 255), truth == k
            intersections[k] += np.count_nonzero(here & there)
            unions[k] += np.count_nonzero(here | there)
    occurs = unions > 0
    return (intersections[occurs] / unions[occurs]).mean()


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_chain_with_resnet50_on_real_photographs(small_subset):
    run(
        {
            **small_subset,
            **ALL_STEPS,
            "eval_ins_seg_pass": False,  # the subset has no masks of instances
            "imagenet_weights": "none",
            "cam_crop_size": 128,
            "cam_resize_long": "128 192",
            "cam_batch_size": 4,
            "cam_num_epoches": 2,
            "cam_learning_rate": 0.001,
            "cam_scales": "1.0 0.5",
            "ood_batch_size": 4,
            "ood_long_side": 200,
            "cluster_K": 4,
            "irn_crop_size": 256,
            "irn_batch_size": 2,
            "irn_num_epoches": 1,
            "irn_learning_rate": 0.01,
            "deeplab_network": "net.resnet18_deeplab",
            "deeplab_init_weights": "none",
            "deeplab_crop_size": 129,
            "deeplab_batch_size": 2,
            "deeplab_max_iter": 4,
        }
    )
    ids = (small_subset["voc12_root"] / "ImageSets/Segmentation/train.txt").read_text().splitlines()
    truth = {i: pixels(small_subset["voc12_root"] / "SegmentationClass" / f"{i}.png") for i in ids}
    for image_id in ids:
        keys, cam, high_res = camfile.load(f"result/cam_ood/{image_id}.npy")
        assert high_res.shape == (len(keys), *truth[image_id].shape)
        assert cam.isfinite().all()
        assert pixels(f"result/ir_label/{image_id}.png").shape == truth[image_id].shape
        found = instancefile.load(f"result/ins_seg_ood/{image_id}.npy")
        assert found.masks.shape[1:] == truth[image_id].shape
    assert len(json.loads(Path("result/cocoann.json").read_text())["images"]) == N_TRAIN
    val_ids = (small_subset["voc12_root"] / "ImageSets/Segmentation/val.txt").read_text().splitlines()
    truth |= {i: pixels(small_subset["voc12_root"] / "SegmentationClass" / f"{i}.png") for i in val_ids}
    for name, folder, scored in (
        ("eval_sem_seg", "sem_seg_ood", ids),
        ("eval_deeplab", "deeplab", val_ids),
        ("eval_deeplab_crf", "deeplab_crf", val_ids),
    ):
        written = json.loads(Path(f"result/scores/{name}.json").read_text())
        masks = [(pixels(f"result/{folder}/{i}.png"), truth[i]) for i in scored]
        assert written["miou"] == pytest.approx(independent_miou(masks), abs=1e-12)


def blurred_truth(mask, keys):
    """(K, H, W) float32: the mask of each class, blurred and divided by its maximum."""
    maps = []
    for key in keys:
        blurred = Image.fromarray(((mask == key + 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(BLUR))
        maps.append(np.asarray(blurred, dtype=np.float32) / max(1, np.max(blurred)))
    return np.stack(maps)


def test_cams_of_the_ground_truth_give_good_labels(small_subset):
    ids = (small_subset["voc12_root"] / "ImageSets/Segmentation/train.txt").read_text().splitlines()
    truth = {i: pixels(small_subset["voc12_root"] / "SegmentationClass" / f"{i}.png") for i in ids}
    for image_id, mask in truth.items():
        keys = np.setdiff1d(np.unique(mask), [0, 255]).astype(int) - 1
        high_res = blurred_truth(mask, keys)
        size = tuple(-(-side // 4) for side in mask.shape)
        cam = F.interpolate(torch.from_numpy(high_res)[None], size, mode="bilinear", align_corners=False)[0]
        camfile.save(f"result/cam_ood/{image_id}.npy", keys, cam, high_res)
    steps = NO_STEPS | {"eval_cam_pass": True, "cam_to_ir_label_pass": True}
    run({**small_subset, **steps, "cam_eval_sweep": "0.3 0.5"})
    run({**small_subset, **NO_STEPS, "eval_sem_seg_pass": True, "sem_seg_out_dir": "result/ir_label"})

    cams = json.loads(Path("result/scores/eval_cam.json").read_text())
    for threshold in (0.3, 0.5):
        predictions = []
        for image_id in ids:
            keys, _, high_res = camfile.load(f"result/cam_ood/{image_id}.npy")
            strongest = keys[high_res.argmax(axis=0)] + 1
            predictions.append((np.where(high_res.max(axis=0) > np.float32(threshold), strongest, 0), truth[image_id]))
        assert cams["miou_by_threshold"][f"{threshold:g}"] == pytest.approx(independent_miou(predictions), abs=1e-12)
    assert cams["best"]["miou"] > 0.8

    labels = {image_id: pixels(f"result/ir_label/{image_id}.png") for image_id in ids}
    written = json.loads(Path("result/scores/eval_sem_seg.json").read_text())
    as_background = [(np.where(labels[i] == 255, 0, labels[i]), truth[i]) for i in ids]
    assert written["miou"] == pytest.approx(independent_miou(as_background), abs=1e-12)
    confident = [(labels[i], np.where(labels[i] == 255, 255, truth[i])) for i in ids]
    assert independent_miou(confident) > 0.85
