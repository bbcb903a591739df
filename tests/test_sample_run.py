"""The built-in sample as a user runs it: the script's choice, the recipe, and a tiny run of it."""

import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import pytest

import run_sample
from misc.errors import InputError
from misc.run.config import enabled_steps, parse_config
from misc.run.sample_recipe import sample_runs
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


@pytest.fixture
def tiny_sample(monkeypatch, tmp_path):
    """The sample's data set in a tiny form, in a working directory of its own."""
    monkeypatch.setattr("voc12.sample.ensure_with_bar", partial(sample.ensure_with_bar, **TINY))
    monkeypatch.chdir(tmp_path)


def test_the_whole_story_in_one_command(tiny_sample):
    pytest.importorskip("pydensecrf")
    run_sample.run(list(TINY_FLAGS))
    assert sample.is_intact("Data/sample", **TINY)
    scores = ("eval_cam", "eval_ins_seg", "eval_deeplab")
    for path in ("report.html", "control/scores/eval_cam.json", *(f"scores/{name}.json" for name in scores)):
        assert (Path("result") / path).is_file()
    page = Path("result/report.html").read_text()
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


def test_flags_of_the_user_replace_the_recipes():
    for _, flags in sample_runs("Data/sample", ["--seed", "7", "--sample", "True"]):
        assert parse_config(flags).seed == 7


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
    """Runs bash_run_sample.sh in a copy of the project whose Python only prints its arguments."""
    (tmp_path / "misc/run").mkdir(parents=True)
    (tmp_path / "bash_run_sample.sh").write_text((ROOT / "bash_run_sample.sh").read_text())
    (tmp_path / "misc/run/environment.sh").write_text("use_environment() { PYTHON=echo; }\n")

    def run(*arguments):
        line = ["bash", str(tmp_path / "bash_run_sample.sh"), *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    run.folder = tmp_path
    return run


def test_script_without_voc_runs_the_sample_and_says_so_first(script):
    first, second, command = script("--seed", "3").splitlines()
    assert first.startswith("VOC 2012 is not at Data/VOCdevkit/VOC2012: this runs the built-in sample instead")
    assert "--voc12_root FOLDER" in second
    assert command == "run_sample.py --sample True --seed 3"
    (script.folder / "Data/VOC2012/JPEGImages").mkdir(parents=True)
    assert "did you mean --voc12_root Data/VOC2012?" in script()


def test_script_starts_as_many_processes_as_asked_for(script, monkeypatch):
    monkeypatch.setenv("WOOD_PROCESSES", "gpu")
    assert "-m torch.distributed.run --standalone --nproc_per_node gpu run_sample.py --sample True" in script()
    monkeypatch.setenv("WOOD_PROCESSES", "1")
    assert "torch.distributed" not in script()


def test_script_with_voc_runs_voc(script):
    (script.folder / "Data/VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    shown = script("--seed", "3")
    assert "sample instead" not in shown
    assert shown.startswith("run_sample.py --train_classifier_pass True ")
    assert shown.endswith(" --seed 3\n")
    (script.folder / "sess").mkdir()
    (script.folder / "sess/res50_cam_orig.pth").touch()
    assert "--train_classifier_pass False" in script()
    assert "--train_classifier_pass True" in script("--cam_init_weights_name", "other.pth")


VOC_STEPS = {
    *("train_classifier", "train_cam", "make_cam", "eval_cam", "make_advcam", "eval_advcam"),
    *("cam_to_ir_label", "eval_ir_label", "train_irn", "make_sem_seg", "eval_sem_seg", "make_report"),
}


def voc_config(shown):
    return parse_config(shlex.split(shown)[1:])


def test_script_runs_the_authors_chain_on_voc(script):
    (script.folder / "Data/VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    config = voc_config(script())
    assert set(enabled_steps(config)) == VOC_STEPS
    assert config.train_list == config.infer_list == "voc12/train_aug.txt"
    assert (config.chainer_eval_set, config.np_power, config.sem_seg_bg_thres) == ("train", 1.5, 0.22)
    assert config.mask_cams.folder == "result/cam_ood_advcam"


@pytest.mark.parametrize("flags", [[], ["--deeplab_network", "net.resnet101_deeplab"], ["--deeplab_init_weights=x"]])
def test_script_ends_with_deeplab_where_it_has_a_start(script, flags):
    assert set(enabled_steps(voc_config(script("--voc12_root", "/nowhere", *flags)))) - VOC_STEPS == (
        {"train_deeplab", "eval_deeplab"} if flags else set()
    )
    (script.folder / "sess").mkdir()
    (script.folder / "sess/deeplab_resnet101_imagenet.pth").touch()
    config = voc_config(script("--voc12_root", "/nowhere"))
    assert enabled_steps(config)[-3:] == ["train_deeplab", "eval_deeplab", "make_report"]


@pytest.mark.parametrize("flag", [["--masks_from", "cam"], ["--masks_from=cam"]])
def test_script_leaves_advcam_out_where_masks_come_from_cams(script, flag):
    config = voc_config(script("--voc12_root", "/nowhere", *flag))
    assert set(enabled_steps(config)) == VOC_STEPS - {"make_advcam", "eval_advcam"}
    assert (config.np_power, config.sem_seg_bg_thres) == (1.0, 0.25)
    assert config.mask_cams.folder == "result/cam_ood"


def test_flags_of_the_user_replace_the_scripts(script):
    config = voc_config(script("--voc12_root", "/nowhere", "--np_power", "2", "--train_list", "mine.txt"))
    assert (config.np_power, config.sem_seg_bg_thres, config.train_list) == (2, 0.22, "mine.txt")


def test_script_with_a_named_folder_never_runs_the_sample(script):
    shown = script("--voc12_root", "/nowhere")
    assert "sample" not in shown.replace("run_sample.py", "")
    assert shown.rstrip().endswith("--voc12_root /nowhere")


def test_script_with_sample_switched_off_runs_voc(script):
    assert script("--sample", "False").startswith("run_sample.py --train_classifier_pass True")
    assert script("--sample", "True") == "run_sample.py --sample True\n"


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


def test_without_dense_crf_the_sample_ends_with_the_cams_and_a_report(monkeypatch):
    *_, (_, flags) = sample_runs("Data/sample", [], with_crf=False)
    assert enabled_steps(parse_config(flags)) == ["make_report"]
