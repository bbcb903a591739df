"""The instance masks as COCO annotations, for the tools that train on those."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from misc.files import instancefile
from misc.files.atomic import json_list_writer
from misc.files.coco import FIRST_ID, annotations_of
from misc.files.images import image_sizes
from misc.run.config import Config
from misc.run.notices import notice
from misc.run.plan import Planned, require_outputs, require_writable_file
from misc.run.progress import progress
from misc.run.step import PACKAGES, Files, Inputs, Step
from voc12.cocoids import ids_for, read_coco_ids
from voc12.devkit import Devkit
from voc12.images import ids_to_segment
from voc12.verify import require_readable

STEP = Step(
    name="make_cocoann",
    description="write the instance masks as COCO annotations",
    reads=("voc12_root", "class_list", "label_file", "labels_from", "infer_list", "ins_seg_out_dir"),
    writes=("cocoann_path",),
    flags=("cocoann_format", "cocoann_min_score"),
    packages=(*PACKAGES, "pycocotools"),
    memory_flags=("num_workers",),
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    devkit, ids = ids_to_segment(args, "infer_list")
    require_outputs(
        args.ins_seg_out_dir,
        ids,
        ".npy",
        flag="ins_seg_out_dir",
        list_flag="infer_list",
        made_by="make_ins_seg",
        planned=planned,
    )
    _ids_of(devkit, ids)
    require_writable_file(args.cocoann_path, flag="cocoann_path", kind="JSON file")
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    return {}


def _ids_of(devkit: Devkit, ids: Sequence[str]) -> tuple[list[int], list[int | str]]:
    """COCO's ids of the categories and of the images: those of the file that the devkit was imported from, if any."""
    categories, images = read_coco_ids(devkit.root)
    return ids_for(devkit.classes, categories), ids_for(ids, images)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit, ids = ids_to_segment(args, "infer_list")
    return {
        "voc12_root": _ids_of(devkit, ids),
        "class_list": devkit.classes,
        "infer_list": Files(devkit.image_paths(ids)),
        "ins_seg_out_dir": Files(instancefile.instance_paths(args.ins_seg_out_dir, ids)),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [args.cocoann_path]


def run(args: Config) -> None:
    """Write `cocoann_path`: the instances of the images of `infer_list`, in its order."""
    devkit, ids = ids_to_segment(args, "infer_list")
    polygons = args.cocoann_format == "polygon"
    image_paths = devkit.image_paths(ids)
    sizes = image_sizes(image_paths)
    category_ids, image_ids = _ids_of(devkit, ids)
    content = {
        "info": {"description": f"W-OoD instance masks from image labels, {devkit.root}"},
        "licenses": [],
        "categories": [{"id": k, "name": name} for k, name in zip(category_ids, devkit.classes, strict=True)],
        "images": [
            {"id": number, "file_name": os.path.basename(path), "height": height, "width": width}
            for number, path, (height, width) in zip(image_ids, image_paths, sizes, strict=True)
        ],
    }
    n_annotations = n_runs = n_left_out = 0
    with json_list_writer(args.cocoann_path, content, "annotations") as append:
        bar = progress(ids, desc="make_cocoann", unit="image")
        for number, image_id, size in zip(image_ids, bar, sizes, strict=True):
            path = instancefile.instance_path(args.ins_seg_out_dir, image_id)
            found = instancefile.load(path, len(devkit.classes), size=size)
            kept = found.select(found.scores >= args.cocoann_min_score)
            first_id = FIRST_ID + n_annotations
            annotations = annotations_of(
                kept, image_id=number, category_ids=category_ids, first_id=first_id, polygons=polygons
            )
            for annotation in annotations:
                append(annotation)
                n_runs += isinstance(annotation["segmentation"], dict)
            n_annotations += len(kept)
            n_left_out += len(found) - len(kept)
    log.info("wrote %s: %d instances in %d images", args.cocoann_path, n_annotations, len(ids))
    if n_left_out:
        log.info(
            "%d instances that score below %g are left out; --cocoann_min_score 0 keeps them",
            n_left_out,
            args.cocoann_min_score,
        )
    if polygons and n_runs:
        notice(f"{n_runs} masks are run lengths, since no polygon gave them back exactly")
