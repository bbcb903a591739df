"""Inputs of the benchmarks, all from a seed: drawn photographs in a devkit with labels, CAMs and network weights."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from misc.files import camfile
from misc.files.objectfile import save_object
from misc.imutils import IGNORE_LABEL, cells_of
from net.resnet50_cam import CAM
from net.resnet50_irn import EdgeDisplacement
from net.resnet101_deeplab import DeepLab
from net.weights import save_weights
from voc12.classes import VOC_CLASSES

Size = tuple[int, int]

N_OBJECTS = 2
JPEG_QUALITY = 90
RESIDUAL_SCALE = 0.2
"""Of the last batch norm of each block: with 1 the features of a network of random weights grow from block to block."""


def make_devkit(folder: Path, sizes: Sequence[Size], *, n_ood: int = 0) -> None:
    """Write a devkit with one photograph of each (H, W), and what the steps need besides it.

    `folder` then holds `devkit/` (JPEGImages, SegmentationClass, and all images in ImageSets/Segmentation/train.txt),
    `cls_labels.npy`, `cam/ID.npy`, `ir_label/ID.png`, `ood/*.jpg` and `ood_list.txt`. Every image shows two classes.
    """
    rng = np.random.default_rng(0)
    devkit = folder / "devkit"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (devkit / part).mkdir(parents=True)
    (folder / "ir_label").mkdir()
    (folder / "ood").mkdir()
    labels, ids = {}, [f"2099_{number:06d}" for number in range(1, len(sizes) + 1)]
    for image_id, size in zip(ids, sizes, strict=True):
        keys = np.sort(rng.choice(len(VOC_CLASSES), N_OBJECTS, replace=False))
        image, mask = photograph(size, keys, rng)
        Image.fromarray(image).save(devkit / "JPEGImages" / f"{image_id}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(mask).save(devkit / "SegmentationClass" / f"{image_id}.png")
        Image.fromarray(_unsure_around(mask)).save(folder / "ir_label" / f"{image_id}.png")
        camfile.save(camfile.cam_path(folder / "cam", image_id), keys, *activation_maps(mask, keys, rng))
        labels[int(image_id.replace("_", ""))] = np.isin(range(len(VOC_CLASSES)), keys).astype(np.float32)
    save_object(folder / "cls_labels.npy", labels)
    (devkit / "ImageSets/Segmentation/train.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    names = [f"scene{number}.jpg" for number in range(n_ood)]
    for name, size in zip(names, sizes, strict=False):
        Image.fromarray(photograph(size, (), rng)[0]).save(folder / "ood" / name, quality=JPEG_QUALITY)
    (folder / "ood_list.txt").write_text("".join(f"{name}\n" for name in names))


def photograph(size: Size, keys: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8, as rough as a photograph, with an ellipse of each class, and its (H, W) uint8 mask."""
    image = np.full((*size, 3), 128.0) + sum(_noise(size, cells, rng) * 96 / math.sqrt(cells) for cells in (3, 12, 48))
    image += rng.normal(0, 6, image.shape)
    mask = np.zeros(size, dtype=np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    for key in keys:
        centre, radii = rng.uniform(0.25, 0.75, 2), rng.uniform(0.15, 0.3, 2)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        image[inside] = image[inside] / 2 + rng.uniform(0, 128, 3)
        mask[inside] = key + 1
    return image.clip(0, 255).astype(np.uint8), mask


def _noise(size: Size, cells: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) smooth noise of unit variance with `cells` x `cells` bumps."""
    coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
    return np.stack([_enlarge(coarse[..., channel], size) for channel in range(3)], axis=-1)


def _enlarge(array: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _unsure_around(mask: np.ndarray) -> np.ndarray:
    """The mask with 255 where a pixel differs from one a few pixels on, as confident labels have at borders."""
    label, step = mask.copy(), max(1, mask.shape[0] // 40)
    label[:-step][mask[:-step] != mask[step:]] = IGNORE_LABEL
    label[:, :-step][mask[:, :-step] != mask[:, step:]] = IGNORE_LABEL
    return label


def activation_maps(mask: np.ndarray, keys: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Blurred and noisy masks of the classes, at most 1: cam (K, h, w) at stride 4 and high_res (K, H, W)."""
    size, high_res = mask.shape, []
    strided = cells_of(size)
    for key in keys:
        coarse = _enlarge((mask == key + 1).astype(np.float32), tuple(max(2, side // 16) for side in size))
        coarse = (coarse + rng.uniform(0, 0.3, coarse.shape)).astype(np.float32)
        fine = _enlarge(coarse, size).clip(0, None)
        high_res.append(fine / (fine.max() + 1e-5))
    cam = np.stack([_enlarge(fine, strided).clip(0, 1) for fine in high_res])
    return torch.from_numpy(cam), np.stack(high_res)


def walk_inputs(size: Size, n_maps: int = N_OBJECTS) -> tuple[Tensor, Tensor]:
    """cam (K, h, w) and edge (1, h, w) in [0, 1], of an image of (H, W) at stride 4."""
    generator = torch.Generator().manual_seed(0)
    h, w = cells_of(size)
    return torch.rand(n_maps, h, w, generator=generator), torch.rand(1, h, w, generator=generator).pow(3)


def make_weights(folder: Path) -> None:
    """Write `cam.pth`, `irn.pth` and `backbone.pth` (both networks' start), ResNet-50 with random weights.

    And `deeplab.pth`, DeepLab-v2 on torchvision's ResNet-101.
    """
    torch.manual_seed(0)
    cam, irn = CAM(len(VOC_CLASSES)), EdgeDisplacement()
    _calm(cam.backbone)
    irn.backbone.load_state_dict(cam.backbone.state_dict())
    save_weights(cam, folder / "cam.pth")
    save_weights(irn, folder / "irn.pth")
    save_weights(cam.backbone, folder / "backbone.pth")
    deeplab = DeepLab(len(VOC_CLASSES) + 1)
    _calm(deeplab.backbone)
    save_weights(deeplab, folder / "deeplab.pth")


@torch.no_grad()
def _calm(backbone: nn.Module) -> None:
    for name, parameter in backbone.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.fill_(RESIDUAL_SCALE)
