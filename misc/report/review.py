"""The page on which a person sorts out candidates for out-of-distribution images, and its decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from misc.errors import InputError
from misc.files.images import write_jpeg
from misc.files.table import read_table, truth_of, write_rows
from misc.report.pictures import heat_overlay
from misc.report.templates import render

TEMPLATE = "review.html.jinja"
REVIEW_FILE = "ood_review.csv"
COLUMNS = ("file", "class", "probability")
DECISION = "shows_object"
EXPECTED = f"expected the file that the page saves: a CSV with the columns file and {DECISION} (0 or 1)"
PICTURE_SIDE = 240
"""The longer side of each of a candidate's two pictures, pixels."""


@dataclass(frozen=True)
class Candidate:
    """An image that may become out-of-distribution data.

    Attributes:
        file: its path.
        content: a name that changes with its content.
        name, probability: of the class that the classifier sees in it.
        picture: the file of its pictures, from the page's folder on.
        shows_object: what a person has decided; None where nobody has.
    """

    file: str
    content: str
    name: str
    probability: float
    picture: str
    shows_object: bool | None = None


def write_pictures(path: Path, image: np.ndarray, cam: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 and, beside it, the same under its CAM (1, H, W) in [0, 1], as one small JPEG."""
    pair = [Image.fromarray(picture) for picture in (image, heat_overlay(image, cam))]
    for picture in pair:
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    write_jpeg(path, np.concatenate([np.asarray(picture) for picture in pair], axis=1))


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write a CSV of `COLUMNS`, a line each."""
    write_rows(path, [COLUMNS, *((each.file, each.name, f"{each.probability:.6f}") for each in candidates)])


def read_review(path: str) -> dict[str, bool]:
    """{file: whether it shows an object} of what the page saved.

    Raises `InputError` if the file can't be read, lacks a column, or a decision is neither 0 nor 1.
    """
    decisions = {}
    for row in read_table(path, kind="--ood_review:", advice=EXPECTED):
        if not {"file", DECISION} <= row.keys():
            raise InputError(f"--ood_review: {path} lacks the column file or {DECISION}; {EXPECTED}.")
        decision = truth_of(row[DECISION])
        if decision is None:
            raise InputError(f"--ood_review: {path} says {row[DECISION]!r} of {row['file']}; {EXPECTED}.")
        decisions[row["file"]] = decision
    return decisions


def render_review(
    candidates: Sequence[Candidate],
    *,
    classes: Sequence[str],
    data_name: str,
    headline: str,
    n_pool: int,
    left_out: str,
) -> str:
    """The page as HTML, self-contained but for the pictures beside it.

    Args:
        candidates: the strongest first.
        classes: the order of the classes on the page.
        data_name: of the data set.
        headline: how many there are, and whether somebody has looked at them, in a sentence.
        n_pool: images in the pool.
        left_out: how many of these are no candidates, and why, in words.
    """
    of_class: Mapping[str, list[Candidate]] = {name: [] for name in classes}
    for candidate in candidates:
        of_class[candidate.name].append(candidate)
    groups = [
        {"number": number, "name": name, "cards": [_card(each) for each in found]}
        for number, (name, found) in enumerate(of_class.items(), start=1)
        if found
    ]
    return render(
        TEMPLATE,
        data_name=data_name,
        made=f"{datetime.now():%d %B %Y, %H:%M}",
        headline=headline,
        is_reviewed=any(each.shows_object is not None for each in candidates),
        n_pool=n_pool,
        left_out=left_out,
        n_candidates=len(candidates),
        groups=groups,
        columns=(*COLUMNS, DECISION),
        review_file=REVIEW_FILE,
    )


def _card(candidate: Candidate) -> dict[str, str | bool]:
    return {
        "id": candidate.content,
        "file": candidate.file,
        "picture": candidate.picture,
        "probability": f"{candidate.probability:.6f}",
        "percent": f"{100 * candidate.probability:.1f} %",
        "shows_object": candidate.shows_object is True,
    }
