"""The profile of the steps: how operations are grouped, and its command, on a network of one convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import profile_steps
from benchmarks.measure import Way, flop_counter
from benchmarks.profile_steps import OPTIMISER, OUTSIDE, kind_of, measure, parse, run
from benchmarks.workloads import Workload

CPU = torch.device("cpu")
FORWARD = 2 * 2 * 4 * 3 * 9 * 8 * 8
"""FLOPs of the convolution of two images."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::addmm", "matrix product"),
        ("aten::mm", "matrix product"),
        ("aten::native_batch_norm", "batch norm"),
        ("aten::clamp_min_", "activation"),
        ("aten::threshold_backward", "activation"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("aten::upsample_bilinear2d_backward", "resizing"),
        ("aten::_embedding_bag_forward_only", "sums of weighted rows (dense CRF)"),
        ("aten::copy_", "copies and layout"),
        ("aten::cat", "copies and layout"),
        ("aten::add_", "sums and products (folded norms, residuals)"),
        ("aten::mul", "sums and products (folded norms, residuals)"),
        ("aten::sort", "other operations"),
        ("autograd::engine::evaluate_function: MeanBackward0", "pooling"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert kind_of(name) == kind


def training(*_):
    """Crops of 8 x 8, one convolution, updates without end."""

    def train():
        network, images = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        while True:
            optimizer.zero_grad()
            F.relu(network(images)).sum().backward()
            optimizer.step()

    return Workload("2 crops", ours=lambda: Way(train, dict, untimed_updates=1), plain=None)


def inference(*_):
    network, images = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
    return Workload("2 images", ours=lambda: Way(torch.no_grad()(lambda: network(images)), dict, units=2), plain=None)


def test_a_training_is_profiled_for_some_updates_and_an_inference_as_a_whole():
    workload = training()
    of_training = measure(workload, workload.ours(), CPU)
    assert of_training.flops == 2 * FORWARD  # forward, and backward to the weights
    assert of_training.calls["aten::relu"] == of_training.calls["aten::convolution_backward"] == 1
    assert of_training.kinds[OPTIMISER] > 0
    assert sum(of_training.kinds.values()) == pytest.approx(of_training.seconds, rel=0.01)
    workload = inference()
    of_inference = measure(workload, workload.ours(), CPU)
    assert of_inference.flops == FORWARD / 2
    assert of_inference.calls["aten::conv2d"] == 0.5
    assert of_inference.kinds["convolution"] > 0
    assert OPTIMISER not in of_inference.kinds
    assert of_inference.kinds[OUTSIDE] >= 0


def test_a_training_that_fails_early_is_counted_no_longer():
    weight = nn.Parameter(torch.ones(4, 4))

    def train():
        optimizer = torch.optim.SGD([weight], lr=0.1)
        (weight @ weight).sum().backward()
        optimizer.step()
        raise ValueError("after the first update")

    counter = flop_counter()
    with pytest.raises(ValueError, match="after the first update"):
        profile_steps._watch_updates(Way(train, dict, untimed_updates=1), counter, profile_steps._Watch(CPU))
    weight @ weight
    assert counter.get_total_flops() == 0


def test_the_command_writes_a_table_for_each_step(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(profile_steps, "STEPS", {"train_deeplab": training, "make_cam": inference})
    monkeypatch.setattr(profile_steps, "matrix_rate", lambda device, precision: 1e9)
    monkeypatch.setattr(profile_steps.workloads, "keep_freed_memory", lambda: None)  # it would outlive this test
    path = tmp_path / "profile.md"
    run(parse(["--device", "cpu", "--output", str(path)]))
    text = path.read_text()
    assert text in capsys.readouterr().out
    assert "## train_deeplab: DeepLab training step\n\n2 crops: " in text
    assert "s per image while profiled. Floor: " in text
    assert "at the 1 GFLOP/s of a large matrix product" in text
    assert "| aten::convolution_backward | 1 | " in text
    assert text.count("| kind of operation | share of the time |") == 2


def test_flags():
    assert parse([]).steps == list(profile_steps.STEPS)
    with pytest.raises(SystemExit):
        parse(["--steps", "eval_cam"])
