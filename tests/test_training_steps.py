"""What each training step puts together itself: steps, parameter groups and their rates, batches, settings of the loss.

Read from runs of a tiny network on seven images, in which the optimiser and the training sets are watched. Flags and
sizes differ from each other and from the defaults, so that none can stand in for another.
"""

import importlib
import itertools
import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from support import NO_STEPS, TOY_CLASSES
from torch.nn import functional as F

import run_sample
from misc.errors import InputError
from misc.files.images import read_image
from misc.imutils import long_side_size, normalize, resize_image, to_chw
from misc.ood import kmeans, wood_losses
from misc.run.loaders import ShuffledBatches, Stream
from net.weights import load_weights, save_weights
from step import train_classifier
from tests import own_network
from voc12.dataloader import ClassificationCrops, LabelledCrops

N_IMAGES, SEED = 7, 12
OTHER_BATCH_SIZES = {"cam_batch_size": 6, "ood_batch_size": 4, "irn_batch_size": 6, "deeplab_batch_size": 6}
"""Where a training does not say its own: it would notice that it took another's."""
START = "sess/start.pth"
POWER = 0.9


@dataclass(frozen=True)
class Expected:
    """A training's flags, and what they should make of it."""

    flags: dict[str, object]
    stream: Stream
    n_steps: int
    batch_size: int
    rates: tuple[float, ...]
    """The initial one of each group."""
    groups: tuple[str, ...]
    """Patterns of the names of each group's parameters."""
    momentum: float
    weight_decays: tuple[float, ...]
    steps_per_epoch: float
    steps_per_rate: int = 1
    batches_per_step: int = 1
    ood_batch_size: int = 0


CAM_FLAGS = {
    "cam_batch_size": 3,  # two batches an epoch, and one image left out
    "cam_num_epoches": 4,
    "cam_learning_rate": 0.002,
    "cam_weight_decay": 0.0003,
    "cam_select": "last",
    "cam_init_weights_name": START,
}
CAM_EXPECTED = {
    "n_steps": 8,
    "batch_size": 3,
    "rates": (0.002, 0.02),
    "groups": ("backbone.blocks.[34].*", "classifier.weight"),
    "momentum": 0.0003,  # that of the original: its weight decay
    "weight_decays": (0.0003, 0.0003),
    "steps_per_epoch": 2,
}
EXPECTED = {
    "train_classifier": Expected(
        flags={**CAM_FLAGS, "cam_init_weights_name": "sess/made.pth"}, **CAM_EXPECTED, stream=Stream.CLASSIFIER
    ),
    "train_cam": Expected(
        flags={**CAM_FLAGS, "ood_batch_size": 2}, **CAM_EXPECTED, stream=Stream.CAM, ood_batch_size=2
    ),
    "train_irn": Expected(
        flags={
            "irn_batch_size": 2,
            "irn_num_epoches": 3,
            "irn_learning_rate": 0.004,
            "irn_weight_decay": 0.0005,
            "irn_crop_size": 80,
        },
        stream=Stream.IRN,
        n_steps=9,
        batch_size=2,
        rates=(0.004, 0.04),
        groups=("fc_edge*", "fc_dp*"),
        momentum=0.0005,
        weight_decays=(0.0005, 0.0005),
        steps_per_epoch=3,
    ),
    "train_deeplab": Expected(
        flags={
            "deeplab_batch_size": 2,
            "deeplab_iter_size": 2,
            "deeplab_max_iter": 12,
            "deeplab_learning_rate": 0.0006,
            "deeplab_weight_decay": 0.0007,
            "deeplab_crop_size": 33,
        },
        stream=Stream.DEEPLAB,
        n_steps=12,
        batch_size=2,
        rates=(0.0006, 0.006, 0.012),
        groups=("backbone.*", "aspp.*.weight", "aspp.*.bias"),
        momentum=0.9,
        weight_decays=(0.0007, 0.0007, 0),
        steps_per_epoch=1.5,
        steps_per_rate=10,
        batches_per_step=2,
    ),
}


@dataclass
class Watched:
    """What was seen of a training: each step's images, as (epoch, name), and the optimiser's groups after it."""

    images: list[list[tuple[int, str]]] = field(default_factory=lambda: [[]])
    """The last entry: those read since the last step."""
    groups: list[list[dict]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Of all networks' parameters, by their id."""


@pytest.fixture
def watch(monkeypatch):
    """Watches one step."""

    def start(step_name: str) -> Watched:
        watched, networks = Watched(), []
        module = importlib.import_module(f"step.{step_name}")
        build_network, fit = module.build_network, module.fit

        def build_and_name(*arguments, **options):
            networks.append(build_network(*arguments, **options))  # kept, so that no id is used again
            watched.names |= {id(parameter): name for name, parameter in networks[-1].named_parameters()}
            return networks[-1]

        def fit_and_note(batches_from, loss_of, optimizer, **options):
            step = optimizer.step

            def step_and_note():
                step()
                watched.groups.append([dict(group) for group in optimizer.param_groups])
                watched.images.append([])

            optimizer.step = step_and_note
            fit(batches_from, loss_of, optimizer, **options)

        monkeypatch.setattr(module, "build_network", build_and_name)
        monkeypatch.setattr(module, "fit", fit_and_note)
        for crops in (ClassificationCrops, LabelledCrops):
            monkeypatch.setattr(crops, "__getitem__", noting(crops.__getitem__, watched))
        return watched

    def noting(get_item, watched):
        def note_and_get(self, epoch_and_index):
            epoch, index = epoch_and_index
            watched.images[-1].append((epoch, Path(self.paths[index]).stem))
            return get_item(self, epoch_and_index)

        return note_and_get

    return start


def ood_paths(toy):
    return [toy.ood_root / name for name in toy.ood_list.read_text().splitlines()]


def image_paths(toy):
    return [toy.root / "JPEGImages" / f"{image_id}.jpg" for image_id in toy.ids[:N_IMAGES]]


def run(toy, step_name, **flags):
    Path("list.txt").write_text("".join(f"{image_id}\n" for image_id in toy.ids[:N_IMAGES]))
    networks = {f"{kind}_network": "tests.own_network" for kind in ("cam", "irn", "deeplab")}
    lists = {"train_list": "list.txt", "deeplab_train_list": "list.txt"}
    masks = {"ir_label_out_dir": toy.root / "SegmentationClass", "deeplab_mask_dir": toy.root / "SegmentationClass"}
    save_weights(own_network.Net(n_classes=3), START)
    switches = {**NO_STEPS, f"{step_name}_pass": True}
    flags = {**OTHER_BATCH_SIZES, **flags}
    run_sample.run(toy.flags(**switches, **networks, **lists, **masks, seed=SEED, **flags))
    return [json.loads(line) for line in Path(f"result/metrics/{step_name}.jsonl").read_text().splitlines()]


def drawn(names, batch_size, n_batches, *, seed):
    """The batches of (epoch, name) that a training with these settings draws."""
    batches = ShuffledBatches(len(names), batch_size=batch_size, n_batches=n_batches, seed=seed)
    return [[(epoch, names[index]) for epoch, index in batch] for batch in batches]


@pytest.mark.parametrize("step_name", EXPECTED)
def test_steps_groups_rates_and_batches(toy, watch, step_name):
    expected = EXPECTED[step_name]
    watched = watch(step_name)
    lines = run(toy, step_name, **expected.flags)

    assert len(watched.groups) == len(lines) == expected.n_steps
    for number, (groups, line) in enumerate(zip(watched.groups, lines, strict=True)):
        rate_set_at = number // expected.steps_per_rate * expected.steps_per_rate
        decay = (1 - rate_set_at / expected.n_steps) ** POWER
        assert [group["lr"] for group in groups] == pytest.approx([rate * decay for rate in expected.rates], rel=1e-12)
        assert [group["momentum"] for group in groups] == [expected.momentum] * len(groups)
        assert [group["weight_decay"] for group in groups] == list(expected.weight_decays)
        assert line["lr"] == groups[0]["lr"]
        assert line["epoch"] == pytest.approx((number + 1) / expected.steps_per_epoch)

    all_names = set(watched.names.values())
    for group, pattern in zip(watched.groups[-1], expected.groups, strict=True):
        names = [watched.names[id(parameter)] for parameter in group["params"]]
        assert sorted(names) == sorted(name for name in all_names if fnmatch(name, pattern))

    assert watched.images.pop() == []  # none is read after the last step
    order = [image for images in watched.images for image in images if image[1] in toy.ids]
    n_a_epoch = N_IMAGES // expected.batch_size * expected.batch_size
    epochs = [order[start : start + n_a_epoch] for start in range(0, len(order), n_a_epoch)]
    for number, images in enumerate(epochs):
        assert {epoch for epoch, _ in images} == {number}
        assert len(set(images)) == len(images)
    assert len({tuple(name for _, name in images) for images in epochs}) == len(epochs)
    assert {name for _, name in order} == set(toy.ids[:N_IMAGES])

    n_batches = expected.n_steps * expected.batches_per_step
    batches = iter(drawn(toy.ids[:N_IMAGES], expected.batch_size, n_batches, seed=(SEED, expected.stream)))
    ood_names = [path.stem for path in ood_paths(toy)]
    ood_batches = itertools.repeat([])
    if expected.ood_batch_size:
        ood_batches = iter(drawn(ood_names, expected.ood_batch_size, n_batches, seed=(SEED, Stream.CAM_OOD)))
    for images in watched.images:
        of_step = [image for _ in range(expected.batches_per_step) for image in next(batches)]
        assert images == of_step + next(ood_batches)


def test_images_are_validated_in_evaluation_mode(toy, monkeypatch):
    """A network of one's own may have dropout, or batch norms that are not frozen."""
    modes, losses = [], train_classifier.classification_losses

    def watched(model, images, labels):
        modes.append((torch.is_grad_enabled(), model.training))
        return losses(model, images, labels)

    monkeypatch.setattr(train_classifier, "classification_losses", watched)
    run_sample.run(toy.flags(**NO_STEPS | {"train_classifier_pass": True, "cam_num_epoches": 2}))
    assert {*modes} == {(True, True), (False, False)}
    assert modes[-1] == (False, False)
    assert modes.index((False, False)) < len(modes) - 1 - modes[::-1].index((True, True))  # and trained on after it


def test_irns_heads_train_on_a_backbone_in_evaluation_mode(toy, monkeypatch):
    """Else batch norms of a backbone of one's own would change while nothing else of it does."""
    modes, forward = [], own_network.AffinityDisplacementLoss.forward

    def watched(model, *inputs):
        modes.append((model.training, model.fc_edge1.training, model.backbone.training))
        return forward(model, *inputs)

    monkeypatch.setattr(own_network.AffinityDisplacementLoss, "forward", watched)
    run(toy, "train_irn", irn_weights_name="sess/irn.pth")
    assert {*modes} == {(True, True, False)}


def test_the_loss_gets_the_flags_and_the_prototypes(toy, monkeypatch):
    given = []

    def note(model, images, labels, **settings):
        given.append(settings)
        return wood_losses(model, images, labels, **settings)

    monkeypatch.setattr("step.train_cam.wood_losses", note)
    monkeypatch.setattr("step.train_cam.FEATURES_AT_ONCE", 3)  # so that the seven images are three parts
    settings = {"ood_coeff": 0.3, "distance_lambda": 0.02, "ood_dist_topk": 0.4, "ood_adv_step": 0.05}
    run(toy, "train_cam", **CAM_FLAGS, **settings, ood_ignore_class="train", cluster_K=4, ood_long_side=48)
    assert len(given) == EXPECTED["train_cam"].n_steps
    for one in given:
        assert (one["ood_coeff"], one["distance_lambda"], one["topk"], one["step"]) == (0.3, 0.02, 0.4, 0.05)
        assert one["ignore_class"] == TOY_CLASSES.index("train")

    start = own_network.Net(n_classes=len(TOY_CLASSES)).eval()
    load_weights(start, START)

    @torch.no_grad()
    def features_of(images):
        return torch.cat([start(normalize(torch.from_numpy(to_chw(image)))[None])[1] for image in images])

    features = features_of(map(read_image, image_paths(toy)))
    ood_images = [read_image(path) for path in ood_paths(toy)]
    ood_features = features_of(resize_image(image, long_side_size(image.shape[:2], 48)) for image in ood_images)
    # The toy images show the classes in turn
    of_classes = [features[number :: len(TOY_CLASSES)].mean(dim=0) for number in range(len(TOY_CLASSES))]
    expected = torch.cat([torch.stack(of_classes), kmeans(ood_features, 4)[1]])
    for one in given:
        torch.testing.assert_close(one["prototypes"], expected, equal_nan=True)


def test_an_image_whose_features_are_not_finite_is_named(toy, monkeypatch):
    forward, n_seen = own_network.Net.forward, itertools.count(1)

    def fails_at_the_fifth(model, image):
        logits, features = forward(model, image)
        return logits, features * torch.nan if next(n_seen) == 5 else features

    monkeypatch.setattr(own_network.Net, "forward", fails_at_the_fifth)
    monkeypatch.setattr("net.build.problem_of_answer", lambda *_: "")  # whose images would count, too
    monkeypatch.setattr("step.train_cam.FEATURES_AT_ONCE", 3)
    sentence = f"--cam_init_weights_name: the network gives NaN or infinity for .*{toy.ids[4]}.jpg; name other weights"
    with pytest.raises(InputError, match=sentence):
        run(toy, "train_cam", **CAM_FLAGS)


def test_the_mean_displacement_is_that_of_the_inference_list(toy):
    Path("infer.txt").write_text("".join(f"{image_id}\n" for image_id in toy.ids[2:7]))
    crop, batch_size = 80, 2
    flags = {"irn_crop_size": crop, "irn_batch_size": batch_size, "infer_list": "infer.txt"}
    run(toy, "train_irn", **flags, irn_weights_name="sess/irn.pth")
    model = own_network.AffinityDisplacementLoss().eval()
    load_weights(model, "sess/irn.pth")
    stored = model.mean_shift.running_mean.clone()
    model.mean_shift.running_mean.zero_()
    images = []  # cropped at the top left, padded with the mean colour
    for path in image_paths(toy)[2:]:
        image = normalize(torch.from_numpy(to_chw(read_image(path))))[:, :crop, :crop]
        images.append(F.pad(image, (0, crop - image.shape[2], 0, crop - image.shape[1])))
    with torch.no_grad():
        _, displacements = model.edge_and_displacement(torch.stack(images))
    of_batches = [batch.mean(dim=(0, 2, 3)) for batch in displacements.split(batch_size)]
    torch.testing.assert_close(stored, torch.stack(of_batches).mean(dim=0))
