"""Dense CRF (Krähenbühl and Koltun, NIPS 2011), through pydensecrf."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from misc.errors import InputError


class Kernels(NamedTuple):
    """Standard deviations (pixels, colour units of 0 .. 255) and weights of the two pairwise terms."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


CAM_KERNELS = Kernels(3, 3, 50, 5, 10)
"""Of IRN, for label maps of CAMs."""
DEEPLAB_KERNELS = Kernels(1, 3, 67, 3, 4)
"""Of DeepLab-v2, for its class probabilities."""


def has_densecrf() -> bool:
    """Whether pydensecrf can be imported."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def require_densecrf(step: str = "cam_to_ir_label", *, advice: str = "every other step works without it") -> None:
    """Raise `InputError`, naming the step that needs it, if pydensecrf is not installed."""
    if not has_densecrf():
        raise InputError(
            f"{step} needs pydensecrf: `pip install pydensecrf2` with Python 3.10 to 3.12 "
            f"(it does not compile on 3.13; {advice})."
        )


def crf_inference_label(
    image: np.ndarray, labels: np.ndarray, n_labels: int, n_iter: int = 10, gt_prob: float = 0.7
) -> np.ndarray:
    """Refine hard labels by the colours of the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, 0 .. n_labels - 1.
        gt_prob: the probability that a given label is right, for the unary term.

    Returns:
        (H, W) int64 labels of the highest marginal.
    """
    return crf_inference_labels(image, [labels], n_labels, n_iter, gt_prob)[0]


def crf_inference_labels(
    image: np.ndarray, labels: Sequence[np.ndarray], n_labels: int, n_iter: int = 10, gt_prob: float = 0.7
) -> list[np.ndarray]:
    """`crf_inference_label` for several label maps of one image, which share what depends on the image alone."""
    if n_labels == 1:  # the unary term divides by n_labels - 1
        return [np.zeros(of_one.shape, dtype=np.int64) for of_one in labels]
    from pydensecrf.utils import unary_from_labels

    unaries = [unary_from_labels(of_one, n_labels, gt_prob=gt_prob, zero_unsure=False) for of_one in labels]
    return _refined(image, unaries, CAM_KERNELS, n_iter)


def crf_inference_softmax(image: np.ndarray, probabilities: np.ndarray, n_iter: int = 10) -> np.ndarray:
    """Refine class probabilities by the colours of the image, with DeepLab-v2's kernels.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W) float32, summing to 1 over the classes.

    Returns:
        (H, W) int64 labels of the highest marginal.
    """
    from pydensecrf.utils import unary_from_softmax

    unary = np.ascontiguousarray(unary_from_softmax(probabilities))
    return _refined(image, [unary], DEEPLAB_KERNELS, n_iter)[0]


def _refined(image: np.ndarray, unaries: Sequence[np.ndarray], kernels: Kernels, n_iter: int) -> list[np.ndarray]:
    """(H, W) labels of the highest marginal, for each of the unary energies (C, H * W) float32."""
    from pydensecrf import densecrf

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(unaries[0]))
    crf.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy,
        srgb=kernels.bilateral_srgb,
        rgbim=np.require(image, requirements=("C", "W")),
        compat=kernels.bilateral_compat,
    )

    def labels_of(unary: np.ndarray) -> np.ndarray:
        crf.setUnaryEnergy(unary)
        return np.asarray(crf.inference(n_iter)).argmax(axis=0).reshape(height, width)

    return [labels_of(unary) for unary in unaries]
