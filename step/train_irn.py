"""Step 5: train the boundary and displacement network on the confident labels (IRN section 4)."""

import logging
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from misc.imutils import normalize
from misc.run.config import Config
from misc.run.device import resolve_device, resolve_precision
from misc.run.distributed import is_first_process, sum_over_processes
from misc.run.loaders import Stream, batch_loader, training_loader
from misc.run.plan import Planned, require_outputs, require_writable_file
from misc.run.progress import progress
from misc.run.provenance import data_digest
from misc.run.step import Step
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import two_rate_optimizer
from net.build import build_network, require_same_weights
from net.weights import load_imagenet, save_weights, weights_digest
from voc12.dataloader import AffinityCrops, TopLeftCrops
from voc12.devkit import open_devkit
from voc12.images import require_batch
from voc12.lists import read_list
from voc12.verify import require_readable

STEP = Step(
    name="train_irn",
    description="train the boundary and displacement network",
    reads=("voc12_root", "class_list", "train_list", "infer_list", "ir_label_out_dir", "imagenet_weights"),
    writes=("irn_weights_name",),
    flags=(
        *("seed", "irn_network", "irn_crop_size", "irn_batch_size", "irn_num_epoches", "irn_learning_rate"),
        *("irn_weight_decay",),
    ),
    shared=True,
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.train_list, flag="train_list")
    infer_ids = read_list(devkit, args.infer_list, flag="infer_list")
    require_batch(ids, args.irn_batch_size, list_flag="train_list", batch_flag="irn_batch_size")
    require_outputs(
        args.ir_label_out_dir,
        ids,
        ".png",
        flag="ir_label_out_dir",
        list_flag="train_list",
        made_by="cam_to_ir_label",
        planned=planned,
    )
    network = build_network(args.irn_network, "AffinityDisplacementLoss")
    require_same_weights(args.irn_network, network, "EdgeDisplacement")
    load_imagenet(network.backbone, args.imagenet_weights)
    require_writable_file(args.irn_weights_name, flag="irn_weights_name")
    require_readable([devkit.image_path(image_id) for image_id in [*ids, *infer_ids]], num_workers=args.num_workers)
    return {args.irn_weights_name: frozenset()}


def run(args: Config) -> None:
    """Train on `train_list` and `ir_label_out_dir`, from ImageNet weights; write `irn_weights_name`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.train_list, flag="train_list")
    infer_ids = read_list(devkit, args.infer_list, flag="infer_list")

    model = build_network(args.irn_network, "AffinityDisplacementLoss")
    load_imagenet(model.backbone, args.imagenet_weights)
    model.to(device).train()

    steps_per_epoch = len(ids) // args.irn_batch_size
    n_steps = steps_per_epoch * args.irn_num_epoches
    image_paths = [devkit.image_path(image_id) for image_id in ids]
    label_paths = [Path(args.ir_label_out_dir) / f"{image_id}.png" for image_id in ids]
    seed = (args.seed, Stream.IRN)
    crops = AffinityCrops(image_paths, label_paths, crop_size=args.irn_crop_size, seed=seed)
    batches_from = partial(
        training_loader,
        crops,
        batch_size=args.irn_batch_size,
        n_batches=n_steps,
        seed=seed,
        num_workers=args.num_workers,
        device=device,
    )

    def loss_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = normalize(batch["image"].to(device, non_blocking=True), batch["box"])
        return model(images, batch["label"].to(device, non_blocking=True))

    optimizer = two_rate_optimizer(
        *model.trainable_parameters(),
        lr=args.irn_learning_rate,
        weight_decay=args.irn_weight_decay,
        max_step=n_steps,
    )
    state = TrainingState(
        args.result_dir,
        "train_irn",
        parts={"model": model, "optimizer": optimizer},
        made_with={
            "start": weights_digest(model),
            "data": data_digest([*image_paths, *label_paths]),
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
        batch_size=args.irn_batch_size,
        name="train_irn",
        result_dir=args.result_dir,
        rate_flag="irn_learning_rate",
        state=state,
    )
    infer_crops = TopLeftCrops([devkit.image_path(image_id) for image_id in infer_ids], crop_size=args.irn_crop_size)
    infer_batches = batch_loader(
        infer_crops, batch_size=args.irn_batch_size, num_workers=args.num_workers, device=device
    )
    _store_mean_displacement(model, infer_batches, device=device)
    if is_first_process():
        save_weights(model, args.irn_weights_name)
        state.remove()
        log.info("wrote %s", args.irn_weights_name)


@torch.no_grad()
def _store_mean_displacement(model: nn.Module, batches: DataLoader, *, device: torch.device) -> None:
    """Make the mean displacement over the data the network's mean shift: the mean per batch, then over batches.

    The vector is zero during this pass, and padded cells count, both as in the original. `batches`: of several
    processes each one's share.
    """
    model.eval()
    mean_shift = model.mean_shift.running_mean.zero_()
    sum_of_means, n_batches = torch.zeros_like(mean_shift, dtype=torch.float64), 0
    for batch in progress(batches, desc="mean displacement", unit="batch"):
        images = normalize(batch["image"].to(device, non_blocking=True), batch["box"])
        _, displacement = model.edge_and_displacement(images)
        sum_of_means += displacement.mean(dim=(0, 2, 3))
        n_batches += 1
    sums = sum_over_processes(torch.cat([sum_of_means, sum_of_means.new_tensor([n_batches])]))
    mean_shift.copy_(sums[:-1] / sums[-1])
