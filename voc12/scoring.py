"""What a classifier says of a pool's images (W-OoD section 3.1): scores, noted as they come, and the candidates."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from misc.classifier import class_probabilities
from misc.errors import InputError, first_three
from misc.files import look
from misc.files.scorefile import HASH_BYTES, Score, Scores
from misc.mining import by_size, rank
from misc.run.depends import checksum
from misc.run.fitting import Fitting
from misc.run.loaders import sequential_loader
from misc.run.notices import notice
from misc.run.progress import progress
from voc12.dataloader import PoolImages
from voc12.pool import Pool


def known_scores(pool: Pool, record: Scores) -> dict[int, Score]:
    """{image: its score} of those that may become candidates and were scored by an earlier run, wherever they lay."""
    sizes_and_times = look.states(pool.paths)[:, :2].tolist()
    scores: dict[int, Score] = {}
    for number in progress(pool.remaining(), desc="looking for scores", unit="image", leave=False):
        size, time = sizes_and_times[number]
        known = record.of_file(pool.paths[number], size, time)
        if known is None and record.may_know(size):
            with suppress(InputError):  # what can't be read is told when it is to be scored
                known = record.of_content(size, checksum(pool.paths[number]))
        if known:
            scores[number] = known
    return scores


def score_images(
    pool: Pool,
    pending: Sequence[int],
    model: nn.Module,
    record: Scores,
    *,
    classes: Sequence[str],
    long_side: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> dict[int, Score]:
    """{image: its score} of the images `pending` of a pool; what can't be read is left out of the pool, and named.

    Args:
        model: a classifier, (B, 3, H, W) normalised images -> (logits (B, C), features).
        record: where each batch's scores are noted.
        classes: C names.
        long_side: pixels, as in `misc.mining.scoring_size`.
        batch_size: images of up to 512 x 512 pixels.

    Raises `InputError` if the network gives NaN or infinity.
    """
    paths = pool.paths[pending]
    sizes_and_times = look.states(paths)[:, :2].tolist()
    loader = sequential_loader(PoolImages(paths, long_side=long_side), num_workers=num_workers, device=device)
    fitting = Fitting(batch_size, parts="images")
    scores: dict[int, Score] = {}
    problems: dict[int, str] = {}
    with progress(total=len(pending), desc="mine_ood", unit="image") as bar:

        def readable() -> Iterator[Mapping]:
            for item in loader:
                if "problem" in item:
                    problems[pending[item["index"]]] = item["problem"]
                    bar.update(1)
                else:
                    yield item

        def scored(items: Sequence[Mapping]) -> Sequence[Tensor]:
            given = torch.stack([item["image"] for item in items]).to(device, non_blocking=True)
            return class_probabilities(model, given).cpu()

        for batch in by_size(readable(), batch_size):
            example = paths[batch[0]["index"]]
            size = tuple(batch[0]["image"].shape[1:])
            probabilities = torch.stack(fitting.each(scored, batch, size=size, example=example))
            if not probabilities.isfinite().all():
                raise InputError(
                    f"--cam_init_weights_name: the network gives NaN or infinity for {example} or an image beside it; "
                    "name other weights, or train these again with a lower --cam_learning_rate."
                )
            best, keys = probabilities.max(dim=1)
            found = {
                pending[item["index"]]: Score(
                    file=paths[item["index"]],
                    size=sizes_and_times[item["index"]][0],
                    time=sizes_and_times[item["index"]][1],
                    checksum=item["checksum"],
                    hash=item["hash"],
                    name=classes[key],
                    probability=probability,
                )
                for item, key, probability in zip(batch, keys.tolist(), best.tolist(), strict=True)
            }
            record.add(found.values())
            scores |= found
            bar.update(len(batch))
    if problems:
        pool.leave_out(problems, kind="can't be read")
        names = [pool.name(number) for number in problems]
        notice(f"{len(names)} images of the pool can't be read: {first_three(names)}")
    return scores


def choose_candidates(
    pool: Pool, scores: Mapping[int, Score], *, classes: Sequence[str], hard_score: float, per_class: int
) -> tuple[dict[int, Score], int]:
    """{image: score} of the candidates, the strongest first, and how many images are hard; the rest is left out."""
    numbers = sorted(scores)
    ranking = rank(
        np.array([scores[number].probability for number in numbers]),
        [classes.index(scores[number].name) for number in numbers],
        np.array([scores[number].colours for number in numbers], dtype=np.uint8).reshape(-1, HASH_BYTES),
        hard_score=hard_score,
        per_class=per_class,
    )
    better = {numbers[worse]: pool.paths[numbers[place]] for worse, place in ranking.duplicates.items()}
    pool.leave_out({n: f"nearly {path}" for n, path in better.items()}, kind="near-duplicates of a better candidate")
    of_class = f"beyond the {per_class} strongest of their class"
    pool.leave_out(dict.fromkeys((numbers[place] for place in ranking.surplus), of_class))
    easy = [number for number in numbers if scores[number].probability < hard_score]
    pool.leave_out(dict.fromkeys(easy, f"less probable than {hard_score:g}"))
    return {numbers[place]: scores[numbers[place]] for place in ranking.candidates}, ranking.n_hard
