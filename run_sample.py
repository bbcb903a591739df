"""W-OoD: run the enabled steps of the chain, in order. `python run_sample.py --help` lists the flags."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The processes that load images share the cores out already: OpenCV would start a thread a core in each
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

from misc.errors import InputError, ProcessLost, message_of
from misc.run.config import STEP_MODULES, Config, enabled_steps, parse_config
from misc.run.parallel import launched_rank
from misc.run.plan import Plan, require_writable

EXIT_BAD_INPUT, EXIT_LOST, EXIT_INTERRUPTED = 2, 3, 130


def check_chain(config: Config, planned: Plan) -> list[tuple[str, ModuleType]]:
    """Check the input of all enabled steps, note in `planned` what they will make; returns the steps' modules.

    Raises `InputError` for bad input. Of several processes the first one checks.
    """
    names = enabled_steps(config)
    if not names:
        raise InputError("no step is enabled; switch one on, for example --make_cam_pass True.")
    from misc.run.distributed import on_first_process

    steps = [(name, importlib.import_module(STEP_MODULES[name])) for name in names]

    def check() -> None:
        for _, step in steps:
            planned.update(step.check(config, planned))

    on_first_process(check)
    return steps


def run_chain(config: Config, steps: Sequence[tuple[str, ModuleType]]) -> None:
    """Run steps whose input was checked, and keep a record of them."""
    # Imported here, so that --help and wrong flags answer without loading torch
    from misc.run.device import resolve_device, set_precision, set_seed
    from misc.run.distributed import is_first_process, on_first_process, wait_for_all
    from misc.run.memory import keep_freed_memory
    from misc.run.record import RunRecord

    device = resolve_device(config.device)
    precision = set_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    record = None
    if is_first_process():
        record = RunRecord(config, device, [name for name, _ in steps], precision=precision)
        record.announce()
    for name, step in steps:
        set_seed(config.seed)
        with record.step(name, step.STEP.description) if record else nullcontext():
            if step.STEP.shared:
                step.run(config)
                wait_for_all()
            else:
                on_first_process(step.run, config)


def run_built_in_sample(config: Config, arguments: Sequence[str]) -> None:
    """Make the built-in sample where it is missing or damaged, and run the whole chain on it, up to the report.

    `arguments`: the command line, whose flags change the sample's (its data, switches and control outputs stay).
    """
    from misc.run.distributed import on_first_process
    from misc.run.sample_runs import sample_runs
    from voc12.sample import ensure_with_bar

    log = logging.getLogger(__name__)
    runs = sample_runs(config.sample_root, arguments)
    configs = [(title, parse_config(flags)) for title, flags in runs]

    def make_data() -> None:
        require_writable(Path(config.sample_root).parent, flag="sample_root")
        ensure_with_bar(config.sample_root, workers=config.num_workers)

    on_first_process(make_data)
    planned = Plan()
    checked = [(title, each, check_chain(each, planned)) for title, each in configs]
    for title, each, steps in checked:
        log.info("==== built-in sample: %s", title)
        run_chain(each, steps)


def run(arguments: Sequence[str]) -> None:
    """What the command line asks for. Raises `InputError` for bad input."""
    sentences: list[str] = []
    config = parse_config(arguments, explain=sentences.append)
    from misc.run.device import resolve_device
    from misc.run.distributed import process_group
    from misc.run.record import start_log

    device = resolve_device(config.device)
    if config.work_dir:
        require_writable(config.work_dir, flag="work_dir")
    require_writable(Path(config.log_name).parent, flag="log_name")
    require_writable(config.result_dir, flag="result_dir")
    with process_group(device):
        start_log(config.log_name)
        for sentence in sentences:
            logging.getLogger(__name__).info("%s", sentence)
        if config.sample:
            run_built_in_sample(config, arguments)
        else:
            run_chain(config, check_chain(config, Plan()))


def main() -> int:
    """Run from the command line; returns the exit code."""
    try:
        run(sys.argv[1:])
    except ProcessLost:
        return EXIT_LOST  # the other process has said why
    except InputError as error:
        if logging.getLogger().handlers:
            logging.getLogger(__name__).error("error: %s", message_of(error))
        elif launched_rank() == 0:  # the others find the same
            print(f"error: {message_of(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; finished files are kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
