"""What only a GPU can tell: `bash benchmarks/gpu_day.sh --parts tests`, or pytest with `-m cuda`, runs these there.

Each runs on the CPU as well, as a slow test, so that its own code is known to work where there is no GPU.
"""

import json
import math
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support import (
    ALL_STEPS,
    CAM_START,
    IRN_WEIGHTS,
    NO_STEPS,
    RATES_THAT_SHOW,
    RESNET18,
    give_all_one_size,
    make_all_inputs,
    make_toy_data,
)
from torch import nn
from torch.nn import functional

import run_sample
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import read_label
from misc.run.device import one_size, set_precision
from misc.run.parallel import SHARE_GPUS
from misc.run.record import start_log
from net import convolution
from net.irn import _Upsample
from net.resnet50_cam import Net
from net.resnet50_irn import EdgeDisplacement as EdgeDisplacement50
from net.weights import read_checkpoint
from tests.own_network import CAM, EdgeDisplacement
from tests.test_distributed import run_in_processes
from tests.test_fitting import limit
from tests.test_limits import limited_memory
from tests.test_networks import randomised_norms
from tests.test_resume import WEIGHTS, messages, train, train_until
from voc12.devkit import open_devkit
from voc12.inference import walk_inputs

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
DEVICES = [pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU]), pytest.param("cpu", marks=pytest.mark.slow)]
CHAIN = {
    **ALL_STEPS,
    **RATES_THAT_SHOW,
    "make_advcam_pass": True,
    "adv_iter": 2,
    "cam_num_epoches": 2,
    **{f"{name}_batch_size": 3 for name in ("cam", "ood", "irn", "deeplab")},
}
LABELS = ("ir_label", "sem_seg_ood", "deeplab", "deeplab_crf")
WEIGHT_ERROR, LABELS_THAT_AGREE = 1e-4, 0.999
MIB = 2**20


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    """The name of the device that is compared with the CPU."""
    return request.param


def run(toy, **flags):
    run_sample.run(toy.flags(**NO_STEPS | {"precision": "fp32"} | flags))


@pytest.fixture(scope="module")
def chains(device, tmp_path_factory):
    """The toy data after the whole chain, on the CPU and on the device."""
    made = {name: make_toy_data(tmp_path_factory.mktemp(folder)) for folder, name in (("a", "cpu"), ("b", device))}
    for name, toy in made.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(toy.work)
            run(toy, **CHAIN, device=name)
    return made["cpu"], made[device]


def assert_near(given, expected, *, tolerance=WEIGHT_ERROR):
    """Tensors by name, relative to the largest value of each."""
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = tensor.abs().max().clamp_min(1e-12)  # a norm that is not trained has zeros
        error = (given[name] - tensor).abs().max() / largest
        assert error <= tolerance, f"{name}: {error:.1e}"


def assert_labels_agree(given, expected):
    """The pixels of all label maps of a folder, and the classes that instances put there."""
    for folder in LABELS:
        paths = sorted((expected.work / "result" / folder).glob("*.png"))
        same = [
            (read_label(given.work / path.relative_to(expected.work)) == read_label(path)).ravel() for path in paths
        ]
        assert np.concatenate(same).mean() >= LABELS_THAT_AGREE, folder
    paths = sorted((expected.work / "result/ins_seg_ood").glob("*.npy"))
    same = [_map_of(given.work / path.relative_to(expected.work)) == _map_of(path) for path in paths]
    assert np.concatenate([each.ravel() for each in same]).mean() >= LABELS_THAT_AGREE, "ins_seg_ood"


def _map_of(path):
    """(H, W): 1 + the class of the best instance of each pixel; 0: none."""
    found = instancefile.load(path)
    label = np.zeros(found.masks.shape[1:], dtype=int)
    for number in np.argsort(found.scores):
        label[found.masks[number]] = 1 + found.classes[number]
    return label


# The chain


@pytest.mark.parametrize("step", WEIGHTS)
def test_trainings_end_with_the_weights_of_the_cpu(chains, step):
    on_cpu, other = (read_checkpoint(toy.work / WEIGHTS[step][1]) for toy in chains)
    assert_near(other, on_cpu)


@pytest.mark.parametrize("folder", ["cam_ood", "cam_ood_advcam"])
def test_maps_are_those_of_the_cpu(chains, folder):
    on_cpu, other = chains
    for path in sorted((on_cpu.work / "result" / folder).glob("*.npy")):
        keys, *maps = camfile.load(path)
        other_keys, *other_maps = camfile.load(other.work / path.relative_to(on_cpu.work))
        assert np.array_equal(keys, other_keys)
        for given, expected in zip(other_maps, maps, strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-3)


def test_labels_are_those_of_the_cpu(chains):
    on_cpu, other = chains
    assert_labels_agree(other, on_cpu)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_chain_runs_in_other_precisions(device, toy, precision):
    run(toy, **CHAIN, device=device, precision=precision)
    maps = "result/cam_fp32"
    run(toy, make_cam_pass=True, device=device, cam_out_dir=maps)
    for image_id in toy.ids[:6]:
        (_, _, given), (_, _, expected) = (camfile.load(f"{at}/{image_id}.npy") for at in ("result/cam_ood", maps))
        np.testing.assert_allclose(given, expected, atol=0.05)


def test_networks_with_norms_and_loaders_in_processes_of_their_own(device, tmp_path, monkeypatch):
    """ResNet-18 in place of the toy network. What a training says of its validation has to follow the weights."""
    steps = {f"{name}_pass": True for name in ("train_classifier", "cam_to_ir_label", "train_irn")}
    flags = {**RESNET18, **RATES_THAT_SHOW, **steps, "num_workers": 2, "crf_workers": 2, "cam_num_epoches": 3}
    told, toys = [], []
    for name in ("cpu", device):
        toy = make_toy_data(tmp_path / f"{name}{len(toys)}")
        monkeypatch.chdir(toy.work)
        make_all_inputs(toy)
        run(toy, **flags, device=name)
        lines = Path("result/metrics/train_classifier.jsonl").read_text().splitlines()
        told.append([line["validation_loss"] for line in map(json.loads, lines) if "validation_loss" in line])
        toys.append(toy)
    assert len(told[0]) == 3
    np.testing.assert_allclose(told[1], told[0], rtol=1e-3)
    for weights in (CAM_START, IRN_WEIGHTS):
        on_cpu, other = (read_checkpoint(toy.work / weights) for toy in toys)
        assert_near(other, on_cpu, tolerance=1e-2)


def relative_error(given, expected):
    """Of tensors, all their values together."""
    given, expected = (torch.cat([x.detach().double().flatten() for x in tensors]) for tensors in (given, expected))
    return ((given - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_convolutions_lose_no_more_in_the_kernels_of_a_gpu(device, monkeypatch, precision):
    """Against plain ones: what follows a convolution is in its kernel, 1x1 ones and upsampling are products."""
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", Mock(wraps=torch.cudnn_convolution_add_relu))
    monkeypatch.setattr(functional, "linear", Mock(wraps=functional.linear))
    given_device = torch.device(device)
    model, irn = (randomised_norms(network).to(given_device) for network in (Net(n_classes=3), EdgeDisplacement50()))
    model.requires_grad_(True)
    irn.train()
    images = torch.randn(2, 3, 97, 130, device=given_device, requires_grad=True)
    parameters = [images, *model.parameters()]

    def computed(name):
        set_precision(name, given_device)
        with one_size():
            logits, _ = model(images)
            gradients = torch.autograd.grad(logits.square().sum(), parameters)
        with torch.no_grad():
            return [logits], gradients, [model.logit_maps(images)], irn.edge_and_displacement(images)

    try:
        own = computed(precision)
        n_blocks = 16 if device == "cuda" else 0
        assert torch.cudnn_convolution_add_relu.call_count == n_blocks
        assert functional.linear.call_count == 2 * (2 * n_blocks + 2 if n_blocks else 0)
        for name in ("_is_fused", "_is_product"):
            monkeypatch.setattr(convolution, name, lambda *_, **__: False)
        monkeypatch.setattr(_Upsample, "forward", nn.Upsample.forward)
        plain, exact = computed(precision), computed("fp32")
    finally:
        set_precision("fp32", torch.device("cpu"))
    for ours, theirs, expected in zip(own, plain, exact, strict=True):
        assert relative_error(ours, expected) <= 2 * relative_error(theirs, expected) + 1e-6
    assert device == "cpu" or relative_error(own[1], exact[1]) > 1e-5, "a lower precision has to be seen"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("of_training", [True, False])
def test_convolutions_read_no_memory_of_before(device, precision, of_training):
    """For convolution, bias and ReLU PyTorch gives cuDNN the output itself as a summand, times 0: 0 * NaN is NaN."""
    given_device = torch.device(device)
    model = randomised_norms(Net(n_classes=3)).to(given_device).requires_grad_(True)
    images = torch.randn(2, 3, 97, 130, device=given_device, requires_grad=True)
    fused = convolution._Fused.forward

    def after_rubbish(ctx, x, weight, *others):
        expected = functional.conv2d(x, weight, None, *others[2:])
        rubbish = [torch.full_like(expected, math.nan) for _ in range(4)]
        del expected, rubbish  # which leaves it to the next tensors of this size
        return fused(ctx, x, weight, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution._Fused, "forward", staticmethod(after_rubbish))
        try:
            set_precision(precision, given_device)
            with one_size(of_training):
                logits, _ = model(images)
                gradients = torch.autograd.grad(logits.square().sum(), [images, *model.parameters()])
        finally:
            set_precision("fp32", torch.device("cpu"))
    assert all(tensor.isfinite().all() for tensor in (logits, *gradients))


def test_what_is_no_number_stays_so(device):
    """Else a training that diverges would have losses that look sound."""
    given_device = torch.device(device)
    model = randomised_norms(Net(n_classes=3)).to(given_device).requires_grad_(True)
    next(model.backbone.layer3.parameters()).data.view(-1)[0] = math.nan
    try:
        set_precision("auto", given_device)
        with one_size():
            logits, _ = model(torch.randn(2, 3, 97, 130, device=given_device, requires_grad=True))
    finally:
        set_precision("fp32", torch.device("cpu"))
    assert logits.isnan().all()


# Interruptions


@pytest.mark.parametrize("step", WEIGHTS)
def test_a_training_goes_on_there_or_elsewhere(device, toy, monkeypatch, step):
    """On one device, from there to the CPU, and from the CPU to there."""
    make_all_inputs(toy)
    start = {"device": device, "precision": "fp32", **RATES_THAT_SHOW}
    weights = {WEIGHTS[step][0]: "sess/trained.pth"}
    expected, losses = train(toy, step, **start, **weights)
    for before, after in ((device, device), (device, "cpu"), ("cpu", device)):
        train_until(monkeypatch, 4, toy, step, **start | weights | {"device": before})
        given, lines = train(toy, step, **start | weights | {"device": after})
        assert f"{step} goes on after step 3 of an interrupted run" in messages()
        Path("sample_train_eval.log").unlink()
        assert [line["step"] for line in lines] == [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
        assert_near(given, expected)


# Waiting


def waits_of(toy, device, **flags):
    """{what of the project made the processor wait for the GPU: how often}, as PyTorch's sync debug mode tells it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            run(toy, device=device, **flags)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    said = [each for each in caught if "called a synchronizing CUDA operation" in str(each.message)]
    return Counter(f"{each.filename}:{each.lineno}" for each in said)


LENGTHS = {
    "train_cam": [{"cam_num_epoches": n, "cam_select": "last"} for n in (1, 3)],
    "train_irn": [{"irn_num_epoches": n} for n in (1, 3)],
    "train_deeplab": [{"deeplab_max_iter": n} for n in (3, 9)],
}


@pytest.mark.parametrize("step", LENGTHS)
def test_more_steps_of_a_training_wait_no_more_often(device, toy, step):
    make_all_inputs(toy)
    short, long = (waits_of(toy, device, **{f"{step}_pass": True}, **flags) for flags in LENGTHS[step])
    assert long == short
    assert device == "cpu" or short, "the look at the trained weights waits once, and has to be seen"


# Memory


@contextmanager
def little_memory(device, n_bytes):
    """So many bytes more than this process has of the device's memory."""
    if device == "cpu":
        with limited_memory(n_bytes):
            yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + n_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_training_that_does_not_fit_is_one_sentence_and_the_next_one_runs(device, toy):
    make_all_inputs(toy)
    give_all_one_size(toy, (300, 300))
    with (
        pytest.raises(InputError, match=r"^train_classifier: the .*memory does not suffice .*--cam_crop_size"),
        little_memory(device, 300 * MIB),
    ):
        run(toy, train_classifier_pass=True, cam_crop_size=4096, device=device)
    run(toy, train_classifier_pass=True, device=device)


def peak_of(work):
    """Bytes that a piece of work takes of the GPU at its peak, with what PyTorch keeps in store."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_reserved()


def cams_in_batches(toy, device, together):
    run(toy, make_cam_pass=True, device=device, make_cam_batch_size=together, cam_scales=(1.0, 2.0))


def advcams_in_batches(toy, device, together):
    run(toy, make_advcam_pass=True, adv_iter=2, device=device, advcam_batch_size=together)


def irn_in_batches(toy, device, together):
    model = EdgeDisplacement().to(device).eval()
    how = {"device": torch.device(device), "num_workers": 0, "batch_size": together, "title": "IRN"}
    start_log("sample_train_eval")
    list(walk_inputs(model, open_devkit(str(toy.root), ""), toy.ids[:4], "result/cam_ood", **how))


IN_BATCHES = {
    "make_cam": (cams_in_batches, CAM, "logit_maps", lambda images: len(images) // 2, "images"),
    "make_advcam": (advcams_in_batches, CAM, "logit_maps", lambda images: len(images) // 2, "(image, class) pairs"),
    "IRN": (irn_in_batches, EdgeDisplacement, "batch", len, "images"),
}


@pytest.mark.parametrize("kind", IN_BATCHES)
def test_batches_that_do_not_fit_are_halved(device, toy, monkeypatch, kind):
    work, owner, name, n_of, parts = IN_BATCHES[kind]
    make_all_inputs(toy)
    size = (500, 500) if device == "cuda" else (48, 64)
    give_all_one_size(toy, size)
    cells = [math.ceil(side / 4) for side in size]
    for number, image_id in enumerate(toy.ids):
        camfile.save(f"result/cam_ood/{image_id}.npy", [number % 3], torch.ones(1, *cells), torch.ones(1, *size))
    if device == "cuda":
        one, four = (peak_of(lambda n=n: work(toy, device, n)) for n in (1, 4))
        with little_memory(device, one + (four - one) // 4):
            work(toy, device, 4)
    else:
        limit(monkeypatch, owner, name, n_of, room=2)
        work(toy, device, 4)
    assert f"no GPU memory for 4 {parts} at once; going on with 2" in messages()


# Several processes


def test_two_processes_give_what_one_gives(device, chains, tmp_path, monkeypatch):
    """Each with a GPU of its own, whose sums NCCL makes, or both on the only one, whose sums Gloo makes."""
    if device == "cuda" and torch.cuda.device_count() == 1:
        monkeypatch.setenv(SHARE_GPUS, "1")
    toy = make_toy_data(tmp_path)
    done = run_in_processes(toy, 2, **CHAIN, device=device, precision="fp32")
    assert done.returncode == 0, done.stderr
    _, one = chains
    for _, name in WEIGHTS.values():
        assert_near(read_checkpoint(toy.work / name), read_checkpoint(one.work / name))
    assert_labels_agree(toy, one)
