"""The ids that categories and images have in a COCO file that a devkit was imported from."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from misc.errors import InputError
from misc.files.atomic import write_json
from misc.files.coco import FIRST_ID
from misc.files.jsonfile import read_dict

COCO_IDS = "coco_ids.json"


def read_coco_ids(root: str | Path) -> tuple[dict[str, int], dict[str, int | str]]:
    """{class: id of its category} and {image id: id of the image}, both empty for any other devkit.

    Raises `InputError` for a damaged file.
    """
    path = Path(root) / COCO_IDS
    if not path.exists():
        return {}, {}
    content = read_dict(path)
    parts = [content.get(part) for part in ("categories", "images")]
    for part in parts:
        if not isinstance(part, dict) or not all(map(is_id, part.values())) or len({*part.values()}) < len(part):
            raise InputError(f"{path} is damaged; expected the ids of categories and images: import them again.")
    return parts[0], parts[1]


def write_coco_ids(root: str | Path, categories: dict[str, int], images: dict[str, int | str]) -> None:
    """Write them as `read_coco_ids` reads them."""
    write_json(Path(root) / COCO_IDS, {"categories": categories, "images": images})


def is_id(value: Any) -> bool:
    """Whether a value of a JSON file can be the id of an image."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def ids_for(names: Sequence[str], known: dict[str, Any]) -> list[Any]:
    """The id of each name: the one that is known, else numbers that no other has, beginning with `FIRST_ID`."""
    free = _free_numbers({*known.values()})
    return [known[name] if name in known else next(free) for name in names]


def _free_numbers(taken: set[Any]) -> Iterator[int]:
    return (number for number in count(FIRST_ID) if number not in taken)
