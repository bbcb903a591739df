"""The permutohedral lattice against one that is built point by point, and against the Gaussian that it stands for."""

import gc
import math
import weakref
from collections import defaultdict

import numpy as np
import pytest
import torch

from misc import permutohedral
from misc.permutohedral import Lattice, WeightedSum, parts_of

CPU = torch.device("cpu")


def filter_by_definition(features, x):
    """D^-1/2 K D^-1/2 x in float64: each point's simplex from the sorted residuals, vertices in a dictionary.

    Where points don't come by fours, the vertices around the origin are there too.
    """
    n, d = features.shape
    basis = np.zeros((d + 1, d))  # from features to the hyperplane whose coordinates sum up to 0 (section 3.1)
    for i in range(d):
        basis[: i + 1, i], basis[i + 1, i] = 1, -(i + 1)
        basis[:, i] *= math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))

    def simplex_of(point):
        corner = np.round(point / (d + 1)) * (d + 1)
        order = np.argsort(-(point - corner), kind="stable")
        surplus = round(corner.sum() / (d + 1))
        if surplus > 0:
            corner[order[-surplus:]] -= d + 1
        elif surplus < 0:
            corner[order[:-surplus]] += d + 1
        residual = (point - corner) / (d + 1)
        order = np.argsort(-residual, kind="stable")
        ascending = residual[order]
        shares = [1 - ascending[0] + ascending[-1], *(ascending[d - k] - ascending[d - k + 1] for k in range(1, d + 1))]
        vertices = []
        for k in range(d + 1):  # the k lowest coordinates go down by d + 1 - k, the others up by k
            vertex = corner + k
            vertex[order[d + 1 - k :]] -= d + 1
            vertices.append(tuple(vertex.astype(int)))
        return list(zip(vertices, shares, strict=True))

    simplices = [simplex_of(point) for point in features @ basis.T]
    filling = simplex_of(np.zeros(d + 1)) if n % 4 else []
    directions = [tuple(d if i == j else -1 for i in range(d + 1)) for j in range(d + 1)]

    def plain(column):
        values = defaultdict(float, {vertex: 0.0 for vertex, _ in filling})
        for simplex, value in zip(simplices, column, strict=True):
            for vertex, share in simplex:
                values[vertex] += share * value
        for direction in directions:
            values = defaultdict(
                float,
                {
                    vertex: value
                    + sum(values.get(tuple(np.add(vertex, sign * np.array(direction))), 0) for sign in (1, -1)) / 2
                    for vertex, value in values.items()
                },
            )
        return np.array([sum(share * values[vertex] for vertex, share in s) for s in simplices]) / (1 + 2.0**-d)

    norm = 1 / np.sqrt(plain(np.ones(n)))
    return np.stack([norm * plain(norm * column) for column in x.T], axis=1)


def lattice_of(features):
    """Of (N, d)."""
    highest = features.amax(dim=0).tolist()
    return Lattice(lambda part: features[part].t().contiguous(), len(features), highest, device=CPU)


def filtered(lattice, x):
    """(N, C) -> (N, C), part by part."""
    values, parts = None, parts_of(len(x))
    for index, part in enumerate(parts):
        values = lattice.entries(index).splat(x[part], values, lattice.n_rows)
    values = lattice.blur(values)
    return torch.cat([lattice.entries(index).slice(values) for index in range(len(parts))])


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize(("spread", "n"), [(1.0, 52), (6.0, 52), (6.0, 50)])
def test_the_filter_is_that_of_the_definition(d, spread, n):
    rng = np.random.default_rng(d)
    features, x = rng.random((n, d)) * spread, rng.random((n, 2))
    found = filtered(lattice_of(torch.from_numpy(features).float()), torch.from_numpy(x).float())
    np.testing.assert_allclose(found, filter_by_definition(features, x), rtol=0, atol=1e-5)


def test_it_approximates_the_normalised_gaussian():
    place = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"), -1).view(-1, 2) / 3
    kernel = torch.exp(-(torch.cdist(place, place) ** 2) / 2)
    norm = kernel.sum(dim=1).rsqrt()
    step = (place[:, :1] > 4).float()
    expected = norm[:, None] * (kernel @ (norm[:, None] * step))
    assert (filtered(lattice_of(place), step) - expected).abs().max() < 0.05


@pytest.mark.parametrize("kept", [10**6, 0])
@pytest.mark.parametrize("d", [2, 5])
def test_parts_of_the_points_give_the_same(monkeypatch, kept, d):
    features = torch.rand(300, d, generator=torch.Generator().manual_seed(d)) * 5
    x = torch.rand(300, 4)
    whole = filtered(lattice_of(features), x)
    monkeypatch.setattr(permutohedral, "PART_POINTS", 77)
    monkeypatch.setattr(permutohedral, "KEPT_POINTS", kept)
    assert len(parts_of(300)) == 4
    torch.testing.assert_close(filtered(lattice_of(features), x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [10**6, 0])
def test_a_lattice_is_gone_with_its_last_name(monkeypatch, kept):
    """Else a GPU's memory would fill up, since Python looks for circles of references by its own count alone."""
    monkeypatch.setattr(permutohedral, "PART_POINTS", 77)
    monkeypatch.setattr(permutohedral, "KEPT_POINTS", kept)
    gc.disable()
    try:
        lattice = lattice_of(torch.rand(300, 2))
        filtered(lattice, torch.rand(300, 4))
        alive = weakref.ref(lattice)
        del lattice
        assert alive() is None
    finally:
        gc.enable()


def test_wide_keys_give_what_narrow_ones_do():
    features = torch.rand(200, 5, generator=torch.Generator().manual_seed(1)) * 5
    narrow, wide = (
        Lattice(lambda part: features[part].t().contiguous(), 200, [highest] * 5, device=CPU) for highest in (5, 500)
    )
    assert (narrow._numbers.dtype, wide._numbers.dtype) == (torch.int32, torch.int64)
    x = torch.rand(200, 3)
    torch.testing.assert_close(filtered(wide, x), filtered(narrow, x), rtol=1e-5, atol=1e-6)


def test_features_without_bounds_are_refused():
    with pytest.raises(ValueError, match="too many lattice points"):
        Lattice(lambda part: torch.zeros(5, 1), 1, [1e5] * 5, device=CPU)


def test_a_weighted_sum_adds_up(monkeypatch):
    monkeypatch.setattr(permutohedral, "PART_POINTS", 60)
    x, features = torch.rand(100, 3), torch.rand(100, 3) * 4
    lattices = [lattice_of(features[:, :2]), lattice_of(features)]
    together = filtered(WeightedSum(lattices, [3, 10]), x)
    torch.testing.assert_close(together, 3 * filtered(lattices[0], x) + 10 * filtered(lattices[1], x))
