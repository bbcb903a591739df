"""mIoU, precision and recall of the masks."""

from misc.run.config import Config
from misc.run.step import Step
from voc12.evaluation import Evaluated, evaluate_masks

STEP = Step(
    name="eval_sem_seg",
    description="evaluate the masks",
    reads=("voc12_root", "class_list", "chainer_eval_set", "sem_seg_out_dir"),
    writes=("result_dir",),
    memory_flags=("num_workers",),
)
EVALUATED = Evaluated(step=STEP.name, flag="sem_seg_out_dir", suffix=".png", made_by="make_sem_seg", title="mask")
check, inputs, outputs = EVALUATED.check, EVALUATED.inputs, EVALUATED.outputs


def run(args: Config) -> None:
    """Score `sem_seg_out_dir` on the images of `chainer_eval_set`."""
    evaluate_masks(**EVALUATED.scored(args))
