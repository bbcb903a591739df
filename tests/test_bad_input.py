"""Wrong input of every kind: one clear sentence before any work, nothing lost."""

import numpy as np
import pytest
import torch
from support import ALL_STEPS, NO_STEPS

import run_sample
from misc.errors import InputError
from net.resnet18_cam import Net
from net.resnet18_irn import AffinityDisplacementLoss
from net.weights import save_weights


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def two_lists(toy):
    return {"train_list": write(toy.work / "a.txt", *toy.ids[:3]), "infer_list": write(toy.work / "b.txt", *toy.ids)}


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
        r"images can't be read \(.*2099_000005.jpg\); replace",
    ),
    "unreadable OoD image": (
        lambda toy: damage(toy.ood_root / "scene3.jpg") or {},
        r"images can't be read \(.*scene3.jpg\); replace",
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
        run_sample.run_chain(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_chain_refuses(toy, name, monkeypatch):
    spoil, sentence = WRONG[name]
    flags = {**ALL_STEPS, **spoil(toy)}
    monkeypatch.setattr("step.train_classifier.run", lambda args: pytest.fail("work began"))
    monkeypatch.setattr("misc.crf.require_densecrf", lambda: None)
    with pytest.raises(InputError, match=sentence) as caught:
        run_sample.run_chain(toy.flags(**flags))
    assert "\n" not in str(caught.value)
    assert not (toy.work / "sess").exists()


STEPS_WITH_CHECKPOINT = {
    "train_cam": ("cam_init_weights_name", Net),
    "make_cam": ("cam_weights_name", Net),
    "make_sem_seg": ("irn_weights_name", AffinityDisplacementLoss),
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
    save_weights(network(), path)
    damage(path)
    assert f"checkpoint {path} can't be read" in refusal(arguments)
    torch.save({"weight": torch.zeros(3)}, path)
    assert f"{path} is no checkpoint of" in refusal(arguments)
    if network is Net:
        save_weights(Net(n_classes=20), path)
        assert "classifier.weight has shape (20, 512, 1, 1), expected (3, 512, 1, 1)" in refusal(arguments)


@pytest.mark.parametrize(
    ("step", "folder", "flag", "maker"),
    [
        ("eval_cam", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("cam_to_ir_label", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("train_irn", "result/ir_label", "ir_label_out_dir", "cam_to_ir_label"),
        ("make_sem_seg", "result/cam_ood", "cam_out_dir", "make_cam"),
        ("eval_sem_seg", "result/sem_seg_ood", "sem_seg_out_dir", "make_sem_seg"),
    ],
)
def test_folders_that_lack_images_are_refused(toy, step, folder, flag, maker, monkeypatch):
    monkeypatch.setattr("step.cam_to_ir_label.require_densecrf", lambda: None)
    arguments = toy.flags(**NO_STEPS | {f"{step}_pass": True})
    assert f"--{flag}: folder {folder} is missing; run {maker} first" in refusal(arguments)
    (toy.work / folder).mkdir(parents=True)
    for suffix in (".npy", ".png"):
        (toy.work / folder / f"{toy.ids[0]}{suffix}").touch()
    sentence = f"--{flag}: {folder} lacks 5 of the 6 images of the list (2099_000002, 2099_000003, 2099_000004, ...)"
    assert sentence in refusal(arguments)


def test_no_step_at_all(toy):
    assert "no step is enabled" in refusal(toy.flags(**NO_STEPS))


def test_a_diverging_training_stops_with_advice_and_keeps_its_losses(toy):
    arguments = toy.flags(**NO_STEPS | {"train_classifier_pass": True, "cam_learning_rate": 1e30})
    assert "no longer finite at step" in refusal(arguments)
    assert (toy.work / "result/metrics/train_classifier.jsonl.part").is_file()
    assert not (toy.work / "sess").exists()


def test_cuda_without_a_gpu(toy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: PyTorch finds no GPU here" in refusal(toy.flags(device="cuda"))


def test_missing_densecrf_is_said_before_work(toy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    assert "needs pydensecrf: `pip install pydensecrf2` with Python 3.10 to 3.12" in refusal(toy.flags(**ALL_STEPS))
