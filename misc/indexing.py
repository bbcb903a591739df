"""Pixel pairs: their paths and labels, and the random walk over them (IRN sections 4 and 5).

A pair of radius r is a source cell and a destination cell at an offset (dy, dx) of half a disc. Its affinity is
1 - the largest edge on the path between the two. Offsets are ordered by path length, then by (dy, dx).
"""

import math
import warnings
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from misc.imutils import IGNORE_LABEL

OUTSIDE = -1.0
"""Stands for a neighbour outside the map; no affinity is negative."""
POWER_ACCURACY = 1e-9
"""Of a power of the transition matrix, relative to what it is applied to."""

Offset = tuple[int, int]


@lru_cache(maxsize=8)
def _pair_paths(radius: int) -> dict[Offset, tuple[Offset, ...]]:
    paths = {}
    for dy in range(radius):
        for dx in range(-radius + 1, radius):
            if (dy == 0 and dx <= 0) or dy**2 + dx**2 >= radius**2:
                continue
            # The path: cells of the bounding rectangle at a distance below 1 from the line from (0, 0) to (dy, dx)
            cells = [
                (y, x)
                for y in range(dy + 1)
                for x in range(min(0, dx), max(0, dx) + 1)
                if (dy * x - dx * y) ** 2 < dy**2 + dx**2
            ]
            paths[dy, dx] = tuple(cells)
    return dict(sorted(paths.items(), key=lambda item: (len(item[1]), item[0])))


def pair_paths(radius: int) -> dict[Offset, list[Offset]]:
    """{(dy, dx): cells (y, x) of the path, sorted}, relative to the source cell, in the order of offsets."""
    return {offset: list(path) for offset, path in _pair_paths(radius).items()}


def _shifted(x: Tensor, offset: Offset, *, radius: int) -> Tensor:
    """(..., h, w) -> (..., h - r + 1, w - 2r + 2): for every source cell the value at `offset` from it.

    Sources are rows 0 .. h - r + 1 and columns r - 1 .. w - r + 1 (ends excluded), so that all pairs stay inside.
    """
    dy, dx = offset
    margin = radius - 1
    height, width = x.shape[-2] - margin, x.shape[-1] - 2 * margin
    return x[..., dy : dy + height, margin + dx : margin + dx + width]


def require_pairs(h: int, w: int, radius: int) -> None:
    """Raise `ValueError` if a map of h x w cells has no source cell."""
    if h < radius or w < 2 * radius - 1:
        raise ValueError(f"a {h} x {w} map has no pair of radius {radius}: it needs {radius} x {2 * radius - 1} cells")


def affinity_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, h, w) uint8 labels, 255 for unsure -> bg_pos, fg_pos, neg: each (B, offsets, sources) bool.

    IRN's definition, pair by pair, as its original has it; training counts the same pairs without a tensor of them all
    (`misc.pair_losses`). A pair is valid if both labels are sure: bg-positive if equal and 0, fg-positive if equal and
    > 0, negative if different (IRN equation 5). Offsets in the order of `pair_paths`, sources row by row.
    """
    require_pairs(*labels.shape[-2:], radius)
    source = _shifted(labels, (0, 0), radius=radius).flatten(1)[:, None]
    destination = torch.stack([_shifted(labels, o, radius=radius).flatten(1) for o in _pair_paths(radius)], dim=1)
    valid = (source != IGNORE_LABEL) & (destination != IGNORE_LABEL)
    equal = (source == destination) & valid
    background = source == 0
    return equal & background, equal & ~background, valid & ~equal


def _half_disc_affinities(edge: Tensor, radius: int, beta: float) -> dict[Offset, Tensor]:
    """(h, w) edges -> {(dy, dx): (h - dy, w - |dx|) affinity ** beta of all pairs inside the map}."""
    h, w = edge.shape
    affinities = {}
    for (dy, dx), path in _pair_paths(radius).items():
        height, width = h - dy, w - abs(dx)
        if height <= 0 or width <= 0:
            continue
        left = max(0, -dx)
        largest = None
        for y, x in path:
            cells = edge[y : y + height, left + x : left + x + width]
            largest = cells if largest is None else torch.maximum(largest, cells)
        affinities[dy, dx] = (1 - largest) ** beta
    return affinities


def _transition_operator(edge: Tensor, *, radius: int, beta: float) -> Tensor:
    """(h, w) edges -> the transposed transition matrix, sparse CSR (h*w, h*w) of their type, rows that sum to 1.

    Entry (i, j) is affinity(i, j) ** beta / its sum over i's row; the affinity is symmetric, the diagonal is 1.
    """
    h, w = edge.shape
    n = h * w
    half = _half_disc_affinities(edge, radius, beta)
    # One column of `values` for each offset of the whole disc, in ascending order of the neighbour's index, so that
    # dropping the neighbours outside the map leaves the entries of a CSR matrix in their order: no sort.
    disc = sorted([*half, (0, 0), *((-dy, -dx) for dy, dx in half)])
    values = edge.new_full((h, w, len(disc)), OUTSIDE)
    for k, (dy, dx) in enumerate(disc):
        rows, columns = max(0, -dy), max(0, -dx)
        inside = values[rows : rows + h - abs(dy), columns : columns + w - abs(dx), k]
        inside.copy_(torch.ones_like(inside) if (dy, dx) == (0, 0) else half[max((dy, dx), (-dy, -dx))])
    del half
    values = values.view(n, len(disc))
    present = values != OUTSIDE
    values /= values.masked_fill(~present, 0).sum(dim=1, keepdim=True)
    steps = torch.tensor([dy * w + dx for dy, dx in disc], dtype=torch.int32, device=edge.device)
    neighbours = (torch.arange(n, dtype=torch.int32, device=edge.device)[:, None] + steps)[present]
    row_ends = torch.zeros(n + 1, dtype=torch.int32, device=edge.device)
    row_ends[1:] = present.sum(dim=1).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(row_ends, neighbours, values[present], size=(n, n), check_invariants=False)


@lru_cache(maxsize=8)
def chebyshev_coefficients(n: int) -> list[float]:
    """The c_k with x^n = sum over k of c_k T_k(x), T_k Chebyshev's polynomials, up to `POWER_ACCURACY` on [-1, 1].

    c_k = 2^(1 - n) binomial(n, (n - k) / 2) for even n - k, the half of it for k = 0, and 0 for odd n - k. They fall
    off as exp(-k^2 / 2n), so that about sqrt(n) terms matter.
    """

    def coefficient(k: int) -> float:
        if (n - k) % 2:
            return 0.0
        logs = math.lgamma(n + 1) - math.lgamma((n - k) / 2 + 1) - math.lgamma((n + k) / 2 + 1)
        return math.exp(logs + (1 - n) * math.log(2)) / (2 if k == 0 else 1)

    coefficients, left = [], 1.0
    while len(coefficients) <= n and left > POWER_ACCURACY:
        coefficients.append(coefficient(len(coefficients)))
        left -= coefficients[-1]  # all of them add up to 1
    return coefficients


def _apply_power(operator: Tensor, n: int, x: Tensor) -> Tensor:
    """`operator` to the power n, times x (N, C): n >= 1, the operator sparse (N, N) with eigenvalues in [-1, 1].

    In float64: where a walk spreads a peak, the terms of the sum are much larger than the sum.
    """
    coefficients = chebyshev_coefficients(n)
    before, now = x, operator @ x
    total = coefficients[0] * before + coefficients[1] * now
    for c in coefficients[2:]:
        before, now = now, torch.addmm(before, operator, now, beta=-1, alpha=2)
        if c:
            total += c * now
    return total


class RandomWalk:
    """The random walk that stops at edges (IRN equation 8): x * (1 - edge) times T to the power 2^exp_times.

    The original squares the dense (h*w, h*w) matrix T exp_times times, O(n^3) work and O(n^2) memory. Here maps are
    multiplied with a sparse matrix of at most 69 entries a row (radius 5), O(n) of both; and since T is similar to a
    symmetric matrix, its power is a short sum of Chebyshev polynomials: 96 products for the 256 steps of the default.
    The matrix is made at the first walk, and serves all that follow.
    """

    def __init__(self, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> None:
        """`edge`: (1, h, w) edges in [0, 1]."""
        self._edge, self._steps = edge, 2**exp_times
        self._radius, self._beta = radius, beta

    @cached_property
    def _operator(self) -> Tensor:
        return _transition_operator(self._edge[0].double(), radius=self._radius, beta=self._beta)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(C, h, w) maps, C may be 0 -> (C, h, w)."""
        if x.shape[-2:] != self._edge.shape[-2:]:
            shapes = tuple(x.shape[-2:]), tuple(self._edge.shape[-2:])
            raise ValueError("maps of {} and edges of {} differ in size".format(*shapes))
        start = (x * (1 - self._edge)).flatten(1).T.double().contiguous()
        return _apply_power(self._operator, self._steps, start).T.reshape(x.shape).to(x.dtype)

    def bounds(self, x: Tensor) -> Tensor:
        """(C, h, w) maps, not negative -> (C,): no value of the walked map is larger, since a walk averages."""
        return (x * (1 - self._edge)).amax(dim=(1, 2))


def propagate_to_edge(x: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Tensor:
    """The `RandomWalk` of maps (C, h, w), C may be 0, between edges (1, h, w) in [0, 1] -> (C, h, w)."""
    return RandomWalk(edge, radius=radius, beta=beta, exp_times=exp_times)(x)
