"""Each step is declared in its own file, and all that is said of it elsewhere agrees with that."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
from support import make_all_inputs

import step
from misc.run.config import STEP_MODULES, STEP_SUFFIX, Config, parse_config
from misc.run.step import Files
from voc12.cams import CamFiles, MadeOfCams
from voc12.evaluation import Evaluated, score_cams
from voc12.images import ids_to_segment
from voc12.inference import KeptOutputs, make_listed_masks

FLAGS = {item.name: item for item in dataclasses.fields(Config)}
STEPS = {name: importlib.import_module(module) for name, module in STEP_MODULES.items()}
README = Path(__file__).resolve().parent.parent / "README.md"
LOOKED_AT_BY = {
    "known_labels": {"label_file", "labels_from"},
    "mask_cams": {"masks_from", "cam_out_dir", "advcam_out_dir"},
    "show_list_flag": {"infer_list", "show_list"},
    "deeplab_list_flag": {"infer_list", "deeplab_train_list"},
}
"""The flags behind what `misc.run.config` offers to the steps."""
HOW_TO_RUN = {
    *("device", "precision", "num_workers", "crf", "crf_workers", "resume", "state_minutes"),
    *("result_dir", "tensorboard", "make_cam_batch_size", "advcam_batch_size", "irn_infer_batch_size"),
}
"""Where and how fast a step works: no step need declare these."""
READ_FOR_STEPS = (Evaluated, score_cams, CamFiles, MadeOfCams, make_listed_masks, KeptOutputs, ids_to_segment)
"""What steps of a kind share."""


def names_in(tree: ast.AST) -> tuple[set[str], set[str]]:
    """The flags that a module reads off `args`, and all that it mentions, in names or texts.

    What one of `READ_FOR_STEPS` reads counts as read by a module that uses it.
    """
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "args"}
    names = {node.attr for node in attributes} | {node.id for node in nodes if isinstance(node, ast.Name)}
    for found in (used, names):
        found.update(*(LOOKED_AT_BY[name] for name in LOOKED_AT_BY.keys() & found))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for shared in READ_FOR_STEPS:
        if shared.__name__ in names:
            read, _ = names_in(ast.Module(ast.parse(inspect.getsource(shared)).body[0].body, []))
            used, names = used | read, names | read
    return used & FLAGS.keys(), names | texts


def test_every_module_has_its_line_among_the_switches():
    (folder,) = step.__path__
    modules = {f"step.{path.stem}" for path in Path(folder).glob("*.py")} - {"step.__init__"}
    assert sorted(modules) == sorted(STEP_MODULES.values())
    assert list(STEP_MODULES) == [module.STEP.name for module in STEPS.values()]


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_declares_are_flags_that_it_uses(name):
    declared, module = STEPS[name].STEP, STEPS[name]
    places = {*declared.reads, *declared.writes}
    assert {*places, *declared.flags} <= FLAGS.keys()
    assert not places & {*declared.flags}
    for group in (declared.reads, declared.writes, declared.flags):
        assert len(set(group)) == len(group)
    tree = ast.parse(Path(module.__file__).read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("STEP = ")]
    used, mentioned = names_in(tree)
    assert used - HOW_TO_RUN <= {*places, *declared.flags}
    assert {*places, *declared.flags} - {"precision"} <= mentioned  # which is set before any step
    assert {*declared.memory_flags} <= used


@pytest.mark.parametrize("name", [name for name, module in STEPS.items() if module.STEP.remembered])
def test_what_a_result_depends_on_is_declared(name, toy):
    """So that steps that follow one another are known to."""
    make_all_inputs(toy)
    module, args = STEPS[name], parse_config(toy.flags(predict_input=toy.root / "JPEGImages", ood_pool="photos"))
    inputs = module.inputs(args)
    assert inputs.keys() <= {*module.STEP.reads, *module.STEP.flags}
    assert module.STEP.name == "make_report" or any(
        isinstance(given, Files) and given.paths for given in inputs.values()
    )
    assert len(module.outputs(args)) > 0


@pytest.mark.parametrize("name", STEPS)
def test_help_and_readme_begin_with_the_description(name):
    description = STEPS[name].STEP.description
    assert "\n" not in description
    text = FLAGS[f"{name}{STEP_SUFFIX}"].metadata["help"]
    assert re.fullmatch(re.escape(description) + r"([;,] .+| \(.+\))?", text)
    (cell,) = re.findall(rf"^\| `--{name}_pass`(?: \(on\))? \| (.*?) (?<!\\)\|", README.read_text(), re.M)
    assert re.fullmatch(re.escape(description) + r"([;,] .+| \(.+)?", cell)


def test_the_readme_lists_the_steps_in_their_order():
    listed = re.findall(r"^\| `--(\w+)_pass`( \(on\))? \|", README.read_text(), re.M)
    assert listed == [(name, " (on)" if FLAGS[f"{name}_pass"].default else "") for name in STEP_MODULES]
