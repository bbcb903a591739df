"""Reading every image and mask once before long work, so that no damaged file stops a run after hours."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path

from PIL import Image

from misc.errors import InputError, first_three
from misc.files import look
from misc.files.atomic import write_json
from misc.files.images import image_size, pixel_problem, read_label
from misc.files.jsonfile import read_dict
from misc.imutils import IGNORE_LABEL
from misc.run.parallel import ordered_map
from misc.run.progress import progress
from voc12.derived import DERIVED_FOLDER
from voc12.devkit import Devkit
from voc12.instances import instances_of

VERIFIED_RECORD = DERIVED_FOLDER / ".verified.json"
FILES_A_TASK = 64
"""That a process checks at a time; so few are not worth a process."""

Files = tuple[str, ...]
"""A file, and those that it has to fit."""


def _problem_of_image(files: Files) -> str | None:
    """Why the file can't be used. JPEGs are decoded at an eighth of their size: it reads all of the file, faster."""
    try:
        with Image.open(files[0]) as image:
            if problem := pixel_problem(image):
                return problem
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def _problem_of_mask(files: Files, *, n_classes: int) -> str | None:
    """Why the mask does not fit its image or the classes."""
    try:
        mask, size = read_label(files[0]), image_size(files[1])
    except InputError as error:
        return str(error)
    if mask.shape != size:
        return f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, its image {size[0]} x {size[1]}"
    highest = mask[mask != IGNORE_LABEL].max(initial=0)
    if highest > n_classes:
        return f"the mask has class id {highest}, the class list ends at {n_classes}"
    return None


def _problem_of_instances(files: Files, *, n_classes: int) -> str | None:
    """Why the instances do not fit the mask of classes."""
    try:
        instances_of(*files, n_classes=n_classes)
    except InputError as error:
        return str(error)
    return None


def _problems(chunk: Sequence[Files], *, problem_of: Callable[[Files], str | None]) -> list[str | None]:
    return [problem_of(files) for files in chunk]


class _Verified:
    """`VERIFIED_RECORD`: the files that passed, with their sizes and times and those of the files that they fit.

    The JSON object has a text for each folder and kind of check, `NAME/STATE/NAME/STATE...`, which is taken apart only
    where it is asked for, so that other data sets cost no time. Folders and files that are gone are left out.
    """

    def __init__(self) -> None:
        self._texts = {key: text for key, text in read_dict(VERIFIED_RECORD).items() if isinstance(text, str)}
        self._known: dict[str, dict[str, str]] = {}
        self._seen: set[tuple[str, str]] = set()

    def _of_folder(self, folder: str, kind: str) -> dict[str, str]:
        """{name: state} of the files of a folder that passed."""
        key = f"{os.path.realpath(folder)}: {kind}"
        if key not in self._known:
            parts = self._texts.get(key, "").split("/")
            self._known[key] = dict(zip(parts[::2], parts[1::2], strict=False))
        return self._known[key]

    def new(self, files: Sequence[Files], kind: str) -> dict[Files, str | None]:
        """Those that have not passed as they are now, and their states; what has passed in this run is not asked for.

        Of files that can't be looked at, such as links to nothing, the state is None.
        """
        unseen = [of_file for of_file in files if (kind, of_file[0]) not in self._seen]
        states = dict(zip(unseen, _states(unseen), strict=True))
        new = {}
        for folder, group in groupby(unseen, key=lambda of_file: os.path.dirname(of_file[0])):
            known = self._of_folder(folder, kind)
            for of_file in group:
                if states[of_file] is None or known.get(os.path.basename(of_file[0])) != states[of_file]:
                    new[of_file] = states[of_file]
                else:
                    self._seen.add((kind, of_file[0]))
        return new

    def add(self, passed: Mapping[Files, str | None], kind: str) -> None:
        """Write the record with these files as well."""
        for (path, *_), state in passed.items():
            if state is not None:
                self._of_folder(os.path.dirname(path), kind)[os.path.basename(path)] = state
                self._seen.add((kind, path))
        for key, known in self._known.items():
            present = look.folder_at(_folder_of(key))
            self._texts[key] = "/".join(part for pair in known.items() if pair[0] in present for part in pair)
        write_json(VERIFIED_RECORD, {key: text for key, text in self._texts.items() if os.path.isdir(_folder_of(key))})


def _folder_of(key: str) -> str:
    return key.rpartition(": ")[0]


def _states(files: Sequence[Files]) -> list[str | None]:
    """What changes with a file and those that it has to fit; None if the file can't be looked at."""
    columns = [look.states(column)[:, :2].tolist() for column in zip(*files, strict=True)]
    states: list[str | None] = []
    for first, *others in zip(*columns, strict=True):
        there = [first, *(other for other in others if other[0] != look.MISSING)]
        states.append(None if first[0] == look.MISSING else " ".join(f"{size} {time}" for size, time in there))
    return states


def _verify(files: Iterable[Files], problem_of: Callable[[Files], str | None], *, kind: str, num_workers: int) -> None:
    """Check files, except those that passed before and have not changed since. Raises `InputError` for the rest.

    `files`: each with those that it has to fit, whose change counts as well.
    """
    files = [*dict.fromkeys(files)]
    record = look.remembered("verified files", _Verified)
    new = record.new(files, kind)
    if not new:
        return
    items = iter(new)
    chunks = iter(lambda: [*islice(items, FILES_A_TASK)], [])
    workers = num_workers if len(new) > FILES_A_TASK else 0
    found = ordered_map(partial(_problems, problem_of=problem_of), chunks, workers=workers, flag="num_workers")
    bar = progress(chain.from_iterable(found), total=len(new), desc="checking images", unit="image")
    problems = {of_file: problem for of_file, problem in zip(new, bar, strict=True) if problem}
    record.add({of_file: state for of_file, state in new.items() if of_file not in problems}, kind)
    if problems:
        names = [path for path, *_ in problems]
        raise InputError(
            f"{len(names)} of {len(files)} images can't be used ({first_three(names)}; "
            f"{next(iter(problems.values()))}); replace them or take them out of the list."
        )


def require_readable(paths: Iterable[str | Path], *, num_workers: int) -> None:
    """Raise `InputError`, naming the first three, if image files can't be decoded."""
    _verify(((os.fspath(path),) for path in paths), _problem_of_image, kind="image", num_workers=num_workers)


def missing_masks(devkit: Devkit, ids: Sequence[str]) -> list[str]:
    """The ids without a ground-truth mask."""
    return _missing(devkit.mask_paths(ids), ids)


def _missing(paths: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The ids whose files are not there."""
    return [image_id for image_id, size in zip(ids, look.states(paths)[:, 0], strict=True) if size == look.MISSING]


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
        zip(paths, devkit.mask_paths(ids), strict=True),
        partial(_problem_of_instances, n_classes=n_classes),
        kind=f"instances of {n_classes} classes",
        num_workers=num_workers,
    )


def require_masks(devkit: Devkit, ids: Sequence[str], *, num_workers: int, set_flag: str = "chainer_eval_set") -> None:
    """Raise `InputError` if ground-truth masks of `ids` are missing, unreadable, or don't fit image or class list."""
    if missing := missing_masks(devkit, ids):
        raise InputError(
            f"{len(missing)} of {len(ids)} ground-truth masks are not in {devkit.mask_folder} "
            f"({first_three(missing)}); correct --{set_flag} or --voc12_root."
        )
    masks, images = devkit.mask_paths(ids), devkit.image_paths(ids)
    require_fitting_masks(masks, images, n_classes=len(devkit.classes), num_workers=num_workers)


def require_fitting_masks(
    mask_paths: Sequence[str], image_paths: Sequence[str], *, n_classes: int, num_workers: int
) -> None:
    """Raise `InputError` if masks are unreadable, not of their image's size, or hold ids above `n_classes` (not 255).

    `image_paths`: the image of each mask.
    """
    _verify(
        zip(mask_paths, image_paths, strict=True),
        partial(_problem_of_mask, n_classes=n_classes),
        kind=f"mask of {n_classes} classes",
        num_workers=num_workers,
    )
