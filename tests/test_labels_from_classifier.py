"""CAMs of images without labels: `--labels_from classifier`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import CAM_WEIGHTS, make_all_inputs

import run_sample
from misc.errors import InputError
from misc.files import camfile
from misc.files.images import read_image
from misc.imutils import normalize, to_chw
from misc.run.config import switches
from net.build import load_network
from net.weights import save_weights
from tests.own_network import Net


@pytest.fixture
def probabilities(toy):
    """(8, 3) that the classifier gives for each image as a whole; the data set has neither labels nor annotations."""
    make_all_inputs(toy)
    net = Net(n_classes=3)
    with torch.no_grad():
        net.classifier.weight.abs_().mul_(0.5)  # no map is empty
    save_weights(net, CAM_WEIGHTS)
    for annotation in (toy.root / "Annotations").iterdir():
        annotation.unlink()
    model = load_network("tests.own_network", "Net", CAM_WEIGHTS, torch.device("cpu"), n_classes=3)
    paths = [toy.root / "JPEGImages" / f"{image_id}.jpg" for image_id in toy.ids]
    with torch.no_grad():
        images = (normalize(torch.from_numpy(to_chw(read_image(path)))) for path in paths)
        return np.stack([model(image[None])[0][0].sigmoid().numpy() for image in images])


def run(toy, step, **flags):
    flags = {"adv_iter": 1, "train_list": toy.root / "ImageSets/Segmentation/train.txt", "redo": ()} | flags
    run_sample.run(toy.flags(**switches(step), labels_from="classifier", **flags))


@pytest.mark.parametrize(("step", "folder"), [("make_cam", "cam_ood"), ("make_advcam", "cam_ood_advcam")])
def test_maps_are_of_the_classes_that_the_classifier_finds(toy, probabilities, step, folder):
    threshold = float(np.median(probabilities[:6]))
    run(toy, step, label_threshold=threshold)
    found = [camfile.load(f"result/{folder}/{image_id}.npy")[0].tolist() for image_id in toy.ids[:6]]
    expected = [np.flatnonzero(of_image >= threshold).tolist() for of_image in probabilities[:6]]
    assert found == expected
    assert len({*map(tuple, found)}) > 1
    run(toy, step, label_threshold=threshold)
    assert f"{step} is done" in Path("sample_train_eval.log").read_text()
    run(toy, step, label_threshold=0)
    log = Path("sample_train_eval.log").read_text()
    assert f"{step} runs: --label_threshold differs: " in log
    assert [camfile.load(f"result/{folder}/{image_id}.npy")[0].tolist() for image_id in toy.ids[:6]] == [[0, 1, 2]] * 6


@pytest.mark.usefixtures("probabilities")
def test_no_class_in_any_image(toy):
    with pytest.raises(InputError, match="make_cam: none of the 6 images carries a class, .*lower --label_threshold"):
        run(toy, "make_cam", label_threshold=1)


def test_logits_that_are_not_finite(toy, monkeypatch):
    make_all_inputs(toy)
    monkeypatch.setattr(
        Net, "forward", lambda model, images: (torch.full((len(images), 3), torch.nan), images[:, 0, 0])
    )
    with pytest.raises(InputError, match="--cam_weights_name: the network gives NaN or infinity for .*2099_000001.jpg"):
        run(toy, "make_cam")


def test_the_network_must_have_a_classifier(toy, monkeypatch):
    make_all_inputs(toy)
    monkeypatch.delattr("tests.own_network.Net")
    monkeypatch.setattr("run_sample.run_chain", lambda config, steps: pytest.fail("work began"))
    with pytest.raises(InputError, match="--cam_network: network module tests.own_network has no class Net"):
        run(toy, "make_cam")
