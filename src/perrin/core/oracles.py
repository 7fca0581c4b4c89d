"""Exact denoisers of fields on manifolds: mixtures of heat kernels, which noise widens and nothing else.

The heat kernels compose, `K_s * K_σ = K_√(s² + σ²)`, so a mixture `p_0 = Σ_k w_k K_{s_k}(· ; μ_k)` stays one at every time,
and with responsibilities `r_k ∝ w_k K(x_t; μ_k)` the tangent is `σ² ∇ log p_t = σ² Σ_k r_k ∇ log K(x_t; μ_k)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core import igso3, so3
from perrin.core.denoiser import Denoiser
from perrin.core.layout import Layouts
from perrin.core.processes import State
from perrin.core.processes.rotation import igso3_tangent
from perrin.core.processes.torus import wrap, wrapped_log_density, wrapped_tangent
from perrin.core.schedules import Schedule

_F64 = torch.float64


@dataclass(frozen=True, eq=False)
class TorusMixture:
    """A mixture of K wrapped normals on `[0, 1)^D`: `means` and `stds` in turns, `weights` `[K]` of sum 1."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def example(cls, dtype: torch.dtype = _F64) -> TorusMixture:
        """Three components in the plane: one across the seam, one nearly uniform."""
        means = torch.tensor([[0.98, 0.3], [0.45, 0.7], [0.6, 0.02]], dtype=dtype)
        return cls(
            means, torch.tensor([0.04, 0.1, 0.3], dtype=dtype), torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
        )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` draws, `[n, D]`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return wrap(self.means[k] + self.stds[k, None] * z)

    def moment(self, m: Tensor) -> Tensor:
        """`E[e^{2πi m·x}]` for integer vectors `m` `[M, D]`: `Σ_k w_k e^{2πi m·μ_k − 2π² |m|² s_k²}`, `[M]`."""
        m = m.to(self.means.dtype)
        size = self.weights * torch.exp(-2 * (math.pi * self.stds) ** 2 * m.square().sum(-1, keepdim=True))
        return torch.polar(size, 2 * math.pi * m @ self.means.T).sum(-1)

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`log p_t(x)` in nats, `[B]`, at the noise levels `sigma` `[B]`."""
        return torch.logsumexp(self._joint(x, sigma)[0], dim=1)

    def _joint(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        offset = x[:, None] - self.means.to(x.dtype)
        s = torch.sqrt(self.stds.to(x.dtype) ** 2 + sigma[:, None] ** 2)[..., None]
        joint = torch.log(self.weights.to(x.dtype)) + wrapped_log_density(offset, s.expand_as(offset)).sum(-1)
        return joint, offset, s

    def tangent(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`σ² ∇ log p_t(x)`, `[B, D]`."""
        joint, offset, s = self._joint(x, sigma)
        each = wrapped_tangent(offset, s) * (sigma[:, None, None] / s) ** 2
        return (torch.softmax(joint, dim=1)[..., None] * each).sum(1)

    def denoiser(self, schedule: Schedule, *, field: str = "x") -> Denoiser:
        """The exact denoiser of a `Dense` field of shape `[B, D]`."""

        def denoise(
            x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
        ) -> State:
            return {field: self.tangent(x[field], schedule.sigma(t))}

        return denoise


@dataclass(frozen=True, eq=False)
class RotationMixture:
    """A mixture of K IGSO(3) distributions; `means` are unit quaternions `[K, 4]`, `stds` are ε `[K]` in radians."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def example(cls, dtype: torch.dtype = _F64) -> RotationMixture:
        """Three components: the identity, one nearly half a turn from it, and a broad one."""
        v = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.5, 0.0], [-0.5, 1.0, 1.2]], dtype=dtype)
        stds, weights = torch.tensor([0.2, 0.1, 0.7], dtype=dtype), torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
        return cls(so3.exp(v), stds, weights)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` draws, `[n, 4]`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        u = torch.rand(n, generator=generator, dtype=self.means.dtype)
        z = torch.randn(n, 3, generator=generator, dtype=self.means.dtype)
        v = igso3.quantile(u, self.stds[k])[:, None] * z / z.norm(dim=-1, keepdim=True)
        return so3.canonical(so3.multiply(self.means[k], so3.exp(v.to(z.dtype))))

    def mean_matrix(self) -> Tensor:
        """`E[R] = Σ_k w_k e^{−ε_k²} R(μ_k)`, `[3, 3]`."""
        size = self.weights * torch.exp(-(self.stds**2))
        return (size[:, None, None] * so3.to_matrix(self.means)).sum(0)

    def _joint(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = so3.multiply(so3.inverse(self.means).to(x.dtype), x[:, None])
        s = torch.sqrt(self.stds.to(x.dtype) ** 2 + sigma[:, None] ** 2)
        density = igso3.log_density(so3.angle(turned), s).to(x.dtype)
        return torch.log(self.weights.to(x.dtype)) + density, turned, s

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`log p_t(x)` with respect to the uniform distribution, in nats, `[B]`, at the noise levels `sigma` `[B]`."""
        return torch.logsumexp(self._joint(x, sigma)[0], dim=1)

    def tangent(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`σ² ∇ log p_t(x)` in the body's frame, `[B, 3]`."""
        joint, turned, s = self._joint(x, sigma)
        each = igso3_tangent(turned, s) * ((sigma[:, None] / s) ** 2)[..., None]
        return (torch.softmax(joint, dim=1)[..., None] * each).sum(1)

    def denoiser(self, schedule: Schedule, *, field: str = "x") -> Denoiser:
        """The exact denoiser of a `Dense` field of shape `[B, 4]`."""

        def denoise(
            x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
        ) -> State:
            return {field: self.tangent(x[field], schedule.sigma(t))}

        return denoise
