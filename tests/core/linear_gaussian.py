"""The linear-Gaussian problem, where posterior and evidence are known: `x_0 ~ N(μ, P)`, `y = A x_0 + s n`.

With `K = P Aᵀ (A P Aᵀ + s²)⁻¹` the posterior is `N(μ + K (y − A μ), P − K A P)` and `p(y) = N(y; A μ, A P Aᵀ + s²)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.core import Denoiser, Schedule, State

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """`mean` `[n]`, `covariance` `[n, n]`, `matrix` `[m, n]`, `y` `[m]`."""

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    y: Tensor
    std: float

    @classmethod
    def example(cls) -> LinearGaussian:
        """Four correlated numbers of standard deviations 0.3 to 1.5, of which two mixtures are seen."""
        generator = torch.Generator().manual_seed(3)
        q = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))[0]
        covariance = q @ torch.diag(torch.tensor([1.5, 1.0, 0.6, 0.3], dtype=F64) ** 2) @ q.T
        matrix = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], dtype=F64)
        mean = torch.tensor([0.5, -0.5, 0.0, 1.0], dtype=F64)
        return cls(mean, covariance, matrix, torch.tensor([1.5, -0.5], dtype=F64), 0.3)

    def _innovation(self) -> Tensor:
        return self.matrix @ self.covariance @ self.matrix.T + self.std**2 * torch.eye(len(self.y), dtype=F64)

    def posterior(self) -> tuple[Tensor, Tensor]:
        gain = self.covariance @ self.matrix.T @ torch.linalg.inv(self._innovation())
        mean = self.mean + gain @ (self.y - self.matrix @ self.mean)
        return mean, self.covariance - gain @ self.matrix @ self.covariance

    def log_evidence(self) -> float:
        s, r = self._innovation(), self.y - self.matrix @ self.mean
        return float(-0.5 * (r @ torch.linalg.solve(s, r) + torch.logdet(2 * math.pi * s)))

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """Exact: `μ + α P (α² P + σ²)⁻¹ (x_t − α μ)`."""
        variances, vectors = torch.linalg.eigh(self.covariance)

        def denoise(x: State, t: Tensor, **_: Any) -> State:
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            rotated = (x["x"] - alpha * self.mean.to(x["x"])) @ vectors.to(x["x"])
            shrunk = alpha * variances / (alpha**2 * variances + sigma**2) * rotated
            return {"x": self.mean + shrunk @ vectors.T}

        return denoise

    def bias(self, x: Tensor, weights: Tensor | None = None) -> tuple[float, float, float]:
        """The mean's error in posterior standard deviations (the largest over all directions), and the smallest and largest
        ratio of the sample's variance to the posterior's."""
        mean, covariance = self.posterior()
        w = torch.full((len(x),), 1 / len(x), dtype=F64) if weights is None else weights
        found = w @ x
        spread = (x - found).T @ (w[:, None] * (x - found))
        factor = torch.linalg.cholesky(covariance)
        error = torch.linalg.solve_triangular(factor, (found - mean)[:, None], upper=False)
        half = torch.linalg.solve_triangular(factor, spread, upper=False)
        ratio = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False))
        return float(error.norm()), float(ratio[0]), float(ratio[-1])
