"""Unpacking archives from elsewhere: nothing leaves the folder, no links or devices, no more than was announced."""

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

MAX_ENTRIES = 1_000_000
MAX_GROWTH = 20
"""How many times an archive's own size it may unpack to; pictures hardly shrink at all."""
SMALL = 100_000_000
"""Bytes up to which an archive may unpack whatever its own size."""

DAMAGES = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""What reading a damaged archive raises."""


class BadArchive(Exception):
    """An archive is damaged or must not be unpacked; the message is the reason, without a full stop."""


@dataclass(frozen=True)
class _Member:
    """An entry of an archive. `problem`: why it must not be unpacked; `open`: its content."""

    name: str
    size: int
    is_folder: bool
    problem: str | None
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive (plain, gzip, bzip2 or xz), told by its content, into the new folder `folder`.

    All entries are looked at before the first is written. Files get the usual permissions and today's time, whatever
    the archive says.

    Raises `BadArchive`: for an archive that is damaged, cut short or of another kind; for entries with an absolute
    path or `..`, links of any kind (data need none, and one may lead out of the folder) and devices; for more entries
    or bytes than pictures can be. `OSError` where it can't be written, or if the disk has no room for it. What was
    written by then is left.
    """
    with _opened(archive) as members:
        n_entries, n_bytes = 0, 0
        most = max(SMALL, MAX_GROWTH * archive.stat().st_size)
        free = shutil.disk_usage(folder.parent).free
        for member in members():
            if problem := _problem_of_name(member.name) or member.problem:
                raise BadArchive(f"its entry {member.name!r} {problem}")
            n_entries, n_bytes = n_entries + 1, n_bytes + member.size
            if n_entries > MAX_ENTRIES or n_bytes > most:
                raise BadArchive(f"it has more than {MAX_ENTRIES:,} entries or {most:,} bytes, as no pictures have")
        if n_bytes > free:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {n_bytes:,} bytes needed, {free:,} free")
        folder.mkdir()
        for member in members():
            _write(member, folder)


def is_damaged_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as PyTorch's checkpoints are, whose checksums do not fit its content."""
    try:
        with zipfile.ZipFile(path) as content:
            return content.testzip() is not None
    except DAMAGES:
        return zipfile.is_zipfile(path)


def _problem_of_name(name: str) -> str | None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ":" in parts[0]:
        return "has an absolute path"
    if ".." in parts:
        return "leads out of its folder"
    return "has a name that no file can have" if "\0" in name else None


def _write(member: _Member, folder: Path) -> None:
    target = folder / PurePosixPath(member.name)
    try:
        (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        if member.is_folder:
            return
        with member.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadArchive(f"its entry {member.name!r} is both a file and a folder") from error
    if target.stat().st_size != member.size:
        raise BadArchive(f"its entry {member.name!r} is cut short")


@contextmanager
def _opened(archive: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """Yield a function that goes through the entries. Raises `BadArchive` for whatever goes wrong with the archive."""
    try:
        if tarfile.is_tarfile(archive):  # first: the end of a tar archive may look like that of a zip
            with tarfile.open(archive) as content:
                yield lambda: _tar_members(content)
        else:
            with zipfile.ZipFile(archive) as content:
                yield lambda: _zip_members(content)
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's: gzip and bzip2 give theirs no number
            raise
        raise BadArchive(f"it is damaged, cut short or no zip or tar archive ({error})") from error


def _zip_members(content: zipfile.ZipFile) -> Iterator[_Member]:
    for entry in content.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = None
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link" if kind == stat.S_IFLNK else "is a device or the like"
        elif entry.flag_bits & 1:
            problem = "is encrypted"
        yield _Member(entry.filename, entry.file_size, entry.is_dir(), problem, lambda entry=entry: content.open(entry))


def _tar_members(content: tarfile.TarFile) -> Iterator[_Member]:
    for entry in content:
        problem = None
        if entry.issym() or entry.islnk():
            problem = "is a link"
        elif not entry.isreg() and not entry.isdir():
            problem = "is a device or the like"
        size = entry.size if entry.isreg() else 0
        yield _Member(entry.name, size, entry.isdir(), problem, lambda entry=entry: content.extractfile(entry))
    # tarfile takes an archive that was cut between two entries for a whole one; its end is a block of zeros
    content.fileobj.seek(content.offset)
    if content.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def missing_members(folder: Path, members: Sequence[str]) -> list[str]:
    """Those of the patterns `members` that nothing in `folder` matches."""
    return [pattern for pattern in members if next(folder.glob(pattern), None) is None]


def root_in(unpacked: Path, members: Sequence[str]) -> Path | None:
    """The folder in which all `members` lie: `unpacked`, or the only one nearest to it; None without such a one."""
    level = [unpacked]
    while level:
        found = [folder for folder in level if not missing_members(folder, members)]
        if found:
            return found[0] if len(found) == 1 else None
        level = [path for folder in level for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    return None


def obstacle_to(place: Path, members: Sequence[str]) -> Path | None:
    """What keeps `place_folder` from putting missing `members` in place: a file, or a folder with other content."""
    for pattern in missing_members(place, members):
        top = place / _top(pattern)
        if top.is_file() or (top.is_dir() and any(top.iterdir())):
            return top
    return None


def place_folder(root: Path, place: Path, members: Sequence[str]) -> list[Path]:
    """Rename the folder `root` to `place` or, if that is there already, what it lacks into it.

    Renaming is atomic; both must be on one disk. `members` come last, so that a run that was killed in between is not
    taken for done. Returns what was there before and was left as it is.
    """
    tops = {_top(pattern) for pattern in members}
    if not place.exists() or tops == {"."}:
        root.rename(place)  # also on to an empty folder
        return []
    kept = []
    for path in sorted(root.iterdir(), key=lambda path: path.name in tops):
        target = place / path.name
        if not target.exists() or (target.is_dir() and path.is_dir() and not any(target.iterdir())):
            path.rename(target)
        else:
            kept.append(target)
    return kept


def _top(pattern: str) -> str:
    """The folder in which a member lies, below that of all; `.` for that itself."""
    return pattern.split("/")[0] if "/" in pattern else "."
