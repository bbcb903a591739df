"""Anti-adversarial climbing: CAMs that grow while the image is changed in favour of a class (AdvCAM section 3).

The Grad-CAM weights need no backward pass. With S = sum of relu(L_c) over the image, its mirror image and all pixels,
L the classifier's logit maps and W its weights, dS/dA_k = W_ck where L_c > 0. Channel k of image i then weighs
W_ck n_i / (P N), where n_i counts the image's pixels with L_c > 0, N those of both images, and P the positive W_ck (so
that P N counts the positive entries of dS/dA). So sum_k w_k A_k = L_c n_i / (P N): the region map is a multiple of
relu(L_c) of each image, and what is left of an iteration is one forward and one backward pass to the pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.cam import merge_scales
from misc.run.device import to_device
from misc.run.loaders import PIXELS_A_PLACE

SCALES = (0.5, 1.0, 1.5, 2.0)
SMALL_SCALE = 0.5
EPSILON = 1e-12
BYTES_A_PIXEL = 4096
"""Of the images at the largest scale, as an upper estimate: ResNet-50 keeps 993 for its backward pass."""
LARGEST_BATCH = 8


def default_batch_size(device: torch.device) -> int:
    """How many (image, class) pairs of up to 512 x 512 pixels run as one batch: on CUDA as many as fit its free memory.

    On the CPU a batch gains nothing: one.
    """
    if device.type != "cuda":
        return 1
    torch.cuda.empty_cache()  # what earlier steps have left is free, too
    free, _ = torch.cuda.mem_get_info(device)
    bytes_a_pair = 2 * PIXELS_A_PLACE * max(SCALES) ** 2 * BYTES_A_PIXEL  # image and mirror image
    return max(1, min(LARGEST_BATCH, int(free / bytes_a_pair)))


def iterations_at(scale: float, n_iter: int) -> int:
    """Iterations at a scale: at 0.5 the half of more than 10, rounded down, and 5 of 6 to 10."""
    if scale != SMALL_SCALE or n_iter < 6:
        return n_iter
    return n_iter // 2 if n_iter > 10 else 5


def map_factor(n_iter: int) -> float:
    """The factor of the accumulated maps: 2 above 10 iterations, else 1.

    Quirk of the original, kept: meant for scale 0.5 alone, where iterations are halved, it holds at every scale.
    """
    return 2.0 if n_iter > 10 else 1.0


def region_maps(logit_maps: Tensor, classes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM of a class over an image and its mirror image, for B pairs.

    Args:
        logit_maps: (B, 2, C, h, w).
        classes: (B,) the class of each pair.
        weights: (C, D) of the classifier.

    Returns:
        the region maps (B, h, w), with a gradient to `logit_maps` through all but the Grad-CAM weights, and
        relu(L_c) (B, 2, h, w).
    """
    active = F.relu(logit_maps[torch.arange(len(classes), device=classes.device), :, classes])
    with torch.no_grad():
        firing = (active > 0).sum(dim=(2, 3), dtype=active.dtype)
        positive_weights = (weights[classes] > 0).sum(dim=1, dtype=active.dtype)
        positive_entries = positive_weights * firing.sum(dim=1)
        gain = firing / (positive_entries[:, None] + EPSILON)
    regions = active * gain[..., None, None]
    return regions[:, 0] + regions[:, 1].flip(-1), active


def climb(
    model: nn.Module,
    pairs: Tensor,
    classes: Tensor,
    n_iter: int,
    *,
    coefficient: float,
    step: float,
    score_threshold: float,
) -> Tensor:
    """Accumulated region maps of B (image, class) pairs, each climbed on its own though they run as one batch.

    Args:
        model: with `logit_maps(images (B, 3, H, W)) -> (B, C, h, w)` and `classifier.weight` (C, D, 1, 1).
        pairs: (B, 2, 3, H, W) normalised images and their mirror images.
        classes: (B,) int64.
        n_iter: maps to sum up, at least 1, the first of the clean image; the pixels move from one to the next.
        coefficient: of the regulariser, the change of the region map where it is strong.
        step: of the pixels, along the gradient over its largest entry.
        score_threshold: share of the region map's maximum from which on it counts as strong.

    Returns:
        (B, h, w), not negative.
    """
    weights = model.classifier.weight.detach().flatten(1)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = model.logit_maps(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return maps, *region_maps(maps, classes, weights)

    pixels, total, first = pairs, 0, None
    for _ in range(n_iter - 1):
        pixels = pixels.detach().requires_grad_(True)
        with torch.enable_grad():
            maps, regions, active = forward(pixels)
            now = regions.detach()
            first = now if first is None else first
            strong = now > score_threshold * now.amax(dim=(1, 2), keepdim=True)
            change = ((regions - first).abs() * strong).sum()
            scores = 2 * active.mean(dim=(2, 3)).sum() - F.relu(maps).mean(dim=(3, 4)).sum()
            # Only gradients of the pixels are computed, none of the weights
            (gradient,) = torch.autograd.grad(scores - coefficient * change, pixels)
        total = total + now
        with torch.no_grad():
            steepest = gradient.abs().amax(dim=(1, 2, 3, 4), keepdim=True)
            lowest, highest = (limit(pixels, dim=(1, 2, 3, 4), keepdim=True) for limit in (torch.amin, torch.amax))
            pixels = (pixels + step * gradient / (steepest + EPSILON)).clamp(lowest, highest)
    with torch.enable_grad():  # as the passes before, whose kernels a GPU has prepared for this size
        _, regions, _ = forward(pixels.detach().requires_grad_(True))
    return total + regions.detach()


def advcam_batch(
    model: nn.Module,
    images: Sequence[Mapping[float, Tensor]],
    size: tuple[int, int],
    keys: Sequence[Sequence[int]],
    *,
    n_iter: int,
    coefficient: float,
    step: float,
    score_threshold: float,
    batch_size: int,
) -> list[tuple[Tensor, Tensor]]:
    """AdvCAM of images of equal size: as `misc.cam.merge_scales`, of maps that anti-adversarial climbing accumulates.

    Args:
        model: a `CAM` network in evaluation mode.
        images: {scale: (2, 3, h, w)} of each image: it and its mirror image, normalised.
        size: (H, W) of the images.
        keys: the K labelled classes of each image, 0-based.
        n_iter: iterations; fewer at scale 0.5.
        coefficient, step, score_threshold: see `climb`.
        batch_size: (image, class) pairs that run as one batch; the results are those of one by one, up to rounding.

    Returns:
        for each image cam (K, ceil(H/4), ceil(W/4)) and high_res (K, H, W), each map divided by its maximum + 1e-5.
    """
    device = next(iter(images[0].values())).device
    owners = to_device(torch.tensor([i for i, of_image in enumerate(keys) for _ in of_image], dtype=torch.long), device)
    classes = to_device(torch.tensor([int(key) for of_image in keys for key in of_image], dtype=torch.long), device)
    merged_maps: list[list[Tensor]] = [[] for _ in images]
    for scale in images[0]:
        at_scale = torch.stack([pairs[scale] for pairs in images])
        maps = [
            climb(
                model,
                at_scale[owners[start : start + batch_size]],
                classes[start : start + batch_size],
                iterations_at(scale, n_iter),
                coefficient=coefficient,
                step=step,
                score_threshold=score_threshold,
            )
            for start in range(0, len(owners), batch_size)
        ]
        # An image without labels has no maps; its CAM is empty, of the device and type of the others
        of_pairs = map_factor(n_iter) * torch.cat(maps) if maps else at_scale.new_zeros(0, 1, 1)
        for of_image, rows in zip(merged_maps, of_pairs.split([len(k) for k in keys]), strict=True):
            of_image.append(rows)
    return [merge_scales(maps, size, range(len(k))) for maps, k in zip(merged_maps, keys, strict=True)]


def advcam(
    model: nn.Module,
    pairs: Mapping[float, Tensor],
    size: tuple[int, int],
    keys: Sequence[int],
    n_iter: int = 27,
    *,
    coefficient: float = 7.0,
    step: float = 0.08,
    score_threshold: float = 0.5,
    batch_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """`advcam_batch` of one image, with the paper's settings.

    Args:
        pairs: {scale: (2, 3, h, w)}, the normalised image and its mirror image.
        keys: the K labelled classes, 0-based.

    Returns:
        cam (K, ceil(H/4), ceil(W/4)) and high_res (K, H, W), each map divided by its maximum + 1e-5.
    """
    climbing = {"coefficient": coefficient, "step": step, "score_threshold": score_threshold}
    (found,) = advcam_batch(model, [pairs], size, [keys], n_iter=n_iter, **climbing, batch_size=batch_size)
    return found
