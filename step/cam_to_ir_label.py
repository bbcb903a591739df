"""Confident labels for IRN: CAM and dense CRF, twice."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from misc.cam import confident_label
from misc.crf import device_of, require_backend
from misc.errors import InputError
from misc.files import camfile
from misc.files.atomic import background_writer
from misc.files.images import label_path, label_paths, read_image, write_label
from misc.run.config import Config
from misc.run.depends import source_of_files
from misc.run.device import resolve_device
from misc.run.distributed import on_first_process, share
from misc.run.done import finished_files
from misc.run.parallel import ordered_map
from misc.run.plan import Planned
from misc.run.progress import progress
from misc.run.step import Inputs, Step
from misc.summary import Content, content_of_mask, tell_masks
from voc12.cams import MadeOfCams
from voc12.devkit import open_devkit
from voc12.images import ids_to_segment

LABELS = MadeOfCams("ir_label_out_dir", "train_list")
STEP = Step(
    name="cam_to_ir_label",
    description="turn CAMs into confident labels with dense CRF",
    reads=(
        "voc12_root",
        "class_list",
        "label_file",
        "labels_from",
        "train_list",
        "masks_from",
        "cam_out_dir",
        "advcam_out_dir",
    ),
    writes=("ir_label_out_dir",),
    flags=("conf_fg_thres", "conf_bg_thres"),
    shared=True,
    memory_flags=("num_workers", "crf_workers"),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    require_backend(args.crf)
    LABELS.require_cams(args, planned)
    if args.conf_fg_thres < args.conf_bg_thres:
        raise InputError(
            f"--conf_fg_thres {args.conf_fg_thres:g} is below --conf_bg_thres {args.conf_bg_thres:g}, so that pixels "
            "would be foreground and background at once; raise the first or lower the second."
        )
    return LABELS.check(args)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    return {"class_list": open_devkit(args.voc12_root, args.class_list).classes, **LABELS.inputs(args)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    devkit, ids = ids_to_segment(args, "train_list")
    return label_paths(args.ir_label_out_dir, ids)


def _read(paths: tuple[str, Path], *, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image and its CAM's maps and classes, of an image file and its CAM file."""
    image_path, cam_path = paths
    image = read_image(image_path)
    keys, high_res = camfile.load_high_res(cam_path, n_classes, size=image.shape[:2])
    return image, high_res, keys


def _read_and_refine(paths: tuple[Path, Path], *, n_classes: int, **how: Any) -> np.ndarray:
    """The label map of an image file and its CAM file; `how`: as `confident_label` takes it."""
    return confident_label(*_read(paths, n_classes=n_classes), **how)


def _labels(args: Config, paths: Sequence[tuple[Path, Path]], n_classes: int) -> Iterator[np.ndarray]:
    """The label map of each image file and its CAM file, by processes on the CPU, or on the GPU beside the reading."""
    device = device_of(args.crf, resolve_device(args.device))
    how = {
        "foreground_score": args.conf_fg_thres,
        "background_score": args.conf_bg_thres,
        "backend": args.crf,
        "device": device,
    }
    if device.type == "cpu":
        refine = partial(_read_and_refine, n_classes=n_classes, **how)
        return ordered_map(refine, paths, workers=args.crf_workers, flag="crf_workers")
    inputs = ordered_map(partial(_read, n_classes=n_classes), paths, workers=args.num_workers, flag="num_workers")
    return (confident_label(*of_image, **how) for of_image in inputs)


def run(args: Config) -> None:
    """Write `ir_label_out_dir`/ID.png for each image of `train_list`: class ids, 0 background, 255 unsure.

    Finished files are kept.
    """
    devkit, ids = ids_to_segment(args, "train_list")
    ids = share(ids)
    images, cams = devkit.image_paths(ids), camfile.cam_paths(args.mask_cams.folder, ids)
    finished = finished_files(STEP, args, {"class_list": devkit.classes})
    items = [[label_path(args.ir_label_out_dir, image_id)] for image_id in ids]
    pending = finished.pending(items, lambda number: source_of_files(images[number], cams[number]))
    paths = [(images[number], cams[number]) for number in pending]
    bar = progress(_labels(args, paths, len(devkit.classes)), desc="cam_to_ir_label", unit="image", total=len(paths))
    with background_writer() as submit:
        for number, of_image, label in zip(pending, paths, bar, strict=True):
            (path,) = items[number]
            submit(finished.write, [path], partial(source_of_files, *of_image), _write, path, label)
    advice = "lower --conf_fg_thres, or make better CAMs"
    on_first_process(partial(tell_masks, advice=advice), STEP.name, outputs(args))


def _write(path: Path, label: np.ndarray) -> Content:
    write_label(path, label)
    return content_of_mask(label)
