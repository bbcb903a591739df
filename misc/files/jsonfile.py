"""Reading JSON that may be missing, damaged or made to do harm."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from misc.files.regular import regular

DEEPEST = 32
"""Lists and objects within each other; the project's own are a few deep."""
LARGEST = 2**63
"""Whole numbers are below: others are none for NumPy."""


def jsonable(value: Any) -> Any:
    """Scores, however nested, with lists for arrays and None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def parse(text: str) -> Any:
    """What JSON text says. Raises `ValueError` for any other text, and for what the project never writes.

    That is NaN, infinity, whole numbers from `LARGEST` on, and lists and objects more than `DEEPEST` deep: in Python
    these end in many ways, whoever uses them first.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is more than {DEEPEST} deep") from None
    level = [content]
    for _ in range(DEEPEST):
        if not all(map(_is_plain, level)):
            raise ValueError("it holds a number that is not finite, or too large")
        level = [item for value in level if isinstance(value, dict | list) for item in _items_of(value)]
        if not level:
            return content
    raise ValueError(f"it is more than {DEEPEST} deep")


def _items_of(value: dict | list) -> Any:
    return value.values() if isinstance(value, dict) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -LARGEST <= value < LARGEST
    return not isinstance(value, float) or math.isfinite(value)


def is_number(value: Any, *, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a number, no truth value, of the closed range."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def read_dict(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, damaged, or holds something else, as `parse` has it."""
    try:
        content = parse(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
