"""docs/reliability.md names tests that there are."""

import re
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tables(text):
    """The rows of each table, as lists of cells; the first row is the header."""
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("| ")):
        if is_table:
            yield [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_promise_has_its_test():
    of_promises = [rows for rows in tables((ROOT / "docs/reliability.md").read_text()) if rows[0][0] == "promise"]
    assert len(of_promises) >= 3
    files = {path.name: path.read_text() for path in ROOT.glob("tests/test_*.py")}
    tests = {name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.M)}
    for rows in of_promises:
        assert rows[0][-1] == "test"
        for promise, *_, proof in (row for row in rows[2:] if not row[0].startswith("**")):
            named = re.findall(r"`(?:tests/)?(test_\w+(?:\.py)?)`", proof)
            assert named, promise
            assert {*named} <= tests | files.keys()
