"""Losses, training times and grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from perrin.core import EDM, Cosine, Dense, EDMHead, LinearVP, Padded, Pairs, Ragged, RectifiedFlow, Schedule
from perrin.core.grids import karras, log_snr, logit_normal, logit_normal_share, power, uniform
from perrin.core.losses import (
    Weighting,
    categorical_error,
    cosine_weight,
    edm,
    edm_weight,
    in_prediction,
    in_snr,
    logit_normal_weight,
    min_snr,
    sample_times,
    sample_times_edm,
    self_conditioned,
    squared_error,
    stratified,
)
from perrin.core.losses import (
    uniform as uniform_weight,
)
from perrin.core.predictions import PREDICTIONS
from perrin.core.testing import split

F64 = torch.float64
SIZES = torch.tensor([3, 1, 5])


@pytest.mark.parametrize("kind", ["dense", "padded", "pairs", "ragged"])
def test_losses_are_means_over_the_real_rows_of_each_sample(kind: str) -> None:
    mask = Padded.from_sizes(SIZES, 6).mask
    layout, rows = {
        "dense": (Dense(3), (3,)),
        "padded": (Padded(mask), (3, 6)),
        "pairs": (Pairs(mask), (3, 6, 6)),
        "ragged": (Ragged(torch.repeat_interleave(torch.arange(3), SIZES), 3), (9,)),
    }[kind]
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*rows, 4, generator=generator, dtype=F64) for _ in range(2))
    k = torch.randint(0, 4, rows, generator=generator)
    if kind == "pairs":
        x, y, k = x + x.transpose(1, 2), y + y.transpose(1, 2), torch.maximum(k, k.transpose(1, 2))
    square, cross = squared_error(x, y, layout), categorical_error(k, y, layout)
    nll = -torch.log_softmax(y, -1).gather(-1, k[..., None])[..., 0]
    for got, values in ((square, (x - y).square()), (cross, nll)):
        for i, v in enumerate(split(layout, values)):
            if kind == "pairs":
                v = v[torch.ones(len(v), len(v)).tril(-1) > 0]
            want = v.mean() if v.numel() else torch.zeros((), dtype=F64)
            torch.testing.assert_close(got[i], want)


@pytest.mark.parametrize(
    ("distribution", "mean", "median"),
    [
        ("uniform", 0.5, 0.5),
        ("low_noise", 1 / 3, 1 - 0.5**0.5),
        ("logit_normal", 0.5, 0.5),
        ("cosine", 0.5, 0.5),
    ],
)
def test_training_times(distribution: str, mean: float, median: float) -> None:
    u = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    t = sample_times(u, distribution=distribution, low=0.0, high=1.0)
    assert float(t.mean()) == pytest.approx(mean, abs=1e-4)
    assert float(t.median()) == pytest.approx(median, abs=1e-4)
    if distribution == "logit_normal":
        assert float(torch.logit(t).std()) == pytest.approx(1.0, abs=1e-3)
    t = sample_times(u, distribution=distribution, low=0.1, high=0.9)
    assert 0.1 <= float(t.min()) < float(t.max()) <= 0.9
    with pytest.raises(ValueError, match="logit_normal"):
        sample_times(u, distribution="none")


def test_stratified_times_are_spread_evenly() -> None:
    u = stratified(torch.rand(64, generator=torch.Generator().manual_seed(0)))
    gaps = u.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 64), rtol=0, atol=1e-6)


def test_min_snr() -> None:
    t = torch.tensor([0.01, 0.5, 0.9], dtype=F64)
    torch.testing.assert_close(
        min_snr(5.0)(t, RectifiedFlow()), torch.tensor([5.0, 1.0, (0.1 / 0.9) ** 2], dtype=F64)
    )


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow(), LinearVP(), Cosine()], ids=repr)
def test_grids(n: int, schedule: Schedule) -> None:
    largest = math.exp(-float(schedule.lam(torch.tensor(0.999, dtype=F64))))
    for grid in (
        uniform(n),
        power(n, exponent=3),
        karras(n, schedule, sigma_max=largest),
        log_snr(n, schedule),
    ):
        assert grid.dtype == F64
        assert len(grid) == n + 1
        assert float(grid[-1]) == 0
        assert bool((grid.diff() < 0).all())
    ratio = torch.exp(-schedule.lam(karras(n, schedule, sigma_max=largest)[:-1])) ** (1 / 7)
    torch.testing.assert_close(ratio.diff(), ratio.diff().mean().expand(n - 1) if n > 1 else ratio.diff())
    lam = schedule.lam(log_snr(n, schedule)[:-1])
    torch.testing.assert_close(lam, torch.linspace(float(lam[0]), float(lam[-1]), n, dtype=F64))
    assert float(log_snr(n, schedule)[0]) == pytest.approx(0.999)
    for make in (uniform, power, lambda k: karras(k, schedule), lambda k: log_snr(k, schedule)):
        with pytest.raises(ValueError, match="at least one step"):
            make(0)


SCHEDULES_ = [RectifiedFlow(), LinearVP(), Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES_, ids=repr)
def test_weightings_of_predictions(schedule: Schedule) -> None:
    """The weighted clean-data error is the squared error of the prediction itself."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.05, 0.95, 19, dtype=F64)
    x_0, z, wrong = (torch.randn(19, generator=generator, dtype=F64) for _ in range(3))
    x_t = schedule.alpha(t) * x_0 + schedule.sigma(t) * z
    z_wrong = (x_t - schedule.alpha(t) * wrong) / schedule.sigma(t)
    snr = (schedule.alpha(t) / schedule.sigma(t)).square()
    for prediction in PREDICTIONS.values():
        plain = (
            prediction.target(schedule, t, x_0, z) - prediction.target(schedule, t, wrong, z_wrong)
        ).square()
        torch.testing.assert_close(in_prediction(prediction)(t, schedule) * (x_0 - wrong).square(), plain)
    torch.testing.assert_close(in_prediction(PREDICTIONS["eps"])(t, schedule), snr)
    torch.testing.assert_close(in_prediction(PREDICTIONS["x0"])(t, schedule), uniform_weight()(t, schedule))
    torch.testing.assert_close(min_snr(5.0)(t, schedule), torch.minimum(snr, torch.tensor(5.0, dtype=F64)))
    torch.testing.assert_close(
        edm(0.7)(t, schedule), EDMHead(sigma_data=0.7).weight(t, schedule) * _scale(t, schedule)
    )


def _scale(t: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """EDM's weight in `σ/α` over the head's, which is in σ: `α²` on the noise's side."""
    a2, s2, d2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2, 0.49
    return ((s2 / a2 + d2) / (s2 / a2)) / ((a2 * d2 + s2) / s2)


def _expected(
    weighting: Weighting, schedule: Schedule, error: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """The mean over uniform t of `w(t) error(ℓ)`, by quadrature that is fine at both ends."""
    u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000
    t = u * u * (3 - 2 * u)
    values = weighting(t, schedule) * error(2 * schedule.lam(t)) * 6 * u * (1 - u)
    return float(values.mean())


@pytest.mark.parametrize("schedule", SCHEDULES_, ids=repr)
def test_invariant_weightings(schedule: Schedule) -> None:
    """The same expected loss for every schedule, and the loss of the paper with its own distribution of times."""

    def error(l: torch.Tensor) -> torch.Tensor:  # of x0, for Gaussian data seen with the wrong variance
        return 1 / (1 + torch.exp(l)) + 0.2 * torch.exp(-((l - 1) ** 2))

    u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000
    flow, cosine = RectifiedFlow(), Cosine()
    eps = in_prediction(PREDICTIONS["eps"])(u, cosine) * error(2 * cosine.lam(u))
    assert _expected(in_snr(cosine_weight), schedule, error) == pytest.approx(float(eps.mean()), rel=2e-3)
    t = torch.sigmoid(0.3 + 0.8 * torch.erfinv(2 * u - 1) * 2**0.5)
    v = in_prediction(PREDICTIONS["flow"])(t, flow) * error(2 * flow.lam(t))
    got = _expected(in_snr(logit_normal_weight(0.3, 0.8)), schedule, error)
    assert got == pytest.approx(float(v.mean()), rel=2e-3)
    t = sample_times_edm(u, flow, low=0.0, high=1.0)
    d = edm(0.5)(t, flow) * error(2 * flow.lam(t))
    assert _expected(in_snr(edm_weight()), schedule, error) == pytest.approx(float(d.mean()), rel=2e-3)


def test_cosine_times_on_a_rectified_flow() -> None:
    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    t = sample_times(u, distribution="cosine", low=0.0, high=1.0)
    torch.testing.assert_close(RectifiedFlow().lam(t), Cosine().lam(u))
    ratio = torch.log(t / (1 - t))
    edm_times = sample_times_edm(u, RectifiedFlow(), low=0.0)
    assert bool((ratio.diff() > 0).all())
    assert float(torch.logit(edm_times).median()) == pytest.approx(-1.2, abs=0.05)


def test_self_conditioning() -> None:
    seen: list[Any] = []
    weight = torch.ones((), requires_grad=True)

    def denoise(x: Any, t: torch.Tensor, *, previous: Any = None, **_: Any) -> Any:
        seen.append(previous)
        return {"x": weight * x["x"] + (0 if previous is None else previous["x"])}

    x, t = {"x": torch.ones(2, 1)}, torch.ones(2)
    plain = self_conditioned(denoise, x, t, own=False, layouts={"x": Dense(2)})
    twice = self_conditioned(denoise, x, t, own=True, layouts={"x": Dense(2)})
    assert seen[:2] == [None, None]
    assert not seen[2]["x"].requires_grad
    assert float(plain["x"].detach().sum()) == 2
    assert float(twice["x"].detach().sum()) == 4
    assert float(torch.autograd.grad(twice["x"].sum(), weight)[0]) == 2


def test_logit_normal_grid_is_even_quantiles() -> None:
    times = logit_normal(8, mean=-1.3, std=1.2)
    logits = torch.logit(times[1:-1])
    quantiles = torch.distributions.Normal(-1.3, 1.2).cdf(logits.float())
    torch.testing.assert_close(
        quantiles.double(), torch.arange(7, 0, -1, dtype=torch.float64) / 8, rtol=0, atol=1e-6
    )
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0)
    assert logit_normal(1).tolist() == [1.0, 0.0]
    share = logit_normal_share(0.4, mean=-1.3, std=1.2)
    later = logit_normal(5, mean=-1.3, std=1.2, start=0.4)
    assert float(later[0]) == 0.4
    inside = torch.distributions.Normal(-1.3, 1.2).cdf(torch.logit(later[1:-1]).float())
    torch.testing.assert_close(inside, share * torch.tensor([0.8, 0.6, 0.4, 0.2]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="std above 0"):
        logit_normal(4, std=0.0)
