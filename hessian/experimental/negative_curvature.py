"""An optimizer that also steps along the direction of most negative curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from thermoscope.errors import HessianError

from ..empirical_risk.parameters import split
from .tracker import EigenTracker

__all__ = ["NegativeCurvature"]


class NegativeCurvature(Optimizer):
    """A base optimizer, and steps of their own along the tracked most negative eigenvector v.

        tracker = EigenTracker(model, F.cross_entropy, every=100)
        optimizer = NegativeCurvature(torch.optim.RMSprop(model.parameters(), 1e-3), tracker, lr=0.1)
        for x, y in loader:
            F.cross_entropy(model(x), y).backward(); optimizer.step(); optimizer.zero_grad()
            tracker.step((x, y))

    After Alain, Le Roux & Manzagol, "Negative eigenvalues of the Hessian in deep neural networks", appendix
    11.E: steps of the base optimizer alternate with steps along v. The latter are Newton's, with the absolute
    value of the eigenvalue (the saddle-free Newton step of Dauphin et al. 2014, in one dimension):

        theta <- theta - lr (g . v) / |lambda| v

    with g the minibatch gradient that the base optimizer has just used. They go downhill, and away from a
    saddle, whichever sign v has. There is none while the tracker cannot vouch for negative curvature: before
    its first estimate, and while value + scatter >= 0 (v need not be an eigenvector to bend downwards).

    The parameter groups, the state and the learning rates in the groups are the base optimizer's, so that
    learning-rate schedulers may be given either of the two.

    Args:
        base: any optimizer of the tracked parameters.
        tracker: whose `step(batch)` the training loop calls.
        lr: of the steps along v; 1 is a full Newton step.
        every: base steps per step along v.

    Attributes:
        lr: may be changed at any time.
        steps: base steps so far.
        curvature_steps: steps along v so far.

    Raises:
        HessianError: for a learning rate or period that is none, or if the tracker watches parameters that
            the base optimizer does not train.
    """

    def __init__(self, base: Optimizer, tracker: EigenTracker, lr: float = 0.1, every: int = 1):
        if not lr >= 0:
            raise HessianError(f"lr={lr}; it must be 0 or more.")
        if every < 1:
            raise HessianError(f"every={every}; it must be at least 1.")
        trained = {id(p) for group in base.param_groups for p in group["params"]}
        strange = [name for name, p in tracker.parameters.items() if id(p) not in trained]
        if strange:
            raise HessianError(
                f"the tracker watches {strange[0]!r}, which the base optimizer does not train; give both the "
                "same parameters."
            )
        super().__init__(base.param_groups, base.defaults)
        self.base, self.tracker, self.lr, self.every = base, tracker, lr, every
        self.steps, self.curvature_steps = 0, 0
        self._share(base)
        base.register_load_state_dict_post_hook(self._share)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the base optimizer, and after every `every`-th a step along v; the closure's value."""
        value = self.base.step(closure) if closure is not None else self.base.step()
        self.steps += 1
        if self.steps % self.every == 0:
            self._follow()
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimizer's."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the base optimizer more parameters; the tracker goes on watching those it had."""
        # torch's constructor calls this for the groups that the base optimizer already has.
        (self.base.add_param_group if hasattr(self, "base") else super().add_param_group)(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of base optimizer and tracker, and the counters."""
        return {
            "base": self.base.state_dict(),
            "tracker": self.tracker.state_dict(),
            "lr": self.lr,
            "steps": self.steps,
            "curvature_steps": self.curvature_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            HessianError: if the state is of another kind of optimizer.
        """
        if "base" not in state_dict or "tracker" not in state_dict:
            raise HessianError("this is no state of NegativeCurvature; a base optimizer's goes to `.base`.")
        self.tracker.load_state_dict(state_dict["tracker"])
        self.base.load_state_dict(state_dict["base"])
        self.lr, self.steps = state_dict["lr"], state_dict["steps"]
        self.curvature_steps = state_dict["curvature_steps"]

    def _share(self, base: Optimizer) -> None:
        """Loading a state gives the base optimizer new groups and a new state."""
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults

    @torch.no_grad()
    def _follow(self) -> None:
        pair = self.tracker.smallest
        if pair is None or pair.value + pair.scatter >= 0:
            return
        parameters = self.tracker.parameters
        direction = split(pair.vector, {name: tuple(p.shape) for name, p in parameters.items()})
        slope = sum(
            float((p.grad * direction[name]).sum()) for name, p in parameters.items() if p.grad is not None
        )
        for name, p in parameters.items():
            p.add_(direction[name].to(p.dtype), alpha=-self.lr * slope / abs(pair.value))
        self.curvature_steps += 1
