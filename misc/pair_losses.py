"""The IRN losses on pixel pairs (IRN equations 4, 6, 7), as sums over cells: no tensor of all pairs and path cells.

* The affinity of a pair is that of one cell, the largest edge on its path. So the affinity losses only need to know
  how many pairs of each kind every cell decides; and which cell decides depends on the order of the edges alone.
* |x| = sign(x) x. So the displacement losses are sums over cells of a whole number times the displacement: a pair adds
  its sign at its source and takes it off at its destination.

The counts and the signs are constants: what autograd sees are the sums over cells, and their gradients are those of
the losses. Of equal largest edges on a path, the first one has the gradient, as in the original.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from misc.imutils import IGNORE_LABEL
from misc.indexing import pair_paths, require_pairs
from misc.run.distributed import sum_over_processes

EPSILON = 1e-5
BACKGROUND, FOREGROUND, NEGATIVE, IGNORED = range(4)
"""Kinds of pairs: equal labels of 0, equal labels above 0, different labels, an unsure label or no pair."""

Run = tuple[int, int, int]
"""Cells of a path that lie in one row: y, first x, number of cells."""


@lru_cache(maxsize=8)
def _runs_of_paths(radius: int) -> dict[int, dict[int, list[Run]]]:
    """{dy: {dx: the path as runs}}, in ascending order; the dx of one dy have no gap."""
    runs: dict[int, dict[int, list[Run]]] = {}
    for (dy, dx), path in sorted(pair_paths(radius).items()):
        rows = [(y, [x for _, x in cells]) for y, cells in groupby(path, key=itemgetter(0))]
        runs.setdefault(dy, {})[dx] = [(y, xs[0], len(xs)) for y, xs in rows]
    return runs


@dataclass(frozen=True)
class _Sources:
    """The source cells in flat maps: images and rows laid end to end, so that an offset is one number.

    They are the cells from the first source of the first image to the last of the last. Cells between them whose pairs
    would leave the map are among them, and are told by their label: unsure.
    """

    first: int
    length: int
    width: int

    def at(self, x: Tensor, dy: int = 0, dx: int = 0) -> Tensor:
        """(..., cells) -> (..., length): for every source the value at an offset from it."""
        return x.narrow(-1, self.first + dy * self.width + dx, self.length)

    def along_row(self, x: Tensor, dy: int, dxs: list[int]) -> Tensor:
        """(..., cells) -> (..., dxs, length): `at` for all dx, which have no gap, as a view."""
        start = self.first + dy * self.width + dxs[0]
        return x.narrow(-1, start, self.length + len(dxs) - 1).unfold(-1, self.length, 1)


def _ranks(x: Tensor) -> Tensor:
    """(B, n) -> the place of each value in the ascending order of its row; of equal values the first is highest."""
    n = x.shape[1]
    dtype = torch.int16 if n <= torch.iinfo(torch.int16).max else torch.int32
    order = x.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(n - 1, -1, -1, dtype=dtype, device=x.device).expand_as(order)
    return torch.empty_like(order, dtype=dtype).scatter_(1, order, places)


@torch.no_grad()
def _counts_and_signs(edge: Tensor, displacement: Tensor, labels: Tensor, *, radius: int) -> tuple[Tensor, Tensor]:
    """How often each cell counts in the losses; arguments as of `pair_losses`.

    Returns:
        counts: (3, B, h * w) int32, the pairs of each kind (background, foreground, negative) that a cell decides.
        signs: (B, 2, h, w), over a cell's pairs with equal labels, the signs of their distance to the target, as a
            source minus as a destination.
    """
    b, _, h, w = edge.shape
    n_cells, margin = b * h * w, radius - 1
    sources = _Sources(first=margin, length=n_cells - margin * (w + 2), width=w)

    ranks = _ranks(edge.flatten(1))
    largest_of_run = {1: ranks.flatten()}
    for n in range(2, radius + 1):
        largest_of_run[n] = torch.maximum(largest_of_run[n - 1][:-1], largest_of_run[1][n - 1 :])

    inside = torch.full_like(labels, IGNORE_LABEL)
    inside[:, : h - margin, margin : w - margin] = labels[:, : h - margin, margin : w - margin]
    source = sources.at(inside.flatten())
    sure, foreground = source != IGNORE_LABEL, source != 0

    # A bin of the counts: kind, image, rank; the rank is added pair by pair
    image = torch.arange(n_cells, dtype=torch.int32, device=labels.device) // (h * w) * (h * w)
    ignored = sources.at(image) + IGNORED * n_cells
    if_equal = torch.where(sure, ignored + (FOREGROUND - IGNORED) * n_cells, ignored)
    if_equal = torch.where(foreground, if_equal, ignored + (BACKGROUND - IGNORED) * n_cells)
    if_different = torch.where(sure, ignored + (NEGATIVE - IGNORED) * n_cells, ignored)

    counts = torch.zeros(4 * n_cells, dtype=torch.int32, device=edge.device)
    one = torch.ones((), dtype=torch.int32, device=edge.device)
    vectors = displacement.transpose(0, 1).flatten(1).contiguous()
    signs = torch.zeros_like(vectors)
    flat_labels, foreground = labels.flatten(), foreground.to(vectors.dtype)
    for dy, paths in _runs_of_paths(radius).items():
        dxs = list(paths)
        destination = sources.along_row(flat_labels, dy, dxs)
        equal = destination == source
        bins = torch.where(destination == IGNORE_LABEL, ignored, torch.where(equal, if_equal, if_different))
        bins += torch.stack(
            [reduce(torch.maximum, [sources.at(largest_of_run[n], y, x) for y, x, n in p]) for p in paths.values()]
        )
        counts.index_add_(0, bins.flatten(), one.expand(bins.numel()))

        # Equation 6 in foreground pairs: the difference of displacements shall be the offset; in background pairs, 0
        sign = sources.at(vectors)[:, None] - sources.along_row(vectors, dy, dxs)
        sign[0].sub_(foreground, alpha=dy)
        sign[1].addcmul_(torch.arange(dxs[0], dxs[-1] + 1, device=edge.device)[:, None], foreground, value=-1)
        sign.sign_().mul_(equal & sure)
        sources.at(signs).add_(sign.sum(dim=1))
        for dx, of_offset in zip(dxs, sign.unbind(1), strict=True):
            sources.at(signs, dy, dx).sub_(of_offset)

    by_rank = counts.view(4, b, h * w)[:IGNORED]
    return by_rank.gather(2, ranks.long().expand_as(by_rank)), signs.view(2, b, h, w).transpose(0, 1)


def pair_losses(edge: Tensor, displacement: Tensor, labels: Tensor, *, radius: int) -> dict[str, Tensor]:
    """The IRN losses, on whatever device the inputs are: means over the pairs of all processes' images.

    Args:
        edge: (B, 1, h, w) edges in [0, 1], float32 or float64.
        displacement: (B, 2, h, w), float32 or float64; channel 0 is y.
        labels: (B, h, w) uint8, 255 for unsure.

    Returns:
        Scalars: `pos`, `neg` (affinity losses of equal and of different pairs), `dp_fg`, `dp_bg` (displacement
        losses of foreground and background pairs) and `total` = (pos + neg) / 2 + (dp_fg + dp_bg) / 2.

    Raises:
        ValueError: the map is too small for a pair of this radius.
    """
    h, w = labels.shape[-2:]
    require_pairs(h, w, radius)
    counts, signs = _counts_and_signs(edge, displacement, labels, radius=radius)

    affinity = 1 - edge.flatten(1)
    attract = -torch.log(affinity + EPSILON)
    repel = -torch.log(1 + EPSILON - affinity)
    affinity_sums = [
        (values * counts[kind]).sum(dtype=torch.float64)
        for values, kind in ((attract, BACKGROUND), (attract, FOREGROUND), (repel, NEGATIVE))
    ]

    # The offset of a foreground pair is the difference of its cells: what is left is where the cells point. In
    # float64, since the terms are large and cancel
    rows = torch.arange(h, device=labels.device).view(h, 1).expand(h, w)
    columns = torch.arange(w, device=labels.device).expand(h, w)
    foreground = (labels != 0)[:, None]
    of_cells = signs * (displacement.double() + torch.stack([rows, columns]) * foreground)
    displacement_sums = [(of_cells * foreground).sum(), (of_cells * ~foreground).sum()]

    sums = torch.stack([*affinity_sums, *displacement_sums, *counts.sum(dim=(1, 2)).double()])
    *sums, n_background, n_foreground, n_negative = sum_over_processes(sums)
    n_values = (n_background, n_foreground, n_negative, 2 * n_foreground, 2 * n_background)
    pos_bg, pos_fg, neg, dp_fg, dp_bg = (total / (n + EPSILON) for total, n in zip(sums, n_values, strict=True))
    pos = pos_bg / 2 + pos_fg / 2
    total = (pos + neg) / 2 + (dp_fg + dp_bg) / 2
    losses = {"pos": pos, "neg": neg, "dp_fg": dp_fg, "dp_bg": dp_bg, "total": total}
    return {name: loss.to(edge.dtype) for name, loss in losses.items()}
