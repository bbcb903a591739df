"""Step 3': mIoU, precision and recall of the AdvCAM maps over background scores (not in the original)."""

from pathlib import Path

from misc.report.pictures import heat_overlay
from misc.run.config import Config
from misc.run.plan import Planned
from misc.run.record import scores_path
from misc.run.step import Inputs, Step
from voc12.devkit import open_devkit
from voc12.evaluation import evaluate_cams, inputs_of_evaluation, require_evaluable

STEP = Step(
    name="eval_advcam",
    description="evaluate AdvCAM's maps over background scores",
    reads=("voc12_root", "class_list", "chainer_eval_set", "advcam_out_dir"),
    writes=("result_dir",),
    flags=("cam_eval_sweep", "cam_eval_thres"),
    memory_flags=("num_workers",),
    version=2,
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    require_evaluable(
        args.voc12_root,
        args.class_list,
        args.chainer_eval_set,
        args.advcam_out_dir,
        ".npy",
        flag="advcam_out_dir",
        made_by="make_advcam",
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
        args.advcam_out_dir,
        ".npy",
        flag="advcam_out_dir",
    )


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [scores_path(args.result_dir, "eval_advcam")]


def run(args: Config) -> None:
    """Score `advcam_out_dir` on the images of `chainer_eval_set`."""
    evaluate_cams(
        open_devkit(args.voc12_root, args.class_list),
        args.chainer_eval_set,
        args.advcam_out_dir,
        thresholds=args.cam_eval_sweep,
        threshold_apart=args.cam_eval_thres,
        result_dir=args.result_dir,
        overlay=heat_overlay,
        tensorboard=args.tensorboard,
        name="eval_advcam",
        title="AdvCAM",
    )
