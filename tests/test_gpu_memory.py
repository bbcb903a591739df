"""GPU memory that the plan of a run tells: from a table of what was counted, for the networks of the table alone."""

import importlib
from pathlib import Path

import pytest
import torch

import run_sample
from benchmarks import count_memory
from benchmarks.count_memory import AVERAGE_SIZE, COUNTED_WITH, OWN_NETWORKS, STEPS, moments, rows_to_write, steps_of
from misc.run import gpu_memory
from misc.run.config import STEP_MODULES, parse_config
from misc.run.gpu_memory import COLUMNS, RunBatches, counted
from net.build import TIMM_MODULES
from tests.support import NO_STEPS, make_all_inputs

GIB = 2**30


def declared(step):
    return importlib.import_module(STEP_MODULES[step]).STEP


def needed(step, *flags, size=AVERAGE_SIZE):
    return gpu_memory.gpu_memory(declared(step), parse_config(flags), RunBatches(lambda: [size]))


def same(row, other, rel=1e-3):
    return row == pytest.approx(other, rel=rel)


# The table


def test_a_row_of_the_table_is_what_is_counted_now():
    (now,), (kept,) = moments("make_cam", "net.resnet18_cam"), counted()["make_cam", "net.resnet18_cam"]
    assert same(now, kept)


@pytest.mark.slow
def test_the_whole_table_is_what_is_counted_now():
    """If not: `python benchmarks/count_memory.py --write`."""
    rows = rows_to_write()
    kept = [line.split(",") for line in gpu_memory.TABLE.read_text().splitlines()]
    assert tuple(kept[0]) == COLUMNS
    assert [row[:2] for row in rows] == [tuple(row[:2]) for row in kept[1:]]
    for row, other in zip(rows, kept[1:], strict=True):
        assert same([float(n) for n in row[2:] if n], [float(n) for n in other[2:] if n])


def test_writing_the_table_and_reading_it_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(count_memory, "moments", lambda name, network: [(9.0, 2.5), (7.0, 1.0, 3.0)])
    monkeypatch.setattr(count_memory, "TABLE", tmp_path / "t.csv")
    monkeypatch.setattr("sys.argv", ["count_memory.py", "--write"])
    monkeypatch.setattr(gpu_memory, "TABLE", tmp_path / "t.csv")
    count_memory.main()
    counted.cache_clear()
    try:
        assert counted()["make_ins_seg", "net.resnet50_irn"] == [(9.0, 2.5), (7.0, 1.0, 3.0)]
    finally:
        counted.cache_clear()


def test_every_network_of_the_project_and_every_step_that_declares_it_is_in_the_table():
    for flag, networks in OWN_NETWORKS.items():
        modules = {f"net.{path.stem}" for path in Path("net").glob(f"*_{flag.removesuffix('_network')}.py")}
        assert (modules | {getattr(parse_config([]), flag)}) - {*TIMM_MODULES.values()} == {*networks}
    declaring = {step for step in STEP_MODULES if declared(step).on_gpu is not None}
    assert declaring == {step for name in COUNTED_WITH for step in steps_of(name)}
    assert {*counted()} == {
        (step, network) for step in declaring for network in OWN_NETWORKS[declared(step).on_gpu.network]
    }


# What it tells


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train_classifier", ["--cam_batch_size", "6", "--cam_crop_size", "320"]),
        ("train_cam", ["--cam_batch_size", "7", "--ood_batch_size", "12", "--cam_crop_size", "320"]),
        ("train_cam", ["--cam_batch_size", "12", "--ood_batch_size", "3", "--cam_crop_size", "384"]),
        ("train_cam", ["--ood_coeff", "0"]),
        ("make_cam", ["--make_cam_batch_size", "1", "--cam_scales", "1.0", "0.5"]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("make_advcam", ["--advcam_batch_size", "1"]),
                ("train_irn", ["--irn_batch_size", "6", "--irn_crop_size", "320"]),
                ("make_sem_seg, make_ins_seg: IRN", ["--irn_infer_batch_size", "1"]),
                ("train_deeplab", ["--deeplab_batch_size", "7", "--deeplab_crop_size", "257"]),
            ]
        ),
    ],
)
def test_other_batches_and_crops_come_out_as_they_are_counted(name, flags):
    with torch.device("meta"):
        peak = STEPS[name](parse_config(flags))
    for step in steps_of(name):
        assert needed(step, *flags) == pytest.approx(peak, rel=0.03)


def test_what_is_not_in_the_table_is_not_told():
    assert needed("train_cam", "--cam_network", "tests.own_network") is None
    assert needed("train_cam", "--cam_network", "net.timm_cam", "--backbone", "resnet50") is None
    assert needed("train_cam", "--precision", "bf16") is None
    assert needed("eval_deeplab") is None


def test_large_images_take_several_places_of_a_batch():
    batches = RunBatches(lambda: [(512, 512), (1024, 512), (3, 4)])
    assert batches.photographs(9) == 9 * 512 * 512
    assert batches.photographs(1) == 1024 * 512


def test_processes_share_the_batch_of_a_training_and_have_one_each_of_photographs(monkeypatch):
    monkeypatch.setattr(gpu_memory, "n_processes", lambda: 3)
    batches = RunBatches(lambda: [(10, 10)])
    assert batches.crops(16, 10) == 6 * 10 * 10
    assert batches.photographs(4) == 4 * 10 * 10


# In the plan


@pytest.fixture
def plan(toy, monkeypatch, caplog):
    """What a plan says, with a GPU that has so many GiB free."""
    make_all_inputs(toy)

    def say(*steps, free, **flags):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GIB), 80 * GIB))
        on = {f"{step}_pass": True for step in steps}
        config = parse_config(toy.flags(**{**NO_STEPS, **on, "device": "cuda", "redo": (), **flags}))
        monkeypatch.setattr(run_sample, "check_chain", lambda config, planned: modules)
        modules = [importlib.import_module(STEP_MODULES[step]) for step in steps]
        caplog.set_level("INFO")
        caplog.clear()
        run_sample.plan_chains([("", config)])
        return [message for message in caplog.messages if message.startswith("the plan") or " needs about " in message]

    return say


NETWORKS = {"cam_network": "net.resnet50_cam", "irn_network": "net.resnet50_irn"}
BATCH = {"cam_batch_size": 16, "ood_batch_size": 16, "cam_crop_size": 512}


def test_the_plan_has_a_column_of_gpu_memory_and_tells_nothing_where_it_suffices(plan):
    (said,) = plan("train_cam", "eval_cam", free=5, **NETWORKS, **BATCH)
    heading, train, evaluation, disk = said.splitlines()[1:]
    assert heading.endswith("  GPU memory")
    assert train.endswith("  4.2 GiB")
    assert "GiB" not in evaluation + disk


def test_steps_for_which_it_does_not_suffice_are_told_with_their_flags(plan):
    _, notice = plan("train_cam", "make_cam", free=4, **NETWORKS, **BATCH)
    assert notice == (
        "notice: train_cam needs about 4.2 GiB of GPU memory, and 4.0 GiB are free; lower --cam_batch_size, "
        "--ood_batch_size, --cam_crop_size or --ood_long_side, or free some of it"
    )


@pytest.mark.parametrize("flags", [{"device": "cpu"}, {"cam_network": "tests.own_network"}])
def test_there_is_no_such_column_without_a_gpu_or_for_other_networks(plan, flags):
    (said,) = plan("train_cam", free=0, **{**NETWORKS, **BATCH, **flags})
    assert "GPU" not in said
    assert "GiB" not in said


def test_a_batch_that_depends_on_the_free_memory_is_that_of_the_run(plan):
    few, many = (plan("make_advcam", free=free, **NETWORKS)[0].splitlines()[2] for free in (3, 70))
    assert few != many
    assert "GiB" in few
