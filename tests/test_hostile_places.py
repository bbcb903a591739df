"""Places that can't be written or read, text that can't be shown: one sentence before any step begins."""

import io
import os
import re
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import answer, generated, make_all_inputs, make_toy_data

import run_sample
from misc.errors import InputError, message_of
from misc.files.atomic import LONGEST_NAME, atomic_path
from misc.run.config import Config, parse_config, switches
from misc.run.record import start_log
from voc12.classes import read_classes
from voc12.devkit import open_devkit
from voc12.labels import read_labels
from voc12.lists import read_list, read_ood_paths


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The toy data with all inputs of all steps, in whose working directory the module's tests run; no step runs."""
    toy = make_toy_data(tmp_path_factory.mktemp("places"))
    make_all_inputs(toy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.work)
        patch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
        os.mkfifo("pipe")
        Path("a_file").write_text("x")
        for folder in ("full.pth", "full.json", "full.log", "scores_in_the_way", "outputs/x.npy", "outputs/x.png"):
            Path(folder).mkdir(parents=True)
        Path("scores_in_the_way/scores/eval_cam.json").mkdir(parents=True)
        Path("runs_in_the_way").mkdir()
        Path("runs_in_the_way/runs").write_text("x")
        yield toy


# flag: a step that reads or writes it, and what kind of thing it names
FOLDERS_WRITTEN = {
    "cam_out_dir": "make_cam",
    "advcam_out_dir": "make_advcam",
    "ir_label_out_dir": "cam_to_ir_label",
    "sem_seg_out_dir": "make_sem_seg",
    "ins_seg_out_dir": "make_ins_seg",
    "deeplab_out_dir": "eval_deeplab",
    "deeplab_crf_out_dir": "eval_deeplab",
    "predict_out_dir": "predict",
    "result_dir": "make_cam",
}
FILES_WRITTEN = {
    "cam_init_weights_name": "train_classifier",
    "cam_weights_name": "train_cam",
    "irn_weights_name": "train_irn",
    "deeplab_weights_name": "train_deeplab",
    "cocoann_path": "make_cocoann",
}
FILES_READ = {
    "class_list": "make_cam",
    "label_file": "make_cam",
    "train_list": "make_cam",
    "val_list": "train_classifier",
    "infer_list": "make_sem_seg",
    "ood_list": "train_cam",
    "imagenet_weights": "train_irn",
    "deeplab_init_weights": "train_deeplab",
    "deeplab_train_list": "train_deeplab",
    "predict_input": "predict",
}
WEIGHTS_READ = {
    "cam_init_weights_name": "train_cam",
    "cam_weights_name": "make_cam",
    "irn_weights_name": "make_sem_seg",
    "deeplab_weights_name": "eval_deeplab",
}
FOLDERS_READ = {"voc12_root": "make_cam", "ood_root": "train_cam", "deeplab_mask_dir": "train_deeplab"}
LONG_NAME, LONG_PATH = "n" * 256, "/".join(["n" * 200] * 30)
BAD_FOLDERS = ("a_file", "a_file/x", "pipe", "/proc/none", "/dev/null/x", "outputs", LONG_NAME, LONG_PATH)
BAD_FILES = ("full.pth", "a_file/x", "pipe", "/dev/full", "/proc/none/x", ".", LONG_NAME, LONG_PATH)
BAD_INPUTS = ("full.pth", "a_file/x", "pipe", "/dev/zero", "/dev/null", "missing", ".", LONG_NAME, LONG_PATH)
TRIES = [
    *((flag, step, place) for flag, step in FOLDERS_WRITTEN.items() for place in BAD_FOLDERS),
    ("work_dir", "make_cam", "a_file"),
    ("work_dir", "make_cam", "a_file/x"),
    ("work_dir", "make_cam", LONG_NAME),
    *((flag, step, place) for flag, step in FILES_WRITTEN.items() for place in (*BAD_FILES, "")),
    *((flag, step, place) for flag, step in FILES_READ.items() for place in BAD_INPUTS),
    *((flag, step, place) for flag, step in WEIGHTS_READ.items() for place in BAD_INPUTS),
    *((flag, step, place) for flag, step in FOLDERS_READ.items() for place in ("a_file", "pipe", "missing", LONG_NAME)),
    ("result_dir", "make_cam", "scores_in_the_way"),
    ("result_dir", "make_cam", "runs_in_the_way"),
    ("log_name", "make_cam", "full"),
    ("log_name", "make_cam", "a_file/x"),
    ("log_name", "make_cam", LONG_NAME),
    ("log_name", "make_cam", ""),
    ("chainer_eval_set", "eval_cam", LONG_NAME),
    ("chainer_eval_set", "eval_cam", "n" * 240),
    ("chainer_eval_set", "eval_cam", "../../../pipe"),
    ("predict_input", "predict", ""),
]


def names_of(tries):
    return [f"{flag}-{place[:20]}" for flag, _, place in tries]


@pytest.mark.parametrize(("flag", "step", "place"), TRIES, ids=names_of(TRIES))
def test_a_place_that_is_none_is_told_in_a_sentence(ready, flag, step, place):
    flags = {"predict_input": "photos", flag: place}
    with pytest.raises(InputError) as caught:
        run_sample.run(ready.flags(**switches(step) | flags))
    sentence = message_of(caught.value)
    assert sentence.endswith((".", "?"))
    assert len(sentence) < 700
    assert flag in sentence or Path(place).name[:20] in sentence


def test_files_in_the_place_of_the_projects_own_folder(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voc12").write_text("x")
    with pytest.raises(InputError, match=r"can't write into voc12 \(.*\); work in another folder\."):
        run_sample.run(ready.flags(**switches("make_cam")))
    (tmp_path / "voc12").unlink()
    (tmp_path / "voc12/.derived.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"voc12/.derived.json is a folder, where a file may have to go"):
        run_sample.run(ready.flags(**switches("make_cam")))
    (tmp_path / "voc12/.derived.json").rmdir()
    (tmp_path / "voc12/.verified").write_text("x")
    with pytest.raises(InputError, match=r"can't write into voc12/.verified \(.*\); work in another folder\."):
        run_sample.run(ready.flags(**switches("make_cam")))


@pytest.mark.parametrize(
    "name", ["x" * (LONGEST_NAME - 4) + ".npy", "\u00e9" * 125 + ".npy", "a.npy", os.fsdecode(b"\xff.npy")]
)
def test_a_file_may_have_the_longest_name_that_there_is(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("x")
        assert temporary.suffix == ".npy"
    assert os.listdir(tmp_path) == [name]


TEXT_FLAGS = [
    item.name for item in fields(Config) if typing.get_type_hints(Config)[item.name] is str and item.name != "recipe"
]


WORDS = ("nan", "inf", "1e400", "-1", "9" * 5000, "True", "--", "\udcff", "a" * 300)


@generated(60)
@given(data=st.data())
def test_any_command_line_gives_a_configuration_or_a_sentence(data):
    flags = data.draw(st.lists(st.sampled_from([item.name for item in fields(Config)]), min_size=1, max_size=3))
    words = st.text(max_size=6) | st.sampled_from(WORDS)
    line = [word for flag in flags for word in (f"--{flag}", *data.draw(st.lists(words, max_size=2)))]
    config, sentence = answer(parse_config, line)
    assert (config is None) == bool(sentence)
    assert config is None or all(len(getattr(config, flag)) < 4096 for flag in TEXT_FLAGS)


LINES = st.text(max_size=12) | st.sampled_from(
    [
        "2099_000001",
        "2099000001",
        "JPEGImages/2099_000001.jpg",
        "a.jpg b.png",
        "../x.jpg",
        "\0",
        "/",
        "scene0.jpg",
        "x" * 300,
    ]
)
BYTES = st.binary(max_size=40) | st.lists(LINES).map(lambda lines: "\n".join(lines).encode(errors="replace"))


@generated(80)
@given(content=BYTES)
def test_any_list_is_read_or_refused(ready, content):
    path = ready.work / "any.txt"
    path.write_bytes(content)
    devkit = open_devkit(str(ready.root), "")
    ids, sentence = answer(lambda: read_list(devkit, path, flag="train_list"))
    assert (ids is None) == bool(sentence)
    assert ids is None or set(ids) <= set(ready.ids)
    found, sentence = answer(lambda: read_ood_paths(str(ready.ood_root), str(path)))
    assert (found is None) == bool(sentence)
    names, sentence = answer(read_classes, path)
    assert names is None or len(set(names)) == len(names) > 0


CLASSES = ("Ã©l\u00e9phant", "\u732b", "\U0001f404")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
def test_a_console_that_lacks_letters_shows_what_it_can(tmp_path, monkeypatch, encoding):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    import logging

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        start_log(str(tmp_path / "log"))
        for name in (*CLASSES, "\udcff", "plain"):
            logging.getLogger("x").info("%s", name)
        root.handlers[-1].close()
    finally:
        root.handlers[:], root.level = before
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding).splitlines()
    assert len(shown) == 5
    assert shown[-1] == "plain"
    assert shown[3].endswith(r"\udcff")
    written = (tmp_path / "log.log").read_text(encoding="utf-8").splitlines()
    assert written[1].endswith(CLASSES[1])
    assert written[3].endswith(r"\udcff")


def test_scores_are_saved_before_they_are_shown(ready, monkeypatch):
    monkeypatch.undo()
    from voc12 import evaluation

    def fail(*_):
        raise UnicodeEncodeError("ascii", "x", 0, 1, "no such letter")

    monkeypatch.setattr(evaluation, "class_table", fail)
    devkit = open_devkit(str(ready.root), "")
    saved = {"result_dir": "shown", "title": "x"}
    with pytest.raises(UnicodeEncodeError):
        evaluation.evaluate_masks(devkit, "train", "result/sem_seg_ood", name="masks", **saved)
    with pytest.raises(UnicodeEncodeError):
        evaluation.evaluate_cams(
            devkit, "train", "result/cam_ood", thresholds=(0.1,), threshold_apart=0.2, name="cams", **saved
        )
    assert sorted(path.name for path in Path("shown/scores").iterdir()) == ["cams.json", "masks.json"]


NO_TEXT = os.fsdecode(b"\xff\xfe")


def test_names_that_are_no_text_lie_beside_the_data(toy):
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml"), ("SegmentationClassAug", ".png")):
        source = toy.root / folder / f"{toy.ids[0]}{suffix}"
        for name in (NO_TEXT, "two\nlines"):
            (toy.root / folder / f"{name}{suffix}").write_bytes(source.read_bytes())
    devkit = open_devkit(str(toy.root), "")
    ids = read_list(devkit, "voc12/train_aug.txt", flag="train_list")
    assert ids == toy.ids[:6]
    assert read_labels(devkit, "voc12/cls_labels.npy", ids).shape == (6, 3)


def test_control_characters_of_a_class_are_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("a\n\x1b[2J\n")
    with pytest.raises(InputError, match="control characters"):
        read_classes(path)
    path.write_text("\u732b\nna\u00efve caf\u00e9\n")
    assert len(read_classes(path)) == 2
    assert re.fullmatch(r"x\\x1b\\udcff y", message_of(InputError("x\x1b\udcff\ny")))
