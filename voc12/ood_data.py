"""Out-of-distribution images put where train_cam reads them: a folder, and a list of the names in it."""

import os
import shutil
from collections.abc import Container, Mapping
from pathlib import Path

from misc.files.atomic import atomic_path
from misc.files.images import UPRIGHT, read_image, stored_orientation, write_jpeg
from misc.files.text import read_text
from misc.run.depends import checksum
from misc.run.progress import progress
from voc12.derived import derived_file

LONGEST_STEM = 50
"""Characters of a file's name that stay where a mark is added, so that it can't become too long."""


def make_ood_data(images: Mapping[str, str], root: Path, list_path: Path) -> None:
    """Put images into `root`, and their names there into the list.

    `images`: {file: a mark of its content, which no other image has}. Other files in `root` stay as they are.
    """
    taken, names = set(), []
    for file, mark in progress(images.items(), desc="OoD images", unit="image"):
        name = _name_in(root, Path(file), mark, taken)
        taken.add(name.lower())
        names.append(name)
        _put(Path(file), root / name)
    with derived_file(list_path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")


def placed_images(root: Path, list_path: Path) -> list[Path]:
    """Where the images of such a list lie, or should; none where there is no list."""
    return [root / name for name in read_text(list_path).splitlines()] if list_path.is_file() else []


def _name_in(root: Path, path: Path, mark: str, taken: Container[str]) -> str:
    """A name for an image in `root` that a list can hold, and that neither another one has nor another file there.

    It is the file's own, or one with its mark.
    """
    if "\\" in path.name or path.name != path.name.strip():  # lists take it for a slash, and strip their lines
        return f"{mark}{path.suffix}"
    target = root / path.name
    is_free = not target.exists() or (target.is_file() and checksum(target) == checksum(path))
    if path.name.lower() not in taken and is_free and stored_orientation(path) == UPRIGHT:
        return path.name
    return f"{path.stem[:LONGEST_STEM]}_{mark}{path.suffix}"


def _put(path: Path, target: Path) -> None:
    """Link a file to `target`, or copy it where the disk has no links; one that is stored on its side is turned."""
    if stored_orientation(path) != UPRIGHT:
        write_jpeg(target, read_image(path, upright=True))
        return
    with atomic_path(target) as temporary:
        try:
            os.link(path.resolve(), temporary)
        except OSError:
            shutil.copyfile(path, temporary)
