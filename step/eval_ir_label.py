"""Step 4b: mIoU of CAM + dense CRF, read off the confident labels (not in the original).

A confident label has a class exactly where the CRF of the foreground-confident CAM (background score conf_fg_thres)
says so. With its unsure pixels as background it is that CRF's result.
"""

from pathlib import Path

from misc.run.config import Config
from misc.run.plan import Planned
from misc.run.record import scores_path
from misc.run.step import Inputs, Step
from voc12.devkit import open_devkit
from voc12.evaluation import evaluate_masks, inputs_of_evaluation, require_evaluable

STEP = Step(
    name="eval_ir_label",
    description="evaluate CAM + dense CRF",
    reads=("voc12_root", "class_list", "chainer_eval_set", "ir_label_out_dir"),
    writes=("result_dir",),
    memory_flags=("num_workers",),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    require_evaluable(
        args.voc12_root,
        args.class_list,
        args.chainer_eval_set,
        args.ir_label_out_dir,
        ".png",
        flag="ir_label_out_dir",
        made_by="cam_to_ir_label",
        planned=planned,
        num_workers=args.num_workers,
    )
    return {}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    return inputs_of_evaluation(
        args.voc12_root,
        args.class_list,
        args.chainer_eval_set,
        args.ir_label_out_dir,
        ".png",
        flag="ir_label_out_dir",
    )


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [scores_path(args.result_dir, "eval_ir_label")]


def run(args: Config) -> None:
    """Score `ir_label_out_dir` on the images of `chainer_eval_set`."""
    evaluate_masks(
        open_devkit(args.voc12_root, args.class_list),
        args.chainer_eval_set,
        args.ir_label_out_dir,
        result_dir=args.result_dir,
        name="eval_ir_label",
        title="CAM + CRF",
    )
