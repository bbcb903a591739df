"""Image labels in a table that people read, and images whose labels say that they have none of the classes."""

import sys
from pathlib import Path

import numpy as np
import pytest

import run_sample
from misc.errors import InputError
from misc.files.objectfile import save_object
from misc.run.config import parse_config, switches
from net.weights import save_weights
from tests.own_network import Net
from voc12.devkit import open_devkit
from voc12.images import ids_to_segment, read_images_to_segment
from voc12.labelcsv import read_table, write_table
from voc12.labels import ids_without_class, read_labels
from voc12.lists import read_list

# Python 3.10's csv refuses what later ones read
TABLE_WITH_NUL = "begins with " if sys.version_info >= (3, 11) else r"can't be read \(line contains NUL\); expected "
TABLES = {
    "names": "file,labels\n2099_000001,aeroplane\n2099_000002.jpg,bottle;train\nx/2099_000003.jpg,\n",
    "columns": "file,aeroplane,bottle,train\n2099_000001,1,0,0\n2099_000002,0,1,1\n2099_000003,0,0,0\n",
    "a spreadsheet's": "File;Labels;;\r\n2099_000001;aeroplane;;\r\n2099_000002;train|bottle;\r\n2099_000003;;;\r\n",
    "tabs": "image\ttrain\taeroplane\tbottle\n2099_000001\t0\tTrue\t0\n2099_000002\t1\t0\t1\n2099_000003\t0\t0\t0\n",
    "several lines": 'id,labels\n"2099_000001",aeroplane\n2099_000002,train\n2099_000002,bottle\n2099_000003,\n',
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_label_files(toy, name, encoding):
    Path("labels.csv").write_text(TABLES[name], encoding=encoding, newline="")
    devkit = open_devkit(str(toy.root), "")
    labels = read_labels(devkit, "labels.csv", ["2099_000002", "2099_000001", "2099_000003"])
    assert labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("file", "image_id"),
    [
        ("123.jpg", "1_23"),
        ("2020010112.jpg", "20200101_1_2"),
        ("0123.jpg", "123"),
        ("2099000001", "2099_000001"),
        ("9", "COCO_train2014_000000000009"),
    ],
)
def test_images_of_a_table_are_found_by_their_names_alone(toy, file, image_id):
    write_table("labels.csv", [(file, ["bottle"])])
    with pytest.raises(InputError, match=rf"1 of 1 images have no labels in labels.csv \({image_id}\), whose keys"):
        read_labels(open_devkit(str(toy.root), ""), "labels.csv", [image_id])
    assert ids_without_class(open_devkit(str(toy.root), ""), "labels.csv", [image_id]) == set()


def test_what_is_written_is_read(toy):
    rows = [("a, b.jpg", ("bottle", "train")), ('"c".png', ()), ("é.jpg", ("aeroplane",))]
    write_table("t.csv", rows)
    table = read_table("t.csv", kind="table")
    assert (table.files, table.labels) == ([name for name, _ in rows], [names for _, names in rows])


def test_a_table_in_another_encoding_is_to_be_saved_as_utf_8(toy):
    Path("labels.csv").write_text("file,labels\né.jpg,bottle\n", encoding="cp1252")
    with pytest.raises(
        InputError, match=r"labels.csv can't be read \(.*0xe9.*\); save it as UTF-8: expected a first line"
    ):
        read_labels(open_devkit(str(toy.root), ""), "labels.csv", ["é"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "label file labels.csv is missing; expected a first line `file,labels`"),
        ("", "label file labels.csv begins with ''"),
        ("\x00\xff", f"label file labels.csv {TABLE_WITH_NUL}"),
        ("2099_000001,bottle\n", "label file labels.csv begins with '2099_000001,bottle'"),
        ("file,labels\n2099_000001,Bottle\n", "'Bottle' is no class of the class list; did you mean bottle?"),
        (
            "file,labels\n2099_000001,x\n",
            "'x' is no class of the class list; the classes are ",
        ),
        (
            'file,labels\n2099_000001,"bottle,train"\n',
            "labels.csv has the label 'bottle,train', which looks like several",
        ),
        ("file,class\n2099_000001,bottle\n", "labels.csv has the column 'class' alone, which names no class; call it"),
        ("file,aeroplane,bottle\n2099_000001,1,0\n", "has no column for train"),
        ("file,aeroplane,bottle,train\n2099_000001,1,0,2\n", "line 2: class train has the value '2', expected 0 or 1"),
        ("file,aeroplane,bottle,train\n2099_000001,1,0,\n", "line 2: class train has the value '', expected 0 or 1"),
        ("file,aeroplane,bottle,train\n2099_000001,1,0\n", "line 2: expected 4 columns, the first with a file"),
        ("file,labels\n,bottle\n", r"line 2: expected 2 columns, the first with a file\."),
        (
            "file,labels\n2099_000001,bottle,train\n",
            r"line 2: expected 2 columns, the first with a file; between the labels of an image goes \| or,",
        ),
        ("file,labels\n2099_000002,bottle\n", r"1 of 1 images have no labels in labels.csv \(2099_000001\)"),
        (
            "file,labels\na/2099_000001.jpg,bottle\nb/2099_000001.jpg,train\n",
            "'a/2099_000001.jpg' and 'b/2099_000001.jpg' are both 2099_000001, with different labels",
        ),
    ],
)
def test_wrong_tables_are_told(toy, text, sentence):
    if text is not None:
        Path("labels.csv").write_text(text)
    with pytest.raises(InputError, match=sentence) as caught:
        read_labels(open_devkit(str(toy.root), ""), "labels.csv", ["2099_000001"])
    assert "\n" not in str(caught.value)


def labels_with_two_empty(toy, suffix: str) -> str:
    """A label file of the toy data in which the first two images have none of the classes."""
    path = f"labels{suffix}"
    if suffix == ".csv":
        write_table(path, [(image_id, ["bottle"] * (k > 1)) for k, image_id in enumerate(toy.ids)])
    else:
        save_object(path, {image_id: np.array([0, k > 1, 0], np.float32) for k, image_id in enumerate(toy.ids)})
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_images_that_a_label_file_says_have_no_class_are_no_mistake(toy, suffix, monkeypatch):
    begun = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: begun.extend(step.STEP.name for step in steps))
    path = labels_with_two_empty(toy, suffix)
    run_sample.run(toy.flags(label_file=path, **switches("train_classifier", "train_cam", "make_cam")))
    assert begun == ["train_classifier", "train_cam", "make_cam"]
    args = parse_config(toy.flags(label_file=path))
    devkit = open_devkit(str(toy.root), "")
    options = {"flag": "train_list", "label_file": args.label_file}
    assert ids_to_segment(args, "train_list")[1] == toy.ids[2:6]
    assert read_images_to_segment(devkit, args.train_list, **options).ids == toy.ids[2:6]


def test_an_evaluation_of_images_without_a_class_is_refused(toy):
    """Whether their files are to be made in the same run, or are missing in one of its own."""
    write_table("labels.csv", [(image_id, ["train"] if number else []) for number, image_id in enumerate(toy.ids)])
    network = Net(n_classes=3)
    network.classifier.weight.data.abs_()  # no map is empty, which would stop the run
    save_weights(network, "sess/res50_cam_ood.pth")
    with pytest.raises(InputError, match=r"will not make 1 of the 6 .* the same list, of images that have a class"):
        run_sample.run(toy.flags(label_file="labels.csv", **switches("make_cam", "eval_cam")))
    run_sample.run(toy.flags(label_file="labels.csv", **switches("make_cam")))
    with pytest.raises(
        InputError, match=r"lacks 1 of the 6 .* \(2099_000001\); .* images without a class it makes none"
    ):
        run_sample.run(toy.flags(label_file="labels.csv", **switches("eval_cam")))
    (toy.root / "ImageSets/Segmentation/some.txt").write_text("".join(f"{i}\n" for i in toy.ids[1:6]))
    run_sample.run(toy.flags(label_file="labels.csv", chainer_eval_set="some", **switches("eval_cam")))


def test_a_list_without_any_class_is_told(toy):
    write_table("labels.csv", [(image_id, []) for image_id in toy.ids])
    for step in ("train_classifier", "make_cam", "cam_to_ir_label"):
        with pytest.raises(InputError, match="--train_list: none of the 6 images carries a class; correct"):
            run_sample.run(toy.flags(label_file="labels.csv", **switches(step)))


def test_where_no_labels_tell_an_image_counts_as_having_a_class(toy):
    devkit = open_devkit(str(toy.root), "")
    assert ids_without_class(devkit, "nowhere.npy", toy.ids) == ids_without_class(devkit, None, toy.ids) == set()
    write_table("labels.csv", [(toy.ids[0], []), (toy.ids[1], ["train"])])
    assert ids_without_class(devkit, "labels.csv", toy.ids) == {toy.ids[0]}
    (toy.root / "Annotations" / f"{toy.ids[3]}.xml").write_text("<annotation/>")
    assert not read_labels(devkit, "voc12/cls_labels.npy", toy.ids)[3].any()
    assert ids_without_class(devkit, "voc12/cls_labels.npy", toy.ids) == set()  # annotations don't say so


def test_what_is_derived_is_so_however_its_path_is_written(toy):
    devkit = open_devkit(str(toy.root), "")
    labels = read_labels(devkit, Path("voc12/cls_labels.npy").resolve(), toy.ids)
    assert labels.counts().sum() > 0
    assert read_list(devkit, Path("voc12/train.txt").resolve(), flag="train_list")
