"""Wrong input of every kind: one clear sentence before any work, nothing lost."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ALL_STEPS, NO_STEPS, TOY_SIZES, make_all_inputs

import run_sample
from misc.errors import InputError, message_of, raise_all, requirement, told_together
from misc.files import camfile, instancefile
from misc.files.images import write_label
from misc.files.instancefile import Detections
from misc.run.config import STEP_MODULES
from net.weights import save_weights
from tests import own_network
from tests.own_network import AffinityDisplacementLoss, EdgeDisplacement, Net
from voc12.classes import VOC_CLASSES
from voc12.devkit import open_devkit


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


# name: (what is wrong, as a function of the toy data that returns changed flags; the sentence)
WRONG = {
    "no dataset folder": (lambda toy: {"voc12_root": "nowhere"}, r"--voc12_root nowhere is missing; expected"),
    "not a devkit": (lambda toy: {"voc12_root": toy.ood_root}, r"has no JPEGImages folder; expected"),
    "no list": (lambda toy: {"train_list": "none.txt"}, r"--train_list: list none.txt is missing; expected"),
    "empty list": (
        lambda toy: {"train_list": write(toy.work / "empty.txt", "", " ")},
        r"--train_list: list .*empty.txt is empty; expected",
    ),
    "binary list": (
        lambda toy: {"train_list": toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg"},
        r"--train_list: list .* can't be read",
    ),
    "list of absent images": (
        lambda toy: {"train_list": write(toy.work / "l.txt", *toy.ids, "a", "b", "c", "d")},
        r"4 of the 12 images of .*l.txt are not in .*JPEGImages \(a, b, c, ...\); correct",
    ),
    "list with flags": (
        lambda toy: {"train_list": write(toy.work / "l.txt", f"{toy.ids[0]} -1")},
        r"the line '2099_000001 -1' is neither an id nor",
    ),
    "list shorter than a batch": (
        lambda toy: {"cam_batch_size": 7},
        r"--train_list has 6 images, fewer than one batch \(--cam_batch_size 7\); lower",
    ),
    "IRN list shorter than a batch": (lambda toy: {"irn_batch_size": 7}, r"--irn_batch_size 7"),
    "no label file": (
        lambda toy: {"label_file": "labels.npy"},
        r"label file labels.npy is missing",
    ),
    "no label file of this name in voc12/": (
        lambda toy: {"label_file": "voc12/mine.csv"},
        r"label file voc12/mine.csv is missing",
    ),
    "foreign label file": (
        lambda toy: {"label_file": write(toy.work / "labels.npy", "hello")},
        r"label file .*labels.npy can't be read",
    ),
    "label file of other classes": (
        lambda toy: (
            np.save(toy.work / "l.npy", {int(i.replace("_", "")): np.ones(20, np.float32) for i in toy.ids})
            or {"label_file": toy.work / "l.npy"}
        ),
        r"labels of shape \(20,\), expected 3 classes",
    ),
    "damaged annotation": (
        lambda toy: damage(toy.root / "Annotations" / f"{toy.ids[1]}.xml") or {},
        r"annotation .*2099_000002.xml is no valid XML",
    ),
    "image without annotation": (
        lambda toy: (toy.root / "Annotations" / f"{toy.ids[1]}.xml").unlink() or {},
        r"1 of 6 images have no labels in .*\(2099_000002\)",
    ),
    "training image without objects": (
        lambda toy: write(toy.root / "Annotations" / f"{toy.ids[1]}.xml", "<annotation/>") and {},
        r"1 images carry none of the classes \(2099_000002\)",
    ),
    "unreadable image": (
        lambda toy: damage(toy.root / "JPEGImages" / f"{toy.ids[4]}.jpg") or {},
        r"1 of 8 images can't be used \(.*2099_000005.jpg; image file is truncated .*\); replace",
    ),
    "unreadable OoD image": (
        lambda toy: damage(toy.ood_root / "scene3.jpg") or {},
        r"images can't be used \(.*scene3.jpg; .*\); replace",
    ),
    "no OoD folder": (lambda toy: {"ood_root": "nowhere"}, r"--ood_root nowhere is missing; .*README.md"),
    "no OoD list": (lambda toy: {"ood_list": "none.txt"}, r"--ood_list: list none.txt is missing"),
    "OoD line without a file": (
        lambda toy: {"ood_list": write(toy.work / "o.txt", "scene0.jpg", "x.jpg", "scene1.jpg")},
        r"--ood_list: 1 of the 3 images of .*o.txt are not in .*\(x.jpg\); correct",
    ),
    "OoD list shorter than a batch": (lambda toy: {"ood_batch_size": 6}, r"--ood_list has 5 images, fewer than one"),
    "more clusters than OoD images": (lambda toy: {"cluster_K": 6}, r"--cluster_K 6 is more than the 5 images"),
    "unknown class to ignore": (lambda toy: {"ood_ignore_class": "spoon"}, r"--ood_ignore_class spoon is no class"),
    "no checkpoint": (
        lambda toy: {"train_classifier_pass": False},
        r"checkpoint sess/res50_cam_orig.pth is missing: train it, or download",
    ),
    "no split": (lambda toy: {"chainer_eval_set": "test"}, r"--chainer_eval_set: list .*test.txt is missing"),
    "no masks": (
        lambda toy: (toy.root / "SegmentationClass" / f"{toy.ids[0]}.png").unlink() or {},
        r"1 of 6 ground-truth masks are not in .*SegmentationClass \(2099_000001\)",
    ),
    "mask of another size": (
        lambda toy: Image.new("L", (9, 9)).save(toy.root / "SegmentationClass" / f"{toy.ids[0]}.png") or {},
        r"2099_000001.png; the mask has 9 x 9 pixels, its image 48 x 64\)",
    ),
    "mask of other classes": (
        lambda toy: Image.new("L", (64, 48), 9).save(toy.root / "SegmentationClass" / f"{toy.ids[0]}.png") or {},
        r"2099_000001.png; the mask has class id 9, the class list ends at 3\)",
    ),
    "mask in colour": (
        lambda toy: Image.new("RGB", (64, 48)).save(toy.root / "SegmentationClass" / f"{toy.ids[0]}.png") or {},
        r"2099_000001.png is a RGB image; expected a palette or grey PNG",
    ),
    "instance mask of 16 bits": (
        lambda toy: Image.new("I;16", (64, 48)).save(toy.root / "SegmentationObject" / f"{toy.ids[0]}.png") or {},
        r"2099_000001.png is a 16-bit image; expected a palette or grey PNG of 8 bits: ids up to 254, 255 for unsure",
    ),
    "no instance masks": (
        lambda toy: (toy.root / "SegmentationObject" / f"{toy.ids[0]}.png").unlink() or {},
        r"1 of 6 instance masks are not in .*SegmentationObject \(2099_000001\), and eval_ins_seg needs them; correct",
    ),
    "instance mask of another size": (
        lambda toy: Image.new("L", (9, 9)).save(toy.root / "SegmentationObject" / f"{toy.ids[0]}.png") or {},
        r"instance mask .*2099_000001.png is not of the size of its mask in SegmentationClass",
    ),
    "instance of the background": (
        lambda toy: (
            write_label(toy.root / "SegmentationObject" / f"{toy.ids[0]}.png", np.eye(48, 64, -40, np.uint8) * 4) or {}
        ),
        r"instance 4 of .*2099_000001.png has id 0 in SegmentationClass, expected a class from 1 to 3",
    ),
    "CAMs of another list than is evaluated": (
        lambda toy: {"train_list": write(toy.work / "l.txt", *toy.ids[:4]), "infer_list": "voc12/train.txt"},
        r"--cam_out_dir: make_cam will not make 2 of the 6 images of --chainer_eval_set \(2099_000005, 2099_000006\)",
    ),
    "masks of another list than is evaluated": (
        lambda toy: {"infer_list": write(toy.work / "l.txt", *toy.ids[:4])},
        r"--sem_seg_out_dir: make_sem_seg will not make 2 of the 6 images of --chainer_eval_set",
    ),
    "COCO annotations that can't be written": (
        lambda toy: {"cocoann_path": write(toy.work / "file", "") / "x.json"},
        r"--cocoann_path: can't write into .*file",
    ),
    "COCO annotations named as a folder": (
        lambda toy: {"cocoann_path": toy.work},
        r"--cocoann_path .*work is a folder; expected the name of a JSON file",
    ),
    "unknown form of COCO annotations": (
        lambda toy: {"cocoann_format": "bitmap"},
        r"argument --cocoann_format: invalid choice: 'bitmap'",
    ),
    "checkpoint that can't be written": (
        lambda toy: {"cam_weights_name": write(toy.work / "file", "") / "x.pth"},
        r"--cam_weights_name: can't write into .*file",
    ),
    "checkpoint named as a folder": (
        lambda toy: {"irn_weights_name": toy.work},
        r"--irn_weights_name .*work is a folder; expected the name of a checkpoint",
    ),
    "checkpoint without a name": (
        lambda toy: {"cam_weights_name": ""},
        r"--cam_weights_name is empty; expected the name of a file or folder",
    ),
    "folder that can't be written": (
        lambda toy: {"cam_out_dir": write(toy.work / "file", "")},
        r"--cam_out_dir: can't write into .*file",
    ),
    "results that can't be written": (
        lambda toy: {"result_dir": write(toy.work / "file", "")},
        r"--result_dir: can't write into .*file",
    ),
    "empty network name": (lambda toy: {"irn_network": "''"}, r"network module '' can't be imported"),
    "relative network name": (lambda toy: {"cam_network": ".nothing"}, r"network module .nothing can't be imported"),
    "unknown network": (lambda toy: {"cam_network": "net.nothing"}, r"network module net.nothing can't be imported"),
    "no ImageNet file": (lambda toy: {"imagenet_weights": "none.pth"}, r"checkpoint none.pth is missing"),
    "no augmented masks": (
        lambda toy: (
            [path.unlink() for path in (toy.root / "SegmentationClassAug").iterdir()]
            and (toy.root / "SegmentationClassAug").rmdir()
            or {}
        ),
        r"SegmentationClassAug is missing, so voc12/train_aug.txt can't be made",
    ),
}


def refusal(arguments):
    with pytest.raises(InputError) as caught:
        run_sample.run(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_chain_refuses(toy, name, monkeypatch):
    spoil, sentence = WRONG[name]
    flags = {**ALL_STEPS, **spoil(toy)}
    monkeypatch.setattr("step.train_classifier.run", lambda args: pytest.fail("work began"))
    with pytest.raises(InputError, match=sentence) as caught:
        run_sample.run(toy.flags(**flags))
    assert "\n" not in str(caught.value)
    assert not list((toy.work / "sess").glob("*"))


@pytest.fixture
def cams(toy):
    """Runs a step that reads CAM files and IRN: they are there for the images of train, of the right size."""
    for image_id, (height, width) in zip(toy.ids, TOY_SIZES, strict=True):
        cam = torch.ones(1, -(-height // 4), -(-width // 4))
        camfile.save(f"result/cam_ood/{image_id}.npy", [2], cam, torch.ones(1, height, width))
    save_weights(own_network.EdgeDisplacement(), "sess/irn.pth")
    flags = {"irn_network": "tests.own_network", "irn_weights_name": "sess/irn.pth", "infer_list": "voc12/train.txt"}
    return lambda step, **changed: toy.flags(**NO_STEPS | flags | {f"{step}_pass": True} | changed)


STEPS_WITH_CHECKPOINT = {
    "train_cam": ("cam_init_weights_name", Net),
    "make_cam": ("cam_weights_name", Net),
    "make_advcam": ("cam_weights_name", Net),
    "make_sem_seg": ("irn_weights_name", AffinityDisplacementLoss),
    "make_ins_seg": ("irn_weights_name", AffinityDisplacementLoss),
}


@pytest.mark.parametrize("step", STEPS_WITH_CHECKPOINT)
def test_checkpoints_are_checked_before_work(toy, step):
    flag, network = STEPS_WITH_CHECKPOINT[step]
    (toy.work / "result/cam_ood").mkdir(parents=True)
    for image_id in toy.ids:
        (toy.work / "result/cam_ood" / f"{image_id}.npy").touch()
    path = toy.work / "x.pth"
    arguments = toy.flags(**NO_STEPS | {f"{step}_pass": True, flag: path})
    assert f"checkpoint {path} is missing" in refusal(arguments)
    save_weights(network(n_classes=3) if network is Net else network(), path)
    damage(path)
    assert f"checkpoint {path} can't be read" in refusal(arguments)
    torch.save({"weight": torch.zeros(3)}, path)
    assert f"{path} is no checkpoint of" in refusal(arguments)
    if network is Net:
        save_weights(Net(n_classes=20), path)
        assert "classifier.weight has shape (20, 64, 1, 1), expected (3, 64, 1, 1)" in refusal(arguments)


@pytest.mark.parametrize(("step", "flag"), [("make_advcam", "advcam_out_dir"), ("make_ins_seg", "ins_seg_out_dir")])
def test_folders_that_can_not_be_written_are_refused(cams, toy, monkeypatch, step, flag):
    monkeypatch.setattr(f"{STEP_MODULES[step]}.run", lambda args: pytest.fail("work began"))
    save_weights(own_network.Net(n_classes=3), "sess/cam.pth")
    file = write(toy.work / "file", "")
    arguments = cams(step, cam_network="tests.own_network", cam_weights_name="sess/cam.pth", **{flag: file / "x"})
    assert f"--{flag}: can't write into {file / 'x'} (Not a directory); name another place." in refusal(arguments)


def test_a_damaged_image_stops_advcam_before_work(cams, toy, monkeypatch):
    monkeypatch.setattr("step.make_advcam.run", lambda args: pytest.fail("work began"))
    save_weights(own_network.Net(n_classes=3), "sess/cam.pth")
    damage(toy.root / "JPEGImages" / f"{toy.ids[4]}.jpg")
    arguments = cams("make_advcam", cam_network="tests.own_network", cam_weights_name="sess/cam.pth")
    assert "1 of 6 images can't be used (" in refusal(arguments)
    assert f"{toy.ids[4]}.jpg; image file is truncated" in refusal(arguments)


@pytest.mark.parametrize(
    ("step", "folder", "flag", "maker"),
    [
        ("eval_cam", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("cam_to_ir_label", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("train_irn", "result/ir_label", "ir_label_out_dir", "cam_to_ir_label"),
        ("make_sem_seg", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("eval_sem_seg", "result/sem_seg_ood", "sem_seg_out_dir", "make_sem_seg"),
        ("make_ins_seg", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("eval_ins_seg", "result/ins_seg_ood", "ins_seg_out_dir", "make_ins_seg"),
        ("make_cocoann", "result/ins_seg_ood", "ins_seg_out_dir", "make_ins_seg"),
    ],
)
def test_folders_that_lack_images_are_refused(toy, step, folder, flag, maker, monkeypatch):
    arguments = toy.flags(**NO_STEPS | {f"{step}_pass": True})
    assert f"--{flag}: folder {folder} is missing; run {maker} first" in refusal(arguments)
    (toy.work / folder).mkdir(parents=True)
    for suffix in (".npy", ".png"):
        (toy.work / folder / f"{toy.ids[0]}{suffix}").touch()
    sentence = f"--{flag}: {folder} lacks 5 of the 6 images of --"
    assert sentence in refusal(arguments)
    assert "(2099_000002, 2099_000003, 2099_000004, ...)" in refusal(arguments)
    assert "can't be used" not in refusal(arguments)  # what is missing is told once


@pytest.mark.parametrize("step", ["eval_advcam", "cam_to_ir_label", "make_sem_seg"])
def test_folders_that_lack_advcams_are_refused(toy, step, monkeypatch):
    (toy.work / "result/cam_ood").mkdir(parents=True)
    for image_id in toy.ids:
        (toy.work / "result/cam_ood" / f"{image_id}.npy").touch()
    flags = NO_STEPS | {f"{step}_pass": True, "masks_from": "advcam"}
    folder = "--advcam_out_dir: folder result/cam_ood_advcam is missing; run make_advcam first"
    assert folder in refusal(toy.flags(**flags))
    lists = {"train_list": write(toy.work / "l.txt", *toy.ids[:4]), "infer_list": "voc12/train.txt"}
    save_weights(Net(n_classes=3), "sess/x.pth")
    both = {**flags, "make_cam_pass": True, "make_advcam_pass": True, "cam_weights_name": "sess/x.pth", **lists}
    if step != "cam_to_ir_label":  # it reads the list that make_advcam works on
        assert "--advcam_out_dir: make_advcam will not make 2 of the 6 images" in refusal(toy.flags(**both))


def test_no_step_at_all(toy):
    assert "no step is enabled" in refusal(toy.flags(**NO_STEPS))


def test_a_diverging_training_stops_with_advice_and_keeps_its_losses(toy):
    arguments = toy.flags(**NO_STEPS | {"train_classifier_pass": True, "cam_learning_rate": 1e30})
    assert "no longer finite at step" in refusal(arguments)
    assert (toy.work / "result/metrics/train_classifier.jsonl.part").is_file()
    assert not list((toy.work / "sess").iterdir())


@pytest.mark.parametrize(
    ("loss", "advice"),
    [
        ("plain", "lower --deeplab_learning_rate, or pass --deeplab_loss balanced."),
        ("balanced", "or start from other weights (--deeplab_init_weights); --deeplab_loss is balanced already."),
    ],
)
def test_a_diverging_deeplab_names_what_helps(toy, loss, advice):
    masks = toy.root / "SegmentationClass"
    flags = {"train_deeplab_pass": True, "deeplab_mask_dir": masks, "deeplab_train_list": "voc12/train.txt"}
    sentence = refusal(toy.flags(**NO_STEPS | flags, deeplab_learning_rate=1e30, deeplab_loss=loss))
    assert "no longer finite at step" in sentence
    assert sentence.endswith(advice)


def test_cuda_without_a_gpu(toy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: PyTorch finds no GPU here" in refusal(toy.flags(device="cuda"))


def test_a_missing_pydensecrf_is_said_before_work(toy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    sentence = refusal(toy.flags(**ALL_STEPS, crf="pydensecrf"))
    assert "--crf pydensecrf: pydensecrf is not installed" in sentence
    assert "leave --crf out, or pass --crf torch" in sentence


def test_cams_of_another_class_list_are_refused(toy):
    for image_id, (height, width) in zip(toy.ids, TOY_SIZES, strict=True):
        strided = torch.zeros(1, -(-height // 4), -(-width // 4))
        camfile.save(f"result/cam_ood/{image_id}.npy", [2], strided, torch.zeros(1, height, width))
    for mask in (toy.root / "SegmentationClass").iterdir():
        with Image.open(mask) as image:
            of_a_class = Image.new("L", image.size, 1)
        of_a_class.save(mask)
    (toy.root / "classes.txt").write_text("aeroplane\nbottle\n")
    sentence = "2099_000001.npy has classes [2], the class list has 2; make it again."
    assert sentence in refusal(toy.flags(**NO_STEPS | {"eval_cam_pass": True}))
    save_weights(EdgeDisplacement(), "sess/irn.pth")
    flags = {"make_sem_seg_pass": True, "irn_weights_name": "sess/irn.pth", "infer_list": "voc12/train.txt"}
    assert sentence in refusal(toy.flags(**NO_STEPS | flags))


def test_vocs_classes_in_another_order_are_refused_but_for_masks_of_that_order(toy):
    """Silently, two classes would be taken for each other in all scores."""
    swapped = [*VOC_CLASSES[1:], VOC_CLASSES[0]]
    Path("mine.txt").write_text("\n".join(swapped))
    own = toy.root / "classes.txt"
    own.unlink(missing_ok=True)
    sentence = f"--class_list mine.txt: class 1 is {swapped[0]}, but aeroplane in VOC, by which its masks are numbered"
    with pytest.raises(InputError, match=re.escape(sentence)):
        open_devkit(str(toy.root), "mine.txt")
    own.write_text("\n".join(swapped))
    assert open_devkit(str(toy.root), "mine.txt").classes == tuple(swapped)
    own.write_text("\n".join(VOC_CLASSES))
    assert open_devkit(str(toy.root), "").classes == VOC_CLASSES


def test_a_class_list_that_is_not_that_of_the_masks_is_refused(toy):
    own = toy.root / "classes.txt"
    flags = NO_STEPS | {"eval_ir_label_pass": True, "class_list": "mine.txt"}
    for names, different in (
        ("aeroplane\ntrain\nbottle\n", "train, but bottle"),
        ("aeroplane", "no class, but bottle"),
    ):
        Path("mine.txt").write_text(names)
        sentence = f"--class_list mine.txt: class 2 is {different} in {own}, by which the masks there are numbered"
        assert sentence in refusal(toy.flags(**flags))
    Path("mine.txt").write_text(own.read_text())
    assert "--class_list" not in refusal(toy.flags(**flags))


@pytest.mark.parametrize("step", ["make_sem_seg", "make_ins_seg"])
@pytest.mark.parametrize("part", [0, 1])
def test_irn_output_that_is_no_numbers_is_refused(cams, monkeypatch, step, part):
    forward = own_network.EdgeDisplacement.forward

    def forward_without_bounds(self, pair):
        outputs = list(forward(self, pair))
        outputs[part] = outputs[part] * torch.inf
        return outputs

    monkeypatch.setattr(own_network.EdgeDisplacement, "forward", forward_without_bounds)
    sentence = refusal(cams(step))
    assert sentence.startswith("--irn_weights_name: edges or displacements of ")
    assert "2099_000001.jpg are no finite numbers; train IRN again" in sentence


@pytest.mark.parametrize("part", [0, 1])
def test_a_network_of_another_stride_is_blamed_and_not_the_cams(cams, monkeypatch, part):
    forward = own_network.EdgeDisplacement.forward

    def forward_coarse(self, pair):
        outputs = list(forward(self, pair))
        outputs[part] = outputs[part][:, ::2, ::2]
        return outputs

    monkeypatch.setattr(own_network.EdgeDisplacement, "forward", forward_coarse)
    monkeypatch.setattr("net.build.problem_of_answer", lambda *_: "")  # that of images of other sizes, perhaps
    shapes = ["(1, 12, 16)", "(2, 12, 16)"]
    shapes[part] = f"({part + 1}, 6, 8)"
    sentence = refusal(cams("make_ins_seg"))
    assert sentence.startswith("--irn_network: edges and displacements of ")
    assert f"have the shapes {shapes[0]} and {shapes[1]}, expected (1, 12, 16) and (2, 12, 16): stride 4" in sentence


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_cam_that_does_not_fit_stops_after_the_finished_masks(cams, toy, num_workers):
    third = toy.work / f"result/cam_ood/{toy.ids[2]}.npy"
    for content, problem in (([3, 3], "is not of the size of its image; make it again."), (None, "can't be read")):
        if content:
            camfile.save(third, [0], torch.ones(1, *content), torch.ones(1, *content))
        else:
            damage(third)
        with pytest.raises(InputError) as caught:
            run_sample.run(cams("make_sem_seg", num_workers=num_workers))
        assert message_of(caught.value).startswith(f"CAM file result/cam_ood/{toy.ids[2]}.npy {problem}")
        assert "\n" not in message_of(caught.value)
        made = sorted(path.name for path in (toy.work / "result/sem_seg_ood").glob("*.png"))
        assert made == [f"{image_id}.png" for image_id in toy.ids[:2]]


@pytest.mark.parametrize("step", ["eval_ins_seg", "make_cocoann"])
def test_instances_that_do_not_fit_are_refused(toy, step):
    arguments = toy.flags(**NO_STEPS | {f"{step}_pass": True, "infer_list": "voc12/train.txt"})
    none = Detections(np.zeros(0), np.zeros((0, 9, 9), bool), np.zeros(0, int))
    for image_id in toy.ids:
        instancefile.save(f"result/ins_seg_ood/{image_id}.npy", none)
    assert "instance file result/ins_seg_ood/2099_000001.npy is not of the size of its" in refusal(arguments)
    (toy.work / "result/ins_seg_ood/2099_000001.npy").write_bytes(b"damaged")
    assert "instance file result/ins_seg_ood/2099_000001.npy can't be read" in refusal(arguments)
    assert not (toy.work / "result/cocoann.json").exists()


def test_all_problems_of_a_step_are_told_at_once(toy):
    damage(toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg")
    (toy.work / "a_file").write_text("")
    flags = {"cam_batch_size": 7, "cam_weights_name": "a_file/x.pth"}
    with pytest.raises(InputError, match=r"^3 problems: \(1\)") as told:
        run_sample.run(
            toy.flags(**NO_STEPS | {"train_classifier_pass": True, "cam_init_weights_name": "a_file/x.pth"} | flags)
        )
    for part in ("fewer than one batch", "--cam_init_weights_name: can't write", f"{toy.ids[0]}.jpg"):
        assert part in str(told.value)


def test_problems_of_several_steps_are_numbered_once():
    of_a_step = []
    for sentences in (["a.", "b."], ["b.", "c."]):
        with pytest.raises(InputError) as told:
            raise_all([InputError(each) for each in sentences])
        of_a_step.append(told.value)
    with pytest.raises(InputError, match=r"^4 problems: \(1\) a\. \(2\) b\. \(3\) c\. \(4\) d\.$"):
        raise_all([*of_a_step, InputError("d.")])


def test_what_follows_from_a_problem_that_was_found_is_not_told():
    @requirement
    def require_even(number):
        if number % 2:
            raise InputError(f"{number} is odd.")

    def check(*numbers):
        with told_together():
            for number in numbers:
                require_even(number)
            _ = 1 / 0

    with pytest.raises(InputError, match=r"^2 problems: \(1\) 3 is odd\. \(2\) 5 is odd\.$") as told:
        check(3, 4, 5)
    assert isinstance(told.value.__context__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        check(4)
    with pytest.raises(InputError, match="7 is odd"):
        require_even(7)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"make_cam_pass": True, "make_advcam_pass": True, "advcam_out_dir": "./result/cam_ood/"},
            "--cam_out_dir and --advcam_out_dir are both ./result/cam_ood/: one would replace the other",
        ),
        (
            {"train_cam_pass": True, "cam_weights_name": "sess/res50_cam_orig.pth"},
            "--cam_init_weights_name and --cam_weights_name are both sess/res50_cam_orig.pth: train_cam would write",
        ),
        (
            {"make_sem_seg_pass": True, "sem_seg_out_dir": "{root}/SegmentationClass"},
            "--sem_seg_out_dir {root}/SegmentationClass is among the data of --voc12_root {root}, which make_sem_seg",
        ),
        (
            {"make_cam_pass": True, "cam_out_dir": "{root}/JPEGImages/cams"},
            "--cam_out_dir {root}/JPEGImages/cams is among the data",
        ),
    ],
)
def test_no_step_writes_over_data_or_what_another_one_writes(toy, flags, sentence):
    flags = {name: value.format(root=toy.root) if isinstance(value, str) else value for name, value in flags.items()}
    with pytest.raises(InputError) as told:
        run_sample.run(toy.flags(**NO_STEPS | flags))
    assert str(told.value).startswith(sentence.format(root=toy.root))


def test_a_set_may_be_called_as_a_folder_is(toy):
    make_all_inputs(toy)
    flags = {"eval_deeplab_pass": True, "deeplab_crf": False, "deeplab_eval_set": "val", "deeplab_out_dir": "val"}
    for _ in range(2):
        run_sample.run(toy.flags(**NO_STEPS | flags))


def test_who_interrupts_what_is_done_again_is_told_how_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(run_sample, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    for given, expected in (([], "the same command goes on"), (["--redo", "all"], "the same command without --redo")):
        monkeypatch.setattr(sys, "argv", ["run_sample.py", *given])
        assert run_sample.main() == run_sample.EXIT_INTERRUPTED
        assert expected in capsys.readouterr().err
