"""Checkpoints of every layout, and what is said of those that don't fit."""

from urllib.error import URLError

import pytest
import torch
from support import seeded_state

from misc.errors import InputError
from net.backbone import resnet18, resnet50
from net.resnet18_cam import CAM, Net
from net.resnet50_cam import Net as Net50
from net.resnet50_irn import EdgeDisplacement
from net.weights import (
    _CLASSIFIER_ALIASES,
    _IRN_ALIASES,
    _canonical_name,
    find_checkpoint,
    load_imagenet,
    load_weights,
    read_checkpoint,
    save_weights,
)


@pytest.mark.parametrize(
    ("layout", "network", "aliases"),
    [("classifier", Net50, _CLASSIFIER_ALIASES), ("irn", EdgeDisplacement, _IRN_ALIASES)],
)
def test_original_layout(fixture_json, tmp_path, layout, network, aliases):
    keys = fixture_json("official_state_dict_keys.json")[layout]
    module = network()
    state = seeded_state(module)
    original, used = {}, set()
    for key, shape in keys.items():
        name = _canonical_name(key, aliases)
        original[f"module.{key}"] = state.get(name, torch.zeros(shape))
        assert list(original[f"module.{key}"].shape) == shape
        used.add(name)
    assert used >= state.keys()
    path = tmp_path / "original.pth.pth"
    torch.save(original, path)

    load_weights(module, tmp_path / "original.pth")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name.removeprefix("backbone.")])

    layer = "layer3.0.conv1.weight"
    copies = [key for key in original if _canonical_name(key.removeprefix("module."), aliases) == layer]
    assert len(copies) == 3
    original[copies[1]] = original[copies[1]] + 1
    with pytest.raises(InputError, match=f"copies of {layer} disagree"):
        load_weights(module, original)


def test_our_layout_round_trip(tmp_path):
    net, path = Net(), tmp_path / "sess" / "cam.pth"
    save_weights(net, path)
    assert [file.name for file in path.parent.iterdir()] == ["cam.pth"]
    assert read_checkpoint(path).keys() == net.state_dict().keys()
    cam = CAM()
    load_weights(cam, path)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), cam.state_dict().values(), strict=True))


def test_wrong_tensors_are_named():
    net = Net()
    state = net.state_dict()
    short = {name: tensor for name, tensor in state.items() if name != "classifier.weight"}
    with pytest.raises(InputError, match=r"lacks 1 tensors \(classifier.weight\)"):
        load_weights(net, short)
    with pytest.raises(InputError, match=r"1 tensors too many \(surplus.weight\)"):
        load_weights(net, {**state, "surplus.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"classifier.weight has shape \(20, 512, 1, 1\), expected \(7, 512, 1, 1\)"):
        load_weights(Net(n_classes=7), state)


def test_a_failed_load_changes_nothing():
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    state["classifier.weight"] = torch.zeros(3, 512, 1, 1)
    with pytest.raises(InputError):
        load_weights(net, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def _no_network(*_args, **_options):
    raise URLError("no network")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickled code ran')",))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"\x80\x02.", "truncated", [torch.zeros(1)], {"a": 1}, {3: torch.zeros(1)}, {}]
    + [{"epoch": Malicious()}],
    ids=["empty", "text", "pickle", "truncated", "list", "numbers", "numbered", "no tensors", "pickled code"],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.pth"
    if content == "truncated":
        save_weights(Net(), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match="bad.pth"):
        read_checkpoint(path)


def test_missing_and_doubled_names(tmp_path):
    with pytest.raises(InputError, match="cam.pth is missing"):
        find_checkpoint(tmp_path / "cam.pth")
    (tmp_path / "cam.pth.pth").touch()
    assert find_checkpoint(tmp_path / "cam.pth").name == "cam.pth.pth"
    (tmp_path / "irn.pth").touch()
    assert find_checkpoint(tmp_path / "irn.pth.pth").name == "irn.pth"


@pytest.mark.parametrize("name", ["resnet18-f37072fd.pth", "resnet18-5c106cde.pth"])
def test_imagenet_weights_from_a_local_file_of_either_name(tmp_path, name):
    backbone, start = resnet18(), resnet18()
    file = {**start.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    file["bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save(file, tmp_path / name)
    load_imagenet(backbone, "auto", folder=tmp_path)
    assert torch.equal(backbone.conv1.weight, start.conv1.weight)


def test_other_imagenet_weights_are_not_taken_for_v1(tmp_path, monkeypatch):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18-00000000.pth")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    with pytest.raises(InputError, match="can't be downloaded"):
        load_imagenet(resnet18(), "auto", folder=tmp_path)


def test_imagenet_weights_without_network_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    with pytest.raises(InputError, match=r"no network.*put https://.*resnet50-0676ba61.pth into sess/,"):
        load_imagenet(resnet50(), "auto", folder="sess")
    load_imagenet(resnet50(), "none")
