"""Step 6: segmentation masks: random walk of the CAMs, stopped at the boundaries that IRN finds."""

from pathlib import Path

import torch
from tqdm import tqdm

from misc import camfile
from misc.config import Config
from misc.errors import InputError
from misc.imutils import mirror_pair, normalize, write_label, write_palette
from misc.masks import semantic_mask
from misc.plan import Planned, require_outputs, require_writable
from misc.torchutils import resolve_device, sequential_loader
from net.build import build_network
from net.weights import load_weights
from voc12.classes import voc_palette
from voc12.dataloader import WholeImages
from voc12.devkit import open_devkit
from voc12.lists import read_list
from voc12.verify import require_readable


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.infer_list, flag="infer_list")
    require_outputs(
        args.cam_out_dir,
        ids,
        ".npy",
        flag="cam_out_dir",
        list_flag="infer_list",
        made_by="make_cam",
        planned=planned,
    )
    network = build_network(args.irn_network, "EdgeDisplacement")
    if args.irn_weights_name not in planned:
        load_weights(network, args.irn_weights_name)
    require_writable(args.sem_seg_out_dir, flag="sem_seg_out_dir")
    require_readable([devkit.image_path(image_id) for image_id in ids], num_workers=args.num_workers)
    return {args.sem_seg_out_dir: frozenset(ids)}


@torch.no_grad()
def run(args: Config) -> None:
    """Write `sem_seg_out_dir`/ID.png (ids) and ID_palette.png (colours) for each image of `infer_list`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_list(devkit, args.infer_list, flag="infer_list")
    model = build_network(args.irn_network, "EdgeDisplacement")
    load_weights(model, args.irn_weights_name)
    model.to(device).eval()

    out = Path(args.sem_seg_out_dir)
    images = WholeImages([devkit.image_path(image_id) for image_id in ids])
    loader = sequential_loader(images, num_workers=args.num_workers, device=device)
    for image_id, image in zip(ids, tqdm(loader, desc="make_sem_seg_labels", unit="image"), strict=True):
        cam_path = camfile.cam_path(args.cam_out_dir, image_id)
        keys, cam, _ = camfile.load(cam_path, len(devkit.classes))
        edge, _ = model(mirror_pair(normalize(image.to(device))))
        if cam.shape[1:] != edge.shape[1:]:
            raise InputError(f"CAM file {cam_path} is not of the size of its image; make it again.")
        mask = semantic_mask(
            cam.to(device),
            edge,
            keys,
            tuple(image.shape[1:]),
            power=args.np_power,
            background_score=args.sem_seg_bg_thres,
            beta=args.beta,
            exp_times=args.exp_times,
        )
        write_label(out / f"{image_id}.png", mask)
        write_palette(out / f"{image_id}_palette.png", mask, voc_palette())
