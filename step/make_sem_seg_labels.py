"""Segmentation masks: random walk of the CAMs, stopped at the boundaries that IRN finds."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from misc.files import irnfile
from misc.files.images import label_path, label_paths, write_label, write_palette
from misc.indexing import RandomWalks
from misc.masks import semantic_masks
from misc.run.config import Config, enabled_steps
from misc.run.device import Arriving
from misc.run.distributed import on_first_process
from misc.run.done import finished_files, is_redone
from misc.run.plan import Planned
from misc.run.step import Inputs, Step
from misc.summary import Content, content_of_mask, tell_masks
from net.build import inputs_of_network, load_network, require_network
from step import make_ins_seg_labels
from voc12.cams import MadeOfCams
from voc12.classes import voc_palette
from voc12.devkit import open_devkit
from voc12.images import ids_to_segment
from voc12.inference import IRN_ON_GPU, MASK_READS, Masks, WalkInput, make_listed_masks

PALETTE_FOLDER = "palette"
"""Below the masks: as their neighbours, whatever their names, the coloured ones could be those of another image."""
BYTES_PER_PIXEL = 0.05
MASKS = MadeOfCams("sem_seg_out_dir", "infer_list")
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
    MASKS.require_cams(args, planned)
    require_network(args.irn_network, "EdgeDisplacement", args.irn_weights_name, planned=planned)
    return MASKS.check(args)


def _of_all_files(args: Config) -> Inputs:
    """What every mask depends on."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    return inputs_of_network(args, "irn_network", "irn_weights_name", devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    return {**_of_all_files(args), **MASKS.inputs(args)}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    _, ids = ids_to_segment(args, "infer_list")
    folder = Path(args.sem_seg_out_dir)
    return [*label_paths(folder, ids), *label_paths(folder / PALETTE_FOLDER, ids)]


def _masks(args: Config) -> Masks:
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
        finished=finished_files(STEP, args, _of_all_files(args)),
    )


def run(args: Config) -> None:
    """Write `sem_seg_out_dir`/ID.png (ids) and palette/ID.png (the same in colour) for each image of `infer_list`.

    Finished files are kept. Where make_ins_seg follows, its files are written as well, so that IRN sees each image
    once; unless that step is to be done again, which then makes all of its files itself.
    """
    kinds, title = [_masks(args)], "make_sem_seg_labels"
    if make_ins_seg_labels.STEP.name in enabled_steps(args) and not is_redone(make_ins_seg_labels.STEP, args):
        kinds.append(make_ins_seg_labels.instances(args))
        title = "make_sem_seg_labels and make_ins_seg_labels"
        log.info("make_sem_seg makes the files of make_ins_seg, too: IRN sees each image once")
    load_irn = partial(load_network, args.irn_network, "EdgeDisplacement", args.irn_weights_name)
    make_listed_masks(args, kinds, load_irn, _of_all_files(args), title=title)
    advice = "lower --sem_seg_bg_thres, or make better CAMs"
    _, ids = ids_to_segment(args, "infer_list")
    on_first_process(partial(tell_masks, advice=advice), STEP.name, label_paths(args.sem_seg_out_dir, ids))


def _write(paths: list[Path], on_cpu: Tensor) -> Content:
    (plain, coloured), mask = paths, on_cpu.numpy()
    write_label(plain, mask)
    write_palette(coloured, mask, voc_palette())
    return content_of_mask(mask)
