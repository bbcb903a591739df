"""Dense CRF (Krähenbühl and Koltun, NIPS 2011), through pydensecrf."""

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
    if n_labels == 1:  # the unary term divides by n_labels - 1
        return np.zeros(labels.shape, dtype=np.int64)
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = labels.shape
    crf = densecrf.DenseCRF2D(width, height, n_labels)
    unary = unary_from_labels(labels, n_labels, gt_prob=gt_prob, zero_unsure=False)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=GAUSSIAN_SXY, compat=GAUSSIAN_COMPAT)
    crf.addPairwiseBilateral(
        sxy=BILATERAL_SXY, srgb=BILATERAL_SRGB, rgbim=np.ascontiguousarray(image), compat=BILATERAL_COMPAT
    )
    marginals = np.asarray(crf.inference(n_iter))
    return marginals.argmax(axis=0).reshape(height, width)
