"""Networks of one's own: the example of docs/own_networks.md runs, and what a module lacks is said before any work."""

import json
import re
from pathlib import Path

import pytest
import torch
from support import ALL_STEPS, NO_STEPS

import run_sample
from misc.errors import InputError
from misc.files import camfile
from net import irn
from net.build import ADVCAM_ATTRIBUTES, ATTRIBUTES, FLAGS, build_network, require_answer, source_file
from net.irn import AffinityDisplacement
from net.trial import problem_of_answer
from net.weights import read_checkpoint
from tests import bare_network
from tests.own_network import FiveConvolutions

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs/own_networks.md").read_text()
WITH_ADVCAM = {
    **ALL_STEPS,
    "make_advcam_pass": True,
    "eval_advcam_pass": True,
    "make_report_pass": True,
    "masks_from": "advcam",
    "adv_iter": 2,
}


def networks(module):
    return {"cam_network": module, "irn_network": module, "deeplab_network": module}


def test_the_guides_example_is_the_tested_one():
    assert f"```python\n{(ROOT / 'tests/own_network.py').read_text()}```" in GUIDE


def test_a_change_of_what_a_network_imports_is_noticed(tmp_path, monkeypatch):
    """Of what lies with it: nothing of this project, nothing installed; whether it has been imported yet or not."""
    fallback = "try:\n    from .mine_package import gain\nexcept ImportError:\n    import mine_package.gain\n"
    files = {
        "mine_network.py": f"{fallback}from net import irn\nimport mine_installed\nimport torch",
        "mine_package/__init__.py": "",
        "mine_package/gain.py": "from . import base\nfrom .other import VALUE\nimport mine_network",
        "mine_package/base.py": "def later():\n    from ..too_far import up\n    from .inner.lazy import VALUE",
        "mine_package/inner/__init__.py": "",
        "mine_package/inner/lazy.py": "this is no Python",
        "mine_package/other.py": "VALUE = 1",
        "mine_package/unused.py": "",
        "site-packages/mine_installed.py": "import mine_other",
        "site-packages/mine_other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    for folder in (tmp_path, tmp_path / "site-packages"):
        monkeypatch.syspath_prepend(folder)
    expected = {name for name in files if "site-packages" not in name} - {"mine_package/unused.py"}
    for module in ("mine_network", "mine_package.gain"):
        assert {Path(path).relative_to(tmp_path).as_posix() for path in source_file(module).paths} == expected
    assert len(source_file("mine_installed").paths) == 1
    assert len(source_file("net.resnet50_irn").paths) == 1


def test_the_guide_names_all_that_is_needed():
    for name in {*ATTRIBUTES, *(name for names in ATTRIBUTES.values() for name in names), *ADVCAM_ATTRIBUTES}:
        assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("module", ["tests.own_network", "tests.bare_network"])
def test_the_whole_chain_runs(toy, module):
    run_sample.run(toy.flags(**WITH_ADVCAM, **networks(module)))
    for name in ("eval_cam", "eval_advcam", "eval_ir_label", "eval_sem_seg"):
        assert 0 < json.loads(Path(f"result/scores/{name}.json").read_text()).get("images") == 6
    assert Path("result/scores/eval_deeplab_crf.json").is_file()
    orig, wood, irn = (read_checkpoint(f"sess/res50_{name}.pth") for name in ("cam_orig", "cam_ood", "irn_ood"))
    assert orig.keys() == wood.keys() == build_network(module, "CAM", n_classes=3).state_dict().keys()
    assert not torch.equal(orig["classifier.weight"], wood["classifier.weight"])
    assert irn["mean_shift.running_mean"].any()
    for image_id in toy.ids[:6]:
        for folder in ("cam_ood", "cam_ood_advcam"):
            assert camfile.load(f"result/{folder}/{image_id}.npy")[1].shape[0] == 1
    page = Path("result/report.html").read_text()
    assert page.count("<figcaption>AdvCAM</figcaption>") == page.count("<figcaption>boundaries (IRN)</figcaption>") == 6


def refusal(toy, monkeypatch, **flags):
    for step in ("train_classifier", "cam_to_ir_label"):
        monkeypatch.setattr(f"step.{step}.run", lambda args: pytest.fail("work began"))
    with pytest.raises(InputError) as caught:
        run_sample.run(toy.flags(**{**WITH_ADVCAM, **networks("tests.bare_network"), **flags}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def take_away(monkeypatch, network_class, name):
    """Let the networks of a class lack an attribute."""
    if owner := next((base for base in network_class.__mro__ if name in vars(base)), None):
        monkeypatch.delattr(owner, name)
        return
    make = network_class.__init__

    def make_without(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        delattr(self, name)

    monkeypatch.setattr(network_class, "__init__", make_without)


NEEDED = [(class_name, name) for class_name, names in ATTRIBUTES.items() for name in names]


@pytest.mark.parametrize(("class_name", "name"), NEEDED)
def test_a_missing_attribute_is_named(toy, monkeypatch, class_name, name):
    take_away(monkeypatch, getattr(bare_network, class_name), name.split(".")[0])
    flag = FLAGS[class_name]
    sentence = refusal(toy, monkeypatch)
    assert sentence.startswith(f"--{flag}: tests.bare_network.{class_name} lacks {name}; docs/own_networks.md says")


@pytest.mark.parametrize("name", ADVCAM_ATTRIBUTES)
def test_what_advcam_needs_besides_is_named(toy, monkeypatch, name):
    take_away(monkeypatch, bare_network.CAM, name.split(".")[0])
    sentence = refusal(toy, monkeypatch, **NO_STEPS | {"make_advcam_pass": True, "make_report_pass": False})
    assert sentence.startswith(f"--cam_network: tests.bare_network.CAM lacks {name}; docs/own_networks.md says")
    assert build_network("tests.bare_network", "CAM", n_classes=3)  # and it is not asked for elsewhere


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"kernel_size": 1, "bias": True}, "(3, 12, 1, 1) with bias"),
        ({"kernel_size": 3, "padding": 1, "bias": False}, "(3, 12, 3, 3) without bias"),
    ],
)
def test_a_classifier_for_which_advcam_would_be_wrong_is_refused(toy, monkeypatch, options, given):
    make = bare_network.Net.__init__

    def make_other(self, n_classes):
        make(self, n_classes)
        self.classifier = torch.nn.Conv2d(12, n_classes, **options)

    monkeypatch.setattr(bare_network.Net, "__init__", make_other)
    sentence = refusal(toy, monkeypatch)
    expected = "--cam_network: AdvCAM needs a classifier of shape (C, D, 1, 1) without bias, tests.bare_network.CAM has"
    assert sentence.startswith(f"{expected} one of {given}; docs/own_networks.md says")


@pytest.mark.parametrize("class_name", ATTRIBUTES)
def test_a_missing_class_is_named(toy, monkeypatch, class_name):
    monkeypatch.delattr(bare_network, class_name)
    flag = FLAGS[class_name]
    sentence = refusal(toy, monkeypatch)
    assert sentence.startswith(f"--{flag}: network module tests.bare_network has no class {class_name}; docs/")


def test_a_class_that_takes_other_arguments_is_refused(toy, monkeypatch):
    monkeypatch.setattr(bare_network.Net, "__init__", lambda self, classes: None)
    sentence = refusal(toy, monkeypatch)
    assert "--cam_network: tests.bare_network.Net(n_classes) can't be called: missing a required argument" in sentence


def test_classes_that_do_not_share_their_weights_are_refused(toy, monkeypatch):
    make = bare_network.EdgeDisplacement.__init__

    def make_other(self):
        make(self)
        self.edge = torch.nn.Conv2d(8, 1, 3)

    monkeypatch.setattr(bare_network.EdgeDisplacement, "__init__", make_other)
    sentence = refusal(toy, monkeypatch)
    assert "EdgeDisplacement has not the weights of AffinityDisplacementLoss (edge.weight differ in name" in sentence


def test_a_backbone_of_other_strides_is_told():
    backbone = FiveConvolutions()
    backbone.strides = (2, 4, 8, 16, 32)
    with pytest.raises(
        InputError,
        match=r"--irn_network: FiveConvolutions has stages of .* channels at strides \(2, 4",
    ):
        AffinityDisplacement(backbone)


def plain(answer):
    """A network whose `forward` is this."""

    class Network(torch.nn.Module):
        def forward(self, *images):
            return answer(*images)

        edge_and_displacement = forward

    return Network()


@pytest.mark.parametrize(
    ("class_name", "answer", "n_classes", "problem"),
    [
        ("Net", lambda x: (torch.zeros(2, 4), torch.zeros(2, 7)), 3, r"gives \(2, 4\) and \(2, 7\); expected logits"),
        ("Net", lambda x: torch.zeros(2, 3), 3, r"and a NoneType; expected logits \(2, 3\) and features"),
        ("CAM", lambda x: torch.zeros(2, 3, 6, 8), 3, r"gives \(2, 3, 6, 8\) of an image and its mirror image"),
        ("CAM", lambda x: -torch.ones(3, 6, 8), 3, "gives negative values; expected maps that end in a ReLU"),
        ("EdgeDisplacement", lambda x: (torch.zeros(1, 12, 16), torch.zeros(2, 12, 16)), None, "expected an edge"),
        ("EdgeDisplacement", lambda x: (torch.full((1, 24, 32), 2.0), torch.zeros(2, 24, 32)), None, "not in 0 .. 1"),
        ("AffinityDisplacementLoss", lambda x: (torch.zeros(2, 1, 3, 4),) * 2, None, "as edge_and_displacement"),
        ("DeepLab", lambda x: torch.zeros(2, 3, 12, 16), 4, r"gives \(2, 3, 12, 16\) of two images; expected logits"),
    ],
)
def test_what_a_network_gives_is_tried_out(class_name, answer, n_classes, problem):
    assert re.search(problem, problem_of_answer(plain(answer), class_name, n_classes))


@pytest.mark.parametrize("strides", [(4, 4, 8, 16, 32), (4, 4, 8, 8, 8)])
def test_stages_that_are_not_what_the_backbone_declares_are_told(strides):
    backbone = FiveConvolutions()
    backbone.strides = strides
    problem = problem_of_answer(irn.EdgeDisplacement(backbone), "EdgeDisplacement", None)
    assert "has a backbone whose stages give" in problem


def test_a_network_that_needs_a_gpu_is_not_refused_for_that(monkeypatch):
    def answer(images):
        raise RuntimeError("no kernel for the CPU")

    with pytest.raises(RuntimeError, match="no kernel"):
        require_answer("mine", plain(answer), "CAM", n_classes=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_answer("mine", plain(answer), "CAM", n_classes=3)


def test_wrong_outputs_are_told_before_any_step(toy, monkeypatch):
    monkeypatch.setattr(bare_network.CAM, "forward", lambda self, pair: self.logit_maps(pair))
    sentence = refusal(toy, monkeypatch)
    assert sentence.startswith("--cam_network: tests.bare_network.CAM gives (2, 3, 12, 16) of an image and its mirror")


def test_imagenet_weights_of_a_foreign_backbone_have_to_be_named(toy, monkeypatch):
    assert "this backbone has no ImageNet weights; name a file" in refusal(toy, monkeypatch, imagenet_weights="auto")
