"""docs/reproduce.md: its command lines, files, disk and arithmetic are those of the code."""

import math
import re
import shlex
from pathlib import Path
from string import Template

import pytest
import torch

from benchmarks import count_flops
from benchmarks.measure import flop_counter
from misc.advcam import SCALES, climb, iterations_at
from misc.files.checkpointfile import classes_beside
from misc.files.resultfiles import REPORT, SCORES_FOLDER
from misc.imutils import cells_of
from misc.run.config import Config, enabled_steps, parse_config, switches, to_arguments
from misc.run.recipes import DEEPLAB_START
from net.build import build_network
from net.resnet50_cam import Net
from step.make_sem_seg_labels import PALETTE_FOLDER
from tests.own_network import CAM, FiveConvolutions
from voc12.classes import VOC_CLASSES

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/reproduce.md").read_text()
DEFAULTS = parse_config([])


def command_lines() -> list[list[str]]:
    """The arguments of every `run_sample.py` in the page, the shell's variables filled in."""
    variables: dict[str, str] = {}
    commands = []
    for line in (line.strip() for line in TEXT.splitlines()):
        if assigned := re.match(r'([A-Z]+)="([^"]*)"', line):
            variables[assigned[1]] = assigned[2]
        elif line.startswith("python run_sample.py"):
            commands.append(shlex.split(Template(line).substitute(variables), comments=True)[2:])
    return commands


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first line starts with `heading`."""
    table = TEXT[TEXT.index(f"\n{heading}") + 1 :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


STEPS = table_rows("| | step |")


def known_files(config: Config) -> set[str]:
    """Files and folders that flags name by default, and what lies beside them or where `auto` looks."""
    named = {value for value in vars(config).values() if isinstance(value, str) and "/" in value}
    scores = {f"{config.result_dir}/{SCORES_FOLDER}/{step}.json" for step in (*switches(), "eval_deeplab_crf_pass")}
    return {
        *named,
        *(file.replace("_pass", "") for file in scores if "/eval_" in file),
        *(f"sess/{name}" for name in Net().backbone.imagenet_files),
        "voc12/train.txt",
        DEEPLAB_START,
        str(classes_beside(config.deeplab_weights_name)),
        f"{config.sem_seg_out_dir}/{PALETTE_FOLDER}",
        f"{config.result_dir}/{REPORT}",
    }


def test_every_command_line_parses():
    commands = command_lines()
    assert len(commands) == TEXT.count("\npython run_sample.py") + TEXT.count("\n  python run_sample.py") >= 13
    for arguments in commands:
        assert arguments
        assert enabled_steps(parse_config(arguments))


def test_the_steps_are_those_of_the_recipe_in_the_order_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without checkpoints, so that the classifier is trained
    Path(DEEPLAB_START).parent.mkdir()
    Path(DEEPLAB_START).touch()
    recipe = parse_config(["--recipe", "authors"])
    in_table = [name for _, name, *_ in STEPS]
    assert set(in_table) == set(enabled_steps(recipe))
    commands = command_lines()[: len({number for number, *_ in STEPS})]
    assert [name for arguments in commands for name in enabled_steps(parse_config(arguments))] == in_table
    masks = parse_config(shlex.split(re.search(r'MASKS="([^"]*)"', TEXT)[1]))
    for name in ("masks_from", "np_power", "sem_seg_bg_thres"):
        assert getattr(masks, name) == getattr(recipe, name)


def test_every_file_of_the_table_is_the_default_of_a_flag():
    with torch.device("meta"):
        known = known_files(DEFAULTS)
    for _, name, *columns, _ in STEPS:
        for file in re.findall(r"`([^`]*/[^`]*)`", " ".join(columns)):
            assert file in known or str(Path(file).parent) in known, f"{name}: {file}"


def test_disk_of_cams_and_checkpoints():
    disk = {name: cell for _, name, *_, cell in STEPS}
    height, width = count_flops.AVERAGE_SIZE
    cells = height * width + math.prod(cells_of((height, width)))
    image = 4 * cells * count_flops.CLASSES_AN_IMAGE
    assert disk["make_cam"] == f"{count_flops.TRAIN * image / 1e9:.1f} GB"
    assert disk["make_advcam"] == f"{count_flops.TRAIN_AUG * image / 1e9:.1f} GB"
    with torch.device("meta"):
        networks = {
            "train_cam": build_network(DEFAULTS.cam_network, "Net"),
            "train_irn": build_network(DEFAULTS.irn_network, "AffinityDisplacementLoss"),
            "train_deeplab": build_network(DEFAULTS.deeplab_network, "DeepLab"),
        }
    for name, network in networks.items():
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        assert disk[name] == f"{size / 1e6:.0f} MB"


@pytest.fixture(scope="module")
def small_parts():
    """The parts of the classifier's steps, with a network of five convolutions, one scale and few iterations."""
    flags = {"cam_network": "tests.own_network", "cam_scales": (1.0,), "cam_select": "last", "adv_iter": 3}
    with torch.device("meta"):
        parts = count_flops.classifier_parts(parse_config(to_arguments(flags)))
    return {(part.step, part.what): part for part in parts}


def test_flops_are_those_counted_by_hand(small_parts):
    height, width = count_flops.AVERAGE_SIZE
    macs, inputs = 0, 3
    for channels, stride in zip(FiveConvolutions.channels, FiveConvolutions.strides, strict=True):
        macs += 5 * 5 * inputs * channels * -(-height // stride) * -(-width // stride)
        inputs = channels
    maps = len(VOC_CLASSES) * inputs * -(-height // stride) * -(-width // stride)
    assert small_parts["make_cam", "images of `train`"].flops == 2 * 2 * (macs + maps)  # image and mirror image
    assert small_parts["train_cam", "images, prototypes"].flops == 2 * (macs + len(VOC_CLASSES) * inputs)
    assert ("train_cam", "images, choice of the checkpoint") not in small_parts
    assert small_parts["train_cam", "steps"].units == 5 * (10582 // 16)


def test_flops_of_advcam_are_those_of_all_its_iterations(small_parts):
    with torch.device("meta"), flop_counter() as counter:
        network = CAM(len(VOC_CLASSES)).requires_grad_(False)
        for scale in SCALES:
            pair = torch.empty(1, 2, 3, *(round(side * scale) for side in count_flops.AVERAGE_SIZE))
            settings = {"coefficient": 7, "step": 0.08, "score_threshold": 0.5}
            climb(network, pair, torch.zeros(1, dtype=torch.int64), iterations_at(scale, 3), **settings)
    assert small_parts["make_advcam", "(image, class) pairs"].flops == counter.get_total_flops()


@pytest.mark.slow
def test_the_table_of_the_arithmetic_is_what_the_script_prints():
    assert count_flops.table(count_flops.count(DEFAULTS)) in TEXT
