"""How many distinct bad inputs the suite holds: the figure that docs/reliability.md states."""

import re

import test_hostile_checkpoints as checkpoints
import test_hostile_files as files
import test_hostile_images as images
import test_hostile_maps as maps
import test_hostile_places as places
import test_hostile_records as records
import test_objectfile as pickles
from conftest import ROOT

TABLES = {
    "pickled arrays": (pickles.HOSTILE, pickles.BOXES, pickles.RAW),
    "pickled code": (files.OBJECT_ATTACKS,),
    "images": (images.FOREIGN, images.NO_FILES),
    "checkpoints": (checkpoints.TENSORS, checkpoints.KEYS),
    "CAMs, instances and labels": (maps.CAMS, maps.INSTANCES, maps.LABELS),
    "networks' outputs": (maps.OUTPUTS,),
    "records and scores": (records.TEXTS, records.ENTRIES, records.MANIFESTS),
    "states of trainings": (records.STATES,),
    "markup": (records.MARKUP,),
    "places": (places.TRIES,),
}
"""Each is a table of named inputs, of which every one is a test of its own; generated ones are not counted."""
LEAST = 200


def test_the_documentation_tells_how_many_bad_inputs_are_refused():
    counts = {kind: sum(len(set(table)) for table in tables) for kind, tables in TABLES.items()}
    assert sum(counts.values()) >= LEAST
    text = (ROOT / "docs/reliability.md").read_text()
    told = {kind: int(count) for kind, count in re.findall(r"^\| ([^|]+) \| (\d+) \|$", text, re.MULTILINE)}
    assert told == {**counts, "all": sum(counts.values())}
