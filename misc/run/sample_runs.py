"""The runs of the built-in sample: their titles and command lines.

The code path is that of VOC. The in-distribution classifier is trained once; from it start the W-OoD training and a
control of equal length without OoD data.
"""

from collections.abc import Sequence
from pathlib import Path

from misc.errors import InputError
from misc.files.devkitfiles import OOD_IMAGES, OOD_LIST, TO_EVALUATE, list_path
from misc.run.config import given_flags, in_work_dir, switches, to_arguments
from misc.run.recipes import SAMPLE, SMALL_DEEPLAB, SMALL_MASKS, SMALL_TRAINING, SMALL_WOOD

DATA_FLAGS = (
    *("voc12_root", "train_list", "val_list", "infer_list", "ood_root", "ood_list", "chainer_eval_set"),
    *("deeplab_train_list", "deeplab_mask_dir", "deeplab_eval_set"),
)

CLASSIFIER = {"cam_num_epoches": 4, "cam_learning_rate": 0.05}
# Both arms are trained equally long, at the same rate
TRAINING = SMALL_TRAINING
WOOD = {"cam_weights_name": "sess/sample_cam_ood.pth", **SMALL_WOOD}
WITHOUT_OOD = {"ood_coeff": 0, "distance_lambda": 0}
"""What makes a control of any W-OoD training: no term of the loss sees OoD images."""
CONTROL = {
    "cam_weights_name": "sess/sample_cam_control.pth",
    **WITHOUT_OOD,
    "result_dir": "result/control",
    "cam_out_dir": "result/control/cam",
}
DEEPLAB = {"deeplab_weights_name": "sess/sample_deeplab.pth", **SMALL_DEEPLAB}


def sample_runs(root: str, user_flags: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Title and command line of each run on the sample at `root`, in order.

    All are of the recipe `sample`. The user's flags come after an arm's, and so replace them; what tells the runs apart
    comes last: the switches and the control's outputs.

    Raises `InputError` if the user's flags name other data, or switch steps otherwise than the sample does.
    """
    given = given_flags(user_flags)
    for name in given:
        if name in DATA_FLAGS:
            raise InputError(f"--sample True runs on its own data set; drop --{name}, or drop --sample.")
    folder = Path(root)
    train_list, val_list = (str(list_path(root, TO_EVALUATE, split)) for split in ("train", "val"))
    data = {
        "voc12_root": root,
        "train_list": train_list,
        "val_list": val_list,
        "infer_list": train_list,
        "ood_root": str(folder / OOD_IMAGES),
        "ood_list": str(folder / OOD_LIST),
    }
    cams = ("train_cam", "make_cam", "eval_cam")
    # AdvCAM takes longer than all the rest together: it is left out unless asked for
    advcams = ("make_advcam", "eval_advcam") if given.get("masks_from") == "advcam" else ()
    labels, masks = ("cam_to_ir_label", "eval_ir_label", "train_irn"), ("make_sem_seg", "eval_sem_seg")
    instances, deeplab = ("make_ins_seg", "eval_ins_seg"), ("train_deeplab", "eval_deeplab")
    runs = (
        ("in-distribution classifier", CLASSIFIER, {}, ("train_classifier",)),
        ("W-OoD training and its CAMs", TRAINING | WOOD, {}, (*cams, *advcams)),
        ("control: the same without OoD images", TRAINING, CONTROL, cams),
        (
            "masks and instances from the W-OoD CAMs, DeepLab, and the report",
            TRAINING | WOOD | SMALL_MASKS | DEEPLAB,
            {},
            (*labels, *masks, *instances, *deeplab, "make_report"),
        ),
    )
    own = switches(*(step for *_, steps in runs for step in steps))
    refused = [f"--{name}" for name, on in own.items() if given.get(name, on) != on]
    if refused:
        raise InputError(
            f"--sample True chooses its own steps, which {', '.join(refused)} would change; drop {', '.join(refused)}, "
            "or drop --sample."
        )
    work_dir = given.get("work_dir", "")
    lines = []
    for title, arm, apart, steps in runs:
        first, last = in_work_dir(data | arm, work_dir), in_work_dir(apart, work_dir)
        last |= switches(*steps) | {"recipe": SAMPLE}
        lines.append((title, [*to_arguments(first), *user_flags, *to_arguments(last)]))
    return lines
