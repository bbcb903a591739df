"""What a run will do, shown before its first step: what is done, what will run and why, what disk and GPU it takes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import prod
from pathlib import Path
from statistics import fmean

import torch

from misc.errors import InputError
from misc.files import look
from misc.files.disk import readable_size, room_for
from misc.files.images import image_size
from misc.run.config import Config
from misc.run.device import resolve_device
from misc.run.done import DoneSteps, is_redone, require_unmixed_input
from misc.run.gpu_memory import RunBatches, gpu_memory
from misc.run.limits import gpu_flags, to_lower
from misc.run.notices import notice
from misc.run.step import Files, Inputs, Step, StepModule
from misc.run.training_state import saved_step

SAMPLED = 8
"""Images whose sizes stand for all."""
GIB = 2**30
DONE = "done"
IMAGE_FLAGS = ("train_list", "infer_list", "deeplab_eval_set", "predict_input")
"""Inputs that are the images of which a step makes maps or masks."""


@dataclass(frozen=True)
class Row:
    """A step of the plan.

    Attributes:
        step: its name.
        action: `DONE`, or what it will do, for people.
        files: the longest of the lists of files that it reads.
        disk: bytes that it will take, roughly, by folder.
        gpu: bytes of GPU memory at its peak, roughly; None where that is not known, and without a GPU.
    """

    step: str
    action: str
    files: int
    disk: Mapping[str, int]
    gpu: int | None = None


def forecast(config: Config, steps: Sequence[StepModule], maker_of: dict[str, str]) -> list[Row]:
    """What each step will do. Their input was checked.

    `maker_of`: {real path: the step that will write there}, of earlier chains of the run; these steps' are added.
    """
    done, rows = DoneSteps(config.result_dir), []
    on_gpu = resolve_device(config.device).type == "cuda"
    for step in steps:
        name, remembered = step.STEP.name, step.STEP.remembered
        inputs, outputs = (step.inputs(config), step.outputs(config)) if remembered else ({}, [])
        given = [getattr(config, flag) for flag in inputs]
        places = [os.path.realpath(place) for place in given if isinstance(place, str) and place]
        waits_for = list(dict.fromkeys(maker_of[place] for place in places if place in maker_of))
        record = done.read(name)
        if waits_for and record.get("finished"):
            action = f"depends on what {', '.join(waits_for)} will make"
        elif waits_for:
            action = f"runs, with what {', '.join(waits_for)} will make"
        else:
            require_unmixed_input(step, config)
            reason = done.reason_to_run(step, config)
            action = DONE if reason is None else f"runs: {reason}"
            if done.is_interrupted(step, config):
                action = _where_it_goes_on(config, step.STEP, record["started"], outputs) or action
        if action != DONE:
            maker_of |= dict.fromkeys((os.path.realpath(getattr(config, flag)) for flag in step.STEP.writes), name)
            if remembered:
                maker_of[os.path.realpath(config.result_dir)] = name  # where it leaves its record
        n_files = max((len(given.paths) for given in inputs.values() if isinstance(given, Files)), default=0)
        disk, gpu = {}, None
        if action != DONE:
            disk = _disk(config, step, inputs, outputs)
            gpu = gpu_memory(step.STEP, config, RunBatches(partial(_sampled_sizes, inputs))) if on_gpu else None
        rows.append(Row(name, action, n_files, disk, gpu))
    return rows


def _where_it_goes_on(config: Config, step: Step, started: str, outputs: Sequence[str | Path]) -> str | None:
    """Where an interrupted step goes on: after the step of its saved state, or by the files that it has written.

    With `--redo` it goes on from a state alone: the files are made again.
    """
    if config.resume and (state := saved_step(config.result_dir, step.name)) is not None:
        return "goes on at {:.0%} (step {} of {})".format(state[0] / state[1], *state)
    if is_redone(step, config):
        return None
    since = datetime.fromisoformat(started).timestamp() * 1e9
    n_written = int((look.states(outputs)[:, 1] >= since).sum())
    return f"goes on at {n_written / len(outputs):.0%}" if n_written else None


def _disk(config: Config, step: StepModule, inputs: Inputs, outputs: Sequence[str | Path]) -> dict[str, int]:
    """Bytes that a step will take beyond what it replaces, roughly, by folder; none where that is little."""
    if step.STEP.bytes_per_pixel is None:
        return {}
    n_missing = int((look.states(outputs)[:, 0] == look.MISSING).sum())
    images = _images(inputs)
    if not (n_missing and images):
        return {}
    pixels = fmean(map(prod, _sampled_sizes(inputs))) * len(images) * n_missing / len(outputs)
    by_flag = step.STEP.bytes_per_pixel(config)
    return {getattr(config, flag): int(per_pixel * pixels) for flag, per_pixel in by_flag.items() if per_pixel}


def _images(inputs: Inputs) -> Sequence[str | Path]:
    """The images of which a step makes maps or masks."""
    return next((given.paths for flag, given in inputs.items() if flag in IMAGE_FLAGS), ())


def _sampled_sizes(inputs: Inputs) -> list[tuple[int, int]]:
    """(H, W) of some of these images, which stand for all."""
    images = _images(inputs)
    sample = images[:: max(1, len(images) // SAMPLED)]
    return look.remembered(("sizes", *map(str, sample)), lambda: [*map(image_size, sample)])


def table_of(rows: Sequence[Row]) -> str:
    """The plan as lines of text, with the disk that it takes and that there is, and GPU memory where it is known."""
    lines = [("step", "what it will do", "files", "disk", "GPU memory" if any(row.gpu for row in rows) else "")]
    for row in rows:
        files, gpu = f"{row.files:,}" if row.files else "", _gib(row.gpu) if row.gpu else ""
        disk = sum(row.disk.values())
        lines.append((row.step, row.action, files, readable_size(disk) if disk else "", gpu))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    of_disks = [f"maps and masks take about {room}" for room in room_for(_needs(rows))]
    return "\n".join([*lines, *(of_disks or ["maps and masks take no more disk"])])


def require_room(rows: Sequence[Row]) -> None:
    """Raise `InputError` if what the steps of a run will write can't fit on one of the disks."""
    for room in room_for(_needs(rows)):
        if not room.suffices:
            raise InputError(f"maps and masks take about {room}; make room there, or name folders elsewhere.")


def _needs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return [need for row in rows for need in row.disk.items()]


def tell_gpu_room(rows: Sequence[Row], config: Config, steps: Sequence[StepModule]) -> None:
    """Tell the log of steps that need more memory than the GPU has free, with the flags that let them need less."""
    if not any(row.gpu for row in rows):
        return
    free, _ = torch.cuda.mem_get_info(resolve_device(config.device))
    for row, step in zip(rows, steps, strict=True):
        if (row.gpu or 0) > free:
            notice(
                f"{row.step} needs about {_gib(row.gpu)} of GPU memory, and {_gib(free)} are free; "
                f"{to_lower(gpu_flags(step.STEP.memory_flags))}, or free some of it"
            )


def _gib(n_bytes: int) -> str:
    """GPU memory for people, in the unit of its tools."""
    return f"{n_bytes / GIB:.1f} GiB"
