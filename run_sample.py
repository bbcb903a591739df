"""W-OoD: run the enabled steps of the chain, in order. `python run_sample.py --help` lists the flags."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from misc.config import Config, enabled_steps, parse_config
from misc.errors import InputError, message_of
from misc.plan import Plan, require_writable

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
STEP_MODULES = {
    "train_classifier": "step.train_classifier",
    "train_cam": "step.train_cam",
    "make_cam": "step.make_cam",
    "eval_cam": "step.eval_cam",
    "make_advcam": "step.make_advcam",
    "eval_advcam": "step.eval_advcam",
    "cam_to_ir_label": "step.cam_to_ir_label",
    "eval_ir_label": "step.eval_ir_label",
    "train_irn": "step.train_irn",
    "make_sem_seg": "step.make_sem_seg_labels",
    "eval_sem_seg": "step.eval_sem_seg",
    "make_ins_seg": "step.make_ins_seg_labels",
    "eval_ins_seg": "step.eval_ins_seg",
    "make_cocoann": "step.make_cocoann",
    "train_deeplab": "step.train_deeplab",
    "eval_deeplab": "step.eval_deeplab",
    "export_deeplab": "step.export_deeplab",
    "predict": "step.predict",
    "make_report": "step.make_report",
}


def check_chain(config: Config, planned: Plan) -> list[tuple[str, ModuleType]]:
    """Check the input of all enabled steps, note in `planned` what they will make; returns the steps' modules.

    Raises `InputError` for bad input.
    """
    names = enabled_steps(config)
    if not names:
        raise InputError("no step is enabled; switch one on, for example --make_cam_pass True.")
    steps = [(name, importlib.import_module(STEP_MODULES[name])) for name in names]
    for _, step in steps:
        planned.update(step.check(config, planned))
    return steps


def run_chain(config: Config, steps: Sequence[tuple[str, ModuleType]]) -> None:
    """Run steps whose input was checked, and keep a record of them."""
    # Imported here, so that --help and wrong flags answer without loading torch
    from misc.memory import keep_freed_memory
    from misc.record import RunRecord
    from misc.torchutils import resolve_device, set_precision, set_seed

    device = resolve_device(config.device)
    precision = set_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    record = RunRecord(config, device, [name for name, _ in steps], precision=precision)
    record.announce()
    for name, step in steps:
        set_seed(config.seed)
        with record.step(name):
            step.run(config)


def run_built_in_sample(config: Config, arguments: Sequence[str]) -> None:
    """Make the built-in sample where it is missing or damaged, and run the whole chain on it, up to the report.

    `arguments`: the command line, whose flags change the sample's (its data, switches and control outputs stay).
    """
    from misc.crf import has_densecrf
    from misc.sample_recipe import sample_runs
    from voc12.sample import ensure_with_bar

    log = logging.getLogger(__name__)
    if not has_densecrf():
        log.info("notice: pydensecrf is missing (it needs Python 3.10 to 3.12): the sample stops at the CAMs")
    runs = sample_runs(config.sample_root, arguments, with_crf=has_densecrf())
    configs = [(title, parse_config(flags)) for title, flags in runs]
    require_writable(Path(config.sample_root).parent, flag="sample_root")
    ensure_with_bar(config.sample_root, workers=config.num_workers)
    planned = Plan()
    checked = [(title, each, check_chain(each, planned)) for title, each in configs]
    for title, each, steps in checked:
        log.info("==== built-in sample: %s", title)
        run_chain(each, steps)


def run(arguments: Sequence[str]) -> None:
    """What the command line asks for. Raises `InputError` for bad input."""
    config = parse_config(arguments)
    from misc.record import start_log
    from misc.torchutils import resolve_device

    resolve_device(config.device)
    require_writable(Path(config.log_name).parent, flag="log_name")
    require_writable(config.result_dir, flag="result_dir")
    start_log(config.log_name)
    if config.sample:
        run_built_in_sample(config, arguments)
    else:
        run_chain(config, check_chain(config, Plan()))


def main() -> int:
    """Run from the command line; returns the exit code."""
    try:
        run(sys.argv[1:])
    except InputError as error:
        if logging.getLogger().handlers:
            logging.getLogger(__name__).error("error: %s", message_of(error))
        else:
            print(f"error: {message_of(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; finished files are kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
