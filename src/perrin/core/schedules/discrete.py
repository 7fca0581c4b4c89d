"""Discrete training schedules, continued: N betas of a chain, as diffusers has them, on the continuous clock.

A chain with `ᾱ_k = Π_{i ≤ k} (1 − β_i)`, k = 0 … N − 1, is the process whose rate `β(t)` is constant on each of N intervals:
`−log ᾱ(t)` is linear between the knots `t_k = (k + 1) / N`, and `ᾱ(0) = 1`. So `t = (k + 1) / N` is diffusers' timestep k,
exactly, and rates and inverse are closed forms on every interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from perrin.core.schedules.base import Schedule


@lru_cache(maxsize=64)
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def scaled_linear_betas(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> tuple[float, ...]:
    """Latent diffusion's betas: `√β_k` is linear in k (Rombach et al. 2022)."""
    a, b = math.sqrt(start), math.sqrt(end)
    return tuple((a + (b - a) * k / (steps - 1)) ** 2 for k in range(steps))


def linear_betas(start: float = 1e-4, end: float = 0.02, steps: int = 1000) -> tuple[float, ...]:
    """DDPM's betas: `β_k` is linear in k (Ho et al. 2020)."""
    return tuple(start + (end - start) * k / (steps - 1) for k in range(steps))


def cosine_betas(steps: int = 1000, largest: float = 0.999) -> tuple[float, ...]:
    """`β_k = min(1 − f(k+1)/f(k), 0.999)`, `f(k) = cos²((k/N + 0.008)/1.008 · π/2)` (Nichol and Dhariwal 2021)."""

    def f(k: int) -> float:
        return math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return tuple(min(1 - f(k + 1) / f(k), largest) for k in range(steps))


@dataclass(frozen=True, kw_only=True)
class Discrete(Schedule):
    """The continued chain of `betas`.

    Arguments:
        betas: of the chain, each in (0, 1); `scaled_linear_betas()`, `linear_betas()` and `cosine_betas()` make some.
    """

    betas: tuple[float, ...] = field(default_factory=scaled_linear_betas, repr=False)
    levels: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """`−log ᾱ` at the knots, from 0."""

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < b < 1 for b in self.betas):
            raise ValueError(f"expected betas between 0 and 1, given {self.betas[:4]}…")
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "levels", (0.0, *accumulate(-math.log1p(-b) for b in self.betas)))

    def time_of(self, timestep: int | float) -> float:
        """The time of diffusers' `timestep` k: `(k + 1) / N`."""
        return (timestep + 1) / len(self.betas)

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`−log ᾱ(t)` and `β(t)`; the first and last interval go on beyond their ends."""
        n = len(self.betas)
        levels = _table(self.levels, torch.float64, t.device)
        u = t.to(torch.float64) * n
        k = u.floor().clamp(0, n - 1).to(torch.int64)
        slope = levels[k + 1] - levels[k]
        return levels[k] + (u - k) * slope, slope * n

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._segment(t)[0]).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._segment(t)[0])).to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        level, beta = self._segment(t)
        return (-0.5 * beta * torch.exp(-0.5 * level)).to(t.dtype)

    def sigma_rate(self, t: Tensor) -> Tensor:
        level, beta = self._segment(t)
        return (0.5 * beta * torch.exp(-level) / torch.sqrt(-torch.expm1(-level))).to(t.dtype)

    def time(self, lam: Tensor) -> Tensor:
        n = len(self.betas)
        levels = _table(self.levels, torch.float64, lam.device)
        level = torch.logaddexp(torch.zeros_like(lam), -2 * lam).to(torch.float64)
        k = (torch.searchsorted(levels, level, right=True) - 1).clamp(0, n - 1)
        return ((k + (level - levels[k]) / (levels[k + 1] - levels[k])) / n).to(lam.dtype)
