"""The whole chain, as a user runs it, on eight small images."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from support import (
    ALL_STEPS,
    NO_STEPS,
    RATES_THAT_SHOW,
    RESNET18,
    TOY_CLASSES,
    TOY_SIZES,
    give_all_one_size,
    make_all_inputs,
    make_toy_data,
)

import run_sample
from misc.cam import batch_scale_maps
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import read_label, write_label
from misc.files.instancefile import Detections
from misc.metrics import confusion_matrix, scores
from misc.run.config import switches
from misc.selection import THRESHOLDS, selection_steps
from net.weights import read_checkpoint, save_weights
from tests.own_network import Net
from voc12.classes import read_classes
from voc12.devkit import open_devkit
from voc12.instances import read_instances

RUN_SAMPLE = Path(run_sample.__file__)


def run(toy, **flags):
    run_sample.run(toy.flags(**{**NO_STEPS, **flags}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy data after the whole chain, with ResNet-18, has run on it, for tests that only look."""
    toy = make_toy_data(tmp_path_factory.mktemp("chain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.work)
        run(toy, **ALL_STEPS, **RESNET18)
    return toy


@pytest.fixture
def chain(finished, monkeypatch):
    """`finished`, in whose working directory the test runs."""
    monkeypatch.chdir(finished.work)
    return finished


def test_chain_makes_every_output_and_no_debris(chain):
    train = chain.ids[:6]
    for folder, suffix, others in (
        ("result/cam_ood", ".npy", []),
        ("result/ir_label", ".png", []),
        ("result/sem_seg_ood", ".png", ["palette"]),
        ("result/sem_seg_ood/palette", ".png", []),
        ("result/ins_seg_ood", ".npy", []),
    ):
        expected = sorted([*(f"{image_id}{suffix}" for image_id in train), *others, "made_with.jsonl"])
        assert sorted(path.name for path in (chain.work / folder).iterdir()) == expected
    for folder in ("result/deeplab", "result/deeplab_crf"):
        assert sorted(path.stem for path in (chain.work / folder).glob("*.png")) == chain.ids[6:]
    names = {path.name for path in (chain.work / "sess").iterdir()}
    with_classes = ("res50_cam_orig", "res50_cam_ood", "deeplab_v2_ood")
    networks = {f"{name}.pth" for name in (*with_classes, "res50_irn_ood")}
    assert names == networks | {f"{name}.classes.txt" for name in with_classes}
    for name in with_classes:
        assert read_classes(f"sess/{name}.classes.txt") == TOY_CLASSES
    metrics = {path.name for path in (chain.work / "result/metrics").iterdir()}
    assert metrics == {"train_classifier.jsonl", "train_cam.jsonl", "train_irn.jsonl", "train_deeplab.jsonl"}
    assert not list(chain.work.rglob("*.part*"))


def test_training_changes_what_it_should_and_logs_it(chain):
    orig, wood = (read_checkpoint(f"sess/res50_cam_{kind}.pth") for kind in ("orig", "ood"))
    changed = {name.split(".")[1] for name in orig if not torch.equal(orig[name], wood[name])}
    assert changed == {"layer3", "layer4", "weight"}
    lines = [json.loads(line) for line in Path("result/metrics/train_cam.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1].keys() >= {"bce", "distance", "ood", "total", "lr", "images_per_second", "cam_miou"}
    for line in lines:
        assert line["total"] == pytest.approx(line["bce"] + 0.007 * line["distance"] + 0.25 * line["ood"], rel=1e-4)
    irn = read_checkpoint("sess/res50_irn_ood.pth")
    assert irn["mean_shift.running_mean"].abs().min() > 0


def test_evaluations_equal_an_independent_count(chain):
    names = ["background", "aeroplane", "bottle", "train"]
    confusion = np.zeros((4, 4), dtype=int)
    by_threshold = {threshold: np.zeros((4, 4), dtype=int) for threshold in (0.08, 0.14)}
    for image_id in chain.ids[:6]:
        truth = read_label(chain.root / "SegmentationClass" / f"{image_id}.png")
        mask = read_label(f"result/sem_seg_ood/{image_id}.png")
        keys, _, high_res = camfile.load(f"result/cam_ood/{image_id}.npy")
        for (y, x), t in np.ndenumerate(truth):
            if t == 255:
                continue
            confusion[t, mask[y, x]] += 1
            for threshold, counts in by_threshold.items():
                values = high_res[:, y, x]
                foreground = values.max() > np.float32(threshold)
                counts[t, keys[values.argmax()] + 1 if foreground else 0] += 1
    masks, cams = (json.loads(Path(f"result/scores/eval_{name}.json").read_text()) for name in ("sem_seg", "cam"))
    assert masks["classes"] == names
    assert masks["miou"] == pytest.approx(scores(confusion)["miou"], abs=1e-12)
    assert confusion_matrix(np.array([1]), np.array([2]), 4)[2, 1] == 1  # rows are truth, as counted here
    for threshold, counts in by_threshold.items():
        assert cams["miou_by_threshold"][f"{threshold:g}"] == pytest.approx(scores(counts)["miou"], abs=1e-12)
    assert cams["best"]["miou"] == max(cams["miou_by_threshold"].values())


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_coco_annotations_give_the_instances_back(chain, form, tmp_path, capsys):
    path = tmp_path / "coco.json"
    apart = {"result_dir": tmp_path, "log_name": tmp_path / "log"}
    run(chain, make_cocoann_pass=True, cocoann_path=path, cocoann_format=form, **apart)
    content = json.loads(path.read_text())
    assert {type(each["segmentation"]) for each in content["annotations"]} == {list if form == "polygon" else dict}
    coco = COCO(path)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["aeroplane", "bottle", "train"]
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == [f"{image_id}.jpg" for image_id in chain.ids[:6]]
    assert len(coco.anns) > 0
    for image in images:
        found = instancefile.load(f"result/ins_seg_ood/{Path(image['file_name']).stem}.npy")
        assert found.masks.shape[1:] == (image["height"], image["width"])
        found = found.select(found.scores >= 1e-5)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [each["category_id"] - 1 for each in annotations] == found.classes.tolist()
        for annotation, mask in zip(annotations, found.masks, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
    assert "are run lengths" not in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "kept"), [({}, [0.5, 0.25]), ({"cocoann_min_score": 0}, [0.5, 0, 9e-6, 0.25])])
def test_coco_annotations_leave_out_what_scores_nothing(toy, flags, kept):
    (toy.work / "one.txt").write_text(f"{toy.ids[0]}\n")
    masks = np.zeros((4, *TOY_SIZES[0]), dtype=bool)
    for number in range(4):
        masks[number, 5 * number] = True
    detections = Detections(np.array([0.5, 0, 9e-6, 0.25], np.float32), masks, np.array([0, 1, 2, 0]))
    instancefile.save(f"result/ins_seg_ood/{toy.ids[0]}.npy", detections)
    run(toy, make_cocoann_pass=True, infer_list="one.txt", **flags)
    annotations = json.loads(Path("result/cocoann.json").read_text())["annotations"]
    assert [each["score"] for each in annotations] == pytest.approx(kept)
    assert [each["id"] for each in annotations] == list(range(1, len(kept) + 1))
    left_out = "2 instances that score below 1e-05 are left out; --cocoann_min_score 0 keeps them"
    assert (left_out in Path("sample_train_eval.log").read_text()) == (len(kept) == 2)


def test_instance_masks_are_scored_against_both_kinds_of_truth(toy):
    """Each object is cut in two halves: the left one is found, the right one only as a part, for one class not."""
    for number, image_id in enumerate(toy.ids[:6]):
        instances = read_label(toy.root / "SegmentationObject" / f"{image_id}.png")
        left, right = instances == 1, instances == 2
        part = right & (np.arange(right.shape[1]) % 2 == 0)
        detections = Detections(
            np.array([0.9, 0.2, 0.5], np.float32), np.stack([left, part, ~left & ~right]), np.full(3, number % 3)
        )
        if number % 3 == 1:
            detections = Detections(detections.scores[:1], detections.masks[:1], detections.classes[:1])
        instancefile.save(f"result/ins_seg_ood/{image_id}.npy", detections)
    run(toy, eval_ins_seg_pass=True)
    scored = json.loads(Path("result/scores/eval_ins_seg.json").read_text())
    assert scored["classes"] == ["aeroplane", "bottle", "train"]
    half_found, with_parts = 0.5, []
    for label in (0, 2):  # two images a class: hits, then misses, then the parts, hits where they cover one half
        hits = [True, True, False, False]
        for image_id in (toy.ids[label], toy.ids[label + 3]):
            right = read_label(toy.root / "SegmentationObject" / f"{image_id}.png") == 2
            hits.append((right & (np.arange(right.shape[1]) % 2 == 0)).sum() * 2 >= right.sum())
        precision = np.cumsum(hits) / np.arange(1, 7)
        with_parts.append(sum(precision[k:].max() / 4 for k in np.flatnonzero(hits)))
    assert scored["ap"] == pytest.approx([with_parts[0], half_found, with_parts[1]])
    assert scored["map"] == pytest.approx(np.mean(scored["ap"]))


def test_stray_pixels_of_background_in_an_instance_do_not_count(toy):
    path, devkit = toy.root / "SegmentationClass" / f"{toy.ids[1]}.png", open_devkit(str(toy.root), "")
    mask = read_label(path)
    before, _ = read_instances(devkit, toy.ids[1])
    ys, xs = np.nonzero(before[0])
    mask[ys[0], xs[0]], mask[ys[1], xs[1]] = 0, 255
    write_label(path, mask)
    masks, classes = read_instances(devkit, toy.ids[1])
    assert classes.tolist() == [1, 1]
    np.testing.assert_array_equal(masks, before)  # `SegmentationObject` tells what belongs to an instance


def test_deeplab_is_scored_on_val_without_and_with_crf(chain):
    for name in ("deeplab", "deeplab_crf"):
        confusion = np.zeros((4, 4), dtype=int)
        for image_id in chain.ids[6:]:
            truth = read_label(chain.root / "SegmentationClass" / f"{image_id}.png")
            mask = read_label(f"result/{name}/{image_id}.png")
            for position, t in np.ndenumerate(truth):
                if t != 255:
                    confusion[t, mask[position]] += 1
        content = json.loads(Path(f"result/scores/eval_{name}.json").read_text())
        assert (content["set"], content["images"], content["folder"]) == ("val", 2, f"result/{name}")
        assert content["miou"] == pytest.approx(scores(confusion)["miou"], abs=1e-12)
    lines = [json.loads(line) for line in Path("result/metrics/train_deeplab.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(k, k / 1.5) for k in (1, 2, 3)]
    for line in lines:
        parts = [line[name] for name in ("scale_1", "scale_0.5", "scale_0.75", "max")]
        assert line["total"] == pytest.approx(sum(parts), rel=1e-5)


def test_run_record_tells_what_ran(chain):
    (path,) = (chain.work / "result/runs").iterdir()
    record = json.loads(path.read_text())
    assert record["config"]["voc12_root"] == str(chain.root)
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [step["step"] for step in record["done"]] == [name.removesuffix("_pass") for name in ALL_STEPS]
    assert all(step["seconds"] > 0 for step in record["done"])
    log = (chain.work / "sample_train_eval.log").read_text()
    assert "seed=0 device=cpu" in log
    assert "mask mIoU" in log


def test_same_seed_same_result_other_seed_other_result(toy):
    def weights(**flags):
        run(toy, train_classifier_pass=True, **flags)
        return torch.cat([tensor.flatten() for tensor in read_checkpoint("sess/res50_cam_orig.pth").values()])

    first = weights()
    assert torch.equal(first, weights(num_workers=2))
    assert not torch.equal(first, weights(seed=1))


def test_cams_of_a_batch_equal_one_by_one_and_large_images_run_alone(toy, monkeypatch):
    give_all_one_size(toy)
    save_weights(Net(n_classes=3), "sess/x.pth")
    sizes = []

    def counted(model, scales):
        sizes.append(len(scales[0]))
        return batch_scale_maps(model, scales)

    monkeypatch.setattr("misc.cam.batch_scale_maps", counted)
    made = []
    for pixels_a_place, expected in ((48 * 64, [4, 2]), (48 * 64 - 1, [2, 2, 2]), (48 * 64 // 4, [1] * 6)):
        monkeypatch.setattr("misc.run.loaders.PIXELS_A_PLACE", pixels_a_place)
        run(toy, make_cam_pass=True, cam_weights_name="sess/x.pth")
        assert sizes == expected
        sizes.clear()
        made.append([camfile.load(f"result/cam_ood/{image_id}.npy")[2] for image_id in toy.ids[:6]])
    for in_batches, alone in zip(made[0], made[-1], strict=True):
        np.testing.assert_allclose(in_batches, alone, rtol=1e-4, atol=1e-6)


def test_control_reads_no_ood_data(toy):
    run(toy, train_classifier_pass=True)
    missing = {"ood_root": "nowhere", "ood_list": "nowhere.txt"}
    run(toy, train_cam_pass=True, ood_coeff=0, distance_lambda=0, cam_select="last", **missing)
    (line, *_) = Path("result/metrics/train_cam.jsonl").read_text().splitlines()
    assert json.loads(line).keys() >= {"bce", "total"}
    assert "ood" not in json.loads(line)


def test_selection_falls_back_where_there_are_no_masks(toy):
    for mask in (toy.root / "SegmentationClass").iterdir():
        mask.unlink()
    run(toy, train_classifier_pass=True, train_cam_pass=True)
    assert "keeps its last weights" in Path("sample_train_eval.log").read_text()
    assert read_checkpoint("sess/res50_cam_ood.pth")


def test_masks_without_any_pixel_that_counts_are_refused(toy):
    for path in (toy.root / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            blank = Image.new("L", image.size, 255)
        blank.save(path)
    with pytest.raises(InputError, match="none of the 6 masks such as .* holds the id of a class"):
        run(toy, train_classifier_pass=True, train_cam_pass=True, make_cam_pass=True, eval_cam_pass=True)


def test_the_checkpoint_is_chosen_on_train_whatever_is_evaluated(toy):
    (toy.root / "ImageSets/Segmentation/other.txt").write_text(f"{toy.ids[7]}\n")
    (toy.root / "SegmentationClass" / f"{toy.ids[7]}.png").unlink()
    run(toy, train_classifier_pass=True, train_cam_pass=True, chainer_eval_set="other")
    assert "kept the weights of step 3 of 3" in Path("sample_train_eval.log").read_text()


def test_a_checkpoint_is_compared_by_the_cams_of_its_own_weights(toy, monkeypatch):
    """The kept one has the score that an evaluation of its CAMs gives."""
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):  # two of one size
        shutil.copy(*(toy.root / folder / f"{image_id}{suffix}" for image_id in toy.ids[:2]))
    make_all_inputs(toy)
    sizes = []

    def counted(model, scales):
        sizes.append(len(scales[0]))
        return batch_scale_maps(model, scales)

    flags = {**RATES_THAT_SHOW, "cam_batch_size": 1, "cam_select_interval": 1}
    with monkeypatch.context() as patch:
        patch.setattr("misc.cam.batch_scale_maps", counted)
        run(toy, train_cam_pass=True, **flags)
    assert max(sizes) > 1  # those of a size run as one batch
    run(toy, **switches("train_cam", "make_cam", "eval_cam"), **flags, cam_eval_sweep=THRESHOLDS)
    lines = [json.loads(line) for line in Path("result/metrics/train_cam.jsonl").read_text().splitlines()]
    looks = [line["cam_miou"] for line in lines if "cam_miou" in line]
    assert len({*looks}) > 1
    assert json.loads(Path("result/scores/eval_cam.json").read_text())["best"]["miou"] == pytest.approx(max(looks))


def test_selection_looks_in_the_last_quarter_epoch_and_at_the_end():
    # 661 steps an epoch, 5 epochs: the last epoch starts after 2,644; three quarters of 661 are 495.75
    assert sorted(selection_steps(661, 3305, interval=10)) == [*range(2644 + 500, 2644 + 661, 10), 3305]
    assert selection_steps(3, 3, interval=10) == {3}


def test_an_image_without_objects_gets_an_empty_cam_and_an_empty_mask(toy):
    network = Net(n_classes=3)
    network.classifier.weight.data.abs_()  # the other image's maps are not empty, which would stop the run
    save_weights(network, "sess/res50_cam_ood.pth")
    image_id = toy.ids[0]
    (toy.root / "Annotations" / f"{image_id}.xml").write_text("<annotation></annotation>")
    (toy.work / "two.txt").write_text(f"{image_id}\n{toy.ids[1]}\n")
    flags = {"train_list": "two.txt", "infer_list": "two.txt"}
    run(toy, make_cam_pass=True, **flags)
    assert camfile.load(f"result/cam_ood/{image_id}.npy")[1].shape[0] == 0
    run(toy, cam_to_ir_label_pass=True, train_irn_pass=True, irn_batch_size=1, make_sem_seg_pass=True, **flags)
    run(toy, make_ins_seg_pass=True, make_cocoann_pass=True, **flags)
    assert not read_label(f"result/ir_label/{image_id}.png").any()
    assert not read_label(f"result/sem_seg_ood/{image_id}.png").any()
    assert len(instancefile.load(f"result/ins_seg_ood/{image_id}.npy")) == 0
    annotated = json.loads(Path("result/cocoann.json").read_text())["annotations"]
    assert {note["image_id"] for note in annotated} <= {2}  # images are numbered in the order of the list


def test_command_line(toy):
    def command(*arguments):
        line = [sys.executable, str(RUN_SAMPLE), *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=toy.work)

    shown = command("--help")
    assert shown.returncode == 0
    assert "--train_cam_pass" in shown.stdout
    wrong = command("--train_cam_pass", "maybe")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr
    missing = command(*toy.flags(voc12_root="nowhere"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: --voc12_root nowhere is missing")
