"""The training loop and the state on disk, on one number."""

import copy
import gc
import json
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from misc.run import training
from misc.run.device import Arriving
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import PolySGD


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(loss_of, *, n_steps=3, batches_per_step=1, stop_after=None, **options):
    """The number after `n_steps` of SGD at a rate of 0.1 on the batches 0, 1, 2, ..."""
    model = Number()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState("result", "t", parts={"model": model, "optimizer": optimizer}, made_with={}, minutes=0)

    def stop(step):
        if step == stop_after:
            raise KeyboardInterrupt
        return {}

    fit(
        lambda first: range(first, n_steps * batches_per_step),
        lambda batch: loss_of(model.weight, batch),
        optimizer,
        n_steps=n_steps,
        steps_per_epoch=2,
        batch_size=4,
        name="t",
        result_dir="result",
        rate_flag="rate",
        state=state,
        batches_per_step=batches_per_step,
        **{"after_step": stop, "follows": range(n_steps + 1), "seed": 0, **options},
    )
    return model.weight.item()


def test_each_step_has_its_own_gradient():
    """The gradient of batch k is k + 1; nothing of the step before is left."""
    assert train(lambda weight, batch: {"total": weight * (batch + 1)}) == pytest.approx(1 - 0.1 * (1 + 2 + 3))


def test_batches_of_a_step_are_averaged():
    trained = train(lambda weight, batch: {"total": weight * batch, "half": weight / 2}, batches_per_step=2)
    assert trained == pytest.approx(1 - 0.1 * (0.5 + 2.5 + 4.5))
    lines = [json.loads(line) for line in Path("result/metrics/t.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["lr"]) for line in lines] == [
        (1, 0.5, 0.1),
        (2, 1.0, 0.1),
        (3, 1.5, 0.1),
    ]
    assert [line["total"] for line in lines] == pytest.approx([0.5, 0.95 * 2.5, 0.7 * 4.5])
    assert [line["half"] for line in lines] == pytest.approx([0.5, 0.475, 0.35])


def test_losses_are_read_while_the_next_step_is_under_way(monkeypatch):
    """But before what follows a step, at the end, and before the state is saved."""
    events = []
    wait = Arriving.wait

    def waited(arriving):
        events.append("read")
        return wait(arriving)

    monkeypatch.setattr(Arriving, "wait", waited)
    monkeypatch.setattr(TrainingState, "save_if_due", lambda state, step: step == 4 and state.save(step))
    monkeypatch.setattr(torch, "save", lambda content, path: (Path(path).touch(), events.append("saved")))

    def loss_of(weight, batch):
        events.append(f"step {batch + 1}")
        return {"total": weight * 1}

    train(loss_of, n_steps=6, follows={2})
    first = ["step 1", "step 2", "read", "read", "step 3", "step 4", "read", "read", "saved"]
    assert events == [*first, "step 5", "step 6", "read", "read", "saved"]


def test_the_speed_is_that_of_the_step_and_not_of_what_follows_it(monkeypatch):
    """Steps take a second for four images, what follows the second takes much longer: by a clock of the test's own."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    def loss_of(weight, batch):
        passes(1)
        return {"total": weight * 1}

    train(loss_of, n_steps=4, after_step=lambda step: passes(1000) or {}, follows={2})
    speeds = [json.loads(line)["images_per_second"] for line in Path("result/metrics/t.jsonl").read_text().splitlines()]
    assert speeds == [4] * 4


def test_every_step_that_the_state_holds_has_its_line():
    lines = Path("result/metrics/t.jsonl.part")

    def loss_of(weight, batch):
        assert len(lines.read_text().splitlines()) == batch  # the state is saved after each step
        return {"total": weight * 1}

    train(loss_of, n_steps=4, follows=())
    assert len(lines.with_suffix("").read_text().splitlines()) == 4


def test_told_to_end_in_its_last_step_a_training_has_only_its_losses_to_complete(monkeypatch):
    batches = []

    def loss_of(weight, batch):
        batches.append(batch)
        return {"total": weight * 1}

    monkeypatch.setattr(training, "is_told", lambda: len(batches) == 3)
    with pytest.raises(KeyboardInterrupt):
        train(loss_of)
    losses = Path("result/metrics/t.jsonl")
    assert not losses.exists()
    monkeypatch.setattr(training, "is_told", lambda: False)
    assert train(loss_of) == pytest.approx(0.7)
    assert batches == [0, 1, 2]
    assert [json.loads(line)["step"] for line in losses.read_text().splitlines()] == [1, 2, 3]


def test_cudnn_chooses_for_the_crops_alone():
    found = []

    def loss_of(weight, batch):
        found.append(("step", torch.backends.cudnn.benchmark))
        return {"total": weight * 1}

    train(loss_of, n_steps=2, after_step=lambda step: found.append(("after", torch.backends.cudnn.benchmark)) or {})
    assert found == [("step", True), ("after", False)] * 2
    assert not torch.backends.cudnn.benchmark


def test_an_optimisers_state_goes_from_device_to_device(monkeypatch):
    """How the device updates the weights is no part of it."""
    settings = {"lr": 0.1, "momentum": 0.9, "max_step": 9}
    states = {}
    for fused in (False, True):
        monkeypatch.setattr("misc.torchutils.may_fuse", lambda parameters, fused=fused: fused)
        model = Number()
        optimizer = PolySGD([{"params": model.parameters(), "lr": 0.1, "weight_decay": 0.0}], **settings)
        model.weight.sum().backward()
        optimizer.step()
        states[fused] = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(copy.deepcopy(states[False]))
        assert optimizer.param_groups[0]["fused"] is (True if fused else None)
        optimizer.step()
        assert model.weight.item() == pytest.approx(1 - 0.1 - 0.19 * (1 - 1 / 9) ** 0.9)
    assert str(states[False]) == str(states[True])


def numbers_drawn(*, n_steps=4, **options):
    """By a network with dropout, say, in each step of a training, and the trained number."""
    drawn = []

    def loss_of(weight, batch):
        drawn.append(torch.rand(()).item())
        return {"total": weight * drawn[-1]}

    try:
        return drawn, train(loss_of, n_steps=n_steps, **options)
    except KeyboardInterrupt:
        return drawn, None


def test_what_a_network_draws_depends_on_seed_step_and_process_alone(monkeypatch):
    expected, trained = numbers_drawn()
    assert len({*expected}) == len(expected)

    def training_anew(**options):
        Path("result/state/t.pth").unlink()
        return numbers_drawn(**options)

    torch.manual_seed(3)
    looks = {
        "after_step": lambda step: {"drawn": torch.rand(step).mean().item()}
    }  # as loaders draw, of which some are kept
    assert training_anew(**looks) == (expected, trained)
    before, _ = training_anew(stop_after=2)
    torch.manual_seed(4)
    after, resumed = numbers_drawn()
    assert before + after == expected
    assert resumed == trained
    others, _ = training_anew(seed=1)
    monkeypatch.setattr("misc.run.training.rank", lambda: 1)
    of_another_process, _ = training_anew()
    assert not {*expected} & {*others} | {*expected} & {*of_another_process}


def test_passes_of_a_step_draw_other_numbers():
    drawn, _ = numbers_drawn(batches_per_step=2)
    assert len({*drawn}) == len(drawn) == 8


def test_a_state_is_due_after_so_many_minutes(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    state = TrainingState("result", "t", parts={}, made_with={}, minutes=5)
    saved = []
    for seconds in (0, 299, 300, 301, 599, 600):
        now = 1000.0 + seconds
        state.path.unlink(missing_ok=True)
        state.save_if_due(seconds)
        saved.append(state.path.is_file())
    assert saved == [False, False, True, False, False, True]


def test_other_processes_wait_for_no_losses_because_a_save_is_due(monkeypatch):
    """They have nothing to save, and would wait for their GPU at each step from the first save on."""
    state = TrainingState("result", "t", parts={}, made_with={}, minutes=0)
    state.before_saving = lambda: pytest.fail("waited")
    monkeypatch.setattr("misc.run.training_state.is_first_process", lambda: False)
    state.save_if_due(1)
    assert not state.path.exists()


def test_what_a_training_has_used_is_let_go_when_it_ends():
    """Without a circle of references, so that its memory is free for the next step at once."""
    weights = []

    def loss_of(weight, batch):
        weights.append(weakref.ref(weight))
        return {"total": weight * (batch + 1)}

    gc.disable()
    try:
        train(loss_of)
        assert [weight() for weight in weights] == [None] * 3
    finally:
        gc.enable()


def test_the_order_of_settings_does_not_matter():
    def state(**made_with):
        return TrainingState("result", "t", parts={}, made_with=made_with, minutes=5)

    state(a=1, b=2).save(7)
    assert state(b=2, a=1).restore() == 7
    assert state(b=1, a=2).restore() == 0
