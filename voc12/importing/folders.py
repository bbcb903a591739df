"""Folders by class, as torchvision's `ImageFolder` has them: one subfolder a class, with images below it."""

import difflib
import os
from pathlib import Path

from misc.errors import InputError, first_three
from misc.files.images import IMAGE_SUFFIXES
from voc12.importing.source import LeftOut, Source, SourceImage, class_name, require_classes

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
NO_CLASS_NAMES = {"images", "image", "imgs", "img", "jpegimages"}
"""Of folders that hold images of all classes, as those of YOLO do."""
NO_FOLDERS = {"__MACOSX"}
"""What archives of a Mac bring along, beside all whose names begin with a dot."""
DEBRIS = {"thumbs.db", "desktop.ini"}


def read_folders(root: Path, *, no_class: str) -> Source:
    """The images below the subfolders of `root`: each one's class is the name of its subfolder.

    `no_class`: the subfolder whose images show none of the classes; empty: there is none. Links to files are followed,
    links to folders only where they are subfolders of `root`.
    Raises `InputError` if there is no subfolder with images, or no class, if subfolders are splits, or if one named
    `images` holds all images.
    """
    try:
        entries = sorted(entry.name for entry in root.iterdir() if not _is_hidden(entry.name))
    except OSError as error:
        raise InputError(f"--import_from {root} can't be read ({error.strerror}); allow it.") from error
    folders = [name for name in entries if (root / name).is_dir()]
    expected = f"expected one subfolder a class, such as {root}/cat and {root}/dog"
    if not folders:
        raise InputError(f"--import_from {root} has no subfolders; {expected}.")
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if len(splits) > 1 or splits == folders:
        raise InputError(
            f"--import_from {root} has the subfolders {first_three(splits)}; {expected}: did you mean "
            f"--import_from {root / splits[0]}?"
        )
    if no_class and no_class not in folders:
        near = difflib.get_close_matches(no_class, folders, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {first_three(folders)}."
        raise InputError(f"--import_no_class {no_class} is no subfolder of {root}; {hint}")
    left_out = [LeftOut(name, "not in the folder of a class") for name in entries if name not in folders]
    classes, images = [], []
    for folder in folders:
        files = _files_below(root / folder)
        kept = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        left_out += [
            LeftOut(_relative(file, root), "no kind of image that can be read")
            for file in files
            if file.suffix.lower() not in IMAGE_SUFFIXES
        ]
        labels = () if folder == no_class else (class_name(folder, place="folder"),)
        if labels and kept:
            classes += labels
        elif labels:
            left_out.append(LeftOut(folder, "a class without images"))
        images += [SourceImage(file, _relative(file, root), labels) for file in kept]
    if not images:
        raise InputError(f"--import_from {root}: the subfolders {first_three(folders)} have no images; {expected}.")
    if len(classes) == 1 and classes[0].lower() in NO_CLASS_NAMES:
        raise InputError(
            f"--import_from {root}: of its subfolders {classes[0]} alone has images, which names no class; {expected}, "
            "or a COCO file or a table that names them."
        )
    return Source(require_classes(classes, place=str(root)), images, left_out)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_FOLDERS or name.lower() in DEBRIS


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their paths."""
    found = []
    for path, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(path, name) for name in sorted(files) if not _is_hidden(name)]
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"--import_from: folder {error.filename} can't be read ({error.strerror}); allow it.") from error
