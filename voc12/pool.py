"""A pool of images that out-of-distribution images are chosen from: its files, and what their labels say."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from misc.errors import InputError, first_three
from misc.files.devkitfiles import LABEL_COLUMNS
from misc.files.images import IMAGE_SUFFIXES, without_image_suffix
from misc.files.paths import Paths
from misc.files.table import read_rows, read_table
from voc12.classes import spelling
from voc12.labelcsv import FILE_COLUMNS, names_in

POOL_FILE_COLUMNS = ("imageid", "image_id", *FILE_COLUMNS, "path")
POOL_LABEL_COLUMNS = ("labelname", "label_name", *LABEL_COLUMNS, "classes", "class")
"""The first of these that a table has is read; OpenImages has further columns."""
CONFIDENCE_COLUMN = "confidence"
"""Of OpenImages: 0 where people have looked and the class is not there."""
LABELS_EXPECTED = (
    "expected a CSV with a header: file,labels (labels separated by ; or |), or OpenImages' ImageID and LabelName"
)
NAMES_EXPECTED = "expected a CSV of two columns, a label and what it is called, as OpenImages' class-descriptions.csv"


@dataclass
class Pool:
    """The images of a pool, by their numbers, and why some are no candidates."""

    paths: Paths
    _why: dict[int, tuple[str, str]] = field(default_factory=dict)
    """{number of an image that is left out: the reason, and the same in short}"""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return enumerate(self.paths)

    def leave_out(self, why: Mapping[int, str], *, kind: str = "") -> None:
        """Leave images out, unless they are already; `kind`: the reason in short, where it is not that of each."""
        for number, reason in why.items():
            self._why.setdefault(number, (reason, kind or reason))

    def remaining(self) -> list[int]:
        """The numbers of the images that may become candidates."""
        return [number for number in range(len(self.paths)) if number not in self._why]

    def name(self, number: int) -> str:
        """The path of an image as text, also where it is none."""
        return self.paths[number].encode("utf-8", "backslashreplace").decode()

    def left_out_rows(self) -> list[tuple[str, str]]:
        """(path, why) of what is left out, in the pool's order."""
        return [(self.name(number), why) for number, (why, _) in sorted(self._why.items())]

    def summary(self) -> str:
        """How many are left out for what; empty for none."""
        kinds = Counter(kind for _, kind in self._why.values())
        return ", ".join(f"{count} ({kind})" for kind, count in kinds.most_common())


def pool_images(folders: Sequence[str], *, without: Collection[str] = ()) -> Paths:
    """The image files in `folders` and below, sorted within each; hidden files and folders are left out.

    `without`: folders that are left out where they lie below one of `folders`, since a run writes images there.

    Raises `InputError` if a folder is missing, or has no images.
    """
    if not folders:
        raise InputError("mine_ood needs --ood_pool; expected one or more folders of images without your classes.")
    own = {os.path.realpath(folder) for folder in without}
    found: dict[str, None] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            problem = "is a file" if os.path.exists(folder) else "is missing"
            raise InputError(f"--ood_pool {folder} {problem}; expected a folder of images.")
        images = list(_images_below(folder, own))
        if not images:
            raise InputError(f"--ood_pool {folder} has no images; expected files {', '.join(IMAGE_SUFFIXES)}.")
        found.update(dict.fromkeys(images))
    return Paths("", found)


def _images_below(folder: str, own: Collection[str]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"--ood_pool: {error.filename} can't be listed ({error.strerror}); allow it, or move it away.")

    for place, folders, names in os.walk(folder, onerror=refuse):
        below = (name for name in folders if not name.startswith("."))
        folders[:] = sorted(name for name in below if os.path.realpath(os.path.join(place, name)) not in own)
        shown = (name for name in names if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(shown) if name.lower().endswith(IMAGE_SUFFIXES))


def read_label_names(path: str) -> dict[str, set[str]]:
    """{label: what it is called} of a file of two columns, of which a label may have several lines; {} for no file.

    A name may be a label in turn: `/m/0cmf2,Airplane` and `Airplane,aeroplane` call /m/0cmf2 both.

    Raises `InputError` if the file can't be read.
    """
    names: dict[str, set[str]] = {}
    rows = read_rows(path, kind="--ood_label_names:", advice=NAMES_EXPECTED) if path else ()
    for _, cells in rows:
        if len(cells) < 2:
            raise InputError(f"--ood_label_names: {path} has a line of one column; {NAMES_EXPECTED}.")
        names.setdefault(spelling(cells[0]), set()).add(spelling(cells[1]))
    return names


def classes_in_pool(
    paths: Sequence[str],
    folders: Sequence[str],
    label_files: Sequence[str],
    label_names: Mapping[str, Collection[str]],
    classes: Sequence[str],
) -> tuple[dict[int, str], list[str]]:
    """Which images of a pool are labelled with a class, and the classes that no label names.

    Args:
        paths: the pool's images, in `folders` and below.
        label_files: CSV files as `LABELS_EXPECTED` says. An image is found under its path from its folder on or its
            name, with or without suffix. OpenImages' rows of confidence 0 say that a class is not there.
        label_names: of `read_label_names`.
        classes: the data set's; names count without regard to case, spaces and punctuation.

    Returns:
        {image: its first class}, and the classes that occur in no label of any file, the pool's images or not.

    Raises `InputError` if a file can't be read or lacks the columns, or if none names an image of the pool.
    """
    numbers: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        for key in _keys(path, folders):
            numbers.setdefault(key, []).append(number)
    classes_called: dict[str, list[str]] = {}
    for name in classes:
        classes_called.setdefault(spelling(name), []).append(name)
    classes_of: dict[str, list[str]] = {}  # tables have millions of rows and some hundred labels
    found: dict[int, str] = {}
    seen: set[str] = set()
    is_named = False
    for file in label_files:
        for key, labels in _labels_in(file):
            is_named = is_named or key in numbers
            for label in labels:
                if label not in classes_of:
                    called = _closure(spelling(label), label_names)
                    classes_of[label] = [ours for name in called for ours in classes_called.get(name, ())]
                if ours := classes_of[label]:
                    seen.update(ours)
                    for number in numbers.get(key, ()):
                        found.setdefault(number, ours[0])
    if not is_named:
        raise InputError(
            f"--ood_pool_labels: {first_three([*label_files])} name none of the {len(paths)} images of --ood_pool, "
            f"such as {os.path.basename(paths[0])}; name the tables of these images."
        )
    return found, [name for name in classes if name not in seen]


def _labels_in(file: str) -> Iterator[tuple[str, list[str]]]:
    """(image, its labels) of each row of a file."""
    columns = None
    for row in read_table(file, kind="--ood_pool_labels:", advice=LABELS_EXPECTED):
        if columns is None:
            columns = [next((c for c in names if c in row), None) for names in (POOL_FILE_COLUMNS, POOL_LABEL_COLUMNS)]
            if None in columns:
                raise InputError(
                    f"--ood_pool_labels: {file} has the columns {first_three(list(row))}; {LABELS_EXPECTED}."
                )
        key, labels = (row[column] for column in columns)
        is_absent = _is_zero(row.get(CONFIDENCE_COLUMN, ""))
        yield _key(key), [] if is_absent else names_in(labels)


def _keys(path: str, folders: Sequence[str]) -> set[str]:
    """What a table may call an image."""
    inside = [os.path.relpath(path, folder) for folder in folders if path.startswith(os.path.join(folder, ""))]
    names = {_key(name) for name in (path, os.path.basename(path), *inside)}
    return names | {without_image_suffix(name) for name in names}


def _key(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("./")


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _closure(label: str, names: Mapping[str, Collection[str]]) -> list[str]:
    """A label, and whatever it is called, and whatever that is called."""
    found, waiting = [label], [label]
    while waiting:
        for name in sorted(names.get(waiting.pop(), ())):
            if name not in found:
                found.append(name)
                waiting.append(name)
    return found
