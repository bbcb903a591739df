"""Dense CRF (Krähenbühl and Koltun, NIPS 2011), through pydensecrf."""

from collections.abc import Sequence

import numpy as np

from misc.errors import InputError

GAUSSIAN_SXY, GAUSSIAN_COMPAT = 3, 3
BILATERAL_SXY, BILATERAL_SRGB, BILATERAL_COMPAT = 50, 5, 10


def has_densecrf() -> bool:
    """Whether pydensecrf can be imported."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def require_densecrf() -> None:
    """Raise `InputError` if pydensecrf is not installed."""
    if not has_densecrf():
        raise InputError(
            "cam_to_ir_label needs pydensecrf: `pip install pydensecrf2` with Python 3.10 to 3.12 "
            "(it does not compile on 3.13; every other step works without it)."
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
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, n_labels)
    crf.addPairwiseGaussian(sxy=GAUSSIAN_SXY, compat=GAUSSIAN_COMPAT)
    crf.addPairwiseBilateral(
        sxy=BILATERAL_SXY, srgb=BILATERAL_SRGB, rgbim=np.ascontiguousarray(image), compat=BILATERAL_COMPAT
    )

    def refined(of_one: np.ndarray) -> np.ndarray:
        crf.setUnaryEnergy(unary_from_labels(of_one, n_labels, gt_prob=gt_prob, zero_unsure=False))
        return np.asarray(crf.inference(n_iter)).argmax(axis=0).reshape(height, width)

    return [refined(of_one) for of_one in labels]
