"""Guides by the gradient of a property: an energy of the clean state, or a regressor that was trained on noisy ones.

For `p(x_0) e^{−w E(x_0)}` the estimate moves along the gradient of `log E[e^{−w E(x_0)} | x_t]`, by Tweedie's formula

    D ← D + (σ²/α) ∇_{x_t} log E[e^{−w E(x_0)} | x_t].

`EnergyGuide` puts the energy of the mean in place of the mean over `x_0 | x_t`: exact to first order in `Cov[x_0 | x_t]`,
hence towards the end, and for a linear energy of Gaussian data always. `RegressorGuide` has learned the expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core.denoiser import Denoiser, check, passes
from perrin.core.guides.contrast import per_sample
from perrin.core.layout import Layouts
from perrin.core.plan import Plan, PlanError
from perrin.core.processes import State
from perrin.core.schedules import Schedule

Energy = Callable[[State], Tensor]
"""The energy of each sample, `[B]`, of a clean state (logits for categorical fields)."""
LogDensity = Callable[[State, Tensor], Tensor]
"""`log p(property | x_t)` of each sample, `[B]`, of a noisy state and times `[B]`."""


def check_signal(schedules: Mapping[str, Schedule], plan: Plan) -> None:
    """`PlanError` where a guided field has no signal: `σ²/α` is infinite there."""
    times = torch.tensor([s.time for s in plan.stages if s.time is not None], dtype=torch.float64)
    for name, schedule in schedules.items():
        if bool((schedule.alpha(times) <= 0).any()):
            raise PlanError(
                f"expected a plan that starts below t = 1, where field {name!r} has signal: start=0.999"
            )


def tweedie(gradient: Tensor, t: Tensor, schedule: Schedule, layouts: Layouts, name: str) -> Tensor:
    """`(σ²/α) ∇`: what a gradient of a log density in `x_t` adds to the estimate of the clean field."""
    return layouts[name].expand(schedule.sigma(t) ** 2 / schedule.alpha(t), gradient) * gradient


def _limited(shift: Tensor, layouts: Layouts, name: str, limit: float | None) -> Tensor:
    """The shift, shortened to a root mean square of `limit` in each sample."""
    if limit is None:
        return shift
    layout = layouts[name]
    count = per_sample(torch.ones_like(shift), layout).clamp(min=1)
    rms = (per_sample(shift.square(), layout) / count).sqrt()
    return shift * layout.expand((limit / rms.clamp(min=1e-12)).clamp(max=1.0), shift)


@dataclass(frozen=True, kw_only=True, eq=False)
class _GradientGuide:
    """What both guides are made of; their arguments are explained there."""

    denoiser: Denoiser
    schedules: Mapping[str, Schedule]
    scale: float = 1.0
    limit: float | None = None

    @property
    def passes(self) -> int:
        """Those of the denoiser."""
        return passes(self.denoiser)

    def check(self, plan: Plan) -> None:
        """`PlanError` where no signal is left."""
        check(self.denoiser, plan)
        check_signal(self.schedules, plan)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyGuide(_GradientGuide):
    """Property guidance through the denoiser: `D ← D − w (σ²/α) ∇_{x_t} E(D(x_t))` (Bansal et al. 2024, "universal").

    Arguments:
        denoiser: of the prior.
        energy: of the clean state; low is wanted.
        schedules: of the Gaussian fields to move, by name.
        scale: `w`; 0 is off.
        limit: the largest root mean square of the shift, per sample and field, in the field's units; none by default.
    """

    energy: Energy

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        with torch.enable_grad():
            given = {k: x[k].detach().requires_grad_() for k in self.schedules}
            out = self.denoiser({**x, **given}, t, condition=condition, layouts=layouts, previous=previous)
            energy = self.energy(out)
            grads = torch.autograd.grad(energy.sum(), list(given.values()), allow_unused=True)
        out = {k: v.detach() for k, v in out.items()}
        for (name, schedule), g in zip(self.schedules.items(), grads, strict=True):
            if g is not None:
                shift = -self.scale * tweedie(g, t, schedule, layouts, name)
                out[name] = out[name] + _limited(shift, layouts, name, self.limit)
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class RegressorGuide(_GradientGuide):
    """Classifier guidance: `D ← D + w (σ²/α) ∇_{x_t} log p(c | x_t)` (Dhariwal and Nichol 2021, eq. 10).

    Exact at `w = 1` if the regressor is. No backward pass through the denoiser.

    Arguments:
        denoiser: of the prior.
        log_density: `log p(c | x_t)` of the noisy state.
        schedules: of the Gaussian fields to move, by name.
        scale: `w`; 0 is off.
        limit: as in `EnergyGuide`.
    """

    log_density: LogDensity

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        out = dict(self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous))
        with torch.enable_grad():
            given = {k: x[k].detach().requires_grad_() for k in self.schedules}
            value = self.log_density({**x, **given}, t).sum()
            grads = torch.autograd.grad(value, list(given.values()), allow_unused=True)
        for (name, schedule), g in zip(self.schedules.items(), grads, strict=True):
            if g is not None:
                shift = self.scale * tweedie(g, t, schedule, layouts, name)
                out[name] = out[name] + _limited(shift, layouts, name, self.limit)
        return out
