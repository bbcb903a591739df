"""The training loop and the state on disk, on one number."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from misc.run.training import fit
from misc.run.training_state import TrainingState


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(loss_of, *, n_steps=3, batches_per_step=1, stop_after=None):
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
        after_step=stop,
        batches_per_step=batches_per_step,
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


def test_random_numbers_go_on_after_an_interruption():
    """As a network with dropout draws them."""

    def loss_of(weight, batch):
        return {"total": weight * torch.rand(())}

    torch.manual_seed(3)
    expected = train(loss_of)
    Path("result/state/t.pth").unlink()
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        train(loss_of, stop_after=3)
    torch.manual_seed(4)
    assert train(loss_of) == expected


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


def test_the_order_of_settings_does_not_matter():
    def state(**made_with):
        return TrainingState("result", "t", parts={}, made_with=made_with, minutes=5)

    state(a=1, b=2).save(7)
    assert state(b=2, a=1).restore() == 7
    assert state(b=1, a=2).restore() == 0
