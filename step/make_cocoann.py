"""Step 7, instances: the instance masks as COCO annotations, for the tools that train on those."""

import logging

from tqdm import tqdm

from misc import instancefile
from misc.coco import FIRST_ID, annotations_of
from misc.config import Config
from misc.errors import InputError
from misc.files import write_json
from misc.imutils import image_size
from misc.plan import Planned, require_outputs, require_writable_file
from voc12.devkit import open_devkit
from voc12.lists import read_list
from voc12.verify import require_readable

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.infer_list, flag="infer_list")
    require_outputs(
        args.ins_seg_out_dir,
        ids,
        ".npy",
        flag="ins_seg_out_dir",
        list_flag="infer_list",
        made_by="make_ins_seg",
        planned=planned,
    )
    require_writable_file(args.cocoann_path, flag="cocoann_path", kind="JSON file")
    require_readable([devkit.image_path(image_id) for image_id in ids], num_workers=args.num_workers)
    return {}


def run(args: Config) -> None:
    """Write `cocoann_path`: the instances of the images of `infer_list`, in its order."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.infer_list, flag="infer_list")
    polygons = args.cocoann_format == "polygon"
    images, annotations = [], []
    for number, image_id in enumerate(tqdm(ids, desc="make_cocoann", unit="image"), start=FIRST_ID):
        image_path = devkit.image_path(image_id)
        height, width = image_size(image_path)
        path = instancefile.instance_path(args.ins_seg_out_dir, image_id)
        found = instancefile.load(path, len(devkit.classes))
        if found.masks.shape[1:] != (height, width):
            raise InputError(f"instance file {path} is not of the size of its image; make it again.")
        images.append({"id": number, "file_name": image_path.name, "height": height, "width": width})
        next_id = FIRST_ID + len(annotations)
        annotations += annotations_of(found, image_id=number, first_id=next_id, polygons=polygons)

    content = {
        "info": {"description": f"W-OoD instance masks from image labels, {devkit.root}"},
        "licenses": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(devkit.classes, start=1)],
        "images": images,
        "annotations": annotations,
    }
    write_json(args.cocoann_path, content, indent=None)
    log.info("wrote %s: %d instances in %d images", args.cocoann_path, len(annotations), len(images))
    as_runs = sum(isinstance(annotation["segmentation"], dict) for annotation in annotations)
    if polygons and as_runs:
        log.info("notice: %d masks are run lengths, since no polygon gave them back exactly", as_runs)
