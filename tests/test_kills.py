"""The whole chain, killed again and again at random moments, ends as an undisturbed one (docs/reliability.md)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support import NO_STEPS, make_toy_data

import run_sample
from misc.run.provenance import RECORD
from tests.test_going_on import CHAIN, FLAGS, outputs

N_KILLS = int(os.environ.get("WOOD_KILLS", "10"))
LONGEST_PAUSE = 1.0
"""Seconds from one look at the records to the kill."""


def steps_of(folder):
    """{step: whether it has ended} of the steps that have begun."""
    records = [json.loads(path.read_text()) for path in (folder / "result/steps").glob("*.json")]
    return {record["step"]: bool(record["finished"]) for record in records}


def made_twice(folder):
    """How many files the records name more than once."""
    lines = Counter(
        (record.parent, json.loads(line)["file"])
        for record in folder.rglob(RECORD)
        for line in record.read_text().splitlines()
        if line.endswith("}")
    )
    return sum(n - 1 for n in lines.values())


@pytest.mark.slow
def test_killed_again_and_again_the_chain_ends_as_undisturbed(tmp_path, monkeypatch, capsys):
    """Each kill comes within a step that none has hit yet, as long as there are such."""
    rng = random.Random(0)
    undisturbed, toy = (make_toy_data(tmp_path / name) for name in ("undisturbed", "killed"))
    flags = NO_STEPS | CHAIN | FLAGS | {"voc12_root": toy.root, "ood_root": toy.ood_root, "ood_list": toy.ood_list}
    monkeypatch.chdir(undisturbed.work)
    run_sample.run(undisturbed.flags(**flags))
    expected = outputs()
    line = [sys.executable, run_sample.__file__, *toy.flags(**flags)]
    hit = Counter()
    for _ in range(N_KILLS):
        process = subprocess.Popen(line, cwd=toy.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pause = rng.uniform(0, LONGEST_PAUSE)
        while process.poll() is None:
            under_way = [name for name, ended in steps_of(toy.work).items() if not ended and name not in hit]
            if under_way:
                time.sleep(pause)
                process.send_signal(signal.SIGKILL)
                process.wait()
                under_way = [name for name, ended in steps_of(toy.work).items() if not ended]
                hit[under_way[0] if under_way else "between two steps"] += 1
            time.sleep(0.005)
        if process.returncode == 0:
            break
    assert subprocess.run(line, cwd=toy.work, capture_output=True, check=False).returncode == 0
    monkeypatch.chdir(toy.work)
    given = outputs()
    with capsys.disabled():
        print(f"\nkilled {hit.total()} times: {dict(hit)}; files made twice: {made_twice(toy.work)}")
    assert given.keys() == expected.keys()
    assert [name for name, content in given.items() if content != expected[name]] == []
    assert made_twice(toy.work) == 0
    assert not [*Path().rglob("*.part*"), *Path().rglob("*.lock")]
