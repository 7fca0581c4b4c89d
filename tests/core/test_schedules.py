"""Schedules against central differences, automatic differentiation and their own inverses."""

from __future__ import annotations

import math

import pytest
import torch

from perrin.core import EDM, SCHEDULES, Cosine, LinearVP, Power, RectifiedFlow, Schedule
from perrin.core.schedules import (
    VE,
    Discrete,
    Polynomial,
    ScaledLinear,
    Shifted,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
)
from perrin.core.testing import assert_schedule

ALL = [
    *(cls() for cls in SCHEDULES.values()),
    LinearVP(beta_min=0.01, beta_max=60.0),
    Cosine(offset=0.008),
    EDM(sigma_max=1.0),
    Power(exponent=2.5),
    Power(exponent=0.5),
    Discrete(betas=linear_betas()),
    Discrete(betas=cosine_betas()),
    Polynomial(exponent=3.0, precision=0.0),
    Shifted(schedule=LinearVP(), shift=4.0),
    Shifted(schedule=Cosine(), shift=0.5),
    Shifted(schedule=EDM(), shift=2.0),
    ZeroTerminalSNR(schedule=ScaledLinear()),
    Shifted(schedule=ZeroTerminalSNR(), shift=2.0),
]
LEAVES_SIGNAL = (LinearVP, ScaledLinear, Discrete, Polynomial)
every = pytest.mark.parametrize("schedule", ALL, ids=repr)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@every
def test_is_a_schedule(schedule: Schedule) -> None:
    # between knots: the rate of a continued chain jumps at them
    times = (torch.arange(20, 980, 20, dtype=torch.float64) + 0.5) / 1000
    assert_schedule(schedule, times=times if isinstance(schedule, Discrete) else None)


@every
def test_rates_are_the_derivatives(schedule: Schedule) -> None:
    t = torch.linspace(0.001, 0.999, 101, dtype=torch.float64, requires_grad=True)
    for value, rate in ((schedule.alpha, schedule.alpha_rate), (schedule.sigma, schedule.sigma_rate)):
        (slope,) = torch.autograd.grad((value(t) + 0 * t).sum(), t)
        torch.testing.assert_close(rate(t).detach(), slope, rtol=1e-10, atol=1e-12)


@every
@both
def test_inverse(schedule: Schedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lam", [-30.0, -15.0, -8.0, 0.0, 8.0, 15.0])
@every
def test_inverse_far_out(schedule: Schedule, lam: float) -> None:
    """`α/σ` at `t(λ)` is `e^λ` far beyond where samplers go, wherever the schedule reaches."""
    want = torch.tensor(lam, dtype=torch.float64)
    t = schedule.time(want)
    if isinstance(schedule, Polynomial) and schedule.precision > 0 and abs(lam) > 4:
        return  # both ends keep some of what they should lose
    if isinstance(schedule, ZeroTerminalSNR) and lam < 0:
        return  # the rescaled chain's rates end at t = 1
    reach = isinstance(schedule, LinearVP | EDM) or (lam >= -8 and 0 <= float(t) <= 1)
    if reach:
        torch.testing.assert_close(schedule.lam(t), want, rtol=1e-7, atol=1e-7)


@every
@both
def test_ends(schedule: Schedule, dtype: torch.dtype) -> None:
    zero, one = torch.tensor(0.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    inner = getattr(schedule, "schedule", schedule)
    never_clean = (isinstance(inner, Cosine) and inner.offset > 0) or isinstance(inner, VE)
    if not never_clean and not (isinstance(inner, Polynomial) and inner.precision > 0):
        assert float(schedule.alpha(zero)) == pytest.approx(1.0, abs=1e-7)
        assert float(schedule.sigma(zero)) == 0.0
        assert float(schedule.lam(zero)) == math.inf
        assert float(schedule.time(torch.tensor(math.inf, dtype=dtype))) == pytest.approx(0.0, abs=1e-7)
    if isinstance(inner, EDM | VE):
        shift = getattr(schedule, "shift", 1.0)
        assert float(schedule.sigma(one)) == pytest.approx(shift * inner.sigma_max, rel=1e-6)
    elif isinstance(schedule, LinearVP):
        level = (schedule.beta_min + schedule.beta_max) / 4
        assert float(schedule.alpha(one)) == pytest.approx(math.exp(-level), rel=1e-5)
    elif isinstance(inner, LEAVES_SIGNAL) and not isinstance(schedule, ZeroTerminalSNR):
        assert 0 <= float(schedule.alpha(one)) < 0.1
    else:
        assert float(schedule.alpha(one)) == 0.0  # exactly: the prior keeps nothing of the data
        assert float(schedule.sigma(one)) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(
    "schedule",
    [
        LinearVP(),
        Cosine(),
        Cosine(offset=0.008),
        ScaledLinear(),
        Polynomial(),
        Discrete(),
        Shifted(schedule=LinearVP(), shift=2.0),
        ZeroTerminalSNR(),
    ],
    ids=repr,
)
@both
def test_variance_preserving(schedule: Schedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 201, dtype=dtype)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "schedule", [LinearVP(), Cosine(), EDM(), RectifiedFlow(), Power(exponent=2.5)], ids=repr
)
def test_small_times_keep_their_digits_in_float32(schedule: Schedule) -> None:
    t = torch.tensor([1e-6, 1e-5, 1e-4, 1e-3])
    exact = schedule.sigma(t.double())
    torch.testing.assert_close(schedule.sigma(t).double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearVP(beta_min=0.0),
        lambda: LinearVP(beta_min=2.0, beta_max=1.0),
        lambda: Cosine(offset=-0.1),
        lambda: EDM(sigma_max=0.0),
        lambda: Power(exponent=0.0),
        lambda: ScaledLinear(beta_min=2.0, beta_max=1.0),
        lambda: Polynomial(precision=0.5),
        lambda: VE(sigma_min=0.0),
        lambda: Discrete(betas=(0.1, 1.0)),
        lambda: Shifted(shift=0.0),
        lambda: Shifted(norm="volume"),
        lambda: ZeroTerminalSNR(schedule=RectifiedFlow()),
    ],
)
def test_refuses_bad_settings(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        make()


def test_a_wrong_rate_is_caught() -> None:
    class Wrong(RectifiedFlow):
        def sigma_rate(self, t: torch.Tensor) -> torch.Tensor:
            return 1.01 * torch.ones_like(t)

    with pytest.raises(AssertionError):
        assert_schedule(Wrong())


def test_a_shifted_flow_is_stable_diffusion_3s() -> None:
    t, s = torch.linspace(0, 1, 11, dtype=torch.float64), 3.0
    torch.testing.assert_close(Shifted(shift=s).sigma(t), s * t / (1 + (s - 1) * t), rtol=1e-14, atol=0)
    half = torch.tensor(0.5, dtype=torch.float64)
    shifted = Shifted(schedule=Cosine(), shift=4.0)
    assert float(shifted.lam(half)) == pytest.approx(float(Cosine().lam(half)) - math.log(4.0), abs=1e-12)


def test_a_chain_keeps_its_discrete_values() -> None:
    chain = Discrete(betas=linear_betas())
    alpha_bar = torch.cumprod(1 - torch.tensor(chain.betas, dtype=torch.float64), 0)
    k = torch.arange(1000)
    t = torch.tensor([chain.time_of(int(i)) for i in k], dtype=torch.float64)
    torch.testing.assert_close(chain.alpha(t), alpha_bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(chain.sigma(t), (1 - alpha_bar).sqrt(), rtol=1e-12, atol=0)
    # the closed form is its limit for many steps
    near, far = torch.tensor(0.3, dtype=torch.float64), ScaledLinear()
    assert float(Discrete().alpha(near)) == pytest.approx(float(far.alpha(near)), rel=2e-3)


def test_zero_terminal_snr_is_lin_et_al() -> None:
    inner, t = ScaledLinear(), torch.linspace(0, 1, 9, dtype=torch.float64)
    a = inner.alpha(t)
    want = (a - a[-1]) * a[0] / (a[0] - a[-1])
    torch.testing.assert_close(ZeroTerminalSNR(schedule=inner).alpha(t), want, rtol=1e-14, atol=1e-15)
