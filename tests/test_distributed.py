"""A run in several processes, as torchrun starts them, gives what one process gives."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ALL_STEPS, NO_STEPS, RATES_THAT_SHOW, make_toy_data
from torch import distributed as dist

import run_sample
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.images import label_path, read_label, write_label
from misc.run.device import resolve_device
from misc.run.distributed import sum_over_processes, sums_by_nccl
from misc.run.parallel import SHARE_GPUS, usable_cores
from misc.run.provenance import RECORD
from misc.run.training_state import TrainingState
from net.weights import read_checkpoint, save_weights
from tests.own_network import Net
from tests.test_stopping import wait_until_none_is_alive
from voc12.images import require_batch

ROOT = Path(run_sample.__file__).parent
ROUNDING = 1e-5


def torchrun(*command, n, cwd):
    """Run a Python script in `n` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    line = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def run_in_processes(toy, n, **flags):
    return torchrun(ROOT / "run_sample.py", *toy.flags(**NO_STEPS | flags), n=n, cwd=toy.work)


def assert_equal_weights(given, expected):
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (given[name] - tensor).abs().max() <= ROUNDING * tensor.abs().max(), name


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """Working directories of the whole chain in one process and in two, of which a batch of three is no multiple.

    The toy data's network is smooth. In one with max-pooling, equal values in the padding of a crop are told apart by
    rounding, differently on each processor, and after two steps of W-OoD the weights differ in their second digit.
    """
    flags = {
        **ALL_STEPS,
        "make_advcam_pass": True,
        "adv_iter": 2,
        "cam_batch_size": 3,
        "ood_batch_size": 3,
        "irn_batch_size": 3,
        "deeplab_batch_size": 3,
        "cam_num_epoches": 2,
        "cam_select_interval": 1,
        **RATES_THAT_SHOW,
    }
    one, two = (make_toy_data(tmp_path_factory.mktemp(name)) for name in ("one", "two"))

    def flags_of(toy):  # of the validation list, too, each process has a batch
        return flags | {"val_list": toy.root / "ImageSets/Segmentation/train.txt"}

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one.work)
        run_sample.run(one.flags(**flags_of(one)))
    done = run_in_processes(two, 2, **flags_of(two))
    assert done.returncode == 0, done.stderr
    return one, two


@pytest.mark.parametrize("name", ["res50_cam_orig", "res50_cam_ood", "res50_irn_ood", "deeplab_v2_ood"])
def test_trainings_end_with_equal_weights(one_and_two, name):
    one, two = (read_checkpoint(toy.work / "sess" / f"{name}.pth") for toy in one_and_two)
    assert_equal_weights(two, one)


@pytest.mark.parametrize("name", ["train_classifier", "train_cam", "train_irn", "train_deeplab"])
def test_losses_are_those_of_the_whole_batch(one_and_two, name):
    def lines(toy):
        return [json.loads(line) for line in (toy.work / f"result/metrics/{name}.jsonl").read_text().splitlines()]

    expected, given = map(lines, one_and_two)
    assert len(expected) == len(given) > 0
    for line, of_two in zip(expected, given, strict=True):
        for values in (line, of_two):
            del values["images_per_second"]
        assert of_two == pytest.approx(line, rel=1e-4, abs=1e-6)


def test_maps_masks_and_scores_are_equal(one_and_two):
    one, two = one_and_two
    compared = set()
    for path in sorted(one.work.rglob("*.*")):
        other = two.work / path.relative_to(one.work)
        folder = path.parent.name
        if path.name == RECORD:
            continue
        if path.suffix == ".png":
            assert np.mean(read_label(path) == read_label(other)) >= 0.999, other
        elif folder.startswith("cam_ood") and path.suffix == ".npy":
            (keys, cam, high_res), (other_keys, *others) = camfile.load(path), camfile.load(other)
            assert np.array_equal(keys, other_keys)
            for array, of_two in zip((cam, high_res), others, strict=True):
                np.testing.assert_allclose(of_two, array, atol=ROUNDING)
        elif folder == "ins_seg_ood":
            found, of_two = (instancefile.load(file, 3) for file in (path, other))
            assert np.array_equal(found.masks, of_two.masks)
        elif folder == "scores":
            scores, of_two = (json.loads(file.read_text()) for file in (path, other))
            if "miou" in scores:
                assert of_two["miou"] == pytest.approx(scores["miou"], abs=1e-3)
        else:
            continue
        compared.add(folder)
    masks = {"ir_label", "sem_seg_ood", "palette", "ins_seg_ood", "deeplab", "deeplab_crf"}
    assert compared == {"cam_ood", "cam_ood_advcam", *masks, "scores"}


def test_the_first_process_keeps_the_record(one_and_two):
    _, two = one_and_two
    (path,) = (two.work / "result/runs").iterdir()
    record = json.loads(path.read_text())
    assert record["processes"] == 2
    assert [entry["step"] for entry in record["done"]] == record["steps"]
    log = (two.work / "sample_train_eval.log").read_text()
    assert log.count("wrote sess/res50_cam_ood.pth") == 1
    assert not list(two.work.rglob("*.part*"))


COLLECTIVES = textwrap.dedent("""
    import torch
    from misc.run import distributed
    from misc.errors import InputError
    from misc.ood import adversarial_step
    from tests.own_network import Net

    with distributed.process_group(lambda: torch.device("cpu")):
        rank = distributed.rank()
        assert distributed.n_processes() == 3
        items = list(range(7))
        rows = torch.tensor(distributed.share(items)).float()[:, None] * torch.ones(2)
        assert distributed.gather_shares(rows)[:, 1].tolist() == items
        assert distributed.gather_shares(torch.ones(int(rank == 0), 4)).shape == (1, 4), "two shares are empty"

        values = rows[:, 0].clone().requires_grad_()
        mean = distributed.mean_over_processes(values)
        assert mean == 3, "processes with more values count more"
        mean.backward()
        assert torch.allclose(values.grad, torch.full_like(values, 1 / 7))

        assert distributed.max_over_processes(torch.tensor([rank, -rank])).tolist() == [2, 0]

        torch.manual_seed(0)
        network = Net(n_classes=3)
        images = torch.randn(7, 3, 32, 32) * torch.linspace(0.5, 2, 7).view(7, 1, 1, 1)  # extremes in one share alone
        expected = adversarial_step(network, images, step=0.07)
        given = adversarial_step(network, distributed.share(images), step=0.07)
        assert torch.allclose(given, distributed.share(expected), atol=1e-6)

        distributed.require_equal("the same", name="a training")
        try:
            distributed.require_equal(f"that of {rank}", name="a training")
        except InputError as error:
            assert "a training: the processes see different files" in str(error)
        else:
            raise AssertionError("not noticed")
        called = []
        distributed.on_first_process(called.append, rank)
        assert called == ([0] if rank == 0 else [])
""")


def test_sums_and_shares_of_three_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "collectives.py").write_text(COLLECTIVES)
    done = torchrun("collectives.py", n=3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_gradients_are_summed_while_the_backward_pass_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    done = torchrun(ROOT / "tests/summed_gradients.py", n=3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_training_is_resumed_by_another_number_of_processes(toy, monkeypatch):
    torch.manual_seed(1)
    save_weights(Net(n_classes=3), "sess/res50_cam_orig.pth")
    flags = {"train_cam_pass": True, "cam_num_epoches": 2, "state_minutes": 0}
    run_sample.run(toy.flags(**NO_STEPS | flags | {"cam_weights_name": "sess/expected.pth"}))

    def save_or_stop(state, done):
        if done == 4:
            raise KeyboardInterrupt
        state.save(done)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save_if_due", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run_sample.run(toy.flags(**NO_STEPS | flags))
    done = run_in_processes(toy, 2, **flags)
    assert done.returncode == 0, done.stderr
    assert "train_cam goes on after step 3 of an interrupted run" in done.stdout
    assert_equal_weights(read_checkpoint("sess/res50_cam_ood.pth"), read_checkpoint("sess/expected.pth"))


STOPPED = """
import os, signal, sys
import torch
import run_sample
from misc.run import training

def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

where, how, rank, at, *flags = sys.argv[1:]
owner = {"_backward": training, "step": torch.optim.SGD}[where]
work, calls = getattr(owner, where), []

def stopped(*args, **kwargs):
    calls.append(1)
    if os.environ["RANK"] == rank and len(calls) == int(at):
        globals()[how]()
    return work(*args, **kwargs)

setattr(owner, where, stopped)
sys.argv[1:] = flags
run_sample.leave(run_sample.main())
"""


@pytest.mark.parametrize(
    ("where", "how", "rank", "done"),
    [
        ("_backward", "out_of_memory", 1, 3),
        pytest.param("_backward", "out_of_memory", 0, 3, marks=pytest.mark.slow),
        pytest.param("_backward", "killed", 1, 3, marks=pytest.mark.slow),
        pytest.param("step", "out_of_memory", 1, 4, marks=pytest.mark.slow),  # when the sums of step 4 are there
    ],
)
def test_the_state_is_saved_whichever_process_stops(toy, monkeypatch, where, how, rank, done):
    torch.manual_seed(1)
    save_weights(Net(n_classes=3), "sess/res50_cam_orig.pth")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    flags = {"train_cam_pass": True, "cam_num_epoches": 2, "state_minutes": 60, **RATES_THAT_SHOW}
    run_sample.run(toy.flags(**NO_STEPS | flags | {"cam_weights_name": "sess/expected.pth"}))
    Path("stopped.py").write_text(STOPPED)
    stopped = torchrun("stopped.py", where, how, rank, 4, *toy.flags(**NO_STEPS | flags), n=2, cwd=toy.work)
    assert stopped.returncode != 0
    if how == "out_of_memory":
        assert "error: train_cam: the GPU's memory does not suffice" in stopped.stderr + stopped.stdout
    assert torch.load("result/state/train_cam.pth", weights_only=True)["step"] == done
    run_sample.run(toy.flags(**NO_STEPS | flags))
    assert f"train_cam goes on after step {done} of an interrupted run" in Path("sample_train_eval.log").read_text()
    assert_equal_weights(read_checkpoint("sess/res50_cam_ood.pth"), read_checkpoint("sess/expected.pth"))


def test_nccl_is_not_trusted_to_have_summed_when_it_returns(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert not sums_by_nccl(cpu)
    assert sums_by_nccl(cuda)
    monkeypatch.setenv(SHARE_GPUS, "1")
    assert not sums_by_nccl(cuda)  # which refuses two processes on one GPU


def test_a_connection_that_fails_is_told_and_a_memory_that_does_not_suffice_is_its_own(monkeypatch, capsys, caplog):
    """As where NCCL can't begin: then every process has lost the others, and one has to say why."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("misc.run.distributed.n_processes", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", fail)
    monkeypatch.setattr(run_sample, "run", lambda _: sum_over_processes(torch.ones(1)))
    error = RuntimeError("NCCL error: unhandled system error")
    assert run_sample.main() == run_sample.EXIT_LOST
    said = capsys.readouterr().err + caplog.text  # which of the two depends on the tests before this one
    assert "the other processes can't be reached (NCCL error: unhandled system error); if one of them has" in said
    error = RuntimeError("NCCL error in: NCCLUtils.hpp:268, " + 200 * "x" + "\nLast error:\nDuplicate GPU detected\n")
    assert run_sample.main() == run_sample.EXIT_LOST
    assert "can't be reached (Duplicate GPU detected); if" in capsys.readouterr().err + caplog.text
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        sum_over_processes(torch.ones(1))


READ_LAST = """
import gc, os, sys, time
from pathlib import Path
import run_sample
from misc.files import camfile

damaged, last_of_the_other, *flags = sys.argv[1:]
load = camfile.load_high_res

def load_last(path, *args, **kwargs):
    end = time.monotonic() + 300
    while str(path) == damaged and not Path(last_of_the_other).is_file():
        assert time.monotonic() < end, "the other process does not finish"
        time.sleep(0.01)
    return load(path, *args, **kwargs)

camfile.load_high_res = load_last
if os.environ["RANK"] == "1":  # if the others saw its end before it has said why, torchrun would tell it to end, too
    gc.collect = lambda: time.sleep(2)
sys.argv[1:] = flags
run_sample.leave(run_sample.main())
"""


def test_bad_input_of_one_process_stops_all_and_keeps_what_is_done(toy, monkeypatch):
    """The one meets it when the other has written its last label: else chance would tell how much is done by then."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for image_id in toy.ids[:6]:
        mask = read_label(toy.root / "SegmentationClass" / f"{image_id}.png")
        maps = np.zeros((1, *mask.shape), dtype=np.float32)
        camfile.save(camfile.cam_path("result/cam_ood", image_id), np.array([0]), maps[:, ::4, ::4], maps)
    write_label("result/cam_ood/damaged.png", np.zeros((1, 1), dtype=np.uint8))
    damaged = camfile.cam_path("result/cam_ood", toy.ids[1])
    Path("result/cam_ood/damaged.png").rename(damaged)
    Path("read_last.py").write_text(READ_LAST)
    last = label_path("result/ir_label", toy.ids[4])
    flags = toy.flags(**NO_STEPS | {"cam_to_ir_label_pass": True})
    done = torchrun("read_last.py", damaged, last, *flags, n=2, cwd=toy.work)
    assert done.returncode != 0
    assert f"process 1: error: CAM file {damaged} can't be read" in done.stderr
    assert 'run_sample.py", line' not in done.stderr, "no traceback of ours"
    assert sorted(path.stem for path in Path("result/ir_label").glob("*.png")) == toy.ids[0:6:2]


SAY_LATE = """
import time
import run_sample
say = run_sample._say_error
run_sample._say_error = lambda sentence, **how: (time.sleep(3), say(sentence, **how))
run_sample.leave(run_sample.main())
"""


def test_a_batch_needs_an_image_for_each_process(toy, monkeypatch):
    """The process that finds bad input says so however late: the others wait, since their end would be its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    Path("say_late.py").write_text(SAY_LATE)
    flags = {"train_deeplab_pass": True, "deeplab_mask_dir": toy.root / "SegmentationClass"}
    done = torchrun("say_late.py", *toy.flags(**NO_STEPS | flags), n=3, cwd=toy.work)
    assert done.returncode != 0
    assert done.stderr.count("error: --deeplab_batch_size 2 is less than the 3 processes") == 1
    require_batch([0, 1], 2, list_flag="train_list", batch_flag="deeplab_batch_size")


def started(script, *flags, **environment):
    """One process, as if it had been started by something else than torchrun."""
    settings = {**os.environ, **environment}
    line = [sys.executable, str(script), *flags]
    return subprocess.run(line, env=settings, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; expected a number from 1 on"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment; expected"),
        ({"WORLD_SIZE": "2"}, "the 2 processes of WORLD_SIZE can't meet (Error initializing torch.distributed using"),
        (
            {"WORLD_SIZE": "2", "RANK": "5"},
            "RANK is 5 in the environment; expected a number below WORLD_SIZE, which is 2",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
            "the 2 processes of WORLD_SIZE can't meet (",
        ),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0' in the environment; expected a number from 1 on"),
    ],
)
def test_an_environment_by_which_processes_can_not_meet_is_told(toy, environment, said):
    make_cam = toy.flags(**NO_STEPS | {"make_cam_pass": True})
    done = started(ROOT / "run_sample.py", *make_cam, **environment)
    assert done.returncode == run_sample.EXIT_BAD_INPUT, done.stderr
    assert f"error: {said}" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_of_one_is_told_though_torchrun_tells_all_to_end(monkeypatch, caplog):
    """As it does when another process has ended, for which this one was missing."""

    def fail(_):
        raise InputError("CAM file x.npy can't be read; make it again.")

    monkeypatch.setattr(run_sample, "run", fail)
    monkeypatch.setattr(run_sample, "is_told", lambda **_: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_sample.main() == run_sample.EXIT_BAD_INPUT
    assert "error: CAM file x.npy can't be read" in caplog.text


def test_processes_that_nobody_joins_do_not_wait_for_days(toy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    flags = toy.flags(**NO_STEPS | {"make_cam_pass": True})
    Path("alone.py").write_text(ALONE)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    start = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = started("alone.py", *flags, **start)
    assert done.returncode == run_sample.EXIT_BAD_INPUT, done.stderr
    assert "error: the 2 processes of WORLD_SIZE can't meet (" in done.stderr


def test_a_process_that_never_comes_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "late.py").write_text(LATE)
    done = torchrun("late.py", n=2, cwd=tmp_path)
    assert done.returncode != 0
    assert "FoundByOne: the 2 processes of WORLD_SIZE can't meet (" in done.stderr


def test_processes_that_can_not_connect_name_the_network_interface(tmp_path, monkeypatch):
    """Those that could end as well, although they only wait for the one that could not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    torchrun("elsewhere.py", n=2, cwd=tmp_path)
    said = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    for sentence in said:
        assert sentence.startswith("the 2 processes have met and can't connect to each other (")
        assert "name in GLOO_SOCKET_IFNAME on each machine the network interface" in sentence


def test_whichever_process_can_not_connect_says_so(toy, monkeypatch):
    """Not only the first one of a machine, which may still be waiting when torchrun ends it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    Path("no_interface.py").write_text(NO_INTERFACE)
    done = torchrun("no_interface.py", *toy.flags(**NO_STEPS | {"make_cam_pass": True}), n=2, cwd=toy.work)
    assert done.returncode != 0
    assert "error: the 2 processes have met and can't connect to each other (" in done.stderr


LATE = """
import os, time
from datetime import timedelta
import torch
from misc.run import distributed

distributed.PATIENCE_TO_MEET = timedelta(seconds=2)
if os.environ["RANK"] == "1":
    time.sleep(20)
with distributed.process_group(lambda: torch.device("cpu")):
    pass
"""

ELSEWHERE = """
import os, time
from datetime import timedelta
from pathlib import Path
import torch
from misc.errors import InputError
from misc.run import distributed

distributed.PATIENCE_TO_CONNECT = timedelta(seconds=3)
if os.environ["RANK"] == "1":
    os.environ["GLOO_SOCKET_IFNAME"] = "none_such"
try:
    with distributed.process_group(lambda: torch.device("cpu")):
        pass
except InputError as error:
    Path(f"rank{os.environ['RANK']}").write_text(str(error))
    time.sleep(15)  # torchrun ends all when one has ended
"""

NO_INTERFACE = """
import os
import run_sample

if os.environ["RANK"] == "1":
    os.environ["GLOO_SOCKET_IFNAME"] = "none_such"
run_sample.leave(run_sample.main())
"""

ALONE = """
from datetime import timedelta
import run_sample
from misc.run import distributed
distributed.PATIENCE_TO_MEET = timedelta(seconds=2)
run_sample.leave(run_sample.main())
"""

WITHOUT_TORCHRUN = """
import os, time
from pathlib import Path
import torch
from misc.run import distributed, parallel

parallel.SECONDS_TO_END = 1
with distributed.process_group(lambda: torch.device("cpu")):
    Path(f"rank{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(300)
"""


def test_processes_end_with_the_torchrun_that_started_them(tmp_path, monkeypatch):
    """Though it was killed, and could not tell them to: else they would write beside the next run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    (tmp_path / "sleep.py").write_text(WITHOUT_TORCHRUN)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sleep.py"]
    launcher = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    places, end = [tmp_path / "rank0", tmp_path / "rank1"], time.monotonic() + 200
    while not all(place.is_file() and place.read_text() for place in places):
        assert time.monotonic() < end, "the processes do not begin"
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    wait_until_none_is_alive([int(place.read_text()) for place in places])


ANOTHER_MACHINE = """
import os, sys
import torch
import run_sample
from misc.errors import InputError
from misc.run import device

def found_here(name):
    if {how!r}.startswith("bad input") and os.environ["RANK"] == "1":
        raise InputError("the second machine has no such place")
    on_gpu = {how!r} == "other devices" and os.environ["RANK"] == "1"
    return torch.device("cuda" if on_gpu else "cpu")

if {how!r} != "bad input on one machine":
    os.environ["LOCAL_RANK"] = "0"  # as if each process had a machine of its own
device.resolve_device = found_here
device.require_code_for = lambda device: None
run_sample.leave(run_sample.main())
"""


@pytest.mark.parametrize(
    ("how", "said", "times"),
    [
        ("bad input", "error: the second machine has no such place", 1),
        ("bad input on one machine", "error: the second machine has no such place", 1),
        ("other devices", "error: --device auto: some of the processes have a GPU and others have none; start", 2),
    ],
)
def test_what_one_machine_alone_finds_is_told_and_ends_all(toy, monkeypatch, how, said, times):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    Path("machine.py").write_text(ANOTHER_MACHINE.format(how=how))
    done = torchrun("machine.py", *toy.flags(**NO_STEPS | {"make_cam_pass": True}), n=2, cwd=toy.work)
    assert done.returncode != 0
    assert 1 <= done.stderr.count(said) <= times, done.stderr  # torchrun may end the second before it has said so, too
    assert 'run_sample.py", line' not in done.stderr, "no traceback of ours"
    assert not Path("sample_train_eval.log").exists()


def test_each_process_has_a_gpu_of_its_own_and_its_part_of_the_cores(monkeypatch):
    all_cores = usable_cores()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    assert usable_cores() == max(1, all_cores // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # which every process finds, not only the third
    with pytest.raises(InputError, match=r"each process needs a GPU, and here are 2; start no more than these"):
        resolve_device("cuda")


def test_processes_share_a_gpu_where_they_are_told_to(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    gpu = torch.device("cuda", 1)
    monkeypatch.setenv(SHARE_GPUS, "1")
    assert resolve_device("cuda") == gpu
