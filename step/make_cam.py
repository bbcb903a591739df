"""Multi-scale class activation maps of the images of `train_list`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misc.cam import merge_scales, scale_maps_of_items
from misc.files.atomic import background_writer
from misc.files.images import image_sizes
from misc.run.config import Config
from misc.run.device import Arriving, resolve_device
from misc.run.distributed import on_first_process
from misc.run.fitting import Fitting
from misc.run.loaders import GroupedLoader, size_groups
from misc.run.plan import Planned
from misc.run.progress import progress
from misc.run.step import Inputs, OnGpu, Step
from misc.summary import tell_maps
from net.build import inputs_of_network, load_network, require_network
from voc12.cams import CAM_READS, CamFiles
from voc12.dataloader import ScaledImages
from voc12.devkit import Devkit, open_devkit, require_classes_of_network

CAMS = CamFiles("cam_out_dir")
STEP = Step(
    name="make_cam",
    description="make multi-scale CAMs",
    reads=(*CAM_READS, "cam_network", "cam_weights_name"),
    writes=("cam_out_dir",),
    flags=("cam_scales", "precision", "cam_files"),
    shared=True,
    bytes_per_pixel=CAMS.bytes_per_pixel,
    memory_flags=("num_workers", "make_cam_batch_size", "cam_scales"),
    on_gpu=OnGpu(
        "cam_network",
        lambda args, batches: [batches.photographs(args.make_cam_batch_size) * max(args.cam_scales) ** 2],
    ),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit, images = open_devkit(args.voc12_root, args.class_list), CAMS.images(args)
    require_classes_of_network(devkit, args.cam_weights_name, planned=planned)
    require_network(args.cam_network, "CAM", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    if args.known_labels is None:
        require_network(args.cam_network, "Net", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    return CAMS.check(args, images)


def _of_all_files(args: Config, devkit: Devkit) -> Inputs:
    """What every CAM depends on."""
    return inputs_of_network(args, "cam_network", "cam_weights_name", devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    return {**_of_all_files(args, devkit), **CAMS.inputs(args)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return CAMS.outputs(args)


def _cams(model: nn.Module, device: torch.device, group: Sequence[dict[str, Any]]) -> list[tuple[Arriving, Arriving]]:
    """cam and high_res, on their way, of images of equal size, items of `ScaledImages`, in one batch."""
    all_maps = scale_maps_of_items(model, group, device=device)
    merged = (merge_scales(maps, item["size"], item["keys"]) for item, maps in zip(group, all_maps, strict=True))
    return [(Arriving(cam), Arriving(high_res)) for cam, high_res in merged]


def run(args: Config) -> None:
    """Write `cam_out_dir`/ID.npy for each image, from `cam_weights_name`; finished files are kept."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    loaded = {"weights": args.cam_weights_name, "device": device, "n_classes": len(devkit.classes)}
    load = partial(load_network, args.cam_network, **loaded)
    pending = CAMS.pending(args, STEP, _of_all_files(args, devkit), partial(load, "Net"), device=device)
    images = pending.images
    model = load("CAM")

    scaled = ScaledImages(images.paths, images.labels, args.cam_scales)
    groups = size_groups(image_sizes(images.paths), args.make_cam_batch_size)
    loader = GroupedLoader(scaled, groups, num_workers=args.num_workers, device=device)
    fitting = Fitting(args.make_cam_batch_size, parts="images")
    with progress(total=len(images), desc="make_cam", unit="image") as bar, background_writer() as submit:
        for group in loader:
            example = images.paths[group[0]["index"]]
            cams = fitting.each(partial(_cams, model, device), group, size=group[0]["size"], example=example)
            for item, cam in zip(group, cams, strict=True):
                pending.write(submit, item, *cam)
            bar.update(len(group))
    on_first_process(tell_maps, STEP.name, outputs(args), devkit.classes)
