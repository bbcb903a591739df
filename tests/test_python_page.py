"""docs/python.md: all of its code runs, one block after the other, and gives what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_the_page_has_its_four_parts():
    headings = re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), re.M)
    assert headings[1:] == ["Class activation maps", "Dense CRF", "Random walk", "The losses of W-OoD"]


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
