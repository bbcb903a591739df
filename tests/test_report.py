"""The report: complete, partial and empty runs, and how a browser shows it."""

import io
import json
import math
import re
import shutil
import subprocess
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ALL_STEPS, CAM_START, CAM_WEIGHTS, NO_STEPS, TOY_CLASSES, make_all_inputs, make_toy_data

import run_sample
from benchmarks import draw_overview
from misc.files import camfile, instancefile
from misc.files.atomic import write_json
from misc.files.checkpointfile import classes_beside
from misc.files.images import read_image, read_label, write_label
from misc.files.instancefile import Detections
from misc.imutils import cells_of
from misc.report import sheet
from misc.report.collect import steps_behind
from misc.report.page import _counted_classes
from misc.report.pictures import (
    CAPTION_HEIGHT,
    MASK_OPACITY,
    SHEET_GAP,
    SHEET_HEIGHT,
    SHEET_WIDTH,
    UNSURE_COLOUR,
    contact_sheet,
    edge_picture,
    instance_colours,
    mask_overlay,
)
from misc.run.done import DoneSteps
from net.weights import save_weights
from tests.own_network import Net
from voc12.classes import voc_palette, write_classes

REPORT = NO_STEPS | {"make_report_pass": True}
CONTROL = {"ood_coeff": 0, "distance_lambda": 0, "result_dir": "result/control", "cam_out_dir": "result/control/cam"}


class Page(HTMLParser):
    """What a page says and refers to."""

    def __init__(self, path):
        super().__init__()
        self.text, self.sources, self.tags, self.captions = "", [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "figcaption":
            self.captions.append("")
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += " " + data
        if self.tags and self.tags[-1] == "figcaption":
            self.captions[-1] += data.strip()


def run(toy, **flags):
    run_sample.run(toy.flags(**{**NO_STEPS, "report_images": 6, **flags}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy data after both arms of the chain, with its report."""
    toy = make_toy_data(tmp_path_factory.mktemp("report"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.work)
        run(toy, **ALL_STEPS)
        control = {"cam_weights_name": "sess/control.pth", **CONTROL}
        run(toy, train_cam_pass=True, make_cam_pass=True, eval_cam_pass=True, **control)
        run(toy, **REPORT, cam_eval_sweep=(0.1, 0.2))
    return toy


@pytest.fixture
def page(finished):
    return Page(finished.work / "result/report.html")


def test_report_shows_everything_and_needs_nothing_else(finished, page):
    words = (
        "What W-OoD does",
        "Results",
        "Pictures",
        "Training",
        "What ran",
        "CAM + CRF",
        "Masks after IRN",
        "Control",
        "From masks to a segmentation network",
    )
    for word in words:
        assert word in page.text
    assert "Not in this report" not in page.text
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "script" not in page.tags
    row = ["image", "ground truth", "CAM before W-OoD", "CAM, control", "CAM, W-OoD", "confident label"]
    n_pictures = 9 * 6
    segmented = ["image", "ground truth", "DeepLab", "DeepLab + CRF"] * 2
    assert page.captions[-n_pictures - len(segmented) :] == [
        *([*row, "boundaries (IRN)", "final mask", "instances"] * 6),
        *segmented,
    ]
    names = {path.name for path in (finished.work / "result/report").iterdir()}
    assert names == {"losses.png", "thresholds.png", "classes.png", "contact_sheet.png"}
    for name in names:
        with Image.open(finished.work / "result/report" / name) as image:
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("size", [(1, 500), (2, 20000), (500, 1), (20000, 2), (1, 1)])
def test_pictures_of_any_shape_make_no_endless_sheet(size):
    rows = [[("flat", np.zeros((*size, 3), np.uint8)), ("usual", np.full((375, 500, 3), 99, np.uint8))]] * 2
    with Image.open(io.BytesIO(contact_sheet(rows))) as sheet:
        assert sheet.width <= 2 * SHEET_WIDTH + 3 * SHEET_GAP
        assert sheet.height <= 2 * (SHEET_HEIGHT + CAPTION_HEIGHT + SHEET_GAP) + SHEET_GAP


def test_report_prints_the_scores_of_the_run(finished, page):
    shown = re.sub(r"\s+", " ", page.text)
    for folder, name in (("result", "eval_cam"), ("result/control", "eval_cam"), ("result", "eval_sem_seg")):
        content = json.loads((finished.work / folder / f"scores/{name}.json").read_text())
        assert f"{100 * content.get('best', content)['miou']:.1f} %" in shown
    for name, title in (("eval_deeplab", "DeepLab"), ("eval_deeplab_crf", "DeepLab + CRF")):
        miou = json.loads((finished.work / f"result/scores/{name}.json").read_text())["miou"]
        assert f"{title} {100 * miou:.1f} % (2 images of val)" in shown
        assert f"{100 * miou:.1f} % {title} mIoU, W-OoD" in shown
    assert "A segmentation network trained on the masks: DeepLab " in shown
    assert "None of these images was in its training list." in shown
    ap = json.loads((finished.work / "result/scores/eval_ins_seg.json").read_text())["map"]
    assert f"{100 * ap:.1f} % Instance AP at IoU 0.5, W-OoD" in shown
    wood, control = (
        json.loads((finished.work / folder / "scores/eval_cam.json").read_text())["best"]["miou"]
        for folder in ("result", "result/control")
    )
    difference = f"{abs(100 * (wood - control)):.1f} points {'more' if wood >= control else 'less'}"
    assert difference in shown
    for step in ("train_classifier", "train_cam", "make_cam", "train_irn", "make_sem_seg"):
        assert f" {step} " in shown


def test_the_gain_of_each_image_is_shown(page):
    assert len(re.findall(r"[+-]\d+\.\d points", page.text)) == 6


@pytest.mark.parametrize(
    ("points", "gains", "losses"),
    [
        ({"a": 20, "b": 10, "c": 0, "d": -10, "e": -30, "f": 5}, ["a", "b"], ["e", "d"]),
        ({"a": -1, "b": -2, "c": -3, "d": 0}, [], ["c", "b"]),
        ({"a": 1, "b": 2, "c": 0, "d": None}, ["b", "a"], []),
    ],
)
def test_largest_gains_and_losses_are_what_they_say(monkeypatch, points, gains, losses):
    def before_and_after(self, name):
        return None if points[name] is None else (50.0, 50.0 + points[name])

    monkeypatch.setattr(sheet.Sheet, "_before_and_after", before_and_after)
    monkeypatch.setattr(sheet.Sheet, "_with_maps", lambda self, ids: ids)
    monkeypatch.setattr(sheet.Sheet, "_row", lambda self, name, before, after: name)
    of_both = object.__new__(sheet.Sheet)
    of_both._control_folder, of_both.skipped = "control", []
    shown = of_both.groups([*points], 6, 100, seed=0)
    assert (shown["Largest gains"], shown["Largest losses"]) == (gains, losses)
    assert sorted(name for names in shown.values() for name in names) == sorted(points)


def test_report_of_a_result_folder_without_files_says_what_is_missing(toy):
    run(toy, **REPORT, result_dir="empty")
    page = Page("empty/report.html")
    for missing in ("Loss curves of train_cam", "Evaluation: CAM", "Evaluation: Masks after IRN", "Pictures"):
        assert missing in page.text
    command = next(line for line in page.text.split("  ") if "--train_irn_pass True" in line)
    assert f"--voc12_root {toy.root}" in command
    assert "--train_cam_pass False --make_cam_pass False --eval_cam_pass False" in command  # runs nothing else
    assert not Path("empty/report").exists()


def test_data_without_masks_are_not_to_be_evaluated(toy):
    shutil.rmtree(toy.root / "SegmentationClass")
    run(toy, **REPORT)
    page = Page("result/report.html")
    assert "Evaluation: CAM (the data set has no masks to compare with)" in page.text
    assert "eval_cam_pass True" not in missing_parts(page)
    assert "--train_irn_pass True" in missing_parts(page)


def test_report_of_some_steps_shows_those(toy):
    run(toy, train_classifier_pass=True)
    run(toy, make_cam_pass=True, cam_weights_name="sess/res50_cam_orig.pth", make_report_pass=True)
    page = Page("result/report.html")
    assert "Evaluation: CAM" in page.text
    assert page.captions.count("CAM, W-OoD") == 6
    assert "boundaries (IRN)" not in page.captions
    assert "points" not in page.text


def test_report_shows_advcams_beside_cams_where_there_are_some(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    run(finished, make_advcam_pass=True, eval_advcam_pass=True, adv_iter=2)
    Path(f"result/cam_ood_advcam/{finished.ids[0]}.npy").unlink()
    run(finished, **REPORT)
    page = Page("result/report.html")
    assert page.captions.count("AdvCAM") == 5
    assert page.captions[page.captions.index("AdvCAM") - 1] == "CAM, W-OoD"
    miou = json.loads(Path("result/scores/eval_advcam.json").read_text())["best"]["miou"]
    assert re.search(rf"{100 * miou:.1f} %\s+AdvCAM mIoU, W-OoD", page.text)
    assert re.search(rf"AdvCAM\s+6 images of train\s+{100 * miou:.1f}\s", page.text)
    assert "Not in this report" not in page.text


def test_each_image_is_decoded_once_and_the_pictures_are_the_same(finished, page, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    decoded, shown = Counter(), {}
    read = {name: getattr(sheet, name) for name in ("read_image", "read_label")}

    def counting(name, path, **how):
        decoded[Path(path)] += 1
        return shown.setdefault(Path(path), read[name](path, **how))

    for name in read:
        monkeypatch.setattr(sheet, name, partial(counting, name))
    run(finished, **REPORT, cam_eval_sweep=(0.1, 0.2))
    images = {path: n for path, n in decoded.items() if path.suffix == ".jpg"}
    assert len(images) >= 6
    assert {*images.values()} == {1}
    truths = [n for path, n in decoded.items() if path.parent.name == "SegmentationClass"]
    assert max(truths) == 2  # for the gain, and for the picture
    assert Page("result/report.html").sources == page.sources
    assert all(np.array_equal(read_image(path), shown[path]) for path in images), "nothing was drawn into an image"


def test_report_of_advcams_alone_shows_those(toy):
    run(toy, train_classifier_pass=True)
    weights = {"cam_weights_name": "sess/res50_cam_orig.pth"}
    run(toy, make_advcam_pass=True, adv_iter=2, make_report_pass=True, **weights)
    page = Page("result/report.html")
    assert page.captions.count("AdvCAM") == 6
    assert "CAM, W-OoD" not in page.captions


def test_a_network_of_other_classes_is_not_shown(toy):
    """Its class names are in another order: its CAMs would be those of other classes."""
    make_all_inputs(toy)
    for classes, shown in ((TOY_CLASSES, 6), (TOY_CLASSES[::-1], 0)):
        write_classes(classes_beside(CAM_START), classes)
        run(toy, **REPORT)
        assert Page("result/report.html").captions.count("CAM before W-OoD") == shown
    notice = f"notice: the report does without a network: {CAM_START} was trained on other classes"
    assert notice in Path("sample_train_eval.log").read_text()


def missing_parts(page):
    return page.text.split("Not in this report")[1].split("What W-OoD does")[0]


def test_results_of_another_data_set_are_not_shown(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = make_toy_data(tmp_path / "other")
    shutil.copytree(finished.work / "result", "result")
    run_sample.run(other.flags(**REPORT))
    page = Page("result/report.html")
    for part in ("Loss curves of train_cam", "Loss curves of train_irn", "Evaluation: CAM", "Evaluation: Masks"):
        assert part in missing_parts(page)
    assert "No run is recorded" in page.text


def test_a_score_of_earlier_files_is_not_shown(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    changed = "its score is of earlier files; {}: the files of --cam_out_dir have changed"
    titles = {"CAM": "eval_cam", "CAM + CRF": "cam_to_ir_label", "Masks after IRN": "cam_to_ir_label"}
    titles |= {"Instance AP": "cam_to_ir_label"}
    sentences = {title: f"Evaluation: {title} ({changed.format(step)})" for title, step in titles.items()}
    run(finished, train_cam_pass=True, make_cam_pass=True, make_report_pass=True, seed=5)
    page = Page("result/report.html")
    for title, sentence in sentences.items():
        assert sentence in missing_parts(page)
        assert f"--{titles[title]}_pass True" in missing_parts(page)
    assert "maps reach" not in page.text
    assert "Instance AP at" not in page.text

    run(finished, eval_cam_pass=True, make_report_pass=True, seed=5)
    page = Page("result/report.html")
    assert sentences.pop("CAM") not in page.text
    assert all(sentence in missing_parts(page) for sentence in sentences.values())
    best = json.loads(Path("result/scores/eval_cam.json").read_text())["best"]["miou"]
    assert f"maps reach {100 * best:.1f}" in page.text


def test_scores_in_a_copy_of_a_folder_are_compared_with_the_files_of_the_copy(toy):
    """As one branches a study: the base run is copied, and a flag of it changed."""
    run(toy, **ALL_STEPS, work_dir="base")
    shutil.copytree("base", "branch")
    changed = {"work_dir": "branch", "seed": 5}
    run(toy, train_cam_pass=True, make_cam_pass=True, **changed, redo=())
    run(toy, **REPORT, **changed)
    missing = missing_parts(Page("branch/result/report.html"))
    for title, step in (("CAM", "eval_cam"), ("CAM + CRF", "cam_to_ir_label")):
        assert f"Evaluation: {title} (its score is of earlier files; {step}: the files of --cam_out_dir" in missing


def test_a_data_set_that_was_moved_is_the_same_one(finished, tmp_path, monkeypatch):
    for folder in (finished.work, finished.root):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    monkeypatch.chdir(tmp_path / finished.work.name)
    toy = replace(finished, root=tmp_path / finished.root.name)
    run(toy, **ALL_STEPS, make_report_pass=True, redo=())
    assert "train_cam is done, since" in Path("sample_train_eval.log").read_text()
    assert "Not in this report" not in Page("result/report.html").text
    assert "maps reach" in Page("result/report.html").text


def test_a_renamed_project_with_its_data_keeps_its_scores(toy):
    project, renamed = Path("project").absolute(), Path("renamed").absolute()
    shutil.copytree(toy.root, project / "data", symlinks=True)

    def report(place):
        run(replace(toy, root=place / "data"), **ALL_STEPS, make_report_pass=True, work_dir=place / "out", redo=())
        return Page(place / "out/result/report.html").text

    assert "maps reach" in report(project)
    project.rename(renamed)
    again = report(renamed)
    assert "maps reach" in again
    assert "Not in this report" not in again
    assert "train_cam is done, since" in (renamed / "out/sample_train_eval.log").read_text()


def test_scores_of_a_data_set_are_not_those_of_its_copy_with_other_masks(toy, tmp_path):
    """Although CAMs are made of the same images, and so are done for both."""
    make_all_inputs(toy)
    run(toy, make_cam_pass=True, eval_cam_pass=True, redo=())
    copy = replace(toy, root=tmp_path / "copy")
    shutil.copytree(toy.root, copy.root, symlinks=True)
    for path in (copy.root / "SegmentationClass").glob("*.png"):
        write_label(path, np.ones_like(read_label(path)))
    run(copy, make_cam_pass=True, make_report_pass=True, redo=())
    assert "make_cam is done" in Path("sample_train_eval.log").read_text()
    assert "Evaluation: CAM" in missing_parts(Page("result/report.html"))


def test_a_score_of_some_images_counts_whatever_set_a_later_command_names(toy):
    make_all_inputs(toy)
    some = toy.root / "ImageSets/Segmentation/some.txt"
    some.write_text("".join(f"{image_id}\n" for image_id in toy.ids[:4]))
    run(toy, make_cam_pass=True)
    network = Net(n_classes=3)
    network.classifier.weight.data.abs_()  # whose maps are nowhere all zero
    save_weights(network, CAM_WEIGHTS)
    run(toy, make_cam_pass=True, eval_cam_pass=True, train_list=some, chainer_eval_set="some")
    run(toy, **REPORT)
    assert "maps reach" in Page("result/report.html").text


@pytest.mark.parametrize(
    ("work_dir", "inside", "now", "expected"),
    [
        ("/x/a/out", "/x/a/out/cams", "/x/b/out", "/x/b/out/cams"),
        ("/x/a/out", "/x/a/VOC", "/x/b/out", "/x/a/VOC"),
        ("/x/a/out", "/data/VOC", "/x/p/x/a/out", "/data/VOC"),
        ("base", "base/cams", "branch", "branch/cams"),
        ("base", "baseline/cams", "branch", "baseline/cams"),
        ("", "cams", "branch", "cams"),
    ],
)
def test_only_what_lies_in_a_work_dir_moves_with_it(monkeypatch, work_dir, inside, now, expected):
    before = {"work_dir": work_dir, "result_dir": str(Path(work_dir, "result")), "places": {"cam_out_dir": inside}}
    record = {**before, "settings": {}, "versions": {}, "inputs": {}, "started": "2026-01-01", "finished": None}
    monkeypatch.setattr("misc.run.done.read_dict", lambda path: record)
    assert DoneSteps(Path(now, "result")).read("make_cam")["places"] == {"cam_out_dir": expected}


def test_rows_tell_of_how_many_classes_their_mean_is():
    scored = [{"iou": [0.5, 0.5, None]}, None, {"iou": [0.5, None, None]}]
    assert _counted_classes(scored) == "; 2 and 1 of 3 classes"
    assert _counted_classes([{"iou": [0.1, 0.0]}]) == ""


def test_the_report_is_of_the_data_set_that_is_named(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    other = make_toy_data(tmp_path / "other")
    for toy in (finished, other):
        run(toy, **REPORT, redo=())
        assert str(toy.root) in Page("result/report.html").text


def test_a_score_counts_where_what_was_scored_is_still_there(finished, tmp_path, monkeypatch):
    """A step behind it was done again for more images, for another folder, or with the same result."""
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    train_list = finished.root / "ImageSets/Segmentation/train.txt"
    for flags in (
        {"make_cam_pass": True, "infer_list": train_list},
        {"make_cam_pass": True, "cam_weights_name": CAM_START, "cam_out_dir": "result/cam_orig"},
        {"train_cam_pass": True, "redo": "train_cam"},
    ):
        run(finished, **flags)
        run(finished, **REPORT)
        assert "Not in this report" not in Page("result/report.html").text, flags
    run(finished, **REPORT, masks_from="advcam", irn_network="nowhere.at_all")
    assert "Not in this report" not in Page("result/report.html").text


def test_a_score_of_an_evaluation_that_was_cut_short_is_not_shown(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    run(finished, train_cam_pass=True, make_cam_pass=True, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr("step.eval_cam.run", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(finished, eval_cam_pass=True, seed=5)
    run(finished, **REPORT, seed=5)
    page = Page("result/report.html")
    assert "Evaluation: CAM (its score is of earlier files; eval_cam: it was interrupted)" in missing_parts(page)
    assert "maps reach" not in page.text
    command = next(line for line in page.text.split("  ") if "--eval_cam_pass True" in line)
    assert "--redo" not in command


def test_facts_are_those_of_the_training_not_of_the_report(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    run_sample.run(finished.flags(**REPORT, seed=77, voc12_root=f"{finished.root}/"))
    text = Page("result/report.html").text
    assert re.search(r"seed\s+0\s", text)
    assert "Not in this report" not in text
    seconds = [
        step["seconds"]
        for folder in ("result", "result/control")
        for path in Path(folder, "runs").iterdir()
        for step in json.loads(path.read_text())["done"]
        if json.loads(path.read_text())["steps"] != ["make_report"]
    ]
    minutes, rest = re.search(r"time of all steps below\s+(?:(\d+) min )?([\d.]+) s", text).groups()
    assert 60 * int(minutes or 0) + float(rest) == pytest.approx(sum(seconds), abs=1)


@pytest.mark.parametrize(
    ("file", "content", "lost"),
    [
        ("scores/eval_cam.json", "{", "Evaluation: CAM"),
        ("scores/eval_cam.json", '{"classes": 3}', "Evaluation: CAM"),
        ("metrics/train_cam.jsonl", "[1]", "Loss curves of train_cam"),
        ("metrics/train_cam.jsonl", '{"total": 1}', "Loss curves of train_cam"),
        ("runs/a.json", '{"config": [1], "done": null}', None),
        ("scores/eval_ins_seg.json", '{"map": "high"}', None),
        ("runs/a.json", "[]", None),
    ],
)
def test_damaged_records_are_taken_as_missing(finished, tmp_path, monkeypatch, file, content, lost):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("result", file).write_text(content)
    run_sample.run(finished.flags(**REPORT))
    page = Page("result/report.html")
    assert ("Not in this report" in page.text) == (lost is not None)
    assert lost is None or lost in missing_parts(page)


def test_a_damaged_cam_costs_its_own_pictures_only(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    Path(f"result/cam_ood/{finished.ids[0]}.npy").write_bytes(b"damaged")
    run_sample.run(finished.flags(**REPORT, report_images=6))
    page = Page("result/report.html")
    assert f"Pictures of {finished.ids[0]}: CAM file" in missing_parts(page)
    assert page.captions.count("CAM, W-OoD") == 5


def test_maps_masks_and_instances_of_another_size_cost_their_own_pictures_only(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    for image_id, folder in ((7, "deeplab"), (0, "ir_label"), (1, "sem_seg_ood")):
        Image.new("L", (9, 9)).save(f"result/{folder}/{finished.ids[image_id]}.png")
    nothing = Detections(np.zeros(0, np.float32), np.zeros((0, 9, 9), dtype=bool), np.zeros(0, int))
    instancefile.save(f"result/ins_seg_ood/{finished.ids[2]}.npy", nothing)
    camfile.save(f"result/control/cam/{finished.ids[3]}.npy", [0], torch.ones(1, 3, 3), torch.ones(1, 9, 9))
    run_sample.run(finished.flags(**REPORT, report_images=6))
    page = Page("result/report.html")
    for number, kind in ((0, "label"), (1, "label"), (2, "instance file"), (3, "CAM file"), (7, "label")):
        assert f"Pictures of {finished.ids[number]}: {kind}" in missing_parts(page)
    assert page.captions.count("instances") == 2
    assert page.captions.count("DeepLab") == 1


@pytest.fixture
def evaluated(toy):
    """The toy data with a score of a segmentation network; gives a function that writes a run's record."""
    scores = {"voc12_root": str(toy.root), "set": "val", "images": 2, "folder": "none", "weights": "sess/a.pth"}
    scores |= {"classes": ["background", *TOY_CLASSES]} | dict.fromkeys(("precision", "recall", "iou"), [0.5] * 4)
    write_json("result/scores/eval_deeplab.json", scores | {"miou": 0.5})

    def record(*steps, **config):
        flags = {"voc12_root": str(toy.root), "deeplab_weights_name": "sess/a.pth", "deeplab_eval_set": "val"}
        flags |= {"infer_list": "voc12/train.txt", "deeplab_train_list": "", "deeplab_mask_dir": ""}
        flags |= {"deeplab_network": "net.own", "deeplab_init_weights": "coco.pth", **config}
        done = [{"step": step, "seconds": 1, "peak_memory_mib": {}} for step in steps]
        content = {"started": "", "config": flags, "steps": steps, "done": done, "versions": {}, "device": "cpu"}
        write_json(f"result/runs/{len(list(Path('result').glob('runs/*'))):03}.json", content)

    record.root = toy.root
    record.report = lambda: run(toy, **REPORT) or re.sub(r"\s+", " ", Page("result/report.html").text)
    return record


def test_the_readmes_figure_is_of_the_image_of_median_gain(finished, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(finished.work)
    flags = ["", "--voc12_root", str(finished.root), "--output", str(tmp_path / "a.jpg"), "--classes", TOY_CLASSES[1]]
    monkeypatch.setattr("sys.argv", flags)
    draw_overview.main()
    height, width = draw_overview.SIZE
    assert read_image(tmp_path / "a.jpg").shape[1] == 4 * width + 3 * SHEET_GAP

    # Of six training images two show a class; the larger gain is then the median
    first, second = finished.ids[1], finished.ids[4]
    for larger, of_wood in ((first, {first: 0.5, second: 0.6}), (second, {first: 0.5, second: 0.9})):
        of_control = {first: 0.1, second: 0.3}
        scored = {Path("result/cam_ood"): of_wood, Path("result/control/cam"): of_control}
        monkeypatch.setattr(draw_overview, "miou_of_cam", lambda path, *_, of=scored: of[path.parent][path.stem])
        draw_overview.main()
        assert capsys.readouterr().out.endswith(f"a.jpg: {larger}\n")


def test_the_report_says_why_masks_are_below_what_they_are_made_from(evaluated):
    scores = json.loads(Path("result/scores/eval_deeplab.json").read_text()) | {"set": "train"}
    for name, miou in (("eval_ir_label", 0.4), ("eval_sem_seg", 0.45)):
        write_json(f"result/scores/{name}.json", scores | {"miou": miou})
    shown = evaluated.report()
    assert "The masks after IRN reach 45.0 %. A segmentation" in shown
    assert "DeepLab 50.0 % (2 images of val), other images than those of the figures before." in shown

    write_json("result/scores/eval_sem_seg.json", scores | {"miou": 0.375})
    assert "The masks after IRN reach 37.5 %, below CAM + CRF (40.0 %): most often because IRN" in evaluated.report()
    write_json("result/scores/eval_ir_label.json", scores | {"miou": 0.4, "set": "val"})
    write_json("result/scores/eval_deeplab.json", scores | {"miou": 0.5})
    shown = evaluated.report()
    assert "The masks after IRN reach 37.5 %. A segmentation" in shown
    assert "DeepLab 50.0 % (2 images of train). Whether" in shown


UNKNOWN = "A segmentation network: DeepLab 50.0 % (2 images of val). Whether it was trained on some of these images is"


def test_the_report_says_of_the_segmentation_network_what_is_recorded(evaluated):
    assert UNKNOWN in evaluated.report()
    evaluated("train_deeplab", deeplab_weights_name="sess/b.pth")
    evaluated("eval_deeplab")
    assert UNKNOWN in evaluated.report()
    evaluated("train_deeplab", "eval_deeplab", deeplab_weights_name="./sess/a.pth", deeplab_mask_dir="own")
    shown = evaluated.report()
    assert "A segmentation network trained on masks of own: DeepLab 50.0 %" in shown
    assert "None of these images was in its training list." in shown
    evaluated("train_deeplab")  # of the same name, but later than the evaluation
    assert "None of these images was in its training list." in evaluated.report()
    evaluated("eval_deeplab", deeplab_eval_set="test")
    assert "trained on masks of own" in evaluated.report()
    evaluated("eval_deeplab")
    assert "A segmentation network trained on the masks: DeepLab" in evaluated.report()
    evaluated("train_deeplab", "eval_deeplab", deeplab_train_list="voc12/val.txt")
    assert "2 of these images were in its training list, too." in evaluated.report()
    assert "net.own (start: coco.pth)" in evaluated.report()
    evaluated("train_deeplab", "eval_deeplab", deeplab_train_list="removed.txt")
    assert "Whether it was trained on some of these images is not recorded here." in evaluated.report()
    evaluated("train_deeplab", voc12_root="another")
    evaluated("eval_deeplab")
    assert UNKNOWN in evaluated.report()


def test_a_segmentation_network_alone_has_its_colours_and_bars(evaluated):
    shown = evaluated.report()
    assert shown.count("unsure, not counted") == 1
    assert "aeroplane" in shown.split("unsure, not counted")[0].rsplit("Whether it was trained", 1)[1]
    assert Path("result/report/classes.png").is_file()


def test_instances_have_a_colour_each_and_fragments_are_grey():
    masks = np.zeros((3, 2, 4), dtype=bool)
    masks[0, 0, :2] = masks[1, 1, :2] = masks[2, :, 3] = True
    detections = Detections(np.array([0.4, 0, 0.9], np.float32), masks, np.zeros(3, int))
    picture = instance_colours(detections, voc_palette())
    assert (picture[0, :2] == voc_palette()[2]).all()
    assert (picture[1, :2] == UNSURE_COLOUR).all()
    assert (picture[:, 3] == voc_palette()[1]).all()
    assert not picture[:, 2].any()


def test_an_overlay_blends_colours_and_takes_a_few_bytes_a_pixel():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 3, 255], np.uint8), image.shape[:2])
    tracemalloc.start()
    picture = mask_overlay(image, mask, voc_palette())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * mask.size
    for k, colour in ((3, voc_palette()[3]), (255, UNSURE_COLOUR)):
        blended = image[mask == k] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY
        np.testing.assert_array_equal(picture[mask == k], blended.astype(np.uint8))
    np.testing.assert_array_equal(picture[mask == 0], (image[mask == 0] * 0.55).astype(np.uint8))


def test_class_names_that_look_like_formulas_or_html(toy):
    (toy.root / "classes.txt").write_text("a$x^$\n<b>bottle\ntrain\n")
    for annotation in (toy.root / "Annotations").iterdir():
        annotation.write_text(annotation.read_text().replace("aeroplane", "a$x^$").replace("bottle", "&lt;b&gt;bottle"))
    run(toy, train_classifier_pass=True)
    flags = {"cam_weights_name": "sess/res50_cam_orig.pth"}
    run(toy, make_cam_pass=True, eval_cam_pass=True, make_report_pass=True, **flags)
    assert "<b>bottle" in Page("result/report.html").text


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_renders_the_page_without_errors(finished, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, "--enable-logging=stderr"]
    line += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000", "--hide-scrollbars"]
    shot, page = tmp_path / "shot.png", finished.work / "result/report.html"
    done = subprocess.run(
        [*line, f"--screenshot={shot}", f"file://{page}"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    # Charts and pictures are there: coloured pixels in the upper and the lower half, and nothing wider than the window
    colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    assert colourful[:1500].any()
    assert colourful[1500:].any()
    background = pixels[:, -4:].reshape(-1, 3)
    assert (background == background[0]).all()


@pytest.mark.parametrize("size", [(9, 500), (2, 500), (375, 500), (500, 3)])
def test_a_picture_of_edges_covers_its_image_whatever_the_shape(size):
    edge = np.linspace(0, 1, math.prod(cells_of(size)), dtype=np.float32).reshape(cells_of(size))
    picture = edge_picture(edge, size)
    assert picture.shape == (*size, 3)
    assert (picture[0, 0] == 255).all()
    assert (picture[-1, -1] == 0).all()


def test_a_step_is_behind_a_score_wherever_its_place_is_named():
    """DeepLab's masks are those of make_sem_seg, under another flag and by a whole path."""
    records = {
        "make_sem_seg": {"inputs": {"irn_weights_name": 0}, "places": {"sem_seg_out_dir": "result/sem_seg"}},
        "train_deeplab": {"inputs": {"deeplab_mask_dir": 0}, "places": {"deeplab_weights_name": "sess/d.pth"}},
        "eval_deeplab": {"inputs": {"deeplab_weights_name": 0}, "places": {}},
    }
    places = {"deeplab_mask_dir": str(Path("result/sem_seg").resolve()), "deeplab_weights_name": "./sess/d.pth"}
    assert steps_behind("eval_deeplab", records, places) == ["make_sem_seg", "train_deeplab", "eval_deeplab"]
    elsewhere = {**places, "deeplab_mask_dir": "other"}
    assert steps_behind("eval_deeplab", records, elsewhere) == ["train_deeplab", "eval_deeplab"]
