"""Records, states and scores that are damaged or made to do harm: left out or made anew, never a traceback."""

import copy
import html
import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import TOY_CLASSES, generated

from misc.files.jsonfile import DEEPEST, LARGEST, parse, read_dict
from misc.report.collect import collect_arm
from misc.report.page import chart_files, render_page
from misc.run.provenance import RECORD, Provenance
from misc.run.record import metrics_log
from misc.run.training_state import TrainingState, saved_step
from misc.selection import CheckpointSelection
from misc.torchutils import two_rate_optimizer
from tests import own_network
from voc12.classes import names_with_background
from voc12.derived import DERIVED_RECORD, derived_file, is_derived
from voc12.sample.storage import check_replaceable, matches_manifest

# JSON, or what looks like it, that no reader may stumble over
TEXTS = {
    "nothing": b"",
    "half": b'{"a": [1, 2',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "text": b'"a"',
    "no text": b"\xff\xfe\x00",
    "no JSON": b"hello",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in a value": b'{"a": ' + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1) + b"}",
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": [Infinity, -Infinity]}',
    "beyond floats": b'{"a": 1e999}',
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "a number beyond 64 bits": b'{"a": 9223372036854775808}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_plain_json_is_read_as_nothing(tmp_path, name):
    path = tmp_path / "x.json"
    path.write_bytes(TEXTS[name])
    assert read_dict(path) == {}
    folder = tmp_path / "folder"
    folder.mkdir()
    assert read_dict(folder) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@generated(100)
@given(JSON)
def test_parsed_json_is_finite_or_refused(value):
    text = json.dumps(value)
    try:
        found = parse(text)
    except ValueError:
        plain = "NaN" not in text and "Infinity" not in text
        numbers = [item for item in _leaves(value) if isinstance(item, int) and not isinstance(item, bool)]
        assert not plain or any(not -LARGEST <= number < LARGEST for number in numbers)
    else:
        assert found == value


def _leaves(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


NAMES = names_with_background(TOY_CLASSES)
SCORES = dict.fromkeys(("iou", "precision", "recall"), [0.5, None, 0.25, 1.0]) | {"miou": 0.5}


def write_sound_results(folder):
    """A result folder with all that the report reads."""
    for name in ("runs", "scores", "metrics"):
        (folder / name).mkdir(parents=True)
    head = {"voc12_root": "data", "set": "train", "images": 6, "folder": "x", "classes": NAMES}
    curve = {"best": SCORES, "best_threshold": 0.1, "miou_by_threshold": {"0.1": 0.5, "0.2": None, "1e-05": 0.4}}
    write(folder / "scores/eval_cam.json", {**head, **curve})
    write(folder / "scores/eval_sem_seg.json", {**head, **SCORES})
    write(folder / "scores/eval_deeplab.json", {**head, **SCORES, "weights": "w.pth"})
    instances = {"voc12_root": "data", "classes": NAMES[1:], "map": 0.5, "iou_threshold": 0.5}
    write(folder / "scores/eval_ins_seg.json", instances)
    done = [
        {"step": step, "seconds": 1.5, "peak_memory_mib": {"process": 10.0, "gpu": 3}}
        for step in ("train_cam", "train_deeplab", "eval_deeplab")
    ]
    config = {"voc12_root": "data", "deeplab_weights_name": "w.pth", "deeplab_eval_set": "train", "seed": 1}
    run = {"started": "2026-01-01T00:00:00", "config": config, "steps": ["train_cam"], "done": done}
    write(folder / "runs/1.json", {**run, "versions": {"torch": "2"}, "device": "cpu"})
    lines = [{"step": step, "epoch": step / 2, "total": 1.0 / step, "lr": 0.1} for step in (1, 2, 3)]
    (folder / "metrics/train_cam.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write(path, content):
    path.write_text(json.dumps(content))


def show(folder):
    """The page of a result folder, and what was collected for it."""
    arm = collect_arm("W-OoD", folder, "data", NAMES)
    command_of = {}.get
    page = render_page(
        [arm],
        {},
        [],
        chart_files([arm]),
        trained_on=None,
        data_name="data",
        examples=[],
        legend=dict.fromkeys(NAMES, (1, 2, 3)),
        gain_note="",
        skipped=[],
        command_of=lambda step: str(command_of(step)),
        has_masks=True,
    )
    return arm, page


def test_sound_results_are_all_shown(tmp_path):
    write_sound_results(tmp_path / "r")
    arm, page = show(tmp_path / "r")
    assert arm.scores.keys() == {"eval_cam", "eval_sem_seg", "eval_deeplab"}
    assert (arm.instance_ap, arm.losses["train_cam"]["step"]) == ((0.5, 0.5), [1, 2, 3])
    assert len(arm.runs) == 1
    assert arm.segmentation_training is not None
    assert "50.0" in page


RESULTS = ("runs/1.json", "scores/eval_cam.json", "scores/eval_sem_seg.json", "metrics/train_cam.jsonl")


@pytest.mark.parametrize("score", [".e-5", "1..2", "1.2.3", ".", "", "e-5", "nan", "1e5", "-1"])
def test_a_curve_with_a_score_that_is_no_number_is_left_out(tmp_path, score):
    write_sound_results(tmp_path)
    content = json.loads((tmp_path / "scores/eval_cam.json").read_text())
    content["miou_by_threshold"][score] = 0.5
    write(tmp_path / "scores/eval_cam.json", content)
    arm, _ = show(tmp_path)
    assert "eval_cam" not in arm.scores
    assert "eval_sem_seg" in arm.scores


@pytest.mark.parametrize("file", RESULTS)
def test_results_that_are_no_json_are_left_out(tmp_path, file):
    write_sound_results(tmp_path / "r")
    sound = collect_arm("W-OoD", tmp_path / "r", "data", NAMES)
    expected = {"scores": {**sound.scores}, "losses": {**sound.losses}, "runs": [*sound.runs]}
    kind, name = file.split("/")
    if kind == "runs":
        expected |= {"runs": [], "losses": {}}  # of which no run tells whose they are
    else:
        del expected[{"scores": "scores", "metrics": "losses"}[kind]][name.partition(".")[0]]
    for content in TEXTS.values():
        (tmp_path / "r" / file).write_bytes(content)
        arm = collect_arm("W-OoD", tmp_path / "r", "data", NAMES)
        assert arm.scores == expected["scores"]
        assert arm.losses.keys() == expected["losses"].keys()
        assert arm.runs == expected["runs"]


# What a value of a record is replaced by
WRONG = (None, True, -1, 1e300, "x", "\0", "\ud800", [], [[1]], {}, {"a": {"b": 1}}, "9" * 5000, [None] * 4, ["\0"])


def places(value, path=()):
    """The path of each value in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(content, path, value):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is places:  # a mark: leave it out
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@generated(25)
@given(data=st.data())
def test_results_with_wrong_values_are_shown_as_far_as_they_are_sound(tmp_path_factory, monkeypatch, data):
    monkeypatch.setattr("misc.report.charts._png", lambda figure: b"")  # to draw them takes a second each
    folder = tmp_path_factory.mktemp("r") / "r"
    write_sound_results(folder)
    file = data.draw(st.sampled_from(sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))))
    lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.sampled_from(list(places(lines[number]))))
    lines[number] = replaced(lines[number], place, data.draw(st.sampled_from([*WRONG, places])))
    (folder / file).write_text("\n".join(map(json.dumps, lines)))
    _, page = show(folder)
    assert page.encode(errors="backslashreplace")


MARKUP = ("$", "$\\frac$", "a$_b$", "<script>alert(1)</script>", "'\"&", "{{ 1111 * 1111 }}", "\u5927\U000f0000")


@pytest.mark.parametrize("name", MARKUP)
def test_class_names_are_neither_markup_nor_mathematics(tmp_path, monkeypatch, name):
    monkeypatch.setitem(globals(), "NAMES", ["background", name, "b", "c"])
    write_sound_results(tmp_path / "r")
    arm, page = show(tmp_path / "r")
    assert "eval_cam" in arm.scores
    assert "<script" not in page
    assert "1234321" not in page
    assert name in html.unescape(page)


ENTRIES = {
    "a list in place of a name": {"file": ["a"]},
    "an object in place of a name": {"file": {"a": 1}},
    "a number in place of a checksum": {"checksum": 3},
    "no source": {"source": None},
    "no settings": {"made_with": None},
    "other settings": {"made_with": [[[]]]},
}


@pytest.mark.parametrize("name", [*TEXTS, *ENTRIES])
def test_damaged_lines_of_provenance_count_for_nothing(tmp_path, name):
    (tmp_path / "a").write_text("a")
    made = Provenance(tmp_path, {"x": 1})
    made.record(tmp_path / "a", "s")
    assert Provenance(tmp_path, {"x": 1}).covers(tmp_path / "a", "s")
    entry = json.loads((tmp_path / RECORD).read_text())
    content = TEXTS[name] if name in TEXTS else json.dumps({**entry, **ENTRIES[name]}).encode()
    (tmp_path / RECORD).write_bytes(content)
    assert not Provenance(tmp_path, {"x": 1}).covers(tmp_path / "a", "s")
    made.record(tmp_path / "a", "s")
    assert Provenance(tmp_path, {"x": 1}).covers(tmp_path / "a", "s")


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_records_of_derived_files(tmp_path, name):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / DERIVED_RECORD).write_bytes(TEXTS[name])
    assert not is_derived(tmp_path / "a.txt")
    with derived_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("made")
    assert is_derived(tmp_path / "a.txt")


MANIFESTS = {
    "a device": {"files": {"../../../../../../../../dev/zero": [0, 0]}},
    "an absolute name": {"files": {"/dev/zero": [0, 0]}},
    "a file from elsewhere": {"files": {"../manifest.json": [0, 0]}},
    "no names": {"files": [1]},
    "a number of files": {"files": 3},
    "no files": {},
    "a missing file": {"files": {"classes.txt": [0, 0]}},
    "another head": {"files": {}, "seed": 2},
    "a deep head": {"files": {}, "seed": [[[]]]},
}


@pytest.mark.parametrize("name", [*TEXTS, *MANIFESTS])
def test_a_sample_with_a_damaged_manifest_is_none(tmp_path, name):
    head = {"generator": "voc12.sample", "seed": 1}
    content = TEXTS[name] if name in TEXTS else json.dumps({**head, **MANIFESTS[name]}).encode()
    (tmp_path / "manifest.json").write_bytes(content)
    assert not matches_manifest(tmp_path, {"seed": 1})
    if name in MANIFESTS:
        check_replaceable(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\n{}\n", b"\0" * 10, b"[" * 5000])
def test_losses_of_an_earlier_run_are_kept_however_damaged(tmp_path, content):
    path = tmp_path / "metrics/x.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with metrics_log(str(tmp_path), "x", n_kept=1) as append:
        append({"step": 2})
    assert path.read_text().splitlines()[-1] == '{"step": 2}'


def test_losses_that_are_gone_are_told_and_do_not_end_the_training(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with metrics_log(str(tmp_path), "gone", n_kept=5) as append:
        append({"step": 6})
    assert (tmp_path / "metrics/gone.jsonl").read_text() == '{"step": 6}\n'
    assert f"the losses of the first 5 steps of gone are gone: {tmp_path}/metrics/gone.jsonl is missing" in caplog.text
    with metrics_log(str(tmp_path), "gone", n_kept=6) as append:
        append({"step": 7})
        append({"step": 8})
    with metrics_log(str(tmp_path), "gone", n_kept=7) as append:  # killed after 8, saved after 7
        append({"step": 8})
    lines = (tmp_path / "metrics/gone.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 7, 8]


class Trained:
    """A training with all kinds of parts, and its state on disk."""

    def __init__(self, folder, n_steps=10):
        torch.manual_seed(1)
        self.model = own_network.Net(n_classes=3)
        self.optimizer = two_rate_optimizer(*self.model.trainable_parameters(), lr=0.1, weight_decay=1e-4, max_step=10)
        self.selection = CheckpointSelection(
            self.model, self.model, [], paths=[], n_classes=3, batch_size=1, due=frozenset()
        )
        parts = {"model": self.model, "optimizer": self.optimizer, "selection": self.selection}
        self.state = TrainingState(str(folder), "x", parts=parts, made_with={"a": 1}, minutes=0, n_steps=n_steps)

    def steps(self):
        sum(parameter.sum() for parameter in self.model.parameters()).backward()
        self.optimizer.step()
        self.selection.best_miou, self.selection.best_step = 0.5, 1
        self.selection.best_state = copy.deepcopy(self.model.state_dict())
        self.state.save(3)
        return self

    def everything(self):
        parts = self.model.state_dict(), self.optimizer.state_dict(), self.selection.state_dict()
        return [repr(part) for part in parts]


NAME = "classifier.weight"
FEWER = {NAME: torch.zeros(2, 2)}
# what is changed in the state: (path, value), or without a value: what is left out
STATES = {
    "a later step": (("step",), 10**9),
    "a negative step": (("step",), -1),
    "no step yet": (("step",), 0),
    "a step that is text": (("step",), "3"),
    "a step that is a fraction": (("step",), 2.5),
    "a truth value for a step": (("step",), True),
    "no step": (("step",),),
    "no settings": (("made_with",),),
    "no parts": (("parts",),),
    "parts in a list": (("parts",), []),
    "no network": (("parts", "model"),),
    "a network that is a number": (("parts", "model"), 3),
    "weights of another shape": (("parts", "model", NAME), torch.zeros(2, 2)),
    "weights without numbers": (("parts", "model", NAME), torch.empty(3, 64, 1, 1, device="meta")),
    "weights of NaN": (("parts", "model", NAME), torch.full((3, 64, 1, 1), torch.nan)),
    "weights without bounds": (("parts", "model", NAME), torch.full((3, 64, 1, 1), 1e31)),
    "a weight that is missing": (("parts", "model", NAME),),
    "a weight too many": (("parts", "model", "more"), torch.zeros(1)),
    "an optimiser that is a list": (("parts", "optimizer"), []),
    "no groups": (("parts", "optimizer", "param_groups"), []),
    "a rate that is text": (("parts", "optimizer", "param_groups", 0, "lr"), "0.1"),
    "a group without a momentum": (("parts", "optimizer", "param_groups", 0, "momentum"),),
    "momentum of another shape": (("parts", "optimizer", "state", 0, "momentum_buffer"), torch.zeros(2)),
    "momentum that is text": (("parts", "optimizer", "state", 0, "momentum_buffer"), "x"),
    "an optimiser's state that is a list": (("parts", "optimizer", "state", 0), []),
    "an optimiser without a step": (("parts", "optimizer", "global_step"),),
    "an optimiser of a negative step": (("parts", "optimizer", "global_step"), -5),
    "an optimiser whose step is text": (("parts", "optimizer", "global_step"), "1"),
    "no choice": (("parts", "selection"), {}),
    "chosen weights of another shape": (("parts", "selection", "best_state"), FEWER),
    "chosen weights that are text": (("parts", "selection", "best_state"), "x"),
    "a choice whose score is text": (("parts", "selection", "best_miou"), "best"),
    "a choice whose step is a list": (("parts", "selection", "best_step"), [1]),
}


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_state_changes_nothing(tmp_path, name):
    trained = Trained(tmp_path).steps()
    content = torch.load(trained.state.path, weights_only=True)
    path, value = STATES[name][0], (STATES[name][1:] or (places,))[0]
    torch.save(replaced(content, path, value), trained.state.path)
    fresh = Trained(tmp_path)
    before = fresh.everything()
    assert fresh.state.restore() == 0
    assert fresh.everything() == before
    fresh.steps()


@pytest.mark.parametrize("field", ["step", "n_steps"])
@pytest.mark.parametrize("value", [None, "5", 2.5, True, torch.ones(2)])
def test_a_state_whose_step_is_no_number_tells_nothing_beforehand(tmp_path, field, value):
    state = Trained(tmp_path).steps().state
    assert saved_step(tmp_path, "x") == (3, 10)
    content = torch.load(state.path, weights_only=True)
    torch.save({**content, field: value}, state.path)
    assert saved_step(tmp_path, "x") is None


def test_a_sound_state_is_taken_up(tmp_path):
    trained = Trained(tmp_path).steps()
    fresh = Trained(tmp_path)
    assert fresh.state.restore() == 3
    assert fresh.everything() == trained.everything()
    assert Trained(tmp_path, n_steps=2).state.restore() == 0


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x02.", b"PK\x03\x04" + b"\0" * 40, np.arange(99).tobytes()])
def test_a_state_that_is_none_is_made_anew(tmp_path, content):
    state = Trained(tmp_path).state
    state.path.parent.mkdir(parents=True)
    state.path.write_bytes(content)
    assert state.restore() == 0
