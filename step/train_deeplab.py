"""Train DeepLab-v2 on the masks that the chain made (Chen et al., TPAMI 2017, section 4.1)."""

from functools import partial
from pathlib import Path

from torch import Tensor

from misc.deeplab import deeplab_optimizer, multiscale_losses
from misc.files.checkpointfile import files_of_network
from misc.files.images import label_paths
from misc.run.config import Config, deeplab_list_flag
from misc.run.device import to_device
from misc.run.loaders import Stream
from misc.run.plan import Planned, require_outputs, require_writable_file
from misc.run.step import Files, Inputs, OnGpu, Step
from misc.run.training import Training, fit
from net.build import build_network, input_of_start, require_answer, source_file
from net.deeplab import MultiScale
from net.weights import save_weights
from voc12.classes import names_with_background, save_named
from voc12.dataloader import SegmentationCrops
from voc12.devkit import Devkit, open_devkit
from voc12.images import ids_to_segment, require_batch
from voc12.lists import read_list
from voc12.verify import require_fitting_masks, require_readable

STEP = Step(
    name="train_deeplab",
    description="train DeepLab-v2 on the masks",
    reads=(
        *(
            "voc12_root",
            "class_list",
            "label_file",
            "labels_from",
            "infer_list",
            "deeplab_train_list",
            "sem_seg_out_dir",
        ),
        *("deeplab_mask_dir", "deeplab_init_weights"),
    ),
    writes=("deeplab_weights_name",),
    flags=(
        *("seed", "deeplab_network", "deeplab_crop_size", "deeplab_scales", "deeplab_batch_size", "deeplab_iter_size"),
        *("deeplab_loss", "deeplab_max_iter", "deeplab_learning_rate", "deeplab_weight_decay", "precision"),
    ),
    shared=True,
    memory_flags=("num_workers", "deeplab_batch_size", "deeplab_crop_size"),
    on_gpu=OnGpu(
        "deeplab_network", lambda args, batches: [batches.crops(args.deeplab_batch_size, args.deeplab_crop_size)]
    ),
)
OTHER_HELP = {
    "plain": "pass --deeplab_loss balanced",
    "balanced": "start from other weights (--deeplab_init_weights); --deeplab_loss is balanced already",
}
"""What helps beside a lower learning rate where a loss stops being finite."""


def _mask_folder(args: Config) -> tuple[str, str]:
    """The folder of the training masks, and the flag that names it."""
    if args.deeplab_mask_dir:
        return args.deeplab_mask_dir, "deeplab_mask_dir"
    return args.sem_seg_out_dir, "sem_seg_out_dir"


def _training_ids(args: Config, devkit: Devkit) -> tuple[list[str], str]:
    """The ids of the training images, and the flag that names their list."""
    flag = deeplab_list_flag(vars(args))
    if args.deeplab_mask_dir:  # somebody's own masks, which images without a class may have, too
        return read_list(devkit, getattr(args, flag), flag=flag), flag
    _, ids = ids_to_segment(args, flag)
    return ids, flag


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids, list_flag = _training_ids(args, devkit)
    require_batch(ids, args.deeplab_batch_size, list_flag=list_flag, batch_flag="deeplab_batch_size")
    folder, flag = _mask_folder(args)
    require_outputs(folder, ids, ".png", flag=flag, list_flag=list_flag, made_by="make_sem_seg", planned=planned)
    if folder not in planned:
        require_fitting_masks(
            label_paths(folder, ids),
            devkit.image_paths(ids),
            n_classes=len(devkit.classes),
            num_workers=args.num_workers,
        )
    n_classes = len(names_with_background(devkit.classes))
    network = build_network(args.deeplab_network, "DeepLab", n_classes=n_classes)
    require_answer(args.deeplab_network, network, "DeepLab", n_classes=n_classes)
    network.load_start(args.deeplab_init_weights)
    require_writable_file(args.deeplab_weights_name, flag="deeplab_weights_name")
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    return {args.deeplab_weights_name: frozenset()}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids, list_flag = _training_ids(args, devkit)
    folder, folder_flag = _mask_folder(args)
    return {
        "deeplab_network": source_file(args.deeplab_network),
        "deeplab_init_weights": input_of_start(args.deeplab_init_weights, args.deeplab_network, "DeepLab"),
        "class_list": devkit.classes,
        list_flag: Files(devkit.image_paths(ids)),
        folder_flag: Files(label_paths(folder, ids)),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return files_of_network(args.deeplab_weights_name)


def run(args: Config) -> None:
    """Train on the masks, from `deeplab_init_weights`; write `deeplab_weights_name`, and its class names beside it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids, _ = _training_ids(args, devkit)
    folder, _ = _mask_folder(args)
    training = Training(
        step=STEP,
        args=args,
        n_steps=args.deeplab_max_iter,
        steps_per_epoch=(len(ids) // args.deeplab_batch_size) / args.deeplab_iter_size,
        batches_per_step=args.deeplab_iter_size,
    )
    device = training.device

    base = build_network(args.deeplab_network, "DeepLab", n_classes=len(names_with_background(devkit.classes)))
    base.load_start(args.deeplab_init_weights)
    model = MultiScale(base).to(device).train()

    image_paths = devkit.image_paths(ids)
    mask_paths = label_paths(folder, ids)
    seed, scales = (args.seed, Stream.DEEPLAB), args.deeplab_scales
    crops = SegmentationCrops(image_paths, mask_paths, scales=scales, crop_size=args.deeplab_crop_size, seed=seed)

    def loss_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = base.prepare(to_device(batch["image"], device), batch["box"])
        labels = to_device(batch["label"], device)
        return multiscale_losses(model.scale_logits(images), labels, loss=args.deeplab_loss)

    optimizer = deeplab_optimizer(
        *base.trainable_parameters(),
        lr=args.deeplab_learning_rate,
        weight_decay=args.deeplab_weight_decay,
        max_step=args.deeplab_max_iter,
    )
    state = training.state({"model": base, "optimizer": optimizer}, inputs(args))
    fit(
        training.batches_from(crops, args.deeplab_batch_size),
        loss_of,
        optimizer,
        batch_size=args.deeplab_batch_size,
        rate_flag="deeplab_learning_rate",
        other_help=OTHER_HELP[args.deeplab_loss],
        state=state,
        **training.options,
    )
    weights = args.deeplab_weights_name
    save = partial(save_named, weights, devkit.classes, save=partial(save_weights, base))
    state.finish(save, *files_of_network(weights))
