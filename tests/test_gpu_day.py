"""The script for the first minutes on a GPU: its parts run in order, and none keeps another from its turn."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench_steps, gpu_day, profile_steps
from benchmarks.gpu_day import LOG, ROOT, TABLE, Part, parts_of, run_parts
from misc.errors import InputError
from misc.run.config import parse_config
from tests.test_parallel import is_running


def script(name, code, share=1.0):
    return Part(name, [sys.executable, "-c", code], share)


def run(parts, folder, *, seconds):
    """The outcomes, and the lines that the screen has shown."""
    said = []
    environment = {**gpu_day.environment_with(None, folder), "GIVEN": "to all"}
    how = {"environment": environment, "title": "a machine", "tell": said.append}
    return run_parts(parts, folder, end=time.monotonic() + seconds, **how), said


def let_time_be_up(monkeypatch, is_up, *, grace):
    """Let the time of a part be up once `is_up(its last argument)`: no number of seconds suits every machine.

    A part that heeds a signal has half of `grace` seconds to end.
    """
    wait = subprocess.Popen.wait

    def waited(process, timeout=None):
        if timeout is None or timeout <= grace:
            return wait(process, timeout)
        end = time.monotonic() + timeout
        while True:
            try:
                return wait(process, 0.05)
            except subprocess.TimeoutExpired:
                if is_up(process.args[-1]) or time.monotonic() > end:
                    raise

    monkeypatch.setattr(gpu_day, "GRACE", grace)
    monkeypatch.setattr(subprocess.Popen, "wait", waited)


SLOW = (
    "import subprocess, sys, time; print('three'); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_parts_run_in_order_and_none_stops_the_rest(tmp_path, monkeypatch):
    """One that fails, one that hangs with a process of its own, one that does not heed when it is told to end."""
    started = tmp_path / "child"
    written, whole = f"{started}.part", str(started)
    child = f"open({written!r}, 'w').write(str(os.getpid())); os.replace({written!r}, {whole!r}); time.sleep(600)"
    deaf = "import time; from signal import *; [signal(s, SIG_IGN) for s in (SIGINT, SIGTERM)]; print('deaf')"
    parts = [
        script("first", "import os; print('one', os.environ['GIVEN'])", 3),
        script("second", "print('two'); raise SystemExit(3)", 3),
        script("third", SLOW.format(child=f"import os, time; {child}"), 2),
        script("fourth", f"{deaf}; time.sleep(600)"),
        script("fifth", "print('five')", 4),
    ]
    hangs = {
        parts[2].command[-1]: started.is_file,
        parts[3].command[-1]: lambda: "deaf\n" in (tmp_path / LOG).read_text(),
    }
    let_time_be_up(monkeypatch, lambda code: code in hangs and hangs[code](), grace=1)
    outcomes, _ = run(parts, tmp_path, seconds=2000)
    expected = ["passed", "failed (exit code 3)", "timed out", "timed out", "passed"]
    assert [(each.name, each.result) for each in outcomes] == [*zip((p.name for p in parts), expected, strict=True)]
    log = (tmp_path / LOG).read_text()
    places = [log.index(text) for text in ("one to all", "two", "three\n", "deaf\n", "five\n")]
    assert places == sorted(places)
    assert not is_running(int(started.read_text()))
    assert {path.name for path in tmp_path.iterdir()} == {LOG, TABLE, "child"}
    rows = (tmp_path / TABLE).read_text().splitlines()
    assert rows[0] == "a machine"
    assert rows[2:4] == ["| part | result | seconds |", "| --- | --- | --- |"]
    assert [row.split(" | ")[:2] for row in rows[4:]] == [
        [f"| {p.name}", r] for p, r in zip(parts, expected, strict=True)
    ]


@pytest.fixture
def heeded_interrupts():
    """As `main` sees to it: a shell lets what runs in its background ignore SIGINT, and what that starts as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_tests_that_run_out_of_their_time_tell_which_failed_and_why(tmp_path, monkeypatch):
    (tmp_path / "test_toy.py").write_text(
        "import pathlib\nimport time\n\n\ndef test_one():\n    assert 1 == 2, 'for this reason'\n\n\n"
        "def test_two():\n    pathlib.Path(__file__).with_name('begun').touch()\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-v", "--tb=short", "-p", "no:cacheprovider"]
    let_time_be_up(monkeypatch, lambda _: (tmp_path / "begun").exists(), grace=120)
    ((outcome,), _) = run([Part("tests", command, share=1)], tmp_path, seconds=2000)
    assert outcome.result == "timed out"
    log = (tmp_path / LOG).read_text()
    assert "test_toy.py::test_one FAILED" in log
    assert "AssertionError: for this reason" in log


def test_what_a_part_does_not_use_falls_to_the_next_ones(tmp_path):
    _, said = run([script("quick", ""), script("quick too", ""), script("last", "", 8)], tmp_path, seconds=100)
    limits = [int(text.split(": ")[1].split(" s ")[0]) for text in said[::2]]
    assert limits[0] == 10
    assert limits[1] in (10, 11)
    assert limits[2] >= 95


def test_a_part_that_fails_shows_its_last_lines_and_later_calls_add_to_the_table(tmp_path):
    loud = script("loud", "print(*range(40), sep='\\n'); raise SystemExit('no GPU')")
    _, said = run([loud], tmp_path, seconds=20)
    assert said[1].split() == [*map(str, range(40 - 14, 40)), "no", "GPU"]
    run([script("later", "")], tmp_path, seconds=20)
    assert [line.split(" | ")[0] for line in (tmp_path / TABLE).read_text().splitlines() if "passed" in line] == [
        "| later"
    ]
    assert (tmp_path / TABLE).read_text().count("a machine") == 2
    assert "| loud | failed (exit code 1) |" in (tmp_path / TABLE).read_text()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_parts_are_lines_that_their_programs_understand(device, tmp_path):
    parts = {part.name: [*map(str, part.command)] for part in parts_of(device, tmp_path)}
    assert list(parts) == ["tests", "bench_tf32", "bench_bf16", "sample", "profile", "memory"]
    assert parts["tests"][1:6] == ["-m", "pytest", "tests/test_cuda.py", "-m", {"cuda": "cuda", "cpu": "slow"}[device]]
    for name, precision in (("bench_tf32", "tf32"), ("bench_bf16", "bf16")):
        assert parts[name][1] == bench_steps.__file__
        options = bench_steps.parse(parts[name][2:])
        assert (options.device, options.precision, options.missing) == (device, precision, True)
        assert options.output.parent == tmp_path
    profile = profile_steps.parse(parts["profile"][2:])
    assert (profile.device, profile.output) == (device, tmp_path / "profile.md")
    assert parts["memory"][2:] == {"cuda": ["--measure"], "cpu": []}[device]
    assert Path(parts["sample"][1]) == ROOT / "run_sample.py"
    config = parse_config(parts["sample"][2:])
    assert (config.sample, config.device, config.work_dir) == (True, device, str(tmp_path / "sample"))


def test_wheels_are_unpacked_where_the_parts_find_them(tmp_path, monkeypatch):
    wheel = tmp_path / "wheels/wood_toy-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    write_wheel(wheel)
    environment = gpu_day.environment_with(wheel.parent, tmp_path / "site")
    done = partial(subprocess.run, env=environment, capture_output=True, text=True)
    assert done([sys.executable, "-c", "import wood_toy; print(wood_toy.__file__)"]).stdout.startswith(str(tmp_path))
    with pytest.raises(InputError, match=r"--wheels .*/nothing holds no wheels"):
        gpu_day.environment_with(tmp_path / "nothing", tmp_path)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InputError, match="pip can't install these packages here"):
        gpu_day.environment_with(wheel.parent, tmp_path)


def write_wheel(path):
    """A package of one module."""
    info = "wood_toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wood_toy.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: wood_toy\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def test_a_missing_gpu_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--folder", str(tmp_path)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert gpu_day.main() == 2
    assert "finds no GPU here" in capsys.readouterr().err


def test_the_shell_script_hands_its_flags_on():
    line = ["bash", str(ROOT / "benchmarks/gpu_day.sh"), "--parts", "sample"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "WOOD_PYTHON": "echo"})
    assert done.stdout == "benchmarks/gpu_day.py --parts sample\n"


@pytest.mark.slow
def test_the_script_from_end_to_end_in_two_seconds(tmp_path):
    """Too few for any part, whose ends the table tells."""
    line = ["bash", str(ROOT / "benchmarks/gpu_day.sh"), "--device", "cpu", "--seconds", "2", "--folder", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "WOOD_PYTHON": sys.executable})
    assert done.returncode == 1, done.stderr
    rows = (tmp_path / TABLE).read_text().splitlines()[4:]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {part.name}", "timed out"] for part in parts_of("cpu", tmp_path)
    ]
    assert done.stdout.endswith(f"written to {tmp_path}\n")
