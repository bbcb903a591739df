"""CAM, instance and label files with wrong content, and networks that give no numbers: a sentence that names them."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import NO_STEPS, answer, generated, make_all_inputs

import run_sample
from misc.errors import InputError, message_of
from misc.files import camfile, instancefile
from misc.files.objectfile import save_object
from tests import own_network
from voc12.devkit import open_devkit
from voc12.labels import read_labels

KEYS, CAM, HIGH_RES = np.array([0, 2]), torch.ones(2, 3, 4), np.ones((2, 12, 16), np.float32)
SOUND_CAM = {"keys": KEYS, "cam": CAM, "high_res": HIGH_RES}
# what is changed in a sound file; None: what is left out
CAMS = {
    "no keys": {"keys": None},
    "no map": {"cam": None},
    "no large map": {"high_res": None},
    "keys of another number": {"keys": np.array([0])},
    "keys beyond the classes": {"keys": np.array([0, 3])},
    "negative keys": {"keys": np.array([-1, 0])},
    "keys in a table": {"keys": np.array([[0, 2]])},
    "a key that is text": {"keys": ["a", "b"]},
    "a key beyond 64 bits": {"keys": [1 << 80, 0]},
    "keys of NaN": {"keys": [float("nan"), 0.0]},
    "a map without sides": {"cam": torch.ones(2)},
    "a map that is text": {"cam": "x"},
    "a map that is a list of lists of several lengths": {"cam": [[1], [1, 2]]},
    "maps of another number": {"cam": torch.ones(3, 3, 4)},
    "large maps of another number": {"high_res": np.ones((1, 12, 16))},
    "a map of NaN": {"cam": torch.full((2, 3, 4), torch.nan)},
    "a map of infinity": {"cam": torch.full((2, 3, 4), torch.inf)},
    "one NaN in a large map": {"high_res": np.where(np.arange(384).reshape(2, 12, 16) == 5, np.nan, 1)},
    "infinity in a large map": {"high_res": np.full((2, 12, 16), -np.inf, np.float32)},
    "a large map beyond float32": {"high_res": np.full((2, 12, 16), 1e300)},
}


def changed(sound, changes):
    return {name: value for name, value in {**sound, **changes}.items() if value is not None}


def refusal(function, *given):
    with pytest.raises(InputError) as caught:
        function(*given)
    sentence = message_of(caught.value)
    assert sentence.endswith(".")
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize("name", CAMS)
def test_wrong_cam_files_are_refused(tmp_path, name):
    path = tmp_path / "x.npy"
    save_object(path, changed(SOUND_CAM, CAMS[name]))
    assert f"CAM file {path}" in refusal(camfile.load, path, 3)
    of_cam, of_high_res = (CAMS[name].keys() & {"keys", which} for which in ("cam", "high_res"))
    for read, is_wrong in ((camfile.load_cam, of_cam), (camfile.load_high_res, of_high_res)):
        if is_wrong:
            assert f"CAM file {path}" in refusal(read, path, 3)
        else:
            assert len(read(path, 3)) == 2


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["cam", "high_res"])
@pytest.mark.parametrize("numbers", ["float32", "float16"])
def test_maps_of_no_numbers_are_not_written(tmp_path, number, which, numbers):
    maps = {"cam": CAM.clone(), "high_res": torch.from_numpy(HIGH_RES.copy())}
    maps[which][1, 0, 0] = number
    path = tmp_path / "x.npy"
    sentence = refusal(lambda: camfile.save(path, KEYS, maps["cam"], maps["high_res"], numbers=numbers))
    assert f"CAM file {path} is not written, for the network gave NaN or infinity" in sentence
    assert not list(tmp_path.iterdir())


SOUND_INSTANCES = {"score": np.ones(2, np.float32), "mask": np.ones((2, 5, 6), bool), "class": np.array([0, 2])}
INSTANCES = {
    "no score": {"score": None},
    "no mask": {"mask": None},
    "no class": {"class": None},
    "a score of NaN": {"score": np.array([1, np.nan])},
    "a score of infinity": {"score": np.array([1, np.inf])},
    "a score beyond float32": {"score": np.array([1, 1e300])},
    "a score that is text": {"score": ["a", "b"]},
    "scores of another number": {"score": np.ones(3)},
    "an empty mask": {"mask": np.zeros((2, 5, 6), bool)},
    "a mask without sides": {"mask": np.ones(2, bool)},
    "a class beyond the list": {"class": np.array([0, 3])},
    "a negative class": {"class": np.array([0, -1])},
    "a class that is text": {"class": ["a", "b"]},
    "a class beyond 64 bits": {"class": [1 << 80, 0]},
}


@pytest.mark.parametrize("name", INSTANCES)
def test_wrong_instance_files_are_refused(tmp_path, name):
    path = tmp_path / "x.npy"
    save_object(path, changed(SOUND_INSTANCES, INSTANCES[name]))
    assert f"instance file {path}" in refusal(instancefile.load, path, 3)


def nested(depth):
    value = [1.0]
    for _ in range(depth):
        value = [value]
    return value


# The label of an image, of three classes
LABELS = {
    "too short": np.ones(2),
    "too long": np.ones(4),
    "a table": np.ones((1, 3)),
    "empty": np.ones(0),
    "a number": 1.0,
    "nothing": None,
    "text": "100",
    "texts": ["1", "0", "0"],
    "NaN": np.array([1, np.nan, 0]),
    "infinity": np.array([1, np.inf, 0]),
    "two": np.array([2, 0, 0]),
    "a half": np.array([0.5, 0, 0]),
    "negative": np.array([-1, 0, 0]),
    "several lengths": [[1], [1, 0]],
    "a dict": {"a": 1},
    "lists within lists": nested(60),
    "lists far within lists": nested(3000),
    "beyond 64 bits": [1 << 80, 0, 0],
}


@pytest.mark.parametrize("name", LABELS)
def test_wrong_labels_are_refused(toy, name):
    content = {image_id: np.array([1, 0, 0], np.float32) for image_id in toy.ids} | {toy.ids[1]: LABELS[name]}
    path = toy.work / "labels.npy"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)  # for the writer alone
    try:
        save_object(path, content)
    finally:
        sys.setrecursionlimit(limit)
    sentence = refusal(read_labels, open_devkit(str(toy.root), ""), path, toy.ids)
    assert str(path) in sentence


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
ARRAYS = st.sampled_from([KEYS, CAM, HIGH_RES, np.zeros((2, 0, 0)), np.array(3), np.zeros((0, 3, 4)), torch.ones(2)])
READERS = {
    "cam": (lambda path: camfile.load(path, 3), ("keys", "cam", "high_res")),
    "instances": (lambda path: instancefile.load(path, 3), ("score", "mask", "class")),
}


@generated(80)
@given(kind=st.sampled_from(sorted(READERS)), values=st.lists(VALUES | ARRAYS, min_size=3, max_size=3))
def test_any_content_is_read_or_refused(tmp_path, kind, values):
    read, names = READERS[kind]
    path = tmp_path / "x.npy"
    save_object(path, dict(zip(names, values, strict=True)))
    found, sentence = answer(read, path)
    assert (found is None) == bool(sentence)
    if kind == "cam" and found is not None:
        keys, cam, high_res = found
        assert len(keys) == len(cam) == len(high_res)
        assert cam.isfinite().all()
        assert np.isfinite(high_res).all()


@generated(80)
@given(label=VALUES | ARRAYS, key=st.text(max_size=6) | st.integers() | st.just("2099_000001"))
def test_any_label_file_is_read_or_refused(tmp_path_factory, label, key):
    folder = tmp_path_factory.mktemp("x")
    (folder / "JPEGImages").mkdir()
    (folder / "classes.txt").write_text("a\nb\n")
    save_object(folder / "x.npy", {key: label})
    devkit = open_devkit(str(folder), "")
    found, sentence = answer(read_labels, devkit, folder / "x.npy", ["2099_000001"])
    assert (found is None) == bool(sentence)
    assert found is None or (found.shape == (1, 2) and np.isin(found, (0, 1)).all())


OUTPUTS = {
    "make_cam": ("CAM", "forward", "6 of 6 maps are NaN or infinite, and were written as empty ones"),
    "train_cam": ("Net", "forward", "--cam_init_weights_name: the network gives NaN or infinity for "),
    "make_sem_seg": ("EdgeDisplacement", "forward", "edges or displacements of "),
    "make_ins_seg": ("EdgeDisplacement", "forward", "edges or displacements of "),
    "eval_deeplab": ("DeepLab", "forward", "--deeplab_weights_name: the network gives NaN or infinity for "),
    "predict": ("DeepLab", "forward", "--deeplab_weights_name: the network gives NaN or infinity for photos/a.jpg"),
    "export_deeplab": ("DeepLab", "forward", "sess/deeplab_v2_ood.pth: the network gives NaN or infinity"),
}


def without_bounds(value):
    return tuple(map(without_bounds, value)) if isinstance(value, tuple) else value * torch.inf


@pytest.mark.parametrize("step", OUTPUTS)
def test_a_network_that_gives_no_numbers_is_told(toy, monkeypatch, step):
    monkeypatch.setattr("step.export_deeplab.can_export", lambda: True)  # which old versions of PyTorch can't
    make_all_inputs(toy)
    kind, method, expected = OUTPUTS[step]
    network = getattr(own_network, kind)
    sound = getattr(network, method)
    monkeypatch.setattr(network, method, lambda self, *given: without_bounds(sound(self, *given)))
    if hasattr(network, "activation"):
        activation = network.activation
        monkeypatch.setattr(network, "activation", lambda self, *given: without_bounds(activation(self, *given)))
    flags = {f"{step}_pass": True, "train_list": "voc12/train.txt", "infer_list": "voc12/train.txt"}
    flags |= {"deeplab_crf": False, "predict_input": "photos"}
    before = {path for path in toy.work.rglob("*") if path.is_file()}
    assert expected in refusal(run_sample.run, toy.flags(**NO_STEPS | flags))
    made = {path for path in toy.work.rglob("*") if path.is_file()} - before
    assert not [path for path in made if path.suffix in (".npy", ".png", ".pt2", ".pth") and "voc12" not in str(path)]
    if step == "make_cam":
        found = [camfile.load(toy.work / f"result/cam_ood/{image_id}.npy") for image_id in toy.ids[:6]]
        assert not any(cam.any() or high_res.any() for _, cam, high_res in found)
