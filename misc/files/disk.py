"""Disks that take no more: what failed for that reason is told in one sentence, whichever library was writing."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misc.errors import InputError

ADVICE = {
    errno.ENOSPC: "the disk is full; make room there",
    errno.EDQUOT: "the quota on this disk is used up; make room, or ask for more",
    errno.EFBIG: "files as large as this are not allowed here; raise the limit (ulimit -f)",
}
"""What has happened, and what to do, by the number of the system's error."""
GOES_ON = "what is finished is kept, and the same command goes on from there"


@contextmanager
def told_if_disk_is_full(path: str | Path, *, writing: str | Path = "") -> Iterator[None]:
    """Raise `InputError` with the name `path` where the block fails because the disk takes no more.

    `writing`: the file that the block writes under another name. Libraries that write themselves don't always pass on
    the system's reason; if theirs has none, the disk is asked for it with one byte more at the end of this file.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and writing:
            number = _refusal(writing)
        if number not in ADVICE:
            raise
        raise InputError(f"{path} can't be written: {ADVICE[number]}; {GOES_ON}.") from error


def _refusal(path: str | Path) -> int | None:
    """The number of the system's error if a byte can't be appended to a file; None if it can."""
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(b"\0")
            os.fsync(file.fileno())  # network file systems say it only then
    except OSError as error:
        return error.errno
    return None
