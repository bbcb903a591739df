"""Dense CRF: several label maps of one image, and an image without labels."""

import numpy as np
import pytest

from misc.crf import crf_inference_label, crf_inference_labels

pytest.importorskip("pydensecrf")


def test_runs_that_share_an_image_equal_separate_ones():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    labels = [rng.integers(0, 3, (40, 56)), (rng.random((40, 56)) > 0.7).astype(np.int64)]
    together = crf_inference_labels(image, labels, n_labels=3)
    assert not np.array_equal(*together)
    for of_one, given in zip(together, labels, strict=True):
        assert np.array_equal(of_one, crf_inference_label(image, given, n_labels=3))


def test_an_image_without_labels_is_all_background():
    image = np.zeros((4, 5, 3), np.uint8)
    assert (crf_inference_label(image, np.zeros((4, 5), np.int64), n_labels=1) == 0).all()
