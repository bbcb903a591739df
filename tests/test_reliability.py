"""docs/reliability.md names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_promise_has_its_test():
    rows = re.findall(r"^\| (?!\*\*|promise|---)(.+) \| (.*) \|$", (ROOT / "docs/reliability.md").read_text(), re.M)
    tests = {
        name for path in ROOT.glob("tests/test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert rows
    for promise, proof in rows:
        named = re.findall(r"`(test_\w+)`", proof)
        assert named, promise
        assert {*named} <= tests
