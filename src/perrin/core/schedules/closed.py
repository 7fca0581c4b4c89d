"""Schedules in closed form: variance preserving, variance exploding, and the straight line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core.schedules.base import Schedule


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


@dataclass(frozen=True, kw_only=True)
class ScaledLinear(Schedule):
    """Variance preserving with `√β(t)` linear: `β(t) = (a + b t)²`, `a = √β_min`, `b = √β_max − √β_min`.

    `−2 log α_t = ((a + b t)³ − a³) / 3b`. This is the continuous limit of latent diffusion's schedule (Rombach et al. 2022):
    its 1000 discrete betas from 0.00085 to 0.012 are `β(t) / 1000`. `Discrete` reproduces the discrete values exactly.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"expected 0 < beta_min < beta_max, given {self.beta_min} and {self.beta_max}")

    @property
    def _line(self) -> tuple[float, float]:
        a = math.sqrt(self.beta_min)
        return a, math.sqrt(self.beta_max) - a

    def _level(self, t: Tensor) -> Tensor:
        """`−2 log α_t = t (a² + a b t + b² t² / 3)`, without the cancellation of two cubes."""
        a, b = self._line
        return t * (a * a + t * (a * b + t * (b * b / 3)))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._level(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._level(t)))

    def alpha_rate(self, t: Tensor) -> Tensor:
        a, b = self._line
        return -0.5 * (a + b * t) ** 2 * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        a, b = self._line
        return 0.5 * (a + b * t) ** 2 * self.alpha(t) ** 2 / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        a, b = self._line
        # (a + b t)³ = a³ + q and u − a = q / (u² + u a + a²): nothing cancels where q is small
        q = 3 * b * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        u = (a**3 + q) ** (1 / 3)
        return torch.where(torch.isinf(u), u, q / (b * (u * u + a * u + a * a)))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """Variance preserving with `α_t² = (1 − 2s)(1 − t^p)² + s`, `σ_t² = 1 − α_t²` (Hoogeboom et al. 2022, eq. 10).

    Arguments:
        exponent: `p`.
        precision: `s`, keeps both ends away from 0; with `s = 0` the ends are exact.
    """

    exponent: float = 2.0
    precision: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.exponent > 0 and 0 <= self.precision < 0.5):
            raise ValueError(
                f"expected exponent > 0 and 0 ≤ precision < 0.5, given {self.exponent} and {self.precision}"
            )

    @property
    def _scale(self) -> float:
        return 1 - 2 * self.precision

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._scale * (1 - t**self.exponent) ** 2 + self.precision)

    def sigma(self, t: Tensor) -> Tensor:
        u = t**self.exponent
        return torch.sqrt(self.precision + self._scale * u * (2 - u))

    def _half_rate(self, t: Tensor) -> Tensor:
        """Half of `−dα²/dt`, which is half of `dσ²/dt`."""
        return self._scale * (1 - t**self.exponent) * self.exponent * t ** (self.exponent - 1)

    def alpha_rate(self, t: Tensor) -> Tensor:
        if self.precision == 0:
            return -self.exponent * t ** (self.exponent - 1)
        return -self._half_rate(t) / self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._half_rate(t) / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        q = torch.sqrt(((torch.sigmoid(2 * lam) - self.precision) / self._scale).clamp(min=0))
        u = (torch.sigmoid(-2 * lam) - self.precision) / self._scale / (1 + q)  # 1 − q without cancellation
        return u.clamp(min=0) ** (1 / self.exponent)


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
    """Variance exploding on a geometric line: `α = 1`, `σ_t = σ_min (σ_max / σ_min)^t` (Song et al. 2021, eq. 30).

    At t = 0 the noise `sigma_min` is left; a plan that must end at clean data ends with a denoising row instead.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    limit = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, given {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._log_ratio * self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._log_ratio
