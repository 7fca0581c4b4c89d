"""Making trajectories with the spectral solver."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import torch

from perrin.errors import PerrinError
from perrin.modalities.particle.flow.files import Trajectories
from perrin.modalities.particle.flow.solver import Flow, resample

SPIN_UP = 20.0
"""Time before the first state that is kept: several turnovers of the largest eddies."""
CHUNK = 8
"""Trajectories that are run together; the random start of chunk k depends on the seed and k."""


def make_chunk(
    flow: Flow, seed: int, chunk: int, *, times: int, interval: float, grid: int, count: int = CHUNK
) -> np.ndarray:
    """Trajectories `[count, times, grid, grid]`, float32.

    Arguments:
        times, interval: states that are kept, after `SPIN_UP`, and the time between them.
        grid: what they are reduced to, by cutting the spectrum.

    Raises:
        PerrinError: an interval that is no whole number of steps, or a grid larger than the solver's.
    """
    check(flow, times=times, interval=interval, grid=grid)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + chunk)
    w = flow.run(flow.random(CHUNK, generator)[:count], SPIN_UP)
    out = [w]
    for _ in range(times - 1):
        out.append(flow.run(out[-1], interval))
    return np.asarray(torch.stack([resample(x, grid) for x in out], 1).float().numpy())


def check(flow: Flow, *, times: int, interval: float, grid: int) -> None:
    """Raise a `PerrinError` for what `make_chunk` cannot do."""
    steps = interval / flow.dt
    if times < 1 or not 0.5 <= steps < math.inf or abs(steps - round(steps)) > 1e-6:
        raise PerrinError(
            f"expected at least 1 time and an interval of whole steps of {flow.dt:g}, given {times} and {interval:g}"
        )
    if not 8 <= grid <= flow.size or grid % 2:
        raise PerrinError(f"expected an even grid from 8 to the solver's {flow.size}, given {grid}")


def trajectories(flow: Flow, parts: list[np.ndarray], interval: float) -> Trajectories:
    """Chunks as one set, with the flow's parameters."""
    words = dict(asdict(flow).items()) | {"title": "Kolmogorov flow by a spectral solver, in float64"}
    return Trajectories(np.concatenate(parts), interval, words)
