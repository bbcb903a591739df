"""Overlays with names, colours and a legend: `--show_pass`, and the pictures that it and predict make."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import CAM_WEIGHTS, TOY_SIZES, ToyData, make_all_inputs

import run_sample
from misc.cam import merge_high_res, scale_maps
from misc.errors import InputError
from misc.files import camfile
from misc.files.atomic import write_json
from misc.files.images import read_image, read_label
from misc.imutils import resize_image, scaled_size, to_chw
from misc.report.pictures import SHEET_GAP, maps_overlay, mask_overlay, side_by_side, with_legend
from misc.run.config import enabled_steps, parse_config, switches
from net.build import load_network
from net.weights import save_weights
from tests.own_network import Net
from voc12.classes import shown_colours, voc_palette

PALETTE = voc_palette()
NAMES = ("background", "aeroplane", "bottle", "train")


@pytest.fixture
def written(monkeypatch):
    """{name: (pictures, colours)} of all overlays that are written, and the files as well."""
    import step.show

    seen, write = {}, step.show._write

    def watched(path, pictures, colours):
        seen[path.name] = {title: picture.copy() for title, picture in pictures}, colours
        write(path, pictures, colours)

    monkeypatch.setattr("step.show._write", watched)
    return seen


def run(toy: ToyData, **flags) -> None:
    run_sample.run(toy.flags(**switches("show"), **flags))


def test_a_legend_leaves_the_picture_as_it_is_and_shows_each_colour():
    picture = np.random.default_rng(0).integers(0, 255, (40, 300, 3), dtype=np.uint8)
    colours = {"aeroplane": (128, 0, 0), "bottle": (0, 128, 0), "a train of a very long name": (1, 2, 3)}
    shown = with_legend(picture, colours)
    np.testing.assert_array_equal(shown[:40, :300], picture)
    below = shown[40:].reshape(-1, 3)
    for colour in colours.values():
        assert (below == colour).all(axis=1).sum() > 50
    assert (below == 0).all(axis=1).sum() > 100  # the names
    assert (below == 255).all(axis=1).mean() > 0.5
    np.testing.assert_array_equal(with_legend(picture, {}), picture)


@pytest.mark.parametrize("width", [1, 90, 400, 4000])
def test_legends_fit_pictures_of_any_width(width):
    names = [f"class {number}" for number in range(30)]
    shown = with_legend(
        np.zeros((5, width, 3), dtype=np.uint8), {name: (9, 9, number) for number, name in enumerate(names)}
    )
    assert shown.shape[1] >= width
    for number in range(30):
        assert (shown == (9, 9, number)).all(axis=2).any(), number
    assert (shown[:, -3:] == 255).all(axis=2)[5:].all()  # nothing is cut off


def test_maps_are_shown_in_the_colour_of_the_strongest_class():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    maps = np.array([[[1, 0.5], [0, 0]], [[0, 0.6], [0, 1]]], dtype=np.float32)
    shown = maps_overlay(image, maps, [0, 2], PALETTE).astype(int)
    np.testing.assert_array_equal(shown[1, 0], image[1, 0])
    assert abs(shown[0, 0] - (0.4 * 100 + 0.6 * PALETTE[1])).max() <= 1
    assert abs(shown[0, 1] - (0.64 * 100 + 0.36 * PALETTE[3])).max() <= 1
    assert abs(shown[1, 1] - (0.4 * 100 + 0.6 * PALETTE[3])).max() <= 1
    np.testing.assert_array_equal(maps_overlay(image, maps[:0], [], PALETTE), image)


def test_pictures_stand_side_by_side():
    first, second = (np.full((30, 50, 3), value, dtype=np.uint8) for value in (10, 20))
    row = side_by_side([("one", first), ("two", second)])
    assert row.shape[1] == 100 + SHEET_GAP
    np.testing.assert_array_equal(row[-30:, :50], first)
    np.testing.assert_array_equal(row[-30:, -50:], second)
    assert (row[:-30] < 50).any()  # the captions


def test_colours_are_those_of_the_classes_that_are_shown():
    assert shown_colours([0, 3, np.uint8(1), 255], NAMES) == {"aeroplane": (128, 0, 0), "train": (128, 128, 0)}


def test_what_is_shown_is_what_the_files_hold(toy, written, monkeypatch):
    """Also where an image has no mask. Class k modulo 3 is that of image k (`make_all_inputs`)."""
    asked = []
    monkeypatch.setattr("step.show.tell_missing_letters", asked.append)
    make_all_inputs(toy)
    without = Path("result/sem_seg_ood") / f"{toy.ids[1]}.png"
    without.unlink()
    write_json(Path("result/show/classes.json"), {"photographs": {"a.png": "/photos"}, "classes": []})
    run(toy)
    assert [tuple(names) for names in asked] == [NAMES]
    assert sorted(written) == [f"{image_id}.jpg" for image_id in toy.ids[:6]]
    for number, image_id in enumerate(toy.ids[:6]):
        pictures, colours = written[f"{image_id}.jpg"]
        image = read_image(toy.root / "JPEGImages" / f"{image_id}.jpg")
        name = NAMES[1 + number % 3]
        assert colours == {name: tuple(PALETTE[1 + number % 3])}
        cam = np.ones((1, *image.shape[:2]), dtype=np.float32)
        expected = {"image": image, "CAM": maps_overlay(image, cam, [number % 3], PALETTE)}
        if number != 1:
            mask = read_label(f"result/sem_seg_ood/{image_id}.png")
            expected["mask"] = mask_overlay(image, mask, PALETTE)
        assert pictures.keys() == expected.keys()
        for title, picture in expected.items():
            np.testing.assert_array_equal(pictures[title], picture)
        with Image.open(f"result/show/{image_id}.jpg") as shown:
            assert shown.width >= len(expected) * TOY_SIZES[number][1]
            assert shown.height > TOY_SIZES[number][0]
    noted = json.loads(Path("result/show/classes.json").read_text())
    assert noted["photographs"] == {"a.png": "/photos"}  # by predict, into the same folder
    classes = noted["classes"]
    assert [entry["name"] for entry in classes] == [*NAMES]
    assert "6 CAMs of files, 0 of the classifier, 5 masks; 0 images" in Path("sample_train_eval.log").read_text()


def firing(toy):
    net = Net(n_classes=3)
    with torch.no_grad():
        net.classifier.weight.abs_().mul_(0.5)
    save_weights(net, CAM_WEIGHTS)


@pytest.mark.parametrize("labels_from", ["file", "classifier"])
def test_where_there_is_no_cam_the_classifier_makes_it(toy, written, labels_from):
    """Of images with labels, and of images without."""
    make_all_inputs(toy)
    firing(toy)
    for image_id in toy.ids[1:]:
        camfile.cam_path("result/cam_ood", image_id).unlink()
    if labels_from == "classifier":
        for annotation in (toy.root / "Annotations").iterdir():
            annotation.unlink()
    Path("list.txt").write_text("".join(f"{image_id}\n" for image_id in toy.ids))
    run(toy, labels_from=labels_from, label_threshold=0, show_list="list.txt")
    model = load_network("tests.own_network", "CAM", CAM_WEIGHTS, torch.device("cpu"), n_classes=3)
    for number, image_id in enumerate(toy.ids[1:], start=1):
        image = read_image(toy.root / "JPEGImages" / f"{image_id}.jpg")
        size, keys = image.shape[:2], [number % 3] if labels_from == "file" else [0, 1, 2]
        scaled = [torch.from_numpy(to_chw(resize_image(image, scaled_size(size, scale)))) for scale in (1.0, 0.5)]
        maps = merge_high_res(scale_maps(model, scaled), size, keys).numpy()
        expected = maps_overlay(image, maps, keys, PALETTE)
        assert written[f"{image_id}.jpg"][0]["CAM"] == pytest.approx(expected, abs=1)
    assert "1 CAMs of files, 7 of the classifier, 8 masks" in Path("sample_train_eval.log").read_text()


def test_images_in_which_nothing_is_found(toy, written):
    make_all_inputs(toy)
    run(toy, cam_out_dir="result/none", sem_seg_out_dir="result/none", labels_from="classifier", label_threshold=1)
    assert [colours for _, colours in written.values()] == [{}] * 6
    assert "6 images without any class" in Path("sample_train_eval.log").read_text()


def test_cams_of_another_size_are_refused(toy):
    make_all_inputs(toy)
    path = camfile.cam_path("result/cam_ood", toy.ids[2])
    camfile.save(path, [0], torch.ones(1, 2, 2), torch.ones(1, 8, 8))
    with pytest.raises(InputError, match=f"{path} is not of the size of its image; make it again"):
        run(toy)


def test_it_runs_alone_and_shows_what_the_run_has_made(toy, written):
    assert enabled_steps(parse_config(["--show_pass", "True"])) == ["show"]
    make_all_inputs(toy)
    firing(toy)
    for image_id in toy.ids:
        camfile.cam_path("result/cam_ood", image_id).unlink()
    run_sample.run(toy.flags(**switches("make_cam", "show"), infer_list="voc12/train.txt"))
    assert len(written) == 6
    assert "6 CAMs of files, 0 of the classifier" in Path("sample_train_eval.log").read_text()
