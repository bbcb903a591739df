"""Runs that are told to end, or killed: what is done is saved, workers end, and no two runs write to one place."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from support import NO_STEPS

import run_sample
from misc.errors import InputError
from misc.files.atomic import atomic_path, leftovers
from misc.run import stopping
from misc.run.config import parse_config
from misc.run.lock import lock_path, locked
from misc.run.progress import progress
from misc.run.training_state import saved_step
from net.weights import read_checkpoint, save_weights
from tests.own_network import Net
from voc12.derived import derived_file, is_derived

ROOT = Path(run_sample.__file__).parent
STATE, LOSSES = Path("result/state/train_classifier.pth"), Path("result/metrics/train_classifier.jsonl.part")
TRAINING = {"train_classifier_pass": True, "cam_num_epoches": 40, "redo": ()}  # 120 steps


PATIENCE = 600
"""Seconds that hangs alone exceed: to start PyTorch takes a minute and a half on a slow machine."""


def wait_until(condition, process):
    """Wait for what a process brings about; one that has ended is noticed at once."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(process):
    """The processes that a process has started, and theirs; not Python's own, which watches over shared resources."""
    found, todo = [], [process]
    while todo:
        number = todo.pop()
        for task in Path(f"/proc/{number}/task").glob("*/children"):
            below = [int(child) for child in task.read_text().split()]
            found += [child for child in below if b"resource_tracker" not in command_of(child)]
            todo += below
    return found


def command_of(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends between opening and reading
        return False


def wait_until_none_is_alive(processes, *, seconds=60):
    """Those that were told to end, or killed, are still there for a moment."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.01)


def start(toy, *launcher, **flags):
    line = [sys.executable, *launcher, str(ROOT / "run_sample.py"), *toy.flags(**NO_STEPS | flags)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def n_lines(path):
    return path.read_text().count("\n") if path.is_file() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_end_saves_its_state_and_ends_its_workers(toy, number):
    run_sample.run(toy.flags(**NO_STEPS | TRAINING, cam_init_weights_name="sess/expected.pth"))
    process = start(toy, **TRAINING, num_workers=2, state_minutes=60)
    wait_until(lambda: n_lines(LOSSES) >= 2, process)
    wait_until(lambda: len(children_of(process.pid)) == 2, process)  # one of an earlier loader may be ending still
    workers = children_of(process.pid)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    wait_until_none_is_alive(workers)
    assert f"{number.name}: the run ends " in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    done, n_steps = saved_step("result", "train_classifier")
    assert n_steps == 120
    assert done < n_steps  # it ends after the step under way, and not at its end
    assert done - n_lines(LOSSES) in (0, 1)  # told between a step and what is said of it, it says that when it goes on
    run_sample.run(toy.flags(**NO_STEPS | TRAINING))
    log = Path("sample_train_eval.log").read_text()
    assert f"goes on at {done / 120:.0%} (step {done} of 120)" in log
    assert f"train_classifier goes on after step {done} " in log
    lines = [json.loads(line)["step"] for line in LOSSES.with_suffix("").read_text().splitlines()]
    assert lines == [*range(1, 121)]
    given, expected = (read_checkpoint(f"sess/{name}.pth") for name in ("res50_cam_orig", "expected"))
    assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())


def run_script(text, *arguments):
    script = "import sys\nsys.path.insert(0, sys.argv[1])\n" + textwrap.dedent(text)
    line = [sys.executable, "-c", script, str(ROOT), *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


STARTING_WORKERS = """
import os
import signal

import torch
from torch.utils.data import dataloader

from misc.run.loaders import batch_loader
from misc.run.stopping import Told, ending_when_told

prepare = dataloader._BaseDataLoaderIter.__init__


def told_meanwhile(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    prepare(*arguments)


dataloader._BaseDataLoaderIter.__init__ = told_meanwhile
items = [{"x": torch.ones(2)}] * 4
try:
    with ending_when_told():
        print("started", flush=True)
        list(batch_loader(items, batch_size=2, num_workers=2, device=torch.device("cpu")))
except Told as told:
    sys.exit(told.exit_code)
"""


def test_told_to_end_while_a_loader_starts_its_workers():
    process = run_script(STARTING_WORKERS)
    assert process.stdout.readline() == "started\n"
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert "Exception ignored" not in said


SLEEPING_WORKERS = """
import time
from misc.run.parallel import ordered_map
from misc.run.stopping import Told, ending_when_told

try:
    with ending_when_told():
        print("started", flush=True)
        list(ordered_map(time.sleep, [100] * 4, workers=2, flag="crf_workers"))
except Told as told:
    sys.exit(told.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_under_way_in_other_processes_is_not_waited_for(number):
    process = run_script(SLEEPING_WORKERS)
    assert process.stdout.readline() == "started\n"
    wait_until(lambda: len(children_of(process.pid)) == 2, process)
    workers = children_of(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)  # the work takes 200 s
    assert process.returncode == 128 + number
    wait_until_none_is_alive(workers)


def test_a_second_signal_ends_a_run_on_the_spot():
    process = run_script(
        """
        import time
        from misc.run.stopping import ending_when_told, stop_deferred

        with ending_when_told(), stop_deferred():
            print("started", flush=True)
            while True:
                time.sleep(0.01)
        """
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert "after the step under way" in process.stderr.readline() + process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def tell(number):
    """Send a signal to this process, and be there when it comes."""
    os.kill(os.getpid(), number)
    time.sleep(1)


class Swallows:
    def __del__(self):
        tell(signal.SIGTERM)


def test_a_signal_in_a_destructor_is_not_printed_and_not_forgotten(capsys):
    with stopping.ending_when_told():
        thing = Swallows()
        del thing
        assert stopping.is_told()
    assert "Traceback" not in capsys.readouterr().err


def test_a_signal_that_was_swallowed_is_not_forgotten():
    with stopping.ending_when_told():
        with pytest.raises(stopping.Told):
            tell(signal.SIGTERM)
        assert stopping.is_told()
        with pytest.raises(stopping.Told):
            next(iter(progress([1])))
    assert not stopping.is_told()


def test_a_signal_waits_for_the_safe_place():
    with stopping.ending_when_told():
        with stopping.stop_deferred():
            tell(signal.SIGINT)
            assert stopping.is_told()
            stopping.raise_if_told()
            with pytest.raises(stopping.Told), stopping.stop_deferred(False):
                pytest.fail("a place where the run may end did not end it")
        with pytest.raises(stopping.Told):
            stopping.raise_if_told()


HOLDER = """
import time
from misc.run.lock import locked

with locked(["result", "sess/x.pth"]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(toy):
    process = run_script(HOLDER)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_holds_its_locks_to_its_end(toy):
    """The kernel lets them go when their process closes any descriptor of their files."""
    with run_sample.writing_alone([parse_config(toy.flags(**NO_STEPS | {"train_classifier_pass": True}))]):
        second = run_script(SECOND)
        assert second.communicate(timeout=60)[0] == "refused\n"
    second = run_script(SECOND)
    assert second.communicate(timeout=60)[0] == "alone\n"


SECOND = """
from misc.errors import InputError
from misc.run.lock import locked

try:
    with locked(["result"]):
        print("alone")
except InputError:
    print("refused")
"""


def test_a_second_run_on_a_folder_says_who_is_there_and_refuses(toy, holder):
    with pytest.raises(InputError, match=rf"result is in use by .+ on .+ \(process {holder.pid}, since 20") as told:
        run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}))
    assert f"killed are, end process {holder.pid} there. It was started by: " in str(told.value)
    with pytest.raises(InputError, match=r"sess/x\.pth is in use"):
        run_sample.run(
            toy.flags(
                **NO_STEPS | {"train_classifier_pass": True}, result_dir="other", cam_init_weights_name="sess/x.pth"
            )
        )
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}, result_dir="other"))
    holder.kill()
    holder.wait()
    assert lock_path(Path("result")).is_file()  # of a dead holder, who keeps nothing
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}))
    assert not lock_path(Path("result")).exists()


def test_planning_beside_a_run_is_allowed(toy, holder):
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}, plan=True))


def test_files_of_killed_runs_are_removed_by_the_next_one_there_and_by_no_other(toy):
    save_weights(Net(n_classes=3), "sess/res50_cam_orig.pth")
    made = []
    for path in ("result/cam_ood/a.npy", "result/scores/a.json", "sess/res50_cam_orig.pth", "sess/other.pth"):
        with atomic_path(path) as temporary:
            temporary.write_text("whole")
            made.append(temporary)
    for path in made:
        path.write_text("half")
    Path("result/metrics").mkdir()
    LOSSES.write_text("{}\n")
    mine = Path("result/cam_ood/.mine.part.npy")
    mine.write_text("of nobody's making")
    with locked(["elsewhere", "sess/x.pth"]):
        assert all(path.is_file() for path in made)
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}, cam_num_epoches=1))
    assert [path.is_file() for path in made] == [False, False, False, True]
    assert mine.is_file()
    assert leftovers(Path("sess")) == [made[-1]]
    assert not LOSSES.exists()
    log = Path("sample_train_eval.log").read_text()
    assert "temporary files that a killed run has left in" in log


def test_a_state_that_cannot_be_read_now_stops_the_run_and_stays(toy, monkeypatch):
    STATE.parent.mkdir(parents=True)
    STATE.write_bytes(b"whole, for all we know")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("misc.run.training_state.load_tensors", refuse)
    with pytest.raises(InputError, match=r"result/state/train_classifier\.pth, can't be read now .*--resume False"):
        run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True}))
    assert STATE.read_bytes() == b"whole, for all we know"


def test_a_run_that_dies_between_a_derived_file_and_its_record_leaves_nothing_that_looks_like_the_users(
    tmp_path, monkeypatch
):
    path = tmp_path / "train.txt"
    with derived_file(path, source="a") as temporary:
        temporary.write_text("1\n")
    assert is_derived(path, source="a")
    for place in ("os.replace", "voc12.derived.write_json"):
        with monkeypatch.context() as patch:

            def die(*_):
                raise KeyboardInterrupt

            patch.setattr(place, die)
            with pytest.raises(KeyboardInterrupt), derived_file(path, source="b") as temporary:
                temporary.write_text("2\n")
        assert path.read_text() == "1\n"
        assert is_derived(path)
        assert not is_derived(path, source="b")
    with derived_file(path, source="b") as temporary:
        temporary.write_text("2\n")
    assert is_derived(path, source="b")
    path.write_text("3\n")
    assert not is_derived(path)


def test_the_example_for_slurm_passes_the_signal_on_and_queues_the_job_again(tmp_path):
    (example,) = re.findall(
        r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", (ROOT / "docs/running.md").read_text(), re.M | re.S
    )
    # Half a second, in which a shell that others keep waiting comes to its next line
    run = "trap 'sleep 0.2; echo saved >> said; exit 143' TERM; sleep 0.5; echo started >> said"
    run += "; while :; do sleep 0.05; done"
    for name, lines in (("python", run), ("scontrol", 'echo "$@" >> said')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    process = subprocess.Popen(["bash", "-c", example], cwd=tmp_path, env=environment)
    said = tmp_path / "said"
    wait_until(said.is_file, process)
    process.terminate()
    process.wait(timeout=60)
    assert said.read_text().split("\n") == ["started", "saved", "requeue 77", ""]


@pytest.mark.slow
@pytest.mark.parametrize("max_restarts", [0, 1])
def test_a_killed_process_of_several_ends_the_job_and_the_next_start_goes_on(toy, max_restarts):
    run_sample.run(toy.flags(**NO_STEPS | TRAINING, cam_init_weights_name="sess/expected.pth"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["--max-restarts", str(max_restarts)]
    process = start(toy, *launcher, **TRAINING, state_minutes=0)
    wait_until(STATE.is_file, process)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    if max_restarts == 0:
        process.communicate(timeout=60)
        assert process.returncode == 1
        process = start(toy, *launcher, **TRAINING)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert Path("sample_train_eval.log").read_text().count("train_classifier goes on after step") == 1
    given, expected = (read_checkpoint(f"sess/{name}.pth") for name in ("res50_cam_orig", "expected"))
    for name, tensor in expected.items():
        assert (given[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name


def test_what_nobody_foresaw_is_one_sentence_on_the_screen_and_a_traceback_in_the_log(toy, monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError("nobody\nthought of this")

    monkeypatch.setattr("step.train_classifier.fit", fail)
    monkeypatch.setattr(sys, "argv", ["run_sample.py", *toy.flags(**NO_STEPS | {"train_classifier_pass": True})])
    assert run_sample.main() == 1
    said = capsys.readouterr().err
    assert "error: something unforeseen (ZeroDivisionError: nobody thought of this); the log has the traceback" in said
    assert "Traceback" not in said
    assert "Traceback" in Path("sample_train_eval.log").read_text()
    (record,) = Path("result/runs").iterdir()
    assert json.loads(record.read_text())["ended_early"]["by"] == "ZeroDivisionError: nobody thought of this"
