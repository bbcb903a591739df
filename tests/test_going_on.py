"""The same command goes on where it stopped: nothing that is done is done again, nothing of before is mixed in."""

import contextlib
import json
import os
import shutil
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support import ALL_STEPS, NO_STEPS, make_all_inputs, make_toy_data

import run_sample
from misc.files import camfile
from misc.files.images import read_label, write_label
from misc.run.config import parse_config
from misc.run.provenance import RECORD, FinishedFiles
from misc.run.record import RunRecord
from misc.run.training_state import TrainingState
from net.weights import read_checkpoint
from step import make_advcam, make_cam
from voc12.devkit import open_devkit
from voc12.labels import read_labels

CHAIN = {**ALL_STEPS, "make_advcam_pass": True, "eval_advcam_pass": True, "make_report_pass": True, "adv_iter": 2}
STEPS = [name.removesuffix("_pass") for name, value in CHAIN.items() if value is True]
TRAININGS = ("train_classifier", "train_cam", "train_irn", "train_deeplab")
FLAGS = {"redo": (), "state_minutes": 0, "deeplab_max_iter": 3}


class Killed(BaseException):
    """As if the process ended here."""


class Chain:
    """The whole chain on toy data; what is done is counted, and the process ends at the piece of work `kill_at`."""

    def __init__(self, toy):
        self.toy, self.work, self.kill_at = toy, Counter(), None

    def count(self, piece):
        self.work[piece] += 1
        if piece == self.kill_at:
            raise Killed

    def run(self, **flags):
        """Run it; returns the messages."""
        log = Path("sample_train_eval.log")
        start = len(log.read_text()) if log.is_file() else 0
        with contextlib.suppress(Killed):
            run_sample.run(self.toy.flags(**{**NO_STEPS, **CHAIN, **FLAGS, **flags}))
        return log.read_text()[start:]

    @property
    def steps_done(self):
        """The steps that ran, but for the report, which shows what was done."""
        return [piece for kind, piece, *_ in self.work if kind == "step" and piece != "make_report"]


@contextlib.contextmanager
def counting(toy, patch):
    chain = Chain(toy)
    write, save, step = FinishedFiles.write, TrainingState.save_if_due, RunRecord.step

    def counted_write(files, paths, *args):
        write(files, paths, *args)
        chain.count(("file", str(paths[0])))

    def counted_save(state, done):
        save(state, done)
        chain.count(("training", state.path.stem, done))

    def counted_step(record, name, description):
        chain.count(("step", name))
        return step(record, name, description)

    patch.setattr(FinishedFiles, "write", counted_write)
    patch.setattr(TrainingState, "save_if_due", counted_save)
    patch.setattr(RunRecord, "step", counted_step)
    yield chain


@pytest.fixture
def chain(toy, monkeypatch):
    with counting(toy, monkeypatch) as counted:
        yield counted


def outputs(checkpoints=None):
    """{path: content} of all that the chain makes, weights by name; `checkpoints`: paths, by default all in sess/."""
    found = {}
    for path in sorted(Path("result").rglob("*.*")):
        if path.suffix in (".npy", ".png") or path.parent.name == "scores" or path.name == "cocoann.json":
            found[str(path)] = path.read_bytes()
    for path in sorted(Path("sess").glob("*.pth")) if checkpoints is None else checkpoints:
        found |= {f"{path}: {name}": tensor.numpy().tobytes() for name, tensor in read_checkpoint(path).items()}
    return {name: content for name, content in found.items() if "report" not in name}


def test_killed_in_each_step_it_ends_as_undisturbed_and_does_nothing_twice(chain, tmp_path_factory, monkeypatch):
    undisturbed = make_toy_data(tmp_path_factory.mktemp("undisturbed"))
    with monkeypatch.context() as patch:
        patch.chdir(undisturbed.work)
        run_sample.run(undisturbed.flags(**{**NO_STEPS, **CHAIN, **FLAGS, "voc12_root": chain.toy.root}))
        expected = outputs()
    chain.work.clear()
    places = [
        *(("training", name, 2) for name in TRAININGS),
        *(
            ("file", f"result/{folder}/{chain.toy.ids[2]}.npy")
            for folder in ("cam_ood", "cam_ood_advcam", "ins_seg_ood")
        ),
        *(("file", f"result/{folder}/{chain.toy.ids[2]}.png") for folder in ("ir_label", "sem_seg_ood")),
        ("file", f"result/deeplab/{chain.toy.ids[6]}.png"),
        *(("step", name) for name in ("eval_cam", "eval_ins_seg", "make_cocoann", "make_report")),
    ]
    said = []
    for place in places:
        chain.kill_at = place
        said.append(chain.run())
        assert chain.work[place] == 1, place
    chain.kill_at = None
    said.append(chain.run())
    assert outputs().keys() == expected.keys()
    assert [name for name, content in outputs().items() if content != expected[name]] == []
    twice = {piece: n for piece, n in chain.work.items() if n > 1 and piece[0] != "step"}
    assert twice == {}
    text = "".join(said)
    for name in TRAININGS:
        assert f"{name} goes on after step 2 of an interrupted run" in text
        assert "starts anew" not in text
    assert "train_cam runs: it was interrupted" in text
    assert not list(Path().rglob("*.part*"))
    assert not list(Path().rglob("*.lock"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy data after the whole chain, with its counts."""
    toy = make_toy_data(tmp_path_factory.mktemp("going_on"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.work)
        with counting(toy, patch) as chain:
            chain.run()
            yield chain


@pytest.fixture
def done(finished, monkeypatch):
    """`finished`, in whose working directory the test runs; after each test all is done again."""
    monkeypatch.chdir(finished.toy.work)
    finished.run()
    finished.work.clear()
    return finished


def test_what_is_done_is_not_done_again(done):
    def files():
        return {p: p.stat().st_mtime_ns for p in Path().rglob("*.*") if p.is_file() and p.suffix != ".log"}

    before = files()
    said = done.run()
    assert done.work == {}
    for name in STEPS:
        assert f"{name} is done, since 20" in said
    assert files() == before


def test_touched_and_copied_files_are_the_same(done):
    for path in [*done.toy.root.rglob("*.*"), *Path("result").rglob("*.png"), *Path("sess").glob("*")]:
        os.utime(path)
    image = next((done.toy.root / "JPEGImages").iterdir())
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content)
    done.run()
    assert done.work == {}


CHANGES = {
    "cam_eval_sweep": (
        (0.1, 0.2),
        ["eval_cam", "eval_advcam"],
        "differs: 0.08 0.09 0.1 0.11 0.12 0.13 0.14 -> 0.1 0.2",
    ),
    "sem_seg_bg_thres": (0.3, ["make_sem_seg"], "differs: 0.25 -> 0.3"),  # of the toy data the masks are the same
    "deeplab_learning_rate": (1e-3, ["train_deeplab", "eval_deeplab"], "differs: 0.00025 -> 0.001"),
    "cam_scales": ((1.0,), ["train_cam", "make_cam", "eval_cam", "cam_to_ir_label"], "differs: 1 0.5 -> 1"),
}


@pytest.mark.parametrize("flag", CHANGES)
def test_another_setting_runs_its_steps_and_those_that_depend_on_them(done, flag):
    value, expected, reason = CHANGES[flag]
    said = done.run(**{flag: value})
    assert f"{expected[0]} runs: --{flag} {reason}" in said
    if flag == "cam_scales":
        assert {*expected} <= {*done.steps_done}
    else:
        assert done.steps_done == expected


def test_one_image_more_is_the_only_one_that_is_made(done):
    path = done.toy.root / "JPEGImages" / f"{done.toy.ids[3]}.jpg"
    before = path.read_bytes()
    ImageOps.invert(Image.open(path)).save(path)
    try:
        said = done.run(train_classifier_pass=False, train_cam_pass=False, train_irn_pass=False)
    finally:
        path.write_bytes(before)
    made = [piece for kind, piece, *_ in done.work if kind == "file"]
    assert f"result/cam_ood/{done.toy.ids[3]}.npy" in made
    assert all(Path(name).stem == done.toy.ids[3] for name in made if "deeplab" not in name)
    assert "make_cam runs: the files of --train_list have changed" in said
    assert "5 of 6 images are finished: skipped" in said


def test_what_was_changed_or_removed_is_made_again(done):
    mask = Path(f"result/sem_seg_ood/{done.toy.ids[0]}.png")
    content = mask.read_bytes()
    label = read_label(mask)
    write_label(mask, 1 - label)
    said = done.run()
    assert "make_sem_seg runs: what it wrote was changed since" in said
    assert mask.read_bytes() == content
    assert done.steps_done == ["make_sem_seg"]  # with the old content there is nothing to do for those that read it
    done.work.clear()
    Path("result/scores/eval_cam.json").unlink()
    said = done.run()
    assert "eval_cam runs: result/scores/eval_cam.json is missing" in said
    assert done.steps_done[0] == "eval_cam"


def test_redo_does_it_all_the_same(done):
    said = done.run(redo=("make_cam", "train_irn"))
    assert done.steps_done == ["make_cam", "train_irn"]  # whose bytes are those of before
    assert "make_cam runs: --redo asks for it" in said
    assert sum(kind == "file" for kind, *_ in done.work) == 6


@pytest.mark.parametrize(
    ("flags", "is_shown"),
    [
        ({"train_classifier_pass": True, "redo": "train_classifier"}, True),
        ({"predict_pass": True, "predict_long_side": 64}, False),
    ],
)
def test_the_report_is_made_again_after_any_step_that_it_shows(done, flags, is_shown):
    alone = {**NO_STEPS, **FLAGS, "make_report_pass": True, "predict_input": str(done.toy.root / "JPEGImages"), **flags}
    log = Path("sample_train_eval.log")
    start = len(log.read_text())
    run_sample.run(done.toy.flags(**alone))
    name = next(iter(flags)).removesuffix("_pass")
    planned, _, said = log.read_text()[start:].partition("maps and masks")
    assert f"depends on what {name} will make" in planned
    assert ("make_report runs: " in said) == ("make_report took" in said) == is_shown


def test_a_place_is_the_same_however_it_is_written(done):
    weights = str(Path("sess/res50_cam_ood.pth").resolve())
    places = {"cam_out_dir": "result/../result/cam_ood", "cam_weights_name": weights}
    record = Path("result/steps/train_cam.json")
    before = record.read_bytes()
    done.run(**places)
    assert done.steps_done == []
    assert record.read_bytes() == before


def test_what_was_moved_is_not_done_again(done):
    """All results lie in a folder that was renamed: they are the same, and so is what is made of them."""
    Path("moved").mkdir()
    for name in ("result", "sess"):
        Path(name).rename(f"moved/{name}")
    for _ in range(2):
        done.run(work_dir="moved")
        assert done.steps_done == []
    record = json.loads(Path("moved/result/steps/train_cam.json").read_text())
    assert record["places"] == {"cam_weights_name": "moved/sess/res50_cam_ood.pth"}
    assert record["result_dir"] == "moved/result"
    assert len(record["earlier_reads"]) == 1


def test_a_place_where_there_is_something_else_is_named(done):
    Path("sess/other.pth").write_bytes(b"something else")
    said = done.run(cam_weights_name="sess/other.pth")
    assert "train_cam runs: --cam_weights_name differs: sess/res50_cam_ood.pth -> sess/other.pth" in said


def test_records_that_are_damaged_do_no_harm(done):
    Path("result/steps/eval_cam.json").write_text('{"started": 1, "settings": []}')
    Path("result/steps/make_cam.json").write_bytes(b"\xff{")
    (Path("result/cam_ood") / RECORD).write_text('{"file": 3}\nnonsense\n')
    said = done.run()
    assert "make_cam runs: it has not been done here yet" in said
    assert "eval_cam runs: it has not been done here yet" in said
    assert done.steps_done == ["make_cam", "eval_cam"]


def test_records_of_whole_numbers_are_those_of_floats(done):
    """An earlier version wrote the defaults of some flags as 7 and 10."""
    for step, flag in (("make_advcam", "AD_coeff"), ("make_sem_seg", "beta")):
        path = Path(f"result/steps/{step}.json")
        record = json.loads(path.read_text())
        record["settings"][flag] = int(record["settings"][flag])
        path.write_text(json.dumps(record))
    done.run()
    assert done.steps_done == []


@pytest.mark.parametrize("numbers", ["float32", "float16"])
def test_the_plan_knows_how_large_cam_files_are(toy, numbers):
    """By the classes that the images carry, of which VOC has few."""
    size, labels = (400, 600), read_labels(open_devkit(toy.root, ""), "voc12/cls_labels.npy", toy.ids[:6])
    written = 0
    for number, n_classes in enumerate(labels.counts().tolist()):
        maps = torch.rand(n_classes, *size)
        camfile.save(f"{number}.npy", np.arange(n_classes), maps[:, ::4, ::4], maps, numbers=numbers)
        written += Path(f"{number}.npy").stat().st_size
    for step in (make_cam, make_advcam):
        config = parse_config(toy.flags(cam_files=numbers))
        (per_pixel,) = step.STEP.bytes_per_pixel(config).values()
        assert per_pixel * prod(size) * len(labels) == pytest.approx(written, rel=0.01)
        config = parse_config(toy.flags(cam_files=numbers, labels_from="classifier"))
        assert [*step.STEP.bytes_per_pixel(config).values()] == [{"float32": 6.375, "float16": 3.375}[numbers]]


def test_the_plan_tells_what_will_be_done_and_does_nothing(done):
    said = done.run(plan=True)
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert all(" done" in rows[name] for name in STEPS)
    said = done.run(plan=True, cam_scales=(1.0,))
    assert done.work == {}
    assert json.loads(Path("result/steps/make_cam.json").read_text())["settings"]["cam_scales"] == [1.0, 0.5]
    assert "runs: --cam_scales differs: 1 0.5 -> 1" in said
    assert "depends on what make_cam will make" in said


@pytest.mark.parametrize("change", [{"finished": 3}, {"finished": "yesterday"}, {"started": "x"}, {"finished": ...}])
def test_a_record_whose_times_are_none_counts_as_none(done, change):
    path = Path("result/steps/eval_cam.json")
    record = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    assert "eval_cam runs: it has not been done here yet" in done.run()


def test_checkpoints_with_the_doubled_ending_serve_every_step_that_reads_one(toy):
    """As the original writes them: `.pth.pth`."""
    make_all_inputs(toy)
    for path in [*Path("sess").glob("*.pth")]:
        path.rename(f"{path}.pth")
    steps = ("make_cam", "make_sem_seg", "eval_deeplab")
    flags = toy.flags(**NO_STEPS | {f"{name}_pass": True for name in steps}, deeplab_crf=False, redo=())
    run_sample.run(flags)
    run_sample.run(flags)
    training = toy.flags(**NO_STEPS | {"train_cam_pass": True}, cam_weights_name="sess/trained.pth", redo=())
    run_sample.run(training)
    run_sample.run(training)
    said = Path("sample_train_eval.log").read_text()
    assert [said.count(f"{name} is done, since") for name in (*steps, "train_cam")] == [1, 1, 1, 1]


def test_a_flag_that_names_other_weights_is_named(done):
    copied = shutil.copy("sess/res50_cam_orig.pth", "sess/other.pth")
    shutil.copy("sess/res50_cam_orig.classes.txt", "sess/other.classes.txt")
    assert "make_cam runs: --cam_weights_name differs: sess/res50_cam_ood.pth -> sess/other.pth" in done.run(
        cam_weights_name=str(copied), train_cam_pass=False
    )
