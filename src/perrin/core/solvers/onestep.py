"""Methods of one evaluation for each interval and no memory: Euler, DDIM, DDPM, consistency.

The probability-flow ODE in `t` is `dx/dt = A_t x + B_t D` with `A = σ′/σ` and `B = α′ − α σ′/σ`. On the straight line
(`RectifiedFlow`) it is `dx/dt = D_z − D`, the flow, so that Euler, midpoint and Heun in `t` are the flow's.

References: Song et al. 2021 (DDIM); Ho et al. 2020 (DDPM); Song et al. 2023 (consistency models); Luo et al. 2023 (LCM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perrin.core.plan import Affine, PlanError, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers.base import Point, Solver


def euler_row(schedule: Schedule, start: float, stop: float) -> Affine:
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
        return [euler_row(schedule, stage.start, stage.stop) for stage in stages]


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


@dataclass(frozen=True)
class Consistency(Solver):
    """Multistep consistency sampling: denoise, then renoise to the next time, `x_s = α_s D + σ_s ξ` (Song et al. 2023).

    For consistency models and models distilled to few steps, whose estimate is a sample and not a mean (LCM's scheduler).
    With an estimate of the mean it does not converge to the data's distribution, however many steps are taken.
    """

    stochastic = True

    def rows(self, stages: Sequence[Stage], schedule: Schedule) -> list[Affine]:
        ends = [Point.at(schedule, stage.stop) for stage in stages]
        return [Affine(0.0, (q.alpha,), q.sigma) for q in ends]
