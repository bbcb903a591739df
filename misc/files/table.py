"""CSV tables, read row after row, so that a file may be of any size, and written."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from misc.errors import InputError, reason_of
from misc.files.atomic import atomic_path
from misc.files.regular import regular
from misc.files.text import UTF16_MARKS, encoding_of

TABLE_SUFFIXES = (".csv", ".tsv")
SEPARATORS = ",;\t"
"""What a spreadsheet may write between columns."""
TRUTH = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


def is_table(path: str | Path) -> bool:
    """Whether a file's name says that it is such a table."""
    return Path(path).suffix.lower() in TABLE_SUFFIXES


def truth_of(cell: str) -> bool | None:
    """What a cell of 0 or 1 says, also as other programs write it; None for any other text."""
    return TRUTH.get(cell.lower())


def read_rows(path: str | Path, *, kind: str, advice: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank: the number of the line on which each ends, and its cells as they are.

    Columns are separated by what the first line has most of: commas, semicolons or tabs. The text is in one of the
    encodings of `misc.files.text`.

    Args:
        kind: what the file is called in messages, or the flag that names it.
        advice: what the file should be, or what to do, as the end of a message.

    Raises `InputError` if the file can't be read or is no text.
    """
    try:
        with regular(path).open("rb") as file:
            encoding = encoding_of(file.read(len(UTF16_MARKS[0])))
        with regular(path).open(encoding=encoding, newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=max(SEPARATORS, key=first.count))
            for cells in lines:
                if any(map(str.strip, cells)):
                    yield lines.line_num, cells
    except FileNotFoundError as error:
        raise InputError(f"{kind} {path} is missing; {advice}.") from error
    except UnicodeError as error:
        raise InputError(f"{kind} {path} can't be read ({reason_of(error)}); save it as UTF-8: {advice}.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{kind} {path} can't be read ({reason_of(error)}); {advice}.") from error


def read_table(path: str | Path, *, kind: str, advice: str) -> Iterator[dict[str, str]]:
    """The rows below the first, as {column: cell}, without spaces around them.

    Names of columns are in lower case, missing cells are empty; the rest as in `read_rows`. Raises `InputError` also if
    there is no row.
    """
    rows = ([cell.strip() for cell in cells] for _, cells in read_rows(path, kind=kind, advice=advice))
    header = [name.lower() for name in next(rows, [])]
    n_rows = 0
    for n_rows, cells in enumerate(rows, start=1):  # noqa: B007
        yield dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
    if n_rows == 0:
        raise InputError(f"{kind} {path} has no rows below its header; {advice}.")


def write_rows(path: str | Path, rows: Iterable[Sequence[str | int]]) -> None:
    """Write a CSV file as a whole; bytes of a file's name that are no text become backslashes and digits."""
    options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with atomic_path(path) as temporary, temporary.open("w", **options) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
