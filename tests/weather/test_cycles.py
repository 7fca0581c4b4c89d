"""Cycles of pieces: the analysis is the Kalman filter's, the forecast that of the law which the prior has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perrin.core import Composite, Gaussian
from perrin.modalities.weather.cycles import PieceFilter
from perrin.modalities.weather.windows import FIELD, Sight

LENGTH, SITES, ANGLE = 6, 5, 0.3


class Oscillations(nn.Module):
    """The exact denoiser of sites that are cos and sin of the time with normal amplitudes: covariance cos(θ (i − j))."""

    def __init__(self, process: Composite) -> None:
        super().__init__()
        i = torch.arange(LENGTH, dtype=torch.float64)
        self.C = torch.cos(ANGLE * (i[:, None] - i)).float()
        self.schedule = process.fields[FIELD].schedule

    def forward(self, x: dict[str, Tensor], t: Tensor, **_: Any) -> dict[str, Tensor]:
        alpha, sigma = (f(t)[:, None, None].double() for f in (self.schedule.alpha, self.schedule.sigma))
        C = self.C.double()
        gain = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(LENGTH, dtype=C.dtype))
        return {FIELD: (gain @ x[FIELD].double()).float()}


def make(taper: Tensor, **more: Any) -> PieceFilter:
    process = Composite(fields={FIELD: Gaussian(features=(LENGTH, SITES))})
    return PieceFilter(denoiser=Oscillations(process), process=process, taper=taper, **more)


def test_the_analysis_is_the_kalman_filter_of_the_ensemble() -> None:
    """Mean and covariance of all states of the pieces, to rounding, whatever the number of members."""
    g = torch.Generator().manual_seed(0)
    pieces = torch.randn(2, 9, LENGTH, SITES, generator=g, dtype=torch.float64)
    H = torch.randn(3, SITES, generator=g, dtype=torch.float64)
    y, error, shift, scale = torch.randn(2, 3, generator=g, dtype=torch.float64), 0.7, 1.5, 2.0
    model = make(torch.ones(SITES, 3), shift=shift, scale=scale)
    found = model.analyse(pieces, y, Sight(h=lambda x: x @ H.T, error=error))
    for before, after, seen in zip(pieces, found, y):
        x, z = before.flatten(1), after.flatten(1)
        P = torch.cov(x.T)
        G = torch.zeros(3, LENGTH * SITES, dtype=torch.float64)
        G[:, -SITES:] = scale * H
        K = P @ G.T @ torch.linalg.inv(G @ P @ G.T + error**2 * torch.eye(3, dtype=torch.float64))
        mean = x.mean(0) + K @ (seen - G @ x.mean(0) - shift * H.sum(1))
        assert torch.allclose(z.mean(0), mean, atol=1e-9)
        assert torch.allclose(torch.cov(z.T), P - K @ G @ P, atol=1e-9)


def test_what_is_far_does_not_count() -> None:
    """Where the taper is zero a piece stays as it is."""
    taper = torch.eye(SITES)
    taper[2] = 0
    g = torch.Generator().manual_seed(1)
    pieces = torch.randn(1, 7, LENGTH, SITES, generator=g)
    found = make(taper).analyse(pieces, torch.zeros(1, SITES), Sight(h=lambda x: x))
    assert torch.allclose(found[..., 2], pieces[..., 2], atol=1e-6)
    assert not torch.allclose(found[..., 1], pieces[..., 1], atol=1e-2)


def test_the_forecast_goes_on_as_the_prior_does() -> None:
    """Oscillations are determined by the states before; the other states are kept, moved by one."""
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 4, 1, SITES, generator=g)
    times = torch.arange(LENGTH + 1)[:, None] * ANGLE
    whole = a * times.cos() + b * times.sin()
    found = make(torch.ones(SITES, SITES)).forecast(whole[:, :, :-1], seed=0)
    assert torch.equal(found[:, :, :-1], whole[:, :, 1:-1])
    assert float((found - whole[:, :, 1:]).abs().max()) < 0.06


def test_neither_pieces_nor_a_restart() -> None:
    with pytest.raises(ValueError, match="restart"):
        make(torch.ones(SITES, SITES)).run([None], Sight(h=lambda x: x))
