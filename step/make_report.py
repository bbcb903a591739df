"""Last step: one page that shows what the run did, from the files in the result folder (not in the original)."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from misc.cam import label_map, merge_high_res, scale_maps
from misc.errors import InputError
from misc.files import camfile, instancefile
from misc.files.atomic import atomic_path
from misc.files.images import read_image, read_label
from misc.imutils import mirror_pair, normalize, resize_image, scaled_size, to_chw
from misc.metrics import confusion_matrix, scores
from misc.report.collect import SEGMENTATION_EVALUATIONS, Arm, collect_arm
from misc.report.page import ImageRow, chart_files, render_page
from misc.report.pictures import (
    UNSURE_COLOUR,
    Captioned,
    contact_sheet,
    edge_picture,
    heat_overlay,
    instance_colours,
    mask_colours,
    mask_overlay,
)
from misc.run.config import (
    STEP_SUFFIX,
    Config,
    changed_flags,
    deeplab_list_flag,
    enabled_steps,
    parse_config,
    to_arguments,
)
from misc.run.device import resolve_device
from misc.run.plan import Planned, require_writable
from misc.run.progress import progress
from misc.run.step import Step
from net.build import build_network
from net.weights import load_weights
from voc12.classes import names_with_background, voc_palette
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.images import read_labelled_images
from voc12.lists import read_list, read_ood_paths, read_split

STEP = Step(
    name="make_report",
    description="write one page of what was done so far: curves, tables, pictures",
    reads=(
        *("voc12_root", "class_list", "label_file", "train_list", "ood_root", "ood_list", "chainer_eval_set"),
        *("result_dir", "control_dir", "cam_network", "cam_init_weights_name", "cam_out_dir", "advcam_out_dir"),
        *("ir_label_out_dir", "irn_network", "irn_weights_name", "sem_seg_out_dir", "ins_seg_out_dir"),
    ),
    writes=("result_dir",),
    flags=("seed", "report_images", "report_scan", "cam_scales"),
)
PAGE, PICTURE_FOLDER = "report.html", "report"
N_EXAMPLES = 4
EXAMPLE_SIDE = 300

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    open_devkit(args.voc12_root, args.class_list)
    require_writable(args.result_dir, flag="result_dir")
    return {}


def run(args: Config) -> None:
    """Write `result_dir`/report.html and its charts and contact sheet as PNG files in `result_dir`/report/."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    names = names_with_background(devkit.classes)
    wood = collect_arm("W-OoD", args.result_dir, args.voc12_root, names)
    control = collect_arm("Control", args.control_dir, args.voc12_root, names)
    arms = [wood, control] if control.scores else [wood]

    sheet = _Sheet(args, devkit, wood, control)
    groups = sheet.groups(args.report_images, args.report_scan, seed=args.seed)
    segmented = sheet.segmented(max(1, args.report_images // 3), seed=args.seed)
    charts = chart_files(arms)
    page = render_page(
        arms,
        groups,
        segmented,
        charts,
        trained_on=_trained_on(devkit, wood),
        data_name=f"{args.voc12_root}, {len(devkit.classes)} classes",
        examples=_examples(args, devkit),
        legend=_legend(devkit, [row for rows in [*groups.values(), segmented] for row in rows]),
        gain_note=sheet.gain_note(),
        skipped=sheet.skipped,
        command_of=lambda step: _command(args, step),
    )
    folder = Path(args.result_dir)
    rows = [row.pictures for shown in groups.values() for row in shown]
    pictures = {**charts, **({"contact_sheet": contact_sheet(rows)} if rows else {})}
    for name, content in pictures.items():
        with atomic_path(folder / PICTURE_FOLDER / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    log.info("wrote %s", folder / PAGE)


def _command(args: Config, step: str) -> str:
    """The command that runs one step alone, with this run's flags."""
    words = to_arguments(changed_flags(vars(args)))
    on_by_default = [name for name in enabled_steps(parse_config([])) if name != step]
    words += to_arguments({f"{name}{STEP_SUFFIX}": False for name in on_by_default} | {f"{step}{STEP_SUFFIX}": True})
    return shlex.join(["python", "run_sample.py", *words])


def _examples(args: Config, devkit: Devkit) -> list[Captioned]:
    """A few training images with their labels, and OoD images, that explain the idea; none where they are missing."""
    rng = np.random.default_rng(args.seed)

    def thumbnail(path: Path) -> np.ndarray:
        image = read_image(path)
        return resize_image(image, scaled_size(image.shape[:2], EXAMPLE_SIDE / max(image.shape)))

    examples = []
    try:
        train = read_labelled_images(devkit, args.train_list, flag="train_list", label_file=args.label_file)
        ood_paths = read_ood_paths(args.ood_root, args.ood_list)
        for index in rng.permutation(len(train))[:N_EXAMPLES]:
            names = ", ".join(devkit.classes[key] for key in np.flatnonzero(train.labels[index]))
            examples.append((f"training image, label: {names}", thumbnail(train.paths[index])))
        for index in rng.permutation(len(ood_paths))[:N_EXAMPLES]:
            examples.append(("out-of-distribution image: “nothing here”", thumbnail(ood_paths[index])))
    except InputError as error:
        log.info("notice: the report shows no example images: %s", error)
        return []
    return examples


def _trained_on(devkit: Devkit, wood: Arm) -> int | None:
    """How many images of the segmentation network's evaluation were in its training; None where it is not known."""
    training = wood.segmentation_training
    if training is None:
        return None
    flag = deeplab_list_flag(training)
    try:
        trained = read_list(devkit, str(training.get(flag)), flag=flag)
        evaluated = read_split(devkit, wood.segmentation_scores["set"], flag="deeplab_eval_set")
    except InputError as error:
        log.info("notice: the report does not know the segmentation network's training images: %s", error)
        return None
    return len({*trained} & {*evaluated})


def _legend(devkit: Devkit, rows: Sequence[ImageRow]) -> dict[str, tuple[int, ...]]:
    """Colours of the classes that are shown."""
    shown = {name for row in rows for name in row.classes}
    colours = {name: tuple(voc_palette()[k + 1]) for k, name in enumerate(devkit.classes) if name in shown}
    return {**colours, "unsure, not counted": UNSURE_COLOUR} if colours else {}


class _Sheet:
    """The pictures: which images are shown, and what of each."""

    def __init__(self, args: Config, devkit: Devkit, wood: Arm, control: Arm) -> None:
        self._args, self._devkit = args, devkit
        self._wood, self._control = wood, control
        self._device = resolve_device(args.device)
        self._before = self._network(args.cam_network, "CAM", args.cam_init_weights_name, n_classes=len(devkit.classes))
        self._irn = self._network(args.irn_network, "EdgeDisplacement", args.irn_weights_name)
        # Gains are compared only where the evaluated CAMs of both arms are the ones shown
        compared = {"eval_cam"} <= wood.scores.keys() & control.scores.keys()
        compared = compared and Path(wood.scores["eval_cam"]["folder"]).resolve() == Path(args.cam_out_dir).resolve()
        self._control_folder = control.scores["eval_cam"]["folder"] if compared else ""
        self.skipped: list[str] = []

    def _network(self, module: str, name: str, weights: str, **arguments: int) -> nn.Module | None:
        """A network with its weights; None, with a notice, if there is no such checkpoint."""
        try:
            require_classes_of_network(self._devkit, weights)
            network = build_network(module, name, **arguments)
            load_weights(network, weights)
        except InputError as error:
            log.info("notice: the report does without a network: %s", error)
            return None
        return network.to(self._device).eval()

    def gain_note(self) -> str:
        """What the gains compare."""
        if not self._control_folder:
            return ""
        return (
            "Points compare the mean IoU of the image's CAM, each arm at its best background score: W-OoD against the "
            "control. The largest losses are shown as well as the largest gains."
        )

    def groups(self, n_shown: int, n_scanned: int, *, seed: int) -> dict[str, list[ImageRow]]:
        """Title -> rows: the largest gains, the largest losses, and images at random (seeded)."""
        ids = self._ids()
        rng = np.random.default_rng(seed)
        shuffled = [ids[index] for index in rng.permutation(len(ids))]
        scored = {}
        if self._control_folder:
            for image_id in progress(shuffled[:n_scanned], desc="gains and losses", unit="image"):
                if (pair := self._before_and_after(image_id)) is not None:
                    scored[image_id] = pair
        by_gain = sorted(scored, key=lambda image_id: scored[image_id][1] - scored[image_id][0])
        third = n_shown // 3 if scored else 0
        losses = [image_id for image_id in by_gain[:third] if scored[image_id][1] < scored[image_id][0]]
        gains = [image_id for image_id in by_gain[::-1][:third] if image_id not in losses]
        others = [image_id for image_id in shuffled if image_id not in (*losses, *gains)]
        chosen = {
            "Largest gains": gains,
            "Largest losses": losses,
            "At random": others[: n_shown - len(losses) - len(gains)],
        }
        bar = progress(total=sum(map(len, chosen.values())), desc="pictures", unit="image")
        rows = {}
        with bar:
            for title, group in chosen.items():
                rows[title] = []
                for image_id in group:
                    try:
                        rows[title].append(self._row(image_id, *scored.get(image_id, (None, None))))
                    except InputError as error:
                        self.skipped.append(f"Pictures of {image_id}: {error}")
                    bar.update()
        return rows

    def segmented(self, n_shown: int, *, seed: int) -> list[ImageRow]:
        """Images at random (seeded) of the segmentation network's evaluation; none if it was not done."""
        folders = {
            title: Path(self._wood.scores[name]["folder"])
            for name, title in SEGMENTATION_EVALUATIONS.items()
            if name in self._wood.scores
        }
        if not folders:
            return []
        try:
            ids = read_split(self._devkit, self._wood.segmentation_scores["set"], flag="deeplab_eval_set")
        except InputError as error:
            self.skipped.append(f"Pictures of the segmentation network: {error}")
            return []
        rows = []
        for index in np.random.default_rng(seed).permutation(len(ids))[:n_shown]:
            try:
                rows.append(self._segmented_row(ids[index], folders))
            except InputError as error:
                self.skipped.append(f"Pictures of {ids[index]}: {error}")
        return rows

    def _segmented_row(self, image_id: str, folders: dict[str, Path]) -> ImageRow:
        image, palette = read_image(self._devkit.image_path(image_id)), voc_palette()
        labels = {"ground truth": self._devkit.mask_path(image_id)}
        labels |= {title: folder / f"{image_id}.png" for title, folder in folders.items()}
        masks = {title: read_label(path) for title, path in labels.items() if path.is_file()}
        for title, mask in masks.items():
            if mask.shape != image.shape[:2]:
                raise InputError(f"mask {labels[title]} is not of the size of its image; make it again.")
        found = {int(k) for mask in masks.values() for k in np.unique(mask) if 0 < k <= len(self._devkit.classes)}
        pictures = [("image", image), *((title, mask_overlay(image, mask, palette)) for title, mask in masks.items())]
        return ImageRow(image_id, [self._devkit.classes[k - 1] for k in sorted(found)], pictures)

    def _ids(self) -> list[str]:
        """The evaluated images that have a CAM or an AdvCAM; without such a list, all images with either."""
        folders = (self._args.cam_out_dir, self._args.advcam_out_dir)
        with_cam = {path.stem for folder in folders for path in Path(folder).glob("*.npy")}
        try:
            ids = read_list(self._devkit, self._devkit.split_path(self._args.chainer_eval_set), flag="chainer_eval_set")
        except InputError:
            ids = sorted(image_id for image_id in with_cam if self._devkit.image_path(image_id).is_file())
        return [image_id for image_id in ids if image_id in with_cam]

    def _before_and_after(self, image_id: str) -> tuple[float, float] | None:
        """Mean IoU, per cent, of the image's CAM of the control and of W-OoD; None where something is missing."""
        path = self._devkit.mask_path(image_id)
        if not path.is_file() or not camfile.cam_path(self._control_folder, image_id).is_file():
            return None
        n_values = len(names_with_background(self._devkit.classes))
        pair = []
        for folder, arm in ((self._control_folder, self._control), (self._args.cam_out_dir, self._wood)):
            try:
                keys, _, high_res = camfile.load(camfile.cam_path(folder, image_id), len(self._devkit.classes))
                predicted = label_map(high_res, keys, arm.scores["eval_cam"]["best_threshold"])
                pair.append(100 * scores(confusion_matrix(predicted, read_label(path), n_values))["miou"])
            except (InputError, ValueError) as error:
                self.skipped.append(f"The gain of {image_id}: {error}")
                return None
        return pair[0], pair[1]

    def _maps(self, path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Classes and full-size maps of a CAM file of an image of `size`; `InputError` if it does not fit."""
        keys, _, high_res = camfile.load(path, len(self._devkit.classes))
        if high_res.shape[1:] != size:
            raise InputError(f"CAM file {path} is not of the size of its image; make it again.")
        return keys, high_res

    @torch.no_grad()
    def _row(self, image_id: str, before: float | None, after: float | None) -> ImageRow:
        args, palette = self._args, voc_palette()
        image = read_image(self._devkit.image_path(image_id))
        size = image.shape[:2]
        folders = {"CAM, W-OoD": args.cam_out_dir, "AdvCAM": args.advcam_out_dir}
        paths = {title: camfile.cam_path(folder, image_id) for title, folder in folders.items()}
        maps_of = {title: self._maps(path, size) for title, path in paths.items() if path.is_file()}
        keys, _ = next(iter(maps_of.values()))
        pictures = [("image", image)]
        if self._devkit.mask_path(image_id).is_file():
            pictures.append(
                ("ground truth", mask_overlay(image, read_label(self._devkit.mask_path(image_id)), palette))
            )
        if self._before is not None:
            scaled = [torch.from_numpy(to_chw(resize_image(image, scaled_size(size, s)))) for s in args.cam_scales]
            maps = scale_maps(self._before, [x.to(self._device) for x in scaled])
            cam_before = merge_high_res(maps, size, keys).cpu().numpy()
            pictures.append(("CAM before W-OoD", heat_overlay(image, cam_before)))
        control_cam = camfile.cam_path(self._control_folder, image_id)
        if self._control_folder and control_cam.is_file():
            pictures.append(("CAM, control", heat_overlay(image, camfile.load(control_cam)[2])))
        pictures += [(title, heat_overlay(image, high_res)) for title, (_, high_res) in maps_of.items()]
        label_path = Path(args.ir_label_out_dir) / f"{image_id}.png"
        if label_path.is_file():
            pictures.append(("confident label", mask_overlay(image, read_label(label_path), palette)))
        if self._irn is not None:
            edge, _ = self._irn(mirror_pair(normalize(torch.from_numpy(to_chw(image)).to(self._device))))
            pictures.append(("boundaries (IRN)", edge_picture(edge[0].cpu().numpy(), size)))
        mask_path = Path(args.sem_seg_out_dir) / f"{image_id}.png"
        if mask_path.is_file():
            pictures.append(("final mask", mask_colours(read_label(mask_path), palette)))
        instances_path = instancefile.instance_path(args.ins_seg_out_dir, image_id)
        if instances_path.is_file():
            detections = instancefile.load(instances_path)
            if detections.masks.shape[1:] != size:
                raise InputError(f"instance file {instances_path} is not of the size of its image; make it again.")
            pictures.append(("instances", instance_colours(detections, palette)))
        return ImageRow(image_id, [self._devkit.classes[key] for key in keys], pictures, before, after)
