"""Lists, labels and CAM files in every form that users have."""

import json
import time
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from misc import camfile
from misc.errors import InputError
from misc.files import atomic_path, background_writer, json_list_writer, write_json
from misc.imutils import read_label
from misc.objectfile import load_object
from voc12.classes import VOC_CLASSES
from voc12.devkit import open_devkit
from voc12.labels import read_labels
from voc12.lists import read_list, read_ood_paths
from voc12.verify import VERIFIED_RECORD, require_instances, require_masks, require_readable


@pytest.fixture
def devkit(toy):
    return open_devkit(str(toy.root), "")


@pytest.mark.parametrize(
    "text",
    [
        "2099_000002\n2099_000001\n",
        "2099_000002\r\n\r\n2099_000001\r\n",
        "\ufeff2099000002\n  2099000001  ",
        "/JPEGImages/2099_000002.jpg /SegmentationClassAug/2099_000002.png\n"
        "/JPEGImages/2099_000001.jpg /SegmentationClassAug/2099_000001.png\n",
        "2099_000002.jpg\n2099_000001\n2099_000002\n",
    ],
    ids=["plain", "CRLF and blank lines", "BOM, no underscore", "two columns", "suffix and repetition"],
)
def test_lists_of_every_form(devkit, tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    assert read_list(devkit, path, flag="train_list") == ["2099_000002", "2099_000001"]


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


def test_ids_that_are_one_number_keep_their_own_labels(toy):
    for image_id, name in (("1_12", "train"), ("11_2", "bottle"), ("01", "aeroplane")):
        Image.new("RGB", (20, 20)).save(toy.root / "JPEGImages" / f"{image_id}.jpg")
        (toy.root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><object><name> {name} </name></object></annotation>"
        )
    devkit = open_devkit(str(toy.root), "")
    labels = read_labels(devkit, "voc12/cls_labels.npy", ["1_12", "11_2", "01"])
    assert labels.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.save("theirs.npy", {112: np.ones(3, np.float32)})
    assert read_labels(devkit, "theirs.npy", ["1_12"]).tolist() == [[1, 1, 1]]
    with pytest.raises(InputError, match="1_12 and 11_2 are one number"):
        read_labels(devkit, "theirs.npy", ["1_12", "11_2"])


def test_val_never_leaks_into_train_aug(devkit, toy):
    (toy.root / "ImageSets/Segmentation/val.txt").write_text("2099000007\r\n2099000008\r\n")
    assert read_list(devkit, "voc12/train_aug.txt", flag="train_list") == toy.ids[:6]


def test_images_with_upper_case_suffixes_are_found(devkit, toy, tmp_path):
    path = toy.root / "JPEGImages" / f"{toy.ids[0]}.jpg"
    path.rename(path.with_suffix(".JPG"))
    (tmp_path / "list.txt").write_text(f"{toy.ids[0]}.JPG\n")
    assert read_list(devkit, tmp_path / "list.txt", flag="train_list") == [toy.ids[0]]
    assert devkit.image_path(toy.ids[0]).is_file()


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
    assert open_devkit(str(toy.root), str(tmp_path / "own.txt")).classes == ("cat", "dog")
    (toy.root / "classes.txt").unlink()
    assert open_devkit(str(toy.root), "").classes == VOC_CLASSES
    (tmp_path / "own.txt").write_text("cat\ncat\n")
    with pytest.raises(InputError, match="different names"):
        open_devkit(str(toy.root), str(tmp_path / "own.txt"))


def test_a_devkit_nearby_is_suggested(toy):
    with pytest.raises(InputError, match=f"did you mean --voc12_root {toy.root}"):
        open_devkit(str(toy.root.parent / "VOC2012"), "")


def test_ood_paths_keep_the_order_of_the_list(toy):
    paths = read_ood_paths(str(toy.ood_root), str(toy.ood_list))
    assert [path.name for path in paths] == [f"scene{k}.jpg" for k in range(5)]


def test_images_are_checked_once_until_they_change(toy, monkeypatch):
    paths = sorted((toy.root / "JPEGImages").iterdir())
    require_readable(paths, num_workers=1)
    assert VERIFIED_RECORD.is_file()
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
    (toy.work / "voc12").mkdir()
    for name in (".derived.json", ".verified.json"):
        (toy.work / "voc12" / name).write_bytes(content)
    assert read_list(devkit, "voc12/train.txt", flag="train_list") == toy.ids[:6]
    require_readable([devkit.image_path(image_id) for image_id in toy.ids], num_workers=1)


def test_cam_files_are_the_originals(tmp_path):
    cam, high_res = torch.rand(2, 3, 4), torch.rand(2, 12, 16)
    camfile.save(tmp_path / "x.npy", [3, 7], cam, high_res)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = np.load(tmp_path / "x.npy", allow_pickle=True).item()  # as other projects read it
    assert content.keys() == {"keys", "cam", "high_res"}
    assert content["keys"].tolist() == [3, 7]
    assert torch.equal(content["cam"], cam)
    assert isinstance(content["high_res"], np.ndarray)
    assert content["high_res"].dtype == np.float32
    assert b"numpy._core" not in (tmp_path / "x.npy").read_bytes()  # a name that older NumPy lacks

    np.save(tmp_path / "theirs.npy", {"keys": torch.tensor([3, 7]), "cam": cam, "high_res": high_res.numpy()})
    for path in (tmp_path / "x.npy", tmp_path / "theirs.npy"):
        keys, read_cam, read_high_res = camfile.load(path)
        assert keys.tolist() == [3, 7]
        assert torch.equal(read_cam, cam)
        np.testing.assert_array_equal(read_high_res, high_res.numpy())


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
