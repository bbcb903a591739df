"""Writing files: a killed run leaves either a whole file or none, and computing need not wait for the disk."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed to `path`, on failure it is removed.

    The folder is made where it is missing. A rename within one folder is atomic, so that whatever lies at `path` is
    complete. The temporary name keeps the suffix, from which image writers choose the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = f".{os.getpid()}.part{path.suffix}"
    stem = f".{path.stem}".encode(errors="surrogateescape")[: LONGEST_NAME - len(os.fsencode(end))]
    temporary = path.with_name(stem.decode(errors="ignore") + end)
    try:
        yield temporary
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
