"""The benchmark's plain ways compute what the steps compute, which makes the comparison fair; its table and flags."""

import dataclasses
import importlib
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import bench_steps, compare_cams, measure, plain, workloads
from benchmarks.bench_steps import STEPS
from benchmarks.measure import BenchmarkError, UpdateClock, Way, Worker, difference, flop_counter, run_once, warm_up
from benchmarks.table import Conditions, Cost, Report, Row, detail_table, load, page, require_same, save, summary_table
from benchmarks.workloads import CPU_SIZES, Inputs
from misc.errors import InputError
from misc.files import camfile
from misc.run.config import Config
from misc.run.device import set_seed
from misc.run.parallel import ordered_map, usable_cores
from net.resnet50_irn import AffinityDisplacementLoss
from net.weights import load_weights

CPU = torch.device("cpu")
SMALL = ((36, 50), (48, 32))
TINY = dataclasses.replace(
    CPU_SIZES,
    cam=SMALL,
    advcam=SMALL[:1],
    adv_iter=2,
    evaluated=SMALL,
    refined=SMALL,
    plain_refined=1,
    segmented=SMALL[:1],
    crf=SMALL,
    timed_updates=1,
    crop=64,
    irn_crop=96,
    deeplab_crop=65,
)


@pytest.mark.parametrize("path", sorted(Path(measure.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_finds_what_it_uses(path):
    importlib.import_module(f"benchmarks.{path.stem}")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "resnet50"


@pytest.fixture
def data(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(workloads, "BATCHES_AHEAD", 0)  # trainings of three updates are enough to compare
    return Inputs(tmp_path / "data", weights, "cpu")


def results(workload):
    """What both ways compute; every array of the plain way is compared."""
    found = []
    for way in (workload.ours(), workload.plain()):
        way.call()
        found.append(way.result())
    ours, other = found
    assert other
    assert ours.keys() >= other.keys()
    return ours, other


# Both ways agree


def test_random_walks_agree(data):
    ours, other = results(workloads.random_walk(data, (50, 62), 2))
    assert other["walked"].shape == (2, 13, 16)
    assert difference(ours, other) < 1e-4


def test_masks_agree(data):
    """The plain way gets fewer images than ours."""
    ours, other = results(workloads.sem_seg(data, SMALL[0], 2, 1))
    assert len(ours) == 2 * len(other)
    masks = {path.removeprefix("sem_seg_out_dir/"): mask for path, mask in other.items()}
    assert masks.keys() == {"2099_000001.png", "palette/2099_000001.png"}
    assert len(np.unique(masks["2099_000001.png"])) > 1
    assert difference(ours, other) < 1e-3


@pytest.mark.parametrize("make", [workloads.cams, workloads.advcams, workloads.evaluation])
def test_cams_and_scores_agree(data, make):
    assert difference(*results(make(data, TINY))) < 1e-4


def test_confident_labels_agree(data):
    pytest.importorskip("pydensecrf")
    ours, other = results(workloads.refinement(data, TINY))
    assert len(ours) == 2 * len(other)
    assert all(len(np.unique(label)) > 1 for label in other.values())
    assert difference(ours, other) == 0


@pytest.mark.parametrize("make", [workloads.crf_of_labels, workloads.crf_of_classes])
def test_both_dense_crfs_agree(data, make):
    pytest.importorskip("pydensecrf")
    workload = make(data, TINY)
    assert workload.ours().busy_cores == workload.plain().busy_cores == usable_cores()
    ours, other = results(workload)
    assert len(ours) == len(other) == len(SMALL)
    assert all(len(np.unique(label)) > 1 for label in other.values())
    assert difference(ours, other) == 0


def test_wood_training_agrees(data):
    ours, other = results(workloads.wood_step(data, TINY))
    start = torch.load(data.weights / "cam.pth", weights_only=True)

    def change(trained, name):
        return trained[f"cam_weights_name {name}"] - start[name].numpy()

    for name in ("classifier.weight", "backbone.layer4.2.conv3.weight", "backbone.layer3.0.bn1.bias"):
        assert np.abs(change(other, name)).max() > 0
        assert difference({name: change(ours, name)}, {name: change(other, name)}) < 1e-2
    assert not change(other, "backbone.layer2.0.conv1.weight").any()


def test_deeplab_training_agrees(data):
    ours, other = results(workloads.deeplab_step(data, TINY))
    start = torch.load(data.weights / "deeplab.pth", weights_only=True)

    def change(trained, name):
        return trained[f"deeplab_weights_name {name}"] - start[name].numpy()

    for name in ("aspp.c0.weight", "aspp.c3.bias", "backbone.conv1.weight"):
        assert np.abs(change(other, name)).max() > 0
        assert difference({name: change(ours, name)}, {name: change(other, name)}) < 1e-2
    assert not change(other, "backbone.bn1.bias").any()


def test_segmentations_agree(data):
    pytest.importorskip("pydensecrf")
    ours, other = results(workloads.segmentation(data, TINY))
    assert len(other) == 2
    assert difference(ours, other) < 1e-2


def test_irn_training_agrees(data):
    """Both ways start from the same heads, whose changes are compared."""
    ours, other = results(workloads.irn_step(data, TINY))
    set_seed(Config().seed)
    start = AffinityDisplacementLoss().state_dict()

    def change(trained, name):
        return {name: trained[f"irn_weights_name {name}"] - start[name].numpy()}

    assert len(other) == sum(name.startswith("fc_") for name in start)
    for name in ("fc_edge6.weight", "fc_edge1.0.weight", "fc_dp7.3.weight"):
        assert np.abs(change(other, name)[name]).max() > 0
        assert difference(change(ours, name), change(other, name)) < 1e-2


def test_too_little_shared_memory_is_told_before(data, tmp_path, monkeypatch):
    """Else the system ends the loader's workers by a bus error."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(measure, "SHARED_MEMORY", tmp_path)  # other systems have no /dev/shm
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**16))
    with pytest.raises(BenchmarkError, match="MiB of shared memory"):
        workloads.irn_step(data, TINY)


def test_irn_losses_and_their_gradients_agree(data):
    data.make([])
    model, other = AffinityDisplacementLoss().train(), plain.AffinityNetwork()
    load_weights(model, data.weights / "irn.pth")
    plain.load_state(other, data.weights / "irn.pth")
    images = torch.randn(2, 3, 96, 96)
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 7, 255], (2, 24, 24)).astype(np.uint8))
    loss = model(images, labels)["total"]
    pairs = [plain.pair_labels(label, plain.TRAIN_RADIUS) for label in labels.numpy()]
    plain_loss = plain.irn_loss(*other(images), *map(torch.stack, zip(*pairs, strict=True)))
    torch.testing.assert_close(plain_loss, loss, rtol=1e-5, atol=0)
    loss.backward()
    plain_loss.backward()
    for name in ("fc_edge6.weight", "fc_dp7.3.weight", "fc_dp1.0.weight"):
        given, expected = (dict(m.named_parameters())[name].grad for m in (model, other))
        assert difference({name: given.numpy()}, {name: expected.numpy()}) < 1e-3


def test_the_plain_way_computes_gradients_of_all_weights(data):
    """What the comparison is about: with fewer gradients the plain way would not be the original's."""
    model = plain.Classifier(3)
    images = torch.randn(2, 3, 32, 32)
    loss = plain.wood_loss(
        model,
        images,
        torch.ones(2, 3),
        torch.randn(2, 3, 32, 32),
        torch.randn(5, 2048),
        ood_coeff=0.25,
        distance_lambda=0.007,
        topk=0.2,
        step=0.07,
        ignore_class=2,
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Measuring


def test_updates_are_timed_without_those_at_the_ends():
    def train():
        layer = nn.Linear(4, 3, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(5):
            layer(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    run = run_once(Way(train, dict, untimed_updates=2), CPU, count=True)
    assert run.seconds > 0
    assert run.flops == 2 * (2 * 2 * 4 * 3)  # forward, and backward to the weights
    with pytest.raises(BenchmarkError, match="5 updates are too few"):
        run_once(Way(train, dict, untimed_updates=3), CPU)


def test_the_beginning_of_a_training_warms_up():
    done = []

    def train():
        layer = nn.Linear(4, 3, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for number in range(50):
            layer(torch.ones(2, 4)).sum().backward()
            done.append(number)
            optimizer.step()

    run = warm_up(Way(train, dict, untimed_updates=2), CPU, count=True)
    assert done == [0, 1, 2]
    assert run.seconds > 0
    assert run.flops == 2 * (2 * 2 * 4 * 3)
    whole = warm_up(Way(lambda: done.clear(), dict), CPU, count=False)
    assert whole.seconds > 0
    assert done == []


def test_a_clock_on_a_gpu_waits_for_nothing_between_updates(monkeypatch):
    """Its moments are events in the queue of the GPU, read when all is done."""
    said = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            said.append("event")
            self.milliseconds = 500.0 * len(said)

        def elapsed_time(self, other):
            return other.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: said.append("wait"))
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with UpdateClock(torch.device("cuda")) as clock:
        for _ in range(4):
            optimizer.step()
    assert said == ["event"] * 4
    assert clock.per_update(1, 3) == (0.5, 0)
    assert said[4:] == ["wait"]
    with pytest.raises(BenchmarkError, match="too few"):
        clock.per_update(2, 2)


def test_batches_made_before_the_clock_starts_are_not_timed():
    """A loader's workers hold two batches each when the training begins."""
    untimed = workloads.untimed_updates()
    assert untimed >= 2 * Config().num_workers
    assert CPU_SIZES.updates() - 2 * untimed == CPU_SIZES.timed_updates >= 5


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_product_counts_its_entries():
    sparse, dense = torch.eye(10).to_sparse_csr(), torch.ones(10, 3)
    for matrix, flops in ((sparse, 2 * 10 * 3), (torch.eye(10), 2 * 100 * 3)):
        with flop_counter() as counter:
            matrix @ dense
            torch.addmm(dense, matrix, dense)
        assert counter.get_total_flops() == 2 * flops


def test_gradients_of_the_input_are_counted():
    layer, pixels = (
        nn.Sequential(nn.Linear(4, 3, bias=False)).requires_grad_(False),
        torch.ones(2, 4, requires_grad=True),
    )
    with flop_counter() as counter:
        torch.autograd.grad(layer(pixels).sum(), pixels)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 3)


def test_differences():
    one = {"map": np.array([1.0, -2.0]), "label": np.array([0, 1, 1, 3])}
    assert difference(one, one) == 0
    assert difference(one, {"map": np.array([1.0, -4.0])}) == 0.5
    assert difference(one, {"label": np.array([0, 1, 2, 3])}) == 0.25
    assert difference(one, {"other": np.zeros(1)}) is None
    with pytest.raises(BenchmarkError, match="shape"):
        difference(one, {"map": np.zeros(3)})


def _way_that_fails_at_the_third_call(error):
    held = []

    def call():
        if len(held) == 2:
            raise error("no such thing")
        held.append(np.ones(2**25))

    return Way(call, lambda: {"sum": held[0].sum()[None]})


@pytest.mark.parametrize("error", [ValueError, EOFError])
def test_a_worker_measures_and_tells_what_failed(tmp_path, error):
    way = partial(_way_that_fails_at_the_third_call, error)
    with Worker(way, device=CPU, log=tmp_path / "log") as worker:
        first = worker.warm_up(count=True)
        assert first.host_mib > 256
        assert first.gpu_mib is None
        assert worker.run().seconds > 0
        assert worker.result() == {"sum": [2**25]}
        with pytest.raises(BenchmarkError, match=f"{error.__name__}: no such thing"):
            worker.run()
    assert "Traceback" in (tmp_path / "log").read_text()


# The table and the flags


def row(ours=1.0, plain=2.0, host_mib=700.0, gpu_mib=None, **changed):
    def cost(seconds):
        return Cost(seconds, (0.9 * seconds, 1.1 * seconds), host_mib, gpu_mib)

    values = {"images_per_second": 1.0, "floor": 0.5, "difference": 1e-5, "date": "2020-01-01"}
    return Row("2 images", cost(ours), plain and cost(plain), **{**values, **changed})


def report(measured, **changed):
    on = Conditions("cpu", "one machine", "fp32", 5, "2020-01-02", 1e11, 1e10)
    return Report(dataclasses.replace(on, **changed), measured)


def test_extrapolation_adds_the_products_alone():
    """Of a time with parts in n^3, n^2 and 1, no more than the first grows, and at no less than the given rate."""

    def seconds(cells, rate=1e11):
        return 5 + 1e-7 * cells**2 + 8 * 2 * cells**3 / rate

    def extrapolated(rate):
        return bench_steps.extrapolate_walk(seconds(2000), cells=2000, at=8000, matrix_rate=rate)

    products = 8 * 2 * (8000**3 - 2000**3)
    assert extrapolated(1e11) == pytest.approx(seconds(2000) + products / 1e11)
    assert extrapolated(2e11) < extrapolated(1e11) < seconds(8000)


def test_targets():
    make_cam, walk, large = (STEPS[name] for name in ("make_cam", "random_walk", "random_walk_large"))
    assert make_cam.outcome([row(plain=1.3)], "cpu") == ("1.30 x", "met")
    assert make_cam.outcome([row(plain=1.1)], "cpu") == ("1.10 x", "not met")
    assert make_cam.outcome([row(plain=1.3)], "cuda") == ("1.30 x", "not met")
    labels = STEPS["cam_to_ir_label"]
    assert labels.target_text("cuda") == "CPU work, no core idle: >= 1.7 x"
    assert labels.outcome([row()], "cuda") == ("2.00 x", "met")
    assert STEPS["train_deeplab"].outcome([row()], "cuda") == ("2.00 x", "-")
    extrapolated = walk.outcome([row(), row(plain=1600.0, extrapolated=True)], "cpu")
    assert extrapolated == ("1,600 x (extrapolated)", "met (extrapolated)")
    small = row(plain=None, pixels=100)

    def judged(seconds, device="cpu", **memory):
        return large.outcome([small, row(ours=seconds, plain=None, pixels=1600, **memory)], device)[1]

    assert judged(16.0) == "met"
    assert judged(30.0) == "not met"
    assert judged(16.0, host_mib=5000.0) == "not met"
    assert judged(16.0, "cuda", host_mib=5000.0, gpu_mib=1000.0) == "met"
    assert judged(16.0, "cuda", gpu_mib=3000.0) == "not met"


def test_tables_render():
    measured = {"make_cam": [row()], "train_irn": "failed: out of memory"}
    measured["random_walk_large"] = [row(plain=None, difference=None, pixels=100)] * 2
    summary, details = summary_table(STEPS, {"cpu": report(measured)}), detail_table(STEPS, measured)
    for table in (summary, details):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    lines = {line.split(" | ")[0].strip("| "): line for line in summary.splitlines()}
    assert lines["make_cam"] == "| make_cam | >= 1.2 x | 2.00 x | met | >= 4 x | not measured |  |"
    assert "failed: out of memory" in lines["train_irn, data to update"]
    assert lines["eval_cam over 7 thresholds"].count("not measured") == 2
    assert details.count("make_cam, per image") == 1
    assert "| 1.00 (0.900 - 1.10) | 2.00 (1.80 - 2.20) | 2.00 |" in details
    assert "| 0.5 (50%) |" in details
    assert details.count("| 2020-01-01 |") == 3
    assert "train_irn" not in details
    assert "nan" not in details


def test_memory_of_the_gpu_is_shown_where_it_is_used():
    for gpu_mib, cell in ((None, "| 700 |"), (0.0, "| 700 |"), (300.0, "| 700, GPU 300 |")):
        assert cell in detail_table(STEPS, {"eval_cam": [row(gpu_mib=gpu_mib, plain=None)]})


def test_a_page_has_both_devices_and_reasons_for_what_is_missed(tmp_path):
    save(tmp_path / "gpu.json", report({"make_cam": [row(plain=9.0)]}, device="cuda", machine="a GPU"))
    gpu = load(tmp_path / "gpu.json")
    missed, met = row(plain=10.0), row(plain=2000.0)
    text = page(STEPS, report({"random_walk": [missed]}), gpu)
    assert "* CPU: one machine; fp32." in text
    assert "* GPU: a GPU; fp32." in text
    assert "| make_cam | >= 1.2 x | not measured |  | >= 4 x | 9.00 x | met |" in text
    assert STEPS["random_walk"].note in text
    assert STEPS["random_walk"].note not in page(STEPS, report({"random_walk": [met]}), gpu)


def test_the_page_names_the_machine_and_what_was_measured(tmp_path, monkeypatch):
    """A whole run, of the step that needs no network, on small images."""
    monkeypatch.setattr(bench_steps, "CPU_SIZES", TINY)
    output = tmp_path / "page.md"
    flags = ["--device", "cpu", "--steps", "eval_cam", "--repeats", "1", "--output", str(output), "--add"]
    assert bench_steps.run(bench_steps.parse(flags))
    text = output.read_text()
    assert f"torch {torch.__version__}" in text
    assert "2 images of 50 x 36, 32 x 48" in text
    assert "eval_cam, per image" in text


def test_steps_that_were_measured_can_be_left_out():
    earlier = report({"make_cam": [row()], "train_irn": "failed: out of memory"})
    asked = ["--steps", "make_cam", "train_irn", "train_cam"]
    for flags, expected in ((["--missing"], ["train_cam", "train_irn"]), ([], ["train_cam", "train_irn", "make_cam"])):
        assert bench_steps.to_measure(bench_steps.parse([*asked, *flags]), earlier) == expected


def test_rows_of_an_earlier_run_are_kept(tmp_path):
    path = tmp_path / "page.json"
    measured = {"make_cam": [row(), row(plain=None)], "train_irn": "failed: out of memory"}
    assert load(path) is None
    save(path, report(measured))
    assert load(path) == report(measured)
    save(path, report({"make_cam": [row(difference=float("nan"))]}))  # JSON has no such number
    assert load(path).measured == {"make_cam": [row(difference=None)]}
    now = report({}).conditions
    require_same(now, dataclasses.replace(now, date="2020-01-03", matrix_rate=2e11), path)
    with pytest.raises(InputError, match="machine"):
        require_same(now, dataclasses.replace(now, machine="another"), path)
    path.write_text("{}")
    with pytest.raises(InputError, match="no report"):
        load(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "make_cams"], "make_cams"),
        (["--steps"], "--steps"),
        (["--device", "tpu"], "--device"),
        (["--repeats", "0"], "at least 1"),
        (["--repeats", "many"], "--repeats"),
        (["--precision", "fp8"], "--precision"),
    ],
)
def test_bad_flags_are_answered(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_steps.parse(flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_gpu_and_a_bad_folder_are_answered(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, message in (
        (["--device", "cuda"], "finds no GPU"),
        (["--device", "cpu", "--output", str(tmp_path / "file" / "page.md")], "--output"),
    ):
        monkeypatch.setattr("sys.argv", ["bench_steps.py", *flags])
        assert bench_steps.main() == 2
        assert message in capsys.readouterr().err


# Agreement of CAMs


def test_labels_that_agree_are_counted(tmp_path):
    maps = torch.tensor([[[0.9, 0.2, 0.05, 0.5]]])
    others = torch.tensor([[[0.8, 0.1, 0.15, 0.5]]])
    for name in ("a", "b"):
        camfile.save(tmp_path / f"one/{name}.npy", [3], maps, maps)
        camfile.save(tmp_path / f"two/{name}.npy", [3], others, others)
    found = compare_cams.agreement(tmp_path / "one", tmp_path / "two", (0.3, 0.12))
    assert found == {0.3: 1, 0.12: 0.5}
    camfile.save(tmp_path / "two/a.npy", [4], others, others)
    with pytest.raises(InputError, match=r"a.npy differ in size or classes"):
        compare_cams.agreement(tmp_path / "one", tmp_path / "two", (0.3,))
    with pytest.raises(InputError, match="don't hold CAM files of the same images, or hold none"):
        compare_cams.agreement(tmp_path, tmp_path, (0.3,))


def test_the_time_of_the_cpu_counts_workers_and_no_waiting():
    def worked(seconds, workers):
        way = Way(lambda: list(ordered_map(keep_busy, [seconds] * 2, workers=workers, flag="x")), dict, busy_cores=2)
        return run_once(way, CPU).seconds

    for workers in (0, 2):
        # Starting processes takes time of its own, more where this one is large; the difference is of the work alone
        few, more = (min(worked(seconds, workers) for _ in range(2)) for seconds in (0.1, 0.4))
        assert few >= 0.09
        assert 0.15 < more - few < 0.45
    waiting = Way(lambda: time.sleep(0.6), dict, busy_cores=1)
    assert run_once(waiting, CPU).seconds < 0.3


def keep_busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
