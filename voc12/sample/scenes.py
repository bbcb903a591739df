"""Draws a plan: one picture with its exact instance masks."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from voc12.sample.layer import Layer
from voc12.sample.paint import SUPERSAMPLE, chance, ellipse, mix, noise, uniform
from voc12.sample.plans import BACKGROUNDS, KINDS, Kind, Plan
from voc12.sample.terrain import Stage, reference
from voc12.sample.vehicles import train_front

_SMALLEST_SHARE = 0.005
_VISIBLE_SHARE = 0.6


@dataclass(frozen=True)
class Scene:
    """A finished picture.

    picture: uint8 (height, width, 3), RGB.
    instances: uint8 (height, width), 0 for background, n for object n (from 1) of the plan.
    plan: what it shows.
    """

    picture: np.ndarray
    instances: np.ndarray
    plan: Plan


@dataclass(frozen=True)
class _Placed:
    """An object on its layer; `foot` (in pixels) is where it touches the ground."""

    layer: Layer
    kind: Kind
    foot: tuple[float, float]
    length: float


def draw_scene(rng: np.random.Generator, plan: Plan, height: int, width: int) -> Scene | None:
    """Draw a plan; None if an object came out too small, too much hidden or in pieces (then draw again)."""
    shape = height * SUPERSAMPLE, width * SUPERSAMPLE
    stage = BACKGROUNDS[plan.background](rng, *shape)
    picture = np.clip(np.ascontiguousarray(stage.picture, np.float32), 0, 1)
    owner = np.zeros(shape, np.uint8)
    sun = uniform(rng, -0.8, 0.8), -1.0
    sides = rng.permutation(2)
    areas = []
    for number, name in enumerate(plan.objects):
        twin = (number, int(sides[number])) if plan.objects.count(name) == 2 else None
        placed = _place(rng, stage, plan, name, shape, sun, twin)
        visible = placed.layer.alpha > 0
        if placed.kind.shadow is not None:
            picture = _cast_shadow(rng, picture, placed)
        if name == "boat" and plan.background == "water":
            _mirror_in_water(rng, picture, placed)
        picture[visible] = placed.layer.rgb[visible]
        owner[visible] = number + 1
        areas.append(np.count_nonzero(visible))
    if any(np.count_nonzero(owner == n + 1) < _VISIBLE_SHARE * area for n, area in enumerate(areas)):
        return None
    instances = _shrink_owners(owner, len(areas))
    if not all(_is_whole(instances == n + 1) for n in range(len(areas))):
        return None
    return Scene(_photograph(rng, picture), instances, plan)


def _place(
    rng: np.random.Generator,
    stage: Stage,
    plan: Plan,
    name: str,
    shape: tuple[int, int],
    sun: tuple[float, float],
    twin: tuple[int, int] | None,
) -> _Placed:
    """Draw one object of the plan on a layer of its own.

    `twin` is None for a single object of its class, else (0 for the farther or 1 for the nearer one, 0 for
    left or 1 for right).
    """
    height, width = shape
    kind, flip = KINDS[name], chance(rng, 0.5)
    if name == "train" and stage.track is not None:
        foot, length = stage.track.foot, stage.track.gauge
        layer = Layer(shape, foot, length)
        train_front(rng, layer, 1 if stage.track.vanishing_x > foot[0] else -1)
    else:
        guest = kind.guest if len(plan.objects) > 1 and kind.background != plan.background else None
        length = reference(height, width) * uniform(rng, *(guest or kind).size)
        nearness, between = uniform(rng, 0, 1), (0.2, 0.8)
        if twin is not None:
            nearer, right = twin
            nearness = uniform(rng, 0.6, 1) if nearer else uniform(rng, 0, 0.45)
            length *= uniform(rng, 0.65, 0.8) * (1 if nearer else 0.85)
            between = (0.64, 0.92) if right else (0.08, 0.36)
        length = min(length, 0.94 * height / kind.tall)
        foot = _find_foot(rng, stage, kind, name, shape, length, nearness, between)
        tilt = uniform(rng, -kind.tilt, kind.tilt)
        layer = Layer(shape, foot, length, tilt, flip, uniform(rng, -0.08, 0.08))
        (guest or kind).draw(rng, layer)
    layer.finish(rng, sun, uniform(rng, 0.05, 0.16))
    return _Placed(layer, kind, foot, length)


def _find_foot(
    rng: np.random.Generator,
    stage: Stage,
    kind: Kind,
    name: str,
    shape: tuple[int, int],
    length: float,
    nearness: float,
    between: tuple[float, float],
) -> tuple[float, float]:
    """Where the origin of an object goes, in pixels; `between` are its limits in parts of the width."""
    height, width = shape
    wide = length * (0.35 if name == "bottle" else 1)
    # At most a quarter of the object may lie beyond the left or right edge.
    x = float(np.clip(uniform(rng, *between) * width, wide * 0.25, width - wide * 0.25))
    if name == "aeroplane":
        lowest = 0.4 * height if stage.sky is None else stage.sky
        half = 0.5 * kind.tall * length
        return x, uniform(rng, 0.9 * half, max(lowest - 0.7 * half, 0.9 * half + 1))
    y = mix(*stage.feet, nearness) if stage.perch is None else stage.perch(x)
    return x, max(y, kind.tall * length * 0.92)


def _cast_shadow(rng: np.random.Generator, picture: np.ndarray, placed: _Placed) -> np.ndarray:
    """The picture with a soft shadow on the ground below an object."""
    (x, y), length = placed.foot, placed.length
    half = placed.kind.shadow * length * 1.05
    shadow = np.zeros(picture.shape[:2], np.float32)
    middle = (x + uniform(rng, -0.05, 0.05) * length, y)
    ellipse(shadow, middle, (half, 0.05 * length + 2), np.float32(1))
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(2.0, 0.02 * length))
    return picture * (1 - uniform(rng, 0.35, 0.6) * shadow[..., None])


def _mirror_in_water(rng: np.random.Generator, picture: np.ndarray, placed: _Placed) -> None:
    """Paint the wavering reflection of a boat below its water line, in place."""
    height, width = picture.shape[:2]
    line = int(placed.foot[1])
    rows = min(height - line, line)
    if rows < 5:
        return
    image = cv2.GaussianBlur(placed.layer.rgb[line - rows : line][::-1], (0, 0), 2)
    weight = cv2.GaussianBlur(placed.layer.alpha[line - rows : line][::-1].astype(np.float32), (0, 0), 3)
    weight *= noise(rng, rows, width, placed.length * 0.03, 2, (3, 0.6)) > 0.42
    weight *= np.linspace(0.5, 0.05, rows, dtype=np.float32)[:, None]
    picture[line : line + rows] = mix(picture[line : line + rows], image * 0.85, weight[..., None])


def _shrink_owners(owner: np.ndarray, count: int) -> np.ndarray:
    """Give each final pixel to the owner that covers most of it; objects win ties against the background.

    owner: uint8 (H * SUPERSAMPLE, W * SUPERSAMPLE) with values 0..count; returns uint8 (H, W).
    """
    height, width = (side // SUPERSAMPLE for side in owner.shape)
    blocks = owner.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE)
    instances = np.zeros((height, width), np.uint8)
    most = (blocks == 0).sum((1, 3))
    for n in range(1, count + 1):
        covered = (blocks == n).sum((1, 3))
        wins = (covered > 0) & (covered >= most)
        instances[wins] = n
        most = np.maximum(most, covered)
    return instances


def _is_whole(mask: np.ndarray) -> bool:
    """Whether an instance is large enough and in one piece (touching at a corner is enough)."""
    pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    return pieces == 1 and np.count_nonzero(mask) >= _SMALLEST_SHARE * mask.size


def _photograph(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Light, exposure, vignette, blur and sensor noise.

    Takes float32 (H * SUPERSAMPLE, W * SUPERSAMPLE, 3) in [0, 1], returns uint8 (H, W, 3).
    """
    height, width = (side // SUPERSAMPLE for side in picture.shape[:2])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    warmth = uniform(rng, -0.1, 0.1)
    gain = np.array([1 + warmth, 1 + uniform(rng, -0.04, 0.04), 1 - warmth], np.float32) * uniform(rng, 0.74, 1.15)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    angle = uniform(rng, 0, 2 * math.pi)
    light = 1 + uniform(rng, 0, 0.25) * (x * math.cos(angle) + y * math.sin(angle))
    light -= uniform(rng, 0, 0.35) * (x**2 + y**2)
    picture = np.clip(picture * gain * light[..., None], 0, 1) ** uniform(rng, 0.8, 1.25)
    if chance(rng, 0.3):
        picture = cv2.GaussianBlur(picture, (0, 0), uniform(rng, 0.3, 0.8))
    picture = picture + rng.normal(0, uniform(rng, 0.004, 0.02), picture.shape).astype(np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
