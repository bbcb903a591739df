"""What an import says at its end."""

from collections import Counter
from collections.abc import Sequence

from misc.errors import first_three, printable
from voc12.importing.plan import Present
from voc12.importing.source import LeftOut

SHOWN_LETTERS = 30


def class_table(devkit: Present) -> str:
    """Images of each class in the two lists, those without any, and all, as lines of text."""
    labels_of = devkit.labels_of_ids
    counts: tuple[Counter[str | None], Counter[str | None]] = (Counter(), Counter())
    totals = [0, 0]
    for row in devkit.rows:
        if (names := labels_of.get(row.image_id)) is not None:
            counts[row.is_held_out].update(names or [None])
            totals[row.is_held_out] += 1
    lines = [(name, *(str(of_list[name]) for of_list in counts)) for name in devkit.classes]
    lines += [("without a class", *(str(of_list[None]) for of_list in counts)), ("all images", *map(str, totals))]
    width = min(SHOWN_LETTERS, max(len(name) for name, *_ in lines))
    header = f"{'class':{width}}  {'train':>7}  {'val':>7}"
    return "\n".join([header, *(f"{name[:width]:{width}}  {train:>7}  {val:>7}" for name, train, val in lines)])


def reasons(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each reason: how many files, why, and the first three of them."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        name = printable(item.name)
        by_reason.setdefault(item.reason, []).append(f"{name}: {printable(item.detail)}" if item.detail else name)
    return [f"{len(names)} {reason} ({first_three(names)})" for reason, names in by_reason.items()]
