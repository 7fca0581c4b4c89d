"""Sequential Monte Carlo against closed forms: posterior, evidence, and what resampling must do."""

from __future__ import annotations

import math

import pytest
import torch

from perrin.core import (
    DDPM,
    Categorical,
    CounterNoise,
    Dense,
    DPMSolverPP2M,
    Gaussian,
    Plan,
    PlanError,
    RectifiedFlow,
    State,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import log_snr
from perrin.core.guides import steer, systematic
from perrin.core.guides.steering import effective_size
from perrin.core.plan import Affine
from perrin.core.testing import CategoricalTable

from .linear_gaussian import LinearGaussian

F64 = torch.float64
PROBLEM, SCHEDULE = LinearGaussian.example(), RectifiedFlow()
PROCESS = Gaussian(features=(4,), schedule=SCHEDULE)
DENOISER = PROBLEM.denoiser(SCHEDULE)


def potential(clean: State, t: torch.Tensor) -> torch.Tensor:
    """`log N(y; A D, s² + q²)` with the variance that `N(0, 1)` data would have given `x_t`; the likelihood at t = 0."""
    v = PROBLEM.std**2 + t**2 / ((1 - t) ** 2 + t**2)
    residual = PROBLEM.y - clean["x"] @ PROBLEM.matrix.T
    return -0.5 * (residual.square() / v[:, None] + torch.log(2 * math.pi * v)[:, None]).sum(1)


def noise_for(n: int) -> CounterNoise:
    return CounterNoise(sample_seeds(0, range(n)), F64)


def law(plan: Plan) -> LinearGaussian:
    """The problem with the mean and covariance that the plan really makes: every row is affine."""
    mean, covariance = torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64) * plan.start**2
    for stage, row in zip(plan.stages, plan.rows["x"], strict=True):
        assert isinstance(row, Affine)
        points = torch.cat((mean[None], mean + torch.eye(4, dtype=F64)))
        d = DENOISER({"x": points}, torch.full((5,), stage.time, dtype=F64), layouts={"x": Dense(5)})["x"]
        jacobian = row.a * torch.eye(4, dtype=F64) + row.b[0] * (d[1:] - d[0]).T
        mean = row.a * mean + row.b[0] * d[0]
        covariance = jacobian @ covariance @ jacobian.T + row.c**2 * torch.eye(4, dtype=F64)
    return LinearGaussian(mean, covariance, PROBLEM.matrix, PROBLEM.y, PROBLEM.std)


@pytest.mark.parametrize("twisted", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_posterior_and_evidence(twisted: bool, threshold: float) -> None:
    """Exact for the sampler's own law, in 40 groups of 400 particles over 30 rows."""
    plan = make_plan(PROCESS, DDPM(), log_snr(30, SCHEDULE))
    truth, p, groups = law(plan), 400, 40
    twist = {"x": SCHEDULE} if twisted else None
    out = steer(
        DENOISER,
        PROCESS,
        plan,
        {"x": Dense(p * groups)},
        noise_for(p * groups),
        potential=potential,
        particles=p,
        twist=twist,
        threshold=threshold,
    )
    ratio = torch.exp(out.log_evidence - truth.log_evidence())
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / groups**0.5)
    assert float(ratio.std()) < 0.2
    evidence = torch.softmax(out.log_evidence, 0).repeat_interleave(p)
    mean, low, high = truth.bias(out.state["x"], out.log_weights.exp() * evidence)
    assert mean < 0.08
    assert low > 0.85
    assert high < 1.3
    torch.testing.assert_close(out.log_weights.reshape(groups, p).exp().sum(1), torch.ones(groups, dtype=F64))
    assert out.ancestors.shape == (plan.nfe, p * groups)
    assert out.ess.shape == (plan.nfe, groups)


def test_bias_of_the_docstring() -> None:
    """DDPM, 150 rows, 16 groups of 512: against the true posterior, not the sampler's."""
    plan, n = make_plan(PROCESS, DDPM(), log_snr(150, SCHEDULE)), 512 * 16
    out = steer(DENOISER, PROCESS, plan, {"x": Dense(n)}, noise_for(n), potential=potential, particles=512)
    mean, low, high = PROBLEM.bias(out.state["x"], out.log_weights.exp() / 16)
    assert mean < 0.1
    assert low > 0.82
    assert high < 1.1
    assert float(out.log_evidence.mean()) == pytest.approx(PROBLEM.log_evidence(), abs=0.1)


def test_without_a_reward_nothing_changes() -> None:
    plan, n = plan_steps(PROCESS, DDPM(), 6), 8
    layouts, noise = {"x": Dense(n)}, noise_for(n)
    out = steer(
        DENOISER, PROCESS, plan, layouts, noise, potential=lambda s, t: torch.zeros_like(t), particles=4
    )
    torch.testing.assert_close(
        out.state["x"], sample(DENOISER, PROCESS, plan, layouts, noise)["x"], rtol=0, atol=0
    )
    torch.testing.assert_close(out.log_evidence, torch.zeros(2, dtype=F64))
    assert torch.equal(out.lineage().reshape(2, 4), torch.arange(4).expand(2, 4))


def test_groups_are_independent() -> None:
    plan = make_plan(PROCESS, DDPM(), log_snr(10, SCHEDULE))
    twist = {"x": SCHEDULE}

    def run(first: int, last: int) -> torch.Tensor:
        noise = CounterNoise(sample_seeds(0, range(first, last)), F64)
        layouts = {"x": Dense(last - first)}
        return steer(
            DENOISER, PROCESS, plan, layouts, noise, potential=potential, particles=16, twist=twist
        ).state["x"]

    torch.testing.assert_close(run(0, 48)[16:32], run(16, 32), rtol=1e-12, atol=1e-12)


def test_categories() -> None:
    """A table of two positions, rewarded for equal ones: marginals and evidence by enumeration."""
    table = torch.tensor([[0.1, 0.3, 0.05], [0.05, 0.2, 0.1], [0.1, 0.05, 0.05]], dtype=F64)
    process = Categorical.uniform(3, features=(2,))
    n, p = 6000, 300
    plan = plan_steps(process, DDPM(), 60)

    def reward(s: State, t: torch.Tensor) -> torch.Tensor:
        q = torch.softmax(s["x"].double(), dim=-1)
        return 2.0 * (q[:, 0] * q[:, 1]).sum(-1)

    out = steer(
        CategoricalTable(table).denoiser(process),
        process,
        plan,
        {"x": Dense(n)},
        noise_for(n),
        potential=reward,
        particles=p,
    )
    tilted = table * torch.exp(2.0 * torch.eye(3, dtype=F64))
    assert float(out.log_evidence.exp().mean()) == pytest.approx(float(tilted.sum()), rel=0.05)
    weights = (out.log_weights.exp() * torch.softmax(out.log_evidence, 0).repeat_interleave(p)).double()
    found = torch.zeros(3, 3, dtype=F64).index_put(tuple(out.state["x"].T), weights, accumulate=True)
    torch.testing.assert_close(found, tilted / tilted.sum(), rtol=0, atol=0.035)


def test_systematic_resampling() -> None:
    weights = torch.tensor([[0.1, 0.5, 0.4, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=F64)
    counts = torch.zeros(2, 4, dtype=F64)
    for u in torch.linspace(0.0005, 0.9995, 1000, dtype=F64):
        which = systematic(torch.log(weights), u.expand(2))
        count = torch.nn.functional.one_hot(which, 4).sum(1)
        assert bool((count >= (4 * weights).floor() - 1e-9).all())
        assert bool((count <= (4 * weights).ceil() + 1e-9).all())
        counts += count / 1000
    torch.testing.assert_close(counts, 4 * weights, rtol=0, atol=5e-3)
    torch.testing.assert_close(effective_size(torch.log(weights)), torch.tensor([1 / 0.42, 4.0], dtype=F64))


def test_errors() -> None:
    layouts, noise = {"x": Dense(4)}, noise_for(4)
    two = plan_steps(PROCESS, DPMSolverPP2M(), 4, start=0.99)
    with pytest.raises(PlanError, match="one-step"):
        steer(DENOISER, PROCESS, two, layouts, noise, potential=potential, particles=2)
    one = plan_steps(PROCESS, DDPM(), 4)
    with pytest.raises(ValueError, match="multiple of 3"):
        steer(DENOISER, PROCESS, one, layouts, noise, potential=potential, particles=3)
