"""Ids for images: unique whatever the case of letters, and names of files on every system."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from misc.files.images import without_image_suffix

LONGEST_ID = 100
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever their suffix."""


def portable(name: str) -> str:
    """ASCII letters, digits, `-` and `_` alone: accents are dropped, whatever else there is becomes `_`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    text = re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_-")[:LONGEST_ID]
    return f"image_{text}" if not text or _RESERVED.fullmatch(text) else text


def new_ids(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    """An id for each file, given by its path in the source.

    The file's name without its suffix or, where another file has it too or it is `taken`, its whole path, with a number
    where that is not enough.
    """
    paths = [without_image_suffix(name.replace("\\", "/")) for name in names]
    short = [portable(path.rpartition("/")[2]) for path in paths]
    used, next_number = {image_id.lower() for image_id in taken}, {}
    n_files = Counter(image_id.lower() for image_id in (*short, *used))
    ids = []
    for image_id, path in zip(short, paths, strict=True):
        whole = portable(path)
        if n_files[image_id.lower()] > 1:
            image_id = whole
        while image_id.lower() in used:
            number = next_number[whole] = next_number.get(whole, 1) + 1
            image_id = f"{whole}_{number}"
        used.add(image_id.lower())
        ids.append(image_id)
    return ids
