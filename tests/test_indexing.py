"""Pixel pairs and the random walk, against plain loops and dense matrices."""

import numpy as np
import pytest
import torch
from support import every_pair
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import flop_counter
from misc.indexing import RandomWalk, RandomWalks, affinity_labels, pair_paths
from misc.run.memory import peak_memory_mib, reset_peak_memory

WALK = {"beta": 10, "exp_times": 8}


@pytest.mark.parametrize("radius", [5, 10])
def test_paths_equal_the_recordings(fixture_json, radius):
    recording = fixture_json(f"paths_r{radius}.json")
    paths = pair_paths(radius)
    assert [f"{dy},{dx}" for dy, dx in paths] == list(recording)
    for (dy, dx), path in paths.items():
        assert [list(cell) for cell in path] == recording[f"{dy},{dx}"]


def dense_propagate(x, edge, radius, beta, exp_times):
    """The original's way: the dense transition matrix, squared exp_times times, in float64."""
    h, w = edge.shape
    matrix = np.eye(h * w)
    for (dy, dx), path in pair_paths(radius).items():
        for y in range(h):
            for x0 in range(w):
                if y + dy < h and 0 <= x0 + dx < w:
                    affinity = (1 - max(edge[y + py, x0 + px] for py, px in path)) ** beta
                    source, destination = y * w + x0, (y + dy) * w + x0 + dx
                    matrix[source, destination] = matrix[destination, source] = affinity
    matrix /= matrix.sum(axis=0, keepdims=True)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    return ((x * (1 - edge)).reshape(len(x), -1) @ matrix).reshape(x.shape)


@pytest.mark.parametrize(
    ("height", "width", "radius", "beta", "exp_times"),
    [(9, 13, 5, 10, 8), (13, 8, 4, 3, 5), (3, 3, 5, 10, 8), (1, 7, 5, 10, 4), (6, 1, 5, 2, 6), (1, 1, 5, 10, 8)],
)
def test_random_walk_equals_the_dense_power(height, width, radius, beta, exp_times):
    rng = np.random.default_rng(height * width)
    x, edge = rng.random((2, height, width)), rng.random((height, width))
    expected = dense_propagate(x, edge, radius, beta, exp_times)
    settings = {"radius": radius, "beta": beta, "exp_times": exp_times}
    walked = RandomWalk(torch.from_numpy(edge).float()[None], **settings)(torch.from_numpy(x).float())
    np.testing.assert_allclose(walked, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("exp_times", [0, 1, 2, 7, 10])
def test_a_peak_that_spreads_wide_stays_exact(exp_times):
    # What is left of it is a thousandth: errors relative to the peak would show
    x, edge = np.zeros((1, 40, 44)), np.full((40, 44), 0.01)
    x[0, 20, 21] = 1
    expected = dense_propagate(x, edge, 5, 10, exp_times)
    walk = RandomWalk(torch.from_numpy(edge).float()[None], beta=10, exp_times=exp_times)
    walked = walk(torch.from_numpy(x).float())
    np.testing.assert_allclose(walked, expected, atol=1e-5 * expected.max())
    assert walked.min() >= -1e-6 * expected.max()


def test_random_walk_is_stopped_by_a_closed_edge():
    edge = torch.zeros(1, 12, 12)
    edge[:, :, 6] = 1
    x = torch.zeros(1, 12, 12)
    x[0, 4, 2] = 1
    walked = RandomWalk(edge, **WALK)(x)
    assert walked[..., 7:].max() == 0
    assert walked[..., :6].min() > 0


def test_random_walk_averages_so_that_a_constant_map_stays():
    # The columns of T sum to 1: each result is a weighted mean, whatever the edges
    edge = torch.zeros(1, 9, 9)
    edge[0, 4:, 4:] = 1  # 1 - edge removes these cells, and no path leads out of or into them
    walked = RandomWalk(edge, **WALK)(torch.full((1, 9, 9), 0.7))
    torch.testing.assert_close(walked[edge == 0], torch.full((56,), 0.7), rtol=1e-4, atol=0)


def test_random_walk_of_no_classes_and_wrong_sizes():
    edge = torch.rand(1, 8, 9)
    assert RandomWalk(edge, **WALK)(torch.zeros(0, 8, 9)).shape == (0, 8, 9)
    with pytest.raises(ValueError, match="differ in size"):
        RandomWalk(edge, **WALK)(torch.zeros(1, 9, 8))


SIZES = ((9, 13), (13, 8), (3, 3), (1, 7), (6, 1), (9, 13))


def several_images():
    """Maps and edges of images of several sizes, more or fewer maps of each, one of them with none."""
    generator = torch.Generator().manual_seed(0)
    edges = [torch.rand(1, *size, generator=generator) ** 3 for size in SIZES]
    maps = [torch.rand(n, *size, generator=generator) for n, size in zip((2, 1, 4, 0, 1, 3), SIZES, strict=True)]
    return maps, edges


@pytest.mark.parametrize("beta", [0, 4, 2.5])
def test_images_of_several_sizes_walk_together_as_alone(beta):
    maps, edges = several_images()
    walks = RandomWalks(edges, beta=beta, exp_times=3)
    for walked, x, edge in zip(walks(maps), maps, edges, strict=True):
        torch.testing.assert_close(walked, RandomWalk(edge, beta=beta, exp_times=3)(x), rtol=1e-6, atol=1e-9)


def test_some_of_the_images_walk_and_each_alone():
    maps, edges = several_images()
    expected = [RandomWalk(edge, beta=4, exp_times=3)(x) for x, edge in zip(maps, edges, strict=True)]
    walks = RandomWalks(edges, beta=4, exp_times=3)
    chosen = [4, 0, 3]
    for walked, number in zip(walks([maps[number] for number in chosen], chosen), chosen, strict=True):
        torch.testing.assert_close(walked, expected[number], rtol=1e-6, atol=1e-9)
    for number, x in enumerate(maps):
        torch.testing.assert_close(walks[number](x), expected[number], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(walks[number].bounds(x), RandomWalk(edges[number], **WALK).bounds(x))
    with pytest.raises(ValueError, match="differ in size"):
        walks(maps[1:] + maps[:1])


def test_one_matrix_and_one_series_of_products_serve_all_images():
    """On a GPU a small product takes less time than its start, so that their number is what counts."""

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counts[-1] += "aten::" in function.name() and not function.is_view
            return function(*args, **kwargs or {})

    maps, edges = several_images()
    counts = []
    for n in (1, 6):
        counts.append(0)
        with Counted():
            RandomWalks(edges[:n], **WALK)(maps[:n])
    assert counts[1] < counts[0] + 6 * 12


def test_random_walk_does_not_hide_nan_edges():
    edge = torch.zeros(1, 8, 8)
    edge[0, 3, 3] = torch.nan
    assert RandomWalks([edge], **WALK)([torch.ones(1, 8, 8)])[0].isnan().any()
    with pytest.raises(ValueError, match="the edge must be"):
        RandomWalk(edge, **WALK)


@pytest.mark.parametrize(
    "edge",
    [torch.zeros(2, 8, 8), torch.zeros(8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.full((1, 8, 8), 1.5)],
)
def test_what_is_no_edge_is_refused(edge):
    with pytest.raises(ValueError, match=r"the edge must be \(1, h, w\) numbers in 0 .. 1, not \("):
        RandomWalk(edge, **WALK)


def test_random_walk_of_a_500_x_375_image_takes_at_most_100_sparse_products_and_300_mb():
    """The dense matrix, squared, would take 80,000 times the work; 256 steps, one after the other, 2.7 times."""
    cam, edge = torch.rand(2, 94, 125), torch.rand(1, 94, 125)
    device = torch.device("cpu")
    RandomWalk(edge[:, :20, :20], **WALK)(cam[:, :20, :20])  # libraries load at the first call
    reset_peak_memory(device)
    before = peak_memory_mib(device)["process"]
    RandomWalk(edge, **WALK)(cam)
    assert peak_memory_mib(device)["process"] - before < 300
    with flop_counter() as counter:  # not by a clock: machines differ by more than ways do
        RandomWalk(edge, **WALK)(cam)
    a_product = 2 * 69 * cam.numel()
    assert 0 < counter.get_total_flops() <= 100 * a_product


def test_affinity_labels_equal_plain_loops():
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 0, 3, 7, 255], (2, 9, 11)).astype(np.uint8))
    bg_pos, fg_pos, neg = affinity_labels(labels, radius=4)
    assert bg_pos.any()
    assert fg_pos.any()
    assert neg.any()
    for image in range(2):
        for pair, source, cell, other, _ in every_pair(9, 11, 4):
            a, b = int(labels[image][cell]), int(labels[image][other])
            valid = a != 255 and b != 255
            assert bool(bg_pos[image, pair, source]) == (valid and a == b == 0)
            assert bool(fg_pos[image, pair, source]) == (valid and a == b > 0)
            assert bool(neg[image, pair, source]) == (valid and a != b)


def test_maps_too_small_for_a_pair_are_refused():
    with pytest.raises(ValueError, match="needs 10 x 19 cells"):
        affinity_labels(torch.zeros(1, 12, 18, dtype=torch.uint8), radius=10)
    with pytest.raises(ValueError, match="needs 10 x 19 cells"):
        affinity_labels(torch.zeros(1, 9, 19, dtype=torch.uint8), radius=10)
    assert affinity_labels(torch.zeros(1, 10, 19, dtype=torch.uint8), radius=10)[0].shape == (1, 152, 1)


@pytest.mark.parametrize("exp_times", [0, 1, 3, 8])
def test_no_walked_value_exceeds_its_bound(exp_times):
    rng = np.random.default_rng(0)
    edge = torch.from_numpy(rng.random((1, 17, 23)).astype(np.float32) ** 6)
    maps = torch.from_numpy(rng.random((9, 17, 23)).astype(np.float32) ** 9)
    walk = RandomWalk(edge, beta=10, exp_times=exp_times)
    assert (walk(maps).amax(dim=(1, 2)) <= walk.bounds(maps) * (1 + 1e-6)).all()
    assert (walk.bounds(maps) <= maps.amax(dim=(1, 2))).all()
    assert walk.bounds(torch.zeros(1, 17, 23)).tolist() == [0]
