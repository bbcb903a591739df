"""The machine's limits: memory, processes, open files, shared memory. Each ends a run with one sentence."""

import errno
import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from misc.errors import InputError, reason_of
from misc.files.disk import ADVICE, GOES_ON
from misc.run.notices import notice
from misc.run.parallel import usable_cores
from misc.run.step import Step
from misc.run.stopping import GRACE_SECONDS, is_told, told

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what processes share."""
MORE_SHARED_MEMORY = f"give the machine more of it (docker run --shm-size 8g, or remount {SHARED_MEMORY})"

# What libraries say, whose errors are of no type of their own; a worker's error comes as text within another
_WORKER_LOST = re.compile(
    # The thread that puts what workers send into page-locked memory ends where a message breaks off
    r"DataLoader worker .*(killed by signal|exited unexpectedly)|Pin memory thread exited unexpectedly"
)
_BUS_ERROR = re.compile(r"Bus error|unable to (write|resize|allocate|open|mmap) .*(shm|shared memory|/torch_)")
_GPU = re.compile(r"cuda|cublas|cudnn|unable to find an engine", re.IGNORECASE)
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|insufficient memory|out of memory|unable to allocate|bad_alloc"
    r"|failed to allocate|_ALLOC(ATION)?_FAILED|storage size calculation overflowed|array is too big|MemoryError"
    # PyTorch where no algorithm of cuDNN, or oneDNN, has room for its work; CUDA's libraries where there is none for
    # their handles
    r"|unable to find an engine|could not (create|execute) a primitive(?! descriptor)"
    r"|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED|(initialization error|insufficient resources) when calling .?cusparse",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGTPE]iB))", re.IGNORECASE)
_TOO_MANY_FILES = re.compile(r"too many open files|received 0 items of ancdata", re.IGNORECASE)
_NO_PROCESS = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)


class OneTooLarge(Exception):
    """The memory does not suffice for a single image of (H, W) `size`, the file `example`; its cause tells more."""

    def __init__(self, size: tuple[int, int], example: str | Path) -> None:
        super().__init__(f"an image of {size[0]} x {size[1]} pixels, {example}")


LOST_CONNECTION = (ConnectionError, EOFError)
"""What reading from a process raises that has died."""

_kept: list[BaseException] = []
"""Errors of lost workers, until the process ends: a loader that is cleared away before waits for what never comes."""


def allow_open_files() -> None:
    """Let this process open as many files as the system allows it, where its own limit is lower.

    Each process that loads images takes about twenty of them here, and shells begin with 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems have a lower one that they don't tell
        notice(f"no more than {soft} files may be open at once")


def keep_to_cores() -> None:
    """Let PyTorch compute with no more threads than this process has cores; `OMP_NUM_THREADS` says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())


@contextmanager
def limits_told(step: Step | None = None) -> Iterator[None]:
    """Raise `InputError` for what fails in the block for a limit of the machine: the cause, and the flags that help.

    `step`: the step that the block does, which declares them.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if _is_of_lost_worker(error):
            _kept.append(error)
            if is_told(grace=GRACE_SECONDS):  # and so were the workers
                raise told() from error
        sentence = _sentence(error, step)
        if sentence is None:
            raise
        raise InputError(sentence) from error


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether a loader has lost one of its processes: it finds it gone, or a connection to it closed."""
    return isinstance(error, LOST_CONNECTION) or _WORKER_LOST.search(str(error)) is not None


def is_limit(error: Exception) -> bool:
    """Whether an error says that a limit of the machine was reached: disk, memory, files, processes."""
    return _sentence(error, None) is not None


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice, of this machine or of its GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OneTooLarge):
        return True
    return (isinstance(error, OSError) and error.errno == errno.ENOMEM) or _NO_MEMORY.search(str(error)) is not None


def is_of_gpu(error: Exception) -> bool:
    """Whether an error that says so speaks of the GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) or _GPU.search(str(error)) is not None


def _sentence(error: Exception, step: Step | None) -> str | None:
    """What has happened and what to do; None if it was no limit of the machine."""
    name = f"{step.name}: " if step else ""
    flags = step.memory_flags if step else ()
    of_one = ""
    if isinstance(error, OneTooLarge):
        of_one, error = f" for {error}", error.__cause__
        flags = tuple(flag for flag in flags if not flag.endswith("_batch_size"))
    text, number = str(error), error.errno if isinstance(error, OSError) else None
    workers = [flag for flag in flags if flag.endswith("_workers")] or ["num_workers"]
    if _BUS_ERROR.search(text) or (number == errno.ENOSPC and error.filename is None and _no_page_is_left()):
        return f"{name}the shared memory ({SHARED_MEMORY}) is full; {to_lower(workers)}, or {MORE_SHARED_MEMORY}."
    if _is_of_lost_worker(error):
        return (
            f"{name}a process that loads images was killed or has died, perhaps for lack of memory ({_first(error)}); "
            f"{to_lower(workers)} (0: no such processes), or free some memory; {GOES_ON}."
        )
    if number in ADVICE:
        place = f"{error.filename} can't be written: " if error.filename else ""
        return f"{name}{place}{ADVICE[number]} ({reason_of(error)}); {GOES_ON}."
    if number in (errno.EMFILE, errno.ENFILE) or _TOO_MANY_FILES.search(text):
        return (
            f"{name}too many files are open at once ({allowed_files()} may be); "
            f"{to_lower(workers)}, or raise ulimit -n."
        )
    if number == errno.EAGAIN or _NO_PROCESS.search(text):
        return f"{name}the system starts no more processes or threads; {to_lower(workers)}, or raise ulimit -u."
    if not lacks_memory(error):
        return None
    amount = f" ({found[1]} more were asked for)" if (found := _AMOUNT.search(text)) else ""
    if is_of_gpu(error):
        helping = gpu_flags(flags)
        other, memory = "pass --device cpu, or free some of it", "the GPU's memory"
    else:
        helping, other, memory = [*flags], "free some of it", "the memory"
    advice = f"{to_lower(helping)}, or {other}" if helping else other
    return f"{name}{memory} does not suffice{of_one}{amount}; {advice}; what is finished is kept."


def gpu_flags(flags: Sequence[str]) -> list[str]:
    """Those of a step's `memory_flags` that GPU memory depends on: not the processes that load."""
    return [flag for flag in flags if not flag.endswith("_workers")]


def to_lower(flags: Sequence[str]) -> str:
    """What to do, in words: `lower --a, --b or --c`."""
    names = [f"--{flag}" for flag in flags]
    return f"lower {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else f"lower {names[0]}"


def _first(error: Exception) -> str:
    """The first sentence of what a library says."""
    return reason_of(error).split(". ")[0].rstrip(". ")


def _no_page_is_left() -> bool:
    """Whether the shared memory has not even room for the locks of Python's processes."""
    return SHARED_MEMORY.is_dir() and free_bytes(SHARED_MEMORY) < resource.getpagesize()


def free_bytes(folder: Path) -> int:
    """How much room the disk of a folder has; 0 if there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def allowed_files() -> int:
    """How many files this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
