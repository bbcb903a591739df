"""Files that the project derives from the devkit and keeps in `voc12/`.

A record beside them tells them from the user's own files, by checksum, and says what they were made from: a derived
file follows the devkit when that changes, a file of the user's is left alone. Runs on several devkits take turns with
these files: what a run has read of them stays as it was until its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misc.files.atomic import atomic_path, write_json
from misc.files.checksum import crc32_of
from misc.files.jsonfile import read_dict
from misc.run.lock import alone_in

DERIVED_FOLDER = Path("voc12")
DERIVED_RECORD = ".derived.json"


def is_derived(path: Path, *, source: str | None = None) -> bool:
    """Whether the project made the file at `path` (from `source`, if given) and nobody has changed it since."""
    entry = read_dict(path.parent / DERIVED_RECORD).get(path.name)
    if not isinstance(entry, dict):
        return False
    known = {entry.get("checksum")} if source is None or entry.get("source") == source else set()
    if source is None:
        known.add(entry.get("before"))
    return crc32_of(path) in known


def note_of(path: Path) -> str:
    """The note that was given with the derived file at `path`; empty if there was none."""
    entry = read_dict(path.parent / DERIVED_RECORD).get(path.name)
    note = entry.get("note") if isinstance(entry, dict) else None
    return note if isinstance(note, str) else ""


@contextmanager
def derived_file(path: Path, *, source: str = "", note: str = "") -> Iterator[Path]:
    """Yield a temporary name; what is written there becomes the file at `path`, of which the record says from what.

    `note`: a sentence on what was found while it was made, to be told again when it is used.

    The record is written first, and knows the derived file that is replaced as well: a run that dies between the two
    leaves neither of them to be taken for the user's own. A second run waits.
    """
    with alone_in(path.parent), atomic_path(path) as temporary:
        yield temporary
        before = crc32_of(path) if path.is_file() and is_derived(path) else None
        record = read_dict(path.parent / DERIVED_RECORD)
        record[path.name] = {"checksum": crc32_of(temporary), "source": source, "before": before, "note": note}
        write_json(path.parent / DERIVED_RECORD, record)
