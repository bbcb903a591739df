"""Image labels: from a label file of the IRN family, or derived from the devkit's XML annotations."""

import itertools
import logging
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from misc.errors import InputError, first_three, printable
from misc.files.images import without_image_suffix
from misc.files.objectfile import load_object, save_object
from misc.files.regular import regular
from misc.run.progress import progress
from voc12.derived import DERIVED_FOLDER, is_derived, record_derived
from voc12.devkit import Devkit

log = logging.getLogger(__name__)


def _label_key(image_id: str) -> int | str:
    """The key of an image in the label file: for VOC's ids the number without underscore, as in the original."""
    return int(image_id.replace("_", "")) if re.fullmatch(r"\d{4}_?\d{6}", image_id) else image_id


def _annotations_state(devkit: Devkit, annotations: Sequence[Path]) -> str:
    """A short text that changes when the annotations or the class list do."""
    try:
        stats = [file.stat() for file in annotations]
    except OSError as error:
        raise InputError(f"annotation {error.filename} can't be read ({error.strerror}); replace it.") from error
    states = [f"{file.name} {stat.st_size} {stat.st_mtime_ns}" for file, stat in zip(annotations, stats, strict=True)]
    text = "\n".join([str(devkit.root.resolve()), *devkit.classes, *states])
    return f"{zlib.crc32(text.encode(errors='surrogateescape')):08x}"  # names need not be text


def labels_of_annotation(path: Path, classes: Sequence[str]) -> np.ndarray:
    """(C,) float32 0/1: the classes whose `<object><name>` the XML file holds; names outside `classes` don't count.

    Raises `InputError` if the file is no XML.
    """
    try:
        names = {(element.text or "").strip() for element in ElementTree.parse(regular(path)).iterfind("object/name")}
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise InputError(f"annotation {path} is no valid XML ({error}); replace it.") from error
    return np.array([name in names for name in classes], dtype=np.float32)


def _derive_labels(devkit: Devkit, label_file: Path) -> None:
    folder = devkit.root / "Annotations"
    annotations = sorted(folder.glob("[!.]*.xml"))
    if not annotations:
        raise InputError(
            f"label file {label_file} is missing and {folder} has no XML files to make it from; give either of them."
        )
    source = _annotations_state(devkit, annotations)
    if label_file.is_file() and is_derived(label_file, source=source):
        return
    labels = {
        _label_key(file.stem): labels_of_annotation(file, devkit.classes)
        for file in progress(annotations, desc="reading annotations", unit="file")
    }
    save_object(label_file, labels)
    record_derived(label_file, source=source)
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


def _number_of_id(image_id: str) -> int | None:
    """The same of an image's id, in which underscores may stand anywhere."""
    digits = image_id.replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() else _number_of(image_id)


class _Keys:
    """The keys of a label file, found by an image's id: the id itself, its name in a key, or its number."""

    def __init__(self, known: dict, label_file: Path) -> None:
        self._known, self._file = known, label_file
        self._by_name: dict[str, list] = {}
        self._by_number: dict[int, list] = {}
        for key in known:
            if isinstance(key, str):
                self._by_name.setdefault(_name_in(key), []).append(key)
            if (number := _number_of(key)) is not None:
                self._by_number.setdefault(number, []).append(key)

    def of(self, image_id: str) -> object | None:
        """The image's key, None if it has none. Raises `InputError` if keys with different labels stand for it."""
        if image_id in self._known:
            return image_id
        keys = self._by_name.get(image_id) or self._by_number.get(_number_of_id(image_id)) or [None]
        for key in keys[1:]:
            if not np.array_equal(self._known[key], self._known[keys[0]]):
                raise InputError(
                    f"label file {self._file}: {keys[0]!r} and {key!r} are both {image_id}, with different labels; "
                    "remove one."
                )
        return keys[0]


def _find_labels(known: dict, ids: Sequence[str], label_file: Path) -> list[object | None]:
    """The label of each image, in whatever form of its id the file has it."""
    keys, found, image_of = _Keys(known, label_file), [], {}
    for image_id in ids:
        key = keys.of(image_id)
        other = image_of.setdefault(key, image_id)
        if key is not None and other != image_id:
            raise InputError(
                f"label file {label_file}: {other} and {image_id} are one number, and both have the labels of {key!r}; "
                "use the ids themselves as keys."
            )
        found.append(None if key is None else known[key])
    return found


def _require_truth_values(label: object, image_id: str, label_file: Path, n_classes: int) -> np.ndarray:
    """An image's label as (C,). Raises `InputError`, with what was found, if it is not `n_classes` times 0 or 1."""
    try:
        values = np.asarray(label)
    except (TypeError, ValueError):  # lists of several lengths
        values = np.array(None)
    is_numeric = values.dtype.kind in "biuf"
    if is_numeric and values.shape == (n_classes,) and ((values == 0) | (values == 1)).all():
        return values
    expected = f"expected {n_classes} classes, each 0 or 1"
    advice = "correct it or --class_list."
    if not is_numeric:
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


def read_labels(devkit: Devkit, label_file: str | Path, ids: Sequence[str]) -> np.ndarray:
    """(N, C) float32 0/1 image labels of `ids`.

    From a label file of the IRN family: a pickled dict {id: (C,) 0/1}. Its keys are ids, names of files, or numbers
    (VOC's ids without underscore, COCO's without zeros), as numbers or text. One in `voc12/` is made from the devkit's
    XML files where it is missing.

    Raises `InputError` for an unreadable file, labels that are not 0 or 1 for each class, a key of several images, or
    images that it lacks.
    """
    label_file, n_classes = Path(label_file), len(devkit.classes)
    if label_file.parent == DERIVED_FOLDER and (not label_file.is_file() or is_derived(label_file)):
        _derive_labels(devkit, label_file)
    known = load_object(label_file, kind="label file")
    found = _find_labels(known, ids, label_file)
    missing = [image_id for image_id, label in zip(ids, found, strict=True) if label is None]
    if missing:
        keys = first_three([repr(key) for key in itertools.islice(known, 4)]) or "none at all"
        raise InputError(
            f"{len(missing)} of {len(ids)} images have no labels in {label_file} ({first_three(missing)}), whose keys "
            f"look like {keys}; add their annotations, or take them out of the list."
        )
    pairs = zip(ids, found, strict=True)
    labels = [_require_truth_values(label, image_id, label_file, n_classes) for image_id, label in pairs]
    return np.stack(labels).astype(np.float32)


def require_labelled(ids: Sequence[str], labels: np.ndarray, *, flag: str) -> None:
    """Raise `InputError` if images of a training list carry none of the classes."""
    empty = [image_id for image_id, label in zip(ids, labels, strict=True) if not label.any()]
    if empty:
        raise InputError(
            f"--{flag}: {len(empty)} images carry none of the classes ({first_three(empty)}); take them out of the "
            "list (images without objects belong to the out-of-distribution data)."
        )
