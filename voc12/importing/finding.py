"""Finding the images that a file names."""

import os
from pathlib import Path

from misc.errors import InputError, first_three
from misc.files.look import Folder, folder_at
from voc12.importing.source import LeftOut


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

    def find(self, name: str) -> Path | None:
        """The file of a name: a path from the folder on, an absolute one, or one whose last part is in the folder."""
        plain = name.replace("\\", "/")
        for candidate in (os.path.join(self._root, plain), os.path.join(self._root, plain.rpartition("/")[2])):
            folder, file = os.path.split(candidate)
            if folder not in self._listed:
                self._listed[folder] = folder_at(folder)
            if file in self._listed[folder]:
                return Path(candidate)
        self.missing.append(LeftOut(name, f"not in {self._root}"))
        return None

    def require_some(self, n_found: int, *, source: Path) -> None:
        """Raise `InputError` if none of the images that were asked for is there."""
        if not n_found:
            names = [item.name for item in self.missing]
            raise InputError(
                f"--import_from {source}: none of its {len(names)} images is in {self._root} ({first_three(names)}); "
                "pass --import_images FOLDER, the one that these names are relative to."
            )
