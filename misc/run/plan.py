"""Checking, before a run begins, that each step will find what it reads and can write what it makes."""

import os
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from misc.errors import InputError, first_three, requirement
from misc.files.devkitfiles import IMAGES, MASKS, OBJECTS
from misc.files.look import folder_at
from misc.files.paths import same_path
from misc.files.resultfiles import RESULT_FOLDERS
from misc.run.config import NETWORKS, Config
from misc.run.step import Step

Planned = Mapping[str, frozenset[str]]
"""What earlier steps of the same run will make: checkpoints, and folders with the ids of their files."""

OUTPUT_SUFFIXES = (".npy", ".png", ".jpg", ".json", ".jsonl", ".pth", ".txt", ".html")


class _Everything(frozenset):
    """The ids of files that a step would make if its own input were right."""

    def __contains__(self, item: object) -> bool:
        return True


EVERYTHING = _Everything()


class Plan(UserDict[str, frozenset[str]]):
    """`Planned`, as steps add to it; however a path is written (`result/cam/`, `./result/cam`), it is one."""

    def __setitem__(self, path: str, ids: frozenset[str]) -> None:
        super().__setitem__(os.path.realpath(path), ids)

    def __getitem__(self, path: str) -> frozenset[str]:
        return super().__getitem__(os.path.realpath(path))

    def __contains__(self, path: object) -> bool:
        return super().__contains__(os.path.realpath(path))


SHARED_PLACES = ("result_dir", "voc12_root")
"""Flags of folders that many steps write into, under names of their own."""
SETS = ("chainer_eval_set", "deeplab_eval_set")
"""Flags of names of sets, which are no places."""
DEVKIT_FOLDERS = ("Annotations", "ImageSets", IMAGES, MASKS, f"{MASKS}Aug", OBJECTS)


def require_places_apart(steps: Sequence[Step], config: Config) -> None:
    """Raise `InputError` if a step would write over what another one writes, what it reads itself, or the data."""
    writer_of: dict[str, str] = {}
    names = {item.name for item in fields(Config) if item.type is str} - {*NETWORKS, *SETS}
    data = [os.path.realpath(Path(config.voc12_root, folder)) for folder in DEVKIT_FOLDERS]
    for step in steps:
        written, read_from = (
            [flag for flag in flags if flag in names and flag not in SHARED_PLACES and getattr(config, flag)]
            for flags in (step.writes, [flag for flag in step.reads if flag not in step.writes])
        )
        for flag in written:
            place, shown = os.path.realpath(getattr(config, flag)), getattr(config, flag)
            if (other := writer_of.setdefault(place, flag)) != flag:
                raise InputError(
                    f"--{other} and --{flag} are both {shown}: one would replace the other; name two places."
                )
            if any(place == folder or place.startswith(f"{folder}{os.sep}") for folder in data):
                raise InputError(
                    f"--{flag} {shown} is among the data of --voc12_root {config.voc12_root}, which {step.name} would "
                    "replace; name another place."
                )
            for read in read_from:
                if same_path(getattr(config, read), shown):
                    raise InputError(
                        f"--{read} and --{flag} are both {shown}: {step.name} would write over what it reads; name two "
                        "places."
                    )


@requirement
def require_outputs(
    folder: str, ids: Iterable[str], suffix: str, *, flag: str, list_flag: str, made_by: str, planned: Planned
) -> None:
    """Raise `InputError` if files `<folder>/<id><suffix>` are missing that no earlier step of the run makes.

    Where an earlier step makes files there, those that it does not make don't count, though they may be there: they
    could be of an earlier classifier. Given the same list, it keeps them if they are up to date.
    """
    ids, present, made = list(ids), folder_at(folder), planned.get(folder)
    missing = [i for i in ids if (i + suffix not in present if made is None else i not in made)]
    if not missing:
        return
    if made is not None:
        raise InputError(
            f"--{flag}: {made_by} will not make {len(missing)} of the {len(ids)} images of --{list_flag} "
            f"({first_three(missing)}) in {folder}; give both steps the same list, of images that have a class (files "
            "that are up to date are kept), or read the files that are there in a run of its own."
        )
    if not Path(folder).is_dir():
        raise InputError(
            f"--{flag}: folder {folder} is missing; run {made_by} first, or name the folder that it wrote."
        )
    raise InputError(
        f"--{flag}: {folder} lacks {len(missing)} of the {len(ids)} images of --{list_flag} ({first_three(missing)}); "
        f"run {made_by} on that list first (for images without a class it makes none: take those out of the list)."
    )


@requirement
def require_writable_file(path: str, *, flag: str, kind: str = "checkpoint") -> None:
    """Raise `InputError` unless a `kind` can be written at `path`; its folder is made where it is missing."""
    if path.endswith("/") or Path(path).is_dir():
        raise InputError(f"--{flag} {path} is a folder; expected the name of a {kind}.")
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"--{flag} {path} is a pipe or a device; expected the name of a {kind}.")
    require_writable(Path(path).parent, flag=flag, is_own=False)


@requirement
def require_writable(folder: str | Path, *, flag: str = "", is_own: bool = True) -> None:
    """Make `folder` where it is missing; raise `InputError` if files can't be written into it.

    `flag`: the one that names the folder, if there is one. `is_own`: the folder holds outputs of many names, so that no
    folder may lie where one of these files would go.
    """
    probe = Path(folder) / ".writable"
    subject, advice = (f"--{flag}: ", "name another place") if flag else ("", "work in another folder")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another run on this folder may have removed it
        with os.scandir(probe.parent) as entries:
            found = (e.path for e in entries if is_own and e.name.endswith(OUTPUT_SUFFIXES) and e.is_dir())
            in_the_way = next(found, None)
    except OSError as error:
        raise InputError(f"{subject}can't write into {folder} ({error.strerror}); {advice}.") from error
    if in_the_way:
        raise InputError(f"{subject}{in_the_way} is a folder, where a file may have to go; move it away, or {advice}.")


def require_writable_results(result_dir: str) -> None:
    """Raise `InputError` if a run can't write its records, scores and losses into `result_dir`."""
    require_writable(result_dir, flag="result_dir")
    for folder in filter(os.path.lexists, (Path(result_dir) / name for name in RESULT_FOLDERS)):
        require_writable(folder, flag="result_dir")
