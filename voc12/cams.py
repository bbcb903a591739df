"""The CAM files of a list's images: what they are made from, writing each as it arrives, and what is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from misc.classifier import class_probabilities
from misc.errors import InputError
from misc.files import camfile
from misc.files.paths import Paths
from misc.run.config import Config
from misc.run.device import Arriving, when_arrived
from misc.run.done import finished_files
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_outputs, require_writable
from misc.run.progress import progress
from misc.run.provenance import FinishedFiles
from misc.run.step import Files, Inputs, Step
from misc.summary import save_maps
from voc12.dataloader import WholeImages
from voc12.devkit import open_devkit
from voc12.images import CLASSES_AN_IMAGE, LabelledImages, ids_to_segment, read_images_to_segment
from voc12.labels import Labels
from voc12.verify import require_readable

CAM_READS = ("voc12_root", "class_list", "label_file", "labels_from", "label_threshold", "train_list")
"""The flags that say of which images there are CAMs, and of which classes."""


@dataclass(frozen=True)
class CamFiles:
    """What a step that makes CAMs writes: a file for each image of `train_list` that carries a class.

    `flag`: names their folder.
    """

    flag: str

    def images(self, args: Config) -> LabelledImages:
        """The images. Raises `InputError` for a bad list or bad labels."""
        devkit = open_devkit(args.voc12_root, args.class_list)
        return read_images_to_segment(devkit, args.train_list, flag="train_list", label_file=args.known_labels)

    def check(self, args: Config, images: LabelledImages) -> Planned:
        """Raise `InputError` for an image that can't be read or a bad folder; return the outputs of the step."""
        folder = getattr(args, self.flag)
        require_writable(folder, flag=self.flag)
        require_readable(images.paths, num_workers=args.num_workers)
        return {folder: frozenset(images.ids)}

    def inputs(self, args: Config) -> Inputs:
        """The images, and what says which classes they carry: labels or a classifier's threshold."""
        images = self.images(args)
        by_classifier = args.known_labels is None
        labels = {"label_threshold": args.label_threshold} if by_classifier else {"label_file": images.labels.tobytes()}
        return {"train_list": Files(images.paths), **labels}

    def outputs(self, args: Config) -> Paths:
        """The files."""
        _, ids = ids_to_segment(args, "train_list")
        return camfile.cam_paths(getattr(args, self.flag), ids)

    def bytes_per_pixel(self, args: Config) -> dict[str, float]:
        """What the files take, by the classes that the images carry; as many as VOC's where none are known."""
        n_classes = CLASSES_AN_IMAGE if args.known_labels is None else self.images(args).labels.counts().mean()
        return {self.flag: camfile.bytes_per_pixel(args.cam_files, n_classes)}

    def labelled(
        self, args: Config, load_classifier: Callable[[], nn.Module], *, device: torch.device
    ) -> LabelledImages:
        """This process's share of the images, with their labels, or with what the classifier finds (`labels_from`)."""
        images = self.images(args).shared()
        if args.known_labels is not None:
            return images
        how = {"threshold": args.label_threshold, "device": device, "num_workers": args.num_workers}
        return labelled_by_classifier(load_classifier(), images, **how)

    def pending(
        self,
        args: Config,
        step: Step,
        of_all_files: Inputs,
        load_classifier: Callable[[], nn.Module],
        *,
        device: torch.device,
    ) -> "PendingCams":
        """Those of this process's files that are not done.

        Args:
            step: the step that makes them.
            of_all_files: what each of them depends on beside its image and its label.
            load_classifier: gives the `model` of `labelled_by_classifier`, where labels come from a classifier.
        """
        images = self.labelled(args, load_classifier, device=device)
        finished, folder = finished_files(step, args, of_all_files), getattr(args, self.flag)
        items = [[camfile.cam_path(folder, image_id)] for image_id in images.ids]
        images = images.select(finished.pending(items, images.source_of))
        return PendingCams(images, folder, args.cam_files, finished)


@dataclass(frozen=True)
class MadeOfCams:
    """What a step makes of CAMs: labels or masks of each image of a list that carries a class.

    `flag` names their folder, `list_flag` the list.
    """

    flag: str
    list_flag: str

    def require_cams(self, args: Config, planned: Planned) -> None:
        """Raise `InputError` for a bad list, or if CAMs of its images are missing."""
        (_, ids), cams = ids_to_segment(args, self.list_flag), args.mask_cams
        require_outputs(
            cams.folder, ids, ".npy", flag=cams.flag, list_flag=self.list_flag, made_by=cams.made_by, planned=planned
        )

    def check(self, args: Config) -> Planned:
        """Raise `InputError` for an image that can't be read or a bad folder; return the outputs of the step."""
        (devkit, ids), folder = ids_to_segment(args, self.list_flag), getattr(args, self.flag)
        require_writable(folder, flag=self.flag)
        require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
        return {folder: frozenset(ids)}

    def inputs(self, args: Config) -> Inputs:
        """The images and their CAMs."""
        (devkit, ids), cams = ids_to_segment(args, self.list_flag), args.mask_cams
        return {self.list_flag: Files(devkit.image_paths(ids)), cams.flag: Files(camfile.cam_paths(cams.folder, ids))}


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

    def write(self, submit: Callable[..., None], item: Mapping[str, Any], cam: Arriving, high_res: Arriving) -> None:
        """Have `submit` write the maps of an item of `ScaledImages`, (K, h, w) and (K, H, W), once they are there."""
        path = camfile.cam_path(self.folder, self.images.ids[item["index"]])
        source_of = partial(self.images.source_of, item["index"])
        save = partial(save_maps, numbers=self.numbers)
        submit(self.finished.write, [path], source_of, when_arrived, save, path, item["keys"], cam, high_res)
