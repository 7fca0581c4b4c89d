"""Methods of two evaluations for each interval: midpoint and Heun in t, DPM-Solver++(2S) in λ.

`n` intervals of a grid that ends at σ = 0 cost `2n − 1` evaluations, because the last, whose end has no drift, takes one.
`plan_steps` pays an even budget by taking the first interval with one, too.

References: Karras et al. 2022 (Heun with churn, algorithm 2); Lu et al. 2022 (DPM-Solver++ 2S, algorithm 1).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from perrin.core.plan import Affine, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers.base import Point, Solver, forward, moments, shrink
from perrin.core.solvers.onestep import euler_row

S = TypeVar("S", bound="TwoStage")


@dataclass(frozen=True, kw_only=True)
class TwoStage(Solver):
    """A first stage to a point of the interval, and a second one from the interval's start with the estimate there.

    Arguments:
        euler_first: take the first interval with one evaluation.
    """

    euler_first: bool = False
    order = 2

    def intervals(self, nfe: int) -> int:
        return super().intervals(nfe) // 2 + 1

    def for_nfe(self: S, nfe: int) -> S:
        return replace(self, euler_first=nfe % 2 == 0)

    @abstractmethod
    def inner(self, start: float, stop: float, schedule: Schedule) -> float:
        """The time of the second evaluation."""

    def stages(self, times: Tensor, schedule: Schedule) -> list[Stage]:
        out = []
        for i, (start, stop) in enumerate(pairwise(times.tolist())):
            double = stop > 0 and Point.at(schedule, stop).sigma > 0 and not (self.euler_first and i == 0)
            inner = self.inner(start, stop, schedule) if double else stop
            out.append(Stage(time=start, start=start, stop=inner, store=True))
            if double:
                out.append(Stage(time=inner, start=inner, stop=stop, anchored=True))
        return out

    @abstractmethod
    def first(self, stage: Stage, schedule: Schedule) -> Affine:
        """The row from the interval's start, of first order."""

    @abstractmethod
    def second(self, before: Stage, stage: Stage, schedule: Schedule) -> Affine:
        """The row from the anchor to the interval's end."""

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        return [
            self.second(stages[i - 1], stage, schedule) if stage.anchored else self.first(stage, schedule)
            for i, stage in enumerate(stages)
        ]


@dataclass(frozen=True, kw_only=True)
class Midpoint(TwoStage):
    """The midpoint rule on the probability-flow ODE in `t`: `x_s = x + (s − t)(A_m x_m + B_m D_m)`, `m = (t + s)/2`.

    `x_m` is Euler's; the interval to σ = 0 is Euler's alone.
    """

    def inner(self, start: float, stop: float, schedule: Schedule) -> float:
        return (start + stop) / 2

    def first(self, stage: Stage, schedule: Schedule) -> Affine:
        return euler_row(schedule, stage.start, stage.stop)

    def second(self, before: Stage, stage: Stage, schedule: Schedule) -> Affine:
        a0, b0 = Point.at(schedule, before.start).drift
        a1, b1 = Point.at(schedule, stage.start).drift
        half, h = stage.start - before.start, stage.stop - before.start
        return Affine(1 + h * a1 * (1 + half * a0), (h * b1, h * a1 * half * b0))


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2S(TwoStage):
    """DPM-Solver++(2S), the exponential midpoint rule: `x_s = (σ_s/σ_t) x + α_s (1 − e^{−h}) D_m`, `λ_m = (λ_t + λ_s)/2`.

    `x_m` is DDIM's. From pure noise, where λ = −∞, the midpoint is taken in t.
    """

    def inner(self, start: float, stop: float, schedule: Schedule) -> float:
        p, q = Point.at(schedule, start), Point.at(schedule, stop)
        if math.isinf(p.lam):
            return (start + stop) / 2
        return float(schedule.time(torch.tensor((p.lam + q.lam) / 2, dtype=torch.float64)))

    def _row(self, start: float, stop: float, schedule: Schedule) -> tuple[float, float]:
        p, q = Point.at(schedule, start), Point.at(schedule, stop)
        e = shrink(p, q)
        return q.sigma / p.sigma, q.alpha * (moments(-math.log(e), 1)[0] if e > 0 else 1.0)

    def first(self, stage: Stage, schedule: Schedule) -> Affine:
        a, gain = self._row(stage.start, stage.stop, schedule)
        return Affine(a, (gain,))

    def second(self, before: Stage, stage: Stage, schedule: Schedule) -> Affine:
        a, gain = self._row(before.start, stage.stop, schedule)
        return Affine(a, (gain,))


@dataclass(frozen=True, kw_only=True)
class Heun(TwoStage):
    """Heun's method in `t` with EDM's churn (Karras et al. 2022, algorithm 2); the step to t = 0 is Euler's.

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

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0

    def inner(self, start: float, stop: float, schedule: Schedule) -> float:
        return stop

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

    def first(self, stage: Stage, schedule: Schedule) -> Affine:
        if stage.time is None:  # churn: forward from `start` to the noisier `stop`
            return forward(Point.at(schedule, stage.start), Point.at(schedule, stage.stop), self.noise)
        return euler_row(schedule, stage.start, stage.stop)

    def second(self, before: Stage, stage: Stage, schedule: Schedule) -> Affine:
        h = stage.stop - before.start
        a0, b0 = Point.at(schedule, before.start).drift
        a1, b1 = Point.at(schedule, stage.start).drift
        return Affine(1 + h / 2 * (a0 + a1 * (1 + h * a0)), (h / 2 * b1, h / 2 * (b0 + a1 * h * b0)))
