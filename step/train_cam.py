"""Step 1: train the classifier with the W-OoD loss (W-OoD section 3)."""

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from misc.cam import merge_high_res, scale_maps
from misc.errors import InputError
from misc.imutils import normalize
from misc.metrics import ThresholdSweep
from misc.ood import class_prototypes, kmeans, wood_losses
from misc.run.config import DEFAULT_IGNORED_CLASS, Config
from misc.run.device import resolve_device, resolve_precision
from misc.run.distributed import gather_shares, is_first_process, n_processes, share
from misc.run.loaders import Stream, sequential_loader, training_loader
from misc.run.plan import Planned, require_writable_file
from misc.run.progress import progress
from misc.run.provenance import data_digest
from misc.run.step import Step
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import two_rate_optimizer
from net.build import build_network, require_same_weights
from net.weights import load_weights, save_weights, weights_digest
from voc12.dataloader import ClassificationCrops, ScaledImages, WholeImages
from voc12.devkit import Devkit, open_devkit
from voc12.images import LabelledImages, read_labelled_images, require_batch
from voc12.labels import require_labelled
from voc12.lists import read_ood_paths
from voc12.verify import missing_masks, require_masks, require_readable

SELECTION_SPLIT = "train"
SELECTION_THRESHOLDS = (0.06, 0.08, 0.10, 0.12)
SELECTION_STARTS = 0.75
"""Part of the last epoch after which checkpoints are compared."""

STEP = Step(
    name="train_cam",
    description="train the classifier with the W-OoD loss",
    reads=("voc12_root", "class_list", "label_file", "train_list", "ood_root", "ood_list", "cam_init_weights_name"),
    writes=("cam_weights_name",),
    flags=(
        *("seed", "cam_network", "cam_crop_size", "cam_resize_long", "cam_batch_size", "cam_num_epoches"),
        *("cam_learning_rate", "cam_weight_decay", "cam_select", "cam_select_interval", "cam_scales"),
        *("ood_coeff", "ood_batch_size", "cluster_K", "distance_lambda", "ood_dist_topk", "ood_adv_step"),
        *("ood_long_side", "ood_ignore_class"),
    ),
    shared=True,
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    require_labelled(train.ids, train.labels, flag="train_list")
    require_batch(train, args.cam_batch_size, list_flag="train_list", batch_flag="cam_batch_size")
    ood_paths = _ood_paths(args)
    if args.ood_coeff > 0:
        require_batch(ood_paths, args.ood_batch_size, list_flag="ood_list", batch_flag="ood_batch_size")
    if args.distance_lambda > 0:
        if len(ood_paths) < args.cluster_K:
            raise InputError(
                f"--cluster_K {args.cluster_K} is more than the {len(ood_paths)} images of --ood_list; lower it."
            )
        if len(ood_paths) < n_processes():
            raise InputError(
                f"--ood_list has {len(ood_paths)} images, fewer than the {n_processes()} processes; start fewer."
            )
    _ignored_class(devkit, args.ood_ignore_class)
    network = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    require_same_weights(args.cam_network, network, "CAM", n_classes=len(devkit.classes))
    if args.cam_init_weights_name not in planned:
        load_weights(network, args.cam_init_weights_name)
    require_writable_file(args.cam_weights_name, flag="cam_weights_name")
    require_readable([*train.paths, *ood_paths], num_workers=args.num_workers)
    selection = _selection_images(args, devkit)
    if selection is not None:
        require_readable(selection.paths, num_workers=args.num_workers)
        require_masks(devkit, selection.ids, num_workers=args.num_workers)
    return {args.cam_weights_name: frozenset()}


def run(args: Config) -> None:
    """Train on `train_list` and the OoD images, from `cam_init_weights_name`; write `cam_weights_name`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    n_classes = len(devkit.classes)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    ood_paths = _ood_paths(args)
    ignore_class = _ignored_class(devkit, args.ood_ignore_class)

    model = build_network(args.cam_network, "Net", n_classes=n_classes)
    load_weights(model, args.cam_init_weights_name)
    model.to(device).eval()
    prototypes = None
    if args.distance_lambda > 0:
        prototypes = _prototypes(
            model,
            train,
            ood_paths,
            long_side=args.ood_long_side,
            n_clusters=args.cluster_K,
            num_workers=args.num_workers,
            device=device,
        )

    steps_per_epoch = len(train) // args.cam_batch_size
    n_steps = steps_per_epoch * args.cam_num_epoches

    def loader_of(
        paths: Sequence[Path], labels: np.ndarray, batch_size: int, seed: tuple[int, ...]
    ) -> Callable[[int], Iterable]:
        crops = ClassificationCrops(
            paths, labels, resize_long=args.cam_resize_long, crop_size=args.cam_crop_size, seed=seed
        )
        return partial(
            training_loader,
            crops,
            batch_size=batch_size,
            n_batches=n_steps,
            seed=seed,
            num_workers=args.num_workers,
            device=device,
        )

    train_from = loader_of(train.paths, train.labels, args.cam_batch_size, (args.seed, Stream.CAM))

    def ood_from(first: int) -> Iterable:
        return itertools.repeat(None)

    if args.ood_coeff > 0:
        no_labels = np.zeros((len(ood_paths), n_classes), dtype=np.float32)
        ood_from = loader_of(ood_paths, no_labels, args.ood_batch_size, (args.seed, Stream.CAM_OOD))

    def images_of(batch: dict[str, Tensor]) -> Tensor:
        return normalize(batch["image"].to(device, non_blocking=True), batch["box"])

    def loss_of(pair: tuple[dict, dict | None]) -> dict[str, Tensor]:
        batch, ood_batch = pair
        return wood_losses(
            model,
            images_of(batch),
            batch["label"].to(device, non_blocking=True),
            ood_images=None if ood_batch is None else images_of(ood_batch),
            prototypes=prototypes,
            ood_coeff=args.ood_coeff,
            distance_lambda=args.distance_lambda,
            topk=args.ood_dist_topk,
            step=args.ood_adv_step,
            ignore_class=ignore_class,
        )

    model.train()
    optimizer = two_rate_optimizer(
        *model.trainable_parameters(),
        lr=args.cam_learning_rate,
        weight_decay=args.cam_weight_decay,
        max_step=n_steps,
    )
    selection_images = _selection_images(args, devkit)
    selection = None
    if selection_images is not None:
        selection_images = selection_images.shared()
        cam_network = build_network(args.cam_network, "CAM", n_classes=n_classes).to(device).eval()
        scaled = ScaledImages(
            selection_images.paths,
            selection_images.labels,
            args.cam_scales,
            mask_paths=[devkit.mask_path(image_id) for image_id in selection_images.ids],
            keep=True,
        )
        selection = CheckpointSelection(
            model,
            cam_network,
            sequential_loader(scaled, num_workers=args.num_workers, device=device, keep_workers=True),
            n_classes=n_classes,
            due=selection_steps(steps_per_epoch, n_steps, interval=args.cam_select_interval),
        )

    parts = {"model": model, "optimizer": optimizer} | ({} if selection is None else {"selection": selection})
    state = TrainingState(
        args.result_dir,
        "train_cam",
        parts=parts,
        made_with={
            "start": weights_digest(model),
            "data": data_digest([*train.paths, *ood_paths], train.labels),
            "precision": resolve_precision(args.precision, device),
            **args.only(STEP.flags),
        },
        minutes=args.state_minutes,
        resume=args.resume,
    )
    fit(
        lambda first: zip(train_from(first), ood_from(first), strict=False),
        loss_of,
        optimizer,
        n_steps=n_steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=args.cam_batch_size + (args.ood_batch_size if args.ood_coeff > 0 else 0),
        name="train_cam",
        result_dir=args.result_dir,
        rate_flag="cam_learning_rate",
        state=state,
        after_step=selection,
    )
    if selection is not None:
        model.load_state_dict(selection.best_state)
        log.info("kept the weights of step %d of %d: CAM mIoU %.4f", selection.best_step, n_steps, selection.best_miou)
    if is_first_process():
        save_weights(model, args.cam_weights_name)
        state.remove()
        log.info("wrote %s", args.cam_weights_name)


def _ood_paths(args: Config) -> list[Path]:
    """The OoD images, none where no term of the loss uses them."""
    if args.ood_coeff == 0 and args.distance_lambda == 0:
        return []
    return read_ood_paths(args.ood_root, args.ood_list)


def _ignored_class(devkit: Devkit, name: str) -> int | None:
    """Index of the class whose look-alikes the OoD loss leaves out; None for none."""
    if name in devkit.classes:
        return devkit.classes.index(name)
    if name in ("none", DEFAULT_IGNORED_CLASS):
        return None  # the default is a class of VOC; other data sets need not have it
    raise InputError(f"--ood_ignore_class {name} is no class of the data set; expected one of its classes, or none.")


def _selection_images(args: Config, devkit: Devkit) -> LabelledImages | None:
    """The images whose CAMs choose the checkpoint; None if the last one is kept."""
    if args.cam_select == "last":
        return None
    split = devkit.split_path(SELECTION_SPLIT)
    if not split.is_file():
        log.info("notice: no %s, so train_cam keeps its last weights (as with --cam_select last)", split)
        return None
    images = read_labelled_images(devkit, split, flag="voc12_root", label_file=args.label_file)
    if missing := missing_masks(devkit, images.ids):
        log.info(
            "notice: %d of %d ground-truth masks are missing, so train_cam keeps its last weights "
            "(as with --cam_select last)",
            len(missing),
            len(images),
        )
        return None
    return images


@torch.no_grad()
def _features_of(model: nn.Module, images: WholeImages, *, num_workers: int, device: torch.device, name: str) -> Tensor:
    """(n, D) pooled features of whole images, one image at a time since their sizes differ."""
    loader = sequential_loader(images, num_workers=num_workers, device=device)
    bar = progress(loader, desc=f"features of {name}", unit="image")
    return torch.cat([model(normalize(image.to(device, non_blocking=True))[None])[1] for image in bar])


def _prototypes(
    model: nn.Module,
    train: LabelledImages,
    ood_paths: Sequence[Path],
    *,
    long_side: int,
    n_clusters: int,
    num_workers: int,
    device: torch.device,
) -> Tensor:
    """(C + K, D): the mean feature of each class and of each cluster of OoD images, from the starting weights."""
    options = {"num_workers": num_workers, "device": device}
    images, ood_images = WholeImages(share(train.paths)), WholeImages(share(ood_paths), long_side=long_side)
    features = gather_shares(_features_of(model, images, name="training images", **options))
    ood_features = gather_shares(_features_of(model, ood_images, name="OoD images", **options))
    _, clusters = kmeans(ood_features, n_clusters)
    return torch.cat([class_prototypes(features, torch.from_numpy(train.labels).to(device)), clusters])


def selection_steps(steps_per_epoch: int, n_steps: int, *, interval: int) -> frozenset[int]:
    """The steps after which checkpoints are compared: every `interval` in the last quarter epoch, and the last one."""
    last_epoch = n_steps - steps_per_epoch
    late = range(1, steps_per_epoch + 1)
    return frozenset(
        {last_epoch + step for step in late if step > SELECTION_STARTS * steps_per_epoch and step % interval == 0}
        | {n_steps}
    )


class CheckpointSelection:
    """Keeps the weights whose CAMs have the best mIoU on *ground-truth masks* (quirk of the original, kept).

    The mIoU is the best over four background scores. (The original never clears its lists between them, so that each
    score contains the earlier ones: fixed.)
    """

    def __init__(
        self, model: nn.Module, cam_network: nn.Module, loader: DataLoader, *, n_classes: int, due: frozenset[int]
    ) -> None:
        """`loader` yields items of `ScaledImages` with masks, of several processes each one's share; `due` are the
        steps at which to look.
        """
        self._n_classes = n_classes
        self._model, self._cam_network, self._loader, self._due = model, cam_network, loader, due
        self.best_miou, self.best_step = -math.inf, 0
        self.best_state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {name: getattr(self, name) for name in ("best_miou", "best_step", "best_state")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an interrupted run has found."""
        for name, value in state.items():
            setattr(self, name, value)

    def __call__(self, step: int) -> dict[str, float]:
        """Compare the weights after `step` with the best so far, where that is due."""
        if step not in self._due:
            return {}
        self._cam_network.load_state_dict(self._model.state_dict())
        device = next(self._cam_network.parameters()).device
        sweep = ThresholdSweep(SELECTION_THRESHOLDS, self._n_classes + 1)
        for item in progress(self._loader, desc=f"CAM mIoU at step {step}", unit="image", leave=False):
            images = [image.to(device, non_blocking=True) for image in item["images"]]
            high_res = merge_high_res(scale_maps(self._cam_network, images), item["size"], item["keys"])
            sweep.add(high_res, item["keys"], item["mask"])
        sweep.sum_over_processes()
        threshold, scored = sweep.best()
        log.info("step %d: CAM mIoU %.4f at background score %g", step, scored["miou"], threshold)
        if not self.best_state or scored["miou"] > self.best_miou:  # masks without any pixel that counts: mIoU NaN
            self.best_miou, self.best_step = scored["miou"], step
            self.best_state = copy.deepcopy(self._model.state_dict())
        return {"cam_miou": scored["miou"]}
