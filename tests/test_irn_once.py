"""IRN sees each image once for masks and instance masks, and images of one padded size run as one batch."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support import NO_STEPS, TOY_SIZES, make_all_inputs
from torch.nn import functional as F

import run_sample
from misc import indexing
from misc.errors import InputError
from misc.files import camfile, instancefile, irnfile
from misc.files.images import read_label
from misc.files.jsonfile import read_dict
from misc.run.config import STEP_MODULES, enabled_steps, parse_config
from misc.run.device import UnfilledNetworks
from misc.run.forecast import forecast
from net import resnet18_irn
from net.irn import EdgeDisplacement
from net.weights import save_weights
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
    monkeypatch.setattr("net.build.problem_of_answer", lambda *_: "")  # whose images would count, too

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
    matrices, make = [], indexing._transitions
    monkeypatch.setattr(indexing, "_transitions", lambda *a, **b: matrices.append(1) or make(*a, **b))
    assert passes(**BOTH) == [1] * N_IMAGES
    assert written() == apart
    assert len(matrices) == N_IMAGES  # one serves both masks
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
    vary_cams()
    passes(**BOTH)
    one_by_one = written()
    assert passes(**BOTH, redo="make_sem_seg", irn_infer_batch_size=4) == [4, 2]
    assert written().keys() == one_by_one.keys()
    differing = [path for path, content in written().items() if content != one_by_one[path]]
    assert not differing  # no pixel of these lies where rounding decides


@pytest.mark.parametrize("keep_irn", [False, True])
def test_of_a_batch_the_missing_masks_are_made_alone(passes, keep_irn):
    """Of some images the mask, of others the instances, of others both; where IRN's output is kept, too."""
    vary_cams()
    passes(**BOTH, keep_irn=keep_irn)
    whole = written()
    for folder, numbers in (("sem_seg_ood", (0, 1, 5)), ("ins_seg_ood", (1, 2))):
        for path in [path for path in whole if path.parts[1] == folder and int(path.stem[-1]) - 1 in numbers]:
            path.unlink()
    untouched = {path: path.stat().st_mtime_ns for path in whole if path.is_file()}
    assert len(untouched) == len(whole) - 3 - 3 - 2
    # IRN sees the images 0, 1, 2 and 5
    assert passes(**BOTH, keep_irn=keep_irn, irn_infer_batch_size=3) == ([] if keep_irn else [3, 1])
    assert written() == whole
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_a_network_that_can_not_batch_sees_pair_by_pair(passes, monkeypatch):
    forward = own_network.EdgeDisplacement.forward
    monkeypatch.setattr(own_network.EdgeDisplacement, "forward", lambda network, pair: forward(network, pair))
    assert passes(make_sem_seg_pass=True, irn_infer_batch_size=4) == [1] * N_IMAGES


def forget_masks(*, kept=False):
    shutil.rmtree("result/sem_seg_ood")
    shutil.rmtree("result/ins_seg_ood", ignore_errors=True)
    if kept:
        shutil.rmtree("result/irn")


def vary_cams():
    """Smooth maps in place of flat ones, so that masks depend on what IRN finds and on each setting."""
    generator = torch.Generator().manual_seed(0)
    for path in sorted(Path("result/cam_ood").glob("*.npy")):
        keys, cam, high_res = camfile.load(path)
        coarse = torch.rand(1, 1, 3, 3, generator=generator)
        smooth = F.interpolate(coarse, size=cam.shape[1:], mode="bilinear", align_corners=True)[0]
        camfile.save(path, keys, smooth, high_res)


def test_what_is_kept_serves_the_other_step_and_other_settings(passes):
    vary_cams()
    keep = {"keep_irn": True}
    assert passes(**BOTH, **keep) == [1] * N_IMAGES
    in_one_pass = written()
    forget_masks(kept=True)
    assert passes(make_sem_seg_pass=True, **keep) == [1] * N_IMAGES
    assert passes(make_ins_seg_pass=True, **keep) == []
    assert written() == in_one_pass
    assert passes(make_sem_seg_pass=True, beta=1, sem_seg_bg_thres=0.6, **keep) == []
    assert written() != in_one_pass
    forget_masks()
    assert passes(**BOTH) == [1] * N_IMAGES  # of float32, where it is not asked for


def test_nothing_stale_is_read(passes, toy):
    keep = {"keep_irn": True, "make_sem_seg_pass": True}
    passes(**keep)
    whole = written()
    forget_masks()
    kept = sorted(Path("result/irn").glob("*.npy"))
    assert len(kept) == N_IMAGES
    kept[0].unlink()
    kept[1].write_bytes(kept[2].read_bytes())
    assert passes(**keep) == [1, 1]
    assert written() == whole
    image = toy.root / "JPEGImages" / f"{kept[3].stem}.jpg"
    with Image.open(image) as picture:
        mirrored = ImageOps.mirror(picture)
    mirrored.save(image, quality=95)
    assert passes(**keep) == [1]
    torch.manual_seed(5)
    save_weights(own_network.EdgeDisplacement(), "sess/res50_irn_ood.pth")
    assert passes(**keep) == [1] * N_IMAGES
    assert passes(**keep, redo="all") == [1] * N_IMAGES


def test_half_precision_leaves_999_of_1000_pixels_alone(passes):
    vary_cams()
    passes(**BOTH)
    exact = sem_seg_and_instances()
    forget_masks()
    passes(**BOTH, keep_irn=True)
    for name, labels in sem_seg_and_instances().items():
        assert 0.05 < np.mean(exact[name] > 0) < 0.95
        assert labels.shape == exact[name].shape
        assert np.mean(labels == exact[name]) >= 0.999, name


def sem_seg_and_instances():
    """The labels of all pixels of all images, and for each instance's mask its pixels."""
    labels = [read_label(path) for path in sorted(Path("result/sem_seg_ood").glob("*.png"))]
    masks = [instancefile.load(path, 3).masks for path in sorted(INSTANCE.parent.glob("*.npy"))]
    joined = {"sem_seg": labels, "ins_seg": masks}
    return {name: np.concatenate([array.ravel() for array in arrays]) for name, arrays in joined.items()}


def test_the_disk_of_what_is_kept_is_told_beforehand(passes, toy):
    def disk(**flags):
        config = parse_config(toy.flags(**NO_STEPS | {"redo": (), "infer_list": "voc12/train.txt"} | flags))
        steps = [importlib.import_module(STEP_MODULES[name]) for name in enabled_steps(config)]
        return sum(sum(row.disk.values()) for row in forecast(config, steps, {}))

    for on in (BOTH, {"make_ins_seg_pass": True}, {"make_sem_seg_pass": True}):
        told = disk(**on, keep_irn=True) - disk(**on)
        assert told == pytest.approx(sum(0.375 * h * w for h, w in TOY_SIZES[:N_IMAGES]), rel=0.01)
    passes(make_sem_seg_pass=True, keep_irn=True)
    header = 400  # bytes of a file, which matter in so small images
    taken = sum(path.stat().st_size - header for path in Path("result/irn").glob("*.npy"))
    assert taken == pytest.approx(told, rel=0.1)


def test_foreign_files_are_no_output_of_irn(tmp_path):
    np.save(tmp_path / "a.npy", {"edge": np.zeros((1, 2, 2)), "displacement": np.zeros((2, 2, 2))}, allow_pickle=True)
    with pytest.raises(InputError, match=r"a.npy lacks edge or displacement in half precision"):
        irnfile.load(tmp_path / "a.npy")
    edge, displacement = irnfile.in_half_precision(torch.rand(1, 2, 2)), torch.full((2, 2, 2), -1e9)
    irnfile.save(tmp_path / "b.npy", edge, irnfile.in_half_precision(displacement))
    given, moved = irnfile.load(tmp_path / "b.npy")
    assert torch.equal(given, edge.float())
    assert moved.isfinite().all()


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
