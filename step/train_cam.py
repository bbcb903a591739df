"""Train the classifier with the W-OoD loss (W-OoD section 3)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from misc.errors import InputError
from misc.files.checkpointfile import checkpoint_file, files_of_network
from misc.files.images import image_sizes
from misc.files.paths import Paths
from misc.imutils import normalize, resize_image
from misc.ood import class_prototypes, kmeans, wood_losses
from misc.report.pictures import heat_overlay
from misc.run.board import board
from misc.run.config import DEFAULT_IGNORED_CLASS, Config
from misc.run.device import to_device
from misc.run.distributed import gather_shares, n_processes, share
from misc.run.loaders import GroupedLoader, Stream, sequential_loader, size_groups
from misc.run.notices import notice
from misc.run.plan import Planned, require_writable_file
from misc.run.progress import progress
from misc.run.step import Batches, Files, Inputs, OnGpu, Step
from misc.run.training import KeptTensor, Training, fit
from misc.selection import CheckpointSelection, selection_steps
from misc.torchutils import two_rate_optimizer
from net.build import build_network, require_answer, require_same_weights, source_file
from net.weights import load_weights, save_weights
from voc12.classes import save_named
from voc12.dataloader import ClassificationCrops, ScaledImages, WholeImages, images_of
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.images import LabelledImages, read_labelled_images, require_batch
from voc12.labels import Labels, require_labelled, tell_odd_classes
from voc12.lists import read_ood_paths
from voc12.verify import missing_masks, require_masks, require_no_training_images, require_readable

SELECTION_SPLIT = "train"
FEATURES_AT_ONCE = 1024
"""Images whose features are held together, of which a GPU tells once whether all are finite."""


def _pixels(args: Config, batches: Batches) -> list[int]:
    """The pixels of a training step: those of the training crops, and those of the OoD crops."""
    ood_batch_size = args.ood_batch_size if args.ood_coeff > 0 else 0
    return [batches.crops(n, args.cam_crop_size) for n in (args.cam_batch_size, ood_batch_size)]


STEP = Step(
    name="train_cam",
    description="train the classifier with the W-OoD loss",
    reads=("voc12_root", "class_list", "label_file", "train_list", "ood_root", "ood_list", "cam_init_weights_name"),
    writes=("cam_weights_name",),
    flags=(
        *("seed", "cam_network", "cam_crop_size", "cam_resize_long", "cam_batch_size", "cam_num_epoches"),
        *("cam_learning_rate", "cam_weight_decay", "cam_select", "cam_select_interval", "cam_scales"),
        *("ood_coeff", "ood_batch_size", "cluster_K", "distance_lambda", "ood_dist_topk", "ood_adv_step"),
        *("ood_long_side", "ood_ignore_class", "precision"),
    ),
    shared=True,
    memory_flags=("num_workers", "cam_batch_size", "ood_batch_size", "cam_crop_size", "ood_long_side"),
    on_gpu=OnGpu("cam_network", _pixels),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    require_labelled(devkit, args.label_file, train.ids, train.labels, flag="train_list")
    tell_odd_classes(train.labels, devkit.classes, flag="train_list")
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
    require_answer(args.cam_network, network, "Net", n_classes=len(devkit.classes))
    require_same_weights(args.cam_network, network, "CAM", n_classes=len(devkit.classes))
    require_classes_of_network(devkit, args.cam_init_weights_name, planned=planned)
    if args.cam_init_weights_name not in planned:
        load_weights(network, args.cam_init_weights_name)
    require_writable_file(args.cam_weights_name, flag="cam_weights_name")
    require_readable(train.paths, ood_paths, num_workers=args.num_workers)
    with_class = [train.ids[number] for number in np.flatnonzero(train.labels.counts())]
    require_no_training_images(ood_paths, devkit, with_class, list_flag="ood_list", train_flag="train_list")
    selection = _selection_images(args, devkit)
    if selection is not None:
        require_readable(selection.paths, num_workers=args.num_workers)
        require_masks(devkit, selection.ids, num_workers=args.num_workers)
        _tell_long_selection(args, len(train), len(selection))
    return {args.cam_weights_name: frozenset()}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    selection = _selection_images(args, devkit)
    looked_at = [] if selection is None else [*selection.paths, *devkit.mask_paths(selection.ids)]
    return {
        "cam_network": source_file(args.cam_network),
        "cam_init_weights_name": Files([checkpoint_file(args.cam_init_weights_name)]),
        "class_list": devkit.classes,
        "train_list": Files(train.paths),
        "label_file": train.labels.tobytes() + (b"" if selection is None else selection.labels.tobytes()),
        "ood_list": Files(_ood_paths(args)),
        "voc12_root": Files(looked_at),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return files_of_network(args.cam_weights_name)


def run(args: Config) -> None:
    """Train on `train_list` and the OoD images, from `cam_init_weights_name`.

    Writes `cam_weights_name`, and its class names beside it.
    """
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    ood_paths, ignore_class = _ood_paths(args), _ignored_class(devkit, args.ood_ignore_class)
    training = _training(args, len(train))
    device = training.device

    model = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    load_weights(model, args.cam_init_weights_name)
    model.to(device)
    prototypes = KeptTensor()

    def loss_of(pair: tuple[dict, dict | None]) -> dict[str, Tensor]:
        batch, ood_batch = pair
        return wood_losses(
            model,
            images_of(batch, device),
            to_device(batch["label"], device),
            ood_images=None if ood_batch is None else images_of(ood_batch, device),
            prototypes=prototypes.value,
            ood_coeff=args.ood_coeff,
            distance_lambda=args.distance_lambda,
            topk=args.ood_dist_topk,
            step=args.ood_adv_step,
            ignore_class=ignore_class,
        )

    optimizer = two_rate_optimizer(
        *model.trainable_parameters(),
        lr=args.cam_learning_rate,
        weight_decay=args.cam_weight_decay,
        max_step=training.n_steps,
    )
    selection = _selection(args, devkit, model, training)
    state = training.state(
        {"model": model, "optimizer": optimizer, "prototypes": prototypes}
        | ({} if selection is None else {"selection": selection}),
        inputs(args),
    )
    if state.restore() == 0 and args.distance_lambda > 0:
        prototypes.value = _prototypes(args, model.eval(), train, ood_paths)
    prototypes.to(device)
    model.train()
    fit(
        _batches_from(args, training, train, ood_paths),
        loss_of,
        optimizer,
        batch_size=args.cam_batch_size + (args.ood_batch_size if args.ood_coeff > 0 else 0),
        rate_flag="cam_learning_rate",
        state=state,
        after_step=selection,
        follows=() if selection is None else selection.due,
        **training.options,
    )
    if selection is not None:
        selection.restore_best()
    weights = args.cam_weights_name
    save = partial(save_named, weights, devkit.classes, save=partial(save_weights, model))
    state.finish(save, *files_of_network(weights))


def _training(args: Config, n_images: int) -> Training:
    return Training.of_epochs(
        STEP, args, n_images=n_images, batch_size=args.cam_batch_size, n_epochs=args.cam_num_epoches
    )


def _batches_from(
    args: Config, training: Training, train: LabelledImages, ood_paths: Paths
) -> Callable[[int], Iterable[tuple[dict, dict | None]]]:
    """Batches of training images, each with one of OoD images, or None where the loss has no term for these."""

    def batches_of(
        paths: Sequence[str], labels: Labels, batch_size: int, stream: Stream
    ) -> Callable[[int], Iterable[dict]]:
        crops = ClassificationCrops(
            paths,
            labels,
            resize_long=args.cam_resize_long,
            crop_size=args.cam_crop_size,
            seed=(args.seed, stream),
        )
        return training.batches_from(crops, batch_size)

    train_from = batches_of(train.paths, train.labels, args.cam_batch_size, Stream.CAM)
    if args.ood_coeff == 0:
        return lambda first: zip(train_from(first), repeat(None), strict=False)
    no_labels = Labels.none(len(ood_paths), train.labels.shape[1])
    ood_from = batches_of(ood_paths, no_labels, args.ood_batch_size, Stream.CAM_OOD)
    return lambda first: zip(train_from(first), ood_from(first), strict=True)


def _ood_paths(args: Config) -> Paths:
    """The OoD images, none where no term of the loss uses them."""
    if args.ood_coeff == 0 and args.distance_lambda == 0:
        return Paths("", [])
    return Paths("", map(str, read_ood_paths(args.ood_root, args.ood_list)))


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
        notice(f"no {split}, so train_cam keeps its last weights (as with --cam_select last)")
        return None
    images = read_labelled_images(devkit, split, flag="voc12_root", label_file=args.label_file)
    if missing := missing_masks(devkit, images.ids):
        notice(
            f"{len(missing)} of {len(images)} ground-truth masks are missing, so train_cam keeps its last weights "
            "(as with --cam_select last)"
        )
        return None
    return images


def _tell_long_selection(args: Config, n_images: int, n_selection: int) -> None:
    """Say so where choosing the weights looks at more images than the training."""
    training = _training(args, n_images)
    n_looks = len(selection_steps(training.steps_per_epoch, training.n_steps, interval=args.cam_select_interval))
    n_trained = training.n_steps * args.cam_batch_size
    if n_looks * n_selection > n_trained:
        notice(
            f"train_cam makes the CAMs of {n_selection:,} images {n_looks} times to choose its weights, which takes "
            f"longer than to train on {n_trained:,}; raise --cam_select_interval, or pass --cam_select last"
        )


def _selection(args: Config, devkit: Devkit, model: nn.Module, training: Training) -> CheckpointSelection | None:
    """What chooses the checkpoint; None if the last one is kept."""
    images = _selection_images(args, devkit)
    if images is None:
        return None
    images = images.shared()
    scaled = ScaledImages(
        images.paths,
        images.labels,
        args.cam_scales,
        mask_paths=devkit.mask_paths(images.ids),
        keep=True,
    )
    device, n_classes = training.device, len(devkit.classes)
    groups = size_groups(image_sizes(images.paths), args.make_cam_batch_size)
    return CheckpointSelection(
        model,
        build_network(args.cam_network, "CAM", n_classes=n_classes).to(device).eval(),
        GroupedLoader(scaled, groups, num_workers=args.num_workers, device=device, keep_workers=True),
        paths=images.paths,
        n_classes=n_classes,
        batch_size=args.make_cam_batch_size,
        due=selection_steps(training.steps_per_epoch, training.n_steps, interval=args.cam_select_interval),
        show=partial(_show_cams, args, images.ids) if args.tensorboard else None,
    )


def _show_cams(args: Config, ids: Sequence[str], step: int, looked_at: Sequence[tuple[dict[str, Any], Tensor]]) -> None:
    """Put the CAMs of a look, over their images, on TensorBoard."""
    with board(args.tensorboard, args.result_dir, STEP.name) as shown:
        for item, high_res in looked_at:
            image = resize_image(item["images"][0].permute(1, 2, 0).cpu().numpy(), item["size"])
            shown.picture(f"CAM/{ids[item['index']]}", step, heat_overlay(image, high_res.cpu().numpy()))


@torch.no_grad()
def _features_of(model: nn.Module, images: WholeImages, *, num_workers: int, name: str) -> Iterator[Tensor]:
    """Pooled features of whole images in parts of (n, D), computed one image at a time since their sizes differ."""
    device = next(model.parameters()).device
    loader = sequential_loader(images, num_workers=num_workers, device=device)
    bar = iter(progress(loader, desc=f"features of {name}", unit="image"))
    first = 0
    while rows := [model(normalize(to_device(image, device))[None])[1] for image in islice(bar, FEATURES_AT_ONCE)]:
        features = torch.cat(rows)
        are_finite = features.isfinite().all(dim=1).tolist()
        if not all(are_finite):
            raise InputError(
                f"--cam_init_weights_name: the network gives NaN or infinity for "
                f"{images.paths[first + are_finite.index(False)]}; name other weights, or train these again with a "
                "lower --cam_learning_rate."
            )
        yield features
        first += len(features)


def _prototypes(args: Config, model: nn.Module, train: LabelledImages, ood_paths: Paths) -> Tensor:
    """(C + K, D): the mean feature of each class and of each cluster of OoD images, from the starting weights."""
    images, ood_images = WholeImages(share(train.paths)), WholeImages(share(ood_paths), long_side=args.ood_long_side)
    features_of = partial(_features_of, model, num_workers=args.num_workers)
    labels = torch.from_numpy(np.asarray(share(train.labels), dtype=bool))
    of_classes = class_prototypes(features_of(images, name="training images"), labels)
    ood_features = gather_shares(torch.cat([*features_of(ood_images, name="OoD images")]))
    _, clusters = kmeans(ood_features, args.cluster_K)
    return torch.cat([of_classes, clusters])
