"""Instances: centroids, components, detections and COCO annotations, against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from misc.errors import InputError
from misc.files import instancefile
from misc.files.coco import annotations_of, decode, outline, segmentation_of
from misc.files.instancefile import Detections
from misc.indexing import RandomWalk
from misc.instances import (
    CELLS_AT_ONCE,
    PIXELS_AT_ONCE,
    _follower,
    connected_components,
    detect_instances,
    instance_map,
    refine_centroids,
)


def flood_fill(mask):
    """4-connected components of a mask, numbered row by row, by a plain search."""
    labels = np.zeros(mask.shape, dtype=int)
    for start in np.ndindex(mask.shape):
        if mask[start] and not labels[start]:
            number, queue = labels.max() + 1, [start]
            while queue:
                y, x = queue.pop()
                if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                    labels[y, x] = number
                    queue += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels


def follow(field, y, x, iterations):
    """The centroid of one cell, by scalar steps."""
    height, width = field.shape[1:]
    for _ in range(iterations):
        y0, x0, y1, x1 = math.floor(y), math.floor(x), math.ceil(y), math.ceil(x)
        wy, wx = y - y0, x - x0
        dy, dx = (
            plane[y0, x0] * (1 - wy) * (1 - wx)
            + plane[y0, x1] * (1 - wy) * wx
            + plane[y1, x0] * wy * (1 - wx)
            + plane[y1, x1] * wy * wx
            for plane in field.astype(float)
        )
        y, x = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
    return round(y), round(x)


def towards(centres, height, width):
    """A field in which each cell points to the nearest of `centres` (y, x)."""
    y, x = np.mgrid[:height, :width]
    distance = np.stack([(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centres])
    nearest = np.array(centres)[distance.argmin(axis=0)]
    return torch.from_numpy((nearest - np.stack([y, x], axis=-1)).transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("iterations", [1, 7, 300])
def test_centroids_equal_scalar_steps(iterations):
    # Contracting, and with pulls over the border: a chaotic field would amplify rounding
    field = towards([(2.25, 3.5), (8.75, 11.25)], 11, 15) * 0.3
    field[:, :, -1] += 2.0
    centroids = refine_centroids(field, iterations)
    for y, x in np.ndindex(11, 15):
        assert tuple(centroids[:, y, x].tolist()) == follow(field.numpy(), y, x, iterations)


def test_centroids_stay_inside_the_map():
    centroids = refine_centroids(torch.full((2, 4, 6), 50.0))
    assert (centroids[0] == 3).all()
    assert (centroids[1] == 5).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 13), (120, 200)])
@pytest.mark.parametrize("density", [0.0, 0.4, 0.6, 1.0])
def test_components_are_four_connected_and_in_order(size, density):
    mask = np.random.default_rng(0).random(size) < density
    np.testing.assert_array_equal(connected_components(mask), flood_fill(mask))


def test_a_cell_at_the_reach_of_a_centroid_is_not_near_it(monkeypatch):
    near = []
    monkeypatch.setattr("misc.instances.connected_components", lambda mask: near.append(mask) or mask.astype(np.int32))
    field = torch.tensor([[[1.5, 1.5]], [[2.0, 1.9]]])  # 2.5 cells away, and a little less
    instance_map(field)
    assert near[0].tolist() == [[False, True]]


def test_instance_map_equals_plain_code():
    rng = np.random.default_rng(0)
    for height, width in ((12, 20), (9, 7), (1, 5)):
        field = torch.from_numpy(rng.normal(0, 3, (2, height, width)).astype(np.float32))
        near = flood_fill(np.hypot(*field.numpy()) < 2.5)
        y, x = refine_centroids(field)
        reached = near[y.numpy(), x.numpy()]
        expected = np.stack([reached == value for value in sorted(set(reached.flatten()))])
        np.testing.assert_array_equal(instance_map(field), expected)


def test_two_centres_are_two_instances_and_what_reaches_none_is_one_more():
    field = towards([(5, 4), (5, 20)], 11, 25)
    found = instance_map(field)
    assert len(found) == 2
    assert found[0, :, :12].all()
    assert found[1, :, 13:].all()
    nowhere = field.clone()
    nowhere[:, :, :12] = torch.tensor([-30.0, 0.0]).view(2, 1, 1)  # the left half ends at the border, far from a centre
    first, second = instance_map(nowhere)
    assert first[:, :12].all()  # cells without a component come first
    assert second[:, 13:].all()


def plain_detections(cam, edge, field, keys, size, background_score):
    """Scores, masks and classes, with every map at full size and plain loops."""
    instances = instance_map(field)
    maps = torch.stack([plane * instance for plane in cam for instance in instances])
    walked = RandomWalk(edge, beta=10, exp_times=3)(maps)
    full = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    full = full[:, : size[0], : size[1]].numpy()
    full = full / full.max()
    winner = np.concatenate([np.full((1, *size), background_score, np.float32), full]).argmax(axis=0)
    found = []
    for number, plane in enumerate(full):
        components = flood_fill(winner == number + 1)
        for part in range(1, components.max() + 1):
            mask = components == part
            score = plane[mask].max() if mask.sum() >= 0.01 * size[0] * size[1] else 0
            found.append((score, mask, keys[number // len(instances)]))
    return found


@pytest.mark.parametrize("fragmented", [False, True])
def test_detections_equal_plain_code(fragmented):
    rng = np.random.default_rng(1)
    size, keys = (45, 62), np.array([3, 7])
    h, w = 12, 16
    field = towards([(4, 3), (7, 12)], h, w)
    if fragmented:
        field = torch.from_numpy(rng.normal(0, 6, (2, h, w)).astype(np.float32))
        assert len(instance_map(field)) > 3
    cam = torch.from_numpy(rng.random((2, h, w)).astype(np.float32))
    edge = torch.from_numpy(rng.random((1, h, w)).astype(np.float32) ** 3)
    found = detect_instances(cam, RandomWalk(edge, beta=10, exp_times=3), field, keys, size, background_score=0.25)
    expected = plain_detections(cam, edge, field, keys, size, 0.25)
    assert found.classes.tolist() == [label for _, _, label in expected]
    np.testing.assert_array_equal(found.masks, [mask for _, mask, _ in expected])
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-6)
    assert (found.scores == 0).any()  # small fragments are kept
    assert found.scores.max() == 1


@pytest.mark.parametrize("parts_of", [{"CELLS_AT_ONCE": 12 * 16 * 2}, {"PIXELS_AT_ONCE": 45 * 62 * 2}])
def test_many_maps_walk_and_are_upsampled_in_parts(monkeypatch, parts_of):
    rng = np.random.default_rng(2)
    field = torch.from_numpy(rng.normal(0, 6, (2, 12, 16)).astype(np.float32))
    cam, edge = (torch.from_numpy(rng.random((n, 12, 16)).astype(np.float32)) for n in (3, 1))
    arguments = (cam, RandomWalk(edge, beta=10, exp_times=3), field, np.arange(3), (45, 62))
    settings = {"background_score": 0.1}
    n_maps = len(instance_map(field)) * 3
    assert 2 < n_maps <= min(CELLS_AT_ONCE // (12 * 16), PIXELS_AT_ONCE // (45 * 62))
    whole = detect_instances(*arguments, **settings)
    for name, number in parts_of.items():
        monkeypatch.setattr(f"misc.instances.{name}", number)
    parts = detect_instances(*arguments, **settings)
    np.testing.assert_array_equal(whole.masks, parts.masks)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-6)  # the interpolation rounds by its batch


def test_maps_without_any_value_do_not_walk(monkeypatch):
    field = towards([(4, 3), (7, 12)], 12, 16)
    left, right = instance_map(field)
    rng = np.random.default_rng(3)
    cam, edge = (torch.from_numpy(rng.random((n, 12, 16)).astype(np.float32)) for n in (3, 1))
    cam = cam * torch.stack([right, torch.zeros_like(left), left])
    walked = []

    def counted(walk, maps):
        walked.append(len(maps))
        return call(walk, maps)

    call = RandomWalk.__call__
    monkeypatch.setattr(RandomWalk, "__call__", counted)
    keys, size = np.array([3, 5, 7]), (45, 62)
    found = detect_instances(cam, RandomWalk(edge, beta=10, exp_times=3), field, keys, size, background_score=0.25)
    assert walked == [2]
    expected = plain_detections(cam, edge, field, keys, size, 0.25)
    assert {3, 7} == set(found.classes.tolist())
    assert found.classes.tolist() == [label for _, _, label in expected]
    np.testing.assert_array_equal(found.masks, [mask for _, mask, _ in expected])


def fragments(rng, height=24, width=32, n_classes=2):
    """CAMs, edges and a field that falls apart into many instances."""
    centres = [(y, x) for y in range(3, height, 6) for x in range(3, width, 6)]
    field = towards(centres, height, width) + torch.from_numpy(
        rng.normal(0, 0.3, (2, height, width)).astype(np.float32)
    )
    slope = torch.linspace(0, 1, width) ** 4  # of which many fragments see low values alone
    cam = torch.from_numpy(rng.random((n_classes, height, width)).astype(np.float32)) * slope
    return cam, torch.from_numpy(rng.random((1, height, width)).astype(np.float32) ** 3), field


@pytest.mark.parametrize("background_score", [0.05, 0.5, 1.0])
def test_maps_that_can_not_exceed_the_background_do_not_walk(monkeypatch, background_score):
    monkeypatch.setattr("misc.instances.FIRST_MAPS", 2)
    size, keys = (94, 126), np.array([3, 7])
    walked, call = [], RandomWalk.__call__
    monkeypatch.setattr(RandomWalk, "__call__", lambda walk, maps: walked.append(len(maps)) or call(walk, maps))
    maps = fragments(np.random.default_rng(4))
    cam, edge, field = maps
    walk = RandomWalk(edge, beta=10, exp_times=3)
    found = detect_instances(cam, walk, field, keys, size, background_score=background_score)
    n_maps = len(instance_map(maps[2])) * len(keys)
    assert walked[0] == 2
    assert 2 < sum(walked) < n_maps
    expected = plain_detections(*maps, keys, size, background_score)
    assert found.classes.tolist() == [label for _, _, label in expected]
    np.testing.assert_array_equal(found.masks, np.reshape([mask for _, mask, _ in expected], (-1, *size)))
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-6)


@pytest.mark.parametrize("field", ["contracting", "fragmented", "turning"])
def test_cells_that_meet_or_rest_come_to_the_same_centroids(field):
    """As all cells do that take every step on their own."""
    if field == "contracting":
        displacement = towards([(5, 4), (12, 25)], 24, 32) * 0.7
    elif field == "fragmented":
        displacement = torch.from_numpy(np.random.default_rng(5).normal(0, 6, (2, 24, 32)).astype(np.float32))
    else:
        displacement = torch.stack([torch.ones(24, 32), -torch.ones(24, 32)])  # round and round in the middle
        displacement[0, :, 16:] = -1
        displacement[1, 12:] = 1
    for iterations in (0, 5, 12, 300):
        alone = refine_centroids(displacement, 0)
        position = alone.float()
        follow = _follower(displacement)
        for _ in range(iterations):
            position = follow(position.flatten(1), 1).view_as(position)
        assert torch.equal(refine_centroids(displacement, iterations), position.round().long())


def test_nothing_is_found_without_classes_or_without_a_cam():
    field, edge = towards([(3, 3)], 8, 9), torch.zeros(1, 8, 9)
    for n_classes in (0, 2):
        cam, keys = torch.zeros(n_classes, 8, 9), np.arange(n_classes)
        found = detect_instances(
            cam, RandomWalk(edge, beta=10, exp_times=8), field, keys, (30, 35), background_score=0.25
        )
        assert len(found) == 0
        assert found.masks.shape == (0, 30, 35)


def some_detections():
    masks = np.zeros((3, 9, 12), dtype=bool)
    masks[0, 1:8, 2:9] = True
    masks[0, 3:5, 4:6] = False
    masks[1, 0, 11] = masks[2, 8, :] = True
    return Detections(np.array([0.5, 0, 1], np.float32), masks, np.array([2, 0, 2]))


def test_instance_files_are_the_originals(tmp_path):
    detections = some_detections()
    instancefile.save(tmp_path / "a.npy", detections)
    content = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert content.keys() == {"score", "mask", "class"}
    np.save(tmp_path / "b.npy", {**content, "score": content["score"].astype(float)})  # as the original writes it
    for name in ("a.npy", "b.npy"):
        found = instancefile.load(tmp_path / name, n_classes=3)
        for part in ("scores", "masks", "classes"):
            np.testing.assert_array_equal(getattr(found, part), getattr(detections, part))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"score": None}, "score that is no number"),
        ({"score": "high"}, "is no array"),
        ({"mask": np.ones((2, 9, 12), bool)}, "don't fit together"),
        ({"mask": np.zeros((3, 9, 12), bool)}, "an empty mask"),
        ({"class": np.array([0, 1, 3])}, r"has classes \[0, 1, 3\], the class list has 3"),
        ({"class": print}, "can't be read"),
    ],
)
def test_foreign_instance_files_are_refused(tmp_path, changed, sentence):
    good = some_detections()
    content = {"score": good.scores, "mask": good.masks, "class": good.classes}
    if "score" in changed and changed["score"] is None:
        changed = {"score": np.full(3, np.nan)}
    np.save(tmp_path / "a.npy", {**content, **changed})
    with pytest.raises(InputError, match=sentence):
        instancefile.load(tmp_path / "a.npy", n_classes=3)
    del content["mask"]
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match="lacks mask; make it again"):
        instancefile.load(tmp_path / "a.npy")


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_outlines_decode_to_the_same_mask(density):
    """Parts, holes, parts in holes, corners that touch, pixels at the border: all of them in random masks."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = rng.random(rng.integers(1, 25, 2)) < density
        mask[0, 0] = True
        np.testing.assert_array_equal(decode([outline(mask)], mask.shape), mask)


def test_outline_of_a_ring_by_hand():
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = False
    outer, hole = [0, 0, 3, 0, 3, 3, 0, 3], [1, 1, 2, 1, 2, 2, 1, 2]
    assert outline(mask) == [*outer, 0, 0, *hole, 1, 1]


def test_a_polygon_that_is_not_exact_becomes_run_lengths(monkeypatch):
    mask = some_detections().masks[0]
    assert isinstance(segmentation_of(mask, polygons=True), list)
    assert isinstance(segmentation_of(mask, polygons=False), dict)
    monkeypatch.setattr("misc.files.coco.outline", lambda mask: [0, 0, 3, 0, 3, 3])
    np.testing.assert_array_equal(decode(segmentation_of(mask, polygons=True), mask.shape), mask)


@pytest.mark.parametrize("polygons", [True, False])
def test_annotations(polygons):
    detections = some_detections()
    found = list(annotations_of(detections, image_id=4, category_ids=range(1, 256), first_id=11, polygons=polygons))
    assert [each["id"] for each in found] == [11, 12, 13]
    assert [each["category_id"] for each in found] == [3, 1, 3]
    assert [each["bbox"] for each in found] == [[2, 1, 7, 7], [11, 0, 1, 1], [0, 8, 12, 1]]
    assert [each["area"] for each in found] == [45, 1, 12]
    assert [each["score"] for each in found] == [0.5, 0, 1]
    assert {(each["image_id"], each["iscrowd"]) for each in found} == {(4, 0)}
