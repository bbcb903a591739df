"""Segment any photograph, or a folder of photographs, with the trained DeepLab."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from misc.crf import require_backend
from misc.errors import InputError, first_three
from misc.files.atomic import LONGEST_NAME, write_json
from misc.files.images import IMAGE_SUFFIXES, read_image, read_label, write_jpeg, write_palette
from misc.files.jsonfile import read_dict
from misc.files.resultfiles import CLASSES_FILE
from misc.imutils import resize_label
from misc.report.fonts import tell_missing_letters
from misc.report.pictures import mask_overlay, with_legend
from misc.run.config import Config
from misc.run.depends import source_of_files
from misc.run.device import resolve_device
from misc.run.done import finished_files, is_redone
from misc.run.loaders import sequential_loader
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Files, Inputs, Step
from misc.segmentation import masks_of_images
from misc.summary import Content, content_of_mask, tell_masks
from net.build import inputs_of_network, require_network
from net.deeplab import load_segmenter
from voc12.classes import colours_of, shown_colours, voc_palette
from voc12.dataloader import Photographs
from voc12.devkit import names_of_network
from voc12.verify import require_readable

STEP = Step(
    name="predict",
    description="segment photographs with DeepLab-v2",
    reads=("voc12_root", "class_list", "deeplab_network", "deeplab_weights_name", "predict_input"),
    writes=("predict_out_dir",),
    flags=("predict_long_side", "predict_crf", "precision"),
    memory_flags=("num_workers", "crf_workers", "predict_long_side"),
    version=2,
)
OVERLAY = "_overlay.jpg"

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
        files = (file for file in path.iterdir() if not file.name.startswith("."))  # such as those of macOS
        found = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror})"
        raise InputError(f"--predict_input {predict_input} {problem}; {expected}.") from error
    if not found:
        raise InputError(
            f"--predict_input {predict_input} has no photographs; expected files {', '.join(IMAGE_SUFFIXES)}."
        )
    return found


def _output_names(paths: list[Path]) -> list[str]:
    """Names of the outputs: without the suffix, or with it for photographs that differ in nothing else."""
    n_of_stem = Counter(path.stem.lower() for path in paths)
    names = [path.stem if n_of_stem[path.stem.lower()] == 1 else path.name for path in paths]
    return names if len({name.lower() for name in names}) == len(names) else [path.name for path in paths]


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
    longest = max((f"{name}{OVERLAY}" for name in _output_names(paths)), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise InputError(f"--predict_input: the name {longest[:30]}... is too long for an overlay; shorten it.")
    names, weights = _names(args), args.deeplab_weights_name
    require_network(args.deeplab_network, "DeepLab", weights, planned=planned, n_classes=len(names))
    require_writable(args.predict_out_dir, flag="predict_out_dir")
    require_readable(paths, num_workers=args.num_workers)
    _require_no_others(args, paths, names, planned=planned)
    return {}


def _names(args: Config) -> list[str]:
    """Of the values of a mask."""
    return names_of_network(args.deeplab_weights_name, voc12_root=args.voc12_root, class_list=args.class_list)


def _of_all_files(args: Config, names: list[str]) -> Inputs:
    """What every mask depends on."""
    return inputs_of_network(args, "deeplab_network", "deeplab_weights_name", names)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    return {**_of_all_files(args, _names(args)), "predict_input": Files(_photographs(args.predict_input))}


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    folder = Path(args.predict_out_dir)
    of_photographs = [path for paths in _written(folder, _photographs(args.predict_input)) for path in paths]
    return [*of_photographs, folder / CLASSES_FILE]


def _written(folder: Path, photographs: list[Path]) -> list[list[Path]]:
    """The mask and the overlay of each photograph."""
    return [[folder / f"{name}.png", folder / f"{name}{OVERLAY}"] for name in _output_names(photographs)]


def _require_no_others(args: Config, paths: list[Path], names: list[str], *, planned: Planned) -> None:
    """Raise `InputError` if masks that are to be made would replace those of other photographs.

    Cameras call different photographs by one name, and `a.jpg` and `a.png`, each on its own, have masks of one name. A
    mask that is kept, as that of a photograph that was moved, is none of these, and `--redo` asks for just that.
    """
    out = Path(args.predict_out_dir)
    known, items = _photographs_of(out), _written(out, paths)
    own = _whole_paths(paths)
    # Earlier versions noted the photographs' folder alone
    same = [{None, path, os.path.dirname(path)} for path in own]
    others = [n for n, (mask, _) in enumerate(items) if mask.is_file() and known.get(mask.name) not in same[n]]
    if not others or is_redone(STEP, args):
        return
    kept: set[int] = set()
    if args.deeplab_weights_name not in planned:
        finished = finished_files(STEP, args, _of_all_files(args, names))
        kept = finished.kept([items[n] for n in others], lambda place: source_of_files(paths[others[place]]))
    replaced = [items[n][0].name for place, n in enumerate(others) if place not in kept]
    if replaced:
        raise InputError(
            f"--predict_out_dir {out} has masks of other photographs, such as {known[replaced[0]]}, of which some "
            f"would be replaced ({first_three(replaced)}); name another folder, or pass --redo predict."
        )


def _whole_paths(photographs: list[Path]) -> list[str]:
    """Of photographs that lie in one folder; their names are no links that are followed."""
    folder = photographs[0].parent.resolve()
    return [str(folder / path.name) for path in photographs]


def _photographs_of(out: Path) -> dict[str, str]:
    """{mask that is there: its photograph}, as the runs that have ended say."""
    known = read_dict(out / CLASSES_FILE).get("photographs")
    return {name: path for name, path in known.items() if (out / name).is_file()} if isinstance(known, dict) else {}


def _shares_of(out: Path, photographs: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """{photograph: the shares of its classes}, as earlier runs say, of those of `photographs`, {mask: photograph}."""
    known = read_dict(out / CLASSES_FILE).get("shares")

    def is_of(name: str, mask: str) -> bool:
        path = photographs.get(mask, "")
        return os.path.basename(path) == name or os.path.isdir(path)  # as earlier versions noted it

    return {
        name: shares
        for name, shares in (known.items() if isinstance(known, dict) else ())
        if any(is_of(name, mask) for mask in (f"{Path(name).stem}.png", f"{name}.png"))
    }


def run(args: Config) -> None:
    """Write `predict_out_dir`/NAME.png (ids, palette), NAME_overlay.jpg with a legend, and classes.json.

    Finished photographs are kept.
    """
    device = resolve_device(args.device)
    paths, out = _photographs(args.predict_input), Path(args.predict_out_dir)
    names = _names(args)
    tell_missing_letters(names)
    finished = finished_files(STEP, args, _of_all_files(args, names))
    items = _written(out, paths)
    pending = finished.pending(items, lambda number: source_of_files(paths[number]))
    model = load_segmenter(args.deeplab_network, args.deeplab_weights_name, device, n_classes=len(names))

    pending_paths = [paths[number] for number in pending]
    reduced = Photographs(pending_paths, long_side=args.predict_long_side)
    loader = sequential_loader(reduced, num_workers=args.num_workers, device=device)
    how = {"device": device, "crf": args.predict_crf, "workers": args.crf_workers, "backend": args.crf}
    masks = masks_of_images(model, loader, paths=pending_paths, **how)
    bar = progress(masks, total=len(pending), desc="predict", unit="image")
    for number, of_image in zip(pending, bar, strict=True):
        photograph = read_image(paths[number], upright=True)
        mask = resize_label(of_image[-1], photograph.shape[:2])
        source_of = partial(source_of_files, paths[number])
        finished.write(items[number], source_of, _write, items[number], photograph, mask, names)
    own = {mask.name: path for (mask, _), path in zip(items, _whole_paths(paths), strict=True)}
    photographs = _photographs_of(out) | own
    shares = _shares_of(out, photographs)
    for path, (mask_path, _) in zip(paths, items, strict=True):
        counts = np.bincount(read_label(mask_path).ravel(), minlength=len(names))
        of_classes = (k for k in np.argsort(-counts, kind="stable") if counts[k])
        shares[path.name] = {names[k]: counts[k] / counts.sum() for k in of_classes}
    write_json(out / CLASSES_FILE, {"photographs": photographs, "classes": colours_of(names), "shares": shares})
    tell_masks(STEP.name, [mask_path for mask_path, _ in items])
    log.info("segmented %d photographs: masks, overlays and classes.json are in %s", len(paths), out)


def _write(paths: list[Path], photograph: np.ndarray, mask: np.ndarray, names: list[str]) -> Content:
    mask_path, overlay_path = paths
    write_palette(mask_path, mask, voc_palette())
    overlay = mask_overlay(photograph, mask, voc_palette())
    write_jpeg(overlay_path, with_legend(overlay, shown_colours(np.unique(mask), names)))
    return content_of_mask(mask)
