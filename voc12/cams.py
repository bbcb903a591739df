"""The CAM files of a list's images: labels of these, what the files are made from, and writing each as it arrives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from misc.classifier import class_probabilities
from misc.errors import InputError
from misc.files import camfile
from misc.files.paths import Paths
from misc.run.device import Arriving, when_arrived
from misc.run.loaders import sequential_loader
from misc.run.progress import progress
from misc.run.provenance import FinishedFiles
from misc.run.step import Files, Inputs
from misc.summary import save_maps
from voc12.dataloader import WholeImages
from voc12.devkit import Devkit
from voc12.images import CLASSES_AN_IMAGE, LabelledImages, read_ids_to_segment, read_images_to_segment
from voc12.labels import Labels


def cam_inputs(devkit: Devkit, train_list: str, *, label_file: str | None, label_threshold: float) -> Inputs:
    """The images that CAMs are made of, and what says which classes they carry: labels or a classifier's threshold."""
    images = read_images_to_segment(devkit, train_list, flag="train_list", label_file=label_file)
    labels = {"label_threshold": label_threshold} if label_file is None else {"label_file": images.labels.tobytes()}
    return {"train_list": Files(images.paths), **labels}


def cam_outputs(devkit: Devkit, train_list: str, folder: str, *, label_file: str | None) -> Paths:
    """The CAM files of these images."""
    return camfile.cam_paths(folder, read_ids_to_segment(devkit, train_list, flag="train_list", label_file=label_file))


def cam_bytes_per_pixel(devkit: Devkit, list_path: str | Path, *, label_file: str | None, numbers: str) -> float:
    """What the CAM files of the images of `train_list` take, by the classes that these carry; VOC's where none know."""
    images = read_images_to_segment(devkit, list_path, flag="train_list", label_file=label_file)
    return camfile.bytes_per_pixel(numbers, CLASSES_AN_IMAGE if label_file is None else images.labels.counts().mean())


def labelled_by_classifier(
    model: nn.Module, images: LabelledImages, *, threshold: float, device: torch.device, num_workers: int
) -> LabelledImages:
    """The images, with the classes that a classifier finds in them as their labels; an image may have none.

    Args:
        model: a `Net`, (1, 3, H, W) normalised -> logits (1, C) and features, in evaluation mode on `device`.
        threshold: probability from which on a class is there.

    Raises `InputError` for a network whose logits are not finite.
    """
    loader = sequential_loader(WholeImages(images.paths), num_workers=num_workers, device=device)
    rows = np.zeros(images.labels.shape, dtype=bool)
    bar = progress(loader, desc="labels by the classifier", unit="image", leave=False)
    for row, path, image in zip(rows, images.paths, bar, strict=True):
        probabilities = class_probabilities(model, image.to(device)[None])[0]
        if not probabilities.isfinite().all():
            raise InputError(f"--cam_weights_name: the network gives NaN or infinity for {path}; name other weights.")
        row[:] = (probabilities >= threshold).cpu().numpy()
    return replace(images, labels=Labels.of(rows))


@dataclass(frozen=True)
class PendingCams:
    """CAM files that are still to be made, one an image.

    Attributes:
        images: of which they are made.
        folder: where they lie.
        numbers: `float32` or `float16`, of the full-size maps.
        finished: which files are done.
    """

    images: LabelledImages
    folder: str
    numbers: str
    finished: FinishedFiles

    @classmethod
    def of(cls, images: LabelledImages, folder: str, *, numbers: str, finished: FinishedFiles) -> "PendingCams":
        """Those of the images whose files are not done."""
        items = [[camfile.cam_path(folder, image_id)] for image_id in images.ids]
        return cls(images.select(finished.pending(items, images.source_of)), folder, numbers, finished)

    def write(self, submit: Callable[..., None], item: Mapping[str, Any], cam: Arriving, high_res: Arriving) -> None:
        """Have `submit` write the maps of an item of `ScaledImages`, (K, h, w) and (K, H, W), once they are there."""
        path = camfile.cam_path(self.folder, self.images.ids[item["index"]])
        source_of = partial(self.images.source_of, item["index"])
        save = partial(save_maps, numbers=self.numbers)
        submit(self.finished.write, [path], source_of, when_arrived, save, path, item["keys"], cam, high_res)
