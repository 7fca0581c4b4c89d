"""The sampling loop: batch invariance, constraints, self-conditioning, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perrin.core import (
    DDIM,
    EDM,
    SOLVERS,
    Categorical,
    Composite,
    Cosine,
    CounterNoise,
    Dense,
    DPMSolverPP2M,
    Gaussian,
    Heun,
    Layouts,
    Padded,
    Pairs,
    Ragged,
    RectifiedFlow,
    State,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import uniform
from perrin.core.testing import (
    CountedDenoiser,
    CountedNoise,
    GaussianMixture,
    assert_batch_invariant,
    assert_denoiser,
)

SIZES = torch.randint(1, 10, (64,), generator=torch.Generator().manual_seed(0))
PROCESS = Composite(
    fields={
        "positions": Gaussian(features=(3,), schedule=Cosine(), zero_com=True),
        "types": Categorical.marginal((5.0, 2.0, 1.0)),
        "bonds": Categorical.absorbing(3),
        "latent": Gaussian(features=(2, 4), schedule=RectifiedFlow()),
        "nodes": Gaussian(features=(3,), schedule=RectifiedFlow()),
    }
)


def layouts_of(indices: torch.Tensor, extra: int = 0) -> Layouts:
    sizes = SIZES[indices]
    padded = Padded.from_sizes(sizes, int(sizes.max()) + extra)
    ragged = Ragged(torch.repeat_interleave(torch.arange(len(sizes)), sizes), len(sizes))
    fields = {"positions": padded, "types": padded, "bonds": Pairs(padded.mask)}
    return {**fields, "latent": Dense(len(indices)), "nodes": ragged}


def elementwise(
    x: State, t: torch.Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
) -> State:
    """No element sees another, so that its bits cannot depend on the batch."""
    out = {}
    for name, field in PROCESS.fields.items():
        time = layouts[name].expand(t, x[name])
        if isinstance(field, Categorical):
            levels = torch.arange(3.0)
            out[name] = -(x[name][..., None] - levels).abs() * (1.5 - time[..., None])
        else:
            out[name] = (0.5 + 0.3 * time) * x[name] / (1 + x[name] * x[name])
    return out


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batch_invariance_bitwise(name: str, dtype: torch.dtype) -> None:
    plan = make_plan(PROCESS, SOLVERS[name], uniform(6, start=0.999))
    assert_batch_invariant(elementwise, PROCESS, plan, layouts_of, count=64, batch=5, dtype=dtype)
    assert_batch_invariant(
        elementwise, PROCESS, plan, lambda i: layouts_of(i, extra=len(i) % 7), count=16, batch=3, dtype=dtype
    )


def test_a_denoiser_that_sees_its_neighbours_is_caught() -> None:
    def leaky(x: State, t: torch.Tensor, **rest: Any) -> State:
        out = elementwise(x, t, **rest)
        return {**out, "latent": out["latent"] + 1e-3 * x["latent"].mean()}

    plan = plan_steps(PROCESS, DDIM(), 3, start=0.999)
    with pytest.raises(AssertionError, match="latent"):
        assert_batch_invariant(leaky, PROCESS, plan, layouts_of, count=8)
    with pytest.raises(AssertionError):
        assert_denoiser(leaky, PROCESS, layouts_of)
    assert_denoiser(elementwise, PROCESS, layouts_of)


def test_state_stays_in_its_space() -> None:
    layouts = layouts_of(torch.arange(12))
    noise = CounterNoise(sample_seeds(0, range(12)))
    out = sample(elementwise, PROCESS, plan_steps(PROCESS, Heun(), 9, start=0.999), layouts, noise)
    assert float(layouts["positions"].mean(out["positions"]).abs().max()) < 1e-6
    assert torch.equal(out["bonds"], out["bonds"].transpose(1, 2))
    assert int(out["bonds"].max()) <= 2  # no mask is left at the data
    for name, x in out.items():
        assert torch.equal(layouts[name].restrict(x), x)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_twice_and_another_seed_differs(name: str) -> None:
    data, process = GaussianMixture.example(), Gaussian(features=(2,), schedule=RectifiedFlow())
    plan = plan_steps(process, SOLVERS[name], 5)

    def run(seed: int) -> torch.Tensor:
        noise = CounterNoise(sample_seeds(seed, range(8)), torch.float64)
        return sample(data.denoiser(process.schedule), process, plan, {"x": Dense(8)}, noise)["x"]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_only_where_the_plan_says_so(name: str) -> None:
    process, data = Gaussian(features=(2,)), GaussianMixture.example()
    plan = plan_steps(process, SOLVERS[name], 7)
    noise = CountedNoise(CounterNoise(sample_seeds(0, range(2)), torch.float64))
    sample(data.denoiser(process.schedule), process, plan, {"x": Dense(2)}, noise)
    wanted = sum(getattr(row, "c", 0) > 0 for row in plan.rows["x"])
    assert noise.draws == 1 + wanted
    assert (wanted > 0) == SOLVERS[name].stochastic


def test_sampling_reproduces_a_mixture() -> None:
    """Mean, covariance and mode weights of 20,000 draws."""
    n, data, schedule = 20_000, GaussianMixture.example(), RectifiedFlow()
    process = Gaussian(features=(2,), schedule=schedule)
    noise = CounterNoise(sample_seeds(0, range(n)), torch.float64)
    plan = plan_steps(process, DPMSolverPP2M(), 40)
    x = sample(data.denoiser(schedule), process, plan, {"x": Dense(n)}, noise)["x"]
    truth = data.sample(400_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), truth.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(x.T), torch.cov(truth.T), rtol=0, atol=0.04)
    entropy = -data.log_density(x).mean(), -data.log_density(truth).mean()
    assert float(entropy[0]) == pytest.approx(float(entropy[1]), abs=0.03)


def test_prior_has_the_noise_of_the_plan_that_starts_there() -> None:
    """A grid may start below t = 1: at σ = 8 of 80 the start has σ = 8."""
    process = Gaussian(features=(1000,), schedule=EDM())
    seen: list[State] = []

    def spy(x: State, t: torch.Tensor, **_: Any) -> State:
        seen.append(x)
        return {"x": 0 * x["x"]}

    sample(
        spy,
        process,
        make_plan(process, DDIM(), [0.1, 0.0]),
        {"x": Dense(4)},
        CounterNoise(sample_seeds(0, range(4))),
    )
    assert float(seen[0]["x"].std()) == pytest.approx(8.0, rel=0.05)


def test_constraint_sees_every_row_and_has_the_last_word() -> None:
    process, data = Gaussian(features=(2,)), GaussianMixture.example()
    plan = plan_steps(process, Heun(churn=5.0), 7, start=0.99)
    times: list[float] = []

    def pin(x: State, time: float) -> State:
        times.append(time)
        return {"x": torch.stack((torch.full_like(x["x"][:, 0], 0.25), x["x"][:, 1]), dim=1)}

    noise = CounterNoise(sample_seeds(0, range(6)), torch.float64)
    out = sample(data.denoiser(process.schedule), process, plan, {"x": Dense(6)}, noise, constraint=pin)["x"]
    assert bool((out[:, 0] == 0.25).all())
    assert times == [stage.stop for stage in plan.stages]


def test_self_conditioning_hands_on_the_last_estimate() -> None:
    process, data = Gaussian(features=(2,)), GaussianMixture.example()
    exact, given, made = data.denoiser(process.schedule), [], []

    def spy(x: State, t: torch.Tensor, *, previous: State | None = None, **rest: Any) -> State:
        given.append(previous)
        made.append(exact(x, t, **rest))
        return made[-1]

    noise = CounterNoise(sample_seeds(0, range(2)), torch.float64)
    for on in (True, False):
        given.clear()
        made.clear()
        sample(spy, process, plan_steps(process, Heun(), 5), {"x": Dense(2)}, noise, self_condition=on)
        assert given[0] is None
        assert all(a is (b if on else None) for a, b in zip(given[1:], made[:-1], strict=True))


def test_progress_condition_start_and_times() -> None:
    process, data = Gaussian(features=(2,)), GaussianMixture.example()
    plan = plan_steps(process, DPMSolverPP2M(), 6)
    conditions: list[Any] = []
    rows: list[int] = []
    counted = CountedDenoiser(data.denoiser(process.schedule))

    def spy(x: State, t: torch.Tensor, *, condition: Any = None, **rest: Any) -> State:
        conditions.append(condition)
        return counted(x, t, **rest)

    start = {"x": torch.zeros(3, 2, dtype=torch.float64)}
    noise = CountedNoise(CounterNoise(sample_seeds(0, range(3))))
    layouts = {"x": Dense(3)}
    out = sample(spy, process, plan, layouts, noise, condition="c", start=start, progress=rows.append)
    assert conditions == ["c"] * 6
    assert rows == [1, 2, 3, 4, 5, 6]
    assert noise.draws == 0
    assert counted.times == pytest.approx([s.time for s in plan.stages])
    assert out["x"].dtype == torch.float64
    assert bool((start["x"] == 0).all())  # the caller's state is not written to


def test_no_gradients_are_recorded() -> None:
    process = Gaussian(features=(2,))
    weight = torch.ones(2, requires_grad=True)
    noise = CounterNoise(sample_seeds(0, range(2)))
    out = sample(
        lambda x, t, **_: {"x": weight * x["x"]},
        process,
        plan_steps(process, DDIM(), 2),
        {"x": Dense(2)},
        noise,
    )
    assert not out["x"].requires_grad
