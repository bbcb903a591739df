"""Background of train: railway lines seen across or along."""

import numpy as np

from voc12.sample.paint import box, chance, grey, hsv, line, mix, noise, polygon, uniform
from voc12.sample.terrain import Stage, Track, detail, paint_houses, paint_pole, paint_sky, paint_trees


def rails(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Rails on sleepers and ballast under overhead wires, seen from the side or along the line."""
    return _across(rng, height, width) if chance(rng, 0.55) else _along(rng, height, width)


def _ballast(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Gravel, float32 (height, width, 3)."""
    stones = noise(rng, height, width, 3.2 * unit, 2)
    colour = hsv(uniform(rng, 0.05, 0.11), uniform(rng, 0.05, 0.2), uniform(rng, 0.4, 0.62))
    return colour * (0.45 + 1.1 * stones[..., None])


def _materials(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours of the rail's rusty web, of its polished top and of the sleepers."""
    rust = hsv(0.06, uniform(rng, 0.2, 0.5), uniform(rng, 0.25, 0.4))
    polished = np.array([0.82, 0.84, 0.88], np.float32) * uniform(rng, 0.8, 1.1)
    sleeper = hsv(uniform(rng, 0.05, 0.09), uniform(rng, 0.05, 0.45), uniform(rng, 0.2, 0.45))
    return rust, polished, sleeper


def _across(rng: np.random.Generator, height: int, width: int) -> Stage:
    """One or two lines from the left to the right edge."""
    unit = detail(height, width)
    rust, polished, sleeper = _materials(rng)
    picture = paint_sky(rng, height, width)
    horizon = int(uniform(rng, 0.4, 0.55) * height)
    if chance(rng, 0.35):
        paint_houses(rng, picture, horizon)
    else:
        paint_trees(rng, picture, horizon)
    for _ in range(2):
        y0, y1 = uniform(rng, 0.02, 0.18) * height, uniform(rng, 0.02, 0.18) * height
        line(picture, (0, y0), (width, y1), unit, grey(0.25))
    for x in np.arange(uniform(rng, 0.05, 0.4), 1, uniform(rng, 0.45, 0.7)):
        foot = (x * width, horizon + 4 * unit)
        paint_pole(rng, picture, foot, foot[1] - 0.03 * height, 0.07 * width)

    verge = horizon + int(0.03 * height)
    picture[horizon:verge] = hsv(uniform(rng, 0.2, 0.3), 0.4, 0.4)
    picture[verge:] = _ballast(rng, height - verge, width, unit)
    gauge = uniform(rng, 0.085, 0.12) * height
    lines = [verge + uniform(rng, 0.1, 0.18) * height]
    if lines[0] + 3.2 * gauge < 0.97 * height:
        lines.append(lines[0] + 2.4 * gauge)
    step = uniform(rng, 0.07, 0.1) * width
    for top in lines:
        for x in np.arange(uniform(rng, -step, 0), width + step, step):
            corners = [
                (x, top - gauge * 0.35),
                (x + step * 0.45, top - gauge * 0.35),
                (x + step * 0.3, top + gauge * 1.35),
                (x - step * 0.2, top + gauge * 1.35),
            ]
            polygon(picture, corners, sleeper * uniform(rng, 0.8, 1.2))
        for y in (top, top + gauge):
            box(picture, 0, y, width, y + 4 * unit, rust)
            box(picture, 0, y - 2.5 * unit, width, y + 0.5 * unit, polished)
    foot = lines[int(rng.integers(len(lines)))] + 0.75 * gauge
    return Stage(picture, feet=(foot, foot))


def _along(rng: np.random.Generator, height: int, width: int) -> Stage:
    """One line that runs from the horizon towards the viewer, between masts."""
    unit = detail(height, width)
    rust, polished, sleeper = _materials(rng)
    picture = paint_sky(rng, height, width)
    horizon, vanishing = int(uniform(rng, 0.28, 0.45) * height), uniform(rng, 0.35, 0.65) * width
    paint_trees(rng, picture, horizon)
    green = hsv(uniform(rng, 0.12, 0.3), uniform(rng, 0.3, 0.6), uniform(rng, 0.35, 0.55))
    picture[horizon:] = green * (0.6 + 0.8 * noise(rng, height - horizon, width, 6 * unit, 3)[..., None])
    bottom, half = vanishing + uniform(rng, -0.25, 0.25) * width, uniform(rng, 0.55, 0.7) * width

    def on_track(across: float, near: float) -> tuple[float, float]:
        """Pixel of a point on the ground: across in half widths of the bed, near from 0 (horizon) to 1."""
        return mix(vanishing, bottom + across * half, near), mix(horizon, height, near)

    def strip(left: float, right: float, near: float = 0.0, nearest: float = 1.0) -> list[tuple[float, float]]:
        """Corners of a piece of ground."""
        corners = ((left, near), (right, near), (right, nearest), (left, nearest))
        return [on_track(across, at) for across, at in corners]

    bed = np.zeros((height, width), np.uint8)
    polygon(bed, strip(-1, 1), 1.0)
    picture[bed > 0] = _ballast(rng, height, width, unit)[bed > 0]
    near = 0.04
    while near < 1.05:
        polygon(picture, strip(-0.75, 0.75, near, near * 1.065), sleeper * uniform(rng, 0.8, 1.2))
        near *= 1.15
    for across in (-0.5, 0.5):
        polygon(picture, strip(across - 0.05, across + 0.05), rust)
        polygon(picture, strip(across - 0.02, across + 0.02), polished)
    masts = [(side, near) for near in (0.12, 0.3, 0.75) for side in (-1, 1)]
    for side, near in masts:
        foot = on_track(side * 1.15, near)
        tall = height * 1.1 * near + 10 * unit
        paint_pole(rng, picture, foot, tall, -side * 0.45 * tall)
    # A train is up to 1.5 gauges tall: nearer than this, too much of it would be cut off at the top.
    nearest = horizon / max(1.3 * half - (height - horizon), 0.1 * height)
    near = min(uniform(rng, 0.38, 0.85), nearest)
    track = Track(foot=on_track(0, near), gauge=half * near, vanishing_x=vanishing)
    return Stage(picture, feet=(track.foot[1], track.foot[1]), track=track)
