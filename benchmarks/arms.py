"""The arms of a comparison: trainings of equal length that differ in named flags only."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from misc.errors import InputError
from misc.run.config import Config, given_flags, switches, to_arguments
from misc.run.sample_runs import WITHOUT_OOD
from voc12.lists import read_ood_paths

CONTROL, WOOD, RANDOM = "control", "wood", "random_ood"
NAMED: dict[str, Mapping[str, Any]] = {
    CONTROL: WITHOUT_OOD,
    WOOD: {},
    "ood_loss": {"distance_lambda": 0},
    "distance_loss": {"ood_coeff": 0},
    "no_adversarial_step": {"ood_adv_step": 0},
}
"""{arm: flags in which it differs from the recipe}."""
CLASSIFIER = "classifier"
"""Name of the run that trains a seed's classifier, from which all arms of that seed start; no arm may be called so."""
OUTPUTS = {item.name for item in fields(Config) if item.metadata["output"]} - {"cam_init_weights_name"}
SET_BY_THE_COMPARISON = {"seed", "work_dir", "plan", *OUTPUTS}
SHARED_BY_ALL_ARMS = {
    *("recipe", "sample", "redo", "cam_init_weights_name", "cam_batch_size", "cam_num_epoches", "train_list"),
    *("voc12_root", "class_list", "label_file", "chainer_eval_set", "deeplab_eval_set"),
    *switches(),
}
"""Where arms differ in one of these, they are not equally long, start or end elsewhere, or are scored otherwise."""


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: also that of its folder.
        flags: those in which it differs from the recipe.
        n_ood: how many of the OoD images it has, drawn by the seed; None for all.
        is_random: whether its OoD images are of the list of random ones.
    """

    name: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    n_ood: int | None = None
    is_random: bool = False

    @property
    def differs_in(self) -> str:
        """What sets it apart from the recipe, in words."""
        words = [shlex.join(to_arguments(self.flags))] if self.flags else []
        if self.n_ood is not None:
            words.append(f"{self.n_ood} of the OoD images, drawn by the seed")
        if self.is_random:
            words.append("random OoD images, as many as there are hard ones, or all that there are")
        return "; ".join(words) or "nothing: the recipe as it is"


def require_free(flags: Mapping[str, Any]) -> None:
    """Raise `InputError` for flags of run_sample.py that the comparison sets for each arm and seed."""
    if taken := sorted(SET_BY_THE_COMPARISON & flags.keys()):
        raise InputError(f"--{taken[0]} is set by the comparison, for each arm and seed; drop it.")


def parse_arm(text: str) -> Arm:
    """The arm of a name of `NAMED`, of `ood_N` and `random_ood`, or of one's own: `NAME=FLAGS`.

    Raises `InputError` for an unknown name, and for flags that would make an arm of another length or start.
    """
    name, has_flags, flags = text.partition("=")
    amount = re.fullmatch(r"ood_([1-9]\d*)", name)
    is_known = name in (*NAMED, RANDOM) or amount is not None
    if has_flags:
        if is_known or name == CLASSIFIER or not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"--arms: {name!r} can't be the name of an arm of your own; choose another name.")
        own = given_flags(shlex.split(flags))
        require_free(own)
        if unequal := sorted(SHARED_BY_ALL_ARMS & own.keys()):
            raise InputError(
                f"--arms: {name} changes --{unequal[0]}, and could then not be compared with the others; give that "
                "flag to all arms."
            )
        return Arm(name, own)
    if not is_known:
        raise InputError(
            f"--arms: there is no arm {name}; expected {', '.join(NAMED)}, ood_N (with N OoD images), {RANDOM}, or one "
            "of your own, such as 'weak=--ood_coeff 0.1'."
        )
    return Arm(name, NAMED.get(name, {}), n_ood=int(amount[1]) if amount else None, is_random=name == RANDOM)


def parse_arms(texts: Sequence[str]) -> list[Arm]:
    """The arms in the order given. Raises `InputError` for what `parse_arm` refuses, and for a name given twice."""
    arms = [parse_arm(text) for text in texts]
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--arms names {twice[0]} twice; drop one of them.")
    return arms


def ood_flags(arm: Arm, config: Config, *, folder: Path, random_root: str, random_list: str) -> dict[str, Any]:
    """The flags that give an arm its OoD images; its list, where it has one of its own, is written into `folder`.

    The images are drawn by the seed, so that 8 of them contain the 4 of the same seed, and stay in their order.
    Batches and clusters are at most as large as the list.

    Raises `InputError` for a list that is missing or holds fewer images than the arm needs.
    """
    if arm.n_ood is None and not arm.is_random:
        return {}
    hard = read_ood_paths(config.ood_root, config.ood_list)
    paths, root, n_chosen = hard, config.ood_root, arm.n_ood or len(hard)
    if arm.is_random:
        if not random_list:
            raise InputError(f"--arms {RANDOM} needs --random_ood_list, a list of random OoD images.")
        root = random_root or config.ood_root
        paths = read_ood_paths(root, random_list)
        n_chosen = min(n_chosen, len(paths))
    if n_chosen > len(paths):
        raise InputError(f"--arms {arm.name} needs {n_chosen} OoD images, but --ood_list has {len(paths)}; lower it.")
    drawn = np.random.default_rng(config.seed).permutation(len(paths))[:n_chosen]
    own_list = folder / "ood_list.txt"
    own_list.parent.mkdir(parents=True, exist_ok=True)
    chosen = [paths[k] for k in sorted(drawn)]
    names = [path.relative_to(root) if path.is_relative_to(root) else path.absolute() for path in chosen]
    own_list.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return {
        "ood_root": root,
        "ood_list": str(own_list),
        "ood_batch_size": min(config.ood_batch_size, n_chosen),
        "cluster_K": min(config.cluster_K, n_chosen),
    }
