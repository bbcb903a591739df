"""The functions and networks that other code calls (docs/python.md): their names, arguments and defaults stay."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from misc.torchutils import PolyOptimizer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"

INTERFACE = {
    "net.resnet50_cam.Net": "n_classes=20",
    "net.resnet50_cam.CAM": "n_classes=20",
    "net.resnet50_irn.EdgeDisplacement": "",
    "net.resnet50_irn.AffinityDisplacementLoss": "radius=10",
    "net.deeplab_v2.DeepLabV2": "n_classes=21",
    "net.deeplab_v2.MultiScale": "base",
    "net.weights.load_weights": "module, source",
    "misc.cam.merge_scales": "maps, size, keys",
    "misc.advcam.advcam": "model, pairs, size, keys, n_iter=27",
    "misc.indexing.pair_paths": "radius",
    "misc.indexing.propagate_to_edge": "x, edge, radius=5, beta=10, exp_times=8",
    "misc.indexing.affinity_labels": "labels, radius",
    "misc.ood.kmeans": "x, k, n_iter=10",
    "misc.ood.class_prototypes": "features, labels",
    "misc.ood.distances": "features, prototypes",
    "misc.ood.distance_loss": "dist, label, topk=0.2",
    "misc.ood.adversarial_step": "model, images, step=0.07",
    "misc.ood.ood_loss": "logits, ignore_class=4",
    "misc.ood.wood_losses": "model, images, labels, *, ood_images, prototypes, ood_coeff, distance_lambda, topk, step, "
    "ignore_class",
    "misc.torchutils.PolyOptimizer": "param_groups, lr, weight_decay, max_step, power=0.9",
    "misc.torchutils.two_rate_optimizer": "base, fast, *, lr, weight_decay, max_step",
    "misc.crf.crf_inference_label": "image, labels, n_labels, n_iter=10, gt_prob=0.7, *, backend='auto'",
    "misc.deeplab.scaled_pair": "image, label, scale",
    "misc.deeplab.balanced_cross_entropy": "logits, labels",
    "misc.deeplab.multiscale_losses": "scale_logits, labels, *, loss='plain'",
    "misc.deeplab.deeplab_optimizer": "backbone, aspp_weights, aspp_biases, *, lr, weight_decay, max_step",
    "misc.metrics.confusion_matrix": "pred, truth, n_classes",
    "misc.metrics.scores": "confusion",
    "misc.metrics.instance_ap": "pred_masks, pred_labels, pred_scores, gt_masks, gt_labels, iou_thresh=0.5",
    "misc.files.camfile.save": "path, keys, cam, high_res",
    "misc.files.camfile.load": "path",
}
"""Arguments as in a call; further ones may follow that have defaults."""
OF_CHECKS = {"step.train_irn._store_mean_displacement": "model, batches, *, device"}
"""What comparisons with the originals call, and no other code should."""


def found(name):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def arguments(function):
    """[(name, default or None, whether by name alone)] of what a function or class takes."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default, p.kind is inspect.Parameter.KEYWORD_ONLY) for p in parameters]


@pytest.mark.parametrize("name", INTERFACE | OF_CHECKS)
def test_arguments_stay(name):
    expected = arguments(eval(f"lambda {(INTERFACE | OF_CHECKS)[name]}: None"))  # noqa: S307
    given = arguments(found(name))
    assert given[: len(expected)] == expected
    assert all(value is not inspect.Parameter.empty for _, value, _ in given[len(expected) :])


def test_the_page_lists_them_all():
    rows = re.findall(r"^\| `([\w.]+)\((.*?)\)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert {name: written.replace('"', "'") for name, written in rows} == INTERFACE


def test_paths_are_lists_of_the_callers_own():
    paths = found("misc.indexing.pair_paths")
    paths(5)[0, 1].clear()
    assert paths(5)[0, 1] == [(0, 0), (0, 1)]


def test_one_image_is_a_batch_of_one():
    model = found("net.resnet18_cam.CAM")(n_classes=3).eval()
    pairs = {scale: torch.randn(2, 3, 32, 48) for scale in (0.5, 1.0)}
    settings = {"coefficient": 7.0, "step": 0.08, "score_threshold": 0.5, "batch_size": 1}
    alone = found("misc.advcam.advcam")(model, pairs, (32, 48), [0, 2], n_iter=3)
    (of_batch,) = found("misc.advcam.advcam_batch")(model, [pairs], (32, 48), [[0, 2]], n_iter=3, **settings)
    assert [maps.shape for maps in alone] == [(2, 8, 12), (2, 32, 48)]
    assert all(map(torch.equal, alone, of_batch))


def test_the_power_of_the_rates_is_heeded():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = PolyOptimizer([{"params": [weight]}], lr=1.0, weight_decay=1e-4, max_step=4, power=2)
    rates = []
    for _ in range(4):
        weight.grad = torch.zeros(1)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16])
