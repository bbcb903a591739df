"""Recipes: sets of defaults under a name, for a whole run. Flags that the user gives override them.

`--recipe NAME` takes one of `RECIPES`; `--recipe auto`, which `bash_run_sample.sh` passes on, chooses one by what is in
place. Some flags can be told only from the files that are there, such as whether the classifier must be trained: a
recipe's `fit` decides these. Nothing here loads PyTorch.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misc.errors import InputError
from misc.files import look
from misc.files.checkpointfile import checkpoint_file, files_of_network
from misc.files.devkitfiles import (
    ALL_IMAGES,
    IMAGES,
    IMPORT_RECORD,
    LABEL_COLUMNS,
    LABEL_TABLE,
    MASKS,
    OBJECTS,
    OOD_IMAGES,
    OOD_LIST,
    TO_EVALUATE,
    list_path,
)
from misc.files.images import without_image_suffix
from misc.files.jsonfile import read_dict
from misc.files.resultfiles import STEPS_FOLDER
from misc.files.table import is_table, read_rows, truth_of
from misc.files.text import read_text
from misc.run.parallel import launched_processes

Flags = Mapping[str, Any]
"""{flag name: value}, values as in `Config`."""

AUTO, ORIGINAL, SAMPLE = "auto", "original", "sample"
DEEPLAB_START = "sess/deeplab_resnet101_imagenet.pth"
"""ImageNet weights that net.deeplab_v2 starts from."""


@dataclass(frozen=True)
class Recipe:
    """Defaults, where they come from, and what they lack until it is known which files are there."""

    flags: Flags
    source: str
    fit: Callable[[Flags, Flags], tuple[dict[str, Any], list[str]]] | None = None
    """(values of all flags, flags that the user gave) -> further defaults, and what to tell the user about them."""


# The authors' chain on VOC. They make the first CAMs for train alone; here they are made for train_aug, which contains
# it, so that one run can check all input before the first step.
CHAIN = {
    "train_list": "voc12/train_aug.txt",
    "infer_list": "voc12/train_aug.txt",
    "chainer_eval_set": "train",
    "train_cam_pass": True,
    "make_cam_pass": True,
    "eval_cam_pass": True,
    "cam_to_ir_label_pass": True,
    "eval_ir_label_pass": True,
    "train_irn_pass": True,
    "make_sem_seg_pass": True,
    "eval_sem_seg_pass": True,
    "make_report_pass": True,
}
ADVCAM = {
    "make_advcam_pass": True,
    "eval_advcam_pass": True,
    "masks_from": "advcam",
    "np_power": 1.5,
    "sem_seg_bg_thres": 0.22,
}

# A small backbone, small crops and few steps: what both arms of the built-in sample and small data have in common
SMALL_CAMS = {
    "cam_network": "net.efficientnet_lite0_cam",
    "irn_network": "net.efficientnet_lite0_irn",
    "cam_resize_long": (224, 320),
    "cam_crop_size": 224,
    "cam_scales": (1.0, 0.5, 1.5),
    "cam_select": "last",
    "cam_eval_sweep": tuple(round(0.05 * k, 2) for k in range(2, 17)),
    "ood_long_side": 288,
}
SMALL_TRAINING = {"cam_num_epoches": 5, "cam_learning_rate": 0.05}
SMALL_WOOD = {"ood_coeff": 1.0, "ood_batch_size": 8, "cluster_K": 20, "ood_ignore_class": "none"}
SMALL_MASKS = {
    "conf_fg_thres": 0.55,
    "conf_bg_thres": 0.35,
    "irn_crop_size": 224,
    "irn_batch_size": 4,  # four times the steps of 16 in the same time: benchmarks/results/sample_recipe.md
    "beta": 20,
    "np_power": 1.5,
    "sem_seg_bg_thres": 0.35,
}
SMALL_DEEPLAB = {
    "deeplab_network": "net.efficientnet_lite0_deeplab",
    "deeplab_crop_size": 161,
    "deeplab_batch_size": 8,
    "deeplab_iter_size": 1,
    "deeplab_scales": (0.5, 0.75, 1.0, 1.25, 1.5),
    "deeplab_loss": "balanced",  # the authors'; with "plain" small classes are not found in so few steps
    "deeplab_max_iter": 400,  # with 200, one seed of three finds hardly any class: docs/sample.md
    "deeplab_learning_rate": 5e-4,
}
# Where photographs, whose long side is about 500 pixels, take other values than the sample's drawings of 288 pixels
PHOTOGRAPHS = {
    "cam_crop_size": 256,
    "cam_resize_long": (256, 384),
    "cam_num_epoches": 4,
    "ood_long_side": 320,
    "conf_fg_thres": 0.4,
    "conf_bg_thres": 0.2,
    "irn_crop_size": 256,
    "irn_num_epoches": 4,
    "beta": 10,
    "sem_seg_bg_thres": 0.3,
    "deeplab_crop_size": 257,
    "deeplab_max_iter": 200,
}
SMALL_CHAIN = tuple(
    f"{step}_pass"
    for step in (
        *("train_cam", "make_cam", "cam_to_ir_label", "train_irn"),
        *("make_sem_seg", "make_ins_seg", "train_deeplab", "make_report"),
    )
)
LEAST_STEPS = {"cam": 76, "irn": 304}
"""Of each classifier and of IRN on photographs: 4 epochs of some 300 images in batches of 16 and of 4."""


EVALUATIONS = tuple(f"eval_{what}_pass" for what in ("cam", "advcam", "ir_label", "sem_seg", "ins_seg", "deeplab"))
_WITHOUT_MASKS = "evaluations are left out: there are no masks in {}."
_WITHOUT_LIST = "evaluations that need it are left out: there is no list {} of images with masks."


def _classifier(values: Flags) -> dict[str, Any]:
    """The in-distribution classifier is trained unless there is one that came from elsewhere.

    One that was trained here is the step's own affair: that knows whether it is up to date, or was interrupted.
    """
    weights = values["cam_init_weights_name"]
    return {"train_classifier_pass": not _is_there(weights) or _was_trained(weights, values["result_dir"])}


def _was_trained(weights: str, result_dir: str) -> bool:
    """Whether a classifier is what train_classifier has written, and nothing has replaced since."""
    outputs = read_dict(Path(result_dir, STEPS_FOLDER, "train_classifier.json")).get("outputs")
    files = files_of_network(weights)
    return isinstance(outputs, dict) and all(map(os.path.isfile, files)) and outputs.get("look") == look.digest(files)


def _is_there(checkpoint: str) -> bool:
    return checkpoint_file(checkpoint).is_file()


def _fit_to_starts(values: Flags, given: Flags) -> tuple[dict[str, Any], list[str]]:
    """Whether the classifier must be trained, whether DeepLab has a start, and its batches if processes share them."""
    named = not {"deeplab_network", "deeplab_init_weights"}.isdisjoint(given)
    has_start = named or Path(DEEPLAB_START).is_file()
    flags = {**_classifier(values), "train_deeplab_pass": has_start, "eval_deeplab_pass": has_start}
    sentences = []
    trains = not _is_there(values["cam_init_weights_name"]) and given.get("train_classifier_pass", True)
    if trains and values["work_dir"] and "cam_init_weights_name" not in given:
        usual = os.path.relpath(values["cam_init_weights_name"], values["work_dir"])
        if _is_there(usual):
            sentences.append(
                f"The in-distribution classifier is trained anew, since --work_dir {values['work_dir']} has none; to "
                f"start from the one that there is, pass --cam_init_weights_name {usual}."
            )
    if not has_start and "train_deeplab_pass" not in given:
        sentences.append(
            f"DeepLab-v2 is left out: its start {DEEPLAB_START} is not there (sess/README.md). Torchvision's weights "
            "will do with --deeplab_network net.resnet101_deeplab."
        )
    n_processes, size, n_batches = launched_processes(), values["deeplab_batch_size"], values["deeplab_iter_size"]
    is_free = {"deeplab_batch_size", "deeplab_iter_size"}.isdisjoint(given)
    trains_deeplab = given.get("train_deeplab_pass", has_start)
    if trains_deeplab and is_free and size < n_processes <= size * n_batches:
        flags |= {"deeplab_batch_size": size * n_batches, "deeplab_iter_size": 1}
        sentences.append(
            f"DeepLab takes the {size * n_batches} images of a step as one batch, in place of {n_batches} batches of "
            f"{size}, so that each of the {n_processes} processes has a share; with other numbers of processes pass "
            f"--deeplab_batch_size {size * n_batches} --deeplab_iter_size 1, or it is trained anew."
        )
    return flags, sentences


def _fit_to_few_images(values: Flags, given: Flags) -> tuple[dict[str, Any], list[str]]:
    """Lists and OoD images in the data set's folder, batches and clusters that they fill, evaluations that have masks.

    With `mine_ood` the classifier alone is trained, and the OoD images go where the chain will look for them. With
    `show` nothing is made anew.

    Batches are at most as large as their lists, and epochs at least so many that there are `LEAST_STEPS`. What can't be
    read here keeps its default: the steps' own checks say what is wrong.
    """
    root = Path(values["voc12_root"])
    train, val = (list_path(root, TO_EVALUATE, split) for split in ("train", "val"))
    flags: dict[str, Any] = {
        **_classifier(values),
        "train_list": str(train),
        "infer_list": str(given.get("train_list", train)),
        "val_list": str(val) if val.is_file() else str(given.get("train_list", train)),
    }
    mines = given.get("mine_ood_pass", False)
    if mines or (root / OOD_IMAGES).is_dir():
        flags |= {"ood_root": str(root / OOD_IMAGES), "ood_list": str(root / OOD_LIST)}
    lists = {**values, **flags, **given}
    train_ids, n_ood = _ids(lists["train_list"]), len(_lines(lists["ood_list"]))
    # Images without a class, which a table of labels names, are for the classifier alone
    without_class = _without_class(Path(lists["label_file"]))
    masked_ids = _ids(lists["deeplab_train_list"] or lists["infer_list"])
    n_of = {"cam": len(train_ids), "irn": len(train_ids - without_class), "deeplab": len(masked_ids - without_class)}
    for name, n_images in n_of.items():
        if not n_images:
            continue
        batch_size = flags[f"{name}_batch_size"] = min(values[f"{name}_batch_size"], n_images)
        if name in LEAST_STEPS and batch_size > 0:  # DeepLab counts iterations
            epochs = f"{name}_num_epoches"
            flags[epochs] = max(values[epochs], math.ceil(LEAST_STEPS[name] / (n_images // batch_size)))
    if n_ood:
        flags |= {name: min(values[name], n_ood) for name in ("ood_batch_size", "cluster_K")}

    evaluations = dict.fromkeys(("eval_cam_pass", "eval_ir_label_pass", "eval_sem_seg_pass", "eval_deeplab_pass"), True)
    evaluations["eval_ins_seg_pass"] = any((root / OBJECTS).glob("*.png"))
    left_out, sentences = _without_ground_truth(root, {**values, **evaluations}, given, among=evaluations)
    flags |= evaluations | left_out
    shows = given.get("show_pass", False)
    # What comes after mining is for the images that a person has chosen, and what is there is shown as it is
    if mines or shows:
        own = () if mines else ("train_classifier_pass",)
        return flags | dict.fromkeys((*own, *SMALL_CHAIN, *EVALUATIONS), False), []
    return flags, sentences


def _without_ground_truth(
    root: Path, values: Flags, given: Flags, *, among: Iterable[str] = EVALUATIONS
) -> tuple[dict[str, Any], list[str]]:
    """{evaluation: False} of those that have no masks or no list of images with masks, and what to tell of it.

    Of the evaluations that are on without the user's having said so. A list that the user names has to be there; the
    evaluation itself says that it is not.
    """
    has_masks = any((root / MASKS).glob("*.png"))
    flags, sentences = {}, []
    for name in among:
        set_flag = "deeplab_eval_set" if "deeplab" in name else "chainer_eval_set"
        path = list_path(root, TO_EVALUATE, values[set_flag])
        if not values[name] or name in given or (has_masks and (set_flag in given or path.is_file())):
            continue
        flags[name] = False
        sentence = _WITHOUT_LIST.format(path) if has_masks else _WITHOUT_MASKS.format(root / MASKS)
        sentences += [sentence] if sentence not in sentences else []
    return flags, sentences


def _is_imported(root: Path) -> bool:
    """Whether import_data made a devkit."""
    return os.path.isfile(root / IMPORT_RECORD)  # False for names that no file can have, too


def fit_to_imported(values: Flags, given: Flags) -> tuple[dict[str, Any], list[str]]:
    """Labels and lists of a devkit that import_data made, and what to tell of it; nothing for any other folder."""
    root = Path(values["voc12_root"])
    if not _is_imported(root):
        return {}, []
    train, val = (list_path(root, ALL_IMAGES, split) for split in ("train", "val"))
    trained = str(given.get("train_list", train))  # masks are made of what CAMs are made of
    flags: dict[str, Any] = {
        "label_file": str(root / LABEL_TABLE),
        "train_list": str(train),
        "val_list": str(val) if val.is_file() else trained,
        "infer_list": trained,
    }
    sentences = [
        f"{root} was imported: its own labels and lists are taken ("
        + ", ".join(f"--{name} {path}" for name, path in flags.items() if name not in given)
        + ")."
    ]
    return flags, sentences


def evaluations_left_out(values: Flags, given: Flags) -> tuple[dict[str, Any], list[str]]:
    """{evaluation: False} of those that an imported devkit has no masks for, and what to tell of it.

    `values`: what the recipe made of them, since it may have switched evaluations on.
    """
    root = Path(values["voc12_root"])
    return _without_ground_truth(root, values, given) if _is_imported(root) else ({}, [])


def _lines(path: str) -> set[str]:
    """Lines of a list that are not blank; none for a file that is missing or no text."""
    try:
        text = read_text(path)
    except (OSError, ValueError):
        return set()
    return {line.strip() for line in text.splitlines()} - {""}


def _id(name: str) -> str:
    """The id of an image that a list or a table calls by its name, with folders and suffix or without."""
    return without_image_suffix(name.replace("\\", "/").rpartition("/")[2])


def _ids(path: str) -> set[str]:
    """The ids that a list names."""
    return {_id(line) for line in _lines(path)}


def _without_class(table: Path) -> set[str]:
    """Ids of the images that a table of labels gives no class; none for another file, or one that can't be read."""
    if not is_table(table):
        return set()
    try:
        rows = [[cell.strip() for cell in cells] for _, cells in read_rows(table, kind="label file", advice="")]
    except InputError:
        return set()
    has_names = any(name.lower() in LABEL_COLUMNS for row in rows[:1] for name in row[1:2])
    has_class: dict[str, bool] = {}
    for file, *cells in rows[1:]:
        is_labelled = any(cells) if has_names else any(map(truth_of, cells))
        has_class[_id(file)] = has_class.get(_id(file), False) or is_labelled
    return {image_id for image_id, is_labelled in has_class.items() if not is_labelled}


RECIPES = {
    ORIGINAL: Recipe({}, "the defaults of the authors' run_sample.py: what a call without a recipe takes"),
    "authors": Recipe(
        CHAIN | ADVCAM,
        "the authors' chain on VOC 2012: masks from AdvCAM's maps, with the lists, powers and scores of their READMEs",
        _fit_to_starts,
    ),
    "cam": Recipe(
        CHAIN | {"masks_from": "cam"},
        "the same without AdvCAM, by far the longest step: masks from plain CAMs, with the original's power and score",
        _fit_to_starts,
    ),
    SAMPLE: Recipe(
        {
            "sample": True,
            **SMALL_CAMS,
            "cam_init_weights_name": "sess/sample_cam_orig.pth",
            "irn_weights_name": "sess/sample_irn.pth",
        },
        "the built-in sample: settled on seed 0 with the sample's masks in view (benchmarks/results/sample_recipe.md)",
    ),
    "small": Recipe(
        {
            **SMALL_CAMS,
            **SMALL_TRAINING,
            **SMALL_WOOD,
            **SMALL_MASKS,
            **SMALL_DEEPLAB,
            **PHOTOGRAPHS,
            "cam_init_weights_name": "sess/small_cam_orig.pth",
            "cam_weights_name": "sess/small_cam_ood.pth",
            "irn_weights_name": "sess/small_irn.pth",
            "deeplab_weights_name": "sess/small_deeplab.pth",
            **dict.fromkeys(SMALL_CHAIN, True),
        },
        "a few hundred photographs of one's own: the built-in sample's settings with larger crops and lower background "
        "scores, and the authors' loss for DeepLab, fitted to the images there are (docs/recipes.md)",
        _fit_to_few_images,
    ),
}


def choose_recipe(given: Flags, *, voc12_root: str) -> tuple[str, list[str]]:
    """The recipe's name that the user's flags ask for, and what to tell the user about the choice.

    `auto` runs VOC where it is in place or its folder is named, else the built-in sample. `--sample True` is the
    recipe `sample`.

    Args:
        given: the flags that the user gave.
        voc12_root: where VOC lies unless the user names another folder.

    Raises `InputError` for an unknown name, and for a recipe that `--sample` contradicts.
    """
    name, sample = given.get("recipe", ORIGINAL), given.get("sample")
    if name == AUTO:
        if sample:
            return SAMPLE, []
        is_named = sample is False or "voc12_root" in given  # a folder that is named must be there
        if is_named or (Path(voc12_root) / IMAGES).is_dir():
            return ("cam" if given.get("masks_from") == "cam" else "authors"), []
        return SAMPLE, _instead_of_voc(voc12_root)
    if name not in RECIPES:
        raise InputError(f"--recipe {name} is unknown; the recipes are {', '.join(RECIPES)}, and {AUTO} chooses one.")
    if name == ORIGINAL and sample:
        return SAMPLE, []
    if sample is not None and sample != (name == SAMPLE):
        raise InputError(f"--recipe {name} and --sample {sample} contradict each other; drop one of them.")
    return name, []


def _instead_of_voc(voc12_root: str) -> list[str]:
    images = [*sorted(Path("Data").glob("*/JPEGImages")), *sorted(Path("Data").glob("*/*/JPEGImages"))]
    folders = [path.parent for path in images if path.is_dir() and path.parent != Path("Data/sample")]
    return [
        f"VOC 2012 is not at {voc12_root}: this runs the built-in sample instead (generated pictures, ten to "
        "sixty minutes).",
        "To run VOC 2012, put it there (Data/README.md) or pass --voc12_root FOLDER.",
        *(f"There is a data set in {folder}: did you mean --voc12_root {folder}?" for folder in folders),
    ]
