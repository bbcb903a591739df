"""Files that run code where pickles are read without care: each attack is shown to work, and to fail here."""

import io
import pickle
import posix
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from misc.errors import InputError
from misc.files import camfile
from misc.files.objectfile import load_object
from misc.run.training_state import TrainingState
from net.weights import load_weights, read_checkpoint
from tests import own_network

MARK = "the-code-ran"


class Attack:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return posix.mkdir, (MARK,)


class Call:
    """Calls a function, by the name under which pickles know it, when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attack_succeeds(load) -> bool:
    """Whether `load()` runs the code of an attack, whatever comes of it besides."""
    with suppress(Exception):
        load()
    ran = Path(MARK).is_dir()
    if ran:
        Path(MARK).rmdir()
    return ran


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def storage_of(content: bytes) -> Call:
    """As torch's storages are pickled: a call with the bytes of a file of torch.save."""
    return Call(torch.storage._load_from_bytes, content)


OBJECT_ATTACKS = {
    "a function": lambda: Attack(),
    "code as text": lambda: Call(exec, f"import os; os.mkdir({MARK!r})"),
    "a function in a label": lambda: OrderedDict(x=[Attack()]),
    "a torch storage": lambda: storage_of(saved(Attack())),
    "a torch storage in the old format": lambda: storage_of(saved(Attack(), _use_new_zipfile_serialization=False)),
    "a torch storage in a tensor": lambda: Call(
        torch._utils._rebuild_tensor_v2, storage_of(saved(Attack())), 0, (1,), (1,), False, OrderedDict()
    ),
}


def write_pickle(content: bytes) -> None:
    with open("x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(content)


def write_object_file(content: object, *, protocol: int) -> None:
    boxed = np.empty((), dtype=object)
    boxed[()] = content
    write_pickle(pickle.dumps(boxed, protocol=protocol))


def name_in_pickle(module: str, name: str) -> bytes:
    """The start of a pickle of protocol 4, in which a name may lead through the attributes of a module."""
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


@pytest.mark.parametrize("protocol", [3, 5])
@pytest.mark.parametrize("name", OBJECT_ATTACKS)
def test_object_files_run_no_code(name, protocol):
    write_object_file({"keys": OBJECT_ATTACKS[name]()}, protocol=protocol)
    assert attack_succeeds(lambda: np.load("x.npy", allow_pickle=True))
    assert not attack_succeeds(lambda: load_object("x.npy", kind="file"))
    with pytest.raises(InputError, match="CAM file x.npy"):
        camfile.load("x.npy")


def test_a_name_with_dots_is_no_way_around():
    inner = saved(Attack())
    content = name_in_pickle("torch", "storage._load_from_bytes") + b"B" + len(inner).to_bytes(4, "little") + inner
    write_pickle(content + b"\x85R.")
    assert attack_succeeds(lambda: np.load("x.npy", allow_pickle=True))
    assert not attack_succeeds(lambda: load_object("x.npy", kind="file"))


OF_NUMPY = np.zeros(1).__reduce__()[0].__module__.removesuffix(".multiarray")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("operator", "attrgetter"),
        # Of the modules that admitted names are in
        ("numpy", "load"),
        ("numpy", "save"),
        (f"{OF_NUMPY}.multiarray", "fromfile"),
        (f"{OF_NUMPY}.numeric", "fromfunction"),
        ("collections", "namedtuple"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "io.open"),
    ],
)
def test_no_other_name_is_admitted(module, name):
    content = name_in_pickle(module, name) + b"."
    assert pickle.loads(content) is not None
    write_pickle(content)
    with pytest.raises(InputError, match=rf"\({module}.{name} is not admitted\)"):
        load_object("x.npy", kind="file")


CONTENTS = {
    "arrays": np.arange(6, dtype=np.float32).reshape(2, 3),
    "an array in the order of Fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "numbers of NumPy": [np.float32(0.5), np.int64(3), np.bool_(True)],
    "tensors": torch.arange(6.0).reshape(2, 3),
    "a part of a tensor": torch.arange(12).reshape(4, 3)[1:, 1],
    "a list": [1, 2.5, "x", None, True],
}


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_admitted_is_read(name, protocol):
    write_object_file({"x": CONTENTS[name]}, protocol=protocol)
    (given,) = load_object("x.npy", kind="file").values()
    assert type(given) is type(CONTENTS[name])
    assert repr(given) == repr(CONTENTS[name])
    # As the other generation of NumPy names its functions
    content, other = Path("x.npy").read_bytes(), {b"numpy._core": b"numpy.core", b"numpy.core": b"numpy._core"}
    if protocol < 4 and OF_NUMPY.encode() in content:
        Path("x.npy").write_bytes(content.replace(OF_NUMPY.encode(), other[OF_NUMPY.encode()]))
        assert repr(load_object("x.npy", kind="file")) == repr({"x": CONTENTS[name]})


def read_state() -> int:
    """Steps of a training that was interrupted, as a training that goes on reads them."""
    return TrainingState("result", "training", parts={}, made_with={}, minutes=5).restore()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("content", [lambda: Attack(), lambda: {"made_with": "{}", "step": Attack()}])
def test_checkpoints_and_states_run_no_code(content, new_format):
    path = Path("result/state/training.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(saved(content(), _use_new_zipfile_serialization=new_format))
    assert attack_succeeds(lambda: torch.load(path, weights_only=False))
    network = own_network.DeepLab(n_classes=3)
    for read in (read_checkpoint, lambda path: load_weights(network, path), network.load_start):
        assert not attack_succeeds(lambda read=read: read(path))
        with pytest.raises(InputError, match="training.pth can't be read"):
            read(path)
    assert not attack_succeeds(read_state)
    assert read_state() == 0
