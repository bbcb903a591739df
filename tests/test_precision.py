"""--precision: what it sets, and what bfloat16 does to CAMs."""

import numpy as np
import pytest
import torch
from support import seeded_state

from misc.cam import label_map, merge_high_res, scale_maps
from misc.deeplab import multiscale_losses
from misc.files.images import read_image, read_label
from misc.imutils import resize_image, scaled_size, to_chw
from misc.metrics import ThresholdSweep
from misc.run.device import backbone_precision, set_precision
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
