"""The machine's limits: memory, shared memory, workers that are killed, open files. One sentence, never a hang."""

import ctypes
import errno
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import NO_STEPS, give_all_one_size, make_all_inputs
from torch.utils.data import Dataset

import run_sample
from misc.errors import InputError
from misc.files import camfile, images, objectfile, pickles
from misc.files.images import image_size, read_image, read_label
from misc.run import limits, loaders
from misc.run.config import parse_config
from misc.run.limits import SHARED_MEMORY, allow_open_files, limits_told
from misc.run.loaders import batch_loader, sequential_loader, training_loader
from misc.run.parallel import START_METHOD, ordered_map
from misc.run.step import Step
from misc.run.training_state import saved_step
from net.weights import read_checkpoint
from tests.test_stopping import children_of, n_lines, wait_until
from voc12.verify import require_readable

ROOT = Path(run_sample.__file__).parent
CPU = torch.device("cpu")
CLONE_NEWNS = 0x00020000
"""Of unshare(2): mounts of its own."""
STEP = Step(
    name="make_x", description="", reads=(), writes=(), memory_flags=("num_workers", "x_batch_size", "x_crop_size")
)


def sentence_of(error, step=STEP):
    with pytest.raises(InputError) as caught, limits_told(step):
        raise error
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# What libraries say where memory, processes, files or shared memory do not suffice; the beginning of the sentence
SAID = {
    "NumPy": (
        MemoryError("Unable to allocate 37.3 GiB for an array with shape (100000, 100000) and data type int32"),
        r"make_x: the memory does not suffice \(37\.3 GiB more were asked for\); lower --num_workers, --x_batch_size "
        r"or --x_crop_size, or free some of it; what is finished is kept\.",
    ),
    "Python": (MemoryError(), r"make_x: the memory does not suffice; lower --num_workers, "),
    "PyTorch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 40000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        r"make_x: the memory does not suffice \(40000000000 bytes more were asked for\); lower ",
    ),
    "OpenCV in a worker": (
        RuntimeError(
            "Caught error in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\ncv2.error: "
            "OpenCV(4.8.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes in function"
        ),
        r"make_x: the memory does not suffice \(9 bytes more were asked for\); lower ",
    ),
    "a new process": (OSError(errno.ENOMEM, "Cannot allocate memory"), r"make_x: the memory does not suffice; lower "),
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
        r"make_x: the GPU's memory does not suffice \(20.00 MiB more were asked for\); lower --x_batch_size or "
        r"--x_crop_size, or pass --device cpu, or free some of it; what is finished is kept\.",
    ),
    "cuBLAS": (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuDNN": (
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuDNN without room for any algorithm": (
        RuntimeError("GET was unable to find an engine to execute this computation"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuBLAS's first call": (
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuDNN's first call": (
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuSPARSE's first call": (
        RuntimeError("CUDA error: initialization error when calling `cusparseCreate(handle)`"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "cuSPARSE": (
        RuntimeError("CUDA error: insufficient resources when calling `cusparseSpMM(handle)`"),
        r"make_x: the GPU's memory does not suffice; lower --x_batch_size or",
    ),
    "oneDNN": (
        RuntimeError("could not create a primitive"),
        r"make_x: the memory does not suffice; lower --num_workers, --x_batch_size or",
    ),
    "killed worker": (
        RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
        r"make_x: a process that loads images was killed or has died, perhaps for lack of memory \(DataLoader worker "
        r"\(pid 77\) is killed by signal: Killed\); lower --num_workers \(0: no such processes\), or free ",
    ),
    "lost workers": (
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        r"make_x: a process that loads images was killed or has died, .* lower --num_workers",
    ),
    "lost workers, with a GPU": (
        RuntimeError("Pin memory thread exited unexpectedly"),
        r"make_x: a process that loads images was killed or has died, .* lower --num_workers",
    ),
    "bus error": (
        RuntimeError(
            "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
        r"make_x: the shared memory \(/dev/shm\) is full; lower --num_workers, or give the machine more of it",
    ),
    "shared memory": (
        RuntimeError("unable to write to file </torch_77_1_0>: No space left on device (28)"),
        r"make_x: the shared memory \(/dev/shm\) is full; ",
    ),
    "open files": (
        OSError(errno.EMFILE, "Too many open files"),
        r"make_x: too many files are open at once \(\d+ may be\); lower --num_workers, or raise ulimit -n",
    ),
    "open files of a worker": (RuntimeError("received 0 items of ancdata"), r"make_x: too many files are open at once"),
    "processes": (
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        r"make_x: the system starts no more",
    ),
    "threads": (
        RuntimeError("can't start new thread"),
        r"make_x: the system starts no more processes or threads; lower",
    ),
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "a/b.txt"),
        r"make_x: a/b.txt can't be written: the disk is full; make room there \(.*\); what is finished is kept, and",
    ),
}


@pytest.mark.parametrize("kind", SAID)
def test_each_limit_is_one_sentence_with_the_flags_of_the_step(kind):
    error, sentence = SAID[kind]
    assert re.match(sentence, sentence_of(error)), sentence_of(error)


def test_other_errors_stay_what_they_are():
    for error in (ValueError("out of range"), RuntimeError("size mismatch"), FileNotFoundError(2, "No such file")):
        with pytest.raises(type(error)) as caught, limits_told(STEP):
            raise error
        assert caught.value is error


def test_without_a_step_there_is_advice_too():
    assert sentence_of(MemoryError(), None) == "the memory does not suffice; free some of it; what is finished is kept."


# Sizes that can't be

IMPOSSIBLE = [
    "--cam_crop_size 100000000",
    "--irn_crop_size 100000000",
    "--deeplab_crop_size 100000000",
    "--cam_resize_long 320 100000000",
    "--ood_long_side 100000000",
    "--cam_scales 1 1e30",
    "--exp_times 1000",
    "--deeplab_scales 1e30",
    "--num_workers 100000000",
    "--crf_workers 100000000",
]


@pytest.mark.parametrize("line", IMPOSSIBLE)
def test_sizes_that_cannot_be_are_refused_before_anything_is_allocated(line):
    flag = line.split()[0]
    with pytest.raises(InputError, match=rf"^{flag} must be between \S+ and \d+, got 1.*\.$"):
        parse_config(line.split())


# Memory that does not suffice

MIB = 2**20


@contextmanager
def limited_memory(n_bytes):
    """Lets the process take so many bytes more than it has, as on a small machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


ON_A_SMALL_MACHINE = """
import importlib
import run_sample
from misc.run.config import STEP_MODULES
from tests.test_limits import MIB, limited_memory

for step in ("train_classifier", "make_cam"):  # so that the limit is for their work, not for their code
    importlib.import_module(STEP_MODULES[step])
with limited_memory(1000 * MIB):  # of which threads, and what is imported later all the same, take a few hundred
    code = run_sample.main()
run_sample.leave(code)
"""


TOO_MUCH = {
    "crops of NumPy": {"train_classifier_pass": True, "cam_crop_size": 16384},
    "crops in a worker": {"train_classifier_pass": True, "cam_crop_size": 16384, "num_workers": 1},
    "batches of PyTorch": {"train_classifier_pass": True, "cam_crop_size": 8192},
    "large scales": {"make_cam_pass": True, "cam_scales": (16.0,)},
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, and other systems don't keep to such limits")
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_step_that_needs_more_memory_ends_in_one_sentence(kind, toy, monkeypatch):
    """In a process of its own: this one may have memory left that earlier tests have freed."""
    make_all_inputs(toy)
    give_all_one_size(toy, (300, 300))
    flags = toy.flags(**NO_STEPS | {"redo": (), "cam_out_dir": "result/cam"} | TOO_MUCH[kind])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), prepend=os.pathsep)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread takes memory of its own
    line = [sys.executable, "-c", ON_A_SMALL_MACHINE, *flags]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    is_of_cams = "make_cam_pass" in TOO_MUCH[kind]
    name, example = ("make_cam", "cam_scales") if is_of_cams else ("train_classifier", "cam_crop_size")
    of_one = r"( for an image of 300 x 300 pixels, \S+\.jpg)? "  # where it was the network's work that did not fit
    assert re.search(rf"error: {name}: the memory does not suffice{of_one if is_of_cams else ' '}\(", done.stderr)
    assert f"--{example}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


READERS = {
    "image": read_image,
    "label": read_label,
    "size": image_size,
    "check": lambda path: require_readable([path], num_workers=0),
    "CAM": camfile.load,
    "checkpoint": read_checkpoint,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_file_is_not_blamed_for_the_machine(kind, tmp_path, monkeypatch):
    """Whoever takes any error for a damaged file would have the user replace a good one."""
    monkeypatch.chdir(tmp_path)
    Path("voc12").mkdir()
    path = tmp_path / "a.png"
    Image.new("L", (20, 20)).save(path)

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(images, "regular", fail)
        patch.setattr(objectfile, "regular", fail)
        patch.setattr(pickles, "regular", fail)
        with pytest.raises(InputError, match="too many files are open at once"), limits_told(STEP):
            READERS[kind](path)


def test_an_image_is_not_blamed_for_the_memory(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images.Image.Image, "convert", fail)
    with pytest.raises(InputError, match="make_x: the memory does not suffice"), limits_told(STEP):
        read_image(tmp_path / "a.png")


# Workers that are killed or can't send what they have read


class Items(Dataset):
    """Item k: a (k + 1, 3) uint8 tensor of k, an array, and what no process can send where `unsendable` is k."""

    def __init__(self, n, *, unsendable=None, killed=None):
        self.n, self.unsendable, self.killed = n, unsendable, killed

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        content = (lambda: None) if index == self.unsendable else [torch.full((3,), index, dtype=torch.uint8)]
        return {"index": index, "images": content, "mask": np.full((2, 2), index), "size": (1, 2)}


@pytest.fixture
def no_hang():
    """Ends the tests if one takes more than two minutes."""
    handler = signal.getsignal(signal.SIGCHLD)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGCHLD, handler)
    limits._kept.clear()


class WhatIsFrozen(Items):
    """Items that tell how many objects the garbage collector leaves alone in their process."""

    def __getitem__(self, index):
        return torch.tensor(gc.get_freeze_count())


def test_workers_leave_what_they_inherited_alone():
    """Memory of CUDA, in the cycles that an exception leaves behind, would end the process that frees it there."""
    frozen_here = gc.get_freeze_count()  # not 0 where Python itself freezes something, as 3.12 does
    loader = sequential_loader(WhatIsFrozen(2), num_workers=1, device=CPU)
    assert all(n > frozen_here + 10_000 for n in loader)
    assert gc.get_freeze_count() == frozen_here


def read_all(loader):
    with limits_told(STEP):
        list(loader)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("fault", ["killed", "unsendable"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_worker_or_item_is_one_sentence_and_no_hang(fault, workers, capfd):
    loader = sequential_loader(Items(6, **{fault: 3}), num_workers=workers, device=CPU)
    with pytest.raises(InputError, match=r"a process that loads images was killed .* lower --num_workers"):
        read_all(loader)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert ("a process that loads images can't send them: " in said) == (fault == "unsendable")


# Shared memory


def content(item):
    """An item as plain lists, with the types of its parts."""
    if isinstance(item, dict):
        return {name: content(part) for name, part in item.items()}
    if isinstance(item, torch.Tensor):
        return [str(item.dtype), item.is_shared(), item.tolist()]
    return [content(part) for part in item] if isinstance(item, list) else item


class Crops(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        index = index if isinstance(index, int) else index[1]
        return {"image": torch.full((3, 2, 2), index, dtype=torch.uint8), "label": torch.tensor([index, 0.5])}


def loaded(kind, workers):
    if kind == "items":
        loader = sequential_loader(Items(5), num_workers=workers, device=CPU)
    elif kind == "batches":
        loader = batch_loader(Crops(), batch_size=2, num_workers=workers, device=CPU)
    else:
        loader = training_loader(Crops(), batch_size=2, n_batches=4, seed=(1, 2), num_workers=workers, device=CPU)
    return [content(item) for item in loader]


@pytest.mark.parametrize("kind", ["items", "batches", "training"])
def test_what_has_no_room_in_shared_memory_comes_through_a_pipe_as_it_is(kind, monkeypatch):
    expected = loaded(kind, 0)
    shared = loaded(kind, 2)
    monkeypatch.setattr(loaders, "free_bytes", lambda _: 10)
    assert loaded(kind, 2) == expected
    assert json.dumps(shared).replace("true", "false") == json.dumps(expected)
    assert "true" in json.dumps(shared)  # with room they are shared


def test_workers_start_alike_in_every_python():
    """Python 3.14 starts them anew where earlier ones fork, which costs each some seconds, unless it is told."""
    loader = sequential_loader(Items(2), num_workers=1, device=CPU)
    assert loader.multiprocessing_context.get_start_method() == START_METHOD
    assert sequential_loader(Items(2), num_workers=0, device=CPU).multiprocessing_context is None


def test_few_descriptors_are_a_reason_too(monkeypatch):
    monkeypatch.setattr(loaders, "allowed_files", lambda: loaders.FILES_A_WORKER * 2 - 1)
    assert loaded("batches", 2) == loaded("batches", 0)


class LargeItems(Dataset):
    """Four items of 3 MiB."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"index": index, "images": [torch.full((size,), index, dtype=torch.uint8) for size in (MIB, 2 * MIB)]}


def in_shared_memory_of(size, *line):
    """Run a command with so much shared memory; returns exit code and messages."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("shared memory of its own needs mounts of its own: root, and leave to call unshare")
    script = f'mount -t tmpfs -o size={size} small {SHARED_MEMORY} && exec "$@"'
    whole = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, *map(str, line)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def load_in_small_shared_memory(*, look):
    """In a process of its own: load large items with 2 MiB of shared memory; ends it with 0 if all came, 2 if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    mount = f"mount --make-rprivate / && mount -t tmpfs -o size=2m small {SHARED_MEMORY}"
    if libc.unshare(CLONE_NEWNS) or subprocess.run(["sh", "-c", mount], capture_output=True).returncode:
        os._exit(77)
    torch.set_num_threads(1)
    if not look:
        loaders._may_share = lambda _: True
    try:
        with limits_told(STEP):
            items = list(sequential_loader(LargeItems(), num_workers=2, device=CPU))
    except InputError as error:
        os.write(2, str(error).encode())
        os._exit(2)
    expected = [[number * MIB, number * 2 * MIB] for number in range(4)]
    os._exit([[int(image.sum()) for image in item["images"]] for item in items] != expected)


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a folder on Linux alone")
@pytest.mark.parametrize("look", [True, False])
def test_large_items_and_little_shared_memory_are_no_hang(look, capfd):
    """They arrive; and if others have taken the room since one looked, there is a sentence."""
    process = get_context("fork").Process(target=load_in_small_shared_memory, kwargs={"look": look})
    process.start()
    process.join(timeout=120)
    is_hanging = process.is_alive()
    process.kill()
    assert not is_hanging
    if process.exitcode == 77:
        pytest.skip("shared memory of its own needs mounts of its own: root, and leave to mount")
    said = capfd.readouterr().err
    assert process.exitcode == (0 if look else 2), said
    assert "Traceback" not in said
    assert look or re.search(r"make_x: (the shared memory \(/dev/shm\) is full|a process that loads images was)", said)


@pytest.mark.slow
def test_large_images_with_the_shared_memory_of_a_container(toy):
    """Without care for it, two workers hang here for ever."""
    make_all_inputs(toy)
    give_all_one_size(toy, (1200, 1600))
    scales = {"make_cam_pass": True, "cam_scales": (1.0, 0.5, 1.5, 2.0), "cam_out_dir": "result/cam"}
    flags = toy.flags(**NO_STEPS | scales, num_workers=2)
    code, said = in_shared_memory_of("64m", ROOT / "run_sample.py", *flags)
    assert code == 0, said
    assert len([*Path("result/cam").glob("*.npy")]) == 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_training_whose_worker_is_killed_keeps_its_state_and_goes_on(toy):
    flags = {"train_classifier_pass": True, "cam_num_epoches": 40, "redo": ()}
    line = [sys.executable, str(ROOT / "run_sample.py")]
    process = subprocess.Popen(
        [*line, *toy.flags(**NO_STEPS | flags, num_workers=2, state_minutes=0)], stderr=subprocess.PIPE, text=True
    )
    losses = Path("result/metrics/train_classifier.jsonl.part")
    wait_until(lambda: n_lines(losses) >= 5 and saved_step("result", "train_classifier"), process)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "error: train_classifier: a process that loads images was killed or has died" in said
    assert "lower --num_workers" in said
    assert "Traceback" not in said
    done, n_steps = saved_step("result", "train_classifier")
    assert (done >= 4, n_steps) == (True, 120)
    run_sample.run(toy.flags(**NO_STEPS | flags))
    assert f"train_classifier goes on after step {done} " in Path("sample_train_eval.log").read_text()


# Open files


def test_as_many_files_may_be_open_as_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_lost_worker_is_noticed_where_its_item_is_waited_for_and_nowhere_else():
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(sequential_loader(Items(9, killed=3), num_workers=2, device=CPU))
    next(items)
    time.sleep(0.5)  # in which the worker ends
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(InputError, match=r"a process that loads images was killed or has died"), limits_told():
        list(items)


def test_no_more_workers_than_there_is_to_load():
    for wanted, n_items, expected in ((2, 1, 1), (2, 5, 2), (2, 0, 0)):
        loader = sequential_loader(Items(n_items), num_workers=wanted, device=CPU, keep_workers=True)
        assert loader.num_workers == expected
    assert batch_loader(Crops(), batch_size=5, num_workers=2, device=CPU).num_workers == 1
    training = {"batch_size": 2, "n_batches": 7, "seed": (1, 2), "num_workers": 2, "device": CPU}
    assert training_loader(Crops(), 6, **training).num_workers == 1


def process_of(_item):
    return os.getpid()


def test_no_more_processes_than_items():
    assert len({*ordered_map(process_of, [1, 2], workers=50, flag="w")}) <= 2
