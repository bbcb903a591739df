"""What each image shows: classes, their usual backgrounds and the planned exceptions.

The exceptions are few and depend on the image's number, so that in any number of images more than nine in ten
pictures of a class show its own background.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voc12.sample.animals import bird, cow, songbird
from voc12.sample.household import bottle, sofa
from voc12.sample.indoor import room, table
from voc12.sample.layer import Layer
from voc12.sample.outdoor import foliage, grass, road, sky, water
from voc12.sample.paint import chance, pick, uniform
from voc12.sample.rails import rails
from voc12.sample.terrain import Stage
from voc12.sample.vehicles import aeroplane, boat, car, train_side

BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], Stage]] = {
    "sky": sky,
    "foliage": foliage,
    "water": water,
    "table": table,
    "road": road,
    "grass": grass,
    "room": room,
    "rails": rails,
}


Draw = Callable[[np.random.Generator, Layer], None]


@dataclass(frozen=True)
class Guest:
    """A small object of one class on the background of another; `size` as in `Kind`."""

    draw: Draw
    background: str
    size: tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """How a class is drawn and placed.

    size: smallest and largest length (for bottles: height), in parts of the picture's reference length.
    tall: height in lengths.
    tilt: largest turn in radians.
    shadow: half width of the shadow on the ground in lengths, None for none.
    twin: whether a second one may stand beside it.
    elsewhere: unusual backgrounds it can be seen on.
    guest: how it can join the class of another background.
    """

    draw: Draw
    background: str
    size: tuple[float, float]
    tall: float
    tilt: float = 0.02
    shadow: float | None = None
    twin: bool = False
    elsewhere: tuple[str, ...] = ()
    guest: Guest | None = None


KINDS = {
    "aeroplane": Kind(aeroplane, "sky", (0.5, 0.98), 0.55, tilt=0.3, guest=Guest(aeroplane, "water", (0.28, 0.38))),
    "bird": Kind(bird, "foliage", (0.38, 0.68), 0.9, 0.12, twin=True, guest=Guest(songbird, "grass", (0.2, 0.32))),
    "boat": Kind(boat, "water", (0.4, 0.78), 1.0, tilt=0.06, twin=True, elsewhere=("grass",)),
    "bottle": Kind(
        bottle, "table", (0.46, 0.78), 1.0, shadow=0.17, twin=True, guest=Guest(bottle, "room", (0.22, 0.3))
    ),
    "car": Kind(car, "road", (0.45, 0.88), 0.42, shadow=0.5, twin=True, elsewhere=("grass",)),
    "cow": Kind(cow, "grass", (0.42, 0.82), 0.75, shadow=0.4, twin=True, elsewhere=("road",)),
    "sofa": Kind(sofa, "room", (0.58, 0.92), 0.5, shadow=0.5, elsewhere=("grass", "road")),
    "train": Kind(train_side, "rails", (0.62, 0.92), 0.42, elsewhere=("road",)),
}
CLASSES = tuple(KINDS)
_GUESTS = {kind.guest.background: name for name, kind in KINDS.items() if kind.guest is not None}

# Rounds through the classes: in which of every 16 an object stands elsewhere or has a guest of another class.
# None comes before the tenth, so that small data sets too keep nine in ten objects on their own background.
_PERIOD = 16
_ELSEWHERE_ROUNDS = (10, 11, 12)
_GUEST_ROUND = 14
_TWIN_SHARE = 0.28


@dataclass(frozen=True)
class Plan:
    """What an image is to show: class names from back to front (none for OoD images) on a background."""

    background: str
    objects: tuple[str, ...] = ()


def plan_image(rng: np.random.Generator, index: int) -> Plan:
    """The plan of labelled image `index`: the classes take turns, nearly always on their own background."""
    turn, number = divmod(index, len(CLASSES))
    turn, name = turn % _PERIOD, CLASSES[number]
    kind = KINDS[name]
    if kind.elsewhere and turn == _ELSEWHERE_ROUNDS[number % len(_ELSEWHERE_ROUNDS)]:
        return Plan(pick(rng, kind.elsewhere), (name,))
    guest = _GUESTS.get(kind.background)
    if guest is not None and turn == _GUEST_ROUND:
        # What flies is far behind, what stands on the ground is small and needs to be in front.
        return Plan(kind.background, (guest, name) if guest == "aeroplane" else (name, guest))
    if kind.twin and chance(rng, _TWIN_SHARE):
        return Plan(kind.background, (name, name))
    return Plan(kind.background, (name,))


def plan_ood(index: int) -> Plan:
    """The plan of OoD image `index`: the backgrounds take turns, without any object."""
    return Plan(tuple(BACKGROUNDS)[index % len(BACKGROUNDS)])


def picture_size(rng: np.random.Generator, long_side: int) -> tuple[int, int]:
    """(height, width) of a picture: mostly landscape, the long side at most `long_side`."""
    long = round(long_side * uniform(rng, 0.88, 1))
    short = round(long / pick(rng, (4 / 3, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 1.2, 1.6)))
    return (long, short) if chance(rng, 0.18) else (short, long)
