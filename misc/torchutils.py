"""SGD whose learning rates decay polynomially: the optimiser of classifier and IRN, and what DeepLab's is made of."""

from typing import Any

import torch
from torch.autograd.graph import increment_version

from misc.run.device import may_fuse

POWER = 0.9


class PolySGD(torch.optim.SGD):
    """SGD whose learning rates decay as lr0 * (1 - step / max_step) ** power; held once step >= max_step.

    The rate is set before each step, or before each `decay_interval`-th and held in between. How the device updates
    the weights (`misc.run.device.may_fuse`) is no part of the state, which another device may take up.
    """

    def __init__(
        self,
        param_groups: list[dict],
        lr: float,
        *,
        momentum: float,
        max_step: int,
        power: float = POWER,
        decay_interval: int = 1,
    ) -> None:
        super().__init__(param_groups, lr, momentum=momentum)
        self._fused = may_fuse(p for group in self.param_groups for p in group["params"]) or None
        self._set_fused()
        self.max_step = max_step
        self.power = power
        self.decay_interval = decay_interval
        self.global_step = 0
        self._initial_lrs = [group["lr"] for group in self.param_groups]

    def _set_fused(self) -> None:
        for group in self.param_groups:
            group["fused"] = self._fused

    def step(self, closure=None):  # noqa: ANN001, ANN201 (as in torch.optim.SGD)
        if self.global_step < self.max_step and self.global_step % self.decay_interval == 0:
            decay = (1 - self.global_step / self.max_step) ** self.power
            for group, initial in zip(self.param_groups, self._initial_lrs, strict=True):
                group["lr"] = initial * decay
        self.global_step += 1
        if self._fused:
            self._fill_momenta()
        loss = super().step(closure)
        if self._fused:  # the fused kernel changes weights without a sign, by which a kept fold of them would stay
            for group in self.param_groups:
                for parameter in group["params"]:
                    increment_version(parameter)
        return loss

    def _fill_momenta(self) -> None:
        """The fused kernel expects the momenta of all parameters of a group, or of none.

        A part of a network may get its first gradient later than the others. Nothing changes by a momentum of zeros.
        """
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        groups = [{**group, "fused": None} for group in state["param_groups"]]
        return {**state, "param_groups": groups, "global_step": self.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state. Raises `ValueError` for one of other parameters, settings or a step that can't be."""
        step = state_dict["global_step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"an optimiser of step {step!r}")
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if any(type(saved.get(name)) is not type(value) for name, value in group.items() if name != "fused"):
                raise ValueError("an optimiser of other settings")
        super().load_state_dict(state_dict)
        self._set_fused()
        self.global_step = step
        for parameter, kept in self.state.items():
            momentum = kept.get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError("an optimiser of other parameters")


class PolyOptimizer(PolySGD):
    """The optimiser of the classifier and of IRN.

    Quirk of the original, kept: `weight_decay` goes into SGD's *momentum* slot, so that the momentum is 1e-4 rather
    than 0.9, while weight decay acts only through the groups that carry it.
    """

    def __init__(
        self, param_groups: list[dict], lr: float, weight_decay: float, max_step: int, power: float = POWER
    ) -> None:
        super().__init__(param_groups, lr, momentum=weight_decay, max_step=max_step, power=power)


def two_rate_optimizer(
    base: list[torch.nn.Parameter], fast: list[torch.nn.Parameter], *, lr: float, weight_decay: float, max_step: int
) -> PolyOptimizer:
    """The optimiser of the classifier and of IRN: `fast` parameters learn 10 times as fast as `base`."""
    groups = [
        {"params": base, "lr": lr, "weight_decay": weight_decay},
        {"params": fast, "lr": 10 * lr, "weight_decay": weight_decay},
    ]
    return PolyOptimizer(groups, lr=lr, weight_decay=weight_decay, max_step=max_step)
