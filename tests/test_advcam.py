"""AdvCAM, against two full backward passes an iteration, and batches against one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import NO_STEPS, TOY_SIZES, give_all_one_size

import run_sample
from benchmarks import plain
from misc.advcam import SCALES, advcam_batch, climb, default_batch_size, iterations_at, map_factor
from misc.errors import InputError
from misc.files import camfile
from misc.files.images import read_label
from net.resnet18_cam import CAM
from net.weights import save_weights
from tests.own_network import EdgeDisplacement, Net

N_CLASSES = 3
SETTINGS = {"coefficient": 7.0, "step": 0.08, "score_threshold": 0.5}


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
    model.features = lambda images: model.backbone(images)[-1]
    expected = plain.climb(model, pairs[0], 1, 4, **settings)
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


@pytest.mark.parametrize("n_iter", [1, 2, 5])
def test_an_iteration_is_one_pass_forward_and_one_back_to_the_pixels(model, n_iter):
    """T forward passes, T - 1 backward ones, and no gradient of a weight, even where weights could have one."""
    model.requires_grad_(True)
    forwards, backwards, weights = [], [], []
    logit_maps = model.logit_maps

    def counted(images):
        maps = logit_maps(images)
        forwards.append(images)
        if maps.requires_grad:
            maps.register_hook(backwards.append)
        return maps

    model.logit_maps = counted
    for parameter in model.parameters():
        parameter.register_hook(weights.append)
    climb(model, random_pairs(2), torch.tensor([0, 1]), n_iter, **SETTINGS)
    assert (len(forwards), len(backwards), len(weights)) == (n_iter, n_iter - 1, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_equals_one_by_one(model):
    size = (21, 27)
    images = [{s: random_pairs(1, (round(21 * s), round(27 * s)))[0] for s in (0.5, 1.0, 2.0)} for _ in range(4)]
    keys = [[0, 2], [], [1], [0, 1, 2]]
    together = advcam_batch(model, images, size, keys, n_iter=7, batch_size=4, **SETTINGS)
    for pairs, of_image, (cam, high_res) in zip(images, keys, together, strict=True):
        alone = advcam_batch(model, [pairs], size, [of_image], n_iter=7, batch_size=1, **SETTINGS)
        ((cam_alone, high_res_alone),) = alone
        assert cam.shape == (len(of_image), 6, 7)
        torch.testing.assert_close(cam, cam_alone, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(high_res, high_res_alone, rtol=1e-8, atol=1e-12)


def test_iterations_and_factors_are_the_originals():
    assert [iterations_at(0.5, n) for n in (1, 5, 6, 10, 11, 27)] == [1, 5, 5, 5, 5, 13]
    assert [iterations_at(scale, 27) for scale in SCALES[1:]] == [27, 27, 27]
    assert [map_factor(n) for n in (5, 10, 11, 27)] == [1, 1, 2, 2]


def run(toy, **flags):
    networks = {"cam_network": "tests.own_network", "irn_network": "tests.own_network"}
    run_sample.run(
        toy.flags(**{**NO_STEPS, **networks, "adv_iter": 2, "infer_list": "voc12/train.txt", "redo": (), **flags})
    )


def test_labels_and_masks_are_made_from_the_maps_that_are_asked_for(toy):
    save_weights(EdgeDisplacement(), "sess/res50_irn_ood.pth")
    for key, folder in enumerate(("cam_ood", "cam_ood_advcam")):
        for image_id, (height, width) in zip(toy.ids, TOY_SIZES, strict=True):
            cam = torch.ones(1, -(-height // 4), -(-width // 4))
            camfile.save(f"result/{folder}/{image_id}.npy", [key], cam, torch.ones(1, height, width))
    for key, masks_from in enumerate(("cam", "advcam")):
        run(toy, cam_to_ir_label_pass=True, make_sem_seg_pass=True, masks_from=masks_from)
        for folder in ("ir_label", "sem_seg_ood"):
            assert read_label(f"result/{folder}/{toy.ids[0]}.png").max() == key + 1


def test_advcams_are_evaluated_as_cams_are(toy):
    save_weights(Net(n_classes=3), "sess/res50_cam_ood.pth")
    run(toy, make_advcam_pass=True, eval_advcam_pass=True)
    run(toy, eval_cam_pass=True, cam_out_dir="result/cam_ood_advcam")
    scored, expected = (json.loads(Path(f"result/scores/eval_{name}.json").read_text()) for name in ("advcam", "cam"))
    assert scored == expected
    assert scored["folder"] == "result/cam_ood_advcam"


@pytest.mark.parametrize(("free_gib", "expected"), [(0.5, 1), (20, 2), (79, 8), (1000, 8)])
def test_the_default_batch_is_what_the_free_memory_allows(monkeypatch, free_gib, expected):
    cached_gib = [free_gib / 2]  # by earlier steps of the run
    monkeypatch.setattr(torch.cuda, "empty_cache", cached_gib.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int((free_gib - sum(cached_gib)) * 2**30), 2**50))
    assert default_batch_size(torch.device("cuda")) == expected
    assert default_batch_size(torch.device("cpu")) == 1


@pytest.fixture
def equal_sizes(toy, monkeypatch):
    """Makes AdvCAMs of six images of one size, whose classes are 1, 2, 3, 0, 1 and 2; returns the batch sizes taken.

    A batch above `room` pairs is more than the memory takes.
    """
    give_all_one_size(toy)
    for number, image_id in enumerate(toy.ids[:6]):
        names = ("aeroplane", "bottle", "train")[: (number + 1) % 4]
        entries = "".join(f"<object><name>{name}</name></object>" for name in names)
        (toy.root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{entries}</annotation>")
    network = Net(n_classes=3)
    network.classifier.weight.data.abs_()  # no map is empty, which would stop the run
    save_weights(network, "sess/res50_cam_ood.pth")

    def make(*, room=100, **flags):
        taken = []

        def limited(*arguments, batch_size, **settings):
            taken.append(batch_size)
            if batch_size > room:
                raise torch.OutOfMemoryError
            return advcam_batch(*arguments, batch_size=batch_size, **settings)

        monkeypatch.setattr("step.make_advcam.advcam_batch", limited)
        run(toy, make_advcam_pass=True, **flags)
        return taken

    make.paths = [Path(f"result/cam_ood_advcam/{image_id}.npy") for image_id in toy.ids[:6]]
    make.read = lambda: [camfile.load(path) for path in make.paths]
    return make


def assert_same(made, expected):
    for (keys, cam, high_res), (keys_alone, cam_alone, high_res_alone) in zip(made, expected, strict=True):
        np.testing.assert_array_equal(keys, keys_alone)
        torch.testing.assert_close(cam, cam_alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(high_res, high_res_alone, rtol=1e-4, atol=1e-5)


def test_groups_of_images_equal_one_by_one_also_after_a_partial_rerun(equal_sizes):
    assert equal_sizes() == [1] * 6  # on the CPU
    alone = equal_sizes.read()
    assert [len(keys) for keys, *_ in alone] == [1, 2, 3, 0, 1, 2]
    equal_sizes.paths[1].unlink()
    equal_sizes.paths[4].unlink()
    kept = {path: path.stat().st_mtime_ns for path in equal_sizes.paths if path.is_file()}
    assert equal_sizes(advcam_batch_size=4) == [3]  # both missing images, three pairs
    assert_same(equal_sizes.read(), alone)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for path in equal_sizes.paths:
        path.unlink()
    assert equal_sizes(advcam_batch_size=4) == [3, 3, 3]
    assert_same(equal_sizes.read(), alone)


def test_large_images_take_more_than_one_place(equal_sizes, monkeypatch):
    monkeypatch.setattr("misc.run.loaders.PIXELS_A_PLACE", 48 * 64 // 2)
    assert equal_sizes(advcam_batch_size=4) == [1, 2, 2, 1, 2]
    monkeypatch.setattr("misc.run.loaders.PIXELS_A_PLACE", 48 * 64 // 8)
    for path in equal_sizes.paths:
        path.unlink()
    assert equal_sizes(advcam_batch_size=4) == [1] * 6


def test_where_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(equal_sizes, capsys):
    equal_sizes()
    alone = equal_sizes.read()
    for path in equal_sizes.paths:
        path.unlink()
    capsys.readouterr()
    assert equal_sizes(room=2, advcam_batch_size=5) == [3, 1, 1, 1]
    assert_same(equal_sizes.read(), alone)
    assert capsys.readouterr().out.count("no GPU memory for 3 (image, class) pairs at once; going on with 1") == 1


def test_an_image_for_which_no_memory_suffices_is_named(equal_sizes):
    with pytest.raises(InputError, match=r"does not suffice for an image of 48 x 64 pixels, .*000001.jpg"):
        equal_sizes(room=0, advcam_batch_size=4)
