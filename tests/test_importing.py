"""Importing one's own data: what is read of each kind of source, and the devkit that becomes of it."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from support import CAM_START

import run_sample
from benchmarks import bench_own_data
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import image_size, read_image, read_label, turned_upright
from misc.files.instancefile import Detections
from misc.run.config import enabled_steps, parse_config, switches
from net.weights import save_weights
from tests import own_network
from voc12.devkit import open_devkit
from voc12.importing import devkit as importing
from voc12.importing.coco import read_coco
from voc12.importing.folders import read_folders
from voc12.importing.masks import masks_of
from voc12.importing.names import new_ids
from voc12.importing.pictures import facts_of
from voc12.importing.source import SourceObject
from voc12.importing.split import held_out
from voc12.importing.tables import read_label_table
from voc12.labels import read_labels
from voc12.sample import ensure
from voc12.verify import require_instances, require_masks

ROOT = Path("mine")
JPEG_START = b"\xff\xd8"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path: str, number: int = 0, *, size: tuple[int, int] = (24, 36), orientation: int | None = None) -> Path:
    """An image file of noise, the same for one number; `size` is (H, W)."""
    image = Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8))
    exif = image.getexif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({} if orientation is None else {"exif": exif}))
    return Path(path)


def sorted_pictures() -> None:
    """Ten cats, ten dogs and five images without either, the first cat in both folders."""
    for number in range(25):
        picture(f"photos/{('cat', 'dog', 'none')[number // 10]}/{number}.png", number)
    picture("photos/dog/first.png", 0)


def import_data(source: str = "photos", **flags: object) -> None:
    flags = {"import_from": source, "voc12_root": ROOT, "num_workers": 0, "device": "cpu", **flags}
    run_sample.run([word for name, value in flags.items() for word in (f"--{name}", str(value))] + IMPORT)


IMPORT = ["--import_data_pass", "True"]


def lines(name: str) -> list[str]:
    return (ROOT / name).read_text().splitlines()


def log() -> str:
    return Path("sample_train_eval.log").read_text()


def lists_of(split: str) -> dict[str, list[str]]:
    return {kind: lines(f"ImageSets/{kind}/{split}.txt") for kind in ("Main", "Segmentation")}


def lists() -> dict[str, list[str]]:
    return {
        f"{kind}/{split}": lines(f"ImageSets/{kind}/{split}.txt")
        for kind in ("Main", "Segmentation")
        for split in ("train", "val")
    }


def everything() -> dict[str, tuple[int, bytes]]:
    """{path: inode and content} of the files of the devkit."""
    files = (path for path in ROOT.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in files}


# What is read


def test_a_folder_a_class():
    sorted_pictures()
    picture("photos/cat/below/deep.JPG", 30)
    for name in ("photos/loose.jpg", "photos/.hidden/a.jpg", "photos/cat/Thumbs.db", "photos/cat/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("photos/empty").mkdir()
    found = read_folders(Path("photos"), no_class="none")
    assert found.classes == ("cat", "dog")
    labels = {image.name: image.labels for image in found.images}
    assert len(labels) == 27
    assert labels["cat/below/deep.JPG"] == ("cat",)
    assert labels["dog/first.png"] == ("dog",)
    assert labels["none/24.png"] == ()
    assert [(item.name, item.reason) for item in found.left_out] == [
        ("loose.jpg", "not in the folder of a class"),
        ("cat/notes.txt", "no kind of image that can be read"),
        ("empty", "a class without images"),
    ]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("file,labels\na.jpg,dog;cat\nsub/b.jpg,\nc.jpg,dog\nmissing.jpg,cat\n", ("cat", "dog")),
        ("\ufefffile;labels\r\na.jpg;cat | dog\r\nsub\\b.jpg;\r\nc.jpg;dog;;\r\nmissing.jpg;cat\r\n", ("cat", "dog")),
        ("file\tdog\tcat\na.jpg\t1\t1\nb.jpg\t0\tFalse\nc.jpg\t1.0\t0\n\nmissing.jpg\t0\t1\n", ("dog", "cat")),
        ("id,labels\na.jpg,cat\nb.jpg,no\nc.jpg,dog\na.jpg,dog\nmissing.jpg,cat\n", ("cat", "dog")),
    ],
)
def test_tables(text, classes):
    for name in ("a", "sub/b", "c"):
        picture(f"images/{name}.jpg")
    picture("images/b.jpg")
    Path("t.csv").write_text(text, newline="")
    no_class = "no" if ",no\n" in text else ""
    found = read_label_table(Path("t.csv"), Path("images"), no_class=no_class)
    assert found.classes == classes
    assert [set(image.labels) for image in found.images] == [{"cat", "dog"}, set(), {"dog"}]
    assert [item.name for item in found.left_out] == ["missing.jpg"]
    assert all(image.path.is_file() for image in found.images)


@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize(
    ("names", "folder", "right"),
    [
        (("a/000.png", "b/000.png"), "images/a", "images"),
        (("b/000.png", "a/000.png"), "images/c", "images"),
        (("000.png", "b/000.png"), "images/c", "FOLDER"),
        (("b\\000.png", "c/000.png"), "images/c", "images"),
    ],
)
def test_names_that_are_one_file_by_their_last_part_are_refused(kind, names, folder, right):
    for number, name in enumerate("abc"):
        picture(f"images/{name}/000.png", number)
    if kind == "csv":
        path = Path("t.csv")
        path.write_text(f"file,labels\n{names[0]},cat\n{names[1]},dog\n")
    else:
        path = coco(
            [{"id": number, "file_name": name} for number, name in enumerate(names)],
            [{"image_id": number, "category_id": (3, 90)[number]} for number in (0, 1)],
        )
    one, other = (name.replace("\\", "/") for name in names)
    sentence = (
        f"--import_images {folder}: {one} and {other} are both {folder}/000.png by the last part of their names; "
    )
    with pytest.raises(
        InputError, match=f"^{sentence}pass --import_images {right}, the one that both names are relative to"
    ):
        import_data(path, import_images=folder)


def test_names_that_are_found_by_their_last_part_are_told():
    sorted_pictures()
    Path("t.csv").write_text("file,labels\n0.png,cat\nx/1.png,cat\ny/2.png,dog\nz/12.png,dog\n")
    import_data("t.csv", import_images="photos/cat")
    assert "notice: 2 of 4 names were found by their last part alone, such as x/1.png -> photos/cat/1.png\n" in log()
    assert lines("labels.csv")[1:] == ["0.png,cat", "1.png,cat", "2.png,dog"]
    assert lines("left_out.csv")[1:] == ["z/12.png,not in photos/cat,"]


def test_classes_of_folders_may_look_like_lists():
    for number, name in enumerate(("maillot, tank suit", "maillot", "[x]")):
        picture(f"photos/{name}/{number}.png", number)
    import_data()
    assert lines("labels.csv")[1:] == ["2.png,[x]", "1.png,maillot", '0.png,"maillot, tank suit"']
    import_data()
    labels = read_labels(open_devkit(str(ROOT), ""), ROOT / "labels.csv", ["0", "1", "2"])
    assert labels.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_names_without_their_suffix_are_those_of_the_one_image_that_has_them():
    for number, name in enumerate(("a/000.jpg", "a/001.PNG", "a/002.v1.png", "b/000.jpg", "a/003.jpg.png")):
        picture(f"images/{name}", number)
    Path("images/a/000.txt").touch()
    Path("t.csv").write_text("id,labels\na/000,cat\na/001,dog\na/002.v1,\nb/000,dog\na/003.jpg,cat\na/004,cat\n")
    found = read_label_table(Path("t.csv"), Path("images"), no_class="")
    names = ["a/000.jpg", "a/001.PNG", "a/002.v1.png", "b/000.jpg"]
    assert [image.path for image in found.images] == [Path("images", name) for name in names]
    assert [item.name for item in found.left_out] == ["a/003.jpg", "a/004"]
    picture("images/a/000.png")
    sentence = r"images: a/000 may be 000.jpg, 000.png in images/a; expected the names of files with their suffix\.$"
    with pytest.raises(InputError, match=sentence):
        read_label_table(Path("t.csv"), Path("images"), no_class="")
    Path("t.csv").write_text("id,labels\nx/000,cat\nx/001,dog\n")
    sentence = (
        r"none of its 2 images is in images/b/x \(.*\); expected the names of files with their suffix; pass --import"
    )
    Path("images/b/x").mkdir()
    with pytest.raises(InputError, match=sentence):
        read_label_table(Path("t.csv"), Path("images/b/x"), no_class="")


SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def coco(images: list[dict], annotations: list[dict]) -> Path:
    """A COCO file of three categories whose ids are not in order."""
    categories = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 0, "name": "background"}]
    content = {"images": images, "annotations": annotations, "categories": [*categories, {"id": 5, "name": "bird"}]}
    Path("c.json").write_text(json.dumps(content))
    return Path("c.json")


def coco_of_three() -> Path:
    """Two images with masks, and one without any object."""
    images = []
    for number, name in ((7, "a.png"), (9, "b.png"), (12, "c.png")):
        picture(f"images/{name}", number)
        images.append({"id": number, "file_name": name, "height": 24, "width": 36})
    left, crowd = np.zeros((24, 36), np.uint8, order="F"), np.zeros((24, 36), np.uint8, order="F")
    left[:, :12], crowd[:, 20:] = 1, 1
    compressed = coco_mask.encode(left)
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": SQUARE},
        {"image_id": 7, "category_id": 90, "segmentation": {**compressed, "counts": compressed["counts"].decode()}},
        {
            "image_id": 9,
            "category_id": 90,
            "iscrowd": 1,
            "segmentation": {"size": [24, 36], "counts": [20 * 24, 16 * 24]},
        },
    ]
    return coco(images, annotations)


def test_coco():
    found = read_coco(coco_of_three(), Path("images"))
    assert found.classes == ("dog", "cat", "bird")
    assert found.category_ids == {"dog": 90, "cat": 3, "bird": 5}
    assert [(image.labels, image.coco_id) for image in found.images] == [(("cat", "dog"), 7), (("dog",), 9), ((), 12)]
    assert [len(image.objects) for image in found.images] == [2, 1, 0]


def test_coco_boxes_alone_are_labels_without_masks():
    picture("images/a.png")
    path = coco([{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4]}])
    (image,) = read_coco(path, Path("images")).images
    assert (image.labels, image.objects) == (("cat",), None)


def test_a_coco_category_that_says_there_is_no_class_is_refused_where_annotations_have_it():
    picture("images/a.png")
    path = coco([{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "category_id": 0, "bbox": [0, 0, 4, 4]}])
    with pytest.raises(InputError, match="have the category 'background', .*; remove these annotations, or rename it"):
        read_coco(path, Path("images"))


def test_smaller_objects_are_in_front_and_a_crowd_is_no_instance():
    large = {"size": [4, 4], "counts": [0, 16]}
    objects = [
        SourceObject("cat", [[1, 1, 3, 1, 3, 3, 1, 3]], is_crowd=False),
        SourceObject("dog", large, is_crowd=False),
        SourceObject("dog", {"size": [4, 4], "counts": [15, 1]}, is_crowd=True),
    ]
    classes, instances = masks_of(objects, (4, 4), {"dog": 1, "cat": 2})
    np.testing.assert_array_equal(classes, [[1, 1, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(instances, [[2, 2, 2, 2], [2, 1, 1, 2], [2, 1, 1, 2], [2, 2, 2, 255]])


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 1, 2]],
        [[1, 1, 2, 2]],
        [[1, 1, 2, 2, 3, "x"]],
        [[1, 1, 2, 2, 3, 1e9]],
        {"size": [5, 5], "counts": [25]},
        {"size": [4, 4], "counts": [10]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "0"},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "a é"},
        {"size": [4, 4], "counts": None},
    ],
)
def test_segmentations_that_are_none_are_refused(segmentation):
    with pytest.raises(ValueError, match="polygon|run lengths"):
        masks_of([SourceObject("cat", segmentation, is_crowd=False)], (4, 4), {"cat": 1})


# What is decided


def test_ids():
    names = ["cat/été 1.jpg", "cat/001.jpg", "dog/001.png", "dog/CON.png", "cat/日本.jpg", "dog/A.jpg", "x/a.b.jpg"]
    assert new_ids(names, ["a"]) == ["ete_1", "cat_001", "dog_001", "image_CON", "image_", "dog_A", "a_b"]
    assert new_ids(["a b.jpg", "a_b.png", "A_B.jpg"], []) == ["a_b", "a_b_2", "A_B_3"]
    assert len(new_ids(["x" * 300 + ".jpg"], [])[0]) == 100


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 1])
def test_each_class_has_its_share_held_out(share):
    rng = np.random.default_rng(1)
    labels = rng.random((400, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    settled = [None] * 400
    result = held_out(labels, share, seed=3, settled=settled)
    groups = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    np.testing.assert_allclose(groups[result].sum(axis=0), share * groups.sum(axis=0), atol=2)
    assert abs(result.sum() - share * 400) <= 3
    np.testing.assert_array_equal(result, held_out(labels, share, seed=3, settled=settled))
    assert share in (0, 1) or (result != held_out(labels, share, seed=4, settled=settled)).any()


def test_what_is_settled_stays_and_counts():
    labels = np.ones((20, 1), dtype=bool)
    settled = [True] * 5 + [False] * 5 + [None] * 10
    result = held_out(labels, 0.25, seed=0, settled=settled)
    assert result.tolist() == settled[:10] + [False] * 10
    assert not held_out(np.ones((1, 1), dtype=bool), 0.4, seed=0, settled=[None]).any()


@pytest.mark.parametrize("names", [("train", "val"), ("val", "train")])
def test_the_split_of_two_coco_files_is_kept(names):
    ids = {"train": ["1", "2", "3", "4", "5"], "val": ["6", "7", "8"]}
    for name in names:
        images = [{"id": int(k), "file_name": picture(f"{name}2017/{k}.png", int(k)).name} for k in ids[name]]
        notes = [
            {"image_id": int(k), "category_id": category, "bbox": [0, 0, 4, 4]}
            for k in ids[name][:-1]
            for category in (3, 90, 5)[int(k) % 2 : 1 + int(k) % 3]
        ]
        source = coco(images, notes).rename(f"instances_{name}2017.json")
        import_data(source, import_images=f"{name}2017", import_val_share=int(name == "val"))
    assert {name: lines(f"ImageSets/Main/{name}.txt") for name in names} == ids


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_orientations_are_found_without_decoding(suffix, orientation, monkeypatch):
    path = picture(f"a{suffix}", orientation=orientation)
    seen = read_image(path, upright=True)
    with monkeypatch.context() as patch:
        if orientation is None:
            patch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it is decoded"))
        facts = facts_of(path)
    assert facts.size == image_size(path)
    assert facts.upright_size == seen.shape[:2]
    np.testing.assert_array_equal(turned_upright(read_image(path), facts.orientation), seen)


# What is written


def test_folders_become_a_devkit():
    sorted_pictures()
    Path("photos/cat/bad.jpg").write_bytes(b"no image")
    import_data(import_no_class="none")
    assert lines("classes.txt") == ["cat", "dog"]
    table = lines("labels.csv")
    assert table[:2] == ["file,labels", "0.png,cat;dog"]
    assert table[-1] == "24.png,"
    found = lists()
    assert [len(ids) for ids in found.values()] == [20, 5, 16, 4]
    assert {*found["Main/train"]} - {*found["Segmentation/train"]} <= {"20", "21", "22", "23", "24"}
    assert lines("left_out.csv")[1] == "cat/bad.jpg,can't be read,cannot identify image file"
    assert (
        lines("left_out.csv")[2] == 'dog/first.png,"the same picture as another, which has the labels of all",cat/0.png'
    )
    assert lines("import.csv")[1].startswith(f"0,cat/0.png,{Path('photos').resolve()},")
    assert os.path.samefile(ROOT / "JPEGImages/0.png", "photos/cat/0.png")
    assert "1 can't be read (cat/bad.jpg: cannot identify image file)" in log()
    assert re.search(r"^without a class +4 +1\nall images +20 +5\n.* added 25 images \(0 of them turned", log(), re.M)
    devkit = open_devkit(str(ROOT), "")
    assert read_labels(devkit, ROOT / "labels.csv", ["0", "1", "24"]).tolist() == [[1, 1], [1, 0], [0, 0]]


def test_importing_again_adds_what_is_new_and_changes_nothing_else():
    sorted_pictures()
    import_data(import_no_class="none")
    before, places = everything(), lists()
    import_data(import_no_class="none")
    assert everything() == before
    Path("mine/labels.csv").write_text(Path("mine/labels.csv").read_text().replace("1.png,cat\n", "1.png,dog\n", 1))
    os.rename("photos", "moved")  # what is there is known by its content
    for number, name in enumerate(("cat/0.png", "ant/0.png", "cat/1.png"), start=40):
        Path("moved", name).unlink(missing_ok=True)  # the devkit's image is the same file
        picture(f"moved/{name}", number)
    import_data("moved", import_no_class="none", seed=7)
    assert lines("classes.txt") == ["cat", "dog", "ant"]
    assert [line.split(",")[0] for line in lines("import.csv")[-3:]] == ["ant_0", "cat_0", "cat_1"]
    assert [line for line in lines("labels.csv") if line.startswith("1.png")] == ["1.png,dog"]
    for name, ids in lists().items():
        assert ids[: len(places[name])] == places[name]
    after = everything()
    images = [name for name in before if "/JPEGImages/" in name]
    assert {name: after[name] for name in images} == {name: before[name] for name in images}


def test_a_file_that_changed_in_its_place_is_told():
    sorted_pictures()
    import_data(import_no_class="none")
    os.remove("photos/dog/15.png")
    picture("photos/dog/15.png", 50)
    before = everything()
    import_data(import_no_class="none")
    assert "1 changed since it was imported, and stays as it was (dog/15.png: 15)" in log()
    before.pop("mine/left_out.csv")
    assert {name: content for name, content in everything().items() if name in before} == before


@pytest.mark.parametrize("killed_at", ["write_classes", "write_table", "write_rows", "write_palette", "place_image"])
def test_a_killed_import_leaves_no_list_and_the_next_one_is_whole(killed_at, monkeypatch):
    path = coco_of_three()
    import_data(path, import_images="images", voc12_root="whole")

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importing, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            import_data(path, import_images="images")
    assert not (ROOT / "ImageSets").exists()
    picture("images/a.png", 60)  # so that another content has the id
    import_data(path, import_images="images")
    assert everything().keys() == {name.replace("whole", "mine") for name in map(str, Path("whole").rglob("*.*"))}
    assert {name: (ROOT / name).read_text() for name in ("labels.csv", "classes.txt", "coco_ids.json")} == {
        name: (Path("whole") / name).read_text() for name in ("labels.csv", "classes.txt", "coco_ids.json")
    }
    assert os.path.samefile(ROOT / "JPEGImages/a.png", "images/a.png")


def test_nothing_is_written_where_no_image_can_be_used():
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"none of its 1 images can be used \(cat/a.jpg: cannot identify image file"):
        import_data()
    assert everything() == {}
    whole = picture("photos/cat/a.jpg", orientation=6).read_bytes()
    Path("photos/cat/a.jpg").write_bytes(whole[:-200])  # which turning it finds, but not its header
    with pytest.raises(
        InputError, match=r"none of its images can be used \(1 can't be read \(cat/a.jpg: image file is"
    ):
        import_data()
    assert everything() == {}
    Path("photos/cat/a.jpg").write_bytes(whole)
    import_data()
    assert lines("labels.csv") == ["file,labels", "a.jpg,cat"]


def test_images_are_copied_where_there_are_no_links(monkeypatch):
    def refuse(*args, **options):
        raise OSError(18, "Invalid cross-device link")

    sorted_pictures()
    os.symlink(Path("photos/dog/11.png").resolve(), "photos/dog/link.png")
    monkeypatch.setattr(os, "link", refuse)
    import_data(import_no_class="none")
    assert not os.path.samefile(ROOT / "JPEGImages/0.png", "photos/cat/0.png")
    assert (ROOT / "JPEGImages/0.png").read_bytes() == Path("photos/cat/0.png").read_bytes()
    assert not any(path.is_symlink() for path in (ROOT / "JPEGImages").iterdir())


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photographs_are_turned_upright(suffix):
    pixels = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Path("photos/cat").mkdir(parents=True)
    Image.fromarray(pixels).save(f"photos/cat/a{suffix}", exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    import_data()
    stored = read_image(ROOT / f"JPEGImages/a{suffix}")
    seen = read_image(f"photos/cat/a{suffix}", upright=True)
    assert stored.shape == (60, 40, 3)
    np.testing.assert_array_equal(read_image(ROOT / f"JPEGImages/a{suffix}", upright=True), stored)
    assert np.abs(stored.astype(int) - seen).max() <= (0 if suffix == ".png" else 6)
    assert lines("import.csv")[1].endswith(",1")


def test_the_second_coding_of_turned_photographs_is_not_seen(voc_subset):
    """Of 60 photographs of VOC, by a quarter: 1.3 of 255 on average, 43 dB, as docs/own_data.md says."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    segment = exif.tobytes()
    Path("photos/cat").mkdir(parents=True)
    paths = [Path("photos/cat", path.name) for path in sorted((voc_subset / "JPEGImages").glob("*.jpg"))[:60]]
    for path in paths:
        stored = (voc_subset / "JPEGImages" / path.name).read_bytes()
        assert stored.startswith(JPEG_START)
        path.write_bytes(
            JPEG_START + b"\xff\xe1" + (2 + len(segment)).to_bytes(2, "big") + segment + stored.removeprefix(JPEG_START)
        )
    import_data()
    changes, decibels = [], []
    for path in paths:
        change = read_image(ROOT / "JPEGImages" / path.name).astype(float) - read_image(path, upright=True)
        changes.append(np.abs(change).mean())
        decibels.append(20 * np.log10(255 / np.sqrt((change**2).mean())))
    print(f"{np.mean(changes):.2f} of 255, {np.mean(decibels):.1f} dB")
    assert np.mean(changes) < 1.35
    assert np.mean(decibels) > 42.5


@pytest.mark.parametrize("size_of_json", ["stored", "upright"])
def test_masks_of_a_turned_photograph_lie_on_it(size_of_json):
    picture("images/a.png", orientation=6)
    height, width = (24, 36) if size_of_json == "stored" else (36, 24)
    segmentation = {"size": [height, width], "counts": [height * width - 5, 5]}
    path = coco(
        [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        [{"image_id": 1, "category_id": 3, "segmentation": segmentation}],
    )
    import_data(path, import_images="images")
    mask = read_label(ROOT / "SegmentationClass/a.png")
    assert mask.shape == read_image(ROOT / "JPEGImages/a.png").shape[:2] == (36, 24)
    where = (slice(35, 36), slice(0, 5)) if size_of_json == "stored" else (slice(31, 36), slice(23, 24))
    assert mask.sum() == mask[where].sum() == 10


@pytest.mark.parametrize(
    ("orientation", "size", "reason"),
    [
        (3, (24, 36), "turned by EXIF, and its size does not tell"),
        (1, (36, 24), "of another size than its annotations"),
    ],
)
def test_masks_that_may_not_fit_leave_the_image_out(orientation, size, reason):
    picture("images/a.png", orientation=orientation)
    picture("images/b.png", 1)
    entries = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]} for number, name in ((1, "a.png"),)
    ]
    path = coco(
        [*entries, {"id": 2, "file_name": "b.png"}],
        [{"image_id": number, "category_id": 3, "segmentation": SQUARE} for number in (1, 2)],
    )
    import_data(path, import_images="images")
    assert lines("left_out.csv")[1].startswith("a.png,")
    assert reason in lines("left_out.csv")[1]
    assert [path.name for path in (ROOT / "SegmentationClass").iterdir()] == ["b.png"]


def test_coco_becomes_a_devkit_with_masks_and_its_ids_come_back():
    import_data(coco_of_three(), import_images="images", import_val_share=0)
    assert lines("classes.txt") == ["dog", "cat", "bird"]
    devkit = open_devkit(str(ROOT), "")
    require_masks(devkit, ["a", "b", "c"], num_workers=0)
    require_instances(devkit, ["a", "b", "c"], num_workers=0)
    mask = read_label(devkit.mask_path("a"))
    assert [mask[4, 4], mask[20, 4], mask[20, 20]] == [2, 1, 0]
    assert not (ROOT / "ImageSets/Main/val.txt").exists()
    nothing = Detections(np.ones(1, np.float32), np.ones((1, 24, 36), bool), np.array([1]))
    for image_id in ("a", "b"):
        instancefile.save(f"result/ins_seg_ood/{image_id}.npy", nothing)
    run_sample.run(["--voc12_root", str(ROOT), "--num_workers", "0", *arguments_of(switches("make_cocoann"))])
    content = json.loads(Path("result/cocoann.json").read_text())
    assert [(item["id"], item["name"]) for item in content["categories"]] == [(90, "dog"), (3, "cat"), (5, "bird")]
    assert [(item["id"], item["file_name"]) for item in content["images"]] == [(7, "a.png"), (9, "b.png")]
    assert [(item["image_id"], item["category_id"]) for item in content["annotations"]] == [(7, 3), (9, 3)]


def test_ids_of_a_second_coco_file_that_others_have_are_told():
    import_data(coco_of_three(), import_images="images")
    before = json.loads((ROOT / "coco_ids.json").read_text())
    entries = [{"id": number, "file_name": picture(f"more/{number}.png", number + 20).name} for number in (8, 9, 12)]
    content = json.loads(coco(entries, []).read_text()) | {
        "categories": [{"id": 3, "name": "cow"}, {"id": 90, "name": "dog"}]
    }
    Path("c.json").write_text(json.dumps(content))
    import_data("c.json", import_images="more")
    sentence = (
        "notice: 2 images and 1 categories have ids in the COCO file that others have in mine/coco_ids.json, and get"
    )
    assert log().count(sentence) == 1
    before["images"]["8"] = 8
    assert json.loads((ROOT / "coco_ids.json").read_text()) == before


def arguments_of(flags: dict[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


# What later steps make of it


def test_the_root_alone_names_labels_and_lists():
    sorted_pictures()
    import_data(import_no_class="none")
    said: list[str] = []
    config = parse_config(["--voc12_root", "mine"], explain=said.append)
    assert config.label_file == "mine/labels.csv"
    assert config.train_list == "mine/ImageSets/Main/train.txt"
    assert config.val_list == "mine/ImageSets/Main/val.txt"
    assert config.infer_list == "mine/ImageSets/Main/train.txt"
    assert enabled_steps(config) == ["train_cam", "make_cam"]
    assert said[0].startswith("mine was imported: its own labels and lists are taken (--label_file mine/labels.csv, ")
    assert said[1] == "evaluations are left out: there are no masks in mine/SegmentationClass."
    given = parse_config(["--voc12_root", "mine", "--train_list", "x.txt", "--eval_cam_pass", "True"])
    assert (given.train_list, given.eval_cam_pass) == ("x.txt", True)
    small = parse_config(["--voc12_root", "mine", "--recipe", "small"], explain=said.append)
    assert small.train_list == config.train_list
    assert small.cam_batch_size == 16
    (ROOT / "SegmentationClass").mkdir()
    (ROOT / "SegmentationClass/1.png").touch()
    assert enabled_steps(parse_config(["--voc12_root", "mine"])) == ["train_cam", "make_cam", "eval_cam"]
    os.rename("mine/import.csv", "mine/other.csv")  # any other folder stays as it is
    assert parse_config(["--voc12_root", "mine"]).label_file == "voc12/cls_labels.npy"


@pytest.fixture
def imported(toy):
    """The toy data's images, two of them without a class, imported to `mine`: the flags of a run, and the others' ids.

    The devkit needs no flag beside its root.
    """
    for number, image_id in enumerate(toy.ids):
        folder = toy.work / "photos" / ("none" if number in (2, 5) else ("cat", "dog")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        os.link(toy.root / f"JPEGImages/{image_id}.jpg", folder / f"{image_id}.jpg")
    import_data("photos", import_no_class="none", import_val_share=0)
    save_weights(own_network.Net(n_classes=2), CAM_START)
    flags = toy.flags(voc12_root="mine", redo=(), cam_batch_size=8)
    return flags, [image_id for number, image_id in enumerate(toy.ids) if number not in (2, 5)]


def test_images_without_a_class_train_the_classifier_and_have_no_cams(imported):
    flags, with_class = imported
    run_sample.run(flags)
    assert sorted(path.stem for path in Path("result/cam_ood").glob("*.npy")) == with_class
    assert camfile.load(f"result/cam_ood/{with_class[1]}.npy", 2)[0].tolist() == [1]
    sentence = "notice: 2 of the 8 images of --train_list carry no class: they train the classifier, and are left out"
    assert log().count(sentence) == 1
    run_sample.run(flags)
    assert "make_cam is done, since" in log()


def test_images_without_a_class_have_no_masks(imported, monkeypatch):
    chains = []
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: chains.append((config, steps)))
    flags, with_class = imported
    masks = ("cam_to_ir_label", "train_irn", "make_sem_seg", "make_ins_seg", "make_cocoann", "train_deeplab")
    chain = switches("train_cam", "make_cam", "make_advcam", *masks)
    batches = {"irn_batch_size": 6, "deeplab_batch_size": 6}
    run_sample.run([*flags, *arguments_of(chain | batches)])
    assert log().count("carry no class") == 2  # a sentence for each of the two lists
    ((config, steps),) = chains
    for step in steps[1:]:
        images = [given.paths for name, given in step.inputs(config).items() if name in ("train_list", "infer_list")]
        assert images
        assert all(sorted(Path(path).stem for path in paths) == with_class for paths in images)
    with pytest.raises(InputError, match="--infer_list has 6 images, fewer than one batch .--deeplab_batch_size 7"):
        run_sample.run([*flags, *arguments_of(chain | batches | {"deeplab_batch_size": 7})])


def test_masks_of_a_coco_file_choose_weights_and_evaluate_cams(toy):
    images, annotations = [], []
    for number, image_id in enumerate(toy.ids):
        truth = read_label(toy.root / f"SegmentationClass/{image_id}.png")
        images.append({"id": number, "file_name": f"{image_id}.jpg", "height": len(truth), "width": len(truth[0])})
        for class_id in np.setdiff1d(truth, (0, 255))[: number != 3]:  # the fourth image has no object
            encoded = coco_mask.encode(np.asfortranarray(truth == class_id, dtype=np.uint8))
            segmentation = {**encoded, "counts": encoded["counts"].decode()}
            annotations.append(
                {"image_id": number, "category_id": (90, 3, 5)[class_id - 1], "segmentation": segmentation}
            )
    import_data(coco(images, annotations), import_images=toy.root / "JPEGImages", import_val_share=0)
    save_weights(own_network.Net(n_classes=3), CAM_START)
    run_sample.run(toy.flags(voc12_root="mine", redo=(), cam_batch_size=8))
    assert "kept the weights of step" in log()
    assert json.loads(Path("result/scores/eval_cam.json").read_text())["images"] == 7


def boxes(number: int, folder: str) -> Path:
    """A COCO file of three images in a folder, with boxes alone."""
    names = [picture(f"{folder}/{k}.png", k).name for k in range(number, number + 3)]
    notes = [{"image_id": k, "category_id": 3, "bbox": [0, 0, 4, 4]} for k in range(number, number + 3)]
    return coco([{"id": number + k, "file_name": name} for k, name in enumerate(names)], notes)


@pytest.mark.parametrize("masks_come", ["first", "last"])
def test_where_some_images_have_masks_evaluations_have_no_others(masks_come):
    def with_masks():
        import_data(coco_of_three(), import_images="images", import_val_share=0)

    def without():
        import_data(boxes(100, "more"), import_images="more", import_val_share=0)

    for step in (with_masks, without) if masks_come == "first" else (without, with_masks):
        step()
    assert sorted(lines("ImageSets/Main/train.txt")) == ["100", "101", "102", "a", "b", "c"]
    assert sorted(lines("ImageSets/Segmentation/train.txt")) == ["a", "b"]
    assert "notice: 3 of 5 images with a class have no mask: they are trained with, and no evaluation counts" in log()
    require_masks(open_devkit(str(ROOT), ""), lines("ImageSets/Segmentation/train.txt"), num_workers=0)
    small = parse_config(["--voc12_root", "mine", "--recipe", "small"])
    assert small.train_list == small.infer_list == "mine/ImageSets/Main/train.txt"
    assert (small.cam_batch_size, small.deeplab_batch_size) == (6, 5)


def test_a_list_of_which_no_image_has_a_mask_is_left_out():
    import_data(boxes(100, "more"), import_images="more", import_val_share=0)
    assert len(lines("ImageSets/Segmentation/train.txt")) == 3
    import_data(coco_of_three(), import_images="images", import_val_share=1)
    assert not (ROOT / "ImageSets/Segmentation/train.txt").exists()
    assert lines("ImageSets/Segmentation/val.txt") == ["a", "b"]
    said: list[str] = []
    assert enabled_steps(parse_config(["--voc12_root", "mine"], explain=said.append)) == ["train_cam", "make_cam"]
    assert said[1:] == [
        "evaluations that need it are left out: there is no list mine/ImageSets/Segmentation/train.txt of images with "
        "masks."
    ]


def test_polygons_of_fewer_than_three_points_are_no_segmentations():
    names = [picture(f"images/{name}.png", number).name for number, name in enumerate("abc")]
    segmentations = ([[1, 1, 2, 2]], [[1, 1, 2, 2], *SQUARE], SQUARE)
    path = coco(
        [{"id": number, "file_name": name} for number, name in enumerate(names)],
        [{"image_id": number, "category_id": 3, "segmentation": each} for number, each in enumerate(segmentations)],
    )
    import_data(path, import_images="images", import_val_share=0)
    assert lines("left_out.csv")[1:] == []
    assert lists_of("train") == {"Main": ["a", "b", "c"], "Segmentation": ["b", "c"]}
    assert (read_label(ROOT / "SegmentationClass/b.png") == read_label(ROOT / "SegmentationClass/c.png")).all()


def test_images_without_masks_are_trained_with(toy):
    images, annotations = [], []
    for number, image_id in enumerate(toy.ids):
        height, width = read_label(toy.root / f"SegmentationClass/{image_id}.png").shape
        images.append({"id": number, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        of_image = {"image_id": number, "category_id": (90, 3, 5)[number % 3], "bbox": [0, 0, 4, 4]}
        annotations.append(of_image | ({"segmentation": SQUARE} if number > 1 else {}))
    import_data(coco(images, annotations), import_images=toy.root / "JPEGImages", import_val_share=0)
    save_weights(own_network.Net(n_classes=3), CAM_START)
    run_sample.run(toy.flags(voc12_root="mine", redo=(), cam_batch_size=8))
    assert "kept the weights of step" in log()
    assert sorted(path.stem for path in Path("result/cam_ood").glob("*.npy")) == toy.ids
    assert json.loads(Path("result/scores/eval_cam.json").read_text())["images"] == 6


def test_the_road_of_own_data_knows_its_images_again(tmp_path, monkeypatch):
    sample, folder = tmp_path / "sample", tmp_path / "road"
    folder.mkdir()
    ensure(sample, workers=1, n_train=9, n_val=2, n_ood=3, long_side=96)
    bench_own_data.sort(sample, folder)
    assert len([*(folder / "pool").iterdir()]) == 5
    monkeypatch.chdir(folder)
    run_sample.run([*bench_own_data.COMMANDS[bench_own_data.IMPORT], "--device", "cpu"])
    made = bench_own_data.compared(sample, folder)
    assert sum(map(len, made.values())) == len(Path("Data/mine/ImageSets/Main/train.txt").read_text().split()) + 2
    for masks in made.values():
        for path, image_id in masks:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample / f"SegmentationClass/{image_id}.png", path)
        assert bench_own_data.miou(masks, sample) == 100
    (folder / bench_own_data.CANDIDATES).parent.mkdir(parents=True)
    pool = sorted(f"pool/{path.name}" for path in (folder / "pool").iterdir())
    (folder / bench_own_data.CANDIDATES).write_text(
        "\n".join(["file,class,probability", *(f"{p},cow,1" for p in pool)])
    )
    bench_own_data.review(sample, folder)
    decided = (folder / bench_own_data.REVIEW).read_text().split()[1:]
    assert decided == [f"{path},{int('/2099_' in path)}" for path in pool]
