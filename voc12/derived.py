"""Files that the project derives from the devkit and keeps in `voc12/`.

A record beside them tells them from the user's own files, by checksum, and says what they were made from: a derived
file follows the devkit when that changes, a file of the user's is left alone.
"""

import zlib
from pathlib import Path

from misc.files.atomic import write_json
from misc.files.jsonfile import read_dict

DERIVED_FOLDER = Path("voc12")
DERIVED_RECORD = ".derived.json"


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def is_derived(path: Path, *, source: str | None = None) -> bool:
    """Whether the project made the file at `path` (from `source`, if given) and nobody has changed it since."""
    entry = read_dict(path.parent / DERIVED_RECORD).get(path.name)
    if not isinstance(entry, dict):
        return False
    if source is not None and entry.get("source") != source:
        return False
    return entry.get("checksum") == _checksum(path)


def record_derived(path: Path, *, source: str = "") -> None:
    """Note that the project made the file at `path`, and from what."""
    record = read_dict(path.parent / DERIVED_RECORD)
    record[path.name] = {"checksum": _checksum(path), "source": source}
    write_json(path.parent / DERIVED_RECORD, record)
