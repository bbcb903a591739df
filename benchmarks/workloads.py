"""What each step of the benchmark works on, and its two ways: `step.<name>.run` and its counterpart in `plain`."""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import inputs, plain
from benchmarks.inputs import Size
from benchmarks.measure import Way, require_shared_memory
from misc.cam import confident_label
from misc.crf import Backend, device_of
from misc.files import camfile
from misc.files.camfile import MAP_STRIDE
from misc.imutils import cells_of
from misc.indexing import RandomWalk, chebyshev_coefficients
from misc.run.config import Config, parse_config, to_arguments
from misc.run.device import resolve_device, set_precision, set_seed
from misc.run.memory import keep_freed_memory
from misc.run.parallel import ordered_map, usable_cores
from misc.segmentation import masks_of_images
from net.weights import read_checkpoint
from step import (
    cam_to_ir_label,
    eval_cam,
    eval_deeplab,
    make_advcam,
    make_cam,
    make_sem_seg_labels,
    train_cam,
    train_deeplab,
    train_irn,
)
from voc12.classes import VOC_CLASSES

WALK_SQUARINGS, WALK_NEIGHBOURS = 8, 69
CRF_RUNS, CRF_ITERATIONS = 2, 10
N_CLASSES, SEGMENTER_STRIDE = len(VOC_CLASSES) + 1, 8
SPARSE_ENTRY_BYTES, FLOAT_BYTES, DOUBLE_BYTES = 12, 4, 8
BATCHES_AHEAD = 2
"""Of each worker process of a loader of PyTorch's."""
LEARNING_RATE = 0.01
"""Smaller than the default, since the networks start from random weights."""


@dataclass(frozen=True)
class Sizes:
    """How much work the steps get; images as (H, W).

    Attributes:
        walk: images whose random walk is measured both ways, from small to large.
        walk_target: the image of the target; both ways where the plain one is affordable.
        walk_large: images of which only our way can walk; the memory of the last is judged.
        walks: of an image, in one run.
        masks: images of make_sem_seg_labels.
        cam, advcam, evaluated, refined: the images of make_cam, make_advcam, eval_cam, cam_to_ir_label.
        plain_masks, plain_cam, plain_advcam, plain_refined: how many of them, the first ones, the plain way gets, which
            is slow.
        adv_iter, advcam_batch: iterations of AdvCAM; (image, class) pairs in one batch of ours.
        crop, batch: of train_cam; the OoD batch is as large.
        irn_crop, irn_batch: of train_irn.
        segmented: the images of eval_deeplab.
        crf: the images of dense CRF alone.
        deeplab_crop, deeplab_batch: of train_deeplab.
        timed_updates: of a training run, besides the `untimed_updates()` at each end.
    """

    walk: tuple[Size, ...]
    walk_target: Size
    walk_large: tuple[Size, ...]
    walks: int
    masks: int
    plain_masks: int
    cam: tuple[Size, ...]
    plain_cam: int
    advcam: tuple[Size, ...]
    plain_advcam: int
    adv_iter: int
    advcam_batch: int
    evaluated: tuple[Size, ...]
    refined: tuple[Size, ...]
    plain_refined: int
    crop: int
    batch: int
    irn_crop: int
    irn_batch: int
    segmented: tuple[Size, ...]
    crf: tuple[Size, ...]
    deeplab_crop: int
    deeplab_batch: int
    timed_updates: int

    def updates(self) -> int:
        """Of a training run."""
        return self.timed_updates + 2 * untimed_updates()


_VOC_SIZES = ((375, 500), (333, 500), (500, 375), (375, 500))
CPU_SIZES = Sizes(
    walk=((120, 160), (188, 250)),
    walk_target=(375, 500),
    walk_large=((375, 500), (1500, 2000)),
    walks=1,
    masks=8,
    plain_masks=2,
    cam=_VOC_SIZES[:2],
    plain_cam=2,
    advcam=((94, 125),) * 2,
    plain_advcam=2,
    adv_iter=7,
    advcam_batch=1,
    evaluated=_VOC_SIZES * 10,
    refined=_VOC_SIZES * 4,
    plain_refined=4,
    crop=192,
    batch=2,
    irn_crop=512,
    irn_batch=2,
    segmented=((250, 333), (333, 250)) * 12,
    crf=_VOC_SIZES,
    deeplab_crop=97,
    deeplab_batch=2,
    timed_updates=5,
)
# Enough for what a step costs once (its network, its worker processes), up to seconds, to weigh little
GPU_SIZES = dataclasses.replace(
    CPU_SIZES,
    walk=((188, 250),),
    walks=10,
    masks=256,
    plain_masks=16,
    cam=_VOC_SIZES * 32,
    plain_cam=64,
    advcam=((375, 500),) * 4,
    plain_advcam=1,
    adv_iter=12,
    advcam_batch=8,
    evaluated=_VOC_SIZES * 40,
    refined=_VOC_SIZES * 12,
    crop=512,
    batch=16,
    irn_batch=32,
    segmented=_VOC_SIZES * 4,
    crf=_VOC_SIZES * 8,
    deeplab_crop=321,
    deeplab_batch=5,
    timed_updates=10,
)


def untimed_updates() -> int:
    """Updates at either end of a training that are not timed.

    The first ones use batches that the loaders made before; during the last ones the loaders have nothing left to make.
    """
    return max(1, BATCHES_AHEAD * Config().num_workers)


@dataclass(frozen=True)
class Workload:
    """A step on given inputs.

    Attributes:
        on: the inputs, in words.
        ours, plain: make the two ways; both are called in a process of their own.
        images: handled per unit of time.
        bytes: that our way has to move, per unit.
    """

    on: str
    ours: Callable[[], Way]
    plain: Callable[[], Way]
    images: float = 1
    bytes: float = 0


class _StepWay:
    """`run(args)` as a `Way`: each call writes into a fresh folder."""

    def __init__(self, run: Callable[[Config], None], args: Config, outputs: Sequence[str]) -> None:
        self._run, self._args, self._outputs = run, args, outputs
        self._folder = Path()

    def call(self) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=self._args.result_dir))
        set_seed(self._args.seed)
        written = {flag: str(self._folder / flag) for flag in (*self._outputs, "result_dir")}
        self._run(dataclasses.replace(self._args, **written))

    def result(self) -> dict[str, np.ndarray]:
        return read_outputs(self._folder)


def read_outputs(folder: Path) -> dict[str, np.ndarray]:
    """The arrays in all files of a folder: labels, CAMs, weights and scores."""
    arrays = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".png":
            arrays[name] = np.asarray(Image.open(path))
        elif path.suffix == ".npy":
            keys, cam, high_res = camfile.load(path)
            arrays.update({f"{name} keys": keys, f"{name} cam": cam.numpy(), f"{name} high_res": high_res})
        elif path.name == "eval_cam.json":
            mious = json.loads(path.read_text())["miou_by_threshold"]
            arrays.update({f"mIoU at {threshold}": np.array(value) for threshold, value in mious.items()})
        elif path.name in ("cam_weights_name", "irn_weights_name", "deeplab_weights_name"):
            arrays.update({f"{name} {key}": tensor.numpy() for key, tensor in read_checkpoint(path).items()})
    return arrays


def _step_way(
    run: Callable[[Config], None], flags: dict[str, object], outputs: Sequence[str], **how: int | None
) -> Way:
    way = _StepWay(run, parse_config(to_arguments(flags)), outputs)
    return Way(way.call, way.result, **how)


@dataclass(frozen=True)
class Inputs:
    """The data of a workload in `folder`, the networks' weights in `weights`, and the flags that name them."""

    folder: Path
    weights: Path
    device: str

    def make(self, images: Sequence[Size], *, n_ood: int = 0) -> None:
        """Draw the images and the weights where that is not done yet."""
        if not self.folder.exists():
            inputs.make_devkit(self.folder, images, n_ood=n_ood)
            (self.folder / "result").mkdir()
        if not self.weights.exists():
            self.weights.mkdir(parents=True)
            inputs.make_weights(self.weights)

    def first(self, n: int) -> dict[str, object]:
        """Flags of a step that works on the first n images alone."""
        path = self.folder / f"first{n}.txt"
        ids = (self.folder / "devkit/ImageSets/Segmentation/train.txt").read_text().splitlines()
        path.write_text("".join(f"{image_id}\n" for image_id in ids[:n]))
        return {"train_list": path, "infer_list": path}

    def flags(self, **more: object) -> dict[str, object]:
        """Flags of a step that works on these data."""
        train = self.folder / "devkit/ImageSets/Segmentation/train.txt"
        return {
            "device": self.device,
            "voc12_root": self.folder / "devkit",
            "label_file": self.folder / "cls_labels.npy",
            "train_list": train,
            "infer_list": train,
            "ood_root": self.folder / "ood",
            "ood_list": self.folder / "ood_list.txt",
            "cam_out_dir": self.folder / "cam",
            "ir_label_out_dir": self.folder / "ir_label",
            "cam_init_weights_name": self.weights / "cam.pth",
            "cam_weights_name": self.weights / "cam.pth",
            "irn_weights_name": self.weights / "irn.pth",
            "imagenet_weights": self.weights / "backbone.pth",
            "deeplab_network": "net.resnet101_deeplab",
            "deeplab_init_weights": self.weights / "deeplab.pth",
            "deeplab_weights_name": self.weights / "deeplab.pth",
            "deeplab_mask_dir": self.folder / "ir_label",
            "deeplab_eval_set": "train",
            "result_dir": self.folder / "result",
            **more,
        }


def walk_cells(size: Size) -> int:
    """Cells of the map of an image of (H, W)."""
    return math.prod(cells_of(size))


def size_text(size: Size) -> str:
    """`500 x 375`, width first."""
    return f"{size[1]} x {size[0]}"


def _images_text(images: Sequence[Size]) -> str:
    named = ", ".join(dict.fromkeys(map(size_text, images)))
    return f"{len(images)} image{'s' if len(images) > 1 else ''} of {named}"


def _over_images(
    data: Inputs,
    run: Callable[[Config], None],
    plain_run: Callable[[Config], None],
    outputs: Sequence[str],
    images: Sequence[Size],
    *,
    n_plain: int | None = None,
    units_per_image: int = 1,
    **flags: object,
) -> dict[str, str | Callable[[], Way]]:
    """What a step works on and its two ways; the plain one gets the first `n_plain` images (default: all)."""
    data.make(images)
    n_plain = min(n_plain or len(images), len(images))
    fewer = f" (plain: {n_plain})" if n_plain < len(images) else ""
    ways = {
        name: partial(_step_way, way, data.flags(**data.first(n), **flags), outputs, units=n * units_per_image)
        for name, way, n in (("ours", run, len(images)), ("plain", plain_run, n_plain))
    }
    return {"on": _images_text(images) + fewer, **ways}


def _trainings(
    run: Callable[[Config], None],
    plain_run: Callable[[Config], None],
    flags: dict[str, object],
    output: str,
    *,
    n_crops: int,
    crop: int,
    label_bytes: int = 0,
) -> dict[str, Callable[[], Way]]:
    """The two ways of a training on batches of `n_crops`, from one update to the next.

    Raises `BenchmarkError` if the batches that the plain way's loaders have in store are too large.
    """
    image_bytes = 3 * crop**2 * FLOAT_BYTES
    require_shared_memory((untimed_updates() + 1) * n_crops * (image_bytes + label_bytes))
    return {
        name: partial(_step_way, way, flags, [output], untimed_updates=untimed_updates())
        for name, way in (("ours", run), ("plain", plain_run))
    }


def random_walk(data: Inputs, size: Size, n_walks: int) -> Workload:
    """The random walk alone, on the map of one image, `n_walks` times."""
    config = parse_config([])

    def walked(cam: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        return RandomWalk(edge, beta=config.beta, exp_times=config.exp_times)(cam)

    def way(walk: Callable) -> Way:
        cam, edge = (tensor.to(data.device) for tensor in inputs.walk_inputs(size, inputs.N_OBJECTS))
        last = {}

        def call() -> None:
            for _ in range(n_walks):
                last["walked"] = walk(cam, edge)

        return Way(call, lambda: {"walked": last["walked"].cpu().numpy()}, units=n_walks)

    # A product reads the matrix and two maps of each class, and writes one
    entries = WALK_NEIGHBOURS * SPARSE_ENTRY_BYTES + 3 * inputs.N_OBJECTS * DOUBLE_BYTES
    n_products = len(chebyshev_coefficients(2**WALK_SQUARINGS)) - 1
    return Workload(
        on=f"map of {size_text(size)}, {inputs.N_OBJECTS} classes",
        ours=partial(way, walked),
        plain=partial(way, plain.random_walk),
        bytes=n_products * walk_cells(size) * entries,
    )


def sem_seg(data: Inputs, size: Size, n_images: int, n_plain: int) -> Workload:
    """make_sem_seg_labels: IRN, random walk, masks."""
    run, plain_run = make_sem_seg_labels.run, plain.make_sem_seg_labels
    return Workload(
        **_over_images(data, run, plain_run, ["sem_seg_out_dir"], [size] * n_images, n_plain=n_plain),
    )


def wood_step(data: Inputs, sizes: Sizes) -> Workload:
    """train_cam, from one update to the next."""
    images = [(sizes.crop, sizes.crop)] * sizes.batch
    data.make(images, n_ood=sizes.batch)
    flags = data.flags(
        cam_crop_size=sizes.crop,
        cam_resize_long=(sizes.crop, sizes.crop * 5 // 4),
        cam_batch_size=sizes.batch,
        ood_batch_size=sizes.batch,
        ood_long_side=sizes.crop,
        cluster_K=min(sizes.batch, 50),
        cam_num_epoches=sizes.updates(),
        cam_learning_rate=LEARNING_RATE,
        cam_select="last",
    )
    return Workload(
        on=f"{sizes.batch} + {sizes.batch} crops of {sizes.crop}",
        **_trainings(
            train_cam.run, plain.train_cam, flags, "cam_weights_name", n_crops=2 * sizes.batch, crop=sizes.crop
        ),
        images=2 * sizes.batch,
    )


def irn_step(data: Inputs, sizes: Sizes) -> Workload:
    """train_irn, from one update to the next, with the loader that feeds it."""
    images = [_VOC_SIZES[i % len(_VOC_SIZES)] for i in range(sizes.irn_batch)]
    data.make(images)
    flags = data.flags(
        irn_crop_size=sizes.irn_crop,
        irn_batch_size=sizes.irn_batch,
        irn_num_epoches=sizes.updates(),
        irn_learning_rate=LEARNING_RATE,
    )
    labels = plain.pair_labels(np.zeros([sizes.irn_crop // MAP_STRIDE] * 2, dtype=np.uint8), plain.TRAIN_RADIUS)
    return Workload(
        on=f"{sizes.irn_batch} crops of {sizes.irn_crop}",
        **_trainings(
            train_irn.run,
            plain.train_irn,
            flags,
            "irn_weights_name",
            n_crops=sizes.irn_batch,
            crop=sizes.irn_crop,
            label_bytes=sum(kind.nbytes for kind in labels),
        ),
        images=sizes.irn_batch,
    )


def cams(data: Inputs, sizes: Sizes) -> Workload:
    """make_cam with the default scales."""
    outputs = ["cam_out_dir"]
    return Workload(
        **_over_images(data, make_cam.run, plain.make_cam, outputs, sizes.cam, n_plain=sizes.plain_cam),
    )


def advcams(data: Inputs, sizes: Sizes) -> Workload:
    """make_advcam, for each iteration of each class and scale."""
    iterations = sum(plain.advcam_iterations(scale, sizes.adv_iter) for scale in plain.ADVCAM_SCALES)
    workload = Workload(
        **_over_images(
            data,
            make_advcam.run,
            plain.make_advcam,
            ["advcam_out_dir"],
            sizes.advcam,
            n_plain=sizes.plain_advcam,
            units_per_image=inputs.N_OBJECTS * iterations,
            adv_iter=sizes.adv_iter,
            advcam_batch_size=sizes.advcam_batch,
        ),
        images=1 / (inputs.N_OBJECTS * iterations),
    )
    settings = f"{inputs.N_OBJECTS} classes, T = {sizes.adv_iter}, batches of {sizes.advcam_batch}"
    return dataclasses.replace(workload, on=f"{workload.on}, {settings}")


def evaluation(data: Inputs, sizes: Sizes) -> Workload:
    """eval_cam over the default thresholds, files read included."""
    pixels = sum(map(math.prod, sizes.evaluated))
    return Workload(
        **_over_images(data, eval_cam.run, plain.eval_cam, [], sizes.evaluated),
        bytes=pixels * inputs.N_OBJECTS * FLOAT_BYTES / len(sizes.evaluated),
    )


def refinement(data: Inputs, sizes: Sizes) -> Workload:
    """cam_to_ir_label, which uses all cores, against one process."""
    run, plain_run = cam_to_ir_label.run, plain.cam_to_ir_label
    ways = _over_images(data, run, plain_run, ["ir_label_out_dir"], sizes.refined, n_plain=sizes.plain_refined)
    marginals = sum(map(math.prod, sizes.refined)) * (inputs.N_OBJECTS + 1) * FLOAT_BYTES / len(sizes.refined)
    return Workload(**ways, bytes=CRF_RUNS * CRF_ITERATIONS * 2 * marginals)


def deeplab_step(data: Inputs, sizes: Sizes) -> Workload:
    """train_deeplab on ResNet-101, from one update to the next."""
    images = [_VOC_SIZES[i % len(_VOC_SIZES)] for i in range(sizes.deeplab_batch)]
    data.make(images)
    flags = data.flags(
        deeplab_crop_size=sizes.deeplab_crop,
        deeplab_batch_size=sizes.deeplab_batch,
        deeplab_iter_size=1,
        deeplab_max_iter=sizes.updates(),
    )
    return Workload(
        on=f"{sizes.deeplab_batch} crops of {sizes.deeplab_crop}, ResNet-101",
        **_trainings(
            train_deeplab.run,
            plain.train_deeplab,
            flags,
            "deeplab_weights_name",
            n_crops=sizes.deeplab_batch,
            crop=sizes.deeplab_crop,
        ),
        images=sizes.deeplab_batch,
    )


def segmentation(data: Inputs, sizes: Sizes, **flags: object) -> Workload:
    """eval_deeplab with dense CRF, which uses all cores, against one process; with more flags of the step."""
    outputs = ["deeplab_out_dir", "deeplab_crf_out_dir"]
    workload = Workload(**_over_images(data, eval_deeplab.run, plain.eval_deeplab, outputs, sizes.segmented, **flags))
    return dataclasses.replace(workload, on=f"{workload.on}, ResNet-101, 21 classes")


def crf_of_labels(data: Inputs, sizes: Sizes) -> Workload:
    """Dense CRF of cam_to_ir_label, two label maps an image, against pydensecrf, a process for each core."""
    rng = np.random.default_rng(0)
    keys = np.arange(inputs.N_OBJECTS)
    items = []
    for size in sizes.crf:
        image, mask = inputs.photograph(size, keys, rng)
        items.append((image, inputs.activation_maps(mask, keys, rng)[1], keys))

    def labels(backend: Backend) -> Iterable[np.ndarray]:
        device = device_of(backend, resolve_device(data.device))
        refine = partial(_confident_label, backend=backend, device=device)
        return ordered_map(refine, items, workers=usable_cores() if device.type == "cpu" else 0, flag="crf_workers")

    n_labels = CRF_RUNS * (len(keys) + 1)
    return _crf_workload(labels, sizes, f"{len(keys) + 1} labels, {CRF_RUNS} maps", n_labels, device=data.device)


def _confident_label(item: tuple[np.ndarray, np.ndarray, np.ndarray], **how: object) -> np.ndarray:
    return confident_label(*item, foreground_score=0.3, background_score=0.15, **how)


def crf_of_classes(data: Inputs, sizes: Sizes) -> Workload:
    """Dense CRF of eval_deeplab, on random logits of a network's size, against pydensecrf, a process for each core."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(inputs.photograph(size, (), rng)[0]).permute(2, 0, 1) for size in sizes.crf]
    device = resolve_device(data.device)

    def masks(backend: Backend) -> Iterable[np.ndarray]:
        names = [f"image {number}" for number in range(len(images))]
        how = {"device": device, "workers": usable_cores(), "backend": backend}
        pairs = masks_of_images(_RandomLogits(), images, paths=names, crf=True, **how)
        return (refined for _, refined in pairs)

    return _crf_workload(masks, sizes, f"{N_CLASSES} classes", N_CLASSES, device=data.device)


class _RandomLogits(torch.nn.Module):
    """In place of a segmentation network, the same for every image of a size."""

    def network_logits(self, images: torch.Tensor) -> torch.Tensor:
        size = [math.ceil(side / SEGMENTER_STRIDE) for side in images.shape[-2:]]
        generator = torch.Generator().manual_seed(0)
        return 2 * torch.randn(1, N_CLASSES, *size, generator=generator).to(images.device)


def _crf_workload(
    masks: Callable[[Backend], Iterable[np.ndarray]], sizes: Sizes, words: str, n_labels: int, *, device: str
) -> Workload:
    """`masks(backend)`: of all images."""

    def way(backend: Backend) -> Way:
        made: dict[str, np.ndarray] = {}

        def call() -> None:
            made.update({str(number): mask for number, mask in enumerate(masks(backend))})

        on_cpu = device_of(backend, resolve_device(device)).type == "cpu"
        return Way(call, lambda: made, units=len(sizes.crf), busy_cores=usable_cores() if on_cpu else None)

    pixels = sum(map(math.prod, sizes.crf)) / len(sizes.crf)
    return Workload(
        on=f"{_images_text(sizes.crf)}, {words}",
        ours=lambda: way("torch"),
        plain=lambda: way("pydensecrf"),
        bytes=CRF_ITERATIONS * 2 * n_labels * FLOAT_BYTES * pixels,
    )


def prepare(make: Callable[..., Workload], arguments: tuple, name: str, *, device: str, precision: str) -> Way:
    """The way called `name`, `ours` or `plain`, of the workload `make(*arguments)`, set up as its process would be."""
    set_precision(precision, resolve_device(device))
    if name == "ours" and device == "cpu":
        keep_freed_memory()  # as run_sample.py does
    return getattr(make(*arguments), name)()
