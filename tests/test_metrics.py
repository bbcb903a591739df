"""Scores, against counts by hand."""

import json

import numpy as np
import pytest

from misc.cam import label_map
from misc.files.jsonfile import jsonable
from misc.metrics import ThresholdSweep, ap_table, class_table, confusion_matrix, instance_ap, scores, two_fold


def test_confusion_counts_each_pixel_once_and_leaves_out_ignored_ones():
    pred = np.array([[0, 1, 1], [2, 2, 0]])
    truth = np.array([[0, 1, 2], [2, 255, -1]])
    expected = np.zeros((3, 3), dtype=int)
    for t, p in ((0, 0), (1, 1), (2, 1), (2, 2)):
        expected[t, p] += 1
    np.testing.assert_array_equal(confusion_matrix(pred, truth, 3), expected)


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="differ"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2)
    with pytest.raises(ValueError, match="class id 5 outside 0 .. 2"):
        confusion_matrix(np.array([5]), np.array([0]), 3)
    with pytest.raises(ValueError, match="class id -1 outside 0 .. 2"):
        confusion_matrix(np.array([-1]), np.array([0]), 3)


def test_scores_by_hand():
    scored = scores(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    np.testing.assert_allclose(scored["iou"], [6 / 9, 3 / 6, np.nan])
    assert scored["miou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    np.testing.assert_allclose(scored["precision"], [6 / 7, 3 / 5, np.nan])
    np.testing.assert_allclose(scored["recall"], [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(scored["false_positive"], [1 - 8 / 9, 1 - 4 / 6, np.nan])
    np.testing.assert_allclose(scored["false_negative"], [1 - 7 / 9, 1 - 5 / 6, np.nan])
    assert scored["pixel_accuracy"] == 9 / 12
    assert scored["mean_class_accuracy"] == pytest.approx((6 / 8 + 3 / 4) / 2)


def test_scores_are_valid_json_and_a_table():
    scored = scores(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert json.loads(json.dumps(jsonable(scored), allow_nan=False))["iou"][2] is None
    table = class_table(["background", "boat", "train"], scored)
    assert "boat" in table
    assert "train" not in table
    assert "0.5833" in table
    assert table.endswith("of 2 classes")


def test_sweep_equals_one_evaluation_a_threshold():
    rng = np.random.default_rng(0)
    thresholds = (0.5, 0.1, 0.3)
    sweep = ThresholdSweep(thresholds, n_classes=4)
    expected = {threshold: np.zeros((4, 4), dtype=int) for threshold in thresholds}
    for keys in ([0, 2], [1], []):
        high_res = rng.random((len(keys), 20, 30)).astype(np.float32)
        if len(keys):
            high_res[0, :10, :9] = np.float32(0.3)  # draws between class and background
        truth = rng.choice([0, 1, 2, 3, 255], (20, 30)).astype(np.uint8)
        sweep.add(high_res, keys, truth)
        for threshold in thresholds:
            expected[threshold] += confusion_matrix(label_map(high_res, keys, threshold), truth, 4)
    confusions = sweep.confusions()
    assert tuple(confusions) == thresholds
    for threshold in thresholds:
        np.testing.assert_array_equal(confusions[threshold], expected[threshold])
    best, best_scores = sweep.best()
    assert best_scores["miou"] == max(scores(confusion)["miou"] for confusion in expected.values())
    assert best_scores["miou"] == scores(expected[best])["miou"]


def test_each_half_has_the_score_that_is_best_on_the_other():
    """One half wants 0.2, which separates its object, the other 0.6; 0.9, which fits none, is not in the choice."""
    truth = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    halves = ThresholdSweep((0.2, 0.6, 0.9), 2), ThresholdSweep((0.2, 0.6, 0.9), 2)
    maps = np.where(truth == 1, 0.5, 0.1).astype(np.float32), np.where(truth == 1, 0.8, 0.4).astype(np.float32)
    for half, high_res in zip(halves, maps, strict=True):
        half.add(high_res[None], [0], truth)
    whole = halves[0] + halves[1]
    assert whole.confusions()[0.2].sum() == 2 * truth.size
    assert whole.best(among=(0.2, 0.6))[1]["miou"] < 1
    thresholds, scored = two_fold(halves, among=(0.2, 0.6))
    assert thresholds == (0.6, 0.2)
    # At 0.6 nothing of the first half is found, at 0.2 all of the second is
    expected = confusion_matrix(np.zeros_like(truth), truth, 2) + confusion_matrix(np.ones_like(truth), truth, 2)
    np.testing.assert_array_equal(scored["iou"], scores(expected)["iou"])
    assert two_fold((halves[0], halves[0]))[1]["miou"] == 1


def test_sweep_refuses_another_size():
    with pytest.raises(ValueError, match="differ in size"):
        ThresholdSweep((0.1,), 2).add(np.zeros((1, 3, 4), np.float32), [0], np.zeros((4, 3), np.uint8))


def test_sweep_refuses_classes_that_it_does_not_know():
    cams = np.zeros((1, 3, 4), np.float32)
    for key, truth in ((2, 0), (0, 2)):
        with pytest.raises(ValueError, match="class id [23] outside 0 .. 1"):
            ThresholdSweep((0.1,), 2).add(cams, [key], np.full((3, 4), truth, np.uint8))


def test_images_without_a_pixel_that_counts_add_nothing():
    ignored = np.full((3, 4), 255, np.uint8)
    sweep = ThresholdSweep((0.1,), 2)
    sweep.add(np.ones((1, 3, 4), np.float32), [0], ignored)
    assert not sweep.confusions()[0.1].any()
    assert not confusion_matrix(np.ones((3, 4), int), ignored, 2).any()


def strip(start, stop, width=20):
    """A mask of one row, set from `start` to `stop`."""
    mask = np.zeros((1, width), dtype=bool)
    mask[0, start:stop] = True
    return mask


def test_instance_ap_by_hand():
    truth = [np.stack([strip(0, 10), strip(10, 20)]), np.stack([strip(0, 4)])]
    truth_labels = [np.array([0, 0]), np.array([2])]
    predictions = [
        # A hit; the same truth once more: a false positive; IoU just at the threshold: a hit; another class
        np.stack([strip(0, 10), strip(1, 10), strip(15, 20), strip(0, 10)]),
        np.stack([strip(0, 20)]),
    ]
    labels, scores_ = [np.array([0, 0, 0, 1]), np.array([2])], [np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5])]
    scored = instance_ap(predictions, labels, scores_, truth, truth_labels)
    # Class 0: hit, miss, hit of two: 0.5 * 1 + 0.5 * 2/3. Class 1 has no truth. Class 2: IoU 0.2, no hit
    np.testing.assert_allclose(scored["ap"], [0.5 + 0.5 * 2 / 3, np.nan, 0.0])
    assert scored["map"] == pytest.approx((0.5 + 1 / 3) / 2)
    stricter = instance_ap(predictions, labels, scores_, truth, truth_labels, iou_thresh=0.51)
    np.testing.assert_allclose(stricter["ap"], [0.5, np.nan, 0.0])
    table = ap_table(["boat", "cow", "train"], scored)
    assert "boat   0.8333" in table
    assert "cow" not in table


def test_a_prediction_that_comes_first_takes_the_truth_and_draws_keep_their_order():
    truth, one = [strip(0, 10)[None]], np.array([0])
    pair = np.stack([strip(0, 9), strip(0, 10)])
    for values, expected in (([0.2, 0.9], 1.0), ([0.9, 0.2], 1.0), ([0.5, 0.5], 1.0)):
        assert instance_ap([pair], [np.zeros(2, int)], [np.array(values)], truth, [one])["map"] == expected
    wrong_first = np.stack([strip(15, 20), strip(0, 10)])
    assert instance_ap([wrong_first], [np.zeros(2, int)], [np.zeros(2)], truth, [one])["map"] == 0.5
    none = np.zeros((0, 1, 20), dtype=bool)
    # Draws between images: the first image's prediction, a false positive, counts first
    images = ([strip(0, 5)[None], strip(0, 10)[None]], [one, one], [np.zeros(1), np.zeros(1)])
    assert instance_ap(*images, [none, strip(0, 10)[None]], [np.zeros(0, int), one])["map"] == 0.5
    many = np.stack([strip(0, 10), *[strip(15, 20)] * 99])
    assert instance_ap([many], [np.zeros(100, int)], [np.zeros(100)], truth, [one])["map"] == 1


def test_instance_ap_without_predictions_or_truth():
    none, no_labels = np.zeros((0, 1, 20), dtype=bool), np.zeros(0, dtype=int)
    missed = instance_ap([none], [no_labels], [np.zeros(0)], [strip(0, 3)[None]], [np.array([1])])
    np.testing.assert_allclose(missed["ap"], [np.nan, 0.0])
    empty = instance_ap([none], [no_labels], [np.zeros(0)], [none], [no_labels])
    assert len(empty["ap"]) == 0
    assert np.isnan(empty["map"])
    with pytest.raises(ValueError, match="differ in size"):
        instance_ap([strip(0, 3)[None]], [[0]], [[1.0]], [strip(0, 3, width=9)[None]], [[0]])
    with pytest.raises(ValueError, match="each mask needs a label"):
        instance_ap([strip(0, 3)[None]], [[0]], [[]], [none], [no_labels])
    with pytest.raises(ValueError, match="each mask needs a label"):
        instance_ap([none], [no_labels], [np.zeros(0)], [strip(0, 3)[None]], [no_labels])
    with pytest.raises(ValueError, match="shorter"):
        instance_ap([none, none], [no_labels, no_labels], [np.zeros(0)] * 2, [none], [no_labels])
