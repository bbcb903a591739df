"""Step 3: mIoU, precision and recall of the CAMs over background scores."""

import logging

from tqdm import tqdm

from misc import camfile
from misc.config import Config
from misc.errors import InputError
from misc.imutils import read_label
from misc.metrics import ThresholdSweep, class_table, jsonable, scores
from misc.plan import Planned
from misc.record import save_scores
from voc12.classes import names_with_background
from voc12.devkit import open_devkit
from voc12.evaluation import require_evaluable
from voc12.lists import read_split

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read)."""
    require_evaluable(
        args.voc12_root,
        args.class_list,
        args.chainer_eval_set,
        args.cam_out_dir,
        ".npy",
        flag="cam_out_dir",
        made_by="make_cam",
        planned=planned,
        num_workers=args.num_workers,
    )
    return {}


def run(args: Config) -> None:
    """Score `cam_out_dir` on the images of `chainer_eval_set`; print and save all, and the best, in one pass."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    ids = read_split(devkit, args.chainer_eval_set)
    names = names_with_background(devkit.classes)
    sweep = ThresholdSweep((*args.cam_eval_sweep, args.cam_eval_thres), len(names))
    for image_id in tqdm(ids, desc="eval_cam", unit="image"):
        path = camfile.cam_path(args.cam_out_dir, image_id)
        keys, _, high_res = camfile.load(path, len(devkit.classes))
        truth = read_label(devkit.mask_path(image_id))
        if high_res.shape[1:] != truth.shape:
            raise InputError(f"CAM file {path} is not of the size of its ground truth; make it again.")
        sweep.add(high_res, keys, truth)

    scored = {threshold: scores(confusion) for threshold, confusion in sweep.confusions().items()}
    best, best_scores = sweep.best(among=args.cam_eval_sweep)
    scores_apart = scored[args.cam_eval_thres]
    log.info("background score   mIoU")
    for threshold in args.cam_eval_sweep:
        values = scored[threshold]
        log.info("%16g   %.4f%s", threshold, values["miou"], "   best" if threshold == best else "")
    log.info("%16g   %.4f   (--cam_eval_thres, not in the choice)", args.cam_eval_thres, scores_apart["miou"])
    log.info("%s", class_table(names, best_scores))
    path = save_scores(
        args.result_dir,
        "eval_cam",
        jsonable(
            {
                "voc12_root": args.voc12_root,
                "set": args.chainer_eval_set,
                "images": len(ids),
                "folder": args.cam_out_dir,
                "classes": names,
                "best_threshold": best,
                "best": best_scores,
                "miou_by_threshold": {f"{threshold:g}": scored[threshold]["miou"] for threshold in args.cam_eval_sweep},
                "miou_at_cam_eval_thres": scores_apart["miou"],
            }
        ),
    )
    log.info("CAM mIoU %.4f at background score %g (%s)", best_scores["miou"], best, path)
