"""Shapes, what is trained and what is frozen, for both backbones."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from misc import torchutils
from misc.errors import InputError
from misc.torchutils import two_rate_optimizer
from net import convolution as net_convolution
from net import resnet18_cam, resnet18_irn, resnet50_cam, resnet50_irn
from net.backbone import FrozenStatsBatchNorm2d, _FoldedBasicBlock, _FoldedBottleneck, folded_once, run_in_order
from net.build import build_network
from net.convolution import SamePaddedConv2d, _SameSize, _WithoutCudnn, convolve
from net.irn import _Upsample


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


def test_a_loss_of_several_passes_folds_each_norm_once(monkeypatch):
    net = randomised_norms(resnet18_cam.Net(n_classes=3)).double().requires_grad_(True)
    small, large = torch.randn(1, 3, 33, 48, dtype=torch.float64), torch.randn(1, 3, 48, 33, dtype=torch.float64)

    def gradients():
        net.zero_grad()
        sum(net.backbone(images)[-1].square().mean() for images in (small, large)).backward()
        return [parameter.grad.clone() for parameter in net.backbone.parameters()]

    folds, fold = [], FrozenStatsBatchNorm2d._fold
    monkeypatch.setattr(FrozenStatsBatchNorm2d, "_fold", lambda *given: folds.append(given[0]) or fold(*given))
    expected, n_folds = gradients(), len(folds)
    with folded_once():
        shared = gradients()
    assert n_folds == 2 * len(set(folds))
    assert len(folds) - n_folds == len(set(folds))
    for given, plain in zip(shared, expected, strict=True):
        torch.testing.assert_close(given, plain, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        net.backbone.layer4[1].conv2.weight.mul_(2)
    with folded_once():  # what an earlier block folded is gone
        assert not torch.equal(gradients()[0], shared[0])


def test_what_is_checkpointed_folds_for_itself():
    """It runs again in the backward pass, after the block, and has to save as much as before."""
    net = randomised_norms(resnet18_cam.Net(n_classes=3)).requires_grad_(True)
    block, x = net.backbone.layer1[0], torch.randn(1, 64, 9, 9, requires_grad=True)

    def gradients(run):
        net.zero_grad()
        with folded_once():
            sum(run(scale * x).square().mean() for scale in (1, 2, 3)).backward()
        return [parameter.grad.clone() for parameter in block.parameters()]

    checkpointed = gradients(lambda given: checkpoint(block, given, use_reentrant=False))
    for given, plain in zip(checkpointed, gradients(block), strict=True):
        torch.testing.assert_close(given, plain)


@pytest.mark.parametrize(("kernel", "dilation", "padding"), [(3, 2, 2), (3, (4, 3), (4, 3)), ((5, 1), (2, 1), (4, 0))])
def test_dilated_convolutions_and_their_gradients_are_those_of_pytorch(monkeypatch, kernel, dilation, padding):
    """As matrix products where the processor lacks a fast way, which those with AVX-512 have."""
    convolution = nn.Conv2d(3, 5, kernel, padding=padding, dilation=dilation).double()
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    inputs = (x, convolution.weight, convolution.bias)
    for capability, is_product in (("AVX512", False), ("AVX2", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        output, expected = convolve(convolution, *inputs), convolution(x)
        assert ("_SameSize" in output.grad_fn.name()) == is_product
    slope = torch.randn_like(output)
    given, plain = (torch.autograd.grad(y, inputs, slope) for y in (output, expected))
    for a, b in zip((output, *given), (expected, *plain), strict=True):
        torch.testing.assert_close(a, b)
    (alone,) = torch.autograd.grad(convolve(convolution, *inputs), convolution.weight, slope)
    assert torch.equal(alone, given[1])


def spied_backward(monkeypatch, seen_by):
    """What `seen_by` says at each backward pass of a convolution, of its arguments."""
    seen, computed = [], torch.ops.aten.convolution_backward

    def backward(*given):
        seen.append(seen_by(*given))
        return computed(*given)

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", backward)
    return seen


@pytest.mark.parametrize("with_shortcut", [True, False])
@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 1), (2, 1, 3), (1, 2, 3)])
def test_what_follows_a_convolution_may_be_part_of_it(monkeypatch, stride, dilation, kernel, with_shortcut):
    """As plain operations, and as one of cuDNN's kernels, whose place PyTorch's own operations take here."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=False)
    bias = torch.randn(5, requires_grad=True)
    x = torch.randn(2, 3, 7, 9, requires_grad=True)
    shortcut = torch.randn_like(convolution(x)).requires_grad_(True) if with_shortcut else None
    inputs = [tensor for tensor in (x, convolution.weight, bias, shortcut) if tensor is not None]
    expected = convolution(x) + bias[:, None, None]
    expected = functional.relu(expected if shortcut is None else expected + shortcut)
    slope = torch.randn_like(expected)

    def assert_as_expected():
        output = convolve(convolution, x, convolution.weight, bias, shortcut=shortcut, relu=True)
        given = torch.autograd.grad(output, inputs, slope)
        for a, b in zip((output, *given), (expected, *plain), strict=True):
            torch.testing.assert_close(a, b)
        return output

    plain = torch.autograd.grad(expected, inputs, slope, retain_graph=True)
    assert "_Fused" not in assert_as_expected().grad_fn.name()
    fused = {
        "cudnn_convolution_relu": lambda x, w, *rest: functional.conv2d(x, w, *rest).relu(),
        "cudnn_convolution_add_relu": lambda x, w, z, alpha, *rest: (functional.conv2d(x, w, *rest) + alpha * z).relu(),
    }
    for name, stand_in in fused.items():
        monkeypatch.setattr(torch, name, stand_in)
    monkeypatch.setattr(net_convolution, "may_fuse_relu", lambda device: True)
    assert "_Fused" in assert_as_expected().grad_fn.name()
    asked = spied_backward(monkeypatch, lambda *given: given[-1])
    constants = (convolution.weight.detach(), bias.detach())
    output = convolve(convolution, x, *constants, shortcut=shortcut, relu=True)
    torch.testing.assert_close(torch.autograd.grad(output, x, slope)[0], plain[0])
    assert asked == [[True, False, False]]  # no gradient of what is frozen


@pytest.mark.parametrize("with_shortcut", [True, False])
def test_where_cudnn_has_no_such_kernel_its_parts_are_computed_one_by_one(monkeypatch, caplog, with_shortcut):
    caplog.set_level(logging.INFO)
    calls = []

    def refuse(*_):
        calls.append(1)
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(net_convolution, "may_fuse_relu", lambda device: True)
    monkeypatch.setattr(net_convolution, "_NOT_FUSED", set())
    convolution, bias = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(5, requires_grad=True)
    x = torch.randn(2, 3, 7, 9, requires_grad=True)
    shortcut = torch.randn(2, 5, 7, 9, requires_grad=True) if with_shortcut else None
    inputs = [tensor for tensor in (x, convolution.weight, bias, shortcut) if tensor is not None]
    expected = functional.relu(convolution(x) + bias[:, None, None] + (0 if shortcut is None else shortcut))
    slope = torch.randn_like(expected)
    plain = torch.autograd.grad(expected, inputs, slope)
    for _ in range(2):
        output = convolve(convolution, x, convolution.weight, bias, shortcut=shortcut, relu=True)
        for a, b in zip((output, *torch.autograd.grad(output, inputs, slope)), (expected, *plain), strict=True):
            torch.testing.assert_close(a, b)
    assert len(calls) == 1  # it is not asked again
    assert caplog.text.count("cuDNN can't convolve and apply ReLU in one kernel here") == 1


def test_a_full_gpu_is_no_reason_to_compute_the_parts_one_by_one(monkeypatch):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fill)
    monkeypatch.setattr(net_convolution, "may_fuse_relu", lambda device: True)
    convolution = nn.Conv2d(3, 5, 3, bias=False)
    with pytest.raises(torch.OutOfMemoryError):
        convolve(convolution, torch.randn(1, 3, 5, 5), convolution.weight, torch.zeros(5), relu=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_depthwise_convolutions_of_a_gpu_and_their_gradients_are_those_of_pytorch(monkeypatch, stride, with_bias):
    convolution = SamePaddedConv2d(4, 4, 3, stride=stride, groups=4, bias=with_bias).double()
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64, requires_grad=True)
    inputs, expected = [x, *convolution.parameters()], convolution(x)
    slope, with_cudnn, computed = torch.randn_like(expected), [], functional.conv2d
    plain = torch.autograd.grad(expected, inputs, slope)

    def as_on_a_gpu(given, weight, bias, padding):
        return _WithoutCudnn.apply(given, weight, bias, (stride, stride), (padding, padding), 4)

    def conv2d(*given, **settings):
        with_cudnn.append(torch.backends.cudnn.enabled)
        return computed(*given, **settings)

    monkeypatch.setattr(convolution, "_convolved", as_on_a_gpu)
    monkeypatch.setattr(functional, "conv2d", conv2d)
    backward_with_cudnn = spied_backward(monkeypatch, lambda *_: torch.backends.cudnn.enabled)
    output = convolution(x)
    for a, b in zip((output, *torch.autograd.grad(output, inputs, slope)), (expected, *plain), strict=True):
        torch.testing.assert_close(a, b)
    assert with_cudnn == backward_with_cudnn == [False]
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(5, 5), (7, 3), (1, 4)])
def test_upsampling_as_products_is_bilinear(size, factor):
    layer, x = _Upsample(factor), torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    given, expected = layer._as_products(x), layer(x)
    torch.testing.assert_close(given, expected)
    slope = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, x, slope) for y in (given, expected)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(_Upsample(factor)._as_products(x.detach().float()), expected.detach().float())


class DoubledReLU(nn.ReLU):
    """Whose own forward pass counts."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_modules_in_order_are_as_one_after_the_other():
    modules = [nn.Conv2d(3, 4, 3, bias=False), FrozenStatsBatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU6()]
    modules += [nn.Conv2d(4, 5, 1, bias=False), FrozenStatsBatchNorm2d(5), FrozenStatsBatchNorm2d(5), nn.ReLU()]
    modules += [nn.Conv2d(5, 5, 1, bias=False), FrozenStatsBatchNorm2d(5), DoubledReLU()]
    randomised_norms(nn.Sequential(*modules))
    x = torch.randn(2, 3, 7, 8)
    torch.testing.assert_close(run_in_order(modules, x), nn.Sequential(*modules)(x))
    for n in range(len(modules)):
        torch.testing.assert_close(run_in_order(modules[:n], x), nn.Sequential(*modules[:n])(x))


def test_convolutions_that_pytorch_does_well_are_left_to_it(monkeypatch):
    monkeypatch.setattr(_SameSize, "apply", None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    x, bias = torch.randn(1, 4, 9, 9), torch.zeros(4)
    of_even_side = {"kernel_size": 4, "dilation": 2, "padding": 2}
    for settings in ({"padding": 1}, {"dilation": 2}, {"dilation": 2, "padding": 2, "stride": 2}, of_even_side):
        convolution = nn.Conv2d(4, 4, bias=False, **{"kernel_size": 3, **settings})
        torch.testing.assert_close(convolve(convolution, x, convolution.weight, bias), convolution(x))
    dilated = nn.Conv2d(4, 4, 3, bias=False, dilation=2, padding=2)
    with torch.no_grad():
        convolve(dilated, x, dilated.weight, bias)
    convolve(dilated, x, dilated.weight.detach(), bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolve(dilated, x, dilated.weight, bias).dtype == torch.bfloat16
    meta = nn.Conv2d(4, 4, 3, bias=False, dilation=2, padding=2, device="meta")
    assert convolve(meta, x.to("meta"), meta.weight, bias.to("meta")).shape == (1, 4, 9, 9)


def test_a_fold_is_not_kept_beside_one_that_is_trained():
    norm, layer = FrozenStatsBatchNorm2d(4), nn.Conv2d(3, 4, 1, bias=False)
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        constant = norm.after(layer, x)
    assert norm._constant_fold._made is not None
    torch.testing.assert_close(norm.after(layer, x), constant)
    assert norm._constant_fold._made is None


def test_a_frozen_norm_is_computed_once_and_follows_its_weights(monkeypatch):
    norm, layer = randomised_norms(FrozenStatsBatchNorm2d(4)).requires_grad_(False), nn.Conv2d(3, 4, 1, bias=False)
    x = torch.randn(1, 3, 5, 5)
    computed, compute = [], FrozenStatsBatchNorm2d._made_affine
    monkeypatch.setattr(FrozenStatsBatchNorm2d, "_made_affine", lambda of: computed.append(of) or compute(of))
    for n_expected, change in enumerate(
        (lambda: None, lambda: norm.weight.mul_(2), lambda: norm.running_var.add_(1)), 1
    ):
        change()
        for _ in range(2):
            torch.testing.assert_close(norm.after(layer, x), norm(layer(x)))
            with torch.no_grad():
                layer.weight.mul_(0.5)
        assert len(computed) == n_expected
    norm.requires_grad_(True).after(layer, x).sum().backward()
    assert norm.weight.grad is not None


def test_a_frozen_norm_is_trained_through_after_inference_mode():
    norm, layer = FrozenStatsBatchNorm2d(4).requires_grad_(False), nn.Conv2d(3, 4, 1, bias=False)
    with torch.inference_mode():
        norm.after(layer, torch.randn(1, 3, 5, 5))
    norm.after(layer, torch.randn(1, 3, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    with torch.inference_mode():
        norm.after(layer, torch.randn(1, 3, 5, 5))
    image = torch.randn(1, 3, 5, 5, requires_grad=True)
    norm.after(layer, image).sum().backward()
    assert image.grad is not None


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


@pytest.mark.parametrize("fused", [False, True])
def test_a_kept_fold_follows_what_an_optimiser_does(monkeypatch, fused):
    """The fused kernel, which CUDA gets, changes weights without a sign of it."""
    monkeypatch.setattr(torchutils, "may_fuse", lambda parameters: fused)
    net = randomised_norms(resnet18_cam.Net(n_classes=3))
    optimizer = two_rate_optimizer(*net.trainable_parameters(), lr=1e-4, weight_decay=1e-4, max_step=9)
    image = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.softplus(net(image)[0]).sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(net(image)[0], copy.deepcopy(net)(image)[0])


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


def test_irn_cuts_what_is_enlarged_to_the_size_of_its_finest_maps():
    """Sides that are no multiple of 16, of which training crops are."""
    model = resnet18_irn.EdgeDisplacement().eval()
    with torch.no_grad():
        edge, displacement = model.edge_and_displacement(torch.randn(1, 3, 84, 100))
    assert (edge.shape, displacement.shape) == ((1, 1, 21, 25), (1, 2, 21, 25))


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
