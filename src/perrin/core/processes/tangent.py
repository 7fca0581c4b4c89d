"""Rows of fields that live on a manifold: both `Torus` and `Rotation` diffuse by heat, and go back along tangents.

With the variance-exploding `σ_t` the field's density obeys `∂p/∂(σ²) = ½ Δ p`. The denoiser's estimate is the tangent

    D(x_t, t) = σ_t² ∇ log p_t(x_t)

which for small noise is the mean displacement from `x_t` to the clean data, `Exp_x(D) ≈ x_0` (Tweedie's formula), and whose
regression target for known data is `σ_t² ∇ log p(x_t | x_0)`, the score of the heat kernel (De Bortoli et al. 2022; Jing et
al. 2022; Leach et al. 2022; Jiao et al. 2023). Tangents add and scale, so guidance mixes them as it mixes means.

A row from t to s is `x_s = Exp_x(g D + c ξ)`: with `r = σ_s / σ_t`, `c = η σ_s √(1 − r²)` and `k = r √(1 − η² + η² r²)`,
`g = 1 − k`. That is DDIM's row in the tangent space. It is exact for a constant estimate: with η = 0 and a denoiser that
always points to the same `X`, rows compose along the geodesic to `X`, and any chain to σ = 0 ends there. It is an `Affine`
with `a = 1`. When `σ` shrinks by little in each row, it is Euler's method on the exact reverse equation, of first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from perrin.core.plan import Affine, Row, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers import Solver


def tangent_rows(schedule: Schedule, solver: Solver, stages: Sequence[Stage]) -> list[Row]:
    """A first-order row for every stage, whatever the solver's order.

    The solver says how much noise: its `eta` if it has one; none if it raises the noise by rows of its own (churn); else 1
    when it is stochastic and 0 when not. Where an estimate was made at a time `e ≠ t`, `g` is scaled by `σ_t / σ_e`.
    """
    raises = any(stage.stop > stage.start for stage in stages)
    eta = float(getattr(solver, "eta", 1.0 if solver.stochastic and not raises else 0.0))
    out: list[Row] = []
    evaluated = 0.0
    for stage in stages:
        evaluated = evaluated if stage.time is None else stage.time
        t, s, e = (_sigma(schedule, time) for time in (stage.start, stage.stop, evaluated))
        if stage.start == stage.stop:
            out.append(None)
        elif s > t:
            out.append(Affine(1.0, (), math.sqrt(s**2 - t**2)))
        else:
            r = s / t
            keep = r * math.sqrt(1 - eta**2 + (eta * r) ** 2)
            out.append(Affine(1.0, ((1 - keep) * t / e,), eta * s * math.sqrt(1 - r**2)))
    return out


def exploding(schedule: Schedule) -> Schedule:
    """The same schedule, or a `ValueError` unless `α = 1`: on a manifold there is no smaller copy of the data."""
    alpha = schedule.alpha(torch.linspace(0, 1, 5, dtype=torch.float64))
    if not bool((alpha == 1).all()):
        raise ValueError(
            f"expected a variance-exploding schedule, α = 1 at all times (EDM(sigma_max=…)), given {schedule}"
        )
    return schedule


def _sigma(schedule: Schedule, t: float) -> float:
    return float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))
