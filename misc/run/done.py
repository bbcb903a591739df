"""What is done, as `make` knows it: which steps a run need not do again, and why it does the others."""

import json
import logging
import os
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import InputError
from misc.files import look
from misc.files.atomic import write_json
from misc.files.jsonfile import read_dict
from misc.files.paths import same_path
from misc.files.resultfiles import STEPS_FOLDER
from misc.run.config import ALL_STEPS, Config
from misc.run.depends import Fingerprint, fingerprint, settings_of, versions_of
from misc.run.provenance import FinishedFiles, made_otherwise
from misc.run.step import Files, Inputs, Step, StepModule

log = logging.getLogger(__name__)

FEW_FILES = 2
"""That a training writes, a checkpoint and its classes; of more files each is kept where it is what would be made."""
PARTS = ("settings", "places", "versions", "inputs")
DIFFERS = "--{} differs: {} -> {}"


class DoneSteps:
    """`<result_dir>/steps/NAME.json`: what each step's result was made from when it was made last."""

    def __init__(self, result_dir: str | Path) -> None:
        self._folder = Path(result_dir) / STEPS_FOLDER

    def read(self, name: str) -> dict[str, Any]:
        """The record of a step; empty if there is none, or a damaged one.

        Places in a `--work_dir` that was renamed or copied since are called as they are now.
        """
        record = read_dict(self._folder / f"{name}.json")
        is_whole = all(isinstance(record.get(part), dict) for part in PARTS) and "finished" in record
        is_sound = (
            is_whole
            and _is_time(record.get("started"))
            and (record["finished"] is None or _is_time(record["finished"]))
        )
        return self._as_now(record) if is_sound else {}

    def _as_now(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record as it would be, had it been made where it lies: what is in its `--work_dir` has moved with it."""
        work_dir, result_dir = record.get("work_dir"), record.get("result_dir")
        if not (work_dir and isinstance(work_dir, str) and isinstance(result_dir, str)):
            return record
        inside = os.path.relpath(result_dir, work_dir)
        now = os.path.join("", *self._folder.parent.parts)
        if same_path(result_dir, now) or not now.endswith(os.sep + inside):
            return record
        new = now.removesuffix(os.sep + inside)

        def moved(value: Any) -> Any:
            is_inside = isinstance(value, str) and Path(value).is_relative_to(work_dir)
            return str(Path(new, Path(value).relative_to(work_dir))) if is_inside else value

        named = {part: record[part] for part in ("places", "reads") if isinstance(record.get(part), dict)}
        return {**record, **{part: {flag: moved(v) for flag, v in of.items()} for part, of in named.items()}}

    def roots_of(self, name: str, voc12_root: str) -> list[str]:
        """The data set's folder, and what it was called when a step read the same there, before it was moved."""
        reads = self.read(name).get("reads")
        if not (isinstance(reads, dict) and same_path(reads.get("voc12_root"), voc12_root)):
            return [voc12_root]
        as_written = read_dict(self._folder / f"{name}.json")
        earlier = as_written.get("earlier_reads")
        named = [as_written["reads"], *(earlier if isinstance(earlier, list) else [])]
        roots = [before.get("voc12_root") for before in named if isinstance(before, dict)]
        return [voc12_root, *(root for root in roots if isinstance(root, str))]

    def known_contents(self) -> dict[str, str]:
        """{"look": "content"} of every list of files that a step has read or written."""
        known = {}
        for path in sorted(self._folder.glob("*.json")):
            record = self.read(path.stem)
            for seen in (*record.get("inputs", {}).values(), record.get("outputs")):
                if (
                    isinstance(seen, dict)
                    and isinstance(seen.get("look"), str)
                    and isinstance(seen.get("content"), str)
                ):
                    known[seen["look"]] = seen["content"]
        return known

    def must_run(self, step: StepModule, args: Config) -> bool:
        """Whether a step must be done; the log tells why, or that it is done.

        Raises `InputError` if what it reads is gone, or was made with different weights or settings.
        """
        require_unmixed_input(step, args)
        reason = self.reason_to_run(step, args)
        name = step.STEP.name
        if reason is None:
            record = self.read(name)
            log.info("%s is done, since %s: skipped", name, record["finished"].replace("T", " ")[:19])
            self._rename(name, record, _names(step.STEP, args))
        else:
            log.info("%s runs: %s", name, reason)
        return reason is not None

    def _rename(self, name: str, record: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        """Note what the files of a step that is done are called today, where they were moved or named otherwise."""
        before = {part: record[part] if isinstance(record.get(part), dict) else {} for part in ("places", "reads")}
        if all(_is_same(before[part].get(flag), now) for part in before for flag, now in names[part].items()):
            return
        earlier = record["earlier_reads"] if isinstance(record.get("earlier_reads"), list) else []
        as_written = read_dict(self._folder / f"{name}.json").get("reads")
        if as_written and as_written != names["reads"] and as_written not in earlier:
            earlier = [*earlier, as_written]
        self._write(name, {**record, **names, "earlier_reads": earlier})

    def reason_to_run(self, step: StepModule, args: Config) -> str | None:
        """Why a step must be done, as the end of a sentence; None if its result is there and is what it would make.

        Raises `InputError` if what it reads is gone.
        """
        name = step.STEP.name
        record = self.read(name)
        if not step.STEP.remembered:
            return "it looks itself for what is there"
        if is_redone(step.STEP, args):
            return "--redo asks for it"
        if not record:
            outputs = step.outputs(args)
            replaced = outputs[0] if len(outputs) <= FEW_FILES and os.path.isfile(outputs[0]) else ""
            return "it has not been done here yet" + (f", and will replace {replaced}" if replaced else "")
        difference = self._difference(record, step, args)
        if difference is None and not record["finished"]:
            return "it was interrupted"
        if difference is not None:
            return difference
        changed = self._changed_output(record.get("outputs"), step.outputs(args))
        return changed and (_other_place(record["places"], args) or changed)

    def is_interrupted(self, step: StepModule, args: Config) -> bool:
        """Whether a step has begun and not ended, with the settings and inputs of today."""
        record = self.read(step.STEP.name)
        return bool(record) and not record["finished"] and self._difference(record, step, args) is None

    def _difference(self, record: Mapping[str, Any], step: StepModule, args: Config) -> str | None:
        """In what settings, versions or inputs of a step differ from its record, as the end of a sentence."""
        return (
            _first_difference(record["settings"], settings_of(step.STEP, args), DIFFERS)
            or _first_difference(record["versions"], versions_of(step.STEP), "the version of {} differs: {} -> {}")
            or self._changed_input(record["inputs"], step.inputs(args), renamed=_renamed(record, step.STEP, args))
        )

    def changed_input(self, step: StepModule, args: Config, *, flags: Container[str]) -> str | None:
        """What has changed since a step was done of its inputs that `flags` name, as a sentence without its end.

        None where nothing has, or where it can't be told: something is gone, or other files count now than then.
        """
        before = self.read(step.STEP.name).get("inputs", {})
        known_of = {flag: then for flag, then in before.items() if flag in flags and isinstance(then, dict)}
        try:
            given = {
                flag: files
                for flag, files in step.inputs(args).items()
                if flag in known_of and isinstance(files, Files) and len(files.paths) == known_of[flag].get("files")
            }
            return self._changed_input({flag: known_of[flag] for flag in given}, given)
        except InputError:
            return None

    def _changed_input(
        self, before: Mapping[str, Any], inputs: Inputs, *, renamed: Mapping[str, str] | None = None
    ) -> str | None:
        """`renamed`: what to say of flags that name something else now."""
        if gone := sorted(before.keys() - inputs.keys()):
            return f"--{gone[0]} no longer counts"
        known = self.known_contents()
        for flag, given in inputs.items():
            now, then = fingerprint(given, known), before.get(flag)
            if not isinstance(then, dict) or then.get("content") != now["content"]:
                if flag not in before:
                    return f"--{flag} counts now"
                return (renamed or {}).get(flag) or f"{_what(flag, given)} changed"
        return None

    def _changed_output(self, before: Fingerprint | None, outputs: Sequence[str | Path]) -> str | None:
        missing = np.flatnonzero(look.states(outputs)[:, 0] == look.MISSING)
        if len(missing):
            more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
            return f"{outputs[missing[0]]}{more} missing"
        now = fingerprint(Files(outputs), self.known_contents())
        if not isinstance(before, dict) or before.get("content") != now["content"]:
            return "what it wrote was changed since"
        return None

    def start(self, step: StepModule, args: Config) -> None:
        """Note that a step begins, and from what; an interrupted one that goes on keeps the time of its start."""
        name, known = step.STEP.name, self.known_contents()
        if not step.STEP.remembered:
            return
        record = {
            "step": name,
            "started": datetime.now().isoformat(),
            "finished": None,
            "settings": settings_of(step.STEP, args),
            **_names(step.STEP, args),
            "versions": versions_of(step.STEP),
            "inputs": {flag: fingerprint(given, known) for flag, given in step.inputs(args).items()},
        }
        before = self.read(name)
        if before and not before["finished"] and all(before[part] == record[part] for part in PARTS):
            record["started"] = before["started"]
        if "outputs" in before:  # what it wrote when it was done last, until it has ended again
            record["outputs"] = before["outputs"]
        self._write(name, record)

    def finish(self, step: StepModule, args: Config) -> None:
        """Note that a step has ended, and what it wrote."""
        name = step.STEP.name
        if not step.STEP.remembered:
            return
        outputs = fingerprint(Files(step.outputs(args)), self.known_contents())
        record = {**self.read(name), "outputs": outputs, "finished": datetime.now().isoformat()}
        self._write(name, record)

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        write_json(self._folder / f"{name}.json", record)
        look.forget([self._folder])


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def made_with(step: Step, args: Config, inputs: Inputs) -> dict[str, Any]:
    """Whatever determines what a step makes of `inputs`, as JSON holds it."""
    known = DoneSteps(args.result_dir).known_contents()
    return {
        "settings": settings_of(step, args),
        "versions": versions_of(step),
        "inputs": {flag: fingerprint(given, known)["content"] for flag, given in inputs.items()},
    }


def finished_files(step: Step, args: Config, inputs: Inputs) -> FinishedFiles:
    """The files that a step has made from `inputs`, what all of them depend on; none that `--redo` asks for again."""
    return FinishedFiles(made_with(step, args, inputs), keep=not is_redone(step, args))


def mixed_input(step: StepModule, args: Config) -> str | None:
    """Which files that a step reads are left over from other weights or settings, as a sentence without its end.

    Steps make the files of their own lists anew. Those of other lists stay as they are, which a step with such a list
    would take for today's. Raises `InputError` if what the step reads is gone.
    """
    for flag, given in step.inputs(args).items():
        others = made_otherwise(given.paths) if isinstance(given, Files) else []
        if others:
            return (
                f"{len(others)} of the {len(given.paths)} files of --{flag}, such as {others[0]}, were made with other "
                "weights, settings or versions than the files that were made last in their folder"
            )
    return None


def require_unmixed_input(step: StepModule, args: Config) -> None:
    """Raise `InputError` if files that a step reads are left over from other weights or settings (`mixed_input`)."""
    if step.STEP.remembered and (mixed := mixed_input(step, args)):
        raise InputError(
            f"{step.STEP.name}: {mixed}; run the step that makes them with a list of all of them, which keeps those "
            "that are up to date, or name a list or a folder without these."
        )


def is_redone(step: Step, args: Config) -> bool:
    """Whether `--redo` names the step."""
    return bool({ALL_STEPS, step.name} & {*args.redo})


def _names(step: Step, args: Config) -> dict[str, Any]:
    """What the flags name, as JSON holds it: the places where a step writes, and what it reads; and where all lies."""
    parts = {"places": args.only(step.writes), "reads": args.only(step.reads)}
    return json.loads(json.dumps({**parts, "work_dir": args.work_dir, "result_dir": args.result_dir}))


def _other_place(places: Mapping[str, Any], args: Config) -> str | None:
    """Which place of a record is another one now, as the end of a sentence."""
    for flag, place in places.items():
        now = getattr(args, flag, None)
        if not _is_same(place, now):
            return DIFFERS.format(flag, _shown(place), _shown(now))
    return None


def _is_same(then: Any, now: Any) -> bool:
    """Whether a flag names what it named, however that is written."""
    return _shown(then) == _shown(now) or same_path(then, now)


def _renamed(record: Mapping[str, Any], step: Step, args: Config) -> dict[str, str]:
    """{flag: that it names something else than when the record was made}; records of earlier versions don't tell."""
    before, now = record.get("reads"), args.only(step.reads)
    if not isinstance(before, dict):
        return {}
    pairs = {flag: (before[flag], now[flag]) for flag in now if flag in before}
    return {
        flag: DIFFERS.format(flag, _shown(then), _shown(value))
        for flag, (then, value) in pairs.items()
        if not _is_same(then, value)
    }


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any], sentence: str) -> str | None:
    for name in [*now, *before.keys() - now.keys()]:
        values = [_shown(values[name]) if name in values else "nothing" for values in (before, now)]
        if values[0] != values[1]:
            return sentence.format(name, *values)
    return None


def _shown(value: Any) -> str:
    """A setting as text, in which 7 and 7.0 are one (records of earlier versions have either)."""
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _what(flag: str, given: Files | Any) -> str:
    """An input in a sentence, up to its verb."""
    if isinstance(given, Files):
        return f"{given.paths[0]} has" if len(given.paths) == 1 else f"the files of --{flag} have"
    return f"what --{flag} says has"
