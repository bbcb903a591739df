"""The first minutes on a GPU: tests, speed and the built-in sample, with `bash benchmarks/gpu_day.sh`.

The machine needs PyTorch and no network; other packages that it lacks come as wheels from a folder (`--wheels`). Parts:

tests       the tests marked `cuda`: the toy chain against the CPU, interruptions, memory, two processes
bench_tf32  every step against the plain way (bench_steps.py)
bench_bf16  the same in bfloat16, of the steps that run a backbone
sample      the built-in sample, up to its report
profile     where the time of the steps goes (profile_steps.py)
memory      the memory of each step at its peak, beside what is counted beforehand (count_memory.py)

All end in time: each part gets its share of what is left, and what one does not use falls to the next ones. A part that
fails or runs out of time stops no other. Called again with the same folder, the benchmarks measure what is missing and
the sample goes on; `--parts` chooses. The folder gets gpu_day.md, the table of the parts; gpu_day.log, all that they
have said; the benchmarks' pages; and the sample's own folder.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import machine_name
from misc.errors import InputError
from misc.files.atomic import atomic_path
from misc.run.device import resolve_device
from misc.run.plan import require_writable

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 540
GRACE = 10
"""Seconds between telling a part to end and killing it, if its time is not shorter still."""
SHOWN_LINES = 15
"""Of what a part that did not pass has said at last."""
BF16_STEPS = ("train_cam", "train_irn", "make_cam", "make_advcam", "train_deeplab", "eval_deeplab")
LOG, TABLE = "gpu_day.log", "gpu_day.md"


@dataclass(frozen=True)
class Part:
    """`command` runs for its `share` of the time that is left, in proportion to those of the parts after it."""

    name: str
    command: Sequence[str | Path]
    share: float


@dataclass(frozen=True)
class Outcome:
    """How a part ended: `passed`, `failed (exit code N)` or `timed out`."""

    name: str
    result: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ended in time, with exit code 0."""
        return self.result == "passed"


def parts_of(device: str, folder: Path) -> list[Part]:
    """All parts, in their order, on `cuda` or `cpu`."""

    def bench(precision: str, *steps: str) -> list[str | Path]:
        chosen = ["--steps", *steps] if steps else []
        where = ["--output", folder / f"bench_steps_{precision}.md", "--missing"]
        script = ROOT / "benchmarks/bench_steps.py"
        return [script, "--device", device, "--precision", precision, "--repeats", "3", *where, *chosen]

    # Each test of the file is marked `cuda` for the GPU and `slow` for the CPU. Warnings of other versions of the
    # packages are no failures here.
    tests = ["-m", "pytest", "tests/test_cuda.py", "-m", {"cuda": "cuda", "cpu": "slow"}[device]]
    sample = ["--sample", "True", "--device", device, "--work_dir", folder / "sample"]
    data = ["--sample_root", folder / "sample_data"]
    profile = ["--device", device, "--output", folder / "profile.md"]
    commands = (
        ("tests", [*tests, "-W", "default", "-v", "--tb=short", "-p", "no:cacheprovider"], 110),
        ("bench_tf32", bench("tf32"), 140),
        ("bench_bf16", bench("bf16", *BF16_STEPS), 60),
        ("sample", [ROOT / "run_sample.py", *sample, *data], 170),
        ("profile", [ROOT / "benchmarks/profile_steps.py", *profile], 75),
        ("memory", [ROOT / "benchmarks/count_memory.py", *(["--measure"] if device == "cuda" else [])], 35),
    )
    return [Part(name, [sys.executable, *command], share) for name, command, share in commands]


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    *,
    end: float,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    title: str,
) -> list[Outcome]:
    """Run the parts one after the other, in the project's folder; after each one their table is written.

    Args:
        end: when all must have ended, on the monotonic clock.
        tell: takes lines for the screen.
        title: of the table, which goes below those of earlier calls.
    """
    outcomes: list[Outcome] = []
    earlier = (folder / TABLE).read_text() + "\n" if (folder / TABLE).is_file() else ""
    for number, part in enumerate(parts):
        left = max(0.0, end - time.monotonic())
        limit = left * part.share / sum(later.share for later in parts[number:])
        outcomes.append(_run(part, folder / LOG, limit=limit, environment=environment, tell=tell))
        with atomic_path(folder / TABLE) as temporary:
            temporary.write_text(f"{earlier}{title}\n\n{table(outcomes)}\n")
    return outcomes


def _run(
    part: Part, log: Path, *, limit: float, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Outcome:
    line = shlex.join(map(str, part.command))
    tell(f"{part.name}: {limit:.0f} s for {line}")
    started, grace = time.monotonic(), min(GRACE, limit / 10)
    with log.open("ab") as output:
        output.write(f"\n==== {part.name}: {line}\n".encode())
        output.flush()
        # A session of its own, so that all that it starts can be ended with it
        process = subprocess.Popen(
            list(map(str, part.command)),
            cwd=ROOT,
            env={**environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit - grace)
            result = "passed" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            result = "timed out"
            for number in (signal.SIGINT, signal.SIGTERM):  # at the first one pytest tells which tests failed, and why
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace / 2)
                    break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.write(f"==== {part.name}: {result}\n".encode())
    outcome = Outcome(part.name, result, time.monotonic() - started)
    if not outcome.passed:
        said = log.read_text(errors="replace").rpartition(f"\n==== {part.name}: {line}\n")[2].splitlines()
        tell("\n".join(f"    {each}" for each in said[-SHOWN_LINES - 1 : -1]))
    tell(f"{part.name}: {result}, {outcome.seconds:.0f} s")
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The parts and how they ended, as Markdown."""
    rows = [("part", "result", "seconds"), ("---", "---", "---")]
    rows += [(each.name, each.result, f"{each.seconds:.0f}") for each in outcomes]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def environment_with(wheels: Path | None, site: Path) -> dict[str, str]:
    """The environment of the parts, in which the packages of the folder `wheels` are found, unpacked to `site`.

    Raises `InputError` if that holds no wheels, or some that can't be installed here.
    """
    # Unbuffered, so that the log also has what a part has said before it was killed
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **os.environ}
    if wheels is None:
        return environment
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise InputError(f"--wheels {wheels} holds no wheels (*.whl); name the folder that `pip download` filled.")
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, *files]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        raise InputError(f"--wheels {wheels}: pip can't install these packages here ({reason}).")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH", "")]))
    return environment


def missing_packages(environment: Mapping[str, str]) -> list[str]:
    """What the requirements name and the parts will not find, a line each."""
    line = [sys.executable, "misc/run/check_requirements.py", "requirements.txt"]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True).stderr.splitlines()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    names = [part.name for part in parts_of("cpu", Path())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--wheels", type=Path, help="folder of wheels of the packages that this Python lacks")
    parser.add_argument("--folder", type=Path, default=ROOT / "result/gpu_day", help="for results and log")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    options.folder = options.folder.resolve()
    return options


def run(options: argparse.Namespace) -> bool:
    """Run the chosen parts, whether or not others pass; whether all passed. Raises `InputError` for bad input."""
    end = time.monotonic() + options.seconds
    device = resolve_device(options.device)
    require_writable(options.folder, flag="folder")
    with tempfile.TemporaryDirectory(prefix="gpu_day_") as site:
        environment = environment_with(options.wheels, Path(site))
        for line in missing_packages(environment):
            print(f"notice: {line}: what needs it will fail; put its wheel into the folder of --wheels", flush=True)
        parts = [part for part in parts_of(options.device, options.folder) if part.name in options.parts]
        title = f"{datetime.now():%Y-%m-%d %H:%M}, {machine_name(device)}"
        how = {"end": end, "environment": environment, "tell": partial(print, flush=True), "title": title}
        outcomes = run_parts(parts, options.folder, **how)
    print(f"\n{title}\n\n{table(outcomes)}\n\nwritten to {options.folder}")
    return all(outcome.passed for outcome in outcomes)


def main() -> int:
    """Run from the command line; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # whose parts then end, too
    # A shell lets what runs in its background ignore this one, and so would all parts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return 0 if run(parse()) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
