"""DeepLab-v2: networks, starting weights, losses, optimiser, training crops."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from misc.deeplab import (
    LOSSES,
    balanced_cross_entropy,
    deeplab_optimizer,
    largest_logits,
    multiscale_losses,
    plain_cross_entropy,
    scaled_pair,
)
from misc.errors import InputError
from misc.imutils import (
    BGR_MEAN,
    IGNORE_LABEL,
    nearest_labels,
    normalize,
    resize_label,
    subtract_bgr_mean,
)
from misc.run.training import fit
from misc.run.training_state import TrainingState
from misc.torchutils import PolySGD
from net import deeplab_v2, efficientnet_lite0_deeplab, resnet18_deeplab, resnet101_deeplab
from net.backbone import dilated_resnet101, resnet18
from net.deeplab import ASPP, BackboneDeepLab, MultiScale
from net.deeplab_v2 import DeepLabV2
from net.weights import load_weights, save_weights
from voc12.dataloader import SegmentationCrops

MODULES = [deeplab_v2, resnet101_deeplab, efficientnet_lite0_deeplab, resnet18_deeplab]


def by_name(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("module", "size"),
    [
        (deeplab_v2, (10, 14)),
        (resnet101_deeplab, (10, 13)),
        (efficientnet_lite0_deeplab, (5, 7)),
        (resnet18_deeplab, (5, 7)),
    ],
)
def test_logits_have_the_networks_resolution(module, size):
    model = MultiScale(module.DeepLab(n_classes=4)).eval()
    assert model(torch.randn(2, 3, 75, 103)).shape == (2, 4, *size)


@pytest.mark.parametrize("module", MODULES)
def test_convolutions_are_trained_and_norms_are_not(module):
    model = module.DeepLab(n_classes=3).train()
    backbone, weights, biases = model.trainable_parameters()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in weights] == [f"aspp.c{i}.weight" for i in range(4)]
    assert [names[id(p)] for p in biases] == [f"aspp.c{i}.bias" for i in range(4)]
    convolutions = {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    trained = {names[id(p)].rsplit(".", 1)[0] for p in backbone}
    assert trained == {name for name in convolutions if not name.startswith("aspp")}


def test_aspp_sums_dilated_convolutions_and_starts_small():
    aspp, x = ASPP(64, 5), torch.randn(1, 64, 9, 8)
    expected = sum(
        F.conv2d(F.pad(x, (r, r, r, r)), getattr(aspp, f"c{i}").weight, getattr(aspp, f"c{i}").bias, dilation=r)
        for i, r in enumerate((6, 12, 18, 24))
    )
    torch.testing.assert_close(aspp(x), expected)
    slope = torch.randn_like(expected)
    given, plain = (torch.autograd.grad(logits, [*aspp.parameters()], slope) for logits in (aspp(x), expected))
    for of_ours, of_branches in zip(given, plain, strict=True):
        torch.testing.assert_close(of_ours, of_branches, rtol=1e-4, atol=1e-4)
    assert all(branch.weight.std().item() == pytest.approx(0.01, rel=0.05) for branch in aspp.children())
    assert all(not branch.bias.any() for branch in aspp.children())
    halved = resnet18_deeplab.DeepLab().aspp
    assert [branch.dilation[0] for branch in halved.children()] == [3, 6, 9, 12]


@pytest.mark.parametrize("stride", [32, 64])
def test_strides_without_whole_dilations_are_refused(stride):
    backbone = resnet18()
    backbone.strides = (4, 4, 8, 16, stride)
    with pytest.raises(InputError, match=f"--deeplab_network: ResNet has an output stride of {stride}, at which the"):
        BackboneDeepLab(backbone, n_classes=3)


@torch.no_grad()
def test_the_wrapper_takes_the_maximum_of_three_scales():
    class Identity(nn.Module):
        def forward(self, images):
            return images

    images = torch.randn(1, 3, 9, 14)
    by_hand = [
        F.interpolate(F.interpolate(images, scale_factor=s, mode="bilinear"), (9, 14), mode="bilinear")
        for s in (0.5, 0.75)
    ]
    model = MultiScale(Identity())
    assert [tuple(x.shape[2:]) for x in model.scale_logits(images)] == [(9, 14), (4, 7), (6, 10)]
    torch.testing.assert_close(model(images), torch.maximum(images, torch.maximum(*by_hand)))


@torch.no_grad()
def test_dilation_keeps_the_values_of_the_strided_network():
    """So that torchvision's weights are exact in `net.resnet101_deeplab`."""
    from torchvision.models import resnet101

    dilated, strided = dilated_resnet101().eval(), resnet101(weights=None).eval()
    for part in strided.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(1, 3)
    load_weights(dilated, strided.state_dict())
    images = torch.randn(1, 3, 97, 65)
    stages = [
        strided.conv1,
        strided.bn1,
        strided.relu,
        strided.maxpool,
        *(getattr(strided, f"layer{i}") for i in "1234"),
    ]
    expected = nn.Sequential(*stages)(images)
    features = dilated(images)[-1]
    assert features.shape[2:] == (13, 9)
    torch.testing.assert_close(features[:, :, ::4, ::4], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_every_checkpoint_of_the_family_starts_the_network(tmp_path):
    source = DeepLabV2(n_classes=4)
    state, path = by_name(source), tmp_path / "start.pth"
    imagenet = {name: tensor for name, tensor in state.items() if not name.startswith("aspp")}
    imagenet |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    imagenet["layer1.conv1.bn.num_batches_tracked"] = torch.tensor(3)
    coco = {f"module.base.{name}": tensor for name, tensor in by_name(DeepLabV2(n_classes=9)).items()}
    for name in imagenet:
        coco[f"module.base.{name}"] = imagenet[name]
    for start, has_aspp in ((imagenet, False), (coco, False), ({f"base.{k}": v for k, v in state.items()}, True)):
        torch.save(start, path)
        network = DeepLabV2(n_classes=4)
        fresh = by_name(network.aspp)
        network.load_start(str(path))
        loaded = by_name(network)
        for name, tensor in state.items():
            kept = name.startswith("aspp") and not has_aspp
            assert torch.equal(loaded[name], fresh[name.removeprefix("aspp.")] if kept else tensor), name


def test_starting_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "start.pth"
    state = by_name(DeepLabV2())
    del state["layer3.block2.reduce.conv.weight"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"lacks 1 tensors \(layer3.block2.reduce.conv.weight\)"):
        DeepLabV2().load_start(str(path))
    with pytest.raises(InputError, match="stride of a stage in the first 1x1 .* pass --deeplab_network net.deeplab_v2"):
        resnet101_deeplab.DeepLab().load_start(str(_saved(DeepLabV2(), path)))
    sentence = "no conversion is exact: pass --deeplab_network net.resnet101_deeplab, which takes the file as it is"
    with pytest.raises(InputError, match=sentence):
        DeepLabV2().load_start(str(_saved(dilated_resnet101(), path)))
    network = resnet101_deeplab.DeepLab()
    network.load_start(str(path))
    with pytest.raises(InputError, match="deeplab_resnet101_imagenet.pth is missing"):
        DeepLabV2().load_start("auto")


def _saved(module, path):
    save_weights(module, path)
    return path


def test_torchvision_files_start_the_networks_with_its_layout(tmp_path):
    backbone = resnet18()
    torch.save({**backbone.state_dict(), "fc.weight": torch.zeros(1000, 512)}, tmp_path / "r18.pth")
    network = resnet18_deeplab.DeepLab(n_classes=3)
    network.load_start(str(tmp_path / "r18.pth"))
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), network.backbone.parameters(), strict=True))
    packaged = efficientnet_lite0_deeplab.DeepLab(n_classes=3)
    before = packaged.backbone.conv_stem.weight.clone()
    packaged.load_start("auto")
    assert not torch.equal(packaged.backbone.conv_stem.weight, before)


def test_caffe_preparation():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0], image[0, 2] = 200, 50  # red, blue
    prepared = subtract_bgr_mean(image, torch.tensor([[0, 0, 2, 1]]))
    expected = [50 - BGR_MEAN[0], -BGR_MEAN[1], 200 - BGR_MEAN[2]]
    assert prepared[0, :, 0, 0].tolist() == pytest.approx(expected)
    assert not prepared[..., 1].any()


@pytest.mark.parametrize("prepare", [subtract_bgr_mean, normalize])
def test_float_images_are_prepared_as_uint8_ones(prepare):
    images, boxes = torch.randint(0, 255, (2, 3, 5, 6), dtype=torch.uint8), torch.tensor([[0, 0, 5, 4], [1, 2, 3, 4]])
    assert torch.equal(prepare(images.float(), boxes), prepare(images, boxes))
    torch.testing.assert_close(prepare(images + 0.5), (prepare(images) + prepare(images + 1)) / 2)


@pytest.mark.parametrize("given", [321, 320, 64, 513, 7])
def test_labels_are_reduced_as_pil_does(given):
    labels = torch.randint(0, 256, (1, given, given + 3), dtype=torch.uint8)
    for height in range(1, given + 2, 3):
        size = (height, height + 2)
        np.testing.assert_array_equal(nearest_labels(labels, size)[0], resize_label(labels[0].numpy(), size))


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_equal_plain_code(kind):
    rng = np.random.default_rng(0)
    scale_logits = [torch.randn(2, 4, *size) for size in ((6, 7), (3, 4), (5, 5))]
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, 255], size=(2, 41, 49)).astype(np.uint8))

    def mean_over(logits, counted):
        total, count = 0.0, 0
        for of_image, label in zip(logits.double().numpy(), labels.numpy(), strict=True):
            reduced = np.asarray(Image.fromarray(label).resize(of_image.shape[:0:-1], Image.Resampling.NEAREST))
            for (y, x), target in np.ndenumerate(reduced):
                if counted(target):
                    values = of_image[:, y, x]
                    total += np.log(np.exp(values).sum()) - values[target]
                    count += 1
        return total / count

    def by_hand(logits):
        if kind == "plain":
            return mean_over(logits, lambda label: label != 255)
        background = mean_over(logits, lambda label: label == 0)
        return (background + mean_over(logits, lambda label: 0 < label < 255)) / 2

    losses = multiscale_losses(scale_logits, labels, loss=kind)
    largest = largest_logits(scale_logits)
    resized = [F.interpolate(x, (6, 7), mode="bilinear") for x in scale_logits[1:]]
    torch.testing.assert_close(largest, torch.maximum(scale_logits[0], torch.maximum(*resized)))
    expected = {name: by_hand(x) for name, x in zip(("scale_1", "scale_0.5", "scale_0.75"), scale_logits, strict=True)}
    expected["max"] = by_hand(largest)
    expected["total"] = sum(expected.values())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_of", LOSSES.values())
def test_a_batch_without_a_pixel_that_counts_has_no_loss(loss_of):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = loss_of(logits, torch.full((1, 4, 4), IGNORE_LABEL))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("label", [0, 2])
def test_a_kind_without_pixels_counts_zero_in_the_balanced_loss(label):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 4, 4), label)
    labels[:, 0] = IGNORE_LABEL
    loss = balanced_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, plain_cross_entropy(logits, labels) / 2)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_the_balance_is_that_of_the_batch():
    """One background pixel counts as much as all the others together, whichever image it lies in."""
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(1, 3, (2, 4, 4))
    labels[1, 2, 3] = 0
    of_pixels = F.cross_entropy(logits, labels, reduction="none")
    expected = (of_pixels[1, 2, 3] + of_pixels[labels > 0].mean()) / 2
    torch.testing.assert_close(balanced_cross_entropy(logits, labels), expected)


def test_optimiser_has_the_recipes_groups():
    backbone, weights, biases = ([nn.Parameter(torch.ones(1))] for _ in range(3))
    optimizer = deeplab_optimizer(backbone, weights, biases, lr=2.5e-4, weight_decay=5e-4, max_step=100)
    groups = [(g["params"], g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups]
    assert groups == [(backbone, 2.5e-4, 5e-4, 0.9), (weights, 2.5e-3, 5e-4, 0.9), (biases, 5e-3, 0.0, 0.9)]


def test_the_recipes_rates_decay_every_ten_steps():
    optimizer = deeplab_optimizer(
        *([nn.Parameter(torch.ones(1))] for _ in range(3)), lr=2.5e-4, weight_decay=5e-4, max_step=100
    )
    for step in range(25):
        optimizer.step()
        decay = (1 - step // 10 * 10 / 100) ** 0.9
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([2.5e-4 * decay, 2.5e-3 * decay, 5e-3 * decay])


def test_the_rate_decays_every_ten_steps():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = PolySGD([{"params": [parameter], "lr": 2.0}], 2.0, momentum=0.9, max_step=35, decay_interval=10)
    rates = []
    for _ in range(40):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2.0 * (1 - min(step // 10 * 10, 30) / 35) ** 0.9 for step in range(40)])


def test_accumulated_batches_are_one_large_batch(tmp_path):
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64), dtype=torch.uint8)
    batches = [(images[i : i + 1], labels[i : i + 1]) for i in range(4)]
    start = by_name(resnet18_deeplab.DeepLab(n_classes=3))

    def trained(batches, batches_per_step, name):
        model = MultiScale(resnet18_deeplab.DeepLab(n_classes=3))
        load_weights(model, start)
        rates = {"lr": 0.01, "weight_decay": 5e-4, "max_step": 2}
        state = TrainingState(str(tmp_path), name, parts={}, made_with={}, minutes=5)
        fit(
            lambda first: batches[first:],
            lambda batch: multiscale_losses(model.scale_logits(batch[0]), batch[1], loss="plain"),
            deeplab_optimizer(*model.base.trainable_parameters(), **rates),
            n_steps=2,
            steps_per_epoch=1,
            batch_size=1,
            seed=0,
            name=name,
            result_dir=str(tmp_path),
            rate_flag="lr",
            state=state,
            batches_per_step=batches_per_step,
        )
        return by_name(model.base), (tmp_path / "metrics" / f"{name}.jsonl").read_text().splitlines()

    one_by_one, lines = trained(batches, 2, "accumulated")
    at_once, lines_at_once = trained([(images[:2], labels[:2]), (images[2:], labels[2:])], 1, "at_once")
    assert len(lines) == len(lines_at_once) == 2
    for name, tensor in at_once.items():
        torch.testing.assert_close(one_by_one[name], tensor, rtol=1e-4, atol=1e-6)
        trains = name.endswith("weight") and tensor.dim() == 4 or name.startswith("aspp")
        assert torch.equal(tensor, start[name]) != trains, name


def test_training_crops_keep_image_and_mask_together(tmp_path):
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), dtype=np.uint8)
    image[10:30, 10:25], mask[10:30, 10:25] = 200, 7
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    crops = SegmentationCrops([tmp_path / "a.png"], [tmp_path / "m.png"], scales=(0.5, 1.5), crop_size=48, seed=(0,))
    heights, sides = set(), set()
    for epoch in range(40):
        item = crops[epoch, 0]
        top, left, height, width = item["box"].tolist()
        label, inside = item["label"].numpy(), np.zeros((48, 48), dtype=bool)
        inside[top : top + height, left : left + width] = True
        assert item["label"].shape == (48, 48)
        assert (item["image"].shape, item["image"].dtype) == ((3, 48, 48), torch.float32)
        assert top == 0
        assert left in (0, 48 - width)
        np.testing.assert_array_equal(label == 255, ~inside)
        assert set(np.unique(label[inside])) <= {0, 7}
        bright = item["image"][0].numpy() > 100
        assert (bright[inside] == (label[inside] == 7)).mean() > 0.95
        heights.add(height)
        found = np.flatnonzero((label == 7).any(axis=0))
        if height == 20 and len(found):
            sides.add(bool(found.mean() - left < 15))
    assert heights == {20, 48}
    assert sides == {True, False}  # mirrored and not
    np.testing.assert_array_equal(crops[3, 0]["image"], crops[3, 0]["image"])


def test_training_crops_are_windows_of_the_resized_pair_and_mirrored_after_padding(tmp_path):
    """A photograph wider and lower than the crop, each pixel of which has a colour and an id of its own place."""
    rows, columns = np.indices((30, 90), dtype=np.uint8)
    image = np.stack([rows, columns, rows + columns], axis=-1)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(columns).save(tmp_path / "m.png")
    crops = SegmentationCrops([tmp_path / "a.png"], [tmp_path / "m.png"], scales=(1.5,), crop_size=64, seed=(0,))
    resized, label = scaled_pair(image, columns, 1.5)
    assert resized.shape == (45, 135, 3)
    seen = set()
    for epoch in range(60):
        item = crops[epoch, 0]
        shown, ids = item["image"].numpy().transpose(1, 2, 0), item["label"].numpy()
        assert item["box"].tolist() == [0, 0, 45, 64]
        assert (ids[45:] == IGNORE_LABEL).all()
        mirrored = bool(shown[0, 0, 1] > shown[0, -1, 1])
        if mirrored:
            shown, ids = shown[:, ::-1], ids[:, ::-1]
        left = int(np.argmin(np.abs(resized[0, :, 1] - shown[0, 0, 1])))
        np.testing.assert_array_equal(shown[:45], resized[:, left : left + 64])
        np.testing.assert_array_equal(ids[:45], label[:, left : left + 64])
        seen.add((mirrored, left > 35))
    assert seen == {(mirrored, right) for mirrored in (True, False) for right in (True, False)}


def test_scaled_pairs_are_not_antialiased():
    """At a quarter of the size a pixel is the mean of the four in its middle; PIL would look further around it."""
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    label = np.arange(13 * 21, dtype=np.uint8).reshape(13, 21)
    small, reduced = scaled_pair(image, label, 0.25)
    assert small.shape == (3, 5, 3)
    assert small.dtype == np.float32
    np.testing.assert_array_equal(reduced, resize_label(label, (3, 5)))
    image, label = image[:12, :20], label[:12, :20]
    small, _ = scaled_pair(image, label, 0.25)
    middle = sum(image[y::4, x::4].astype(np.float64) for y in (1, 2) for x in (1, 2)) / 4
    np.testing.assert_allclose(small, middle, atol=1e-3)
    same, same_label = scaled_pair(image, label, 1.0)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_label, label)
    assert scaled_pair(image, label, 0.01)[0].shape == (1, 1, 3)
