"""Pickled files of every time, and what becomes of pickles that abuse the names that the reader admits."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, SHARED

from misc.errors import InputError
from misc.files import camfile
from misc.files.objectfile import load_object

CRASHING = SHARED / "hostile" / "segv_cam.npy"
HEADER = {"descr": "|O", "fortran_order": False, "shape": ()}
CONTENT = {
    "c order": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other byte order": np.arange(3, dtype=">i2"),
    "half": np.ones(2, dtype=np.float16),
    "truth values": np.array([True, False]),
    "no entries": np.zeros((0, 3), dtype=np.float32),
    "no sides": np.array(3.0),
    "scalar": np.float64(3.5),
    "tensor": torch.arange(12.0).reshape(3, 4)[:, 1:3].T,
    "tensor of integers": torch.tensor([3, 7]),
    "tensor without entries": torch.zeros(0, 2),
    "list": [1, 2.5, None, "text", np.float32(2)],
    np.int64(7): 1,
    np.str_("2007_000032"): 2,
}


class Name(str):
    """A global name in a pickle."""


class Call:
    """A call in a pickle, and the state that is given to its result; with `arguments` None to the function itself."""

    def __init__(self, name, *arguments, state=None):
        self.name, self.arguments, self.state = Name(name), arguments, state


def change(name, state):
    changed = Call(name, state=state)
    changed.arguments = None
    return changed


class FreePickler(pickle._Pickler):
    """Writes `Name` and `Call` as they are told, whether or not there are such functions."""

    def save(self, obj, save_persistent_id=True):
        if type(obj) is Name:
            module, _, name = obj.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif type(obj) is Call:
            self.save(obj.name)
            if obj.arguments is not None:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


class OfPython2(FreePickler):
    """Bytes as Python 2 pickled them: a string."""

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + len(obj).to_bytes(4, "little") + obj)
        self.memoize(obj)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}


def dtype(name, *, order="<", names=None, fields=None, size=-1, align=-1, flags=0):
    return Call("numpy.dtype", name, 0, 1, state=(3, order, None, names, fields, size, align, flags))


OBJECTS = dtype("O8", order="|", flags=63)
FIELDS = dtype("V8", order="|", names=("a",), fields={"a": (OBJECTS, 0)}, size=8, align=1)
MISPLACED = dtype("V8", order="|", names=("a",), fields={"a": (OBJECTS, 1 << 40)}, size=8, align=1)
POINTER = b"A" * 8


def array(kind, shape, content, *, fortran=False, version=1):
    start = Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b")
    start.state = (version, shape, kind, fortran, content)
    return start


def write(path, content, *, protocol=2, pickler=FreePickler, box=None):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, HEADER)
        pickler(file, protocol=protocol).dump(array(OBJECTS, (), [content]) if box is None else box)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_tensors_of_every_pickle_protocol(tmp_path, protocol):
    box = np.empty((), dtype=object)
    box[()] = CONTENT
    path = write(tmp_path / "x.npy", None, protocol=protocol, pickler=pickle._Pickler, box=box)
    content = load_object(path, kind="file")
    assert content.keys() == CONTENT.keys()
    for name, expected in CONTENT.items():
        assert type(content[name]) is type(expected)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(content[name], expected)
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(content[name], expected)
            assert content[name].flags.writeable
        else:
            assert content[name] == expected


def test_a_label_file_as_numpy_of_2018_pickled_it():
    labels = load_object(FIXTURES / "labels_protocol2.npy", kind="label file")
    found = {key: np.flatnonzero(label).tolist() for key, label in labels.items()}
    assert found == {2007000032: [0, 14], 2007000039: [19], 2007000063: [8, 11]}
    assert {(label.dtype, label.shape) for label in labels.values()} == {(np.dtype(np.float32), (20,))}


def test_a_cam_file_as_numpy_of_2018_pickled_it():
    expected = np.load(FIXTURES / "cam_protocol2.npy", allow_pickle=True).item()  # a file of our own, known as harmless
    keys, cam, high_res = camfile.load(FIXTURES / "cam_protocol2.npy")
    assert keys.tolist() == expected["keys"].tolist() == [0, 14]
    assert torch.equal(cam, expected["cam"])
    np.testing.assert_array_equal(high_res, expected["high_res"])


def test_a_label_file_of_python_2(tmp_path):
    label = np.array([0, 1, 1], dtype=np.float32)
    path = write(tmp_path / "x.npy", {2007000032: array(dtype("f4"), (3,), label.tobytes())}, pickler=OfPython2)
    assert b"_codecs" not in path.read_bytes()
    np.testing.assert_array_equal(load_object(path, kind="label file")[2007000032], label)


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickled code ran')",))


def saved(content, *, zipped=True):
    """What `torch.save` writes of `content`, as a tensor's numbers."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return Call("torch.storage._load_from_bytes", buffer.getvalue())


def storage():
    numbers = torch.zeros(4).untyped_storage()
    return saved(torch.storage.TypedStorage(wrap_storage=numbers, dtype=torch.float32, _internal=True), zipped=False)


def tensor(kept, offset, sides, strides):
    return Call("torch._utils._rebuild_tensor_v2", kept, offset, sides, strides, False, Call("collections.OrderedDict"))


ENCODE, MULTIARRAY, NUMERIC = "_codecs.encode", "numpy.core.multiarray", "numpy._core.numeric"
# name: (the value in the file's dict, the sentence's problem)
HOSTILE = {
    "encode by another codec": (Call(ENCODE, "x", "rot13"), "it encodes something else"),
    "encode by the codec of bytes": (Call(ENCODE, b"x", "latin1"), "it encodes something else"),
    "encode with an error handler": (Call(ENCODE, "x", "latin1", "ignore"), "argument"),
    "encode of what latin1 lacks": (Call(ENCODE, "\u20ac", "latin1"), "can't encode"),
    "a function that is changed": (change(ENCODE, (None, {"__defaults__": ()})), "it changes what it may only use"),
    "a class that is changed": (change("numpy.dtype", (None, {"__init__": None})), "argument"),
    "bytes of a size": (Call("builtins.bytes", 1 << 40), "argument"),
    "an array of objects": (array(OBJECTS, (1,), [1]), "an array of objects"),
    "an object that lies about its flags": (array(dtype("O8", order="|"), (1,), POINTER), "type O8, expected numbers"),
    "objects from a buffer": (Call(f"{NUMERIC}._frombuffer", POINTER, OBJECTS, (1,), "C"), "type O8, expected"),
    "an object from bytes": (Call(f"{MULTIARRAY}.scalar", OBJECTS, POINTER), "type O8, expected"),
    "an object field": (array(FIELDS, (1,), POINTER), "type V8, expected"),
    "an object field elsewhere": (array(MISPLACED, (1,), POINTER), "type V8, expected"),
    "fields in a plain type": (array(dtype("f8", names=("a",), fields={"a": (OBJECTS, 0)}), (1,), POINTER), "fields"),
    "a type without a state": (array(Call("numpy.dtype", "f8"), (1,), POINTER), "foreign state"),
    "a type with a short state": (array(Call("numpy.dtype", "f8", state=(3, "<")), (1,), POINTER), "foreign state"),
    "a type of a list": (array(Call("numpy.dtype", [("a", "O")]), (1,), POINTER), "type that is not plain"),
    "a type made by alignment": (array(Call("numpy.dtype", "f8", 1, 1), (1,), POINTER), "type that is not plain"),
    "times": (array(dtype("M8"), (1,), POINTER), "type M8, expected"),
    "text": (array(dtype("U2"), (1,), POINTER), "type U2, expected"),
    "text beyond Unicode": (Call(f"{MULTIARRAY}.scalar", dtype("U1"), b"\xff\xff\xff\xff"), "can't decode"),
    "more entries than bytes": (array(dtype("f8"), (1 << 40,), POINTER), "bytes don't fit its shape"),
    "fewer entries than bytes": (array(dtype("f8"), (0,), POINTER), "bytes don't fit its shape"),
    "negative sides": (array(dtype("f8"), (-1, -1), POINTER), "bytes don't fit its shape"),
    "sides that overflow": (array(dtype("f8"), (1 << 62, 1 << 62, 0), b""), "too big"),
    "sides of another type": (array(dtype("f8"), [1], POINTER), "bytes don't fit its shape"),
    "a list in place of bytes": (array(dtype("f8"), (1,), [1.0]), "an array of objects"),
    "a number in place of bytes": (array(dtype("f8"), (1,), 1.0), "without bytes"),
    "an array of another version": (array(dtype("f8"), (1,), POINTER, version=2), "an array with a foreign state"),
    "an array without a state": (
        Call(f"{MULTIARRAY}._reconstruct", Name("numpy.ndarray"), (0,), b"b"),
        "an array of objects",
    ),
    "an array without a type": (array("f8", (1,), POINTER), "without a type"),
    "an array of a large start": (
        Call(f"{MULTIARRAY}._reconstruct", Name("numpy.ndarray"), (1 << 40,), b"b"),
        "foreign way",
    ),
    "a start of another class": (Call(f"{MULTIARRAY}._reconstruct", Name("numpy.dtype"), (0,), b"b"), "foreign way"),
    "an array that is called": (Call("numpy.ndarray", (1,), dtype("f8"), POINTER, 1 << 40), "argument"),
    "a scalar of many bytes": (Call(f"{MULTIARRAY}.scalar", dtype("f8"), POINTER * 2), "bytes don't fit its shape"),
    "a scalar without a type": (Call(f"{MULTIARRAY}.scalar", "f8", POINTER), "without a type"),
    "a buffer in a foreign order": (Call(f"{NUMERIC}._frombuffer", POINTER, dtype("f8"), (1,), "K"), "foreign order"),
    "a tensor larger than its numbers": (tensor(storage(), 0, (9,), (1,)), "larger than its numbers"),
    "a tensor that repeats a number": (tensor(storage(), 0, (1 << 40,), (0,)), "larger than its numbers"),
    "a tensor with long strides": (tensor(storage(), 0, (2,), (1 << 40,)), "larger than its numbers"),
    "a tensor beyond its numbers": (tensor(storage(), 4, (1,), (1,)), "larger than its numbers"),
    "a tensor before its numbers": (tensor(storage(), -1, (1,), (1,)), "foreign shape"),
    "a tensor without numbers": (tensor([0.0], 0, (1,), (1,)), "without numbers"),
    "a tensor with a state": (
        Call("torch._utils._rebuild_tensor_v2", 1, 0, (1,), (1,), state=(1, 0, (1,), (1,))),
        "changes",
    ),
    "a storage of a whole pickle": (
        tensor(Call("torch.storage._load_from_bytes", b"\x80\x02."), 0, (1,), (1,)),
        "read",
    ),
    "a storage of pickled code": (tensor(saved(Malicious()), 0, (1,), (1,)), "can't be read"),
    "a storage that is a tensor": (tensor(saved(torch.zeros(4)), 0, (1,), (1,)), "without numbers"),
    "a storage that is changed": (Call("torch.storage._load_from_bytes", b"", state={"content": 1}), "changes"),
    "a dict of a number": (Call("collections.OrderedDict", 3), "foreign way"),
    "a dict that is changed": (change("collections.OrderedDict", {"update": 1}), "it changes what it may only use"),
    "another function": (Call("os.system", "true"), "os.system is not admitted"),
    "another function of NumPy": (Call(f"{MULTIARRAY}.fromfile", "x"), "is not admitted"),
    "another function of codecs": (Call("_codecs.decode", b"x", "latin1"), "is not admitted"),
}
BOXES = {
    "a box without its flags": array(dtype("O8", order="|"), (), [{}]),
    "a box with fields": array(FIELDS, (), [{}]),
    "a box of two": array(OBJECTS, (2,), [{}, {}]),
    "a box of bytes": array(OBJECTS, (), POINTER),
    "no box": {"a": 1},
    "a box in a box": array(OBJECTS, (), [array(OBJECTS, (), [{}])]),
}
NESTED = b")" + b"\x85" * 1_000_000  # tuples within tuples
# Instructions of a pickle, in place of the box
RAW = {
    "a key of tuples within tuples": b"}(" + NESTED + b"K\x01u.",
    "one such key": b"}" + NESTED + b"K\x01s.",
    "a dict of such a key": b"(" + NESTED + b"K\x01d.",
    "an ordered dict of such a key": b"ccollections\nOrderedDict\n(](" + NESTED + b"K\x01\x86etR.",
    "a set of tuples within tuples": b"\x8f(" + NESTED + b"\x90.",
    "a frozen set of tuples within tuples": b"((" + NESTED + b"\x91.",
    "a key that is a tuple": b"}()K\x01u.",
    "tuples within tuples alone": NESTED + b".",
    "lists within lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "an object of a large number": b"}r" + (0x3FFFFFFF).to_bytes(4, "little") + b".",
    "more bytes than the file": b"\x8e" + (1 << 45).to_bytes(8, "little") + b".",
    "a longer number than the file": b"\x8b" + (0x7FFFFFFF).to_bytes(4, "little") + b".",
    "a number of negative length": b"\x8b" + b"\xff" * 4 + b".",
    "text of negative length": b"T" + b"\xff" * 4 + b".",
    "marks alone": b"(" * 1000 + b".",
    "an empty stack": b"0" * 10 + b".",
    "an object that was never noted": b"h\xff.",
    "an extension": b"\x82\x01.",
    "an object from elsewhere": b"Px\n.",
    "no end": b"}",
    "nothing": b"",
    "no instruction": b"\xff.",
    "a frame beyond the file": b"\x95" + b"\xff" * 8,
    "a later protocol": b"\x80\xff}.",
}

CHILD = """
import json, sys
from misc.errors import InputError
from misc.files.objectfile import load_object
answers = {}
for path in sys.argv[1:]:
    try:
        answers[path] = "read: " + " ".join(load_object(path, kind="file"))
    except InputError as error:
        answers[path] = str(error)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{name: what the reader says of the file}: all are read in one child process, which a wrong reader would crash."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: write(folder / f"{name}.npy", {"value": value}) for name, (value, _) in HOSTILE.items()}
    paths |= {name: write(folder / f"{name}.npy", None, box=box) for name, box in BOXES.items()}
    for name, instructions in RAW.items():
        paths[name] = write(folder / f"{name}.npy", {})
        header = paths[name].read_bytes().partition(b"\x80\x02")[0]
        paths[name].write_bytes(header + b"\x80\x04" + instructions)
    paths |= {CRASHING.name: CRASHING} if CRASHING.is_file() else {}
    command = [sys.executable, "-c", CHILD, *map(str, paths.values())]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    return {name: said[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_that_abuse_an_admitted_name_are_refused(answers, name):
    assert answers[name].endswith("; make it again.")
    assert f"{name}.npy can't be read (" in answers[name]
    assert HOSTILE[name][1] in answers[name]
    assert "\n" not in answers[name]


@pytest.mark.parametrize("name", [*BOXES, *RAW])
def test_pickles_that_are_no_box_of_one_object_are_refused(answers, name):
    assert f"{name}.npy can't be read (" in answers[name]


def test_a_truth_value_is_zero_or_one_in_memory(tmp_path):
    path = write(tmp_path / "x.npy", {"a": array(dtype("b1", order="|"), (3,), b"\x00\x01\x07")})
    value = load_object(path, kind="file")["a"]
    assert value.view(np.uint8).tolist() == [0, 1, 1]


def test_the_pickle_that_crashes_numpy_is_refused(answers):
    if CRASHING.name not in answers:
        pytest.skip(f"{CRASHING} is not here")
    assert "can't be read (an array of the type V8, expected numbers or truth values)" in answers[CRASHING.name]


def test_a_file_of_tensors_is_the_same_bytes_whenever_it_is_written(tmp_path):
    """So that a step that gives the same again makes no work for those that read its files."""
    written = []
    for number in range(2):
        unrelated = [torch.zeros(number + 1)]  # other addresses in memory
        camfile.save(tmp_path / "x.npy", np.array([1]), torch.arange(6.0).reshape(1, 2, 3), torch.ones(1, 8, 12))
        written.append((tmp_path / "x.npy").read_bytes())
        (tmp_path / "x.npy").unlink()
        del unrelated
    assert written[0] == written[1]
    (tmp_path / "x.npy").write_bytes(written[0])
    content = np.load(tmp_path / "x.npy", allow_pickle=True).item()  # as the originals read it
    assert torch.equal(content["cam"], torch.arange(6.0).reshape(1, 2, 3))


@pytest.mark.parametrize("argument", [Name("os.system"), "text", [1.0], Call("numpy.dtype", "f4"), None])
def test_a_tensor_is_made_of_an_array_of_numbers_alone(tmp_path, argument):
    path = write(tmp_path / "x.npy", {"cam": Call("torch.from_numpy", argument)})
    with pytest.raises(InputError, match="CAM file"):
        load_object(path, kind="CAM file")
