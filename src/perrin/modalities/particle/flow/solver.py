"""Two-dimensional incompressible Navier–Stokes on the torus [0, 2π)², by a spectral method, with Kolmogorov's forcing.

In vorticity ω = ∂_x v − ∂_y u and streamfunction ψ, with −Δψ = ω, u = ∂_y ψ, v = −∂_x ψ:

    ∂_t ω + u ∂_x ω + v ∂_y ω = ν Δω − μ ω − χ k cos(k y),

whose force is (χ sin(k y), 0) and whose friction is −μ (u, v). Velocities of a streamfunction have no divergence.
Products are formed on the grid and cut at two thirds of the highest wave number; time goes by an exponential Runge–Kutta
step of fourth order, exact for the linear part (Cox and Matthews 2002; φ-functions by contour integrals, Kassam and
Trefethen 2005). Everything is float64.

Energy ½⟨u² + v²⟩ and its budget, dE/dt = −ν⟨ω²⟩ − 2 μ E + ⟨χ sin(k y) u⟩, hold to the error of the time step. For χ = μ = 0
the Taylor–Green vortex decays as exp(−2 ν t), exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from perrin.errors import PerrinError


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A flow's parameters, in units of the box's size over 2π and of the force.

    Arguments:
        size: points along each side.
        viscosity: ν.
        friction: μ.
        force: χ.
        wave: k of the force.
        dt: the time step.
    """

    size: int = 64
    viscosity: float = 5e-3
    friction: float = 0.1
    force: float = 1.0
    wave: int = 4
    dt: float = 0.02

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 2:
            raise PerrinError(f"expected an even number of points of at least 8, given {self.size}")
        if not (self.viscosity > 0 and self.dt > 0 and self.friction >= 0):
            raise PerrinError(
                f"expected viscosity and dt above 0 and friction of at least 0, given {self.viscosity}, {self.dt}, "
                f"{self.friction}"
            )
        if not 0 < self.wave < self.size // 3:
            raise PerrinError(
                f"expected a forced wave number from 1 to {self.size // 3 - 1}, given {self.wave}"
            )

    @cached_property
    def kx(self) -> Tensor:
        """Wave numbers along x, `[1, n/2 + 1]`."""
        return torch.arange(self.size // 2 + 1, dtype=torch.float64)[None, :]

    @cached_property
    def ky(self) -> Tensor:
        """Wave numbers along y, `[n, 1]`."""
        return torch.fft.fftfreq(self.size, 1 / self.size, dtype=torch.float64)[:, None]

    @cached_property
    def k2(self) -> Tensor:
        """Squares of wave numbers, `[n, n/2 + 1]`."""
        return self.kx**2 + self.ky**2

    @cached_property
    def kept(self) -> Tensor:
        """1 where a wave is kept after a product (two-thirds rule), `[n, n/2 + 1]`."""
        return ((self.kx.abs() < self.size / 3) & (self.ky.abs() < self.size / 3)).double()

    @cached_property
    def drive(self) -> Tensor:
        """The curl of the force in spectral space, `[n, n/2 + 1]`."""
        y = 2 * math.pi * torch.arange(self.size, dtype=torch.float64) / self.size
        field = (-self.force * self.wave * torch.cos(self.wave * y))[:, None].expand(self.size, self.size)
        return torch.fft.rfft2(field)

    def velocity_hat(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral (u, v) of a spectral vorticity."""
        psi = w / self.k2.clamp(min=1.0)  # the mean of ω is 0
        return 1j * self.ky * psi, -1j * self.kx * psi

    def nonlinear(self, w: Tensor) -> Tensor:
        """`−u·∇ω + curl f`, spectral."""
        u, v = self.velocity_hat(w)
        shape = (self.size, self.size)
        fields = torch.fft.irfft2(torch.stack([u, v, 1j * self.kx * w, 1j * self.ky * w]), s=shape)
        product = torch.fft.rfft2(fields[0] * fields[2] + fields[1] * fields[3])
        return self.drive - self.kept * product

    @cached_property
    def _table(self) -> tuple[Tensor, ...]:
        h = self.dt
        linear = -self.viscosity * self.k2 - self.friction
        roots = torch.exp(1j * math.pi * (torch.arange(32, dtype=torch.float64) + 0.5) / 32)
        z = h * linear[..., None] + roots
        q = h * ((torch.exp(z / 2) - 1) / z).mean(-1).real
        f1 = h * ((-4 - z + torch.exp(z) * (4 - 3 * z + z**2)) / z**3).mean(-1).real
        f2 = h * ((2 + z + torch.exp(z) * (-2 + z)) / z**3).mean(-1).real
        f3 = h * ((-4 - 3 * z - z**2 + torch.exp(z) * (4 - z)) / z**3).mean(-1).real
        return torch.exp(h * linear), torch.exp(h * linear / 2), q, f1, f2, f3

    def step(self, w: Tensor) -> Tensor:
        """One time step of spectral vorticities `[..., n, n/2 + 1]`."""
        full, half, q, f1, f2, f3 = self._table
        n0 = self.nonlinear(w)
        a = half * w + q * n0
        na = self.nonlinear(a)
        b = half * w + q * na
        nb = self.nonlinear(b)
        c = half * a + q * (2 * nb - n0)
        nc = self.nonlinear(c)
        return full * w + f1 * n0 + 2 * f2 * (na + nb) + f3 * nc

    def run(self, vorticity: Tensor, time: float) -> Tensor:
        """The vorticity after `time` (rounded to whole steps), on the grid, `[..., n, n]`, float64.

        Raises:
            PerrinError: it became infinite: the time step is too long for the flow.
        """
        w = torch.fft.rfft2(vorticity.double()) * self.kept
        w[..., 0, 0] = 0
        for _ in range(round(time / self.dt)):
            w = self.step(w)
        out = torch.fft.irfft2(w, s=(self.size, self.size))
        if not bool(torch.isfinite(out).all()):
            raise PerrinError(f"expected a stable flow, but it became infinite: use a dt below {self.dt:g}")
        return out

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Smooth random vorticities `[count, n, n]` with energy about wave number 4."""
        shape = (count, self.size, self.size)
        white = torch.fft.rfft2(torch.randn(shape, generator=generator, dtype=torch.float64))
        k = self.k2.sqrt()
        w = torch.fft.irfft2(white * k * torch.exp(-((k / 4) ** 2)), s=shape[1:])
        w = w - w.mean((1, 2), keepdim=True)
        return 3 * w / w.square().mean((1, 2), keepdim=True).sqrt()


def project(vorticity: Tensor) -> Tensor:
    """Without mean and without the grid's highest wave, whose derivative is not a field of the grid; float64."""
    n = vorticity.shape[-1]
    w = torch.fft.rfft2(vorticity.double())
    w[..., 0, 0] = 0
    w[..., n // 2, :] = 0
    w[..., n // 2] = 0
    return torch.fft.irfft2(w, s=(n, n))


def velocity(vorticity: Tensor) -> Tensor:
    """(u, v) `[..., 2, n, n]` of vorticities `[..., n, n]`: the velocity without divergence and mean that has this curl, the
    grid's highest wave left out."""
    flow = Flow(size=vorticity.shape[-1], wave=1)
    w = torch.fft.rfft2(project(vorticity))
    return torch.fft.irfft2(torch.stack(flow.velocity_hat(w), dim=-3), s=vorticity.shape[-2:])


def divergence(uv: Tensor) -> Tensor:
    """∂_x u + ∂_y v of velocities `[..., 2, n, n]`, spectrally, `[..., n, n]`."""
    n = uv.shape[-1]
    flow = Flow(size=n, wave=1)
    hat = torch.fft.rfft2(uv.double())
    ky = flow.ky.masked_fill(flow.ky.abs() == n // 2, 0)  # a derivative at the highest wave is not real
    kx = flow.kx.masked_fill(flow.kx == n // 2, 0)
    return torch.fft.irfft2(1j * kx * hat[..., 0, :, :] + 1j * ky * hat[..., 1, :, :], s=(n, n))


def energy(vorticity: Tensor) -> Tensor:
    """½⟨u² + v²⟩ of each field, `[...]`."""
    return 0.5 * velocity(vorticity).square().sum(-3).mean((-2, -1))


def spectrum(vorticity: Tensor) -> Tensor:
    """Energy in shells of wave numbers that round to 0 … n/2, `[..., n/2 + 1]`; over all shells it adds up to that of
    the waves in them."""
    n = vorticity.shape[-1]
    flow = Flow(size=n, wave=1)
    w = torch.fft.rfft2(vorticity.double()) / n**2
    twice = torch.full_like(flow.kx, 2.0)
    twice[0, 0] = twice[0, -1] = 1.0
    density = 0.5 * w.abs().square() / flow.k2.clamp(min=1.0) * twice
    shell = flow.k2.sqrt().round().long()
    out = density.new_zeros(*density.shape[:-2], int(shell.max()) + 1)
    out.index_add_(-1, shell.flatten(), density.flatten(-2))
    return out[..., : n // 2 + 1]


def resample(vorticity: Tensor, size: int) -> Tensor:
    """The same field on another grid by cutting or padding its spectrum; the smaller grid's highest wave is left out."""
    n = vorticity.shape[-1]
    if size == n:
        return vorticity
    w = torch.fft.rfft2(vorticity.double())
    m = min(n, size) // 2
    out = w.new_zeros(*w.shape[:-2], size, size // 2 + 1)
    out[..., :m, :m] = w[..., :m, :m]
    out[..., -(m - 1) :, :m] = w[..., -(m - 1) :, :m]
    return torch.fft.irfft2(out, s=(size, size)) * (size / n) ** 2
