"""mIoU, precision and recall of the CAMs over background scores."""

from misc.report.pictures import heat_overlay
from misc.run.config import Config
from misc.run.step import Step
from voc12.evaluation import Evaluated, score_cams

STEP = Step(
    name="eval_cam",
    description="evaluate the CAMs over background scores",
    reads=("voc12_root", "class_list", "chainer_eval_set", "cam_out_dir"),
    writes=("result_dir",),
    flags=("cam_eval_sweep", "cam_eval_thres"),
    memory_flags=("num_workers",),
    version=2,
)
EVALUATED = Evaluated(step=STEP.name, flag="cam_out_dir", suffix=".npy", made_by="make_cam", title="CAM")
check, inputs, outputs = EVALUATED.check, EVALUATED.inputs, EVALUATED.outputs


def run(args: Config) -> None:
    """Score `cam_out_dir` on the images of `chainer_eval_set`."""
    score_cams(args, EVALUATED, heat_overlay)
