"""Dense CRF: against pydensecrf where that is installed, several label maps of one image, images at the edge."""

import errno
import os
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from misc import crf, permutohedral
from misc.crf import (
    CAM_KERNELS,
    DEEPLAB_KERNELS,
    crf_inference_label,
    crf_inference_labels,
    crf_inference_softmax,
    logits_of_labels,
    logits_of_softmax,
    mean_field,
    require_backend,
)
from misc.errors import InputError
from misc.files.images import read_image, read_label

needs_pydensecrf = pytest.mark.skipif(not crf.has_pydensecrf(), reason="pydensecrf is not installed")
BACKENDS = ["torch", pytest.param("pydensecrf", marks=needs_pydensecrf)]
BLUR = 6.0
PARTS = 27  # of the photographs: minutes each


def drawn(size, *, seed=0, n_labels=3):
    """A noisy image (H, W, 3) of two halves, and labels (H, W) that follow them loosely."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (*size, 3)).astype(np.uint8)
    image[:, size[1] // 2 :] += 120
    labels = rng.integers(0, n_labels, size)
    labels[:, : size[1] // 3] = 0
    return image, labels


def marginals_of_pydensecrf(image, unary, kernels, n_iter=10):
    """(L, H, W)."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    height, width = image.shape[:2]
    model = densecrf.DenseCRF2D(width, height, len(unary))
    model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(unary), -1)))
    model.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy, srgb=kernels.bilateral_srgb, rgbim=image.copy(), compat=kernels.bilateral_compat
    )
    return np.asarray(model.inference(n_iter)).reshape(len(unary), height, width)


def marginals_of_ours(image, logits, n_labels, kernels, n_iter=10):
    """[(L, H, W)] of each CRF."""
    parts = mean_field(torch.from_numpy(image), logits, kernels, n_iter, read=lambda q: q[..., :n_labels].clone())
    return list(torch.cat(parts).permute(1, 2, 0).unflatten(2, image.shape[:2]).numpy())


def both_of_labels(image, labels, n_labels):
    """Marginals of ours and of pydensecrf, with the CAM kernels: pairs of (L, H, W)."""
    utils = pytest.importorskip("pydensecrf.utils")
    logits = logits_of_labels(torch.from_numpy(np.stack(labels)), n_labels, gt_prob=0.7)
    ours = marginals_of_ours(image, logits, n_labels, CAM_KERNELS)
    unaries = [utils.unary_from_labels(one, n_labels, gt_prob=0.7, zero_unsure=False) for one in labels]
    return list(zip(ours, (marginals_of_pydensecrf(image, u, CAM_KERNELS) for u in unaries), strict=True))


def both_of_softmax(image, probabilities):
    """The same with DeepLab's kernels: a pair."""
    utils = pytest.importorskip("pydensecrf.utils")
    logits = logits_of_softmax(torch.from_numpy(probabilities))
    (ours,) = marginals_of_ours(image, logits, len(probabilities), DEEPLAB_KERNELS)
    return ours, marginals_of_pydensecrf(image, utils.unary_from_softmax(probabilities), DEEPLAB_KERNELS)


def require_equal(ours, theirs):
    """Marginals within 1e-3, labels equal on 99.9 % of the pixels; returns how many differ."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    differ = ours.argmax(axis=0) != theirs.argmax(axis=0)
    assert differ.mean() <= 1e-3
    return int(differ.sum())


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 40), (40, 1), (2, 2), (23, 31), (1, 5000)])
def test_small_and_narrow_images_have_the_marginals_of_pydensecrf(size):
    image, labels = drawn(size)
    ((ours, theirs),) = both_of_labels(image, [labels], 3)
    require_equal(ours, theirs)
    probabilities = np.random.default_rng(1).dirichlet([0.3] * 21, size).transpose(2, 0, 1).astype(np.float32)
    require_equal(*both_of_softmax(image, probabilities))


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_an_image_of_one_colour(colour):
    image, (_, labels) = np.full((30, 40, 3), colour, np.uint8), drawn((30, 40))
    ((ours, theirs),) = both_of_labels(image, [labels], 3)
    require_equal(ours, theirs)


@pytest.mark.parametrize("n_labels", [2, 5, 9])
def test_several_label_maps_have_the_marginals_of_pydensecrf(n_labels):
    image, labels = drawn((60, 80), n_labels=n_labels)
    for ours, theirs in both_of_labels(image, [labels, labels[::-1].copy(), np.zeros_like(labels)], n_labels):
        require_equal(ours, theirs)


def test_no_iteration_leaves_the_unary_term():
    image, labels = drawn((6, 7))
    logits = logits_of_labels(torch.from_numpy(labels)[None], 3, gt_prob=0.7)
    (marginals,) = marginals_of_ours(image, logits, 3, CAM_KERNELS, n_iter=0)
    expected = np.where(np.arange(3)[:, None, None] == labels, 0.7, 0.15)
    np.testing.assert_allclose(marginals, expected, rtol=1e-5)


def test_a_probability_of_zero_is_clipped():
    probabilities = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 1, 1)
    np.testing.assert_allclose(logits_of_softmax(probabilities)(slice(0, 1)), [[[0, np.log(1e-5)]]], rtol=1e-6)


@pytest.mark.parametrize(("kept", "in_memory"), [(10**6, 10**6), (0, 10**6), (0, 0)])
def test_an_image_in_parts_has_the_labels_of_the_whole(monkeypatch, tmp_path, kept, in_memory):
    """Also where its lattice is made anew at each use, where values lie in files and are blurred by eight columns."""
    image, labels = drawn((30, 40))
    made, allocate = [], os.posix_fallocate

    def noted(file, start, size):
        made.append((start, size, [*tmp_path.iterdir()]))
        allocate(file, start, size)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", noted)
    probabilities = np.random.default_rng(1).dirichlet([0.3] * 9, (30, 40)).transpose(2, 0, 1).astype(np.float32)
    whole = crf_inference_labels(image, [labels, 2 - labels], 3), crf_inference_softmax(image, probabilities)
    for module in (permutohedral, crf):
        monkeypatch.setattr(module, "PART_POINTS", 500)
        monkeypatch.setattr(module, "KEPT_POINTS", kept)
    for bound in ("VALUES_IN_MEMORY", "BLURRED_AT_ONCE"):
        monkeypatch.setattr(permutohedral, bound, in_memory)
    np.testing.assert_array_equal(crf_inference_labels(image, [labels, 2 - labels], 3), whole[0])
    np.testing.assert_array_equal(crf_inference_softmax(image, probabilities), whole[1])
    assert bool(made) == (in_memory == 0)
    assert all(start == 0 and size % 4 == 0 and len(files) == 1 for start, size, files in made)
    assert not [*tmp_path.iterdir()]


def test_a_disk_without_room_for_the_values_is_an_error_that_names_the_place(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (permutohedral, crf):
        monkeypatch.setattr(module, "PART_POINTS", 500)
    monkeypatch.setattr(permutohedral, "VALUES_IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=f"No space left .*{tmp_path}"):
        crf_inference_label(*drawn((30, 40)), n_labels=3)


def test_the_gaussian_lattice_is_kept_for_images_of_one_size(monkeypatch):
    made = []
    plain = crf.Lattice
    monkeypatch.setattr(crf, "Lattice", lambda *args, **how: made.append(len(args[2])) or plain(*args, **how))
    for size in ((33, 21), (33, 21), (21, 33)):
        crf_inference_label(*drawn(size), n_labels=3)
    assert made == [5, 2, 5, 5, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_that_share_an_image_equal_separate_ones(backend):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    labels = [rng.integers(0, 3, (40, 56)), (rng.random((40, 56)) > 0.7).astype(np.int64)]
    together = crf_inference_labels(image, labels, n_labels=3, backend=backend)
    assert not np.array_equal(*together)
    for of_one, given in zip(together, labels, strict=True):
        assert of_one.dtype == np.int64
        assert np.array_equal(of_one, crf_inference_label(image, given, n_labels=3, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_without_labels_is_all_background(backend):
    image = np.zeros((4, 5, 3), np.uint8)
    assert (crf_inference_label(image, np.zeros((4, 5), np.int64), n_labels=1, backend=backend) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_crf_keeps_sure_pixels_and_follows_the_image(backend):
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    image[:, 20:] = 255
    foreground = np.full((30, 40), 0.1, dtype=np.float32)
    foreground[:, 20:] = 0.9
    foreground[10:14, 25:29] = 0.45  # a doubtful hole in a plain surface
    foreground[:, :2] = 0.0
    mask = crf_inference_softmax(image, np.stack([1 - foreground, foreground]), backend=backend)
    np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(40) >= 20, (30, 40)))


def test_a_backend_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(InputError, match="--crf pydensecrf: pydensecrf is not installed .* pass --crf torch"):
        require_backend("pydensecrf")
    for backend in ("auto", "torch"):
        require_backend(backend)


def ground_truth_cams(mask):
    """The classes of a mask, and two label maps as of CAMs: its classes, blurred, over two background scores."""
    keys = np.setdiff1d(np.unique(mask), [0, 255])
    maps = []
    for key in keys:
        blurred = Image.fromarray((mask == key).astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(BLUR))
        maps.append(np.asarray(blurred, dtype=np.float32) / max(1, np.max(blurred)))
    scores = np.stack([np.zeros(mask.shape, np.float32), *maps])
    labels = []
    for background in (0.3, 0.15):
        scores[0] = background
        labels.append(scores.argmax(axis=0))
    return len(keys) + 1, labels


def small_network_softmax(image):
    """(21, H, W) float32: of a network of random weights on the reduced image, enlarged."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(32, 3, 5, 5, generator=generator) / 8, torch.randn(21, 32, 5, 5, generator=generator) / 10]
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 64 - 2
    small = torch.nn.functional.interpolate(x, scale_factor=1 / 8, mode="bilinear", antialias=True)
    for weight in weights:
        small = torch.tanh(torch.nn.functional.conv2d(small, weight, padding=2))
    logits = torch.nn.functional.interpolate(4 * small, image.shape[:2], mode="bilinear")
    return logits[0].softmax(dim=0).numpy()


def compare_photograph(root, image_id, window=slice(None)):
    """Pixels compared, and how many labels differ: two label maps with the CAM kernels, 21 classes with DeepLab's.

    `window`: the rows and the columns to look at, all by default.
    """
    image = read_image(root / f"JPEGImages/{image_id}.jpg")[window, window]
    n_labels, labels = ground_truth_cams(read_label(root / f"SegmentationClass/{image_id}.png")[window, window])
    pairs = both_of_labels(image, labels, n_labels) if n_labels > 1 else []
    pairs.append(both_of_softmax(image, small_network_softmax(image)))
    return sum(ours[0].size for ours, _ in pairs), sum(require_equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("image_id", ["2007_000032", "2007_000063", "2007_000129"])
def test_labels_of_photographs_are_those_of_pydensecrf(voc_subset, image_id):
    pytest.importorskip("pydensecrf")
    _, differ = compare_photograph(voc_subset, image_id, window=slice(100, 240))
    assert differ == 0


@pytest.mark.slow
@needs_pydensecrf
def test_an_image_of_ten_megapixels_has_the_labels_of_pydensecrf():
    """Its coordinates are so large that float32 leaves them few digits below the pixel."""
    image, labels = drawn((3200, 3200), n_labels=2)
    ours, theirs = (
        crf_inference_label(image, labels, 2, n_iter=2, backend=backend) for backend in ("torch", "pydensecrf")
    )
    assert (ours == theirs).mean() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_labels_of_all_photographs_are_those_of_pydensecrf(voc_subset, part):
    pytest.importorskip("pydensecrf")
    image_ids = sorted(path.stem for path in (voc_subset / "SegmentationClass").glob("*.png"))[part::PARTS]
    pixels, differ = np.sum([compare_photograph(voc_subset, image_id) for image_id in image_ids], axis=0)
    print(f"{len(image_ids)} photographs: {differ} of {pixels} labels differ")
    assert differ <= 1e-4 * pixels
