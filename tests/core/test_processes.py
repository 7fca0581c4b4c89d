"""Processes against closed forms and brute-force Bayes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from perrin.core import (
    DDPM,
    SOLVERS,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    GeneratorNoise,
    Layout,
    LinearVP,
    Padded,
    Pairs,
    Power,
    Process,
    Ragged,
    RectifiedFlow,
    Torus,
    make_plan,
    sample,
    sample_seeds,
)
from perrin.core.grids import uniform
from perrin.core.plan import Jump
from perrin.core.testing import CategoricalTable, assert_process

F64 = torch.float64
K = 4
PRIORS = {
    "uniform": Categorical.uniform(K),
    "marginal": Categorical.marginal((5.0, 1.0, 3.0, 2.0)),
    "marginal with an absent category": Categorical.marginal((5.0, 0.0, 3.0, 2.0)),
    "absorbing": Categorical.absorbing(K),
    "uniform, late": Categorical.uniform(K, Power(exponent=2.5)),
}
priors = pytest.mark.parametrize("process", PRIORS.values(), ids=PRIORS)
SIZES = torch.tensor([3, 1, 5])
MASK = Padded.from_sizes(SIZES, 6).mask
LAYOUTS: dict[str, Layout] = {
    "dense": Dense(3),
    "padded": Padded(MASK),
    "pairs": Pairs(MASK),
    "ragged": Ragged(torch.repeat_interleave(torch.arange(3), SIZES), 3),
}
ROWS = {"dense": (3,), "padded": (3, 6), "pairs": (3, 6, 6), "ragged": (9,)}
layouts = pytest.mark.parametrize("kind", LAYOUTS)


def clean(
    kind: str, features: tuple[int, ...], categories: int | None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator, shape = torch.Generator().manual_seed(0), (*ROWS[kind], *features)
    if categories is None:
        x = torch.randn(shape, generator=generator, dtype=dtype)
    else:
        x = torch.randint(0, categories, shape, generator=generator)
    return torch.maximum(x, x.transpose(1, 2)) if kind == "pairs" else x


@layouts
@pytest.mark.parametrize("zero_com", [False, True])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_gaussian(kind: str, zero_com: bool, schedule: RectifiedFlow, dtype: torch.dtype) -> None:
    process = Gaussian(features=(2,), schedule=schedule, zero_com=zero_com)
    assert_process(process, LAYOUTS[kind], clean(kind, (2,), None, dtype))


@layouts
@priors
def test_categorical(kind: str, process: Categorical) -> None:
    if kind == "dense":
        process = Categorical(
            prior_probabilities=process.prior_probabilities,
            schedule=process.schedule,
            absorbing_state=process.absorbing_state,
            features=(2, 2),
        )
    x_0 = clean(kind, process.features, K)
    if process.prior_probabilities[1] == 0 and process.absorbing_state is None:
        x_0 = torch.where(x_0 == 1, 0, x_0)
    assert_process(process, LAYOUTS[kind], x_0)


def test_a_wrong_reverse_move_is_caught() -> None:
    class Wrong(Gaussian):
        def step(self, x, estimates, row, noise, layout, *, name, step):  # type: ignore[no-untyped-def]
            return super().step(1.1 * x, estimates, row, noise, layout, name=name, step=step)

    process: Process = Wrong(features=(2,))
    with pytest.raises(AssertionError, match="differ by"):
        assert_process(process, Dense(3), clean("dense", (2,), None))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_zero_com_noise_has_variance_of_n_minus_one_over_n(n: int) -> None:
    batch = 40_000
    layout = Padded.from_sizes(torch.full((batch,), n), 8)
    process = Gaussian(features=(3,), zero_com=True)
    z = process.draw(CounterNoise(sample_seeds(0, range(batch)), F64), layout, name="x", step=0)
    assert float(layout.mean(z).abs().max()) < 1e-14
    expected = (n - 1) / n
    error = math.sqrt(2 / (batch * 3 * max(n - 1, 1)))  # n − 1 degrees of freedom in each coordinate
    assert float(z[:, :n].square().mean()) == pytest.approx(expected, rel=5 * error, abs=1e-20)
    assert bool((z[:, n:] == 0).all())


# ------------------------------------------------------------------------------------------------------ categorical


def kernel(process: Categorical, keep: float) -> torch.Tensor:
    """`Q[i, j]`: from i to j with probability `keep [i = j] + (1 − keep) π_j`."""
    prior = torch.tensor(process.prior_probabilities, dtype=F64)
    return keep * torch.eye(len(prior), dtype=F64) + (1 - keep) * prior


@priors
def test_forward_marginals(process: Categorical) -> None:
    n, t = 50_000, 0.37
    keep = float(process.schedule.alpha(torch.tensor(t, dtype=F64)))
    for category in (0, K - 1):
        x_0 = torch.full((n,), category)
        for noise in (
            CounterNoise(sample_seeds(0, range(n))),
            GeneratorNoise(torch.Generator().manual_seed(0)),
        ):
            x_t = process.corrupt(x_0, torch.full((n,), t), noise, Dense(n), name="x")
            seen = torch.bincount(x_t, minlength=process.categories) / n
            want = kernel(process, keep)[category]
            assert float(((seen - want).abs() - 4.5 * (want * (1 - want) / n).sqrt()).max()) <= 0


@priors
def test_two_forward_moves_are_one(process: Categorical) -> None:
    n, t, later = 50_000, 0.2, 0.6
    noise, layout = CounterNoise(sample_seeds(0, range(n))), Dense(n)
    x_t = process.corrupt(torch.full((n,), 1), torch.full((n,), t), noise, layout, name="x")
    x_s = process.diffuse(x_t, torch.full((n,), t), torch.full((n,), later), noise, layout, name="x", step=1)
    keep = float(process.schedule.alpha(torch.tensor(later, dtype=F64)))
    want, seen = kernel(process, keep)[1], torch.bincount(x_s, minlength=process.categories) / n
    assert float(((seen - want).abs() - 4.5 * (want * (1 - want) / n).sqrt()).max()) <= 0
    stays = kernel(process, keep / float(process.schedule.alpha(torch.tensor(t, dtype=F64))))[0, 0]
    still = (x_s == 0)[x_t == 0].double()  # given x_t, not only on the whole
    if len(still):
        assert (
            abs(float(still.mean() - stays)) < 4.5 * float((stays * (1 - stays) / len(still)).sqrt()) + 1e-12
        )


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP()], ids=repr)
def test_two_forward_moves_of_a_gaussian_are_one(schedule: RectifiedFlow | LinearVP) -> None:
    n, t, later = 40_000, 0.3, 0.7
    process = Gaussian(features=(2,), schedule=schedule)
    noise, layout = CounterNoise(sample_seeds(0, range(n)), F64), Dense(n)
    x_0 = torch.tensor([1.0, -2.0], dtype=F64).expand(n, 2)
    times = [torch.full((n,), v, dtype=F64) for v in (t, later)]
    x_t = process.corrupt(x_0, times[0], noise, layout, name="x")
    x_s = process.diffuse(x_t, *times, noise, layout, name="x", step=1)
    alpha, sigma = (f(times[1][0]) for f in (schedule.alpha, schedule.sigma))
    rest = (x_s - alpha * x_0) / sigma
    assert float(rest.mean().abs()) < 4 / (2 * n) ** 0.5
    assert float(rest.square().mean()) == pytest.approx(1, abs=5 * (1 / n) ** 0.5)
    kept = alpha / schedule.alpha(times[0][0])
    with_x_t = float(((x_t - x_t.mean(0)) * (x_s - x_s.mean(0))).mean())
    assert with_x_t == pytest.approx(float(kept * schedule.sigma(times[0][0]) ** 2), rel=0.03)
    with pytest.raises(NotImplementedError, match="given Torus"):
        Torus(features=(2,)).diffuse(x_t, *times, noise, layout, name="x", step=1)


@priors
def test_prior(process: Categorical) -> None:
    n = 50_000
    x = process.prior(CounterNoise(sample_seeds(0, range(n))), Dense(n), name="x")
    want = torch.tensor(process.prior_probabilities)
    seen = torch.bincount(x, minlength=process.categories) / n
    assert float(((seen - want).abs() - 4.5 * (want * (1 - want) / n).sqrt()).max()) <= 0


@priors
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("keep_t", "keep_s"), [(0.0, 0.2), (0.1, 0.9), (0.5, 0.51), (0.3, 1.0), (0.0, 1.0)])
def test_posterior_against_bayes(
    process: Categorical, dtype: torch.dtype, keep_t: float, keep_s: float
) -> None:
    """`p(x_s | x_t) = Σ p(x_0) q(x_s | x_0) q(x_t | x_s) / p(x_t)` by enumeration, for random `p(x_0)`."""
    generator = torch.Generator().manual_seed(0)
    forward_s, forward_t = kernel(process, keep_s), kernel(process, keep_t)
    step = kernel(process, keep_t / keep_s)
    torch.testing.assert_close(forward_s @ step, forward_t)  # the chain is one
    for _ in range(5):
        p0 = torch.rand(K, generator=generator, dtype=F64)
        if process.prior_probabilities[1] == 0 and process.absorbing_state is None:
            p0[1] = 0
        p0 = p0 / p0.sum()
        for x_t in range(process.categories):
            seen = p0 @ forward_t[:K, x_t]
            if seen == 0:
                continue
            truth = (p0 @ forward_s[:K]) * step[:, x_t] / seen
            clean_given_t = p0 * forward_t[:K, x_t] / seen
            got = process.posterior(
                torch.tensor([x_t]), torch.log(clean_given_t).to(dtype)[None], Jump(keep_t, keep_s)
            )[0]
            got = got / got.sum()
            torch.testing.assert_close(
                got.to(F64), truth, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13
            )


def transition(process: Categorical, table: CategoricalTable, t: float, s: float) -> torch.Tensor:
    """The sampler's chain over all states of all positions, `[S, S]`, with exact marginal denoisers."""
    n, m = table.table.ndim, process.categories
    states = torch.cartesian_prod(*[torch.arange(m)] * n).reshape(-1, n)
    logits = torch.log(table.posterior(states, process, torch.full((len(states),), t, dtype=F64)))
    keep = [float(process.schedule.alpha(torch.tensor(v, dtype=F64))) for v in (t, s)]
    p = process.posterior(states, logits, Jump(keep[0], keep[1]))
    p = p / p.sum(-1, keepdim=True)
    rows = p[:, 0]
    for i in range(1, n):
        rows = torch.einsum("bi,bj->bij", rows, p[:, i]).reshape(len(states), -1)
    return rows


def run_exactly(process: Categorical, table: CategoricalTable, steps: int) -> torch.Tensor:
    prior = torch.tensor(process.prior_probabilities, dtype=F64)
    state = prior
    for _ in range(1, table.table.ndim):
        state = torch.outer(state, prior).flatten()
    times = uniform(steps).tolist()
    for t, s in itertools.pairwise(times):
        state = torch.nan_to_num(transition(process, table, t, s), nan=0.0).T @ state
    return state.reshape([process.categories] * table.table.ndim)


@priors
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_reverse_chain_reproduces_the_data(process: Categorical, steps: int) -> None:
    """One position has no neighbours to be wrong about: any number of steps is exact."""
    p0 = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=F64)
    out = run_exactly(process, CategoricalTable(p0), steps)
    torch.testing.assert_close(out[:K], p0, rtol=0, atol=1e-13)


@priors
def test_sampled_chain_reproduces_the_data(process: Categorical) -> None:
    n, p0 = 20_000, torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=F64)
    process = Categorical(
        prior_probabilities=process.prior_probabilities,
        schedule=process.schedule,
        absorbing_state=process.absorbing_state,
        features=(1,),
    )
    table = CategoricalTable(p0)
    plan = make_plan(process, DDPM(), uniform(5))
    out = sample(
        table.denoiser(process), process, plan, {"x": Dense(n)}, CounterNoise(sample_seeds(0, range(n)))
    )["x"]
    seen = torch.bincount(out.flatten(), minlength=K) / n
    assert len(seen) == K
    assert float(((seen - p0).abs() - 4.5 * (p0 * (1 - p0) / n).sqrt()).max()) <= 0


COINS = CategoricalTable(torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=F64))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_two_equal_coins_exactly(steps: int) -> None:
    """Two masked coins that are always equal in the data differ with probability 1/(2T).

    A position unmasks in step k of T with probability 1/T, whatever the other does. If the other is known, so is
    this one; only if both unmask in the same step (1/T) are they drawn independently, and then differ half the time.
    """
    out = run_exactly(Categorical.absorbing(2), COINS, steps)
    assert float(out.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(out[0, 1] + out[1, 0]) == pytest.approx(1 / (2 * steps), abs=1e-12)
    assert float(out[0, 0]) == pytest.approx(float(out[1, 1]), abs=1e-12)


@pytest.mark.parametrize("steps", [2, 10])
def test_two_equal_coins_sampled(steps: int) -> None:
    n = 200_000
    process = Categorical(prior_probabilities=(0, 0, 1), absorbing_state=2, features=(2,))
    plan = make_plan(process, DDPM(), uniform(steps))
    noise = CounterNoise(sample_seeds(0, range(n)))
    out = sample(COINS.denoiser(process), process, plan, {"x": Dense(n)}, noise)["x"]
    want, seen = 1 / (2 * steps), float((out[:, 0] != out[:, 1]).double().mean())
    assert int(out.max()) == 1
    assert abs(seen - want) < 4 * math.sqrt(want * (1 - want) / n)


def test_two_coins_as_two_fields_of_a_composite() -> None:
    n, steps = 50_000, 4
    process = Composite(fields={"a": Categorical.absorbing(2), "b": Categorical.absorbing(2)})
    joint = Categorical(prior_probabilities=(0, 0, 1), absorbing_state=2, features=(2,))

    def denoise(x, t, **_):  # type: ignore[no-untyped-def]
        logits = torch.log(COINS.posterior(torch.stack((x["a"], x["b"]), dim=1), joint, t))
        return {"a": logits[:, 0], "b": logits[:, 1]}

    plan = make_plan(process, DDPM(), uniform(steps))
    noise = CounterNoise(sample_seeds(0, range(n)))
    out = sample(denoise, process, plan, {"a": Dense(n), "b": Dense(n)}, noise)
    want, seen = 1 / (2 * steps), float((out["a"] != out["b"]).double().mean())
    assert abs(seen - want) < 4 * math.sqrt(want * (1 - want) / n)


def test_decode_takes_the_most_probable() -> None:
    process = Categorical.uniform(3)
    plan = make_plan(process, DDPM(), uniform(3), decode=True)
    rows = [row for row in plan.rows["x"] if isinstance(row, Jump)]
    assert [row.decode for row in rows] == [False, False, True]
    logits = torch.log(torch.tensor([0.4, 0.35, 0.25])).expand(1000, 3)
    noise = CounterNoise(sample_seeds(0, range(1000)))
    out = sample(lambda *_, **__: {"x": logits}, process, plan, {"x": Dense(1000)}, noise)["x"]
    assert bool((out == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_draw_the_right_categories(dtype: torch.dtype) -> None:
    """The last two categories have no probability: a uniform number rounded to 1 would draw them."""
    n = 50_000
    process = Categorical.uniform(K)
    p = torch.tensor([0.7, 0.3, 0.0, 0.0])
    noise = CounterNoise(sample_seeds(0, range(n)))
    x_t = process.prior(noise, Dense(n), name="x")
    logits = torch.log(p).to(dtype).expand(n, K)
    out = process.step(x_t, [logits], Jump(0.0, 1.0), noise, Dense(n), name="x", step=1)
    seen = torch.bincount(out, minlength=K) / n
    assert float((seen - p).abs().max()) < 4.5 * math.sqrt(0.21 / n) + 1e-3
    assert int(out.max()) == 1


def test_temperature_is_a_power_of_the_estimate() -> None:
    process, n = Categorical.uniform(3), 200_000
    p, x_t = torch.tensor([0.6, 0.3, 0.1], dtype=F64), torch.full((n,), 2)
    for temperature in (1.0, 0.5):
        drawn = process.step(
            x_t,
            [p.log().expand(n, 3)],
            Jump(
                0.0, 1.0, temperature=temperature
            ),  # from no signal to the data: the estimate itself is drawn
            CounterNoise(sample_seeds(0, range(n))),
            Dense(n),
            name="x",
            step=1,
        )
        want = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        assert float((torch.bincount(drawn, minlength=3) / n - want).abs().max()) < 4.5 * (0.25 / n) ** 0.5
    with pytest.raises(ValueError, match="temperature above 0"):
        Categorical(prior_probabilities=(0.5, 0.5), temperature=0.0)


def test_a_temperature_may_hold_near_the_data_only() -> None:
    process = replace(Categorical.uniform(3), temperature=0.3, tempered_below=0.5)
    plan = make_plan(
        Composite(fields={"x": process}), SOLVERS["ddpm"], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    )
    assert [row.temperature for row in plan.rows["x"] if isinstance(row, Jump)] == [1.0, 1.0, 0.3, 0.3]


def test_churn_raises_categorical_noise() -> None:
    """A forward row keeps each category with probability `α_s / α_t`."""
    n, process = 50_000, Categorical.marginal((1.0, 2.0, 1.0))
    out = process.step(
        torch.ones(n, dtype=torch.int64),
        [],
        Jump(0.8, 0.2),
        CounterNoise(sample_seeds(0, range(n))),
        Dense(n),
        name="x",
        step=1,
    )
    want = kernel(process, 0.25)[1]
    assert float((torch.bincount(out, minlength=3) / n - want).abs().max()) < 4.5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("probabilities", [(0.5, 0.6), (1.5, -0.5)])
def test_refuses_what_is_no_distribution(probabilities: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Categorical(prior_probabilities=probabilities)
