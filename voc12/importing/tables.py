"""CSV files that name images and their classes (`voc12/labelcsv.py` tells how they look)."""

from pathlib import Path

from misc.errors import InputError, first_three
from voc12.importing.finding import ImageFolder
from voc12.importing.source import Source, SourceImage, class_name, require_classes
from voc12.labelcsv import read_table


def read_label_table(path: Path, images: Path, *, no_class: str) -> Source:
    """The images that a table names, in the folder `images`.

    `no_class`: a label that stands for none of the classes; empty: there is none. Classes are in the order of the
    columns where each has one, else sorted. Raises `InputError` for a bad table, if none of its images is there, or
    if the folder is not the one that their names are relative to.
    """
    table = read_table(path, kind="--import_from")
    if no_class and no_class not in table.classes:
        raise InputError(
            f"--import_no_class {no_class} is no label in {path}; there are {first_three([*table.classes])}."
        )
    name_of = {name: class_name(name, place="class") for name in table.classes if name != no_class}
    classes = require_classes([*dict.fromkeys(name_of.values())], place=str(path))
    folder = ImageFolder(images)
    found = []
    for file, labels, place in zip(table.files, table.labels, folder.find_all(table.files), strict=True):
        if place is not None:
            found.append(SourceImage(place, file, tuple(name_of[name] for name in labels if name != no_class)))
    folder.require_some(len(found), source=path)
    return Source(classes, found, folder.missing)
