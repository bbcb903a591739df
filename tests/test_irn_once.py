"""IRN sees each image once for masks and instance masks, and images of one padded size run as one batch."""

import shutil
from pathlib import Path

import pytest
import torch
from support import NO_STEPS, make_all_inputs

import run_sample
from misc.files.jsonfile import read_dict
from misc.run.device import UnfilledNetworks
from net import resnet18_irn
from net.irn import EdgeDisplacement
from tests import own_network

BOTH = {"make_sem_seg_pass": True, "make_ins_seg_pass": True}
N_IMAGES = 6
INSTANCE = Path("result/ins_seg_ood/2099_000001.npy")


@pytest.fixture
def passes(toy, monkeypatch):
    """A function that runs steps, and returns how many images IRN has seen then, in each batch."""
    make_all_inputs(toy)
    shutil.rmtree("result/sem_seg_ood")
    shutil.rmtree("result/ins_seg_ood")
    monkeypatch.setattr("net.irn.MIN_PADDED_SIDE", 96)  # the toy images are padded to one size
    seen, of_pairs = [], EdgeDisplacement._of_pairs

    def counted(network, pairs):
        seen.append(len(pairs))
        return of_pairs(network, pairs)

    monkeypatch.setattr(EdgeDisplacement, "_of_pairs", counted)

    def run(**flags):
        seen.clear()
        run_sample.run(toy.flags(**NO_STEPS | {"redo": (), "infer_list": "voc12/train.txt", "exp_times": 2} | flags))
        return list(seen)

    return run


def written():
    folders = Path("result/sem_seg_ood"), Path("result/ins_seg_ood")
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*.[np][pn][yg]")}


def test_both_steps_take_one_pass_and_make_what_each_makes_alone(passes, monkeypatch):
    assert passes(make_sem_seg_pass=True) == [1] * N_IMAGES
    assert passes(make_ins_seg_pass=True) == [1] * N_IMAGES
    apart = written()
    assert len(apart) == 3 * N_IMAGES
    for path in apart:
        path.unlink()
    assert passes(**BOTH) == [1] * N_IMAGES
    assert written() == apart
    assert read_dict(Path("result/steps/make_ins_seg.json"))["finished"]
    assert passes(**BOTH) == []  # all is done


def test_one_pass_makes_what_either_step_lacks(passes):
    passes(**BOTH)
    whole = written()
    INSTANCE.unlink()
    assert passes(**BOTH) == [1]
    mask = Path("result/sem_seg_ood/2099_000003.png")
    mask.unlink()
    INSTANCE.unlink()
    assert passes(**BOTH) == [1, 1]  # both in the pass of make_sem_seg
    assert written() == whole


def test_other_settings_of_one_step_leave_the_other_alone(passes):
    passes(**BOTH)
    before = written()
    assert passes(**BOTH, ins_seg_bg_thres=0.5) == [1] * N_IMAGES
    assert {path for path, content in written().items() if before[path] != content} <= {*INSTANCE.parent.iterdir()}


def test_a_step_that_is_done_again_makes_its_files_itself(passes):
    passes(**BOTH)
    assert passes(**BOTH, redo="make_ins_seg") == [1] * N_IMAGES
    assert passes(**BOTH, redo="all") == [1] * (2 * N_IMAGES)


def test_images_of_one_padded_size_run_as_one_batch(passes):
    passes(**BOTH)
    one_by_one = written()
    assert passes(**BOTH, redo="make_sem_seg", irn_infer_batch_size=4) == [4, 2]
    assert written().keys() == one_by_one.keys()
    differing = [path for path, content in written().items() if content != one_by_one[path]]
    assert not differing  # no pixel of these lies where rounding decides


def test_a_network_that_can_not_batch_sees_pair_by_pair(passes, monkeypatch):
    forward = own_network.EdgeDisplacement.forward
    monkeypatch.setattr(own_network.EdgeDisplacement, "forward", lambda network, pair: forward(network, pair))
    assert passes(make_sem_seg_pass=True, irn_infer_batch_size=4) == [1] * N_IMAGES


@torch.no_grad()
def test_a_batch_gives_what_each_pair_gives():
    network = resnet18_irn.EdgeDisplacement().eval()
    sizes = [(60, 71), (64, 48), (33, 80)]
    assert {network.padded_size(size) for size in sizes} == {(512, 512)}
    pairs = [torch.randn(2, 3, *size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("net.irn.MIN_PADDED_SIDE", 80)
        together, alone = network.batch(pairs), [network(pair) for pair in pairs]
    for size, batched, single in zip(sizes, together, alone, strict=True):
        for given, expected in zip(batched, single, strict=True):
            assert given.shape[1:] == (-(-size[0] // 4), -(-size[1] // 4))
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_padded_sizes_are_multiples_of_sixteen_from_512_on():
    with UnfilledNetworks():
        network = own_network.EdgeDisplacement()
    assert [network.padded_size(size) for size in ((375, 500), (513, 20), (1024, 1025))] == [
        (512, 512),
        (528, 512),
        (1024, 1040),
    ]
