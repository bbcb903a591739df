"""Backgrounds of aeroplane, bird, boat, car and cow: sky, foliage, water, road, grass."""

import math

import cv2
import numpy as np

from voc12.sample.paint import (
    WHITE,
    box,
    chance,
    disc,
    ellipse,
    grey,
    hsv,
    line,
    mix,
    noise,
    pick,
    polygon,
    smoothstep,
    uniform,
)
from voc12.sample.terrain import (
    Stage,
    detail,
    grain,
    in_perspective,
    paint_hills,
    paint_houses,
    paint_pole,
    paint_sky,
    paint_tree,
    paint_trees,
)


def sky(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Open sky, sometimes with the sun or with distant hills along the lower edge."""
    picture = paint_sky(rng, height, width)
    if chance(rng, 0.25):
        spot = uniform(rng, 0.05, 0.95) * width, uniform(rng, 0.05, 0.4) * height
        glow = np.zeros((height, width), np.float32)
        disc(glow, spot, uniform(rng, 0.02, 0.04) * width, np.float32(1))
        halo = cv2.resize(glow, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
        halo = cv2.resize(cv2.GaussianBlur(halo, (0, 0), width / 80), (width, height))
        weight = np.clip(glow + 2.5 * halo, 0, 1)[..., None]
        picture = mix(picture, np.array([1, 0.97, 0.85], np.float32), weight)
    if chance(rng, 0.3):
        blue = hsv(uniform(rng, 0.25, 0.62), uniform(rng, 0.15, 0.35), uniform(rng, 0.3, 0.55))
        paint_hills(rng, picture, height, uniform(rng, 0.05, 0.16) * height, blue)
    return Stage(picture, feet=(0.3 * height, 0.7 * height), sky=0.9 * height)


def water(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Open water with waves up to the horizon; buoys, rocks or the posts of a jetty."""
    horizon = int(uniform(rng, 0.25, 0.48) * height)
    unit = detail(height, width)
    picture = paint_sky(rng, height, width)
    if chance(rng, 0.55):
        far = hsv(uniform(rng, 0.25, 0.6), uniform(rng, 0.15, 0.4), uniform(rng, 0.32, 0.6))
        paint_hills(rng, picture, horizon, uniform(rng, 0.04, 0.15) * height, far)

    deep = hsv(uniform(rng, 0.46, 0.63), uniform(rng, 0.35, 0.75), uniform(rng, 0.35, 0.7))
    crest = mix(deep, np.array([0.9, 0.95, 1], np.float32), uniform(rng, 0.4, 0.7))
    texture = noise(rng, 256, 256, 26, 4, (2.6, 0.8))
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    waves = in_perspective(rng, texture, height - horizon, width, uniform(rng, 0.8, 1.3) / unit)[..., None]
    surface = mix(deep * 0.75, deep * 1.1, smoothstep(waves, 0.2, 0.6))
    surface = mix(surface, crest, 0.8 * smoothstep(waves, uniform(rng, 0.55, 0.62), uniform(rng, 0.72, 0.85)))
    haze = np.linspace(1, 0, height - horizon, dtype=np.float32)[:, None, None] ** 2
    picture[horizon:] = mix(surface, picture[:horizon].mean((0, 1)), haze * 0.5)

    prop = pick(rng, ("none", "buoys", "rocks", "jetty"))
    if prop == "buoys":
        red = pick(rng, (hsv(0.02, 0.85, 0.85), hsv(0.12, 0.9, 0.95), hsv(0.35, 0.7, 0.5)))
        for _ in range(int(rng.integers(1, 4))):
            t = uniform(rng, 0.08, 0.9)
            x, y, r = uniform(rng, 0, 1) * width, mix(horizon, height, t), (3 + 9 * t) * unit
            ellipse(picture, (x, y + r * 0.9), (r * 1.5, r * 0.3), deep * 0.6)
            disc(picture, (x, y), r, red)
            disc(picture, (x - r * 0.3, y - r * 0.3), r * 0.3, mix(red, WHITE, 0.6))
    elif prop == "rocks":
        side = pick(rng, (0.0, 1.0))
        for _ in range(int(rng.integers(4, 12))):
            x = (side + uniform(rng, -0.2, 0.2)) * width
            y, r = mix(horizon, height, uniform(rng, 0.05, 0.6)), uniform(rng, 0.015, 0.045) * width
            stone = grey(uniform(rng, 0.25, 0.5))
            ellipse(picture, (x, y + r * 0.35), (r * 1.2, r * 0.25), mix(deep, WHITE, 0.6))
            ellipse(picture, (x, y), (r, r * 0.55), stone)
            ellipse(picture, (x - r * 0.15, y - r * 0.15), (r * 0.6, r * 0.3), stone * 1.25)
    elif prop == "jetty":
        wood = hsv(0.08, 0.35, uniform(rng, 0.3, 0.5))
        left = chance(rng, 0.5)
        for k in range(6):
            t = 0.1 + 0.14 * k
            x = mix(0.28, -0.05, t) * width
            x = x if left else width - x
            y = mix(horizon, height, t)
            line(picture, (x, y), (x, y - (10 + 50 * t) * unit), (2 + 8 * t) * unit, wood)
    return Stage(picture, feet=(horizon + 0.18 * (height - horizon), 0.93 * height), sky=horizon - 0.03 * height)


def grass(rng: np.random.Generator, height: int, width: int) -> Stage:
    """A meadow with single blades; trees, a fence, flowers or bales."""
    horizon = int(uniform(rng, 0.18, 0.42) * height)
    unit, depth = detail(height, width), height - horizon
    picture = paint_sky(rng, height, width)
    if chance(rng, 0.3):
        far = hsv(uniform(rng, 0.25, 0.6), uniform(rng, 0.15, 0.35), uniform(rng, 0.4, 0.6))
        paint_hills(rng, picture, horizon, uniform(rng, 0.1, 0.25) * height, far)
    if chance(rng, 0.75):
        paint_trees(rng, picture, horizon)

    green = hsv(uniform(rng, 0.17, 0.33), uniform(rng, 0.4, 0.75), uniform(rng, 0.38, 0.66))
    meadow = in_perspective(rng, noise(rng, 256, 256, 30, 5), depth, width, 1 / unit)
    picture[horizon:] = green * (0.55 + 0.9 * meadow[..., None])
    if chance(rng, 0.4):
        _paint_fence(rng, picture, horizon)
    if chance(rng, 0.2):
        straw = hsv(0.12, uniform(rng, 0.4, 0.6), uniform(rng, 0.6, 0.8))
        for _ in range(int(rng.integers(1, 4))):
            t = uniform(rng, 0.08, 0.3)
            x, y, r = uniform(rng, 0, 1) * width, horizon + t * depth, (8 + 60 * t) * unit
            ellipse(picture, (x, y + r * 0.75), (r * 1.2, r * 0.25), green * 0.5)
            disc(picture, (x, y), r, straw)
            for ring in (0.75, 0.5, 0.25):
                ellipse(picture, (x, y), (r * ring, r * ring), straw * 0.75, outline=1.5 * unit)

    blades = 900
    lean, bright = rng.normal(0, 0.35, blades), rng.uniform(0.6, 1.4, blades)
    for x, t, slope, shade in zip(rng.random(blades), np.sort(rng.random(blades) ** 0.7), lean, bright, strict=True):
        y, tall = horizon + t * depth, (3 + 13 * t) * unit
        line(
            picture,
            (x * width, y),
            (x * width + slope * tall, y - tall),
            (0.8 + 0.8 * t) * unit,
            green * shade,
        )
    if chance(rng, 0.5):
        petals = pick(rng, (hsv(0.15, 0.05, 1), hsv(0.14, 0.9, 1), hsv(0.85, 0.5, 0.85), hsv(0.0, 0.8, 0.85)))
        for _ in range(int(rng.integers(15, 70))):
            t = uniform(rng, 0, 1)
            disc(picture, (uniform(rng, 0, width), horizon + t * depth), (1 + 2.5 * t) * unit, petals)
    return Stage(
        picture,
        feet=(horizon + 0.38 * depth, horizon + 0.9 * depth),
        sky=max(horizon - 0.05 * height, 0.2 * height),
    )


def _paint_fence(rng: np.random.Generator, picture: np.ndarray, horizon: int) -> None:
    """A wooden fence across the whole picture a little below the horizon, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    wood = hsv(uniform(rng, 0.06, 0.1), uniform(rng, 0.1, 0.5), uniform(rng, 0.4, 0.8))
    foot, tall = horizon + uniform(rng, 0.08, 0.14) * height, uniform(rng, 0.11, 0.17) * height
    for part in (0.45, 0.8):
        line(picture, (0, foot - tall * part), (width, foot - tall * part), 3.5 * unit, wood)
    step = uniform(rng, 0.12, 0.2) * width
    for x in np.arange(uniform(rng, 0, step), width, step):
        box(picture, x - 2.5 * unit, foot - tall, x + 2.5 * unit, foot, wood * 0.85)


def road(rng: np.random.Generator, height: int, width: int) -> Stage:
    """A street seen across: houses or trees, pavement, kerb, asphalt with a dashed line."""
    horizon = int(uniform(rng, 0.34, 0.5) * height)
    unit = detail(height, width)
    picture = paint_sky(rng, height, width)
    if chance(rng, 0.6):
        paint_houses(rng, picture, horizon)
    else:
        paint_trees(rng, picture, horizon)

    paved = int(uniform(rng, 0.03, 0.07) * height)
    slabs = hsv(uniform(rng, 0.05, 0.15), uniform(rng, 0.03, 0.12), uniform(rng, 0.6, 0.8))
    picture[horizon : horizon + paved] = slabs * grain(rng, paved, width, 5 * unit, 0.2)
    for x in np.arange(uniform(rng, 0, 20), width, uniform(rng, 18, 30) * unit):
        line(picture, (x, horizon), (x - 4 * unit, horizon + paved), unit, slabs * 0.8)
    _paint_street_props(rng, picture, horizon + paved * 0.5)

    kerb = horizon + paved + round(4 * unit)
    box(picture, 0, horizon + paved, width, kerb, grey(uniform(rng, 0.62, 0.85)))
    depth = height - kerb
    asphalt = np.array([1, 1, uniform(rng, 0.98, 1.1)], np.float32) * uniform(rng, 0.26, 0.46)
    rough = 0.45 * noise(rng, depth, width, 2.5 * unit, 2) + 0.25 * noise(rng, depth, width, 50 * unit, 2, (3, 1))
    picture[kerb:] = asphalt * (0.65 + rough[..., None])
    paint = grey(0.9) if chance(rng, 0.75) else hsv(0.13, 0.78, 0.9)
    top, thick = kerb + depth * uniform(rng, 0.55, 0.8), uniform(rng, 0.015, 0.03) * height
    dash, gap = uniform(rng, 0.15, 0.3) * width, 1.8
    for x in np.arange(dash * (uniform(rng, 0, gap) - 2), width, dash * gap):
        polygon(
            picture,
            [(x, top), (x + dash, top), (x + dash - thick, top + thick), (x - thick, top + thick)],
            paint,
        )
    return Stage(picture, feet=(kerb + 0.22 * depth, kerb + 0.75 * depth), sky=max(horizon * 0.5, 0.2 * height))


def _paint_street_props(rng: np.random.Generator, picture: np.ndarray, ground: float) -> None:
    """A lamp, a traffic sign or a tree on the pavement, or nothing, in place."""
    height, width = picture.shape[:2]
    prop, x = pick(rng, ("none", "lamp", "sign", "tree")), uniform(rng, 0.05, 0.95) * width
    if prop == "lamp":
        tall, arm = uniform(rng, 0.25, 0.35) * height, pick(rng, (-0.06, 0.06)) * width
        paint_pole(rng, picture, (x, ground), tall, arm)
        ellipse(picture, (x + arm, ground - tall * 0.97), (tall * 0.06, tall * 0.03), hsv(0.14, 0.2, 1))
    elif prop == "sign":
        tall = uniform(rng, 0.16, 0.24) * height
        paint_pole(rng, picture, (x, ground), tall, 0)
        disc(picture, (x, ground - tall), tall * 0.17, hsv(pick(rng, (0.0, 0.6)), 0.85, 0.8))
        disc(picture, (x, ground - tall), tall * 0.11, grey(0.95))
    elif prop == "tree":
        paint_tree(rng, picture, (x, ground), uniform(rng, 0.25, 0.38) * height)


def foliage(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Blurred greenery with spots of light; before it a branch with twigs, leaves, blossoms or berries."""
    unit = detail(height, width)
    green = hsv(uniform(rng, 0.17, 0.38), uniform(rng, 0.3, 0.65), uniform(rng, 0.32, 0.65))
    blur = cv2.resize(noise(rng, height // 4, width // 4, 14 * unit, 3), (width, height))
    picture = green * (0.35 + 1.2 * blur[..., None])
    spots = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(6, 18))):
        spot = np.zeros_like(spots)
        disc(
            spot,
            (uniform(rng, 0, width), uniform(rng, 0, height)),
            uniform(rng, 0.02, 0.09) * width,
            np.float32(1),
        )
        spots += spot * uniform(rng, 0.15, 0.4)
    picture = mix(picture, green * 1.5 + 0.08, np.clip(spots, 0, 0.6)[..., None])
    picture = np.ascontiguousarray(picture, np.float32)

    bark = hsv(uniform(rng, 0.05, 0.1), uniform(rng, 0.2, 0.5), uniform(rng, 0.25, 0.5))
    thick = uniform(rng, 0.03, 0.06) * height
    xs = np.linspace(-0.05, 1.05, 14) * width
    ys = mix(uniform(rng, 0.5, 0.88), uniform(rng, 0.5, 0.88), np.linspace(0, 1, 14)) * height
    ys = ys + np.cumsum(rng.normal(0, 0.006 * height, 14))
    twigs = []
    for _ in range(int(rng.integers(3, 6))):
        k = int(rng.integers(1, 13))
        tip = (
            xs[k] + uniform(rng, -0.2, 0.2) * width,
            ys[k] + pick(rng, (-1, 1)) * uniform(rng, 0.12, 0.38) * height,
        )
        twigs.append(((xs[k], ys[k]), tip))
    for start, end in twigs:
        line(picture, start, end, max(2.0, thick / 3), bark * 0.9)
    for k in range(13):
        line(picture, (xs[k], ys[k]), (xs[k + 1], ys[k + 1]), thick, bark * 0.7)
    for k in range(13):
        line(picture, (xs[k], ys[k] - thick / 4), (xs[k + 1], ys[k + 1] - thick / 4), thick / 2, bark * 1.3)
    for _ in range(int(rng.integers(4, 10))):
        x = uniform(rng, 0, width)
        y = float(np.interp(x, xs, ys))
        line(picture, (x, y - thick * 0.3), (x + thick * 0.5, y + thick * 0.3), unit, bark * 0.5)

    shape, size = uniform(rng, 0.3, 0.6), uniform(rng, 0.025, 0.05) * width
    fruit = pick(rng, (None, None, hsv(0.98, 0.75, 0.8), hsv(0.92, 0.25, 0.98), hsv(0.08, 0.85, 0.9)))
    for _ in range(int(rng.integers(30, 65))):
        if chance(rng, 0.65):
            start, end = pick(rng, twigs)
            x, y = mix(np.array(start), np.array(end), rng.random())
        else:
            k = int(rng.integers(14))
            x, y = xs[k], ys[k]
        spot = (x + rng.normal(0, 0.04) * width, y + rng.normal(0, 0.05) * height)
        if fruit is not None and chance(rng, 0.25):
            disc(picture, spot, size * 0.3, fruit * uniform(rng, 0.8, 1.1))
        else:
            _paint_leaf(
                picture,
                spot,
                size * uniform(rng, 0.8, 1.2),
                shape,
                uniform(rng, 0, 180),
                green * uniform(rng, 0.7, 1.6),
            )

    def perch(x: float) -> float:
        return float(np.interp(x, xs, ys)) - thick * 0.45

    return Stage(picture, feet=(0.6 * height, 0.9 * height), perch=perch)


def _paint_leaf(
    picture: np.ndarray,
    spot: tuple[float, float],
    length: float,
    shape: float,
    degrees: float,
    green: np.ndarray,
) -> None:
    """One leaf with its middle vein, in place."""
    ellipse(picture, spot, (length, length * shape), green, degrees)
    dx, dy = math.cos(math.radians(degrees)) * length, math.sin(math.radians(degrees)) * length
    line(picture, (spot[0] - dx, spot[1] - dy), (spot[0] + dx, spot[1] + dy), 1, green * 0.7)
