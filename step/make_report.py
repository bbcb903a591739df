"""Last step: one page that shows what the run did, from the files in the result folder (not in the original)."""

import importlib
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from misc.errors import InputError
from misc.files.atomic import atomic_path
from misc.files.paths import same_path
from misc.files.resultfiles import METRICS_FOLDER, PICTURE_FOLDER, REPORT, SCORES_FOLDER, STEPS_FOLDER
from misc.report.collect import (
    EVALUATIONS,
    INSTANCE_EVALUATION,
    MAKERS,
    Arm,
    collect_arm,
    evaluation_step,
    steps_behind,
)
from misc.report.fonts import tell_missing_letters
from misc.report.page import chart_files, render_page
from misc.report.pictures import Captioned, contact_sheet
from misc.report.sheet import OutputFolders, PicturedData, Sheet, ShownNetworks, example_pictures
from misc.run.config import (
    NETWORKS,
    STEP_MODULES,
    STEP_SUFFIX,
    Config,
    changed_flags,
    deeplab_list_flag,
    enabled_steps,
    parse_config,
    to_arguments,
)
from misc.run.device import resolve_device
from misc.run.done import DoneSteps, mixed_input
from misc.run.notices import notice
from misc.run.plan import SETS, Planned, require_writable
from misc.run.record import UNPRINTABLE
from misc.run.step import Files, Inputs, Step
from net.build import build_network
from net.weights import load_weights
from voc12.classes import names_with_background, voc_palette
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.images import read_labelled_images
from voc12.lists import read_list, read_ood_paths, read_split

STEP = Step(
    name="make_report",
    description="write one page of what was done so far: curves, tables, pictures",
    reads=(
        *("voc12_root", "class_list", "label_file", "train_list", "ood_root", "ood_list", "chainer_eval_set"),
        *("result_dir", "control_dir", "cam_network", "cam_init_weights_name", "cam_out_dir", "advcam_out_dir"),
        *("ir_label_out_dir", "irn_network", "irn_weights_name", "sem_seg_out_dir", "ins_seg_out_dir"),
    ),
    writes=("result_dir",),
    flags=("seed", "report_images", "report_scan", "cam_scales"),
    memory_flags=("report_images",),
)

NOT_SHOWN = (STEP.name, "predict", "show", "export_deeplab")
"""Steps whose records change nothing in the report, but for the time that they took."""

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    open_devkit(args.voc12_root, args.class_list)
    require_writable(args.result_dir, flag="result_dir")
    return {}


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    named = args.only(STEP.reads)
    named |= {flag: _place(value) for flag, value in named.items() if flag not in (*NETWORKS, *SETS)}
    return {
        **named,
        "class_list": open_devkit(args.voc12_root, args.class_list).classes,
        "result_dir": Files(_traces(args.result_dir)),
        "control_dir": Files(_traces(args.control_dir)),
        "cam_out_dir": [named["cam_out_dir"], _earlier_scores(args)],  # of this and the other folders of `reads`
    }


def _place(value: str | None) -> str | None:
    """What a flag names: a place by its whole path, so that it is the same however it is written."""
    return os.path.abspath(value) if value and os.path.exists(value) else value


def _traces(result_dir: str) -> list[Path]:
    """The files in a result folder that change whenever a step was done of which the report shows something."""
    folders = {METRICS_FOLDER: "*.jsonl", SCORES_FOLDER: "*.json", STEPS_FOLDER: "*.json"}
    found = [path for name, pattern in folders.items() for path in sorted((Path(result_dir) / name).glob(pattern))]
    return [path for path in found if path.stem not in NOT_SHOWN]


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    return [Path(args.result_dir) / REPORT]


def run(args: Config) -> None:
    """Write `result_dir`/report.html and its charts and contact sheet as PNG files in `result_dir`/report/."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    names = names_with_background(devkit.classes)
    tell_missing_letters(names)
    wood = collect_arm("W-OoD", args.result_dir, args.voc12_root, names)
    control = collect_arm("Control", args.control_dir, args.voc12_root, names)
    for evaluation, (step, why) in _earlier_scores(args).items():
        wood.leave_out(evaluation, step=step, why=why)
    arms = [wood, control] if control.scores else [wood]

    data = PicturedData(devkit.classes, voc_palette(), devkit.image_path, devkit.mask_path)
    folders = OutputFolders(
        cam=args.cam_out_dir,
        advcam=args.advcam_out_dir,
        ir_label=args.ir_label_out_dir,
        sem_seg=args.sem_seg_out_dir,
        ins_seg=args.ins_seg_out_dir,
    )
    sheet = Sheet(data, folders, _networks(args, devkit), wood, control)
    groups = sheet.groups(_evaluated(args, devkit), args.report_images, args.report_scan, seed=args.seed)
    segmented_ids = _segmented(devkit, wood, sheet.skipped)
    segmented = sheet.segmented(segmented_ids, max(1, args.report_images // 3), seed=args.seed)
    charts = chart_files(arms)
    page = render_page(
        arms,
        groups,
        segmented,
        charts,
        trained_on=_trained_on(devkit, wood),
        data_name=f"{args.voc12_root}, {len(devkit.classes)} classes",
        examples=_examples(args, devkit, data),
        legend=data.legend([row for rows in [*groups.values(), segmented] for row in rows]),
        gain_note=sheet.gain_note(),
        skipped=sheet.skipped,
        command_of=lambda step: _command(args, step),
        has_masks=any(devkit.mask_folder.glob("*.png")),
    )
    rows = [row.pictures for shown in groups.values() for row in shown]
    pictures = {**charts, **({"contact_sheet": contact_sheet(rows)} if rows else {})}
    folder = Path(args.result_dir)
    for name, content in pictures.items():
        with atomic_path(folder / PICTURE_FOLDER / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8", errors=UNPRINTABLE)
    log.info("wrote %s", folder / REPORT)


def _earlier_scores(args: Config) -> dict[str, tuple[str, str]]:
    """{evaluation: a step behind it that is no longer up to date, and why}, for scores of files that are gone.

    A step behind them was done again since, and what a step makes of it has changed. Changed data do not count: what
    was made before is then still what was scored.
    """
    done = DoneSteps(args.result_dir)
    evaluations = (*EVALUATIONS, INSTANCE_EVALUATION)
    records = {name: done.read(name) for name in (*MAKERS, *map(evaluation_step, evaluations))}
    places = [place for name in MAKERS if records[name] for place in records[name]["places"].values()]
    read = {flag for record in records.values() if record for flag in record["inputs"]}
    made = {flag for flag in read if any(same_path(getattr(args, flag, None), place) for place in places)}
    found: dict[str, tuple[str, str]] = {}
    changed: dict[str, str | None] = {}
    for evaluation in evaluations:
        evaluated = records[evaluation_step(evaluation)]
        if not evaluated:
            continue
        if not evaluated["finished"]:
            found[evaluation] = evaluated["step"], "it was interrupted"
            continue
        if why := _mixed(evaluated, args):
            found[evaluation] = evaluated["step"], why
            continue
        behind = steps_behind(evaluation, records, vars(args))
        times = [records[step]["finished"] or records[step]["started"] for step in behind[:-1]]
        if all(time <= evaluated["started"] for time in times):
            continue
        for step in behind:
            if step not in changed:
                changed[step] = done.changed_input(importlib.import_module(STEP_MODULES[step]), args, flags=made)
            if why := changed[step]:
                found[evaluation] = step, why
                break
    return found


def _mixed(evaluated: Mapping[str, Any], args: Config) -> str | None:
    """What `mixed_input` says of an evaluation's step; None where it would score another set today, or what is gone."""
    step = importlib.import_module(STEP_MODULES[evaluated["step"]])
    before, sets = evaluated.get("reads"), [flag for flag in SETS if flag in step.STEP.reads]
    if not isinstance(before, dict) or any(before.get(flag) != getattr(args, flag) for flag in sets):
        return None
    try:
        return mixed_input(step, args)
    except InputError:
        return None


def _command(args: Config, step: str) -> str:
    """The command that runs one step alone, with this run's flags."""
    words = to_arguments({name: value for name, value in changed_flags(vars(args)).items() if name != "redo"})
    on_by_default = [name for name in enabled_steps(parse_config([])) if name != step]
    words += to_arguments({f"{name}{STEP_SUFFIX}": False for name in on_by_default} | {f"{step}{STEP_SUFFIX}": True})
    return shlex.join(["python", "run_sample.py", *words])


def _networks(args: Config, devkit: Devkit) -> ShownNetworks:
    """The networks whose outputs are shown, as far as there are checkpoints."""
    device = resolve_device(args.device)

    def network(module: str, name: str, weights: str, **arguments: int) -> nn.Module | None:
        try:
            require_classes_of_network(devkit, weights)
            built = build_network(module, name, **arguments)
            load_weights(built, weights)
        except InputError as error:
            notice(f"the report does without a network: {error}")
            return None
        return built.to(device).eval()

    before = network(args.cam_network, "CAM", args.cam_init_weights_name, n_classes=len(devkit.classes))
    irn = network(args.irn_network, "EdgeDisplacement", args.irn_weights_name)
    return ShownNetworks(before=before, irn=irn, scales=args.cam_scales, device=device)


def _evaluated(args: Config, devkit: Devkit) -> list[str] | None:
    """The ids of the evaluated images; None where there is no such list."""
    try:
        return read_split(devkit, args.chainer_eval_set)
    except InputError:
        return None


def _segmented(devkit: Devkit, wood: Arm, skipped: list[str]) -> list[str]:
    """The ids of the segmentation network's evaluation; none if it was not done. `skipped` is told of a bad list."""
    if wood.segmentation_scores is None:
        return []
    try:
        return read_split(devkit, wood.segmentation_scores["set"], flag="deeplab_eval_set")
    except InputError as error:
        skipped.append(f"Pictures of the segmentation network: {error}")
        return []


def _examples(args: Config, devkit: Devkit, data: PicturedData) -> list[Captioned]:
    """Training images and OoD images that explain the idea; none where they are missing."""
    try:
        train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
        ood_paths = read_ood_paths(args.ood_root, args.ood_list)
        return example_pictures(data, train.paths, train.labels, ood_paths, seed=args.seed)
    except InputError as error:
        notice(f"the report shows no example images: {error}")
        return []


def _trained_on(devkit: Devkit, wood: Arm) -> int | None:
    """How many images of the segmentation network's evaluation were in its training; None where it is not known."""
    training = wood.segmentation_training
    if training is None:
        return None
    flag = deeplab_list_flag(training)
    try:
        trained = read_list(devkit, str(training.get(flag)), flag=flag)
        evaluated = read_split(devkit, wood.segmentation_scores["set"], flag="deeplab_eval_set")
    except InputError as error:
        notice(f"the report does not know the segmentation network's training images: {error}")
        return None
    return len({*trained} & {*evaluated})
