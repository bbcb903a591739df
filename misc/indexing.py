"""Pixel pairs: their paths and labels, and the random walk over them (IRN sections 4 and 5).

A pair of radius r is a source cell and a destination cell at an offset (dy, dx) of half a disc. Its affinity is
1 - the largest edge on the path between the two. Offsets are ordered by path length, then by (dy, dx).
"""

import math
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from misc.imutils import IGNORE_LABEL
from misc.run.device import to_device

OUTSIDE = -1.0
"""Stands for a neighbour outside the map; no affinity is negative."""
BEYOND = math.inf
"""The edge of a cell beyond the end of its image, where images of several sizes lie on maps of one."""
WALK_RADIUS = 5
"""Cells: of the neighbours that a step of the random walk reaches."""
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


def require_pairs(h: int, w: int, radius: int) -> None:
    """Raise `ValueError` if a map of h x w cells has no pair of this radius."""
    if h < radius or w < 2 * radius - 1:
        raise ValueError(f"a {h} x {w} map has no pair of radius {radius}: it needs {radius} x {2 * radius - 1} cells")


def affinity_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, h, w) uint8 labels, 255 for unsure -> bg_pos, fg_pos, neg: each (B, offsets, sources) bool (IRN equation 5).

    Training counts the same pairs without a tensor of them all (`misc.pair_losses`). A pair is valid if both labels are
    sure: bg-positive if equal and 0, fg-positive if equal and > 0, negative if different. Offsets in the order of
    `pair_paths`; sources row by row, those whose pairs all lie within the map: rows 0 .. h - r + 1 and columns
    r - 1 .. w - r + 1 (ends excluded). Raises `ValueError` for a map without any.
    """
    h, w = labels.shape[-2:]
    require_pairs(h, w, radius)
    margin = radius - 1

    def shifted(dy: int, dx: int) -> Tensor:
        return labels[:, dy : dy + h - margin, margin + dx : w - margin + dx].flatten(1)

    source = shifted(0, 0)[:, None]
    destination = torch.stack([shifted(*offset) for offset in _pair_paths(radius)], dim=1)
    valid = (source != IGNORE_LABEL) & (destination != IGNORE_LABEL)
    equal = (source == destination) & valid
    background = source == 0
    return equal & background, equal & ~background, valid & ~equal


def _half_disc_affinities(edges: Tensor, radius: int, beta: float) -> dict[Offset, Tensor]:
    """(B, H, W) edges -> {(dy, dx): (B, H - dy, W - |dx|) affinity ** beta of all pairs, `OUTSIDE` where one is none}.

    An image begins at the first cell, so that both ends of a path are within it only if all of the path is.
    """
    beyond = edges == BEYOND
    affinities = {}
    for (dy, dx), path in _pair_paths(radius).items():
        height, width = edges.shape[1] - dy, edges.shape[2] - abs(dx)
        if height <= 0 or width <= 0:
            continue
        left = max(0, -dx)
        largest = None
        for y, x in path:
            cells = edges[:, y : y + height, left + x : left + x + width]
            largest = cells if largest is None else torch.maximum(largest, cells)
        ends = (beyond[:, y : y + height, left + x : left + x + width] for y, x in ((0, 0), (dy, dx)))
        affinities[dy, dx] = ((1 - largest) ** beta).masked_fill_(torch.logical_or(*ends), OUTSIDE)
    return affinities


_Entries = tuple[Tensor, Tensor, Tensor]
"""Of a sparse matrix, row by row: how many there are up to the end of each row, their columns (int32), their values."""


def _transitions(edges: Tensor, *, radius: int, beta: float) -> _Entries:
    """(B, H, W) edges -> the transposed transition matrices of B images as the blocks of one, (B*H*W, B*H*W).

    Rows sum to 1. Entry (i, j) of a block is affinity(i, j) ** beta / its sum over i's row; the affinity is symmetric,
    the diagonal is 1. Where the edge is `BEYOND`, rows and columns are empty.
    """
    height, width = edges.shape[1:]
    half = _half_disc_affinities(edges, radius, beta)
    # One column of `values` for each offset of the whole disc, in ascending order of the neighbour's index, so that
    # dropping the neighbours outside the map leaves the entries of a CSR matrix in their order: no sort.
    disc = sorted([*half, (0, 0), *((-dy, -dx) for dy, dx in half)])
    values = edges.new_full((*edges.shape, len(disc)), OUTSIDE)
    for k, (dy, dx) in enumerate(disc):
        if (dy, dx) == (0, 0):
            values[..., k].masked_fill_(edges != BEYOND, 1)
            continue
        rows, columns = max(0, -dy), max(0, -dx)
        inside = values[:, rows : rows + height - abs(dy), columns : columns + width - abs(dx), k]
        inside.copy_(half[max((dy, dx), (-dy, -dx))])
    del half
    values = values.view(-1, len(disc))
    present = values != OUTSIDE
    values /= values.masked_fill(~present, 0).sum(dim=1, keepdim=True)
    steps = to_device(torch.tensor([dy * width + dx for dy, dx in disc], dtype=torch.int32), edges.device)
    neighbours = torch.arange(len(values), dtype=torch.int32, device=edges.device)[:, None] + steps
    return present.sum(dim=1).cumsum(0), neighbours[present], values[present]


def _square_matrix(row_ends: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """The sparse matrix (CSR) of some `_Entries`."""
    n = len(row_ends)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(F.pad(row_ends.int(), (1, 0)), columns, values, (n, n), check_invariants=False)


def _n_entries(h: int, w: int, radius: int) -> int:
    """Of the transition matrix of an image of h x w cells."""
    return h * w + 2 * sum(max(0, h - dy) * max(0, w - abs(dx)) for dy, dx in _pair_paths(radius))


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


class RandomWalks:
    """The random walks of several images that stop at edges (IRN equation 8): x * (1 - edge) times T^(2^exp_times).

    The original squares the dense (h*w, h*w) matrix T exp_times times, O(n^3) work and O(n^2) memory. Here maps are
    multiplied with a sparse matrix of at most 69 entries a row (radius 5), O(n) of both; and since T is similar to a
    symmetric matrix, its power is a short sum of Chebyshev polynomials: 96 products for the 256 steps of the default.

    The images are the blocks of one sparse matrix, so that each product serves all of them: on a GPU that of a single
    image takes less time than its start. The matrix is made at the first walk, and serves all that follow.
    """

    def __init__(self, edges: Sequence[Tensor], *, beta: float, exp_times: int, radius: int = WALK_RADIUS) -> None:
        """`edges`: (1, h, w) edges in [0, 1] of each image, whose sizes may differ."""
        self.edges = edges
        self._radius, self._beta, self._exp_times = radius, beta, exp_times
        self._canvas = tuple(max(edge.shape[axis] for edge in edges) for axis in (1, 2))

    @cached_property
    def _entries(self) -> _Entries:
        on_canvas = self.edges[0].new_full((len(self.edges), *self._canvas), BEYOND, dtype=torch.double)
        for block, edge in zip(on_canvas, self.edges, strict=True):
            block[: edge.shape[1], : edge.shape[2]] = edge[0]
        return _transitions(on_canvas, radius=self._radius, beta=self._beta)

    @cached_property
    def _matrix(self) -> Tensor:
        return _square_matrix(*self._entries)

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], numbers: Sequence[int] | None = None) -> list[Tensor]:
        """Maps (C, h, w) of each image, C may be 0 and differ between them -> theirs, walked.

        `numbers`: of the images that have maps; default: all.
        """
        numbers = range(len(self.edges)) if numbers is None else numbers
        for x, edge in zip(maps, (self.edges[number] for number in numbers), strict=True):
            if x.shape[-2:] != edge.shape[-2:]:
                shapes = tuple(x.shape[-2:]), tuple(edge.shape[-2:])
                raise ValueError("maps of {} and edges of {} differ in size".format(*shapes))
        most = max(map(len, maps))
        if most == 0:
            return [x.clone() for x in maps]
        start = self.edges[0].new_zeros((len(self.edges), *self._canvas, most), dtype=torch.double)
        for x, number in zip(maps, numbers, strict=True):
            _block(start, number, x).copy_(x * (1 - self.edges[number]))
        walked = _apply_power(self._matrix, 2**self._exp_times, start.flatten(0, 2)).view_as(start)
        return [_block(walked, number, x).to(x.dtype, copy=True) for x, number in zip(maps, numbers, strict=True)]

    def __getitem__(self, number: int) -> "RandomWalk":
        """The walk of one image alone, with its block of the matrix."""
        return RandomWalk.of(self if len(self.edges) == 1 else _OneOf(self, number))


class _OneOf(RandomWalks):
    """One of several images, with its block of their matrix, as if that had been made alone."""

    def __init__(self, walks: RandomWalks, number: int) -> None:
        settings = {"beta": walks._beta, "exp_times": walks._exp_times, "radius": walks._radius}
        super().__init__([walks.edges[number]], **settings)
        self._all, self._number = walks, number

    @cached_property
    def _entries(self) -> _Entries:
        (height, width), (h, w), (row_ends, columns, values) = self._all._canvas, self._canvas, self._all._entries
        # Where they lie is known beforehand, so that nothing waits for a GPU
        sizes = [edge.shape[1:] for edge in self._all.edges[: self._number + 1]]
        *before, n_entries = [_n_entries(*size, self._radius) for size in sizes]
        first, last = sum(before), sum(before) + n_entries
        cells = columns[first:last] - self._number * height * width
        return (
            row_ends.view(-1, height, width)[self._number, :h, :w].flatten() - first,
            cells - cells.div(width, rounding_mode="floor") * (width - w),
            values[first:last],
        )


def _block(maps: Tensor, number: int, like: Tensor) -> Tensor:
    """Of (B, H, W, C) maps those of an image that has (C', h, w) of them, in this order."""
    n_maps, h, w = like.shape
    return maps[number, :h, :w, :n_maps].permute(2, 0, 1)


class RandomWalk:
    """The `RandomWalks` of one image."""

    def __init__(self, edge: Tensor, *, beta: float, exp_times: int, radius: int = WALK_RADIUS) -> None:
        """`edge`: (1, h, w) edges in [0, 1]. Raises `ValueError` for others."""
        if edge.dim() != 3 or len(edge) != 1 or not edge.is_floating_point() or not ((edge >= 0) & (edge <= 1)).all():
            raise ValueError(f"the edge must be (1, h, w) numbers in 0 .. 1, not {(*edge.shape,)} of {edge.dtype}")
        self._walks = RandomWalks([edge], beta=beta, exp_times=exp_times, radius=radius)

    @classmethod
    def of(cls, walks: RandomWalks) -> "RandomWalk":
        """That of the one image of `walks`, whose edges are taken on trust."""
        walk = cls.__new__(cls)
        walk._walks = walks
        return walk

    def __call__(self, x: Tensor) -> Tensor:
        """(C, h, w) maps, C may be 0 -> (C, h, w)."""
        return self._walks([x])[0]

    def bounds(self, x: Tensor) -> Tensor:
        """(C, h, w) maps, not negative -> (C,): no value of the walked map is larger, since a walk averages."""
        return (x * (1 - self._walks.edges[0])).amax(dim=(1, 2))


def propagate_to_edge(
    x: Tensor, edge: Tensor, radius: int = WALK_RADIUS, beta: float = 10, exp_times: int = 8
) -> Tensor:
    """The `RandomWalk` of maps (C, h, w), C may be 0, between edges (1, h, w) in [0, 1] -> (C, h, w)."""
    return RandomWalk(edge, beta=beta, exp_times=exp_times, radius=radius)(x)
