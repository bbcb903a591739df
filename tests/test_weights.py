"""Checkpoints of every layout, and what is said of those that don't fit."""

import hashlib
import re
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from support import seeded_state
from torch import nn

from misc.errors import InputError
from misc.run.recipes import DEEPLAB_START
from misc.run.step import Files
from net.backbone import resnet18, resnet50
from net.build import input_of_start
from net.resnet18_cam import CAM, Net
from net.resnet18_deeplab import DeepLab
from net.resnet50_cam import Net as Net50
from net.resnet50_irn import EdgeDisplacement
from net.weights import (
    _aliases,
    _canonical_name,
    find_checkpoint,
    load_imagenet,
    load_starting_weights,
    load_weights,
    read_checkpoint,
    save_weights,
)


@pytest.mark.parametrize(
    ("layout", "network"), [("classifier", Net50), ("irn_classifier", Net50), ("irn", EdgeDisplacement)]
)
def test_original_layout(fixture_json, tmp_path, layout, network):
    keys = fixture_json("official_state_dict_keys.json")[layout]
    aliases = _aliases(keys)
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


def test_the_two_classifiers_of_the_originals_are_the_same_weights(fixture_json):
    recorded = fixture_json("official_state_dict_keys.json")
    assert (len(recorded["classifier"]), len(recorded["irn_classifier"])) == (812, 956)
    names = []
    for kind in ("classifier", "irn_classifier"):
        aliases = _aliases(recorded[kind])
        names.append({_canonical_name(key, aliases) for key in recorded[kind] if "num_batches" not in key})
    assert names[0] == names[1]
    assert len(names[0]) == 266


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


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state", "model_state_dict", "weight", "net", "student"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_what_a_training_keeps(tmp_path, name, zipped):
    net, trained = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimizer.step()
    kept = {
        "iteration": 20_000,
        "best_miou": np.float64(0.681),
        "epoch": np.int64(5),
        "done": np.bool_(True),
        "ious": np.arange(20, dtype=np.float32),
        "optimizer": optimizer.state_dict(),
        "name": "resnet",
        name: {f"module.{key}": tensor for key, tensor in trained.state_dict().items()},
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(kept, path, _use_new_zipfile_serialization=zipped)
    load_weights(net, path)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), trained.state_dict().values(), strict=True))


def test_the_known_name_counts_among_several_state_dicts(tmp_path, caplog):
    weights, average = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    torch.save({"average": average, "model": weights}, tmp_path / "two.pth")
    with caplog.at_level("INFO"):
        assert read_checkpoint(tmp_path / "two.pth")["a"] == 1
    assert "two.pth: the weights are those under 'model'" in caplog.text
    torch.save({"first": average, "second": weights}, tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"two.pth holds 2 state dicts \(first, second\), none under the name"):
        read_checkpoint(tmp_path / "two.pth")


class Lying:
    """A NumPy scalar whose type has an object field, which would point anywhere."""

    def __reduce__(self):
        kind = np.dtype([("a", "u8")])
        return (np.float32(0).__reduce__()[0], (kind, b"A" * 8))


@pytest.mark.parametrize("content", [Malicious(), Lying(), np.datetime64(0, "s"), np.array([{}], dtype=object)[0:0]])
def test_what_lies_beside_the_weights_is_no_way_in(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": content}, path)
    if isinstance(content, np.ndarray):  # it is never built
        assert read_checkpoint(path).keys() == {"a"}
        return
    with pytest.raises(InputError, match="can't be read"):
        read_checkpoint(path)


def test_other_heads_in_a_start_are_named_and_left_out(tmp_path, caplog):
    path, trained, network = tmp_path / "start.pth", resnet18(), DeepLab(n_classes=3)
    heads = {"classifier.weight": torch.ones(20, 512, 1, 1), "aux.4.bias": torch.ones(3)}
    start = {f"backbone.{name}": tensor for name, tensor in trained.state_dict().items()} | heads
    torch.save({"model": start, "epoch": 3}, path)
    with caplog.at_level("INFO"):
        load_starting_weights(network, path)
    assert "2 tensors have no place in this network and are left out: aux.4.bias, classifier.weight" in caplog.text
    assert torch.equal(network.backbone.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)

    branches = {f"aspp.{name}": tensor for name, tensor in DeepLab(n_classes=3).aspp.state_dict().items()}
    fresh = {name: tensor.clone() for name, tensor in network.aspp.state_dict().items()}
    torch.save({**trained.state_dict(), **branches, "aspp.c9.weight": torch.ones(1)}, path)
    load_starting_weights(network, path)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.aspp.state_dict().items())


def test_a_start_of_more_or_fewer_blocks_is_refused(tmp_path):
    path, state = tmp_path / "start.pth", resnet18().state_dict()
    torch.save({**state, "layer3.2.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"has 1 tensors too many \(layer3.2.conv1.weight\)"):
        load_starting_weights(DeepLab(n_classes=3), path)
    del state["layer3.1.conv1.weight"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"lacks 1 tensors \(layer3.1.conv1.weight\)"):
        load_starting_weights(DeepLab(n_classes=3), path)


def test_what_a_checkpoint_may_not_hold_is_named(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": Namespace(lr=0.1)}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"c.pth can't be read: it holds argparse.Namespace, which is no plain data"):
        read_checkpoint(tmp_path / "c.pth")
    for whole in (resnet18(), nn.DataParallel(resnet18())):
        torch.save(whole, tmp_path / "whole.pth")
        with pytest.raises(InputError, match=r"it holds a set, as a whole network does, .*; save its state dict alone"):
            read_checkpoint(tmp_path / "whole.pth")


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_wrapped_network_are_known(tmp_path, prefix):
    network = DeepLab(n_classes=3)
    state = {f"{prefix}{name}": torch.full_like(tensor, 2) for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "c.pth")
    load_weights(network, tmp_path / "c.pth")
    assert all((parameter == 2).all() for parameter in network.parameters())
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "c.pth")
    sentence = rf"it lacks \d+ tensors \(.*\) and has \d+ others \(model\.{re.escape(prefix)}"
    with pytest.raises(InputError, match=sentence):
        load_weights(network, tmp_path / "c.pth")


def test_missing_and_doubled_names(tmp_path):
    with pytest.raises(InputError, match="cam.pth is missing"):
        find_checkpoint(tmp_path / "cam.pth")
    (tmp_path / "cam.pth.pth").touch()
    assert find_checkpoint(tmp_path / "cam.pth").name == "cam.pth.pth"
    (tmp_path / "irn.pth").touch()
    assert find_checkpoint(tmp_path / "irn.pth.pth").name == "irn.pth"


@pytest.mark.parametrize("which", [0, 1])
def test_imagenet_weights_from_a_local_file_of_either_name(tmp_path, which):
    backbone, start = resnet18(), resnet18()
    file = {**start.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    file["bn1.num_batches_tracked"] = torch.tensor(0)
    torch.save(file, tmp_path / "published.pth")
    name = f"resnet18-{hashlib.sha256((tmp_path / 'published.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "published.pth").rename(tmp_path / name)
    backbone.imagenet_files = [(name, "resnet18-00000000.pth"), ("resnet18-00000000.pth", name)][which]
    load_imagenet(backbone, "auto", folder=tmp_path)
    assert torch.equal(backbone.conv1.weight, start.conv1.weight)


def test_a_file_of_other_content_under_a_published_name_is_refused(tmp_path):
    backbone, path = resnet18(), tmp_path / "resnet18-f37072fd.pth"
    torch.save(backbone.state_dict(), path)
    with pytest.raises(InputError, match=r"--imagenet_weights auto: .*f37072fd.pth is not the file .*its SHA256 is"):
        load_imagenet(backbone, "auto", folder=tmp_path)
    load_imagenet(backbone, str(path))


def test_what_auto_means_counts_by_content_where_it_is_a_file_of_any_content():
    assert input_of_start("auto", "net.deeplab_v2", "DeepLab") == Files([Path(DEEPLAB_START)])
    assert input_of_start("auto", "net.resnet101_deeplab", "DeepLab") == "auto"
    assert input_of_start("auto", "net.timm_cam:resnet50", "Net") == "auto"
    assert input_of_start("none", "net.deeplab_v2", "DeepLab") == "none"
    assert input_of_start("sess/x.pth", "net.deeplab_v2", "DeepLab") == Files([Path("sess/x.pth")])


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


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    save_weights(Net(n_classes=3), tmp_path / "x.pth")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError, match=r"x\.pth can't be read now \(Permission denied\)") as refused:
        read_checkpoint(tmp_path / "x.pth")
    assert "train it again" not in str(refused.value)
