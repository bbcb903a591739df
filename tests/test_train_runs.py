"""Whole trainings: the originals' own training functions, recorded over 8 to 12 steps in float64, step by step."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from support import relative_error, seeded_state
from torch import Tensor, nn

from misc.classifier import classification_losses
from misc.deeplab import deeplab_optimizer, multiscale_losses
from misc.imutils import IMAGENET_MEAN, IMAGENET_STD
from misc.ood import wood_losses
from misc.run.distributed import mean_over_processes
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import PolySGD, two_rate_optimizer
from net.deeplab import MultiScale
from net.deeplab_v2 import DeepLabV2
from net.resnet50_cam import Net
from net.resnet50_irn import AffinityDisplacementLoss
from net.weights import BACKBONE_PREFIX, load_weights
from step.train_irn import _store_mean_displacement

SEED = 31
"""Of the weights in which the trainings start."""
ADVERSARIAL_STEP, BOTTLE = 0.07, 4
FIRST_STEPS = {"wood": 2, "classifier": 2, "irn": 2, "deeplab": 1}
"""Those that take seconds. The loss of the second step tells whether the first one's update is right."""
LOSS_TOLERANCE, RATE_TOLERANCE, CHANGE_TOLERANCE, NORM_TOLERANCE, MEAN_TOLERANCE = 1e-9, 1e-12, 1e-7, 1e-10, 1e-5


class Recording:
    """What is recorded of one kind of training."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = kind
        with np.load(path) as file:
            self._arrays = {name.removeprefix(f"{kind}."): file[name] for name in file.files if self._is_of(name)}
        self.settings = json.loads(str(self["settings"]))

    def _is_of(self, name: str) -> bool:
        return name == "prototypes" or name.startswith(f"{self.kind}.")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self[name])

    def batches(self, *names: str) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of each batch, one after the other."""
        return zip(*map(self.tensor, names), strict=True)

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in self._arrays.items() if name.startswith(prefix)}

    @property
    def of_optimizer(self) -> dict[str, float]:
        names = {"lr": "lr", "weight_decay": "weight_decay", "max_step": "steps"}
        return {ours: self.settings[name] for ours, name in names.items()}


@dataclass
class Training:
    """A network in its starting state, its optimiser, and the losses of the batches, in their order."""

    model: nn.Module
    optimizer: PolySGD
    loss_of: Callable[..., dict[str, Tensor]]
    batches: Iterator[tuple[Tensor, ...]]
    batches_per_step: int = 1


def normalized(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> normalised in float64, rounded to float32, as float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images.double() / 255 - mean) / std).float().double()


def in_float64(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    load_weights(module, state)
    return module.double().train()


def wood(recording: Recording) -> Training:
    model, settings = Net(), recording.settings
    state = seeded_state(model, SEED)
    prototypes = recording.tensor("prototypes").double()
    weight, direction = state["classifier.weight"].flatten(1).double(), prototypes.mean(dim=0)
    along = torch.outer(weight @ direction, direction) / direction.square().sum()
    state["classifier.weight"] = (weight - along).float()[..., None, None]
    in_float64(model, state)

    def loss_of(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels, ood_images = batch
        return wood_losses(
            model,
            normalized(images),
            labels.double(),
            ood_images=normalized(ood_images),
            prototypes=prototypes,
            ood_coeff=settings["ood_coeff"],
            distance_lambda=settings["distance_lambda"],
            topk=settings["topk"],
            step=ADVERSARIAL_STEP,
            ignore_class=BOTTLE,
        )

    optimizer = two_rate_optimizer(*model.trainable_parameters(), **recording.of_optimizer)
    return Training(model, optimizer, loss_of, recording.batches("images", "labels", "ood_images"))


def classifier(recording: Recording) -> Training:
    model = Net()
    in_float64(model, seeded_state(model, SEED))

    def loss_of(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        return {"total": mean_over_processes(classification_losses(model, normalized(images), labels.double()))}

    optimizer = two_rate_optimizer(*model.trainable_parameters(), **recording.of_optimizer)
    return Training(model, optimizer, loss_of, recording.batches("images", "labels"))


def irn(recording: Recording) -> Training:
    model = AffinityDisplacementLoss()
    state = seeded_state(model, SEED)
    in_float64(model, {**state, "mean_shift.running_mean": torch.zeros(2)})
    optimizer = two_rate_optimizer(*model.trainable_parameters(), **recording.of_optimizer)

    def loss_of(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        return model(normalized(images), labels)

    return Training(model, optimizer, loss_of, recording.batches("images", "labels"))


def deeplab(recording: Recording) -> Training:
    base, settings = DeepLabV2(), recording.settings
    factors = {
        "layer1.conv1.bn.weight": settings["stem_scale"],
        "aspp.*.weight": settings["aspp_scale"],
        "layer5.*.increase.bn.[wb]*": settings["feature_scale"],
        "layer5.*.shortcut.bn.[wb]*": settings["feature_scale"],
    }
    state = seeded_state(base, SEED)
    for pattern, factor in factors.items():
        for name in filter(lambda name, pattern=pattern: fnmatch(name, pattern), state):
            state[name] = factor * state[name]
    model = MultiScale(in_float64(base, state))

    def loss_of(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images_bgr, labels = batch
        return multiscale_losses(model.scale_logits(base.prepare(images_bgr.flip(1)).double()), labels, loss="plain")

    optimizer = deeplab_optimizer(*base.trainable_parameters(), **recording.of_optimizer)
    batches = recording.batches("images_bgr", "labels")
    return Training(base, optimizer, loss_of, batches, batches_per_step=settings["iter_size"])


TRAININGS = {training.__name__: training for training in (wood, classifier, irn, deeplab)}


@pytest.fixture(params=TRAININGS)
def recording(request, parity) -> Recording:
    path = parity / "train_runs.npz"
    if not path.is_file():
        pytest.skip(f"the recorded trainings are not at {path}")
    return Recording(path, request.param)


@pytest.fixture
def training(recording) -> Training:
    return TRAININGS[recording.kind](recording)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE_PREFIX): p.detach().clone() for name, p in model.named_parameters()}


def train(training: Training, n_steps: int, folder: Path) -> tuple[dict[str, list[float]], np.ndarray]:
    """Train as every step does; returns the losses by their names, and the rates (steps, groups)."""
    rates = []

    def note_rates(step: int) -> dict[str, float]:
        rates.append([group["lr"] for group in training.optimizer.param_groups])
        return {}

    fit(
        lambda first: itertools.islice(training.batches, n_steps * training.batches_per_step),
        training.loss_of,
        training.optimizer,
        n_steps=n_steps,
        steps_per_epoch=n_steps,
        batch_size=1,
        seed=0,
        name="train",
        result_dir=str(folder),
        rate_flag="learning_rate",
        state=TrainingState(str(folder), "train", parts={}, made_with={}, minutes=math.inf),
        after_step=note_rates,
        follows=range(n_steps + 1),
        batches_per_step=training.batches_per_step,
    )
    lines = [json.loads(line) for line in (folder / "metrics/train.jsonl").read_text().splitlines()]
    names = lines[0].keys() - {"step", "epoch", "lr", "images_per_second"}
    return {name: [line[name] for line in lines] for name in names}, np.array(rates)


def assert_losses_and_rates(recording: Recording, losses: dict[str, list[float]], rates: np.ndarray) -> None:
    """All losses and rates of the first steps are those recorded."""
    n_steps = len(rates)
    expected = recording.below("loss.")
    assert losses.keys() == expected.keys()
    for name, values in losses.items():
        assert relative_error(np.array(values), expected[name][:n_steps]) < LOSS_TOLERANCE, name
    np.testing.assert_allclose(rates, recording["lr"][:n_steps], rtol=RATE_TOLERANCE)


def test_first_steps(recording, training, tmp_path):
    start = parameters_of(training.model)
    assert_losses_and_rates(recording, *train(training, FIRST_STEPS[recording.kind], tmp_path))
    expected = dict(zip(recording["names"].tolist(), recording["change"] > 0, strict=True))
    assert {name: not torch.equal(end, start[name]) for name, end in parameters_of(training.model).items()} == expected


def assert_mean_displacement(recording: Recording, model: nn.Module) -> None:
    """That of the recorded images is what the training step stores."""
    # The step normalises in float32
    model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    whole = torch.tensor([0, 0, recording.settings["crop"], recording.settings["crop"]])
    batches = [{"image": images, "box": whole.expand(len(images), 4)} for images in recording.tensor("mean_images")]
    model.mean_shift.running_mean.fill_(1)  # what was there before does not matter
    _store_mean_displacement(model, batches, device=torch.device("cpu"))
    assert relative_error(model.mean_shift.running_mean, recording["mean"]) < MEAN_TOLERANCE


@pytest.mark.slow
def test_whole_training(recording, training, tmp_path):
    start = parameters_of(training.model)
    n_steps = recording.settings["steps"]
    losses, rates = train(training, n_steps, tmp_path)
    assert len(rates) == n_steps
    assert_losses_and_rates(recording, losses, rates)

    end = parameters_of(training.model)
    names = recording["names"].tolist()
    assert sorted(end) == sorted(names)
    changes = {name: end[name] - start[name] for name in names}
    changed = np.array([changes[name].norm() for name in names])
    np.testing.assert_allclose(changed, recording["change"], rtol=CHANGE_TOLERANCE)
    np.testing.assert_allclose([end[name].norm() for name in names], recording["norm"], rtol=NORM_TOLERANCE)
    for name, expected in recording.below("d.").items():
        entries = np.linspace(0, changes[name].numel() - 1, len(expected)).astype(int)
        assert relative_error(changes[name].flatten()[entries], expected) < CHANGE_TOLERANCE, name

    if recording.kind == "irn":
        assert_mean_displacement(recording, training.model)
