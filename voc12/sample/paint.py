"""Random numbers, textures and drawing on float pictures: what backgrounds and objects share.

Pictures are float32 arrays of shape (height, width, 3), RGB in [0, 1]; colours are float32 arrays (3,).
Scenes are drawn at `SUPERSAMPLE` times the final size and then shrunk, which smooths the edges.
"""

import colorsys
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np

SUPERSAMPLE = 2
WHITE = np.ones(3, np.float32)

_SUBPIXEL_BITS = 4
_Item = TypeVar("_Item")


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A plain float from [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, items: Sequence[_Item]) -> _Item:
    """One of `items`, as it is (`Generator.choice` would turn it into an array element)."""
    return items[int(rng.integers(len(items)))]


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Colour from hue (wraps around 1), saturation and value (both cut to [0, 1])."""
    saturation, value = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def any_hue(
    rng: np.random.Generator,
    saturation: tuple[float, float] = (0.45, 0.9),
    value: tuple[float, float] = (0.45, 0.95),
) -> np.ndarray:
    """A colour of any hue, saturation and value from the given ranges."""
    return hsv(uniform(rng, 0, 1), uniform(rng, *saturation), uniform(rng, *value))


def grey(value: float) -> np.ndarray:
    """A neutral colour."""
    return np.full(3, value, np.float32)


def mix(a, b, weight):
    """Linear blend: `a` at weight 0, `b` at weight 1 (numbers or arrays that broadcast)."""
    return a + (b - a) * weight


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth ramp from 0 (x <= low) to 1 (x >= high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    cell: float,
    octaves: int = 3,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Value noise, float32 (height, width), about [0, 1] with mean 0.5.

    `cell` is the size of the coarsest blobs in pixels, `stretch` their extra length along x and y.
    """
    total = np.zeros((height, width), np.float32)
    weight, weights = 1.0, 0.0
    for _ in range(octaves):
        rows = max(2, round(height / (cell * stretch[1])) + 1)
        columns = max(2, round(width / (cell * stretch[0])) + 1)
        fine = max(rows, columns) > height
        grid = rng.random((rows, columns), dtype=np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR if fine else cv2.INTER_CUBIC)
        weights += weight
        weight *= 0.55
        cell = max(cell / 2, 1.0)
    return total / weights


def polygon(picture: np.ndarray, points: Sequence, colour: np.ndarray) -> None:
    """Fill a polygon; points are (x, y) in pixels, fractions allowed. On a mask, `colour` is a number."""
    fixed = np.round(np.asarray(points, np.float64) * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(picture, [fixed], _scalar(colour), shift=_SUBPIXEL_BITS)


def box(picture: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: np.ndarray) -> None:
    """Fill an upright rectangle."""
    polygon(picture, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)


def line(picture: np.ndarray, start: Sequence, end: Sequence, width: float, colour: np.ndarray) -> None:
    """Straight line of a width in pixels (at least 1)."""
    p, q = (tuple(int(round(float(v))) for v in point) for point in (start, end))
    cv2.line(picture, p, q, _scalar(colour), max(1, round(width)))


def ellipse(
    picture: np.ndarray,
    centre: Sequence,
    radii: Sequence,
    colour: np.ndarray,
    degrees: float = 0.0,
    outline: float | None = None,
) -> None:
    """Filled ellipse, or only its outline of the given width in pixels."""
    middle = tuple(int(round(float(v))) for v in centre)
    axes = tuple(max(1, round(float(v))) for v in radii)
    thickness = -1 if outline is None else max(1, round(outline))
    cv2.ellipse(picture, middle, axes, degrees, 0, 360, _scalar(colour), thickness)


def disc(picture: np.ndarray, centre: Sequence, radius: float, colour: np.ndarray) -> None:
    """Filled circle."""
    ellipse(picture, centre, (radius, radius), colour)


def _scalar(colour: np.ndarray | float) -> list[float]:
    """Colour in the form OpenCV takes, cut to [0, 1]."""
    return np.clip(np.atleast_1d(colour), 0, 1).astype(float).tolist()
