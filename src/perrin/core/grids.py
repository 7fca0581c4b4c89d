"""Grids: the times at which a sampler stops, falling from noise to data.

A grid is a function of the number of intervals that returns `n + 1` strictly falling times in float64. It is data for
`make_plan`; nothing else looks at times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perrin.core.schedules import Schedule


def uniform(n: int, *, start: float = 1.0, stop: float = 0.0) -> Tensor:
    """`n + 1` evenly spaced times from `start` to `stop`."""
    return checked(torch.linspace(start, stop, _intervals(n) + 1, dtype=torch.float64))


def power(n: int, *, exponent: float = 2.0, start: float = 1.0, stop: float = 0.0) -> Tensor:
    """Times `stop + (start − stop) u^exponent` for even u: finer near the data when `exponent > 1`."""
    u = torch.linspace(1, 0, _intervals(n) + 1, dtype=torch.float64)
    return checked(stop + (start - stop) * u**exponent)


def karras(
    n: int, schedule: Schedule, *, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """Karras et al. (2022), eq. 5: `σ_i^{1/ρ}` is linear from `sigma_max` to `sigma_min` in `n − 1` steps, then 0.

    `σ` means `σ_t / α_t` here, so that the grid serves every schedule.
    """
    u = torch.linspace(0, 1, max(_intervals(n), 1), dtype=torch.float64)
    ratio = (sigma_max ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return checked(torch.cat((schedule.time(-torch.log(ratio)), torch.zeros(1, dtype=torch.float64))))


def log_snr(n: int, schedule: Schedule, *, start: float = 0.999, stop: float = 0.001) -> Tensor:
    """`n − 1` steps even in `λ = log(α/σ)` from time `start` to time `stop`, then one to the data."""
    ends = schedule.lam(torch.tensor([start, stop], dtype=torch.float64))
    lam = torch.linspace(float(ends[0]), float(ends[1]), _intervals(n), dtype=torch.float64)
    return checked(torch.cat((schedule.time(lam), torch.zeros(1, dtype=torch.float64))))


def logit_normal(n: int, *, mean: float = -1.4, std: float = 1.6, start: float = 1.0) -> Tensor:
    """`start`, `n − 1` quantiles of a normal `logit t`, even below `start`, and 0: dense about `t = sigmoid(mean)`.

    On a rectified flow `logit t` is `ln(σ/α)`, so that steps lie where times drawn with that normal were trained on.
    """
    if not std > 0:
        raise ValueError(f"expected std above 0, given {std}")
    u = torch.arange(_intervals(n) - 1, 0, -1, dtype=torch.float64) / n
    inner = torch.sigmoid(mean + std * torch.special.ndtri(u * logit_normal_share(start, mean=mean, std=std)))
    return checked(torch.cat((inner.new_full((1,), start), inner, inner.new_zeros(1))))


def logit_normal_share(t: float, *, mean: float = -1.4, std: float = 1.6) -> float:
    """The share of the steps of `logit_normal` that lie below time `t`."""
    return float(torch.special.ndtr((torch.tensor(t, dtype=torch.float64).logit() - mean) / std))


def checked(times: Tensor) -> Tensor:
    """The same times, or a `ValueError` unless they are finite, non-negative and fall strictly."""
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"expected at least two times in one dimension, given shape {tuple(times.shape)}")
    if not bool(torch.isfinite(times).all()) or float(times[-1]) < 0:
        raise ValueError(
            "expected finite, non-negative times: check the ends of the grid against the schedule"
        )
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(f"expected strictly falling times, given {times.tolist()[:8]}…")
    return times


def _intervals(n: int) -> int:
    if n < 1:
        raise ValueError(f"expected at least one step, given {n}")
    return n
