"""Every step's computation on CUDA tensors without values: nothing is made on the wrong device, and few things wait."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda, needs_driver, on_cuda
from torch import nn
from torch.nn import functional

from benchmarks.measure import flop_counter
from misc import crf, instances
from misc.advcam import advcam_batch
from misc.cam import batch_scale_maps, confident_label, merge_scales
from misc.classifier import classification_losses
from misc.deeplab import deeplab_optimizer, multiscale_losses
from misc.imutils import mirror_pair, normalize
from misc.indexing import RandomWalk, RandomWalks
from misc.masks import semantic_mask, semantic_masks
from misc.metrics import ThresholdSweep
from misc.ood import class_prototypes, kmeans, wood_losses
from misc.run.device import Arriving, UnfilledNetworks, one_size, set_precision, to_device, when_arrived
from misc.run.training import fit
from misc.segmentation import masks_of_images
from misc.torchutils import two_rate_optimizer
from net import resnet18_cam, resnet18_deeplab, resnet18_irn, resnet50_cam
from net.convolution import SamePaddedConv2d, convolve
from net.deeplab import MultiScale, Segmenter
from tests import own_network
from voc12.dataloader import images_of

pytestmark = pytest.mark.skipif(needs_driver(), reason="this PyTorch needs a GPU's driver even for fake tensors")

N_CLASSES = 3
SIZE, CELLS = (60, 46), (15, 12)
WALK = {"beta": 10, "exp_times": 1}
FAMILIES = {
    "ResNet-18": (resnet18_cam, resnet18_irn, resnet18_deeplab),
    "one's own": (own_network, own_network, own_network),
}


def network(module, name, **arguments):
    with UnfilledNetworks():
        return getattr(module, name)(**arguments)


def photograph(*leading, size=SIZE):
    return torch.empty(*leading, 3, *size, dtype=torch.uint8, device=CUDA)


def batch(n, side, *, label):
    """As a loader brings it: in page-locked memory."""
    content = {"image": torch.empty(n, 3, side, side, dtype=torch.uint8), "box": torch.empty(n, 4, dtype=torch.long)}
    return {name: tensor.pin_memory() for name, tensor in {**content, "label": label}.items()}


def on_gpu(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device=CUDA)


# Trainings: what `loss_of` of a step does, and its optimiser


def of_classifier(networks):
    model = network(networks[0], "Net", n_classes=N_CLASSES)

    def loss_of():
        given = batch(2, 64, label=torch.empty(2, N_CLASSES))
        losses = classification_losses(model, images_of(given, CUDA), to_device(given["label"], CUDA))
        return {"total": losses.mean()}

    return model, loss_of, partial(two_rate_optimizer, lr=0.1, weight_decay=1e-4, max_step=9)


def of_wood(networks, *, ignore_class=1):
    model = network(networks[0], "Net", n_classes=N_CLASSES)

    def loss_of():
        given, ood = (batch(2, 64, label=torch.empty(2, N_CLASSES)) for _ in range(2))
        prototypes = on_gpu(N_CLASSES + 4, model.classifier.weight.shape[1])
        settings = {"ood_coeff": 0.25, "distance_lambda": 0.007, "topk": 0.2, "step": 0.07}
        return wood_losses(
            model,
            images_of(given, CUDA),
            to_device(given["label"], CUDA),
            ood_images=images_of(ood, CUDA),
            prototypes=prototypes,
            ignore_class=ignore_class,
            **settings,
        )

    return model, loss_of, partial(two_rate_optimizer, lr=0.1, weight_decay=1e-4, max_step=9)


def of_irn(networks):
    model = network(networks[1], "AffinityDisplacementLoss")
    model.radius = 3  # of few pairs

    def loss_of():
        given = batch(2, 64, label=torch.empty(2, 16, 16, dtype=torch.uint8))
        return model(images_of(given, CUDA), to_device(given["label"], CUDA))

    return model, loss_of, partial(two_rate_optimizer, lr=0.1, weight_decay=1e-4, max_step=9)


def of_deeplab(networks, *, loss="balanced"):
    model = network(networks[2], "DeepLab", n_classes=N_CLASSES + 1)

    def loss_of():
        given = batch(2, 65, label=torch.empty(2, 65, 65, dtype=torch.uint8))
        prepared = model.prepare(to_device(given["image"], CUDA), given["box"])
        logits = MultiScale(model).scale_logits(prepared)
        return multiscale_losses(logits, to_device(given["label"], CUDA), loss=loss)

    return model, loss_of, partial(deeplab_optimizer, lr=0.1, weight_decay=1e-4, max_step=9)


TRAININGS = {"train_classifier": of_classifier, "train_cam": of_wood, "train_irn": of_irn, "train_deeplab": of_deeplab}


@pytest.mark.parametrize(
    ("name", "family"), [("train_classifier", "ResNet-18"), *((name, "one's own") for name in TRAININGS)]
)
def test_no_step_of_a_training_waits_for_the_gpu(name, family, tmp_path):
    """Losses are read when the next step is under way, and the weights are looked at once, at the end."""
    model, loss_of, optimizer_of = TRAININGS[name](FAMILIES[family])
    waits_after, devices = [], set()

    def loss_of_batch(_):
        losses = loss_of()
        devices.update(loss.device for loss in losses.values())
        waits_after.append([*waits.lines])
        return losses

    with fake_cuda() as waits:
        on_cuda(model).train()
        optimizer = optimizer_of(*model.trainable_parameters())
        assert all(group["fused"] for group in optimizer.param_groups)
        fit(
            lambda first: range(first, 2),
            loss_of_batch,
            optimizer,
            n_steps=2,
            steps_per_epoch=2,
            batch_size=2,
            seed=0,
            name=name,
            result_dir=str(tmp_path),
            rate_flag="rate",
            state=SimpleNamespace(
                restore=lambda: 0,
                unfinished_line=None,
                save_if_due=lambda step: None,
                save=lambda step: None,
            ),
        )
        assert all(p.grad is not None for parameters in model.trainable_parameters() for p in parameters)
    assert devices == {CUDA}
    assert waits_after == [[]] * 2
    assert {line.split(" by ")[1].split(":")[0] for line in waits.lines} == {"misc/files/soundness.py"}
    assert (tmp_path / "metrics" / f"{name}.jsonl").read_text().count("\n") == 2


# Inference


def test_cams_and_their_files_wait_for_nothing_but_the_file():
    model = network(resnet18_cam, "CAM", n_classes=N_CLASSES).eval()
    written = []
    with fake_cuda() as waits:
        on_cuda(model)
        maps = batch_scale_maps(model, [photograph(2), photograph(2, size=(30, 23))])
        cam, high_res = merge_scales([at_scale[1] for at_scale in maps], SIZE, [0, 2])
        when_arrived(lambda *results: written.extend(results), Arriving(cam), Arriving(high_res))
        assert [(x.device.type, *x.shape) for x in written] == [("cpu", 2, *CELLS), ("cpu", 2, *SIZE)]
        assert [x.numpy().shape for x in written] == [(2, *CELLS), (2, *SIZE)]
    assert waits.lines == []


def test_advcam_waits_for_nothing():
    model = network(resnet18_cam, "CAM", n_classes=N_CLASSES).eval()
    with fake_cuda() as waits:
        pairs = {s: mirror_pair(normalize(photograph(size=(round(60 * s), 46)))) for s in (0.5, 1.0)}
        settings = {"n_iter": 3, "coefficient": 7, "step": 0.08, "score_threshold": 0.5, "batch_size": 2}
        ((cam, high_res),) = advcam_batch(on_cuda(model), [pairs], SIZE, [[0, 2]], **settings)
        assert cam.device == high_res.device == CUDA
        assert (cam.shape, high_res.shape) == ((2, *CELLS), (2, *SIZE))
    assert waits.lines == []


def test_clusters_and_prototypes_stay_on_the_gpu():
    with fake_cuda() as waits:
        assignment, centres = kmeans(on_gpu(9, 5), 3)
        prototypes = class_prototypes([on_gpu(9, 5)], torch.empty(9, N_CLASSES, dtype=torch.bool))
        assert {assignment.device, centres.device, prototypes.device} == {CUDA}
    assert waits.lines == []


@pytest.mark.parametrize("family", FAMILIES)
def test_irn_stays_on_the_gpu(family):
    model = network(FAMILIES[family][1], "EdgeDisplacement").eval()
    with fake_cuda() as waits:
        edge, displacement = on_cuda(model)(mirror_pair(normalize(photograph())))
        assert edge.device == displacement.device == CUDA
        assert (edge.shape, displacement.shape) == ((1, *CELLS), (2, *CELLS))
    assert waits.lines == []


def test_a_semantic_mask_is_walked_on_the_gpu():
    settings = {"power": 1.5, "background_score": 0.2}
    with fake_cuda() as waits:
        mask = semantic_mask(on_gpu(2, *CELLS), RandomWalk(on_gpu(1, *CELLS), **WALK), [0, 2], SIZE, **settings)
    assert mask.shape == SIZE
    assert mask.dtype == np.uint8
    assert {line.split(" by ")[1].split(":")[0] for line in waits.lines} == {"misc/indexing.py", "misc/masks.py"}


def test_the_masks_of_a_batch_wait_for_its_matrix_alone():
    """How many entries that has is read twice; the masks arrive while the next batch is computed."""
    n, settings = 3, {"power": 1.5, "background_score": 0.2}
    with fake_cuda() as waits:
        walks = RandomWalks([on_gpu(1, *CELLS)] * n, **WALK)
        masks = semantic_masks([on_gpu(2, *CELLS)] * n, walks, [[0, 2]] * n, [SIZE] * n, **settings)
        assert {mask.device for mask in masks} == {CUDA}
        arrived = [Arriving(mask).wait() for mask in masks]
        walks[1](on_gpu(4, *CELLS))
    assert {(mask.dtype, mask.shape) for mask in arrived} == {(torch.uint8, SIZE)}
    assert [line.split(":")[0] for line in waits.lines] == ["a number of places is read by misc/indexing.py"] * 2


def test_instances_are_walked_on_the_gpu(monkeypatch):
    monkeypatch.setattr(instances, "REFINEMENTS", 2)
    with fake_cuda():
        walk = RandomWalk(on_gpu(1, *CELLS), **WALK)
        maps = on_gpu(2, *CELLS), walk, on_gpu(2, *CELLS)
        found = instances.detect_instances(*maps, [0, 2], SIZE, background_score=0.2)
    assert found.masks.shape[1:] == SIZE


def test_thresholds_are_counted_on_the_gpu():
    """It is waited for at the end, for the counts alone: a checkpoint is chosen by thousands of images."""
    sweep = ThresholdSweep((0.1, 0.2), N_CLASSES + 1)
    with fake_cuda() as waits:
        sweep.add(on_gpu(2, *SIZE), [0, 1], torch.empty(SIZE, dtype=torch.uint8))
    told = [line.split(" by ")[0] for line in waits.lines]
    assert told == ["a number of values is read", "a copy to the processor"]


@pytest.fixture
def _no_kept_lattices():
    yield
    crf._kept_gaussian_lattice.cache_clear()


@pytest.mark.usefixtures("_no_kept_lattices")
def test_dense_crf_of_a_cam_stays_on_the_gpu():
    image, high_res = np.zeros((*SIZE, 3), dtype=np.uint8), np.zeros((2, *SIZE), dtype=np.float32)
    with fake_cuda():
        label = confident_label(image, high_res, [0, 2], foreground_score=0.3, background_score=0.1, device=CUDA)
    assert label.shape == SIZE


@pytest.mark.usefixtures("_no_kept_lattices")
def test_deeplabs_masks_without_and_with_dense_crf_stay_on_the_gpu():
    model = network(resnet18_deeplab, "DeepLab", n_classes=N_CLASSES + 1)
    with fake_cuda():
        segmenter = Segmenter(MultiScale(on_cuda(model))).eval()
        images = [torch.empty(3, *SIZE, dtype=torch.uint8)]
        how = {"device": CUDA, "paths": ["a.jpg"], "workers": 0}
        ((mask,),) = masks_of_images(segmenter, images, crf=False, **how)
        ((plain, refined),) = masks_of_images(segmenter, images, crf=True, **how)
    assert mask.shape == plain.shape == refined.shape == SIZE


# That these tests can fail


def test_a_tensor_on_the_wrong_device_fails():
    for module, name, spoiled in (
        (torch, "arange", lambda make: lambda *a, device=None, **k: make(*a, **k)),
        (torch, "full", lambda make: lambda *a, device=None, **k: make(*a, **k)),
    ):
        with fake_cuda(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, spoiled(getattr(module, name)))
            with pytest.raises((RuntimeError, TypeError), match="device"):
                normalize(photograph(2), torch.empty(2, 4, dtype=torch.long))


def test_a_network_left_on_the_cpu_fails():
    model = network(own_network, "Net", n_classes=N_CLASSES)
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        model(normalize(photograph(1)))


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        (lambda x: x.sum().item(), "a value is read"),
        (lambda x: float(x.sum()), "a value is read"),
        (lambda x: bool((x > 0).any()), "a value is read"),
        (lambda x: x[0, 0].tolist(), "a value is read"),
        (lambda x: x[x > 0], "a number of places is read"),
        (lambda x: x.nonzero(), "a number of places is read"),
        (lambda x: x.unique(), "a number of values is read"),
        (lambda x: x[torch.tensor([0, 1])], "an index is copied"),
        (lambda x: x.cpu(), "a copy to the processor"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "a copy to the GPU"),
        (lambda x: torch.zeros(2).to(x.device, non_blocking=True), "a copy to the GPU"),  # from pageable memory
        (lambda x: torch.zeros(2).pin_memory().to(x.device), "a copy to the GPU"),
    ],
)
def test_what_waits_is_counted(waiting, told):
    with fake_cuda() as waits:
        waiting(on_gpu(2, 3))
    assert len(waits.lines) >= 1
    assert {line.split(" by ")[0] for line in waits.lines} == {told}


def test_a_copy_that_nobody_waited_for_is_no_result():
    with fake_cuda():
        copy = on_gpu(2).to("cpu", non_blocking=True)
        with pytest.raises(AssertionError, match="before it has arrived"):
            copy.numpy()
        with pytest.raises(TypeError, match="cuda:0"):
            on_gpu(2).numpy()
        assert Arriving(on_gpu(2)).wait().numpy().shape == (2,)


@pytest.mark.parametrize(("groups", "training", "by_cudnn"), [(4, False, False), (4, True, True), (1, False, True)])
def test_depthwise_convolutions_of_whole_images_are_not_cudnns(monkeypatch, groups, training, by_cudnn):
    """Which would prepare them for each new size for longer than it computes them."""
    asked, convolve = [], functional.conv2d

    def conv2d(*args, **kwargs):
        asked.append(torch.backends.cudnn.enabled)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    with fake_cuda(), one_size(training):
        SamePaddedConv2d(4, 4, 3, groups=groups, device=CUDA)(on_gpu(1, 4, 9, 12))
    assert asked == [by_cudnn]
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize(
    ("precision", "of_training", "gradient", "in_one_kernel"),
    [
        ("tf32", True, True, True),
        ("tf32", False, True, True),  # as in AdvCAM's iterations
        ("tf32", True, False, True),  # as IRN's backbone, which is not trained
        ("tf32", False, False, False),
        ("bf16", True, True, True),
        ("fp32", True, True, False),
    ],
)
def test_convolutions_run_with_what_follows_them_or_as_products(
    monkeypatch, precision, of_training, gradient, in_one_kernel
):
    """Bias, ReLU and a block's shortcut in cuDNN's kernel; 1x1 convolutions of whole images as matrix products."""
    model, products, linear = network(resnet50_cam, "Net", n_classes=N_CLASSES), [], functional.linear
    monkeypatch.setattr(functional, "linear", lambda *given: products.append(given) or linear(*given))
    with fake_cuda() as waits, one_size(of_training), torch.set_grad_enabled(gradient):
        set_precision(precision, CUDA)
        logits, _ = on_cuda(model)(on_gpu(2, 3, 64, 64).requires_grad_(gradient))
        assert (logits.shape, logits.dtype) == ((2, N_CLASSES), torch.float32)
    stages = [len(model.backbone.get_submodule(f"layer{number}")) for number in range(1, 5)]
    of_stride_one = 2  # of the shortcuts that are convolutions
    assert waits.n_fused == (1 + 3 * sum(stages) if in_one_kernel else 0)
    assert len(products) == (0 if of_training or gradient else 2 * sum(stages) + of_stride_one)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({}, torch.float64), ({"padding": "same"}, torch.float32), ({"groups": 2}, torch.float32), ({}, torch.float32)],
)
def test_what_cudnn_has_no_kernel_for_is_left_to_pytorch(settings, dtype):
    with fake_cuda() as waits, one_size():
        convolution = nn.Conv2d(4, 6, 3, bias=False, device=CUDA, dtype=dtype, **settings)
        out = convolve(
            convolution, on_gpu(2, 4, 9, 9, dtype=dtype), convolution.weight, on_gpu(6, dtype=dtype), relu=True
        )
        assert (out.shape[:2], out.dtype, out.device) == ((2, 6), dtype, CUDA)
    assert waits.n_fused == (not settings and dtype == torch.float32)


def test_flops_of_a_convolution_are_the_same_with_what_follows_it():
    counts = []
    for of_training in (True, False):
        convolution = nn.Conv2d(4, 6, 3, bias=False)
        with fake_cuda() as waits, one_size(of_training), torch.no_grad(), flop_counter() as counter:
            convolve(
                convolution, on_gpu(2, 4, 9, 9), on_gpu(6, 4, 3, 3), on_gpu(6), shortcut=on_gpu(2, 6, 7, 7), relu=True
            )
        assert waits.n_fused == of_training
        counts.append(counter.get_total_flops())
    assert counts == [2 * (2 * 6 * 7 * 7) * (4 * 3 * 3)] * 2
