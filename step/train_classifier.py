"""Train the in-distribution classifier from ImageNet weights (the authors offer it as a download)."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from misc.classifier import classification_losses
from misc.files.checkpointfile import files_of_network
from misc.run.config import Config
from misc.run.device import to_device
from misc.run.distributed import mean_over_processes, sum_over_processes
from misc.run.loaders import Stream, batch_loader
from misc.run.plan import Planned, require_writable_file
from misc.run.step import Files, Inputs, OnGpu, Step
from misc.run.training import Training, fit
from misc.torchutils import two_rate_optimizer
from net.build import build_network, input_of_start, require_answer, source_file
from net.weights import load_imagenet, save_weights
from voc12.classes import save_named
from voc12.dataloader import ClassificationCrops, TopLeftCrops, images_of
from voc12.devkit import open_devkit
from voc12.images import LabelledImages, read_labelled_images, require_batch
from voc12.labels import require_labelled, tell_odd_classes
from voc12.verify import require_readable

STEP = Step(
    name="train_classifier",
    description="train the in-distribution classifier from ImageNet weights",
    reads=("voc12_root", "class_list", "label_file", "train_list", "val_list", "imagenet_weights"),
    writes=("cam_init_weights_name",),
    flags=(
        *("seed", "cam_network", "cam_crop_size", "cam_resize_long", "cam_batch_size", "cam_num_epoches"),
        *("cam_learning_rate", "cam_weight_decay", "precision"),
    ),
    shared=True,
    memory_flags=("num_workers", "cam_batch_size", "cam_crop_size"),
    on_gpu=OnGpu("cam_network", lambda args, batches: [batches.crops(args.cam_batch_size, args.cam_crop_size)]),
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    val = read_labelled_images(devkit, args.val_list, flag="val_list", label_file=args.label_file)
    require_labelled(devkit, args.label_file, train.ids, train.labels, flag="train_list")
    tell_odd_classes(train.labels, devkit.classes, flag="train_list")
    require_batch(train, args.cam_batch_size, list_flag="train_list", batch_flag="cam_batch_size")
    network = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    require_answer(args.cam_network, network, "Net", n_classes=len(devkit.classes))
    load_imagenet(network.backbone, args.imagenet_weights)
    require_writable_file(args.cam_init_weights_name, flag="cam_init_weights_name")
    require_readable(train.paths, val.paths, num_workers=args.num_workers)
    return {args.cam_init_weights_name: frozenset()}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    val = read_labelled_images(devkit, args.val_list, flag="val_list", label_file=args.label_file)
    return {
        "cam_network": source_file(args.cam_network),
        "imagenet_weights": input_of_start(args.imagenet_weights, args.cam_network, "Net"),
        "class_list": devkit.classes,
        "train_list": Files(train.paths),
        "val_list": Files(val.paths),
        "label_file": train.labels.tobytes() + val.labels.tobytes(),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return files_of_network(args.cam_init_weights_name)


def run(args: Config) -> None:
    """Train on `train_list`, report the loss on `val_list` each epoch.

    Writes `cam_init_weights_name`, and its class names beside it.
    """
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    val = read_labelled_images(devkit, args.val_list, flag="val_list", label_file=args.label_file)
    training = Training.of_epochs(
        STEP, args, n_images=len(train), batch_size=args.cam_batch_size, n_epochs=args.cam_num_epoches
    )
    n_steps, steps_per_epoch = training.n_steps, training.steps_per_epoch
    device = training.device

    model = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    load_imagenet(model.backbone, args.imagenet_weights)
    model.to(device).train()

    crops = ClassificationCrops(
        train.paths,
        train.labels,
        resize_long=args.cam_resize_long,
        crop_size=args.cam_crop_size,
        seed=(args.seed, Stream.CLASSIFIER),
    )

    def losses_of_images(batch: dict) -> Tensor:
        labels = to_device(batch["label"], device)
        return classification_losses(model, images_of(batch, device), labels)

    optimizer = two_rate_optimizer(
        *model.trainable_parameters(), lr=args.cam_learning_rate, weight_decay=args.cam_weight_decay, max_step=n_steps
    )
    state = training.state({"model": model, "optimizer": optimizer}, inputs(args))
    fit(
        training.batches_from(crops, args.cam_batch_size),
        lambda batch: {"total": mean_over_processes(losses_of_images(batch))},
        optimizer,
        batch_size=args.cam_batch_size,
        rate_flag="cam_learning_rate",
        state=state,
        after_step=_validation(args, model, val, losses_of_images, steps_per_epoch=steps_per_epoch, device=device),
        follows=range(steps_per_epoch, n_steps + 1, steps_per_epoch),
        **training.options,
    )
    weights = args.cam_init_weights_name
    save = partial(save_named, weights, devkit.classes, save=partial(save_weights, model))
    state.finish(save, *files_of_network(weights))


def _validation(
    args: Config,
    model: nn.Module,
    val: LabelledImages,
    losses_of_images: Callable[[dict], Tensor],
    *,
    steps_per_epoch: int,
    device: torch.device,
) -> Callable[[int], dict[str, float]]:
    """What is called after each epoch and gives the mean loss of the validation images."""
    batches = batch_loader(
        TopLeftCrops(val.paths, val.labels, crop_size=args.cam_crop_size),
        batch_size=args.cam_batch_size,
        num_workers=args.num_workers,
        device=device,
    )

    @torch.no_grad()
    def validate(step: int) -> dict[str, float]:
        model.eval()
        of_share = sum(float(losses_of_images(batch).sum()) for batch in batches)
        model.train()
        loss = float(sum_over_processes(torch.tensor(of_share, dtype=torch.float64))) / len(val)
        log.info("epoch %d: validation loss %.4f", step // steps_per_epoch, loss)
        return {"validation_loss": loss}

    return validate
