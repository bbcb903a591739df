"""mIoU of CAM + dense CRF, read off the confident labels (not in the original).

A confident label has a class exactly where the CRF of the foreground-confident CAM (background score conf_fg_thres)
says so. With its unsure pixels as background it is that CRF's result.
"""

from misc.run.config import Config
from misc.run.step import Step
from voc12.evaluation import Evaluated, evaluate_masks

STEP = Step(
    name="eval_ir_label",
    description="evaluate CAM + dense CRF",
    reads=("voc12_root", "class_list", "chainer_eval_set", "ir_label_out_dir"),
    writes=("result_dir",),
    memory_flags=("num_workers",),
)
EVALUATED = Evaluated(
    step=STEP.name, flag="ir_label_out_dir", suffix=".png", made_by="cam_to_ir_label", title="CAM + CRF"
)
check, inputs, outputs = EVALUATED.check, EVALUATED.inputs, EVALUATED.outputs


def run(args: Config) -> None:
    """Score `ir_label_out_dir` on the images of `chainer_eval_set`."""
    evaluate_masks(**EVALUATED.scored(args))
