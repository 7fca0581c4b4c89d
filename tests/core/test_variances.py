"""The exact output of every solver on Gaussian data, against the published updates carried out one by one.

Data N(0, 0.5²) on the straight path α = 1 − t, σ = t, with the exact denoiser `D(x, t) = g_t x`, `g = α v² / (α² v² + σ²)`,
`v = 0.5`. Every update is linear, so a state is a vector of coefficients over independent standard normal numbers (the start
and one for each row), and the output's standard deviation is its length.

What is here shares nothing with the solvers: predictors and correctors are separate steps as in the papers, not rows, and
the integrals of the exponential integrators are taken by Gauss and Legendre's rule over Lagrange's polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from perrin.core import (
    DDIM,
    DDPM,
    DPMSolverPP1M,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    ExpAB,
    Heun,
    Midpoint,
    RectifiedFlow,
    SASolver,
    Solver,
    UniPC,
)
from perrin.core.grids import uniform
from perrin.core.testing import output_std

STD, N, START = 0.5, 18, 0.999
TIMES = [START * (1 - i / N) for i in range(N + 1)]
THETA, WEIGHT = np.polynomial.legendre.leggauss(80)
THETA, WEIGHT = (THETA + 1) / 2, WEIGHT / 2


def lam(t: float) -> float:
    return math.log((1 - t) / t) if t > 0 else math.inf


def gain(t: float) -> float:
    return (1 - t) * STD**2 / (((1 - t) * STD) ** 2 + t**2)


def integrals(nodes: Sequence[float], H: float, pair: str) -> list[float]:
    """`∫_0^1 H e^{−H(1−θ)} ℓ_j(θ) dθ` for each node; polynomials of first degree as the authors of a method take them."""
    total = -math.expm1(-H)
    if len(nodes) == 2 and pair != "exact":
        slope = {"B2": total / 2, "H/2": H / 2}[pair] / (nodes[1] - nodes[0])
        at_zero = {0.0: (0, 1), 1.0: (1, 0)}[
            nodes[0]
        ]  # the pair (0, −r) of a predictor or (1, 0) of a corrector
        return [total - slope, slope] if at_zero == (0, 1) else [-slope, total + slope]
    kernel = WEIGHT * H * np.exp(-H * (1 - THETA))
    out = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(THETA)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (THETA - other) / (node - other)
        out.append(float((kernel * basis).sum()))
    return out


def multistep(
    predictor: int,
    corrector: int = 0,
    *,
    tau: float = 0.0,
    pair: str = "exact",
    corrected_start: bool = False,
) -> float:
    """Predict, evaluate, correct; DPM-Solver++, UniPC, SA-Solver and exponential Adams–Bashforth are all of this form."""
    axis = np.eye(N + 1)
    x = axis[0] * math.hypot((1 - START) * STD, START)
    anchor, noise_before, found = x, np.zeros(N + 1), []  # (λ, D) of every evaluation, oldest first
    for i, (t, s) in enumerate(pairwise(TIMES)):
        found.append((lam(t), gain(t) * x))
        order = min(corrector, i + 1)
        if corrected_start and i == 1:
            order = 2
        if i > 0 and order > 0:  # the interval before, once more, with the newest evaluation
            before = TIMES[i - 1]
            h = lam(t) - lam(before)
            used = found[::-1][:order]
            nodes = [(l - lam(before)) / h for l, _ in used]
            w = integrals(nodes, (1 + tau**2) * h, pair)
            integral = sum(a * d for a, (_, d) in zip(w, used, strict=True))
            x = t / before * math.exp(-(tau**2) * h) * anchor + (1 - t) * integral + noise_before
        h = lam(s) - lam(t)
        anchor = x
        if math.isinf(h):
            return float(np.linalg.norm(found[-1][1]))
        used = found[::-1][:predictor]
        w = integrals([(l - lam(t)) / h for l, _ in used], (1 + tau**2) * h, pair)
        integral = sum(a * d for a, (_, d) in zip(w, used, strict=True))
        noise_before = s * math.sqrt(-math.expm1(-2 * tau**2 * h)) * axis[i + 1]
        x = s / t * math.exp(-(tau**2) * h) * anchor + (1 - s) * integral + noise_before
    raise AssertionError("the grid ends at 0")


def dpmpp_2m(tau: float) -> float:
    """Lu et al. 2022, algorithm 2, and its SDE form, with `r = h_before / h` as printed."""
    axis = np.eye(N + 1)
    x, old, before = axis[0] * math.hypot((1 - START) * STD, START), None, 0.0
    for i, (t, s) in enumerate(pairwise(TIMES)):
        d, h = gain(t) * x, lam(s) - lam(t)
        if math.isinf(h):
            return float(np.linalg.norm(d))
        r = before / h
        mixed = d if old is None else (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        shrink = math.exp(-(1 + tau**2) * h)
        x = s / t * math.exp(-(tau**2) * h) * x + (1 - s) * (1 - shrink) * mixed
        x = x + s * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * axis[i + 1]
        old, before = d, h
    raise AssertionError("the grid ends at 0")


def ddim(eta: float) -> float:
    """Song et al. 2021, eq. 12; every update is a multiple of the state and a noise of its own, so variances add."""
    variance = ((1 - START) * STD) ** 2 + START**2
    for t, s in pairwise(TIMES):
        c2 = (eta * s) ** 2 * (1 - ((1 - t) * s / ((1 - s) * t)) ** 2)
        factor = (1 - s) * gain(t) + math.sqrt(s**2 - c2) * (1 - (1 - t) * gain(t)) / t
        variance = factor**2 * variance + c2
    return math.sqrt(variance)


def ode(update: Callable[[float, float], float]) -> float:
    """A method without noise: the product of its factors, Euler's (`D` itself) for the interval to 0."""
    x = math.hypot((1 - START) * STD, START)
    for t, s in pairwise(TIMES[:-1]):
        x *= update(t, s)
    return x * gain(TIMES[-2])


def velocity(t: float) -> float:
    """`dx/dt` for `x = 1`: the straight path's flow `(x − D)/t`."""
    return (1 - gain(t)) / t


def midpoint(t: float, s: float) -> float:
    m = (t + s) / 2
    return 1 + (s - t) * velocity(m) * (1 + (m - t) * velocity(t))


def heun(t: float, s: float) -> float:
    return 1 + (s - t) / 2 * (velocity(t) + velocity(s) * (1 + (s - t) * velocity(t)))


def dpmpp_2s(t: float, s: float) -> float:
    """Lu et al. 2022, algorithm 1, with r = ½."""
    middle, h = (lam(t) + lam(s)) / 2, lam(s) - lam(t)
    m = 1 / (1 + math.exp(middle))
    there = m / t + (1 - m) * (1 - math.exp(-h / 2)) * gain(t)
    return s / t + (1 - s) * (1 - math.exp(-h)) * gain(m) * there


CASES: list[tuple[Solver, float]] = [
    (DDIM(), ddim(0.0)),
    (Euler(), ddim(0.0)),  # on a straight path
    (DDIM(eta=0.4), ddim(0.4)),
    (DDPM(), ddim(1.0)),
    (DPMSolverPP1M(), multistep(1)),
    (DPMSolverPP1M(sde=True), multistep(1, tau=1.0)),
    (DPMSolverPP2M(), dpmpp_2m(0.0)),
    (DPMSolverPP2M(sde=True), dpmpp_2m(1.0)),
    (DPMSolverPP2M(), multistep(2, pair="B2")),
    (DPMSolverPP3M(startup="plain"), multistep(3)),
    (DPMSolverPP3M(), multistep(3, corrected_start=True)),
    (DPMSolverPP3M(sde=True, startup="plain"), multistep(3, tau=1.0)),
    (DPMSolverPP3M(sde=True), multistep(3, tau=1.0, corrected_start=True)),
    (DPMSolverPP2S(), ode(dpmpp_2s)),
    (Midpoint(), ode(midpoint)),
    (Heun(), ode(heun)),
    (ExpAB(1), multistep(1)),
    (ExpAB(2), multistep(2)),
    (ExpAB(3, startup="plain"), multistep(3)),
    (ExpAB(4, startup="plain"), multistep(4)),
    (ExpAB(4), multistep(4, corrected_start=True)),
    (UniPC(1), multistep(1, 2, pair="B2")),
    (UniPC(2), multistep(2, 3, pair="B2")),
    (UniPC(3), multistep(3, 4, pair="B2")),
    (SASolver(), multistep(2, 2, tau=1.0, pair="H/2")),
    (SASolver(tau=0.0), multistep(2, 2, pair="H/2")),
    (SASolver(tau=0.6, predictor=3, corrector=4), multistep(3, 4, tau=0.6, pair="H/2")),
    (SASolver(predictor=2, corrector=0), multistep(2, 0, tau=1.0, pair="H/2")),
]


@pytest.mark.parametrize(("solver", "std"), CASES, ids=[repr(s) for s, _ in CASES])
def test_output_is_that_of_the_published_update(solver: Solver, std: float) -> None:
    assert output_std(solver, RectifiedFlow(), uniform(N, start=START), STD) == pytest.approx(std, rel=1e-11)


@pytest.mark.parametrize(
    ("solver", "error"),
    [(DDIM(), -0.07907), (DDPM(), -0.14577), (DPMSolverPP2M(), 0.0115), (DPMSolverPP2M(sde=True), 0.0530)],
    ids=repr,
)
def test_known_errors_of_the_output(solver: Solver, error: float) -> None:
    """Relative errors of the standard deviation that are known from elsewhere, to their last digit."""
    std = output_std(solver, RectifiedFlow(), uniform(N, start=START), STD)
    assert std / STD - 1 == pytest.approx(error, abs=6e-6 if abs(error) > 0.06 else 6e-5)
