"""Image lists: the user's files in every form, the devkit's own splits, and the lists derived from those."""

import logging
import os
import re
from collections.abc import Container
from pathlib import Path

from misc.errors import InputError, first_three
from misc.files.images import has_image_suffix, without_image_suffix
from misc.files.look import Folder, folder_at, read_once, remembered
from misc.files.paths import same_path
from misc.files.text import read_text
from misc.run.notices import notice
from voc12.derived import DERIVED_FOLDER, derived_file, is_derived
from voc12.devkit import Devkit

log = logging.getLogger(__name__)


def _image_column(line: str, *, path: Path) -> str:
    """The line, or its first column where a mask follows: `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`."""
    for gap in re.finditer(r"\s+", line):  # names may have spaces
        columns = line[: gap.start()], line[gap.end() :]
        files = [column.rpartition("/")[2] for column in columns if "/" in column]
        if all(map(has_image_suffix, columns)) or (len(files) == 2 and files[0] == files[1]):
            return columns[0]
    if re.search(r"\s", line) and not has_image_suffix(line):
        raise InputError(f"list {path}: the line {line!r} is neither an id nor an image path and a mask path.")
    return line


def _file_in_images(name: str) -> str:
    """`JPEGImages/ID.jpg`, after whatever path -> `ID.jpg`; any other folder stays: such an image is missing."""
    folder, _, file = name.rpartition("/")
    return file if folder.rpartition("/")[2] in ("JPEGImages", ".") else name


def _present_id(name: str, present: Container[str]) -> str | None:
    """The id of a present image that has this name, path, or number without underscore."""
    file = _file_in_images(name)
    if file in present:
        return file
    bare = without_image_suffix(file)
    return next((image_id for image_id in (bare, _with_underscore(bare)) if image_id in present), None)


def _image_entry(line: str, devkit: Devkit, *, path: Path) -> tuple[str, str]:
    """The image id of a line, and how the list names it: `ID`, `ID.jpg`, a path to it, or two columns."""
    named, present = line.replace("\\", "/"), devkit.image_names
    image_id = _present_id(named, present)
    if image_id is None:
        named = _image_column(named, path=path)
        image_id = _present_id(named, present) or without_image_suffix(_file_in_images(named))
    return image_id, named


def _with_underscore(image_id: str) -> str:
    """`2007000032` -> `2007_000032`, VOC's own form."""
    return re.sub(r"\A(\d{4})(\d{6})\Z", r"\1_\2", image_id)


def _read_lines(path: Path, *, flag: str) -> list[str]:
    try:
        lines = re.split(r"\r\n?|\n", read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"--{flag}: list {path} is missing; expected a text file with one image id a line.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--{flag}: list {path} can't be read ({error}); expected one image id a line.") from error
    return [line.strip() for line in lines if line.strip()]


def read_list(devkit: Devkit, path: str | Path, *, flag: str) -> list[str]:
    """The image ids of a list file, in its order, each once; each image is there.

    One id a line, with or without VOC's underscore, or a path to the image in `JPEGImages`, with `/` or `\\`; a mask's
    path may follow. Any line ending, a byte order mark, blank lines and names with spaces are all right.
    The lists `voc12/train.txt`, `val.txt` and `train_aug.txt` are derived from the devkit where they are missing, and
    anew when it has changed.

    Raises `InputError`, naming `flag`, if the file is missing or empty, or if images are missing.
    """
    path = Path(path)
    if path.suffix == ".txt" and path.stem in _DERIVED_LISTS and same_path(path.parent, DERIVED_FOLDER):
        return remembered(("derived ids", devkit.root, path), lambda: _derived_ids(devkit, path, flag=flag))
    return read_once(path, lambda: _ids_of(devkit, path, flag=flag), "ids", devkit.root)


def _derived_ids(devkit: Devkit, path: Path, *, flag: str) -> list[str]:
    _refresh_list(devkit, path)
    return _ids_of(devkit, path, flag=flag)


def _ids_of(devkit: Devkit, path: Path, *, flag: str) -> list[str]:
    entries = [_image_entry(line, devkit, path=path) for line in _read_lines(path, flag=flag)]
    if not entries:
        raise InputError(f"--{flag}: list {path} is empty; expected one image id a line.")
    missing = [named for image_id, named in entries if image_id not in devkit.image_names]
    if missing:
        raise InputError(
            f"--{flag}: {len(missing)} of the {len(entries)} images of {path} are not in {devkit.image_folder} "
            f"({first_three(missing)}); correct the list or --voc12_root."
        )
    _tell_ids_of_several_files(devkit, entries, path=path, flag=flag)
    ids = [image_id for image_id, _ in entries]
    unique = list(dict.fromkeys(ids))
    if len(unique) < len(ids):
        log.info("%s names %d images more than once; each is used once", path, len(ids) - len(unique))
    return unique


def _tell_ids_of_several_files(devkit: Devkit, entries: list[tuple[str, str]], *, path: Path, flag: str) -> None:
    """Tell the log of ids with several files, of which one is read.

    `entries`: (id, how the list names it). Raises `InputError` if the list names another one of them.
    """
    several = [(image_id, named) for image_id, named in entries if image_id in devkit.hidden_images]
    for image_id, named in several:
        if (file := _file_in_images(named)) in devkit.hidden_images[image_id]:
            raise InputError(
                f"--{flag}: {path} names {file}, and {devkit.image_folder} has {devkit.image_names[image_id]}, too, "
                f"which would be read in its place: both are the image {image_id}; rename or remove one."
            )
    if several:
        shown = [f"{devkit.image_names[i]}, not {' or '.join(devkit.hidden_images[i])}" for i in dict(several)]
        notice(
            f"{len(shown)} images of {path} have several files in {devkit.image_folder} that differ in the suffix "
            f"alone; read are {first_three(shown)}"
        )


def read_split(devkit: Devkit, split: str, *, flag: str = "chainer_eval_set") -> list[str]:
    """The ids of the devkit's own `ImageSets/Segmentation/<split>.txt`, for evaluations."""
    return read_list(devkit, devkit.split_path(split), flag=flag)


def _split_ids(devkit: Devkit, split: str) -> list[str]:
    path = devkit.split_path(split)
    if not path.is_file():
        raise InputError(
            f"list {path} is missing, so voc12/{split}.txt can't be made; name a list with the list flags."
        )
    return [_image_entry(line, devkit, path=path)[0] for line in _read_lines(path, flag="voc12_root")]


def _train_aug_ids(devkit: Devkit) -> list[str]:
    """Every id with a mask in `SegmentationClassAug` (VOC and SBD), minus `val`."""
    folder = devkit.root / "SegmentationClassAug"
    names = folder_at(folder)
    if not len(names) and not folder.is_dir():
        raise InputError(
            f"{folder} is missing, so voc12/train_aug.txt can't be made; put VOC's augmented masks there "
            "(Data/README.md), or name other lists, such as --train_list voc12/train.txt --infer_list voc12/train.txt."
        )
    val_ids = _split_ids(devkit, "val")
    held_out = {*val_ids, *map(_with_underscore, val_ids)}
    stems = [name.removesuffix(".png") for name in names if name.endswith(".png") and not name.startswith(".")]
    if not_text := [ascii(stem) for stem in stems if not is_text(stem)]:
        notice(f"{folder} has masks whose names no list can hold, left out: {first_three(not_text)}")
    return sorted(stem for stem in stems if is_text(stem) and stem not in held_out)


def is_text(name: str) -> bool:
    """Whether a table or a list can hold a file's name or path: one line of UTF-8, whereas names are any bytes."""
    return not re.search(r"[\r\n\ud800-\udfff]", name)


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
    with derived_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    log.info("made %s from %s: %d images", path, devkit.root, text.count("\n"))


class _Files:
    """The files below a folder, found without a look at each: every folder that is asked for is listed once."""

    def __init__(self, root: Path) -> None:
        self._root, self._own_names = str(root), {root.name, root.resolve().name}
        self._listed: dict[str, Folder] = {}

    def find(self, line: str) -> str | None:
        """The path of a line: a file's from the folder on, an absolute one, or one that repeats the folder's name."""
        name = line.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        starts = [number for number, part in enumerate(parts[:-1], start=1) if part in self._own_names]
        paths = [name] if name.startswith("/") else []
        paths += [os.path.join(self._root, *parts[start:]) for start in (0, *starts)]
        return next((path for path in paths if self._has(path)), None)

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listed:
            self._listed[folder] = folder_at(folder)
        return name in self._listed[folder]


def read_ood_paths(ood_root: str, ood_list: str) -> list[Path]:
    """Paths of the out-of-distribution images, each once: one file name a line, or a path that may repeat the folder.

    Raises `InputError` if the folder or the list is missing, the list is empty, or files are missing.
    """
    root = Path(ood_root)
    if not root.is_dir():
        raise InputError(
            f"--ood_root {root} is missing; WOoD_dataset/openimages/README.md says what to put there for VOC, and "
            "--mine_ood_pass finds OoD images for data of your own (docs/mining.md)."
        )
    return read_once(ood_list, lambda: _ood_paths_of(root, ood_list), "OoD paths", root)


def _ood_paths_of(root: Path, ood_list: str) -> list[Path]:
    lines = list(dict.fromkeys(_read_lines(Path(ood_list), flag="ood_list")))
    if not lines:
        raise InputError(f"--ood_list: list {ood_list} is empty; expected one file name a line.")
    files = _Files(root)
    path_of = {line: files.find(line) for line in lines}
    missing = [line for line, path in path_of.items() if path is None]
    if missing:
        raise InputError(
            f"--ood_list: {len(missing)} of the {len(lines)} images of {ood_list} are not in {root} "
            f"({first_three(missing)}); correct the list or --ood_root."
        )
    return [Path(path) for path in dict.fromkeys(path_of.values())]
