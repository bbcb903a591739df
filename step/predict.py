"""Step 8d: segment any photograph, or a folder of photographs, with the trained DeepLab."""

import logging
from pathlib import Path

import numpy as np

from misc.crf import require_backend
from misc.errors import InputError
from misc.files.atomic import write_json
from misc.files.images import IMAGE_SUFFIXES, read_image, write_jpeg, write_palette
from misc.imutils import resize_label
from misc.report.pictures import mask_overlay
from misc.run.config import Config
from misc.run.device import resolve_device
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Step
from misc.segmentation import plain_and_refined_masks, plain_masks
from net.build import require_network
from net.deeplab import load_segmenter
from voc12.classes import voc_palette
from voc12.dataloader import Photographs
from voc12.devkit import names_of_network
from voc12.verify import require_readable

STEP = Step(
    name="predict",
    description="segment photographs with DeepLab-v2",
    reads=("voc12_root", "class_list", "deeplab_network", "deeplab_weights_name", "predict_input"),
    writes=("predict_out_dir",),
    flags=("predict_long_side", "predict_crf"),
)

log = logging.getLogger(__name__)


def _photographs(predict_input: str) -> list[Path]:
    """The photograph, or those directly in the folder. Raises `InputError` if there is none."""
    expected = "expected a photograph or a folder of photographs"
    if not predict_input:
        raise InputError(f"predict needs --predict_input; {expected}.")
    path = Path(predict_input)
    try:
        if path.is_file():
            return [path]
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror})"
        raise InputError(f"--predict_input {predict_input} {problem}; {expected}.") from error
    if not found:
        raise InputError(
            f"--predict_input {predict_input} has no photographs; expected files {', '.join(IMAGE_SUFFIXES)}."
        )
    return found


def _output_names(paths: list[Path]) -> list[str]:
    """Names of the outputs: without the suffix, or with it where two photographs differ in nothing else."""
    stems = [path.stem for path in paths]
    return stems if len({stem.lower() for stem in stems}) == len(stems) else [path.name for path in paths]


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    if args.predict_crf:
        require_backend(args.crf)
    paths = _photographs(args.predict_input)
    if Path(args.predict_out_dir).resolve() == paths[0].parent.resolve():
        raise InputError(
            f"--predict_out_dir {args.predict_out_dir} is the photographs' own folder, where masks could replace "
            "them; name another."
        )
    n_classes = len(names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list))
    require_network(args.deeplab_network, "DeepLab", args.deeplab_weights_name, planned=planned, n_classes=n_classes)
    require_writable(args.predict_out_dir, flag="predict_out_dir")
    require_readable(paths, num_workers=args.num_workers)
    return {}


def run(args: Config) -> None:
    """Write `predict_out_dir`/NAME.png (ids, palette), NAME_overlay.jpg, and classes.json (share of each class)."""
    device = resolve_device(args.device)
    paths, out = _photographs(args.predict_input), Path(args.predict_out_dir)
    names = names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list)
    model = load_segmenter(args.deeplab_network, args.deeplab_weights_name, device, n_classes=len(names))

    reduced = Photographs(paths, long_side=args.predict_long_side)
    loader = sequential_loader(reduced, num_workers=args.num_workers, device=device)
    if args.predict_crf:
        pairs = plain_and_refined_masks(model, loader, device=device, workers=args.crf_workers, backend=args.crf)
        masks = (refined for _, refined in pairs)
    else:
        masks = plain_masks(model, loader, device=device)
    shares = {}
    bar = progress(masks, total=len(paths), desc="predict", unit="image")
    for path, name, small in zip(paths, _output_names(paths), bar, strict=True):
        photograph = read_image(path, upright=True)
        mask = resize_label(small, photograph.shape[:2])
        write_palette(out / f"{name}.png", mask, voc_palette())
        write_jpeg(out / f"{name}_overlay.jpg", mask_overlay(photograph, mask, voc_palette()))
        counts = np.bincount(mask.ravel(), minlength=len(names))
        shares[path.name] = {names[k]: counts[k] / mask.size for k in np.argsort(-counts, kind="stable") if counts[k]}
    write_json(out / "classes.json", shares)
    log.info("segmented %d photographs: masks, overlays and classes.json are in %s", len(paths), out)
