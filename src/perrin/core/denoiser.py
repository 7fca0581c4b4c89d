"""Denoisers: `(state, t, condition, layout) → estimate of the clean state`.

An estimate is a dict of fields: for a Gaussian field the posterior mean `E[x_0 | x_t]`, for a categorical field logits
over clean categories, for a field on a manifold the tangent `σ_t² ∇ log p_t`, for a `Clean` field nothing. A network
knows nothing of schedules; a `Head` per field turns what it is given into network inputs, and what it returns into an
estimate. Preconditioning and `sigma_data` live here, and only here.

`EDMHead` generalises Karras et al. (2022, table 1) to `x_t = α x_0 + σ z`: with data of standard deviation `σ_d` and
`s² = α² σ_d² + σ²`,

    c_in = 1/s,   c_skip = α σ_d² / s²,   c_out = σ σ_d / s,   D = c_skip x_t + c_out F(c_in x_t),

so that inputs and targets of F have unit variance at every time, and D is exact where there is no noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perrin.core.layout import Layout, Layouts
from perrin.core.plan import Plan, PlanError
from perrin.core.predictions import Prediction
from perrin.core.processes import Clean, Composite, State
from perrin.core.schedules import Schedule


class Denoiser(Protocol):
    """Anything that estimates the clean state. `previous` is the estimate before, for self-conditioning, or `None`."""

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State: ...


def check(denoiser: Denoiser, plan: Plan) -> None:
    """Ask a denoiser that has a method `check(plan)` whether it can run the plan; it raises `PlanError` if not."""
    method = getattr(denoiser, "check", None)
    if method is not None:
        method(plan)


def passes(denoiser: Denoiser) -> int:
    """Forward passes of the network in one call of the denoiser: its own `passes` if it says so (guides do), else 1.

    Backward passes (gradients of guides) are not counted, nor is what is no denoiser (a regressor, a measurement).
    """
    return getattr(denoiser, "passes", 1)


def network_passes(denoiser: Denoiser, plan: Plan) -> int:
    """Forward passes of the network that running the plan makes: `plan.nfe` calls of the denoiser, `passes` in each."""
    return plan.nfe * passes(denoiser)


class Head(ABC):
    """Between a field and the network: scales the input, interprets the output."""

    @abstractmethod
    def scale(self, x: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        """What the network is given for the noised field `x`."""

    @abstractmethod
    def estimate(self, x: Tensor, y: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        """The estimate of the clean field from the network's output `y`."""

    def undefined(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Whether the output determines no estimate at the times `t`; looked at before a plan is run."""
        return torch.zeros_like(t, dtype=torch.bool)

    @abstractmethod
    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The loss weight per sample, `[B]`, that makes the loss uniform in the network's own output."""


@dataclass(frozen=True, kw_only=True)
class EDMHead(Head):
    """Preconditioning with skip, for a field of standard deviation `sigma_data`."""

    sigma_data: float = 1.0

    def _s(self, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha, sigma, (alpha**2 * self.sigma_data**2 + sigma**2).sqrt()

    def scale(self, x: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return x / layout.expand(self._s(t, schedule)[2], x)

    def estimate(self, x: Tensor, y: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        alpha, sigma, s = self._s(t, schedule)
        skip, out = alpha * self.sigma_data**2 / s**2, sigma * self.sigma_data / s
        return layout.expand(skip, x) * x + layout.expand(out, x) * y

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        _, sigma, s = self._s(t, schedule)
        return (s / (sigma * self.sigma_data)) ** 2


@dataclass(frozen=True, kw_only=True)
class PredictionHead(Head):
    """The network's output is one of the `perrin.core.predictions`; its input is the noised field itself."""

    prediction: Prediction

    def scale(self, x: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return x

    def estimate(self, x: Tensor, y: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return self.prediction.x0(schedule, layout.expand(t, x), x, y)

    def undefined(self, t: Tensor, schedule: Schedule) -> Tensor:
        determinant = self.prediction.determinant(schedule, t)
        return (determinant == 0) | ~torch.isfinite(determinant)

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        # y = (b x − D (α b − σ a)) / σ, so |Δy|² = (det/σ)² |ΔD|²
        return (self.prediction.determinant(schedule, t) / schedule.sigma(t)) ** 2


@dataclass(frozen=True, kw_only=True)
class LogitsHead(Head):
    """The network's output is the logits over clean categories; its input is the category number."""

    def scale(self, x: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return x

    def estimate(self, x: Tensor, y: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return y

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        return t.new_ones(t.shape)


@dataclass(frozen=True, kw_only=True)
class TangentHead(Head):
    """For `Torus` and `Rotation`: the network's output times `σ_t` is the tangent; its input is the state itself.

    With the tangent's target `σ_t² ∇ log p(x_t | x_0)` and small noise, outputs have unit variance at every time.
    """

    def scale(self, x: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return x

    def estimate(self, x: Tensor, y: Tensor, t: Tensor, schedule: Schedule, layout: Layout) -> Tensor:
        return layout.expand(schedule.sigma(t), y) * y

    def weight(self, t: Tensor, schedule: Schedule) -> Tensor:
        return schedule.sigma(t) ** -2


class NetworkDenoiser(nn.Module):
    """A network, a process and a head for each field make a denoiser.

    Arguments:
        network: called as `network(fields, t, condition=…, layouts=…, previous=…)` with every field scaled by its head;
            returns one output per field.
        process: the composite that the fields are corrupted by.
        heads: a head for each field but the `Clean` ones, which the network is given as they are.
    """

    def __init__(self, network: nn.Module, process: Composite, heads: Mapping[str, Head]) -> None:
        super().__init__()
        noised = {k for k, p in process.fields.items() if not isinstance(p, Clean)}
        if not noised <= set(heads) <= set(process.fields):
            raise ValueError(f"expected a head for each of {sorted(noised)}, given {sorted(heads)}")
        self.network = network
        self.process = process
        self.heads = dict(heads)

    def check(self, plan: Plan) -> None:
        """Raise `PlanError` if the plan asks for an estimate where a head's output does not determine one."""
        times = torch.tensor([s.time for s in plan.stages if s.time is not None], dtype=torch.float64)
        for name, head in self.heads.items():
            bad = times[head.undefined(times, self.process.fields[name].schedule)]
            if len(bad):
                raise PlanError(
                    f"expected a plan on which {head} determines field {name!r}, but at t = {float(bad[0]):g} its "
                    f"output says nothing about the data: start the grid lower, or train with another prediction"
                )

    def forward(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        fields = self.process.fields
        given = {
            k: self.heads[k].scale(x[k], t, p.schedule, layouts[k]) if k in self.heads else x[k]
            for k, p in fields.items()
        }
        y = self.network(given, t, condition=condition, layouts=layouts, previous=previous)
        return {k: h.estimate(x[k], y[k], t, fields[k].schedule, layouts[k]) for k, h in self.heads.items()}
