"""The mathematics of W-OoD, against plain code and in its corner cases."""

import numpy as np
import pytest
import torch
from torch import nn

from misc.ood import adversarial_step, class_prototypes, distance_loss, distances, kmeans, ood_loss, wood_losses


def plain_kmeans(x, k, n_iter):
    """Lloyd's algorithm by plain loops; an empty cluster is None and stays so."""
    centres = [row.astype(np.float64) for row in x[:k]]
    for _ in range(n_iter):
        assignment = [
            min((c for c in range(k) if centres[c] is not None), key=lambda c: np.linalg.norm(row - centres[c]))
            for row in x
        ]
        members = [[row for row, a in zip(x, assignment, strict=True) if a == c] for c in range(k)]
        centres = [np.mean(m, axis=0) if m else None for m in members]
    return assignment, centres


@pytest.mark.parametrize("n_iter", [1, 2, 10])
def test_kmeans_equals_plain_loops(n_iter):
    x = np.random.default_rng(n_iter).standard_normal((80, 6)).astype(np.float32)
    assignment, centres = kmeans(torch.from_numpy(x), 7, n_iter)
    expected_assignment, expected_centres = plain_kmeans(x, 7, n_iter)
    assert assignment.tolist() == expected_assignment
    np.testing.assert_allclose(centres, np.stack(expected_centres), atol=1e-5)


def test_an_emptied_cluster_stays_empty():
    # Rows 0 and 1 are the same, so that cluster 1 (a draw goes to the first) has no members from the start
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0], [0.1, 0.0], [5.0, 5.1]])
    assignment, centres = kmeans(x, 3)
    assert assignment.tolist() == [0, 0, 2, 0, 2]
    assert centres[1].isnan().all()
    assert not centres[[0, 2]].isnan().any()


def test_more_clusters_than_points_are_refused():
    with pytest.raises(ValueError, match="4 clusters of 3 points"):
        kmeans(torch.zeros(3, 2), 4)


def test_class_prototypes_count_an_image_for_each_of_its_classes():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    prototypes = class_prototypes([features], labels)
    assert prototypes[:2].tolist() == [[1, 2], [2, 3]]
    assert prototypes[2].isnan().all()


def test_class_prototypes_of_parts_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(50, 7, generator=generator)
    labels = torch.rand(50, 4, generator=generator) < 0.3
    whole = torch.stack([features[labels[:, k]].double().mean(dim=0) for k in range(4)])
    for size in (1, 7, 50):
        prototypes = class_prototypes(iter(features.split(size)), labels)
        assert prototypes.dtype == features.dtype
        np.testing.assert_allclose(prototypes, whole, rtol=1e-6, atol=1e-7)


def test_distances_to_empty_prototypes_are_zero_without_a_gradient():
    features = torch.randn(3, 4, requires_grad=True)
    prototypes = torch.cat([torch.full((1, 4), torch.nan), features.detach()[:1], torch.ones(1, 4)])
    dist = distances(features, prototypes)
    assert dist[:, 0].tolist() == [0, 0, 0]
    expected = torch.linalg.vector_norm(features.detach() - 1, dim=1)
    torch.testing.assert_close(dist[:, 2].detach(), expected)
    dist.sum().backward()
    assert features.grad.isfinite().all()


def plain_distance_loss(dist, label, topk):
    n_images, n_classes = label.shape
    to_ood = dist[:, n_classes:]
    n_clusters = to_ood.shape[1]
    known = sorted((d for d in to_ood.ravel() if d > 0), reverse=True)
    rank = int(np.floor((1 - topk) * len(known)))
    threshold = known[rank - 1] if rank else 0.0
    pull = (dist[:, :n_classes] * label).sum() / (n_images * n_classes) * n_classes / n_clusters
    push = to_ood[to_ood < threshold].sum() / (n_images * n_clusters)
    return pull - push, threshold


@pytest.mark.parametrize("topk", [0.0, 0.2, 0.5, 1.0])
def test_distance_loss_equals_plain_code(topk):
    rng = np.random.default_rng(3)
    dist = rng.random((5, 4 + 7)) + 0.1
    dist[:, 6] = 0  # an empty cluster
    label = (rng.random((5, 4)) < 0.4).astype(np.float64)
    loss, threshold = distance_loss(torch.from_numpy(dist), torch.from_numpy(label), topk)
    expected, expected_threshold = plain_distance_loss(dist, label, topk)
    assert loss.item() == pytest.approx(expected)
    assert threshold.item() == pytest.approx(expected_threshold)


def test_distance_loss_of_empty_clusters_only_pulls():
    dist = torch.tensor([[2.0, 3.0, 0.0, 0.0]])
    loss, _ = distance_loss(dist, torch.tensor([[1.0, 0.0]]), topk=0.2)
    assert loss.item() == pytest.approx(2.0 / 2 * 2 / 2)


class PixelSum(nn.Module):
    """Logits are weighted sums of the pixels, so that the pixels' gradient is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0], [-2.0]]))

    def forward(self, images):
        pooled = images.sum(dim=(1, 2, 3))[:, None]
        return pooled @ self.weight.T, pooled


def test_adversarial_step_moves_along_the_largest_logit_and_clamps_to_the_batch():
    images = torch.tensor([1.0, 2.0, -4.0, 0.5]).view(2, 1, 1, 2)  # image sums 3 and -3.5: logits 0 and 1 are largest
    model = PixelSum()
    moved = adversarial_step(model, images, step=0.5)
    # gradient 1 and -2, divided by 2: steps of 0.25 and -0.5; -4 is the batch's minimum, 2 its maximum
    assert moved.flatten().tolist() == pytest.approx([1.25, 2.0, -4.0, 0.0])
    assert model.weight.grad is None
    assert not moved.requires_grad
    assert not images.requires_grad


def test_adversarial_step_takes_the_weights_as_constants():
    """Nothing is kept or computed for their gradients; after it those that are trained are so again."""
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)), []
    model[1].requires_grad_(False)

    def forward(x):
        seen.append([parameter.requires_grad for parameter in model.parameters()])
        return model(x), x

    wrapped = nn.Module()
    wrapped.model, wrapped.forward = model, forward
    images = torch.randn(2, 1, 2, 2)
    adversarial_step(wrapped, images, step=0.07)
    assert seen == [[False] * 4]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]
    wrapped.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        adversarial_step(wrapped, images, step=0.07)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_adversarial_step_works_where_gradients_are_off():
    with torch.no_grad():
        assert adversarial_step(PixelSum(), torch.ones(1, 1, 1, 2), step=0.07).shape == (1, 1, 1, 2)


def test_ood_loss_leaves_out_the_ignored_class_but_not_its_place_in_the_mean():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    each = torch.log1p(torch.exp(logits)).mean(dim=1)  # soft margin against zeros: -log sigmoid(-x)
    assert ood_loss(logits, ignore_class=None).item() == pytest.approx(each.mean().item())
    assert ood_loss(logits, ignore_class=1).item() == pytest.approx(each[0].item() / 2)


def test_losses_of_the_control_have_no_ood_terms():
    losses = wood_losses(
        PixelSum(),
        torch.randn(2, 1, 2, 2),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        ood_images=None,
        prototypes=None,
        ood_coeff=0.0,
        distance_lambda=0.0,
        topk=0.2,
        step=0.07,
        ignore_class=None,
    )
    assert losses.keys() == {"bce", "total"}
    assert losses["total"] is losses["bce"]
