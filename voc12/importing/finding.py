"""Finding the images that a file names."""

import os
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from misc.errors import InputError, first_three, printable
from misc.files.images import IMAGE_SUFFIXES, has_image_suffix
from misc.files.look import Folder, folder_at
from misc.run.notices import notice
from voc12.importing.source import LeftOut

SUFFIX_EXPECTED = "expected the names of files with their suffix"


class ImageFolder:
    """The folder that a file's image names are relative to; each folder is listed once.

    `missing`: the names that were not found.
    """

    def __init__(self, root: Path) -> None:
        """Raises `InputError` if there is no such folder."""
        if not root.is_dir():
            raise InputError(f"--import_images {root} is no folder; expected the one with the images.")
        self._root = root
        self._listed: dict[str, Folder] = {}
        self.missing: list[LeftOut] = []

    def find_all(self, names: Sequence[str]) -> list[Path | None]:
        """The file of each name: a path from the folder on, an absolute one, or one whose last part is in the folder.

        None for a name without a file. Tells the log of names that were found by their last part alone. Raises
        `InputError` if that gives a name the file of another, since one of them lies elsewhere.
        """
        plain = [name.replace("\\", "/") for name in names]
        whole = {name: path for name in plain if (path := self._file_at(name))}
        others = [name for name in dict.fromkeys(plain) if name not in whole]
        by_last_part = {name: path for name in others if (path := self._file_at(name.rpartition("/")[2]))}
        owners = {os.path.normpath(path): name for name, path in whole.items()}
        for name, path in by_last_part.items():
            if (owner := owners.setdefault(os.path.normpath(path), name)) != name:
                raise InputError(
                    f"--import_images {self._root}: {owner} and {name} are both {path} by the last part of their "
                    f"names; {self._advice(owner, name)}."
                )
        if by_last_part:
            name, path = next(iter(by_last_part.items()))
            notice(
                f"{len(by_last_part)} of {len({*plain})} names were found by their last part alone, such as "
                f"{printable(f'{name} -> {path}')}"
            )
        found = [whole.get(name) or by_last_part.get(name) for name in plain]
        self.missing += [
            LeftOut(name, f"not in {self._root}") for name, path in zip(names, found, strict=True) if path is None
        ]
        return [path and Path(path) for path in found]

    def _file_at(self, name: str) -> str | None:
        """The path of a file that the folder has under a name, or of the one image that has it before its suffix.

        Raises `InputError` if several images have it.
        """
        # Accents may have another of Unicode's forms on the disk than in the table, where one of them is from macOS
        forms = dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name)))
        return next(filter(None, map(self._file_called, forms)), None)

    def _file_called(self, name: str) -> str | None:
        path = os.path.join(self._root, name)
        folder, file = os.path.split(path)
        if folder not in self._listed:
            self._listed[folder] = folder_at(folder)
        listed = self._listed[folder]
        if file in listed:
            return path
        image = None if has_image_suffix(file) else listed.by_stem(IMAGE_SUFFIXES).get(file)
        if image and (others := listed.hidden(IMAGE_SUFFIXES).get(file)):
            raise InputError(
                f"--import_images {self._root}: {name} may be {first_three([image, *others])} in {folder}; "
                f"{SUFFIX_EXPECTED}."
            )
        return image and os.path.join(folder, image)

    def _advice(self, *names: str) -> str:
        """What to pass instead of a folder in which two names are one file."""
        above = (folder for folder in self._root.parents if all((folder / name).is_file() for name in names))
        return f"pass --import_images {next(above, 'FOLDER')}, the one that both names are relative to"

    def require_some(self, n_found: int, *, source: Path) -> None:
        """Raise `InputError` if none of the images that were asked for is there."""
        if not n_found:
            names = [item.name for item in self.missing]
            expected = "" if all(map(has_image_suffix, names)) else f"{SUFFIX_EXPECTED}; "
            raise InputError(
                f"--import_from {source}: none of its {len(names)} images is in {self._root} ({first_three(names)}); "
                f"{expected}pass --import_images FOLDER, the one that these names are relative to."
            )
