"""Scores, against counts by hand."""

import json

import numpy as np
import pytest

from misc.cam import label_map
from misc.metrics import ThresholdSweep, class_table, confusion_matrix, jsonable, scores


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


def test_sweep_refuses_another_size():
    with pytest.raises(ValueError, match="differ in size"):
        ThresholdSweep((0.1,), 2).add(np.zeros((1, 3, 4), np.float32), [0], np.zeros((4, 3), np.uint8))
