"""Every flag of the project: its name, type, default, range and meaning, in one place.

The names and defaults are those of the authors' `run_sample.py`; of flags that it lacks their help says so, or the
comment above them.
"""

import argparse
import difflib
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from misc.errors import InputError
from misc.run.parallel import usable_cores
from misc.run.recipes import AUTO, ORIGINAL, RECIPES, choose_recipe, evaluations_left_out, fit_to_imported

ALL_STEPS = "all"
NETWORKS, BACKBONE_MARK = ("cam_network", "irn_network", "deeplab_network"), ":"
"""The flags that name networks; what stands between the name of a module and that of its backbone."""
LONGEST_SIDE, LARGEST_SCALE, MOST_WORKERS = 2**14, 16, 1024
"""Beyond these there is no machine for the images, or a slip of the keyboard."""
DEFAULT_IGNORED_CLASS = "bottle"
"""Of VOC: the original leaves OoD images that look like it out of the OoD loss."""
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes"), ("false", "0", "no")


def parse_bool(text: str) -> bool:
    """`True`, `true`, `1`, `yes` and `False`, `false`, `0`, `no`; anything else is an error.

    (In the original `--x_pass False` means True, because any text that is not empty is true: fixed here.)
    """
    word = text.lower()
    if word in TRUE_WORDS + FALSE_WORDS:
        return word in TRUE_WORDS
    raise argparse.ArgumentTypeError(f"expected True or False (also 1/0, yes/no), got {text!r}")


def half_the_cores() -> int:
    """Half of the CPU cores that this process may use, at least one."""
    return max(1, usable_cores() // 2)


def flag(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    multiple_of: int | None = None,
    output: bool = False,
) -> Any:
    """A field of `Config` with its help text and the closed range of its numbers; a callable default is called.

    `output`: the flag names what a run writes (other steps may read it), so that it lies in `work_dir` by default.
    """
    metadata = {"help": text, "low": low, "high": high, "multiple_of": multiple_of, "output": output}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(default: bool, text: str, *, module: str = "", alone: bool = False) -> Any:
    """The field of a step: its switch.

    `module`: in `step/`, where it is not called as the step is. `alone`: beside it a bare call's steps are off, unless
    they are asked for.
    """
    return field(default=default, metadata={**flag(default, text).metadata, "module": module, "alone": alone})


@dataclass(frozen=True)
class CamSource:
    """A folder of CAM files, the flag that names it and the step that makes them."""

    folder: str
    flag: str
    made_by: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """The run's configuration, read-only. Paths are relative to the working directory."""

    # What to run, on what (not in the original)
    recipe: str = flag(
        ORIGINAL,
        f"defaults for a whole run, which other flags override: {', '.join(RECIPES)}; {AUTO}: authors (or cam, with "
        "--masks_from cam) where VOC is in place or named, else sample",
    )
    sample: bool = flag(
        False, "make the built-in sample data set, run the chain on it (without AdvCAM), write the report"
    )
    sample_root: str = flag("Data/sample", "folder of the built-in sample")

    plan: bool = flag(False, "check everything, show what the run would do, and stop (not in the original)")
    redo: tuple[str, ...] = flag(
        (), f"steps that are done again although their results are there, or {ALL_STEPS} (not in the original)"
    )

    # Environment
    work_dir: str = flag(
        "",
        "folder for all that a run writes: the default paths in sess/ and result/, and the log, are then in it; empty: "
        "the working directory (not in the original)",
    )
    seed: int = flag(0, "seed of every random choice (not in the original)", low=0, high=2**63 - 1)
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "auto takes CUDA where there is a GPU (not in the original)")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = flag(
        "auto", "fp32; tf32, what auto takes on CUDA; bf16: backbones in bfloat16 (not in the original)"
    )
    num_workers: int = flag(
        half_the_cores,
        "processes that read and prepare images, for each of torchrun's; 0: none",
        low=0,
        high=MOST_WORKERS,
    )
    crf: Literal["auto", "torch", "pydensecrf"] = flag(
        "auto",
        "who computes dense CRF, with the same labels: torch, on any device, which auto takes; or pydensecrf, on CPU "
        "cores, where it is installed (not in the original)",
    )
    crf_workers: int = flag(
        usable_cores,
        "processes of dense CRF where CPU cores compute it, for each of torchrun's; by default one a core; 0: none "
        "(not in the original)",
        low=0,
        high=MOST_WORKERS,
    )
    resume: bool = flag(
        True,
        "a training that was interrupted goes on, if data, settings and starting weights are the same (not in "
        "the original)",
    )
    state_minutes: float = flag(
        5, "minutes between two saves of a training's state; 0: after each step (not in the original)", low=0
    )
    log_name: str = flag("sample_train_eval", "the log goes to the screen and to <log_name>.log", output=True)
    result_dir: str = flag("result", "folder of the run records, losses and scores (not in the original)", output=True)
    tensorboard: str = flag(
        "",
        "folder for TensorBoard: losses, rates, images per second, the curve over background scores, some CAMs; empty: "
        "none (not in the original)",
    )

    # Data
    voc12_root: str = flag("Data/VOCdevkit/VOC2012", "VOC devkit: the folder with JPEGImages, Annotations, ImageSets")
    class_list: str = flag(
        "",
        "file with one class name a line; empty: for export_deeplab and predict the one beside their weights, else "
        "<voc12_root>/classes.txt, else VOC's 20 classes",
    )
    label_file: str = flag(
        "voc12/cls_labels.npy",
        "image labels, of the IRN family's kind or a table (.csv); one in voc12/ is made from the devkit's XML files",
    )
    labels_from: Literal["file", "classifier"] = flag(
        "file",
        "who tells make_cam, make_advcam and show the classes of an image: the label file, or, where there are no "
        "labels, the classifier whose CAMs they make (not in the original)",
    )
    label_threshold: float = flag(
        0.5, "probability from which on --labels_from classifier finds a class (not in the original)", low=0, high=1
    )
    train_list: str = flag(
        "voc12/train_aug.txt", "images of train_cam, make_cam, make_advcam, cam_to_ir_label, train_irn"
    )
    val_list: str = flag("voc12/val.txt", "images of the validation loss of train_classifier")
    infer_list: str = flag(
        "voc12/train_aug.txt",
        "images of make_*_seg, make_cocoann, train_deeplab, and of the mean displacement of train_irn",
    )
    chainer_eval_set: str = flag("train", "evaluations use <voc12_root>/ImageSets/Segmentation/<this>.txt")
    ood_root: str = flag("WOoD_dataset/openimages/OoD_images", "folder of the out-of-distribution images")
    ood_list: str = flag("WOoD_dataset/openimages/ood_list.txt", "out-of-distribution images, one file name a line")

    # Downloads (not in the original; step/download.py has the table of what can be fetched)
    download: tuple[str, ...] = flag(
        ("authors",),
        "what download fetches: authors (all that W-OoD's and AdvCAM's offer), or some of voc_aug, ood_images, "
        "ood_list, classifier, deeplab_start, voc2012, resnet50, resnet101",
    )
    download_from: tuple[str, ...] = flag(
        (), "other sources for download, NAME=ADDRESS, or NAME=FILE for a file that you have fetched yourself"
    )
    download_timeout: float = flag(60, "seconds without a byte after which download takes a connection for lost", low=1)

    # Import of one's own data (not in the original)
    import_from: str = flag(
        "",
        "what import_data makes the devkit --voc12_root of: a folder with one subfolder a class, a COCO file of "
        "annotations (.json) or a table of labels (.csv)",
    )
    import_images: str = flag("", "folder of the images that the COCO file or the table names; empty: the file's own")
    import_no_class: str = flag("", "the subfolder, or the label, of images that show none of the classes")
    import_val_share: float = flag(
        0.2,
        "share of the images of each class that import_data holds out for validation; 0: none, 1: all",
        low=0,
        high=1,
    )

    # Classifier and CAM
    cam_network: str = flag("net.resnet50_cam", "module with the classes Net and CAM")
    cam_init_weights_name: str = flag(
        "sess/res50_cam_orig.pth",
        "in-distribution classifier: made by train_classifier, start of train_cam, what mine_ood fools",
        output=True,
    )
    cam_weights_name: str = flag(
        "sess/res50_cam_ood.pth", "W-OoD classifier: made by train_cam, read by make_cam", output=True
    )
    backbone: str = flag(
        "",
        "backbone of networks whose modules offer many, timm's models: --cam_network net.timm_cam --irn_network "
        "net.timm_irn --deeplab_network net.timm_deeplab; MODULE:BACKBONE names that of one network alone (not in the "
        "original)",
    )
    imagenet_weights: str = flag("auto", "start of train_classifier and IRN: auto, a file, or none (random weights)")
    cam_crop_size: int = flag(512, "side of the training crop, pixels", low=16, high=LONGEST_SIDE)
    cam_resize_long: tuple[int, ...] = flag(
        (320, 640), "range of the random long side before the crop", low=16, high=LONGEST_SIDE
    )
    cam_batch_size: int = flag(16, "images a batch", low=1)
    cam_num_epoches: int = flag(5, "epochs", low=1)
    cam_learning_rate: float = flag(0.1, "learning rate of the backbone; the classifier's is 10 times this", low=0)
    cam_weight_decay: float = flag(1e-4, "weight decay (and, as in the original, the momentum)", low=0)
    cam_select: Literal["best_miou", "last"] = flag(
        "best_miou", "weights that train_cam keeps: best_miou looks at ground-truth masks, as the original does"
    )
    cam_select_interval: int = flag(10, "steps between two looks of best_miou, in the last quarter epoch", low=1)
    cam_scales: tuple[float, ...] = flag((1.0, 0.5, 1.5, 2.0), "image scales of the CAMs", low=0.01, high=LARGEST_SCALE)
    make_cam_batch_size: int = flag(
        4,
        "images of equal size in one batch, fewer if they exceed 512 x 512, also of mine_ood (not in the original)",
        low=1,
    )
    cam_eval_thres: float = flag(0.15, "a background score that eval_cam and eval_advcam report, too", low=0, high=1)
    cam_eval_sweep: tuple[float, ...] = flag(
        (0.08, 0.09, 0.10, 0.11, 0.12, 0.13, 0.14),
        "background scores of eval_(adv)cam; the best is kept",
        low=0,
        high=1,
    )
    cam_out_dir: str = flag("result/cam_ood", "CAM files, ID.npy", output=True)
    cam_files: Literal["float32", "float16"] = flag(
        "float32",
        "numbers of the large maps in the files of make_cam and make_advcam; float16 takes half the disk, and whoever "
        "reads the one reads the other (not in the original)",
    )

    # AdvCAM: CAMs by anti-adversarial climbing
    adv_iter: int = flag(27, "iterations; at scale 0.5 half as many", low=1)
    AD_coeff: float = flag(7, "weight of the regulariser: what keeps strong regions as they are", low=0)
    AD_stepsize: float = flag(0.08, "step of the climbing, in normalised pixel values", low=0)
    score_th: float = flag(0.5, "share of the strongest response from which on a region is strong", low=0, high=1)
    advcam_batch_size: int = flag(
        0,
        "(image, class) pairs of equal size in one batch, fewer if they exceed 512 x 512; 0: one on the CPU, on "
        "CUDA up to 8, as its free memory allows (not in the original)",
        low=0,
    )
    advcam_out_dir: str = flag("result/cam_ood_advcam", "AdvCAM files, ID.npy", output=True)
    masks_from: Literal["cam", "advcam"] = flag(
        "cam",
        "maps that cam_to_ir_label, make_*_seg read: those of make_cam or of make_advcam (not in the original)",
    )

    # Out-of-distribution data
    ood_coeff: float = flag(0.25, "weight of the OoD loss; 0: no OoD batches are drawn", low=0)
    ood_batch_size: int = flag(16, "OoD images a batch", low=1)
    cluster_K: int = flag(50, "clusters of OoD features", low=1)
    distance_lambda: float = flag(0.007, "weight of the distance loss; 0: none", low=0)
    ood_dist_topk: float = flag(0.2, "share of the nearest OoD clusters that push", low=0, high=1)
    ood_adv_step: float = flag(0.07, "step of the adversarial perturbation, in normalised pixel values", low=0)
    ood_long_side: int = flag(
        500,
        "long side of the OoD images whose features are clustered, and that mine_ood scores, pixels",
        low=16,
        high=LONGEST_SIDE,
    )
    ood_ignore_class: str = flag(
        DEFAULT_IGNORED_CLASS, "OoD images that look like this class are left out of the loss; or none"
    )

    # Choosing out-of-distribution images (not in the original; docs/mining.md)
    ood_pool: tuple[str, ...] = flag((), "folders of images that mine_ood ranks, with all below them")
    ood_pool_labels: tuple[str, ...] = flag(
        (), "CSV files with labels of the pool's images: mine_ood leaves out those that hold a class of the data set"
    )
    ood_label_names: str = flag("", "CSV file that says what labels of --ood_pool_labels are called")
    ood_hard_score: float = flag(
        0.5, "probability of a class from which on an image of the pool is hard", low=0, high=1
    )
    ood_per_class: int = flag(250, "candidates of a class, at most: the strongest", low=1)
    ood_review: str = flag(
        "", "decisions that the page of mine_ood has saved: it then puts the OoD data into --ood_root and --ood_list"
    )
    ood_mine_dir: str = flag("result/mined_ood", "scores, candidates and page of mine_ood", output=True)

    # Inter-pixel relation network (IRN)
    conf_fg_thres: float = flag(0.30, "background score for confident foreground", low=0, high=1)
    conf_bg_thres: float = flag(0.15, "background score for confident background", low=0, high=1)
    ir_label_out_dir: str = flag("result/ir_label", "confident labels, ID.png", output=True)
    irn_network: str = flag("net.resnet50_irn", "module with the classes AffinityDisplacementLoss and EdgeDisplacement")
    irn_weights_name: str = flag("sess/res50_irn_ood.pth", "IRN: made by train_irn, read by make_*_seg", output=True)
    irn_crop_size: int = flag(512, "side of the training crop, pixels", low=80, high=LONGEST_SIDE, multiple_of=4)
    irn_batch_size: int = flag(32, "images a batch", low=1)
    irn_num_epoches: int = flag(3, "epochs", low=1)
    irn_learning_rate: float = flag(0.1, "learning rate of the edge branch; the displacement's is 10 times this", low=0)
    irn_weight_decay: float = flag(1e-4, "weight decay (and, as in the original, the momentum)", low=0)

    irn_infer_batch_size: int = flag(
        0,
        "images in one batch of make_*_seg that IRN pads to one size, fewer if that exceeds 512 x 512; 0: one on the "
        "CPU, 8 on CUDA (not in the original)",
        low=0,
    )
    keep_irn: bool = flag(
        False,
        "keep what IRN finds in each image in <result_dir>/irn, in half precision, so that another make_*_seg, or one "
        "with other settings, need not run it again (not in the original)",
    )

    # Random walk and masks
    beta: float = flag(10, "power of the affinities", low=0)
    exp_times: int = flag(8, "the walk takes 2^exp_times steps", low=0, high=20)
    np_power: float = flag(1.0, "power of the CAM before the walk (1.5 for AdvCAM)", low=0)
    sem_seg_bg_thres: float = flag(0.25, "background score of the masks (0.22 for AdvCAM)", low=0, high=1)
    sem_seg_out_dir: str = flag("result/sem_seg_ood", "masks, ID.png, and palette/ID.png in colour", output=True)
    ins_seg_bg_thres: float = flag(0.25, "background score of the instance masks", low=0, high=1)
    ins_seg_out_dir: str = flag("result/ins_seg_ood", "instance masks, ID.npy", output=True)
    cocoann_path: str = flag(
        "result/cocoann.json", "COCO annotations of make_cocoann (not in the original)", output=True
    )
    cocoann_format: Literal["polygon", "rle"] = flag(
        "polygon", "how COCO annotations hold a mask; both decode to the same mask (not in the original)"
    )
    cocoann_min_score: float = flag(
        1e-5, "make_cocoann leaves out what scores less, such as fragments; 0 keeps all (not in the original)", low=0
    )

    # Segmentation network: DeepLab-v2 (the original sends its users to another repository for it; the recipe here is
    # the one that AdvCAM's author states for AdvCAM, see docs/deeplab.md)
    deeplab_network: str = flag("net.deeplab_v2", "module with the class DeepLab")
    deeplab_init_weights: str = flag(
        "auto", "start of train_deeplab: auto (ImageNet), a file of the network or its backbone, or none"
    )
    deeplab_weights_name: str = flag(
        "sess/deeplab_v2_ood.pth",
        "DeepLab: made by train_deeplab, read by eval_deeplab, export_deeplab, predict",
        output=True,
    )
    deeplab_train_list: str = flag("", "images of train_deeplab; empty: those of --infer_list")
    deeplab_mask_dir: str = flag("", "masks of train_deeplab, ID.png; empty: those in --sem_seg_out_dir")
    deeplab_crop_size: int = flag(321, "side of the training crop, pixels", low=33, high=LONGEST_SIDE)
    deeplab_scales: tuple[float, ...] = flag(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "scales before the crop, one drawn", low=0.01, high=LARGEST_SCALE
    )
    deeplab_batch_size: int = flag(5, "images a batch", low=1)
    deeplab_iter_size: int = flag(2, "batches whose gradients are averaged for one step", low=1)
    deeplab_loss: Literal["balanced", "plain"] = flag(
        "balanced",
        "balanced: the mean of the cross entropies of background and of foreground pixels; plain: of all pixels",
    )
    deeplab_max_iter: int = flag(30000, "steps", low=1)
    deeplab_learning_rate: float = flag(
        2.5e-4, "learning rate of the backbone; 10 times this for the ASPP's weights, 20 times for its biases", low=0
    )
    deeplab_weight_decay: float = flag(5e-4, "weight decay (not of the ASPP's biases)", low=0)
    deeplab_eval_set: str = flag("val", "eval_deeplab uses <voc12_root>/ImageSets/Segmentation/<this>.txt")
    deeplab_crf: bool = flag(True, "eval_deeplab refines its masks with dense CRF, too")
    deeplab_out_dir: str = flag("result/deeplab", "masks of eval_deeplab, ID.png", output=True)
    deeplab_crf_out_dir: str = flag("result/deeplab_crf", "the same after dense CRF", output=True)
    deeplab_server_dir: str = flag(
        "result/voc_server",
        "eval_deeplab on the set test: folder in the layout of VOC's evaluation server",
        output=True,
    )
    deeplab_export_name: str = flag("sess/deeplab_v2_ood.pt2", "program that export_deeplab writes", output=True)
    predict_input: str = flag("", "photograph, or folder of photographs, that predict segments")
    predict_out_dir: str = flag("result/predict", "masks, overlays and classes.json of predict", output=True)
    predict_long_side: int = flag(513, "larger photographs are reduced to this for the network; 0: never", low=0)
    predict_crf: bool = flag(False, "predict refines its masks with dense CRF")

    # Overlays to look at (not in the original)
    show_list: str = flag("", "images of show; empty: those of --infer_list (not in the original)")
    show_out_dir: str = flag("result/show", "overlays of show, ID.jpg, and classes.json", output=True)

    # Report (not in the original)
    control_dir: str = flag(
        "result/control", "result_dir of a control run to compare with, where there is one", output=True
    )
    report_images: int = flag(12, "images shown: a third each with the largest gain and loss, and at random", low=3)
    report_scan: int = flag(500, "images looked at for gains and losses", low=1)

    # Steps, in the order in which they run, with the descriptions that their modules declare
    download_pass: bool = switch(
        False,
        "fetch data and weights that others offer, check them and put them in place; other steps run only if switched "
        "on, too (not in the original)",
        alone=True,
    )
    import_data_pass: bool = switch(
        False,
        "make a devkit of images sorted into folders, of a COCO file or of a table of labels; other steps run only if "
        "switched on, too (not in the original)",
        alone=True,
    )
    train_classifier_pass: bool = switch(
        False, "train the in-distribution classifier from ImageNet weights (not in the original)"
    )
    mine_ood_pass: bool = switch(
        False,
        "rank a pool's images by how strongly the classifier fires, to choose OoD images; other steps run only if "
        "switched on, too (not in the original)",
        alone=True,
    )
    train_cam_pass: bool = switch(True, "train the classifier with the W-OoD loss")
    make_cam_pass: bool = switch(True, "make multi-scale CAMs")
    eval_cam_pass: bool = switch(True, "evaluate the CAMs over background scores")
    make_advcam_pass: bool = switch(False, "make multi-scale CAMs by anti-adversarial climbing (AdvCAM)")
    eval_advcam_pass: bool = switch(False, "evaluate AdvCAM's maps over background scores (not in the original)")
    cam_to_ir_label_pass: bool = switch(False, "turn CAMs into confident labels with dense CRF")
    eval_ir_label_pass: bool = switch(False, "evaluate CAM + dense CRF (not in the original)")
    train_irn_pass: bool = switch(False, "train the boundary and displacement network")
    make_sem_seg_pass: bool = switch(
        False, "make masks: random walk of the CAMs between boundaries", module="make_sem_seg_labels"
    )
    eval_sem_seg_pass: bool = switch(False, "evaluate the masks")
    make_ins_seg_pass: bool = switch(
        False, "make instance masks: displacements and random walk of the CAMs", module="make_ins_seg_labels"
    )
    eval_ins_seg_pass: bool = switch(
        False, "evaluate the instance masks: VOC's AP at IoU 0.5; needs SegmentationObject in the devkit"
    )
    make_cocoann_pass: bool = switch(False, "write the instance masks as COCO annotations")
    train_deeplab_pass: bool = switch(False, "train DeepLab-v2 on the masks")
    eval_deeplab_pass: bool = switch(False, "evaluate DeepLab-v2, without and with dense CRF")
    export_deeplab_pass: bool = switch(False, "export DeepLab-v2 as a program of torch.export")
    predict_pass: bool = switch(
        False, "segment photographs with DeepLab-v2; other steps run only if switched on, too", alone=True
    )
    show_pass: bool = switch(
        False,
        "write overlays of CAMs and masks, with names, colours and a legend; other steps run only if switched on, too "
        "(not in the original)",
        alone=True,
    )
    make_report_pass: bool = switch(
        False, "write one page of what was done so far: curves, tables, pictures (not in the original)"
    )

    def __post_init__(self) -> None:
        # A default of 7 and a given 7.0 are one setting, also in records, which compare what is written
        for name, annotation in _types().items():
            value = getattr(self, name)
            if annotation is float:
                object.__setattr__(self, name, float(value))
            elif annotation == tuple[float, ...]:
                object.__setattr__(self, name, tuple(map(float, value)))

    def only(self, names: Sequence[str]) -> dict[str, Any]:
        """{name: value} of some flags."""
        return {name: getattr(self, name) for name in names}

    @property
    def known_labels(self) -> str | None:
        """The label file of the images whose CAMs are made; None where the classifier finds their classes."""
        return self.label_file if self.labels_from == "file" else None

    @property
    def mask_cams(self) -> CamSource:
        """The CAM files that confident labels and masks are made from."""
        if self.masks_from == "advcam":
            return CamSource(self.advcam_out_dir, flag="advcam_out_dir", made_by="make_advcam")
        return CamSource(self.cam_out_dir, flag="cam_out_dir", made_by="make_cam")


@cache
def _types() -> dict[str, Any]:
    """{flag: its type}."""
    return typing.get_type_hints(Config)


STEP_SUFFIX = "_pass"
_SWITCHES = {item.name.removesuffix(STEP_SUFFIX): item for item in fields(Config) if item.name.endswith(STEP_SUFFIX)}
STEP_MODULES = {name: f"step.{item.metadata['module'] or name}" for name, item in _SWITCHES.items()}
"""{step: its module}, in the order in which steps run."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `InputError`s: one sentence, without the page of usage that all flags make."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        near = difflib.get_close_matches(unknown[1].split("=")[0], self._option_string_actions, 1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else "`python run_sample.py --help` lists the flags."
        raise InputError(f"{message}; {hint}")


def _element_type(annotation: Any) -> Any:
    """`int` of `int` and of `tuple[int, ...]`, and so on."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is tuple else annotation


def _check_range(name: str, value: Any, *, low: float | None, high: float | None, multiple_of: int | None) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if not math.isfinite(number):
            raise InputError(f"--{name} must be a finite number, got {number}.")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise InputError(f"--{name} must be {bounds}, got {number}.")
        if multiple_of is not None and number % multiple_of:
            raise InputError(f"--{name} must be a multiple of {multiple_of}, got {number}.")


LONGEST_PART, LONGEST_PATH = 240, 3800
"""Bytes of a file's name and of a path that a flag may give: systems take 255 and 4095, and endings are added."""


def _check_name(name: str, value: str, *, output: bool) -> None:
    """Raise `InputError` for text that no file or folder can be called, and for outputs without a name."""
    if output and not value:
        raise InputError(f"--{name} is empty; expected the name of a file or folder.")
    raw = os.fsencode(value)
    if any(len(part) > LONGEST_PART for part in raw.split(b"/")) or len(raw) > LONGEST_PATH:
        raise InputError(
            f"--{name} {value[:30]}... is too long; expected names of at most {LONGEST_PART} bytes, and a path of at "
            f"most {LONGEST_PATH} bytes."
        )


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="run_sample.py",
        description="W-OoD: from image labels and out-of-distribution images to pseudo segmentation masks.",
        allow_abbrev=False,
    )
    annotations, defaults = _types(), vars(Config())
    for item in fields(Config):
        annotation = annotations[item.name]
        options: dict[str, Any] = {}
        if typing.get_origin(annotation) is Literal:
            options["choices"] = typing.get_args(annotation)
        elif annotation is bool:
            options.update(type=parse_bool, metavar="True|False")
        else:
            element = _element_type(annotation)
            options.update(type=element, metavar=element.__name__.upper())
        if typing.get_origin(annotation) is tuple:
            options["nargs"] = "+"
        text = item.metadata["help"] + _told_default(defaults[item.name])
        parser.add_argument(f"--{item.name}", default=defaults[item.name], help=text.replace("%", "%%"), **options)
    return parser


def _told_default(value: Any) -> str:
    """For `--help`: the default as it would be typed, or nothing for one that is empty."""
    typed = " ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
    return f" (default: {typed})" if typed else ""


def given_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """{name: value} of the flags that the command line `arguments` gives (default: `sys.argv`), typed as in `Config`.

    Raises `InputError` for an unknown flag or a value of the wrong type.
    """
    absent = dict.fromkeys(item.name for item in fields(Config))  # what is there already gets no default
    values = vars(_make_parser().parse_args(arguments, argparse.Namespace(**absent)))
    given = {name: value for name, value in values.items() if value is not None}
    return {
        name: tuple(map(_at_home, value)) if isinstance(value, list) else _at_home(value)
        for name, value in given.items()
    }


def _at_home(value: Any) -> Any:
    """A path with the user's folder in the place of `~`, which no shell replaces after `--flag=`."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def parse_config(arguments: Sequence[str] | None = None, *, explain: Callable[[str], None] | None = None) -> Config:
    """The configuration that the command line `arguments` asks for (default: `sys.argv`).

    Flags that are not given have the recipe's values, or else the original's, those of outputs in `work_dir`. In the
    result `recipe` is the one that was taken, never `auto`.

    Args:
        explain: called with each sentence on what the recipe chose by what is in place, and on steps that are left out.

    Raises `InputError` for an unknown flag or recipe, a value of the wrong type or out of range.
    """
    given, defaults = given_flags(arguments), dict(vars(Config()))
    if any(given.get(item.name) for item in _SWITCHES.values() if item.metadata["alone"]):
        defaults |= switches()  # before or after the chain, not a step of it
    name, sentences = choose_recipe(given, voc12_root=defaults["voc12_root"])
    recipe = RECIPES[name]
    placed = in_work_dir({**defaults, **recipe.flags}, given.get("work_dir", ""))
    imported, of_import = fit_to_imported({**placed, **given, "recipe": name}, given)
    fixed = {**imported, **given, "recipe": name}  # what no recipe changes
    fitted, of_recipe = ({}, []) if recipe.fit is None else recipe.fit({**placed, **fixed}, {**imported, **given})
    values = {**placed, **fitted, **fixed}
    left_out, of_masks = evaluations_left_out(values, given)
    values |= left_out
    sentences = [*dict.fromkeys([*sentences, *of_recipe, *of_import, *of_masks])]
    values |= _with_backbone(values)
    for item in fields(Config):
        if isinstance(values[item.name], str):
            _check_name(item.name, values[item.name], output=item.metadata["output"])
        ranges = {key: item.metadata[key] for key in ("low", "high", "multiple_of")}
        if ranges["low"] is not None:
            _check_range(item.name, values[item.name], **ranges)
    low_high = values["cam_resize_long"]
    if len(low_high) != 2 or low_high[0] > low_high[1]:
        raise InputError(
            f"--cam_resize_long must be two numbers, the smaller first, got {' '.join(map(str, low_high))}."
        )
    for step in values["redo"]:
        if step not in (*STEP_MODULES, ALL_STEPS):
            near = difflib.get_close_matches(step, STEP_MODULES, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected steps, such as make_cam, or {ALL_STEPS}."
            raise InputError(f"--redo: there is no step {step}; {hint}")
    if explain is not None:
        for sentence in [
            *sentences,
            *_on_steps_left_out(values, {**fitted, **left_out, **fixed}),
            *_on_steps_not_redone(values),
        ]:
            explain(sentence)
    return Config(**values)


def _on_steps_not_redone(values: Mapping[str, Any]) -> list[str]:
    """What to tell the user of steps that `redo` names and the run does not have. (The sample has several runs.)"""
    if values["sample"]:
        return []
    absent = [step for step in values["redo"] if step != ALL_STEPS and not values[f"{step}{STEP_SUFFIX}"]]
    return [
        f"notice: --redo {step}: it is not among the steps of this run, and is not done again; add "
        f"--{step}{STEP_SUFFIX} True, where it is meant to run."
        for step in absent
    ]


def _on_steps_left_out(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """What to tell the user of steps of a bare call that are off for a step that runs alone, beside further steps.

    `chosen`: the flags that the user, the data or the recipe has chosen.
    """
    bare = [name for name, item in _SWITCHES.items() if vars(Config())[item.name]]
    on = {name: item.metadata["alone"] for name, item in _SWITCHES.items() if values[item.name]}
    left_out = [name for name in bare if not values[f"{name}{STEP_SUFFIX}"] and f"{name}{STEP_SUFFIX}" not in chosen]
    alone = [name for name, is_alone in on.items() if is_alone]
    before = [*_SWITCHES][: [*_SWITCHES].index(bare[0])]  # steps that use nothing of what a bare call makes
    others = [name for name, is_alone in on.items() if not is_alone and name not in before]
    if not (alone and others and left_out):
        return []
    return [
        f"notice: beside --{alone[0]}_pass only steps that are switched on run: {', '.join(left_out)} do not, and "
        f"{', '.join(others)} would use what earlier runs have left; add --{left_out[0]}_pass True and so on, where "
        "they are meant to run."
    ]


def _with_backbone(values: Mapping[str, Any]) -> dict[str, str]:
    """The flags of the networks, with `--backbone` added to those that don't name their own."""
    networks = {name: values[name] for name in NETWORKS}
    if not values["backbone"]:
        return networks
    return {
        name: network if BACKBONE_MARK in network else f"{network}{BACKBONE_MARK}{values['backbone']}"
        for name, network in networks.items()
    }


def in_work_dir(values: Mapping[str, Any], work_dir: str) -> dict[str, Any]:
    """{flag name: value} with relative paths of outputs put into the folder `work_dir`; empty: as they are."""
    outputs = {item.name for item in fields(Config) if item.metadata["output"]} if work_dir else set()
    return {name: str(Path(work_dir, value)) if name in outputs else value for name, value in values.items()}


def to_arguments(flags: Mapping[str, Any]) -> list[str]:
    """{flag name: value} as the words of a command line; tuples and lists become several words."""
    words: list[str] = []
    for name, value in flags.items():
        values = value if isinstance(value, tuple | list) else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def switches(*enabled: str) -> dict[str, bool]:
    """Every step's switch: on for the steps named, off for all others."""
    return {f"{name}{STEP_SUFFIX}": name in enabled for name in STEP_MODULES}


def deeplab_list_flag(values: Mapping[str, Any]) -> str:
    """The flag that names the images of train_deeplab, given the values of all flags."""
    return "deeplab_train_list" if values.get("deeplab_train_list") else "infer_list"


def show_list_flag(values: Mapping[str, Any]) -> str:
    """The flag that names the images of show, given the values of all flags."""
    return "show_list" if values.get("show_list") else "infer_list"


def changed_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are flags, no switches, and differ from the defaults.

    Not `recipe` and `sample`: what these chose is among the other flags. Outputs at their place in `work_dir` are no
    change.
    """
    defaults = in_work_dir(vars(Config()), values.get("work_dir", ""))
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {
        name: value
        for name, value in plain.items()
        if name in defaults.keys() - {"recipe", "sample"} and not name.endswith(STEP_SUFFIX) and value != defaults[name]
    }


def enabled_steps(config: Config) -> list[str]:
    """Names of the steps that are switched on, in the order in which they run."""
    return [name for name in STEP_MODULES if getattr(config, f"{name}{STEP_SUFFIX}")]
