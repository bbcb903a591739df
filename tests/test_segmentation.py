"""The logits of a segmentation network at the size of its images, wherever masks are made of them."""

import numpy as np
import pytest
import torch
from torch import nn

from misc.imutils import subtract_bgr_mean
from misc.segmentation import at_full_size, masks_of_images, pixel_probabilities
from net.deeplab import Segmenter

SMALL = [0.0, 8.0, 4.0]
"""A row of logits of 3 cells for an image of 12 pixels: a cell's value lies at the middle of its 4 pixels."""
LARGE = [0.0, 0.0, 1.0, 3.0, 5.0, 7.0, 7.5, 6.5, 5.5, 4.5, 4.0, 4.0]
CPU = torch.device("cpu")
SIZE = (4, 12)


class TwoClasses(nn.Module):
    """Logits (B, 2, 1, 3) of any images: those of `SMALL`, and 4.25 of the other class."""

    prepare = staticmethod(subtract_bgr_mean)

    def __init__(self):
        super().__init__()
        self.base = self

    def forward(self, images):
        row = torch.tensor(SMALL)
        return torch.stack([row, torch.full_like(row, 4.25)])[None, :, None].repeat(len(images), 1, 1, 1)

    network_logits = forward


MASK = np.broadcast_to(np.array(LARGE) < 4.25, SIZE)


def test_logits_are_enlarged_between_the_middles_of_cells():
    enlarged = at_full_size(torch.tensor(SMALL)[None, None, None], SIZE)
    assert enlarged.tolist() == [[[LARGE] * 4]]
    columns = at_full_size(torch.tensor(SMALL)[None, None, :, None], SIZE[::-1])
    assert columns[0, 0].T.tolist() == [LARGE] * 4


def test_predictions_are_those_of_enlarged_logits():
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    expected = 1 / (1 + np.exp(4.25 - np.array(LARGE)))
    probabilities = pixel_probabilities(TwoClasses(), image)
    np.testing.assert_allclose(probabilities[0], np.broadcast_to(expected, SIZE), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(dim=0), 1, rtol=1e-6)
    ((mask,),) = masks_of_images(TwoClasses(), [image], device=CPU, paths=["a"], crf=False, workers=0)
    np.testing.assert_array_equal(mask, MASK)


def test_evaluation_with_crf_starts_from_enlarged_logits(monkeypatch):
    seen = []

    def crf(image, probabilities, *, backend):
        seen.append((image, probabilities))
        return np.full(image.shape[:2], 7)

    monkeypatch.setattr("misc.segmentation.crf_inference_softmax", crf)
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    ((mask, refined),) = masks_of_images(
        TwoClasses(), [image], device=torch.device("cpu"), paths=["a"], crf=True, workers=0
    )
    np.testing.assert_array_equal(mask, MASK)
    assert (refined.dtype, np.unique(refined)) == (np.uint8, 7)
    ((given_image, probabilities),) = seen
    np.testing.assert_array_equal(given_image, image.permute(1, 2, 0))
    np.testing.assert_allclose(probabilities[0, 0], 1 / (1 + np.exp(4.25 - np.array(LARGE))), rtol=1e-6)


def test_a_device_of_its_own_refines_what_processes_do(monkeypatch):
    """The way of a GPU, whose part the CPU plays."""
    cpu = torch.device("cpu")
    images = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)]
    of_processes = list(masks_of_images(TwoClasses(), images, device=cpu, paths=["a", "b"], crf=True, workers=0))
    monkeypatch.setattr("misc.segmentation.device_of", lambda backend, device: torch.device("cuda"))
    monkeypatch.setattr("misc.segmentation.ordered_map", lambda *args, **how: pytest.fail("processes began"))
    on_device = list(masks_of_images(TwoClasses(), images, device=cpu, paths=["a", "b"], crf=True, workers=0))
    for masks, expected in zip(on_device, of_processes, strict=True):
        for mask, same in zip(masks, expected, strict=True):
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, same)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_program_that_is_exported_gives_enlarged_logits(batch):
    logits = Segmenter(TwoClasses())(torch.zeros(batch, 3, *SIZE, dtype=torch.uint8))
    assert logits.tolist() == [[[LARGE] * 4, [[4.25] * 12] * 4]] * batch
