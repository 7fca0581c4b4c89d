"""`Gaussian`: `x_t = α_t x_0 + σ_t z`, in a subspace if asked.

A subspace is an orthogonal projection that commutes with the layout: noise and steps are projected, and the rest of the
space is zero at every time. Rows of a `Pairs` layout are symmetric in their two rows without being asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from perrin.core.layout import Dense, Layout, Pairs
from perrin.core.noise import Noise
from perrin.core.plan import Affine, Row, Stage, affine
from perrin.core.processes.base import PRIOR_STEP, Process
from perrin.core.schedules import RectifiedFlow, Schedule
from perrin.core.solvers import Solver


@lru_cache(maxsize=64)
def _outside(mask: tuple, device: torch.device) -> Tensor:
    """Where a mask is false, on the device; cached, because each new tensor would make the host wait for the device."""
    return ~torch.tensor(mask, dtype=torch.bool, device=device)


class Subspace(ABC):
    """A linear subspace of each row's features."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The orthogonal projection of a field whose last axes are a row's features."""

    @abstractmethod
    def dimensions(self, features: tuple[int, ...]) -> int:
        """How many numbers a row of the subspace has."""


@dataclass(frozen=True)
class Symmetric(Subspace):
    """The last two features are a symmetric matrix (a strain, a lattice metric, a diffusion tensor).

    Projected noise is the Gaussian orthogonal ensemble: variance 1 on the diagonal and ½ off it (isotropic in Frobenius
    norm).
    """

    def project(self, x: Tensor) -> Tensor:
        return 0.5 * (x + x.transpose(-1, -2))

    def dimensions(self, features: tuple[int, ...]) -> int:
        return prod(features[:-1]) * (features[-1] + 1) // 2


@dataclass(frozen=True)
class Masked(Subspace):
    """Only the features where `mask` is true are noised; the others are zero (land in an ocean grid, unused channels).

    Arguments:
        mask: nested tuples of bool, of the shape of the last features axes.
    """

    mask: tuple

    def project(self, x: Tensor) -> Tensor:
        return x.masked_fill(_outside(self.mask, x.device), 0)

    def dimensions(self, features: tuple[int, ...]) -> int:
        inside = ~_outside(self.mask, torch.device("cpu"))
        return int(inside.expand(features).sum())


@dataclass(frozen=True, kw_only=True)
class Gaussian(Process):
    """Gaussian corruption of a real field.

    Arguments:
        features: shape of a row, e.g. `(3,)` for positions, `(C, H, W)` for a `Dense` grid.
        schedule: of α and σ.
        zero_com: keep the field in the subspace of zero mean over the rows of each sample (Köhler et al. 2020). The noise
            is projected, so that each coordinate has variance `(n − 1)/n`.
        subspace: keep each row's features in a subspace: `Symmetric()`, `Masked(mask)`.
    """

    features: tuple[int, ...]
    schedule: Schedule = field(default_factory=RectifiedFlow)
    zero_com: bool = False
    subspace: Subspace | None = None

    def __post_init__(self) -> None:
        if isinstance(self.subspace, Symmetric) and (
            len(self.features) < 2 or self.features[-1] != self.features[-2]
        ):
            raise ValueError(
                f"expected square matrices as the last two features, given features {self.features}"
            )

    def project(self, x: Tensor, layout: Layout) -> Tensor:
        """Into the subspace: zero padding, symmetric pairs, zero centre of mass and features' subspace if asked."""
        if isinstance(layout, Pairs):
            x = 0.5 * (x + x.transpose(1, 2))  # every bit stays where the field is symmetric already
        if self.subspace is not None:
            x = self.subspace.project(x)
        return layout.center(x) if self.zero_com else layout.restrict(x)

    def dimensions(self, layout: Layout) -> Tensor:
        """How many independent numbers the subspace has, of each sample, `[B]`, int64."""
        row = prod(self.features) if self.subspace is None else self.subspace.dimensions(self.features)
        if not self.zero_com:
            return layout.rows() * row
        if not isinstance(layout, Dense):
            return (layout.rows() - 1).clamp(min=0) * row
        if self.subspace is not None:
            raise ValueError(f"expected zero_com or a subspace in a Dense layout, given both: {self}")
        return layout.rows() * (row - (self.features[0] if len(self.features) > 1 else 1))

    def draw(self, noise: Noise, layout: Layout, *, name: str, step: int) -> Tensor:
        """Standard normal noise in the subspace."""
        return self.project(self._noise(noise, layout, name=name, step=step), layout)

    def _noise(self, noise: Noise, layout: Layout, *, name: str, step: int) -> Tensor:
        """Noise before its projection; what a process with other noise replaces."""
        return noise.normal(layout, self.features, field=name, step=step)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        z = self.draw(noise, layout, name=name, step=PRIOR_STEP).to(x_0.dtype)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return layout.expand(alpha, x_0) * self.project(x_0, layout) + layout.expand(sigma, x_0) * z

    def diffuse(
        self, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, layout: Layout, *, name: str, step: int
    ) -> Tensor:
        z = self.draw(noise, layout, name=name, step=step).to(x_t.dtype)
        kept = self.schedule.alpha(s) / self.schedule.alpha(t)
        added = (self.schedule.sigma(s).square() - (kept * self.schedule.sigma(t)).square()).clamp(min=0)
        return layout.expand(kept, x_t) * x_t + layout.expand(added.sqrt(), x_t) * z

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        sigma = float(self.schedule.sigma(torch.tensor(time, dtype=torch.float64)))
        return sigma * self.draw(noise, layout, name=name, step=PRIOR_STEP)

    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        return list(solver.rows(stages, self.schedule))

    def step(
        self,
        x: Tensor,
        estimates: Sequence[Tensor],
        row: Row,
        noise: Noise,
        layout: Layout,
        *,
        name: str,
        step: int,
    ) -> Tensor:
        assert isinstance(row, Affine)
        # the projection of the sum is the sum of the projections: the noise needs none of its own
        xi = self._noise(noise, layout, name=name, step=step) if row.c else None
        return self.project(affine(x, row, estimates, xi), layout)

    def takes_order(self, order: int) -> bool:
        return True
