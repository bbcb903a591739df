"""Checkpoints whose tensors are not what they seem, or no numbers: refused in a sentence, and never written."""

import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import ROOT
from support import NO_STEPS

import run_sample
from misc.errors import InputError, message_of
from misc.files.resultfiles import STATE_FOLDER
from misc.files.soundness import LARGEST_WEIGHT, unsound_weight
from net.weights import load_starting_weights, load_weights, read_checkpoint, save_weights
from tests import own_network

NAME = "classifier.weight"


def network():
    return own_network.Net(n_classes=3)


SHAPE = tuple(network().state_dict()[NAME].shape)


class Rebuilt:
    """Calls one of torch's functions for tensors, with arguments of its choice, when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def lie(offset, sides, strides):
    return Rebuilt(
        torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), offset, sides, strides, False, OrderedDict()
    )


# name: the tensor in the place of the classifier's weights
TENSORS = {
    "meta": lambda: torch.empty(SHAPE, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "nested and jagged": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "sparse coordinates": lambda: torch.zeros(SHAPE).to_sparse(),
    "sparse rows": lambda: torch.zeros(3, 3).to_sparse_csr(),
    "complex": lambda: torch.zeros(SHAPE, dtype=torch.complex64),
    "complex and conjugate": lambda: torch.zeros(SHAPE, dtype=torch.complex64).conj(),
    "eight bits": lambda: torch.zeros(SHAPE).to(torch.float8_e4m3fn),
    "bits": lambda: torch.empty(SHAPE, dtype=torch.bits8),
    "bytes": lambda: torch.zeros(SHAPE, dtype=torch.uint8),
    "fewer numbers than its shape": lambda: torch.zeros(1).expand(SHAPE),
    "a shape beyond any memory": lambda: torch.zeros(1).expand(1 << 45),
    "another shape": lambda: torch.zeros(3, 3),
    "no sides": lambda: torch.zeros(()),
    "no numbers": lambda: torch.zeros(0),
    "strides beyond its numbers": lambda: lie(0, (2,), (1 << 40,)),
    "an offset beyond its numbers": lambda: lie(1 << 40, (1,), (1,)),
    "an offset before its numbers": lambda: lie(-1, (1,), (1,)),
    "negative sides": lambda: lie(0, (-1, -4), (1, 1)),
    "sides that overflow": lambda: lie(0, (1 << 62, 1 << 62, 4), (1, 1, 1)),
    "NaN": lambda: torch.full(SHAPE, torch.nan),
    "one NaN": lambda: torch.ones(SHAPE).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)),
    "infinity": lambda: torch.full(SHAPE, torch.inf),
    "minus infinity": lambda: torch.full(SHAPE, -torch.inf),
    "beyond float32": lambda: torch.full(SHAPE, 1e300, dtype=torch.float64),
    "beyond all bounds": lambda: torch.full(SHAPE, 1e31),
    "integers beyond all bounds": lambda: torch.full(SHAPE, 1 << 62),
    "a list": lambda: [0.0] * 4,
    "text": lambda: "0.0",
    "nothing": lambda: None,
}


def saved(path, content, *, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(function, *given):
    with pytest.raises(InputError) as caught:
        function(*given)
    sentence = message_of(caught.value)
    assert sentence.endswith(".")
    return sentence


@pytest.mark.filterwarnings("ignore")  # of torch, about kinds of tensors that are on their way out
@pytest.mark.parametrize("zipped", [True, False], ids=["", "old format"])
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_plain_tensor_of_numbers_is_refused(tmp_path, name, zipped):
    path = saved(tmp_path / "x.pth", {**network().state_dict(), NAME: TENSORS[name]()}, zipped=zipped)
    net = network()
    before = net.state_dict()[NAME].clone()
    assert str(path) in refusal(load_weights, net, path)
    assert torch.equal(net.state_dict()[NAME], before)


def test_copies_of_a_shape_beyond_any_memory_are_not_compared(tmp_path):
    endless = {f"{prefix}{NAME}": torch.zeros(1).expand(1 << 45) for prefix in ("", "module.")}
    path = saved(tmp_path / "x.pth", {**network().state_dict(), **endless})
    assert "has the shape (35184372088832,), for which the file lacks numbers" in refusal(load_weights, network(), path)


def test_the_start_of_deeplab_is_checked_too(tmp_path):
    start = own_network.DeepLab(n_classes=3)
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in start.state_dict().items()}
    assert "holds NaN" in refusal(load_starting_weights, start, saved(tmp_path / "x.pth", state))


def recompressed(path, **options):
    """The archive again, as `zipfile` writes it with these options."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def test_an_archive_that_unpacks_to_more_than_its_size_is_not_opened(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pth", {"a": torch.zeros(1 << 22)})
    assert read_checkpoint(recompressed(path))["a"].shape == (1 << 22,)
    recompressed(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 15
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was opened"))
    assert "can't be read" in refusal(read_checkpoint, path)


@pytest.mark.parametrize("count", [1 << 20, 1 << 30, 1 << 38, (1 << 39) - 1])
def test_an_old_archive_that_promises_more_numbers_than_it_has(tmp_path, count):
    path = saved(tmp_path / "x.pth", {"a": torch.zeros(77)}, zipped=False)
    content = path.read_bytes()
    assert content.count(b"K\x4d") == 2  # of the storage and of the tensor
    path.write_bytes(content.replace(b"K\x4d", b"\x8a\x05" + count.to_bytes(5, "little")))
    assert "can't be read" in refusal(read_checkpoint, path)


NESTED = b")" + b"\x85" * 1_000_000
KEYS = {
    "tuples within tuples": b"}(" + NESTED + b"K\x01u.",
    "such tuples in an ordered dict": b"ccollections\nOrderedDict\n(](" + NESTED + b"K\x01\x86etR.",
    "a set of such tuples": b"cbuiltins\nset\n(](" + NESTED + b"etR.",
}
CHILD = """
import sys
from misc.errors import InputError
from misc.files.resultfiles import STATE_FOLDER
from misc.run.training_state import TrainingState, saved_step
from net.weights import read_checkpoint
for path in sys.argv[1:]:
    folder, name = path.rsplit("/", 1)
    assert name.endswith(".pth") and folder.endswith(STATE_FOLDER)
    assert saved_step(folder.removesuffix("/" + STATE_FOLDER), name.removesuffix(".pth")) is None
    try:
        read_checkpoint(path)
    except InputError as error:
        print(error)
state = TrainingState(".", "x", parts={}, made_with={}, minutes=1)
for state.path in map(type(state.path), sys.argv[1:]):
    assert state.restore() == 0
"""


def with_pickle(path, instructions, *, zipped):
    """A file of torch.save whose content is this pickle."""
    saved(path, {"a": torch.zeros(1)}, zipped=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, b"\x80\x02" + instructions if name.endswith("data.pkl") else content)
        return path
    start, content, keys = path.read_bytes().partition(b"\x80\x02}q\x00X\x01\x00\x00\x00a")
    path.write_bytes(start + b"\x80\x02" + instructions + keys[keys.index(b"\x80\x02") :])
    assert content
    return path


def test_keys_that_crash_python_are_refused(tmp_path):
    """In a child process, which a wrong reader would end."""
    folder = tmp_path / STATE_FOLDER
    folder.mkdir()
    paths = [
        with_pickle(folder / f"{name}, {zipped}.pth", instructions, zipped=zipped)
        for name, instructions in KEYS.items()
        for zipped in (True, False)
    ]
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert [f"checkpoint {path} can't be read" in child.stdout for path in paths] == [True] * len(paths)


def test_names_of_tensors_can_not_write_on_the_screen(tmp_path):
    path = saved(tmp_path / "x.pth", {**network().state_dict(), "\x1b[2J\nerror: none\r": torch.zeros(1)})
    assert r"it has 1 tensors too many (\x1b[2J error: none )" in refusal(load_weights, network(), path)


def spoiled(number):
    net = network()
    with torch.no_grad():
        net.classifier.weight[0, 0] = number
    return net


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e31])
def test_unsound_weights_are_not_written(tmp_path, number):
    path = tmp_path / "x.pth"
    save_weights(network(), path)
    before = path.read_bytes()
    assert "classifier.weight of the network would hold NaN" in refusal(save_weights, spoiled(number), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_sound_weights():
    tensors = {
        "half": torch.ones(2, dtype=torch.float16),
        "large": torch.tensor([-LARGEST_WEIGHT]),
        "count": torch.tensor(1 << 62),
        "nothing": torch.zeros(0),
        "float64": torch.zeros(1, 1, dtype=torch.float64),
    }
    assert unsound_weight(tensors) is None
    assert unsound_weight({}) is None
    assert unsound_weight({**tensors, "last": torch.tensor([1.0, np.nan])}) == "last"


STEPS = {
    "train_classifier": ("cam", {"cam_batch_size": 6, "train_list": "voc12/train.txt"}),
    "train_deeplab": ("deeplab", {"deeplab_max_iter": 1, "deeplab_train_list": "voc12/train.txt"}),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_single_step_without_bounds_is_not_saved(toy, step):
    """Its loss is finite: it is that of the weights before the step."""
    kind, flags = STEPS[step]
    flags = {**flags, f"{step}_pass": True, "deeplab_mask_dir": toy.root / "SegmentationClass"}
    arguments = toy.flags(**{**NO_STEPS, **flags, f"{kind}_learning_rate": 1e20})
    sentence = refusal(run_sample.run, arguments)
    assert f"{step}: the weights have grown without bounds by step 1; lower --{kind}_learning_rate." in sentence
    assert not list(toy.work.glob("sess/*"))
    assert not list(toy.work.glob("result/state/*"))
