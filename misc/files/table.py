"""Tables of text, such as CSV files, row after row, so that a file may be of any size."""

import csv
from collections.abc import Iterator
from pathlib import Path

from misc.errors import InputError, reason_of
from misc.files.regular import regular

SEPARATORS = ",;\t"
"""What a spreadsheet may write between columns."""


def read_rows(path: str | Path, *, flag: str, expected: str) -> Iterator[list[str]]:
    """The rows of a CSV file that are not blank, each as its cells without surrounding spaces.

    Columns are separated by what the first line has most of: commas, semicolons or tabs. A byte order mark is fine.

    Args:
        flag: that names the file, for messages.
        expected: what the file should be, for messages.

    Raises `InputError` if the file can't be read or is no text.
    """
    try:
        with regular(path).open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            for cells in csv.reader(file, delimiter=max(SEPARATORS, key=first.count)):
                if any(cells):
                    yield [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--{flag}: {path} can't be read ({reason_of(error)}); expected {expected}.") from error


def read_table(path: str | Path, *, flag: str, expected: str) -> Iterator[dict[str, str]]:
    """The rows below the first, as {column: cell}; names of columns are in lower case, missing cells are empty.

    The rest as in `read_rows`. Raises `InputError` also if there is no row.
    """
    rows = read_rows(path, flag=flag, expected=expected)
    header = [name.lower() for name in next(rows, [])]
    n_rows = 0
    for n_rows, cells in enumerate(rows, start=1):  # noqa: B007
        yield dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
    if n_rows == 0:
        raise InputError(f"--{flag}: {path} has no rows below its header; expected {expected}.")
