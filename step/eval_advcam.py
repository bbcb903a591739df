"""mIoU, precision and recall of the AdvCAM maps over background scores (not in the original)."""

from misc.report.pictures import heat_overlay
from misc.run.config import Config
from misc.run.step import Step
from voc12.devkit import open_devkit
from voc12.evaluation import Evaluated, evaluate_cams

STEP = Step(
    name="eval_advcam",
    description="evaluate AdvCAM's maps over background scores",
    reads=("voc12_root", "class_list", "chainer_eval_set", "advcam_out_dir"),
    writes=("result_dir",),
    flags=("cam_eval_sweep", "cam_eval_thres"),
    memory_flags=("num_workers",),
    version=2,
)
EVALUATED = Evaluated(step=STEP.name, flag="advcam_out_dir", suffix=".npy", made_by="make_advcam")
check, inputs, outputs = EVALUATED.check, EVALUATED.inputs, EVALUATED.outputs


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
        name=STEP.name,
        title="AdvCAM",
    )
