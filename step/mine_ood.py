"""Hard out-of-distribution images from a pool, for a person to sort (W-OoD section 3.1).

The original tells how its images were collected and has no code for it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from misc.cam import batch_scale_maps, merge_high_res
from misc.errors import InputError
from misc.files import look
from misc.files.atomic import atomic_path, background_writer
from misc.files.paths import Paths
from misc.files.scorefile import Score, Scores
from misc.files.table import write_rows
from misc.mining import by_size
from misc.report.review import (
    REVIEW_FILE,
    Candidate,
    read_review,
    render_review,
    write_candidates,
    write_pictures,
)
from misc.run.config import Config
from misc.run.depends import source_of_files
from misc.run.device import resolve_device
from misc.run.done import finished_files, is_redone, made_with
from misc.run.fitting import Fitting
from misc.run.loaders import sequential_loader
from misc.run.notices import notice
from misc.run.plan import Planned, require_writable, require_writable_file
from misc.run.progress import progress
from misc.run.provenance import FinishedFiles
from misc.run.step import Files, Inputs, Step
from net.build import inputs_of_network, load_network, require_network
from voc12.dataloader import PoolImages
from voc12.derived import is_derived
from voc12.devkit import Devkit, open_devkit, require_classes_of_network
from voc12.lists import is_text, read_list
from voc12.ood_data import make_ood_data, placed_images
from voc12.pool import Pool, classes_in_pool, pool_images, read_label_names
from voc12.scoring import choose_candidates, known_scores, score_images
from voc12.verify import images_among

STEP = Step(
    name="mine_ood",
    description="rank a pool's images by how strongly the classifier fires, to choose OoD images",
    reads=(
        *("voc12_root", "class_list", "train_list", "cam_network", "cam_init_weights_name"),
        *("ood_pool", "ood_pool_labels", "ood_label_names", "ood_review"),
    ),
    writes=("ood_mine_dir", "ood_root", "ood_list"),
    flags=("ood_long_side", "ood_hard_score", "ood_per_class", "precision"),
    memory_flags=("num_workers", "make_cam_batch_size", "ood_long_side"),
)
SCORING = replace(STEP, flags=("ood_long_side", "precision"))
"""What a score and a picture depend on; the other settings choose among them."""
SCORES, CANDIDATES, LEFT_OUT, PAGE, PICTURES = (
    "scores.jsonl",
    "candidates.csv",
    "left_out.csv",
    "review.html",
    "pictures",
)

log = logging.getLogger(__name__)


def check(args: Config, planned: Planned) -> Planned:
    """Raise `InputError` for bad input; return the outputs of this step (none that others read in the same run)."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    read_list(devkit, args.train_list, flag="train_list")
    require_classes_of_network(devkit, args.cam_init_weights_name, planned=planned)
    for kind in ("Net", "CAM"):
        require_network(
            args.cam_network, kind, args.cam_init_weights_name, planned=planned, n_classes=len(devkit.classes)
        )
    _labelled(args, devkit, _pool(args))
    require_writable(args.ood_mine_dir, flag="ood_mine_dir")
    if args.ood_review:
        read_review(args.ood_review)
        require_writable(args.ood_root, flag="ood_root")
        require_writable_file(args.ood_list, flag="ood_list", kind="list")
        if Path(args.ood_list).is_file() and not is_derived(Path(args.ood_list)):
            raise InputError(
                f"--ood_list {args.ood_list} is there, and mine_ood has not made it; name another place for the list "
                "of mined images, with --ood_list and --ood_root, or move it away."
            )
    return {args.ood_mine_dir: frozenset()}


def _of_all_scores(args: Config, devkit: Devkit) -> Inputs:
    """What every score and every picture depends on, besides its image."""
    return inputs_of_network(args, "cam_network", "cam_init_weights_name", devkit.classes)


def inputs(args: Config) -> Inputs:
    """What the result is made from, by the flag that names it."""
    devkit = open_devkit(args.voc12_root, args.class_list)
    pool = _pool(args)
    tables = {flag: _files(getattr(args, flag)) for flag in ("ood_pool_labels", "ood_label_names", "ood_review")}
    return {
        **_of_all_scores(args, devkit),
        "train_list": Files(devkit.image_paths(read_list(devkit, args.train_list, flag="train_list"))),
        # Sizes and times alone: a pool may be too large to be read once more, and the scores know what has changed
        "ood_pool": [[path, *state] for path, state in zip(pool, look.states(pool)[:, :2].tolist(), strict=True)],
        **{flag: Files(paths) for flag, paths in tables.items() if paths},
    }


def _files(given: str | Sequence[str]) -> list[str]:
    """The files that a flag names: one, several or none."""
    return list(filter(None, [given] if isinstance(given, str) else given))


def outputs(args: Config) -> list[str | Path]:
    """The files that this step writes."""
    folder = Path(args.ood_mine_dir)
    made = [folder / name for name in (SCORES, CANDIDATES, LEFT_OUT, PAGE)]
    placed = [args.ood_list, *placed_images(Path(args.ood_root), Path(args.ood_list))] if args.ood_review else []
    return [*made, *placed, *sorted((folder / PICTURES).glob("*.jpg"))]


def run(args: Config) -> None:
    """Write `ood_mine_dir`/scores.jsonl, candidates.csv, left_out.csv, review.html and pictures/.

    With `ood_review`, also the candidates that show no object, into `ood_root`, and `ood_list`, which names them.
    Scores and pictures that are there are kept.
    """
    device = resolve_device(args.device)
    devkit = open_devkit(args.voc12_root, args.class_list)
    folder, classes = Path(args.ood_mine_dir), devkit.classes
    loaded = {"weights": args.cam_init_weights_name, "device": device, "n_classes": len(classes)}
    load = partial(load_network, args.cam_network, **loaded)
    reading = {
        "long_side": args.ood_long_side,
        "batch_size": args.make_cam_batch_size,
        "num_workers": args.num_workers,
        "device": device,
    }
    of_all_scores = _of_all_scores(args, devkit)
    pool = Pool(_pool(args))
    _leave_out_known(args, devkit, pool)

    made = made_with(SCORING, args, of_all_scores)
    record = Scores(folder / SCORES, made, names=frozenset(classes), keep=not is_redone(STEP, args))
    record.add(())  # the record is there even where no image can be scored
    scores = known_scores(pool, record)
    pending = [number for number in pool.remaining() if number not in scores]
    if scores:
        log.info("%d of %d images are scored already", len(scores), len(scores) + len(pending))
    if pending:
        scores |= score_images(pool, pending, load("Net"), record, classes=classes, **reading)
    chosen, n_hard = choose_candidates(
        pool, scores, classes=classes, hard_score=args.ood_hard_score, per_class=args.ood_per_class
    )
    _picture(
        {pool.paths[number]: score for number, score in chosen.items()},
        partial(load, "CAM"),
        folder / PICTURES,
        finished_files(SCORING, args, of_all_scores),
        classes=classes,
        **reading,
    )

    decisions = read_review(args.ood_review) if args.ood_review else {}
    candidates = [
        Candidate(
            file=pool.paths[number],
            content=score.content,
            name=score.name,
            probability=score.probability,
            picture=f"{PICTURES}/{score.content}.jpg",
            shows_object=decisions.get(pool.paths[number].strip()),
        )
        for number, score in chosen.items()
    ]
    headline = _headline(candidates, n_hard, args.ood_hard_score)
    page = render_review(
        candidates,
        classes=classes,
        data_name=f"{args.voc12_root}, classifier {args.cam_init_weights_name}",
        headline=headline,
        n_pool=len(pool),
        left_out=pool.summary(),
    )
    write_candidates(folder / CANDIDATES, candidates)
    write_rows(folder / LEFT_OUT, [("file", "why"), *pool.left_out_rows()])
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    found = Counter(candidate.name for candidate in candidates)
    log.info("%d images in the pool, left out: %s", len(pool), pool.summary() or "none")
    log.info("candidates by class: %s", ", ".join(f"{name} {found[name]}" for name in classes))
    log.info("%s", headline)
    if args.ood_review:
        kept = _without_objects(candidates, args.ood_review, page=folder / PAGE)
        make_ood_data(kept, Path(args.ood_root), Path(args.ood_list))
        log.info(
            "%d OoD images are in %s: train_cam reads them with --ood_root %s --ood_list %s",
            len(kept),
            args.ood_root,
            args.ood_root,
            args.ood_list,
        )
    elif candidates:
        log.info(
            "open %s, mark what shows an object, save, and run mine_ood again with --ood_review %s",
            folder / PAGE,
            REVIEW_FILE,
        )


def _pool(args: Config) -> Paths:
    """The images of the pool, without those that this step makes."""
    key = ("ood pool", args.ood_pool, args.ood_mine_dir, args.ood_root)
    return look.remembered(key, lambda: pool_images(args.ood_pool, without=(args.ood_mine_dir, args.ood_root)))


def _labelled(args: Config, devkit: Devkit, pool: Paths) -> tuple[dict[int, str], list[str]]:
    """{image: the class that its labels hold}, and the classes that no label names; nothing without labels."""
    names = read_label_names(args.ood_label_names)
    if not args.ood_pool_labels:
        return {}, []

    def read() -> tuple[dict[int, str], list[str]]:
        return classes_in_pool(pool, args.ood_pool, args.ood_pool_labels, names, devkit.classes)

    return look.remembered(("ood pool labels", pool, args.ood_pool_labels, args.ood_label_names, devkit.classes), read)


def _leave_out_known(args: Config, devkit: Devkit, pool: Pool) -> None:
    """Leave out what can be no candidate, whatever its score."""
    pool.leave_out(dict.fromkeys((n for n, path in pool if not is_text(path)), "names that no list can hold"))
    train = read_list(devkit, args.train_list, flag="train_list")
    pool.leave_out(dict.fromkeys(images_among(pool.paths, devkit, train), "training images"))
    labelled, unnamed = _labelled(args, devkit, pool.paths)
    pool.leave_out({n: f"labelled {name}" for n, name in labelled.items()}, kind="labelled with a class")
    if unnamed:
        notice(
            f"no label of --ood_pool_labels names the classes {', '.join(unnamed)}, so images of these are not left "
            "out; where the labels call them otherwise, say so in --ood_label_names (docs/mining.md)"
        )


def _picture(
    chosen: Mapping[str, Score],
    load: Callable[[], nn.Module],
    folder: Path,
    finished: FinishedFiles,
    *,
    classes: Sequence[str],
    long_side: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> None:
    """Write the pictures of candidates, {path: score}; those that are there are kept. `load`: the CAM network."""
    paths, scores = list(chosen), list(chosen.values())
    items = [[folder / f"{score.content}.jpg"] for score in scores]
    pending = finished.pending(items, lambda number: source_of_files(paths[number]))
    if not pending:
        return
    model = load()
    images = PoolImages([paths[number] for number in pending], long_side=long_side)
    loader = sequential_loader(images, num_workers=num_workers, device=device)
    readable = (item for item in loader if "problem" not in item)  # it was readable when it was scored
    fitting = Fitting(batch_size, parts="images")

    def maps_of(images: Tensor) -> list[Tensor]:
        (maps,) = batch_scale_maps(model, [images.to(device)])
        return maps

    with (
        progress(total=len(pending), desc="pictures of candidates", unit="image") as bar,
        background_writer() as submit,
    ):
        for batch in by_size(readable, batch_size):
            given = torch.stack([item["image"] for item in batch])
            example = paths[pending[batch[0]["index"]]]
            maps = fitting.each(maps_of, given, size=tuple(given.shape[2:]), example=example)
            for item, image, of_image in zip(batch, given, maps, strict=True):
                number = pending[item["index"]]
                key = classes.index(scores[number].name)
                cam = merge_high_res([of_image], tuple(image.shape[1:]), [key]).cpu().numpy()
                content = (items[number][0], image.permute(1, 2, 0).numpy(), cam)
                source_of = partial(source_of_files, paths[number])
                submit(finished.write, items[number], source_of, write_pictures, *content)
            bar.update(len(batch))


def _headline(candidates: Sequence[Candidate], n_hard: int, hard_score: float) -> str:
    """How many candidates there are, and whether somebody has looked at them, in sentences."""
    found = (
        f"{n_hard} images of the pool are hard: the classifier gives a class a probability of at least "
        f"{hard_score:g} (--ood_hard_score). {len(candidates)} of them are candidates."
    )
    if not candidates:
        return f"{found} Lower --ood_hard_score, or name a pool that is more like your images' backgrounds."
    decided = [candidate.shows_object for candidate in candidates if candidate.shows_object is not None]
    if not decided:
        return f"{found} Nobody has looked at them yet: some may show an object."
    more = len(candidates) - len(decided)
    unseen = f" Nobody has looked at {more} others, which are left out until somebody does." if more else ""
    marked = f"People have looked at {len(decided)}, and marked {sum(decided)} that show an object and are left out."
    return f"{found} {marked}{unseen}"


def _without_objects(candidates: Sequence[Candidate], review: str, *, page: Path) -> dict[str, str]:
    """{file: a mark of its content} of the candidates that show no object. Raises `InputError` if there are none."""
    kept = {candidate.file: candidate.content for candidate in candidates if candidate.shows_object is False}
    if not kept:
        decided = any(candidate.shows_object for candidate in candidates)
        reason = "all of its images show an object" if decided else "it has none of the candidates of this pool"
        if not decided and (named := [*read_review(review)]) and candidates:
            reason += f", which are called as {candidates[0].file}, and those of the review as {named[0]}"
        raise InputError(
            f"--ood_review {review}: no image is left for --ood_list, since {reason}; name the file that {page} has "
            "saved for this --ood_pool, or lower --ood_hard_score."
        )
    return kept
