"""Step 7: mIoU, precision and recall of the masks."""

from pathlib import Path

from misc.run.config import Config
from misc.run.plan import Planned
from misc.run.record import scores_path
from misc.run.step import Inputs, Step
from voc12.devkit import open_devkit
from voc12.evaluation import evaluate_masks, inputs_of_evaluation, require_evaluable

STEP = Step(
    name="eval_sem_seg",
    description="evaluate the masks",
    reads=("voc12_root", "class_list", "chainer_eval_set", "sem_seg_out_dir"),
    writes=("result_dir",),
    memory_flags=("num_workers",),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    require_evaluable(
        args.voc12_root,
        args.class_list,
        args.chainer_eval_set,
        args.sem_seg_out_dir,
        ".png",
        flag="sem_seg_out_dir",
        made_by="make_sem_seg",
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
        args.sem_seg_out_dir,
        ".png",
        flag="sem_seg_out_dir",
    )


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [scores_path(args.result_dir, "eval_sem_seg")]


def run(args: Config) -> None:
    """Score `sem_seg_out_dir` on the images of `chainer_eval_set`."""
    evaluate_masks(
        open_devkit(args.voc12_root, args.class_list),
        args.chainer_eval_set,
        args.sem_seg_out_dir,
        result_dir=args.result_dir,
        name="eval_sem_seg",
        title="mask",
    )
