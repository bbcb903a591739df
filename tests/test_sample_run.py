"""The built-in sample as a user runs it: the script, the runs, and a tiny run of them."""

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

import run_sample
from misc.errors import InputError
from misc.run.config import enabled_steps, parse_config
from misc.run.sample_runs import sample_runs
from voc12 import sample

ROOT = Path(__file__).resolve().parent.parent
TINY = {"n_train": 9, "n_val": 2, "n_ood": 4, "long_side": 96}
TINY_FLAGS = (
    *("--sample", "True", "--num_workers", "0", "--device", "cpu", "--imagenet_weights", "none"),
    *("--cam_network", "tests.own_network", "--irn_network", "tests.own_network", "--cam_batch_size", "4"),
    *(
        "--cam_crop_size",
        "64",
        "--cam_resize_long",
        "64",
        "96",
        "--cam_num_epoches",
        "1",
        "--cam_learning_rate",
        "0.001",
    ),
    *("--ood_batch_size", "2", "--cluster_K", "3", "--ood_long_side", "96", "--irn_crop_size", "80"),
    *("--irn_batch_size", "4", "--irn_num_epoches", "1", "--irn_learning_rate", "0.01", "--report_images", "3"),
    *("--deeplab_network", "tests.own_network", "--deeplab_init_weights", "none", "--deeplab_max_iter", "2"),
    *("--deeplab_batch_size", "2", "--deeplab_crop_size", "65", "--crf_workers", "0"),
)
WORK_DIR = ["--work_dir", "project"]
CONTROL = "control: the same without OoD images"


@pytest.fixture
def tiny_sample(monkeypatch, tmp_path):
    """The sample's data set in a tiny form, in a working directory of its own."""
    monkeypatch.setattr("voc12.sample.ensure_with_bar", partial(sample.ensure_with_bar, **TINY))
    monkeypatch.chdir(tmp_path)


def test_the_whole_story_in_one_command_and_one_folder(tiny_sample):
    run_sample.run([*TINY_FLAGS, *WORK_DIR])
    assert {path.name for path in Path().iterdir()} == {"Data", "project", "voc12"}  # data, outputs, the data's labels
    assert {path.name for path in Path("project").iterdir()} == {"sess", "result", "sample_train_eval.log"}
    assert sample.is_intact("Data/sample", **TINY)
    scores = ("eval_cam", "eval_ins_seg", "eval_deeplab")
    for path in ("report.html", "control/scores/eval_cam.json", *(f"scores/{name}.json" for name in scores)):
        assert (Path("project/result") / path).is_file()
    page = Path("project/result/report.html").read_text()
    assert "Not in this report" not in page
    assert "The control is trained exactly like W-OoD" in page
    assert "From masks to a segmentation network" in page
    assert page.count("<figcaption>instances</figcaption>") == 3
    made = Path("Data/sample/manifest.json").stat().st_mtime_ns

    Path("Data/sample/JPEGImages/2099_000001.jpg").write_bytes(b"damaged")
    with pytest.raises(InputError, match="learning_rate"):  # stops in the first training, after the data are mended
        run_sample.run([*TINY_FLAGS, "--cam_learning_rate", "1e30"])
    assert sample.is_intact("Data/sample", **TINY)
    assert Path("Data/sample/manifest.json").stat().st_mtime_ns > made


def test_a_folder_of_its_own_takes_all_that_the_sample_writes():
    plain, moved = ([parse_config(line) for _, line in sample_runs("Data/sample", flags)] for flags in ([], WORK_DIR))
    for before, after in zip(plain, moved, strict=True):
        differ = {name for name in vars(before) if getattr(before, name) != getattr(after, name)} - {"work_dir"}
        assert {"cam_weights_name", "cam_out_dir", "result_dir", "log_name", "control_dir"} <= differ
        for name in differ:
            assert getattr(after, name) == f"project/{getattr(before, name)}"
    control = parse_config(dict(sample_runs("Data/sample", [*WORK_DIR, "--cam_weights_name", "x.pth"]))[CONTROL])
    assert (control.cam_weights_name, control.result_dir) == (
        "project/sess/sample_cam_control.pth",
        "project/result/control",
    )


def test_both_arms_differ_in_the_ood_data_alone():
    (_, classifier), (_, wood), (_, control), (_, masks) = sample_runs("Data/sample", [])
    wood, control = parse_config(wood), parse_config(control)
    assert enabled_steps(parse_config(classifier)) == ["train_classifier"]
    assert enabled_steps(wood) == enabled_steps(control) == ["train_cam", "make_cam", "eval_cam"]
    differ = {name for name in vars(wood) if getattr(wood, name) != getattr(control, name)}
    only_ood = {"ood_coeff", "distance_lambda", "ood_batch_size", "cluster_K", "ood_ignore_class"}
    outputs = {"cam_weights_name", "cam_out_dir", "result_dir"}
    assert differ <= only_ood | outputs
    assert (control.ood_coeff, control.distance_lambda) == (0, 0)
    assert wood.cam_select == "last"  # no ground truth in the choice of weights
    assert enabled_steps(parse_config(masks))[-3:] == ["train_deeplab", "eval_deeplab", "make_report"]


@pytest.mark.parametrize("asked", [["--sample", "True"], ["--recipe", "sample"], ["--recipe=auto"]])
def test_flags_of_the_user_replace_the_recipes(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, flags in sample_runs("Data/sample", ["--seed", "7", *asked]):
        config = parse_config(flags)
        assert (config.seed, config.recipe, config.masks_from) == (7, "sample", "cam")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--predict_pass", "True", "--predict_input", "x.jpg"), "--predict_pass"),
        (("--export_deeplab_pass=1", "--train_cam_pass", "no"), "--train_cam_pass, --export_deeplab_pass"),
    ],
)
def test_switches_that_the_sample_would_not_heed_are_refused(flags, named):
    sentence = f"--sample True chooses its own steps, which {named} would change; drop {named}, or drop --sample."
    with pytest.raises(InputError, match=re.escape(sentence)):
        sample_runs("Data/sample", flags)
    sample_runs("Data/sample", ["--train_deeplab_pass", "True", "--predict_pass", "False"])


def test_the_sample_makes_advcams_only_where_masks_are_to_come_from_them():
    def steps(*flags):
        return {step for _, line in sample_runs("Data/sample", flags) for step in enabled_steps(parse_config(line))}

    assert steps("--masks_from", "advcam") - steps() == {"make_advcam", "eval_advcam"}


@pytest.fixture
def script(tmp_path):
    """Runs bash_run_sample.sh in a copy of the project whose Python (or `python`) only prints its arguments."""
    (tmp_path / "misc/run").mkdir(parents=True)
    (tmp_path / "bash_run_sample.sh").write_text((ROOT / "bash_run_sample.sh").read_text())

    def run(*arguments, python="echo"):
        (tmp_path / "misc/run/environment.sh").write_text(f"use_environment() {{ PYTHON={python}; }}\n")
        line = ["bash", str(tmp_path / "bash_run_sample.sh"), *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    return run


def test_script_leaves_every_choice_to_python(script):
    assert script("--seed", "3") == "run_sample.py --recipe auto --seed 3\n"
    assert len((ROOT / "bash_run_sample.sh").read_text().splitlines()) <= 25


def test_script_starts_as_many_processes_as_asked_for(script, monkeypatch):
    monkeypatch.setenv("WOOD_PROCESSES", "gpu")
    assert "-m torch.distributed.run --standalone --nproc_per_node gpu run_sample.py --recipe auto" in script()
    with pytest.raises(subprocess.CalledProcessError) as told:
        script(python="false")  # PyTorch finds no GPU
    assert told.value.stderr.startswith("error: WOOD_PROCESSES=gpu: PyTorch finds no GPU here;")
    monkeypatch.setenv("WOOD_PROCESSES", "1")
    assert "torch.distributed" not in script()
    monkeypatch.setenv("WOOD_PROCESSES", "all")
    with pytest.raises(subprocess.CalledProcessError) as told:
        script()
    assert told.value.stderr == "error: WOOD_PROCESSES=all: expected a number of processes, or gpu.\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--irn_batch_size", "1000"], "--irn_batch_size 1000"),
        (["--voc12_root", "/nowhere"], "--sample True runs on its own data set; drop --voc12_root"),
        (["--sample_root", "file/sample"], "--sample_root: can't write into"),
    ],
)
def test_wrong_flags_stop_the_sample_before_any_work(tiny_sample, monkeypatch, flags, sentence):
    monkeypatch.setattr("step.train_classifier.run", lambda args: pytest.fail("work began"))
    Path("file").touch()
    with pytest.raises(InputError, match=sentence):
        run_sample.run([*TINY_FLAGS, *flags])
