"""Schedules made from others: shifted by resolution, and rescaled to end without signal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perrin.core.schedules.base import Schedule
from perrin.core.schedules.closed import LinearVP, RectifiedFlow

NORMS = ("variance", "sum", "signal")


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """`σ/α` multiplied by `shift` at every time: more noise for larger fields, whose neighbours tell more of each other.

    `α̃ = α / n`, `σ̃ = s σ / n`, so that `λ̃_t = λ_t − log s`. The factor n keeps what the schedule kept:

    - `variance` (VP): `α² + σ²`, as in simple diffusion (Hoogeboom et al. 2023), with s the ratio of side lengths;
    - `sum` (flows): `α + σ`, which for `RectifiedFlow` is `σ̃ = s t / (1 + (s − 1) t)` (Esser et al. 2024);
    - `signal` (VE): `α`.

    Arguments:
        schedule: the schedule at the smaller resolution.
        shift: `s`, above 1 for larger fields.
        norm: what to keep; by default the one of the three that the schedule keeps.
    """

    schedule: Schedule = field(default_factory=RectifiedFlow)
    shift: float = 3.0
    norm: str | None = None

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"expected shift > 0, given {self.shift}")
        if self.norm not in (None, *NORMS):
            raise ValueError(f"expected norm in {NORMS}, given {self.norm!r}")

    @property
    def limit(self) -> float:  # type: ignore[override]
        return self.schedule.limit

    @property
    def _kept(self) -> str:
        if self.norm is not None:
            return self.norm
        u = torch.tensor([0.25, 0.75], dtype=torch.float64)
        a, s = self.schedule.alpha(u), self.schedule.sigma(u)
        kept = {"signal": a, "sum": a + s, "variance": a * a + s * s}
        return next((k for k, v in kept.items() if abs(float(v[0] - v[1])) < 1e-9), "variance")

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inner, s = self.schedule, self.shift
        return inner.alpha(t), s * inner.sigma(t), inner.alpha_rate(t), s * inner.sigma_rate(t)

    def _factor(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`1/n` and its rate."""
        a, s, da, ds = self._parts(t)
        kept, s0, ds0 = self._kept, s / self.shift, ds / self.shift
        if kept == "signal":
            return torch.ones_like(a), torch.zeros_like(a)
        if kept == "sum":
            total, before = a + s, a + s0
            return before / total, (da + ds0) / total - before * (da + ds) / total**2
        total, before = a * a + s * s, a * a + s0 * s0
        f = torch.sqrt(before / total)
        # 2 f f′ = (before′ total − before total′) / total²; at σ = 0, where σ′ may be infinite, it is a limit
        slope = (a * da + s0 * ds0) / total - before * (a * da + s * ds) / total**2
        return f, slope / f

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t) * self._factor(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * self.schedule.sigma(t) * self._factor(t)[0]

    def alpha_rate(self, t: Tensor) -> Tensor:
        a, _, da, _ = self._parts(t)
        f, df = self._factor(t)
        return da * f + a * df

    def sigma_rate(self, t: Tensor) -> Tensor:
        _, s, _, ds = self._parts(t)
        f, df = self._factor(t)
        return ds * f + s * df

    def time(self, lam: Tensor) -> Tensor:
        return self.schedule.time(lam + math.log(self.shift))


@dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(Schedule):
    """A variance-preserving schedule rescaled to end without signal (Lin et al. 2024, algorithm 1).

    `α̃_t = k (α_t − α_1)` with `k = α_0 / (α_0 − α_1)`, `σ̃_t² = 1 − α̃_t²`. Predict v or the clean data: at t = 1 the noise
    says nothing of the data.
    """

    schedule: Schedule = field(default_factory=LinearVP)

    def __post_init__(self) -> None:
        ends = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        total = self.schedule.alpha(ends) ** 2 + self.schedule.sigma(ends) ** 2
        if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-9):
            raise ValueError(f"expected a schedule that preserves variance, given {self.schedule}")

    @property
    def _ends(self) -> tuple[float, float]:
        a = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return a[0], a[1]

    @property
    def _k(self) -> float:
        a0, a1 = self._ends
        return a0 / (a0 - a1)

    def alpha(self, t: Tensor) -> Tensor:
        last = self.schedule.alpha(torch.ones((), dtype=t.dtype, device=t.device))
        return self._k * (self.schedule.alpha(t) - last)  # the same rounding, so that t = 1 gives zero

    def _missing(self, t: Tensor) -> Tensor:
        """`1 − α̃`, from `1 − α = σ² / (1 + α)` without cancellation."""
        a0, a1 = self._ends
        short = self.schedule.sigma(t) ** 2 / (1 + self.schedule.alpha(t))
        return (a0 * short - a1 * (1 - a0)) / (a0 - a1)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._missing(t) * (1 + self.alpha(t)))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return self._k * self.schedule.alpha_rate(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        a0, a1 = self._ends
        alpha = torch.sqrt(torch.sigmoid(2 * lam))
        missing = torch.sigmoid(-2 * lam) / (1 + alpha)  # 1 − α̃
        short = (missing * (a0 - a1) + a1 * (1 - a0)) / a0  # 1 − α
        return self.schedule.time(torch.log1p(-short) - 0.5 * torch.log(short * (2 - short)))
