"""AdvCAM, against two full backward passes an iteration, and batches against one by one."""

import pytest
import torch

from benchmarks.bench_advcam import SETTINGS, plain_climb
from misc.advcam import SCALES, advcam, advcam_batch, climb, iterations_at, map_factor
from net.resnet18_cam import CAM

N_CLASSES = 3


@pytest.fixture
def model():
    """In float64, so that signs of tiny gradients do not depend on rounding."""
    return CAM(N_CLASSES).double().eval()


def random_pairs(count, size=(40, 52)):
    images = torch.randn(count, 3, *size, dtype=torch.float64)
    return torch.stack([images, images.flip(-1)], dim=1)


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_climbing_equals_two_full_backward_passes(model, score_threshold):
    settings = {**SETTINGS, "score_threshold": score_threshold, "step": 0.3}
    pairs = random_pairs(1)
    maps = climb(model, pairs, torch.tensor([1]), 4, **settings)
    expected = plain_climb(model, pairs[0], 1, 4, **settings)
    assert expected.max() > 0
    torch.testing.assert_close(maps[0], expected, rtol=1e-8, atol=1e-12)


def test_the_image_moves_and_the_regulariser_acts(model):
    pairs, classes = random_pairs(1), torch.tensor([0])
    ways = [
        climb(model, pairs, classes, 5, **{**SETTINGS, **changed})
        for changed in ({}, {"step": 0.0}, {"coefficient": 0.0})
    ]
    assert not torch.allclose(ways[0], ways[1])
    assert not torch.allclose(ways[0], ways[2])
    torch.testing.assert_close(ways[1], 5 * climb(model, pairs, classes, 1, **SETTINGS))


def test_a_class_that_nowhere_fires_gives_zeros(model):
    with torch.no_grad():
        model.classifier.weight[2] = -model.classifier.weight[2].abs()
    maps = climb(model, random_pairs(2), torch.tensor([2, 0]), 3, **SETTINGS)
    assert (maps[0] == 0).all()
    assert torch.isfinite(maps).all()


def test_no_weight_gets_a_gradient(model):
    model.requires_grad_(True)
    climb(model, random_pairs(1), torch.tensor([0]), 3, **SETTINGS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_equals_one_by_one(model):
    size = (21, 27)
    images = [{s: random_pairs(1, (round(21 * s), round(27 * s)))[0] for s in (0.5, 1.0, 2.0)} for _ in range(4)]
    keys = [[0, 2], [], [1], [0, 1, 2]]
    together = advcam_batch(model, images, size, keys, 7, batch_size=4)
    for pairs, of_image, (cam, high_res) in zip(images, keys, together, strict=True):
        cam_alone, high_res_alone = advcam(model, pairs, size, of_image, 7)
        assert cam.shape == (len(of_image), 6, 7)
        torch.testing.assert_close(cam, cam_alone, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(high_res, high_res_alone, rtol=1e-8, atol=1e-12)


def test_iterations_and_factors_are_the_originals():
    assert [iterations_at(0.5, n) for n in (1, 5, 6, 10, 11, 27)] == [1, 5, 5, 5, 5, 13]
    assert [iterations_at(scale, 27) for scale in SCALES[1:]] == [27, 27, 27]
    assert [map_factor(n) for n in (5, 10, 11, 27)] == [1, 1, 2, 2]
