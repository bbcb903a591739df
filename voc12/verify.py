"""Reading every image and mask once before long work, so that no damaged file stops a run after hours."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

import numpy as np

from misc.errors import InputError, first_three, raise_if_of_the_machine, reason_of, requirement
from misc.files import look
from misc.files.atomic import write_json
from misc.files.images import ON_ITS_SIDE, image_size, open_image, pixel_problem, read_label, stored_orientation
from misc.files.jsonfile import read_dict
from misc.files.paths import Paths
from misc.imutils import IGNORE_LABEL
from misc.run.depends import checksum, checksums, of_same_content
from misc.run.notices import notice
from misc.run.parallel import chunked_map
from misc.run.progress import progress
from voc12.derived import DERIVED_FOLDER
from voc12.devkit import Devkit
from voc12.importing.devkit import turned_originals
from voc12.importing.pictures import content_if_turned
from voc12.instances import instances_of

VERIFIED_FOLDER = DERIVED_FOLDER / ".verified"

NO_CLASS_ID = "no class id"
"""Of a mask that holds 0 and 255 alone: one such mask is sound, a list of nothing else is not."""
FOLDER = "folder"
"""In a record, beside the kinds of checks."""
CHECKSUM = "checksum"
"""The kind of check whose state ends with a file's checksum."""

Row = tuple[str, ...]
"""A file, and those that it has to fit."""
Columns = tuple[Paths, ...]
"""The same of many: the files, and in further columns those that each has to fit."""


def _problem_of_image(files: Row) -> str | None:
    """Why the file can't be used. JPEGs are decoded at an eighth of their size: it reads all of the file, faster."""
    try:
        with open_image(files[0]) as image:
            if problem := pixel_problem(image):
                return problem
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # a damaged file makes PIL fail in any way
        raise_if_of_the_machine(error, memory=True)
        return reason_of(error)
    return None


def _problem_of_mask(files: Row, *, n_classes: int) -> str | None:
    """Why the mask does not fit its image or the classes; `NO_CLASS_ID` for one that fits and is empty."""
    try:
        mask, size = read_label(files[0]), image_size(files[1])
    except InputError as error:
        return str(error)
    if mask.shape != size:
        problem = f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, its image {size[0]} x {size[1]}"
        if mask.shape == size[::-1] and stored_orientation(files[1]) in ON_ITS_SIDE:
            problem += (
                " as it is stored and read, and an EXIF orientation by which it was turned for the mask; store the "
                "photograph upright, without one"
            )
        return problem
    highest = mask[mask != IGNORE_LABEL].max(initial=0)
    if highest > n_classes:
        return f"the mask has class id {highest}, the class list ends at {n_classes}"
    return None if highest else NO_CLASS_ID


def _problem_of_instances(files: Row, *, n_classes: int) -> str | None:
    """Why the instances do not fit the mask of classes."""
    try:
        instances_of(*files, n_classes=n_classes)
    except InputError as error:
        return str(error)
    return None


class _Verified:
    """The files that passed, with their sizes and times and those of the files that they fit.

    `VERIFIED_FOLDER` has a record for each folder of files, so that other data sets cost nothing: a JSON object of the
    folder's name, and a text `NAME/STATE/NAME/STATE...` for each kind of check. What is gone is left out.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, dict[str, str]]] = {}
        self._lists: set[tuple[str, Columns]] = set()

    def _of_folder(self, folder: str, kind: str) -> dict[str, str]:
        """{name: state} of the files of a folder that passed."""
        folder = os.path.realpath(folder)
        if folder not in self._known:
            texts = read_dict(record_of(folder))
            self._known[folder] = {key: _by_name(text) for key, text in texts.items() if isinstance(text, str)}
        return self._known[folder].setdefault(kind, {})

    def without_passed(self, lists: Iterable[Columns], kind: str) -> list[Columns]:
        """The lists without those that passed as a whole in this run."""
        return [columns for columns in lists if (kind, columns) not in self._lists]

    def new(self, lists: Iterable[Columns], kind: str) -> dict[Row, str | None]:
        """The files of lists that have not passed as they are now, and their states; None for a link to nothing."""
        new: dict[Row, str | None] = {}
        for columns in lists:
            for folder, group in groupby(zip(_states(columns), *columns, strict=True), key=_folder_of_row):
                known = self._of_folder(folder, kind)
                for state, *files in group:
                    if state is None or known.get(os.path.basename(files[0])) != state:
                        new[tuple(files)] = state
        return new

    def n_passed(self, columns: Columns, kind: str) -> int:
        """How many files of a list passed as they are now; all lie in one folder."""
        if not len(columns[0]) or not self._of_folder(os.path.dirname(columns[0][0]), kind):
            return 0
        return len(columns[0]) - len(self.new([columns], kind))

    def add(self, passed: Mapping[Row, str | None], kind: str) -> None:
        """Write the records of these files' folders with these as well; beside a new one, remove those of folders that
        are gone."""
        changed = set()
        for (path, *_), state in passed.items():
            if state is not None:
                folder = os.path.dirname(path)
                self._of_folder(folder, kind)[os.path.basename(path)] = state
                changed.add(os.path.realpath(folder))
        for folder in changed:
            present = look.folder_at(folder)
            texts = {
                each: "/".join(part for pair in known.items() if pair[0] in present for part in pair)
                for each, known in self._known[folder].items()
                if each != FOLDER
            }
            is_new = not record_of(folder).exists()
            write_json(record_of(folder), {FOLDER: folder, **texts})
            if is_new:
                _remove_records_of_gone_folders()

    def add_lists(self, lists: Iterable[Columns], kind: str) -> None:
        """Remember for this run that all files of these lists passed."""
        self._lists.update((kind, columns) for columns in lists)

    def checksums(self, paths: Sequence[str]) -> list[str]:
        """crc32 of each file, which is read once until its size or time changes."""
        new, found = {}, []
        for path, state in zip(paths, _states((_as_paths(paths),)), strict=True):
            known = self._of_folder(os.path.dirname(path), CHECKSUM).get(os.path.basename(path), "")
            if state is None or not known.startswith(f"{state} "):
                known = f"{state} {checksum(path)}"
                new[(path,)] = known
            found.append(known.rpartition(" ")[2])
        if new:
            self.add(new, CHECKSUM)
        return found


def _folder_of_row(row: tuple) -> str:
    return row[1].rpartition("/")[0]


def record_of(folder: str | Path) -> Path:
    """The record of the files of a folder that passed."""
    return VERIFIED_FOLDER / f"{blake2b(os.fsencode(os.path.realpath(folder)), digest_size=8).hexdigest()}.json"


def _remove_records_of_gone_folders() -> None:
    for record in VERIFIED_FOLDER.glob("*.json"):
        if not os.path.isdir(str(read_dict(record).get(FOLDER))):
            record.unlink(missing_ok=True)


def _by_name(text: str) -> dict[str, str]:
    parts = text.split("/")
    return dict(zip(parts[::2], parts[1::2], strict=False))


def _states(columns: Columns) -> Iterator[str | None]:
    """What changes with a file and those that it has to fit; None if the file can't be looked at."""
    rows = np.concatenate([look.states(column)[:, :2] for column in columns], axis=1)
    for size, time, *others in map(np.ndarray.tolist, rows):
        fitting = "".join(f" {number}" for number in others if number != look.MISSING)
        yield None if size == look.MISSING else f"{size} {time}{fitting}"


def _verify(lists: Iterable[Columns], problem_of: Callable[[Row], str | None], *, kind: str, num_workers: int) -> None:
    """Check files, except those that passed before and have not changed since. Raises `InputError` for the rest.

    `lists`: of each the files and, in further columns, those that they have to fit, whose change counts as well.
    """
    record = look.remembered("verified files", _Verified)
    lists = record.without_passed(lists, kind)
    if new := record.new(lists, kind):
        found = chunked_map(problem_of, [*new], workers=num_workers, flag="num_workers")
        bar = progress(found, total=len(new), desc="checking images", unit="image")
        problems = {files: problem for files, problem in zip(new, bar, strict=True) if problem}
        empty = {files: new[files] for files, problem in problems.items() if problem == NO_CLASS_ID}
        problems = {files: problem for files, problem in problems.items() if files not in empty}
        if empty:
            record.add(empty, f"{kind}, {NO_CLASS_ID}")
        record.add({files: state for files, state in new.items() if files not in problems}, kind)
        if problems:
            names = [path for path, *_ in problems]
            n_files = len({path for first, *_ in lists for path in first})
            raise InputError(
                f"{len(names)} of {n_files} images can't be used ({first_three(names)}; "
                f"{next(iter(problems.values()))}); replace them, or take them out."
            )
    record.add_lists(lists, kind)


@requirement
def require_readable(*lists: Sequence[str | Path], num_workers: int) -> None:
    """Raise `InputError`, naming the first three, if image files of these lists can't be decoded."""
    columns = [(_as_paths(files),) for files in lists]
    _verify(columns, _problem_of_image, kind="image", num_workers=num_workers)


def _as_paths(files: Sequence[str | Path]) -> Paths:
    return files if isinstance(files, Paths) else Paths("", map(str, files))


def images_among(
    paths: Sequence[str | Path],
    devkit: Devkit,
    ids: Sequence[str],
    *,
    checksums: Callable[[Sequence[str]], list[str]] = checksums,
) -> dict[int, int]:
    """{number of a file: number of an id} of the files that are, byte for byte, an image of the devkit.

    So are photographs that import_data has turned upright to make an image. Only files that are as large as an image
    are read, and where there are turned images the headers of the others. `checksums`: gives those of files.
    """
    same = of_same_content(_as_paths(paths), devkit.image_paths(ids), checksums=checksums)
    if turned := turned_originals(devkit.root):
        number_of = {image_id: number for number, image_id in enumerate(ids)}
        for number, path in enumerate(progress(paths, desc="looking for turned images", unit="image", leave=False)):
            if number not in same and (original := turned.get(content_if_turned(path))) in number_of:
                same[number] = number_of[original]
    return same


def require_no_training_images(
    ood_paths: Sequence[str | Path], devkit: Devkit, ids: Sequence[str], *, list_flag: str, train_flag: str
) -> None:
    """Raise `InputError` if out-of-distribution images are, as `images_among` has it, images of `ids` of the devkit.

    `ids`: those of training images that carry a class. A file is read once, until it changes.
    """
    checksums = look.remembered("verified files", _Verified).checksums
    same = images_among(ood_paths, devkit, ids, checksums=checksums)
    if same:
        train_paths = devkit.image_paths(ids)
        shown = first_three([f"{ood_paths[number]} is {train_paths[other]}" for number, other in same.items()])
        raise InputError(
            f"--{list_flag}: {len(same)} of {len(ood_paths)} out-of-distribution images are images of --{train_flag} "
            f"that carry classes ({shown}), so the losses contradict each other; take them out of --{list_flag}."
        )


def missing_masks(devkit: Devkit, ids: Sequence[str]) -> list[str]:
    """The ids without a ground-truth mask."""
    return _missing(devkit.mask_paths(ids), ids)


def _missing(paths: Paths, ids: Sequence[str]) -> list[str]:
    """The ids whose files are not there."""
    places = look.remembered(("missing", paths), lambda: np.flatnonzero(look.states(paths)[:, 0] == look.MISSING))
    return [ids[place] for place in places]


@requirement
def require_instances(devkit: Devkit, ids: Sequence[str], *, num_workers: int) -> None:
    """Raise `InputError` if instance masks of `ids` are missing, unreadable, or don't fit the masks of classes.

    The masks of classes are those that `require_masks` has checked.
    """
    paths, n_classes = devkit.object_paths(ids), len(devkit.classes)
    if missing := _missing(paths, ids):
        raise InputError(
            f"{len(missing)} of {len(ids)} instance masks are not in {devkit.object_folder} "
            f"({first_three(missing)}), and eval_ins_seg needs them; correct --chainer_eval_set or --voc12_root, or "
            "pass --eval_ins_seg_pass False."
        )
    _verify(
        [(paths, devkit.mask_paths(ids))],
        partial(_problem_of_instances, n_classes=n_classes),
        kind=f"instances of {n_classes} classes",
        num_workers=num_workers,
    )


@requirement
def require_masks(devkit: Devkit, ids: Sequence[str], *, num_workers: int, set_flag: str = "chainer_eval_set") -> None:
    """Raise `InputError` if ground-truth masks of `ids` are missing, unreadable, or don't fit image or class list."""
    if missing := missing_masks(devkit, ids):
        raise InputError(
            f"{len(missing)} of {len(ids)} ground-truth masks are not in {devkit.mask_folder} "
            f"({first_three(missing)}); correct --{set_flag} or --voc12_root."
        )
    masks, images = devkit.mask_paths(ids), devkit.image_paths(ids)
    require_fitting_masks(masks, images, n_classes=len(devkit.classes), num_workers=num_workers)


@requirement
def require_fitting_masks(
    mask_paths: Paths,
    image_paths: Paths,
    *,
    n_classes: int,
    num_workers: int,
    advice: str = "write ids in the order of the class list",
) -> None:
    """Raise `InputError` if masks are unreadable, not of their image's size, or hold ids above `n_classes` (not 255).

    Also, with `advice`, if none of them holds the id of a class, as where 255 marks the objects; some may hold none.

    Args:
        image_paths: the image of each mask.
        advice: what to do then; empty: nothing, the log is told.
    """
    if not len(mask_paths):
        return
    folder = os.path.dirname(mask_paths[0])
    present = look.folder_at(folder)
    if any(os.path.basename(path) not in present for path in mask_paths):
        return  # which `misc.run.plan.require_outputs` has told
    columns, kind = (mask_paths, image_paths), f"mask of {n_classes} classes"
    _verify([columns], partial(_problem_of_mask, n_classes=n_classes), kind=kind, num_workers=num_workers)
    n_empty = look.remembered("verified files", _Verified).n_passed(columns, f"{kind}, {NO_CLASS_ID}")
    if n_empty == len(mask_paths) and advice:
        raise InputError(
            f"none of the {n_empty} masks such as {mask_paths[0]} holds the id of a class: their values are 0 "
            f"(background) and {IGNORE_LABEL} (not counted) alone, expected some of 1 to {n_classes}; {advice}."
        )
    if n_empty:
        notice(f"{n_empty} of {len(mask_paths)} masks in {folder} show none of the classes")
