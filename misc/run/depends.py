"""What a step's result depends on: its settings, the content of what it reads, and the versions of what computes it.

Content decides, not time: a file that was copied or touched is still the same. Times and sizes only save the reading:
where those of a list of files are as they were when its content was looked at, it is not read again.
"""

import filecmp
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import InputError
from misc.files import look
from misc.files.checksum import crc32_of
from misc.files.paths import Paths
from misc.run.config import Config
from misc.run.device import resolve_device, resolve_precision
from misc.run.progress import progress
from misc.run.provenance import recorded_checksums, source_digest
from misc.run.step import Files, Step

READERS = 4
"""Threads that read files whose content is not known yet."""
READING_SHOWN = 200
"""From so many files on a bar shows it."""

Fingerprint = dict[str, Any]
"""Of files: {"files": how many, "look": of names, sizes and times, "content"}; of anything else: {"content"}."""


def checksum(path: str | Path) -> str:
    """crc32 of a file, as eight hex digits. Raises `InputError` if it can't be read."""
    try:
        return crc32_of(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); put it back, or allow it.") from error


def source_of_files(*paths: str | Path) -> str:
    """What changes with the content of the files that one output is made from."""
    return source_digest(*map(checksum, paths))


def checksums(paths: Sequence[str | Path]) -> list[str]:
    """`checksum` of each file; of one that a step wrote, and nobody has changed, as that step recorded it."""
    known: list[str | None] = []
    records: dict[Path, Mapping[str, tuple[int, int, str]]] = {}
    for path, (size, time, _) in zip(map(Path, paths), look.states(paths).tolist(), strict=True):
        if path.parent not in records:
            records[path.parent] = recorded_checksums(path.parent)
        *state, of_file = records[path.parent].get(path.name, (None, None, None))
        known.append(of_file if state == [size, time] else None)
    unread = [path for path, of_file in zip(paths, known, strict=True) if of_file is None]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(checksum, unread)
        if len(unread) >= READING_SHOWN:
            found = progress(found, total=len(unread), desc="reading what has changed", unit="file")
        read = iter([*found])
    return [next(read) if of_file is None else of_file for of_file in known]


def of_same_content(paths: Paths, others: Paths, *, checksums: Callable[[Sequence[str]], list[str]]) -> dict[int, int]:
    """{number of one of `paths`: number of one of the `others` that has the same bytes}, under whatever names.

    Only files whose sizes occur on both sides are read. `checksums`: gives those of files.
    """
    sizes, other_sizes = look.states(paths)[:, 0], look.states(others)[:, 0]
    numbers = np.flatnonzero(np.isin(sizes, other_sizes) & (sizes != look.MISSING))
    other_numbers = np.flatnonzero(np.isin(other_sizes, sizes[numbers]))
    sums = checksums([*paths[numbers], *others[other_numbers]])
    other_with = dict(zip(sums[len(numbers) :], other_numbers.tolist(), strict=True))
    pairs = [(n, other_with[s]) for n, s in zip(numbers.tolist(), sums, strict=False) if s in other_with]
    return {n: other for n, other in pairs if filecmp.cmp(paths[n], others[other], shallow=False)}


def fingerprint(given: Any, known: Mapping[str, str]) -> Fingerprint:
    """What tells whether an input is as it was.

    Args:
        given: as in `Inputs`.
        known: {"look": "content"} of earlier fingerprints.

    Raises `InputError` for files that are gone or can't be read.
    """
    if not isinstance(given, Files):
        return {"content": _digest(given if isinstance(given, bytes) else json.dumps(given).encode())}
    seen = look.digest(given.paths)
    content = known.get(seen)
    if content is None:
        pairs = zip(given.paths, checksums(given.paths), strict=True)
        content = _digest(
            "".join(f"{Path(path).name} {of_file}\n" for path, of_file in pairs).encode("utf-8", "surrogateescape")
        )
    return {"files": len(given.paths), "look": seen, "content": content}


def _digest(raw: bytes) -> str:
    return blake2b(raw, digest_size=8).hexdigest()


def settings_of(step: Step, args: Config) -> dict[str, Any]:
    """The values of the step's flags, as JSON holds them; of the precision the one that `auto` stands for."""
    values = args.only(step.flags)
    if "precision" in values:
        values["precision"] = resolve_precision(args.precision, resolve_device(args.device))
    return json.loads(json.dumps(values))


def versions_of(step: Step) -> dict[str, str]:
    """The versions of the step's code and of its packages."""
    versions = {step.name: str(step.version)}
    for package in step.packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions
