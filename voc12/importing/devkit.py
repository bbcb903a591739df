"""The devkit that sources are imported into: what it holds, and the writing of what is added.

Nothing is half imported: a list of what is being added is written first and removed last, and the lists of images come
after all else. Where it is found, a run was killed, and what it had added is removed before anything is read.
"""

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from misc.errors import InputError, reason_of
from misc.files import look
from misc.files.atomic import atomic_path
from misc.files.devkitfiles import (
    ALL_IMAGES,
    CLASS_LIST,
    IMPORT_RECORD,
    LABEL_TABLE,
    TO_EVALUATE,
    list_path,
)
from misc.files.disk import room_for
from misc.files.images import turned_upright, without_image_suffix, write_palette
from misc.files.table import read_rows, write_rows
from misc.files.text import read_text
from misc.run.notices import notice
from misc.run.parallel import chunked_map
from misc.run.progress import progress
from voc12.classes import read_classes, voc_palette, write_classes
from voc12.cocoids import COCO_IDS, read_coco_ids, write_coco_ids
from voc12.devkit import Devkit
from voc12.importing.masks import masks_of
from voc12.importing.pictures import Facts, facts_of, place_image, suffix_in_devkit
from voc12.importing.plan import Addition, ImportPlan, Present, Row
from voc12.importing.source import LeftOut, SourceImage
from voc12.labelcsv import read_table, write_table

UNFINISHED = ".import_unfinished.txt"
LEFT_OUT = "left_out.csv"
TRAIN, VAL = "train", "val"
COLUMNS = ("id", "file", "source", "list", "content", "turned")
RECORD, RECORD_ADVICE = "record", "put back the file that import_data wrote, or import into a new folder"
Item, Result = TypeVar("Item"), TypeVar("Result")


def require_own_folder(root: Path) -> None:
    """Raise `InputError` unless a devkit can be imported to `root`: it is new, has no files, or was imported."""
    is_free = not os.path.lexists(root) or (root.is_dir() and all(path.is_dir() for path in root.rglob("*")))
    if is_free or _is_imported(root):
        return
    raise InputError(
        f"--voc12_root {root} is there and was not made by import_data, which would mix its files with others; name a "
        "new folder."
    )


def _is_imported(root: Path) -> bool:
    return any(os.path.isfile(root / name) for name in (IMPORT_RECORD, UNFINISHED))


def read_present(root: Path) -> Present:
    """What an imported devkit holds; nothing of what a killed run was adding.

    Raises `InputError` if its record, classes or labels are damaged.
    """
    unfinished = _unfinished_ids(root)
    rows = tuple(row for row in _read_rows(root / IMPORT_RECORD) if row.image_id not in unfinished)
    classes = read_classes(root / CLASS_LIST) if rows else ()
    ids = {row.image_id for row in rows} | unfinished
    names = Devkit(root, classes).image_names
    return Present(
        rows, classes, _labels(root, classes) if rows else {}, tuple(name for name in names if name not in ids)
    )


def turned_originals(root: Path) -> dict[str, str]:
    """{digest of a photograph's bytes: id} of those that were turned upright, so that their images have other bytes.

    Empty for a devkit that was not imported. Raises `InputError` if its record is damaged.
    """
    return {row.content: row.image_id for row in _read_rows(root / IMPORT_RECORD) if row.is_turned}


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = [cells for _, cells in read_rows(path, kind=RECORD, advice=RECORD_ADVICE)]
    if not rows or tuple(rows[0]) != COLUMNS:
        problem = f"its first line is not {','.join(COLUMNS)}"
    elif any(len(cells) != len(COLUMNS) for cells in rows):
        problem = f"a line has not {len(COLUMNS)} columns"
    else:
        return [_row(*cells) for cells in rows[1:]]
    raise InputError(f"{RECORD} {path} can't be read ({problem}); {RECORD_ADVICE}.")


def _row(image_id: str, file: str, source: str, split: str, content: str, turned: str) -> Row:
    return Row(image_id, file, source, split == VAL, content, turned == "1")


def _labels(root: Path, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{file in the devkit: names of its classes}, of the table of labels."""
    table = read_table(root / LABEL_TABLE, kind="label file", known=classes)
    return dict(zip(table.files, table.labels, strict=True))


def _unfinished_ids(root: Path) -> set[str]:
    """The ids that a killed run was adding."""
    return {*_lines(root / UNFINISHED)}


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({reason_of(error)}); put it back, or allow it.") from error


def remove_unfinished(root: Path) -> int:
    """Remove the images and masks that a killed run has added; returns how many images it was adding."""
    ids = _unfinished_ids(root)
    devkit = Devkit(root, ())
    for image_id in ids:
        if image_id in devkit.image_names:
            devkit.image_path(image_id).unlink()
        devkit.mask_path(image_id).unlink(missing_ok=True)
        devkit.object_path(image_id).unlink(missing_ok=True)
    look.forget([root])
    return len(ids)


def look_at(images: Sequence[SourceImage], *, num_workers: int) -> list[Facts | str]:
    """What each image file is, or why it can't be read."""
    return _mapped(facts_of, [image.path for image in images], num_workers=num_workers, desc="looking at images")


def _mapped(function: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int, desc: str) -> list[Result]:
    found = chunked_map(function, items, workers=num_workers, flag="num_workers")
    return [*progress(found, total=len(items), desc=desc, unit="image")]


def require_room_for(images: Iterable[SourceImage], root: Path) -> None:
    """Raise `InputError` if images would have to be copied and the disk has no room for them."""
    device = root.stat().st_dev
    states = [image.path.stat() for image in images]
    needed = sum(state.st_size for state in states if state.st_dev != device)
    for room in room_for([(root, needed)]):
        if not room.suffices:
            raise InputError(
                f"--voc12_root {root}: the images have to be copied, which takes {room}; name a folder on the disk of "
                "--import_from, where links take no room."
            )


def write_additions(root: Path, plan: ImportPlan, *, num_workers: int) -> tuple[list[Addition], list[LeftOut]]:
    """Add the planned images, their masks, labels, ids and classes to a devkit, and write its lists.

    Returns what was added, and what turned out, while it was written, to be damaged.
    """
    present, unfinished = read_present(root), _unfinished_ids(root)
    ids = [addition.row.image_id for addition in plan.additions]
    with atomic_path(root / UNFINISHED) as temporary:
        temporary.write_text("".join(f"{image_id}\n" for image_id in dict.fromkeys((*unfinished, *ids))))
    Devkit(root, ()).image_folder.mkdir(exist_ok=True)
    class_ids = {name: number for number, name in enumerate(plan.classes, start=1)}
    problems = _mapped(
        partial(_write_image, root=root, class_ids=class_ids),
        plan.additions,
        num_workers=num_workers,
        desc="importing images",
    )
    pairs = [*zip(plan.additions, problems, strict=True)]
    added = [addition for addition, problem in pairs if problem is None]
    damaged = [LeftOut(addition.image.name, "can't be read", problem) for addition, problem in pairs if problem]
    if added or (unfinished and present.rows):
        _write_tables(root, plan, present, added, unfinished)
    (root / UNFINISHED).unlink()
    return added, damaged


def file_name(addition: Addition) -> str:
    """The name of the image's file in the devkit."""
    return f"{addition.row.image_id}{suffix_in_devkit(addition.facts)}"


def _write_image(addition: Addition, *, root: Path, class_ids: Mapping[str, int]) -> str | None:
    """Write an image and its masks; why that can't be done, None if it is done."""
    devkit, image_id, image = Devkit(root, ()), addition.row.image_id, addition.image
    masks = None
    if image.objects is not None:
        try:
            masks = masks_of(image.objects, addition.mask_size, class_ids)
        except ValueError as error:
            return reason_of(error)
    target = devkit.image_folder / file_name(addition)
    if problem := place_image(image.path, target, addition.facts):
        return problem
    if masks is not None:
        for path, mask in zip((devkit.mask_path(image_id), devkit.object_path(image_id)), masks, strict=True):
            write_palette(path, turned_upright(mask, addition.mask_orientation), voc_palette())
    return None


def _write_tables(
    root: Path, plan: ImportPlan, present: Present, added: Sequence[Addition], unfinished: set[str]
) -> None:
    """Classes, labels, ids and the record; then the lists.

    What is there stays, except lines of `unfinished` images and, where any image has a mask, those of images without
    one in the lists of evaluations.
    """
    rows = [*present.rows, *(addition.row for addition in added)]
    labels = [(file, names) for file, names in present.labels.items() if without_image_suffix(file) not in unfinished]
    labels += [(file_name(addition), addition.image.labels) for addition in added]
    write_classes(root / CLASS_LIST, plan.classes)
    write_table(root / LABEL_TABLE, labels)
    _write_coco_ids(root, plan, added, unfinished)
    _write_record(root, rows)
    has_class = {without_image_suffix(file) for file, names in labels if names}
    unmasked = without_mask(root, has_class)
    new = {addition.row.image_id for addition in added}
    to_evaluate = has_class - unmasked
    evaluated = [row for row in rows if row.image_id in to_evaluate]
    for kind, wanted, dropped in ((ALL_IMAGES, rows, unfinished), (TO_EVALUATE, evaluated, unfinished | unmasked)):
        for split in (TRAIN, VAL):
            path = list_path(root, kind, split)
            is_there, of_split = path.exists(), [row.image_id for row in wanted if row.is_held_out == (split == VAL)]
            lines = [line for line in _lines(path) if line not in dropped]
            lines += [image_id for image_id in of_split if image_id in new or not is_there]
            if lines:
                with atomic_path(path) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            else:
                path.unlink(missing_ok=True)


def without_mask(root: Path, ids: Iterable[str]) -> set[str]:
    """Those of the images that have no ground-truth mask; none of them where the devkit has no masks at all."""
    masked = {path.stem for path in Devkit(root, ()).mask_folder.glob("*.png")}
    return {*ids} - masked if masked else set()


def _write_coco_ids(root: Path, plan: ImportPlan, added: Sequence[Addition], unfinished: Container[str]) -> None:
    """Ids that are known already stay; a new one that another has is not remembered, and the log is told of it."""
    categories, images = read_coco_ids(root)
    images = {image_id: number for image_id, number in images.items() if image_id not in unfinished}
    new_images = {addition.row.image_id: addition.image.coco_id for addition in added}
    n_taken = []
    for known, new in ((images, new_images), (categories, plan.category_ids)):
        taken = {*known.values()}
        unknown = {name: number for name, number in new.items() if number is not None and name not in known}
        known |= {name: number for name, number in unknown.items() if number not in taken}
        n_taken.append(sum(number in taken for number in unknown.values()))
    if any(n_taken):
        notice(
            f"{n_taken[0]} images and {n_taken[1]} categories have ids in the COCO file that others have in "
            f"{root / COCO_IDS}, and get new ones in make_cocoann"
        )
    if categories or images:
        write_coco_ids(root, categories, images)


def _write_record(root: Path, rows: Iterable[Row]) -> None:
    lines = [
        (row.image_id, row.file, row.source, VAL if row.is_held_out else TRAIN, row.content, int(row.is_turned))
        for row in rows
    ]
    write_rows(root / IMPORT_RECORD, [COLUMNS, *lines])


def write_left_out(root: Path, left_out: Iterable[LeftOut]) -> None:
    """Write `left_out.csv`: what a source holds that did not become an image, and why."""
    rows = [(item.name, item.reason, item.detail) for item in left_out]
    write_rows(root / LEFT_OUT, [("file", "reason", "detail"), *rows])
