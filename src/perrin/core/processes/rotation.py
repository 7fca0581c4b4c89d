"""`Rotation`: Brownian motion on SO(3) (`perrin.core.igso3`), for the orientations of rigid bodies and residue frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perrin.core import igso3, so3
from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.plan import Affine, Row, Stage, affine
from perrin.core.processes.base import PRIOR_STEP, Process
from perrin.core.processes.tangent import exploding, tangent_rows
from perrin.core.schedules import EDM, Schedule
from perrin.core.solvers import Solver


def igso3_tangent(q: Tensor, sigma: Tensor) -> Tensor:
    """`σ² ∇ log f(q)` of IGSO(3) around the identity, in the body's frame: `[..., 4]` to `[..., 3]`; `sigma` is `[...]`."""
    v = so3.log(q.double())
    return (igso3.tangent_gain(so3.angle(q.double()), sigma)[..., None] * v).to(q.dtype)


@dataclass(frozen=True, kw_only=True)
class Rotation(Process):
    """`x_t = x_0 Exp(v)` with `v` from IGSO(3) at `ε = σ_t`; the prior is uniform.

    A state is a unit quaternion `(w, x, y, z)` with `w ≥ 0`, the last axis. The estimate is the tangent
    `σ_t² ∇ log p_t(x_t)`, a rotation vector (radians, `[..., 3]`) in the body's frame: it multiplies from the right, so
    that turning all the data leaves it as it is, and `x_t Exp(D) ≈ x_0` for small noise. Rows: `processes.tangent`.

    References: Leach et al. 2022; De Bortoli et al. 2022; Yim et al. 2023 (FrameDiff).

    Arguments:
        features: shape of a row before the quaternion: `()` for one rotation per row.
        schedule: variance exploding, in radians. At `σ = 3` the mean rotation matrix is 1e-4 of the data's; the default ends
            there.
    """

    features: tuple[int, ...] = ()
    schedule: Schedule = field(default_factory=lambda: EDM(sigma_max=3.0))

    def __post_init__(self) -> None:
        exploding(self.schedule)

    def project(self, x: Tensor, layout: Layout) -> Tensor:
        """Unit norm and `w ≥ 0`; padding is zero."""
        return layout.restrict(so3.canonical(x))

    def _sigma(self, t: Tensor, layout: Layout, like: Tensor) -> Tensor:
        return layout.expand(self.schedule.sigma(t), like).squeeze(-1)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        u = noise.uniform(layout, self.features, field=name, step=PRIOR_STEP)
        z = noise.normal(layout, (*self.features, 3), field=name, step=PRIOR_STEP).double()
        axis = z / z.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        omega = igso3.quantile(u, self._sigma(t, layout, x_0))
        return self.project(so3.multiply(x_0, so3.exp(omega[..., None] * axis).to(x_0.dtype)), layout)

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        return self.project(
            noise.normal(layout, (*self.features, 4), field=name, step=PRIOR_STEP), layout
        )  # the direction of a normal vector is uniform on the sphere

    def target(self, x_0: Tensor, x_t: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """`σ_t² ∇ log p(x_t | x_0)`, the regression target of the tangent, `[..., 3]`."""
        turned = so3.multiply(so3.inverse(x_0), x_t)
        return layout.restrict(igso3_tangent(turned, self._sigma(t, layout, x_t)))

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
        xi = noise.normal(layout, (*self.features, 3), field=name, step=step) if row.c else None
        v = affine(torch.zeros_like(x[..., :3]), row, estimates, xi)
        return self.project(so3.multiply(x, so3.exp(v)), layout)
