"""Schedules: `x_t = α_t x_0 + σ_t z` for `t ∈ [0, 1]`, 0 is data and 1 is noise.

A schedule gives `α_t` and `σ_t`, their rates `α′_t` and `σ′_t` in closed form, `λ_t = log(α_t / σ_t)` and its inverse
`t(λ)`. Plans are made in float64 on the CPU, so the methods take and return tensors of any floating dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """`α_t` falls, `σ_t / α_t` rises strictly from t = 0 to t = 1."""

    limit: float = 1.0
    """The largest time that may be asked for. Churn may go past 1 where this is infinite."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient `α_t`, same shape as `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient `σ_t`, same shape as `t`."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """`dα/dt`."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """`dσ/dt`."""

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """The inverse: the time at which `log(α/σ)` is `lam`."""

    def lam(self, t: Tensor) -> Tensor:
        """Half the logarithm of the signal-to-noise ratio, `λ_t = log(α_t / σ_t)`; ±inf at a clean end."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))


@dataclass(frozen=True, kw_only=True)
class LinearVP(Schedule):
    """Variance preserving with `β(t) = β_min + t (β_max − β_min)` (Song et al. 2021, eq. 33).

    `log α_t = −t² (β_max − β_min) / 4 − t β_min / 2` and `σ_t² = 1 − α_t²`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"expected 0 < beta_min < beta_max, given {self.beta_min} and {self.beta_max}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        # −2 log α = log(1 + e^{−2λ}) = L solves  t² Δβ / 2 + t β_min = L
        level = torch.logaddexp(torch.zeros_like(lam), -2 * lam)  # softplus is rounded above 20
        delta = self.beta_max - self.beta_min
        return 2 * level / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * delta * level))


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Variance preserving with `α_t = cos θ_t`, `σ_t = sin θ_t`, `θ_t = (π/2) (t + s) / (1 + s)` (Nichol and Dhariwal 2021).

    With the default offset `s = 0`, t = 0 is exactly the data.
    """

    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ValueError(f"expected offset ≥ 0, given {self.offset}")

    def _theta(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        # sin of the complement is exactly zero at t = 1, where cos(π/2) is 6e-17
        return torch.sin(0.5 * math.pi * (1 - t) / (1 + self.offset))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._theta(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self._rate * torch.sin(self._theta(t))

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._rate * self.alpha(t)

    def time(self, lam: Tensor) -> Tensor:
        theta = torch.atan(torch.exp(-lam))
        return theta * (1 + self.offset) * 2 / math.pi - self.offset


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    """Variance exploding with `α = 1`, `σ_t = t σ_max` (Karras et al. 2022). Spacing is the grid's business (`karras`)."""

    sigma_max: float = 80.0
    limit = math.inf

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise ValueError(f"expected sigma_max > 0, given {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam) / self.sigma_max


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
    """The straight line `α_t = 1 − t`, `σ_t = t` (Liu et al. 2023; Lipman et al. 2023)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, kw_only=True)
class Power(Schedule):
    """`α_t = (1 − t)^p` and `σ_t = 1 − (1 − t)^p`: how long a category is kept. `p > 1` is noised earlier than `p = 1`."""

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(f"expected exponent > 0, given {self.exponent}")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.exponent

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.exponent * torch.log1p(-t))  # 1 − α without cancellation near the data

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self.exponent * (1 - t) ** (self.exponent - 1)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -self.alpha_rate(t)

    def time(self, lam: Tensor) -> Tensor:
        return -torch.expm1(torch.nn.functional.logsigmoid(lam) / self.exponent)


SCHEDULES: dict[str, type[Schedule]] = {
    "linear_vp": LinearVP,
    "cosine": Cosine,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
    "power": Power,
}
"""Schedules by the name that configuration files use."""
