"""The benchmark's plain ways compute what the steps compute, which makes the comparison fair; its table and flags."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import inputs, plain, workloads
from benchmarks.measure import difference
from benchmarks.workloads import CPU_SIZES, Inputs
from net.resnet50_irn import AffinityDisplacementLoss
from net.weights import load_weights

SMALL = ((50, 70), (64, 48))
TINY = dataclasses.replace(
    CPU_SIZES,
    walk=((24, 32), (36, 48)),
    walk_target=(48, 64),
    walk_large=((48, 64), (96, 128)),
    masks=1,
    cam=SMALL,
    advcam=SMALL[:1],
    adv_iter=3,
    evaluated=SMALL,
    refined=SMALL,
    crop=64,
    batch=2,
    irn_crop=96,
    irn_batch=2,
    updates=3,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "resnet50"


@pytest.fixture
def data(tmp_path, weights):
    return Inputs(tmp_path / "data", weights, "cpu")


def results(workload):
    """What both ways compute."""
    found = []
    for way in (workload.ours(), workload.plain()):
        way.call()
        found.append(way.result())
    ours, other = found
    assert ours.keys() >= other.keys()
    return ours, other


def test_random_walks_agree(data):
    ours, other = results(workloads.random_walk(data, (50, 62)))
    assert other["walked"].shape == (2, 13, 16)
    assert difference(ours, other) < 1e-5


def test_masks_agree(data):
    ours, other = results(workloads.sem_seg(data, (50, 62), 2))
    assert {path.rsplit("/")[-1] for path in other} == {
        f"2099_00000{number}{suffix}.png" for number in (1, 2) for suffix in ("", "_palette")
    }
    assert difference(ours, other) < 1e-3


@pytest.mark.parametrize("make", [workloads.cams, workloads.advcams, workloads.evaluation])
def test_cams_and_scores_agree(data, make):
    ours, other = results(make(data, TINY))
    assert other
    assert difference(ours, other) < 1e-4


def test_confident_labels_agree(data):
    pytest.importorskip("pydensecrf")
    ours, other = results(workloads.refinement(data, TINY))
    assert {0, 255} < set(np.unique(np.concatenate([label.ravel() for label in other.values()])))
    assert difference(ours, other) == 0


def test_wood_training_agrees(data):
    ours, other = results(workloads.wood_step(data, TINY))
    start = torch.load(data.weights / "cam.pth", weights_only=True)
    for name in ("classifier.weight", "backbone.layer4.2.conv3.weight", "backbone.layer3.0.bn1.bias"):
        key = f"cam_weights_name {name}"
        change = other[key] - start[name].numpy()
        assert np.abs(change).max() > 0
        assert difference({"": ours[key] - start[name].numpy()}, {"": change}) < 1e-2
    frozen = "cam_weights_name backbone.layer2.0.conv1.weight"
    assert np.array_equal(ours[frozen], other[frozen])


def test_irn_losses_and_their_gradients_agree():
    torch.manual_seed(0)
    model, other = AffinityDisplacementLoss().train(), plain.AffinityNetwork()
    model.backbone.apply(lambda module: None)
    inputs._calm(model.backbone)
    load_weights_of(model, other)
    images = torch.randn(2, 3, 96, 96)
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 7, 255], (2, 24, 24)).astype(np.uint8))
    loss = model(images, labels)["total"]
    pairs = [plain.pair_labels(label, plain.TRAIN_RADIUS) for label in labels.numpy()]
    plain_loss = plain.irn_loss(*other(images), *map(torch.stack, zip(*pairs, strict=True)))
    torch.testing.assert_close(plain_loss, loss, rtol=1e-5, atol=0)
    loss.backward()
    plain_loss.backward()
    for name in ("fc_edge6.weight", "fc_dp7.3.weight", "fc_dp1.0.weight"):
        given, expected = (dict(m.named_parameters())[name].grad for m in (model, other))
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def load_weights_of(model, other):
    missing, extra = other.load_state_dict(model.state_dict(), strict=False)
    assert not extra
    assert all(name.endswith("num_batches_tracked") for name in missing)
