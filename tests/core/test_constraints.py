"""Constraints: what is held is held, what is drawn has the right law."""

from __future__ import annotations

import pytest
import torch

from perrin.core import (
    DDPM,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    DPMSolverPP2M,
    Gaussian,
    Padded,
    RectifiedFlow,
    State,
    make_plan,
    sample,
    sample_seeds,
)
from perrin.core.grids import log_snr
from perrin.core.guides import Fixed, Given, Inpaint, together

from .linear_gaussian import LinearGaussian

F64 = torch.float64
SCHEDULE = RectifiedFlow()


def test_inpainting_bias() -> None:
    """Two numbers of correlation 0.8, one of them known at two standard deviations; the docstring quotes this."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    problem = LinearGaussian(
        torch.zeros(2, dtype=F64), covariance, torch.eye(2, dtype=F64)[:1], torch.tensor([2.0]), 0.0
    )
    process, n = Gaussian(features=(2,), schedule=SCHEDULE), 8000
    layouts, noise = {"x": Dense(n)}, CounterNoise(sample_seeds(0, range(n)), F64)
    inpaint = Inpaint(
        process=process,
        known={"x": torch.tensor([2.0, float("nan")], dtype=F64).expand(n, 2).nan_to_num(9.0)},
        keep={"x": torch.tensor([True, False]).expand(n, 2)},
        noise=noise,
        layouts=layouts,
    )
    plan = make_plan(process, DDPM(), log_snr(100, SCHEDULE))
    x = sample(problem.denoiser(SCHEDULE), process, plan, layouts, noise, constraint=inpaint)["x"]
    assert torch.equal(x[:, 0], torch.full((n,), 2.0, dtype=F64))
    assert float(x[:, 1].mean()) == pytest.approx(0.95, abs=0.04)  # 1.6 would be right
    assert float(x[:, 1].std()) == pytest.approx(0.67, abs=0.03)  # and 0.6


def test_inpainting_has_the_marginal_of_every_time() -> None:
    process = Composite(fields={"x": Gaussian(features=(3,), schedule=SCHEDULE), "k": Categorical.uniform(3)})
    sizes = torch.tensor([2, 4]).repeat(2000)
    n, layout = len(sizes), Padded.from_sizes(sizes)
    layouts = {"x": layout, "k": layout}
    known: State = {"x": torch.full((n, 4, 3), 2.0), "k": torch.full((n, 4), 2)}
    keep = torch.tensor([True, False, False, True]).expand(n, 4)
    inpaint = Inpaint(
        process=process,
        known=known,
        keep={"x": keep, "k": keep},
        noise=CounterNoise(sample_seeds(0, range(n))),
        layouts=layouts,
    )
    state: State = {"x": torch.zeros(n, 4, 3), "k": torch.zeros(n, 4, dtype=torch.int64)}
    out = inpaint(state, 0.4)
    assert float(out["x"][:, 0].mean()) == pytest.approx(0.6 * 2, abs=0.02)
    assert float(out["x"][:, 0].std()) == pytest.approx(0.4, rel=0.03)
    alpha = float(process.fields["k"].schedule.alpha(torch.tensor(0.4)))
    assert float((out["k"][:, 0] == 2).float().mean()) == pytest.approx(alpha + (1 - alpha) / 3, abs=0.03)
    assert float(out["x"][:, 1:3].abs().max()) == 0
    assert float(out["x"][sizes == 2, 3].abs().max()) == 0  # padding stays zero
    again, other = inpaint(state, 0.4)["x"], inpaint(state, 0.3)["x"]
    assert torch.equal(out["x"], again)
    assert not torch.equal(out["x"], other)
    end = inpaint(state, 0.0)
    assert torch.equal(end["x"][:, 0], known["x"][:, 0])
    assert torch.equal(end["k"][:, 0], known["k"][:, 0])


def around(n: int) -> tuple[Composite, dict[str, Padded], CounterNoise, State, dict[str, torch.Tensor]]:
    """Five rows of zero centre of mass, three of them known; the others hold rubbish."""
    process = Composite(fields={"x": Gaussian(features=(3,), schedule=SCHEDULE, zero_com=True)})
    layouts = {"x": Padded.from_sizes(torch.full((n,), 5), 6)}
    generator = torch.Generator().manual_seed(1)
    known = torch.full((6, 3), 50.0, dtype=F64)
    known[:3] = torch.randn(3, 3, generator=generator, dtype=F64) + 7
    keep = torch.arange(6) < 3
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    return process, layouts, noise, {"x": known.expand(n, 6, 3)}, {"x": keep.expand(n, 6)}


def test_zero_centre_of_mass_holds_the_shape() -> None:
    """The shape of the known rows has the marginal of its time; their centroid, and with it the centre of mass, stays."""
    n, time = 4000, 0.4
    process, layouts, noise, known, keep = around(n)
    x = process.prior_state(CounterNoise(sample_seeds(5, range(n)), F64), layouts)
    out = Inpaint(process=process, known=known, keep=keep, noise=noise, layouts=layouts)(x, time)["x"]
    torch.testing.assert_close(out[:, :3].mean(1), x["x"][:, :3].mean(1))
    assert torch.equal(out[:, 3:], x["x"][:, 3:])
    assert float(out.sum(1).abs().max()) < 1e-12
    y = known["x"][0, :3]
    rest = out[:, :3] - out[:, :3].mean(1, keepdim=True) - 0.6 * (y - y.mean(0))
    assert float(rest.mean(0).abs().max()) < 0.02
    covariance = torch.einsum("bik,bjk->ij", rest, rest) / (3 * n)
    torch.testing.assert_close(covariance, 0.16 * (torch.eye(3, dtype=F64) - 1 / 3), atol=0.006, rtol=0)


@pytest.mark.parametrize("way", ["constraint", "guide"])
def test_zero_centre_of_mass_has_the_right_conditional(way: str) -> None:
    """Rows `N(μ_i, s²)` seen from their centre of mass: relative to the known rows' centroid, whatever their shape, a free
    row is `N(μ_i − μ̄_K, s² (1 + 1/k))`, and two free rows have covariance `s²/k`, k known rows."""
    n, s = 2000, 0.6
    process, layouts, noise, known, keep = around(n)
    mu = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    mu = layouts["x"].center(mu.expand(n, 6, 3))

    def denoiser(x: State, t: torch.Tensor, *, layouts: object, **_: object) -> State:
        alpha, sigma = 1 - t[:, None, None], t[:, None, None]
        gain = alpha * s**2 / ((alpha * s) ** 2 + sigma**2)
        return {"x": process.fields["x"].project(mu + gain * (x["x"] - alpha * mu), layouts["x"])}  # type: ignore[index]

    plan = make_plan(process, DPMSolverPP2M(sde=True), log_snr(60, SCHEDULE))
    if way == "guide":
        given = Given(denoiser=denoiser, process=process, known=known, keep=keep)
        x = sample(given, process, plan, layouts, noise)["x"]
    else:
        inpaint = Inpaint(process=process, known=known, keep=keep, noise=noise, layouts=layouts)
        x = sample(denoiser, process, plan, layouts, noise, constraint=inpaint)["x"]
    y = known["x"][0, :3]
    torch.testing.assert_close(
        x[:, :3] - x[:, :3].mean(1, keepdim=True), (y - y.mean(0)).expand(n, 3, 3), atol=1e-9, rtol=0
    )
    free = x[:, 3:5] - x[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(free.mean(0), mu[0, 3:5] - mu[0, :3].mean(0), atol=0.04, rtol=0)
    free = free - free.mean(0)
    covariance = torch.einsum("bik,bjk->ij", free, free) / (3 * n)
    right = s**2 * (torch.eye(2, dtype=F64) + 1 / 3)
    torch.testing.assert_close(covariance, right, atol=0.025, rtol=0)


def test_zero_centre_of_mass_needs_rows() -> None:
    process = Composite(fields={"x": Gaussian(features=(3,), zero_com=True)})
    with pytest.raises(ValueError, match="centre of mass"):
        Inpaint(
            process=process,
            known={},
            keep={"x": torch.ones(2, 3, dtype=torch.bool)},
            noise=CounterNoise(sample_seeds(0, range(2))),
            layouts={"x": Dense(2)},
        )


def test_categories_that_are_ruled_out_do_not_come() -> None:
    n = 500
    layouts, noise = {"k": Dense(n)}, CounterNoise(sample_seeds(0, range(n)))
    process = Composite(fields={"k": Categorical.uniform(4, features=(3,))})
    allowed = torch.tensor([[True, False, False, False], [False, True, True, False], [True] * 4]).expand(
        n, 3, 4
    )

    def denoiser(x: State, t: torch.Tensor, **_: object) -> State:
        return {"k": torch.zeros(n, 3, 4)}

    given = Given(denoiser=denoiser, process=process, allowed={"k": allowed})
    k = sample(given, process, make_plan(process, DDPM(), log_snr(20, SCHEDULE)), layouts, noise)["k"]
    assert bool((k[:, 0] == 0).all())
    shares = torch.bincount(k[:, 1], minlength=4) / n
    assert shares[0] == shares[3] == 0
    assert float(shares[1]) == pytest.approx(0.5, abs=0.07)
    assert torch.bincount(k[:, 2], minlength=4).min() > 80


def test_fixed_rows_and_composition() -> None:
    keep = torch.tensor([[True, False], [False, True]])
    one = Fixed(values={"x": torch.full((2, 2), 7.0)}, keep={"x": keep})
    two = Fixed(values={"x": torch.full((2, 2), 5.0)}, keep={"x": keep[:, :1]})
    x = {"x": torch.zeros(2, 2), "k": torch.zeros(2, dtype=torch.int64)}
    out = together(one)(x, 0.3)
    torch.testing.assert_close(out["x"], torch.tensor([[7.0, 0.0], [0.0, 7.0]]))
    assert out["k"] is x["k"]
    with pytest.raises(RuntimeError):
        together(one, two)({"x": torch.zeros(3, 2)}, 0.3)
    with pytest.raises(TypeError, match="bool"):
        Fixed(values={"x": x["x"]}, keep={"x": torch.ones(2, 2)})(x, 0.1)
