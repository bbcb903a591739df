"""A generated folder on disk: written aside, put in place whole, checked by its manifest, told from others.

The manifest is one JSON object: a head (who made it, with which settings) and `files`, relative path -> size
and CRC-32.
"""

import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from misc.errors import InputError
from misc.files.disk import told_if_disk_is_full
from misc.files.jsonfile import parse
from misc.files.regular import regular

Fingerprint = list[int]

_MANIFEST = "manifest.json"
_GENERATOR = "voc12.sample"
# How every manifest begins; it tells a data set of ours, even a damaged one, from a folder of somebody else.
_MANIFEST_START = f'{{"generator": "{_GENERATOR}"'
_DEBRIS = (".DS_Store", "Thumbs.db", "desktop.ini")  # what systems leave in any folder that is looked at
_OUR_FILES = re.compile(
    r"JPEGImages/2099_\d{6}\.jpg|Segmentation(Class|Object)/2099_\d{6}\.png|Annotations/2099_\d{6}\.xml"
    r"|ImageSets/Segmentation/(train|val)\.txt|OoD_images/[a-z]+_\d{6}\.jpg|(ood_list|classes)\.txt|manifest\.json"
)


def write_file(folder: Path, name: str, content: bytes) -> Fingerprint:
    """Write one file below `folder` and return its fingerprint. Raises `InputError` if the disk takes no more."""
    path = folder / name
    with told_if_disk_is_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return _fingerprint(content)


def matches_manifest(root: Path, head: dict[str, Any]) -> bool:
    """Whether `root` has a manifest with this head and every file that it lists is there unchanged."""
    try:
        manifest = parse(regular(root / _MANIFEST).read_text())
        files = manifest.pop("files")
        return (
            manifest == {"generator": _GENERATOR, **head}
            and all(map(_OUR_FILES.fullmatch, files))
            and all(
                _fingerprint(regular(root / name).read_bytes()) == fingerprint for name, fingerprint in files.items()
            )
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def check_replaceable(root: Path) -> None:
    """Raise `InputError` unless `root` is free, an empty folder, or a data set of ours without other files."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not root.is_dir() or not _is_ours(root):
        raise InputError(f"{root} exists and is not a sample data set; name another folder or remove it yourself.")
    _check_only_ours(root)


@contextmanager
def writing_aside(root: Path, head: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Fingerprint]]]:
    """Yield an empty folder beside `root` and a dictionary for the fingerprints of the files written to it.

    On success the manifest is added and the folder takes the place of `root`; on failure it is removed. What
    a killed run has left behind is removed first.
    """
    aside, retired = (root.with_name(f".{root.name}.{state}") for state in ("unfinished", "old"))
    for leftover in (aside, retired):
        _remove_ours(leftover)
    aside.mkdir(parents=True)
    try:
        files: dict[str, Fingerprint] = {}
        yield aside, files
        manifest = {"generator": _GENERATOR, **head, "files": dict(sorted(files.items()))}
        write_file(aside, _MANIFEST, json.dumps(manifest).encode())
        check_replaceable(root)
        if root.exists():
            root.rename(retired)
        aside.rename(root)
    finally:
        for leftover in (aside, retired):
            _remove_ours(leftover)


def _fingerprint(content: bytes) -> Fingerprint:
    """Size and CRC-32."""
    return [len(content), zlib.crc32(content)]


def _is_ours(root: Path) -> bool:
    """Whether `root` has our manifest, or has lost its manifest but holds our images."""
    if not (root / _MANIFEST).exists():
        return any(_OUR_FILES.fullmatch(f"JPEGImages/{path.name}") for path in (root / "JPEGImages").glob("*"))
    try:
        with regular(root / _MANIFEST).open(encoding="utf-8") as file:
            return file.read(len(_MANIFEST_START)) == _MANIFEST_START
    except (OSError, ValueError):
        return False


def _check_only_ours(folder: Path) -> None:
    """Raise `InputError` if the folder holds files that this package does not write."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in _DEBRIS or path.name.startswith("._"):
            continue
        if (path.is_symlink() or not path.is_dir()) and not _OUR_FILES.fullmatch(name):
            raise InputError(f"{folder} holds {name}, which is not part of the sample; move it away first.")


def _remove_ours(folder: Path) -> None:
    """Remove a folder that this package wrote, if it exists."""
    if folder.exists():
        _check_only_ours(folder)
        shutil.rmtree(folder)
