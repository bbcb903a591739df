"""Every number that the originals fix, typed from the specification and compared with what the code works with.

Nothing here is derived from the code: a default, a threshold or a kernel that changes has to be changed here as well.
"""

import inspect
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from misc import advcam, cam, deeplab, imutils, indexing, instances, ood, pair_losses, selection, torchutils
from misc.crf import crf_inference_label, crf_inference_labels, crf_inference_softmax
from misc.files import camfile
from misc.masks import upsample
from misc.run.config import half_the_cores, parse_config
from net import deeplab as net_deeplab
from net import deeplab_v2, irn
from net.backbone import FrozenStatsBatchNorm2d, resnet50
from net.classifier import Classifier
from net.resnet50_irn import EdgeDisplacement
from step import eval_ins_seg, train_cam
from tests.own_network import FiveConvolutions
from voc12.classes import VOC_CLASSES
from voc12.dataloader import IRN_SCALES, AffinityCrops, ClassificationCrops, SegmentationCrops

# Section 7: the flags of the original
FLAGS = {
    "ood_root": "WOoD_dataset/openimages/OoD_images",
    "ood_list": "WOoD_dataset/openimages/ood_list.txt",
    "ood_coeff": 0.25,
    "ood_batch_size": 16,
    "cluster_K": 50,
    "distance_lambda": 0.007,
    "ood_dist_topk": 0.2,
    "train_list": "voc12/train_aug.txt",
    "val_list": "voc12/val.txt",
    "infer_list": "voc12/train_aug.txt",
    "chainer_eval_set": "train",
    "cam_network": "net.resnet50_cam",
    "cam_crop_size": 512,
    "cam_batch_size": 16,
    "cam_num_epoches": 5,
    "cam_learning_rate": 0.1,
    "cam_weight_decay": 1e-4,
    "cam_eval_thres": 0.15,
    "cam_scales": (1.0, 0.5, 1.5, 2.0),
    "conf_fg_thres": 0.30,
    "conf_bg_thres": 0.15,
    "irn_network": "net.resnet50_irn",
    "irn_crop_size": 512,
    "irn_batch_size": 32,
    "irn_num_epoches": 3,
    "irn_learning_rate": 0.1,
    "irn_weight_decay": 1e-4,
    "beta": 10,
    "exp_times": 8,
    "ins_seg_bg_thres": 0.25,
    "sem_seg_bg_thres": 0.25,
    "np_power": 1.0,
    "log_name": "sample_train_eval",
    "cam_weights_name": "sess/res50_cam_ood.pth",
    "irn_weights_name": "sess/res50_irn_ood.pth",
    "cam_out_dir": "result/cam_ood",
    "ir_label_out_dir": "result/ir_label",
    "sem_seg_out_dir": "result/sem_seg_ood",
    "ins_seg_out_dir": "result/ins_seg_ood",
    "adv_iter": 27,
    "AD_coeff": 7,
    "AD_stepsize": 0.08,
    "score_th": 0.5,
    "train_cam_pass": True,
    "make_cam_pass": True,
    "eval_cam_pass": True,
    "cam_to_ir_label_pass": False,
    "train_irn_pass": False,
    "make_ins_seg_pass": False,
    "eval_ins_seg_pass": False,
    "make_sem_seg_pass": False,
    "eval_sem_seg_pass": False,
}
# Numbers and paths of the originals that are no flags there, and the recipe of DeepLab-v2 (sections 1 to 6)
FLAGS_OF_OURS = {
    "cam_resize_long": (320, 640),
    "cam_eval_sweep": (0.08, 0.09, 0.10, 0.11, 0.12, 0.13, 0.14),
    "cam_init_weights_name": "sess/res50_cam_orig.pth",
    "cam_select": "best_miou",
    "cam_select_interval": 10,
    "label_file": "voc12/cls_labels.npy",
    "advcam_out_dir": "result/cam_ood_advcam",
    "ood_adv_step": 0.07,
    "ood_long_side": 500,
    "ood_ignore_class": "bottle",
    "deeplab_network": "net.deeplab_v2",
    "deeplab_init_weights": "auto",
    "deeplab_crop_size": 321,
    "deeplab_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    "deeplab_batch_size": 5,
    "deeplab_iter_size": 2,
    "deeplab_max_iter": 30000,
    "deeplab_loss": "balanced",
    "cocoann_min_score": 1e-5,
    "deeplab_learning_rate": 2.5e-4,
    "deeplab_weight_decay": 5e-4,
    "deeplab_eval_set": "val",
    "deeplab_crf": True,
}


@pytest.mark.parametrize("table", [FLAGS, FLAGS_OF_OURS], ids=["original", "ours"])
def test_defaults_of_flags(table):
    assert parse_config([]).only(table) == table


def default(function, name):
    return inspect.signature(function).parameters[name].default


def groups(optimizer):
    return [(group["lr"], group["weight_decay"], group["momentum"]) for group in optimizer.param_groups]


def weights(n):
    return [[nn.Parameter(torch.ones(1))] for _ in range(n)]


def head(part):
    """Input and output channels, groups and upsampling of an IRN head."""
    enlarged = [layer.scale_factor for layer in part if isinstance(layer, nn.Upsample)]
    return part[0].in_channels, part[0].out_channels, part[1].num_groups, enlarged[0] if enlarged else 1


def without_values(network):
    """The network's structure; nothing is filled with random numbers, which takes most of the time."""
    with torch.device("meta"):
        return network()


def heads():
    children = without_values(EdgeDisplacement).named_children()
    return {name: head(part) for name, part in children if name.startswith("fc_") and name != "fc_edge6"}


# What it is: (what the code works with, what the specification says)
NUMBERS = {
    # Section 1
    "classes of VOC": (lambda: len(VOC_CLASSES), 20),
    "label of unsure pixels": (lambda: imutils.IGNORE_LABEL, 255),
    "mean": (lambda: imutils.IMAGENET_MEAN, (0.485, 0.456, 0.406)),
    "standard deviation": (lambda: imutils.IMAGENET_STD, (0.229, 0.224, 0.225)),
    # Section 2
    "strides of ResNet-50's stages": (lambda: without_values(resnet50).strides, (4, 4, 8, 16, 16)),
    "channels of ResNet-50's stages": (lambda: without_values(resnet50).channels, (64, 256, 512, 1024, 2048)),
    "epsilon of batch norms": (lambda: FrozenStatsBatchNorm2d(1).eps, 1e-5),
    "IRN's heads": (
        heads,
        {
            "fc_edge1": (64, 32, 4, 1),
            "fc_edge2": (256, 32, 4, 1),
            "fc_edge3": (512, 32, 4, 2),
            "fc_edge4": (1024, 32, 4, 4),
            "fc_edge5": (2048, 32, 4, 4),
            "fc_dp1": (64, 64, 8, 1),
            "fc_dp2": (256, 128, 16, 1),
            "fc_dp3": (512, 256, 16, 1),
            "fc_dp4": (1024, 256, 16, 2),
            "fc_dp5": (2048, 256, 16, 2),
            "fc_dp6": (768, 256, 16, 2),
            "fc_dp7": (448, 256, 16, 1),
        },
    ),
    "side that IRN pads images to": (lambda: irn.MIN_PADDED_SIDE, 512),
    "multiple that IRN pads larger images to": (lambda: irn.PAD_MULTIPLE, 16),
    # Section 3
    "power of the rates": (lambda: default(torchutils.PolyOptimizer, "power"), 0.9),
    "rates, weight decay, momentum of classifier and IRN": (
        lambda: groups(torchutils.two_rate_optimizer(*weights(2), lr=0.1, weight_decay=1e-4, max_step=9)),
        [(0.1, 1e-4, 1e-4), (1.0, 1e-4, 1e-4)],
    ),
    "iterations of K-means": (lambda: default(ood.kmeans, "n_iter"), 10),
    "epsilon of the adversarial step": (lambda: ood.GRADIENT_EPSILON, 1e-12),
    "class that the OoD loss leaves out": (lambda: default(ood.ood_loss, "ignore_class"), 4),
    "its name": (lambda: VOC_CLASSES[4], "bottle"),
    "set that chooses the checkpoint": (lambda: train_cam.SELECTION_SPLIT, "train"),
    "thresholds that choose the checkpoint": (lambda: selection.THRESHOLDS, (0.06, 0.08, 0.10, 0.12)),
    "part of the last epoch without a choice": (lambda: selection.STARTS, 0.75),
    # Section 4
    "stride of CAMs and IRN's labels": (lambda: camfile.MAP_STRIDE, 4),
    "multiple that CAMs of full size are made at": (lambda: cam.NETWORK_STRIDE, 16),
    "epsilon of a CAM's maximum": (lambda: cam.PEAK_EPSILON, 1e-5),
    "scales of AdvCAM, in order": (lambda: advcam.SCALES, (0.5, 1.0, 1.5, 2.0)),
    "iterations at scale 0.5 of 27, 11, 10, 6, 5": (
        lambda: [advcam.iterations_at(0.5, n) for n in (27, 11, 10, 6, 5)],
        [13, 5, 5, 5, 5],
    ),
    "iterations at the other scales": (lambda: [advcam.iterations_at(s, 27) for s in (1.0, 1.5, 2.0)], [27] * 3),
    "factor of the maps of 27, 11, 10, 5 iterations": (
        lambda: [advcam.map_factor(n) for n in (27, 11, 10, 5)],
        [2, 2, 1, 1],
    ),
    "epsilon of AdvCAM": (lambda: advcam.EPSILON, 1e-12),
    # Section 5
    "radius of the training pairs": (lambda: irn.TRAIN_RADIUS, 10),
    "offsets of the training pairs": (lambda: len(indexing.pair_paths(10)), 152),
    "neighbours in the walk, and the cell": (lambda: 2 * len(indexing.pair_paths(5)) + 1, 69),
    "scales of IRN's crops": (lambda: IRN_SCALES, (0.5, 1.5)),
    "epsilon of IRN's losses": (lambda: pair_losses.EPSILON, 1e-5),
    "radius of the walk": (lambda: default(indexing.RandomWalks, "radius"), 5),
    "size of walked maps, enlarged": (lambda: upsample(torch.zeros(1, 3, 5), (99, 99)).shape, (1, 12, 20)),
    "moves of the centroids": (lambda: default(instances.refine_centroids, "iterations"), 300),
    "displacement near a centroid": (lambda: instances.CENTROID_REACH, 2.5),
    "share of a fragment": (lambda: instances.FRAGMENT_SHARE, 0.01),
    "components of cells that touch at a corner": (lambda: instances.connected_components(np.eye(3) > 0).max(), 3),
    "IoU of a hit": (lambda: eval_ins_seg.IOU_THRESH, 0.5),
    # Section 6
    "blocks, channels, stride, dilation of MSRA's stages": (
        lambda: deeplab_v2.STAGES,
        {"layer2": (3, 64, 1, 1), "layer3": (4, 128, 2, 1), "layer4": (23, 256, 1, 2), "layer5": (3, 512, 1, 4)},
    ),
    "dilations of the ASPP": (lambda: net_deeplab.ASPP_RATES, (6, 12, 18, 24)),
    "weights of the ASPP at the start": (lambda: net_deeplab.ASPP_WEIGHT_STD, 0.01),
    "scales beside 1": (lambda: deeplab.PYRAMID_SCALES, (0.5, 0.75)),
    "mean of BGR": (lambda: imutils.BGR_MEAN, (104.008, 116.669, 122.675)),
    "rates, weight decay, momentum of DeepLab": (
        lambda: groups(deeplab.deeplab_optimizer(*weights(3), lr=2.5e-4, weight_decay=5e-4, max_step=9)),
        [(2.5e-4, 5e-4, 0.9), (2.5e-3, 5e-4, 0.9), (5e-3, 0, 0.9)],
    ),
    "iterations between two rates": (
        lambda: deeplab.deeplab_optimizer(*weights(3), lr=1, weight_decay=0, max_step=9).decay_interval,
        10,
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_the_originals(name):
    found, expected = NUMBERS[name]
    assert found() == (pytest.approx(expected, rel=1e-12) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("function", "flag_of"),
    [
        (
            advcam.advcam,
            {
                "n_iter": "adv_iter",
                "coefficient": "AD_coeff",
                "step": "AD_stepsize",
                "score_threshold": "score_th",
            },
        ),
        (ood.distance_loss, {"topk": "ood_dist_topk"}),
        (ood.adversarial_step, {"step": "ood_adv_step"}),
        (indexing.propagate_to_edge, {"beta": "beta", "exp_times": "exp_times"}),
    ],
)
def test_defaults_of_functions_are_those_of_the_flags(function, flag_of):
    config = parse_config([])
    assert {name: default(function, name) for name in flag_of} == {
        name: getattr(config, flag) for name, flag in flag_of.items()
    }


@pytest.mark.parametrize("function", [advcam.advcam_batch, advcam.climb, indexing.RandomWalks, ood.wood_losses])
def test_what_steps_call_has_the_settings_from_its_callers(function):
    settings = {"n_iter", "coefficient", "step", "score_threshold", "beta", "exp_times", "topk", "ignore_class"}
    asked = settings & inspect.signature(function).parameters.keys()
    assert asked
    assert {default(function, name) for name in asked} == {inspect.Parameter.empty}


def test_workers_are_half_the_cores(monkeypatch):
    for cores, workers in ((1, 1), (2, 1), (7, 3), (16, 8)):
        monkeypatch.setattr("misc.run.config.usable_cores", lambda cores=cores: cores)
        assert half_the_cores() == workers


def test_the_stages_that_are_trained():
    """Stem, layer1 and layer2 are not: of five stages the last two are."""
    network = Classifier(FiveConvolutions(), 3)
    trained = [all(p.requires_grad for p in block.parameters()) for block in network.backbone.blocks]
    assert trained == [False, False, False, True, True]


@pytest.fixture
def densecrf(monkeypatch):
    """Stands for pydensecrf: notes every call with its arguments."""
    calls = []

    class DenseCRF2D:
        def __init__(self, *size):
            self.n_pixels = size[0] * size[1]
            calls.append(("DenseCRF2D", size))

        def __getattr__(self, name):
            def note(*args, **options):
                given = {k: v for k, v in options.items() if k != "rgbim"}
                calls.append((name, tuple(a for a in args if not isinstance(a, np.ndarray)), given))
                return np.zeros((3, self.n_pixels))

            return note

    def from_labels(labels, *args, **options):
        calls.append(("unary_from_labels", args, options))
        return np.zeros((3, labels.size), np.float32)

    utils = SimpleNamespace(
        unary_from_labels=from_labels, unary_from_softmax=lambda p: np.zeros((3, p[0].size), np.float32)
    )
    package = sys.modules.get("pydensecrf") or ModuleType("pydensecrf")
    for name, content in (("densecrf", SimpleNamespace(DenseCRF2D=DenseCRF2D)), ("utils", utils)):
        module = ModuleType(f"pydensecrf.{name}")
        vars(module).update(vars(content))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(package, name, module, raising=False)
    monkeypatch.setitem(sys.modules, "pydensecrf", package)
    return calls


IMAGE = np.zeros((4, 6, 3), np.uint8)
PYDENSECRF = "pydensecrf"
# Nothing else is given: kernels and normalisation are pydensecrf's defaults
OF_CAMS = [
    ("unary_from_labels", (3,), {"gt_prob": 0.7, "zero_unsure": False}),
    ("DenseCRF2D", (6, 4, 3)),
    ("addPairwiseGaussian", (), {"sxy": 3, "compat": 3}),
    ("addPairwiseBilateral", (), {"sxy": 50, "srgb": 5, "compat": 10}),
    ("setUnaryEnergy", (), {}),
    ("inference", (10,), {}),
]
OF_DEEPLAB = [
    ("DenseCRF2D", (6, 4, 3)),
    ("addPairwiseGaussian", (), {"sxy": 1, "compat": 3}),
    ("addPairwiseBilateral", (), {"sxy": 67, "srgb": 3, "compat": 4}),
    ("setUnaryEnergy", (), {}),
    ("inference", (10,), {}),
]


@pytest.mark.parametrize(
    ("refine", "expected"),
    [
        (lambda: crf_inference_label(IMAGE, np.zeros((4, 6), np.int64), 3, backend=PYDENSECRF), OF_CAMS),
        (lambda: crf_inference_labels(IMAGE, [np.zeros((4, 6), np.int64)], 3, backend=PYDENSECRF), OF_CAMS),
        (lambda: crf_inference_softmax(IMAGE, np.ones((3, 4, 6), np.float32) / 3, backend=PYDENSECRF), OF_DEEPLAB),
        (
            lambda: cam.confident_label(
                IMAGE,
                np.zeros((2, 4, 6), np.float32),
                [0, 1],
                foreground_score=0.3,
                background_score=0.15,
                backend=PYDENSECRF,
            ),
            # Both scores of one image
            [OF_CAMS[0], *OF_CAMS, *OF_CAMS[-2:]],
        ),
    ],
    ids=["label", "labels", "softmax", "confident label"],
)
def test_pydensecrf_is_asked_for_what_the_papers_say(densecrf, refine, expected):
    refine()
    assert densecrf == expected


@pytest.mark.parametrize(
    ("refine", "kernels", "unary"),
    [
        (lambda: crf_inference_label(IMAGE, np.zeros((4, 6), np.int64), 3), (3, 3, 50, 5, 10), [0.7, 0.15, 0.15]),
        (lambda: crf_inference_softmax(IMAGE, np.ones((4, 4, 6), np.float32) / 4), (1, 3, 67, 3, 4), [0.25] * 4),
    ],
    ids=["label", "softmax"],
)
def test_our_dense_crf_is_asked_for_the_same(monkeypatch, refine, kernels, unary):
    asked = []

    def mean_field(image, logits, *settings, read):
        asked.append((logits(slice(0, 24)).exp(), *settings))
        return [torch.zeros(24, 1, dtype=torch.int64)]

    monkeypatch.setattr("misc.crf.mean_field", mean_field)
    refine()
    ((given, *settings),) = asked
    assert settings == [kernels, 10]
    torch.testing.assert_close(given, torch.tensor(unary).expand_as(given))


class Draws:
    """Stands for the random numbers of an item: notes what is asked for."""

    def __init__(self, side):
        self.side, self.asked = side, []

    def random(self):
        return self.side

    def integers(self, low, high=None):
        self.asked.append((low, high))
        return low if high is not None else 0

    def uniform(self, low, high):
        self.asked.append((low, high))
        return 1.0

    def choice(self, scales):
        self.asked.append(scales)
        return 1.0


@pytest.mark.parametrize(
    ("make", "drawn"),
    [
        # A long side from 320 to 640, both included
        (
            lambda path: ClassificationCrops(
                [path], np.ones((1, 3), np.float32), resize_long=(320, 640), crop_size=320, seed=(0,)
            ),
            (320, 641),
        ),
        (lambda path: AffinityCrops([path], [path], crop_size=320, seed=(0,)), (0.5, 1.5)),
        (lambda path: SegmentationCrops([path], [path], scales=(0.5, 2), crop_size=320, seed=(0,)), (0.5, 2)),
    ],
    ids=["classifier", "IRN", "DeepLab"],
)
def test_augmentation_draws_scale_side_and_place(tmp_path, monkeypatch, make, drawn):
    """Half of the images are mirrored; a side that fits exactly leaves one place."""
    path, pixels = tmp_path / "a.png", np.zeros((320, 320), np.uint8)
    pixels[:, :160] = 200
    Image.fromarray(pixels).save(path)
    for side, mirrored in ((0.4999, True), (0.5, False)):
        draws = Draws(side)
        monkeypatch.setattr(np.random, "default_rng", lambda seed, draws=draws: draws)
        item = make(path)[0, 0]
        assert draws.asked == [drawn, (1, None), (1, None)]
        assert item["image"].shape == (3, 320, 320)
        assert (item["image"][0, 0, 0] == 0) == mirrored
