"""Step 8b: DeepLab's masks of whole images, without and with dense CRF, and their mIoU."""

import logging
from pathlib import Path

from misc.crf import require_backend
from misc.files.images import write_palette
from misc.run.config import Config
from misc.run.device import resolve_device
from misc.run.distributed import on_first_process, share
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.record import discard_scores
from misc.run.step import Step
from misc.segmentation import plain_and_refined_masks, plain_masks
from net.build import require_network
from net.deeplab import load_segmenter
from voc12.classes import names_with_background, voc_palette
from voc12.dataloader import WholeImages
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.evaluation import evaluate_masks
from voc12.lists import read_split
from voc12.verify import missing_masks, require_masks, require_readable

STEP = Step(
    name="eval_deeplab",
    description="evaluate DeepLab-v2, without and with dense CRF",
    reads=("voc12_root", "class_list", "deeplab_eval_set", "deeplab_network", "deeplab_weights_name"),
    writes=("deeplab_out_dir", "deeplab_crf_out_dir", "deeplab_server_dir", "result_dir"),
    flags=("deeplab_crf",),
    shared=True,
)

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
    require_readable([devkit.image_path(image_id) for image_id in ids], num_workers=args.num_workers)
    return {}


def run(args: Config) -> None:
    """Write `deeplab_out_dir`/ID.png and `deeplab_crf_out_dir`/ID.png of `deeplab_eval_set`, and score them."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.deeplab_eval_set, flag="deeplab_eval_set")
    folders = {"eval_deeplab": Path(args.deeplab_out_dir)}
    if args.deeplab_crf:
        folders["eval_deeplab_crf"] = Path(args.deeplab_crf_out_dir)
    _make_masks(args, devkit, share(ids), list(folders.values()))
    on_first_process(_score, args, devkit, ids, folders)


def _make_masks(args: Config, devkit: Devkit, ids: list[str], folders: list[Path]) -> None:
    """Write ID.png without dense CRF and, if there is a second folder, with it."""
    device = resolve_device(args.device)
    n_classes = len(names_with_background(devkit.classes))
    model = load_segmenter(args.deeplab_network, args.deeplab_weights_name, device, n_classes=n_classes)

    images = WholeImages([devkit.image_path(image_id) for image_id in ids])
    loader = sequential_loader(images, num_workers=args.num_workers, device=device)
    if args.deeplab_crf:
        masks = plain_and_refined_masks(model, loader, device=device, workers=args.crf_workers, backend=args.crf)
    else:
        masks = ((mask,) for mask in plain_masks(model, loader, device=device))
    server = Path(args.deeplab_server_dir) / SERVER_LAYOUT
    bar = progress(masks, total=len(ids), desc="DeepLab masks", unit="image")
    for image_id, of_image in zip(ids, bar, strict=True):
        for folder, mask in zip(folders, of_image, strict=True):
            write_palette(folder / f"{image_id}.png", mask, voc_palette())
        if args.deeplab_eval_set == TEST_SET:
            write_palette(server / f"{image_id}.png", of_image[-1], voc_palette())


def _score(args: Config, devkit: Devkit, ids: list[str], folders: dict[str, Path]) -> None:
    """Score the masks where there is a ground truth. `folders`: {name of the score: folder of its masks}."""
    if args.deeplab_eval_set == TEST_SET:
        server = Path(args.deeplab_server_dir) / SERVER_LAYOUT
        log.info("wrote %d masks for VOC's evaluation server into %s", len(ids), server)
    if not _is_scored(devkit, args.deeplab_eval_set, ids):
        log.info("no score: the set %s has no masks in %s", args.deeplab_eval_set, devkit.root / "SegmentationClass")
        return
    if not args.deeplab_crf:
        discard_scores(args.result_dir, "eval_deeplab_crf")
    for name, title in (("eval_deeplab", "DeepLab"), ("eval_deeplab_crf", "DeepLab + CRF")):
        if name in folders:
            evaluate_masks(
                devkit,
                args.deeplab_eval_set,
                str(folders[name]),
                result_dir=args.result_dir,
                name=name,
                title=title,
                set_flag="deeplab_eval_set",
                weights=args.deeplab_weights_name,
            )
