"""Aeroplane, boat, car and train, each drawn on a `Layer` in its local frame."""

import math

import numpy as np

from voc12.sample.layer import Layer
from voc12.sample.paint import WHITE, any_hue, chance, grey, hsv, mix, pick, uniform

_IRON = np.array([0.14, 0.14, 0.15], np.float32)
_LAMP = np.array([1, 0.98, 0.78], np.float32)


def glass(rng: np.random.Generator) -> np.ndarray:
    """The dark blue of window panes."""
    return hsv(uniform(rng, 0.54, 0.62), uniform(rng, 0.15, 0.45), uniform(rng, 0.2, 0.45))


def aeroplane(rng: np.random.Generator, layer: Layer) -> None:
    """An airliner or a small propeller plane from the side; the origin is the middle of the fuselage."""
    (_airliner if chance(rng, 0.75) else _propeller_plane)(rng, layer)


def _airliner(rng: np.random.Generator, layer: Layer) -> None:
    """An airliner: far wing and tail, fuselage with windows, engine, near wing."""
    hull, paint, pane = (
        hsv(uniform(rng, 0, 1), uniform(rng, 0, 0.14), uniform(rng, 0.75, 1)),
        any_hue(rng),
        glass(rng),
    )
    wing, half = hull * uniform(rng, 0.62, 0.8), uniform(rng, 0.055, 0.078)
    reach = uniform(rng, 0.85, 1.1)
    layer.polygon([(-0.02, -0.01), (0.10, -0.01), (-0.12, -0.26 * reach), (-0.20, -0.26 * reach)], wing * 0.85)
    layer.polygon([(-0.40, -0.02), (-0.30, -0.02), (-0.46, -0.13), (-0.52, -0.13)], wing * 0.85)
    layer.polygon([(-0.50, -0.03), (-0.31, -half * 0.8), (-0.44, -0.27 * reach), (-0.53, -0.27 * reach)], paint)

    x = np.linspace(-0.52, 0.5, 40)
    nose_above = np.sqrt(np.clip(1 - ((x - 0.33) / 0.17) ** 2, 0, 1))
    nose_below = np.sqrt(np.clip(1 - ((x - 0.30) / 0.20) ** 2, 0, 1))
    above = -half * np.where(x > 0.33, nose_above, np.where(x < -0.25, 1 - 0.15 * (-0.25 - x) / 0.27, 1))
    below = half * np.where(x > 0.30, nose_below, np.where(x < -0.2, 1 - 1.65 * (-0.2 - x) / 0.32, 1))
    layer.polygon(np.concatenate([np.stack([x, above], 1), np.stack([x, below], 1)[::-1]]), hull)
    body = layer.drawn()
    if chance(rng, 0.6):
        layer.box(-0.6, half * 0.25, 0.6, half * 0.55, paint, inside=body)
    else:
        layer.box(-0.6, half * 0.35, 0.6, half, paint * 0.9, inside=body)
        layer.box(-0.6, -half * 0.62, 0.36, -half * 0.55, paint, inside=body)
    for left in np.arange(-0.34, 0.34, 0.047):
        layer.box(left, -half * 0.42, left + 0.022, -half * 0.02, pane, 0.006)
    for door in (-0.37, 0.345):
        layer.box(door, -half * 0.5, door + 0.018, half * 0.2, hull * 0.7, 0.004)
    layer.polygon([(0.385, -half * 0.62), (0.435, -half * 0.35), (0.46, -half * 0.1), (0.40, -half * 0.1)], pane)
    layer.ellipse((0.13, 0.115), (0.062, 0.032), paint * 0.8)
    layer.ellipse((0.185, 0.115), (0.012, 0.027), pane * 0.6)
    tip = 0.25 * reach
    layer.polygon([(0.03, 0.03), (0.17, 0.03), (-0.08, tip), (-0.17, tip)], wing)
    layer.line((0.06, 0.045), (-0.15, tip - 0.01), 0.008, wing * 0.8)
    layer.polygon([(-0.13, tip - 0.02), (-0.08, tip), (-0.17, tip)], paint)
    layer.polygon([(-0.42, 0), (-0.31, 0.01), (-0.46, 0.10), (-0.53, 0.10)], wing)


def _propeller_plane(rng: np.random.Generator, layer: Layer) -> None:
    """A low-winged plane with one propeller and a fixed gear."""
    hull, paint, pane = any_hue(rng, (0, 0.6), (0.7, 1)), any_hue(rng), glass(rng)
    wing = paint * uniform(rng, 0.75, 1)
    layer.polygon([(0.0, -0.02), (0.15, -0.02), (0.07, -0.25), (-0.02, -0.25)], wing * 0.7)
    layer.polygon([(-0.42, -0.04), (-0.34, -0.04), (-0.40, -0.14), (-0.45, -0.14)], wing * 0.7)
    layer.polygon([(-0.5, -0.03), (-0.32, -0.06), (-0.43, -0.23), (-0.5, -0.24)], paint)
    layer.ellipse((0.06, -0.09), (0.14, 0.085), pane)
    canopy = layer.drawn()
    for x in (-0.01, 0.08):
        layer.line((x, -0.2), (x + 0.015, -0.08), 0.012, hull, inside=canopy)
    for foot, radius in (((0.02, 0.17), 0.04), ((0.28, 0.16), 0.032)):
        layer.line((foot[0] + 0.02, 0.05), foot, 0.016, _IRON)
        layer.ellipse(foot, (radius, radius), _IRON)
        layer.ellipse(foot, (radius * 0.4, radius * 0.4), grey(0.6))
    back = [(-0.51, -0.06), (-0.15, -0.085), (0.2, -0.085), (0.38, -0.06), (0.42, 0)]
    layer.polygon([*back, (0.38, 0.06), (0.2, 0.085), (-0.05, 0.085), (-0.51, -0.015)], hull)
    body = layer.drawn()
    layer.polygon([(-0.51, -0.045), (0.45, -0.015), (0.45, 0.03), (-0.51, -0.025)], paint, inside=body)
    layer.polygon([(-0.02, 0.03), (0.16, 0.03), (0.03, 0.26), (-0.09, 0.26)], wing)
    layer.polygon([(-0.076, 0.225), (0.05, 0.225), (0.03, 0.26), (-0.09, 0.26)], WHITE)
    layer.polygon([(-0.43, -0.03), (-0.34, -0.03), (-0.41, 0.07), (-0.47, 0.07)], wing)
    layer.polygon([(0.38, -0.045), (0.46, 0), (0.38, 0.045)], paint * 0.7)
    layer.line((0.44, -0.16), (0.44, 0.16), 0.022, _IRON)


def boat(rng: np.random.Generator, layer: Layer) -> None:
    """A sailing boat, a cabin boat or a rowing boat; the origin is on the water line."""
    kind = uniform(rng, 0, 1)
    (_sailing_boat if kind < 0.5 else _cabin_boat if kind < 0.82 else _rowing_boat)(rng, layer)


def _canvas(rng: np.random.Generator) -> np.ndarray:
    """The colour of a sail: off-white or dyed."""
    return hsv(0.12, 0.04, 0.95) if chance(rng, 0.6) else any_hue(rng, (0.3, 0.8), (0.7, 1))


def _sailing_boat(rng: np.random.Generator, layer: Layer) -> None:
    """A sloop with main sail, jib and pennant."""
    paint, timber = any_hue(rng), hsv(0.07, 0.5, 0.35)
    tall, mast = uniform(rng, 0.85, 1.15), uniform(rng, -0.02, 0.08)
    main, jib = _canvas(rng), _canvas(rng) * 0.93
    layer.line((mast, -0.1), (mast, -tall), 0.022, timber)
    leech = (mast - 0.2, -tall * 0.55)
    layer.polygon([(mast - 0.01, -0.17), (mast - 0.01, -tall * 0.96), leech, (mast - 0.40, -0.19)], main)
    sail = layer.drawn()
    for k in range(1, 5):
        y = -0.17 - tall * 0.17 * k
        layer.line((mast - 0.45, y), (mast, y + 0.03), 0.008, main * 0.78, inside=sail)
    if chance(rng, 0.4):
        layer.ellipse((mast - 0.12, -tall * 0.5), (0.05, 0.05), any_hue(rng), inside=sail)
    layer.polygon(
        [(mast + 0.01, -0.14), (mast + 0.02, -tall * 0.9), (mast + 0.18, -tall * 0.5), (mast + 0.42, -0.15)],
        jib,
    )
    layer.line((mast - 0.43, -0.17), (mast, -0.17), 0.022, timber)
    layer.polygon([(-0.2, -0.13), (-0.17, -0.2), (0.12, -0.2), (0.2, -0.13)], _canvas(rng) * 0.9)
    _hull(
        layer,
        [(-0.46, -0.14), (0.50, -0.15), (0.40, -0.03), (0.33, 0.02), (-0.34, 0.02), (-0.42, -0.04)],
        paint,
        rim=[(-0.46, -0.14), (0.50, -0.15), (0.485, -0.115), (-0.455, -0.105)],
    )
    layer.polygon([(mast, -tall), (mast, -tall + 0.06), (mast - 0.1, -tall + 0.03)], any_hue(rng))


def _cabin_boat(rng: np.random.Generator, layer: Layer) -> None:
    """A motor boat with wheelhouse, funnel, mast and railing."""
    paint, pane, timber = any_hue(rng), glass(rng), hsv(0.07, 0.5, 0.35)
    cabin = hsv(0.12, 0.05, 0.95) if chance(rng, 0.6) else any_hue(rng, (0.1, 0.5), (0.7, 1))
    layer.box(-0.31, -0.62, -0.23, -0.40, paint * 0.8)
    layer.box(-0.31, -0.62, -0.23, -0.58, timber * 0.5)
    layer.box(-0.30, -0.40, 0.12, -0.13, cabin, 0.02)
    layer.box(-0.20, -0.56, 0.08, -0.38, cabin * 0.95, 0.02)
    layer.box(-0.34, -0.42, 0.16, -0.39, cabin * 0.75)
    layer.box(-0.23, -0.585, 0.11, -0.555, paint)
    for left in (-0.26, -0.14, -0.02):
        layer.box(left, -0.35, left + 0.09, -0.25, pane, 0.015)
    for left, right in ((-0.16, -0.06), (-0.03, 0.06)):
        layer.box(left, -0.53, right, -0.43, pane, 0.01)
    layer.line((0.02, -0.56), (0.02, uniform(rng, -0.9, -0.75)), 0.014, timber)
    layer.line((0.2, -0.24), (0.5, -0.29), 0.012, WHITE * 0.9)
    for x in (0.22, 0.3, 0.38, 0.46):
        layer.line((x, -0.13), (x, -0.27), 0.010, WHITE * 0.9)
    outline = [(-0.46, -0.18), (0.2, -0.17), (0.54, -0.24), (0.46, -0.08), (0.38, 0.03), (-0.40, 0.03)]
    rim = [(-0.46, -0.18), (0.2, -0.17), (0.54, -0.24), (0.525, -0.2), (0.2, -0.13), (-0.455, -0.14)]
    _hull(layer, outline, paint, rim)
    layer.polygon([(-0.42, -0.02), (0.42, -0.03), (0.38, 0.03), (-0.40, 0.03)], paint * 0.55)
    for x in (-0.3, -0.1, 0.1):
        layer.ellipse((x, -0.075), (0.028, 0.028), WHITE * 0.95)
        layer.ellipse((x, -0.075), (0.018, 0.018), pane * 0.7)


def _rowing_boat(rng: np.random.Generator, layer: Layer) -> None:
    """An open boat with thwarts and an oar."""
    paint, timber = any_hue(rng, (0.35, 0.8), (0.35, 0.8)), hsv(0.08, 0.5, uniform(rng, 0.4, 0.6))
    layer.polygon([(-0.48, -0.22), (0.52, -0.26), (0.4, -0.17), (-0.42, -0.15)], timber * 0.55)
    for x in (-0.25, 0.05, 0.28):
        layer.box(x - 0.05, -0.215, x + 0.05, -0.16, timber)
    layer.line((-0.05, -0.24), (-0.42, 0.05), 0.022, timber * 1.2)
    _hull(
        layer,
        [
            (-0.5, -0.23),
            (-0.3, -0.165),
            (0.2, -0.165),
            (0.55, -0.28),
            (0.42, -0.05),
            (0.3, 0.03),
            (-0.36, 0.03),
        ],
        paint,
        rim=[
            (-0.5, -0.23),
            (-0.3, -0.165),
            (0.2, -0.165),
            (0.55, -0.28),
            (0.53, -0.23),
            (0.2, -0.125),
            (-0.48, -0.18),
        ],
    )
    layer.line((-0.05, -0.24), (-0.2, -0.11), 0.022, timber * 1.2)


def _hull(layer: Layer, outline: list, paint: np.ndarray, rim: list) -> None:
    """A boat's hull with planks and a bright rim."""
    layer.polygon(outline, paint)
    hull = np.array(outline)
    body = layer.drawn()
    for y in np.linspace(hull[:, 1].max(), hull[:, 1].min(), 5)[1:-2]:
        layer.line((hull[:, 0].min(), y), (hull[:, 0].max(), y), 0.008, paint * 0.75, inside=body)
    layer.polygon(rim, hsv(0.12, 0.05, 0.95))


def car(rng: np.random.Generator, layer: Layer) -> None:
    """A hatchback, a saloon, a van or a pickup from the side; the origin is on the road."""
    body = pick(rng, ("hatchback", "saloon", "saloon", "van", "pickup"))
    paint = any_hue(rng, (0.5, 0.95), (0.4, 0.95)) if chance(rng, 0.75) else grey(uniform(rng, 0.15, 0.95))
    pane, rim = glass(rng), np.array([0.75, 0.76, 0.78], np.float32) * uniform(rng, 0.8, 1.1)
    wheel, waist = uniform(rng, 0.085, 0.10), uniform(rng, 0.20, 0.25)
    roof = waist + (uniform(rng, 0.18, 0.22) if body == "van" else uniform(rng, 0.14, 0.18))
    rear = {"hatchback": -0.49, "saloon": -0.32, "van": -0.52, "pickup": -0.12}[body]

    front = 0.3 if body == "van" else 0.24
    layer.polygon(
        [(rear + 0.03, -waist + 0.02), (rear + 0.10, -roof), (front - 0.18, -roof), (front + 0.04, -waist)],
        paint,
    )
    layer.polygon(
        [
            (-0.5, -0.08),
            (-0.5, -waist * 0.9),
            (-0.47, -waist),
            (-0.35, -waist * 1.02),
            (front, -waist * 0.98),
            (0.42, -waist * 0.82),
            (0.5, -waist * 0.62),
            (0.505, -0.09),
            (0.48, -0.055),
            (-0.48, -0.055),
        ],
        paint,
    )
    top, sill = -roof * 0.94, -waist * 1.03
    windscreen = [(front - 0.295, sill), (front - 0.295, top), (front - 0.185, top), (front - 0.01, sill)]
    layer.polygon(windscreen, pane)
    if body == "van":
        layer.box(-0.44, -roof * 0.86, -0.06, -waist * 0.72, mix(paint, WHITE, 0.75), 0.02)
        layer.box(-0.40, -roof * 0.78, -0.12, -roof * 0.7, any_hue(rng))
    elif body == "pickup":
        layer.box(-0.48, -waist * 1.04, rear, -waist * 0.94, paint * 0.6)
        if chance(rng, 0.5):
            layer.box(-0.44, -waist * 1.35, rear - 0.03, -waist, hsv(0.09, 0.5, 0.5), 0.02)
    else:
        layer.polygon([(rear + 0.085, sill), (rear + 0.13, top), (front - 0.325, top), (front - 0.325, sill)], pane)
    glint = [(front - 0.21, sill), (front - 0.26, top), (front - 0.23, top), (front - 0.165, sill)]
    layer.polygon(glint, np.clip(pane * 1.7, 0, 1))
    body_mask = layer.drawn()
    for x in (-0.245, -0.07, 0.175):
        layer.line((x, -waist), (x, -0.09), 0.008, paint * 0.6, inside=body_mask)
    for x in (-0.13, 0.11):
        layer.box(x - 0.035, -waist * 0.82, x + 0.015, -waist * 0.76, paint * 0.5)
    layer.box(-0.5, -waist * 0.62, 0.5, -waist * 0.58, paint * 0.8, inside=body_mask)
    layer.box(-0.5, -0.10, 0.5, -0.055, paint * 0.45, inside=body_mask)
    layer.ellipse((0.46, -waist * 0.66), (0.035, 0.025), _LAMP, inside=body_mask)
    layer.box(-0.5, -waist * 0.85, -0.465, -waist * 0.55, hsv(0.01, 0.9, 0.8), inside=body_mask)
    for x in (-0.29, 0.29):
        layer.ellipse((x, -0.075), (wheel * 1.2, wheel * 1.2), grey(0.05), inside=body_mask)
        _wheel(layer, (x, 0.012 - wheel), wheel, rim)


def _wheel(layer: Layer, centre: tuple[float, float], radius: float, rim: np.ndarray) -> None:
    """A tyre with a spoked rim."""
    layer.ellipse(centre, (radius, radius), grey(0.09))
    layer.ellipse(centre, (radius * 0.6, radius * 0.6), rim)
    tyre = layer.drawn()
    for turn in (0.3, 1.35, 2.4):
        dx, dy = radius * 0.55 * math.cos(turn), radius * 0.55 * math.sin(turn)
        start, end = (centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)
        layer.line(start, end, radius * 0.12, rim * 0.5, inside=tyre)
    layer.ellipse(centre, (radius * 0.16, radius * 0.16), rim * 0.5)


def train_side(rng: np.random.Generator, layer: Layer) -> None:
    """A railcar from the side, sometimes with a coach behind; the origin is on the rails below its middle."""
    paint, stripe = any_hue(rng, (0.5, 0.95), (0.4, 0.9)), any_hue(rng, (0.1, 0.9), (0.7, 1))
    pane, roof, tall = glass(rng), grey(0.56) * uniform(rng, 0.7, 1.1), uniform(rng, 0.24, 0.30)
    coach = chance(rng, 0.5)
    bogies, doors, window = [-0.325, 0.295], [-0.24, 0.18], uniform(rng, 0.06, 0.085)
    windows = list(np.arange(-0.44, 0.24, window * 1.5))
    if coach:
        layer.box(-1.12, -tall, -0.53, -0.07, paint, 0.02)
        layer.box(-1.12, -tall - 0.02, -0.54, -tall + 0.02, roof, 0.01)
        layer.box(-0.56, -tall * 0.85, -0.48, -0.08, _IRON)
        bogies += [-0.965, -0.67]
        windows += list(np.arange(-1.06, -0.6, window * 1.5))
    if chance(rng, 0.6):
        for start, end in (
            ((-0.12, -tall), (-0.02, -tall - 0.07)),
            ((-0.02, -tall - 0.07), (-0.10, -tall - 0.12)),
        ):
            layer.line(start, end, 0.016, _IRON)
        layer.line((-0.16, -tall - 0.12), (-0.04, -tall - 0.12), 0.016, _IRON)
    nose = [(0.33, -tall), (0.41, -tall * 0.93), (0.47, -tall * 0.62), (0.51, -tall * 0.35), (0.51, -0.07)]
    layer.polygon([(-0.5, -0.07), (-0.5, -tall), *nose], paint)
    body = layer.drawn()
    layer.box(-0.5, -tall - 0.025, 0.32, -tall + 0.02, roof, 0.012)
    layer.box(-1.2, -tall * 0.48, 0.6, -tall * 0.36, stripe, inside=body)
    layer.box(-1.2, -0.10, 0.6, -0.07, _IRON, inside=body)
    for left in windows:
        layer.box(left, -tall * 0.86, left + window, -tall * 0.56, pane, 0.012)
        layer.box(left, -tall * 0.86, left + window * 0.3, -tall * 0.8, np.clip(pane * 1.6, 0, 1))
    for x in doors:
        layer.box(x - 0.045, -tall * 0.9, x + 0.045, -0.09, stripe * 0.85, 0.01)
        layer.box(x - 0.03, -tall * 0.84, x + 0.03, -tall * 0.54, pane)
        layer.line((x, -tall * 0.9), (x, -0.09), 0.006, _IRON, inside=body)
    layer.polygon([(0.335, -tall * 0.9), (0.405, -tall * 0.86), (0.455, -tall * 0.56), (0.335, -tall * 0.56)], pane)
    layer.ellipse((0.485, -tall * 0.27), (0.018, 0.018), _LAMP)
    for x in bogies:
        layer.box(x - 0.1, -0.085, x + 0.1, -0.04, _IRON * 1.4, 0.01)
        for axle in (x - 0.055, x + 0.055):
            layer.ellipse((axle, -0.045), (0.047, 0.047), _IRON)
            layer.ellipse((axle, -0.045), (0.022, 0.022), roof)


def train_front(rng: np.random.Generator, layer: Layer, side: int) -> None:
    """A train coming towards the viewer, on a track of gauge 1; its body recedes to `side` (1 or -1)."""
    paint, stripe = any_hue(rng, (0.5, 0.95), (0.4, 0.9)), any_hue(rng, (0.1, 0.9), (0.7, 1))
    pane, roof, tall = glass(rng), grey(0.56) * uniform(rng, 0.7, 1.1), uniform(rng, 1.25, 1.5)
    shrink, run = uniform(rng, 0.35, 0.55), (side * uniform(rng, 0.55, 0.9), -0.28 * tall)

    def back(x: float, y: float, depth: float) -> tuple[float, float]:
        """A point of the front moved `depth` (0 to 1) towards the end of the train."""
        return x * (1 - shrink * depth) + run[0] * depth, y * (1 - shrink * depth) + run[1] * depth

    def wall(top: float, bottom: float, near: float, far: float) -> list[tuple[float, float]]:
        """Corners of a piece of the visible side wall."""
        edge = 0.55 * side
        return [
            back(edge, top, near),
            back(edge, bottom, near),
            back(edge, bottom, far),
            back(edge, top, far),
        ]

    layer.polygon([back(-0.5, -tall, 0), back(0.5, -tall, 0), back(0.5, -tall, 1), back(-0.5, -tall, 1)], roof * 0.8)
    layer.polygon(wall(-tall * 0.97, -0.12, 0, 1), paint * 0.72)
    layer.polygon(wall(-tall * 0.42, -tall * 0.34, 0, 1), stripe * 0.75)
    layer.polygon(wall(-0.14, 0, 0, 1), _IRON)
    for near in (0.08, 0.28, 0.46, 0.62, 0.76, 0.88):
        layer.polygon(wall(-tall * 0.82, -tall * 0.52, near, near + 0.09), pane * 0.8)

    layer.box(-0.54, -0.14, 0.54, 0, _IRON, 0.03)
    layer.box(-0.57, -tall, 0.57, -0.10, paint, 0.13)
    body = layer.drawn()
    layer.box(-0.5, -tall, 0.5, -tall * 0.94, roof, 0.03, inside=body)
    layer.box(-0.57, -tall * 0.43, 0.57, -tall * 0.34, stripe, inside=body)
    if chance(rng, 0.5):
        layer.polygon(
            [(-0.57, -tall * 0.3), (0, -tall * 0.16), (0.57, -tall * 0.3), (0.57, -0.1), (-0.57, -0.1)],
            stripe * 0.9,
            inside=body,
        )
    for left, right in ((-0.47, -0.03), (0.03, 0.47)):
        layer.box(left, -tall * 0.86, right, -tall * 0.52, pane, 0.05)
    for x in (-0.3, 0.2):
        glint = [
            (x, -tall * 0.84),
            (x + 0.07, -tall * 0.84),
            (x - 0.02, -tall * 0.54),
            (x - 0.09, -tall * 0.54),
        ]
        layer.polygon(glint, np.clip(pane * 1.6, 0, 1))
    layer.box(-0.2, -tall * 0.925, 0.2, -tall * 0.875, hsv(0.12, 0.8, 0.95), 0.01)
    for x in (-0.4, 0.4):
        layer.ellipse((x, -tall * 0.25), (0.075, 0.075), _LAMP)
        layer.ellipse((x, -tall * 0.12), (0.07, 0.07), _IRON * 2)
        layer.ellipse((x, -tall * 0.12), (0.04, 0.04), roof)
    layer.box(-0.16, -tall * 0.29, 0.16, -tall * 0.20, grey(0.92), 0.02)
    layer.polygon([(-0.45, -0.1), (0.45, -0.1), (0.36, 0), (-0.36, 0)], _IRON * 0.7)
