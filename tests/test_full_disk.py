"""Disks that are full, quotas that are used up: one sentence that names the file, and nothing lost."""

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import NO_STEPS, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files import atomic, camfile
from misc.files.atomic import atomic_path, json_list_writer, write_json
from misc.files.disk import Room, room_for
from misc.files.images import write_jpeg, write_label, write_palette
from misc.files.objectfile import save_object
from misc.run import record
from misc.run.progress import progress
from misc.run.provenance import RECORD, FinishedFiles
from misc.run.record import metrics_log, start_log
from misc.run.training_state import TrainingState, saved_step
from net.weights import save_weights
from voc12.classes import write_classes
from voc12.sample.storage import write_file

ROOT = Path(run_sample.__file__).parent
KIB = 1024
NOISE = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)


@pytest.fixture
def room():
    """A function that allows files of so many bytes, as a full disk would; afterwards any."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_state(path):
    state = TrainingState(path.parent, "t", parts={"m": torch.nn.Linear(200, 200)}, made_with={}, minutes=0)
    state.path = path
    state.save(1)


def write_list(path):
    with json_list_writer(path, {}, "lines") as append:
        for _ in range(1000):
            append("x" * 100)


WRITERS = {
    "JSON": lambda path: write_json(path, ["x"] * 20000),
    "JSON in parts": write_list,
    "label": lambda path: write_label(path, NOISE[..., 0]),
    "mask in colour": lambda path: write_palette(path, NOISE[..., 0], NOISE[0, :256]),
    "JPEG": lambda path: write_jpeg(path, NOISE),
    "CAM file": lambda path: camfile.save(path, [0], torch.ones(1, 75, 75), torch.ones(1, 300, 300)),
    "instances": lambda path: save_object(path, {"mask": NOISE}),
    "weights": lambda path: save_weights(torch.nn.Linear(200, 200), path),
    "state": save_state,
    "class list": lambda path: write_classes(path, [str(number) for number in range(20000)]),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_removed_and_the_earlier_one_stays(kind, tmp_path, room):
    path = tmp_path / "sub/output.png"
    path.parent.mkdir()
    path.write_text("of before")
    room(20 * KIB)
    with pytest.raises(
        InputError, match=r"output\.png can't be written: files as large as this .*same command goes on"
    ):
        WRITERS[kind](path)
    assert path.read_text() == "of before"
    assert [*path.parent.iterdir()] == [path]
    room(resource.RLIM_INFINITY)
    WRITERS[kind](path)
    assert path.stat().st_size > 20 * KIB


def write_text(path, then):
    with atomic_path(path) as temporary:
        temporary.write_text("a")
        then()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full; make room there"),
        (errno.EDQUOT, "the quota on this disk is used up; make room, or ask for more"),
        (errno.EFBIG, r"files as large as this are not allowed here; raise the limit \(ulimit -f\)"),
    ],
)
@pytest.mark.parametrize("place", ["write", "rename", "folder"])
def test_each_reason_is_told_wherever_it_comes_up(number, sentence, place, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if place == "rename":
        monkeypatch.setattr(atomic.os, "replace", fail)
    if place == "folder":
        monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(InputError, match=f"new/a.txt can't be written: {sentence}; what is finished"):
        write_text(tmp_path / "new/a.txt", fail if place == "write" else lambda: None)
    assert not [*tmp_path.rglob("*.txt")]


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (PermissionError(13, "no"), RuntimeError("no reason")):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)):
            write_text(tmp_path / "a.txt", fail)
    assert not [*tmp_path.iterdir()]


def test_losses_go_on_after_the_last_whole_line(tmp_path, room):
    growing = tmp_path / "metrics/t.jsonl.part"

    def write_lines():
        with metrics_log(tmp_path, "t") as write_line:
            for step in range(1, 100):
                if step == 4:
                    room(growing.stat().st_size + 10)
                write_line({"step": step, "loss": 0.5})

    with pytest.raises(InputError, match=r"t\.jsonl\.part can't be written"):
        write_lines()
    before = growing.read_text()
    assert [json.loads(line)["step"] for line in before.splitlines()[:3]] == [1, 2, 3]
    room(10)
    with pytest.raises(InputError, match="can't be written"), metrics_log(tmp_path, "t", n_kept=3):
        pass
    assert growing.read_text() == before
    room(resource.RLIM_INFINITY)
    with metrics_log(tmp_path, "t", n_kept=3) as write_line:
        write_line({"step": 4})
    lines = (tmp_path / "metrics/t.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_file_without_its_line_in_the_record_is_made_again(tmp_path, room):
    items = [[tmp_path / f"{number}.png"] for number in range(3)]
    label = np.zeros((4, 4), np.uint8)

    def make(number):
        finished = FinishedFiles({})
        finished.write(items[number], lambda: "source", write_label, items[number][0], label + number)

    make(0)
    room((tmp_path / RECORD).stat().st_size + 100)
    with pytest.raises(InputError, match=rf"{RECORD} can't be written"):
        make(1)
    room(resource.RLIM_INFINITY)
    assert FinishedFiles({}).pending(items, lambda _: "source") == [1, 2]
    make(1)
    assert FinishedFiles({}).pending(items, lambda _: "source") == [2]


def test_the_built_in_sample(tmp_path, room):
    room(20 * KIB)
    with pytest.raises(InputError, match="image.jpg can't be written"):
        write_file(tmp_path, "image.jpg", NOISE.tobytes())


@pytest.fixture
def logging_again():
    yield
    logging.basicConfig(handlers=[], force=True)


@pytest.mark.usefixtures("logging_again")
def test_without_room_for_the_log_the_run_goes_on_and_so_does_the_log_later(tmp_path, room, capsys):
    start_log(str(tmp_path / "log"))
    log, path = logging.getLogger("x"), tmp_path / "log.log"
    log.info("one")
    room(path.stat().st_size + 5)
    for number in range(3):
        log.info("two %d", number)
    room(resource.RLIM_INFINITY)
    log.info("three")
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo 0\ntwo 1\ntwo 2\nthree\n"
    assert shown.err.count("notice:") == 1
    assert "log.log can't be written ([Errno 27] File too large)" in shown.err
    assert "Traceback" not in shown.err
    assert path.read_text().endswith(" three\n")


def test_a_bar_that_cannot_be_shown_does_not_end_the_run(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            self.write("")

    monkeypatch.setattr(sys, "stderr", Full())
    assert list(progress([1, 2], desc="x")) == [1, 2]


@pytest.mark.usefixtures("logging_again")
def test_a_screen_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    start_log(str(tmp_path / "log"))
    monkeypatch.setattr(record.tqdm, "write", fail)
    logging.getLogger("x").info("one")
    assert (tmp_path / "log.log").read_text().endswith(" one\n")


def test_a_step_goes_on_when_there_is_room(toy, room, monkeypatch, capsys):
    make_all_inputs(toy)
    flags = toy.flags(**NO_STEPS | {"make_cam_pass": True, "cam_out_dir": "result/cam", "redo": ()})
    monkeypatch.setattr(sys, "argv", ["run_sample.py", *flags])
    write = FinishedFiles.write

    def write_in_little_room(finished, paths, *args):
        room(KIB if paths[0].stem == toy.ids[3] else resource.RLIM_INFINITY)
        write(finished, paths, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FinishedFiles, "write", write_in_little_room)
        assert run_sample.main() == 2
    room(resource.RLIM_INFINITY)
    said = capsys.readouterr().err
    assert f"error: result/cam/{toy.ids[3]}.npy can't be written: files as large as this" in said
    assert "Traceback" not in said
    written = {path.stem for path in Path("result/cam").glob("*.npy")}
    assert {*toy.ids[:3]} <= written <= {*toy.ids} - {toy.ids[3]}  # others may be under way when the error is noticed
    assert run_sample.main() == 0
    assert len([*Path("result/cam").glob("*.npy")]) == 6
    assert f"{len(written)} of 6 images are finished: skipped" in capsys.readouterr().out


def test_a_training_goes_on_from_its_last_good_state(toy, room, monkeypatch):
    flags = {"train_classifier_pass": True, "redo": (), "cam_num_epoches": 2}
    save = TrainingState.save

    def save_in_little_room(state, step, **more):
        room(KIB if step == 4 else resource.RLIM_INFINITY)
        save(state, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_in_little_room)
        with pytest.raises(InputError, match=r"result/state/train_classifier\.pth can't be written"):
            run_sample.run(toy.flags(**NO_STEPS | flags, state_minutes=0))
    room(resource.RLIM_INFINITY)
    assert saved_step("result", "train_classifier") == (3, 6)
    for changed, said in (
        ({}, "goes on at 50% (step 3 of 6)"),
        ({"resume": False}, "runs: it was interrupted"),
        ({"cam_learning_rate": 0.05}, "runs: --cam_learning_rate differs: 0.001 -> 0.05"),
        ({"redo": "train_classifier", "num_workers": 0}, "goes on at 50% (step 3 of 6)"),
    ):
        start = len(Path("sample_train_eval.log").read_text())
        run_sample.run(toy.flags(**NO_STEPS | flags | changed, plan=True))
        assert f"train_classifier  {said}" in Path("sample_train_eval.log").read_text()[start:]
    run_sample.run(toy.flags(**NO_STEPS | flags))
    lines = Path("result/metrics/train_classifier.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not [*Path().rglob("*.part*")]


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another disk than the test's: in shared memory."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("a second disk is needed: /dev/shm is missing, or the temporary folder lies on it")
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_what_is_needed_is_summed_disk_by_disk(tmp_path, other_disk, monkeypatch):
    free = {tmp_path.stat().st_dev: 10, other_disk.stat().st_dev: 20}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[Path(path).stat().st_dev]))
    rooms = room_for([(tmp_path / "a" / "b", 3), (other_disk, 5), (tmp_path, 4)])
    assert [(room.folder, room.needed) for room in rooms] == [(tmp_path / "a" / "b", 7), (other_disk, 5)]
    assert [room.free for room in rooms] == [10, 20]
    assert str(Room(Path("/maps"), 4_100_000_000, 2_000)) == "4.10 GB on the disk of /maps, where 2.00 kB are free"


@pytest.mark.parametrize("full", ["that of the maps", "that of the results"])
def test_the_plan_asks_the_disk_that_a_step_writes_to(toy, other_disk, monkeypatch, full):
    make_all_inputs(toy)
    of_maps, usage = other_disk.stat().st_dev, shutil.disk_usage

    def disk_usage(path):
        is_of_maps = Path(path).stat().st_dev == of_maps
        return usage(path)._replace(free=0 if is_of_maps == (full == "that of the maps") else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    line = toy.flags(**NO_STEPS | {"make_cam_pass": True, "plan": True, "cam_out_dir": str(other_disk / "cams")})
    if full == "that of the results":
        run_sample.run(line)
    else:
        with pytest.raises(InputError, match=rf"about .* on the disk of {other_disk}/cams, where 0 bytes are free"):
            run_sample.run(line)


@pytest.fixture
def small_disk(toy):
    """A disk of its own for `result` and `sess`, with 1 MiB of room."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a disk of its own needs mounts of its own: root, and leave to call unshare")
    return toy


def run_on_small_disk(toy, size, **flags):
    """Run with `work_dir` on a disk of `size`, whose content is copied out; returns exit code and messages."""
    mount = f'mount -t tmpfs -o size={size} small disk && cp -r kept/. disk && "$@"; code=$?; rm -rf kept; '
    script = mount + "cp -r disk kept; exit $code"
    line = [sys.executable, str(ROOT / "run_sample.py"), *toy.flags(**NO_STEPS | flags)]
    for name in ("disk", "kept"):
        Path(name).mkdir(exist_ok=True)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *line], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_on_a_full_disk_a_step_ends_in_one_sentence_and_goes_on_when_there_is_room(small_disk):
    toy = small_disk
    make_all_inputs(toy)
    weights = {name: Path(path).resolve() for name, path in (("cam_weights_name", "sess/res50_cam_ood.pth"),)}
    flags = {"make_cam_pass": True, "work_dir": "disk", "redo": (), **weights}
    code, said = run_on_small_disk(toy, "124k", **flags)
    assert code == 2, said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    assert "can't be written: the disk is full; make room there; what is finished is kept" in said
    kept = {path.name: path.stat().st_mtime_ns for path in Path("kept/result/cam_ood").glob("*.npy")}
    assert not [*Path("kept").rglob("*.part*")]
    code, said = run_on_small_disk(toy, "10m", **flags)
    assert code == 0, said
    assert len([*Path("kept/result/cam_ood").glob("*.npy")]) == 6
    assert kept
    assert f"{len(kept)} of 6 images are finished: skipped" in said
