"""Random walk of each class's CAM within each instance that IRN's displacements tell apart."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from misc.files import instancefile, irnfile
from misc.files.instancefile import Detections
from misc.indexing import RandomWalks
from misc.instances import detect_instances
from misc.run.config import Config, enabled_steps
from misc.run.distributed import on_first_process
from misc.run.done import finished_files
from misc.run.plan import Planned
from misc.run.step import Inputs, Step
from misc.summary import save_instances, tell_masks
from net.build import inputs_of_network, load_network, require_network
from voc12.cams import MadeOfCams
from voc12.devkit import open_devkit
from voc12.images import ids_to_segment
from voc12.inference import IRN_ON_GPU, MASK_READS, Masks, WalkInput, make_listed_masks

BYTES_PER_PIXEL = 3
"""A byte a pixel of each instance, of which an image has about three."""


def _bytes_per_pixel(args: Config) -> dict[str, float]:
    """With IRN's output, unless make_sem_seg, which comes first, keeps it."""
    keeps = args.keep_irn and "make_sem_seg" not in enabled_steps(args)
    return {"ins_seg_out_dir": BYTES_PER_PIXEL, "result_dir": keeps * irnfile.BYTES_PER_PIXEL}


MASKS = MadeOfCams("ins_seg_out_dir", "infer_list")
STEP = Step(
    name="make_ins_seg",
    description="make instance masks: displacements and random walk of the CAMs",
    reads=MASK_READS,
    writes=("ins_seg_out_dir",),
    flags=("ins_seg_bg_thres", "beta", "exp_times", "precision", "keep_irn"),
    shared=True,
    bytes_per_pixel=_bytes_per_pixel,
    memory_flags=("num_workers", "irn_infer_batch_size"),
    on_gpu=IRN_ON_GPU,
)


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
    return instancefile.instance_paths(args.ins_seg_out_dir, ids)


def instances(args: Config) -> Masks:
    """How the instances of an image are made, by their flags; make_sem_seg makes them, too, where both steps are on."""

    def make(items: Mapping[int, WalkInput], walks: RandomWalks) -> Iterator[Detections]:
        for number, item in items.items():
            yield detect_instances(
                item.cam,
                walks[number],
                item.displacement,
                item.keys,
                item.size,
                background_score=args.ins_seg_bg_thres,
            )

    return Masks(
        paths=lambda image_id: [instancefile.instance_path(args.ins_seg_out_dir, image_id)],
        make=make,
        write=lambda paths, detections: save_instances(*paths, detections),
        finished=finished_files(STEP, args, _of_all_files(args)),
        max_waiting=1,  # a fragmented image has hundreds of full-size masks
    )


def run(args: Config) -> None:
    """Write `ins_seg_out_dir`/ID.npy for each image of `infer_list`; finished files are kept."""
    load_irn = partial(load_network, args.irn_network, "EdgeDisplacement", args.irn_weights_name)
    make_listed_masks(args, [instances(args)], load_irn, _of_all_files(args), title="make_ins_seg_labels")
    advice = "lower --ins_seg_bg_thres, or make better CAMs"
    on_first_process(partial(tell_masks, advice=advice), STEP.name, outputs(args))
