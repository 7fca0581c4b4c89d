"""Lorenz's model of 1996, the test bed of assimilation: n sites on a circle,

    dx_i/dt = (x_{i+1} − x_{i−2}) x_{i−1} − x_i + F,

chaotic for F = 8 and n = 40, with a climatological standard deviation of 3.64. A step is one of Runge and Kutta, 0.05 long
as in Sakov & Oke 2008.
"""

from __future__ import annotations

import torch
from torch import Tensor

MEAN, STD = 2.34, 3.64
"""Of the attractor, n = 40, F = 8."""


def tendency(x: Tensor, forcing: float = 8.0) -> Tensor:
    """dx/dt, `[..., n]`."""
    return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + forcing


def advance(x: Tensor, dt: float = 0.05) -> Tensor:
    """One step of the classical Runge–Kutta method."""
    a = tendency(x)
    b = tendency(x + dt / 2 * a)
    c = tendency(x + dt / 2 * b)
    d = tendency(x + dt * c)
    return x + dt / 6 * (a + 2 * b + 2 * c + d)


def trajectories(
    count: int, steps: int, *, sites: int = 40, spinup: int = 400, seed: int = 0, dt: float = 0.05
) -> Tensor:
    """Runs on the attractor, `[count, steps, sites]`, float32, of different initial states."""
    generator = torch.Generator().manual_seed(seed)
    x = 8 + torch.randn(count, sites, generator=generator, dtype=torch.float64)
    for _ in range(spinup):
        x = advance(x, dt)
    out = []
    for _ in range(steps):
        out.append(x.float())
        x = advance(x, dt)
    return torch.stack(out, 1)
