"""Before the first step: make a devkit of photographs of one's own (not in the original)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from misc.errors import InputError, first_three
from misc.files import look
from misc.files.table import TABLE_SUFFIXES, is_table
from misc.run.config import Config
from misc.run.lock import locked
from misc.run.notices import notice
from misc.run.plan import Planned, require_writable
from misc.run.step import Step
from voc12.importing.coco import read_coco
from voc12.importing.devkit import (
    LEFT_OUT,
    look_at,
    read_present,
    remove_unfinished,
    require_own_folder,
    require_room_for,
    without_mask,
    write_additions,
    write_left_out,
)
from voc12.importing.folders import read_folders
from voc12.importing.plan import plan_import
from voc12.importing.source import LeftOut, Source
from voc12.importing.tables import read_label_table
from voc12.importing.telling import class_table, reasons

STEP = Step(
    name="import_data",
    description="make a devkit of images sorted into folders, of a COCO file or of a table of labels",
    reads=("import_from", "import_images"),
    writes=("voc12_root",),
    flags=("import_no_class", "import_val_share", "seed"),
    memory_flags=("num_workers",),
    remembered=False,
)

log = logging.getLogger(__name__)

EXPECTED = f"expected a folder with one subfolder a class, a COCO file (.json) or a table ({', '.join(TABLE_SUFFIXES)})"


def _read(args: Config) -> Source:
    """What the source holds. Raises `InputError` if it is none."""
    if not args.import_from:
        raise InputError(f"import_data needs --import_from; {EXPECTED}.")
    path = Path(args.import_from)
    images = Path(args.import_images or path.parent)
    if path.is_dir():
        if args.import_images:
            raise InputError(
                f"--import_images is for tables and COCO files; --import_from {path} is a folder: drop it."
            )
        return read_folders(path, no_class=args.import_no_class)
    if not path.exists():
        raise InputError(f"--import_from {path} is missing; {EXPECTED}.")
    if is_table(path):
        return read_label_table(path, images, no_class=args.import_no_class)
    if path.suffix.lower() != ".json":
        raise InputError(f"--import_from {path} is none of the kinds that are read; {EXPECTED}.")
    if args.import_no_class:
        raise InputError(
            "--import_no_class is for folders and tables; an image without annotations has no class in a COCO file: "
            "drop it."
        )
    return read_coco(path, images)


def _source(args: Config) -> Source:
    """What the source holds, read once a run."""
    key = ("import", args.import_from, args.import_images, args.import_no_class)
    return look.remembered(key, lambda: _read(args))


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (other steps check what is there by then)."""
    root = Path(args.voc12_root)
    if root.resolve() == Path(Config().voc12_root).resolve():
        raise InputError(f"import_data needs --voc12_root, a folder of its own such as Data/mine; {root} is VOC's.")
    _require_apart(root, args)
    require_own_folder(root)
    _source(args)
    require_writable(root, flag="voc12_root", is_own=False)
    read_present(root)
    return {}


def _require_apart(root: Path, args: Config) -> None:
    """Raise `InputError` if the devkit would lie among the images that are imported, or these in the devkit."""
    folder, own = Path(args.import_from).resolve(), root.resolve()
    is_folder = bool(args.import_from) and folder.is_dir()
    if is_folder and (folder in (own, *own.parents) or own in folder.parents):
        raise InputError(
            f"--voc12_root {root} and --import_from {args.import_from} lie within each other; name another folder for "
            "the devkit."
        )


def run(args: Config) -> None:
    """Make, or add to, the devkit `voc12_root`; say what it holds then, and what was left out."""
    root, source, name = Path(args.voc12_root), _source(args), str(Path(args.import_from).resolve())
    with locked([root]):
        if n_removed := remove_unfinished(root):
            log.info("removed %d images that an interrupted import was adding to %s", n_removed, root)
        present = read_present(root)
        facts = look_at(source.images, num_workers=args.num_workers)
        plan = plan_import(source, name, facts, present, share=args.import_val_share, seed=args.seed)
        require_room_for([addition.image for addition in plan.additions], root)
        added, damaged = write_additions(root, plan, num_workers=args.num_workers)
        left_out = [*plan.left_out, *damaged]
        if not added and not present.rows:
            raise InputError(f"--import_from {name}: none of its images can be used ({first_three(reasons(damaged))}).")
        write_left_out(root, left_out)
        after = read_present(root)
    log.info("%s\n%s", root, class_table(after))
    n_turned = sum(addition.row.is_turned for addition in added)
    log.info(
        "added %d images (%d of them turned upright, as EXIF says); %d were there already",
        len(added),
        n_turned,
        plan.n_known,
    )
    _tell(left_out, root)
    with_class = [image_id for image_id, names in after.labels_of_ids.items() if names]
    if unmasked := without_mask(root, with_class):
        notice(
            f"{len(unmasked)} of {len(with_class)} images with a class have no mask: they are trained with, and no "
            "evaluation counts them"
        )
    if present.classes and after.classes != present.classes:
        new = first_three([*after.classes[len(present.classes) :]])
        notice(f"new classes: {new}; networks that were trained before do not know them")


def _tell(left_out: Sequence[LeftOut], root: Path) -> None:
    for line in reasons(left_out):
        log.info("left out: %s", line)
    if left_out:
        log.info("%s names all that was left out", root / LEFT_OUT)
