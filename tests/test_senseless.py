"""What would run to its end and mean nothing is told before it begins: an error where it can only be wrong."""

import logging
from pathlib import Path

import numpy as np
import pytest
from support import ToyData, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files.checksum import crc32_of
from misc.files.look import one_look
from misc.run.config import switches
from misc.run.notices import notice
from voc12.classes import read_classes
from voc12.devkit import open_devkit
from voc12.labels import Labels, read_labels, tell_odd_classes
from voc12.verify import require_no_training_images

LABELS = "voc12/cls_labels.npy"


@pytest.fixture
def told(caplog):
    """The sentences of all notices so far."""
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("notice: ")]


def annotate(toy: ToyData, number: int, *names: str) -> None:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    (toy.root / "Annotations" / f"{toy.ids[number]}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_a_run_has_each_notice_once(told):
    with one_look():
        for sentence in ("a", "b", "a"):
            notice(sentence)
    with one_look():
        notice("a")
    assert told() == ["notice: a", "notice: b", "notice: a"]


@pytest.mark.parametrize(
    ("text", "told_of"),
    [
        ("background\ncat\n", "background"),
        ("_background_\ncat\n", "_background_"),
        ("__ignore__\n_background_\ncat\n", "__ignore__, _background_"),
        ("0\tbackground\n1\tcat\n", "0\tbackground"),
        ("0: Background\ncat\n", "0: Background"),
    ],
)
def test_a_class_list_that_begins_with_the_background(tmp_path, text, told_of):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=f"begins with {told_of}, which is no class: value 0 of a mask is the"):
        read_classes(tmp_path / "classes.txt")


def test_classes_that_resemble_the_background_stay(tmp_path):
    names = ("avoid", "cat", "background", "background noise")  # it does not begin with it
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_classes(tmp_path / "classes.txt") == names


@pytest.mark.parametrize("name", ["Train", "TRAIN", "tr-ain", "tr ain"])
def test_a_class_that_annotations_spell_otherwise(toy, name):
    annotate(toy, 2, name)
    sentence = rf"1 annotations in .*/Annotations name '{name}', the class list has 'train': both must spell"
    for _ in range(2):  # nothing was made of them
        with pytest.raises(InputError, match=sentence):
            read_labels(open_devkit(toy.root, ""), LABELS, toy.ids)
    assert not Path(LABELS).exists()


def test_names_in_annotations_that_are_no_classes(toy, told):
    annotate(toy, 0, "aeroplane", "airplane", "cup")
    devkit = open_devkit(toy.root, "")
    for _ in range(2):  # the second time the labels are there
        with one_look():
            read_labels(devkit, LABELS, toy.ids)
    sentence = (
        f"notice: annotations in {toy.root}/Annotations name what the class list has not, and such objects are taken "
        "for background: airplane (1 images, the nearest class is aeroplane), spoon (7 images), cup (1 images); where "
        "one of the classes is meant, correct the annotations or the class list."
    )
    assert told() == [sentence] * 2
    for number in range(len(toy.ids)):
        annotate(toy, number, "train")
    read_labels(devkit, LABELS, toy.ids)
    assert len(told()) == 2


def test_classes_in_no_image_or_in_every_image(told):
    classes = ("aeroplane", "bottle", "train")
    rows = np.array([[1, 0, 0]] * 5000 + [[1, 1, 0]])
    labels = Labels.of(rows)
    np.testing.assert_array_equal(labels.images_of_classes(), [5001, 1, 0])
    tell_odd_classes(labels, classes, flag="train_list")
    assert told() == [
        "notice: --train_list: no image carries train (1 of 3 classes), so no CAM will show them; add images, or take "
        "them out of the class list.",
        "notice: --train_list: every image carries aeroplane, so nothing teaches the classifier where they are not; "
        "add images without them.",
    ]
    tell_odd_classes(Labels.of(np.eye(3)), classes, flag="train_list")
    assert len(told()) == 2


def same_as(toy: ToyData, ood: list[Path]) -> None:
    images = [toy.root / "JPEGImages" / f"{image_id}.jpg" for image_id in toy.ids]
    require_no_training_images(ood, images, list_flag="ood_list", train_flag="train_list")


def test_out_of_distribution_images_that_are_training_images(toy, monkeypatch):
    """Sizes tell first; what must be read is read once, until it changes."""
    first, second = (toy.root / "JPEGImages" / f"{toy.ids[number]}.jpg" for number in (0, 1))
    ood = [toy.ood_root / f"scene{number}.jpg" for number in range(5)]
    read = []
    monkeypatch.setattr("voc12.verify.checksum", lambda path: read.append(path) or crc32_of(path))
    same_as(toy, ood)
    assert read == []
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    ood[1].write_bytes(content)  # of the same size, but another image
    for _ in range(2):
        same_as(toy, ood)
        assert read == [str(ood[1]), str(first)]
    ood[3].write_bytes(second.read_bytes())
    sentence = rf"--ood_list: 1 of 5 out-of-distribution images are images of --train_list .*\({ood[3]} is {second}\)"
    with pytest.raises(InputError, match=sentence):
        same_as(toy, ood)
    assert sorted(read[2:]) == sorted([str(ood[3]), str(second)])


def test_an_equal_checksum_alone_does_not_make_an_image_the_same(toy, monkeypatch):
    first, ood = toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg", toy.ood_root / "scene0.jpg"
    ood.write_bytes(bytes(len(first.read_bytes())))
    monkeypatch.setattr("voc12.verify.checksum", lambda path: "0" * 8)
    same_as(toy, [ood])


def test_train_cam_checks_that(toy, monkeypatch):
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
    make_all_inputs(toy)
    (toy.ood_root / "scene2.jpg").write_bytes((toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg").read_bytes())
    with pytest.raises(InputError, match=r"--ood_list: 1 of 5 .*scene2.jpg is .*2099_000001.jpg\), so the losses"):
        run_sample.run(toy.flags(**switches("train_cam"), redo=()))
