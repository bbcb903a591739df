"""W-OoD: run the enabled steps of the chain, in order. `python run_sample.py --help` lists the flags."""

import os
import sys

from misc.run.interpreter import (
    EXIT_BAD_INPUT,
    replace_closed_streams,
    require_imports,
    require_interpreter,
    speaks_for_this_machine,
)

if __name__ == "__main__":
    replace_closed_streams()
    require_interpreter()

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The processes that load images share the cores out already: OpenCV would start a thread a core in each
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
# Charts are drawn without windows; a notebook's own way to show them needs its packages
os.environ["MPLBACKEND"] = "agg"

from misc.errors import FoundByOne, InputError, ProcessLost, message_of, raise_all, reason_of, told_together
from misc.files.disk import GOES_ON
from misc.files.look import forget, one_look
from misc.files.resultfiles import METRICS_FOLDER
from misc.run.config import STEP_MODULES, Config, enabled_steps, parse_config
from misc.run.parallel import is_one_of_several
from misc.run.plan import (
    EVERYTHING,
    Plan,
    require_places_apart,
    require_writable,
    require_writable_file,
    require_writable_results,
)
from misc.run.step import StepModule
from misc.run.stopping import (
    GRACE_SECONDS,
    Told,
    end_workers,
    ending_when_told,
    is_told,
    told,
    wait_for_the_end,
)

log = logging.getLogger(__name__)

EXIT_UNFORESEEN, EXIT_LOST, EXIT_INTERRUPTED = 1, 3, 130
SECONDS_TO_SAY_WHY = 20
"""For the process that has found bad input: torchrun ends it, too, as soon as another one has ended."""


def check_chain(config: Config, planned: Plan) -> list[StepModule]:
    """Check the input of all enabled steps, note in `planned` what they will make; returns the steps' modules.

    Raises `InputError` for bad input: all problems of all steps but those that another hides, such as a list that
    can't be read. Of several processes the first one checks.
    """
    names = enabled_steps(config)
    if not names:
        raise InputError("no step is enabled; switch one on, for example --make_cam_pass True.")
    from misc.run.device import UnfilledNetworks
    from misc.run.distributed import on_first_process
    from misc.run.limits import limits_told

    steps = [importlib.import_module(STEP_MODULES[name]) for name in names]

    def check() -> None:
        require_places_apart([step.STEP for step in steps], config)
        problems: list[InputError] = []
        with UnfilledNetworks():  # networks are built to be compared with checkpoints, not to be trained
            for step in steps:
                try:
                    with limits_told(step.STEP), told_together():
                        planned.update(step.check(config, planned))
                except InputError as error:
                    problems.append(error)
                    places = (getattr(config, flag) for flag in step.STEP.writes)
                    planned.update(dict.fromkeys(filter(None, places), EVERYTHING))  # not to be told again of each
                except Exception:
                    raise_all(problems)  # from which it may follow: the error that is raised keeps it as its context
                    raise
        raise_all(problems)

    on_first_process(check)
    return steps


def run_chain(config: Config, steps: Sequence[StepModule]) -> None:
    """Run steps whose input was checked, except those whose result is there, and keep a record of them."""
    # Imported here, so that --help and wrong flags answer without loading torch
    from misc.run.device import resolve_device, set_precision, set_seed
    from misc.run.distributed import first_process_says, is_first_process, on_first_process, wait_for_all
    from misc.run.done import DoneSteps
    from misc.run.limits import limits_told
    from misc.run.memory import keep_freed_memory
    from misc.run.record import RunRecord

    device = resolve_device(config.device)
    precision = set_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    record = RunRecord(config, device, [step.STEP.name for step in steps], precision=precision)
    if is_first_process():
        record.announce()
    done = DoneSteps(config.result_dir)
    for step in steps:
        if not first_process_says(partial(done.must_run, step, config)):
            continue
        set_seed(config.seed)
        on_first_process(done.start, step, config)
        recorded = record.step(step.STEP.name, step.STEP.description) if is_first_process() else nullcontext()
        with recorded, limits_told(step.STEP):
            if step.STEP.shared:
                step.run(config)
                wait_for_all()
            else:
                on_first_process(step.run, config)
        written = [getattr(config, flag) for flag in step.STEP.writes]
        forget([*filter(None, written), Path(config.result_dir, METRICS_FOLDER)])
        on_first_process(done.finish, step, config)


def sample_configs(config: Config, arguments: Sequence[str]) -> list[tuple[str, Config]]:
    """The chains of the built-in sample, up to the report, with their titles.

    `arguments`: the command line, whose flags change the sample's (its data, switches and control outputs stay).
    """
    from misc.run.sample_runs import sample_runs

    runs = sample_runs(config.sample_root, arguments)
    return [(f"built-in sample: {title}", parse_config(flags)) for title, flags in runs]


def make_sample(config: Config) -> None:
    """Make the built-in sample where it is missing or damaged."""
    from voc12.sample import ensure_with_bar

    require_writable(Path(config.sample_root).parent, flag="sample_root", is_own=False)
    ensure_with_bar(config.sample_root, workers=config.num_workers)


@contextmanager
def writing_alone(configs: Sequence[Config]) -> Iterator[None]:
    """Keep other runs from writing where these write, and clear away what killed ones have left there."""
    from misc.run.distributed import is_first_process, on_first_process
    from misc.run.lock import locked
    from misc.run.training_state import remove_unfinished_metrics

    places = {config.result_dir for config in configs}
    for config in configs:
        declared = [importlib.import_module(STEP_MODULES[name]).STEP for name in enabled_steps(config)]
        places |= {getattr(config, flag) for step in declared if step.remembered for flag in step.writes}
    with ExitStack() as stack:
        on_first_process(stack.enter_context, locked(filter(None, places)))
        if is_first_process():
            for config in configs:
                remove_unfinished_metrics(config.result_dir)
        yield


def plan_chains(chains: Sequence[tuple[str, Config]]) -> list[list[StepModule]]:
    """Check all chains and show what each step will do; returns their steps.

    Raises `InputError` for bad input, or if the disk has no room for what is to be written.
    """
    from misc.run.distributed import on_first_process
    from misc.run.forecast import forecast, require_room, table_of, tell_gpu_room

    planned = Plan()
    steps_of = [check_chain(config, planned) for _, config in chains]

    def show() -> None:
        maker_of: dict[str, str] = {}
        of_all = []
        for (title, config), steps in zip(chains, steps_of, strict=True):
            rows = forecast(config, steps, maker_of)
            log.info("%s\n%s", title or "the plan", table_of(rows))
            tell_gpu_room(rows, config, steps)
            of_all += rows
        require_room(of_all)

    on_first_process(show)
    return steps_of


def run(arguments: Sequence[str]) -> None:
    """What the command line asks for. Raises `InputError` for bad input."""
    sentences: list[str] = []
    config = parse_config(arguments, explain=sentences.append)
    require_imports()
    from misc.run.board import require_board
    from misc.run.device import require_code_for, resolve_device, tell_of_device
    from misc.run.distributed import on_first_process, process_group
    from misc.run.limits import allow_open_files, keep_to_cores, limits_told
    from misc.run.record import start_log
    from voc12.derived import DERIVED_FOLDER
    from voc12.verify import VERIFIED_FOLDER

    def prepare():
        device = resolve_device(config.device)
        require_code_for(device)
        if config.work_dir:
            require_writable(config.work_dir, flag="work_dir", is_own=False)
        require_writable_file(f"{config.log_name}.log", flag="log_name", kind="log")
        require_writable_results(config.result_dir)
        if config.tensorboard:
            require_board()
            require_writable(config.tensorboard, flag="tensorboard", is_own=False)
        require_writable(DERIVED_FOLDER)  # derived lists and labels
        require_writable(VERIFIED_FOLDER)  # which images were checked
        return device

    with process_group(prepare) as device, one_look(), limits_told():
        start_log(config.log_name)
        allow_open_files()
        keep_to_cores()
        tell_of_device(config.device, config.precision, device)
        for sentence in sentences:
            log.info("%s", sentence)
        chains = sample_configs(config, arguments) if config.sample else [("", config)]
        with nullcontext() if config.plan else writing_alone([each for _, each in chains]):
            if config.sample:
                on_first_process(make_sample, config)
            steps_of = plan_chains(chains)
            if config.plan:
                return
            for (title, each), steps in zip(chains, steps_of, strict=True):
                if title:
                    log.info("==== %s", title)
                run_chain(each, steps)


def main() -> int:
    """Run from the command line; returns the exit code."""
    with ending_when_told():
        try:
            run(sys.argv[1:])
        except ProcessLost as error:
            if error.__cause__:
                _say_error(f"{error}; if one of them has stopped, it says why; {GOES_ON}.")
            else:  # the first process is about to say why
                wait_for_the_end(SECONDS_TO_SAY_WHY)
            return EXIT_LOST
        except InputError as error:
            if is_told() and not is_one_of_several():  # a worker that was told as well is missed, perhaps
                return _interrupted(told())
            _say_error(message_of(error), of_one=isinstance(error, FoundByOne))
            return EXIT_BAD_INPUT
        except KeyboardInterrupt as error:
            return _interrupted(error)
        except Exception as error:
            if is_told(grace=GRACE_SECONDS):  # its workers were told as well, and were first
                return _interrupted(told())
            if not logging.getLogger().handlers:
                raise
            log.exception(
                "error: something unforeseen (%s: %s); the log has the traceback, what is finished is kept, and the "
                "same command goes on from there",
                type(error).__name__,
                reason_of(error),
            )
            return EXIT_UNFORESEEN
    return 0


def _say_error(sentence: str, *, of_one: bool = False) -> None:
    """Print it, or log it where the log has begun; `of_one`: no other process has found it."""
    if logging.getLogger().handlers:
        log.error("error: %s", sentence)
    elif of_one or speaks_for_this_machine():
        print(f"error: {sentence}", file=sys.stderr)
    else:  # what every process of this machine finds, of which one says it
        wait_for_the_end(SECONDS_TO_SAY_WHY)


def _interrupted(error: KeyboardInterrupt) -> int:
    goes_on = "the same command goes on from there"
    if "--redo" in sys.argv:
        goes_on = "the same command without --redo goes on from there (with it, it begins these steps again)"
    print(f"interrupted; what is finished is kept, and {goes_on}", file=sys.stderr)
    return error.exit_code if isinstance(error, Told) else EXIT_INTERRUPTED


def leave(code: int) -> NoReturn:
    """End this process, without waiting for threads and workers if it failed or was told to."""
    if code:
        end_workers()
        logging.shutdown()
        with suppress(OSError):  # it may lead into a file on a full disk
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
