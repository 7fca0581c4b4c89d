"""Exact denoisers: data whose distribution is known, so that every number a sampler makes has a right answer.

- `GaussianMixture`: `p(x_0) = Σ_k w_k N(μ_k, s_k²)`. With `v_k = α² s_k² + σ²` and responsibilities
  `r_k ∝ w_k N(x_t; α μ_k, v_k)`, the posterior mean is `E[x_0 | x_t] = Σ_k r_k (μ_k + α s_k² / v_k (x_t − α μ_k))`.
- `CategoricalTable`: any joint distribution over a few positions; the posterior by enumeration.
- `TorusMixture`, `RotationMixture`: mixtures of heat kernels, which noise widens and nothing else.

The heat kernels compose, `K_s * K_σ = K_√(s² + σ²)`, so a mixture `p_0 = Σ_k w_k K_{s_k}(· ; μ_k)` stays one at every time,
and with responsibilities `r_k ∝ w_k K(x_t; μ_k)` the tangent is `σ² ∇ log p_t = σ² Σ_k r_k ∇ log K(x_t; μ_k)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from perrin.core import igso3, so3
from perrin.core.denoiser import Denoiser
from perrin.core.layout import Layouts
from perrin.core.processes import Categorical, State
from perrin.core.processes.rotation import igso3_tangent
from perrin.core.processes.torus import wrap, wrapped_log_density, wrapped_tangent
from perrin.core.schedules import Schedule

_F64 = torch.float64


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions, each with a standard deviation of its own.

    Arguments:
        means: `μ`, `[K, D]`.
        stds: `s`, `[K]`.
        weights: `w`, `[K]`, positive; normalised here.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def example(cls, dtype: torch.dtype = _F64) -> GaussianMixture:
        """Three components in the plane, unequal and overlapping: the standard problem of Perrin's tests."""
        means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=dtype)
        stds, weights = torch.tensor([0.5, 0.4, 0.6], dtype=dtype), torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
        return cls(means, stds, weights)

    @classmethod
    def gaussian(
        cls, std: float, dim: int = 1, mean: float = 0.0, dtype: torch.dtype = _F64
    ) -> GaussianMixture:
        """One component: `N(mean, std²)` in every dimension."""
        means, one = torch.full((1, dim), mean, dtype=dtype), torch.ones(1, dtype=dtype)
        return cls(means, std * one, one)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` draws, `[n, D]`."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k, None] * z

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets `x − α μ_k` `[B, K, D]`, variances `v_k` `[B, K]` and log joint densities `[B, K]`."""
        alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        offset = x[:, None] - alpha[..., None] * self.means
        v = (alpha * self.stds) ** 2 + sigma**2
        log_w = torch.log(self.weights / self.weights.sum())
        d = self.means.shape[1]
        return offset, v, log_w - 0.5 * (offset.square().sum(-1) / v + d * torch.log(2 * math.pi * v))

    def log_density(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """`log p(x_t)` in nats, `[B]`, for `x` `[B, D]`; of the data themselves with the defaults."""
        a, s = (torch.as_tensor(v, dtype=x.dtype) for v in (alpha, sigma))
        return torch.logsumexp(self._components(x, a, s)[2], dim=1)

    def posterior_mean(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """`E[x_0 | x_t]`, `[B, D]`; `alpha` and `sigma` are numbers or `[B]`."""
        a, s = (torch.as_tensor(v, dtype=x.dtype) for v in (alpha, sigma))
        offset, v, log_joint = self._components(x, a, s)
        means = self.means + (a.reshape(-1, 1) * self.stds**2 / v)[..., None] * offset
        return (torch.softmax(log_joint, dim=1)[..., None] * means).sum(dim=1)

    def denoiser(self, schedule: Schedule, *, field: str = "x") -> Denoiser:
        """The exact denoiser of a `Dense` field of shape `[B, D]`."""

        def denoise(
            x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
        ) -> State:
            return {field: self.posterior_mean(x[field], schedule.alpha(t), schedule.sigma(t))}

        return denoise

    def flow(self, x: Tensor, schedule: Schedule, start: float, stop: float, *, steps: int = 400) -> Tensor:
        """The probability-flow ODE from time `start` to `stop > 0`: a reference that shares nothing with the solvers.

        In `y = x/α` and `ℓ = log(σ/α)` it is `dy/dℓ = y − E[x_0]`, solved by the classical Runge–Kutta method of order 4.
        """
        ends = torch.tensor([start, stop], dtype=_F64)
        l, (a0, a1) = (-schedule.lam(ends)).tolist(), schedule.alpha(ends).tolist()
        h = (l[1] - l[0]) / steps

        def f(y: Tensor, at: float) -> Tensor:
            return y - self.posterior_mean(y, 1.0, math.exp(at))

        y = x / a0
        for i in range(steps):
            at = l[0] + i * h
            k1 = f(y, at)
            k2 = f(y + h / 2 * k1, at + h / 2)
            k3 = f(y + h / 2 * k2, at + h / 2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3, at + h))
        return y * a1


@dataclass(frozen=True, eq=False)
class CategoricalTable:
    """A joint distribution over n positions of K categories, small enough to enumerate.

    Arguments:
        table: probabilities, `[K, …, K]` with n axes.
    """

    table: Tensor

    @property
    def states(self) -> Tensor:
        """Every state, `[K^n, n]`, in the order of `table.flatten()`."""
        return torch.tensor(list(product(range(self.table.shape[0]), repeat=self.table.ndim)))

    def posterior(self, x_t: Tensor, process: Categorical, t: Tensor) -> Tensor:
        """Exact marginals `p(x_0[i] | x_t)`, `[B, n, K]`, for `x_t` `[B, n]` and `t` `[B]`."""
        states, k = self.states, self.table.shape[0]
        alpha = process.schedule.alpha(t.to(_F64)).reshape(-1, 1, 1)
        prior = torch.tensor(process.prior_probabilities, dtype=_F64)
        likelihood = alpha * (states[None] == x_t[:, None]) + (1 - alpha) * prior[x_t][:, None]  # [B, S, n]
        joint = self.table.flatten().to(_F64) * likelihood.prod(dim=-1)
        marginals = torch.einsum("bs,snk->bnk", joint, torch.nn.functional.one_hot(states, k).to(_F64))
        return marginals / marginals.sum(dim=-1, keepdim=True)

    def denoiser(self, process: Categorical, *, field: str = "x") -> Denoiser:
        """The exact per-position denoiser of a `Dense` field of shape `[B, n]`: what a perfect network would give."""

        def denoise(
            x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
        ) -> State:
            return {field: torch.log(self.posterior(x[field], process, t))}

        return denoise


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
