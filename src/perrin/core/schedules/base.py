"""What a schedule is: `x_t = α_t x_0 + σ_t z` for `t ∈ [0, 1]`, 0 is data and 1 is noise.

A schedule gives `α_t` and `σ_t`, their rates `α′_t` and `σ′_t` in closed form, `λ_t = log(α_t / σ_t)` and its inverse
`t(λ)`. Plans are made in float64 on the CPU, so the methods take and return tensors of any floating dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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
