"""The flags with which the chain runs on the built-in sample: a small backbone, small crops, few epochs.

The code path is that of VOC. The in-distribution classifier is trained once; from it start the W-OoD training and a
control of equal length without OoD data.
"""

from collections.abc import Sequence
from pathlib import Path

from misc.errors import InputError
from misc.run.config import parse_config, switches, to_arguments

DATA_FLAGS = (
    *("voc12_root", "train_list", "val_list", "infer_list", "ood_root", "ood_list", "chainer_eval_set"),
    *("deeplab_train_list", "deeplab_mask_dir", "deeplab_eval_set"),
)

# Both arms alike
RECIPE = {
    "cam_network": "net.efficientnet_lite0_cam",
    "irn_network": "net.efficientnet_lite0_irn",
    "cam_init_weights_name": "sess/sample_cam_orig.pth",
    "irn_weights_name": "sess/sample_irn.pth",
    "cam_resize_long": (224, 320),
    "cam_crop_size": 224,
    "cam_scales": (1.0, 0.5, 1.5),
    "cam_select": "last",
    "cam_eval_sweep": tuple(round(0.05 * k, 2) for k in range(2, 17)),
    "ood_long_side": 288,
}
CLASSIFIER = {"cam_num_epoches": 4, "cam_learning_rate": 0.05}
# Both arms are trained equally long, at the same rate
TRAINING = {"cam_num_epoches": 5, "cam_learning_rate": 0.05}
WOOD = {
    "cam_weights_name": "sess/sample_cam_ood.pth",
    "ood_coeff": 1.0,
    "ood_batch_size": 8,
    "cluster_K": 20,
    "ood_ignore_class": "none",
}
CONTROL = {
    "cam_weights_name": "sess/sample_cam_control.pth",
    "ood_coeff": 0,
    "distance_lambda": 0,
    "result_dir": "result/control",
    "cam_out_dir": "result/control/cam",
}
MASKS = {
    "conf_fg_thres": 0.55,
    "conf_bg_thres": 0.35,
    "irn_crop_size": 224,
    "irn_batch_size": 16,
    "beta": 20,
    "np_power": 1.5,
    "sem_seg_bg_thres": 0.35,
}

DEEPLAB = {
    "deeplab_network": "net.efficientnet_lite0_deeplab",
    "deeplab_weights_name": "sess/sample_deeplab.pth",
    "deeplab_crop_size": 161,
    "deeplab_batch_size": 8,
    "deeplab_iter_size": 1,
    "deeplab_scales": (0.5, 0.75, 1.0, 1.25, 1.5),
    "deeplab_loss": "plain",
    "deeplab_max_iter": 200,
    "deeplab_learning_rate": 5e-4,
}


def sample_runs(root: str, user_flags: Sequence[str], *, with_crf: bool = True) -> list[tuple[str, list[str]]]:
    """Title and command line of each run on the sample at `root`, in order.

    The user's flags come after the recipe's, and so replace them; what tells the runs apart comes last: the switches
    and the control's outputs. Without dense CRF there are no confident labels, and so no masks.

    Raises `InputError` if the user's flags name other data, or switch steps otherwise than the sample does.
    """
    given = [word.split("=")[0].removeprefix("--") for word in user_flags if word.startswith("--")]
    for name in given:
        if name in DATA_FLAGS:
            raise InputError(f"--sample True runs on its own data set; drop --{name}, or drop --sample.")
    wanted = parse_config(user_flags)
    folder = Path(root)
    train_list, val_list = (str(folder / f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val"))
    data = {
        "voc12_root": root,
        "train_list": train_list,
        "val_list": val_list,
        "infer_list": train_list,
        "ood_root": str(folder / "OoD_images"),
        "ood_list": str(folder / "ood_list.txt"),
    }
    cams = ("train_cam", "make_cam", "eval_cam")
    # AdvCAM takes longer than all the rest together: it is left out unless asked for
    advcams = ("make_advcam", "eval_advcam") if wanted.masks_from == "advcam" else ()
    labels, masks = ("cam_to_ir_label", "eval_ir_label", "train_irn"), ("make_sem_seg", "eval_sem_seg")
    instances, deeplab = ("make_ins_seg", "eval_ins_seg"), ("train_deeplab", "eval_deeplab")
    last = (*labels, *masks, *instances, *deeplab) if with_crf else ()
    runs = (
        ("in-distribution classifier", CLASSIFIER, {}, ("train_classifier",)),
        ("W-OoD training and its CAMs", TRAINING | WOOD, {}, (*cams, *advcams)),
        ("control: the same without OoD images", TRAINING, CONTROL, cams),
        (
            "masks and instances from the W-OoD CAMs, DeepLab, and the report",
            TRAINING | WOOD | MASKS | DEEPLAB,
            {},
            (*last, "make_report"),
        ),
    )
    own = switches(*(step for *_, steps in runs for step in steps))
    refused = [f"--{name}" for name, on in own.items() if name in given and getattr(wanted, name) != on]
    if refused:
        raise InputError(
            f"--sample True chooses its own steps, which {', '.join(refused)} would change; drop {', '.join(refused)}, "
            "or drop --sample."
        )
    return [
        (title, [*to_arguments(data | RECIPE | recipe), *user_flags, *to_arguments(apart | switches(*steps))])
        for title, recipe, apart, steps in runs
    ]
