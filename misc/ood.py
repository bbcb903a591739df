"""The mathematics of W-OoD: prototypes, distances and the two losses (W-OoD sections 3.2 and 3.3)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.run.device import to_device
from misc.run.distributed import (
    gather_shares,
    max_over_processes,
    mean_over_processes,
    sum_over_processes,
    wait_for_all,
)

BOTTLE = 4
"""VOC's class bottle: the original leaves OoD images that look like it out of the OoD loss."""
GRADIENT_EPSILON = 1e-12
ROWS_AT_ONCE = 16384
"""Of features, while those of OoD images are summed in twice their precision."""


def _group_means(parts: Iterable[Tensor], membership: Tensor, *, over_processes: bool = False) -> Tensor:
    """Parts of (N, D), (N, G) weights 0 or 1 -> (G, D) means; a group without members is a row of NaN.

    Summed in float64, since TF32, the default on CUDA, would leave 10 bits of each feature.
    """
    sums: Tensor | int = 0
    counts: Tensor | int = 0
    first = 0
    for rows in parts:
        members = to_device(membership[first : first + len(rows)], rows.device).double()
        sums = sums + members.T @ rows.double()
        counts = counts + members.sum(dim=0)
        first += len(rows)
    if first != len(membership):
        raise ValueError(f"{first} rows of features have {len(membership)} rows of labels")
    if over_processes:
        wait_for_all()
        sums, counts = sum_over_processes(sums), sum_over_processes(counts)
    return (sums / counts[:, None]).to(rows.dtype)


def class_prototypes(features: Tensor | Iterable[Tensor], labels: Tensor) -> Tensor:
    """The mean feature of the images that carry each class, (C, D); a class without images is a row of NaN.

    In several processes each gives its share of the images, and all get the means over all of them.

    Args:
        features: (N, D), or parts of it of (n, D), one after the other, so that those of many images need not be held
            at once.
        labels: (N, C) 0/1.

    Raises `ValueError` for labels of another number of images.
    """
    parts = [features] if isinstance(features, Tensor) else features
    return _group_means(parts, labels, over_processes=True)


def kmeans(x: Tensor, k: int, n_iter: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, Euclidean, started from the first k rows, as the original does it.

    Args:
        x: (N, D).
        k: number of clusters, at most N.
        n_iter: at least 1.

    Returns:
        assignment (N,) int64 of the last iteration and centres (k, D), the means of the members. A cluster that
        empties stays empty: its centre is a row of NaN.
    """
    if not 0 < k <= len(x):
        raise ValueError(f"{k} clusters of {len(x)} points: the number must be between 1 and that of the points")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, not {n_iter}")
    centres = x[:k].clone()
    for _ in range(n_iter):
        distance = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist")
        assignment = distance.nan_to_num(nan=torch.inf).argmin(dim=1)
        centres = _group_means(x.split(ROWS_AT_ONCE), F.one_hot(assignment, k))
    return assignment, centres


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """(B, D), (P, D) -> (B, P) Euclidean distances; 0 to a prototype that is NaN. Prototypes are constants."""
    prototypes = prototypes.detach()
    empty = prototypes.isnan().any(dim=1)
    difference = features[:, None] - prototypes.nan_to_num()[None]
    return difference.norm(dim=2).masked_fill(empty, 0)


def distance_loss(dist: Tensor, label: Tensor, topk: float = 0.2) -> tuple[Tensor, Tensor]:
    """Pull features to the prototypes of their classes, push them from the nearest OoD prototypes (equation 3).

    L_d = mean(d_class * label) * C / K - mean(d_ood * [d_ood < t]), where t is the floor((1 - topk) n)-th largest of
    the n OoD distances of the batch that are not zero; nothing pushes if that rank is 0. The factor is 20 / K in the
    original, whatever the number of classes C. The batch is that of all processes.

    Args:
        dist: (B, C + K) from `distances`.
        label: (B, C) 0/1.
        topk: a share, 0 .. 1.

    Returns:
        the loss and t, both scalars.

    Raises `ValueError` for distances to no OoD prototype, and for `topk` that is no share.
    """
    n_classes = label.shape[1]
    if dist.shape[1] <= n_classes or not 0 <= topk <= 1:
        raise ValueError(
            f"expected distances to {n_classes} classes and to OoD prototypes, topk in 0 .. 1, not {dist.shape[1]} "
            f"distances and {topk}"
        )
    to_class, to_ood = dist[:, :n_classes], dist[:, n_classes:]
    of_batch = gather_shares(to_ood.detach()).flatten()
    # Of all distances in one order, the others as zeros at its end: their number would have to be read from the device
    known = of_batch > 0
    ordered = of_batch.where(known, 0).sort(descending=True).values
    rank = ((1 - topk) * known.sum().double()).long()
    threshold = ordered.take((rank - 1).clamp_min(0)).where(rank > 0, 0)
    pull = mean_over_processes(to_class * label) * n_classes / to_ood.shape[1]
    push = mean_over_processes(to_ood * (to_ood < threshold))
    return pull - push, threshold


@contextmanager
def _constant_weights(model: nn.Module | Callable) -> Iterator[None]:
    """Within this block no weight of a module requires a gradient, and nothing is kept for one."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    trained = [parameter for parameter in weights if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def adversarial_step(model: nn.Module, images: Tensor, step: float = 0.07) -> Tensor:
    """Perturb OoD images so that the classifier fires harder on them (section 3.3).

    x' = clamp(x + step * g / (max |g| + 1e-12), min(x), max(x)), where g is the gradient of the sum over the batch of
    each image's largest logit with respect to the pixels; the extremes are those of the whole batch, of all processes.
    Only gradients of the pixels are computed, none of the weights.

    Args:
        model: (B, 3, H, W) -> (logits (B, C), features), a module or any function.
        images: (B, 3, H, W) normalised.

    Returns:
        (B, 3, H, W) without a gradient.
    """
    pixels = images.detach().requires_grad_(True)
    with torch.enable_grad(), _constant_weights(model):
        logits, _ = model(pixels)
        (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), pixels)
    extremes = torch.stack([gradient.abs().max(), images.max(), -images.min()])
    largest, high, minus_low = max_over_processes(extremes)
    moved = images + step * gradient / (largest + GRADIENT_EPSILON)
    return moved.clamp(min=-minus_low, max=high).detach()


def ood_loss(logits: Tensor, ignore_class: int | None = BOTTLE) -> Tensor:
    """(B, C) logits of OoD images -> multi-label soft margin loss against all-zero labels, a scalar (equation 2).

    Images whose largest logit is `ignore_class` (0-based) are left out of the sum, which is divided by B all the same.
    The batch is that of all processes. Raises `ValueError` for a class that is neither None nor a number below C.
    """
    if ignore_class is not None and not (isinstance(ignore_class, int) and 0 <= ignore_class < logits.shape[1]):
        raise ValueError(f"ignore_class must be None or a class in 0 .. {logits.shape[1] - 1}, not {ignore_class!r}")
    losses = F.multilabel_soft_margin_loss(logits, torch.zeros_like(logits), reduction="none")
    if ignore_class is not None:
        losses = losses * (logits.argmax(dim=1) != ignore_class)
    return mean_over_processes(losses)


def wood_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    ood_images: Tensor | None,
    prototypes: Tensor | None,
    ood_coeff: float,
    distance_lambda: float,
    topk: float,
    step: float,
    ignore_class: int | None,
) -> dict[str, Tensor]:
    """The loss of a W-OoD training step (equation 4): L_cls + distance_lambda * L_d + ood_coeff * L_ood.

    Args:
        model: (B, 3, H, W) -> (logits (B, C), features (B, D)).
        images, labels: the in-distribution batch, or this process's share of it, normalised; (B, C) 0/1, of any type.
        ood_images: the OoD batch, or None for none.
        prototypes: (C + K, D), or None for no distance loss.

    Returns:
        Scalars: `bce`, where they apply `distance` and `ood`, and `total`. With several processes they are those of the
        whole batch, and each process has the gradients of its part: to be summed, not averaged.

    Raises `ValueError` as `distance_loss` and `ood_loss` do.
    """
    if ood_images is None:
        logits, features = model(images)
        ood_logits = None
    else:
        # Every batch norm is frozen, so that one pass over both batches gives what two passes give
        perturbed = adversarial_step(model, ood_images, step)
        logits, features = model(torch.cat([images, perturbed]))
        logits, ood_logits = logits.split([len(images), len(ood_images)])
        features = features[: len(images)]
    of_labels = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    losses = {"bce": mean_over_processes(of_labels)}
    total = losses["bce"]
    if prototypes is not None:
        losses["distance"], _ = distance_loss(distances(features, prototypes), labels, topk)
        total = total + distance_lambda * losses["distance"]
    if ood_logits is not None:
        losses["ood"] = ood_loss(ood_logits, ignore_class)
        total = total + ood_coeff * losses["ood"]
    return {**losses, "total": total}
