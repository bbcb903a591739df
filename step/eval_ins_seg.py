"""VOC's average precision of the instance masks at IoU 0.5."""

import logging

from misc.files import instancefile
from misc.files.jsonfile import jsonable
from misc.metrics import InstanceScorer, ap_table
from misc.run.config import Config
from misc.run.plan import Planned
from misc.run.progress import progress
from misc.run.record import save_scores
from misc.run.step import Files, Inputs, Step
from voc12.devkit import open_devkit
from voc12.evaluation import Evaluated
from voc12.instances import read_instances
from voc12.lists import read_split
from voc12.verify import require_instances

STEP = Step(
    name="eval_ins_seg",
    description="evaluate the instance masks: VOC's AP at IoU 0.5",
    reads=("voc12_root", "class_list", "chainer_eval_set", "ins_seg_out_dir"),
    writes=("result_dir",),
    memory_flags=("num_workers",),
)
EVALUATED = Evaluated(step=STEP.name, flag="ins_seg_out_dir", suffix=".npy", made_by="make_ins_seg")
outputs = EVALUATED.outputs
IOU_THRESH = 0.5

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    nothing = EVALUATED.check(args, planned)
    devkit = open_devkit(args.voc12_root, args.class_list)
    require_instances(devkit, read_split(devkit, args.chainer_eval_set), num_workers=args.num_workers)
    return nothing


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    of_classes = EVALUATED.inputs(args)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.chainer_eval_set)
    return {**of_classes, "voc12_root": Files([*devkit.mask_paths(ids), *devkit.object_paths(ids)])}


def run(args: Config) -> None:
    """Score `ins_seg_out_dir` on the images of `chainer_eval_set`; saved as `result_dir`/scores/eval_ins_seg.json."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.chainer_eval_set)
    scorer = InstanceScorer(IOU_THRESH)
    for image_id in progress(ids, desc="eval_ins_seg", unit="image"):
        path = instancefile.instance_path(args.ins_seg_out_dir, image_id)
        masks, classes = read_instances(devkit, image_id)
        found = instancefile.load(path, len(devkit.classes), size=masks.shape[1:], of="its ground truth")
        scorer.add(found.masks, found.classes, found.scores, masks, classes)

    scored = scorer.scores(len(devkit.classes))
    content = {
        "voc12_root": str(devkit.root),
        "set": args.chainer_eval_set,
        "images": len(ids),
        "folder": args.ins_seg_out_dir,
        "classes": list(devkit.classes),
        "iou_threshold": IOU_THRESH,
    }
    path = save_scores(args.result_dir, "eval_ins_seg", jsonable({**content, **scored}))
    log.info("%s", ap_table(devkit.classes, scored))
    log.info("instance AP at IoU %g: %.4f (%s)", IOU_THRESH, scored["map"], path)
