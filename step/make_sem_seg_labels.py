"""Step 6: segmentation masks: random walk of the CAMs, stopped at the boundaries that IRN finds."""

from pathlib import Path

import numpy as np

from misc.files.atomic import background_writer
from misc.files.images import write_label, write_palette
from misc.masks import semantic_mask
from misc.run.config import Config
from misc.run.device import resolve_device
from misc.run.distributed import share
from misc.run.plan import Planned, require_writable
from misc.run.step import Step
from net.build import load_network, require_network
from voc12.classes import voc_palette
from voc12.devkit import open_devkit
from voc12.inference import require_cams, walk_inputs
from voc12.lists import read_list
from voc12.verify import require_readable

PALETTE_FOLDER = "palette"
"""Below the masks: as their neighbours, whatever their names, the coloured ones could be those of another image."""
STEP = Step(
    name="make_sem_seg",
    description="make masks: random walk of the CAMs between boundaries",
    reads=(
        *("voc12_root", "class_list", "infer_list", "masks_from", "cam_out_dir", "advcam_out_dir"),
        *("irn_network", "irn_weights_name"),
    ),
    writes=("sem_seg_out_dir",),
    flags=("np_power", "sem_seg_bg_thres", "beta", "exp_times"),
    shared=True,
)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = require_cams(devkit, args.infer_list, args.mask_cams, planned=planned)
    require_network(args.irn_network, "EdgeDisplacement", args.irn_weights_name, planned=planned)
    require_writable(args.sem_seg_out_dir, flag="sem_seg_out_dir")
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    return {args.sem_seg_out_dir: frozenset(ids)}


def run(args: Config) -> None:
    """Write `sem_seg_out_dir`/ID.png (ids) and palette/ID.png (the same in colour) for each image of `infer_list`."""
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = share(read_list(devkit, args.infer_list, flag="infer_list"))
    model = load_network(args.irn_network, "EdgeDisplacement", args.irn_weights_name, device)

    title = "make_sem_seg_labels"
    inputs = walk_inputs(
        model, devkit, ids, args.mask_cams.folder, device=device, num_workers=args.num_workers, title=title
    )
    with background_writer() as submit:
        for item in inputs:
            mask = semantic_mask(
                item.cam,
                item.edge,
                item.keys,
                item.size,
                power=args.np_power,
                background_score=args.sem_seg_bg_thres,
                beta=args.beta,
                exp_times=args.exp_times,
            )
            submit(_write, Path(args.sem_seg_out_dir), item.image_id, mask)


def _write(folder: Path, image_id: str, mask: np.ndarray) -> None:
    write_label(folder / f"{image_id}.png", mask)
    write_palette(folder / PALETTE_FOLDER / f"{image_id}.png", mask, voc_palette())
