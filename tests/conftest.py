"""Shared fixtures: the recordings of the original where they are at hand, and a toy data set in devkit layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ToyData

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FIXTURES = Path(__file__).parent / "fixtures"
TOY_CLASSES = ("aeroplane", "bottle", "train")
TOY_SIZES = ((48, 64), (61, 47), (64, 64), (40, 90), (33, 50), (64, 48), (50, 50), (64, 70))


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def fixture_json():
    """Reads a small recording that is part of the repository."""
    return lambda name: json.loads((FIXTURES / name).read_text())


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder with the recordings of the original."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip(f"the recordings of the original are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def voc_subset() -> Path:
    """A subset of PASCAL VOC 2012 with real out-of-distribution images."""
    folder = SHARED / "voc_subset"
    if not folder.is_dir():
        pytest.skip(f"the VOC subset is not at {folder}")
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyData:
    """A devkit of eight small images of three classes, OoD images, and a working directory of its own."""
    rng = np.random.default_rng(0)
    root, ood = tmp_path / "devkit", tmp_path / "ood"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
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
        objects = f"<object><name>{TOY_CLASSES[label]}</name></object><object><name>spoon</name></object>"
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{i}\n" for i in ids[:6]))
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{i}\n" for i in ids[6:]))
    names = [f"scene{number}.jpg" for number in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(ood / name)
    (tmp_path / "ood_list.txt").write_text("".join(f"{name}\n" for name in names))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return ToyData(root=root, ood_root=ood, ood_list=tmp_path / "ood_list.txt", ids=ids, work=work)
