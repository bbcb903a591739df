"""Which files a rerun keeps: those of the same weights and settings, whenever the run before was killed."""

import contextlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support import CAM_WEIGHTS, DEEPLAB_WEIGHTS, IRN_WEIGHTS, NO_STEPS, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files import camfile
from misc.files.jsonlines import append_lines, sound_lines
from misc.run.provenance import RECORD, FinishedFiles, Provenance, made_otherwise
from net.weights import save_weights
from tests import own_network
from tests.own_network import Net

FIRST, SECOND = {"weights": "a", "step": 0.08}, {"weights": "b", "step": 0.08}
SOURCE = "image 1"


def make(folder, made_with, content="x"):
    path = folder / "1.npy"
    path.write_text(content)
    Provenance(folder, made_with).record(path, SOURCE)
    return path


def test_a_recorded_file_is_covered_by_the_same_weights_and_settings_alone(tmp_path):
    path = make(tmp_path, FIRST)
    assert Provenance(tmp_path, dict(reversed(FIRST.items()))).covers(path, SOURCE)
    assert not Provenance(tmp_path, SECOND).covers(path, SOURCE)
    assert not Provenance(tmp_path, FIRST | {"step": 0.09}).covers(path, SOURCE)
    assert not Provenance(tmp_path, FIRST).covers(tmp_path / "2.npy", SOURCE)
    assert not Provenance(tmp_path, FIRST).covers(path, "image 2")
    path.unlink()
    assert not Provenance(tmp_path, FIRST).covers(path, SOURCE)


def test_a_file_that_somebody_else_wrote_is_not_covered(tmp_path):
    path = tmp_path / "1.npy"
    path.write_text("x")
    assert not Provenance(tmp_path, FIRST).covers(path, SOURCE)
    make(tmp_path, FIRST).write_text("y")
    assert not Provenance(tmp_path, FIRST).covers(path, SOURCE)


def test_killed_between_a_file_and_its_line(tmp_path):
    path = make(tmp_path, FIRST)
    path.write_text("of the second")
    assert not Provenance(tmp_path, FIRST).covers(path, SOURCE)
    assert not Provenance(tmp_path, SECOND).covers(path, SOURCE)


def test_killed_within_a_line(tmp_path):
    record = tmp_path / RECORD
    path = make(tmp_path, FIRST)
    whole = record.read_bytes()
    for kept in range(len(whole)):
        record.write_bytes(whole[:kept])
        only_the_newline_is_missing = kept == len(whole) - 1
        assert Provenance(tmp_path, FIRST).covers(path, SOURCE) == only_the_newline_is_missing
        Provenance(tmp_path, FIRST).record(path, SOURCE)
        assert Provenance(tmp_path, FIRST).covers(path, SOURCE)


HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.5)
    file.write('{"n": 1}\\n')
"""


def test_processes_append_to_a_record_one_after_the_other(tmp_path):
    """Over a network file system an append overwrites one that another machine makes at the same moment."""
    path = tmp_path / RECORD
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        append_lines(path, [{"n": 2}])
    assert [line["n"] for line in sound_lines(path, {"n": int})] == [1, 2]


def test_foreign_lines_are_ignored(tmp_path):
    (tmp_path / RECORD).write_bytes(b'\xff\xfe\n[1]\n{"file": "1.npy"}\n3')
    path = make(tmp_path, FIRST)
    assert Provenance(tmp_path, FIRST).covers(path, SOURCE)


def firing_net():
    """A classifier whose maps are nowhere all zero, so that other settings give other files."""
    net = Net(n_classes=3)
    with torch.no_grad():
        net.classifier.weight.abs_()
    return net


@pytest.fixture
def advcam(toy):
    """Makes AdvCAMs of the toy data; returns the ids whose files are new and the messages."""
    save_weights(firing_net(), "sess/x.pth")
    ids = toy.ids[:6]

    def recorded():
        """The files whose lines the record has, oldest first."""
        record = Path("result/cam_ood_advcam") / RECORD
        return [json.loads(line)["file"] for line in record.read_text().splitlines()] if record.is_file() else []

    def run(**flags):
        before = len(recorded())
        weights = {"cam_network": "tests.own_network", "cam_weights_name": "sess/x.pth"}
        with contextlib.suppress(KeyboardInterrupt):
            run_sample.run(
                toy.flags(**NO_STEPS, **{"make_advcam_pass": True, "adv_iter": 2, "redo": ()} | weights | flags)
            )
        with open("sample_train_eval.log", "r+", encoding="utf-8") as log:
            messages = log.read()
            log.truncate(0)
        return [Path(name).stem for name in recorded()[before:]], messages

    run.ids = ids
    return run


def test_a_rerun_keeps_finished_files(advcam):
    made, messages = advcam()
    assert made == advcam.ids
    assert "made again" not in messages
    made, messages = advcam(advcam_batch_size=4)
    assert made == []
    assert "make_advcam is done, since " in messages
    assert "made again" not in messages


OTHER_SETTINGS = (
    *({"AD_coeff": 3}, {"AD_stepsize": 0.1}, {"score_th": 0.4}, {"adv_iter": 3}),
    *({"precision": "bf16"}, {"cam_files": "float16"}),
)


@pytest.mark.parametrize("flags", OTHER_SETTINGS)
def test_other_settings_are_made_again_and_said(advcam, flags):
    advcam()
    made, messages = advcam(**flags)
    assert made == advcam.ids
    assert "made again: 6 files in result/cam_ood_advcam that are not known to be of these weights" in messages
    assert advcam(**flags)[0] == []


def test_other_weights_are_made_again(advcam):
    advcam()
    before = camfile.load(f"result/cam_ood_advcam/{advcam.ids[0]}.npy")[2]
    save_weights(firing_net(), "sess/x.pth")
    assert advcam()[0] == advcam.ids
    assert not np.array_equal(camfile.load(f"result/cam_ood_advcam/{advcam.ids[0]}.npy")[2], before)


@pytest.mark.parametrize(
    ("step", "other", "weights", "n_images"),
    [
        ("make_cam", firing_net, CAM_WEIGHTS, 6),
        ("make_ins_seg", own_network.EdgeDisplacement, IRN_WEIGHTS, 6),
        ("eval_deeplab", partial(own_network.DeepLab, n_classes=4), DEEPLAB_WEIGHTS, 2),
        ("predict", partial(own_network.DeepLab, n_classes=4), DEEPLAB_WEIGHTS, 8),
    ],
)
def test_no_file_of_other_weights_is_kept(toy, step, other, weights, n_images):
    make_all_inputs(toy)
    settings = {"predict_input": toy.root / "JPEGImages", "deeplab_crf": False, "redo": ()}
    flags = toy.flags(**NO_STEPS | {f"{step}_pass": True} | settings)

    def made_again():
        Path("sample_train_eval.log").unlink(missing_ok=True)
        run_sample.run(flags)
        found = re.search(r"made again: (\d+) files", Path("sample_train_eval.log").read_text())
        return int(found[1]) if found else 0

    made_again()
    assert made_again() == 0
    torch.manual_seed(9)
    save_weights(other(), weights)
    assert made_again() >= n_images


def test_files_left_over_from_other_weights_are_no_input(toy):
    """Of another list than that of the new ones, all or some: a score of them would pass for today's."""
    make_all_inputs(toy)
    lists = {"some.txt": toy.ids[:4], "others.txt": toy.ids[4:6]}
    for name, ids in lists.items():
        (toy.root / "ImageSets/Segmentation" / name).write_text("".join(f"{image_id}\n" for image_id in ids))

    def run(*steps, train_list="voc12/train_aug.txt", **flags):
        run_sample.run(toy.flags(**NO_STEPS | dict.fromkeys(steps, True), redo=(), train_list=train_list, **flags))

    def in_devkit(name):
        return toy.root / "ImageSets/Segmentation" / name

    run("make_cam_pass", "eval_cam_pass")
    run("eval_cam_pass", chainer_eval_set="others")
    weights = Path(CAM_WEIGHTS).read_bytes()
    save_weights(firing_net(), CAM_WEIGHTS)
    run("make_cam_pass", "eval_cam_pass", train_list=in_devkit("some.txt"), chainer_eval_set="some")
    for chainer_eval_set, n, of in (("train", 2, 6), ("others", 2, 2)):
        sentence = rf"eval_cam: {n} of the {of} files of --cam_out_dir, such as \S+, were made with other weights"
        for plan in (True, False):
            with pytest.raises(InputError, match=sentence):
                run("eval_cam_pass", chainer_eval_set=chainer_eval_set, plan=plan)
    run("make_cam_pass", "eval_cam_pass", train_list=in_devkit("others.txt"), chainer_eval_set="others")
    run("eval_cam_pass", chainer_eval_set="train")

    Path(CAM_WEIGHTS).write_bytes(weights)  # the first weights again, for some, and then for all
    run("make_cam_pass", "eval_cam_pass", train_list=in_devkit("some.txt"), chainer_eval_set="some")
    run("make_cam_pass", "eval_cam_pass")


def test_files_that_are_kept_count_as_made_last(tmp_path):
    def paths(made_with, *names):
        finished = FinishedFiles(made_with)
        for number in finished.pending([[tmp_path / name] for name in names], lambda _: SOURCE):
            path = tmp_path / names[number]
            finished.write([path], lambda: SOURCE, path.write_text, "x")
        return [tmp_path / name for name in names]

    first, second = paths(FIRST, "1", "2"), paths(SECOND, "3")
    assert made_otherwise([*first, *second]) == first
    paths(FIRST, "2")  # which is there already
    assert made_otherwise([*first, *second, tmp_path / "none"]) == second
    second[0].write_text("of somebody's own")
    assert made_otherwise([*first, *second]) == []
    paths(SECOND, "4")[0].unlink()  # made last, and gone: it decides on nothing
    assert made_otherwise(first) == []


def test_a_replaced_image_and_a_changed_label_are_made_again(advcam, toy):
    advcam()
    replaced, relabelled = advcam.ids[1], advcam.ids[3]
    image = toy.root / "JPEGImages" / f"{replaced}.jpg"
    with Image.open(image) as picture:
        mirrored = ImageOps.mirror(picture)  # of the same size
    mirrored.save(image, quality=95)
    annotation = toy.root / "Annotations" / f"{relabelled}.xml"
    annotation.write_text("<annotation><object><name>bottle</name></object></annotation>")
    made, messages = advcam()
    assert sorted(made) == [replaced, relabelled]
    assert "4 of 6 images are finished: skipped" in messages
    assert camfile.load(f"result/cam_ood_advcam/{relabelled}.npy")[0].tolist() == [1]
    assert advcam()[0] == []


@pytest.mark.parametrize("moment", ["before a file", "before its line"])
def test_a_killed_run_loses_at_most_one_file(advcam, monkeypatch, moment):
    advcam()
    owner, name = (camfile, "save") if moment == "before a file" else (Provenance, "record")
    act, calls = getattr(owner, name), []

    def killed_at_the_third(*arguments, **options):
        calls.append(arguments)
        if len(calls) >= 3:  # nor does a killed process write what waits to be written
            raise KeyboardInterrupt
        act(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed_at_the_third)
        advcam(adv_iter=3)
    finished = {path.stem for path, *_ in (call if name == "save" else call[1:] for call in calls[:2])}
    rest, _ = advcam(adv_iter=3)
    assert len(rest) == 4
    assert not finished & set(rest)
    assert advcam(adv_iter=3)[0] == []
    assert advcam()[0] == advcam.ids  # nothing of the second is taken for the first
