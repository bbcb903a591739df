"""Step 0: train the in-distribution classifier from ImageNet weights (the authors offer it as a download)."""

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.imutils import normalize
from misc.run.config import Config
from misc.run.device import resolve_device, resolve_precision
from misc.run.distributed import is_first_process, mean_over_processes, sum_over_processes
from misc.run.loaders import Stream, batch_loader, training_loader
from misc.run.plan import Planned, require_writable_file
from misc.run.provenance import data_digest
from misc.run.step import Step
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import two_rate_optimizer
from net.build import build_network
from net.weights import load_imagenet, save_weights, weights_digest
from voc12.dataloader import ClassificationCrops, TopLeftCrops
from voc12.devkit import open_devkit
from voc12.images import read_labelled_images, require_batch
from voc12.labels import require_labelled
from voc12.verify import require_readable

STEP = Step(
    name="train_classifier",
    description="train the in-distribution classifier from ImageNet weights",
    reads=("voc12_root", "class_list", "label_file", "train_list", "val_list", "imagenet_weights"),
    writes=("cam_init_weights_name",),
    flags=(
        *("seed", "cam_network", "cam_crop_size", "cam_resize_long", "cam_batch_size", "cam_num_epoches"),
        *("cam_learning_rate", "cam_weight_decay"),
    ),
    shared=True,
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    val = read_labelled_images(devkit, args.val_list, flag="val_list", label_file=args.label_file)
    require_labelled(train.ids, train.labels, flag="train_list")
    require_batch(train, args.cam_batch_size, list_flag="train_list", batch_flag="cam_batch_size")
    network = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    load_imagenet(network.backbone, args.imagenet_weights)
    require_writable_file(args.cam_init_weights_name, flag="cam_init_weights_name")
    require_readable([*train.paths, *val.paths], num_workers=args.num_workers)
    return {args.cam_init_weights_name: frozenset()}


def classification_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(B, 3, H, W) normalised images, (B, C) labels 0/1 -> (B,) multi-label soft margin losses."""
    logits, _ = model(images)
    return F.multilabel_soft_margin_loss(logits, labels, reduction="none")


def run(args: Config) -> None:
    """Train on `train_list`, report the loss on `val_list` each epoch, write `cam_init_weights_name`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    val = read_labelled_images(devkit, args.val_list, flag="val_list", label_file=args.label_file)

    model = build_network(args.cam_network, "Net", n_classes=len(devkit.classes))
    load_imagenet(model.backbone, args.imagenet_weights)
    model.to(device).train()

    steps_per_epoch = len(train) // args.cam_batch_size
    n_steps = steps_per_epoch * args.cam_num_epoches
    seed = (args.seed, Stream.CLASSIFIER)
    crops = ClassificationCrops(
        train.paths,
        train.labels,
        resize_long=args.cam_resize_long,
        crop_size=args.cam_crop_size,
        seed=seed,
    )
    batches_from = partial(
        training_loader,
        crops,
        batch_size=args.cam_batch_size,
        n_batches=n_steps,
        seed=seed,
        num_workers=args.num_workers,
        device=device,
    )
    val_batches = batch_loader(
        TopLeftCrops(val.paths, val.labels, crop_size=args.cam_crop_size),
        batch_size=args.cam_batch_size,
        num_workers=args.num_workers,
        device=device,
    )

    def losses_of_images(batch: dict) -> Tensor:
        images = normalize(batch["image"].to(device, non_blocking=True), batch["box"])
        return classification_losses(model, images, batch["label"].to(device, non_blocking=True))

    def loss_of(batch: dict) -> dict[str, Tensor]:
        return {"total": mean_over_processes(losses_of_images(batch))}

    @torch.no_grad()
    def validate(step: int) -> dict[str, float]:
        if step % steps_per_epoch:
            return {}
        of_share = sum(float(losses_of_images(batch).sum()) for batch in val_batches)
        loss = float(sum_over_processes(torch.tensor(of_share, dtype=torch.float64))) / len(val)
        log.info("epoch %d: validation loss %.4f", step // steps_per_epoch, loss)
        return {"validation_loss": loss}

    optimizer = two_rate_optimizer(
        *model.trainable_parameters(),
        lr=args.cam_learning_rate,
        weight_decay=args.cam_weight_decay,
        max_step=n_steps,
    )
    state = TrainingState(
        args.result_dir,
        "train_classifier",
        parts={"model": model, "optimizer": optimizer},
        made_with={
            "start": weights_digest(model),
            "data": data_digest(train.paths, train.labels),
            "precision": resolve_precision(args.precision, device),
            **args.only(STEP.flags),
        },
        minutes=args.state_minutes,
        resume=args.resume,
    )
    fit(
        batches_from,
        loss_of,
        optimizer,
        n_steps=n_steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=args.cam_batch_size,
        name="train_classifier",
        result_dir=args.result_dir,
        rate_flag="cam_learning_rate",
        state=state,
        after_step=validate,
    )
    if is_first_process():
        save_weights(model, args.cam_init_weights_name)
        state.remove()
        log.info("wrote %s", args.cam_init_weights_name)
