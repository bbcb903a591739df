"""The IRN losses on pixel pairs: values and gradients against plain loops, memory."""

import pytest
import torch
from support import every_pair
from torch.nn import functional as F

from misc.pair_losses import pair_losses
from misc.run.memory import peak_memory_mib, reset_peak_memory

EPSILON = 1e-5


def plain_losses(edge, displacement, labels, radius):
    """IRN equations 4, 6 and 7, pair by pair."""
    sums = dict.fromkeys(("bg", "fg", "neg", "dp_fg", "dp_bg"), edge.sum() * 0)
    counts = dict.fromkeys(("bg", "fg", "neg"), 0)
    for image in range(len(edge)):
        for _, _, (y, x), (v, u), cells in every_pair(*edge.shape[2:], radius):
            a, b = int(labels[image, y, x]), int(labels[image, v, u])
            if 255 in (a, b):
                continue
            # The first of equal cells, to which the gradient goes
            largest = max(cells, key=edge.detach()[image, 0].__getitem__)
            affinity = 1 - edge[image, 0][largest]
            moved = displacement[image, :, y, x] - displacement[image, :, v, u]
            kind = "neg" if a != b else "fg" if a else "bg"
            counts[kind] += 1
            sums[kind] = sums[kind] - torch.log(1 + EPSILON - affinity if kind == "neg" else affinity + EPSILON)
            if kind == "fg":
                sums["dp_fg"] = sums["dp_fg"] + (moved - torch.tensor([v - y, u - x])).abs().sum()
            elif kind == "bg":
                sums["dp_bg"] = sums["dp_bg"] + moved.abs().sum()
    losses = {
        "pos": sums["bg"] / (counts["bg"] + EPSILON) / 2 + sums["fg"] / (counts["fg"] + EPSILON) / 2,
        "neg": sums["neg"] / (counts["neg"] + EPSILON),
        "dp_fg": sums["dp_fg"] / (2 * counts["fg"] + EPSILON),
        "dp_bg": sums["dp_bg"] / (2 * counts["bg"] + EPSILON),
    }
    return {**losses, "total": sum(losses.values()) / 2}


def random_inputs(size, *, ties):
    """Edges, displacements and labels; with `ties`, many edges are equal and many distances exactly zero."""
    edge, displacement = torch.rand(2, 1, *size, dtype=torch.float64), torch.randn(2, 2, *size, dtype=torch.float64)
    if ties:
        edge, displacement = (edge * 3).round() / 3, displacement.round()
    labels = torch.tensor([0, 0, 2, 2, 7, 255], dtype=torch.uint8)[torch.randint(6, (2, *size))]
    return edge.requires_grad_(), displacement.requires_grad_(), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("size", "radius"), [((8, 10), 4), ((4, 7), 4), ((11, 9), 5)])
def test_losses_and_gradients_equal_plain_loops(size, radius, ties):
    edge, displacement, labels = random_inputs(size, ties=ties)
    losses = pair_losses(edge, displacement, labels, radius=radius)
    expected = plain_losses(edge, displacement, labels, radius)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value.item() > 0
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-9)
        for given in (edge, displacement):
            gradients = [
                torch.autograd.grad(loss[name], given, retain_graph=True, materialize_grads=True)[0]
                for loss in (losses, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_float32_losses_of_many_pairs_agree_with_float64():
    edge, displacement, labels = random_inputs((64, 64), ties=False)
    labels = torch.where(torch.arange(64) < 20, 1, torch.where(torch.arange(64) < 30, 255, 0)).byte().expand_as(labels)
    single = pair_losses(edge.float(), displacement.float(), labels, radius=10)
    for name, value in pair_losses(edge, displacement, labels, radius=10).items():
        assert single[name].dtype == torch.float32
        assert single[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_losses_of_unsure_labels_are_zero_and_have_gradients():
    edge = torch.rand(1, 1, 24, 24, requires_grad=True)
    labels = torch.full((1, 24, 24), 255, dtype=torch.uint8)
    losses = pair_losses(edge, torch.randn(1, 2, 24, 24), labels, radius=10)
    losses["total"].backward()
    assert losses["total"].item() == 0
    assert edge.grad.isfinite().all()


def test_losses_do_not_hide_nan():
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    for nan_edge, nan_displacement in ((torch.nan, 0.0), (0.0, torch.nan)):
        edge, displacement = torch.full((1, 1, 24, 24), nan_edge), torch.full((1, 2, 24, 24), nan_displacement)
        assert pair_losses(edge, displacement, labels, radius=10)["total"].isnan()


def test_a_wide_map_gives_the_losses_of_its_sure_part():
    edge, displacement, labels = random_inputs((30, 40), ties=False)
    labels[:, :, 36:] = 255  # sources in the wide map, but not in the narrow one
    wide_edge, wide_displacement = F.pad(edge, (0, 1100)), F.pad(displacement, (0, 1100))
    assert wide_edge[0].numel() > torch.iinfo(torch.int16).max  # the ranks need 32 bits
    wide = pair_losses(wide_edge, wide_displacement, F.pad(labels, (0, 1100), value=255), radius=5)
    for name, value in pair_losses(edge, displacement, labels, radius=5).items():
        assert wide[name].item() == pytest.approx(value.item(), rel=1e-9)


def test_memory_of_the_losses_of_two_crops_of_512():
    edge = torch.rand(2, 1, 128, 128, requires_grad=True)
    displacement = torch.randn(2, 2, 128, 128, requires_grad=True)
    labels = torch.randint(3, (2, 128, 128), dtype=torch.uint8)
    device = torch.device("cpu")
    pair_losses(edge[:, :, :32, :32], displacement[:, :, :32, :32], labels[:, :32, :32], radius=10)
    reset_peak_memory(device)
    before = peak_memory_mib(device)["process"]
    pair_losses(edge, displacement, labels, radius=10)["total"].backward()
    assert peak_memory_mib(device)["process"] - before < 150


def test_maps_too_small_for_a_pair_are_refused():
    labels = torch.zeros(1, 12, 18, dtype=torch.uint8)
    with pytest.raises(ValueError, match="needs 10 x 19 cells"):
        pair_losses(torch.zeros(1, 1, 12, 18), torch.zeros(1, 2, 12, 18), labels, radius=10)
