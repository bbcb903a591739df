"""Bird and cow, each drawn on a `Layer` in its local frame with the feet at the origin."""

import math

import numpy as np

from voc12.sample.layer import Layer
from voc12.sample.paint import any_hue, chance, grey, hsv, mix, pick, smoothstep, uniform

_HORN = np.array([0.9, 0.86, 0.75], np.float32)
_HOOF = np.array([0.15, 0.12, 0.1], np.float32)
_BLACK = grey(0.03)


def bird(rng: np.random.Generator, layer: Layer) -> None:
    """A songbird from the side or an owl from the front."""
    (songbird if chance(rng, 0.78) else _owl)(rng, layer)


def songbird(rng: np.random.Generator, layer: Layer) -> None:
    """A perching bird from the side, with the pattern and colours of its plumage varied."""
    coat = any_hue(rng, (0.3, 0.9), (0.3, 0.85))
    breast = any_hue(rng, (0.3, 0.9), (0.65, 1)) if chance(rng, 0.75) else hsv(0.1, uniform(rng, 0, 0.2), 0.95)
    wing, cap = coat * uniform(rng, 0.55, 0.8), coat * uniform(rng, 0.35, 0.6)
    beak = hsv(uniform(rng, 0.08, 0.13), 0.85, 0.9) if chance(rng, 0.6) else grey(0.2)
    leg, droop = hsv(0.08, 0.5, 0.35), uniform(rng, -0.14, 0.12)
    for x in (-0.02, 0.08):
        layer.line((x, -0.22), (x + 0.01, 0.01), 0.024, leg)
        layer.line((x - 0.025, 0), (x + 0.06, 0), 0.02, leg)

    layer.polygon([(-0.20, -0.30), (-0.52, 0.02 + droop), (-0.60, -0.05 + droop), (-0.28, -0.44)], wing * 0.85)
    tail = layer.drawn()
    for k in range(4):
        start, end = (-0.24 - 0.01 * k, -0.30 - 0.035 * k), (-0.53 - 0.02 * k, 0.02 + droop - 0.02 * k)
        layer.line(start, end, 0.01, wing * (0.45 if k % 2 else 1.35), inside=tail)

    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x, y, lean = 0.34 * np.cos(t), 0.20 * np.sin(t) * (1 + 0.25 * np.cos(t)), -0.62
    outline = np.stack([math.cos(lean) * x - math.sin(lean) * y, -0.38 + math.sin(lean) * x + math.cos(lean) * y], 1)
    layer.polygon(outline, coat)
    layer.ellipse((0.245, -0.66), (0.135, 0.125), coat)
    body = layer.drawn()
    layer.ellipse((0.16, -0.33), (0.17, 0.23), breast, -0.35, inside=body)
    _breast_pattern(rng, layer, breast, body)
    if chance(rng, 0.5):
        layer.ellipse((0.27, -0.76), (0.15, 0.07), cap, -0.2, inside=body)
    if chance(rng, 0.5):
        layer.ellipse((0.29, -0.62), (0.07, 0.05), hsv(0.1, 0.03, 0.97), inside=body)
    if chance(rng, 0.4):
        layer.polygon([(0.17, -0.72), (0.38, -0.70), (0.38, -0.67), (0.18, -0.67)], cap * 0.7, inside=body)
    if chance(rng, 0.3):
        for k in range(3):
            layer.polygon([(0.2 + 0.05 * k, -0.75), (0.12 + 0.05 * k, -0.9 + 0.02 * k), (0.27 + 0.05 * k, -0.76)], cap)
    layer.polygon([(0.35, -0.70), (0.50, -0.645), (0.35, -0.61)], beak)
    layer.line((0.36, -0.65), (0.48, -0.646), 0.008, beak * 0.6, inside=layer.alpha)
    layer.ellipse((0.29, -0.69), (0.028, 0.028), hsv(0.1, 0.05, 0.98))
    layer.ellipse((0.293, -0.69), (0.021, 0.021), _BLACK)
    _folded_wing(rng, layer, wing)


def _breast_pattern(rng: np.random.Generator, layer: Layer, breast: np.ndarray, body: np.ndarray) -> None:
    """Rows of dark dots or streaks on the breast, or just soft down."""
    pattern = pick(rng, ("dots", "streaks", "down"))
    if pattern == "down":
        layer.blend(0.5 * smoothstep(layer.noise(rng, 0.05, 2, (0.6, 1.6)), 0.45, 0.75), breast * 0.6, body)
        return
    dark = breast * uniform(rng, 0.3, 0.55)
    for row in range(6):
        for column in range(5):
            x, y = 0.06 + 0.055 * column + 0.027 * (row % 2), -0.52 + 0.065 * row
            if ((x - 0.17) / 0.13) ** 2 + ((y + 0.35) / 0.2) ** 2 > 1:
                continue
            radii = (0.013, 0.013) if pattern == "dots" else (0.008, 0.026)
            layer.ellipse((x, y), radii, dark, -0.3, inside=body)


def _folded_wing(rng: np.random.Generator, layer: Layer, wing: np.ndarray) -> None:
    """The folded wing: scales of small feathers in front, long quills behind, a bar across."""
    turn = -0.6
    layer.ellipse((-0.10, -0.36), (0.28, 0.12), wing, turn)
    inside = layer.within_ellipse((-0.10, -0.36), (0.28, 0.12), turn)
    cos, sin = math.cos(turn), math.sin(turn)

    def at(along: float, across: float) -> tuple[float, float]:
        """A point on the wing, along from -1 (tip) to 1 (shoulder), across from -1 to 1."""
        x, y = along * 0.28, across * 0.12
        return -0.10 + cos * x - sin * y, -0.36 + sin * x + cos * y

    for k, across in enumerate(np.linspace(-0.9, 0.9, 8)):
        layer.line(at(0.1, across), at(-1.1, across * 0.4), 0.016, wing * (0.55 if k % 2 else 1.3), inside=inside)
    for row, along in enumerate(np.arange(0.05, 1, 0.17)):
        for across in np.arange(-1 + 0.14 * (row % 2), 1, 0.28):
            layer.ellipse(at(along, across), (0.03, 0.022), wing * 0.6, turn, inside=inside)
            layer.ellipse(
                at(along + 0.035, across), (0.027, 0.018), wing * uniform(rng, 1.0, 1.35), turn, inside=inside
            )
    if chance(rng, 0.6):
        layer.line(at(0.1, -1), at(0.0, 1), 0.028, hsv(0.1, uniform(rng, 0, 0.4), 0.95), inside=inside)


def _owl(rng: np.random.Generator, layer: Layer) -> None:
    """An owl from the front, sitting on something: its tail hangs below the feet."""
    coat = hsv(uniform(rng, 0.05, 0.11), uniform(rng, 0.1, 0.65), uniform(rng, 0.4, 0.85))
    pale, dark = mix(coat, np.ones(3, np.float32), 0.55), coat * 0.5
    iris, beak = hsv(uniform(rng, 0.08, 0.15), 0.9, 0.98), hsv(0.1, 0.6, 0.5)
    layer.polygon([(-0.12, -0.15), (0.12, -0.15), (0.09, 0.14), (-0.09, 0.14)], dark)
    layer.ellipse((0, -0.32), (0.25, 0.32), coat)
    layer.ellipse((0, -0.66), (0.23, 0.19), coat)
    for side in (-1, 1):
        layer.polygon([(side * 0.05, -0.78), (side * 0.2, -0.72), (side * 0.21, -0.93)], coat)
    body = layer.drawn()
    layer.ellipse((0, -0.3), (0.17, 0.27), pale, inside=body)
    for row, y in enumerate(np.arange(-0.5, -0.05, 0.06)):
        for x in np.arange(-0.15 + 0.03 * (row % 2), 0.16, 0.06):
            layer.ellipse((x, y), (0.012, 0.02), dark, inside=body)
    for side in (-1, 1):
        layer.ellipse((side * 0.2, -0.33), (0.09, 0.26), coat * 0.75, side * 0.12, inside=body)
        for y in np.arange(-0.52, -0.12, 0.075):
            layer.ellipse((side * 0.2, y), (0.07, 0.018), dark, side * 0.3, inside=body)
            layer.ellipse((side * 0.2, y + 0.03), (0.06, 0.012), pale, side * 0.3, inside=body)
        layer.ellipse((side * 0.1, -0.67), (0.115, 0.115), pale, inside=body)
        for turn in np.linspace(0, 2 * math.pi, 14, endpoint=False):
            dx, dy = math.cos(turn), math.sin(turn)
            start = (side * 0.1 + 0.06 * dx, -0.67 + 0.06 * dy)
            layer.line(start, (side * 0.1 + 0.11 * dx, -0.67 + 0.11 * dy), 0.008, dark, inside=body)
        layer.ellipse((side * 0.1, -0.67), (0.06, 0.06), iris)
        layer.ellipse((side * 0.1, -0.67), (0.035, 0.035), _BLACK)
        layer.ellipse((side * 0.1 + 0.012, -0.685), (0.011, 0.011), hsv(0, 0, 1))
        for toe in (-0.03, 0, 0.03):
            layer.ellipse((side * 0.08 + toe, -0.01), (0.016, 0.035), beak)
    layer.polygon([(-0.03, -0.65), (0.03, -0.65), (0, -0.56)], beak)


def cow(rng: np.random.Generator, layer: Layer) -> None:
    """A cow from the side, head raised or grazing; pied, brown or dark."""
    breed = pick(rng, ("pied", "pied", "brown", "dark"))
    coat = {
        "pied": hsv(0.1, uniform(rng, 0.02, 0.1), uniform(rng, 0.85, 1)),
        "brown": hsv(uniform(rng, 0.04, 0.08), uniform(rng, 0.5, 0.7), uniform(rng, 0.45, 0.65)),
        "dark": hsv(0.08, 0.2, uniform(rng, 0.14, 0.24)),
    }[breed]
    patch = {
        "pied": hsv(0.06, uniform(rng, 0.1, 0.7), uniform(rng, 0.1, 0.4)),
        "brown": hsv(0.09, uniform(rng, 0.1, 0.25), uniform(rng, 0.75, 0.95)),
        "dark": hsv(0.1, 0.05, uniform(rng, 0.8, 0.95)),
    }[breed]
    pink = hsv(0.99, 0.3, 0.88)
    step = [uniform(rng, -0.05, 0.05) for _ in range(4)]
    for x, shift in ((-0.25, step[0]), (0.20, step[1])):
        layer.line((x, -0.3), (x + shift, 0), 0.085, coat * 0.72, 0.055)
        layer.line((x + shift * 0.9, -0.035), (x + shift, 0), 0.06, _HOOF)
    layer.line((-0.40, -0.52), (-0.46, -0.18), 0.025, coat * 0.8)
    layer.ellipse((-0.46, -0.16), (0.025, 0.06), coat * 0.6 if breed == "dark" else patch)
    layer.ellipse((-0.12, -0.235), (0.07, 0.05), pink)
    layer.line((-0.13, -0.2), (-0.135, -0.165), 0.015, pink)
    back = [
        (-0.42, -0.46),
        (-0.38, -0.545),
        (-0.2, -0.55),
        (0.05, -0.53),
        (0.22, -0.56),
        (0.30, -0.54),
        (0.33, -0.42),
    ]
    belly = [(0.30, -0.30), (0.2, -0.235), (0, -0.215), (-0.15, -0.23), (-0.32, -0.25), (-0.41, -0.34)]
    layer.polygon(back + belly, coat)
    for x, shift in ((-0.34, step[2]), (0.24, step[3])):
        layer.line((x, -0.36), (x + shift * 0.3, -0.18), 0.13, coat, 0.075)
        layer.line((x + shift * 0.3, -0.2), (x + shift, 0), 0.07, coat, 0.055)
        layer.line((x + shift * 0.93, -0.035), (x + shift, 0), 0.062, _HOOF)

    head_x, head_y = 0.455, -0.58 + (uniform(rng, -0.14, 0.24) if chance(rng, 0.7) else 0.34)
    neck = [(0.36, head_y * 0.45 - 0.19), (0.25, -0.27)]
    layer.polygon([(0.2, -0.55), (0.30, -0.54), (head_x, head_y - 0.07), (head_x + 0.03, head_y + 0.06), *neck], coat)
    hide = layer.drawn()
    if breed != "dark" or chance(rng, 0.4):
        edge = uniform(rng, 0.5, 0.58)
        layer.blend(smoothstep(layer.noise(rng, 0.16, 2), edge, edge + 0.02), patch, hide)
    layer.blend(0.35 * smoothstep(layer.noise(rng, 0.03, 2, (1.5, 0.7)), 0.4, 0.8), coat * 0.6, hide)
    _cow_head(rng, layer, (head_x, head_y), coat, patch if breed == "pied" else coat, pink)


def _cow_head(
    rng: np.random.Generator,
    layer: Layer,
    at: tuple[float, float],
    coat: np.ndarray,
    face: np.ndarray,
    pink: np.ndarray,
) -> None:
    """Ears, horns, face and muzzle around the point `at`."""
    x, y = at
    face = face if chance(rng, 0.6) else coat
    layer.ellipse((x - 0.085, y - 0.06), (0.06, 0.026), coat * 0.85, 0.3)
    layer.ellipse((x + 0.055, y - 0.085), (0.05, 0.024), coat * 0.8, -0.5)
    for side in (-0.03, 0.035):
        layer.polygon(
            [(x + side - 0.02, y - 0.06), (x + side + 0.02, y - 0.06), (x + side * 2.2 + 0.01, y - 0.16)],
            _HORN,
        )
    layer.polygon(
        [
            (x - 0.075, y - 0.085),
            (x + 0.05, y - 0.09),
            (x + 0.085, y),
            (x + 0.105, y + 0.1),
            (x + 0.03, y + 0.14),
            (x - 0.02, y + 0.06),
        ],
        face,
    )
    if chance(rng, 0.4):
        layer.polygon(
            [(x - 0.01, y - 0.085), (x + 0.03, y - 0.088), (x + 0.065, y + 0.05), (x + 0.03, y + 0.05)], _HORN
        )
    layer.ellipse((x + 0.07, y + 0.105), (0.052, 0.042), pink * 0.95, 0.5)
    layer.ellipse((x + 0.092, y + 0.1), (0.009, 0.009), _HOOF)
    layer.ellipse((x, y - 0.015), (0.016, 0.016), _BLACK)
