"""The plain way of each step: the original's arithmetic, in its order and with its memory, on torch and torchvision.

Each step takes the configuration that `step.<name>.run` takes, reads the same files and writes the same. Of the
project it uses what is no part of the comparison: readers of lists, images and CAM files, crops, writers, the
optimiser. Where the original does more than is needed, so does this:

* Images are prepared and normalised on the CPU, one at a time, and copied as float32; CAMs of all classes are resized.
* The network's gradients are those of all weights, also where only the pixels' are used.
* Pairs of pixels are gathered along their paths in one array, and labelled on the CPU, as float32, in the data set.
* The random walk squares the dense transition matrix; the evaluation reads all files once for each threshold.

It does no more than that: what makes this way slow is the original's, not the benchmark's.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import models

from misc.deeplab import deeplab_optimizer
from misc.files import camfile
from misc.files.atomic import write_json
from misc.files.images import read_image, read_label, write_label, write_palette
from misc.imutils import normalize, resize_image, resize_label, scaled_size
from misc.ood import class_prototypes, kmeans
from misc.run.config import Config
from misc.run.device import backbone_precision, resolve_device
from misc.run.loaders import Stream, training_loader
from misc.torchutils import two_rate_optimizer
from net.build import build_network
from voc12.classes import voc_palette
from voc12.dataloader import AffinityCrops, ClassificationCrops, SegmentationCrops, WholeImages
from voc12.devkit import Devkit, open_devkit
from voc12.images import read_labelled_images
from voc12.lists import read_list, read_ood_paths, read_split

TINY = 1e-12
EPSILON = 1e-5
WALK_RADIUS, TRAIN_RADIUS = 5, 10
ADVCAM_SCALES = (0.5, 1.0, 1.5, 2.0)
DEEPLAB_SCALES = (0.5, 0.75)
UNSURE = 255


# Networks


def _resnet50() -> models.ResNet:
    """torchvision's, its last stage at stride 1; in evaluation mode, in which batch norms use running statistics."""
    network = models.resnet50().eval()
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    del network.fc
    return network


def load_state(network: nn.Module, path: str) -> None:
    """Fill `network`, whose weights have the names of our files, from one of them."""
    missing, extra = network.load_state_dict(torch.load(path, weights_only=True), strict=False)
    if extra or not all(name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"{path} does not fit {type(network).__name__}")


class Classifier(nn.Module):
    """Backbone, global average pool, classifier."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.backbone = _resnet50()
        self.classifier = nn.Conv2d(2048, n_classes, kernel_size=1, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """The last stage, at stride 16."""
        net = self.backbone
        with backbone_precision(images.device):
            x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            return net.layer4(net.layer3(net.layer2(net.layer1(x)))).to(images.dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and pooled features (B, 2048)."""
        pooled = self.features(images).mean(dim=(2, 3), keepdim=True)
        return self.classifier(pooled).flatten(1), pooled.flatten(1)

    def activation(self, pair: Tensor) -> Tensor:
        """CAM of an image and its mirror image, (2, 3, H, W) -> (C, h, w)."""
        maps = F.relu(self.classifier(self.features(pair)))
        return maps[0] + maps[1].flip(-1)


def _head(inputs: int, outputs: int, groups: int, upsample: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)]
    if upsample > 1:
        layers.append(nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU())


class AffinityNetwork(nn.Module):
    """IRN: edge and displacement branches on five taps of the backbone, which is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _resnet50()
        for i, (channels, upsample) in enumerate(((64, 1), (256, 1), (512, 2), (1024, 4), (2048, 4)), start=1):
            self.add_module(f"fc_edge{i}", _head(channels, 32, 4, upsample))
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.fc_dp1, self.fc_dp2 = _head(64, 64, 8, 1), _head(256, 128, 16, 1)
        self.fc_dp3, self.fc_dp4 = _head(512, 256, 16, 1), _head(1024, 256, 16, 2)
        self.fc_dp5, self.fc_dp6 = _head(2048, 256, 16, 2), _head(768, 256, 16, 2)
        self.fc_dp7 = nn.Sequential(*_head(448, 256, 16, 1), nn.Conv2d(256, 2, 1, bias=False))
        self.mean_shift = nn.Module()
        self.mean_shift.register_buffer("running_mean", torch.zeros(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Edge logits (B, 1, h, w) and displacement (B, 2, h, w), before the mean shift."""
        net = self.backbone
        with backbone_precision(images.device):
            x1 = net.maxpool(net.relu(net.bn1(net.conv1(images)))).detach()
            x2 = net.layer1(x1).detach()
            x3 = net.layer2(x2).detach()
            x4 = net.layer3(x3).detach()
            x5 = net.layer4(x4).detach()
        x1, x2, x3, x4, x5 = (x.to(images.dtype) for x in (x1, x2, x3, x4, x5))

        def like(x: Tensor, reference: Tensor) -> Tensor:
            return x[..., : reference.shape[2], : reference.shape[3]]

        edges = (self.fc_edge1(x1), self.fc_edge2(x2), self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5))
        edge = self.fc_edge6(torch.cat([like(each, x2) for each in edges], dim=1))
        dp1, dp2, dp3 = self.fc_dp1(x1), self.fc_dp2(x2), self.fc_dp3(x3)
        dp4, dp5 = like(self.fc_dp4(x4), dp3), like(self.fc_dp5(x5), dp3)
        dp6 = like(self.fc_dp6(torch.cat([dp3, dp4, dp5], dim=1)), dp2)
        return edge, self.fc_dp7(torch.cat([dp1, dp2, dp6], dim=1))


class DeepLab(nn.Module):
    """DeepLab-v2 on torchvision's ResNet-101: logits at the scales 1, 0.5 and 0.75."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.backbone = models.resnet101(replace_stride_with_dilation=[False, True, True]).eval()
        del self.backbone.fc
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        self.aspp = nn.Module()
        for i, rate in enumerate((6, 12, 18, 24)):
            self.aspp.add_module(f"c{i}", nn.Conv2d(2048, n_classes, 3, padding=rate, dilation=rate))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, h_s, w_s) of each scale."""
        return [self._logits(images), *(self._logits(_scaled_by(images, scale)) for scale in DEEPLAB_SCALES)]

    def _logits(self, images: Tensor) -> Tensor:
        net = self.backbone
        with backbone_precision(images.device):
            x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            x = net.layer4(net.layer3(net.layer2(net.layer1(x)))).to(images.dtype)
        return sum(branch(x) for branch in self.aspp.children())


def _scaled_by(images: Tensor, scale: float) -> Tensor:
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def _largest(logits: list[Tensor]) -> Tensor:
    size = logits[0].shape[2:]
    resized = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in logits]
    return torch.stack(resized).max(dim=0).values


# Data


class _OnCpu(Dataset):
    """Crops of `dataset` normalised by the loader: float32 images."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> dict[str, Tensor]:
        item = dict(self.dataset[key])
        item["image"] = normalize(item["image"][None], item["box"][None])[0]
        return item


class _WithPairLabels(_OnCpu):
    """Crops for IRN with the dense labels of all pairs: (offsets, sources) float32, thrice."""

    def __getitem__(self, key: Any) -> dict[str, Tensor]:
        item = super().__getitem__(key)
        names = ("bg_pos", "fg_pos", "neg")
        return {**item, **dict(zip(names, pair_labels(item["label"].numpy(), TRAIN_RADIUS), strict=True))}


class _ScaledPairs(Dataset):
    """(2, 3, h, w) normalised image and mirror image at each scale, and the size of the image."""

    def __init__(self, paths: list[Path], scales: Iterable[float]) -> None:
        self.paths, self.scales = paths, tuple(scales)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[list[Tensor], tuple[int, int]]:
        image = read_image(self.paths[index])
        size = image.shape[:2]
        return [_pair(resize_image(image, scaled_size(size, scale))) for scale in self.scales], size


def _pair(image: np.ndarray) -> Tensor:
    normalized = normalize(torch.from_numpy(image.transpose(2, 0, 1).copy()))
    return torch.stack([normalized, normalized.flip(-1)])


def _one_by_one(dataset: Dataset, args: Config) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=args.num_workers)


def _training_batches(dataset: Dataset, args: Config, *, batch_size: int, n_batches: int, seed: tuple) -> DataLoader:
    return training_loader(
        dataset,
        batch_size=batch_size,
        n_batches=n_batches,
        seed=seed,
        num_workers=args.num_workers,
        device=resolve_device(args.device),
    )


def _devkit_and_ids(args: Config) -> tuple[Devkit, list[str]]:
    devkit = open_devkit(args.voc12_root, args.class_list)
    return devkit, read_list(devkit, args.train_list, flag="train_list")


# Pixel pairs and the random walk


@lru_cache(maxsize=8)
def _offset_paths(radius: int) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """[((dy, dx), cells of the path)] of half a disc, in ascending path length, then (dy, dx)."""
    paths = []
    for dy in range(radius):
        for dx in range(-radius + 1, radius):
            if (dy > 0 or dx > 0) and dy**2 + dx**2 < radius**2:
                box = ((y, x) for y in range(dy + 1) for x in range(min(0, dx), max(0, dx) + 1))
                paths.append(((dy, dx), [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]))
    return sorted(paths, key=lambda item: (len(item[1]), item[0]))


@lru_cache(maxsize=8)
def path_indices(radius: int, h: int, w: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Flat indices of all pairs of an h x w grid whose partners lie inside it.

    Returns:
        sources (S,), paths of equal length together (offsets, length, S), destinations (offsets, S).
    """
    rows, columns = np.mgrid[0 : h - radius + 1, radius - 1 : w - radius + 1]
    sources = (rows * w + columns).ravel()
    by_length: dict[int, list[np.ndarray]] = {}
    for _, cells in _offset_paths(radius):
        by_length.setdefault(len(cells), []).append(np.stack([sources + y * w + x for y, x in cells]))
    destinations = np.stack([sources + dy * w + dx for (dy, dx), _ in _offset_paths(radius)])
    return sources, [np.stack(paths) for paths in by_length.values()], destinations


def pair_labels(label: np.ndarray, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """(h, w) labels, 255 unsure -> bg-positive, fg-positive and negative pairs, (offsets, sources) float32 each."""
    sources, _, destinations = path_indices(radius, *label.shape)
    flat = label.ravel()
    start, end = flat[sources][None], flat[destinations]
    valid = (start != UNSURE) & (end != UNSURE)
    same = (start == end) & valid
    kinds = (same & (start == 0), same & (start != 0), valid & (start != end))
    return tuple(torch.from_numpy(kind.astype(np.float32)) for kind in kinds)


@lru_cache(maxsize=8)
def _indices_on(device: torch.device, radius: int, h: int, w: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """`path_indices` as tensors, kept on the device as the original keeps them in buffers."""
    sources, paths, destinations = path_indices(radius, h, w)
    on_device = [torch.from_numpy(indices).to(device) for indices in (sources, *paths, destinations)]
    return on_device[0], on_device[1:-1], on_device[-1]


@lru_cache(maxsize=8)
def _offsets_on(device: torch.device, radius: int) -> Tensor:
    """(1, 2, offsets, 1), kept on the device likewise."""
    offsets = [offset for offset, _ in _offset_paths(radius)]
    return torch.tensor(offsets, device=device, dtype=torch.float32).T[None, :, :, None]


def pair_affinities(edge: Tensor, radius: int) -> Tensor:
    """(B, h, w) edges -> (B, offsets, sources): the cells of all paths gathered, 1 - the maximum along each.

    By the operations of the original, since their speed differs from that of other ways to write the same.
    """
    _, paths, _ = _indices_on(edge.device, radius, *edge.shape[1:])
    flat, affinities = edge.flatten(1), []
    for group in paths:
        cells = torch.index_select(flat, dim=-1, index=group.view(-1)).view(len(flat), *group.shape)
        affinities.append(torch.squeeze(1 - F.max_pool2d(cells, (group.shape[1], 1)), dim=2))
    return torch.cat(affinities, dim=1)


def pair_displacements(displacement: Tensor, radius: int) -> Tensor:
    """(B, 2, h, w) -> (B, 2, offsets, sources): that of the source less that of the destination, by crops."""
    margin = radius - 1
    height, width = displacement.shape[2] - margin, displacement.shape[3] - 2 * margin
    source = displacement[:, :, :height, margin : margin + width]
    destinations = [
        displacement[:, :, dy : dy + height, margin + dx : margin + dx + width] for (dy, dx), _ in _offset_paths(radius)
    ]
    return (source[:, :, None] - torch.stack(destinations, dim=2)).flatten(3)


@torch.no_grad()
def random_walk(cam: Tensor, edge: Tensor, beta: float = 10, exp_times: int = 8) -> Tensor:
    """(C, h, w) maps, (1, h, w) edges -> maps * (1 - edge) times the dense T squared `exp_times` times."""
    (h, w), margin = edge.shape[1:], WALK_RADIUS - 1
    # Edges of ones around the map make every cell a source; pairs that leave the map are dropped
    padded = F.pad(edge, (margin, margin, 0, margin), value=1.0)
    affinity = pair_affinities(padded, WALK_RADIUS)[0]
    _, _, destinations = _indices_on(edge.device, WALK_RADIUS, *padded.shape[1:])
    rows, columns = destinations // padded.shape[2], destinations % padded.shape[2] - margin
    inside = (rows < h) & (columns >= 0) & (columns < w)
    start = torch.arange(h * w, device=edge.device).expand_as(inside)[inside]
    end = (rows * w + columns)[inside]

    n = h * w
    matrix = torch.zeros(n, n, device=edge.device)
    matrix[start, end] = matrix[end, start] = affinity[inside]
    matrix.fill_diagonal_(1)
    matrix = matrix**beta
    matrix = matrix / matrix.sum(dim=0, keepdim=True)
    with _float32_products():
        for _ in range(exp_times):
            matrix = matrix @ matrix
        return ((cam * (1 - edge)).flatten(1) @ matrix).view(cam.shape)


@contextmanager
def _float32_products() -> Iterator[None]:
    """Matrix products in full float32, as torch does them unless told otherwise: the walk needs it."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)


# W-OoD training


def wood_loss(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    ood_images: Tensor,
    prototypes: Tensor,
    *,
    ood_coeff: float,
    distance_lambda: float,
    topk: float,
    step: float,
    ignore_class: int,
) -> Tensor:
    """The loss of a step, by three passes: OoD images, in-distribution images, perturbed OoD images."""
    pixels = ood_images.clone().requires_grad_(True)
    model(pixels)[0].max(dim=1).values.sum().backward()
    gradient = pixels.grad
    model.zero_grad()
    perturbed = ood_images + step * gradient / (gradient.abs().max() + TINY)
    perturbed = torch.clamp(perturbed, min=ood_images.min(), max=ood_images.max())

    logits, features = model(images)
    distance = (features[:, None] - prototypes.nan_to_num()).norm(dim=2) * ~prototypes.isnan().any(dim=1)
    to_class, to_ood = distance[:, : labels.shape[1]], distance[:, labels.shape[1] :]
    known = to_ood.detach()[to_ood > 0].sort(descending=True).values
    rank = int((1 - topk) * len(known))
    threshold = known[rank - 1] if rank > 0 else 0
    pull = (to_class * labels).mean() * labels.shape[1] / to_ood.shape[1]
    push = (to_ood * (to_ood < threshold)).mean()

    ood_logits, _ = model(perturbed)
    per_image = F.multilabel_soft_margin_loss(ood_logits, torch.zeros_like(ood_logits), reduction="none")
    ood = (per_image * (ood_logits.argmax(dim=1) != ignore_class)).sum() / len(per_image)
    return F.binary_cross_entropy_with_logits(logits, labels) + distance_lambda * (pull - push) + ood_coeff * ood


@torch.no_grad()
def _features(model: Classifier, paths: list[Path], args: Config, *, long_side: int | None = None) -> Tensor:
    device = resolve_device(args.device)
    loader = _one_by_one(WholeImages(paths, long_side=long_side), args)
    return torch.cat([model(normalize(image[None]).to(device))[1] for image in loader])


def train_cam(args: Config) -> None:
    """W-OoD training; writes the last weights."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    ood_paths = read_ood_paths(args.ood_root, args.ood_list)
    model = Classifier(len(devkit.classes))
    load_state(model, args.cam_init_weights_name)
    model.to(device)
    _, centres = kmeans(_features(model, ood_paths, args, long_side=args.ood_long_side), args.cluster_K)
    of_classes = class_prototypes(
        [_features(model, train.paths, args)], torch.from_numpy(np.asarray(train.labels)).to(device)
    )
    prototypes = torch.cat([of_classes, centres])

    n_steps = len(train) // args.cam_batch_size * args.cam_num_epoches

    def batches(paths: list[Path], labels: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> DataLoader:
        crops = ClassificationCrops(
            paths, labels, resize_long=args.cam_resize_long, crop_size=args.cam_crop_size, seed=seed
        )
        return _training_batches(_OnCpu(crops), args, batch_size=batch_size, n_batches=n_steps, seed=seed)

    no_labels = np.zeros((len(ood_paths), len(devkit.classes)), dtype=np.float32)
    trained = (model.backbone.layer3, model.backbone.layer4)
    optimizer = two_rate_optimizer(
        [parameter for stage in trained for parameter in stage.parameters()],
        list(model.classifier.parameters()),
        lr=args.cam_learning_rate,
        weight_decay=args.cam_weight_decay,
        max_step=n_steps,
    )
    for batch, ood_batch in zip(
        batches(train.paths, train.labels, args.cam_batch_size, (args.seed, Stream.CAM)),
        batches(ood_paths, no_labels, args.ood_batch_size, (args.seed, Stream.CAM_OOD)),
        strict=True,
    ):
        loss = wood_loss(
            model,
            batch["image"].to(device, non_blocking=True),
            batch["label"].to(device, non_blocking=True),
            ood_batch["image"].to(device, non_blocking=True),
            prototypes,
            ood_coeff=args.ood_coeff,
            distance_lambda=args.distance_lambda,
            topk=args.ood_dist_topk,
            step=args.ood_adv_step,
            ignore_class=devkit.classes.index(args.ood_ignore_class),
        )
        model.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # logged
    torch.save(_without_counters(model), args.cam_weights_name)


def _without_counters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}


# IRN


def irn_loss(edge: Tensor, displacement: Tensor, bg_pos: Tensor, fg_pos: Tensor, neg: Tensor) -> Tensor:
    """Edge logits (B, 1, h, w), displacement (B, 2, h, w), dense pair labels (B, offsets, sources) -> the loss."""
    affinity = pair_affinities(torch.sigmoid(edge[:, 0]), TRAIN_RADIUS)
    attract, repel = -torch.log(affinity + EPSILON), -torch.log(1 + EPSILON - affinity)
    pos = (bg_pos * attract).sum() / (bg_pos.sum() + EPSILON) / 2 + (fg_pos * attract).sum() / (
        fg_pos.sum() + EPSILON
    ) / 2
    negative = (neg * repel).sum() / (neg.sum() + EPSILON)

    difference = pair_displacements(displacement, TRAIN_RADIUS)
    fg, bg = (difference - _offsets_on(edge.device, TRAIN_RADIUS)).abs(), difference.abs()
    dp_fg = (fg * fg_pos[:, None]).sum() / (2 * fg_pos.sum() + EPSILON)
    dp_bg = (bg * bg_pos[:, None]).sum() / (2 * bg_pos.sum() + EPSILON)
    return (pos + negative) / 2 + (dp_fg + dp_bg) / 2


def train_irn(args: Config) -> None:
    """IRN training up to the last update; writes the trained heads, the mean displacement is left out."""
    device = resolve_device(args.device)
    devkit, ids = _devkit_and_ids(args)
    # The heads start as ours do: from the random numbers that building our network draws
    start = build_network(args.irn_network, "AffinityDisplacementLoss").state_dict()
    model = AffinityNetwork()
    model.load_state_dict(_heads(start), strict=False)
    load_state(model.backbone, args.imagenet_weights)
    model.to(device)
    n_steps = len(ids) // args.irn_batch_size * args.irn_num_epoches
    crops = AffinityCrops(
        [devkit.image_path(image_id) for image_id in ids],
        [Path(args.ir_label_out_dir) / f"{image_id}.png" for image_id in ids],
        crop_size=args.irn_crop_size,
        seed=(args.seed, Stream.IRN),
    )
    heads = list(model.named_parameters())
    optimizer = two_rate_optimizer(
        [parameter for name, parameter in heads if name.startswith("fc_edge")],
        [parameter for name, parameter in heads if name.startswith("fc_dp")],
        lr=args.irn_learning_rate,
        weight_decay=args.irn_weight_decay,
        max_step=n_steps,
    )
    for batch in _training_batches(
        _WithPairLabels(crops), args, batch_size=args.irn_batch_size, n_batches=n_steps, seed=(args.seed, Stream.IRN)
    ):
        labels = [batch[name].to(device, non_blocking=True) for name in ("bg_pos", "fg_pos", "neg")]
        loss = irn_loss(*model(batch["image"].to(device, non_blocking=True)), *labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # logged
    torch.save(_heads(model.state_dict()), args.irn_weights_name)


def _heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(("fc_edge", "fc_dp"))}


# CAMs


def _merged(maps: list[Tensor], size: tuple[int, int], keys: np.ndarray) -> tuple[Tensor, Tensor]:
    """Maps (C, h_s, w_s) of each scale -> cam and high_res of the classes `keys`, all classes resized."""

    def summed(target: tuple[int, int]) -> Tensor:
        resized = [F.interpolate(m[None], target, mode="bilinear", align_corners=False)[0] for m in maps]
        return torch.stack(resized).sum(dim=0)

    strided = summed((math.ceil(size[0] / 4), math.ceil(size[1] / 4)))[keys]
    full = summed((16 * math.ceil(size[0] / 16), 16 * math.ceil(size[1] / 16)))[keys, : size[0], : size[1]]
    return tuple(each / (each.amax(dim=(1, 2), keepdim=True) + EPSILON) for each in (strided, full))


def _cams_of_all(
    args: Config, scales: Iterable[float], out_dir: str, maps_of: Callable[[Classifier, list[Tensor], np.ndarray], list]
) -> None:
    """Write a CAM file of each image, from the maps that `maps_of(model, pair of each scale, keys)` gives."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    images = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    model = Classifier(len(devkit.classes))
    load_state(model, args.cam_weights_name)
    model.to(device)
    loader = _one_by_one(_ScaledPairs(images.paths, scales), args)
    for image_id, label, (pairs, size) in zip(images.ids, images.labels, loader, strict=True):
        keys = np.flatnonzero(label)
        maps = maps_of(model, [pair.to(device, non_blocking=True) for pair in pairs], keys)
        camfile.save(camfile.cam_path(out_dir, image_id), keys, *_merged(maps, size, keys))


def make_cam(args: Config) -> None:
    """CAMs, one image at a time, its mirror pair at each scale."""

    @torch.no_grad()
    def maps_of(model: Classifier, pairs: list[Tensor], keys: np.ndarray) -> list[Tensor]:
        return [model.activation(pair) for pair in pairs]

    _cams_of_all(args, args.cam_scales, args.cam_out_dir, maps_of)


def climb(
    model: Classifier, pair: Tensor, key: int, n_iter: int, *, coefficient: float, step: float, score_threshold: float
) -> Tensor:
    """AdvCAM's accumulated region maps (h, w) of a mirror pair and a class, by two full backward passes an iteration.

    The first gives the Grad-CAM weights, the second the gradient of the pixels; both those of all weights.
    """
    total, first, pixels = 0, None, pair
    for _ in range(n_iter):
        pixels = pixels.detach().requires_grad_(True)
        features = model.features(pixels)
        features.retain_grad()
        maps = F.relu(model.classifier(features))
        maps[:, key].sum().backward(retain_graph=True)
        slope = features.grad
        weights = slope.sum(dim=(2, 3), keepdim=True) / ((slope > 0).sum() + TINY)
        model.zero_grad()
        pixels.grad = None
        activation = F.relu((weights * features).sum(dim=1))
        region = activation[0] + activation[1].flip(-1)
        total = total + region.detach()
        first = region.detach() if first is None else first
        strong = (region / region.max()).detach() > score_threshold
        scores = maps.mean(dim=(2, 3))
        loss = 2 * scores[:, key].sum() - scores.sum() - coefficient * (region - first).abs()[strong].sum()
        loss.backward()
        model.zero_grad()
        with torch.no_grad():
            moved = pixels + step * pixels.grad / (pixels.grad.abs().max() + TINY)
            pixels = moved.clamp(pixels.min(), pixels.max())
    return total


def make_advcam(args: Config) -> None:
    """AdvCAM, one image, scale and class at a time."""

    def maps_of(model: Classifier, pairs: list[Tensor], keys: np.ndarray) -> list[Tensor]:
        of_scales = []
        for scale, pair in zip(ADVCAM_SCALES, pairs, strict=True):
            maps = None
            for key in keys:
                of_class = climb(
                    model,
                    pair,
                    int(key),
                    advcam_iterations(scale, args.adv_iter),
                    coefficient=args.AD_coeff,
                    step=args.AD_stepsize,
                    score_threshold=args.score_th,
                )
                if maps is None:
                    maps = of_class.new_zeros(model.classifier.out_channels, *of_class.shape)
                maps[key] = of_class * (2 if args.adv_iter > 10 else 1)
            of_scales.append(maps)
        return of_scales

    _cams_of_all(args, ADVCAM_SCALES, args.advcam_out_dir, maps_of)


def advcam_iterations(scale: float, n_iter: int) -> int:
    """Iterations at a scale, of which 0.5 has fewer."""
    if scale != 0.5 or n_iter < 6:
        return n_iter
    return n_iter // 2 if n_iter > 10 else 5


def eval_cam(args: Config) -> None:
    """mIoU of the CAMs at each background score, a pass over all files for each; writes the scores."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids, n_labels = read_split(devkit, args.chainer_eval_set), len(devkit.classes) + 1
    mious = {}
    for threshold in args.cam_eval_sweep:
        confusion = np.zeros((n_labels, n_labels), dtype=np.int64)
        for image_id in ids:
            keys, _, high_res = camfile.load(camfile.cam_path(args.cam_out_dir, image_id))
            predicted = _label_map(high_res, keys, threshold)
            truth = read_label(devkit.mask_path(image_id))
            counted = truth != UNSURE
            cells = n_labels * truth[counted].astype(np.int64) + predicted[counted]
            confusion += np.bincount(cells, minlength=n_labels**2).reshape(n_labels, n_labels)
        hits = np.diag(confusion)
        with np.errstate(invalid="ignore"):
            mious[f"{threshold:g}"] = float(np.nanmean(hits / (confusion.sum(0) + confusion.sum(1) - hits)))
    write_json(Path(args.result_dir) / "scores" / "eval_cam.json", {"miou_by_threshold": mious})


def _label_map(maps: np.ndarray, keys: np.ndarray, background: float) -> np.ndarray:
    padded = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=background)
    return np.pad(keys + 1, (1, 0))[padded.argmax(axis=0)]


# Labels and masks


def _crf_of_labels(image: np.ndarray, ranks: np.ndarray, n_labels: int) -> np.ndarray:
    from pydensecrf.utils import unary_from_labels

    unary = unary_from_labels(ranks, n_labels, gt_prob=0.7, zero_unsure=False)
    return _crf(image, unary, gaussian=(3, 3), bilateral=(50, 5, 10))


def _crf(
    image: np.ndarray, unary: np.ndarray, *, gaussian: tuple[int, int], bilateral: tuple[int, int, int]
) -> np.ndarray:
    """`gaussian`: sxy and weight; `bilateral`: sxy, srgb and weight."""
    from pydensecrf import densecrf

    crf = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(unary))
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=np.array(image, order="C"), compat=bilateral[2])
    return np.argmax(crf.inference(10), axis=0).reshape(image.shape[:2])


def cam_to_ir_label(args: Config) -> None:
    """Confident labels in this one process: two independent runs of dense CRF an image."""
    devkit, ids = _devkit_and_ids(args)
    for image_id in ids:
        image = read_image(devkit.image_path(image_id))
        keys, _, high_res = camfile.load(camfile.cam_path(args.cam_out_dir, image_id))
        foreground, background = (
            _crf_of_labels(image, _label_map(high_res, np.arange(len(keys)), score), len(keys) + 1)
            for score in (args.conf_fg_thres, args.conf_bg_thres)
        )
        label = np.pad(keys + 1, (1, 0))[foreground]
        label[(foreground == 0) & (background > 0)] = UNSURE
        write_label(Path(args.ir_label_out_dir) / f"{image_id}.png", label.astype(np.uint8))


@torch.no_grad()
def make_sem_seg_labels(args: Config) -> None:
    """Masks by the dense random walk."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.infer_list, flag="infer_list")
    model = AffinityNetwork()
    load_state(model, args.irn_weights_name)
    model.to(device)
    loader = _one_by_one(_ScaledPairs([devkit.image_path(image_id) for image_id in ids], (1.0,)), args)
    for image_id, ((pair,), (height, width)) in zip(ids, loader, strict=True):
        keys, cam, _ = camfile.load(camfile.cam_path(args.cam_out_dir, image_id))
        logits, _ = model(F.pad(pair.to(device), (0, max(0, 512 - width), 0, max(0, 512 - height))))
        logits = logits[..., : cam.shape[1], : cam.shape[2]]
        edge = torch.sigmoid(logits[0] / 2 + logits[1].flip(-1) / 2)
        walked = random_walk(cam.to(device) ** args.np_power, edge, args.beta, args.exp_times)
        scores = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)
        scores = scores[0, :, :height, :width]
        padded = F.pad(scores / scores.max(), (0, 0, 0, 0, 1, 0), value=args.sem_seg_bg_thres)
        mask = np.pad(keys + 1, (1, 0))[padded.argmax(dim=0).cpu().numpy()].astype(np.uint8)
        write_label(Path(args.sem_seg_out_dir) / f"{image_id}.png", mask)
        write_palette(Path(args.sem_seg_out_dir) / "palette" / f"{image_id}.png", mask, voc_palette())


# DeepLab


def deeplab_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Balanced cross entropies of the maps of all scales and of their maximum; (B, H, W) uint8 labels are resized."""
    total = 0
    for each in [*logits, _largest(logits)]:
        size = tuple(each.shape[2:])
        reduced = np.stack([resize_label(label, size) for label in labels.cpu().numpy()]).astype(np.int64)
        targets = torch.from_numpy(reduced).to(each.device)
        of_pixels = F.cross_entropy(each, targets, ignore_index=UNSURE, reduction="none")
        for kind in (targets == 0, (targets != 0) & (targets != UNSURE)):
            if kind.any():
                total = total + of_pixels[kind].mean() / 2
    return total


def train_deeplab(args: Config) -> None:
    """DeepLab on the masks; writes the last weights."""
    device = resolve_device(args.device)
    devkit, ids = _devkit_and_ids(args)
    model = DeepLab(len(devkit.classes) + 1)
    load_state(model, args.deeplab_init_weights)
    model.to(device)
    crops = SegmentationCrops(
        [devkit.image_path(image_id) for image_id in ids],
        [Path(args.deeplab_mask_dir) / f"{image_id}.png" for image_id in ids],
        scales=args.deeplab_scales,
        crop_size=args.deeplab_crop_size,
        seed=(args.seed, Stream.DEEPLAB),
    )
    branches = model.aspp.children
    optimizer = deeplab_optimizer(
        [parameter for parameter in model.backbone.parameters() if parameter.requires_grad],
        [branch.weight for branch in branches()],
        [branch.bias for branch in branches()],
        lr=args.deeplab_learning_rate,
        weight_decay=args.deeplab_weight_decay,
        max_step=args.deeplab_max_iter,
    )
    n_batches = args.deeplab_max_iter * args.deeplab_iter_size
    batches = iter(
        _training_batches(
            _OnCpu(crops),
            args,
            batch_size=args.deeplab_batch_size,
            n_batches=n_batches,
            seed=(args.seed, Stream.DEEPLAB),
        )
    )
    for _ in range(args.deeplab_max_iter):
        model.zero_grad()
        for batch in [next(batches) for _ in range(args.deeplab_iter_size)]:
            loss = deeplab_loss(model(batch["image"].to(device, non_blocking=True)), batch["label"])
            (loss / args.deeplab_iter_size).backward()
            loss.item()  # logged
        optimizer.step()
    torch.save(_without_counters(model), args.deeplab_weights_name)


@torch.no_grad()
def eval_deeplab(args: Config) -> None:
    """DeepLab's masks without and with dense CRF, one image after the other in this one process; no score."""
    from pydensecrf.utils import unary_from_softmax

    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set)
    model = DeepLab(len(devkit.classes) + 1)
    load_state(model, args.deeplab_weights_name)
    model.to(device)
    loader = _one_by_one(WholeImages([devkit.image_path(image_id) for image_id in ids]), args)
    for image_id, image in zip(ids, loader, strict=True):
        logits = _largest(model(normalize(image[None]).to(device)))
        logits = F.interpolate(logits, image.shape[1:], mode="bilinear", align_corners=False)
        probabilities = logits[0].softmax(dim=0).cpu().numpy()
        write_palette(
            Path(args.deeplab_out_dir) / f"{image_id}.png", probabilities.argmax(0).astype(np.uint8), voc_palette()
        )
        unary = np.ascontiguousarray(unary_from_softmax(probabilities))
        refined = _crf(image.numpy().transpose(1, 2, 0), unary, gaussian=(1, 3), bilateral=(67, 3, 4))
        write_palette(Path(args.deeplab_crf_out_dir) / f"{image_id}.png", refined.astype(np.uint8), voc_palette())
