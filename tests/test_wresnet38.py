"""ResNet-38: the names, shapes and arithmetic of its public ports, and files that are read or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from misc.errors import InputError
from net.deeplab import ASPP, BackboneDeepLab
from net.weights import read_checkpoint
from net.wresnet38 import WideResNet38, _Block, _Bottleneck
from net.wresnet38_deeplab import DeepLab

NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def network():
    """Without values: only names and shapes count."""
    with torch.device("meta"):
        return DeepLab(n_classes=4).eval()


def test_weights_have_the_names_and_shapes_of_the_ports(network):
    state = {name: tuple(tensor.shape) for name, tensor in network.backbone.state_dict().items()}
    blocks = ["b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", "b4", *(f"b4_{n}" for n in range(1, 6)), "b5", "b5_1", "b5_2"]
    expected = {"conv1a.weight", *(f"bn7.{name}" for name in NORM)}
    for block in blocks:
        expected |= {f"{block}.conv_branch2a.weight", f"{block}.conv_branch2b1.weight"}
        expected |= {f"{block}.bn_branch{place}.{name}" for place in ("2a", "2b1") for name in NORM}
    for block in ("b6", "b7"):
        expected |= {f"{block}.conv_branch{place}.weight" for place in ("2a", "2b1", "2b2")}
        expected |= {f"{block}.bn_branch{place}.{name}" for place in ("2a", "2b1", "2b2") for name in NORM}
    expected |= {f"b{n}.conv_branch1.weight" for n in range(2, 8)}
    assert state.keys() == expected
    shapes = {
        "conv1a": (64, 3, 3, 3),
        "b2.conv_branch2a": (128, 64, 3, 3),
        "b5.conv_branch1": (1024, 512, 1, 1),
        "b5_2.conv_branch2a": (512, 1024, 3, 3),
        "b6.conv_branch2a": (512, 1024, 1, 1),
        "b6.conv_branch2b1": (1024, 512, 3, 3),
        "b7.conv_branch2b2": (4096, 2048, 1, 1),
        "bn7": (4096,),
    }
    assert {name: state[f"{name}.weight"] for name in shapes} == shapes


@pytest.mark.parametrize("size", [(64, 96), (61, 90)])
def test_stages_have_the_promised_channels_and_strides(network, size):
    backbone = network.backbone
    outputs = backbone(torch.empty(1, 3, *size, device="meta"))
    for output, channels, stride in zip(outputs, backbone.channels, backbone.strides, strict=True):
        assert output.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert len(list(backbone.stage_parameters(0, 4))) == len(list(backbone.parameters()))
    assert [branch.dilation[0] for branch in network.aspp.children()] == [6, 12, 18, 24]


def test_dilations_and_dropouts_are_the_ports(network):
    dilations = {name: m.dilation[0] for name, m in network.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    dilated = {name: dilation for name, dilation in dilations.items() if dilation > 1}
    by_two = {f"{block}.conv_branch2{part}" for block in ("b5_1", "b5_2") for part in ("a", "b1")}
    by_two |= {"b5.conv_branch2b1"}
    assert dilated == {**dict.fromkeys(by_two, 2), "b6.conv_branch2b1": 4, "b7.conv_branch2b1": 4}
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout2d)}
    assert sorted(rates.values()) == [0.3, 0.3, 0.5, 0.5]


def randomised(block):
    generator = torch.Generator().manual_seed(0)
    for tensor in block.state_dict().values():
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator) if tensor.dim() == 1 else tensor)
    return block.eval()


def norm_relu(norm, x):
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return F.relu((x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (4, 8, 1), (6, 6, 2)])
def test_a_block_activates_before_it_convolves(inputs, outputs, stride):
    block = randomised(_Block(inputs, 5, outputs, stride=stride, dilation=2, first=stride == 2))
    x = torch.randn(2, inputs, 9, 12)
    activated = norm_relu(block.bn_branch2a, x)
    dilation = 1 if stride == 2 else 2
    inner = F.conv2d(activated, block.conv_branch2a.weight, stride=stride, padding=dilation, dilation=dilation)
    result = F.conv2d(norm_relu(block.bn_branch2b1, inner), block.conv_branch2b1.weight, padding=2, dilation=2)
    changes = inputs != outputs or stride == 2
    shortcut = F.conv2d(activated, block.conv_branch1.weight, stride=stride) if changes else x
    torch.testing.assert_close(block(x), shortcut + result, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_bottleneck_activates_before_it_convolves():
    block = randomised(_Bottleneck(6, 8, dilation=4, dropout=0.5))
    x = torch.randn(2, 6, 9, 12)
    activated = norm_relu(block.bn_branch2a, x)
    inner = norm_relu(block.bn_branch2b1, F.conv2d(activated, block.conv_branch2a.weight))
    inner = norm_relu(block.bn_branch2b2, F.conv2d(inner, block.conv_branch2b1.weight, padding=4, dilation=4))
    expected = F.conv2d(activated, block.conv_branch1.weight) + F.conv2d(inner, block.conv_branch2b2.weight)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(block.train()(x), block.eval()(x))


def test_a_ports_state_dict_is_a_start_and_other_heads_are_left_out(tmp_path, monkeypatch):
    """On a network that is narrow, since the file of the whole one would be of 500 MB."""
    monkeypatch.setattr(
        "net.wresnet38.GROUPS",
        (("b2", 2, 4, 4, 2, 1), ("b3", 2, 4, 4, 2, 1), ("b4", 1, 4, 6, 2, 1), ("b5", 1, 4, 6, 1, 2)),
    )
    monkeypatch.setattr("net.wresnet38.BOTTLENECKS", (("b6", 8, 4, 0.3), ("b7", 12, 4, 0.5)))
    monkeypatch.setattr(WideResNet38, "channels", (4, 4, 6, 6, 12))
    given = WideResNet38().state_dict()
    file = {**given, "bn7.num_batches_tracked": torch.tensor(3), "fc8.weight": torch.ones(2, 12, 1, 1)}
    torch.save(file, tmp_path / "res38.pth")
    network = DeepLab(n_classes=3)
    network.load_start(str(tmp_path / "res38.pth"))
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, given[name])
    assert isinstance(network, BackboneDeepLab)
    assert isinstance(network.aspp, ASPP)


def test_mxnets_file_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
    path.write_bytes((0x112).to_bytes(8, "little") + bytes(24))
    with pytest.raises(InputError, match="is of MXNet, which is not read here: convert it to a PyTorch state dict"):
        read_checkpoint(path)


def test_there_is_no_source_of_weights_for_auto(network):
    with pytest.raises(
        InputError, match="--deeplab_init_weights auto: this backbone has no ImageNet weights; name a fi"
    ):
        network.load_start("auto")
