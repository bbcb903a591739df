"""Data sets for training and inference: they read, resize and crop on the CPU, and return uint8.

DeepLab's training crops are float32 of the same range, as OpenCV resizes them. Images are normalised on the device
(`misc.imutils.normalize`). Training sets are indexed with (epoch, index), which seeds the augmentation (see
`misc.run.loaders.ShuffledBatches`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from misc.deeplab import scaled_pair
from misc.errors import InputError
from misc.files import camfile
from misc.files.camfile import MAP_STRIDE
from misc.files.images import read_image, read_label
from misc.imutils import (
    IGNORE_LABEL,
    cells_of,
    crop_into,
    long_side_size,
    normalize,
    random_crop_boxes,
    reduce_label,
    resize_image,
    resize_label,
    scaled_size,
    to_chw,
    top_left_crop_boxes,
)
from misc.mining import perceptual_hash, scoring_size
from misc.run.depends import checksum
from misc.run.device import to_device
from misc.run.loaders import generator
from voc12.labels import Labels

IRN_SCALES = (0.5, 1.5)


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(to_chw(image))


def _crop_item(image: np.ndarray, boxes: tuple, crop_size: int) -> dict[str, Any]:
    """The cropped image (3, S, S) uint8, and the box (4,) that it fills (the rest is padding)."""
    return {"image": _image_tensor(crop_into(image, boxes, crop_size)), "box": torch.tensor(boxes[1])}


def images_of(batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """(B, 3, h, w) normalised images on the device of a batch of crops; what an image does not cover is zero."""
    return normalize(to_device(batch["image"], device), batch["box"])


class _OfFiles(Dataset):
    """A data set with an item for each of its `paths`."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)


class ClassificationCrops(_OfFiles):
    """Augmented crops for the classifier, in-distribution and OoD alike: a random long side, flip and crop.

    An item: `image` (3, S, S) uint8, `box` (4,), `label` (C,) float32.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Labels,
        *,
        resize_long: Sequence[int],
        crop_size: int,
        seed: tuple[int, ...],
    ) -> None:
        self.paths, self.labels = paths, labels
        self.resize_long, self.crop_size, self.seed = resize_long, crop_size, seed

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Any]:
        epoch, index = epoch_and_index
        rng = generator(self.seed, epoch, index)
        image = read_image(self.paths[index])
        low, high = self.resize_long
        image = resize_image(image, long_side_size(image.shape[:2], int(rng.integers(low, high + 1))))
        if rng.random() < 0.5:
            image = image[:, ::-1]
        boxes = random_crop_boxes(image.shape[:2], self.crop_size, rng)
        return {**_crop_item(image, boxes, self.crop_size), "label": torch.from_numpy(self.labels[index])}


class TopLeftCrops(_OfFiles):
    """Top-left crops, zero-padded: for the validation loss (with labels) and IRN's mean displacement (without).

    An item: `image` (3, S, S) uint8, `box` (4,), and, where labels are given, `label` (C,) float32.
    """

    def __init__(self, paths: Sequence[str], labels: Labels | None = None, *, crop_size: int) -> None:
        self.paths, self.labels, self.crop_size = paths, labels, crop_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_image(self.paths[index])
        item = _crop_item(image, top_left_crop_boxes(image.shape[:2], self.crop_size), self.crop_size)
        return item if self.labels is None else {**item, "label": torch.from_numpy(self.labels[index])}


class WholeImages(_OfFiles):
    """Whole images, each on its own: (3, H, W) uint8, at their own size or with a given long side."""

    def __init__(self, paths: Sequence[str], *, long_side: int | None = None) -> None:
        self.paths, self.long_side = paths, long_side

    def __getitem__(self, index: int) -> torch.Tensor:
        image = read_image(self.paths[index])
        if self.long_side is not None:
            image = resize_image(image, long_side_size(image.shape[:2], self.long_side))
        return _image_tensor(image)


class ImagesWithCams(_OfFiles):
    """Whole images and their CAM files.

    An item: `image` (3, H, W) uint8, `keys` (the K classes of the file), `cam` (K, h, w) float32. Raises `InputError`
    for a file that can't be read, and for a CAM that is not of its image's size.
    """

    def __init__(self, paths: Sequence[str], cam_paths: Sequence[str], n_classes: int) -> None:
        self.paths, self.cam_paths, self.n_classes = paths, cam_paths, n_classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_image(self.paths[index])
        keys, cam = camfile.load_cam(self.cam_paths[index], self.n_classes, size=cells_of(image.shape[:2]))
        return {"image": _image_tensor(image), "keys": keys.tolist(), "cam": cam}


class Photographs(_OfFiles):
    """Photographs of any kind, upright: (3, H, W) uint8, the longer side at most `long_side` (0: any)."""

    def __init__(self, paths: Sequence[str], *, long_side: int) -> None:
        self.paths, self.long_side = paths, long_side

    def __getitem__(self, index: int) -> torch.Tensor:
        image = read_image(self.paths[index], upright=True)
        size = image.shape[:2]
        if 0 < self.long_side < max(size):
            image = resize_image(image, long_side_size(size, self.long_side))
        return _image_tensor(image)


class PoolImages(_OfFiles):
    """Images of a pool, upright, for scoring: some may be damaged.

    An item: `index`, `image` (3, H', W') uint8 of `misc.mining.scoring_size`, `hash`, the perceptual hash as hex
    digits, and `checksum`; of a file that can't be read `index` and `problem`, why not.
    """

    def __init__(self, paths: Sequence[str], *, long_side: int) -> None:
        self.paths, self.long_side = paths, long_side

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image, checksum_of_file = read_image(self.paths[index], upright=True), checksum(self.paths[index])
        except InputError as error:
            return {"index": index, "problem": str(error)}
        scaled = resize_image(image, scoring_size(image.shape[:2], self.long_side))
        of_content = {"hash": perceptual_hash(image).tobytes().hex(), "checksum": checksum_of_file}
        return {"index": index, "image": _image_tensor(scaled), **of_content}


KEPT_BYTES = 2 * 2**30
"""Of images at all scales, with masks, that are kept for the next round: about 490 of VOC's photographs at 4 scales."""
_Scaled = tuple[tuple[int, int], list[np.ndarray], np.ndarray | None]
"""(H, W), the image (3, h_s, w_s) at each scale, and the mask (H, W) if there is one."""


class ScaledImages(_OfFiles):
    """Whole images at several scales, for multi-scale CAMs.

    An item: `index`, `images` (a (3, h_s, w_s) uint8 tensor a scale), `size` (H, W), `keys` (the labelled classes),
    and, where masks are given, `mask` (H, W) uint8. With `keep`, resized images and masks stay in the memory of the
    worker process that made them, for the next round, up to `KEPT_BYTES` in all workers together; the others are read
    and resized again.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Labels,
        scales: Sequence[float],
        *,
        mask_paths: Sequence[str] | None = None,
        keep: bool = False,
    ) -> None:
        self.paths, self.labels, self.scales = paths, labels, tuple(scales)
        self.mask_paths = mask_paths
        self._keep, self._kept_bytes = keep, 0
        self._kept: dict[int, _Scaled] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        size, scaled, mask = self._kept.get(index) or self._scaled(index)
        # A tensor each time: one that is sent to another process moves to shared memory, and would stay there
        images = [torch.from_numpy(image) for image in scaled]
        item = {
            "index": int(index),
            "images": images,
            "size": size,
            "keys": np.flatnonzero(self.labels[index]).tolist(),
        }
        return item if mask is None else {**item, "mask": mask}

    def _scaled(self, index: int) -> _Scaled:
        image = read_image(self.paths[index])
        size = image.shape[:2]
        mask = None if self.mask_paths is None else read_label(self.mask_paths[index], size=size)
        scaled = [to_chw(resize_image(image, scaled_size(size, scale))) for scale in self.scales]
        if self._keep:
            worker = get_worker_info()
            room = KEPT_BYTES // (worker.num_workers if worker else 1) - self._kept_bytes
            n_bytes = sum(array.nbytes for array in (*scaled, mask) if array is not None)
            if n_bytes <= room:
                self._kept[index] = size, scaled, mask
                self._kept_bytes += n_bytes
        return size, scaled, mask


class LabelledCrops(_OfFiles):
    """Augmented crops of images and their label maps; a subclass says how they are made.

    An item: `image` (3, S, S), `box` (4,), `label` (S', S') uint8, in which padding is 255.
    """

    def __init__(
        self, paths: Sequence[str], label_paths: Sequence[str], *, crop_size: int, seed: tuple[int, ...]
    ) -> None:
        self.paths, self.label_paths = paths, label_paths
        self.crop_size, self.seed = crop_size, seed

    def crop(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """The item of an image (H, W, 3) and its label map (H, W), both uint8."""
        raise NotImplementedError

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> dict[str, Any]:
        epoch, index = epoch_and_index
        image = read_image(self.paths[index])
        label = read_label(self.label_paths[index], size=image.shape[:2])
        return self.crop(image, label, generator(self.seed, epoch, index))


class AffinityCrops(LabelledCrops):
    """Crops for IRN: any scale in 0.5 .. 1.5, flip, crop.

    `image` is uint8, `label` (S / 4, S / 4) with 255 for unsure and padding.
    """

    def crop(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        size = scaled_size(image.shape[:2], rng.uniform(*IRN_SCALES))
        image, label = resize_image(image, size), resize_label(label, size)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        boxes = random_crop_boxes(size, self.crop_size, rng)
        label = reduce_label(crop_into(label, boxes, self.crop_size, fill=IGNORE_LABEL), MAP_STRIDE)
        return {**_crop_item(image, boxes, self.crop_size), "label": torch.from_numpy(label.copy())}


class SegmentationCrops(LabelledCrops):
    """Crops for DeepLab: one of the given scales, crop, flip, as deeplab-pytorch makes them.

    `image` is float32 RGB in 0 .. 255, `label` (S, S) with 255 for pixels that don't count. A side shorter than the
    crop is padded at its end, before the flip.
    """

    def __init__(
        self,
        paths: Sequence[str],
        label_paths: Sequence[str],
        *,
        scales: Sequence[float],
        crop_size: int,
        seed: tuple[int, ...],
    ) -> None:
        super().__init__(paths, label_paths, crop_size=crop_size, seed=seed)
        self.scales = tuple(scales)

    def crop(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        image, label = scaled_pair(image, label, float(rng.choice(self.scales)))
        height, width = (min(side, self.crop_size) for side in label.shape)
        top, left = (int(rng.integers(max(0, side - self.crop_size) + 1)) for side in label.shape)
        boxes = (top, left, height, width), (0, 0, height, width)
        image = crop_into(image, boxes, self.crop_size)
        label = crop_into(label, boxes, self.crop_size, fill=IGNORE_LABEL)
        shown_from = 0
        if rng.random() < 0.5:
            image, label, shown_from = image[:, ::-1], label[:, ::-1], self.crop_size - width
        box = torch.tensor((0, shown_from, height, width))
        return {"image": _image_tensor(image), "box": box, "label": torch.from_numpy(label.copy())}
