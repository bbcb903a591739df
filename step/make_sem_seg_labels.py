"""Segmentation masks: random walk of the CAMs, stopped at the boundaries that IRN finds."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from misc.files import irnfile
from misc.files.images import label_path, label_paths, write_label, write_palette
from misc.files.paths import Paths
from misc.indexing import RandomWalks
from misc.masks import semantic_masks
from misc.run.config import Config, enabled_steps
from misc.run.device import Arriving, resolve_device
from misc.run.distributed import on_first_process, share
from misc.run.done import finished_files, is_redone
from misc.run.plan import Planned, require_writable
from misc.run.step import Inputs, Step
from misc.summary import Content, content_of_mask, tell_masks
from net.build import inputs_of_network, load_network, require_network
from step import make_ins_seg_labels
from voc12.classes import voc_palette
from voc12.devkit import Devkit, open_devkit
from voc12.images import read_ids_to_segment
from voc12.inference import (
    IRN_ON_GPU,
    MASK_READS,
    KeptOutputs,
    Masks,
    WalkInput,
    inputs_of_walk,
    make_masks,
    require_cams,
)
from voc12.verify import require_readable

PALETTE_FOLDER = "palette"
"""Below the masks: as their neighbours, whatever their names, the coloured ones could be those of another image."""
BYTES_PER_PIXEL = 0.05
STEP = Step(
    name="make_sem_seg",
    description="make masks: random walk of the CAMs between boundaries",
    reads=MASK_READS,
    writes=("sem_seg_out_dir",),
    flags=("np_power", "sem_seg_bg_thres", "beta", "exp_times", "precision", "keep_irn"),
    shared=True,
    bytes_per_pixel=lambda args: {
        "sem_seg_out_dir": BYTES_PER_PIXEL,
        "result_dir": args.keep_irn * irnfile.BYTES_PER_PIXEL,
    },
    memory_flags=("num_workers", "irn_infer_batch_size"),
    on_gpu=IRN_ON_GPU,
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = require_cams(devkit, args.infer_list, args.mask_cams, label_file=args.known_labels, planned=planned)
    require_network(args.irn_network, "EdgeDisplacement", args.irn_weights_name, planned=planned)
    require_writable(args.sem_seg_out_dir, flag="sem_seg_out_dir")
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    return {args.sem_seg_out_dir: frozenset(ids)}


def _of_all_files(args: Config, devkit: Devkit) -> Inputs:
    """What every mask depends on."""
    return inputs_of_network(args.only(("irn_network", "irn_weights_name")), devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_ids_to_segment(devkit, args.infer_list, flag="infer_list", label_file=args.known_labels)
    return {**_of_all_files(args, devkit), **inputs_of_walk(devkit, ids, args.mask_cams)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    masks = _mask_paths(args)
    names = [path.rpartition("/")[2] for path in masks]
    return [*masks, *Paths(Path(args.sem_seg_out_dir) / PALETTE_FOLDER, names)]


def _mask_paths(args: Config) -> Paths:
    """The masks, with ids."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_ids_to_segment(devkit, args.infer_list, flag="infer_list", label_file=args.known_labels)
    return label_paths(args.sem_seg_out_dir, ids)


def _masks(args: Config, devkit: Devkit) -> Masks:
    """How the mask of an image is made, with ids and in colour, by its flags."""
    folder = Path(args.sem_seg_out_dir)

    def make(items: Mapping[int, WalkInput], walks: RandomWalks) -> list[Arriving]:
        chosen = items.values()
        masks = semantic_masks(
            [item.cam for item in chosen],
            partial(walks, numbers=[*items]),
            [item.keys for item in chosen],
            [item.size for item in chosen],
            power=args.np_power,
            background_score=args.sem_seg_bg_thres,
        )
        return [Arriving(mask) for mask in masks]

    return Masks(
        paths=lambda image_id: [label_path(of, image_id) for of in (folder, folder / PALETTE_FOLDER)],
        make=make,
        write=_write,
        finished=finished_files(STEP, args, _of_all_files(args, devkit)),
    )


def run(args: Config) -> None:
    """Write `sem_seg_out_dir`/ID.png (ids) and palette/ID.png (the same in colour) for each image of `infer_list`.

    Finished files are kept. Where make_ins_seg follows, its files are written as well, so that IRN sees each image
    once; unless that step is to be done again, which then makes all of its files itself.
    """
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    kinds, title = [_masks(args, devkit)], "make_sem_seg_labels"
    if make_ins_seg_labels.STEP.name in enabled_steps(args) and not is_redone(make_ins_seg_labels.STEP, args):
        kinds.append(make_ins_seg_labels.instances(args, devkit))
        title = "make_sem_seg_labels and make_ins_seg_labels"
        log.info("make_sem_seg makes the files of make_ins_seg, too: IRN sees each image once")
    make_masks(
        kinds,
        partial(load_network, args.irn_network, "EdgeDisplacement", args.irn_weights_name, device),
        devkit,
        share(read_ids_to_segment(devkit, args.infer_list, flag="infer_list", label_file=args.known_labels)),
        args.mask_cams,
        device=device,
        num_workers=args.num_workers,
        batch_size=args.irn_infer_batch_size,
        title=title,
        walks_between=partial(RandomWalks, beta=args.beta, exp_times=args.exp_times),
        kept=KeptOutputs.of(args, _of_all_files(args, devkit)),
    )
    advice = "lower --sem_seg_bg_thres, or make better CAMs"
    on_first_process(partial(tell_masks, advice=advice), STEP.name, _mask_paths(args))


def _write(paths: list[Path], on_cpu: Tensor) -> Content:
    (plain, coloured), mask = paths, on_cpu.numpy()
    write_label(plain, mask)
    write_palette(coloured, mask, voc_palette())
    return content_of_mask(mask)
