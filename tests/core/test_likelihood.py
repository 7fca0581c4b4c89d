"""Likelihood against densities that are known, and the flow against its own inverse."""

from __future__ import annotations

import math

import pytest
import torch

from perrin.core import (
    EDM,
    Categorical,
    Clean,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    Layout,
    LinearVP,
    Padded,
    Pairs,
    PowerClock,
    RectifiedFlow,
    Schedule,
    Symmetric,
    sample_seeds,
)
from perrin.core.likelihood import ExactTrace, Hutchinson, ProbabilityFlow
from perrin.core.testing import GaussianMixture

F64 = torch.float64
DATA = GaussianMixture.example()
SCHEDULES: dict[str, Schedule] = {"flow": RectifiedFlow(), "vp": LinearVP(), "edm": EDM(sigma_max=80.0)}


def draws(n: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return DATA.sample(n, torch.Generator().manual_seed(0)).to(dtype)


def mixture_flow(n: int, schedule: Schedule, **options) -> ProbabilityFlow:  # type: ignore[no-untyped-def]
    w = DATA.weights[:, None]
    mean = (w * DATA.means).sum(0)
    std = float(((w * (DATA.stds[:, None] ** 2 + DATA.means**2)).sum(0) - mean**2).mean().sqrt())
    process = Gaussian(features=(2,), schedule=schedule)
    return ProbabilityFlow(
        denoiser=DATA.denoiser(schedule),
        process=process,
        layouts={"x": Dense(n)},
        mean={"x": mean},
        std={"x": std},
        **options,
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_mixture_density(name: str, dtype: torch.dtype) -> None:
    """To 1e-3 nats at every point (the issue), with a mean error below 1e-4; bits are nats / (2 log 2)."""
    x = draws(64, dtype)
    schedule = SCHEDULES[name]
    flow = mixture_flow(64, schedule)
    if dtype == torch.float32:
        object.__setattr__(flow, "mean", {"x": flow.mean["x"].float()})  # type: ignore[union-attr]
        single = GaussianMixture(DATA.means.float(), DATA.stds.float(), DATA.weights.float())
        object.__setattr__(flow, "denoiser", single.denoiser(schedule))
    out = flow.log_likelihood({"x": x})
    truth = DATA.log_density(x.double())
    error = (out.nats.double() - truth).abs()
    assert out.nats.dtype == dtype
    assert float(error.max()) < 1e-3
    assert float(error.mean()) < 1e-4
    torch.testing.assert_close(out.bits_per_dimension.double(), -truth / (2 * math.log(2)), rtol=0, atol=1e-3)


def test_moments_of_the_prior_matter() -> None:
    """At `rho_max = 5` the prior with the noise's moments alone is three times as wrong as the moment-matched one."""
    x, errors = draws(64), []
    for std in (None, 1e-3):
        flow = mixture_flow(64, RectifiedFlow(), rho_max=5.0)
        if std is not None:
            object.__setattr__(flow, "std", {"x": std})
        errors.append(float((flow.log_likelihood({"x": x}).nats - DATA.log_density(x)).abs().mean()))
    assert errors[0] < 0.33 * errors[1]


def test_error_falls_with_the_fourth_power_of_the_step() -> None:
    x, nats = draws(16), []
    for steps in (20, 40, 80, 200):
        nats.append(mixture_flow(16, RectifiedFlow(), steps=steps).log_likelihood({"x": x}).nats)
    errors = [float((v - nats[-1]).square().mean().sqrt()) for v in nats[:-1]]
    assert math.log2(errors[1] / errors[2]) > 3.7


def test_hutchinson_is_unbiased_and_independent_of_the_batch() -> None:
    n, probes = 8, 32
    x, noise = draws(n), CounterNoise(sample_seeds(0, range(n)), F64)
    flow = mixture_flow(n, RectifiedFlow(), steps=12)
    exact = flow.log_likelihood({"x": x}).nats
    one = flow.log_likelihood({"x": x}, Hutchinson(noise)).nats
    many = flow.log_likelihood({"x": x}, Hutchinson(noise, probes)).nats
    assert float((one - exact).abs().max()) > 1e-4
    assert (
        float((many - exact).abs().max())
        < 6 * float((one - exact).square().mean().sqrt()) / math.sqrt(probes) + 1e-3
    )
    alone = mixture_flow(1, RectifiedFlow(), steps=12)
    last = alone.log_likelihood({"x": x[-1:]}, Hutchinson(CounterNoise(noise.seeds[-1:], F64))).nats
    torch.testing.assert_close(last[0], one[-1], rtol=0, atol=1e-9)


MASK = Padded.from_sizes(torch.tensor([3, 1, 4]), 5).mask
SPACES: dict[str, tuple[Gaussian, Layout, tuple[int, ...]]] = {
    "padded": (Gaussian(features=(2,)), Padded(MASK), (3, 5, 2)),
    "zero centre of mass": (Gaussian(features=(2,), zero_com=True), Padded(MASK), (3, 5, 2)),
    "pairs": (Gaussian(features=()), Pairs(MASK), (3, 5, 5)),
    "symmetric": (Gaussian(features=(3, 3), subspace=Symmetric()), Dense(3), (3, 3, 3)),
    "one channel, zero mean": (Gaussian(features=(2, 3), zero_com=True), Dense(3), (3, 2, 3)),
}


@pytest.mark.parametrize("space", SPACES)
def test_normal_data_in_a_subspace(space: str) -> None:
    """`N(0, s²)` in n dimensions: `−n/2 log 2πs² − |x|²/2s²`, for subspaces; the prior's moments are wrong on purpose."""
    process, layout, shape = SPACES[space]
    s, x = 0.5, torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = process.project(x, layout)

    def denoise(x, t, **_):  # type: ignore[no-untyped-def]
        a, b = (layout.expand(v(t), x["x"]) for v in (process.schedule.alpha, process.schedule.sigma))
        return {"x": a * s**2 / (a**2 * s**2 + b**2) * x["x"]}

    flow = ProbabilityFlow(
        denoiser=denoise,
        process=process,
        layouts={"x": layout},
        std={"x": 1.3},
        rho_max=1e4,
    )
    out = flow.log_likelihood({"x": x})
    square = layout.sum(x.square()).reshape(3, -1).sum(1)
    truth = -0.5 * out.dimensions * math.log(2 * math.pi * s**2) - 0.5 * square / s**2
    torch.testing.assert_close(out.nats, truth, rtol=0, atol=1e-4)
    noise = CounterNoise(sample_seeds(0, range(3 * 4000)), F64)
    big = Dense(12000) if isinstance(layout, Dense) else type(layout)(MASK.repeat(4000, 1))  # type: ignore[call-arg]
    z = process.draw(noise, big, name="x", step=0)
    n = big.sum(z.square()).reshape(4000, 3, -1).sum(-1).mean(0)
    torch.testing.assert_close(n, out.dimensions, rtol=0.05, atol=0)  # E|z|² is the number of dimensions


def test_two_fields_with_a_condition_and_clocks() -> None:
    """Independent fields on different clocks next to a clean one: the sum of the two log-densities, for either clock."""
    n, scales = 5, {"a": 0.5, "b": 2.0}
    process = Composite(
        fields={
            "c": Clean(),
            "a": Gaussian(features=(2,)),
            "b": Gaussian(features=(3,), schedule=LinearVP()),
        },
        clocks={"a": PowerClock(1.5)},
        clock_field="b",
    )
    generator = torch.Generator().manual_seed(0)
    x = {
        k: s * torch.randn(n, 2 if k == "a" else 3, generator=generator, dtype=F64) for k, s in scales.items()
    }
    x["c"] = torch.arange(n)

    def denoise(x, t, **_):  # type: ignore[no-untyped-def]
        out = {}
        for k, s in scales.items():
            schedule = process.fields[k].schedule
            a, b = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            out[k] = a * s**2 / (a**2 * s**2 + b**2) * x[k]
        return out

    layouts = dict.fromkeys(process.fields, Dense(n))
    flow = ProbabilityFlow(
        denoiser=denoise, process=process, layouts=layouts, std={"a": 0.52, "b": 1.5}, rho_min=1e-2, steps=150
    )
    out = flow.log_likelihood(x)
    truth = torch.zeros(n, dtype=F64)
    for k, s in scales.items():
        normal = torch.distributions.Normal(torch.zeros((), dtype=F64), s)
        truth = truth + normal.log_prob(x[k]).sum(1)
    torch.testing.assert_close(out.nats, truth, rtol=0, atol=2e-3)
    assert torch.equal(out.latent["c"], x["c"])
    back = flow.decode(out.latent)
    torch.testing.assert_close(back["a"], x["a"], rtol=0, atol=1e-4)
    torch.testing.assert_close(back["b"], x["b"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_encode_and_decode(name: str) -> None:
    n, schedule = 32, SCHEDULES[name]
    x = {"x": draws(n)}
    flow = mixture_flow(n, schedule)
    latent = flow.encode(x)
    torch.testing.assert_close(flow.decode(latent)["x"], x["x"], rtol=0, atol=1e-5)
    # the code is the flow's: a reference that shares nothing with this solver
    t = float(schedule.time(torch.tensor(-math.log(80.0), dtype=F64)))
    start = float(schedule.time(torch.tensor(-math.log(1e-3), dtype=F64)))
    alpha = float(schedule.alpha(torch.tensor(start, dtype=F64)))
    truth = DATA.flow(alpha * x["x"], schedule, start, t)
    torch.testing.assert_close(latent["x"], truth, rtol=1e-4, atol=1e-4)


def test_interpolation() -> None:
    """The ends are the data; half-way states are as probable as data are."""
    n = 64
    x, y = {"x": draws(2 * n)[:n]}, {"x": draws(2 * n)[n:]}
    flow = mixture_flow(n, RectifiedFlow())
    torch.testing.assert_close(flow.interpolate(x, y, 0.0)["x"], x["x"], rtol=0, atol=1e-5)
    ends = flow.interpolate(x, y, torch.ones(n, dtype=F64))["x"]
    torch.testing.assert_close(ends, y["x"], rtol=0, atol=1e-5)
    middle = flow.interpolate(x, y, 0.5)["x"]
    assert float(DATA.log_density(middle).mean()) == pytest.approx(
        float(DATA.log_density(draws(4000)).mean()), abs=0.5
    )


def test_refusals() -> None:
    with pytest.raises(TypeError, match="Categorical"):
        ProbabilityFlow(denoiser=None, process=Categorical.uniform(3), layouts={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rho_min"):
        mixture_flow(1, RectifiedFlow(), rho_min=2.0, rho_max=1.0)
    with pytest.raises(ValueError, match="probe"):
        Hutchinson(CounterNoise(sample_seeds(0, range(1))), 0)
    assert ExactTrace() == ExactTrace()
    assert mixture_flow(1, RectifiedFlow(), steps=7).nfe == 28
