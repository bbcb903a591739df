"""--precision: what it sets, and what bfloat16 does to CAMs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import seeded_state

import run_sample
from misc.cam import label_map, merge_high_res, scale_maps
from misc.deeplab import multiscale_losses
from misc.errors import InputError
from misc.files.images import read_image, read_label
from misc.imutils import resize_image, scaled_size, to_chw
from misc.metrics import ThresholdSweep
from misc.run import device
from misc.run.config import switches
from misc.run.device import backbone_precision, require_code_for, set_precision
from net import deeplab_v2, resnet18_cam, resnet50_cam
from net.weights import load_weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def restored():
    yield
    set_precision("fp32", CPU)


def test_auto_is_tf32_on_cuda_and_fp32_on_the_cpu():
    assert set_precision("auto", CPU) == set_precision("tf32", CPU) == "fp32"
    assert set_precision("auto", CUDA) == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    assert set_precision("fp32", CUDA) == "fp32"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture
def gpu(monkeypatch):
    """Has PyTorch find one GPU, of a compute capability, for some of which it is built."""

    def found(capability, *architectures):
        answers = {
            "is_available": True,
            "device_count": 1,
            "get_device_capability": capability,
            "get_device_name": "NVIDIA X",
            "get_arch_list": [*architectures],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    monkeypatch.setattr(torch.version, "hip", None)
    return found


CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""What PyTorch's build for CUDA 13.0 is for."""


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        ((7, 0), CUDA_13),
        ((6, 1), CUDA_13),
        ((8, 0), ("sm_86",)),
        ((12, 0), ("sm_50", "sm_90")),
        ((9, 0), ("sm_80", "compute_100")),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_pytorch_has_no_code_for_is_told_before_anything_is_done(
    gpu, tmp_path, monkeypatch, capability, architectures, name
):
    monkeypatch.chdir(tmp_path)
    gpu(capability, *architectures)
    said = (
        rf"--device: PyTorch \S+ has no code for the GPU here \(NVIDIA X, .* {capability[0]}.{capability[1]}\), .* cpu"
    )
    with pytest.raises(InputError, match=said):
        run_sample.run(["--device", name, "--plan", "True"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        ((7, 5), CUDA_13),
        ((8, 9), CUDA_13),
        ((12, 1), CUDA_13),
        ((9, 0), ("sm_80", "sm_90a")),
        ((12, 0), ("sm_90", "compute_90")),
        ((11, 0), ("sm_90", "sm_101")),
        ((7, 0), ()),
    ],
)
def test_a_gpu_that_it_has_code_for_is_taken(gpu, capability, architectures):
    gpu(capability, *architectures)
    require_code_for(CUDA)


@pytest.fixture
def driver(monkeypatch, tmp_path, caplog):
    """Lets NVIDIA's driver be found, which PyTorch finds too old, and gives what the log says then of the device."""

    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).")

    def said(name="auto", chosen=CPU):
        caplog.clear()
        device.tell_of_device(name, "auto", chosen)
        return caplog.text

    caplog.set_level("INFO")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr(device, "NVIDIA_TOOL", "no-such-tool")
    return said


def test_a_gpu_that_pytorch_cannot_use_is_told(driver, monkeypatch, tmp_path):
    assert "notice: the CPU does all the work: PyTorch finds no GPU, " in driver()
    assert "(The NVIDIA driver on your system is too old (found version 12020).)" in driver()
    assert driver("cpu") == driver(chosen=CUDA) == ""
    for hidden in ("", "-1", "NoDevFiles"):
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", hidden)
            assert driver() == ""
    monkeypatch.setattr(device, "NVIDIA_DRIVER", tmp_path / "absent")
    assert driver() == ""
    monkeypatch.setattr(device, "NVIDIA_TOOL", "sh")
    assert "notice" in driver()


@pytest.mark.usefixtures("driver")
def test_a_run_tells_it_and_where_a_gpu_is_asked_for_it_is_the_reason(toy):
    for name, is_told in (("auto", True), ("cpu", False)):
        with pytest.raises(InputError, match="net.pth is missing"):
            run_sample.run(toy.flags(**switches("make_cam"), cam_weights_name="net.pth", device=name, log_name=name))
        said = Path(f"{name}.log").read_text()
        assert ("notice: the CPU does all the work: PyTorch finds no GPU" in said) == is_told
    with pytest.raises(InputError, match=r"^--device cuda: PyTorch finds no GPU here \(The NVIDIA driver .*\); pass"):
        run_sample.run(toy.flags(**switches("make_cam"), device="cuda"))


def test_bf16_on_a_gpu_without_it_is_told(gpu, caplog):
    caplog.set_level("INFO")
    for capability, precision, is_told in (
        ((7, 5), "bf16", True),
        ((7, 0), "bf16", True),
        ((7, 5), "auto", False),
        ((7, 5), "tf32", False),
        ((8, 0), "bf16", False),
    ):
        caplog.clear()
        gpu(capability, "sm_70", "sm_75", "sm_80")
        device.tell_of_device("auto", precision, CUDA)
        sentence = f"notice: --precision bf16 is slow on the GPU here (NVIDIA X, compute capability {capability[0]}."
        assert (sentence in caplog.text) == is_told
    caplog.clear()
    device.tell_of_device("cpu", "bf16", CPU)
    assert caplog.text == ""


def test_a_gpu_that_does_not_answer_is_told(gpu, monkeypatch):
    def fail(_):
        raise torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization")

    gpu((8, 0), *CUDA_13)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    with pytest.raises(
        InputError, match=r"--device: the GPU can't be used \(CUDA call failed lazily .*\); pass --device cpu"
    ):
        require_code_for(CUDA)


def test_bf16_runs_the_backbone_alone_in_bfloat16():
    net, images = resnet18_cam.Net(n_classes=3).train(), torch.randn(2, 3, 64, 64)
    exact, _ = net(images)
    seen = []
    net.backbone.layer1.register_forward_hook(lambda *of_call: seen.append(of_call[2].dtype))
    set_precision("bf16", CPU)
    logits, features = net(images)
    logits.sum().backward()
    assert seen == [torch.bfloat16]
    assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
    assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.05)
    set_precision("fp32", CPU)
    with backbone_precision(CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_runs_deeplab_in_bfloat16_but_for_its_aspp():
    network, seen = deeplab_v2.DeepLab(n_classes=3), {}
    for name in ("layer2", "layer5", "aspp"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.dtype})
        )
    set_precision("bf16", CPU)
    images = torch.randn(1, 3, 33, 33)
    loss = multiscale_losses([network(images)] * 3, torch.ones(1, 33, 33, dtype=torch.uint8), loss="plain")["total"]
    loss.backward()
    assert seen == {"layer2": torch.bfloat16, "layer5": torch.bfloat16, "aspp": torch.float32}
    assert all(p.grad.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
    assert torch.isfinite(loss)


@pytest.mark.slow
def test_bf16_keeps_the_labels_of_cams_on_real_photographs(voc_subset):
    ids = (voc_subset / "ImageSets/Segmentation/val.txt").read_text().split()[:12]
    cam = resnet50_cam.CAM().eval()
    load_weights(cam, seeded_state(cam))
    maps = {"fp32": [], "bf16": []}
    sweep = ThresholdSweep((0.08, 0.09, 0.10, 0.11, 0.12, 0.13, 0.14), 21)
    for image_id in ids:
        image = read_image(voc_subset / f"JPEGImages/{image_id}.jpg")
        truth = read_label(voc_subset / f"SegmentationClass/{image_id}.png")
        keys = np.setdiff1d(np.unique(truth), [0, 255]) - 1
        size = image.shape[:2]
        scaled = [torch.from_numpy(to_chw(resize_image(image, scaled_size(size, s)))) for s in (1.0, 0.5, 1.5, 2.0)]
        for precision, of_all in maps.items():
            set_precision(precision, CPU)
            of_all.append((merge_high_res(scale_maps(cam, scaled), size, keys).numpy(), keys))
        sweep.add(*maps["fp32"][-1], truth)
    threshold, _ = sweep.best()
    labels = {name: [label_map(m, keys, threshold).ravel() for m, keys in of_all] for name, of_all in maps.items()}
    agreement = np.mean(np.concatenate(labels["fp32"]) == np.concatenate(labels["bf16"]))
    print(f"agreement of labels, bf16 with fp32, at background score {threshold}: {agreement:.4%}")
    assert agreement >= 0.995
