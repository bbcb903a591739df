"""The benchmark of trainings in several processes: what it counts, its model of many GPUs, and its flags."""

import math
from pathlib import Path

import pytest
import torch
from test_benchmarks import TINY
from torch import distributed as dist
from torch import nn

from benchmarks import bench_distributed, workloads
from benchmarks.bench_distributed import Assumptions, Transfers, Update, measure, model, parse, update_time, updates
from misc.run.config import parse_config
from misc.run.distributed import BUCKET_BYTES

ROUND = Assumptions(
    peak=1e12,
    share=0.5,
    nvlink=1e9,
    infiniband=1e8,
    ethernet=1e7,
    link_share=0.5,
    latency_within=0.001,
    latency_between=0.002,
)
UPDATE = Update(batch=16, passes=2, flops=16e12, backward=8e12, gradient_bytes=4 * BUCKET_BYTES, n_small=10)


def time_of(n_gpus, batch=16, between=math.inf, update=UPDATE):
    return update_time(update, batch=batch, n_gpus=n_gpus, between=between, assumed=ROUND)


def test_one_gpu_only_computes():
    assert time_of(1).total == 2 * 16e12 / 0.5e12


def test_transfers_hide_behind_the_backward_pass_but_for_the_last_bucket():
    times = time_of(8)
    assert times.transfer == pytest.approx(0.001 + 2 * 7 / 8 * UPDATE.gradient_bytes / 0.5e9)
    assert times.exposed == pytest.approx(times.transfer / 4)
    assert times.total == pytest.approx(2 * 16e12 / 8 / 0.5e12 + times.exposed + 10 * 0.001)


def test_what_a_slow_link_takes_longer_than_the_backward_pass_is_waited_for():
    times, backward = time_of(16, between=ROUND.ethernet), 8e12 / 16 / 0.5e12
    assert times.transfer == pytest.approx(0.002 + 2 * 15 / 16 * UPDATE.gradient_bytes / 0.5e7)
    assert times.exposed == pytest.approx(times.transfer - backward)


def test_the_gpu_with_the_most_images_determines_the_time():
    assert time_of(6).total - time_of(6).exposed == pytest.approx(2 * 3 * 1e12 / 0.5e12 + 10 * 0.001)


def test_a_batch_grows_where_it_has_fewer_images_than_gpus():
    rows = [line.strip("| ").split(" | ") for line in model({"x": UPDATE}, [8, 64], ROUND).splitlines()[2:]]
    assert [row[1:5] for row in rows] == [
        ["1", "16", "16", "-"],
        ["8", "16", "2", "NVLink"],
        *(["16", "16", "1", link] for link in ("InfiniBand", "Ethernet")),
        *(["64", "128 (grown)", "2", link] for link in ("InfiniBand", "Ethernet")),
    ]
    assert rows[0][-1] == "1.0 (100%)"


def test_gradients_and_other_collectives_are_counted_for_an_update(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op=False: None)
    monkeypatch.setattr(dist, "all_gather", lambda tensors, tensor: None)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with Transfers() as transfers:
        dist.all_reduce(torch.zeros(1000))  # before the first update, which is left out
        for _ in range(3):
            dist.all_reduce(torch.zeros(5), async_op=True)
            dist.all_reduce(torch.zeros(2))
            dist.all_gather([torch.zeros(3)] * 2, torch.zeros(3))
            optimizer.step()
    assert transfers.of_an_update() == {
        "gradient bytes": 20,
        "other bytes": 8 + 24,
        "gradient calls": 1,
        "other calls": 2,
    }


@pytest.mark.parametrize(
    "flags", [[], ["measure", "--repeats", "0"], ["measure", "--trainings", "x"], ["model", "--share", "0"]]
)
def test_bad_flags_are_answered(flags):
    with pytest.raises(SystemExit) as stopped:
        parse(flags)
    assert stopped.value.code == 2


@pytest.mark.slow
def test_two_processes_are_measured(monkeypatch):
    monkeypatch.setattr(workloads, "BATCHES_AHEAD", 1)
    table = measure(["train_deeplab"], sizes=TINY, repeats=1)
    cells = table.splitlines()[-1].strip("| ").split(" | ")
    assert float(cells[2]) > 0
    assert float(cells[3]) > 0
    assert cells[5].endswith(f" in {math.ceil(float(cells[5].split()[0]) * 2**20 / BUCKET_BYTES)}")


@pytest.mark.slow
def test_the_page_has_the_table_of_the_model():
    page = Path(bench_distributed.__file__).parent.parent / "docs/distributed.md"
    assert model(updates(parse_config([])), parse(["model"]).gpus, Assumptions()) in page.read_text()
