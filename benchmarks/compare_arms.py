"""Which part of the method brings what, on any data: arms of equal length that differ in named flags only.

`python benchmarks/compare_arms.py --recipe small --voc12_root FOLDER --seeds 0 1 2 --arms control wood` trains a
classifier a seed, each arm from it, makes and scores what the recipe's chain makes, and writes one table (Markdown and
JSON) and a figure into `--folder`. All other flags are those of run_sample.py. The same command goes on where it
stopped, and does nothing again that is done. docs/evidence.md tells what the columns mean.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import CLASSIFIER, CONTROL, NAMED, RANDOM, WOOD, Arm, ood_flags, parse_arms, require_free
from benchmarks.arms_table import Result, content, figure, page, result_of
from misc.errors import InputError, message_of
from misc.files.atomic import atomic_path, write_json
from misc.report.collect import collect_arm
from misc.run.config import (
    STEP_MODULES,
    Config,
    changed_flags,
    enabled_steps,
    given_flags,
    parse_config,
    switches,
    to_arguments,
)
from misc.run.sample_runs import sample_runs
from misc.run.stopping import Told, ending_when_told
from voc12.classes import names_with_background
from voc12.devkit import open_devkit
from voc12.lists import read_split
from voc12.sample import ensure_with_bar

ROOT = Path(__file__).resolve().parent.parent
CAM_STEPS = ("train_cam", "make_cam", "eval_cam", "make_advcam", "eval_advcam")
NEEDED = ("train_cam", "make_cam", "eval_cam")
CHAIN_STEPS = (
    *CAM_STEPS,
    *("cam_to_ir_label", "eval_ir_label", "train_irn", "make_sem_seg", "eval_sem_seg", "train_deeplab", "eval_deeplab"),
)
"""What the table's columns come from."""
Execute = Callable[[Sequence[str], Path], str | None]
"""(command line of run_sample.py, folder) -> why it failed, None if it did not."""


@dataclass(frozen=True)
class Run:
    """One run of run_sample.py, an arm or the classifier with a seed: its command line, and what that asks for."""

    name: str
    folder: Path
    line: Sequence[str]
    config: Config

    @property
    def seed(self) -> int:
        """That of all random choices."""
        return self.config.seed


@dataclass(frozen=True)
class Comparison:
    """What has come out.

    Attributes:
        arms: in the order given.
        results: {arm: {seed: result}}, of those that have ended well.
        failed: {arm: {seed: why}}, of the others.
        seconds: {seed: of the classifier's training}.
    """

    arms: Sequence[Arm]
    results: dict[str, dict[int, Result]]
    failed: dict[str, dict[int, str]]
    seconds: dict[int, float]


def runs_of_seed(
    arms: Sequence[Arm],
    flags: Sequence[str],
    *,
    seed: int,
    folder: Path,
    chain_of: Collection[str],
    random_root: str = "",
    random_list: str = "",
) -> list[Run]:
    """The runs of one seed: the classifier's, unless `flags` name one, then the arms'.

    Args:
        flags: of run_sample.py, for all arms.
        folder: has a folder an arm, and in it one a seed, for all that its run writes.
        chain_of: arms with which the chain goes on after the CAMs.

    Raises `InputError` for flags that the comparison sets itself, and for arms that can't be made.
    """
    given = given_flags(flags)
    require_free(given)

    def resolved(name: str) -> tuple[Path, list[Config]]:
        place = folder / name / f"seed{seed}"
        line = [*flags, "--seed", str(seed), "--work_dir", str(place)]
        config = parse_config(line)
        lines = [each for _, each in sample_runs(config.sample_root, line)] if config.sample else [line]
        return place, [parse_config(each) for each in lines]

    def run(name: str, place: Path, config: Config, steps: Sequence[str], own: Mapping[str, Any]) -> Run:
        line = to_arguments({**changed_flags(vars(config)), **own, **switches(*steps)})
        return Run(name, place, line, parse_config(line))

    place, (config, *_) = resolved(CLASSIFIER)  # of the sample's runs, the first
    start = config.cam_init_weights_name
    runs = []
    if "cam_init_weights_name" not in given:
        runs.append(run(CLASSIFIER, place, config, ["train_classifier"], {}))
    for arm in arms:
        place, configs = resolved(arm.name)
        config = configs[-1]  # of the sample's runs, the one with the settings of the whole chain
        enabled = {step for each in configs for step in enabled_steps(each)}
        if missing := [step for step in NEEDED if step not in enabled]:
            raise InputError(
                f"the flags leave out {missing[0]}, without which there is nothing to compare; switch it on, and for "
                "eval_cam put masks into the data set's SegmentationClass."
            )
        if not config.sample:  # which is not made yet
            read_split(open_devkit(config.voc12_root, config.class_list), config.chainer_eval_set)
        counted = CHAIN_STEPS if arm.name in chain_of else CAM_STEPS
        steps = [step for step in STEP_MODULES if step in enabled and step in counted]
        ood = ood_flags(arm, config, folder=place, random_root=random_root, random_list=random_list)
        runs.append(run(arm.name, place, config, steps, {"cam_init_weights_name": start, **ood, **arm.flags}))
    return runs


def execute(line: Sequence[str], folder: Path) -> str | None:
    """Run run_sample.py with this command line, in a process of its own; what it says goes to `folder`/output.txt.

    Returns why it failed, None if it did not. Told to end, the run is told, too, and waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "output.txt"
    command = [sys.executable, str(ROOT / "run_sample.py"), *line]
    # In a session of its own, so that Ctrl-C does not reach it twice: the second time would end it on the spot
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    with path.open("w") as output, subprocess.Popen(command, stdout=output, **options) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code == 0:
        return None
    said = [text for text in path.read_text(errors="replace").splitlines() if text.startswith("error: ")]
    return said[-1].removeprefix("error: ") if said else f"it ended with exit code {code}; {path} tells more"


def compare(
    arms: Sequence[Arm],
    flags: Sequence[str],
    *,
    seeds: Sequence[int],
    folder: Path,
    chain_of: Collection[str] | None = None,
    random_root: str = "",
    random_list: str = "",
    execute: Execute = execute,
) -> Comparison:
    """Run all arms with all seeds, one after the other; one that fails does not keep the others from running.

    Args:
        flags, folder, chain_of: as in `runs_of_seed`; by default the chain goes on with all arms.
        execute: runs a command line.

    Raises `InputError` for what `runs_of_seed` refuses, before anything runs.
    """
    chain_of = {arm.name for arm in arms} if chain_of is None else chain_of
    if unknown := sorted({*chain_of} - {arm.name for arm in arms}):
        raise InputError(f"--chain_of names {unknown[0]}, which is none of --arms.")
    config = parse_config(flags)
    if config.sample:
        ensure_with_bar(config.sample_root, workers=config.num_workers)
    options = {"folder": folder, "chain_of": chain_of, "random_root": random_root, "random_list": random_list}
    runs = [run for seed in seeds for run in runs_of_seed(arms, flags, seed=seed, **options)]
    done = Comparison(arms, {arm.name: {} for arm in arms}, {}, {})
    lost: dict[int, str] = {}
    for run in runs:
        started = time.perf_counter()
        reason = lost.get(run.seed) or execute(run.line, run.folder)
        minutes = (time.perf_counter() - started) / 60
        print(f"seed {run.seed}, {run.name}: {reason or f'done ({minutes:.1f} minutes)'}", flush=True)
        if run.name == CLASSIFIER and reason is not None:
            lost[run.seed] = f"the classifier that it starts from failed: {reason}"
        elif reason is not None:
            done.failed.setdefault(run.name, {})[run.seed] = reason
        else:
            result = _result(run)
            if run.name == CLASSIFIER:
                done.seconds[run.seed] = result.seconds
            else:
                done.results[run.name][run.seed] = result
    return done


def _result(run: Run) -> Result:
    config = run.config
    classes = names_with_background(open_devkit(config.voc12_root, config.class_list).classes)
    return result_of(collect_arm(run.name, config.result_dir, config.voc12_root, classes), enabled_steps(config))


def write(done: Comparison, folder: Path, *, command: str) -> str:
    """Write arms.md, arms.json and arms.png into the folder; returns the page."""
    differs_in = {arm.name: arm.differs_in for arm in done.arms}
    told = {"differs_in": differs_in, "failed": done.failed}
    text = page(done.results, head=f"# Arms compared\n\n`{command}`", **told)
    write_json(
        folder / "arms.json",
        {
            "command": command,
            "classifier_seconds": {str(seed): seconds for seed, seconds in done.seconds.items()},
            "arms": content(done.results, **told),
        },
    )
    files = {"arms.md": text.encode(), "arms.png": figure(done.results)}
    for name, raw in files.items():
        if raw is not None:
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(raw)
    return text


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The comparison's own flags, and those for run_sample.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[CONTROL, WOOD],
        help=f"{', '.join(NAMED)}, ood_N (with N OoD images), {RANDOM}, or one of your own, 'NAME=FLAGS'",
    )
    parser.add_argument("--chain_of", nargs="*", help="arms whose chain goes on after the CAMs; by default all")
    parser.add_argument("--folder", type=Path, default=Path("result/arms"), help="for all that the arms write")
    parser.add_argument("--random_ood_list", default="", help=f"OoD images of the arm {RANDOM}, one file name a line")
    parser.add_argument("--random_ood_root", default="", help="their folder; by default --ood_root")
    return parser.parse_known_args(arguments)


def answered(work: Callable[[], Comparison]) -> int:
    """Compare; returns the exit code: 1 if an arm failed, 2 for bad input, which is told in one sentence."""
    try:
        with ending_when_told():
            return 1 if work().failed else 0
    except InputError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except Told as told:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return told.exit_code


def main() -> int:
    """Compare, and print the page; returns the exit code."""
    options, flags = parse(sys.argv[1:])

    def work() -> Comparison:
        done = compare(
            parse_arms(options.arms),
            flags,
            seeds=options.seeds,
            folder=options.folder,
            chain_of=options.chain_of,
            random_root=options.random_ood_root,
            random_list=options.random_ood_list,
        )
        command = f"python benchmarks/compare_arms.py {shlex.join(sys.argv[1:])}"
        print(f"\n{write(done, options.folder, command=command)}")
        return done

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
