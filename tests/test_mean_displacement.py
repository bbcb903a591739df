"""The mean displacement that the training of IRN stores, by plain arithmetic."""

import numpy as np
import torch
from torch import nn

from step.train_irn import _store_mean_displacement

CPU = torch.device("cpu")


class Displacements(nn.Module):
    """Stands for IRN: what it is given for each image is its displacement, at every cell; its edges are none."""

    def __init__(self, of_batches, shift):
        super().__init__()
        self.of_batches, self.modes = iter(of_batches), []
        self.mean_shift = nn.Module()
        self.mean_shift.register_buffer("running_mean", torch.tensor(shift))

    def edge_and_displacement(self, images):
        self.modes.append(self.training)
        displacement = next(self.of_batches)
        assert len(images) == len(displacement)
        return torch.zeros(len(images), 1, 2, 3), displacement - self.mean_shift.running_mean.view(1, 2, 1, 1)


def crops(n):
    return {"image": torch.zeros(n, 3, 8, 12, dtype=torch.uint8), "box": torch.tensor([[0, 0, 5, 12]] * n)}


def test_it_is_the_mean_of_each_batch_and_then_of_batches():
    """A small last batch weighs as much as a full one, the vector of before counts as zero."""
    displacements = [torch.randn(n, 2, 2, 3) + torch.tensor([5.0, -2.0]).view(1, 2, 1, 1) * n for n in (3, 1, 2)]
    model = Displacements(displacements, shift=[10.0, 20.0]).train()
    _store_mean_displacement(model, [crops(3), crops(1), crops(2)], device=CPU)
    expected = [
        [sum(of_batch[:, k].flatten().tolist()) / (6 * len(of_batch)) for k in (0, 1)] for of_batch in displacements
    ]
    np.testing.assert_allclose(model.mean_shift.running_mean, np.array(expected).sum(axis=0) / 3, rtol=1e-6)
    assert model.modes == [False] * 3  # in evaluation mode


def test_images_are_normalised_and_their_padding_counts():
    """The cells of the padding are in the mean; the padding itself is zero, as in the training."""

    class Echo(Displacements):
        def edge_and_displacement(self, images):
            return None, images[:, :2]

    model = Echo([], shift=[0.0, 0.0])
    _store_mean_displacement(model, [crops(1)], device=CPU)
    black = [-0.485 / 0.229, -0.456 / 0.224]  # in 5 of 8 rows
    np.testing.assert_allclose(model.mean_shift.running_mean, np.array(black) * 5 / 8, rtol=1e-6)
