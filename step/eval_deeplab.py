"""DeepLab's masks of whole images, without and with dense CRF, and their mIoU."""

import logging
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from misc.crf import require_backend
from misc.files.atomic import background_writer
from misc.files.images import label_path, write_palette
from misc.run.config import Config
from misc.run.depends import source_of_files
from misc.run.device import resolve_device
from misc.run.distributed import on_first_process, share
from misc.run.done import finished_files
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.record import discard_scores, scores_path
from misc.run.step import Files, Inputs, Step
from misc.segmentation import masks_of_images
from misc.summary import Content, content_of_mask, tell_masks
from net.build import inputs_of_network, require_network
from net.deeplab import load_segmenter
from voc12.classes import names_with_background, voc_palette
from voc12.dataloader import WholeImages
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.evaluation import evaluate_masks
from voc12.lists import read_split
from voc12.verify import missing_masks, require_masks, require_readable

TITLES = {"eval_deeplab": "DeepLab", "eval_deeplab_crf": "DeepLab + CRF"}
BYTES_PER_PIXEL = 0.025
"""What a mask takes on disk, in each of the two folders."""
STEP = Step(
    name="eval_deeplab",
    description="evaluate DeepLab-v2, without and with dense CRF",
    reads=("voc12_root", "class_list", "deeplab_eval_set", "deeplab_network", "deeplab_weights_name"),
    writes=("deeplab_out_dir", "deeplab_crf_out_dir", "deeplab_server_dir", "result_dir"),
    flags=("deeplab_crf", "precision"),
    shared=True,
    bytes_per_pixel=lambda args: dict.fromkeys(("deeplab_out_dir", "deeplab_crf_out_dir"), BYTES_PER_PIXEL),
    memory_flags=("num_workers", "crf_workers"),
)

MASKS = replace(STEP, flags=("precision",))
"""What a mask depends on."""

log = logging.getLogger(__name__)

TEST_SET = "test"
SERVER_LAYOUT = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where VOC's evaluation server looks for ID.png; comp6: trained on more than VOC's own data (ImageNet)."""


def _is_scored(devkit: Devkit, split: str, ids: list[str]) -> bool:
    """Whether there is a ground truth: VOC keeps that of `test` to itself."""
    return split != TEST_SET or len(missing_masks(devkit, ids)) < len(ids)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    if args.deeplab_crf:
        require_backend(args.crf)
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set, flag="deeplab_eval_set")
    require_classes_of_network(devkit, args.deeplab_weights_name, planned=planned)
    n_classes = len(names_with_background(devkit.classes))
    require_network(args.deeplab_network, "DeepLab", args.deeplab_weights_name, planned=planned, n_classes=n_classes)
    if _is_scored(devkit, args.deeplab_eval_set, ids):
        require_masks(devkit, ids, num_workers=args.num_workers, set_flag="deeplab_eval_set")
    written = {
        "deeplab_out_dir": True,
        "deeplab_crf_out_dir": args.deeplab_crf,
        "deeplab_server_dir": args.deeplab_eval_set == TEST_SET,
    }
    for flag in (flag for flag, used in written.items() if used):
        require_writable(getattr(args, flag), flag=flag)
    require_readable(devkit.image_paths(ids), num_workers=args.num_workers)
    return {}


def _of_all_files(args: Config, devkit: Devkit) -> Inputs:
    """What every mask depends on."""
    return inputs_of_network(args, "deeplab_network", "deeplab_weights_name", devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set, flag="deeplab_eval_set")
    scored = _is_scored(devkit, args.deeplab_eval_set, ids)
    return {
        **_of_all_files(args, devkit),
        "deeplab_eval_set": Files(devkit.image_paths(ids)),
        "voc12_root": Files(devkit.mask_paths(ids) if scored else []),
    }


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set, flag="deeplab_eval_set")
    masks = [path for image_id in ids for path in _mask_paths(args, image_id)]
    if not _is_scored(devkit, args.deeplab_eval_set, ids):
        return masks
    return [*masks, *(scores_path(args.result_dir, name) for name in _folders(args))]


def _folders(args: Config) -> dict[str, Path]:
    """{name of the score: folder of its masks}."""
    folders = {"eval_deeplab": Path(args.deeplab_out_dir)}
    if args.deeplab_crf:
        folders["eval_deeplab_crf"] = Path(args.deeplab_crf_out_dir)
    return folders


def _mask_paths(args: Config, image_id: str) -> list[Path]:
    """Where the masks of an image are written: without dense CRF, with it, and for VOC's evaluation server."""
    folders = [*_folders(args).values()]
    if args.deeplab_eval_set == TEST_SET:
        folders.append(Path(args.deeplab_server_dir) / SERVER_LAYOUT)
    return [label_path(folder, image_id) for folder in folders]


def run(args: Config) -> None:
    """Write `deeplab_out_dir`/ID.png and `deeplab_crf_out_dir`/ID.png of `deeplab_eval_set`, and score them."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set, flag="deeplab_eval_set")
    _make_masks(args, devkit, share(ids))
    on_first_process(_score, args, devkit, ids)


def _make_masks(args: Config, devkit: Devkit, ids: list[str]) -> None:
    """Write the masks of each image that are not there yet."""
    device = resolve_device(args.device)
    n_classes = len(names_with_background(devkit.classes))
    paths = devkit.image_paths(ids)
    # Masks without dense CRF are the same beside those with it; the evaluation server's are either of them
    by = STEP if args.deeplab_eval_set == TEST_SET else MASKS
    finished = finished_files(by, args, _of_all_files(args, devkit))
    items = [_mask_paths(args, image_id) for image_id in ids]
    pending = finished.pending(items, lambda number: source_of_files(paths[number]))
    if not pending:
        return
    model = load_segmenter(args.deeplab_network, args.deeplab_weights_name, device, n_classes=n_classes)

    pending_paths = [paths[number] for number in pending]
    images = WholeImages(pending_paths)
    loader = sequential_loader(images, num_workers=args.num_workers, device=device)
    how = {"device": device, "crf": args.deeplab_crf, "workers": args.crf_workers, "backend": args.crf}
    masks = masks_of_images(model, loader, paths=pending_paths, **how)
    bar = progress(masks, total=len(pending), desc="DeepLab masks", unit="image")
    with background_writer() as submit:
        for number, of_image in zip(pending, bar, strict=True):
            source_of = partial(source_of_files, paths[number])
            # The last mask, refined where that is asked for, is also the evaluation server's
            for path, mask in zip_longest(items[number], of_image, fillvalue=of_image[-1]):
                submit(finished.write, [path], source_of, _write, path, mask)


def _write(path: Path, mask: np.ndarray) -> Content:
    write_palette(path, mask, voc_palette())
    return content_of_mask(mask)


def _score(args: Config, devkit: Devkit, ids: list[str]) -> None:
    """Score the masks where there is a ground truth."""
    tell_masks(STEP.name, [_mask_paths(args, image_id)[-1] for image_id in ids])
    if args.deeplab_eval_set == TEST_SET:
        server = Path(args.deeplab_server_dir) / SERVER_LAYOUT
        log.info("wrote %d masks for VOC's evaluation server into %s", len(ids), server)
    if not _is_scored(devkit, args.deeplab_eval_set, ids):
        log.info("no score: the set %s has no masks in %s", args.deeplab_eval_set, devkit.mask_folder)
        return
    if not args.deeplab_crf:
        discard_scores(args.result_dir, "eval_deeplab_crf")
    for name, folder in _folders(args).items():
        evaluate_masks(
            devkit,
            args.deeplab_eval_set,
            str(folder),
            result_dir=args.result_dir,
            name=name,
            title=TITLES[name],
            set_flag="deeplab_eval_set",
            weights=args.deeplab_weights_name,
        )
