"""Reading every image and mask once before long work, so that no damaged file stops a run after hours."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from misc.errors import InputError, first_three, reason_of
from misc.files.atomic import write_json
from misc.files.images import image_size, open_image, pixel_problem, read_label
from misc.files.jsonfile import read_dict
from misc.imutils import IGNORE_LABEL
from misc.run.progress import progress
from voc12.derived import DERIVED_FOLDER
from voc12.devkit import Devkit
from voc12.instances import read_instances

VERIFIED_RECORD = DERIVED_FOLDER / ".verified.json"


def _problem_of_image(path: Path) -> str | None:
    """Why the file can't be used. JPEGs are decoded at an eighth of their size: it reads all of the file, faster."""
    try:
        with open_image(path) as image:
            if problem := pixel_problem(image):
                return problem
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # a damaged file makes PIL fail in any way
        return reason_of(error)
    return None


def _state(path: Path, others: Sequence[Path], *, kind: str) -> list[str | int] | None:
    """What changes with a file and those that it has to fit; None if it can't be looked at, such as a dangling link."""
    try:
        stats = [path.stat(), *(other.stat() for other in others if other.exists())]
    except OSError:
        return None
    return [kind, *(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns))]


def _verify(
    partners: Mapping[Path, Sequence[Path]],
    problem_of: Callable[[Path], str | None],
    *,
    kind: str,
    num_workers: int,
) -> None:
    """Check files, except those that passed before and have not changed since. Raises `InputError` for the rest.

    `partners`: for each file those that it has to fit, whose change counts as well.
    """
    record = read_dict(VERIFIED_RECORD)
    states = {path: _state(path, others, kind=kind) for path, others in partners.items()}
    new = [p for p, state in states.items() if state is None or record.get(os.path.realpath(p)) != state]
    if not new:
        return
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        bar = progress(pool.map(problem_of, new), total=len(new), desc="checking images", unit="image")
        problems = {path: problem for path, problem in zip(new, bar, strict=True) if problem}
    record.update({os.path.realpath(path): states[path] for path in new if path not in problems})
    write_json(VERIFIED_RECORD, record)
    if problems:
        names = [str(path) for path in problems]
        raise InputError(
            f"{len(names)} of {len(states)} images can't be used ({first_three(names)}; {problems[Path(names[0])]}); "
            "replace them or take them out of the list."
        )


def require_readable(paths: Sequence[Path], *, num_workers: int) -> None:
    """Raise `InputError`, naming the first three, if image files can't be decoded."""
    _verify(dict.fromkeys(paths, ()), _problem_of_image, kind="image", num_workers=num_workers)


def missing_masks(devkit: Devkit, ids: Sequence[str]) -> list[str]:
    """The ids without a ground-truth mask."""
    return [image_id for image_id in ids if not devkit.mask_path(image_id).is_file()]


def require_instances(devkit: Devkit, ids: Sequence[str], *, num_workers: int) -> None:
    """Raise `InputError` if instance masks of `ids` are missing, unreadable, or don't fit the masks of classes.

    The masks of classes are those that `require_masks` has checked.
    """
    missing = [image_id for image_id in ids if not devkit.object_path(image_id).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} instance masks are not in {devkit.root / 'SegmentationObject'} "
            f"({first_three(missing)}), and eval_ins_seg needs them; correct --chainer_eval_set or --voc12_root, or "
            "pass --eval_ins_seg_pass False."
        )
    id_of = {devkit.object_path(image_id): image_id for image_id in ids}

    def problem_of(path: Path) -> str | None:
        try:
            read_instances(devkit, id_of[path])
        except InputError as error:
            return str(error)
        return None

    partners = {path: (devkit.mask_path(image_id),) for path, image_id in id_of.items()}
    _verify(partners, problem_of, kind=f"instances of {len(devkit.classes)} classes", num_workers=num_workers)


def require_masks(devkit: Devkit, ids: Sequence[str], *, num_workers: int, set_flag: str = "chainer_eval_set") -> None:
    """Raise `InputError` if ground-truth masks of `ids` are missing, unreadable, or don't fit image or class list."""
    if missing := missing_masks(devkit, ids):
        raise InputError(
            f"{len(missing)} of {len(ids)} ground-truth masks are not in {devkit.root / 'SegmentationClass'} "
            f"({first_three(missing)}); correct --{set_flag} or --voc12_root."
        )
    image_of = {devkit.mask_path(image_id): devkit.image_path(image_id) for image_id in ids}
    require_fitting_masks(image_of, n_classes=len(devkit.classes), num_workers=num_workers)


def require_fitting_masks(image_of: Mapping[Path, Path], *, n_classes: int, num_workers: int) -> None:
    """Raise `InputError` if masks are unreadable, not of their image's size, or hold ids above `n_classes` (not 255).

    `image_of`: {mask path: image path}.
    """

    def problem_of(path: Path) -> str | None:
        try:
            mask, size = read_label(path), image_size(image_of[path])
        except InputError as error:
            return str(error)
        if mask.shape != size:
            return f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, its image {size[0]} x {size[1]}"
        highest = mask[mask != IGNORE_LABEL].max(initial=0)
        if highest > n_classes:
            return f"the mask has class id {highest}, the class list ends at {n_classes}"
        return None

    partners = {mask: (image,) for mask, image in image_of.items()}
    _verify(partners, problem_of, kind=f"mask of {n_classes} classes", num_workers=num_workers)
