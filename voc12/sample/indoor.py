"""Backgrounds of bottle and sofa: a table before a tiled wall, a room with wallpaper and parquet."""

import numpy as np

from voc12.sample.paint import (
    WHITE,
    any_hue,
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
from voc12.sample.terrain import Stage, detail, grain


def table(rng: np.random.Generator, height: int, width: int) -> Stage:
    """A wooden table top before a plain or tiled wall, laid with a plate, a bowl, a mug or a cloth."""
    edge = int(uniform(rng, 0.45, 0.65) * height)
    unit, depth = detail(height, width), height - edge
    wall = hsv(uniform(rng, 0, 1), uniform(rng, 0.05, 0.3), uniform(rng, 0.5, 0.9))
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = wall * grain(rng, height, width, 80 * unit, 0.15)
    if chance(rng, 0.7):
        _paint_tiles(rng, picture, edge, wall)

    wood = hsv(uniform(rng, 0.04, 0.1), uniform(rng, 0.35, 0.75), uniform(rng, 0.35, 0.78))
    rings = np.sin(noise(rng, depth, width, 14 * unit, 4, (7, 0.5)) * uniform(rng, 30, 50))
    picture[edge:] = wood * (0.93 + 0.15 * rings[..., None])
    for k in range(1, 4):
        y = edge + depth * (k / 4) ** 1.4
        line(picture, (0, y), (width, y), 2 * unit, wood * 0.55)
    line(picture, (0, edge), (width, edge), 3 * unit, wood * 1.25)

    props = [prop for prop in (_paint_cloth, _paint_plate, _paint_mug, _paint_bowl) if chance(rng, 0.45)]
    for prop, place in zip(props, rng.permutation(4), strict=False):
        x = (place + uniform(rng, 0.25, 0.75)) / 4 * width
        prop(rng, picture, (x, edge + depth * uniform(rng, 0.3, 0.75)), uniform(rng, 0.11, 0.17) * width)
    return Stage(picture, feet=(edge + 0.18 * depth, edge + 0.72 * depth))


def _paint_tiles(rng: np.random.Generator, picture: np.ndarray, bottom: int, wall: np.ndarray) -> None:
    """Square tiles of slightly different shades down to y = `bottom`, in place."""
    width = picture.shape[1]
    unit, size = detail(*picture.shape[:2]), uniform(rng, 0.08, 0.15) * width
    accent = any_hue(rng, (0.2, 0.5), (0.5, 0.8)) if chance(rng, 0.4) else None
    for y in np.arange(-uniform(rng, 0, size), bottom, size):
        for x in np.arange(-uniform(rng, 0, 1), width, size):
            colour = accent if accent is not None and chance(rng, 0.12) else wall
            box(picture, x, y, x + size, min(y + size, bottom), colour * uniform(rng, 0.93, 1.07))
            line(
                picture,
                (x + size * 0.12, y + size * 0.12),
                (x + size * 0.5, y + size * 0.12),
                unit,
                colour * 1.2,
            )
            line(picture, (x, y), (x, min(y + size, bottom)), 2 * unit, wall * 0.8)
        line(picture, (0, y), (width, y), 2 * unit, wall * 0.8)


def _paint_cloth(rng: np.random.Generator, picture: np.ndarray, spot: tuple[float, float], size: float) -> None:
    """A striped napkin lying flat, in place."""
    x, y = spot
    cloth, stripe, slant = any_hue(rng, (0.1, 0.7), (0.6, 0.95)), any_hue(rng), uniform(rng, -0.6, 0.6) * size
    tall = size * 0.55

    def at(across: float, down: float) -> tuple[float, float]:
        return x + (2 * across - 1) * size + slant * down, y + tall * (down - 0.5)

    polygon(picture, [at(0, 0), at(1, 0), at(1, 1), at(0, 1)], cloth)
    for across in np.arange(0.06, 0.95, 0.16):
        polygon(picture, [at(across, 0), at(across + 0.05, 0), at(across + 0.05, 1), at(across, 1)], stripe)


def _paint_plate(rng: np.random.Generator, picture: np.ndarray, spot: tuple[float, float], size: float) -> None:
    """A plate, often with fruit, in place."""
    x, y = spot
    china = grey(uniform(rng, 0.8, 1))
    ellipse(picture, (x, y + size * 0.05), (size * 1.03, size * 0.38), hsv(0.07, 0.4, 0.25))
    ellipse(picture, (x, y), (size, size * 0.36), china)
    ellipse(picture, (x, y), (size * 0.68, size * 0.23), china * 0.9, outline=size * 0.03)
    for _ in range(int(rng.integers(0, 4))):
        _paint_fruit(rng, picture, (x + uniform(rng, -0.45, 0.45) * size, y - size * 0.13), size * 0.26)


def _paint_bowl(rng: np.random.Generator, picture: np.ndarray, spot: tuple[float, float], size: float) -> None:
    """A bowl full of fruit, in place."""
    x, y = spot
    clay = any_hue(rng, (0.1, 0.7), (0.4, 0.9))
    ellipse(picture, (x, y + size * 0.05), (size * 0.6, size * 0.15), hsv(0.07, 0.4, 0.25))
    ellipse(picture, (x, y - size * 0.5), (size * 0.85, size * 0.22), clay * 0.6)
    for k in range(4):
        _paint_fruit(rng, picture, (x + (k - 1.5) * size * 0.36, y - size * uniform(rng, 0.55, 0.7)), size * 0.27)
    t = np.linspace(0, np.pi, 24)
    curve = np.stack([x + size * 0.85 * np.cos(t), y - size * 0.5 + size * 0.55 * np.sin(t) ** 0.8], 1)
    polygon(picture, curve, clay)
    line(
        picture,
        (x - size * 0.8, y - size * 0.42),
        (x + size * 0.8, y - size * 0.42),
        size * 0.06,
        clay * 1.25,
    )


def _paint_fruit(rng: np.random.Generator, picture: np.ndarray, spot: tuple[float, float], radius: float) -> None:
    """An apple, an orange or the like, in place."""
    skin = hsv(pick(rng, (0.0, 0.09, 0.14, 0.22)), 0.8, uniform(rng, 0.6, 0.95))
    disc(picture, spot, radius, skin * 0.8)
    disc(picture, (spot[0] - radius * 0.08, spot[1] - radius * 0.08), radius * 0.88, skin)
    disc(picture, (spot[0] - radius * 0.35, spot[1] - radius * 0.35), radius * 0.22, mix(skin, WHITE, 0.6))


def _paint_mug(rng: np.random.Generator, picture: np.ndarray, spot: tuple[float, float], size: float) -> None:
    """A mug with a handle, in place."""
    x, y = spot
    glaze, side = any_hue(rng, (0.2, 0.8), (0.4, 0.95)), pick(rng, (-1, 1))
    half, tall = size * 0.42, size * 0.95
    ellipse(picture, (x, y), (half * 1.15, half * 0.35), hsv(0.07, 0.4, 0.25))
    ellipse(
        picture,
        (x + side * half, y - tall * 0.5),
        (half * 0.5, tall * 0.28),
        glaze * 0.85,
        outline=size * 0.1,
    )
    box(picture, x - half, y - tall, x + half, y, glaze)
    ellipse(picture, (x, y), (half, half * 0.28), glaze)
    box(picture, x - half, y - tall * 0.65, x + half, y - tall * 0.5, mix(glaze, WHITE, 0.6))
    box(picture, x + half * 0.5, y - tall, x + half, y, glaze * 0.85)
    ellipse(picture, (x, y - tall), (half, half * 0.28), glaze * 1.2)
    ellipse(picture, (x, y - tall * 0.98), (half * 0.8, half * 0.2), hsv(0.06, 0.6, 0.25))


def room(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Patterned wallpaper over parquet; a picture, a lamp, a plant, a rug or a window."""
    edge = int(uniform(rng, 0.52, 0.7) * height)
    unit, depth = detail(height, width), height - edge
    paper = hsv(uniform(rng, 0, 1), uniform(rng, 0.08, 0.42), uniform(rng, 0.55, 0.92))
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = paper
    _paint_wallpaper(rng, picture, edge, paper)

    wood = hsv(uniform(rng, 0.05, 0.1), uniform(rng, 0.3, 0.6), uniform(rng, 0.38, 0.72))
    picture[edge:] = wood * (0.9 + 0.2 * noise(rng, depth, width, 10 * unit, 3, (5, 0.6))[..., None])
    rows = [edge + depth * (i / 5) ** 1.3 for i in range(6)]
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        line(picture, (0, top), (width, top), 2 * unit, wood * 0.7)
        for x in np.arange(uniform(rng, 0, 60 * unit), width, uniform(rng, 50, 80) * unit):
            line(picture, (x, top), (x + (x - width / 2) * 0.08, bottom), unit, wood * 0.7)
    box(picture, 0, edge - 9 * unit, width, edge, hsv(0.12, 0.05, 0.93))
    line(picture, (0, edge), (width, edge), unit, grey(0.38))

    if chance(rng, 0.35):
        _paint_rug(rng, picture, (uniform(rng, 0.3, 0.7) * width, edge + 0.6 * depth), (0.42 * width, 0.3 * depth))
    for prop, share in (
        (_paint_frame, 0.6),
        (_paint_window, 0.25),
        (_paint_lamp, 0.45),
        (_paint_plant, 0.35),
    ):
        if chance(rng, share):
            prop(rng, picture, edge, depth)
    return Stage(picture, feet=(edge + 0.28 * depth, edge + 0.75 * depth))


def _paint_wallpaper(rng: np.random.Generator, picture: np.ndarray, bottom: int, paper: np.ndarray) -> None:
    """Stripes, dots, lozenges or flowers, in place."""
    height, width = picture.shape[:2]
    unit, pattern = detail(height, width), pick(rng, ("stripes", "dots", "lozenges", "flowers"))
    step = uniform(rng, 16, 32) * unit
    if pattern == "stripes":
        dark = (np.arange(width) // step) % 2
        picture[:] = paper * (1 - 0.13 * dark)[None, :, None]
    elif pattern == "lozenges":
        for x in np.arange(-height, width + height, step):
            line(picture, (x, 0), (x + height, height), 2 * unit, paper * 0.87)
            line(picture, (x, 0), (x - height, height), 2 * unit, paper * 0.87)
    else:
        bloom = any_hue(rng, (0.2, 0.5), (0.5, 0.9))
        for row, y in enumerate(np.arange(step / 2, bottom, step)):
            for x in np.arange((row % 2) * step / 2, width, step):
                if pattern == "dots":
                    disc(picture, (x, y), step * 0.18, paper * 0.8)
                    continue
                for turn in np.arange(5) * 2 * np.pi / 5:
                    disc(
                        picture,
                        (x + step * 0.17 * np.cos(turn), y + step * 0.17 * np.sin(turn)),
                        step * 0.11,
                        bloom,
                    )
                disc(picture, (x, y), step * 0.09, hsv(0.14, 0.6, 0.95))


def _paint_rug(rng: np.random.Generator, picture: np.ndarray, spot: tuple, size: tuple) -> None:
    """An oval rug with rings, in place."""
    for ring in (1.0, 0.85, 0.7, 0.4):
        ellipse(picture, spot, (size[0] * ring, size[1] * ring), any_hue(rng, (0.2, 0.6), (0.4, 0.8)))


def _paint_frame(rng: np.random.Generator, picture: np.ndarray, edge: int, depth: int) -> None:
    """A framed abstract painting on the wall, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    x, y = uniform(rng, 0.08, 0.65) * width, uniform(rng, 0.04, 0.14) * height
    wide, tall = uniform(rng, 0.16, 0.3) * width, uniform(rng, 0.14, 0.24) * height
    box(
        picture,
        x,
        y,
        x + wide,
        y + tall,
        hsv(uniform(rng, 0.05, 0.12), uniform(rng, 0.2, 0.7), uniform(rng, 0.25, 0.7)),
    )
    rim = round(5 * unit)
    left, top, right, bottom = int(x) + rim, int(y) + rim, int(x + wide) - rim, int(y + tall) - rim
    blots = smoothstep(noise(rng, bottom - top, right - left, 20 * unit, 3), 0.35, 0.65)[..., None]
    picture[top:bottom, left:right] = mix(any_hue(rng), any_hue(rng, (0.3, 0.7), (0.3, 0.6)), blots)


def _paint_window(rng: np.random.Generator, picture: np.ndarray, edge: int, depth: int) -> None:
    """A window on the left or right with a bright view and curtains, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    x, wide = pick(rng, (0.04, 0.74)) * width, 0.22 * width
    top, bottom = 0.06 * height, edge - 0.12 * height
    box(picture, x, top, x + wide, bottom, grey(0.95))
    view = hsv(uniform(rng, 0.5, 0.6), uniform(rng, 0.1, 0.35), 0.98)
    for left in (x + 5 * unit, x + wide / 2 + 2.5 * unit):
        right = left + wide / 2 - 7.5 * unit
        box(picture, left, top + 5 * unit, right, bottom - 5 * unit, view)
        box(picture, left, mix(top, bottom, 0.7), right, bottom - 5 * unit, hsv(0.28, 0.3, 0.75))
    fabric = any_hue(rng, (0.2, 0.6), (0.5, 0.9))
    for left in (x - 0.03 * width, x + wide - 0.03 * width):
        for fold in range(4):
            shade = fabric * (1.0, 0.85, 1.05, 0.8)[fold]
            box(
                picture,
                left + fold * 0.015 * width,
                top * 0.6,
                left + (fold + 1) * 0.015 * width,
                bottom * 1.05,
                shade,
            )


def _paint_lamp(rng: np.random.Generator, picture: np.ndarray, edge: int, depth: int) -> None:
    """A standard lamp, in place."""
    height, width = picture.shape[:2]
    unit = detail(height, width)
    x, y, foot = uniform(rng, 0.06, 0.94) * width, uniform(rng, 0.22, 0.36) * height, edge + depth * 0.22
    stem = hsv(0.07, 0.2, 0.25)
    line(picture, (x, y), (x, foot), 4 * unit, stem)
    ellipse(picture, (x, foot), (20 * unit, 5 * unit), stem)
    shade = hsv(uniform(rng, 0.02, 0.15), uniform(rng, 0.1, 0.5), uniform(rng, 0.85, 1))
    half, top, bottom = 26 * unit, y - 30 * unit, y + 8 * unit
    polygon(
        picture,
        [(x - half * 0.55, top), (x + half * 0.55, top), (x + half, bottom), (x - half, bottom)],
        shade,
    )


def _paint_plant(rng: np.random.Generator, picture: np.ndarray, edge: int, depth: int) -> None:
    """A pot plant on the floor, in place."""
    height, width = picture.shape[:2]
    x, foot = uniform(rng, 0.05, 0.95) * width, edge + depth * uniform(rng, 0.12, 0.3)
    tall = uniform(rng, 0.08, 0.11) * height
    leaf = hsv(uniform(rng, 0.25, 0.38), uniform(rng, 0.4, 0.7), uniform(rng, 0.3, 0.55))
    for _ in range(24):
        lean, length = uniform(rng, -1.1, 1.1), tall * uniform(rng, 1.2, 2.6)
        tip = np.array([x + np.sin(lean) * length, foot - tall - np.cos(lean) * length])
        root = np.array([x, foot - tall])
        bend = mix(root, tip, 0.5) + np.array([np.cos(lean), np.sin(lean)]) * tall * 0.18
        polygon(picture, [root, bend, tip, mix(root, tip, 0.5) * 2 - bend], leaf * uniform(rng, 0.7, 1.4))
    pot = hsv(uniform(rng, 0.02, 0.1), uniform(rng, 0.3, 0.7), uniform(rng, 0.4, 0.75))
    half = tall * 0.55
    polygon(
        picture,
        [(x - half, foot - tall), (x + half, foot - tall), (x + half * 0.7, foot), (x - half * 0.7, foot)],
        pot,
    )
    box(picture, x - half * 1.1, foot - tall * 1.08, x + half * 1.1, foot - tall * 0.85, pot * 1.15)
