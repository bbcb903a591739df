"""Flags: the original's names and defaults, types, ranges and messages."""

import dataclasses

import pytest

from misc.errors import InputError
from misc.run.config import CamSource, Config, enabled_steps, parse_bool, parse_config


def test_bare_command_trains_makes_and_evaluates_cams():
    assert enabled_steps(parse_config([])) == ["train_cam", "make_cam", "eval_cam"]
    assert enabled_steps(parse_config(["--train_cam_pass", "True"])) == ["train_cam", "make_cam", "eval_cam"]


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("yes", True), ("1", True), ("FALSE", False), ("no", False)]
)
def test_switches(text, value):
    assert parse_bool(text) is value
    assert parse_config(["--eval_cam_pass", text]).eval_cam_pass is value


def test_masks_come_from_cams_or_advcams():
    assert parse_config([]).mask_cams == CamSource("result/cam_ood", flag="cam_out_dir", made_by="make_cam")
    config = parse_config(["--masks_from", "advcam", "--advcam_out_dir", "x"])
    assert config.mask_cams == CamSource("x", flag="advcam_out_dir", made_by="make_advcam")


def test_values_are_typed_and_read_only():
    config = parse_config(["--beta", "5", "--cam_scales", "1", "0.5", "--cam_resize_long", "100", "200"])
    assert config.beta == 5.0
    assert config.cam_scales == (1.0, 0.5)
    assert config.cam_resize_long == (100, 200)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train_list = "other.txt"


@pytest.mark.parametrize("recipe", [[], ["--recipe", "small"], ["--recipe", "sample"]])
def test_a_number_that_is_given_as_it_is_by_default_is_the_same_setting(recipe):
    """Records compare what is written, where 7 and 7.0 differ."""
    by_default = vars(parse_config(recipe))
    for name, value in by_default.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers) and numbers:
            given = [f"{number:g}" for number in numbers]
            assert repr(vars(parse_config([*recipe, f"--{name}", *given]))[name]) == repr(value), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_cam_pass", "maybe"], "train_cam_pass: expected True or False .* got 'maybe'"),
        (["--train_cam_pass"], "train_cam_pass: expected one argument"),
        (["--cam_batch_siz", "4"], "unrecognized arguments: --cam_batch_siz 4; did you mean --cam_batch_size"),
        (["--cam_batch_size", "four"], "cam_batch_size: invalid int value: 'four'"),
        (["--cam_batch_size", "0"], "--cam_batch_size must be at least 1, got 0"),
        (["--ood_dist_topk", "1.5"], "--ood_dist_topk must be between 0 and 1, got 1.5"),
        (["--ood_coeff", "nan"], "--ood_coeff must be a finite number, got nan"),
        (
            ["--seed", "18446744073709551616"],
            "--seed must be between 0 and 9223372036854775807, got 18446744073709551616",
        ),
        (["--cam_scales", "1", "inf"], "--cam_scales must be a finite number, got inf"),
        (["--cam_scales", "1", "-1"], "--cam_scales must be between 0.01 and 16, got -1"),
        (["--irn_crop_size", "90"], "--irn_crop_size must be a multiple of 4, got 90"),
        (["--cam_resize_long", "300", "200"], "--cam_resize_long must be two numbers, the smaller first, got 300 200"),
        (["--device", "tpu"], "device: invalid choice: 'tpu'"),
        (["--masks_from", "irn"], "masks_from: invalid choice: 'irn'"),
    ],
)
def test_wrong_flags_get_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_config(arguments)
    assert "\n" not in str(caught.value)


def test_every_flag_has_help_and_appears_in_it(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = capsys.readouterr().out
    for item in dataclasses.fields(Config):
        assert f"--{item.name}" in shown
        assert item.metadata["help"]
    in_one_line = " ".join(shown.split())
    assert "(default: 320 640)" in in_one_line  # as it would be typed
    assert "(default: )" not in in_one_line


def test_a_folder_of_the_user_is_the_same_however_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--work_dir=~/runs", "--mine_ood_pass=1", "--ood_pool", "~/photos", "~", "--cam_network=net.resnet18_cam"]
    config = parse_config(flags)
    assert (config.work_dir, config.ood_pool) == (f"{tmp_path}/runs", (f"{tmp_path}/photos", str(tmp_path)))
    assert config.result_dir == f"{tmp_path}/runs/result"
    assert config.cam_network == "net.resnet18_cam"


def test_downloads_mining_and_prediction_run_alone_unless_more_is_asked_for():
    assert enabled_steps(parse_config(["--mine_ood_pass", "True"])) == ["mine_ood"]
    assert enabled_steps(parse_config(["--download_pass", "True"])) == ["download"]
    assert enabled_steps(parse_config(["--predict_pass", "True"])) == ["predict"]
    asked = parse_config(["--predict_pass", "True", "--make_cam_pass", "True", "--predict_input", "x.jpg"])
    assert (enabled_steps(asked), asked.predict_input) == (["make_cam", "predict"], "x.jpg")
    assert enabled_steps(parse_config(["--predict_pass", "False"])) == ["train_cam", "make_cam", "eval_cam"]
