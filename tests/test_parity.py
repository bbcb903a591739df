"""Equality with recorded outputs of the original, at the tolerances stated with the recordings."""

import json

import numpy as np
import pytest
import torch
from support import gradients_by_name, relative_error, seeded_state
from torch.nn import functional as F

from benchmarks.plain import pair_labels
from misc.advcam import SCALES, advcam
from misc.cam import confident_label, label_map, merge_scales, scale_maps
from misc.deeplab import scaled_pair
from misc.files.images import read_image, read_label
from misc.files.irnfile import in_half_precision
from misc.imutils import (
    BGR_MEAN,
    crop_into,
    mirror_pair,
    normalize,
    resize_image,
    scaled_size,
    to_chw,
    top_left_crop_boxes,
)
from misc.indexing import RandomWalk, affinity_labels, pair_paths, propagate_to_edge
from misc.instances import detect_instances, instance_map, refine_centroids
from misc.masks import semantic_mask
from misc.metrics import ThresholdSweep, confusion_matrix, instance_ap, scores
from misc.ood import adversarial_step, class_prototypes, distance_loss, distances, kmeans, ood_loss, wood_losses
from misc.pair_losses import _counts_and_signs
from misc.torchutils import PolyOptimizer
from net.deeplab_v2 import DeepLabV2, MultiScale
from net.resnet50_cam import CAM, Net
from net.resnet50_irn import AffinityDisplacementLoss, EdgeDisplacement
from net.weights import load_weights

IDS = ("2007_000032", "2007_000039")
CROP = 512
WALK = {"beta": 10, "exp_times": 8}


@pytest.fixture
def recorded(parity):
    """Reads a recording by its file name."""

    def read(name):
        path = parity / name
        return json.loads(path.read_text()) if name.endswith(".json") else np.load(path)

    return read


@pytest.fixture
def photograph(voc_subset):
    return lambda image_id: read_image(voc_subset / "JPEGImages" / f"{image_id}.jpg")


def seeded(module):
    load_weights(module, seeded_state(module))
    return module.eval()


def tensor_of(image):
    return torch.from_numpy(to_chw(image))


@pytest.mark.parametrize("image_id", IDS)
def test_prepared_inputs(recorded, photograph, image_id):
    recording, image = recorded("cam_inputs.json")[image_id], photograph(image_id)
    assert list(image.shape[:2]) == recording["size"]
    for scale, expected in zip((1.0, 0.5, 1.5, 2.0), recording["inputs"], strict=True):
        pair = mirror_pair(normalize(tensor_of(resize_image(image, scaled_size(image.shape[:2], scale)))))
        assert list(pair.shape) == expected["shape"]
        assert float(pair.mean()) == pytest.approx(expected["mean"], abs=1e-5)
        assert float(pair.std()) == pytest.approx(expected["std"], abs=1e-5)
        assert pair[0, :, 0, 0].tolist() == pytest.approx(expected["corner"], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("image_id", IDS)
def test_classifier_and_cam(recorded, photograph, image_id):
    recording, inputs = recorded("cam.npz"), recorded("cam_inputs.json")[image_id]
    net, cam_network, image = seeded(Net()), seeded(CAM()), photograph(image_id)
    pair = mirror_pair(normalize(tensor_of(image)))

    stages = net.backbone(pair)
    shapes = [list(stages[2].shape), list(stages[3].shape), [2, net.backbone.channels[-1], 1, 1]]
    assert shapes == inputs["feature_shapes"]
    logits, features = net(pair)
    assert relative_error(logits, recording[f"{image_id}_logits"]) < 1e-4
    assert relative_error(features, recording[f"{image_id}_gap"]) < 1e-4
    assert relative_error(cam_network(pair), recording[f"{image_id}_scale1.0_raw"]) < 1e-4

    size = image.shape[:2]
    scaled = [tensor_of(resize_image(image, scaled_size(size, scale))) for scale in (1.0, 0.5, 1.5, 2.0)]
    assert recording[f"{image_id}_keys"].tolist() == inputs["label"]
    cam, high_res = merge_scales(scale_maps(cam_network, scaled), size, inputs["label"])
    assert relative_error(cam, recording[f"{image_id}_cam"]) < 1e-4
    assert relative_error(high_res[:, ::5, ::5], recording[f"{image_id}_high_res_sub5"]) < 1e-4


@pytest.mark.parametrize(
    ("n_iter", "image_id", "batch_size"),
    [(5, IDS[0], 2), (12, IDS[1], 1), pytest.param(12, IDS[0], 1, marks=pytest.mark.slow)],
)
def test_advcam(recorded, n_iter, image_id, batch_size):
    recording = recorded(f"advcam_iter{n_iter}.npz")
    image, keys = recording[f"{image_id}_img"], recording[f"{image_id}_keys"]
    network, size = CAM(), image.shape[:2]
    state = seeded_state(network)
    load_weights(network, {**state, "classifier.weight": 0.2 * state["classifier.weight"]})
    pairs = {s: mirror_pair(normalize(tensor_of(resize_image(image, scaled_size(size, s))))) for s in SCALES}
    cam, high_res = advcam(network.eval(), pairs, size, keys, n_iter, batch_size=batch_size)
    # Signs of tiny gradients amplify rounding
    np.testing.assert_allclose(cam, recording[f"{image_id}_cam"], rtol=0, atol=1e-2)
    np.testing.assert_allclose(high_res, recording[f"{image_id}_high_res"], rtol=0, atol=1e-2)


def test_cam_evaluation(recorded, voc_subset):
    recording, cams = recorded("eval_cam.json"), recorded("ir_label.npz")
    sweep = ThresholdSweep([float(threshold) for threshold in recording], n_classes=21)
    one_by_one = {float(threshold): np.zeros((21, 21), dtype=np.int64) for threshold in recording}
    for image_id in IDS:
        high_res, keys = cams[f"{image_id}_cam"].astype(np.float32), cams[f"{image_id}_keys"]
        truth = read_label(voc_subset / "SegmentationClass" / f"{image_id}.png")
        sweep.add(high_res, keys, truth)
        for threshold, confusion in one_by_one.items():
            confusion += confusion_matrix(label_map(high_res, keys, threshold), truth, 21)
    for (threshold, confusion), expected in zip(sweep.confusions().items(), recording.values(), strict=True):
        np.testing.assert_array_equal(confusion, expected["confusion"])
        np.testing.assert_array_equal(one_by_one[threshold], expected["confusion"])
        scored = scores(confusion)
        assert scored["miou"] == pytest.approx(expected["miou"], abs=1e-9)
        for name in ("precision", "recall"):
            np.testing.assert_allclose(scored[name], np.array(expected[name], dtype=float), rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
@pytest.mark.parametrize("image_id", IDS)
def test_confident_labels(recorded, photograph, image_id, backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    recording = recorded("ir_label.npz")
    label = confident_label(
        photograph(image_id),
        recording[f"{image_id}_cam"].astype(np.float32),
        recording[f"{image_id}_keys"],
        foreground_score=0.30,
        background_score=0.15,
        backend=backend,
    )
    assert (label == recording[f"{image_id}_ir"]).mean() >= 0.999


def test_affinity_labels(recorded):
    recording = recorded("affinity_labels.npz")
    labels = torch.from_numpy(recording["label"])[None]
    assert [list(offset) for offset in pair_paths(10)] == recording["dst"].tolist()
    of_image = [mask[0] for mask in affinity_labels(labels, radius=10)]
    for kinds in (of_image, pair_labels(recording["label"], radius=10)):  # ours, and the plain way's
        for name, mask in zip(("bg_pos", "fg_pos", "neg"), kinds, strict=True):
            np.testing.assert_array_equal(mask.sum(dim=1), recording[name])
            assert mask.shape[1] == np.prod(recording["src_shape"])
    # As the losses count them: every pair of a kind is decided by one cell
    edge, displacement = (torch.rand(1, n, *labels.shape[1:]) for n in (1, 2))
    counts, _ = _counts_and_signs(edge, displacement, labels, radius=10)
    assert counts.sum(dim=(1, 2)).tolist() == [recording[name].sum() for name in ("bg_pos", "fg_pos", "neg")]


def irn_batch(recorded, photograph):
    crops, boxes = [], []
    for image_id in recorded("irn_loss.json")["ids"]:
        image = photograph(image_id)
        box = top_left_crop_boxes(image.shape[:2], CROP)
        crops.append(tensor_of(crop_into(image, box, CROP)))
        boxes.append(torch.tensor(box[1]))
    return normalize(torch.stack(crops), torch.stack(boxes)), torch.from_numpy(recorded("irn_forward.npz")["label"])


@torch.no_grad()
def test_irn_heads(recorded, photograph):
    recording = recorded("irn_forward.npz")
    images, _ = irn_batch(recorded, photograph)
    edge, displacement = seeded(AffinityDisplacementLoss()).edge_and_displacement(images)
    assert relative_error(edge[..., ::4, ::4], recording["edge_logits"]) < 3e-4
    assert relative_error(displacement[..., ::4, ::4], recording["dp"]) < 3e-4


def test_irn_losses(recorded, photograph):
    recording = recorded("irn_loss.json")
    images, labels = irn_batch(recorded, photograph)
    network = seeded(AffinityDisplacementLoss()).train()
    losses = network(images, labels)
    losses["total"].backward()
    for name, value in losses.items():
        assert value.item() == pytest.approx(recording[name], rel=3e-4)
    gradients = gradients_by_name(network)
    for name, norm in recording["grad_norm"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=3e-4)
    backbone_names = {name for name, _ in network.backbone.named_parameters()}
    assert sorted(backbone_names & gradients.keys()) == recording["backbone_params_with_grad"]


@torch.no_grad()
@pytest.mark.parametrize("image_id", IDS)
def test_edge_and_displacement(recorded, photograph, image_id):
    recording = recorded("edge_displacement.npz")
    edge, displacement = seeded(EdgeDisplacement())(mirror_pair(normalize(tensor_of(photograph(image_id)))))
    assert relative_error(edge, recording[f"{image_id}_edge"]) < 1e-4
    assert relative_error(displacement, recording[f"{image_id}_dp"]) < 1e-4


def test_random_walk(recorded):
    recording = recorded("random_walk.npz")
    walked = propagate_to_edge(torch.from_numpy(recording["cam"]), torch.from_numpy(recording["edge"]))
    assert relative_error(walked[:, None], recording["rw"]) < 3e-4


@pytest.mark.parametrize("power", [1.0, 1.5])
@pytest.mark.parametrize("background_score", [0.22, 0.25])
def test_semantic_masks(recorded, power, background_score):
    recording = recorded("random_walk.npz")
    mask = semantic_mask(
        torch.from_numpy(recording["cam"]),
        RandomWalk(torch.from_numpy(recording["edge"]), **WALK),
        recording["keys"],
        tuple(recording["size"].tolist()),
        power=power,
        background_score=background_score,
    )
    assert (mask == recording[f"sem_p{power}_t{background_score}"]).mean() >= 0.999


@pytest.mark.parametrize("background_score", [0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
def test_masks_of_what_is_kept_in_half_precision(recorded, background_score):
    recording = recorded("random_walk.npz")
    exact = [torch.from_numpy(recording[name]) for name in ("edge", "dp")]
    rounded = [in_half_precision(x).float() for x in exact]
    cam, keys, size = torch.from_numpy(recording["cam"]), recording["keys"], tuple(recording["size"].tolist())
    settings = {"background_score": background_score}
    masks, instances = [], []
    for edge, displacement in (exact, rounded):
        masks.append(semantic_mask(cam, RandomWalk(edge, **WALK), keys, size, power=1.0, **settings))
        instances.append(detect_instances(cam, RandomWalk(edge, **WALK), displacement, keys, size, **settings))
    assert (masks[0] == masks[1]).mean() >= 0.999
    np.testing.assert_array_equal(instances[0].classes, instances[1].classes)
    assert (instances[0].masks == instances[1].masks).mean() >= 0.999


def test_instances(recorded):
    recording = recorded("random_walk.npz")
    displacement = torch.from_numpy(recording["dp"])
    np.testing.assert_array_equal(refine_centroids(displacement), recording["centroids"])
    np.testing.assert_array_equal(instance_map(displacement), recording["instance_map"])
    found = detect_instances(
        torch.from_numpy(recording["cam"]),
        RandomWalk(torch.from_numpy(recording["edge"]), **WALK),
        displacement,
        recording["keys"],
        tuple(recording["size"].tolist()),
        background_score=0.25,
    )
    np.testing.assert_array_equal(found.classes, recording["ins_class"])
    np.testing.assert_allclose(found.scores, recording["ins_score"], atol=1e-3)
    shape = recording["ins_shape"]
    masks = np.unpackbits(recording["ins_mask"], count=np.prod(shape)).reshape(shape)
    assert found.masks.shape == masks.shape
    assert (found.masks == masks).mean(axis=(1, 2)).min() >= 0.999


def test_clusters_and_prototypes(recorded):
    recording = recorded("wood.npz")
    n_clusters = len(recording["prototypes"]) - recording["id_labels"].shape[1]
    assignment, centres = kmeans(torch.from_numpy(recording["x_ood"]), n_clusters)
    np.testing.assert_array_equal(assignment, recording["cluster"])
    classes = class_prototypes(torch.from_numpy(recording["x_id"]), torch.from_numpy(recording["id_labels"]))
    np.testing.assert_allclose(torch.cat([classes, centres]), recording["prototypes"], rtol=1e-4, atol=1e-6)


def test_wood_steps(recorded):
    recording, steps = recorded("wood.npz"), recorded("wood_step.json")
    images, labels, ood, prototypes = (
        torch.from_numpy(recording[name]) for name in ("img", "label", "ood", "prototypes")
    )
    model = seeded(Net()).train()
    groups = [
        {"params": parameters, "lr": lr, "weight_decay": 1e-4}
        for parameters, lr in zip(model.trainable_parameters(), (0.001, 0.01), strict=True)
    ]
    optimizer = PolyOptimizer(groups, lr=0.001, weight_decay=1e-4, max_step=steps["max_step"])
    assert [group["momentum"] for group in optimizer.param_groups] == steps["momentum_in_param_groups"]
    weights = {"classifier": "classifier.weight", "layer4": "layer4.2.conv3.weight", "layer2": "layer2.3.conv3.weight"}

    logits, features = model(images)
    dist = distances(features, prototypes)
    assert relative_error(logits, recording["logits"]) < 1e-4
    assert relative_error(dist, recording["dist"]) < 1e-4
    perturbed = adversarial_step(model, ood)
    assert relative_error(perturbed[:, :, ::8, ::8], recording["perturbed_sub8"]) < 1e-4
    assert not gradients_by_name(model)

    for number, expected in enumerate(steps["steps"]):
        tolerance = {"rel": 1e-4 if number == 0 else 1e-3, "abs": 1e-6}
        with torch.no_grad():
            ood_logits, _ = model(adversarial_step(model, ood))
            bce_logits, features = model(images)
            _, threshold = distance_loss(distances(features, prototypes), labels)
        assert threshold.item() == pytest.approx(expected["threshold"], **tolerance)
        assert ood_logits.argmax(dim=1).tolist() == expected["ood_argmax"]
        assert ood_loss(ood_logits).item() == pytest.approx(expected["loss_ood"], **tolerance)
        assert F.binary_cross_entropy_with_logits(bce_logits, labels).item() == pytest.approx(
            expected["bce"], **tolerance
        )

        losses = wood_losses(
            model,
            images,
            labels,
            ood_images=ood,
            prototypes=prototypes,
            ood_coeff=0.25,
            distance_lambda=0.007,
            topk=0.2,
            step=0.07,
            ignore_class=4,
        )
        optimizer.zero_grad()
        losses["total"].backward()
        for name, key in (("bce", "bce"), ("distance", "loss_M"), ("ood", "loss_ood"), ("total", "loss")):
            assert losses[name].item() == pytest.approx(expected[key], **tolerance)
        gradients = gradients_by_name(model)
        for name, norm in expected["grad_norm"].items():
            assert gradients[name].norm().item() == pytest.approx(norm, **tolerance)
        assert not any(name.startswith(("conv1", "bn1", "layer1", "layer2")) for name in gradients)
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected["lr_used"])
        parameters = {name.removeprefix("backbone."): value for name, value in model.named_parameters()}
        for short, name in weights.items():
            assert parameters[name].norm().item() == pytest.approx(expected["w"][short], **tolerance)


@torch.no_grad()
def test_deeplab_v2(recorded):
    recording, keys = recorded("deeplab_v2.npz"), recorded("deeplab_v2_keys.json")
    base = DeepLabV2()
    shapes = {name: list(tensor.shape) for name, tensor in base.state_dict().items()}
    assert shapes == {name: shape for name, shape in keys.items() if not name.endswith("num_batches_tracked")}
    state = {name: 0.1 * x if name.startswith("aspp.") else x for name, x in seeded_state(base).items()}
    load_weights(base, state)
    images = torch.from_numpy(recording["x"])
    assert relative_error(base.eval()(images), recording["base"]) < 1e-4
    assert relative_error(MultiScale(base).eval()(images), recording["msc"]) < 1e-4


@pytest.mark.parametrize("image_id", IDS)
def test_deeplab_training_input(recorded, photograph, voc_subset, image_id):
    recording = recorded("deeplab_input.npz")
    image, label = photograph(image_id), read_label(voc_subset / "SegmentationClass" / f"{image_id}.png")
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0):
        name = f"{image_id}_{scale}"
        resized, ids = scaled_pair(image, label, scale)
        assert resized.shape[:2] == ids.shape == tuple(recording[f"{name}_size"])
        blue_first = to_chw(resized[..., ::-1]) - np.array(BGR_MEAN, np.float32)[:, None, None]
        np.testing.assert_allclose(blue_first[:, ::9, ::9], recording[f"{name}_image_sub9"], rtol=0, atol=1e-3)
        np.testing.assert_array_equal(ids[::9, ::9], recording[f"{name}_label_sub9"])


def test_semantic_scores(recorded):
    recording, expected = recorded("semantic_eval.npz"), recorded("evaluation.json")["semantic"]
    confusion = confusion_matrix(recording["pred"], recording["gt"], n_classes=len(expected["confusion"]))
    np.testing.assert_array_equal(confusion, expected["confusion"])
    scored = scores(confusion)
    np.testing.assert_allclose(scored["iou"], np.array(expected["iou"], dtype=float), rtol=0, atol=1e-9)
    for name in ("miou", "pixel_accuracy", "mean_class_accuracy"):
        assert scored[name] == pytest.approx(expected[name], abs=1e-9)


@pytest.mark.parametrize("iou_thresh", [0.5, 0.7])
def test_instance_scores(recorded, iou_thresh):
    recording, expected = recorded("instance_eval.npz"), recorded("evaluation.json")["instance"][str(iou_thresh)]
    n_images = sum(name.startswith("gt_mask") for name in recording.files)
    names = ("pred_mask", "pred_label", "pred_score", "gt_mask", "gt_label")
    scored = instance_ap(*([recording[f"{name}{i}"] for i in range(n_images)] for name in names), iou_thresh=iou_thresh)
    np.testing.assert_allclose(scored["ap"], np.array(expected["ap"], dtype=float), rtol=0, atol=1e-9)
    assert scored["map"] == pytest.approx(expected["map"], abs=1e-9)
