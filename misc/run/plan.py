"""Checking, before a run begins, that each step will find what it reads and can write what it makes."""

import os
from collections import UserDict
from collections.abc import Iterable, Mapping
from pathlib import Path

from misc.errors import InputError, first_three

Planned = Mapping[str, frozenset[str]]
"""What earlier steps of the same run will make: checkpoints, and folders with the ids of their files."""


class Plan(UserDict[str, frozenset[str]]):
    """`Planned`, as steps add to it; however a path is written (`result/cam/`, `./result/cam`), it is one."""

    def __setitem__(self, path: str, ids: frozenset[str]) -> None:
        super().__setitem__(os.path.realpath(path), ids)

    def __getitem__(self, path: str) -> frozenset[str]:
        return super().__getitem__(os.path.realpath(path))

    def __contains__(self, path: object) -> bool:
        return super().__contains__(os.path.realpath(path))


def require_outputs(
    folder: str, ids: Iterable[str], suffix: str, *, flag: str, list_flag: str, made_by: str, planned: Planned
) -> None:
    """Raise `InputError` if files `<folder>/<id><suffix>` are missing that no earlier step of the run makes."""
    ids = list(ids)
    present = {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    missing = [i for i in ids if i not in planned.get(folder, ()) and i + suffix not in present]
    if not missing:
        return
    if folder in planned:
        raise InputError(
            f"--{flag}: {made_by} will not make {len(missing)} of the {len(ids)} images of --{list_flag} "
            f"({first_three(missing)}) in {folder}; give both steps the same list."
        )
    if not Path(folder).is_dir():
        raise InputError(
            f"--{flag}: folder {folder} is missing; run {made_by} first, or name the folder that it wrote."
        )
    raise InputError(
        f"--{flag}: {folder} lacks {len(missing)} of the {len(ids)} images of --{list_flag} ({first_three(missing)}); "
        f"run {made_by} on that list first."
    )


def require_writable_file(path: str, *, flag: str, kind: str = "checkpoint") -> None:
    """Raise `InputError` unless a `kind` can be written at `path`; its folder is made where it is missing."""
    if not path or path.endswith("/") or Path(path).is_dir():
        given = f"{path} is a folder" if path else "is empty"
        raise InputError(f"--{flag} {given}; expected the name of a {kind}.")
    require_writable(Path(path).parent, flag=flag)


def require_writable(folder: str | Path, *, flag: str) -> None:
    """Make `folder` where it is missing; raise `InputError` if files can't be written into it."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another run on this folder may have removed it
    except OSError as error:
        raise InputError(f"--{flag}: can't write into {folder} ({error.strerror}); name another place.") from error
