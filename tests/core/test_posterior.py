"""Posterior guides against the closed-form posterior of a linear-Gaussian problem; the docstrings quote these biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perrin.core import (
    DDPM,
    CounterNoise,
    Denoiser,
    Dense,
    Gaussian,
    Heun,
    LinearVP,
    PlanError,
    Ragged,
    RectifiedFlow,
    Schedule,
    Solver,
    State,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import log_snr
from perrin.core.guides import (
    DPS,
    MMPS,
    DiffPIR,
    EnergyGuide,
    Mask,
    Matrix,
    Measurement,
    Nonlinear,
    PiGDM,
    RegressorGuide,
    conjugate_gradient,
)
from perrin.core.testing import GaussianMixture

from .linear_gaussian import LinearGaussian

F64 = torch.float64
PROBLEM = LinearGaussian.example()
SEEN = Measurement(Matrix(PROBLEM.matrix), PROBLEM.y[None], PROBLEM.std)


def run(guide: Denoiser, schedule: Schedule, solver: Solver, steps: int, n: int) -> torch.Tensor:
    process = Gaussian(features=(4,), schedule=schedule)
    plan = make_plan(process, solver, log_snr(steps, schedule))
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    return sample(guide, process, plan, {"x": Dense(n)}, noise)["x"]


def build(kind: type, schedule: Schedule, **options: Any) -> Denoiser:
    return kind(denoiser=PROBLEM.denoiser(schedule), schedule=schedule, measurement=SEEN, **options)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP()], ids=repr)
def test_mmps_is_exact_for_gaussian_data(schedule: Schedule) -> None:
    """The estimate itself is `E[x_0 | x_t, y]`: Kalman's rule on `x_0 | x_t`."""
    x, t = torch.randn(6, 4, dtype=F64), torch.linspace(0.05, 0.95, 6, dtype=F64)
    got = build(MMPS, schedule, iterations=4)({"x": x}, t, layouts={"x": Dense(6)})["x"]
    for i in range(6):
        alpha, sigma = schedule.alpha(t[i]), schedule.sigma(t[i])
        both = torch.cat((PROBLEM.matrix, alpha * torch.eye(4, dtype=F64)))
        noise = torch.cat((torch.full((2,), PROBLEM.std, dtype=F64), sigma.expand(4)))
        innovation = both @ PROBLEM.covariance @ both.T + torch.diag(noise**2)
        gain = torch.linalg.solve(innovation, both @ PROBLEM.covariance).T
        want = PROBLEM.mean + gain @ (torch.cat((PROBLEM.y, x[i])) - both @ PROBLEM.mean)
        torch.testing.assert_close(got[i], want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "options", "mean", "low", "high"),
    [
        (MMPS, {"iterations": 2}, (0.0, 0.035), (0.96, 1.04), (0.96, 1.05)),
        (MMPS, {"iterations": 1}, (0.15, 0.26), (0.54, 0.65), (1.17, 1.29)),
        (PiGDM, {}, (0.31, 0.43), (0.95, 1.05), (1.5, 1.7)),
        (DPS, {}, (0.56, 0.76), (0.93, 1.04), (5.4, 6.8)),
        (DiffPIR, {}, (1.0, 1.22), (0.64, 0.74), (2.0, 2.26)),
    ],
)
def test_bias(kind: type, options: dict[str, Any], mean: tuple, low: tuple, high: tuple) -> None:
    """Heun, 64 intervals, 10 000 samples: the bias is the guide's, the solver's is below 0.02."""
    schedule = RectifiedFlow()
    x = run(build(kind, schedule, **options), schedule, Heun(), 64, 10_000)
    for value, (at_least, at_most) in zip(PROBLEM.bias(x), (mean, low, high), strict=True):
        assert at_least <= value <= at_most


def test_pigdm_is_exact_for_isotropic_data() -> None:
    eye = torch.eye(4, dtype=F64)
    problem = LinearGaussian(PROBLEM.mean, 0.49 * eye, PROBLEM.matrix, PROBLEM.y, PROBLEM.std)
    schedule = RectifiedFlow()
    both = [
        kind(denoiser=problem.denoiser(schedule), schedule=schedule, measurement=SEEN, **options)
        for kind, options in ((PiGDM, {"data_std": 0.7}), (MMPS, {"iterations": 4}))
    ]
    x, t = torch.randn(9, 4, dtype=F64), torch.linspace(0.1, 0.95, 9, dtype=F64)
    a, b = (g({"x": x}, t, layouts={"x": Dense(9)})["x"] for g in both)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [DPS, PiGDM, MMPS, DiffPIR])
def test_operators_nonlinear_batch_and_plan(kind: type) -> None:
    """A nonlinear operator that is linear gives the same; float32 is near; samples are independent; α = 0 is refused."""
    schedule = RectifiedFlow()
    guide = build(kind, schedule)
    x, t = torch.randn(5, 4, dtype=F64), torch.linspace(0.1, 0.9, 5, dtype=F64)
    whole = guide({"x": x}, t, layouts={"x": Dense(5)})["x"]
    assert not whole.requires_grad
    free = Measurement(Nonlinear(lambda v: v @ PROBLEM.matrix.T), PROBLEM.y[None], PROBLEM.std)
    other = kind(denoiser=PROBLEM.denoiser(schedule), schedule=schedule, measurement=free)
    torch.testing.assert_close(other({"x": x}, t, layouts={"x": Dense(5)})["x"], whole)
    for i in range(5):
        alone = guide({"x": x[i : i + 1]}, t[i : i + 1], layouts={"x": Dense(1)})["x"]
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)
    with pytest.raises(PlanError, match="starts below"):
        sample(
            guide,
            Gaussian(features=(4,), schedule=schedule),
            plan_steps(Gaussian(features=(4,), schedule=schedule), DDPM(), 4),
            {"x": Dense(2)},
            CounterNoise(sample_seeds(0, range(2)), F64),
        )
    with pytest.raises(TypeError, match="batch-first"):
        guide({"x": x}, t, layouts={"x": Ragged(torch.arange(5), 5)})


@pytest.mark.parametrize(("kind", "share"), [(DPS, 0.76), (PiGDM, 0.73), (MMPS, 0.78), (DiffPIR, 0.57)])
def test_mixture_seen_along_one_axis(kind: type, share: float) -> None:
    """Every guide lands near the measurement; the mode that explains it gets less than the 0.93 that it should."""
    data, schedule, n = GaussianMixture.example(), RectifiedFlow(), 2000
    seen = Measurement(Mask(torch.tensor([False, True])), torch.tensor([[0.0, 1.4]], dtype=F64), 0.2)
    guide = kind(denoiser=data.denoiser(schedule), schedule=schedule, measurement=seen)
    process = Gaussian(features=(2,), schedule=schedule)
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    x = sample(guide, process, make_plan(process, DDPM(), log_snr(60, schedule)), {"x": Dense(n)}, noise)["x"]
    assert float(x[:, 1].mean()) == pytest.approx(1.32, abs=0.22)
    assert float((x[:, 0] < 0.2).double().mean()) == pytest.approx(share, abs=0.04)


def test_conjugate_gradient_solves_each_sample_by_itself() -> None:
    root = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    m = root @ root.transpose(1, 2) + 0.1 * torch.eye(6, dtype=F64)
    b = torch.randn(3, 6, dtype=F64)
    b[1] = 0
    w = conjugate_gradient(lambda v: (m @ v[..., None])[..., 0], b, 12)
    torch.testing.assert_close(w, torch.linalg.solve(m, b), rtol=1e-6, atol=1e-6)
    one = conjugate_gradient(lambda v: (m[:1] @ v[..., None])[..., 0], b[:1], 12)
    torch.testing.assert_close(one, w[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_energy_guide_with_a_linear_energy(scale: float) -> None:
    """`N(m, s²) e^{−w b x}` is `N(m − w s² b, s²)`, and the guided estimate is its denoiser."""
    schedule, std, b = LinearVP(), 0.6, 0.7
    data = GaussianMixture.gaussian(std, mean=1.0)
    guide = EnergyGuide(
        denoiser=data.denoiser(schedule),
        energy=lambda s: b * s["x"][:, 0],
        schedules={"x": schedule},
        scale=scale,
    )
    x, t = torch.randn(7, 1, dtype=F64), torch.linspace(0.1, 0.95, 7, dtype=F64)
    want = GaussianMixture.gaussian(std, mean=1.0 - scale * std**2 * b).denoiser(schedule)
    layouts = {"x": Dense(7)}
    torch.testing.assert_close(
        guide({"x": x}, t, layouts=layouts)["x"], want({"x": x}, t, layouts=layouts)["x"]
    )
    limited = EnergyGuide(
        denoiser=guide.denoiser, energy=guide.energy, schedules=guide.schedules, scale=scale, limit=0.01
    )
    moved = limited({"x": x}, t, layouts=layouts)["x"] - guide.denoiser({"x": x}, t, layouts=layouts)["x"]
    assert float(moved.abs().max()) <= 0.01 + 1e-12


@pytest.mark.parametrize("component", [0, 1, 2])
def test_regressor_guide_selects_a_component_exactly(component: int) -> None:
    """`log p(k | x_t)` is the log responsibility; the guided estimate is the component's own denoiser."""
    data, schedule = GaussianMixture.example(), RectifiedFlow()
    alone = GaussianMixture(
        data.means[component : component + 1], data.stds[component : component + 1], torch.ones(1, dtype=F64)
    )

    def log_density(x: State, t: torch.Tensor) -> torch.Tensor:
        a, s = schedule.alpha(t), schedule.sigma(t)
        return alone.log_density(x["x"], a, s) - data.log_density(x["x"], a, s)

    guide = RegressorGuide(
        denoiser=data.denoiser(schedule), log_density=log_density, schedules={"x": schedule}
    )
    x, t = torch.randn(9, 2, dtype=F64), torch.linspace(0.1, 0.95, 9, dtype=F64)
    layouts = {"x": Dense(9)}
    torch.testing.assert_close(
        guide({"x": x}, t, layouts=layouts)["x"], alone.denoiser(schedule)({"x": x}, t, layouts=layouts)["x"]
    )
