"""docs/python.md: all of its code runs, one block after the other, and gives what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from misc.cam import label_map, merge_scales, scale_maps
from misc.crf import crf_inference_label, crf_inference_softmax
from misc.indexing import RandomWalk
from misc.masks import semantic_mask
from misc.ood import class_prototypes, distance_loss, kmeans, ood_loss
from net.weights import save_weights
from tests import own_network

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
SIZE, KEYS = (50, 70), [0, 2]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's code leaves behind, with a small photograph and a small IRN in place of a ResNet-50."""
    folder = tmp_path_factory.mktemp("notebook")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    save_weights(own_network.EdgeDisplacement(), folder / "sess/res50_irn_ood.pth")
    text = PAGE.read_text(encoding="utf-8")
    assert text.count('"net.resnet50_irn"') == 1
    blocks = re.findall(
        r"^```python\n(.*?)^```", text.replace('"net.resnet50_irn"', '"tests.own_network"'), re.M | re.S
    )
    torch.manual_seed(0)
    namespace: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("net.irn.MIN_PADDED_SIDE", 16)
        for block in blocks:
            namespace["before"] = [p.detach().clone() for p in namespace["network"].parameters()] if namespace else []
            exec(compile(block, str(PAGE), "exec"), namespace)  # noqa: S102
    return namespace


def test_the_page_has_its_parts():
    headings = re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), re.M)
    assert headings[1:] == [
        "Class activation maps",
        "Dense CRF",
        "Random walk",
        "The losses of W-OoD",
        "Names that stay",
    ]


def test_maps_are_those_of_the_classifier(names):
    cam, high_res = names["cam"], names["high_res"]
    assert cam.shape == (2, 13, 18)
    assert high_res.shape == (2, *SIZE)
    assert high_res.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=1e-3)
    with torch.no_grad():
        pair = torch.randn(2, 3, 64, 96)
        both = torch.einsum("bdhw,cd->bchw", names["features"](pair), names["head"].weight).relu()
        torch.testing.assert_close(names["maps_of"](pair), both[0] + both[1].flip(-1))


def test_the_overlay_is_the_image_with_a_legend(names):
    assert names["overlay"].shape == (*SIZE, 3)
    assert names["picture"].height > SIZE[0]


def test_labels_and_masks_are_class_ids(names):
    allowed = {0, *(key + 1 for key in KEYS)}
    for ids in (names["class_ids"], names["mask"]):
        assert ids.shape == SIZE
        assert set(np.unique(ids)) <= allowed
        assert ids.max() > 0


def test_a_step_of_the_losses_changes_the_network(names):
    losses = names["losses"]
    assert losses.keys() == {"bce", "distance", "ood", "total"}
    expected = losses["bce"] + 0.007 * losses["distance"] + 0.25 * losses["ood"]
    torch.testing.assert_close(losses["total"], expected)
    changed = [not torch.equal(a, b) for a, b in zip(names["before"], names["network"].parameters(), strict=True)]
    assert all(changed)


IMAGE, LABELS = np.zeros((8, 12, 3), dtype=np.uint8), np.zeros((8, 12), dtype=np.int64)
CAM = torch.rand(2, 2, 3)
SCORES = {"power": 1.0, "background_score": 0.25}
EDGE, WALK = torch.rand(1, 2, 3), {"beta": 10, "exp_times": 8}
SENSELESS = {
    "image of 0 .. 1": lambda: crf_inference_label(IMAGE / 255, LABELS, 2),
    "image that lies across": lambda: crf_inference_label(IMAGE.transpose(1, 0, 2), LABELS, 2),
    "grey image": lambda: crf_inference_softmax(IMAGE[..., 0], np.full((2, 8, 12), 0.5, dtype=np.float32)),
    "scaled images of 0 .. 1": lambda: scale_maps(lambda pair: pair[0], [torch.rand(3, 8, 12)]),
    "another size": lambda: semantic_mask(CAM, RandomWalk(EDGE, **WALK), [0, 1], (8, 13), **SCORES),
    "another number of classes": lambda: semantic_mask(CAM, RandomWalk(EDGE, **WALK), [0], (8, 12), **SCORES),
    "labels of other images": lambda: class_prototypes(torch.rand(4, 5), torch.ones(6, 3)),
    "arrays in place of tensors": lambda: scale_maps(lambda pair: pair[0], [IMAGE.transpose(2, 0, 1)]),
    "logits": lambda: crf_inference_softmax(IMAGE, np.ones((2, 8, 12), dtype=np.float32)),
    "a row of labels as keys": lambda: merge_scales([torch.rand(3, 2, 3)], (8, 12), [1, 0, 1]),
    "bools as keys": lambda: merge_scales([torch.rand(3, 2, 3)], (8, 12), np.array([True, False])),
    "a key too many": lambda: label_map(np.ones((2, 8, 12), np.float32), [0, 1, 2], 0.25),
    "a class that there is not": lambda: merge_scales([torch.rand(3, 2, 3)], (8, 12), [3]),
    "edges of 0 .. 255": lambda: RandomWalk((EDGE * 255).byte(), **WALK),
    "the name of the class to ignore": lambda: ood_loss(torch.rand(4, 3), "bottle"),
    "per cent": lambda: distance_loss(torch.rand(4, 5), torch.ones(4, 3), 20),
    "prototypes of classes alone": lambda: distance_loss(torch.rand(4, 3), torch.ones(4, 3), 0.2),
    "no iteration": lambda: kmeans(torch.rand(4, 3), 2, n_iter=0),
}


@pytest.mark.parametrize("given", SENSELESS)
def test_what_would_give_senseless_results_is_refused(given):
    with pytest.raises(ValueError, match="must|rows of features have|need as many keys|expected distances"):
        SENSELESS[given]()
