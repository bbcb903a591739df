"""Gaussian filters of any dimension in linear time, on the permutohedral lattice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010). A point
with d features lies in a simplex of d + 1 vertices of a lattice. Its value is spread over them (splat), the vertices
exchange values with their neighbours along each of the d + 1 directions of the lattice (blur), and each point collects
what its vertices have then (slice). Splat and slice are a sparse matrix and its transpose, a blur has three entries a
row: all are sums of weighted rows, which `torch.nn.functional.embedding_bag` computes on any device, always in one
order, with 32-bit indices.

Where two ways of rounding could choose different simplices, this follows the implementation that comes with Krähenbühl
and Koltun's dense CRF, in float32, so that both have the same lattice.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPSILON = 1e-20
POINTS_AT_ONCE = 4
PART_POINTS = 2**19
"""Points that are worked on at a time, so that memory stays bounded."""
KEPT_POINTS = 2**22
"""With more points than these their entries are not kept but computed anew whenever they are used."""
VALUES_IN_MEMORY = 2**28
"""Values of vertices, float32: more than these lie in a temporary file, and the system has in memory what has room."""
BLURRED_AT_ONCE = 2**26
"""Values of vertices, at most, unless eight columns are more: these are whole vectors of a processor."""


def parts_of(n_points: int) -> list[slice]:
    """All points, at most `PART_POINTS` at a time."""
    return [slice(first, min(first + PART_POINTS, n_points)) for first in range(0, n_points, PART_POINTS)]


def _weighted_sums(rows: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """(M, C), and sums of weighted rows, a group from each of `starts` (G + 1,) to the next -> (G, C)."""
    return F.embedding_bag(
        indices.view(-1), rows, starts, mode="sum", per_sample_weights=weights.view(-1), include_last_offset=True
    )


def _equal_starts(n_groups: int, size: int, device: torch.device) -> Tensor:
    return torch.arange(0, n_groups * size + 1, size, dtype=torch.int32, device=device)


def _zeros(n_rows: int, n_columns: int, device: torch.device) -> Tensor:
    """float32. Raises `OSError` where there is no room for the temporary file of a large one."""
    size = n_rows * n_columns
    if device.type != "cpu" or size <= VALUES_IN_MEMORY:
        return torch.zeros(n_rows, n_columns, device=device)
    with NamedTemporaryFile() as file:  # which the system deletes when it is neither open nor mapped any more
        if hasattr(os, "posix_fallocate"):  # else a full disk would be a signal, later
            try:
                os.posix_fallocate(file.fileno(), 0, size * torch.float32.itemsize)
            except OSError as error:
                error.filename = file.name
                raise
        return torch.from_file(file.name, shared=True, size=size).view(n_rows, n_columns)


@dataclass(frozen=True)
class Entries:
    """The sparse matrix between n points and the rows of a lattice's values, e entries a point, in both orders.

    Attributes:
        rows, weights: (n, e) int32 and float32: by points.
        points, shares: (n * e,) int32 and float32: by groups, one for each of the rows that occur.
        starts: (groups + 1,) int32: where each group starts.
        groups: (groups,) int64: their rows; None if the groups are all rows.
    """

    rows: Tensor
    weights: Tensor
    points: Tensor
    shares: Tensor
    starts: Tensor
    groups: Tensor | None

    def splat(self, x: Tensor, values: Tensor | None, n_rows: int) -> Tensor:
        """Add (n, C) of the points to the values (n_rows, C) of the vertices, None for zeros; returns the latter."""
        sums = _weighted_sums(x, self.points, self.starts, self.shares)
        if self.groups is None:
            return sums if values is None else values.add_(sums)
        if values is None:
            values = _zeros(n_rows, x.shape[1], x.device)
        values[self.groups] += sums  # no row occurs twice
        return values

    def slice(self, values: Tensor) -> Tensor:
        """(n_rows, C) of the vertices -> (n, C) of the points."""
        n, e = self.rows.shape
        return _weighted_sums(values, self.rows, _equal_starts(n, e, values.device), self.weights)


class _Keys(NamedTuple):
    """How the vertices of one remainder are numbered: the first d coordinates are the digits of an integer.

    All coordinates of a vertex have the same remainder k modulo d + 1, and their sum is 0. So the digits are
    (coordinate - k) / (d + 1) - low, and the last coordinate follows from the others.
    """

    low: list[int]
    radix: list[int]
    span: int

    @classmethod
    def within(cls, highest: Sequence[float]) -> "_Keys":
        """For features between 0 and `highest`."""
        d = len(highest)
        reach = [scale * high for scale, high in zip(_scales(d), highest, strict=True)]
        # of the corner at remainder 0, rounding and wrapping included, and of its vertices and their neighbours
        low = [math.floor(-(j * reach[j - 1] if j else 0) / (d + 1)) - 5 for j in range(d)]
        high = [math.ceil(sum(reach[j:]) / (d + 1)) + 5 for j in range(d)]
        radix, span = [], 1
        for a, b in reversed(list(zip(low, high, strict=True))):
            radix.insert(0, span)
            span *= b - a + 1
        if span * (d + 1) >= 2**63:
            raise ValueError(f"features up to {list(highest)} have too many lattice points for 64-bit keys")
        return cls(low, radix, span)

    @property
    def dtype(self) -> torch.dtype:
        """Half as wide where that is enough, since it halves the time of sorting."""
        return torch.int32 if self.span < 2**31 else torch.int64


def _scales(d: int) -> list[float]:
    """Of the axes, such that the blur's deviation is 1 in the units of the features (Adams et al., section 3.1)."""
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))  # rounded, as the other implementation does
    return [float(np.float32(deviation / math.sqrt((i + 1) * (i + 2)))) for i in range(d)]


def _simplices(features: Tensor, numbers: _Keys) -> tuple[Tensor, Tensor]:
    """(d, n) float32 -> the simplex of each point: keys (d + 1, n) of its vertices by remainder, weights (d + 1, n)."""
    d, n = features.shape
    scales, shrink = _scales(d), 1 / (d + 1)
    elevated = features.new_empty(d + 1, n)
    total = features.new_zeros(n)
    for j in range(d, 0, -1):
        scaled = features[j - 1] * scales[j - 1]
        elevated[j] = total - j * scaled
        total = total + scaled
    elevated[0] = total

    # The nearest point with multiples of d + 1 as coordinates. Where these don't sum up to 0, those that were rounded
    # by most go to the next multiple
    corner = (elevated * shrink).round_()
    surplus = corner.sum(dim=0).to(torch.int8)
    difference = elevated - corner * (d + 1)
    rank = torch.zeros(d + 1, n, dtype=torch.int8, device=features.device)
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = difference[i] < difference[j]
            rank[i] += less
            rank[j] += ~less
    rank += surplus
    wrap = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += wrap * (d + 1)
    corner += wrap

    # Barycentric coordinates: differences between neighbours in the order of the ranks
    position = rank.long()
    share = (elevated - corner * (d + 1)).mul_(shrink)
    ordered = torch.empty_like(share).scatter_(0, position, share)
    weights = torch.empty_like(share)
    weights[0] = ordered[d] + (1 - ordered[0])
    weights[1:] = ordered[:-1].flip(0) - ordered[1:].flip(0)

    # From one remainder to the next the coordinates in the order of the ranks, the last one first, take a step down
    digits = (
        corner[:d].to(numbers.dtype) - torch.tensor(numbers.low, device=corner.device, dtype=numbers.dtype)[:, None]
    )
    radix = torch.tensor([*numbers.radix, 0], dtype=numbers.dtype, device=features.device)[:, None]
    ordered_radix = radix.new_empty(d + 1, n).scatter_(0, position, radix.expand(-1, n))
    keys = radix.new_empty(d + 1, n)
    keys[0] = (digits * radix[:d]).sum(dim=0, dtype=numbers.dtype)
    for k in range(1, d + 1):
        torch.sub(keys[k - 1], ordered_radix[d - k + 1], out=keys[k])
    return keys, weights


def _grouped(features: Tensor, numbers: _Keys, *, with_origin: bool) -> tuple[Tensor, Entries]:
    """(d, n) -> the keys of the vertices that occur, ascending (M,) int64, and the entries, whose rows count these.

    `with_origin`: the vertices around the origin are there, too, whether or not a point needs them.
    """
    n_points = features.shape[1]
    if with_origin:
        features = F.pad(features, (0, 1))
    keys, weights = _simplices(features, numbers)
    n_remainders, n = keys.shape
    weights[:, n_points:] = 0
    found, points, starts, shares, rows = [], [], [], [], []
    n_found = 0
    for k in range(n_remainders):  # the vertices of different remainders differ
        ascending, order = keys[k].sort(stable=True)
        is_first = torch.ones(n, dtype=torch.bool, device=keys.device)
        torch.ne(ascending[1:], ascending[:-1], out=is_first[1:])
        first = is_first.nonzero().view(-1)
        number = is_first.cumsum(0, dtype=torch.int32) + (n_found - 1)
        rows.append(torch.empty_like(number).scatter_(0, order, number))
        found.append(ascending[first].long() + k * numbers.span)
        starts.append((first + k * n).int())
        shares.append(weights[k][order])
        points.append(order.int().clamp_(max=n_points - 1))
        n_found += len(first)
    end = torch.tensor([n_remainders * n] * 2, dtype=torch.int32, device=keys.device)  # the row of what is not there
    entries = Entries(
        rows=torch.stack(rows, dim=1)[:n_points],
        weights=weights[:, :n_points].t().contiguous(),
        points=torch.cat(points),
        shares=torch.cat(shares),
        starts=torch.cat([*starts, end]),
        groups=None,
    )
    return torch.cat(found), entries


def _neighbours(keys: Tensor, numbers: _Keys, d: int) -> Tensor:
    """Ascending keys (M,) -> (d + 1, M + 1, 3) int32: each vertex and its two neighbours in each direction.

    M stands for a neighbour that is not there, and for its own neighbours.
    """
    m, device = len(keys), keys.device
    limits = torch.searchsorted(keys, torch.arange(d + 2, device=device) * numbers.span).tolist()
    by_remainder = [(keys[limits[k] : limits[k + 1]] - k * numbers.span).to(numbers.dtype) for k in range(d + 1)]
    # One step back along direction j: all coordinates less 1, but coordinate j more d. The remainder falls by 1, where
    # digit j grows by 1, or from 0 to d, where all other digits fall by 1
    radix = torch.tensor([*numbers.radix, 0], dtype=numbers.dtype, device=device)[:, None]
    before = torch.full((d + 1, m + 1), m, dtype=torch.int32, device=device)
    for k, given in enumerate(by_remainder):
        there = by_remainder[k - 1]
        if len(there) and len(given):
            wanted = given + (radix if k else radix - sum(numbers.radix))
            place = torch.searchsorted(there, wanted, out_int32=True).clamp_(max=len(there) - 1)
            found = there[place] == wanted
            before[:, limits[k] : limits[k + 1]] = torch.where(found, place + limits[k - 1 if k else d], m)
    own = torch.arange(m + 1, dtype=torch.int32, device=device).expand(d + 1, -1)
    after = torch.full_like(before, m).scatter_(1, before.long(), own)
    after[:, m] = m
    return torch.stack([own, before, after], dim=2)


class Lattice:
    """The filter D^-1/2 K D^-1/2 of N points (Gaussian kernel K of deviation 1, D its row sums), on (N, C) values.

    `blur` comes between `Entries.splat` and `Entries.slice` of `entries`, part by part of the points.
    """

    def __init__(
        self, features: Callable[[slice], Tensor], n_points: int, highest: Sequence[float], *, device: torch.device
    ) -> None:
        """`features(part)`: (d, n) float32 of a part of the points, in units of the kernel's deviations, between 0 and
        `highest` (d,); called again when it is needed again."""
        self._d = len(highest)
        self._parts = parts_of(n_points)
        self._features, self._numbers = features, _Keys.within(highest)
        self._gain = 1 / (1 + 2.0**-self._d)  # what the blur leaves of a constant
        if len(self._parts) == 1:
            self._keys, only = self._grouped(0)
            plain = [only].__getitem__
        else:
            self._keys = torch.cat([self._grouped(index)[0] for index in range(len(self._parts))]).unique()
            plain = cache(self._recomputed) if n_points <= KEPT_POINTS else self._recomputed
        self.n_rows = len(self._keys) + 1
        """Rows of the values: the vertices and one more, always 0, which stands for those that are not there."""
        self._neighbours = _neighbours(self._keys, self._numbers, self._d)
        self._blur_weights = torch.tensor([1.0, 0.5, 0.5], device=device).repeat(self.n_rows)
        self._norms = self._row_norms(plain, device)
        self._kept: list[Entries] | None = None
        if n_points <= KEPT_POINTS or len(self._parts) == 1:
            self._kept = [self._normalised(plain(index), index) for index in range(len(self._parts))]

    def entries(self, index: int) -> Entries:
        """The entries of a part of the points, by its number in `parts_of(n_points)`; rows count up to `n_rows`."""
        if self._kept is not None:
            return self._kept[index]
        return self._normalised(self._recomputed(index), index)

    def _normalised(self, plain: Entries, index: int) -> Entries:
        norm = self._norms[index]
        weights = plain.weights * (norm * self._gain)[:, None]
        return replace(plain, weights=weights, shares=plain.shares * norm[plain.points])

    def _grouped(self, index: int) -> tuple[Tensor, Entries]:
        # A quirk of the other implementation, which takes points by fours and fills the last four up with zeros: these
        # vertices may stand between others that then exchange values
        with_origin = index == len(self._parts) - 1 and self._parts[-1].stop % POINTS_AT_ONCE != 0
        return _grouped(self._features(self._parts[index]), self._numbers, with_origin=with_origin)

    def _recomputed(self, index: int) -> Entries:
        keys, entries = self._grouped(index)
        groups = torch.searchsorted(self._keys, keys)
        return Entries(
            rows=groups.int()[entries.rows],
            weights=entries.weights,
            points=entries.points,
            shares=entries.shares,
            starts=entries.starts[:-1],
            groups=groups,
        )

    def _row_norms(self, plain: Callable[[int], Entries], device: torch.device) -> list[Tensor]:
        """(n,) of each part: D^-1/2."""
        values = None
        for index, part in enumerate(self._parts):
            ones = torch.ones(part.stop - part.start, 1, device=device)
            values = plain(index).splat(ones, values, self.n_rows)
        values = self.blur(values)
        sums = (plain(index).slice(values)[:, 0] * self._gain for index in range(len(self._parts)))
        return [(of_part + NORM_EPSILON).rsqrt() for of_part in sums]

    def blur(self, values: Tensor) -> Tensor:
        """(n_rows, C) -> (n_rows, C): along one direction after the other, weights 1/2, 1, 1/2 (ibid., section 3.2)."""
        starts = _equal_starts(self.n_rows, 3, values.device)
        for direction in self._neighbours:
            values = _weighted_sums(values, direction, starts, self._blur_weights)
        return values


class WeightedSum:
    """A weighted sum of filters of the same points, with one splat and one slice for all."""

    def __init__(self, lattices: Sequence[Lattice], weights: Sequence[float]) -> None:
        self._lattices, self._weights = lattices, weights
        self.n_rows = sum(lattice.n_rows for lattice in lattices)

    def entries(self, index: int) -> Entries:
        """Of a part of the points: each lattice's rows follow those of the one before."""
        each = [lattice.entries(index) for lattice in self._lattices]
        first_rows, first_entries, row, entry = [], [], 0, 0
        for lattice, entries in zip(self._lattices, each, strict=True):
            first_rows.append(row)
            first_entries.append(entry)
            row += lattice.n_rows
            entry += len(entries.points)
        starts = [e.starts[:-1] + first for e, first in zip(each, first_entries, strict=True)]
        groups = None
        if each[0].groups is not None:
            groups = torch.cat([e.groups + first for e, first in zip(each, first_rows, strict=True)])
        return Entries(
            rows=torch.cat([e.rows + first for e, first in zip(each, first_rows, strict=True)], dim=1),
            weights=torch.cat([e.weights * weight for e, weight in zip(each, self._weights, strict=True)], dim=1),
            points=torch.cat([e.points for e in each]),
            shares=torch.cat([e.shares for e in each]),
            starts=torch.cat([*starts, each[-1].starts[-1:] + first_entries[-1]]),
            groups=groups,
        )

    def blur(self, values: Tensor) -> Tensor:
        """(n_rows, C): the values of each lattice, blurred on it in their place, some columns at a time."""
        of_each = values.split([lattice.n_rows for lattice in self._lattices])
        for lattice, rows in zip(self._lattices, of_each, strict=True):
            for columns in rows.split(max(8, BLURRED_AT_ONCE // len(rows) // 8 * 8), dim=1):
                columns.copy_(lattice.blur(columns.contiguous()))
        return values
