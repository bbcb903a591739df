"""Writing files: a killed run leaves either a whole file or none, and computing need not wait for the disk."""

import filecmp
import json
import os
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from misc.files.disk import told_if_disk_is_full

MARK_LENGTH = 32
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""


def _temporary_name(stem: str, suffix: str, mark: str) -> str:
    """The name of a temporary file, as long as file systems allow."""
    end = f".{mark}.part{suffix}"
    start = f".{stem}".encode(errors="surrogateescape")[: LONGEST_NAME - len(os.fsencode(end))]
    return start.decode(errors="ignore") + end


def leftovers(folder: Path, file: Path | None = None) -> list[Path]:
    """Temporary files in `folder` that killed runs have left, those of one `file` alone where it is given.

    Whoever calls it must know that no other run writes there.
    """
    no_mark, any_mark = "0" * MARK_LENGTH, f"[0-9a-f]{{{MARK_LENGTH}}}"
    if file is None:
        name = rf"\..*\.{any_mark}\.part(\..*)?"
    else:
        name = re.escape(_temporary_name(file.stem, file.suffix, no_mark)).replace(no_mark, any_mark)
    pattern = re.compile(name, re.DOTALL)
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed to `path`, on failure it is removed.

    A file that has these very bytes already is not touched.

    The folder is made where it is missing. A rename within one folder is atomic, so that whatever lies at `path` is
    complete. The temporary name keeps the suffix, from which image writers choose the format.

    Raises `InputError` if the disk takes no more.
    """
    path = Path(path)
    # A mark of its own for every write: process ids are alike on the machines of a cluster, and in containers
    temporary = path.with_name(_temporary_name(path.stem, path.suffix, uuid.uuid4().hex))
    try:
        with told_if_disk_is_full(path, writing=temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON (numbers that JSON lacks, such as NaN, must be None already)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def json_list_writer(path: str | Path, content: Mapping[str, Any], name: str) -> Iterator[Callable[[Any], None]]:
    """Yield `append(item)`: `path` becomes the JSON object `content` plus the list `name`, of which no item is kept.

    The file appears when the block ends, and not if it fails.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({**content, name: []}, allow_nan=False).removesuffix("]}"))
        separator = ""

        def append(item: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(item, allow_nan=False))
            separator = ", "

        yield append
        file.write("]}\n")


@contextmanager
def background_writer(max_waiting: int = 8) -> Iterator[Callable[..., None]]:
    """Yield `submit(write, *args)`, which runs `write(*args)` in one thread, in order, beside the computation.

    At most `max_waiting` writes are outstanding: `submit` then waits, so that results don't pile up in memory. An
    exception of a write is raised by a later `submit` or at the end of the block, which waits for all writes.
    """
    outstanding: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as executor:

        def submit(write: Callable[..., Any], *args: Any) -> None:
            while len(outstanding) >= max_waiting or (outstanding and outstanding[0].done()):
                outstanding.popleft().result()
            outstanding.append(executor.submit(write, *args))

        yield submit
        for future in outstanding:
            future.result()
