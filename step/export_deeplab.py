"""The trained DeepLab as a program that runs without this project's code (`torch.export`)."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from misc.errors import InputError, reason_of
from misc.files.atomic import atomic_path
from misc.run.config import Config
from misc.run.device import backbones_in_float32
from misc.run.limits import is_limit
from misc.run.plan import Planned, require_writable_file
from misc.run.step import Inputs, Step
from net.build import inputs_of_network, require_network
from net.deeplab import load_segmenter
from voc12.devkit import names_of_network

STEP = Step(
    name="export_deeplab",
    description="export DeepLab-v2 as a program of torch.export",
    reads=("voc12_root", "class_list", "deeplab_network", "deeplab_weights_name"),
    writes=("deeplab_export_name",),
)

log = logging.getLogger(__name__)

SUFFIX = ".pt2"
CLASSES_FILE = "classes.txt"
"""Name of the program's extra file: one class name a line, in the order of the ids, from background."""
SMALLEST_SIDE = 64
EXAMPLE_SHAPE, TRIAL_SHAPE = (2, 3, 96, 130), (1, 3, 75, 103)
LARGEST_DIFFERENCE = 1e-4
"""Of the program's logits from the network's, relative to the largest."""


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    n_classes = len(names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list))
    require_network(args.deeplab_network, "DeepLab", args.deeplab_weights_name, planned=planned, n_classes=n_classes)
    if Path(args.deeplab_export_name).suffix != SUFFIX:
        raise InputError(f"--deeplab_export_name {args.deeplab_export_name} must end in {SUFFIX}.")
    require_writable_file(args.deeplab_export_name, flag="deeplab_export_name", kind="program")
    if not can_export():
        raise InputError(
            f"--export_deeplab_pass: PyTorch {torch.__version__} can't export a network for images of any size; "
            "install a newer one (2.11 was tried), or leave the step out."
        )
    return {}


def can_export() -> bool:
    """Whether this PyTorch leaves open what depends on the size of the images (2.8 does not)."""
    return "prefer_deferred_runtime_asserts_over_guards" in inspect.signature(torch.export.export).parameters


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    names = names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list)
    return inputs_of_network(args, "deeplab_network", "deeplab_weights_name", names)


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [args.deeplab_export_name]


def _program(model: nn.Module) -> torch.export.ExportedProgram:
    """`model` for images of any number and size."""
    height, width = (torch.export.Dim(side, min=SMALLEST_SIDE) for side in ("height", "width"))
    return torch.export.export(
        model,
        (torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch"), 2: height, 3: width}},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


@contextmanager
def _told_if_it_fails(network: str) -> Iterator[None]:
    """Raise `InputError` for a network that torch.export can't take, which it says in errors of many types.

    What was told already, and what the machine lacks, stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError | OSError) or is_limit(error):
            raise
        raise InputError(
            f"--deeplab_network {network}: torch.export can't take this network ({type(error).__name__}: "
            f"{reason_of(error)}); leave --export_deeplab_pass out (the checkpoint itself is not affected), or train "
            "another network (docs/own_networks.md)."
        ) from error


@torch.no_grad()
@backbones_in_float32()
def run(args: Config) -> None:
    """Write `deeplab_export_name`: (B, 3, H, W) uint8 RGB of any size from 64 on -> logits (B, C, H, W)."""
    names = names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list)
    cpu = torch.device("cpu")
    model = load_segmenter(args.deeplab_network, args.deeplab_weights_name, cpu, n_classes=len(names))
    images = torch.randint(0, 256, TRIAL_SHAPE, dtype=torch.uint8)
    expected = model(images)
    if not expected.isfinite().all():
        raise InputError(
            f"--deeplab_weights_name {args.deeplab_weights_name}: the network gives NaN or infinity; name other "
            "weights, or train these again with a lower --deeplab_learning_rate."
        )
    with (
        _told_if_it_fails(args.deeplab_network),
        atomic_path(args.deeplab_export_name) as temporary,
        warnings.catch_warnings(),
    ):
        program = _program(model)
        # PyTorch takes weights whose channels are last in memory for parts of larger ones, and saves them rightly
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        # And it reads them from bytes that it does not write to
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        torch.export.save(program, temporary, extra_files={CLASSES_FILE: "\n".join(names)})
        difference = (torch.export.load(temporary).module()(images) - expected).abs().max() / expected.abs().max()
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(f"the exported program's logits differ from the network's, by {difference:.0e}")
    log.info("wrote %s; its logits differ from the network's by at most %.0e", args.deeplab_export_name, difference)
