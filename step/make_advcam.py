"""Multi-scale CAMs of the images of `train_list` by anti-adversarial climbing (AdvCAM)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from misc.advcam import SCALES, advcam_batch, default_batch_size
from misc.files.atomic import background_writer
from misc.files.images import image_sizes
from misc.imutils import mirror_pair, normalize
from misc.run.config import Config
from misc.run.device import Arriving, resolve_device, to_device
from misc.run.distributed import on_first_process
from misc.run.fitting import Fitting
from misc.run.loaders import GroupedLoader, places, size_groups
from misc.run.plan import Planned
from misc.run.progress import progress
from misc.run.step import Batches, Inputs, OnGpu, Step
from misc.summary import tell_maps
from net.build import ADVCAM_ATTRIBUTES, inputs_of_network, load_network, require_cell_classifier, require_network
from voc12.cams import CAM_READS, CamFiles
from voc12.dataloader import ScaledImages
from voc12.devkit import Devkit, open_devkit, require_classes_of_network


def _pixels(args: Config, batches: Batches) -> list[float]:
    """The pixels of a batch: of each pair the image and its mirror image, at the largest scale."""
    n_pairs = args.advcam_batch_size or default_batch_size(resolve_device(args.device))
    return [2 * batches.photographs(n_pairs) * max(SCALES) ** 2]


CAMS = CamFiles("advcam_out_dir")
STEP = Step(
    name="make_advcam",
    description="make multi-scale CAMs by anti-adversarial climbing (AdvCAM)",
    reads=(*CAM_READS, "cam_network", "cam_weights_name"),
    writes=("advcam_out_dir",),
    flags=("adv_iter", "AD_coeff", "AD_stepsize", "score_th", "precision", "cam_files"),
    shared=True,
    bytes_per_pixel=CAMS.bytes_per_pixel,
    memory_flags=("num_workers", "advcam_batch_size"),
    on_gpu=OnGpu("cam_network", _pixels),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit, images = open_devkit(args.voc12_root, args.class_list), CAMS.images(args)
    require_classes_of_network(devkit, args.cam_weights_name, planned=planned)
    network = require_network(
        args.cam_network,
        "CAM",
        args.cam_weights_name,
        planned=planned,
        needs=ADVCAM_ATTRIBUTES,
        n_classes=len(devkit.classes),
    )
    require_cell_classifier(args.cam_network, network)
    if args.known_labels is None:
        require_network(args.cam_network, "Net", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    return CAMS.check(args, images)


def _of_all_files(args: Config, devkit: Devkit) -> Inputs:
    """What every AdvCAM depends on."""
    return inputs_of_network(args, "cam_network", "cam_weights_name", devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    return {**_of_all_files(args, devkit), **CAMS.inputs(args)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return CAMS.outputs(args)


def _pairs(images: list[Tensor], device: torch.device) -> dict[float, Tensor]:
    """The image at each scale, (3, h, w) uint8 -> {scale: (2, 3, h, w)} normalised, with its mirror image."""
    return {s: mirror_pair(normalize(to_device(image, device))) for s, image in zip(SCALES, images, strict=True)}


def _advcams(
    model: nn.Module, batch: list[dict[str, Any]], climbing: Mapping[str, Any], together: int
) -> list[tuple[Tensor, Tensor]]:
    """cam and high_res of images of equal size, items of `ScaledImages`, in batches of `together` pairs.

    `climbing`: how `advcam_batch` climbs, by its keywords.
    """
    device = model.classifier.weight.device
    return advcam_batch(
        model,
        [_pairs(item["images"], device) for item in batch],
        batch[0]["size"],
        [item["keys"] for item in batch],
        batch_size=together,
        **climbing,
    )


def run(args: Config) -> None:
    """Write `advcam_out_dir`/ID.npy for each image, from `cam_weights_name`.

    Files of an earlier run with the same weights, settings, image and label are kept; `advcam_out_dir`/made_with.jsonl
    tells them.
    """
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    loaded = {"weights": args.cam_weights_name, "device": device, "n_classes": len(devkit.classes)}
    load = partial(load_network, args.cam_network, **loaded)
    pending = CAMS.pending(args, STEP, _of_all_files(args, devkit), partial(load, "Net"), device=device)
    images = pending.images
    model = load("CAM")
    model.requires_grad_(False)

    max_pairs = args.advcam_batch_size or default_batch_size(device)
    sizes = image_sizes(images.paths)
    n_places = [int(n) * places(size) for n, size in zip(images.labels.counts(), sizes, strict=True)]
    groups = size_groups(sizes, max_pairs, n_parts=n_places)
    fitting = Fitting(max_pairs, parts="(image, class) pairs")
    scaled = ScaledImages(images.paths, images.labels, SCALES)
    loader = GroupedLoader(scaled, groups, num_workers=args.num_workers, device=device)
    climbing = {
        "n_iter": args.adv_iter,
        "coefficient": args.AD_coeff,
        "step": args.AD_stepsize,
        "score_threshold": args.score_th,
    }
    with progress(total=len(images), desc="make_advcam", unit="image") as bar, background_writer() as submit:
        for batch in loader:
            n_pairs, of_batch = sum(len(item["keys"]) for item in batch), partial(_advcams, model, batch, climbing)
            example = images.paths[batch[0]["index"]]
            advcams = fitting.run(of_batch, n_pairs, size=batch[0]["size"], example=example)
            for item, (cam, high_res) in zip(batch, advcams, strict=True):
                pending.write(submit, item, Arriving(cam), Arriving(high_res))
            bar.update(len(batch))
    on_first_process(tell_maps, STEP.name, outputs(args), devkit.classes)
