"""What is told when a step has ended: how much its maps and masks hold, and whether a training has learned."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import CAM_WEIGHTS, make_all_inputs

import run_sample
from misc import summary
from misc.cam import cam_of_image, confident_label
from misc.errors import InputError
from misc.files import camfile
from misc.files.instancefile import Detections
from misc.files.look import one_look
from misc.run.config import Config, switches
from misc.run.provenance import RECORD, FinishedFiles
from misc.run.training import _tell_if_worse
from misc.summary import content_of_maps, content_of_mask, save_instances, save_maps, tell_maps, tell_masks
from net.weights import save_weights
from tests.own_network import CAM, Net

CLASSES = ("aeroplane", "bottle", "train")


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_masks_hold():
    mask = np.zeros((4, 5), dtype=np.uint8)
    assert content_of_mask(mask) == {"foreground": 0.0}
    mask[0], mask[1] = 3, 255
    assert content_of_mask(mask) == {"foreground": 0.25}


def test_what_maps_hold():
    maps = np.zeros((3, 4, 5), dtype=np.float32)
    maps[0, 0], maps[2, :2], maps[1] = 1, 0.16, 0.15
    assert content_of_maps([4, 1, 2], maps) == {"foreground": 0.5, "keys": [4, 1, 2], "empty": [1]}
    assert content_of_maps([], maps[:0]) == {"foreground": 0.0, "keys": [], "empty": []}
    assert json.loads(json.dumps(content_of_maps(np.array([2]), torch.from_numpy(maps[:1])))) == {
        "foreground": 0.25,
        "keys": [2],
        "empty": [],
    }


def test_what_is_saved_is_what_is_told(tmp_path):
    maps = torch.ones(1, 8, 8)
    told = save_maps(tmp_path / "a.npy", [0], torch.ones(1, 2, 2), maps, numbers="float32")
    assert told == content_of_maps([0], maps)
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0], masks[1, :2] = True, True
    found = Detections(np.ones(2, np.float32), masks, np.zeros(2, np.int64))
    assert save_instances(tmp_path / "b.npy", found) == {"foreground": 0.5}
    assert save_instances(tmp_path / "b.npy", found.select(np.zeros(2, bool))) == {"foreground": 0.0}


def test_maps_that_are_not_finite_are_written_as_empty_ones_and_told(tmp_path, lines):
    """Of three classes the second has NaN at stride 4, the third infinity in full size; the first is kept as it is."""
    cam, high_res = torch.ones(3, 2, 2), torch.ones(3, 8, 8)
    cam[1, 0, 1], high_res[2, 7, 0] = math.nan, math.inf
    told = save_maps(tmp_path / "a.npy", np.array([0, 1, 2]), cam, high_res, numbers="float16")
    assert told == {"foreground": 1.0, "keys": [0, 1, 2], "empty": [], "not_finite": [1, 2]}
    assert cam.isnan().any()
    keys, cam, high_res = camfile.load(tmp_path / "a.npy")
    assert keys.tolist() == [0, 1, 2]
    assert [maps.reshape(3, -1).sum(1).tolist() for maps in (cam, high_res)] == [[4, 0, 0], [64, 0, 0]]

    paths = write(tmp_path, [told, *[{"foreground": 0.5, "keys": [0, 1], "empty": []}] * 2])
    tell_maps("make_x", paths, CLASSES)
    sentence = "2 of 7 maps are NaN or infinite, and were written as empty ones (bottle 1 of 3, train 1 of 1)"
    assert lines()[1:] == [f"notice: make_x: {sentence}"]
    paths = write(tmp_path, [told, {"foreground": 0.5, "keys": [0], "empty": [0]}])
    sentence = r"make_x: 1 of 4 maps are empty \(aeroplane 1 of 2\); 2 of 4 maps are NaN .*; later .* --cam_learning"
    with pytest.raises(InputError, match=sentence):
        tell_maps("make_x", paths, CLASSES)


def write(folder, contents):
    """Files of which the record says that they hold these; None: nothing is said."""
    finished, paths = FinishedFiles({}), [folder / f"{number}.npy" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text("x")
        finished.write([path], lambda: "source", lambda content=content: content)
    return paths


def test_a_summary_is_of_all_files_of_which_something_is_known(tmp_path, lines):
    """Also of those of another run; a record of another version, or a damaged one, says nothing."""
    first = {"foreground": 0.1}, {"foreground": 0.0}, None, {"foreground": "x"}, {"foreground": 7.0}, [1]
    paths = write(tmp_path, first)
    tell_masks("make_x", [*paths, tmp_path / "missing.npy"], advice="do it")
    write(tmp_path, [{"foreground": 0.3}])
    tell_masks("make_x", paths, advice="do it")
    tell_masks("make_x", paths[2:], advice="do it")
    tell_masks("make_x", [], advice="do it")
    assert lines() == [
        "make_x: 5.0 % of the pixels are foreground, in the mean of 2 images; 1 of them have none",
        "make_x: 15.0 % of the pixels are foreground, in the mean of 2 images; 1 of them have none",
    ]


def test_masks_without_any_foreground(tmp_path, lines):
    paths = write(tmp_path, [{"foreground": 0.0}] * 3)
    tell_masks("make_x", paths)
    assert lines()[-1] == "notice: make_x: no image has any foreground"
    sentence = "make_x: none of the 3 images has any foreground, so that later steps would run on nothing; do it"
    with pytest.raises(InputError, match=sentence):
        tell_masks("make_x", paths, advice="do it")


def maps_of(*pairs):
    """Contents of images with two maps, of which the given ones are empty."""
    return [{"foreground": 0.2, "keys": [0, 2], "empty": [*empty]} for empty in pairs]


def test_empty_maps(tmp_path, lines):
    paths = write(tmp_path, [*maps_of((), (), (2,), (0, 2)), {"foreground": 0.2, "keys": [5], "empty": [5]}])
    with one_look():
        tell_maps("make_x", paths, CLASSES)
    assert lines() == [
        "make_x: 20.0 % of the pixels are foreground, in the mean of 4 images; 0 of them have none",
        "notice: make_x: 3 of 8 maps are empty (train 2 of 4, aeroplane 1 of 4)",
    ]
    paths = write(tmp_path, maps_of((), (2,), (0, 2), (0, 2)))
    sentence = r"make_x: 5 of 8 maps are empty \(train 3 of 4, aeroplane 2 of 4\); later .* --cam_weights_name .* lower"
    with pytest.raises(InputError, match=sentence):
        tell_maps("make_x", paths, CLASSES)


@pytest.mark.parametrize("keys", [[1.0], [True], ["1"], [None], [3], [-1]])
def test_a_damaged_record_of_classes_counts_for_nothing(tmp_path, lines, keys):
    paths = write(tmp_path, [{"foreground": 0.5, "keys": keys, "empty": keys}] * 3)
    tell_maps("make_x", paths, CLASSES)
    assert not [line for line in lines() if "empty" in line]


def test_images_without_any_class(tmp_path):
    paths = write(tmp_path, [{"foreground": 0.0, "keys": [], "empty": []}] * 2)
    with pytest.raises(InputError, match="make_x: none of the 2 images carries a class, .*lower --label_threshold"):
        tell_maps("make_x", paths, CLASSES)


class Silent(Net):
    """A classifier that has collapsed."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        with torch.no_grad():
            self.classifier.weight.abs_().neg_()


@pytest.mark.parametrize("step", ["make_cam", "make_advcam"])
def test_a_run_stops_after_empty_maps_and_at_each_further_start(toy, step):
    make_all_inputs(toy)
    save_weights(Silent(n_classes=3), CAM_WEIGHTS)
    flags = toy.flags(**switches(step, "cam_to_ir_label"), adv_iter=1, redo=())
    for _ in range(2):
        with pytest.raises(InputError, match=rf"{step}: 6 of 6 maps are empty \(.* 2 of 2, .*; later .* does not fire"):
            run_sample.run(flags)
    assert "6 of 6 images are finished" in Path("sample_train_eval.log").read_text()


@pytest.mark.parametrize(
    ("step", "flags", "advice"),
    [
        ("cam_to_ir_label", {"conf_fg_thres": 1}, "lower --conf_fg_thres"),
        ("make_sem_seg", {"sem_seg_bg_thres": 1}, "lower --sem_seg_bg_thres"),
        ("make_ins_seg", {"ins_seg_bg_thres": 1}, "lower --ins_seg_bg_thres"),
    ],
)
def test_steps_tell_their_share_of_foreground(toy, step, flags, advice):
    make_all_inputs(toy)
    run_sample.run(toy.flags(**switches(step)))
    assert f"{step}: " in Path("sample_train_eval.log").read_text().split("% of the pixels are foreground")[0]
    with pytest.raises(InputError, match=f"{step}: none of the 6 images has any foreground, .*; {advice}"):
        run_sample.run(toy.flags(**switches(step), **flags))


@pytest.mark.parametrize("step", ["eval_deeplab", "predict"])
def test_networks_tell_it_as_well(toy, step):
    make_all_inputs(toy)
    run_sample.run(toy.flags(**switches(step), predict_input="photos"))
    assert f"\n{step}: " in "".join(
        f"\n{line.partition(' ')[2].partition(' ')[2]}"
        for line in Path("sample_train_eval.log").read_text().splitlines()
        if "% of the pixels are foreground" in line
    )


def test_cams_of_an_image_that_are_no_numbers_are_refused():
    model = CAM(n_classes=3).eval()
    image = np.full((48, 64, 3), 100, dtype=np.uint8)
    how = {"keys": [0, 2], "scales": (1.0, 0.5), "device": torch.device("cpu")}
    assert cam_of_image(model, image, **how).shape == (2, 48, 64)
    torch.nn.init.constant_(model.classifier.weight[2], torch.nan)  # of one class alone
    with pytest.raises(InputError, match="gives NaN or infinity"):
        cam_of_image(model, image, **how)


def test_a_confident_label_is_sure_where_both_scores_agree(monkeypatch):
    """Class where the foreground score says so, background where both do, unsure elsewhere; without the CRF's part."""
    monkeypatch.setattr("misc.cam.crf_inference_labels", lambda image, ranks, **_: ranks)
    high_res = np.array([[[0.9, 0.2], [0.0, 0.2]], [[0.1, 0.1], [0.0, 0.5]]], dtype=np.float32)
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    label = confident_label(image, high_res, [3, 7], foreground_score=0.3, background_score=0.15)
    assert label.tolist() == [[4, 255], [0, 8]]


def test_the_score_of_the_summary_is_that_of_confident_background():
    assert Config().conf_bg_thres == summary.MAP_SCORE


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([1.0] * 9 + [2.0], "1.0000 in the first 1 steps, 2.0000 in the last"),
        ([1.0, 2.0] + [0.5] * 16 + [1.0, 2.1], "1.5000 in the first 2 steps, 1.5500 in the last"),
        ([1.0, 2.0] + [5.0] * 16 + [1.0, 1.9], ""),
        ([1.0] * 8 + [2.0], ""),  # too few to tell
        ([], ""),
    ],
)
def test_a_loss_that_ended_above_its_start(lines, losses, told):
    _tell_if_worse(losses, name="train_x", rate_flag="x_learning_rate")
    assert len(lines()) == bool(told)
    assert all(f"train_x: the loss ended above its start ({told})" in line and "x_rate" not in line for line in lines())


def test_trainings_look_at_their_losses(toy, monkeypatch):
    seen = []
    monkeypatch.setattr("misc.run.training._tell_if_worse", lambda losses, **how: seen.append((losses, how)))
    make_all_inputs(toy)
    run_sample.run(toy.flags(**switches("train_irn", "train_deeplab"), infer_list="voc12/train.txt"))
    (irn, of_irn), (deeplab, of_deeplab) = seen
    assert (len(irn), len(deeplab)) == (3, 3)
    assert all(math.isfinite(loss) for loss in (*irn, *deeplab))
    assert of_irn == {"name": "train_irn", "rate_flag": "irn_learning_rate"}
    assert of_deeplab == {"name": "train_deeplab", "rate_flag": "deeplab_learning_rate"}


def test_the_record_holds_it(toy):
    make_all_inputs(toy)
    run_sample.run(toy.flags(**switches("make_sem_seg")))
    for folder in ("result/sem_seg_ood", "result/sem_seg_ood/palette"):
        entries = [json.loads(line) for line in (Path(folder) / RECORD).read_text().splitlines()]
        assert all(0 <= entry["content"]["foreground"] <= 1 for entry in entries)
        assert len(entries) == 6


def test_a_few_pixels_are_not_none():
    mask = np.zeros((3000, 4000), np.uint8)
    mask[0, :3] = 1
    assert content_of_mask(mask)["foreground"] == 2.5e-7
