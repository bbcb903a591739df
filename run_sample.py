"""W-OoD: run the enabled steps of the chain, in order. `python run_sample.py --help` lists the flags."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from misc.config import enabled_steps, parse_config
from misc.errors import InputError, message_of

EXIT_BAD_INPUT = 2
STEP_MODULES = {
    "train_classifier": "step.train_classifier",
    "train_cam": "step.train_cam",
    "make_cam": "step.make_cam",
    "eval_cam": "step.eval_cam",
    "cam_to_ir_label": "step.cam_to_ir_label",
    "train_irn": "step.train_irn",
    "make_sem_seg": "step.make_sem_seg_labels",
    "eval_sem_seg": "step.eval_sem_seg",
}


def run_chain(arguments: Sequence[str] | None = None) -> None:
    """Check the input of all enabled steps, then run them. Raises `InputError` for bad input."""
    config = parse_config(arguments)
    names = enabled_steps(config)
    if not names:
        raise InputError("no step is enabled; switch one on, for example --make_cam_pass True.")
    # Imported here, so that --help and wrong flags answer without loading torch
    from misc.plan import require_writable
    from misc.record import RunRecord, start_log
    from misc.torchutils import resolve_device, set_seed

    device = resolve_device(config.device)
    require_writable(Path(config.log_name).parent, flag="log_name")
    require_writable(config.result_dir, flag="result_dir")
    start_log(config.log_name)
    steps = [(name, importlib.import_module(STEP_MODULES[name])) for name in names]
    planned: dict[str, frozenset[str]] = {}
    for _, step in steps:
        planned.update(step.check(config, planned))
    record = RunRecord(config, device, names)
    record.announce()
    for name, step in steps:
        set_seed(config.seed)
        with record.step(name):
            step.run(config)


def main() -> int:
    """Run from the command line; returns the exit code."""
    try:
        run_chain()
    except InputError as error:
        if logging.getLogger().handlers:
            logging.getLogger(__name__).error("error: %s", message_of(error))
        else:
            print(f"error: {message_of(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; finished files are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
