"""Image labels as a table that people read and spreadsheets write: a CSV file with one image a line.

    file,labels                    file,cat,dog
    a.jpg,cat;dog                  a.jpg,1,1
    b.jpg,                         b.jpg,0,0

On the left the names of the classes of each image, with `;` or `|` between them; on the right a column a class. Image
`b.jpg` has none of the classes.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.errors import InputError, first_three, printable
from misc.files.devkitfiles import LABEL_COLUMNS
from misc.files.table import read_rows, truth_of, write_rows
from voc12.classes import one_form

FILE_COLUMNS = ("file", "filename", "file_name", "image", "id")
NO_CLASS_COLUMNS = ("class", "classes", "category", "categories", "target", "y")
"""What other programs call the column of labels, so that none of these is taken for the name of a class."""
SEPARATORS = (";", "|")
"""Between the names of an image's classes: no name has one of these."""
EXPECTED = (
    "expected a first line `file,labels` and lines such as `a.jpg,cat;dog`, or a first line `file,cat,dog` and lines "
    "such as `a.jpg,1,0`"
)


@dataclass(frozen=True)
class LabelTable:
    """The files that a table names, each once, the names of each one's classes, and all names.

    `classes`: in the order of the columns where each class has one, else sorted.
    """

    files: list[str]
    labels: list[tuple[str, ...]]
    classes: tuple[str, ...]
    has_columns: bool


def read_table(path: str | Path, *, kind: str, known: Collection[str] = ()) -> LabelTable:
    """A table of labels; `kind` is what it is called in messages. A file on several lines has the labels of all.

    Commas, semicolons or tabs are between the columns. `known`: names that are classes however odd they look.
    Raises `InputError` if the file is missing, no such table, a value of a class is neither 0 nor 1, or if the name of
    a class looks like a list of several, or like the heading of such a column.
    """
    rows = ((n, [cell.strip() for cell in row]) for n, row in read_rows(path, kind=kind, advice=EXPECTED))
    _, header = next(rows, (0, []))
    header = _without_empty_end([*map(one_form, header)])
    if len(header) < 2 or header[0].lower() not in FILE_COLUMNS:
        raise InputError(f"{kind} {path} begins with {_shown(','.join(header))}; {EXPECTED}.")
    has_columns = header[1].lower() not in LABEL_COLUMNS
    classes = header[1:]
    if not has_columns and len(header) > 2:
        raise InputError(f"{kind} {path} has the column {_shown(header[2])} after {header[1]}; {EXPECTED}.")
    if has_columns and ("" in classes or len({*classes}) < len(classes)):
        raise InputError(
            f"{kind} {path} names a class twice, or one with an empty name, in its first line; {EXPECTED}."
        )
    if has_columns and len(classes) == 1 and _is_heading(classes[0]) and classes[0] not in known:
        raise InputError(
            f"{kind} {path} has the column {_shown(classes[0])} alone, which names no class; call it `labels` if it "
            "holds the names of classes, or by the name of the class if it holds 0 and 1."
        )
    found: dict[str, dict[str, None]] = {}
    for number, row in rows:
        cells = row[:1] + _without_empty_end(row[1:], keep=len(header) - 1)
        if len(cells) != len(header) or not cells[0]:
            between = ""
            if len(cells) > len(header) and not has_columns:
                between = "; between the labels of an image goes | or, unless it separates the columns, ;"
            raise InputError(
                f"{kind} {path}, line {number}: expected {len(header)} columns, the first with a file{between}."
            )
        names = _classes_of(cells[1:], classes, place=f"{kind} {path}, line {number}") if has_columns else ()
        if not has_columns:
            names = names_in(cells[1])
        found.setdefault(cells[0], {}).update(dict.fromkeys(names))
    if not found:
        raise InputError(f"{kind} {path} names no image; {EXPECTED}.")
    labels = [tuple(names) for names in found.values()]
    if not has_columns:
        _require_single({name for names in labels for name in names}, known, table=f"{kind} {path}")
    everything = tuple(classes) if has_columns else tuple(sorted({name for names in labels for name in names}))
    return LabelTable([*found], labels, everything, has_columns)


def names_in(cell: str) -> list[str]:
    """The names of classes in a cell, which has one of `SEPARATORS` between them."""
    return [name for part in re.split("[;|]", cell) if (name := one_form(part))]


def _is_heading(column: str) -> bool:
    return column.lower() in NO_CLASS_COLUMNS


def _require_single(names: Collection[str], known: Collection[str], *, table: str) -> None:
    """Raise `InputError` for the first label, in the order of the alphabet, that is several in one."""
    for name in sorted({*names} - {*known}):
        parts = {part.strip() for part in name.split(",")} - {name}
        if name.startswith("[") or not parts.isdisjoint({*names, *known}):
            raise InputError(
                f"{table} has the label {_shown(name)}, which looks like several; between the labels of an image goes "
                "; or |, without brackets or quotes (if it is the name of one class, call that otherwise)."
            )


def _without_empty_end(cells: Sequence[str], *, keep: int = 0) -> list[str]:
    """The cells without empty ones at their end, of which spreadsheets write many; the first `keep` stay."""
    last = max((place for place, cell in enumerate(cells, start=1) if cell), default=0)
    return [*cells[: max(last, keep)]]


def _classes_of(values: Sequence[str], classes: Sequence[str], *, place: str) -> list[str]:
    """The classes whose value is 1."""
    for name, value in zip(classes, values, strict=True):
        if truth_of(value) is None:
            hint = "; a column with the names of classes is called `labels`" if _is_heading(name) else ""
            raise InputError(f"{place}: class {name} has the value {_shown(value)}, expected 0 or 1{hint}.")
    return [name for name, value in zip(classes, values, strict=True) if truth_of(value)]


def _shown(text: str) -> str:
    plain = printable(text)
    return repr(plain if len(plain) <= 60 else f"{plain[:57]}...")


def labels_by_file(path: str | Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """{file: (C,) uint8 0/1} of a table, for the classes of a data set.

    Raises `InputError` as `read_table` does, and for a class that the data set lacks, or that has no column.
    """
    table = read_table(path, kind="label file", known=classes)
    place_of = {name: place for place, name in enumerate(classes)}
    if unknown := [name for name in table.classes if name not in place_of]:
        near = difflib.get_close_matches(unknown[0], classes, 1)
        hint = f"did you mean {near[0]}?" if near else f"the classes are {first_three([*classes])}."
        raise InputError(f"label file {path}: {_shown(unknown[0])} is no class of the class list; {hint}")
    if table.has_columns and (absent := [name for name in classes if name not in table.classes]):
        raise InputError(f"label file {path} has no column for {first_three(absent)}; add it, or correct --class_list.")
    rows = np.zeros((len(table.files), len(classes)), dtype=np.uint8)
    for row, names in zip(rows, table.labels, strict=True):
        row[[place_of[name] for name in names]] = 1
    return dict(zip(table.files, rows, strict=True))


def write_table(path: str | Path, rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Write (file, names of its classes) as `read_table` reads them. No name may have one of `SEPARATORS`."""
    header = (FILE_COLUMNS[0], LABEL_COLUMNS[0])
    write_rows(path, [header, *((name, SEPARATORS[0].join(names)) for name, names in rows)])
