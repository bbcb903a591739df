"""Room on disks: what is needed and what is free; what failed because a disk takes no more is told in one sentence."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from misc.errors import InputError

ADVICE = {
    errno.ENOSPC: "the disk is full; make room there",
    errno.EDQUOT: "the quota on this disk is used up; make room, or ask for more",
    errno.EFBIG: "files as large as this are not allowed here; raise the limit (ulimit -f)",
}
"""What has happened, and what to do, by the number of the system's error."""
GOES_ON = "what is finished is kept, and the same command goes on from there"


@dataclass(frozen=True)
class Room:
    """Of one disk: a folder on it, and the bytes that are needed there and free."""

    folder: Path
    needed: int
    free: int

    @property
    def suffices(self) -> bool:
        """Whether what is needed fits."""
        return self.needed <= self.free

    def __str__(self) -> str:
        needed, free = readable_size(self.needed), readable_size(self.free)
        return f"{needed} on the disk of {self.folder.absolute()}, where {free} are free"


def room_for(needs: Iterable[tuple[str | Path, int]]) -> list[Room]:
    """What is needed on each disk, and what is free there.

    Args:
        needs: folders, which need not be there yet, and the bytes that will go into each. A disk goes by the first of
            its folders.
    """
    disks: dict[int, Room] = {}
    for folder, n_bytes in needs:
        there = _nearest(Path(folder))
        disk = there.stat().st_dev
        room = disks.get(disk) or Room(Path(folder), 0, shutil.disk_usage(there).free)
        disks[disk] = Room(room.folder, room.needed + n_bytes, room.free)
    return [*disks.values()]


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def readable_size(n_bytes: int) -> str:
    """`2.00 GB`, `97.8 MB`, `512 bytes`: in powers of ten, as disks are sold."""
    for unit, digits in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n_bytes >= 10**digits:
            value = n_bytes / 10**digits
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{n_bytes} bytes"


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
