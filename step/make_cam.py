"""Step 2: multi-scale class activation maps of the images of `train_list`."""

import torch

from misc.cam import batch_scale_maps, merge_scales
from misc.files import camfile
from misc.files.atomic import background_writer
from misc.files.images import image_size
from misc.run.config import Config
from misc.run.device import resolve_device
from misc.run.loaders import GroupedLoader, places, size_groups
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Step
from net.build import load_network, require_network
from voc12.dataloader import ScaledImages
from voc12.devkit import open_devkit, require_classes_of_network
from voc12.images import read_labelled_images
from voc12.verify import require_readable

STEP = Step(
    name="make_cam",
    description="make multi-scale CAMs",
    reads=("voc12_root", "class_list", "label_file", "train_list", "cam_network", "cam_weights_name"),
    writes=("cam_out_dir",),
    flags=("cam_scales",),
    shared=True,
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    images = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
    require_classes_of_network(devkit, args.cam_weights_name, planned=planned)
    require_network(args.cam_network, "CAM", args.cam_weights_name, planned=planned, n_classes=len(devkit.classes))
    require_writable(args.cam_out_dir, flag="cam_out_dir")
    require_readable(images.paths, num_workers=args.num_workers)
    return {args.cam_out_dir: frozenset(images.ids)}


def run(args: Config) -> None:
    """Write `cam_out_dir`/ID.npy for each image, from `cam_weights_name`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    images = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file).shared()
    model = load_network(args.cam_network, "CAM", args.cam_weights_name, device, n_classes=len(devkit.classes))

    scaled = ScaledImages(images.paths, images.labels, args.cam_scales)
    sizes = [image_size(path) for path in images.paths]
    groups = size_groups(sizes, args.make_cam_batch_size, n_parts=[places(size) for size in sizes])
    loader = GroupedLoader(scaled, groups, num_workers=args.num_workers, device=device)
    with progress(total=len(images), desc="make_cam", unit="image") as bar, background_writer() as submit:
        for group in loader:
            scales = [torch.stack(at_scale).to(device) for at_scale in zip(*(i["images"] for i in group), strict=True)]
            maps = batch_scale_maps(model, scales)
            for position, item in enumerate(group):
                of_image = [at_scale[position] for at_scale in maps]
                cam, high_res = merge_scales(of_image, item["size"], item["keys"])
                path = camfile.cam_path(args.cam_out_dir, images.ids[item["index"]])
                submit(camfile.save, path, item["keys"], cam.cpu(), high_res.cpu())
            bar.update(len(group))
