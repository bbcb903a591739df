"""One look at the disk a run: what is asked once, what is asked again, and how many calls a start takes."""

import json
import os
import pickle
import sys
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support import ALL_STEPS, NO_STEPS

import run_sample
from benchmarks import bench_scale, bench_start
from misc.errors import InputError
from misc.files import look
from misc.files.images import image_size, image_sizes
from misc.files.jsonfile import read_dict
from misc.files.look import digest, folder_at, forget, one_look, read_once, remembered, states
from misc.files.paths import Paths
from misc.run.config import parse_config
from misc.run.device import UnfilledNetworks
from misc.run.plan import Plan, require_outputs
from misc.run.step import Step
from net.build import load_network
from net.resnet18_cam import CAM
from net.weights import save_weights
from voc12.devkit import open_devkit
from voc12.labels import Labels, read_labels
from voc12.lists import read_list
from voc12.verify import FOLDER, VERIFIED_FOLDER, record_of, require_masks, require_readable

UP_TO_MASKS = {step: on for step, on in ALL_STEPS.items() if "ins_seg" not in step and "deeplab" not in step} | {
    "make_cocoann_pass": False
}
QUESTIONS = {"stat", "lstat", "open", "listdir", "scandir", "readlink", "access"}


@contextmanager
def counted():
    """Count the calls to the file system that Python code makes in this thread."""
    calls = Counter()

    def note(frame, event, function):
        if event == "c_call" and function.__name__ in QUESTIONS and function.__module__ in ("posix", "io", "_io"):
            calls[function.__name__] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def grow(toy, n_images):
    """Give the toy data further images, links to the first ones, and put all of them into train.txt."""
    ids = [*toy.ids, *(f"2099_{number:06d}" for number in range(len(toy.ids) + 1, n_images + 1))]
    for number, image_id in enumerate(ids):
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
            path = toy.root / folder / f"{image_id}.{suffix}"
            if not path.exists():
                path.hardlink_to(path.with_stem(toy.ids[number % len(toy.ids)]))
    (toy.root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


def test_a_second_start_asks_three_times_an_image(toy, monkeypatch):
    """Once for the image, for its annotation and for its mask, in all steps together; the rest does not grow."""
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: None)
    train_list = toy.root / "ImageSets/Segmentation/train.txt"
    arguments = toy.flags(**NO_STEPS | UP_TO_MASKS, train_list=train_list, infer_list=train_list)
    sizes, calls = (8, 40, 104), []
    for n_images in sizes:
        grow(toy, n_images)
        run_sample.run(arguments)  # reads what is new
        with counted() as of_start:
            run_sample.run(arguments)
        calls.append(of_start)
    assert [after["stat"] - before["stat"] for before, after in pairwise(calls)] == [3 * 32, 3 * 64]
    assert [sum(after.values()) - sum(before.values()) for before, after in pairwise(calls)] == [3 * 32, 3 * 64]


def test_within_a_run_each_file_is_looked_at_once(toy):
    images = Paths(toy.root / "JPEGImages", (f"{image_id}.jpg" for image_id in toy.ids))
    with one_look(), counted() as calls:
        found = [states(images) for _ in range(3)]
        checksums = {digest(images) for _ in range(3)}
        names = [*folder_at(toy.root / "JPEGImages")]
    assert calls["stat"] == len(images)
    assert calls["listdir"] == 1
    assert len(checksums) == 1
    assert names == [f"{image_id}.jpg" for image_id in toy.ids]
    expected = [[stat.st_size, stat.st_mtime_ns, stat.st_ino] for stat in map(os.stat, images)]
    for of_images in (*found, states(images)):
        assert of_images.tolist() == expected


def test_what_is_no_file_is_missing(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("absent.png")
    (tmp_path / "file.png").write_text("x")
    paths = Paths(tmp_path, ("folder.png", "link.png", "absent.png", "file.png"))
    for context in (one_look(), nullcontext()):
        with context:
            assert (states(paths)[:, 0] == look.MISSING).tolist() == [True, True, True, False]
            assert len(states([])) == 0
            with pytest.raises(InputError, match="folder.png was there and is gone; put it back"):
                digest(paths)


def test_a_digest_changes_with_names_sizes_times_and_order(tmp_path):
    paths = Paths(tmp_path, ("a", "b"))
    for path in paths:
        Path(path).write_text("x")
        os.utime(path, (1, 1))
    digests = [digest(paths), digest(paths[::-1])]
    os.utime(paths[0], (1, 2))
    digests.append(digest(paths))
    Path(paths[0]).write_text("xy")
    os.utime(paths[0], (1, 1))
    digests.append(digest(paths))
    Path(paths[0]).rename(tmp_path / "c")
    digests.append(digest([tmp_path / "c", tmp_path / "b"]))
    assert len(set(digests)) == len(digests)


def test_a_folder_is_one_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "link").symlink_to("a")
    with one_look():
        assert folder_at("a") is folder_at(tmp_path / "link") is folder_at("./a/")
        (tmp_path / "a" / "y").write_text("x")
        assert "y" not in folder_at("a")
        forget(["link"])
        assert "y" in folder_at("a")
    assert "y" in folder_at("a")


def test_folders_that_may_not_be_listed_are_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(InputError, match=r"folder .* can't be listed \(Permission denied\); allow it or name another"):
        folder_at(tmp_path)


def test_what_a_step_writes_is_seen_by_the_next(toy):
    """Also where the folder was listed before, with some of its files there."""
    cams, seen = toy.work / "result/cam_ood", []
    cams.mkdir(parents=True)
    (cams / "a.npy").write_text("x")
    alone = {"description": "", "reads": (), "remembered": False}
    step = Step(name="make_cam", writes=("cam_out_dir", "deeplab_mask_dir"), **alone)
    other = Step(name="eval_cam", writes=(), **alone)

    def write(config):
        for name in ("a", "b"):
            (cams / f"{name}.npy").write_text("longer")

    def note(config):
        flags = {"flag": "cam_out_dir", "list_flag": "train_list", "made_by": "make_cam", "planned": Plan()}
        require_outputs(config.cam_out_dir, ["a", "b"], ".npy", **flags)
        seen.append(states([cams / "a.npy"])[0, 0])

    modules = [SimpleNamespace(STEP=each, run=run) for each, run in ((step, write), (other, note))]
    with one_look():
        assert states([cams / "a.npy"])[0, 0] == 1
        run_sample.run_chain(parse_config(toy.flags()), modules)
    assert seen == [6]


def test_results_are_kept_until_their_file_changes(tmp_path):
    path, reads = tmp_path / "list.txt", []
    path.write_text("a")
    read = lambda: reads.append(path.read_text()) or reads[-1]  # noqa: E731
    with one_look():
        assert [read_once(path, read, "text") for _ in range(3)] == ["a"] * 3
        path.write_text("ab")
        assert [read_once(path, read, "text") for _ in range(3)] == ["ab"] * 3
        assert remembered("key", lambda: reads.append("c") or 1) == remembered("key", lambda: reads.append("c") or 1)
    assert read_once(path, read, "text") == "ab"
    assert reads == ["a", "ab", "c", "ab"]


def test_lists_and_labels_are_read_once_in_a_run(toy):
    devkit = open_devkit(str(toy.root), "")
    np.save("labels.npy", {image_id: np.ones(3, np.float32) for image_id in toy.ids})
    with one_look(), counted() as calls:
        lists = [read_list(devkit, devkit.split_path("train"), flag="train_list") for _ in range(3)]
        labels = [read_labels(devkit, "labels.npy", lists[0]) for _ in range(3)]
    assert lists[0] == toy.ids[:6]
    assert lists[0] is lists[2]
    assert labels[0] is labels[2]
    assert calls["open"] == 2


def test_a_list_that_changes_between_check_and_work_ends_in_a_sentence(toy):
    devkit, path = open_devkit(str(toy.root), ""), toy.work / "list.txt"
    path.write_text(f"{toy.ids[0]}\n")
    with one_look():
        assert read_list(devkit, path, flag="train_list") == toy.ids[:1]
        path.write_text(f"{toy.ids[0]}\nnone\n")
        with pytest.raises(InputError, match=r"1 of the 2 images of .*list.txt are not in .* \(none\)"):
            read_list(devkit, path, flag="train_list")


def test_the_record_leaves_out_what_is_gone_and_keeps_other_data(toy, tmp_path):
    devkit, other = open_devkit(str(toy.root), ""), tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (5, 5)).save(other / "a.png")
    require_masks(devkit, toy.ids, num_workers=0)
    require_readable(devkit.image_paths(toy.ids), num_workers=0)
    require_readable([other / "a.png"], num_workers=0)
    images = toy.root / "JPEGImages"
    record, of_masks = (
        json.loads(record_of(folder).read_text()) for folder in (images, toy.root / "SegmentationClass")
    )
    assert record.keys() == {FOLDER, "image"}
    assert of_masks.keys() == {FOLDER, "mask of 3 classes"}
    assert record["image"].count("/") == 2 * len(toy.ids) - 1
    assert json.loads(record_of(other).read_text())["image"].startswith("a.png/")
    (images / f"{toy.ids[0]}.jpg").unlink()
    (other / "a.png").unlink()
    other.rmdir()
    Image.new("RGB", (5, 5)).save(images / "new.jpg")
    require_readable([images / "new.jpg"], num_workers=0)
    record = json.loads(record_of(images).read_text())
    assert record["image"].split("/")[::2] == [*(f"{image_id}.jpg" for image_id in toy.ids[1:]), "new.jpg"]
    another = tmp_path / "new"
    another.mkdir()
    Image.new("RGB", (5, 5)).save(another / "a.png")
    require_readable([another / "a.png"], num_workers=0)
    assert {*VERIFIED_FOLDER.iterdir()} == {
        record_of(folder) for folder in (images, toy.root / "SegmentationClass", another)
    }


def test_a_start_reads_the_records_of_its_own_data_alone(toy, tmp_path, monkeypatch):
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    require_readable([tmp_path / "a.png"], num_workers=0)
    paths = open_devkit(str(toy.root), "").image_paths(toy.ids)
    require_readable(paths, num_workers=0)
    read = []
    monkeypatch.setattr("voc12.verify.read_dict", lambda path: read.append(path) or read_dict(path))
    with one_look():
        require_readable(paths, num_workers=0)
        require_readable(paths, num_workers=0)
    assert read == [record_of(toy.root / "JPEGImages")]


def test_headers_of_images_are_read_side_by_side(toy, monkeypatch):
    paths = open_devkit(str(toy.root), "").image_paths(toy.ids)
    one_by_one = [image_size(path) for path in paths]
    monkeypatch.setattr("misc.files.images.HEADERS_A_PART", 4)
    together = threading.Barrier(4)

    def size_when_all_ask(path):
        together.wait(timeout=20)
        return image_size(path)

    monkeypatch.setattr("misc.files.images.image_size", size_when_all_ask)
    assert image_sizes(paths[:8]) == one_by_one[:8]


def test_many_files_are_checked_in_processes(toy):
    folder, paths = toy.root / "JPEGImages", []
    for number in range(200):
        paths.append(folder / f"{number}.jpg")
        paths[-1].hardlink_to(folder / f"{toy.ids[0]}.jpg")
    for number in (3, 150):
        paths[number].unlink()
        paths[number].write_bytes((folder / f"{toy.ids[0]}.jpg").read_bytes()[:200])
    with pytest.raises(InputError, match=rf"2 of 200 images can't be used \({paths[3]}, {paths[150]}; .*"):
        require_readable(paths, num_workers=2)
    with one_look(), counted() as calls:
        require_readable([path for number, path in enumerate(paths) if number not in (3, 150)], num_workers=2)
    assert calls["stat"] == 198 + 1  # the record as well
    assert calls["open"] == 1  # the record


@pytest.mark.parametrize("n_classes", [1, 8, 20])
def test_labels_in_bits_are_those_in_numbers(n_classes):
    rows = np.random.default_rng(0).integers(0, 2, (7, n_classes)).astype(np.float32)
    labels = Labels.of(rows)
    assert labels.shape == rows.shape
    np.testing.assert_array_equal(labels, rows)
    np.testing.assert_array_equal(labels[[5, 1]], rows[[5, 1]])
    np.testing.assert_array_equal(labels[1::3], rows[1::3])
    np.testing.assert_array_equal(labels.counts(), rows.sum(axis=1))
    for row, expected in zip(labels, rows, strict=True):
        assert row.dtype == expected.dtype
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(Labels.none(2, n_classes), np.zeros((2, n_classes)))
    assert labels.tobytes() == Labels.of(rows).tobytes()


def test_paths_in_one_text_are_those_of_a_list(tmp_path):
    names = ["b.jpg", "ä b.png", "", "\udcff.png"]
    paths, expected = Paths(tmp_path, names), [f"{tmp_path}/{name}" for name in names]
    assert list(paths) == [paths[n] for n in range(4)] == expected
    assert paths[-1] == paths[np.int64(3)] == expected[3]
    assert list(paths[::2]) == expected[::2]
    assert list(paths[[3, 0]]) == [expected[3], expected[0]]
    assert pickle.loads(pickle.dumps(paths)) == paths == Paths(f"{tmp_path}/", names) != paths[:3]
    assert len({paths, Paths(tmp_path, names), Paths("", names), Paths(tmp_path, ["b.jpgä b.png", "", "", ""])}) == 3
    assert list(Paths("", [])) == []
    with pytest.raises(IndexError):
        paths[4]


def test_networks_that_are_only_compared_are_not_filled():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with UnfilledNetworks():
        network = CAM(3)
    assert torch.equal(torch.get_rng_state(), before)
    shapes = {name: tensor.shape for name, tensor in CAM(3).state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes
    assert not torch.equal(torch.get_rng_state(), before)
    network.load_state_dict(CAM(3).state_dict())


def test_a_network_that_a_checkpoint_fills_draws_no_weights(tmp_path):
    """And has its channels last in memory, as one that is built to be trained."""
    torch.manual_seed(0)
    network = CAM(3)
    save_weights(network, tmp_path / "cam.pth")
    before = torch.get_rng_state()
    loaded = load_network("net.resnet18_cam", "CAM", str(tmp_path / "cam.pth"), torch.device("cpu"), n_classes=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    for (name, tensor), expected in zip(loaded.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
        assert tensor.stride() == expected.stride(), name


def test_what_a_start_costs_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_start, "SIZE", (24, 32))
    n_images = bench_start.N_DRAWN + 4
    bench_start.make_devkit(tmp_path / "all", n_images)
    monkeypatch.chdir(tmp_path / "all/work")
    assert bench_start.start(bench_start.START).keys() == {"cpu", "peak", "seconds"}
    found = dict(bench_scale.memory(tmp_path, n_images))
    assert len(found) > 5
    assert all(size > 0 for size in found.values())
