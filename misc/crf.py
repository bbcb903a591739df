"""Dense CRF (Krähenbühl and Koltun, NIPS 2011): labels of pixels, refined by the colours of the image.

Each pixel is linked to all others by two kernels: a Gaussian of the distance, and a bilateral one of distance and
colour, D^-1/2 K D^-1/2 each, with the Potts model (equation 3). Mean field (algorithm 1) runs a fixed number of
iterations: the marginals are filtered by the kernels and added to the unary term's logits, whose softmax are the new
marginals.

Two implementations give the same labels: that of `misc.permutohedral` on PyTorch, on any device, and pydensecrf, which
is the one that the originals call, in C++ on one core. The former is what `auto` means: it needs no compiler, and was
the faster one where both were measured on the CPU (docs/speed.md).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, reduce
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from misc.errors import InputError, requirement
from misc.permutohedral import KEPT_POINTS, PART_POINTS, Lattice, WeightedSum, parts_of

Backend = Literal["auto", "torch", "pydensecrf"]
CPU = torch.device("cpu")
CLIP = 1e-5
"""The least probability that the unary term of a softmax knows (the default of pydensecrf)."""
N_ITER, GT_PROB = 10, 0.7
"""Of the originals: iterations of mean field, and the probability that a given label is right."""
PROBABILITY_ERROR = 0.02
"""By which a sum of probabilities may differ from 1, as that of half precision does."""
MAX_COLOUR = 255
FEW_LABELS = 8
"""With fewer labels torch's own softmax takes, on a CPU, several times as long as one that goes label by label."""
KEPT_LATTICES = 8
"""Gaussian lattices that are kept, one for each size of images."""


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


def has_pydensecrf() -> bool:
    """Whether pydensecrf can be imported."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


@requirement
def require_backend(backend: Backend) -> None:
    """Raise `InputError` if the flag --crf names pydensecrf where that is not installed."""
    if backend == "pydensecrf" and not has_pydensecrf():
        raise InputError(
            "--crf pydensecrf: pydensecrf is not installed (`pip install pydensecrf2` compiles it, on Python 3.10 to "
            "3.12); leave --crf out, or pass --crf torch, which computes the same."
        )


def device_of(backend: Backend, device: torch.device) -> torch.device:
    """Where dense CRF runs in a run on `device`: pydensecrf knows the CPU alone."""
    return CPU if backend == "pydensecrf" else device


def crf_inference_label(
    image: np.ndarray,
    labels: np.ndarray,
    n_labels: int,
    n_iter: int = N_ITER,
    gt_prob: float = GT_PROB,
    *,
    backend: Backend = "auto",
    device: torch.device = CPU,
) -> np.ndarray:
    """Refine hard labels by the colours of the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, 0 .. n_labels - 1.
        gt_prob: the probability that a given label is right, for the unary term.
        backend: who computes it; `device` is that of PyTorch's.

    Returns:
        (H, W) int64 labels of the highest marginal.

    Raises `ValueError` for an image that is not uint8, or not of the labels' size.
    """
    return crf_inference_labels(image, [labels], n_labels, n_iter, gt_prob, backend=backend, device=device)[0]


def crf_inference_labels(
    image: np.ndarray,
    labels: Sequence[np.ndarray],
    n_labels: int,
    n_iter: int = N_ITER,
    gt_prob: float = GT_PROB,
    *,
    backend: Backend = "auto",
    device: torch.device = CPU,
) -> list[np.ndarray]:
    """`crf_inference_label` for several label maps of one image, which share what depends on the image alone.

    Raises `ValueError` for an image that is not uint8, or not of the maps' size.
    """
    for of_one in labels:
        _require_image(image, of_one.shape)
    if n_labels == 1:  # the unary term divides by n_labels - 1
        return [np.zeros(of_one.shape, dtype=np.int64) for of_one in labels]
    if backend == "pydensecrf":
        from pydensecrf.utils import unary_from_labels

        unaries = [unary_from_labels(of_one, n_labels, gt_prob=gt_prob, zero_unsure=False) for of_one in labels]
        return _refined_by_pydensecrf(image, unaries, CAM_KERNELS, n_iter)
    given = torch.from_numpy(np.stack(labels).astype(np.int64)).to(device)
    logits = logits_of_labels(given, n_labels, gt_prob=gt_prob)
    refined = _most_probable(torch.from_numpy(image).to(device), logits, CAM_KERNELS, n_iter)
    return list(refined.cpu().numpy())


def _require_image(image: np.ndarray, size: tuple[int, ...]) -> None:
    """Raise `ValueError` unless the image is (H, W, 3) uint8 and of `size`: others would give senseless labels."""
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise ValueError(
            f"the image must be {(*size, 3)} of uint8, RGB in 0 .. 255, not {image.shape} of {image.dtype}"
        )


def crf_inference_softmax(
    image: np.ndarray, probabilities: np.ndarray, n_iter: int = N_ITER, *, backend: Backend = "auto"
) -> np.ndarray:
    """Refine class probabilities by the colours of the image, with DeepLab-v2's kernels.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W), summing to 1 over the classes.
        backend: who computes it, on the CPU.

    Returns:
        (H, W) int64 labels of the highest marginal.

    Raises `ValueError` for an image that is not uint8, or not of the probabilities' size, and for what is no
    probability.
    """
    _require_image(image, probabilities.shape[1:])
    probabilities = np.asarray(probabilities, dtype=np.float32)
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(axis=0), 1, atol=PROBABILITY_ERROR):
        raise ValueError("the probabilities must not be negative, and sum to 1 over the classes: softmax of the logits")
    if backend == "pydensecrf":
        from pydensecrf.utils import unary_from_softmax

        unary = np.ascontiguousarray(unary_from_softmax(probabilities))
        return _refined_by_pydensecrf(image, [unary], DEEPLAB_KERNELS, n_iter)[0]
    return refine_softmax(torch.from_numpy(image), torch.from_numpy(probabilities), n_iter).numpy()


def refine_softmax(image: Tensor, probabilities: Tensor, n_iter: int = N_ITER) -> Tensor:
    """PyTorch's `crf_inference_softmax` of tensors on one device."""
    return _most_probable(image, logits_of_softmax(probabilities), DEEPLAB_KERNELS, n_iter)[0]


def logits_of_labels(labels: Tensor, n_labels: int, *, gt_prob: float) -> Callable[[slice], Tensor]:
    """The unary term of K label maps (K, H, W) int64, part by part of the pixels: (n, K, L) float32."""
    by_pixel = labels.flatten(1).t()
    right, wrong = (float(np.log(p)) for p in (gt_prob, (1 - gt_prob) / (n_labels - 1)))

    def of_part(part: slice) -> Tensor:
        given = by_pixel[part]
        logits = torch.full((*given.shape, n_labels), wrong, device=labels.device)
        return logits.scatter_(2, given[..., None], right)

    return of_part


def logits_of_softmax(probabilities: Tensor) -> Callable[[slice], Tensor]:
    """The unary term of probabilities (C, H, W), part by part of the pixels: (n, 1, C) float32."""
    by_class = probabilities.flatten(1)
    return lambda part: by_class[:, part].t().contiguous().clamp(CLIP, 1).log_()[:, None]


Read = TypeVar("Read")


@torch.no_grad()
def mean_field(
    image: Tensor, logits: Callable[[slice], Tensor], kernels: Kernels, n_iter: int, *, read: Callable[[Tensor], Read]
) -> list[Read]:
    """Marginals after `n_iter` iterations, as `read` has them, part by part of the pixels.

    Beside the input only the values of the lattices are kept for the whole image, and the marginals of a part.

    Args:
        image: (H, W, 3) uint8 RGB.
        logits: the unary term of a part of the pixels, in row-major order: (n, K, L) float32 of K independent CRFs of
            L labels, the negative energies. Called again when it is needed again.
        read: of the marginals (n, K, L) of a part, what to keep; from 8 labels on more labels follow, of marginal 0.
    """
    n_pixels = image.shape[0] * image.shape[1]
    parts = parts_of(n_pixels)
    pairwise = _pairwise_terms(image, kernels)

    def padded(index: int) -> Tensor:
        unary = logits(parts[index])
        n_labels = unary.shape[2]
        # Sums of rows are up to a third faster where these are whole vectors of 8 numbers
        return F.pad(unary, (0, -n_labels % 8), value=-math.inf) if n_labels >= FEW_LABELS else unary

    entries_of, logits_of = (cache(each) if n_pixels <= KEPT_POINTS else each for each in (pairwise.entries, padded))
    result, values = [], None
    for iteration in range(n_iter + 1):
        spread = None
        for index in range(len(parts)):
            unary, entries = logits_of(index), entries_of(index)
            if values is not None:
                unary = entries.slice(values).view(unary.shape).add_(unary)
            marginals = _softmax(unary)
            if iteration == n_iter:
                result.append(read(marginals))
            else:
                spread = entries.splat(marginals.flatten(1), spread, pairwise.n_rows)
        values = None  # whose memory the blur can take
        if spread is not None:
            values = pairwise.blur(spread)
    return result


def _most_probable(image: Tensor, logits: Callable[[slice], Tensor], kernels: Kernels, n_iter: int) -> Tensor:
    """(K, H, W) int64 labels of the highest marginal."""
    labels = mean_field(image, logits, kernels, n_iter, read=lambda marginals: marginals.argmax(dim=2))
    return torch.cat(labels).t().unflatten(1, image.shape[:2])


def _softmax(logits: Tensor) -> Tensor:
    """Over the last dimension."""
    if logits.shape[-1] >= FEW_LABELS or logits.device.type != "cpu":
        return logits.softmax(dim=-1)
    peak = reduce(torch.maximum, logits.unbind(-1))
    exponentials = (logits - peak[..., None]).exp_()
    return exponentials.div_(reduce(torch.add, exponentials.unbind(-1))[..., None])


def _pairwise_terms(image: Tensor, kernels: Kernels) -> WeightedSum:
    """Both kernels on the pixels of an image (H, W, 3) uint8."""
    height, width = image.shape[:2]
    colours = image.flatten(0, 1)
    units = [kernels.bilateral_sxy] * 2 + [kernels.bilateral_srgb] * 3
    deviations = torch.tensor(units, dtype=torch.float32, device=image.device)

    def features(part: slice) -> Tensor:
        place = _places(part, width, image.device)
        return torch.cat([place, colours[part].t().float()]) / deviations[:, None]

    highest = [width / units[0], height / units[1], *(MAX_COLOUR / unit for unit in units[2:])]
    bilateral = Lattice(features, height * width, highest, device=image.device)
    # A large one is not kept between images, since it takes much memory and is soon made in comparison
    gaussian_of = _kept_gaussian_lattice if height * width <= PART_POINTS else _gaussian_lattice
    gaussian = gaussian_of(height, width, kernels.gaussian_sxy, image.device)
    return WeightedSum([gaussian, bilateral], [kernels.gaussian_compat, kernels.bilateral_compat])


def _places(part: slice, width: int, device: torch.device) -> Tensor:
    """(2, n) float32: x and y of pixels in row-major order."""
    index = torch.arange(part.start, part.stop, device=device)
    return torch.stack([index % width, index // width]).float()


def _gaussian_lattice(height: int, width: int, sxy: float, device: torch.device) -> Lattice:
    """Of the pixels' places alone, the same for every image of a size."""
    deviation = torch.tensor(sxy, dtype=torch.float32, device=device)

    def features(part: slice) -> Tensor:
        return _places(part, width, device) / deviation

    return Lattice(features, height * width, [width / sxy, height / sxy], device=device)


_kept_gaussian_lattice = lru_cache(KEPT_LATTICES)(_gaussian_lattice)


def _refined_by_pydensecrf(
    image: np.ndarray, unaries: Sequence[np.ndarray], kernels: Kernels, n_iter: int
) -> list[np.ndarray]:
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
