"""One run a folder: who writes into a folder or a checkpoint holds its lock, and clears away what killed runs left.

The locks are those of the kernel (POSIX record locks): they end with their process, however that ends, and hold
between the machines that share a network file system.
"""

import errno
import fcntl
import json
import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from misc.errors import InputError
from misc.files.atomic import leftovers
from misc.files.jsonfile import read_dict
from misc.run.notices import notice

log = logging.getLogger(__name__)

SHOWN_COMMAND = 200
"""Characters of the command of another run that holds a lock."""
HELD, NO_LOCKS = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_path(place: Path) -> Path:
    """The lock of a file or folder, which lies beside it."""
    return place.with_name(f".{place.name}.lock")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let only one process at a time through, for one folder, which is made where it is missing: the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems can't lock a folder; two runs at once then are not kept apart.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(places: Iterable[str | Path]) -> Iterator[None]:
    """Hold the locks of the folders and files that a run writes.

    What killed runs have left there is removed. A place that can't be locked since nothing can be written beside it is
    left out: whether the run can write there is for its steps' checks to say. Raises `InputError` if another run holds
    one of them, and says which.
    """
    with ExitStack() as stack:
        for place in sorted({Path(os.path.realpath(place)) for place in places}):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(place))
                _clear(place)
            except OSError as error:
                log.debug("no lock of %s: %s", place, error)
        yield


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    path = lock_path(place)
    descriptor = _take(path, place)
    try:
        holder = {
            "host": platform.node(),
            "process": os.getpid(),
            "user": os.environ.get("USER") or f"user {os.getuid()}",
            "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
            "command": " ".join(sys.argv),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, place: Path) -> int:
    """An open file that holds the lock; it is still the one at `path`, which an ending run may have removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                notice(f"the file system of {place} has no locks: let no second run write there")
                return descriptor
            os.close(descriptor)
            if error.errno in HELD:
                raise InputError(_in_use(path, place)) from error
            raise
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _in_use(path: Path, place: Path) -> str:
    holder = read_dict(path)
    who, process, command = "another run", "it", ""
    if holder.keys() >= {"host", "process", "user", "since", "command"}:
        who = "the run of {user} on {host} (process {process}, since {since})".format(**holder)
        process = f"process {holder['process']} there"
        command = f" It was started by: {str(holder['command'])[:SHOWN_COMMAND]}"
    return (
        f"{place} is in use by {who}; wait until it has ended, or name another --work_dir (or the flag's own place). "
        f"If it is left over, as the processes of a torchrun that was killed are, end {process}.{command}"
    )


def _clear(place: Path) -> None:
    """Remove temporary files that are nobody's, since this run holds the lock; folders with their own are left out."""
    if place.is_dir():
        folders = [place, *(path for path in place.iterdir() if path.is_dir() and not lock_path(path).exists())]
        found = [path for folder in folders for path in leftovers(folder)]
    else:
        found = leftovers(place.parent, place)
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        log.info("removed %d temporary files that a killed run has left in %s", len(found), place)
