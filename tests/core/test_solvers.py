"""Solvers against truth: exact variance recursions, orders of convergence, counted evaluations, Karras's algorithm."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from perrin.core import (
    DDIM,
    DDPM,
    EDM,
    SOLVERS,
    Affine,
    Categorical,
    Composite,
    Consistency,
    Cosine,
    CounterNoise,
    Dense,
    DPMSolverPP1M,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    ExpAB,
    Gaussian,
    Heun,
    Jump,
    Langevin,
    LinearVP,
    Midpoint,
    PlanError,
    Power,
    RectifiedFlow,
    Restart,
    SASolver,
    Schedule,
    Solver,
    TimeTravel,
    UniPC,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import karras, power, uniform
from perrin.core.testing import GaussianMixture, assert_evaluations, assert_solver_order, output_std

F64 = torch.float64
SCHEDULES = [LinearVP(), Cosine(), RectifiedFlow(), EDM()]
VARIANTS = [
    Euler(),
    DDIM(),
    DDPM(),
    DDIM(eta=0.5),
    Heun(),
    Heun(churn=10.0),
    DPMSolverPP2M(),
    DPMSolverPP2M(sde=True),
    Midpoint(),
    DPMSolverPP2S(),
    DPMSolverPP1M(),
    DPMSolverPP1M(sde=True),
    DPMSolverPP3M(),
    DPMSolverPP3M(startup="plain", curvature=0.5),
    DPMSolverPP3M(sde=True),
    ExpAB(2),
    ExpAB(3),
    ExpAB(4),
    UniPC(1),
    UniPC(2),
    UniPC(3),
    UniPC(2, taper=True),
    SASolver(),
    SASolver(tau=0.0),
    SASolver(predictor=3, corrector=3, tau=0.0),
    SASolver(predictor=3, corrector=4),
]
TWO_STAGE = (Heun, Midpoint, DPMSolverPP2S)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
solvers = pytest.mark.parametrize("solver", VARIANTS, ids=repr)


# ------------------------------------------------------------------------------------------------ exact recursions


@schedules
def test_ddim_variance_by_hand(schedule: Schedule) -> None:
    """The recursion written out: `x_s = (α_s g + (σ_s/σ_t)(1 − α_t g)) x`, `g = α s² / (α² s² + σ²)`."""
    times, v = uniform(18, start=0.999), 0.5
    a, s = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    std = math.sqrt((a[0] * v) ** 2 + s[0] ** 2)
    for i in range(18):
        g = a[i] * v**2 / ((a[i] * v) ** 2 + s[i] ** 2)
        std *= a[i + 1] * g + s[i + 1] / s[i] * (1 - a[i] * g)
    assert output_std(DDIM(), schedule, times, v) == pytest.approx(std, rel=1e-12)


@schedules
def test_ddpm_is_the_exact_posterior(schedule: Schedule) -> None:
    """Mean and variance of `q(x_s | x_t, x_0)`: a forward step and Bayes' rule."""
    process = Gaussian(features=(1,), schedule=schedule)
    times = [0.9, 0.6, 0.3]
    for row, t, s in zip(make_plan(process, DDPM(), times).rows["x"], times[:-1], times[1:], strict=True):
        assert isinstance(row, Affine)
        (at, st), (as_, ss) = (
            [float(f(torch.tensor(u, dtype=F64))) for f in (schedule.alpha, schedule.sigma)] for u in (t, s)
        )
        step, noise = at / as_, st**2 - (at / as_ * ss) ** 2  # x_t = step x_s + N(0, noise)
        variance = 1 / (1 / ss**2 + step**2 / noise)
        want = (variance * step / noise, variance * as_ / ss**2, math.sqrt(variance))
        assert (row.a, row.b[0], row.c) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@schedules
def test_ddim_keeps_the_marginal_of_a_point(schedule: Schedule, eta: float) -> None:
    """With the truth as estimate the state keeps `N(α_s x_0, σ_s²)` at every time, for every η."""
    times = power(10, exponent=2, start=0.999, stop=1e-3)
    rows = make_plan(Gaussian(features=(1,), schedule=schedule), DDIM(eta=eta), times).rows["x"]
    mean, variance = float(schedule.alpha(times[0])), float(schedule.sigma(times[0])) ** 2
    for row, s in zip(rows, times[1:], strict=True):
        assert isinstance(row, Affine)
        mean, variance = row.a * mean + row.b[0], row.a**2 * variance + row.c**2
        assert mean == pytest.approx(float(schedule.alpha(s)), rel=1e-12)
        assert variance == pytest.approx(float(schedule.sigma(s)) ** 2, rel=1e-11)


@solvers
@schedules
def test_a_constant_estimate_is_reached(solver: Solver, schedule: Schedule) -> None:
    process = Gaussian(features=(2,), schedule=schedule)
    target = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    noise = CounterNoise(sample_seeds(0, range(4)), F64)
    out = sample(
        lambda *_, **__: {"x": target}, process, plan_steps(process, solver, 9), {"x": Dense(4)}, noise
    )["x"]
    torch.testing.assert_close(out, target, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ convergence


@solvers
@schedules
def test_order_of_convergence(solver: Solver, schedule: Schedule) -> None:
    assert_solver_order(solver, schedule, solver.order)


def _from_the_middle(schedule: Schedule, start: float = 0.6) -> Any:
    """Steps even in λ from a time where the estimate already changes, so that an error of the first row is seen."""
    ends = schedule.lam(torch.tensor([start, 0.02], dtype=F64)).tolist()
    return lambda n: schedule.time(torch.linspace(ends[0], ends[1], n + 1, dtype=F64))


@pytest.mark.parametrize("schedule", [LinearVP(), Cosine(), RectifiedFlow()], ids=repr)
def test_the_corrected_start_reaches_order_three(schedule: Schedule) -> None:
    """A plain start is an error `O(h²)`, made once: it limits every multistep method to order 2. Correcting it gives 3."""
    grid = _from_the_middle(schedule)
    for solver in (DPMSolverPP3M(), ExpAB(3), UniPC(2), SASolver(predictor=3, corrector=3, tau=0.0)):
        assert_solver_order(solver, schedule, 3, grid=grid)
    for solver in (DPMSolverPP3M(startup="plain"), ExpAB(4, startup="plain")):
        assert_solver_order(solver, schedule, 2, grid=grid)
        with pytest.raises(AssertionError, match="expected order 3"):
            assert_solver_order(solver, schedule, 3, grid=grid)
    for solver in (ExpAB(4), UniPC(3)):  # four estimates, but the start stays third order
        assert_solver_order(solver, schedule, 3, grid=grid)


def test_the_published_third_order_is_second() -> None:
    """Half of the curvature, as in the authors' code, diffusers and k-diffusion."""
    published = DPMSolverPP3M(curvature=0.5)
    assert_solver_order(published, RectifiedFlow(), 2)
    with pytest.raises(AssertionError, match=r"expected order 2\.5"):
        assert_solver_order(published, RectifiedFlow(), 2.5)


@pytest.mark.parametrize("schedule", [LinearVP(), Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("solver", [Euler(), DDIM(), Heun()], ids=repr)
def test_one_step_methods_keep_their_order_on_even_times(solver: Solver, schedule: Schedule) -> None:
    assert_solver_order(solver, schedule, solver.order, grid=lambda n: uniform(n, start=0.999, stop=0.02))


def test_edm_on_its_own_grid() -> None:
    assert_solver_order(Heun(), EDM(), 2, grid=lambda n: karras(n + 1, EDM())[:-1])


def test_a_wrong_symbol_is_caught() -> None:
    class Wrong(DPMSolverPP2M):
        def rows(self, stages: Any, schedule: Schedule) -> list[Affine]:
            return [
                Affine(r.a, (sum(r.b),), r.c) for r in super().rows(stages, schedule)
            ]  # forgets the old estimate

    with pytest.raises(AssertionError, match="expected order 2"):
        assert_solver_order(Wrong(), RectifiedFlow(), 2)


# ------------------------------------------------------------------------------------------------------ evaluations


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine(offset=0.008)], ids=repr)
def test_evaluations_asked_reported_and_made(name: str, schedule: Schedule) -> None:
    assert_evaluations(SOLVERS[name], schedule)


@solvers
def test_evaluations_of_a_plan(solver: Solver) -> None:
    process = Gaussian(features=(2,))
    for n in range(1, 13):
        plan = make_plan(process, solver, uniform(n, start=0.999))
        assert plan.nfe == (2 * n - 1 if isinstance(solver, TWO_STAGE) else n)
        assert f"{plan.nfe} evaluations" in repr(plan)


@solvers
@pytest.mark.parametrize("nfe", [0, -3])
def test_no_evaluations_is_an_error(solver: Solver, nfe: int) -> None:
    with pytest.raises(PlanError, match="at least one"):
        plan_steps(Gaussian(features=(1,)), solver, nfe)


# ------------------------------------------------------------------------------------------------------------ plans


def test_plans_that_do_not_go_together() -> None:
    flow = Gaussian(features=(1,))
    with pytest.raises(PlanError, match=r"expected times up to 1 .* t = 1\.5"):
        make_plan(flow, DDIM(), [1.5, 0.5, 0.0])
    with pytest.raises(PlanError, match="finite coefficients"):
        make_plan(Gaussian(features=(1,), schedule=Power(exponent=0.5)), Euler(), uniform(4))
    with pytest.raises(PlanError, match="eta"):
        DDIM(eta=1.5)
    for bad in ([0.5, 0.7, 0.0], [0.5, 0.5, 0.0], [1.0], [1.0, math.nan], [1.0, -0.1]):
        with pytest.raises(ValueError, match="expected"):
            make_plan(flow, DDIM(), bad)
    # churn of a variance-exploding clock goes past t = 1, where the other field's schedule ends
    both = Composite(fields={"x": Gaussian(features=(1,), schedule=EDM()), "y": flow})
    with pytest.raises(PlanError, match="field 'y'"):
        make_plan(both, Heun(churn=10.0), uniform(4))


def test_churn_past_one_leaves_categories_alone() -> None:
    both = Composite(fields={"x": Gaussian(features=(1,), schedule=EDM()), "k": Categorical.uniform(3)})
    plan = make_plan(both, Heun(churn=10.0), uniform(4))
    assert plan.stages[0].stop > 1
    assert plan.rows["k"][0] is None
    assert plan.rows["x"][0] is not None


@pytest.mark.parametrize("start", [1.0, 0.999])
@solvers
@schedules
def test_coefficients_are_finite_from_pure_noise(solver: Solver, schedule: Schedule, start: float) -> None:
    plan = make_plan(Gaussian(features=(1,), schedule=schedule), solver, uniform(5, start=start))
    assert all(
        math.isfinite(v) for row in plan.rows["x"] if isinstance(row, Affine) for v in (row.a, *row.b, row.c)
    )


@pytest.mark.parametrize("solver", [Heun(), DPMSolverPP2M()], ids=repr)
def test_composites_fall_to_first_order_and_say_so(solver: Solver) -> None:
    process = Composite(fields={"x": Gaussian(features=(1,)), "kind": Categorical.uniform(3)})
    plan = plan_steps(process, solver, 9)
    assert "'kind' (Categorical) takes the same times at first order" in repr(plan)
    assert "'x'" not in repr(plan)
    grid = [s.start for s in plan.stages if s.stop < s.start] + [0.0]
    jumps = [row for row in plan.rows["kind"] if isinstance(row, Jump)]
    assert [(1 - a, 1 - b) for a, b in ((j.alpha_start, j.alpha_stop) for j in jumps)] == [
        pytest.approx(pair) for pair in itertools.pairwise(grid)
    ]
    alone = plan_steps(Gaussian(features=(1,)), solver, 9)
    assert alone.rows["x"] == plan.rows["x"]  # company changes nothing for the Gaussian field
    assert alone.notes == ()
    assert plan_steps(process, DDIM(), 9).notes == ()


def test_each_field_has_its_own_schedule() -> None:
    fields = {
        "x": Gaussian(features=(1,), schedule=Cosine()),
        "y": Gaussian(features=(1,), schedule=RectifiedFlow()),
    }
    for solver in (DDIM(), DPMSolverPP2M(), Heun()):
        plan = make_plan(Composite(fields=fields), solver, uniform(6, start=0.99))
        for name, field in fields.items():
            assert plan.rows[name] == make_plan(field, solver, uniform(6, start=0.99)).rows["x"]


# ------------------------------------------------------------------------------------------------------- transforms


def test_wrappers_pay_for_what_they_insert() -> None:
    flow = Gaussian(features=(1,))
    for solver, n, want in (
        (TimeTravel(solver=DDPM(), length=2, repeats=3), 6, 18),
        (TimeTravel(solver=Heun(), length=2, repeats=2), 6, 4 * 6 - 2),
        (Restart(solver=DDIM(), low=0.3, high=0.6, steps=4, repeats=3), 10, 22),
        (Langevin(solver=Heun(), corrections=2), 5, 9 + 10),
        (Langevin(solver=TimeTravel(solver=DPMSolverPP2M(), length=1, repeats=2)), 4, 16),
        (TimeTravel(solver=Langevin(solver=DPMSolverPP2M()), length=1, repeats=2), 4, 16),
    ):
        assert make_plan(flow, solver, uniform(n, start=0.99)).nfe == want
    with pytest.raises(PlanError, match="one evaluation for each interval"):
        plan_steps(flow, TimeTravel(solver=Heun()), 8)


def test_time_travel_goes_back_where_repaint_does() -> None:
    plan = make_plan(Gaussian(features=(1,)), TimeTravel(length=2, repeats=2), uniform(4, start=0.8))
    pairs = [(round(s.start, 3), round(s.stop, 3)) for s in plan.stages]
    down = [(0.8, 0.6), (0.6, 0.4), (0.4, 0.2), (0.2, 0.0)]
    assert pairs == [*down[:2], (0.4, 0.8), *down, (0.0, 0.4), *down[2:]]


@schedules
def test_wrappers_keep_the_marginal_of_a_point(schedule: Schedule) -> None:
    """With the truth as estimate, DDIM inside, every time that is reached has its marginal `N(α_s x_0, σ_s²)`."""
    for solver in (
        TimeTravel(solver=DDIM(), length=2, repeats=2),
        Restart(solver=DDIM(), low=0.3, high=0.6),
        Langevin(solver=DDIM(), corrections=2, delta=0.3),
        Consistency(),
    ):
        plan = make_plan(Gaussian(features=(1,), schedule=schedule), solver, uniform(6, start=0.9, stop=0.01))
        first = torch.tensor(0.9, dtype=F64)
        mean, variance = float(schedule.alpha(first)), float(schedule.sigma(first)) ** 2
        for row, stage in zip(plan.rows["x"], plan.stages, strict=True):
            assert isinstance(row, Affine)
            mean, variance = row.a * mean + sum(row.b), row.a**2 * variance + row.c**2
            stop = torch.tensor(stage.stop, dtype=F64)
            assert mean == pytest.approx(float(schedule.alpha(stop)), rel=1e-10)
            assert variance == pytest.approx(float(schedule.sigma(stop)) ** 2, rel=1e-9)


@pytest.mark.parametrize("inner", [DPMSolverPP2M(), UniPC(2), Heun()], ids=repr)
def test_langevin_rows_do_not_touch_the_inner_solvers_table(inner: Solver) -> None:
    flow, times = Gaussian(features=(1,)), uniform(5, start=0.9)
    alone = make_plan(flow, inner, times).rows["x"]
    plan = make_plan(flow, Langevin(solver=inner, corrections=1), times)
    kept = [
        (r.a, tuple(b for b in r.b if b), r.c)
        for r, s in zip(plan.rows["x"], plan.stages, strict=True)
        if isinstance(r, Affine) and s.role == "move"
    ]
    assert kept == [(r.a, tuple(b for b in r.b if b), r.c) for r in alone if isinstance(r, Affine)]


# -------------------------------------------------------------------------------------------------- Karras, by hand


@pytest.mark.parametrize("churn", [0.0, 15.0, 1000.0])
def test_heun_with_churn_is_karras_algorithm_2(churn: float) -> None:
    """A plain NumPy transcription of algorithm 2 that consumes the same noise."""
    n, batch, s_min, s_max, s_noise = 12, 16, 0.05, 50.0, 1.003
    data, schedule = GaussianMixture.example(), EDM()
    times = karras(n, schedule)
    process = Gaussian(features=(2,), schedule=schedule)
    solver = Heun(churn=churn, t_min=s_min, t_max=s_max, noise=s_noise)
    plan = make_plan(process, solver, times)
    noise = CounterNoise(sample_seeds(0, range(batch)), F64)
    out = sample(data.denoiser(schedule), process, plan, {"x": Dense(batch)}, noise)["x"].numpy()

    means, stds, weights = data.means.numpy(), data.stds.numpy(), data.weights.numpy()

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        v = stds**2 + sigma**2
        offset = x[:, None] - means
        log_r = np.log(weights) - np.log(v) - (offset**2).sum(-1) / (2 * v)
        r = np.exp(log_r - log_r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        return (r[..., None] * (means + (stds**2 / v)[:, None] * offset)).sum(1)

    def eps(row: int) -> np.ndarray:
        return noise.normal(Dense(batch), (2,), field="x", step=row).numpy()

    i = np.arange(n)
    sigmas = np.append((80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)
    x, row = sigmas[0] * eps(0), 0
    for now, after in itertools.pairwise(sigmas):
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= now <= s_max else 0.0
        hat = now + gamma * now
        if gamma > 0:
            row += 1
            x = x + math.sqrt(hat**2 - now**2) * s_noise * eps(row)
        d = (x - denoise(x, hat)) / hat
        x_next = x + (after - hat) * d
        row += 1
        if after > 0:
            d_next = (x_next - denoise(x_next, after)) / after
            x_next = x + (after - hat) * (d + d_next) / 2
            row += 1
        x = x_next
    assert row == len(plan.stages)
    assert plan.nfe == 2 * n - 1
    np.testing.assert_allclose(out, x, rtol=1e-12, atol=1e-12)
