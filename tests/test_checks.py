"""Every line of every step's `check`: each kind of wrong input is told in its sentence before the step begins."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from support import (
    CAM_START,
    CAM_WEIGHTS,
    DEEPLAB_WEIGHTS,
    IRN_WEIGHTS,
    ToyData,
    make_all_inputs,
    make_toy_data,
)
from torch import nn

import run_sample
from misc.errors import InputError
from misc.files.checkpointfile import classes_beside
from misc.run.config import STEP_MODULES, parse_config, switches
from misc.run.plan import Plan
from net.weights import save_weights
from step import make_report
from tests import own_network
from voc12.classes import write_classes


@pytest.fixture(autouse=True)
def exports_networks(monkeypatch):
    """The checks of a PyTorch that can export them, whatever this one is."""
    monkeypatch.setattr("step.export_deeplab.can_export", lambda: True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> ToyData:
    data = make_toy_data(tmp_path_factory.mktemp("prepared"))
    make_all_inputs(data)
    return data


@pytest.fixture
def ready(prepared, tmp_path, monkeypatch) -> ToyData:
    """A copy of the toy data with all inputs of all steps, in whose working directory the test runs; no step runs."""
    old, new = prepared.work.parent, tmp_path / "data"
    shutil.copytree(old, new)
    moved = {name: new / getattr(prepared, name).relative_to(old) for name in ("root", "ood_root", "ood_list", "work")}
    monkeypatch.chdir(moved["work"])
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
    return replace(prepared, **moved)


def arguments(toy: ToyData, *steps: str, **flags: object) -> list[str]:
    of_steps = {"predict_input": "photos", "download": "resnet50", "import_from": "sorted", "ood_pool": "photos"}
    if "import_data" in steps:
        of_steps["voc12_root"] = "mine"
    return toy.flags(**of_steps | switches(*steps) | flags)


@dataclass(frozen=True)
class Damage:
    """What a row of the table does to a file, given as a path relative to the folder of devkit, ood and work."""

    path: str

    def __call__(self, toy: ToyData) -> None:
        raise NotImplementedError

    def file(self, toy: ToyData) -> Path:
        return toy.work.parent / self.path


class Lost(Damage):
    def __call__(self, toy: ToyData) -> None:
        file = self.file(toy)
        shutil.rmtree(file) if file.is_dir() else file.unlink()


class Cut(Damage):
    def __call__(self, toy: ToyData) -> None:
        content = self.file(toy).read_bytes()
        self.file(toy).write_bytes(content[: len(content) // 2])


class Resized(Damage):
    def __call__(self, toy: ToyData) -> None:
        Image.new("L", (9, 9)).save(self.file(toy))


@dataclass(frozen=True)
class Text(Damage):
    text: str

    def __call__(self, toy: ToyData) -> None:
        self.file(toy).parent.mkdir(parents=True, exist_ok=True)
        self.file(toy).write_text(self.text)


@dataclass(frozen=True)
class Network(Damage):
    network: type
    n_classes: int

    def __call__(self, toy: ToyData) -> None:
        save_weights(self.network(n_classes=self.n_classes), self.file(toy))


NO_DEVKIT = ({"voc12_root": "nowhere"}, "--voc12_root nowhere is missing; expected a VOC devkit")
NO_CLASSES = ({"class_list": "none.txt"}, "class list none.txt can't be read")
OTHER_CLASSES = Text("devkit/classes.txt", "aeroplane\nbottle\n")
ANOTHER_ORDER = Text("devkit/classes.txt", "aeroplane\ntrain\nbottle\n")


def no_list(flag: str) -> tuple:
    return {flag: "none.txt"}, f"--{flag}: list none.txt is missing"


def no_labels() -> tuple:
    return {"label_file": "none.npy"}, "label file none.npy is missing"


def no_module(flag: str) -> tuple:
    return {flag: "net.nothing"}, f"--{flag}: network module net.nothing can't be imported"


def no_checkpoint(path: str) -> tuple:
    return Lost(f"work/{path}"), f"checkpoint {path} is missing"


def other_names(weights: str, data: Text, difference: str) -> tuple:
    """The data has other classes than those that lie beside a checkpoint."""
    names = classes_beside(weights)
    return data, (
        rf"{weights} was trained on other classes than those of --voc12_root .*/devkit: {difference.format(names)}; "
        r"correct --voc12_root or --class_list, train the weights anew where the classes have changed, or "
        rf"remove {names} if it is of other weights\."
    )


def wrong_order(weights: str) -> tuple:
    return other_names(weights, ANOTHER_ORDER, "class 2 is bottle in {}, train in the data")


def missing_class(weights: str) -> tuple:
    return other_names(weights, OTHER_CLASSES, "class 3 is train in {}, no class in the data")


def not_writable(flag: str) -> tuple:
    return {flag: "photos/a.jpg/x"}, f"--{flag}: can't write into photos/a.jpg"


def cut_image(number: int, total: int, folder: str = "devkit/JPEGImages") -> tuple:
    path = f"{folder}/2099_{number:06d}.jpg"
    return Cut(path), rf"1 of {total} images can't be used \(.*{path}; image file is truncated"


def lost_output(folder: str, suffix: str, flag: str, list_flag: str, made_by: str) -> tuple:
    sentence = rf"--{flag}: {folder} lacks 1 of the 6 images of --{list_flag} \(2099_000001\); run {made_by} on"
    return Lost(f"work/{folder}/2099_000001{suffix}"), sentence


def evaluation(folder: str, suffix: str, flag: str, made_by: str) -> list[tuple]:
    """What every evaluation on `chainer_eval_set` checks."""
    return [
        NO_DEVKIT,
        NO_CLASSES,
        ({"chainer_eval_set": "none"}, r"--chainer_eval_set: list .*none\.txt is missing"),
        lost_output(folder, suffix, flag, "chainer_eval_set", made_by),
        (Lost("devkit/SegmentationClass/2099_000001.png"), r"1 of 6 ground-truth masks are not in .*\(2099_000001\)"),
        (Resized("devkit/SegmentationClass/2099_000001.png"), "the mask has 9 x 9 pixels, its image 48 x 64"),
        (OTHER_CLASSES, "the mask has class id 3, the class list ends at 2"),
    ]


def of_maps(out_flag: str) -> list[tuple]:
    """What make_cam and make_advcam check."""
    sentence = r"classifier.weight has shape \(3, 64, 1, 1\), expected \(2, 64, 1, 1\)"
    return [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        no_labels(),
        no_module("cam_network"),
        no_checkpoint(CAM_WEIGHTS),
        wrong_order(CAM_WEIGHTS),
        missing_class(CAM_WEIGHTS),
        (Lost(f"work/{classes_beside(CAM_WEIGHTS)}"), OTHER_CLASSES, sentence),  # taken at its word
        not_writable(out_flag),
        cut_image(1, 6),
    ]


def of_masks(out_flag: str) -> list[tuple]:
    """What make_sem_seg and make_ins_seg check."""
    return [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("infer_list"),
        lost_output("result/cam_ood", ".npy", "cam_out_dir", "infer_list", "make_cam"),
        no_module("irn_network"),
        no_checkpoint(IRN_WEIGHTS),
        not_writable(out_flag),
        cut_image(1, 6),
    ]


NO_CAMS = Lost("work/result/cam_ood")
REVIEW = Text("work/r.csv", "file,shows_object\nphotos/a.jpg,0\n")
OTHER_CLASSES_OF_DEEPLAB = Network(f"work/{DEEPLAB_WEIGHTS}", own_network.DeepLab, 9)
DEEPLAB_SHAPES = r"aspp.c0.weight has shape \(9, 64, 3, 3\), expected \(4, 64, 3, 3\)"


def table(text: str, images: str = "sorted") -> tuple:
    """A table of labels that is imported."""
    return {"import_from": "t.csv", "import_images": images}, Text("work/t.csv", text)


def coco(text: str = "", **parts: list) -> tuple:
    """A COCO file that is imported: one image and a category, with these parts instead of theirs."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 7}],
        "categories": [{"id": 7, "name": "cat"}],
        **parts,
    }
    flags = {"import_from": "c.json", "import_images": "sorted/cat"}
    return flags, Text("work/c.json", text or json.dumps(content))


WRONG: dict[str, list[tuple]] = {
    "download": [
        ({"download": "voc"}, "--download voc is not known; expected some of authors, voc_aug, "),
        ({"download_from": "resnet50"}, "--download_from resnet50 must be NAME=ADDRESS or NAME=FILE"),
        ({"download_from": "resnet50=none.pth"}, "there is no file none.pth, and it is no address"),
        (
            Text("work/sess/resnet50-0676ba61.pth", "text"),
            "resnet50-0676ba61.pth is there, but is not the published file",
        ),
        (
            {"download": "voc_aug", "download_from": "voc_aug=http://host/file"},
            Lost("devkit/SegmentationClassAug"),
            Text("devkit/SegmentationClassAug", "text"),
            r"SegmentationClassAug is there, but lacks SegmentationClassAug/\*\.png; move it away first",
        ),
        (
            {
                "download": "ood_list",
                "download_from": "ood_list=http://host/file",
                "ood_list": "photos/a.jpg/x/list.txt",
            },
            "--ood_list: can't write into .*photos/a.jpg/x",
        ),
    ],
    "import_data": [
        ({"import_from": ""}, "import_data needs --import_from; expected a folder with one subfolder a class, a COCO"),
        ({"import_from": "nowhere"}, "--import_from nowhere is missing; expected"),
        ({"import_from": "photos/a.jpg"}, "--import_from photos/a.jpg is none of the kinds that are read"),
        ({"import_images": "photos"}, "--import_images is for tables and COCO files"),
        ({"voc12_root": parse_config([]).voc12_root}, "needs --voc12_root, a folder of its own such as Data/mine"),
        ({"voc12_root": f"./{parse_config([]).voc12_root}/"}, "needs --voc12_root, a folder of its own"),
        ({"voc12_root": "../devkit"}, "--voc12_root ../devkit is there and was not made by import_data"),
        ({"voc12_root": "sorted/mine"}, "--voc12_root sorted/mine and --import_from sorted lie within each other"),
        ({"voc12_root": "."}, r"--voc12_root \. and --import_from sorted lie within each other"),
        ({"voc12_root": "photos/a.jpg/x"}, "--voc12_root: can't write into photos/a.jpg/x"),
        (Text("work/mine/import.csv", "a,b\n"), "mine/import.csv can't be read .its first line is not id,file,source"),
        # Folders
        ({"import_from": "photos"}, "--import_from photos has no subfolders; expected one subfolder a class"),
        ({"import_no_class": "cats"}, "--import_no_class cats is no subfolder of sorted; did you mean cat?"),
        ({"import_no_class": "cat"}, "--import_from sorted has no class"),
        (
            {"import_from": "splits"},
            Text("work/splits/train/cat/a.jpg", ""),
            "--import_from splits has the subfolders train; .* did you mean --import_from splits/train",
        ),
        (
            {"import_from": "splits"},
            *(Text(f"work/splits/{name}/cat/a.jpg", "") for name in ("Val", "extra", "train")),
            "splits has the subfolders Val, train; expected one subfolder a class, .* did you mean .* splits/Val",
        ),
        (
            {"import_from": "yolo"},
            *(Text(f"work/yolo/{name}", "") for name in ("Images/train/a.jpg", "labels/train/a.txt")),
            "--import_from yolo: of its subfolders Images alone has images, which names no class; expected",
        ),
        ({"import_from": "empty"}, Text("work/empty/cat/a.txt", ""), "the subfolders cat have no images"),
        (Text("work/sorted/background/a.jpg", ""), "folder 'background' would become a class .*--import_no_class"),
        (Text("work/sorted/a;b/a.jpg", ""), "folder 'a;b' has ;, which no class name may"),
        (Text("work/sorted/Cat/a.jpg", ""), "the classes 'Cat' and 'cat' differ in no letter"),
        # Tables
        (*table("cat/a.jpg,cat"), "t.csv begins with 'cat/a.jpg,cat'; expected a first line `file,labels`"),
        (*table("file,labels,split\n"), "t.csv has the column 'split' after labels"),
        (*table("file,cat,cat\n"), "t.csv names a class twice"),
        (*table("file,labels\ncat/a.jpg\n"), "t.csv, line 2: expected 2 columns"),
        (*table("file,cat\ncat/a.jpg,-1\n"), "t.csv, line 2: class cat has the value '-1', expected 0 or 1"),
        (*table("file,labels\n"), "t.csv names no image"),
        (
            *table('file,labels\na.jpg,"cat,dog"\nb.jpg,dog\n'),
            r"t.csv has the label 'cat,dog', .* goes ; or \|, without",
        ),
        (
            *table('file,labels\na.jpg,"cow, cat"\nb.jpg,dog;cat\n'),
            "has the label 'cow, cat', which looks like several;",
        ),
        (*table("file;labels\na.jpg;['cat', 'dog']\n"), r't.csv has the label "\[\'cat\', \'dog\'\]", which looks'),
        (*table("file,labels\na.jpg,[]\n"), r"t.csv has the label '\[\]', which looks like several; between"),
        *(
            (
                *table(f"file,{name}\ncat/a.jpg,{value}\n"),
                f"column '{name}' alone, which names no class; call it `labels`",
            )
            for name, value in (("class", 1), ("Category", "cat"), ("target", 0), ("y", "dog"))
        ),
        (
            *table("file,class,split\ncat/a.jpg,cat,train\n"),
            "class class has the value 'cat', expected 0 or 1; a column with the names of classes is called `labels`",
        ),
        (*table("file,labels\nb.jpg,cat\n"), r"none of its 1 images is in sorted \(b.jpg\); pass --import_images"),
        (*table("file,labels\na.jpg,\n", images="sorted/cat"), "t.csv has no class"),
        (*table("file,labels\na.jpg,cat\n", images="nowhere"), "--import_images nowhere is no folder"),
        (
            {"import_no_class": "no"},
            *table("file,labels\ncat/a.jpg,cat\n"),
            "--import_no_class no is no label",
        ),
        (*table("file,labels\ncat/a.jpg,cat;none\n"), "class 'none' would become a class of that name"),
        # COCO files
        (*coco("{"), "c.json can't be read .* expected a COCO file of annotations"),
        (*coco("[]"), "c.json holds a list, as results of a detector"),
        (*coco('{"images": []}'), "c.json has no list 'annotations' of objects"),
        ({"import_no_class": "none"}, *coco("{}"), "--import_no_class is for folders and tables"),
        (*coco(images=[{"id": 1}]), "an image has no id or no file_name"),
        (*coco(images=2 * [{"id": 1, "file_name": "a.jpg"}]), "two images have one id"),
        (
            *coco(annotations=[{"image_id": 2, "category_id": 7}]),
            "an annotation has the image_id 2",
        ),
        (*coco(annotations=[{"image_id": 1, "category_id": 8}]), "an annotation has the category_id 8"),
        (*coco(categories=[{"id": "x", "name": "cat"}]), "each category needs a name and an id of its own"),
        (*coco(categories=[{"id": 7, "name": "cat"}, {"id": 8, "name": "cat"}]), "the classes 'cat' and 'cat'"),
        (
            *coco(annotations=[{"image_id": 1, "category_id": 7, "segmentation": "x"}]),
            "annotation None has no polygons or run lengths",
        ),
        (*coco(images=[{"id": 1, "file_name": "b.jpg"}]), r"none of its 1 images is in sorted/cat \(b.jpg\)"),
    ],
    "train_classifier": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        no_list("val_list"),
        no_labels(),
        (
            Text("devkit/Annotations/2099_000002.xml", "<annotation/>"),
            r"--train_list: 1 images carry none of the classes \(2099_000002\)",
        ),
        ({"cam_batch_size": 7}, r"--train_list has 6 images, fewer than one batch \(--cam_batch_size 7\)"),
        no_module("cam_network"),
        ({"imagenet_weights": "none.pth"}, "checkpoint none.pth is missing"),
        not_writable("cam_init_weights_name"),
        cut_image(1, 8),
        cut_image(8, 8),  # of the validation images
    ],
    "mine_ood": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        no_module("cam_network"),
        no_checkpoint(CAM_START),
        wrong_order(CAM_START),
        missing_class(CAM_START),
        ({"ood_pool": ()}, "mine_ood needs --ood_pool; expected one or more folders"),
        ({"ood_pool": "nowhere"}, "--ood_pool nowhere is missing; expected a folder of images"),
        ({"ood_pool": "sess"}, "--ood_pool sess has no images; expected files .jpg"),
        ({"ood_pool_labels": "none.csv"}, "--ood_pool_labels: none.csv is missing"),
        ({"ood_label_names": "none.csv"}, "--ood_label_names: none.csv is missing"),
        not_writable("ood_mine_dir"),
        ({"ood_review": "none.csv"}, "--ood_review: none.csv is missing"),
        ({"ood_review": "r.csv", **not_writable("ood_root")[0]}, REVIEW, not_writable("ood_root")[1]),
        (
            {"ood_review": "r.csv", "ood_list": "photos"},
            REVIEW,
            "--ood_list photos is a folder; expected the name of a",
        ),
        ({"ood_review": "r.csv"}, REVIEW, "--ood_list .*/ood_list.txt is there, and mine_ood has not made it; name"),
    ],
    "train_cam": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        no_labels(),
        (
            Text("devkit/Annotations/2099_000002.xml", "<annotation/>"),
            r"--train_list: 1 images carry none of the classes \(2099_000002\)",
        ),
        ({"cam_batch_size": 7}, r"--train_list has 6 images, fewer than one batch \(--cam_batch_size 7\)"),
        no_list("ood_list"),
        ({"ood_root": "nowhere"}, "--ood_root nowhere is missing"),
        ({"ood_batch_size": 6}, r"--ood_list has 5 images, fewer than one batch \(--ood_batch_size 6\)"),
        (
            {"ood_coeff": 0, "ood_batch_size": 6, "cluster_K": 6},
            "--cluster_K 6 is more than the 5 images of --ood_list",
        ),
        ({"ood_ignore_class": "spoon"}, "--ood_ignore_class spoon is no class of the data set"),
        no_module("cam_network"),
        no_checkpoint(CAM_START),
        wrong_order(CAM_START),
        (
            Network(f"work/{CAM_START}", own_network.Net, 20),
            r"classifier.weight has shape \(20, 64, 1, 1\), expected \(3, 64, 1, 1\)",
        ),
        not_writable("cam_weights_name"),
        ({"cam_weights_name": "new/"}, "--cam_weights_name new/ is a folder; expected the name of a checkpoint"),
        cut_image(1, 11),
        (Cut("ood/scene3.jpg"), r"1 of 11 images can't be used \(.*ood/scene3.jpg; "),
        (
            # An image that is looked at for the checkpoint alone
            {"train_list": "voc12/val.txt", "cam_select": "best_miou"},
            Cut("devkit/JPEGImages/2099_000001.jpg"),
            r"1 of 6 images can't be used \(.*2099_000001.jpg; image file is truncated",
        ),
        (Resized("devkit/SegmentationClass/2099_000001.png"), "the mask has 9 x 9 pixels, its image 48 x 64"),
    ],
    "make_cam": of_maps("cam_out_dir"),
    "make_advcam": of_maps("advcam_out_dir"),
    "eval_cam": evaluation("result/cam_ood", ".npy", "cam_out_dir", "make_cam"),
    "eval_advcam": evaluation("result/cam_ood_advcam", ".npy", "advcam_out_dir", "make_advcam"),
    "cam_to_ir_label": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        lost_output("result/cam_ood", ".npy", "cam_out_dir", "train_list", "make_cam"),
        not_writable("ir_label_out_dir"),
        cut_image(1, 6),
    ],
    "eval_ir_label": evaluation("result/ir_label", ".png", "ir_label_out_dir", "cam_to_ir_label"),
    "train_irn": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("train_list"),
        no_list("infer_list"),
        ({"irn_batch_size": 7}, r"--train_list has 6 images, fewer than one batch \(--irn_batch_size 7\)"),
        lost_output("result/ir_label", ".png", "ir_label_out_dir", "train_list", "cam_to_ir_label"),
        no_module("irn_network"),
        ({"imagenet_weights": "none.pth"}, "checkpoint none.pth is missing"),
        not_writable("irn_weights_name"),
        cut_image(1, 6),
        ({"infer_list": "voc12/val.txt"}, *cut_image(8, 8)),
    ],
    "make_sem_seg": of_masks("sem_seg_out_dir"),
    "eval_sem_seg": evaluation("result/sem_seg_ood", ".png", "sem_seg_out_dir", "make_sem_seg"),
    "make_ins_seg": of_masks("ins_seg_out_dir"),
    "eval_ins_seg": [
        *evaluation("result/ins_seg_ood", ".npy", "ins_seg_out_dir", "make_ins_seg"),
        (Lost("devkit/SegmentationObject/2099_000001.png"), r"1 of 6 instance masks are not in .*\(2099_000001\)"),
        (Resized("devkit/SegmentationObject/2099_000001.png"), "is not of the size of its mask in SegmentationClass"),
    ],
    "make_cocoann": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("infer_list"),
        lost_output("result/ins_seg_ood", ".npy", "ins_seg_out_dir", "infer_list", "make_ins_seg"),
        not_writable("cocoann_path"),
        ({"cocoann_path": "result"}, "--cocoann_path result is a folder; expected the name of a JSON file"),
        cut_image(1, 6),
    ],
    "train_deeplab": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("infer_list"),
        no_list("deeplab_train_list"),
        ({"deeplab_batch_size": 7}, r"--infer_list has 6 images, fewer than one batch \(--deeplab_batch_size 7\)"),
        lost_output("result/sem_seg_ood", ".png", "sem_seg_out_dir", "infer_list", "make_sem_seg"),
        (
            {"deeplab_mask_dir": "result/ir_label", "deeplab_train_list": "voc12/train.txt"},
            *lost_output("result/ir_label", ".png", "deeplab_mask_dir", "deeplab_train_list", "make_sem_seg"),
        ),
        (Resized("work/result/sem_seg_ood/2099_000001.png"), "the mask has 9 x 9 pixels, its image 48 x 64"),
        (OTHER_CLASSES, "the mask has class id 3, the class list ends at 2"),
        no_module("deeplab_network"),
        ({"deeplab_init_weights": "none.pth"}, "checkpoint none.pth is missing"),
        not_writable("deeplab_weights_name"),
        cut_image(1, 6),
    ],
    "eval_deeplab": [
        NO_DEVKIT,
        NO_CLASSES,
        ({"deeplab_eval_set": "none"}, r"--deeplab_eval_set: list .*none\.txt is missing"),
        wrong_order(DEEPLAB_WEIGHTS),
        missing_class(DEEPLAB_WEIGHTS),
        no_module("deeplab_network"),
        no_checkpoint(DEEPLAB_WEIGHTS),
        (OTHER_CLASSES_OF_DEEPLAB, DEEPLAB_SHAPES),
        (
            Lost("devkit/SegmentationClass/2099_000007.png"),
            r"1 of 2 ground-truth masks are not in .*\(2099_000007\); correct --deeplab_eval_set",
        ),
        not_writable("deeplab_out_dir"),
        not_writable("deeplab_crf_out_dir"),
        (
            {"deeplab_eval_set": "test", **not_writable("deeplab_server_dir")[0]},
            Text("devkit/ImageSets/Segmentation/test.txt", "2099_000007\n"),
            not_writable("deeplab_server_dir")[1],
        ),
        cut_image(8, 2),
    ],
    "export_deeplab": [
        NO_CLASSES,
        (Text("work/sess/deeplab_v2_ood.classes.txt", "a\na\n"), "must hold 1 to 254 different names"),
        no_module("deeplab_network"),
        no_checkpoint(DEEPLAB_WEIGHTS),
        (OTHER_CLASSES_OF_DEEPLAB, DEEPLAB_SHAPES),
        ({"deeplab_export_name": "sess/a.pth"}, r"--deeplab_export_name sess/a.pth must end in .pt2"),
        ({"deeplab_export_name": "photos/a.jpg/x.pt2"}, "--deeplab_export_name: can't write into photos/a.jpg"),
    ],
    "predict": [
        NO_CLASSES,
        (Text("work/sess/deeplab_v2_ood.classes.txt", "a\na\n"), "must hold 1 to 254 different names"),
        ({"predict_input": "nowhere"}, "--predict_input nowhere is missing"),
        (
            {"predict_out_dir": "photos"},
            "--predict_input and --predict_out_dir are both photos: predict would write over",
        ),
        no_module("deeplab_network"),
        no_checkpoint(DEEPLAB_WEIGHTS),
        (OTHER_CLASSES_OF_DEEPLAB, DEEPLAB_SHAPES),
        not_writable("predict_out_dir"),
        (Cut("work/photos/a.jpg"), r"1 of 1 images can't be used \(photos/a.jpg; "),
    ],
    "show": [
        NO_DEVKIT,
        NO_CLASSES,
        no_list("infer_list"),
        no_list("show_list"),
        (NO_CAMS, *wrong_order(CAM_WEIGHTS)),
        (NO_CAMS, *no_module("cam_network")),
        (NO_CAMS, *no_checkpoint(CAM_WEIGHTS)),
        (NO_CAMS, {"label_file": "none.npy"}, "label file none.npy is missing.*; or pass --labels_from classifier"),
        not_writable("show_out_dir"),
        (Resized("work/result/sem_seg_ood/2099_000001.png"), "the mask has 9 x 9 pixels, its image 48 x 64"),
        (OTHER_CLASSES, "the mask has class id 3, the class list ends at 2"),
        (
            {"show_out_dir": "../devkit/JPEGImages"},
            "--show_out_dir ../devkit/JPEGImages is among the data of --voc12_root",
        ),
        cut_image(1, 6),
    ],
    "make_report": [NO_DEVKIT, NO_CLASSES, not_writable("result_dir")],
}
CASES = [
    pytest.param(step, row[:-1], row[-1], id=f"{step}-{number}")
    for step, rows in WRONG.items()
    for number, row in enumerate(rows)
]


def test_every_step_is_in_the_table():
    assert WRONG.keys() == STEP_MODULES.keys()


def files_of(toy: ToyData) -> dict[Path, int]:
    """What lies in the working directory beside the log and the records of what was checked."""
    files = (path for path in toy.work.rglob("*") if path.is_file() and "voc12" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files if path.suffix != ".log"}


@pytest.mark.parametrize(("step", "wrong", "sentence"), CASES)
def test_wrong_input_is_told_before_the_step_begins(ready, step, wrong, sentence):
    flags = {}
    for change in wrong:
        flags.update(change) if isinstance(change, dict) else change(ready)
    before = files_of(ready)
    with pytest.raises(InputError, match=sentence) as caught:
        run_sample.run(arguments(ready, step, **flags))
    assert "\n" not in str(caught.value)
    assert files_of(ready) == before


@pytest.mark.parametrize("step", WRONG)
def test_sound_input_passes(ready, step, monkeypatch):
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    run_sample.run(arguments(ready, step))
    assert begun == [step]


@pytest.mark.parametrize(
    ("step", "flags"), [("cam_to_ir_label", {}), ("eval_deeplab", {}), ("predict", {"predict_crf": True})]
)
def test_a_dense_crf_that_is_missing_is_told(ready, monkeypatch, step, flags):
    monkeypatch.setattr("misc.crf.has_pydensecrf", lambda: False)
    with pytest.raises(InputError, match="--crf pydensecrf: pydensecrf is not installed"):
        run_sample.run(arguments(ready, step, crf="pydensecrf", **flags))


@pytest.mark.parametrize(
    ("step", "flags"),
    [
        ("train_classifier", {"cam_batch_size": 6}),
        ("train_cam", {"cam_batch_size": 6, "ood_batch_size": 5, "cluster_K": 5}),
        ("train_cam", {"ood_coeff": 0, "ood_batch_size": 9}),  # no batch of them is drawn
        ("train_cam", {"distance_lambda": 0, "cluster_K": 9}),  # no cluster is made
        ("train_cam", {"ood_coeff": 0, "distance_lambda": 0, "ood_root": "nowhere"}),  # none is read
        ("train_cam", {"cam_select": "last"}),
        ("train_irn", {"irn_batch_size": 6}),
        ("train_deeplab", {"deeplab_batch_size": 6}),
        ("eval_deeplab", {"deeplab_crf": False, "deeplab_crf_out_dir": "photos/a.jpg/x", "crf": "pydensecrf"}),
        ("predict", {"crf": "pydensecrf"}),  # without --predict_crf
    ],
)
def test_just_enough_and_what_is_not_used_pass(ready, monkeypatch, step, flags):
    monkeypatch.setattr("misc.crf.has_pydensecrf", lambda: False)
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    monkeypatch.setattr("step.train_cam.n_processes", lambda: 5)
    run_sample.run(arguments(ready, step, **flags))
    assert begun == [step]


HANDED_ON = [
    ("train_classifier", "train_cam", CAM_START),
    ("train_classifier", "mine_ood", CAM_START),
    ("train_cam", "make_cam", CAM_WEIGHTS),
    ("train_cam", "make_advcam", CAM_WEIGHTS),
    ("make_cam", "eval_cam", "result/cam_ood"),
    ("make_cam", "cam_to_ir_label", "result/cam_ood"),
    ("make_cam", "make_sem_seg", "result/cam_ood"),
    ("make_cam", "make_ins_seg", "result/cam_ood"),
    ("make_advcam", "eval_advcam", "result/cam_ood_advcam"),
    ("cam_to_ir_label", "eval_ir_label", "result/ir_label"),
    ("cam_to_ir_label", "train_irn", "result/ir_label"),
    ("train_irn", "make_sem_seg", IRN_WEIGHTS),
    ("train_irn", "make_ins_seg", IRN_WEIGHTS),
    ("make_sem_seg", "eval_sem_seg", "result/sem_seg_ood"),
    ("make_sem_seg", "train_deeplab", "result/sem_seg_ood"),
    ("make_ins_seg", "eval_ins_seg", "result/ins_seg_ood"),
    ("make_ins_seg", "make_cocoann", "result/ins_seg_ood"),
    ("train_deeplab", "eval_deeplab", DEEPLAB_WEIGHTS),
    ("train_deeplab", "export_deeplab", DEEPLAB_WEIGHTS),
    ("train_deeplab", "predict", DEEPLAB_WEIGHTS),
]


@pytest.mark.parametrize(("maker", "reader", "output"), HANDED_ON, ids=lambda value: value)
def test_what_an_earlier_step_makes_may_be_missing(ready, monkeypatch, maker, reader, output):
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    Lost(f"work/{output}")(ready)
    run_sample.run(arguments(ready, maker, reader))
    assert begun == [maker, reader]


WITH_NAMES = [row for row in HANDED_ON if row[-1] in (CAM_START, CAM_WEIGHTS, DEEPLAB_WEIGHTS)]


@pytest.mark.parametrize(("maker", "reader", "weights"), WITH_NAMES, ids=lambda value: value)
def test_names_beside_a_checkpoint_that_will_be_replaced_do_not_count(ready, monkeypatch, maker, reader, weights):
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    write_classes(classes_beside(weights), ["cat", "dog", "cow"])
    run_sample.run(arguments(ready, maker, reader))
    assert begun == [maker, reader]


@pytest.mark.parametrize("step", ["make_cam", "make_advcam", "train_cam", "eval_deeplab"])
def test_a_checkpoint_without_names_is_taken_at_its_word(ready, monkeypatch, step):
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    for weights in (CAM_START, CAM_WEIGHTS, DEEPLAB_WEIGHTS):
        classes_beside(weights).unlink()
    ANOTHER_ORDER(ready)
    run_sample.run(arguments(ready, step))
    assert begun == [step]


@pytest.mark.parametrize(
    ("maker", "list_of_maker", "reader", "output"),
    [
        ("make_cam", "train_list", "eval_cam", "result/cam_ood"),
        ("make_cam", "train_list", "make_sem_seg", "result/cam_ood"),
        ("make_advcam", "train_list", "eval_advcam", "result/cam_ood_advcam"),
        ("cam_to_ir_label", "train_list", "eval_ir_label", "result/ir_label"),
        ("make_sem_seg", "infer_list", "eval_sem_seg", "result/sem_seg_ood"),
        ("make_ins_seg", "infer_list", "eval_ins_seg", "result/ins_seg_ood"),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_what_an_earlier_step_will_not_make_is_told(ready, maker, list_of_maker, reader, output, is_there):
    """Also where a file of an earlier run is there, which could be of another classifier."""
    if not is_there:
        Lost(f"work/{output}")(ready)
    Path("short.txt").write_text("".join(f"{image_id}\n" for image_id in ready.ids[1:6]))
    sentence = rf"{maker} will not make 1 of the 6 images of .* \(2099_000001\) in {output}; give both steps"
    with pytest.raises(InputError, match=sentence):
        run_sample.run(arguments(ready, maker, reader, **{list_of_maker: "short.txt"}))


def test_the_report_needs_a_folder_that_can_be_written(ready):
    """The sample's runs have result folders of their own, of which the command line knows none."""
    with pytest.raises(InputError, match="--result_dir: can't write into photos/a.jpg"):
        make_report.check(parse_config(arguments(ready, "make_report", result_dir="photos/a.jpg/x")), Plan())


class OtherCAM(own_network.CAM):
    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.classifier = nn.Conv2d(64, n_classes, kernel_size=1)


class OtherEdgeDisplacement(own_network.EdgeDisplacement):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(1, 1, kernel_size=1)


@pytest.mark.parametrize(
    ("step", "network", "sentence"),
    [
        ("train_cam", OtherCAM, r"--cam_network: .*CAM has not the weights of Net \(classifier.bias differ"),
        ("train_irn", OtherEdgeDisplacement, r"--irn_network: .* has not the weights of .* \(more.bias, more.weight"),
        ("make_advcam", OtherCAM, r"--cam_network: AdvCAM needs a classifier of shape \(C, D, 1, 1\) without bias"),
    ],
)
def test_networks_that_later_steps_could_not_use_are_told(ready, monkeypatch, step, network, sentence):
    monkeypatch.setattr(own_network, network.__name__.removeprefix("Other"), network)
    if step == "make_advcam":
        save_weights(network(n_classes=3), CAM_WEIGHTS)
    with pytest.raises(InputError, match=sentence):
        run_sample.run(arguments(ready, step))


@pytest.mark.parametrize(
    ("module", "flags", "sentence"),
    [
        ("voc12.images", {}, "--cam_batch_size 2 is less than the 6 processes, of which each takes a share"),
        ("step.train_cam", {}, "--ood_list has 5 images, fewer than the 6 processes; start fewer."),
        ("voc12.images", {"cam_batch_size": 6, "ood_batch_size": 4}, "--ood_batch_size 4 is less than the 6 processes"),
    ],
)
def test_more_processes_than_images_are_told(ready, monkeypatch, module, flags, sentence):
    monkeypatch.setattr(f"{module}.n_processes", lambda: 6)
    with pytest.raises(InputError, match=sentence):
        run_sample.run(arguments(ready, "train_cam", **flags))
