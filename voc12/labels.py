"""Image labels: from a label file of the IRN family, or derived from the devkit's XML annotations."""

import logging
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from misc.errors import InputError, first_three
from misc.objectfile import load_object, save_object
from misc.progress import progress
from voc12.derived import DERIVED_FOLDER, is_derived, record_derived
from voc12.devkit import Devkit

log = logging.getLogger(__name__)


def _label_key(image_id: str) -> int | str:
    """The key of an image in the label file: for VOC's ids the number without underscore, as in the original."""
    return int(image_id.replace("_", "")) if re.fullmatch(r"\d{4}_?\d{6}", image_id) else image_id


def _annotations_state(devkit: Devkit, annotations: Sequence[Path]) -> str:
    """A short text that changes when the annotations or the class list do."""
    stats = [file.stat() for file in annotations]
    states = [f"{file.name} {stat.st_size} {stat.st_mtime_ns}" for file, stat in zip(annotations, stats, strict=True)]
    text = "\n".join([str(devkit.root.resolve()), *devkit.classes, *states])
    return f"{zlib.crc32(text.encode()):08x}"


def labels_of_annotation(path: Path, classes: Sequence[str]) -> np.ndarray:
    """(C,) float32 0/1: the classes whose `<object><name>` the XML file holds; names outside `classes` don't count.

    Raises `InputError` if the file is no XML.
    """
    try:
        names = {(element.text or "").strip() for element in ElementTree.parse(path).iterfind("object/name")}
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


def _find_labels(known: dict, ids: Sequence[str], label_file: Path) -> list[np.ndarray | None]:
    """The label of each image under its id or, as in the original, under the id's digits as a number."""
    found, image_of = [], {}
    for image_id in ids:
        label, digits = known.get(image_id), image_id.replace("_", "")
        if label is None and digits.isdigit():
            label = known.get(int(digits))
            other = image_of.setdefault(int(digits), image_id)
            if label is not None and other != image_id:
                raise InputError(
                    f"label file {label_file}: {other} and {image_id} are one number; use the ids themselves as keys."
                )
        found.append(label)
    return found


def read_labels(devkit: Devkit, label_file: str | Path, ids: Sequence[str]) -> np.ndarray:
    """(N, C) float32 0/1 image labels of `ids`.

    From the label file, the original's format: a pickled dict {id without underscore: (C,) float32}. One in `voc12/`
    is made from the devkit's XML files where it is missing.

    Raises `InputError` for an unreadable file, a wrong number of classes, or images that it lacks.
    """
    label_file = Path(label_file)
    if label_file.parent == DERIVED_FOLDER and (not label_file.is_file() or is_derived(label_file)):
        _derive_labels(devkit, label_file)
    found = _find_labels(load_object(label_file, kind="label file"), ids, label_file)
    missing = [image_id for image_id, label in zip(ids, found, strict=True) if label is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} images have no labels in {label_file} ({first_three(missing)}); "
            "add their annotations, or take them out of the list."
        )
    wrong = {np.shape(label) for label in found} - {(len(devkit.classes),)}
    if wrong:
        raise InputError(
            f"label file {label_file} has labels of shape {wrong.pop()}, expected {len(devkit.classes)} classes; "
            "correct it or --class_list."
        )
    return np.stack(found).astype(np.float32)


def require_labelled(ids: Sequence[str], labels: np.ndarray, *, flag: str) -> None:
    """Raise `InputError` if images of a training list carry none of the classes."""
    empty = [image_id for image_id, label in zip(ids, labels, strict=True) if not label.any()]
    if empty:
        raise InputError(
            f"--{flag}: {len(empty)} images carry none of the classes ({first_three(empty)}); take them out of the "
            "list (images without objects belong to the out-of-distribution data)."
        )
