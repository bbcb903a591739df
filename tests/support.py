"""What several test modules need: the toy data set's flags, and deterministic weights of the recordings."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import Tensor, nn

from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.checkpointfile import classes_beside
from misc.files.images import read_label, write_label
from misc.files.instancefile import Detections
from misc.indexing import pair_paths
from net.weights import BACKBONE_PREFIX, save_weights
from tests import own_network
from voc12.classes import write_classes


@dataclass(frozen=True)
class ToyData:
    """Where the toy data set lies, and the flags that make the chain small."""

    root: Path
    ood_root: Path
    ood_list: Path
    ids: list[str]
    work: Path

    def flags(self, **changed: object) -> list[str]:
        """Command line of a small run on the toy data; `changed` flags replace or join the defaults."""
        flags = {
            "redo": "all",  # for tests that run a step again; those of what is kept leave it out: `redo=()`
            "voc12_root": self.root,
            "ood_root": self.ood_root,
            "ood_list": self.ood_list,
            "num_workers": 0,
            "device": "cpu",
            "cam_network": "tests.own_network",
            "irn_network": "tests.own_network",
            "imagenet_weights": "none",
            "cam_crop_size": 64,
            "cam_resize_long": (48, 80),
            "cam_batch_size": 2,
            "cam_num_epoches": 1,
            "cam_learning_rate": 0.001,
            "cam_scales": (1.0, 0.5),
            "ood_batch_size": 2,
            "ood_long_side": 64,
            "cluster_K": 3,
            "irn_crop_size": 96,
            "irn_batch_size": 2,
            "irn_num_epoches": 1,
            "irn_learning_rate": 0.01,
            "crf_workers": 0,
            "deeplab_network": "tests.own_network",
            "deeplab_init_weights": "none",
            "deeplab_crop_size": 65,
            "deeplab_batch_size": 2,
            "deeplab_max_iter": 3,
            **changed,
        }
        line: list[str] = []
        for name, value in flags.items():
            values = value if isinstance(value, tuple) else (value,)
            line += [f"--{name}", *map(str, values)] if values else []
        return line


TOY_CLASSES = ("aeroplane", "bottle", "train")
TOY_SIZES = ((48, 64), (61, 47), (64, 64), (40, 90), (33, 50), (64, 48), (50, 50), (64, 70))


def make_toy_data(folder: Path) -> ToyData:
    """A devkit of eight small images of three classes, OoD images, and a working directory of its own."""
    rng = np.random.default_rng(0)
    root, ood = folder / "devkit", folder / "ood"
    masks = ("SegmentationClass", "SegmentationObject", "SegmentationClassAug")
    for part in ("JPEGImages", *masks, "Annotations", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    ood.mkdir()
    (root / "classes.txt").write_text("\n".join(TOY_CLASSES) + "\n")
    ids = [f"2099_{number:06d}" for number in range(1, len(TOY_SIZES) + 1)]
    for number, (image_id, (height, width)) in enumerate(zip(ids, TOY_SIZES, strict=True)):
        label = number % len(TOY_CLASSES)
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        top, left = height // 4, width // 4
        image[top : 3 * top, left : 3 * left, label] += 150
        mask[top : 3 * top, left : 3 * left] = label + 1
        mask[top, left : 3 * left] = 255
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{image_id}.png")
        Image.fromarray(mask).save(root / "SegmentationClassAug" / f"{image_id}.png")
        # Two instances, side by side
        objects = np.where(mask == label + 1, 1 + (np.arange(width) >= 2 * left), mask).astype(np.uint8)
        Image.fromarray(objects).save(root / "SegmentationObject" / f"{image_id}.png")
        entries = f"<object><name>{TOY_CLASSES[label]}</name></object><object><name>spoon</name></object>"
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{entries}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{i}\n" for i in ids[:6]))
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{i}\n" for i in ids[6:]))
    names = [f"scene{number}.jpg" for number in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(ood / name)
    (folder / "ood_list.txt").write_text("".join(f"{name}\n" for name in names))
    work = folder / "work"
    work.mkdir()
    return ToyData(root=root, ood_root=ood, ood_list=folder / "ood_list.txt", ids=ids, work=work)


def give_all_one_size(toy: ToyData, size: tuple[int, int] = TOY_SIZES[0]) -> None:
    """New images of one size; masks stay, and fit the first image alone."""
    for number, image_id in enumerate(toy.ids):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(toy.root / "JPEGImages" / f"{image_id}.jpg")


RESNET18 = {f"{kind}_network": f"net.resnet18_{kind}" for kind in ("cam", "irn", "deeplab")}
"""Networks of the project, in place of the toy data's small ones."""

CAM_START, CAM_WEIGHTS = "sess/res50_cam_orig.pth", "sess/res50_cam_ood.pth"
IRN_WEIGHTS, DEEPLAB_WEIGHTS = "sess/res50_irn_ood.pth", "sess/deeplab_v2_ood.pth"


def make_all_inputs(toy: ToyData) -> None:
    """All that any step reads, in the working directory: image k carries class k modulo 3, networks are random."""
    work = toy.work
    for number, image_id in enumerate(toy.ids):
        mask = read_label(toy.root / "SegmentationClass" / f"{image_id}.png")
        height, width = mask.shape
        key, cam = number % len(TOY_CLASSES), torch.ones(1, -(-height // 4), -(-width // 4))
        for folder in ("cam_ood", "cam_ood_advcam"):
            camfile.save(work / f"result/{folder}/{image_id}.npy", [key], cam, torch.ones(1, height, width))
        for folder in ("ir_label", "sem_seg_ood"):
            write_label(work / f"result/{folder}/{image_id}.png", mask)
        nothing = Detections(np.zeros(0), np.zeros((0, height, width), bool), np.zeros(0, int))
        instancefile.save(work / f"result/ins_seg_ood/{image_id}.npy", nothing)
    for path in (CAM_START, CAM_WEIGHTS):
        save_weights(own_network.Net(n_classes=len(TOY_CLASSES)), work / path)
    save_weights(own_network.EdgeDisplacement(), work / IRN_WEIGHTS)
    save_weights(own_network.DeepLab(n_classes=1 + len(TOY_CLASSES)), work / DEEPLAB_WEIGHTS)
    for path in (CAM_START, CAM_WEIGHTS, DEEPLAB_WEIGHTS):
        write_classes(classes_beside(work / path), TOY_CLASSES)
    for photograph in ("photos/a.jpg", "sorted/cat/a.jpg"):
        (work / photograph).parent.mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(work / photograph)


ALL_STEPS = {
    f"{step}_pass": True
    for step in (
        "train_classifier",
        "train_cam",
        "make_cam",
        "eval_cam",
        "cam_to_ir_label",
        "eval_ir_label",
        "train_irn",
        "make_sem_seg",
        "eval_sem_seg",
        "make_ins_seg",
        "eval_ins_seg",
        "make_cocoann",
        "train_deeplab",
        "eval_deeplab",
    )
}
NO_STEPS = dict.fromkeys(ALL_STEPS, False)
RATES_THAT_SHOW = {"cam_learning_rate": 0.01, "irn_learning_rate": 0.1, "deeplab_learning_rate": 0.02}
"""Rates at which the toy data's weights change by much more than rounding, and at which CAMs are left to compare."""


def seeded_array(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The float32 array that the recordings use for the tensor called `key`: its generator is keyed by the name."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    leaf = key.rsplit(".", 1)[-1]
    if len(shape) == 4:
        return (rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if leaf == "running_var":
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if leaf == "weight" and (".bn3." in f".{key}" or ".increase.bn." in key):
        return rng.uniform(0.15, 0.30, shape).astype(np.float32)
    if leaf == "weight":
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    return (rng.standard_normal(shape) * 0.05).astype(np.float32)


def seeded_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """{canonical name: tensor} of the recordings' weights, for every weight of `module`."""
    names = {name.removeprefix(BACKBONE_PREFIX): tensor.shape for name, tensor in module.state_dict().items()}
    return {name: torch.from_numpy(np.asarray(seeded_array(name, tuple(shape), seed))) for name, shape in names.items()}


def relative_error(given: np.ndarray | Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    given = np.asarray(given.detach() if isinstance(given, Tensor) else given)
    assert given.shape == expected.shape
    return float(np.abs(given - expected).max() / np.abs(expected).max())


def gradients_by_name(module: nn.Module) -> Mapping[str, Tensor]:
    """{canonical name: gradient} of the parameters that have one."""
    return {
        name.removeprefix(BACKBONE_PREFIX): parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def every_pair(h, w, radius):
    """(pair number, source number, source cell, destination cell, path) of all training pairs, by plain loops."""
    for number, ((dy, dx), path) in enumerate(pair_paths(radius).items()):
        source_number = 0
        for y in range(h - radius + 1):
            for x in range(radius - 1, w - radius + 1):
                cells = [(y + py, x + px) for py, px in path]
                yield number, source_number, (y, x), (y + dy, x + dx), cells
                source_number += 1


def generated(n_examples: int) -> Callable:
    """For a test of `hypothesis`: this many inputs, the same in every run, which may share a test's folder."""
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=shared
    )


def answer(read: Callable, *given: Any) -> tuple[Any, str]:
    """What `read(*given)` returns, or the sentence with which it refuses; any other error is raised."""
    try:
        return read(*given), ""
    except InputError as error:
        return None, str(error)
