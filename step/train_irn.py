"""Train the boundary and displacement network on the confident labels (IRN section 4)."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from misc.errors import InputError
from misc.files.images import label_paths
from misc.run.config import Config
from misc.run.device import to_device
from misc.run.distributed import sum_over_processes, wait_for_all
from misc.run.loaders import Stream, batch_loader
from misc.run.plan import Planned, require_outputs, require_writable_file
from misc.run.progress import progress
from misc.run.step import Files, Inputs, OnGpu, Step
from misc.run.training import Training, fit
from misc.torchutils import two_rate_optimizer
from net.build import build_network, input_of_start, require_answer, require_same_weights, source_file
from net.weights import load_imagenet, save_weights
from voc12.dataloader import AffinityCrops, TopLeftCrops, images_of
from voc12.images import ids_to_segment, require_batch
from voc12.verify import require_fitting_masks, require_readable

STEP = Step(
    name="train_irn",
    description="train the boundary and displacement network",
    reads=(
        *("voc12_root", "class_list", "label_file", "labels_from", "train_list", "infer_list"),
        *("ir_label_out_dir", "imagenet_weights"),
    ),
    writes=("irn_weights_name",),
    flags=(
        *("seed", "irn_network", "irn_crop_size", "irn_batch_size", "irn_num_epoches", "irn_learning_rate"),
        *("irn_weight_decay", "precision"),
    ),
    shared=True,
    memory_flags=("num_workers", "irn_batch_size", "irn_crop_size"),
    on_gpu=OnGpu("irn_network", lambda args, batches: [batches.crops(args.irn_batch_size, args.irn_crop_size)]),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit, ids = ids_to_segment(args, "train_list")
    _, infer_ids = ids_to_segment(args, "infer_list")
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
    if args.ir_label_out_dir not in planned:
        require_fitting_masks(
            label_paths(args.ir_label_out_dir, ids),
            devkit.image_paths(ids),
            n_classes=len(devkit.classes),
            num_workers=args.num_workers,
            advice="lower --conf_fg_thres and let cam_to_ir_label make them again",
        )
    network = build_network(args.irn_network, "AffinityDisplacementLoss")
    require_answer(args.irn_network, network, "AffinityDisplacementLoss")
    require_same_weights(args.irn_network, network, "EdgeDisplacement")
    load_imagenet(network.backbone, args.imagenet_weights)
    require_writable_file(args.irn_weights_name, flag="irn_weights_name")
    require_readable(devkit.image_paths(ids), devkit.image_paths(infer_ids), num_workers=args.num_workers)
    return {args.irn_weights_name: frozenset()}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit, ids = ids_to_segment(args, "train_list")
    _, infer_ids = ids_to_segment(args, "infer_list")
    return {
        "irn_network": source_file(args.irn_network),
        "imagenet_weights": input_of_start(args.imagenet_weights, args.irn_network, "AffinityDisplacementLoss"),
        "train_list": Files(devkit.image_paths(ids)),
        "ir_label_out_dir": Files(label_paths(args.ir_label_out_dir, ids)),
        "infer_list": Files(devkit.image_paths(infer_ids)),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [args.irn_weights_name]


def run(args: Config) -> None:
    """Train on `train_list` and `ir_label_out_dir`, from ImageNet weights; write `irn_weights_name`."""
    devkit, ids = ids_to_segment(args, "train_list")
    _, infer_ids = ids_to_segment(args, "infer_list")
    training = Training.of_epochs(
        STEP, args, n_images=len(ids), batch_size=args.irn_batch_size, n_epochs=args.irn_num_epoches
    )
    device = training.device

    model = build_network(args.irn_network, "AffinityDisplacementLoss")
    load_imagenet(model.backbone, args.imagenet_weights)
    model.to(device).train()

    image_paths = devkit.image_paths(ids)
    labels = label_paths(args.ir_label_out_dir, ids)
    crops = AffinityCrops(image_paths, labels, crop_size=args.irn_crop_size, seed=(args.seed, Stream.IRN))

    def loss_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return model(images_of(batch, device), to_device(batch["label"], device))

    optimizer = two_rate_optimizer(
        *model.trainable_parameters(),
        lr=args.irn_learning_rate,
        weight_decay=args.irn_weight_decay,
        max_step=training.n_steps,
    )
    state = training.state({"model": model, "optimizer": optimizer}, inputs(args))
    fit(
        training.batches_from(crops, args.irn_batch_size),
        loss_of,
        optimizer,
        batch_size=args.irn_batch_size,
        rate_flag="irn_learning_rate",
        state=state,
        **training.options,
    )
    infer_crops = TopLeftCrops(devkit.image_paths(infer_ids), crop_size=args.irn_crop_size)
    infer_batches = batch_loader(
        infer_crops, batch_size=args.irn_batch_size, num_workers=args.num_workers, device=device
    )
    _store_mean_displacement(model, infer_batches, device=device)
    state.finish(partial(save_weights, model, args.irn_weights_name), args.irn_weights_name)


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
        _, displacement = model.edge_and_displacement(images_of(batch, device))
        sum_of_means += displacement.mean(dim=(0, 2, 3))
        n_batches += 1
    wait_for_all()
    sums = sum_over_processes(torch.cat([sum_of_means, sum_of_means.new_tensor([n_batches])]))
    mean_shift.copy_(sums[:-1] / sums[-1])
    if not mean_shift.isfinite().all():
        raise InputError("train_irn: the network's displacements are NaN or infinity; lower --irn_learning_rate.")
