"""What outputs were made with, so that a rerun takes over nothing of other weights, settings or data."""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from misc.files.jsonfile import parse

RECORD = "made_with.jsonl"


class Provenance:
    """`<folder>/made_with.jsonl`: a line {"file", "checksum", "source", "made_with"} for each finished file.

    A line is appended once its file is complete, and holds that file's checksum. So a run may be killed at any moment:
    a file without its line, or with the line of the file that it replaced, counts as made with something else.
    """

    def __init__(self, folder: str | Path, made_with: Mapping[str, Any]) -> None:
        """`made_with`: whatever determines the content of all files, as JSON can hold it."""
        self._path = Path(folder) / RECORD
        self._made_with = json.loads(json.dumps(made_with))
        self._known = {
            entry["file"]: (entry["checksum"], entry["source"])
            for entry in self._entries()
            if entry["made_with"] == self._made_with
        }

    def _entries(self) -> list[dict[str, Any]]:
        """The sound lines; a killed run may have left half of one."""
        if not self._path.is_file():
            return []
        entries = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = parse(line)
            except ValueError:
                continue
            if not isinstance(entry, dict) or "made_with" not in entry:
                continue
            if all(isinstance(entry.get(name), str) for name in ("file", "checksum", "source")):
                entries.append(entry)
        return entries

    def covers(self, path: Path, source: str) -> bool:
        """Whether the file is there, was made with the same from `source`, and nobody has changed it since.

        `source`: whatever determines the content of this one file, such as the digest of its image.
        """
        checksum, known_source = self._known.get(path.name, (None, None))
        return known_source == source and path.is_file() and checksum == _checksum(path)

    def record(self, path: Path, source: str) -> None:
        """Note that the complete file at `path` was made with this, from `source`."""
        entry = {"file": path.name, "checksum": _checksum(path), "source": source, "made_with": self._made_with}
        with self._path.open("a+b") as file:
            # Half a line that a killed run has left must not spoil this one
            start = b"" if _ends_with_newline(file) else b"\n"
            file.write(start + json.dumps(entry).encode() + b"\n")


def data_digest(paths: Iterable[Path], labels: np.ndarray | None = None) -> str:
    """A checksum that changes with the names, sizes, times or order of files, and with their labels."""
    stats = [(path.name, path.stat()) for path in paths]
    files = "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}\n" for name, stat in stats).encode(
        errors="surrogateescape"
    )
    return f"{zlib.crc32(files + (b'' if labels is None else labels.tobytes())):08x}"


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _ends_with_newline(file: Any) -> bool:
    """Whether a file opened for reading and appending is empty or ends with a complete line."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 1))
    return file.read(1) in (b"", b"\n")
