"""`Torus`: wrapped Gaussian noise on `[0, 1)^d`, for angles and fractional coordinates, in units of a full turn (or cell).

The wrapped normal around `μ` has the density, per axis,

    p(x) = Σ_k N(x − μ + k; 0, σ²) = 1 + 2 Σ_m e^{−2π² m² σ²} cos 2πm (x − μ),     E[e^{2πi m x}] = e^{2πi m μ − 2π² m² σ²}.

The first sum converges fast for small σ, the second for large σ; each is used where a few terms reach double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.plan import Affine, Row, Stage, affine
from perrin.core.processes.base import PRIOR_STEP, Process
from perrin.core.processes.tangent import exploding, tangent_rows
from perrin.core.schedules import EDM, Schedule
from perrin.core.solvers import Solver

_SWITCH = 0.4  # σ at which the sums are exchanged
_WINDINGS, _HARMONICS = 3, 5  # e^{−2.5²/(2·0.4²)} and e^{−2π²·6²·0.4²} are below 1e-8 and 1e-49 at the switch


def wrap(x: Tensor) -> Tensor:
    """Into `[0, 1)`."""
    y = x - torch.floor(x)
    return torch.where(y >= 1, 0, y)  # a small negative number rounds up to 1


def displacement(x: Tensor) -> Tensor:
    """The shortest of `x + k`, in `[−½, ½]`."""
    return x - torch.round(x)


def wrapped_log_density(x: Tensor, sigma: Tensor) -> Tensor:
    """`log p` of the wrapped normal with mean 0 at `x`, per axis, in nats; `sigma > 0` broadcasts against `x`."""
    d, s = displacement(x), sigma
    near, far = s.clamp(max=_SWITCH), s.clamp(min=_SWITCH)
    k = torch.arange(-_WINDINGS, _WINDINGS + 1, device=x.device, dtype=x.dtype)
    winding = -0.5 * ((d[..., None] + k) / near[..., None]) ** 2
    low = torch.logsumexp(winding, dim=-1) - torch.log(near * math.sqrt(2 * math.pi))
    m, weight = _harmonics(d, far)
    high = torch.log1p(2 * (weight * torch.cos(2 * math.pi * m * d[..., None])).sum(-1))
    return torch.where(s < _SWITCH, low, high)


def wrapped_tangent(x: Tensor, sigma: Tensor) -> Tensor:
    """`σ² d/dx log p` of the wrapped normal with mean 0 at `x`, per axis: `−x` for small σ, and 0 without noise."""
    d = displacement(x)
    s = sigma.expand_as(d)
    near, far = s.clamp(min=1e-6, max=_SWITCH), s.clamp(min=_SWITCH)
    k = torch.arange(-_WINDINGS, _WINDINGS + 1, device=x.device, dtype=x.dtype)
    unwrapped = d[..., None] + k
    low = -(torch.softmax(-0.5 * (unwrapped / near[..., None]) ** 2, dim=-1) * unwrapped).sum(-1)
    m, weight = _harmonics(d, far)
    angle = 2 * math.pi * m * d[..., None]
    slope = -4 * math.pi * (m * weight * torch.sin(angle)).sum(-1)
    high = far**2 * slope / (1 + 2 * (weight * torch.cos(angle)).sum(-1))
    return torch.where(s < _SWITCH, low, high)


def _harmonics(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`m = 1 … M` and `e^{−2π² m² σ²}`, `[..., M]`."""
    m = torch.arange(1, _HARMONICS + 1, device=x.device, dtype=x.dtype)
    return m, torch.exp(-2 * (math.pi * m * sigma[..., None]) ** 2)


@dataclass(frozen=True, kw_only=True)
class Torus(Process):
    """`x_t = x_0 + σ_t z mod 1` on every axis; the prior is uniform. The estimate is the tangent `σ_t² ∇ log p_t(x_t)`, real
    numbers of the field's shape, in turns (see `perrin.core.processes.tangent`).

    References: Jing et al. 2022 (torsional diffusion); Jiao et al. 2023 (DiffCSP).

    Arguments:
        features: shape of a row, e.g. `(3,)` for fractional coordinates.
        schedule: variance exploding, in turns. At `σ = 0.8` the density is uniform to 7e-6; the default ends there.
    """

    features: tuple[int, ...] = ()
    schedule: Schedule = field(default_factory=lambda: EDM(sigma_max=0.8))

    def __post_init__(self) -> None:
        exploding(self.schedule)

    def project(self, x: Tensor, layout: Layout) -> Tensor:
        """Into `[0, 1)`, zero padding."""
        return layout.restrict(wrap(x))

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        z = noise.normal(layout, self.features, field=name, step=PRIOR_STEP).to(x_0.dtype)
        return self.project(x_0 + layout.expand(self.schedule.sigma(t), x_0) * z, layout)

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        return self.project(noise.uniform(layout, self.features, field=name, step=PRIOR_STEP), layout)

    def target(self, x_0: Tensor, x_t: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """`σ_t² ∇ log p(x_t | x_0)`, the regression target of the tangent."""
        sigma = layout.expand(self.schedule.sigma(t), x_t)
        return layout.restrict(wrapped_tangent(x_t - x_0, sigma))

    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        return tangent_rows(self.schedule, solver, stages)

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
        xi = noise.normal(layout, self.features, field=name, step=step) if row.c else None
        return self.project(affine(x, row, estimates, xi), layout)
