"""Losses, training times and grids."""

from __future__ import annotations

import math

import pytest
import torch

from perrin.core import EDM, Cosine, Dense, LinearVP, Padded, Pairs, Ragged, RectifiedFlow, Schedule
from perrin.core.grids import karras, log_snr, power, uniform
from perrin.core.losses import categorical_error, min_snr, sample_times, squared_error, stratified
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
    [("uniform", 0.5, 0.5), ("low_noise", 1 / 3, 1 - 0.5**0.5), ("logit_normal", 0.5, 0.5)],
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
