"""Class names and colours. Class k (0-based) has mask value k + 1; 0 is background."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from misc.errors import InputError, first_three
from misc.files.atomic import atomic_path
from misc.files.checkpointfile import classes_beside
from misc.files.text import read_text
from misc.imutils import IGNORE_LABEL

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_NO_CLASS = re.compile(
    r"(0[\s:,;]+)?[\W_]*(background|ignored?|no_?class|none|nothing|unlabell?ed|void)[\W_]*", re.IGNORECASE
)
"""`background`, `_background_`, `__ignore__`, `0<tab>background`: how other tools' lists begin."""


def means_no_class(name: str) -> bool:
    """Whether a name is one that people and tools give to what shows none of the classes."""
    return _NO_CLASS.fullmatch(name) is not None


def spelling(name: str) -> str:
    """A name without what spellings of it differ in: `Dining table` and `diningtable` are one."""
    return "".join(filter(str.isalnum, name.casefold()))


def one_form(name: str) -> str:
    """A name without spaces around it, its accents in the form of Unicode that most systems write (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, without the background.

    Raises `InputError` if the file is missing, empty, begins with a line for the background, names a class twice, has
    more classes than a mask has ids, or names with control characters, which a terminal would obey.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"class list {path} can't be read ({error}); expected one class name a line.") from error
    names = tuple(name for line in lines if (name := one_form(line)))
    if no_classes := [*takewhile(means_no_class, names)]:
        raise InputError(
            f"class list {path} begins with {first_three(no_classes)}, which is no class: value 0 of a mask is the "
            "background without a line of its own; remove what stands before the first class."
        )
    if not 0 < len(set(names)) == len(names) < IGNORE_LABEL:
        raise InputError(
            f"class list {path} must hold 1 to {IGNORE_LABEL - 1} different names, has {len(names)} lines."
        )
    if any(unicodedata.category(character) == "Cc" for name in names for character in name):
        raise InputError(f"class list {path} has control characters in its names; expected one class name a line.")
    return names


def write_classes(path: str | Path, names: Sequence[str]) -> None:
    """Write class names as `read_classes` reads them."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def save_named(weights: str | Path, names: Sequence[str], *, save: Callable[[str | Path], None]) -> None:
    """Have `save` write the checkpoint `weights`, and put its class names beside it.

    Those of the checkpoint that it replaces are removed first, the new ones are written last: wherever a run is killed,
    no names of other weights are left there (and without names a checkpoint is taken at its word).
    """
    beside = classes_beside(weights)
    beside.unlink(missing_ok=True)
    save(weights)
    write_classes(beside, names)


def names_with_background(classes: Sequence[str]) -> list[str]:
    """Names of all mask values, from 0."""
    return ["background", *classes]


def colours_of(names: Sequence[str]) -> list[dict[str, str | int]]:
    """Ids, names and colours (`#rrggbb`) of all mask values, from 0, as JSON has them; `names`: with background."""
    colours = voc_palette().tolist()
    return [
        {"id": k, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colours[k])} for k, name in enumerate(names)
    ]


def shown_colours(ids: Iterable[int], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """{name: colour} of those of the ids that are classes; `names`: of all mask values, from 0."""
    return {names[k]: tuple(voc_palette()[k].tolist()) for k in sorted({*map(int, ids)}) if 0 < k < len(names)}


@lru_cache(maxsize=1)
def voc_palette() -> np.ndarray:
    """VOC's colour map, (256, 3) uint8: the bits of the id spread over the channels, lowest bits first."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for channel in range(3):
        remaining = ids.copy()
        colour = np.zeros(256, dtype=np.int64)
        for bit in range(8):
            colour |= ((remaining >> channel) & 1) << (7 - bit)
            remaining >>= 3
        palette[:, channel] = colour
    return palette
