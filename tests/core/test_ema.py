"""Power-function averages: widths, and reconstruction against the average that was tracked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from perrin.core.ema import (
    PowerAverage,
    Snapshot,
    coefficients,
    decay,
    exponent,
    inner,
    load,
    reconstruct,
    relative_width,
    track,
)

F64 = torch.float64


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(width: float, gamma: float) -> None:
    assert exponent(width) == pytest.approx(gamma, abs=0.01)
    assert relative_width(exponent(width)) == pytest.approx(width, rel=1e-12)
    t = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    p = (exponent(width) + 1) * t ** exponent(width)
    mean = (p * t).mean()
    assert float(((p * (t - mean) ** 2).mean()).sqrt()) == pytest.approx(width, rel=1e-6)


def test_limits() -> None:
    assert exponent(1 / math.sqrt(12)) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="relative width"):
        exponent(0.3)
    with pytest.raises(ValueError, match="step"):
        decay(0, 1.0)
    thetas = torch.randn(50, 3, dtype=F64)
    torch.testing.assert_close(track(thetas, 1 / math.sqrt(12)), thetas.mean(0), rtol=1e-6, atol=1e-9)


def test_inner_products_by_quadrature() -> None:
    tau = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000 * 50
    for ti, gi, tj, gj in ((50.0, 3.0, 50.0, 7.0), (50.0, 3.0, 30.0, 7.0), (20.0, 0.5, 50.0, 16.97)):
        p = [torch.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0.0) for t, g in ((ti, gi), (tj, gj))]
        want = float((p[0] * p[1]).mean() * 50)
        got = inner(*(torch.tensor(v, dtype=F64) for v in (ti, gi, tj, gj)))
        assert float(got) == pytest.approx(want, rel=1e-4)
    large = inner(*(torch.tensor(v, dtype=F64) for v in (1e8, 500.0, 1e8, 500.0)))
    assert bool(torch.isfinite(large))


@pytest.mark.parametrize("width", [0.05, 0.07, 0.10, 0.15, 0.20])
def test_reconstruction_against_the_tracked_average(width: float) -> None:
    """A noisy, drifting path of weights over 2048 steps, with 16 snapshots of two averages."""
    generator = torch.Generator().manual_seed(0)
    steps = 2048
    drift = torch.linspace(0, 1, steps, dtype=F64)[:, None]
    path = 0.02 * torch.randn(steps, 8, generator=generator, dtype=F64).cumsum(0) + torch.sin(3 * drift)
    path = path + 0.3 * torch.randn(steps, 8, generator=generator, dtype=F64)
    average, kept = PowerAverage({"w": path[0]}), []
    for step in range(1, steps + 1):
        average.update({"w": path[step - 1]}, step)
        if step % 128 == 0:
            kept += average.snapshots(step)
    want = track(path, width)
    got = reconstruct(kept, width=width)["w"]
    x, gap = coefficients([s.step for s in kept], [s.width for s in kept], step=steps, width=width)
    assert gap < 0.05
    assert float(x.sum()) == pytest.approx(1.0, abs=0.01)
    spread = float((path[-1] - want).norm())
    assert float((got - want).norm()) < 0.02 * spread
    if width in (0.05, 0.10):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_model_weights_go_in_and_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
    average = PowerAverage(dict(model.named_parameters()))
    for step in (1, 2, 3):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(float(step))
        average.update(dict(model.named_parameters()), step)
    snapshots = average.snapshots(3)
    assert isinstance(snapshots[0], Snapshot)
    assert snapshots[0].weights["0.weight"].dtype == torch.float32
    load(model, reconstruct(snapshots, width=0.05))
    want = float(track(torch.tensor([1.0, 2.0, 3.0]), 0.05))
    for p in model.parameters():
        torch.testing.assert_close(p, torch.full_like(p, want), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="snapshot"):
        reconstruct([], width=0.05)
