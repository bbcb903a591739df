"""Step 2: multi-scale class activation maps of the images of `train_list`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misc.cam import batch_scale_maps, merge_scales
from misc.files.atomic import background_writer
from misc.files.images import image_sizes
from misc.run.config import Config
from misc.run.device import Arriving, resolve_device, to_device
from misc.run.distributed import on_first_process
from misc.run.done import finished_files
from misc.run.fitting import Fitting
from misc.run.loaders import GroupedLoader, places, size_groups
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Inputs, OnGpu, Step
from misc.summary import tell_maps
from net.build import inputs_of_network, load_network, require_network
from voc12.cams import PendingCams, cam_bytes_per_pixel, cam_inputs, cam_outputs, labelled_by_classifier
from voc12.dataloader import ScaledImages
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.images import read_images_to_segment
from voc12.verify import require_readable


def _bytes_per_pixel(args: Config) -> dict[str, float]:
    devkit = open_devkit(args.voc12_root, args.class_list)
    labels = {"label_file": args.known_labels, "numbers": args.cam_files}
    return {"cam_out_dir": cam_bytes_per_pixel(devkit, args.train_list, **labels)}


STEP = Step(
    name="make_cam",
    description="make multi-scale CAMs",
    reads=(
        *("voc12_root", "class_list", "label_file", "labels_from", "label_threshold", "train_list"),
        *("cam_network", "cam_weights_name"),
    ),
    writes=("cam_out_dir",),
    flags=("cam_scales", "precision", "cam_files"),
    shared=True,
    bytes_per_pixel=_bytes_per_pixel,
    memory_flags=("num_workers", "make_cam_batch_size", "cam_scales"),
    on_gpu=OnGpu(
        "cam_network",
        lambda args, batches: [batches.photographs(args.make_cam_batch_size) * max(args.cam_scales) ** 2],
    ),
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    images = read_images_to_segment(devkit, args.train_list, flag="train_list", label_file=args.known_labels)
    require_classes_of_network(devkit, args.cam_weights_name, planned=planned)
    require_network(args.cam_network, "CAM", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    if args.known_labels is None:
        require_network(args.cam_network, "Net", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    require_writable(args.cam_out_dir, flag="cam_out_dir")
    require_readable(images.paths, num_workers=args.num_workers)
    return {args.cam_out_dir: frozenset(images.ids)}


def _of_all_files(args: Config, devkit: Devkit) -> Inputs:
    """What every CAM depends on."""
    return inputs_of_network(args.only(("cam_network", "cam_weights_name")), devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    labels = {"label_file": args.known_labels, "label_threshold": args.label_threshold}
    return {**_of_all_files(args, devkit), **cam_inputs(devkit, args.train_list, **labels)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    return cam_outputs(devkit, args.train_list, args.cam_out_dir, label_file=args.known_labels)


def _cams(model: nn.Module, device: torch.device, group: Sequence[dict[str, Any]]) -> list[tuple[Arriving, Arriving]]:
    """cam and high_res, on their way, of images of equal size, items of `ScaledImages`, in one batch."""
    by_scale = zip(*(item["images"] for item in group), strict=True)
    scales = [torch.stack([to_device(image, device) for image in at_scale]) for at_scale in by_scale]
    maps = batch_scale_maps(model, scales)
    cams = []
    for position, item in enumerate(group):
        cam, high_res = merge_scales([at_scale[position] for at_scale in maps], item["size"], item["keys"])
        cams.append((Arriving(cam), Arriving(high_res)))
    return cams


def run(args: Config) -> None:
    """Write `cam_out_dir`/ID.npy for each image, from `cam_weights_name`; finished files are kept."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    images = read_images_to_segment(devkit, args.train_list, flag="train_list", label_file=args.known_labels).shared()
    if args.known_labels is None:
        classifier = load_network(args.cam_network, "Net", args.cam_weights_name, device, n_classes=len(devkit.classes))
        how = {"threshold": args.label_threshold, "device": device, "num_workers": args.num_workers}
        images = labelled_by_classifier(classifier, images, **how)
    finished = finished_files(STEP, args, _of_all_files(args, devkit))
    pending = PendingCams.of(images, args.cam_out_dir, numbers=args.cam_files, finished=finished)
    images = pending.images
    model = load_network(args.cam_network, "CAM", args.cam_weights_name, device, n_classes=len(devkit.classes))

    scaled = ScaledImages(images.paths, images.labels, args.cam_scales)
    sizes = image_sizes(images.paths)
    groups = size_groups(sizes, args.make_cam_batch_size, n_parts=[places(size) for size in sizes])
    loader = GroupedLoader(scaled, groups, num_workers=args.num_workers, device=device)
    fitting = Fitting(args.make_cam_batch_size, parts="images")
    with progress(total=len(images), desc="make_cam", unit="image") as bar, background_writer() as submit:
        for group in loader:
            example = images.paths[int(group[0]["index"])]
            cams = fitting.each(partial(_cams, model, device), group, size=group[0]["size"], example=example)
            for item, cam in zip(group, cams, strict=True):
                pending.write(submit, item, *cam)
            bar.update(len(group))
    tell = partial(tell_maps, weights_flag="cam_weights_name")
    on_first_process(tell, STEP.name, outputs(args), devkit.classes)
