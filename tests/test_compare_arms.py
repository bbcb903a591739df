"""Arms compared: what each differs in, that they are run once, what is written, and the statistics."""

import json
import re
from pathlib import Path

import pytest

import run_sample
from benchmarks import bench_sample, compare_arms
from benchmarks.arms import NAMED, parse_arm, parse_arms
from benchmarks.arms_table import Result, columns_of, figure, page, result_of, summary
from benchmarks.compare_arms import Comparison, compare, execute, runs_of_seed, write
from misc.errors import InputError, message_of
from misc.report import collect
from misc.run.config import enabled_steps, given_flags, parse_config
from misc.run.sample_runs import sample_runs
from net.weights import save_weights
from tests import own_network
from tests.support import TOY_CLASSES
from voc12.lists import read_ood_paths

EVIDENCE = Path(__file__).resolve().parent.parent / "docs/evidence.md"
CAM_STEPS = ["train_cam", "make_cam", "eval_cam"]
MASK_STEPS = {"cam_to_ir_label_pass": True, "eval_ir_label_pass": True, "make_report_pass": True}
OF_OOD_DATA = {"ood_coeff", "distance_lambda", "ood_adv_step", "ood_root", "ood_list", "ood_batch_size", "cluster_K"}


@pytest.fixture
def work(toy, monkeypatch):
    monkeypatch.chdir(toy.work)
    return toy


def runs(toy, *arms, seed=0, chain_of=(), random_list="", **flags):
    options = {"folder": Path("arms"), "chain_of": chain_of, "random_list": random_list}
    return runs_of_seed(parse_arms(arms), toy.flags(redo=(), **flags), seed=seed, **options)


def in_process(line, folder):
    """As `execute`, without a process of its own, which takes seconds to start."""
    try:
        run_sample.run(line)
    except InputError as error:
        return message_of(error)
    return None


# What an arm is


def test_arms_differ_in_the_ood_data_alone(work):
    classifier, *arms = runs(work, *NAMED, "ood_2")
    assert enabled_steps(classifier.config) == ["train_classifier"]
    start = classifier.config.cam_init_weights_name
    assert start == "arms/classifier/seed0/sess/res50_cam_orig.pth"
    configs = {run.name: run.config for run in arms}
    for name, config in configs.items():
        differ = {flag for flag, value in vars(config).items() if value != getattr(configs["wood"], flag)}
        of_places = {flag for flag in differ if str(getattr(config, flag)).startswith(f"arms/{name}/")}
        assert differ - of_places <= OF_OOD_DATA
        assert config.cam_init_weights_name == start
        assert enabled_steps(config) == CAM_STEPS
    assert (configs["control"].ood_coeff, configs["control"].distance_lambda) == (0, 0)
    assert (configs["ood_loss"].ood_coeff, configs["ood_loss"].distance_lambda) == (0.25, 0)
    assert (configs["distance_loss"].ood_coeff, configs["distance_loss"].distance_lambda) == (0, 0.007)
    assert configs["no_adversarial_step"].ood_adv_step == 0


def test_amounts_of_ood_images_are_drawn_by_the_seed_one_within_the_other(work):
    def images(run):
        return Path(run.config.ood_list).read_text().split()

    all_names = work.ood_list.read_text().split()
    drawn = [[images(run) for run in runs(work, "ood_1", "ood_3", "ood_5", seed=seed)[1:]] for seed in range(4)]
    for one, three, five in drawn:
        assert [len(one), len(three), five] == [1, 3, all_names]
        assert {*one} < {*three}
        assert three == [name for name in all_names if name in three]
    assert len({one[0] for one, *_ in drawn}) > 1
    _, run = runs(work, "ood_1")
    assert (run.config.ood_batch_size, run.config.cluster_K) == (1, 1)


def test_ood_images_in_other_folders_are_found_again(work, tmp_path):
    """A list may name files by absolute paths, inside of `--ood_root` or elsewhere."""
    paths = read_ood_paths(runs(work, "wood")[0].config.ood_root, str(work.ood_list))
    elsewhere = [tmp_path / f"{number}.jpg" for number in range(2)]
    for path in elsewhere:
        path.touch()
    work.ood_list.write_text("".join(f"{path}\n" for path in [paths[0].resolve(), *elsewhere]))
    _, run = runs(work, "ood_3")
    found = read_ood_paths(run.config.ood_root, run.config.ood_list)
    assert {path.resolve() for path in found} == {path.resolve() for path in [paths[0], *elsewhere]}


def test_random_ood_images_are_as_many_as_the_hard_ones(work):
    names = [f"scene{number}.jpg" for number in (4, 2)]
    Path("random.txt").write_text("\n".join(names))
    _, run = runs(work, "random_ood", random_list="random.txt")
    assert Path(run.config.ood_list).read_text().split() == names
    assert (run.config.ood_batch_size, run.config.cluster_K) == (2, 2)
    work.ood_list.write_text("scene0.jpg\n")
    _, run = runs(work, "random_ood", random_list="random.txt")
    assert len(Path(run.config.ood_list).read_text().split()) == 1


def test_the_chain_goes_on_with_the_arms_that_are_named(work):
    _, control, wood, own = runs(work, "control", "wood", "weak=--ood_coeff 0.1", chain_of=["wood"], **MASK_STEPS)
    assert enabled_steps(control.config) == enabled_steps(own.config) == CAM_STEPS
    assert enabled_steps(wood.config) == [*CAM_STEPS, "cam_to_ir_label", "eval_ir_label"]
    assert own.config.ood_coeff == 0.1


def test_a_classifier_that_is_named_serves_all_seeds(work):
    (run,) = runs(work, "wood", cam_init_weights_name="mine.pth")
    assert run.config.cam_init_weights_name == "mine.pth"


@pytest.mark.parametrize(
    ("arms", "flags", "message"),
    [
        (["wod"], {}, "there is no arm wod; expected control, wood, ood_loss"),
        (["ood_0"], {}, "there is no arm ood_0"),
        (["wood", "wood"], {}, "--arms names wood twice"),
        (["wood=--ood_coeff 1"], {}, "'wood' can't be the name of an arm of your own"),
        (["classifier=--ood_coeff 1"], {}, "'classifier' can't be the name"),
        (["../x=--ood_coeff 1"], {}, "'../x' can't be the name"),
        (["x=--cam_num_epoches 2"], {}, "x changes --cam_num_epoches, and could then not be compared"),
        (["x=--result_dir y"], {}, "--result_dir is set by the comparison"),
        (["x=--ood_coeff -1"], {}, "--ood_coeff must be at least 0"),
        (["ood_6"], {}, "--arms ood_6 needs 6 OoD images, but --ood_list has 5"),
        (["random_ood"], {}, "--arms random_ood needs --random_ood_list"),
        (["wood"], {"log_name": "x"}, "--log_name is set by the comparison"),
        (["wood"], {"eval_cam_pass": False}, "the flags leave out eval_cam"),
        (["wood"], {"chainer_eval_set": "trian"}, "/ImageSets/Segmentation/trian.txt is missing; expected a text file"),
    ],
)
def test_what_can_not_be_compared_is_answered(work, arms, flags, message):
    with pytest.raises(InputError) as caught:
        runs(work, *arms, **flags)
    assert message in str(caught.value)


def test_the_samples_arms_are_those_of_its_own_runs():
    """So that the table is that of `run_sample.py --sample True`: all settings agree, but for places and switches."""
    lines = [parse_config(line) for _, line in sample_runs("Data/sample", ["--beta", "3"])]
    options = {"seed": 0, "folder": Path("arms"), "chain_of": ["wood"]}
    found = runs_of_seed(parse_arms(["wood", "control"]), ["--sample", "True", "--beta", "3"], **options)
    flags = [flag for step in ("train_cam", "train_classifier") for flag in run_sample_flags(step)]
    for run, line in zip(found, (lines[0], lines[1], lines[2]), strict=True):
        assert not run.config.sample
        same = {flag for flag in flags if getattr(run.config, flag) == getattr(line, flag)}
        # What the control can't use may differ
        assert {*flags} - same <= ({"ood_batch_size", "cluster_K", "ood_ignore_class"} if run is found[2] else set())
    masks = [
        flag
        for step in ("cam_to_ir_label", "train_irn", "make_sem_seg_labels", "train_deeplab")
        for flag in run_sample_flags(step)
    ]
    assert found[1].config.only(masks) == lines[3].only(masks)
    assert enabled_steps(found[2].config) == CAM_STEPS
    left_out = {"make_ins_seg", "eval_ins_seg", "make_report"}
    assert {*enabled_steps(found[1].config)} == {*CAM_STEPS, *enabled_steps(lines[3])} - left_out


def run_sample_flags(module):
    return __import__(f"step.{module}", fromlist=["STEP"]).STEP.flags


def test_the_page_of_the_documentation_lists_the_arms_and_their_flags():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (?:`(--[^`]+)`|none) \|$", EVIDENCE.read_text(), re.M)
    assert {name: given_flags(flags.split()) for name, flags in rows} == NAMED


# Running them


def test_arms_are_run_once_and_one_that_fails_does_not_lose_the_others(work, monkeypatch, capsys):
    save_weights(own_network.Net(n_classes=len(TOY_CLASSES)), "start.pth")
    flags = work.flags(redo=(), cam_init_weights_name="start.pth")
    arms = parse_arms(["control", "broken=--ood_ignore_class spoon", "wood"])
    options = {"seeds": [2], "folder": Path("arms"), "execute": in_process}
    done = compare(arms, flags, **options)
    page = write(done, Path("arms"), command="the command")
    assert done.failed.keys() == {"broken"}
    assert "seed 2, broken: --ood_ignore_class spoon is no class of the data set" in capsys.readouterr().out
    for arm in ("control", "wood"):
        scored = json.loads(Path(f"arms/{arm}/seed2/result/scores/eval_cam.json").read_text())
        found = done.results[arm][2]
        assert found.scores == {
            "CAM": 100 * scored["best"]["miou"],
            "CAM, other half's score": 100 * scored["two_fold"]["miou"],
        }
        assert found.seconds > 0
        assert found.gib["process"] > 0
    assert "* broken, seed 2: --ood_ignore_class spoon is no class" in page
    assert Path("arms/arms.md").read_text() == page
    assert Path("arms/arms.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(Path("arms/arms.json").read_text())["arms"]
    assert content["broken"]["failed"].keys() == {"2"}
    assert content["wood"]["seeds"]["2"]["scores"] == done.results["wood"][2].scores

    made = {path: path.stat().st_mtime_ns for path in Path("arms").rglob("result/**/*.json")}
    monkeypatch.setattr("step.train_cam.run", lambda args: pytest.fail("it is done"))
    assert compare(arms, flags, **options).results == done.results
    assert {path: path.stat().st_mtime_ns for path in Path("arms").rglob("result/**/*.json")} == made


def test_scores_and_costs_of_other_steps_do_not_count():
    steps = {"eval_cam": 2.0, "eval_sem_seg": 3.0, "train_irn": 50.0}
    record = [{"step": name, "seconds": s, "peak_memory_mib": {"process": 1024 * s}} for name, s in steps.items()]
    scores = {
        "eval_cam": {"best": {"miou": 0.25}, "two_fold": {"miou": None}},
        "eval_sem_seg": {"miou": 0.5},
        "eval_deeplab_crf": {"miou": 0.75},
    }
    found = collect.Arm("wood", scores=scores, runs=[{"device": "cpu (x)", "done": record}])
    assert result_of(found, ["eval_cam", "eval_sem_seg"]) == Result(
        {"CAM": 25, "Masks after IRN": 50}, seconds=5, gib={"process": 3}, device="cpu (x)"
    )
    assert result_of(found, ["eval_deeplab"]).scores == {"DeepLab + CRF": 75}


def test_without_its_classifier_no_arm_of_a_seed_runs(work, capsys):
    called = []

    def fail(line, folder):
        called.append(folder)
        return "no weights"

    done = compare(parse_arms(["control", "wood"]), work.flags(redo=()), seeds=[3], folder=Path("arms"), execute=fail)
    assert called == [Path("arms/classifier/seed3")]
    assert done.failed["wood"] == {3: "the classifier that it starts from failed: no weights"}
    assert "seed 3, wood: the classifier that it starts from failed" in capsys.readouterr().out


def test_a_run_of_its_own_process_says_why_it_failed(tmp_path):
    assert execute(["--recipe", "x"], tmp_path / "new").startswith("--recipe x is unknown")
    assert "error: --recipe x is unknown" in (tmp_path / "new/output.txt").read_text()
    assert execute(["--help"], tmp_path) is None


def test_the_command_answers_and_its_flags_reach_the_runs(monkeypatch, capsys):
    options, flags = compare_arms.parse(
        ["--seeds", "4", "--arms", "wood", "a=--beta 3", "--recipe", "small", "--beta", "2"]
    )
    assert (options.seeds, options.arms, flags) == ([4], ["wood", "a=--beta 3"], ["--recipe", "small", "--beta", "2"])
    monkeypatch.setattr("sys.argv", ["compare_arms.py", "--chain_of", "nobody"])
    assert compare_arms.main() == 2
    assert capsys.readouterr().err == "error: --chain_of names nobody, which is none of --arms.\n"


# Tables


def test_statistics_are_of_the_differences_seed_by_seed():
    found = summary({0: 31.0, 1: 34.0, 2: 37.0, 3: 50.0}, {0: 30.0, 1: 32.0, 2: 34.0})
    assert found == pytest.approx({"mean": 38, "std": 8.366600265, "difference": 2, "standard_error": 1 / 3**0.5})
    assert summary({5: 1.0}, {5: 2.0}) == {"mean": 1, "std": None, "difference": -1, "standard_error": None}
    assert summary({}, {0: 1.0}) == dict.fromkeys(("mean", "std", "difference", "standard_error"))


def result(**scores):
    return Result(scores, seconds=60, gib={"process": 1.5}, device="cpu (x)")


def test_the_page_shows_each_arm_and_seed():
    results = {
        "control": {0: result(CAM=30.0), 1: result(CAM=32.0)},
        "wood": {0: result(CAM=31.0, DeepLab=40.0), 1: result(CAM=35.0)},
        "lost": {},
    }
    assert columns_of(results) == ["CAM", "DeepLab"]
    differs_in = {name: parse_arm(name if name != "lost" else "lost=--beta 3").differs_in for name in results}
    text = page(results, differs_in=differs_in, failed={"lost": {0: "reason"}}, head="# Title")
    for line in (
        "Device: cpu (x).",
        "| arm | seeds | CAM | DeepLab | seconds | process, GiB |",
        "| control | 2 | 31.0 ± 1.4 | - | 60 | 1.5 |",
        "| wood | 2 | 33.0 ± 2.8 (+2.0 ± 1.0) | 40.0 | 60 | 1.5 |",
        "| lost | 0 | - | - | - | - |",
        "| control | `--ood_coeff 0 --distance_lambda 0` |",
        "| wood | nothing: the recipe as it is |",
        "| lost | `--beta 3.0` |",
        "| 1 | wood | 35.0 | - | 60 | 1.5 |",
        "* lost, seed 0: reason",
    ):
        assert line in text.splitlines()
    assert figure({"lost": {}}) is None


def test_the_samples_table():
    whole = {"CAM": 42.94, "CAM + CRF": 55.7, "Masks after IRN": 52.3, "DeepLab": 47.8, "DeepLab + CRF": 54.8}
    results = {
        "control": {0: result(CAM=28.04), 1: result(CAM=1.0)},
        "wood": {0: Result(whole, 120, {"process": 2.0}, "cpu")},
    }
    assert bench_sample.table(Comparison([], results, {}, {0: 30.0})).splitlines() == [
        "| seed | control CAM | W-OoD CAM | gain | W-OoD CAM + CRF | masks after IRN | DeepLab | DeepLab + CRF | "
        "minutes | GiB |",
        "| --- " * 10 + "|",
        "| 0 | 28.0 | 42.9 | +14.9 | 55.7 | 52.3 | 47.8 | 54.8 | 3.5 | 2.0 |",
        "| mean | 28.0 | 42.9 | +14.9 | 55.7 | 52.3 | 47.8 | 54.8 | 3.5 | 2.0 |",
    ]
