"""What each file of a folder was made with, so that a rerun keeps what is done, and nothing of other weights."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from misc.files import look
from misc.files.checksum import crc32_of
from misc.files.jsonlines import append_lines, sound_lines
from misc.run.progress import progress

log = logging.getLogger(__name__)

RECORD = "made_with.jsonl"
KINDS = {"file": str, "checksum": str, "size": int, "time": int, "source": str, "made_with": str}
"""What a line of the record holds."""
_Made = tuple[int, int, str]
"""Size and time of a file, and the digest of what it was made with."""


class Provenance:
    """`<folder>/made_with.jsonl`: a line for each finished file, with its checksum, size and time, the digest of its
    `source` (what it alone was made from) and that of what all files were made with.

    A line is appended once its file is complete. So a run may be killed at any moment: a file without its line, or with
    the line of the file that it replaced, counts as made with something else.
    """

    def __init__(self, folder: str | Path, made_with: Mapping[str, Any]) -> None:
        """`made_with`: whatever determines the content of all files, as JSON can hold it."""
        self._path = Path(folder) / RECORD
        raw = json.dumps(json.loads(json.dumps(made_with)), sort_keys=True).encode()
        self._made_with = blake2b(raw, digest_size=8).hexdigest()
        lines = [*sound_lines(self._path, KINDS)]
        last_of = {line["file"]: line for line in lines}
        ours = {name: line for name, line in last_of.items() if line["made_with"] == self._made_with}
        self._known = {name: (line["checksum"], line["source"]) for name, line in ours.items()}
        self._is_last = not lines or lines[-1]["made_with"] == self._made_with

    def covers(self, path: Path, source: str) -> bool:
        """Whether the file is there, was made with the same from `source`, and nobody has changed it since."""
        checksum, known_source = self._known.get(path.name, (None, None))
        return known_source == source and path.is_file() and checksum == crc32_of(path)

    def mentions(self, path: Path) -> bool:
        """Whether a file of this name was made with the same."""
        return path.name in self._known

    def keep(self, path: Path) -> None:
        """Note, of a file that is covered, that it counts as made last, whatever others were made with since."""
        if not self._is_last:
            *_, line = (line for line in sound_lines(self._path, KINDS) if line["file"] == path.name)
            append_lines(self._path, [line])
            self._is_last = True

    def record(self, path: Path, source: str, *, content: Any = None) -> None:
        """Note that the complete file at `path` was made with this, from `source`; `content`: what it holds, as JSON.

        What a file holds is told to people and decides nothing.
        """
        state = path.stat()
        entry = {
            "file": path.name,
            "checksum": crc32_of(path),
            "size": state.st_size,
            "time": state.st_mtime_ns,
            "source": source,
            "made_with": self._made_with,
        }
        if content is not None:
            entry["content"] = content
        append_lines(self._path, [entry])
        self._is_last = True


class FinishedFiles:
    """The files that a step makes one item after the other, in one folder or in several: which are done already."""

    def __init__(self, made_with: Mapping[str, Any], *, keep: bool = True) -> None:
        """`made_with`: as in `Provenance`; `keep`: whether finished files stay as they are."""
        self._made_with, self._keep = made_with, keep
        self._records: dict[Path, Provenance] = {}

    def _record_of(self, path: Path) -> Provenance:
        if path.parent not in self._records:
            self._records[path.parent] = Provenance(path.parent, self._made_with)
        return self._records[path.parent]

    def kept(self, items: Sequence[Sequence[Path]], source_of: Callable[[int], str]) -> set[int]:
        """The numbers of the items that are done.

        Args:
            items: each one's files.
            source_of: the source of an item, by its number; asked for where its files may be kept.
        """
        candidates = [
            number
            for number, paths in enumerate(items)
            if self._keep and all(self._record_of(path).mentions(path) for path in paths)
        ]
        kept = set()
        for number in progress(candidates, desc="looking for finished files", unit="item", leave=False):
            source = source_of(number)
            if all(self._record_of(path).covers(path, source) for path in items[number]):
                kept.add(number)
        return kept

    def pending(self, items: Sequence[Sequence[Path]], source_of: Callable[[int], str]) -> list[int]:
        """The numbers of the other items; the log tells how many are kept, how many made again."""
        kept = self.kept(items, source_of)
        pending = [number for number in range(len(items)) if number not in kept]
        if replaced := sum(items[number][0].is_file() for number in pending) if self._keep else 0:
            log.info(
                "made again: %d files in %s that are not known to be of these weights, settings and images",
                replaced,
                items[0][0].parent,
            )
        for number in kept:
            for path in items[number]:
                self._record_of(path).keep(path)
        if kept:
            log.info("%d of %d images are finished: skipped", len(kept), len(items))
        return pending

    def write(self, paths: Sequence[Path], source_of: Callable[[], str], write: Callable[..., Any], *args: Any) -> None:
        """Write the files of an item, `write(*args)`, and note what they were made with, and hold as `write` says."""
        content = write(*args)
        source = source_of()
        for path in paths:
            self._record_of(path).record(path, source, content=content)


def recorded_checksums(folder: Path) -> dict[str, tuple[int, int, str]]:
    """{file name: (size, time of change in ns, checksum)} of what a folder's record says last of each file."""
    lines = sound_lines(folder / RECORD, KINDS)
    return {line["file"]: (line["size"], line["time"], line["checksum"]) for line in lines}


def made_otherwise(paths: Sequence[str | Path]) -> list[str | Path]:
    """Those of the files that were made with something else than the one that was made last in their folder.

    Files that no record tells of, or that were changed since, are left out: nobody knows what they were made with.
    """
    folders: dict[str, tuple[str, Mapping[str, _Made]]] = {}
    found = []
    for path, (size, time, _) in zip(paths, look.states(paths).tolist(), strict=True):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _made_in(Path(folder))
        of_the_last, made = folders[folder]
        if name in made and made[name][:2] == (size, time) and made[name][2] != of_the_last:
            found.append(path)
    return found


def _made_in(folder: Path) -> tuple[str, dict[str, _Made]]:
    """What the file was made with that was made last of those that are as they were, and what is known of all."""

    def read() -> dict[str, _Made]:
        made: dict[str, _Made] = {}
        for line in sound_lines(folder / RECORD, KINDS):
            made.pop(line["file"], None)  # so that the last line of each decides on its place in the order
            made[line["file"]] = line["size"], line["time"], line["made_with"]
        return made

    made = look.read_once(folder / RECORD, read, "made with")
    for name, (size, time, made_with) in reversed(made.items()):
        if look.states([folder / name])[0, :2].tolist() == [size, time]:
            return made_with, made
    return "", made


def recorded_contents(folder: Path) -> dict[str, Any]:
    """{file name: what it holds} as a folder's record says last of each file; None where it does not say."""
    return {line["file"]: line.get("content") for line in sound_lines(folder / RECORD, KINDS)}


def source_digest(*parts: str | bytes) -> str:
    """A short text that changes with any of the `parts`: checksums of files, or bytes of labels."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()
