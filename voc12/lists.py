"""Image lists: the user's files in every form, the devkit's own splits, and the lists derived from those."""

import logging
import re
from pathlib import Path

from misc.errors import InputError, first_three
from misc.files import atomic_path
from voc12.derived import DERIVED_FOLDER, is_derived, record_derived
from voc12.devkit import IMAGE_SUFFIXES, Devkit

log = logging.getLogger(__name__)


def _bare_id(line: str, *, path: Path) -> str:
    """The image id of a line: `ID`, `ID.jpg`, or `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`."""
    columns = line.split()
    if len(columns) > 2 or (len(columns) == 2 and "/" not in columns[0]):
        raise InputError(f"list {path}: the line {line!r} is neither an id nor an image path and a mask path.")
    name = columns[0].replace("\\", "/")
    folder, _, file = name.rpartition("/")
    if folder.rsplit("/", 1)[-1] == "JPEGImages":  # any other folder stays: such an image is then reported missing
        name = file
    return name.rsplit(".", 1)[0] if name.endswith(IMAGE_SUFFIXES) else name


def _with_underscore(image_id: str) -> str:
    """`2007000032` -> `2007_000032`, VOC's own form."""
    return re.sub(r"\A(\d{4})(\d{6})\Z", r"\1_\2", image_id)


def _read_lines(path: Path, *, flag: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"--{flag}: list {path} is missing; expected a text file with one image id a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--{flag}: list {path} can't be read ({error}); expected one image id a line.") from error
    return [line.strip() for line in lines if line.strip()]


def read_list(devkit: Devkit, path: str | Path, *, flag: str) -> list[str]:
    """The image ids of a list file, in its order, each once; each image is there.

    One id a line, with or without VOC's underscore, any line ending, blank lines ignored; also the two-column form.
    The lists `voc12/train.txt`, `val.txt` and `train_aug.txt` are derived from the devkit where they are missing.

    Raises `InputError`, naming `flag`, if the file is missing or empty, or if images are missing.
    """
    path = Path(path)
    if path.parent == DERIVED_FOLDER and path.stem in _DERIVED_LISTS and path.suffix == ".txt":
        _refresh_list(devkit, path)
    ids = [_bare_id(line, path=path) for line in _read_lines(path, flag=flag)]
    if not ids:
        raise InputError(f"--{flag}: list {path} is empty; expected one image id a line.")
    present = {file.stem for file in (devkit.root / "JPEGImages").iterdir() if file.suffix in IMAGE_SUFFIXES}
    ids = [i if i in present else _with_underscore(i) for i in ids]
    missing = [i for i in ids if i not in present]
    if missing:
        raise InputError(
            f"--{flag}: {len(missing)} of the {len(ids)} images of {path} are not in {devkit.root / 'JPEGImages'} "
            f"({first_three(missing)}); correct the list or --voc12_root."
        )
    unique = list(dict.fromkeys(ids))
    if len(unique) < len(ids):
        log.info("%s names %d images more than once; each is used once", path, len(ids) - len(unique))
    return unique


def read_split(devkit: Devkit, split: str, *, flag: str = "chainer_eval_set") -> list[str]:
    """The ids of the devkit's own `ImageSets/Segmentation/<split>.txt`, for evaluations."""
    return read_list(devkit, devkit.split_path(split), flag=flag)


def _split_ids(devkit: Devkit, split: str) -> list[str]:
    path = devkit.split_path(split)
    if not path.is_file():
        raise InputError(
            f"list {path} is missing, so voc12/{split}.txt can't be made; name a list with the list flags."
        )
    return [_bare_id(line, path=path) for line in _read_lines(path, flag="voc12_root")]


def _train_aug_ids(devkit: Devkit) -> list[str]:
    """Every id with a mask in `SegmentationClassAug` (VOC and SBD), minus `val`."""
    folder = devkit.root / "SegmentationClassAug"
    if not folder.is_dir():
        raise InputError(
            f"{folder} is missing, so voc12/train_aug.txt can't be made; put VOC's augmented masks there "
            "(Data/README.md), or name other lists, such as --train_list voc12/train.txt --infer_list voc12/train.txt."
        )
    val_ids = _split_ids(devkit, "val")
    held_out = {*val_ids, *map(_with_underscore, val_ids)}
    return sorted(mask.stem for mask in folder.glob("[!.]*.png") if mask.stem not in held_out)


_DERIVED_LISTS = {
    "train": lambda devkit: _split_ids(devkit, "train"),
    "val": lambda devkit: _split_ids(devkit, "val"),
    "train_aug": _train_aug_ids,
}


def _refresh_list(devkit: Devkit, path: Path) -> None:
    """Write a derived list, unless the user's own file lies there."""
    if path.is_file() and not is_derived(path):
        return
    text = "".join(f"{image_id}\n" for image_id in _DERIVED_LISTS[path.stem](devkit))
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    record_derived(path)
    log.info("made %s from %s: %d images", path, devkit.root, text.count("\n"))


def read_ood_paths(ood_root: str, ood_list: str) -> list[Path]:
    """Paths of the out-of-distribution images, one file name a line.

    Raises `InputError` if the folder or the list is missing, the list is empty, or files are missing.
    """
    root = Path(ood_root)
    if not root.is_dir():
        raise InputError(f"--ood_root {root} is missing; WOoD_dataset/openimages/README.md says what to put there.")
    names = list(dict.fromkeys(_read_lines(Path(ood_list), flag="ood_list")))
    if not names:
        raise InputError(f"--ood_list: list {ood_list} is empty; expected one file name a line.")
    paths = [root / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"--ood_list: {len(missing)} of the {len(names)} images of {ood_list} are not in {root} "
            f"({first_three(missing)}); correct the list or --ood_root."
        )
    return paths
