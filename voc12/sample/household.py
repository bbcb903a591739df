"""Bottle and sofa, each drawn on a `Layer` in its local frame with the foot at the origin."""

import math

import numpy as np

from voc12.sample.layer import Layer
from voc12.sample.paint import WHITE, any_hue, chance, grey, hsv, mix, pick, smoothstep, uniform


def bottle(rng: np.random.Generator, layer: Layer) -> None:
    """A glass bottle of varied shape with label, liquid, ribs and reflections; height 1."""
    glass = pick(
        rng,
        (
            hsv(uniform(rng, 0.3, 0.4), uniform(rng, 0.5, 0.9), uniform(rng, 0.2, 0.55)),
            hsv(uniform(rng, 0.05, 0.09), uniform(rng, 0.6, 0.9), uniform(rng, 0.25, 0.55)),
            hsv(uniform(rng, 0.5, 0.6), uniform(rng, 0.2, 0.6), uniform(rng, 0.5, 0.85)),
            any_hue(rng),
        ),
    )
    half, shoulder, neck = uniform(rng, 0.115, 0.18), uniform(rng, 0.45, 0.64), uniform(rng, 0.04, 0.055)
    slope = uniform(rng, 0.1, 0.2)
    profile = [(half * 0.8, 0.015), (half, -0.01), (half, -shoulder), (half * 0.93, -shoulder - slope * 0.35)]
    profile += [(neck * 1.25, -shoulder - slope), (neck, -shoulder - slope - 0.05), (neck, -0.97)]
    layer.polygon([(-x, y) for x, y in profile] + profile[::-1], glass)
    body = layer.drawn()
    _fill_glass(rng, layer, glass, half, shoulder, body)

    cap = any_hue(rng) if chance(rng, 0.6) else hsv(0.1, 0.5, 0.8)
    layer.box(-neck * 1.25, -1.0, neck * 1.25, -0.91, cap, 0.012)
    stopper = layer.drawn()
    for x in np.linspace(-neck, neck, 6):
        layer.line((x, -0.995), (x, -0.915), 0.006, cap * 0.7, inside=stopper)
    layer.box(-neck, -0.90, neck, -0.83, cap * 0.8, inside=body)
    layer.box(-neck * 1.15, -0.875, neck * 1.15, -0.86, cap * 1.1)
    if chance(rng, 0.88):
        _label(rng, layer, half, shoulder, body)

    bright = np.clip(glass * 1.5 + 0.3, 0, 1)
    layer.box(-half * 0.76, -shoulder * 0.99, -half * 0.54, -shoulder * 0.1, mix(glass, bright, 0.45), inside=body)
    layer.box(-half * 0.72, -shoulder * 0.98, -half * 0.6, -shoulder * 0.88, WHITE, inside=body)
    layer.box(half * 0.72, -shoulder * 0.96, half * 0.84, -0.05, mix(glass, bright, 0.6), inside=body)
    layer.box(-neck * 0.65, -0.83, -neck * 0.25, -shoulder - slope * 0.9, bright, inside=body)
    layer.ellipse((0, -0.012), (half * 0.7, 0.012), bright * 0.8, inside=body)


def _fill_glass(
    rng: np.random.Generator, layer: Layer, glass: np.ndarray, half: float, shoulder: float, body: np.ndarray
) -> None:
    """Streaky glass, the liquid's level and, on some bottles, ribs or an embossed pattern."""
    layer.blend(0.6 * smoothstep(layer.noise(rng, 0.05, 2, (0.5, 4)), 0.45, 0.8), glass * 0.5, body)
    level = -uniform(rng, 0.5, 0.85)
    layer.box(-half, -0.97, half, level, mix(glass, WHITE, 0.3), inside=body)
    layer.ellipse((0, level), (half, 0.012), glass * 0.55, inside=body)
    pattern = pick(rng, ("none", "ribs", "flutes", "diamonds"))
    bright, dark = np.clip(glass * 1.35 + 0.1, 0, 1), glass * 0.6
    if pattern == "ribs":
        for y in np.arange(-shoulder, -0.02, 0.045):
            layer.box(-half, y, half, y + 0.012, dark, inside=body)
            layer.box(-half, y + 0.012, half, y + 0.022, bright, inside=body)
    elif pattern == "flutes":
        for x in np.linspace(-0.8, 0.8, 7) * half:
            layer.box(x, -shoulder, x + half * 0.08, -0.02, dark, inside=body)
            layer.box(x + half * 0.08, -shoulder, x + half * 0.14, -0.02, bright, inside=body)
    elif pattern == "diamonds":
        for y in np.arange(-shoulder - 0.3, 0.05, 0.07):
            layer.line((-half, y), (half, y + 2 * half), 0.01, dark, inside=body)
            layer.line((-half, y + 2 * half), (half, y), 0.01, bright, inside=body)


def _label(rng: np.random.Generator, layer: Layer, half: float, shoulder: float, body: np.ndarray) -> None:
    """A paper label: stripe, badge and a few lines of writing."""
    paper, ink, accent = (
        hsv(uniform(rng, 0, 1), uniform(rng, 0, 0.35), uniform(rng, 0.8, 1)),
        grey(0.2),
        any_hue(rng),
    )
    top, bottom = -shoulder * uniform(rng, 0.82, 0.92), -shoulder * uniform(rng, 0.2, 0.36)
    tall = bottom - top
    layer.box(-half, top, half, bottom, paper, inside=body)
    for y in (top, bottom - 0.06 * tall):
        layer.box(-half, y, half, y + 0.06 * tall, accent, inside=body)
    badge = (0.0, top + 0.42 * tall)
    kind = pick(rng, ("disc", "star", "checks"))
    if kind == "disc":
        layer.ellipse(badge, (half * 0.42, half * 0.42), accent * 0.8, inside=body)
        layer.ellipse(badge, (half * 0.25, half * 0.25), paper, inside=body)
    elif kind == "star":
        turns = np.arange(10) * math.pi / 5
        reach = np.where(np.arange(10) % 2, 0.2, 0.5) * half
        layer.polygon(np.stack([reach * np.sin(turns), badge[1] - reach * np.cos(turns)], 1), accent, inside=body)
    else:
        size = half * 0.25
        for row in range(2):
            for column in range(-4, 4):
                if (row + column) % 2:
                    x, y = column * size, badge[1] + (row - 1) * size
                    layer.box(x, y, x + size, y + size, accent, inside=body)
    for k in range(3):
        y = top + (0.7 + 0.08 * k) * tall
        layer.box(-half * 0.6, y, half * uniform(rng, 0.2, 0.6), y + 0.035 * tall, ink, inside=body)


def sofa(rng: np.random.Generator, layer: Layer) -> None:
    """A sofa of two or three seats, plain, buttoned, striped or dotted, some with cushions; width 1."""
    cover, seats = any_hue(rng, (0.25, 0.85), (0.35, 0.8)), int(rng.integers(2, 4))
    back, arm, leg = uniform(rng, 0.38, 0.52), uniform(rng, 0.085, 0.12), hsv(0.07, 0.5, 0.25)
    for x in (-0.45, -0.38, 0.38, 0.45):
        layer.line((x, -0.1), (x * 1.02, 0), 0.035, leg, 0.025)
    layer.box(-0.47, -back, 0.47, -0.12, cover * 0.85, 0.06)
    wide = (1 - 2 * arm) / seats
    lefts = [-0.5 + arm + i * wide for i in range(seats)]
    for left in lefts:
        layer.box(left + 0.004, -back * 0.97, left + wide - 0.004, -0.2, cover * 0.97, 0.035)
    _fabric(rng, layer, cover, back, lefts, wide)
    for left in lefts:
        layer.box(left + 0.003, -0.265, left + wide - 0.003, -0.15, np.clip(cover * 1.12, 0, 1), 0.03)
        layer.line((left + 0.03, -0.17), (left + wide - 0.03, -0.17), 0.008, cover * 0.75, inside=layer.alpha)
    layer.box(-0.5 + arm * 0.5, -0.16, 0.5 - arm * 0.5, -0.055, cover * 0.75, 0.015)
    height = uniform(rng, 0.29, 0.37)
    for side in (-1, 1):
        inner, outer = sorted((side * 0.5, side * (0.5 - arm)))
        layer.box(inner, -height, outer, -0.05, cover * 0.92, 0.04)
        middle = ((inner + outer) / 2, -height + 0.03)
        layer.ellipse(middle, (arm * 0.55, 0.05), np.clip(cover * 1.08, 0, 1))
        layer.ellipse(middle, (arm * 0.3, 0.026), cover * 0.7)
    layer.blend(0.3 * smoothstep(layer.noise(rng, 0.025, 2), 0.4, 0.8), cover * 0.55, layer.alpha)
    for _ in range(int(rng.integers(0, 3))):
        _cushion(rng, layer)


def _fabric(
    rng: np.random.Generator, layer: Layer, cover: np.ndarray, back: float, lefts: list[float], wide: float
) -> None:
    """The pattern on the back rest."""
    pattern = pick(rng, ("plain", "buttons", "stripes", "dots"))
    rest, accent = layer.drawn(), mix(cover, pick(rng, (WHITE, grey(0.1))), 0.4)
    if pattern == "buttons":
        for left in lefts:
            for across, down in ((0.3, 0.72), (0.7, 0.72), (0.5, 0.84)):
                layer.ellipse((left + across * wide, -back * down), (0.012, 0.012), cover * 0.5)
    elif pattern == "stripes":
        for x in np.arange(-0.46, 0.46, 0.045):
            layer.box(x, -back, x + 0.016, -0.2, accent, inside=rest)
    elif pattern == "dots":
        for row, y in enumerate(np.arange(-back + 0.03, -0.2, 0.045)):
            for x in np.arange(-0.45 + 0.025 * (row % 2), 0.45, 0.05):
                layer.ellipse((x, y), (0.011, 0.011), accent, inside=rest)


def _cushion(rng: np.random.Generator, layer: Layer) -> None:
    """A square cushion leaning on the back rest."""
    colour, x, turn = any_hue(rng), uniform(rng, -0.3, 0.3), uniform(rng, -0.3, 0.3)
    cos, sin, half = math.cos(turn), math.sin(turn), 0.08
    corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    corners = [(x + cos * a - sin * b, -0.32 + sin * a + cos * b) for a, b in corners]
    layer.polygon(corners, colour)
    for start, end in ((0, 2), (1, 3)):
        layer.line(corners[start], corners[end], 0.012, colour * 0.7, inside=layer.alpha)
