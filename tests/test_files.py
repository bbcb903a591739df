"""Lists, labels and CAM files in every form that users have."""

import io
import json
import os
import pickle
import shutil
import time
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from PIL import Image

from misc.cam import label_map
from misc.errors import InputError
from misc.files import camfile
from misc.files.atomic import atomic_path, background_writer, json_list_writer, write_json
from misc.files.images import IMAGE_SUFFIXES, read_image, read_label
from misc.files.look import one_look
from misc.files.objectfile import load_object
from voc12.classes import VOC_CLASSES
from voc12.devkit import Devkit, open_devkit
from voc12.labels import read_labels
from voc12.lists import read_list, read_ood_paths
from voc12.verify import VERIFIED_FOLDER, record_of, require_instances, require_masks, require_readable


@pytest.fixture
def devkit(toy):
    return open_devkit(str(toy.root), "")


LISTS = {
    "plain": "2099_000002\n2099_000001\n",
    "CRLF and blank lines": "2099_000002\r\n\r\n2099_000001\r\n",
    "CR alone": "2099_000002\r2099_000001",
    "BOM, no underscore": "\ufeff2099000002\n  2099000001  ",
    "two columns": "/JPEGImages/2099_000002.jpg /SegmentationClassAug/2099_000002.png\n"
    "/JPEGImages/2099_000001.jpg\t/SegmentationClassAug/2099_000001.png\n",
    "two columns of Windows": "JPEGImages\\2099_000002.jpg SegmentationClass\\2099_000002.png\r\n"
    "\\JPEGImages\\2099_000001.jpg \\SegmentationClass\\2099_000001.png\r\n",
    "two columns of names": "2099_000002.jpg 2099_000002.png\n2099_000001.jpg 2099_000001.png\n",
    "two columns without suffix": "JPEGImages/2099_000002 Masks/2099_000002\nJPEGImages/2099_000001 Masks/2099_000001",
    "suffix and repetition": "2099_000002.jpg\n2099_000001\n2099_000002\n",
    "suffix in another case": "2099_000002.JPG\n2099_000001.Jpeg\n",
    "what find prints": "./JPEGImages/2099_000002.jpg\n./JPEGImages/2099_000001.jpg\n",
    "what find prints in the folder": "./2099_000002.jpg\n./2099_000001.jpg\n",
    "paths with spaces": "/my data/JPEGImages/2099_000002.jpg\nC:\\my data\\JPEGImages\\2099_000001.jpg\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists_of_every_form(devkit, tmp_path, text, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes(text.lstrip("\ufeff").encode(encoding) if encoding == "utf-16" else text.encode())
    assert read_list(devkit, path, flag="train_list") == ["2099_000002", "2099_000001"]


@pytest.mark.parametrize(
    "line",
    [
        "my cat 2",
        "my cat 2.jpg",
        "JPEGImages/my cat 2.jpg",
        "/JPEGImages/my cat 2.jpg /SegmentationClassAug/my cat 2.png",
        "JPEGImages\\my cat 2.jpg SegmentationClassAug\\my cat 2.png",
        "my cat 2.jpg my cat 2.png",
    ],
)
def test_lists_of_names_with_spaces(devkit, toy, line):
    (toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg").rename(toy.root / "JPEGImages" / "my cat 2.jpg")
    (toy.work / "list.txt").write_text(f"{line}\n")
    assert read_list(devkit, "list.txt", flag="train_list") == ["my cat 2"]


def test_missing_images_are_named_as_the_list_names_them(devkit, toy):
    lines = ["2099_000001", "elsewhere/2099_000001.jpg", "/JPEGImages/my dog.jpg /SegmentationClass/my dog.png"]
    (toy.work / "list.txt").write_text("\n".join(lines))
    sentence = r"2 of the 3 images .*JPEGImages \(elsewhere/2099_000001.jpg, /JPEGImages/my dog.jpg\); correct"
    with pytest.raises(InputError, match=sentence):
        read_list(devkit, "list.txt", flag="train_list")
    (toy.work / "list.txt").write_text("scene0.jpg\nnight/scene1.jpg\nOoD_images/scene9.jpg")
    sentence = r"2 of the 3 images .* \(night/scene1.jpg, OoD_images/scene9.jpg\); correct"
    with pytest.raises(InputError, match=sentence):
        read_ood_paths(str(toy.ood_root), "list.txt")


def test_lists_are_derived_from_the_devkit_and_follow_it(devkit, toy):
    assert read_list(devkit, "voc12/train.txt", flag="train_list") == toy.ids[:6]
    assert read_list(devkit, "voc12/val.txt", flag="val_list") == toy.ids[6:]
    assert read_list(devkit, "voc12/train_aug.txt", flag="train_list") == toy.ids[:6]  # all masks but val's
    (toy.root / "SegmentationClassAug" / f"{toy.ids[0]}.png").unlink()
    assert read_list(devkit, "voc12/train_aug.txt", flag="train_list") == toy.ids[1:6]
    (toy.work / "voc12" / "train_aug.txt").write_text(f"{toy.ids[7]}\n")
    assert read_list(devkit, "voc12/train_aug.txt", flag="train_list") == [toy.ids[7]]  # the user's own now


def test_labels_come_from_the_annotations_and_follow_them(devkit, toy):
    np.testing.assert_array_equal(read_labels(devkit, "voc12/cls_labels.npy", toy.ids[:3]), np.eye(3))
    (toy.root / "Annotations" / f"{toy.ids[0]}.xml").write_text(
        "<annotation><object><name>train</name></object><object><name>bottle</name></object></annotation>"
    )
    assert read_labels(devkit, "voc12/cls_labels.npy", toy.ids[:1]).tolist() == [[0, 1, 1]]


def test_a_run_on_another_devkit_changes_nothing_for_one_that_is_under_way(devkit, toy, tmp_path):
    """Both keep what they derive in the same `voc12/`."""
    shutil.copytree(toy.root, tmp_path / "other")
    (tmp_path / "other/ImageSets/Segmentation/train.txt").write_text(f"{toy.ids[1]}\n")
    (tmp_path / f"other/Annotations/{toy.ids[1]}.xml").write_text(
        "<annotation><object><name>train</name></object></annotation>"
    )
    other = open_devkit(str(tmp_path / "other"), "")
    with one_look():
        for given, ids, labels in ((devkit, toy.ids[:6], [0, 1, 0]), (other, [toy.ids[1]], [0, 0, 1])) * 2:
            assert read_list(given, "voc12/train.txt", flag="train_list") == ids
            assert read_labels(given, "voc12/cls_labels.npy", [toy.ids[1]]).tolist() == [labels]
    with one_look():
        assert read_list(devkit, "voc12/train.txt", flag="train_list") == toy.ids[:6]
        assert read_labels(devkit, "voc12/cls_labels.npy", [toy.ids[1]]).tolist() == [[0, 1, 0]]


def test_labels_follow_the_class_list(devkit, toy):
    label_file = "voc12/cls_labels.npy"
    assert read_labels(devkit, label_file, toy.ids[:2]).tolist() == [[1, 0, 0], [0, 1, 0]]
    turned = replace(devkit, classes=("train", "bottle", "aeroplane"))
    assert read_labels(turned, label_file, toy.ids[:2]).tolist() == [[0, 0, 1], [0, 1, 0]]


def test_label_file_of_the_original(devkit, tmp_path):
    labels = {2099000001: np.array([0, 1, 0], np.float32), 2099000002: np.array([1, 0, 1], np.float32)}
    path = tmp_path / "cls_labels.npy"
    np.save(path, labels)
    assert read_labels(devkit, path, ["2099_000002", "2099_000001"]).tolist() == [[1, 0, 1], [0, 1, 0]]
    with pytest.raises(InputError, match=r"1 of 2 images have no labels .*\(2099_000003\)"):
        read_labels(devkit, path, ["2099_000001", "2099_000003"])


LABEL_KEYS = {
    "number without underscore": (2099000002, 2099000001),
    "NumPy's number": (np.int64(2099000002), np.int64(2099000001)),
    "id": ("2099_000002", "2099_000001"),
    "NumPy's text": (np.str_("2099_000002"), np.str_("2099_000001")),
    "digits as text": ("2099000002", "2099000001"),
    "file": ("2099_000002.jpg", "2099_000001.JPG"),
    "path": ("JPEGImages/2099_000002.jpg", "JPEGImages\\2099_000001.jpg"),
    "digits of a file": ("2099000002.png", "2099000001.png"),
}


@pytest.mark.parametrize("keys", LABEL_KEYS.values(), ids=LABEL_KEYS)
@pytest.mark.parametrize("kind", [np.float32, np.int64, bool, list, torch.tensor])
def test_labels_under_keys_of_every_form(devkit, tmp_path, keys, kind):
    label_of = kind if kind in (list, torch.tensor) else lambda label: np.array(label, dtype=kind)
    np.save(tmp_path / "l.npy", dict(zip(keys, map(label_of, ([1, 0, 1], [0, 1, 0])), strict=True)))
    labels = read_labels(devkit, tmp_path / "l.npy", ["2099_000001", "2099_000002"])
    assert labels.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert labels.dtype == np.float32


@pytest.mark.parametrize("image_id", ["COCO_train2014_000000000009", "000000000009"])
@pytest.mark.parametrize(
    "key",
    [9, "9", "000000000009", "COCO_train2014_000000000009", "COCO_train2014_000000000009.jpg", "000000000009.jpg"],
)
def test_labels_of_coco(devkit, tmp_path, image_id, key):
    np.save(tmp_path / "l.npy", {key: np.array([0, 1, 1]), "COCO_val2014_000000000042": np.array([1, 0, 0])})
    assert read_labels(devkit, tmp_path / "l.npy", [image_id]).tolist() == [[0, 1, 1]]


WRONG_LABELS = {
    "-1 and 1": (np.array([-1, 1, -1]), "2099_000001 has the value -1, expected 3 classes, each 0 or 1"),
    "0 and 100": (np.array([0, 100, 0]), "2099_000001 has the value 100, expected 3 classes"),
    "not a number": (np.array([0, np.nan, 1]), "2099_000001 has the value nan, expected 3 classes"),
    "parts": ([0.5, 0.5, 0], "2099_000001 has the value 0.5, expected 3 classes"),
    "indices": ([0, 2], r"labels of shape (2,), expected 3 classes, each 0 or 1 (2099_000001 has [0, 2])"),
    "an index": (2, r"labels of shape (), expected 3 classes, each 0 or 1 (2099_000001 has 2)"),
    "names": (["bottle", "train", "x"], "2099_000001 has ['bottle', 'train', 'x'], expected 3 classes"),
    "a name": ("bottle", "2099_000001 has bottle, expected 3 classes"),
    "lists of several lengths": ([[1], [1, 2]], "2099_000001 has [[1], [1, 2]], expected 3 classes"),
    "a dict": ({"bottle": 1}, "2099_000001 has {'bottle': 1}, expected 3 classes"),
    "text in an array": (np.array(["1", "0", "0"]), "type U1, expected numbers or truth values"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_labels_of_other_values_are_refused(devkit, tmp_path, name):
    label, sentence = WRONG_LABELS[name]
    np.save(tmp_path / "l.npy", {2099000001: label})
    with pytest.raises(InputError) as caught:
        read_labels(devkit, tmp_path / "l.npy", ["2099_000001"])
    assert sentence in str(caught.value)
    assert str(tmp_path / "l.npy") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_voc_as_the_originals_ship_them(tmp_path):
    devkit = Devkit(tmp_path, VOC_CLASSES)
    labels = read_labels(devkit, FIXTURES / "labels_protocol2.npy", ["2007_000039", "2007_000032"])
    names = [[VOC_CLASSES[k] for k in np.flatnonzero(label)] for label in labels]
    assert names == [["tvmonitor"], ["aeroplane", "person"]]


def test_images_without_labels_are_told_with_the_files_keys(devkit, tmp_path):
    np.save(tmp_path / "l.npy", {f"image {number}": np.ones(3) for number in range(5)})
    sentence = (
        r"1 of 1 images have no labels in .*l.npy \(2099_000001\), whose keys look like 'image 0', 'image 1', 'im"
    )
    with pytest.raises(InputError, match=sentence):
        read_labels(devkit, tmp_path / "l.npy", ["2099_000001"])
    np.save(tmp_path / "l.npy", {})
    with pytest.raises(InputError, match="whose keys look like none at all"):
        read_labels(devkit, tmp_path / "l.npy", ["2099_000001"])


def test_two_keys_of_one_image_must_agree(devkit, tmp_path):
    labels = {9: np.array([1, 0, 0]), "COCO_train2014_000000000009": np.array([1, 0, 0])}
    np.save(tmp_path / "l.npy", labels)
    assert read_labels(devkit, tmp_path / "l.npy", ["000000000009"]).tolist() == [[1, 0, 0]]
    np.save(tmp_path / "l.npy", labels | {"9.jpg": np.array([0, 1, 0])})
    with pytest.raises(InputError, match="9 and '9.jpg' are both 000000000009, with different labels; remove one"):
        read_labels(devkit, tmp_path / "l.npy", ["000000000009"])
    np.save(tmp_path / "l.npy", {"a": np.array([1, 0, 0]), "a.jpg": np.array([1, 0, 0])})
    assert read_labels(devkit, tmp_path / "l.npy", ["a"]).tolist() == [[1, 0, 0]]
    np.save(tmp_path / "l.npy", {"x/a.jpg": np.array([0, 1, 0]), "a": np.array([1, 0, 0])})
    with pytest.raises(InputError, match="'a' and 'x/a.jpg' are both a, with different labels; remove one"):
        read_labels(devkit, tmp_path / "l.npy", ["a"])


def test_ids_that_are_one_number_keep_their_own_labels(toy):
    for image_id, name in (("1_12", "train"), ("11_2", "bottle"), ("01", "aeroplane")):
        Image.new("RGB", (20, 20)).save(toy.root / "JPEGImages" / f"{image_id}.jpg")
        (toy.root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><object><name> {name} </name></object></annotation>"
        )
    devkit = open_devkit(str(toy.root), "")
    labels = read_labels(devkit, "voc12/cls_labels.npy", ["1_12", "11_2", "01"])
    assert labels.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.save("theirs.npy", {112: np.ones(3, np.float32), "2020010112.jpg": np.zeros(3, np.float32)})
    assert read_labels(devkit, "theirs.npy", ["0112"]).tolist() == [[1, 1, 1]]
    with pytest.raises(InputError, match="0112 and 112 are one number"):
        read_labels(devkit, "theirs.npy", ["0112", "112"])
    with pytest.raises(InputError, match=r"2 of 3 images have no labels in theirs.npy \(1_12, 20200101_1_2\)"):
        read_labels(devkit, "theirs.npy", ["1_12", "20200101_1_2", "2020_010112"])


def test_val_never_leaks_into_train_aug(devkit, toy):
    (toy.root / "ImageSets/Segmentation/val.txt").write_text("2099000007\r\n2099000008\r\n")
    assert read_list(devkit, "voc12/train_aug.txt", flag="train_list") == toy.ids[:6]


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Png", ".TIFF"])
def test_images_of_every_suffix_are_found_and_read(devkit, toy, suffix):
    path = toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg"
    pixels = read_image(path)
    path.unlink()
    path = path.with_suffix(suffix)
    if Image.registered_extensions()[suffix.lower()] not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {suffix}")
    Image.fromarray(pixels).convert("L" if suffix == ".pgm" else "1" if suffix == ".pbm" else "RGB").save(path)
    (toy.work / "list.txt").write_text(f"{toy.ids[0]}\n{toy.ids[1]}{suffix}\n{path}\n")
    assert read_list(devkit, "list.txt", flag="train_list") == toy.ids[:2]
    assert devkit.image_path(toy.ids[0]) == path
    require_readable([path], num_workers=1)
    assert read_image(path).shape == pixels.shape


def test_of_files_with_one_id_the_jpeg_counts(devkit, toy):
    for suffix in (".JPG", ".png", ".webp"):
        Image.new("RGB", (9, 9)).save(toy.root / "JPEGImages" / f"{toy.ids[0]}{suffix}")
    assert devkit.image_path(toy.ids[0]).name == f"{toy.ids[0]}.jpg"
    assert devkit.image_path("none").name == "none.jpg"


def test_folders_are_listed_once_and_no_image_is_looked_at(devkit, toy, monkeypatch):
    looks = []
    stat = os.stat

    def stat_of_a_list(path, **options):
        return stat(path, **options) if str(path).endswith(".txt") else pytest.fail(f"a look at {path}")

    monkeypatch.setattr("os.stat", stat_of_a_list)
    listing = os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: looks.append(str(folder)) or listing(folder))
    monkeypatch.setattr("os.path.isdir", lambda folder: True)
    monkeypatch.setattr("pathlib.Path.is_dir", lambda folder: True)
    monkeypatch.setattr("pathlib.Path.resolve", lambda path: path)
    assert read_list(devkit, toy.root / "ImageSets/Segmentation/train.txt", flag="train_list") == toy.ids[:6]
    assert [devkit.image_path(image_id).stem for image_id in toy.ids] == toy.ids
    assert len(read_ood_paths(str(toy.ood_root), str(toy.ood_list))) == 5
    assert looks == [str(toy.root / "JPEGImages"), str(toy.ood_root)]


def test_derived_labels_have_the_originals_format(toy):
    devkit = open_devkit(str(toy.root), "")
    read_labels(devkit, "voc12/cls_labels.npy", toy.ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = np.load("voc12/cls_labels.npy", allow_pickle=True).item()
    assert content.keys() == {int(i.replace("_", "")) for i in toy.ids}
    assert content[2099000002].dtype == np.float32


def test_classes_come_from_the_data_set(toy, tmp_path):
    assert open_devkit(str(toy.root), "").classes == ("aeroplane", "bottle", "train")
    (tmp_path / "own.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="own.txt: class 1 is cat, but aeroplane in .*classes.txt, by which the masks"):
        open_devkit(str(toy.root), str(tmp_path / "own.txt"))
    (toy.root / "classes.txt").unlink()
    assert open_devkit(str(toy.root), "").classes == VOC_CLASSES
    assert open_devkit(str(toy.root), str(tmp_path / "own.txt")).classes == ("cat", "dog")
    (tmp_path / "own.txt").write_text("cat\ncat\n")
    with pytest.raises(InputError, match="different names"):
        open_devkit(str(toy.root), str(tmp_path / "own.txt"))


def test_a_devkit_nearby_is_suggested(toy):
    with pytest.raises(InputError, match=f"did you mean --voc12_root {toy.root}"):
        open_devkit(str(toy.root.parent / "VOC2012"), "")


def test_also_to_a_user_without_a_home(toy, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(InputError, match=f"did you mean --voc12_root {toy.root}"):
        open_devkit(str(toy.root.parent / "VOC2012"), "")


def test_ood_paths_keep_the_order_of_the_list(toy):
    paths = read_ood_paths(str(toy.ood_root), str(toy.ood_list))
    assert [path.name for path in paths] == [f"scene{k}.jpg" for k in range(5)]


@pytest.mark.parametrize(
    "prefix", ["./", "ood/", "./ood/", "some where/ood/", "/data/ood/", ".\\ood\\", "D:\\ood\\", "{root}/"]
)
def test_ood_lists_that_repeat_the_folder(toy, prefix):
    prefix = prefix.format(root=toy.ood_root)
    (toy.work / "list.txt").write_text(f"\ufeff{prefix}scene1.jpg\r\n{prefix}scene0.jpg\r\nscene1.jpg\r\n")
    paths = read_ood_paths(str(toy.ood_root), "list.txt")
    assert paths == [toy.ood_root / "scene1.jpg", toy.ood_root / "scene0.jpg"]


def test_ood_images_in_folders_of_their_own(toy):
    for number, folder in enumerate((toy.ood_root / "night sky" / "ood", toy.work / "elsewhere")):
        folder.mkdir(parents=True)
        (toy.ood_root / f"scene{number}.jpg").rename(folder / "a b.jpg")
    lines = ["night sky/ood/a b.jpg", str(toy.work / "elsewhere" / "a b.jpg")]
    (toy.work / "list.txt").write_text("\n".join(lines))
    assert [path.is_file() for path in read_ood_paths(str(toy.ood_root), "list.txt")] == [True, True]


def test_images_are_checked_once_until_they_change(toy, monkeypatch):
    paths = sorted((toy.root / "JPEGImages").iterdir())
    require_readable(paths, num_workers=1)
    assert record_of(toy.root / "JPEGImages").is_file()
    assert record_of("a name that is no \udcff text") != record_of("a name that is no text")
    with monkeypatch.context() as patch:
        patch.setattr("voc12.verify._problem_of_image", lambda path: "was read again")
        require_readable(paths, num_workers=1)
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=rf"1 of 8 images can't be used \({paths[2]}; .*truncated"):
        require_readable(paths, num_workers=1)


def test_what_was_refused_is_looked_at_again(devkit, toy):
    path = devkit.image_path(toy.ids[0])
    path.write_bytes(path.read_bytes()[:300])
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 1 images can't be used"):
            require_readable([path], num_workers=1)


def test_masks_are_checked_again_for_other_classes(devkit, toy):
    require_masks(devkit, toy.ids, num_workers=1)
    with pytest.raises(InputError, match="the mask has class id 3, the class list ends at 2"):
        require_masks(replace(devkit, classes=("aeroplane", "bottle")), toy.ids, num_workers=1)


def test_instances_are_checked_again_when_their_classes_change(devkit, toy):
    require_instances(devkit, toy.ids, num_workers=1)
    path = devkit.mask_path(toy.ids[1])
    Image.fromarray(np.zeros_like(read_label(path))).save(path)
    with pytest.raises(InputError, match="instance 1 of .*2099_000002.png has id 0 in SegmentationClass"):
        require_instances(devkit, toy.ids, num_workers=1)


def test_links_to_nothing_and_to_themselves_are_named(toy):
    folder = toy.root / "JPEGImages"
    links = [folder / "nothing.jpg", folder / "loop.jpg"]
    links[0].symlink_to("absent.jpg")
    links[1].symlink_to(links[1])
    paths = [*sorted(folder.glob("2099*")), *links]
    with pytest.raises(InputError, match=rf"2 of 10 images can't be used \({links[0]}, {links[1]}; .*No such file"):
        require_readable(paths, num_workers=1)
    (folder / "absent.jpg").write_bytes(paths[0].read_bytes())
    require_readable(links[:1], num_workers=1)


def test_masks_are_checked_again_when_their_images_change(devkit, toy):
    require_masks(devkit, toy.ids, num_workers=1)
    image = devkit.image_path(toy.ids[1])
    Image.new("RGB", (20, 30)).save(image)
    with pytest.raises(InputError, match="the mask has 61 x 47 pixels, its image 30 x 20"):
        require_masks(devkit, toy.ids, num_workers=1)


@pytest.mark.parametrize("content", [b"[]", b'{"train_aug.txt": 3}', b"\xff\xfe", b"{"])
def test_damaged_records_of_derived_files_are_made_again(devkit, toy, content):
    VERIFIED_FOLDER.mkdir(parents=True)
    for path in (toy.work / "voc12/.derived.json", record_of(toy.root / "JPEGImages")):
        path.write_bytes(content)
    assert read_list(devkit, "voc12/train.txt", flag="train_list") == toy.ids[:6]
    require_readable([devkit.image_path(image_id) for image_id in toy.ids], num_workers=1)


@pytest.mark.parametrize("numbers", ["float32", "float16"])
def test_cam_files_are_the_originals(tmp_path, numbers):
    cam, high_res = torch.rand(2, 3, 4), torch.rand(2, 12, 16)
    camfile.save(tmp_path / "x.npy", [3, 7], cam, high_res, numbers=numbers)
    kept = high_res.to(getattr(torch, numbers)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = np.load(tmp_path / "x.npy", allow_pickle=True).item()  # as other projects read it
    assert content.keys() == {"keys", "cam", "high_res"}
    assert content["keys"].tolist() == [3, 7]
    assert torch.equal(content["cam"], cam)
    assert isinstance(content["high_res"], np.ndarray)
    assert content["high_res"].dtype == numbers
    np.testing.assert_array_equal(content["high_res"], kept)
    assert b"numpy._core" not in (tmp_path / "x.npy").read_bytes()  # a name that older NumPy lacks

    np.save(tmp_path / "theirs.npy", {"keys": torch.tensor([3, 7]), "cam": cam, "high_res": kept})
    for path in (tmp_path / "x.npy", tmp_path / "theirs.npy"):
        keys, read_cam, read_high_res = camfile.load(path)
        assert keys.tolist() == [3, 7]
        assert torch.equal(read_cam, cam)
        assert read_high_res.dtype == np.float32
        np.testing.assert_array_equal(read_high_res, kept)


@pytest.mark.parametrize("threshold", [0.08, 0.11, 0.14, 0.3])
def test_labels_of_float16_are_those_of_float32(tmp_path, parity, threshold):
    """Of recorded maps of AdvCAM on photographs; where values crowd at the threshold, as in drawn maps, more differ."""
    paths = {name: tmp_path / f"{name}.npy" for name in ("float32", "float16")}
    equal = of_the_family = pixels = 0
    for n_iter, image_id in ((12, "2007_000032"), (12, "2007_000039"), (5, "2007_000032")):
        recording = np.load(parity / f"advcam_iter{n_iter}.npz")
        keys, cam, high_res = (recording[f"{image_id}_{name}"] for name in ("keys", "cam", "high_res"))
        for numbers, path in paths.items():
            camfile.save(path, keys, torch.from_numpy(cam), torch.from_numpy(high_res), numbers=numbers)
        labels = label_map(camfile.load_high_res(paths["float32"])[1], keys, threshold)
        equal += np.count_nonzero(labels == label_map(camfile.load_high_res(paths["float16"])[1], keys, threshold))
        raw = np.load(paths["float16"], allow_pickle=True).item()["high_res"]  # as IRN's steps read it
        padded = np.pad(raw, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        of_the_family += np.count_nonzero(labels == np.array([0, *(keys + 1)])[padded.argmax(axis=0)])
        pixels += labels.size
        assert paths["float16"].stat().st_size < 0.65 * paths["float32"].stat().st_size
    assert equal >= 0.9999 * pixels
    assert of_the_family >= 0.9999 * pixels


class CountedReads(io.FileIO):
    """A file, and the bytes that were read of it."""

    count = 0

    def readinto(self, buffer):
        read = super().readinto(buffer)
        self.count += read or 0
        return read


class Watched:
    """A path; `file` is what was opened at it."""

    def __init__(self, path):
        self.path, self.file = path, None

    def open(self, mode, buffering):
        self.file = CountedReads(self.path, mode)
        return io.BufferedReader(self.file, buffering)


@pytest.mark.parametrize("protocol", [None, 3, 4])
def test_a_map_that_is_not_asked_for_is_not_read(tmp_path, monkeypatch, protocol):
    """Of our files, and of files that NumPy wrote in its older and its newer protocol."""
    path, opened = tmp_path / "x.npy", []
    cam, high_res = torch.rand(2, 50, 60), torch.rand(2, 200, 240).numpy()
    if protocol is None:
        camfile.save(path, [3, 7], cam, high_res)
    else:
        boxed = np.array({"keys": np.array([3, 7]), "cam": cam, "high_res": high_res})
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            pickle.dump(boxed, file, protocol=protocol)

    def read_share(read):
        found = read(path)
        return found, opened[-1].file.count / path.stat().st_size

    monkeypatch.setattr("misc.files.objectfile.regular", lambda path: opened.append(Watched(path)) or opened[-1])
    (keys, read_cam), share = read_share(camfile.load_cam)
    assert share < 0.2
    assert keys.tolist() == [3, 7]
    assert torch.equal(read_cam, cam)
    (keys, read_high_res), share = read_share(camfile.load_high_res)
    assert share < 1.05  # some bytes at the borders of what is left out are read twice
    assert keys.tolist() == [3, 7]
    np.testing.assert_array_equal(read_high_res, high_res)
    assert read_share(camfile.load)[1] > 0.95

    path.write_bytes(path.read_bytes()[:-1000])
    for read in (camfile.load_cam, camfile.load_high_res, camfile.load):
        with pytest.raises(InputError, match=r"x.npy can't be read"):
            read(path)


def test_cam_files_of_no_classes(tmp_path):
    camfile.save(tmp_path / "x.npy", [], torch.zeros(0, 3, 4), torch.zeros(0, 12, 16))
    keys, cam, high_res = camfile.load(tmp_path / "x.npy")
    assert (keys.shape, cam.shape, high_res.shape) == ((0,), (0, 3, 4), (0, 12, 16))


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickled code ran')",))


def test_damaged_and_foreign_cam_files_are_refused(tmp_path):
    camfile.save(tmp_path / "good.npy", [1], torch.zeros(1, 3, 4), torch.zeros(1, 12, 16))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:400])
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.save(tmp_path / "keys.npy", {"keys": np.zeros(1)})
    np.save(tmp_path / "evil.npy", {"keys": Malicious()}, allow_pickle=True)
    for name in ("cut", "text", "array", "keys", "evil", "missing"):
        with pytest.raises(InputError, match=f"{name}.npy"):
            camfile.load(tmp_path / f"{name}.npy")
    with pytest.raises(InputError, match="is not admitted"):
        load_object(tmp_path / "evil.npy", kind="file")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("items", [[], [{"id": 1}], [{"id": 1}, [2.5, "é"], None]])
def test_a_list_written_item_by_item_is_plain_json(tmp_path, items):
    with json_list_writer(tmp_path / "x.json", {"a": [1], "b": {}}, "items") as append:
        for item in items:
            append(item)
        assert not (tmp_path / "x.json").exists()
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1], "b": {}, "items": items}


def test_a_list_written_item_by_item_stays_out_of_memory_and_fails_as_a_whole(tmp_path):
    item = list(range(10_000))

    def fail_late() -> None:
        with json_list_writer(tmp_path / "x.json", {}, "items") as append:
            for _ in range(100):
                append(item)
            raise RuntimeError

    tracemalloc.start()
    with pytest.raises(RuntimeError):
        fail_late()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(json.dumps(item))
    assert not list(tmp_path.iterdir())


def test_background_writes_run_in_order_and_are_done_at_the_end():
    written = []
    with background_writer(max_waiting=2) as submit:
        for number in range(20):
            submit(written.append, number)
    assert written == list(range(20))


def test_no_more_background_writes_wait_than_may():
    written = []
    with background_writer(max_waiting=2) as submit:
        for number in range(6):
            submit(lambda number=number: (time.sleep(0.02), written.append(number)))
            assert len(written) >= number - 1


def test_numbers_that_json_lacks_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", [np.nan])
    with pytest.raises(ValueError, match="JSON compliant"), json_list_writer(tmp_path / "x.json", {}, "a") as append:
        append(np.nan)
    with pytest.raises(ValueError, match="JSON compliant"), json_list_writer(tmp_path / "x.json", {"b": np.nan}, "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_failed_background_write_is_raised():
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), background_writer() as submit:
        submit(fail)


def test_background_writes_are_finished_when_the_computation_fails():
    written = []

    def compute() -> None:
        with background_writer() as submit:
            submit(lambda: (time.sleep(0.05), written.append(1)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        compute()
    assert written == [1]
