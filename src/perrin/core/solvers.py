"""Solvers as tables: each writes, for a schedule and a grid, the rows `x ← a · x_anchor + Σ_j b_j · D_j + c · ξ`.

Notation: a row goes from time `t` to `s < t`; `D` estimates the clean data; `λ = log(α/σ)`, `h = λ_s − λ_t > 0`. The
probability-flow ODE in `t` is `dx/dt = A_t x + B_t D` with `A = σ′/σ` and `B = α′ − α σ′/σ`.

References: Song et al. 2021 (DDIM); Ho et al. 2020 (DDPM); Karras et al. 2022 (Heun with churn, algorithm 2); Lu et al.
2022, "DPM-Solver++" (2M and SDE-2M).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from perrin.core.plan import Affine, PlanError, Stage
from perrin.core.schedules import Schedule


@dataclass(frozen=True)
class Point:
    """A schedule's values at one time, as Python floats."""

    alpha: float
    sigma: float
    alpha_rate: float
    sigma_rate: float

    @classmethod
    def at(cls, schedule: Schedule, t: float) -> Point:
        u = torch.tensor(t, dtype=torch.float64)
        return cls(
            *(float(f(u)) for f in (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate))
        )

    @property
    def lam(self) -> float:
        if self.alpha <= 0:
            return -math.inf
        return math.inf if self.sigma <= 0 else math.log(self.alpha / self.sigma)

    @property
    def drift(self) -> tuple[float, float]:
        """`A` and `B` of the probability-flow ODE `dx/dt = A x + B D`."""
        a = self.sigma_rate / self.sigma if self.sigma > 0 else math.inf
        return a, self.alpha_rate - self.alpha * a


class Solver(ABC):
    """A method: which stages it needs and the row of each."""

    order: int = 1
    stochastic: bool = False

    @property
    def name(self) -> str:
        """The class's name and its settings, as shown in `repr(plan)`."""
        return repr(self)

    def intervals(self, nfe: int) -> int:
        """How many grid intervals `nfe` network evaluations pay for."""
        if nfe < 1:
            raise PlanError(f"expected at least one network evaluation, given {nfe}")
        return nfe

    def for_nfe(self, nfe: int) -> Solver:
        """The same method, set so that `intervals(nfe)` intervals cost exactly `nfe` evaluations."""
        return self

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        """One evaluation for each interval, at its start."""
        t = times.tolist()
        return [Stage(time=t[i], start=t[i], stop=t[i + 1]) for i in range(len(t) - 1)]

    @abstractmethod
    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        """A Gaussian field's row for each stage."""


def _euler(schedule: Schedule, start: float, stop: float) -> Affine:
    """`x_s = x + (s − t)(A_t x + B_t D)`; a row to σ = 0 ends at `α_s D`.

    On straight paths (EDM, rectified flow) that is what Euler's method gives anyway. On curved ones it would leave noise
    behind: half of it for LinearVP, where `σ ∝ √t`.
    """
    q = Point.at(schedule, stop)
    if q.sigma == 0:
        return Affine(0.0, (q.alpha,))
    a, b = Point.at(schedule, start).drift
    return Affine(1 + (stop - start) * a, ((stop - start) * b,))


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method on the probability-flow ODE in `t`: `x_s = x + (s − t)(A_t x + B_t D)`; to σ = 0, `x_s = α_s D`."""

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        return [_euler(schedule, stage.start, stage.stop) for stage in stages]


@dataclass(frozen=True)
class DDIM(Solver):
    """`x_s = α_s D + √(σ_s² − c²) ẑ + c ξ`, `ẑ = (x − α_t D)/σ_t`; exact for a constant estimate (Song et al. 2021, eq. 12).

    Arguments:
        eta: 0 is deterministic; 1 draws from the exact posterior given `D` (ancestral sampling, DDPM).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise PlanError(f"expected 0 ≤ eta ≤ 1, given {self.eta}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        out = []
        for stage in stages:
            p, q = Point.at(schedule, stage.start), Point.at(schedule, stage.stop)
            ratio = p.alpha * q.sigma / (q.alpha * p.sigma)  # (σ_s/α_s) / (σ_t/α_t), below one
            c = self.eta * q.sigma * math.sqrt(max(0.0, 1 - ratio**2))
            # √(σ_s² − c²) / σ_t without its cancellation at small ratios
            keep = q.sigma * math.sqrt(1 - self.eta**2 + (self.eta * ratio) ** 2) / p.sigma
            out.append(Affine(keep, (q.alpha - p.alpha * keep,), c))
        return out


def DDPM() -> DDIM:
    """Ancestral sampling (Ho et al. 2020): `DDIM(eta=1)`."""
    return DDIM(eta=1.0)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Heun's method in `t` with EDM's churn (Karras et al. 2022, algorithm 2); the step to t = 0 is Euler's.

    `n` intervals cost `2n − 1` evaluations on a grid that ends at 0. `plan_steps` pays an even budget by taking the first
    interval with Euler.

    Arguments:
        churn: `S_churn`; the noise level is first raised by a factor `1 + min(S_churn / n, √2 − 1)`.
        t_min, t_max: σ/α range in which to churn (`S_tmin`, `S_tmax`).
        noise: `S_noise`, factor on the noise added.
        euler_first: take the first interval with one evaluation.
    """

    churn: float = 0.0
    t_min: float = 0.0
    t_max: float = math.inf
    noise: float = 1.0
    euler_first: bool = False
    order = 2

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0

    def intervals(self, nfe: int) -> int:
        return super().intervals(nfe) // 2 + 1

    def for_nfe(self, nfe: int) -> Heun:
        return replace(self, euler_first=nfe % 2 == 0)

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        t, out = times.tolist(), []
        gamma = min(self.churn / (len(t) - 1), math.sqrt(2) - 1)
        for i, (start, stop) in enumerate(pairwise(t)):
            p = Point.at(schedule, start)
            if gamma > 0 and p.alpha > 0 and self.t_min <= p.sigma / p.alpha <= self.t_max:
                raised = float(schedule.time(torch.tensor(p.lam - math.log1p(gamma), dtype=torch.float64)))
                raised = min(raised, schedule.limit)
                if raised > start:
                    out.append(Stage(time=None, start=start, stop=raised))
                    start = raised
            out.append(Stage(time=start, start=start, stop=stop, store=True))
            if stop > 0 and Point.at(schedule, stop).sigma > 0 and not (self.euler_first and i == 0):
                out.append(Stage(time=stop, start=stop, stop=stop, anchored=True))
        return out

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        out: list[Affine] = []
        for i, stage in enumerate(stages):
            p = Point.at(schedule, stage.start)
            if stage.time is None:  # churn: forward from `start` to the noisier `stop`
                q = Point.at(schedule, stage.stop)
                a = q.alpha / p.alpha
                out.append(Affine(a, (), self.noise * math.sqrt(max(0.0, q.sigma**2 - (a * p.sigma) ** 2))))
            elif stage.anchored:
                before = stages[i - 1]
                h = stage.stop - before.start
                a0, b0 = Point.at(schedule, before.start).drift
                a1, b1 = p.drift
                out.append(
                    Affine(1 + h / 2 * (a0 + a1 * (1 + h * a0)), (h / 2 * b1, h / 2 * (b0 + a1 * h * b0)))
                )
            else:
                out.append(_euler(schedule, stage.start, stage.stop))
        return out


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M) in data prediction, or its SDE form (Lu et al. 2022, algorithm 2 and eq. 18).

    ODE: `x_s = (σ_s/σ_t) x + α_s (1 − e^{−h}) [(1 + 1/2r) D_0 − (1/2r) D_1]`, `r = h_previous / h`.
    SDE: `x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) [same] + σ_s √(1 − e^{−2h}) ξ`.

    The first row, a row to σ = 0 and a row after a start without signal (λ = −∞) are first order.
    """

    sde: bool = False
    order = 2

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        out, h_before = [], math.inf
        for stage in stages:
            p, q = Point.at(schedule, stage.start), Point.at(schedule, stage.stop)
            shrink = p.alpha * q.sigma / (q.alpha * p.sigma)  # e^{−h}
            h = math.inf if shrink == 0 else -math.log(shrink)
            half = 0.0 if math.isinf(h_before) or math.isinf(h) else 0.5 * h / h_before
            if self.sde:
                a, gain = q.sigma / p.sigma * shrink, q.alpha * (1 - shrink**2)
                c = q.sigma * math.sqrt(max(0.0, 1 - shrink**2))
            else:
                a, gain, c = q.sigma / p.sigma, q.alpha * (1 - shrink), 0.0
            out.append(Affine(a, (gain * (1 + half), -gain * half) if half else (gain,), c))
            h_before = h
        return out


SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "ddim": DDIM(),
    "ddpm": DDPM(),
    "heun": Heun(),
    "edm": Heun(churn=40.0, t_min=0.05, t_max=50.0, noise=1.003),
    "dpmpp-2m": DPMSolverPP2M(),
    "sde-dpmpp-2m": DPMSolverPP2M(sde=True),
}
"""Ready-made solvers by the name that the command line uses."""
