"""The training loop that all networks share."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from misc.errors import InputError
from misc.metrics import jsonable
from misc.record import metrics_log


def fit(
    batches: Iterable[Any],
    loss_of: Callable[[Any], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    n_steps: int,
    steps_per_epoch: int,
    batch_size: int,
    name: str,
    result_dir: str,
    rate_flag: str,
    after_step: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Run `n_steps` of an optimiser on `loss_of(batch)["total"]`, with a bar and JSON lines.

    Args:
        loss_of: batch -> named scalars, among them `total`.
        batch_size: images a batch, for the speed shown.
        name: of the bar and of `<result_dir>/metrics/<name>.jsonl`.
        rate_flag: the learning rate's flag, named if the loss stops being finite (`InputError`).
        after_step: called with the number of steps done; what it returns joins the JSON line.
    """
    with metrics_log(result_dir, name) as write_line, tqdm(total=n_steps, desc=name, unit="step") as bar:
        started = time.perf_counter()
        for step, batch in enumerate(batches, start=1):
            losses = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            optimizer.step()
            values = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist(), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                raise InputError(
                    f"{name}: the loss is no longer finite at step {step} ({values}); lower --{rate_flag}."
                )
            rate = optimizer.param_groups[0]["lr"]
            line = {"step": step, "epoch": step / steps_per_epoch, "lr": rate, **values}
            now = time.perf_counter()
            line["images_per_second"], started = batch_size / (now - started), now
            line.update(after_step(step) if after_step else {})
            write_line(jsonable(line))
            shown = {key: f"{value:.4f}" for key, value in values.items()}
            bar.set_postfix(**shown, lr=f"{rate:.2e}", img_s=f"{line['images_per_second']:.1f}")
            bar.update()
