"""Image labels: from a label file of the IRN family, a table, or derived from the devkit's XML annotations."""

import difflib
import itertools
import logging
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from misc.errors import InputError, first_three, printable, requirement
from misc.files import look
from misc.files.images import without_image_suffix
from misc.files.objectfile import load_object, save_object
from misc.files.paths import Paths, same_path
from misc.files.regular import regular
from misc.files.table import is_table
from misc.run.config import Config
from misc.run.notices import notice
from misc.run.progress import progress
from voc12.classes import one_form, spelling
from voc12.derived import derived_file, is_derived, note_of
from voc12.devkit import Devkit
from voc12.labelcsv import labels_by_file

log = logging.getLogger(__name__)

DERIVED_LABELS = Path(Config().label_file)
"""Made from the devkit's annotations where it is missing; of other names the user's own files are expected."""
ROWS_AT_ONCE = 4096
"""Of labels, while they are unpacked."""
_ONES_IN = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.int64)
"""How many bits of a byte are set."""


def _label_key(image_id: str) -> int | str:
    """The key of an image in the label file: for VOC's ids the number without underscore, as in the original."""
    return int(image_id.replace("_", "")) if re.fullmatch(r"\d{4}_?\d{6}", image_id) else image_id


class Labels:
    """Labels of N images, (N, C) 0/1, in a bit each, so that a million images of a thousand classes stay in memory.

    An index gives the (C,) float32 label of an image; a slice or an array of indices, the `Labels` of several.
    """

    dtype = np.dtype(np.float32)
    """Of the arrays that it gives."""

    def __init__(self, bits: np.ndarray, n_classes: int) -> None:
        """`bits`: (N, C / 8) uint8, rounded up, as `np.packbits` makes them of rows."""
        self._bits, self.shape = bits, (len(bits), n_classes)

    @classmethod
    def of(cls, rows: np.ndarray) -> "Labels":
        """Those of (N, C) rows, of which every number but 0 counts as 1."""
        return cls(np.packbits(rows != 0, axis=1), rows.shape[1])

    @classmethod
    def none(cls, n_images: int, n_classes: int) -> "Labels":
        """Those of images that carry no class."""
        return cls(np.zeros((n_images, -(-n_classes // 8)), dtype=np.uint8), n_classes)

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, index: Any) -> Any:
        bits = self._bits[index]
        if bits.ndim == 1:
            return np.unpackbits(bits, count=self.shape[1]).astype(self.dtype)
        return Labels(bits, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.unpackbits(self._bits, axis=1, count=self.shape[1]).astype(dtype or self.dtype)

    def tobytes(self) -> bytes:
        """What differs between other labels."""
        return self._bits.tobytes()

    def tolist(self) -> list[list[float]]:
        """The rows as lists."""
        return np.asarray(self).tolist()

    def counts(self) -> np.ndarray:
        """(N,) int64: the number of classes of each image."""
        return _ONES_IN[self._bits].sum(axis=1)

    def images_of_classes(self) -> np.ndarray:
        """(C,) int64: the number of images of each class."""
        starts = range(0, len(self), ROWS_AT_ONCE)
        parts = (np.unpackbits(self._bits[i : i + ROWS_AT_ONCE], axis=1, count=self.shape[1]) for i in starts)
        return sum((part.sum(axis=0, dtype=np.int64) for part in parts), np.zeros(self.shape[1], dtype=np.int64))


def _annotations_state(devkit: Devkit, names: Sequence[str]) -> str:
    """A short text that changes when the annotations or the class list do."""
    sizes_and_times = look.states(Paths(devkit.root / "Annotations", names))[:, :2].tolist()
    states = [f"{name} {size} {time}" for name, (size, time) in zip(names, sizes_and_times, strict=True)]
    text = "\n".join([str(devkit.root.resolve()), *devkit.classes, *states])
    return f"{zlib.crc32(text.encode(errors='surrogateescape')):08x}"  # names need not be text


def names_of_annotation(path: Path) -> set[str]:
    """What the XML file holds as `<object><name>`. Raises `InputError` if the file is no XML."""
    try:
        return {one_form(element.text or "") for element in ElementTree.parse(regular(path)).iterfind("object/name")}
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise InputError(f"annotation {path} is no valid XML ({error}); replace it.") from error


def _note_on_others(names: Counter[str], folder: Path, classes: Sequence[str]) -> str:
    """A sentence on the names in annotations that are no classes, with the number of images of each.

    A name that no class resembles comes last. Raises `InputError` for one that is a class in another spelling: its
    images would count as images without that class.
    """
    others = {name: n_images for name, n_images in names.most_common() if name not in classes}
    class_of = {spelling(name): name for name in classes}
    for name, n_images in others.items():
        if name and (meant := class_of.get(spelling(name))) is not None:
            raise InputError(
                f"{n_images} annotations in {folder} name {name!r}, the class list has {meant!r}: both must spell a "
                "class alike; correct the annotations or the class list."
            )
    if not others:
        return ""
    near = {name: difflib.get_close_matches(name, classes, 1) for name in others}
    shown = [
        f"{name} ({n_images} images{f', the nearest class is {near[name][0]}' if near[name] else ''})"
        for name, n_images in sorted(others.items(), key=lambda item: not near[item[0]])
    ]
    return printable(
        f"annotations in {folder} name what the class list has not, and such objects are taken for background: "
        f"{first_three(shown)}; where one of the classes is meant, correct the annotations or the class list."
    )


def _derive_labels(devkit: Devkit, label_file: Path) -> None:
    """Make the label file from the annotations, unless it is of these already, or is the user's own."""
    if label_file.is_file() and not is_derived(label_file):
        return
    folder = devkit.root / "Annotations"
    names = [name for name in look.folder_at(folder) if name.endswith(".xml") and not name.startswith(".")]
    if not names:
        raise InputError(
            f"label file {label_file} is missing and {folder} has no XML files to make it from; give either of them."
        )
    source = _annotations_state(devkit, names)
    if label_file.is_file() and is_derived(label_file, source=source):
        if note := note_of(label_file):
            notice(note)
        return
    labels, found = {}, Counter()
    for name in progress(names, desc="reading annotations", unit="file"):
        objects = names_of_annotation(folder / name)
        found.update(objects)
        of_image = np.array([name in objects for name in devkit.classes], dtype=np.float32)
        labels[_label_key(name.removesuffix(".xml"))] = of_image
    if note := _note_on_others(found, folder, devkit.classes):
        notice(note)
    with derived_file(label_file, source=source, note=note) as temporary:
        save_object(temporary, labels)
    log.info("made %s from %s: labels of %d images", label_file, folder, len(labels))


def _name_in(key: str) -> str:
    """The name of an image in a file's key: `ID`, `ID.jpg`, or a path to it."""
    return without_image_suffix(key.replace("\\", "/").rpartition("/")[2])


def _number_of(key: object) -> int | None:
    """The image's number, in which the family's label files agree: VOC's ids without underscore, COCO's last digits."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return int(key)
    if isinstance(key, str) and (digits := re.fullmatch(r"(?:COCO_\w+_)?(\d{1,20})|(\d{4})_(\d{6})", _name_in(key))):
        return int("".join(filter(None, digits.groups())))
    return None


class _LabelFile:
    """A label file: each key's label, found by an image's id: the id itself, its name in a key, or its number.

    In a table, which people write, not by its number: to them `123` and `0123` are two images.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._file, self._n_classes = path, (n_classes := len(classes))
        has_numbers = not is_table(path)
        known = load_object(path, kind="label file") if has_numbers else labels_by_file(path, classes)
        self._row_of, self._bits = _rows_of_bits(known, n_classes)
        self._others = {key: label for key, label in known.items() if key not in self._row_of}
        self.keys = list(known)
        self._by_name: dict[str, tuple] = {}
        self._by_number: dict[int, tuple] = {}
        for key in known:
            if isinstance(key, str):
                name = _name_in(key)
                self._by_name[name] = (*self._by_name.get(name, ()), key)
            if has_numbers and (number := _number_of(key)) is not None:
                self._by_number[number] = (*self._by_number.get(number, ()), key)

    def key_of(self, image_id: str) -> object | None:
        """The image's key, None if it has none. Raises `InputError` if keys with different labels stand for it."""
        keys = self._by_name.get(image_id, ())
        if image_id in self._row_of or image_id in self._others:
            keys = (image_id, *(key for key in keys if key != image_id))
        keys = keys or self._by_number.get(_number_of(image_id)) or (None,)
        for key in keys[1:]:
            if not np.array_equal(self._label(key), self._label(keys[0])):
                raise InputError(
                    f"label file {self._file}: {keys[0]!r} and {key!r} are both {image_id}, with different labels; "
                    "remove one."
                )
        return keys[0]

    def _label(self, key: object) -> object:
        return self._bits[self._row_of[key]] if key in self._row_of else self._others[key]

    def labels_of(self, keys: Sequence[object], ids: Sequence[str]) -> Labels:
        """The labels of images whose keys are given. Raises `InputError` for one that is not 0 or 1 for each class."""
        for key, image_id in zip(keys, ids, strict=True):
            if key not in self._row_of:
                _refuse(self._others[key], image_id, self._file, self._n_classes)
        return Labels(self._bits[[self._row_of[key] for key in keys]], self._n_classes)


def _rows_of_bits(known: Mapping[Any, object], n_classes: int) -> tuple[dict[Any, int], np.ndarray]:
    """{key: row} of the labels that are 0 or 1 for each class, and their rows of bits."""
    row_of: dict[Any, int] = {}
    parts = [np.zeros((0, -(-n_classes // 8)), dtype=np.uint8)]
    arrays = ((key, _values_of(label)) for key, label in known.items())
    fitting = ((key, values) for key, values in arrays if values is not None and values.shape == (n_classes,))
    while chunk := [*itertools.islice(fitting, ROWS_AT_ONCE)]:
        rows = np.stack([values for _, values in chunk])
        fine = ((rows == 0) | (rows == 1)).all(axis=1)
        good = [key for (key, _), is_fine in zip(chunk, fine, strict=True) if is_fine]
        row_of.update(zip(good, itertools.count(len(row_of))))
        parts.append(np.packbits(rows[fine] != 0, axis=1))
    return row_of, np.concatenate(parts)


def _values_of(label: object) -> np.ndarray | None:
    """A label as an array of numbers or truth values; None if it is none."""
    try:
        values = np.asarray(label)
    except (TypeError, ValueError):  # lists of several lengths
        return None
    return values if values.dtype.kind in "biuf" else None


def _find_keys(known: _LabelFile, ids: Sequence[str], label_file: Path) -> list[object | None]:
    """The key of each image, in whatever form of its id the file has it."""
    found, image_of = [], {}
    for image_id in ids:
        key = known.key_of(image_id)
        other = image_of.setdefault(key, image_id)
        if key is not None and other != image_id:
            raise InputError(
                f"label file {label_file}: {other} and {image_id} are one number, and both have the labels of {key!r}; "
                "use the ids themselves as keys."
            )
        found.append(key)
    return found


def _refuse(label: object, image_id: str, label_file: Path, n_classes: int) -> NoReturn:
    """Raise `InputError`, with what was found, for a label that is not `n_classes` times 0 or 1."""
    values = _values_of(label)
    expected = f"expected {n_classes} classes, each 0 or 1"
    advice = "correct it or --class_list."
    if values is None:
        raise InputError(f"label file {label_file}: {image_id} has {_shown(label)}, {expected}; {advice}")
    if values.shape != (n_classes,):
        raise InputError(
            f"label file {label_file} has labels of shape {values.shape}, {expected} ({image_id} has {_shown(label)}); "
            f"{advice}"
        )
    others = values[(values != 0) & (values != 1)]
    raise InputError(f"label file {label_file}: {image_id} has the value {others[0]}, {expected}; {advice}")


def _shown(label: object) -> str:
    """A label in a message, short and on one line."""
    plain = label.tolist() if isinstance(label, (np.ndarray, np.generic, Tensor)) else label
    try:
        text = printable(str(plain))
    except RecursionError:
        return "lists within lists"
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_labels(devkit: Devkit, label_file: str | Path, ids: Sequence[str]) -> Labels:
    """(N, C) 0/1 image labels of `ids`.

    From a label file of the IRN family: a pickled dict {id: (C,) 0/1}. Its keys are ids, names of files, or numbers
    (VOC's ids without underscore, COCO's without zeros), as numbers or text. `DERIVED_LABELS` is made from the devkit's
    XML files where it is missing. Or from a table (`voc12/labelcsv.py`), in which images are found by id or file alone.

    Raises `InputError` for an unreadable file, labels that are not 0 or 1 for each class, a key of several images, or
    images that it lacks.
    """
    known = _known_labels(devkit, Path(label_file))
    key = ("labels of a list", known, tuple(ids))
    return look.remembered(key, lambda: _labels_from(known, Path(label_file), ids))


def _known_labels(devkit: Devkit, label_file: Path) -> _LabelFile:
    def read() -> _LabelFile:
        return _LabelFile(label_file, devkit.classes)

    def derived() -> _LabelFile:
        _derive_labels(devkit, label_file)
        return read()

    if same_path(label_file, DERIVED_LABELS):
        return look.remembered(("derived labels", devkit.root, devkit.classes, label_file), derived)
    return look.read_once(label_file, read, "label file", devkit.classes)


def ids_without_class(devkit: Devkit, label_file: str | Path | None, ids: Sequence[str]) -> frozenset[str]:
    """Those of `ids` that a label file says have none of the classes; without one no image is known to have none.

    Labels that are made of annotations don't say so: these name objects, which may be spelled otherwise than the
    classes. Neither does a label file in which an image is missing.
    Raises `InputError` for an unreadable file, and labels that are not 0 or 1 for each class.
    """
    if label_file is None or not Path(label_file).is_file():
        return frozenset()
    label_file = Path(label_file)
    return look.read_once(
        label_file, lambda: _without_class(devkit, label_file, ids), "no class", devkit.classes, tuple(ids)
    )


def _without_class(devkit: Devkit, label_file: Path, ids: Sequence[str]) -> frozenset[str]:
    if is_derived(label_file):
        return frozenset()
    known = _known_labels(devkit, label_file)
    key_of = {image_id: key for image_id in ids if (key := known.key_of(image_id)) is not None}
    counts = known.labels_of([*key_of.values()], [*key_of]).counts()
    return frozenset(image_id for image_id, n_classes in zip(key_of, counts.tolist(), strict=True) if not n_classes)


def _labels_from(known: _LabelFile, label_file: Path, ids: Sequence[str]) -> Labels:
    keys = _find_keys(known, ids, label_file)
    missing = [image_id for image_id, key in zip(ids, keys, strict=True) if key is None]
    if missing:
        shown = first_three([repr(key) for key in known.keys[:4]]) or "none at all"
        raise InputError(
            f"{len(missing)} of {len(ids)} images have no labels in {label_file} ({first_three(missing)}), whose keys "
            f"look like {shown}; add their annotations, or take them out of the list."
        )
    return known.labels_of(keys, ids)


def require_some_class(n_without: int, n_images: int, *, flag: str) -> None:
    """Raise `InputError` if all images of a list are without a class."""
    if n_without == n_images:
        raise InputError(f"--{flag}: none of the {n_images} images carries a class; correct --label_file or the list.")


@requirement
def require_labelled(devkit: Devkit, label_file: str | Path, ids: Sequence[str], labels: Labels, *, flag: str) -> None:
    """Raise `InputError` if images of a training list carry none of the classes, unless a label file says so."""
    empty = [ids[index] for index in np.flatnonzero(labels.counts() == 0)]
    require_some_class(len(empty), len(ids), flag=flag)
    if not ids_without_class(devkit, label_file, ids).issuperset(empty):
        raise InputError(
            f"--{flag}: {len(empty)} images carry none of the classes ({first_three(empty)}); take them out of the "
            "list, or name a --label_file that says that they carry none."
        )


def tell_odd_classes(labels: Labels, classes: Sequence[str], *, flag: str) -> None:
    """Tell the log of classes that a classifier can't learn from a training list: in no image, or in every one."""
    n_images = labels.images_of_classes()
    if absent := [classes[k] for k in np.flatnonzero(n_images == 0)]:
        notice(
            f"--{flag}: no image carries {first_three(absent)} ({len(absent)} of {len(classes)} classes), so no CAM "
            "will show them; add images, or take them out of the class list."
        )
    if always := [classes[k] for k in np.flatnonzero(n_images == len(labels))]:
        notice(
            f"--{flag}: every image carries {first_three(always)}, so nothing teaches the classifier where they are "
            "not; add images without them."
        )
