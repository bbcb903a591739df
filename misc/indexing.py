"""Pixel pairs: their paths and labels, and the random walk over them (IRN sections 4 and 5).

A pair of radius r is a source cell and a destination cell at an offset (dy, dx) of half a disc. Its affinity is
1 - the largest edge on the path between the two. Offsets are ordered by path length, then by (dy, dx).
"""

import warnings
from functools import lru_cache

import torch
from torch import Tensor

from misc.imutils import IGNORE_LABEL

OUTSIDE = -1.0
"""Stands for a neighbour outside the map; no affinity is negative."""

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


def require_room(h: int, w: int, radius: int) -> None:
    """Raise `ValueError` if a map of h x w cells has no source cell."""
    if h < radius or w < 2 * radius - 1:
        raise ValueError(f"a {h} x {w} map has no pair of radius {radius}: it needs {radius} x {2 * radius - 1} cells")


def affinity_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, h, w) uint8 labels, 255 for unsure -> bg_pos, fg_pos, neg: each (B, offsets, sources) bool.

    A pair is valid if both labels are sure: bg-positive if equal and 0, fg-positive if equal and > 0, negative if
    different (IRN equation 5). Offsets in the order of `pair_paths`, sources row by row.
    """
    require_room(*labels.shape[-2:], radius)
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
    """(h, w) edges -> the transposed transition matrix, sparse CSR (h*w, h*w), rows that sum to 1.

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
    # The operator acts 2^exp_times times and an error in a sum grows with it: the sums are taken in float64
    values /= values.masked_fill(~present, 0).sum(dim=1, keepdim=True, dtype=torch.float64)
    steps = torch.tensor([dy * w + dx for dy, dx in disc], dtype=torch.int32, device=edge.device)
    neighbours = (torch.arange(n, dtype=torch.int32, device=edge.device)[:, None] + steps)[present]
    row_ends = torch.zeros(n + 1, dtype=torch.int32, device=edge.device)
    row_ends[1:] = present.sum(dim=1).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(row_ends, neighbours, values[present], size=(n, n), check_invariants=False)


@torch.no_grad()
def propagate_to_edge(x: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Tensor:
    """Random walk of `x` that stops at edges (IRN equation 8): x * (1 - edge) times T to the power 2^exp_times.

    The original squares the dense (h*w, h*w) matrix T exp_times times, O(n^3) work and O(n^2) memory. The same product
    is 2^exp_times products of `x` with a sparse matrix of at most 69 entries a row (radius 5): O(n) of both.

    Args:
        x: (C, h, w) maps, C may be 0.
        edge: (1, h, w) edges in [0, 1].

    Returns:
        (C, h, w).
    """
    if x.shape[-2:] != edge.shape[-2:]:
        raise ValueError(f"maps of {tuple(x.shape[-2:])} and edges of {tuple(edge.shape[-2:])} differ in size")
    operator = _transition_operator(edge[0].float(), radius=radius, beta=beta)
    walked = (x * (1 - edge)).flatten(1).T.contiguous()
    for _ in range(2**exp_times):
        walked = operator @ walked
    return walked.T.reshape(x.shape)
