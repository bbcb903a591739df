"""Which weights of the W-OoD training are kept: those whose CAMs are best."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from misc.cam import merge_high_res, scale_maps_of_items
from misc.metrics import ThresholdSweep
from misc.run.board import N_PICTURES
from misc.run.fitting import Fitting
from misc.run.loaders import GroupedLoader
from misc.run.progress import progress

THRESHOLDS = (0.06, 0.08, 0.10, 0.12)
"""Background scores, of which the best counts."""
STARTS = 0.75
"""Part of the last epoch after which checkpoints are compared."""

log = logging.getLogger(__name__)


def selection_steps(steps_per_epoch: int, n_steps: int, *, interval: int) -> frozenset[int]:
    """The steps after which checkpoints are compared: every `interval` in the last quarter epoch, and the last one."""
    last_epoch = n_steps - steps_per_epoch
    late = range(1, steps_per_epoch + 1)
    return frozenset(
        {last_epoch + step for step in late if step > STARTS * steps_per_epoch and step % interval == 0} | {n_steps}
    )


class CheckpointSelection:
    """Keeps the weights whose CAMs have the best mIoU on *ground-truth masks* (quirk of the original, kept).

    The mIoU is the best over four background scores. (The original never clears its lists between them, so that each
    score contains the earlier ones: fixed.)
    """

    def __init__(
        self,
        model: nn.Module,
        cam_network: nn.Module,
        loader: GroupedLoader,
        *,
        paths: Sequence[str],
        n_classes: int,
        batch_size: int,
        due: frozenset[int],
        show: Callable[[int, Sequence[tuple[dict[str, Any], Tensor]]], None] | None = None,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            model: the network in training, whose weights `cam_network` takes at each look.
            loader: groups of items of `ScaledImages` of equal size, with masks, of several processes each one's share.
            paths: the files of these images.
            batch_size: images of up to 512 x 512 pixels that run at once.
            due: the steps at which to look (the caller calls at no others).
            show: called at each of them with the step and the first items and their CAMs.
        """
        self._show = show
        self._n_classes, self._paths = n_classes, paths
        self._fitting = Fitting(batch_size, parts="images")
        self._model, self._cam_network, self._loader, self.due = model, cam_network, loader, due
        self.best_miou, self.best_step = -math.inf, 0
        self.best_state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {name: getattr(self, name) for name in ("best_miou", "best_step", "best_state")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an interrupted run has found. Raises `ValueError` for weights of another network."""
        best = state["best_state"]
        own = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
        if best and {name: tensor.shape for name, tensor in best.items()} != own:
            raise ValueError("weights of another network")
        self.best_miou, self.best_step = float(state["best_miou"]), int(state["best_step"])
        self.best_state = best

    def __call__(self, step: int) -> dict[str, float]:
        """Compare the weights after `step` with the best so far."""
        self._cam_network.load_state_dict(self._model.state_dict())
        device = next(self._cam_network.parameters()).device
        sweep = ThresholdSweep(THRESHOLDS, self._n_classes + 1)
        first: list[tuple[dict[str, Any], Tensor]] = []
        with progress(total=len(self._paths), desc=f"CAM mIoU at step {step}", unit="image", leave=False) as bar:
            for group in self._loader:
                example = self._paths[group[0]["index"]]
                maps_of = partial(scale_maps_of_items, self._cam_network, device=device)
                all_maps = self._fitting.each(maps_of, group, size=group[0]["size"], example=example)
                for item, maps in zip(group, all_maps, strict=True):
                    high_res = merge_high_res(maps, item["size"], item["keys"])
                    sweep.add(high_res, item["keys"], item["mask"])
                    if len(first) < N_PICTURES:
                        first.append((item, high_res))
                bar.update(len(group))
        if self._show is not None:
            self._show(step, first)
        sweep.sum_over_processes()
        threshold, scored = sweep.best()
        log.info("step %d: CAM mIoU %.4f at background score %g", step, scored["miou"], threshold)
        if not self.best_state or scored["miou"] > self.best_miou:  # masks without any pixel that counts: mIoU NaN
            self.best_miou, self.best_step = scored["miou"], step
            self.best_state = copy.deepcopy(self._model.state_dict())
        return {"cam_miou": scored["miou"]}

    def restore_best(self) -> None:
        """Give the network the weights that were kept."""
        self._model.load_state_dict(self.best_state)
        log.info("kept the weights of step %d of %d: CAM mIoU %.4f", self.best_step, max(self.due), self.best_miou)
