"""Records that grow by a line at a time: whatever moment a run is killed at, the lines before it stay sound."""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from misc.files.disk import told_if_disk_is_full
from misc.files.jsonfile import parse


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append entries to a record, each as a line of JSON. Raises `InputError` if the disk takes no more.

    Several processes may append to one record, one after the other: over a network file system, whose appends overwrite
    each other otherwise, the kernel's lock keeps them apart.
    """
    lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    with told_if_disk_is_full(path), path.open("a+b") as file:
        with suppress(OSError):  # some file systems have no locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        # Half a line that a killed run has left must not spoil this one
        start = b"" if _ends_with_newline(file) else b"\n"
        file.write(start + lines)


def sound_lines(path: Path, kinds: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    """The entries that hold a value of each of the `kinds`; a killed run may have left half of one."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = parse(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
                yield entry


def _ends_with_newline(file: Any) -> bool:
    """Whether a file opened for reading and appending is empty or ends with a complete line."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 1))
    return file.read(1) in (b"", b"\n")
