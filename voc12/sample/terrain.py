"""Pieces that several backgrounds are put together from: sky, hills, trees, houses, ground in perspective."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from voc12.sample.paint import WHITE, box, chance, disc, grey, hsv, line, mix, noise, pick, smoothstep, uniform


@dataclass(frozen=True)
class Track:
    """A railway line that runs towards the viewer: where the front of a train stands on it."""

    foot: tuple[float, float]
    gauge: float
    vanishing_x: float


@dataclass(frozen=True)
class Stage:
    """A background without objects, and where objects may stand.

    picture: float32 (height, width, 3) in [0, 1].
    feet: highest and lowest y for the foot of an object; far objects stand high.
    sky: lowest y for something in the air, None where there is no open sky.
    perch: y of the branch at x; objects sit on it instead of standing between `feet`.
    track: set where the rails run towards the viewer.
    """

    picture: np.ndarray
    feet: tuple[float, float]
    sky: float | None = None
    perch: Callable[[float], float] | None = None
    track: Track | None = None


def reference(height: int, width: int) -> float:
    """The length that objects and details are measured in: the width, but less in flat pictures."""
    return min(width, 1.25 * height)


def detail(height: int, width: int) -> float:
    """Size in pixels of one unit of fine detail, 1/400 of the reference length."""
    return reference(height, width) / 400


def paint_sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A sky with clouds over the whole picture: clear, overcast or at dusk."""
    kind = pick(rng, ("clear", "clear", "overcast", "dusk"))
    if kind == "clear":
        top = hsv(uniform(rng, 0.56, 0.62), uniform(rng, 0.5, 0.8), uniform(rng, 0.65, 0.95))
        bottom = hsv(uniform(rng, 0.53, 0.6), uniform(rng, 0.1, 0.35), uniform(rng, 0.88, 1))
    elif kind == "overcast":
        top = hsv(uniform(rng, 0.55, 0.65), uniform(rng, 0.03, 0.15), uniform(rng, 0.5, 0.75))
        bottom = hsv(0.58, uniform(rng, 0, 0.08), uniform(rng, 0.72, 0.92))
    else:
        top = hsv(uniform(rng, 0.6, 0.72), uniform(rng, 0.25, 0.5), uniform(rng, 0.5, 0.8))
        bottom = hsv(uniform(rng, 0.03, 0.1), uniform(rng, 0.3, 0.6), uniform(rng, 0.85, 1))
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    picture = np.broadcast_to(mix(top, bottom, rows), (height, width, 3)).copy()

    unit = detail(height, width)
    billows = noise(rng, height, width, uniform(rng, 40, 90) * unit, 5, (uniform(rng, 1, 2.6), 1.0))
    cover = uniform(rng, 0.44, 0.62)
    weight = smoothstep(billows, cover, cover + uniform(rng, 0.1, 0.25)) * uniform(rng, 0.5, 0.95)
    shade = noise(rng, height, width, 30 * unit, 3)
    clouds = mix(np.array([0.78, 0.8, 0.86], np.float32), WHITE, shade[..., None])
    return mix(picture, clouds, weight[..., None])


def in_perspective(
    rng: np.random.Generator, texture: np.ndarray, height: int, width: int, zoom: float = 1.0
) -> np.ndarray:
    """Lay a texture on flat ground, float32 (height, width); towards row 0, the horizon, it fades to grey."""
    rows, columns = texture.shape
    y = np.arange(height, dtype=np.float32) + 0.5
    distance = height / (y + 4.0)
    x = (np.arange(width, dtype=np.float32)[None] - width / 2) * distance[:, None] * zoom
    x = x + columns * 8 + uniform(rng, 0.2, 0.8) * columns
    depth = (distance * zoom * height * 0.9)[:, None] + uniform(rng, 0, rows)
    x, depth = np.broadcast_arrays(x, depth)
    laid = cv2.remap(texture, _mirrored(x, columns), _mirrored(depth, rows), cv2.INTER_LINEAR)
    fade = np.clip(1.6 / distance, 0.05, 1)[:, None]
    return mix(laid.mean(), laid, fade)


def _mirrored(position: np.ndarray, size: int) -> np.ndarray:
    """Positions folded back and forth into [0, size - 1]: tiling without seams."""
    return (size - 1 - np.abs(position % (2 * size - 2) - (size - 1))).astype(np.float32)


def grain(rng: np.random.Generator, height: int, width: int, cell: float, strength: float) -> np.ndarray:
    """Factors around 1 that roughen a surface, float32 (height, width, 1)."""
    return 1 + strength * (noise(rng, height, width, cell, 2) - 0.5)[..., None]


def paint_hills(
    rng: np.random.Generator,
    picture: np.ndarray,
    horizon: float,
    rise: float,
    colour: np.ndarray,
    roughness: float = 0.15,
) -> None:
    """Hills of at most `rise` pixels above the horizon, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    ridge = horizon - rise * noise(rng, 1, width, uniform(rng, 15, 60) * unit, 4)[0]
    rows = np.arange(height)[:, None]
    covered = (rows >= ridge[None]) & (rows < horizon + 2)
    texture = 1 + roughness * 2 * (noise(rng, height, width, 8 * unit, 3) - 0.5)
    picture[covered] = (colour * texture[..., None])[covered]


def paint_trees(rng: np.random.Generator, picture: np.ndarray, horizon: float) -> None:
    """A dark line of trees on the horizon, in place; now and then a nearer tree stands out of it."""
    height, width = picture.shape[:2]
    green = hsv(uniform(rng, 0.22, 0.38), uniform(rng, 0.3, 0.6), uniform(rng, 0.22, 0.42))
    paint_hills(rng, picture, horizon, uniform(rng, 0.06, 0.22) * height, green, 0.4)
    if chance(rng, 0.35):
        foot = (uniform(rng, 0, 1) * width, horizon + 0.02 * height)
        paint_tree(rng, picture, foot, uniform(rng, 0.2, 0.35) * height)


def paint_tree(rng: np.random.Generator, picture: np.ndarray, foot: tuple[float, float], tall: float) -> None:
    """One broad-leaved tree, in place."""
    x, y = foot
    bark = hsv(0.07, uniform(rng, 0.25, 0.45), uniform(rng, 0.2, 0.35))
    green = hsv(uniform(rng, 0.2, 0.36), uniform(rng, 0.35, 0.65), uniform(rng, 0.25, 0.5))
    line(picture, (x, y), (x, y - tall * 0.5), tall * 0.07, bark)
    for layer in np.linspace(0, 1, 70):
        # Outer and lower leaves first and darker, so that the crown looks round.
        reach = mix(0.32, 0.26, layer) * tall
        angle, radius = uniform(rng, 0, 2 * np.pi), reach * np.sqrt(rng.random())
        spot = (x + radius * np.cos(angle), y - tall * 0.68 + radius * np.sin(angle) - reach * 0.15 * layer)
        leaves = green * mix(0.6, 1.25, layer) * uniform(rng, 0.85, 1.1)
        disc(picture, spot, tall * uniform(rng, 0.04, 0.08), leaves)


def paint_houses(rng: np.random.Generator, picture: np.ndarray, ground: int) -> None:
    """A row of house fronts with windows, down to y = `ground`, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    left = 0
    while left < width:
        right = left + int(uniform(rng, 0.22, 0.5) * width)
        top = max(0, int(uniform(rng, -0.1, 0.5) * ground))
        wall = hsv(uniform(rng, 0, 0.14), uniform(rng, 0.05, 0.5), uniform(rng, 0.45, 0.85))
        front = picture[top:ground, left:right]
        front[:] = wall * grain(rng, *front.shape[:2], 6 * unit, 0.15)
        box(picture, left, top, right, top + 5 * unit, wall * 0.7)
        _paint_windows(rng, picture, (left, top, right, ground), wall)
        left = right


def _paint_windows(
    rng: np.random.Generator, picture: np.ndarray, front: tuple[int, int, int, int], wall: np.ndarray
) -> None:
    """A grid of windows on one house front (left, top, right, bottom), in place."""
    left, top, right, bottom = front
    size = uniform(rng, 0.045, 0.07) * picture.shape[1]
    glass = hsv(0.58, uniform(rng, 0.1, 0.4), uniform(rng, 0.2, 0.6))
    frame = max(1.0, size * 0.08)
    step_x, step_y = size * uniform(rng, 1.5, 2), size * uniform(rng, 1.7, 2.2)
    for y in np.arange(top + size * 0.6, bottom - size * 1.4, step_y):
        for x in np.arange(left + size * 0.5, min(right, picture.shape[1]) - size, step_x):
            box(picture, x - frame, y - frame, x + size + frame, y + size * 1.3 + frame, wall * 1.25)
            box(picture, x, y, x + size, y + size * 1.3, glass * uniform(rng, 0.8, 1.25))
            line(picture, (x + size / 2, y), (x + size / 2, y + size * 1.3), frame, wall * 1.2)


def paint_pole(
    rng: np.random.Generator, picture: np.ndarray, foot: tuple[float, float], tall: float, arm: float
) -> None:
    """A grey mast with an arm of the given (signed) length at its top, in place."""
    x, y = foot
    steel = grey(uniform(rng, 0.3, 0.45))
    line(picture, (x, y), (x, y - tall), max(2.0, tall * 0.025), steel)
    line(picture, (x, y - tall * 0.95), (x + arm, y - tall * 0.98), max(1.0, tall * 0.015), steel)
