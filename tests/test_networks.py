"""Shapes, what is trained and what is frozen, for both backbones."""

import copy

import pytest
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck

from misc.errors import InputError
from net import resnet18_cam, resnet18_irn, resnet50_cam, resnet50_irn
from net.backbone import FrozenStatsBatchNorm2d, _FoldedBasicBlock, _FoldedBottleneck
from net.build import build_network


@pytest.mark.parametrize("module", [resnet18_cam, resnet50_cam])
def test_classifier_trains_the_last_two_stages_only(module):
    net = module.Net(n_classes=3).train()
    logits, features = net(torch.randn(2, 3, 65, 50))
    assert logits.shape == (2, 3)
    assert features.shape == (2, net.backbone.channels[-1])
    logits.sum().backward()
    trained = {name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None and "backbone" in name}
    assert trained == {"layer3", "layer4"}
    backbone, classifier = net.trainable_parameters()
    assert {id(p) for p in [*backbone, *classifier]} == {id(p) for p in net.parameters() if p.requires_grad}


def test_stages_have_the_promised_channels_and_strides():
    for module in (resnet18_cam, resnet50_cam):
        backbone = module.Net().backbone
        for x, channels, stride in zip(
            backbone(torch.randn(1, 3, 70, 90)), backbone.channels, backbone.strides, strict=True
        ):
            assert x.shape == (1, channels, -(-70 // stride), -(-90 // stride))


def test_batch_norm_ignores_the_batch_in_training_too():
    net = resnet18_cam.Net().train()
    image, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64) * 9
    with torch.no_grad():
        torch.testing.assert_close(net(image)[0], net(torch.cat([image, other]))[0][:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(net.backbone.bn1.running_mean, torch.zeros(64))


def randomised_norms(net):
    """Statistics and affines as a trained network has them, so that folding them matters."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, FrozenStatsBatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data = low + torch.rand(tensor.shape, generator=generator)
    return net


def unfolded(backbone, images):
    """The backbone as torchvision runs it: convolution and norm one after the other."""
    outputs, x = [], images
    for stage in backbone.stages():
        for module in stage:
            for block in module if isinstance(module, torch.nn.Sequential) else [module]:
                plain = {_FoldedBasicBlock: BasicBlock, _FoldedBottleneck: Bottleneck}.get(type(block))
                x = plain.forward(block, x) if plain else block(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("module", [resnet18_cam, resnet50_cam])
def test_folded_norms_change_no_output_and_no_gradient(module):
    net = randomised_norms(module.Net(n_classes=3)).double()
    images = torch.randn(2, 3, 65, 50, dtype=torch.float64)
    gradients = []
    for outputs in (net.backbone(images), unfolded(net.backbone, images)):
        net.zero_grad()
        outputs[-1].square().mean().backward()
        gradients.append([p.grad.clone() for p in net.backbone.parameters() if p.grad is not None])
    for folded, plain in zip(net.backbone(images), unfolded(net.backbone, images), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)
    for folded, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_a_kept_fold_follows_its_weights():
    net = randomised_norms(resnet18_cam.CAM(n_classes=3)).eval()
    image = torch.randn(1, 3, 64, 64)
    net.logit_maps(image)
    norm = net.backbone.layer1[0].bn1
    for change in (
        lambda: norm.running_mean.add_(0.5),
        lambda: net.backbone.layer4[1].conv2.weight.mul_(2),
        lambda: net.load_state_dict(randomised_norms(resnet18_cam.CAM(n_classes=3)).state_dict()),
    ):
        before = net.logit_maps(image)
        change()
        after = net.logit_maps(image)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, copy.deepcopy(net).logit_maps(image))
        torch.testing.assert_close(net.backbone(image)[-1], unfolded(net.backbone, image)[-1], rtol=1e-4, atol=1e-4)


def test_cam_is_the_sum_of_the_image_and_its_mirror():
    cam = resnet18_cam.CAM(n_classes=3).eval()
    pair = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        maps = cam(pair)
        swapped = cam(pair.flip(0))
        several = cam.activation(torch.stack([pair[0], pair[1]]), torch.stack([pair[1], pair[0]]))
    assert maps.shape == (3, 4, 5)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps, swapped.flip(-1))
    torch.testing.assert_close(several, torch.stack([maps, swapped]))


@torch.no_grad()
@pytest.mark.parametrize("size", [(50, 70), (1, 1), (600, 30), (513, 512)])
def test_edges_and_displacements_of_any_size(size):
    edge, displacement = resnet18_irn.EdgeDisplacement().eval()(torch.randn(2, 3, *size))
    expected = (-(-size[0] // 4), -(-size[1] // 4))
    assert edge.shape == (1, *expected)
    assert displacement.shape == (2, *expected)
    assert ((edge >= 0) & (edge <= 1)).all()


@torch.no_grad()
def test_small_images_are_padded_to_512_and_larger_ones_to_a_multiple_of_16():
    model = resnet18_irn.EdgeDisplacement().eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    for size in ((100, 512), (513, 600)):
        model(torch.zeros(2, 3, *size))
    assert seen == [(512, 512), (528, 608)]


@pytest.mark.parametrize("module", [resnet18_irn, resnet50_irn])
def test_irn_trains_its_heads_only(module):
    network = module.AffinityDisplacementLoss(radius=4).train()
    assert not network.backbone.training
    labels = torch.randint(0, 2, (1, 16, 16), dtype=torch.uint8)
    network(torch.randn(1, 3, 64, 64), labels)["total"].backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    edge, displacement = network.trainable_parameters()
    heads = [p for name, p in network.named_parameters() if not name.startswith("backbone")]
    assert {id(p) for p in [*edge, *displacement]} == {id(p) for p in heads}
    assert all(p.grad is not None for p in heads)


def test_mean_shift_acts_in_evaluation_only():
    network = resnet18_irn.AffinityDisplacementLoss()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, before = network.eval().edge_and_displacement(images)
        network.mean_shift.running_mean.copy_(torch.tensor([1.0, -2.0]))
        _, after = network.edge_and_displacement(images)
        _, training = network.train().edge_and_displacement(images)
    torch.testing.assert_close(before - after, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand_as(before))
    torch.testing.assert_close(training, before)


def test_unknown_network_modules_are_refused():
    with pytest.raises(InputError, match="net.resnet99_cam can't be imported"):
        build_network("net.resnet99_cam", "Net")
    with pytest.raises(InputError, match="net.resnet50_irn has no class Net"):
        build_network("net.resnet50_irn", "Net")
