"""Overlays to look at: the CAM and the mask of each image of a list (not in the original)."""

import logging
from functools import partial
from pathlib import Path

import numpy as np

from misc.cam import cam_of_image
from misc.errors import InputError, message_of
from misc.files import camfile
from misc.files.atomic import background_writer, write_json
from misc.files.images import label_path, label_paths, read_image, read_label, write_jpeg
from misc.files.jsonfile import read_dict
from misc.files.look import folder_at
from misc.files.resultfiles import CLASSES_FILE
from misc.report.fonts import tell_missing_letters
from misc.report.pictures import Captioned, maps_overlay, mask_overlay, side_by_side, with_legend
from misc.run.config import Config, show_list_flag
from misc.run.device import resolve_device
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Step
from net.build import load_network, require_network
from voc12.cams import labelled_by_classifier
from voc12.classes import colours_of, names_with_background, shown_colours, voc_palette
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.images import LabelledImages
from voc12.labels import Labels, read_labels
from voc12.lists import read_list
from voc12.verify import require_fitting_masks, require_readable

STEP = Step(
    name="show",
    description="write overlays of CAMs and masks, with names, colours and a legend",
    reads=(
        *("voc12_root", "class_list", "label_file", "labels_from", "label_threshold", "infer_list", "show_list"),
        *("masks_from", "cam_out_dir", "advcam_out_dir", "sem_seg_out_dir", "cam_network", "cam_weights_name"),
    ),
    writes=("show_out_dir",),
    flags=("cam_scales", "precision"),
    remembered=False,
    memory_flags=("num_workers",),
)

log = logging.getLogger(__name__)


def _ids(args: Config, devkit: Devkit) -> list[str]:
    flag = show_list_flag(vars(args))
    return read_list(devkit, getattr(args, flag), flag=flag)


def _without_cam(args: Config, ids: list[str]) -> list[str]:
    """The ids that have no CAM file."""
    present = folder_at(args.mask_cams.folder)
    return [image_id for image_id in ids if f"{image_id}.npy" not in present]


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = _ids(args, devkit)
    made = planned.get(args.mask_cams.folder, frozenset())
    if to_compute := [image_id for image_id in _without_cam(args, ids) if image_id not in made]:
        require_classes_of_network(devkit, args.cam_weights_name, planned=planned)
        network = partial(require_network, planned=planned, n_classes=len(devkit.classes))
        network(args.cam_network, "CAM", args.cam_weights_name)
        if args.known_labels is None:
            network(args.cam_network, "Net", args.cam_weights_name)
        else:
            _known_labels(args, devkit, to_compute)
    require_writable(args.show_out_dir, flag="show_out_dir")
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    if args.sem_seg_out_dir not in planned:
        masks = folder_at(args.sem_seg_out_dir)
        with_mask = [image_id for image_id in ids if f"{image_id}.png" in masks]
        require_fitting_masks(
            label_paths(args.sem_seg_out_dir, with_mask),
            devkit.image_paths(with_mask),
            n_classes=len(devkit.classes),
            num_workers=args.num_workers,
            advice="",
        )
    return {}


def _known_labels(args: Config, devkit: Devkit, ids: list[str]) -> Labels:
    """The labels of images without a CAM file. Raises `InputError` if there are none."""
    try:
        return read_labels(devkit, args.label_file, ids)
    except InputError as error:
        raise InputError(f"{message_of(error).rstrip('.')}; or pass --labels_from classifier.") from error


class _Classifier:
    """The classifier of `cam_weights_name`, and the labels of the images that have no CAM file: it makes their CAMs."""

    def __init__(self, args: Config, devkit: Devkit, ids: list[str]) -> None:
        device, n_classes = resolve_device(args.device), len(devkit.classes)
        load = partial(load_network, weights=args.cam_weights_name, device=device, n_classes=n_classes)
        if args.known_labels is None:
            unknown = LabelledImages(ids, devkit.image_paths(ids), Labels.none(len(ids), n_classes))
            how = {"threshold": args.label_threshold, "device": device, "num_workers": args.num_workers}
            labels = labelled_by_classifier(load(args.cam_network, "Net"), unknown, **how).labels
        else:
            labels = _known_labels(args, devkit, ids)
        self._labels, self._number_of = labels, {image_id: number for number, image_id in enumerate(ids)}
        self._paths = devkit.image_paths(ids)
        self._model, self._scales, self._device = load(args.cam_network, "CAM"), args.cam_scales, device

    def maps(self, image_id: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The (K,) classes of an image (H, W, 3), and their CAMs (K, H, W)."""
        number = self._number_of[image_id]
        keys = np.flatnonzero(self._labels[number])
        try:
            return keys, cam_of_image(self._model, image, keys, scales=self._scales, device=self._device)
        except InputError as error:
            raise InputError(f"--cam_weights_name: of {self._paths[number]}, {message_of(error)}") from error


def run(args: Config) -> None:
    """Write `show_out_dir`/ID.jpg of each image of `show_list`: the image, its CAM and its mask, and a legend.

    CAMs are those of the files where there are any, else the classifier makes them. Also writes classes.json.
    """
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = _ids(args, devkit)
    names, out = names_with_background(devkit.classes), Path(args.show_out_dir)
    tell_missing_letters(names)
    to_compute = _without_cam(args, ids)
    classifier = _Classifier(args, devkit, to_compute) if to_compute else None
    computed, masks = {*to_compute}, folder_at(args.sem_seg_out_dir)
    n_masks, n_empty = 0, 0
    with background_writer() as submit:
        for image_id in progress(ids, desc="show", unit="image"):
            image = read_image(devkit.image_path(image_id))
            if image_id in computed:
                keys, high_res = classifier.maps(image_id, image)
            else:
                path = camfile.cam_path(args.mask_cams.folder, image_id)
                keys, high_res = camfile.load_high_res(path, len(devkit.classes), size=image.shape[:2])
            shown = {*(keys + 1)}
            pictures: list[Captioned] = [("image", image), ("CAM", maps_overlay(image, high_res, keys, voc_palette()))]
            if f"{image_id}.png" in masks:
                mask = read_label(label_path(args.sem_seg_out_dir, image_id), size=image.shape[:2])
                shown |= {*np.unique(mask)}
                pictures.append(("mask", mask_overlay(image, mask, voc_palette())))
                n_masks += 1
            n_empty += len(keys) == 0
            submit(_write, out / f"{image_id}.jpg", pictures, shown_colours(shown, names))
    # What predict has noted there of its photographs stays
    write_json(out / CLASSES_FILE, {**read_dict(out / CLASSES_FILE), "classes": colours_of(names)})
    log.info(
        "showed %d images in %s: %d CAMs of files, %d of the classifier, %d masks; %d images without any class",
        *(len(ids), out, len(ids) - len(to_compute), len(to_compute), n_masks, n_empty),
    )


def _write(path: Path, pictures: list[Captioned], colours: dict[str, tuple[int, ...]]) -> None:
    write_jpeg(path, with_legend(side_by_side(pictures), colours))
