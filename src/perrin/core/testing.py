"""Truth for tests: exact denoisers, and one-line assertions for the authors of plug-ins.

    assert_schedule(MySchedule())
    assert_process(MyProcess(…), Padded.from_sizes(sizes), x_0)
    assert_solver_order(MySolver(), RectifiedFlow(), order=2)
    assert_evaluations(MySolver(), RectifiedFlow())
    assert_denoiser(my_denoiser, process, layouts_of)
    assert_batch_invariant(my_denoiser, process, plan, layouts_of)

The oracles (`GaussianMixture`, `CategoricalTable`, `TorusMixture`, `RotationMixture`) are those of `perrin.core.oracles`;
`output_std` is the exact standard deviation that a solver gives on Gaussian data, where every step is linear.

Only torch and the standard library are needed, so that plug-ins can be tested wherever they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from perrin.core import so3
from perrin.core.denoiser import Denoiser, passes
from perrin.core.layout import Dense, Layout, Layouts, Pairs
from perrin.core.noise import CounterNoise, Noise, sample_seeds
from perrin.core.oracles import CategoricalTable as CategoricalTable
from perrin.core.oracles import GaussianMixture as GaussianMixture
from perrin.core.oracles import RotationMixture as RotationMixture
from perrin.core.oracles import TorusMixture as TorusMixture
from perrin.core.parts import split, take, take_field, tile, tile_field
from perrin.core.plan import Plan, make_plan, plan_steps
from perrin.core.processes import Categorical, Clean, Composite, Gaussian, Process, Rotation, State, Torus
from perrin.core.sampling import sample
from perrin.core.schedules import Schedule
from perrin.core.solvers import DDPM, Solver

_F64 = torch.float64


class _BasisNoise(Noise):
    """The k-th draw is the k-th unit vector: a field of coefficients over independent noises."""

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        return torch.eye(features[0], dtype=_F64)[None, step]

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        raise AssertionError("a Gaussian field asks for normal noise only")


def output_std(solver: Solver, schedule: Schedule, times: Sequence[float] | Tensor, data_std: float) -> float:
    """The exact standard deviation of what a solver makes of data `N(0, data_std²)` with the exact denoiser.

    Every step is linear, so the state is a vector of coefficients over independent standard normal numbers (the start and
    one for each row), run through the real loop; the output's standard deviation is its norm. The start has the marginal
    variance `α² data_std² + σ²`, so an exact solver returns the marginal's at the last time.
    """
    data = GaussianMixture.gaussian(data_std)

    def denoise(x: State, t: Tensor, **_: Any) -> State:
        a, s = schedule.alpha(t), schedule.sigma(t)
        return {"x": data.posterior_mean(x["x"].reshape(-1, 1), a, s).reshape(x["x"].shape)}

    rows = len(make_plan(Gaussian(features=(1,), schedule=schedule), solver, times).stages)
    process = Gaussian(features=(rows + 1,), schedule=schedule)
    plan = make_plan(process, solver, times)
    first = torch.tensor(plan.start, dtype=_F64)
    std = ((data_std * schedule.alpha(first)) ** 2 + schedule.sigma(first) ** 2).sqrt()
    start = {"x": std * torch.eye(rows + 1, dtype=_F64)[:1]}
    out = sample(denoise, process, plan, {"x": Dense(1)}, _BasisNoise(), start=start)
    return float(out["x"].norm())


class CountedNoise(Noise):
    """Another noise, and `draws`: how often it was asked."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.draws = noise, 0

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        self.draws += 1
        return self.noise.normal(layout, features, field=field, step=step)

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        self.draws += 1
        return self.noise.uniform(layout, features, field=field, step=step)


class CountedDenoiser:
    """Another denoiser, and `times`: the time of each evaluation."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.times: list[float] = []

    @property
    def passes(self) -> int:
        """Those of the denoiser."""
        return passes(self.denoiser)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        self.times.append(float(t[0]))
        return self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)


# ------------------------------------------------------------------------------------------------------- assertions


def assert_schedule(schedule: Schedule, *, times: Tensor | None = None) -> None:
    """Rates agree with central differences, `t(λ)` inverts `λ_t`, `λ` falls strictly, dtype and shape are kept."""
    t = torch.linspace(0.02, 0.98, 49, dtype=_F64) if times is None else times.to(_F64)
    h = 1e-5
    for value, rate in ((schedule.alpha, schedule.alpha_rate), (schedule.sigma, schedule.sigma_rate)):
        torch.testing.assert_close(rate(t), (value(t + h) - value(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)
    lam = schedule.lam(t)
    assert bool((lam[1:] < lam[:-1]).all()), f"{schedule}: expected λ to fall strictly, given {lam.tolist()}"
    torch.testing.assert_close(schedule.time(lam), t, rtol=1e-9, atol=1e-10)
    ends = torch.tensor([0.0, 1.0], dtype=_F64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    assert bool(torch.isfinite(alpha).all() and torch.isfinite(sigma).all()), (
        f"{schedule}: not finite at its ends"
    )
    assert float(alpha[0]) > 0, f"{schedule}: no signal at t = 0"
    assert float(sigma[1]) > 0, f"{schedule}: no noise at t = 1"
    for f in (schedule.alpha, schedule.sigma, schedule.alpha_rate, schedule.sigma_rate):
        low = f(t.float().reshape(-1, 1))
        assert (low.dtype, low.shape) == (torch.float32, (len(t), 1)), f"{schedule}: dtype or shape not kept"
        torch.testing.assert_close(low[:, 0].double(), f(t.float().double()), rtol=1e-4, atol=1e-5)


def assert_process(
    process: Process,
    layout: Layout,
    x_0: Tensor,
    *,
    estimate: Callable[[Tensor], Tensor] | None = None,
    draws: int = 4000,
    times: tuple[float, float] | None = None,
    rows: int | None = None,
) -> None:
    """A process against its own definition, for clean data `x_0` in `layout`.

    - At t = 0 nothing is corrupted (where `σ_0 = 0`); the same noise gives the same state; padding stays zero, `Pairs` stay
      symmetric; every sample is bitwise the one that it is alone in its batch.
    - With the truth as estimate, the reverse move from `t` to `s` reproduces the forward marginal at `s` (means and
      variances within five standard errors over `draws` draws; on manifolds, of `cos 2πx`, `sin 2πx` and of the rotation
      matrix), and a whole chain from the prior ends at the data.

    Arguments:
        estimate: the denoiser's output when it knows `x_0`; `process.target` by default.
        draws: the number of copies of every sample.
        times: `t` and `s` of the reverse move; by default 0.7 and 0.6, on manifolds 0.3 and 0.25.
        rows: how many rows the reverse move takes. By default 1, which must be exact, and 16 on manifolds, where a row is of
            first order.
    """
    batch, name = layout.batch, "x"
    dtype = x_0.dtype if x_0.is_floating_point() else torch.float32
    noise = CounterNoise(sample_seeds(0, range(batch)), dtype)
    t = torch.linspace(0.3, 0.9, batch, dtype=dtype)
    manifold = isinstance(process, Torus | Rotation)
    ends_clean = float(process.schedule.sigma(torch.zeros((), dtype=_F64))) == 0

    clean = process.project(x_0, layout)
    if ends_clean:
        torch.testing.assert_close(
            process.corrupt(clean, torch.zeros_like(t), noise, layout, name=name), clean
        )

    def states() -> list[Tensor]:
        corrupted = process.corrupt(clean, t, noise, layout, name=name)
        return [
            corrupted if isinstance(process, Clean) else process.prior(noise, layout, name=name),
            corrupted,
        ]

    first = states()
    for x, y in zip(first, states(), strict=True):
        given, made = (x_0.dtype, tuple(x_0.shape)), (x.dtype, tuple(x.shape))
        assert made == given, f"expected {given}, given {made}"
        assert torch.equal(x, y), "the same noise gave two different states"
        assert torch.equal(layout.restrict(x), x), "padding is not zero"
        torch.testing.assert_close(process.project(x, layout), x)
        if isinstance(layout, Pairs):
            assert torch.equal(x, x.transpose(1, 2)), "a pair field is not symmetric"
    for i, whole in enumerate(split(layout, first[1])):
        one, row = take(layout, i), take_field(layout, clean, i)
        alone = process.corrupt(
            row, t[i : i + 1], CounterNoise(noise.seeds[i : i + 1], dtype), one, name=name
        )
        assert torch.equal(split(one, alone)[0], whole), f"sample {i} depends on its batch"
    if isinstance(process, Clean):
        return

    def knows(x_0: Tensor, layout: Layout) -> Denoiser:
        def denoise(x: State, t: Tensor, **_: Any) -> State:
            return {"x": process.target(x_0, x["x"], t, layout) if estimate is None else estimate(x_0)}

        return denoise

    many, copies = tile(layout, draws), tile_field(layout, clean, draws)
    seeds = [CounterNoise(sample_seeds(k, range(batch * draws)), dtype) for k in (1, 2)]
    start, stop = times or ((0.3, 0.25) if manifold else (0.7, 0.6))
    full = torch.full((batch * draws,), 1.0, dtype=dtype)
    x_t = process.corrupt(copies, start * full, seeds[0], many, name=name)
    grid = torch.linspace(start, stop, (rows or (16 if manifold else 1)) + 1, dtype=_F64)
    plan = make_plan(process, DDPM(), grid)
    x_s = sample(knows(copies, many), process, plan, {"x": many}, seeds[0], start={"x": x_t})["x"]
    expected = process.corrupt(copies, stop * full, seeds[1], many, name=name)
    a, b = (_draws(layout, _embedded(process, x), draws) for x in (x_s, expected))
    _assert_same_moments(a, b)

    # finer near the data on a manifold, whose last row is exact to third order in σ
    chain = plan_steps(process, DDPM(), 6, exponent=3.0 if manifold else 1.0)
    end = sample(knows(clean, layout), process, chain, {"x": layout}, noise)["x"]
    if ends_clean:
        ends = (_embedded(process, v) for v in (end, clean))
        torch.testing.assert_close(*ends, rtol=2e-5, atol=2e-5)


def _embedded(process: Process, x: Tensor) -> Tensor:
    """Points of a manifold in a Euclidean space where means make sense; other fields as they are."""
    if isinstance(process, Torus):
        return torch.stack((torch.cos(2 * math.pi * x), torch.sin(2 * math.pi * x)), dim=-1)
    return so3.to_matrix(x) if isinstance(process, Rotation) else x


def assert_solver_order(
    solver: Solver,
    schedule: Schedule,
    order: float,
    *,
    counts: Sequence[int] = (64, 128, 256),
    slack: float = 0.15,
    grid: Callable[[int], Tensor] | None = None,
) -> None:
    """A solver converges with `order`: its error falls by `2^order` when the number of intervals doubles.

    A deterministic solver is held against a Runge–Kutta reference on a three-component mixture in the plane with the
    exact denoiser (root mean square over 32 paths); a stochastic one against the exact standard deviation of Gaussian
    data (`output_std`), which is its weak order. Each slope must be at least `order − slack`.

    The grid is even in `λ = log(α/σ)` from t = 0.999 to 0.02: multistep methods have their order only where neighbouring
    steps in λ have nearly equal lengths, which even times break at both ends. Another grid must end above 0, too.
    """
    if grid is None:
        ends = schedule.lam(torch.tensor([0.999, 0.02], dtype=_F64)).tolist()

        def grid(n: int) -> Tensor:
            return schedule.time(torch.linspace(ends[0], ends[1], n + 1, dtype=_F64))

    error = _weak_error if solver.stochastic else _strong_error
    errors = [error(solver, schedule, grid(n)) for n in counts]
    for i in range(len(counts) - 1):
        slope = math.log(errors[i] / errors[i + 1]) / math.log(counts[i + 1] / counts[i])
        assert slope >= order - slack, (
            f"{solver.name} with {schedule}: expected order {order} (at least {order - slack:.2f}), given {slope:.2f} "
            f"from n = {counts[i]} to {counts[i + 1]}; errors {errors}"
        )


@lru_cache(maxsize=32)
def _path_ends(schedule: Schedule, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """32 states at time `start`, and where the probability-flow ODE takes them by time `stop`."""
    data, generator, n = GaussianMixture.example(), torch.Generator().manual_seed(0), 32
    clean, t = data.sample(n, generator), torch.tensor(start, dtype=_F64)
    z = torch.randn(clean.shape, generator=generator, dtype=_F64)
    x = schedule.alpha(t) * clean + schedule.sigma(t) * z
    return x, data.flow(x, schedule, start, stop)


def _strong_error(solver: Solver, schedule: Schedule, times: Tensor) -> float:
    start, truth = _path_ends(schedule, float(times[0]), float(times[-1]))
    data, n = GaussianMixture.example(), len(start)
    process = Gaussian(features=(2,), schedule=schedule)
    plan, noise = make_plan(process, solver, times), CounterNoise(sample_seeds(0, range(n)), _F64)
    out = sample(data.denoiser(schedule), process, plan, {"x": Dense(n)}, noise, start={"x": start})["x"]
    return float((out - truth).square().mean().sqrt())


def _weak_error(solver: Solver, schedule: Schedule, times: Tensor, data_std: float = 0.5) -> float:
    truth = ((data_std * schedule.alpha(times[-1])) ** 2 + schedule.sigma(times[-1]) ** 2).sqrt()
    return abs(output_std(solver, schedule, times, data_std) / float(truth) - 1)


def assert_evaluations(solver: Solver, schedule: Schedule, *, budgets: Sequence[int] = range(1, 13)) -> None:
    """`plan_steps(nfe)` costs exactly `nfe` evaluations, `plan.nfe` says so, and a sampler makes as many.

    A deterministic solver asks for no noise beyond the prior's.
    """
    process, data = Gaussian(features=(2,), schedule=schedule), GaussianMixture.example()
    for nfe in budgets:
        plan = plan_steps(process, solver, nfe)
        denoiser = CountedDenoiser(data.denoiser(schedule))
        noise = CountedNoise(CounterNoise(sample_seeds(0, range(3)), _F64))
        out = sample(denoiser, process, plan, {"x": Dense(3)}, noise)["x"]
        assert plan.nfe == nfe == len(denoiser.times), (
            f"{solver.name}: {nfe}, {plan.nfe}, {len(denoiser.times)}"
        )
        assert bool(torch.isfinite(out).all()), (
            f"{solver.name} with {schedule} and {nfe} evaluations: not finite"
        )
        if not solver.stochastic:
            assert noise.draws == 1, f"{solver.name} is deterministic but drew noise {noise.draws - 1} times"


LayoutsOf = Callable[[Tensor], Layouts]
"""Layouts of the samples with the given indices, `[B]` int64."""


def assert_denoiser(
    denoiser: Denoiser,
    process: Composite,
    layouts_of: LayoutsOf,
    *,
    count: int = 6,
    times: Sequence[float] = (1.0, 0.5, 1e-3),
    tolerance: float = 1e-5,
    start_of: Callable[[Tensor], State] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """All fields but `Clean` ones have a finite estimate of the right shape at all times, and no sample sees its neighbours.

    `start_of` gives the `Clean` fields of the samples with the given indices.
    """
    seeds, layouts = sample_seeds(0, range(count)), layouts_of(torch.arange(count))
    start = start_of(torch.arange(count)) if start_of else None
    x = process.prior_state(CounterNoise(seeds, dtype), layouts, start=start)
    noised = [k for k, p in process.fields.items() if not isinstance(p, Clean)]
    for time in times:
        t = torch.full((count,), time, dtype=dtype)
        whole = denoiser(x, t, layouts=layouts)
        for name in noised:
            field, shape = process.fields[name], tuple(x[name].shape)
            if isinstance(field, Categorical):
                clean = field.categories - (field.absorbing_state is not None)
                shape = (*shape, clean)
            elif isinstance(field, Rotation):
                shape = (*shape[:-1], 3)
            assert whole[name].shape == shape, (
                f"field {name!r}: expected {tuple(shape)}, given {tuple(whole[name].shape)}"
            )
            real = [bool(torch.isfinite(v).all()) for v in split(layouts[name], whole[name])]
            assert all(real), f"field {name!r}: not finite at t = {time:g}"
        for i in range(count):
            one = {k: take(v, i) for k, v in layouts.items()}
            alone = denoiser({k: take_field(layouts[k], v, i) for k, v in x.items()}, t[:1], layouts=one)
            for name in noised:
                a, b = split(one[name], alone[name])[0], split(layouts[name], whole[name])[i]
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_batch_invariant(
    denoiser: Denoiser,
    process: Process,
    plan: Plan,
    layouts_of: LayoutsOf,
    *,
    count: int = 64,
    batch: int = 5,
    tolerance: float = 0.0,
    condition_of: Callable[[Tensor], Any] | None = None,
    start_of: Callable[[Tensor], State] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`count` samples made together equal those made `batch` at a time in reverse order; bitwise unless `tolerance`."""

    def run(indices: Tensor) -> list[dict[str, Tensor]]:
        layouts = layouts_of(indices)
        noise = CounterNoise(sample_seeds(7, indices), dtype)
        condition = condition_of(indices) if condition_of else None
        start = start_of(indices) if start_of else None
        state = sample(denoiser, process, plan, layouts, noise, condition=condition, start=start)
        fields = {k: split(layouts[k], v) for k, v in state.items()}
        return [{k: v[i] for k, v in fields.items()} for i in range(len(indices))]

    together = run(torch.arange(count))
    order = torch.arange(count).flip(0)
    apart = [one for part in order.split(batch) for one in run(part)][::-1]
    for i, (a, b) in enumerate(zip(together, apart, strict=True)):
        for name in a:
            gap = float((a[name].double() - b[name].double()).abs().max()) if a[name].numel() else 0.0
            assert gap <= tolerance, (
                f"sample {i}, field {name!r}: differs by {gap:.3g} between batches of {count} and {batch}"
            )


def _draws(layout: Layout, x: Tensor, copies: int) -> Tensor:
    """`[copies, …]` in float64; categories become indicators."""
    if not x.is_floating_point():
        x = torch.nn.functional.one_hot(x)
    return x.reshape(copies, x.shape[0] // copies, *x.shape[1:]).to(_F64)


def _assert_same_moments(a: Tensor, b: Tensor, sigmas: float = 5.0) -> None:
    """Equal means and variances of two sets of independent draws `[n, …]`: element by element, and of two sums over all
    elements (along the mean, and of the squares), which see a small error that all elements share."""
    width = max(a.shape[-1], b.shape[-1])
    a, b = (torch.nn.functional.pad(v, (0, width - v.shape[-1])).flatten(1) for v in (a, b))
    squares = tuple((v - b.mean(dim=0)).square() for v in (a, b))
    along = tuple(v @ b.mean(dim=0, keepdim=True).T for v in (a, b))
    spread = tuple(v.mean(dim=1, keepdim=True) for v in squares)
    for what, (x, y) in {"means": (a, b), "variances": squares, "mean": along, "variance": spread}.items():
        error = ((x.var(dim=0) + y.var(dim=0)) / len(x)).sqrt()
        gap = (x.mean(dim=0) - y.mean(dim=0)).abs()
        worst = float((gap / (sigmas * error + 1e-6)).max()) * sigmas
        assert worst <= sigmas, (
            f"reverse and forward {what} differ by {worst:.1f} s.e., expected at most {sigmas:g}"
        )
