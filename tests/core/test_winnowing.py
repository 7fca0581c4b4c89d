"""Winnowing against the posterior in closed form, and against `sample`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal

from perrin.core import (
    CounterNoise,
    Dense,
    DPMSolverPP2M,
    DPMSolverPP2S,
    Gaussian,
    PlanError,
    RectifiedFlow,
    State,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import log_snr
from perrin.core.guides import Places, evaluations, winnow

from .linear_gaussian import LinearGaussian

F64 = torch.float64
PROBLEM, SCHEDULE = LinearGaussian.example(), RectifiedFlow()
PROCESS = Gaussian(features=(4,), schedule=SCHEDULE)
DENOISER = PROBLEM.denoiser(SCHEDULE)
SOLVER = DPMSolverPP2M(sde=True)


def likelihood(x: State, t: torch.Tensor) -> torch.Tensor:
    """`log p(y | x_t)` if the data were standard normal, `x_0 | x_t ~ N(α x_t, σ² I) / (α² + σ²)`; right at t = 0."""
    time = float(t[0])
    total = (1 - time) ** 2 + time**2
    a = PROBLEM.matrix
    cov = a @ a.T * (time**2 / total) + torch.eye(len(a), dtype=F64) * PROBLEM.std**2
    return MultivariateNormal(PROBLEM.y, cov).log_prob(x["x"] * ((1 - time) / total) @ a.T)


def places(groups: range, potential=likelihood):  # type: ignore[no-untyped-def]
    """Candidate c of group g has the seed of g plus c."""
    seeds = sample_seeds(0, groups)

    def make(size: int) -> Places:
        own = (seeds[:, None] + torch.arange(size)).reshape(-1)
        return Places(layouts={"x": Dense(len(own))}, noise=CounterNoise(own, F64), potential=potential)

    return make


@pytest.mark.parametrize("cuts", [((0.0, 256),), ((0.5, 256), (0.2, 256), (0.0, 64))])
def test_posterior(cuts: tuple[tuple[float, int], ...]) -> None:
    """What is left of many candidates are draws of the posterior, whether they are looked at once or on the way."""
    plan, groups = make_plan(PROCESS, SOLVER, log_snr(40, SCHEDULE)), 1500
    x = winnow(DENOISER, PROCESS, plan, places(range(groups)), cuts=cuts)["x"]
    assert x.shape == (groups, 4)
    mean, covariance = PROBLEM.posterior()
    apart = torch.linalg.solve(torch.linalg.cholesky(covariance), (x - mean).T)
    assert float(apart.mean(1).abs().max()) < 4 / groups**0.5 + 0.03
    torch.testing.assert_close(apart @ apart.T / groups, torch.eye(4, dtype=F64), rtol=0, atol=0.15)


def test_a_lone_candidate_is_the_sample() -> None:
    """In pieces or at once, with a solver that looks back: the bits of `sample` by the group's seed."""
    plan, groups = plan_steps(PROCESS, SOLVER, 12, start=0.999), range(7)

    def first(x: State, t: torch.Tensor) -> torch.Tensor:
        own = len(t) // 7
        return torch.where(torch.arange(len(t)) % own == 0, 0.0, -1e9).double() * (1 + 1e3 * (1 - t))

    found = winnow(DENOISER, PROCESS, plan, places(groups, first), cuts=((0.6, 8), (0.2, 4), (0.0, 2)))
    alone = sample(DENOISER, PROCESS, plan, {"x": Dense(7)}, CounterNoise(sample_seeds(0, groups), F64))
    torch.testing.assert_close(found["x"], alone["x"], rtol=1e-12, atol=1e-12)


def test_a_start_and_a_denoiser_of_ones_own() -> None:
    """From a state on the way, by the denoiser of the places: the bits of `sample` with both."""
    plan, groups = plan_steps(PROCESS, SOLVER, 12, start=0.5), range(7)
    state = torch.linspace(-1, 1, 28, dtype=F64).reshape(7, 4)

    def other(x: State, t: torch.Tensor, **rest: object) -> State:
        return {"x": 0.5 * DENOISER(x, t, **rest)["x"]}  # type: ignore[arg-type]

    def first(x: State, t: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(t)) % (len(t) // 7) == 0, 0.0, -1e9).double()

    calls = []

    def start(here: Places) -> State:
        calls.append(here)
        return {"x": state.repeat_interleave(here.layouts["x"].batch // 7, 0)}

    make = places(groups, first)
    found = winnow(
        DENOISER,
        PROCESS,
        plan,
        lambda size: replace(make(size), denoiser=other),
        cuts=((0.2, 8), (0.0, 2)),
        start=start,
    )
    alone = sample(
        other,
        PROCESS,
        plan,
        {"x": Dense(7)},
        CounterNoise(sample_seeds(0, groups), F64),
        start={"x": state},
    )
    torch.testing.assert_close(found["x"], alone["x"], rtol=1e-12, atol=1e-12)
    assert len(calls) == 1


def test_groups_are_independent() -> None:
    plan, cuts = plan_steps(PROCESS, SOLVER, 10, start=0.999), ((0.5, 8), (0.0, 4))
    whole = winnow(DENOISER, PROCESS, plan, places(range(6)), cuts=cuts)["x"]
    part = winnow(DENOISER, PROCESS, plan, places(range(2, 4)), cuts=cuts)["x"]
    torch.testing.assert_close(whole[2:4], part, rtol=1e-12, atol=1e-12)


def test_count_and_errors() -> None:
    plan = make_plan(PROCESS, SOLVER, torch.tensor([0.99, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=F64))
    assert evaluations(plan, ((0.0, 3),)) == 3 * plan.nfe
    assert evaluations(plan, ((0.6, 8), (0.2, 4), (0.0, 2))) == 2 * 8 + 2 * 4 + 1 * 2
    assert evaluations(plan, ((0.7, 8), (0.65, 4), (0.0, 2))) == 2 * 8 + 3 * 2  # two cuts in one row
    for cuts in ((), ((0.1, 2),), ((0.2, 4), (0.0, 8)), ((0.2, 4), (0.3, 2), (0.0, 2)), ((0.0, 1),)):
        with pytest.raises(ValueError, match="falling times"):
            winnow(DENOISER, PROCESS, plan, places(range(2)), cuts=cuts)
    anchored = plan_steps(PROCESS, DPMSolverPP2S(), 4, start=0.99)
    with pytest.raises(PlanError, match="without anchors"):
        winnow(DENOISER, PROCESS, anchored, places(range(2)), cuts=((0.0, 2),))
