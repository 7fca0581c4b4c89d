r"""Gravity of many bodies on a mesh, in an expanding Einstein–de Sitter universe, in one, two or three dimensions.

Time is `η = ln a`, in which the equations do not know the time:

    x″ + ½ x′ = −(3/2) ∇φ,    Δφ = δ,    δ = ρ/ρ̄ − 1,

with comoving positions `x` in a periodic box. A small disturbance grows as `δ ∝ e^η` or falls as `e^{−3η/2}`. With
`p = e^{η/2} x′`, so that `p′ = −(3/2) e^{η/2} ∇φ` and `x′ = e^{−η/2} p`, kick and drift are integrated exactly (Quinn et al.
1997) in a leapfrog, kick–drift–kick, which can be run backwards.

The mesh: cloud-in-cell (`cloud.py`), Poisson's equation and the gradient by Fourier transforms, `−i k φ_k` without the
highest wave (Hockney and Eastwood 1988). Self-forces vanish, and `Σ p` is constant, to rounding. Everything is float64.

The start is Zel'dovich's: particles of a lattice `q` are moved by `ψ`, `x = q + e^η ψ(q)`, `p = e^{3η/2} ψ(q)` with
`δ_lin = −e^η ∇·ψ`. A plane wave is then exact until orbits cross. `ψ` is a Gaussian field whose power is

    Δ²(k) = A k^{3 + n} T(k)²,    T of Bardeen et al. (1986) of shape Γ,

in three dimensions with an rms of σ_8 in spheres of 8 Mpc/h at a = 1; fewer dimensions have the same Δ²(k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.modalities.particle.bodies.cloud import cells, deposit, gather


@dataclass(frozen=True, kw_only=True)
class Gravity:
    """A universe in a box.

    Arguments:
        dimensions: d, 1 to 3.
        size: m, cells of the mesh along each side.
        bodies: particles along each side; at the start a lattice.
        box: side of the box, Mpc/h, comoving.
        sigma8: σ_8 at a = 1, linear.
        slope: n of the primordial power.
        shape: Γ.
        step: of ln a.
    """

    dimensions: int = 2
    size: int = 128
    bodies: int = 128
    box: float = 128.0
    sigma8: float = 0.8
    slope: float = 1.0
    shape: float = 0.21
    step: float = 0.05

    def __post_init__(self) -> None:
        if self.dimensions not in (1, 2, 3):
            raise PerrinError(f"expected 1, 2 or 3 dimensions, given {self.dimensions}")
        if self.size < 8 or self.size % 2 or self.bodies < 2:
            raise PerrinError(
                f"expected an even mesh of at least 8 and at least 2 bodies along a side, given {self.size} and "
                f"{self.bodies}"
            )
        for name in ("box", "sigma8", "shape", "step"):
            if not 0 < getattr(self, name) < math.inf:
                raise PerrinError(f"expected {name} above 0, given {getattr(self, name):g}")

    @property
    def count(self) -> int:
        """Particles."""
        return int(self.bodies**self.dimensions)

    @cached_property
    def lattice(self) -> Tensor:
        """Where particles are before they are moved, in units of the box, `[N, d]`."""
        line = (torch.arange(self.bodies, dtype=torch.float64) + 0.5) / self.bodies
        axes = torch.meshgrid(*[line] * self.dimensions, indexing="ij")
        return torch.stack([a.flatten() for a in axes], -1)

    def acceleration(self, x: Tensor) -> Tensor:
        """`−(3/2) ∇φ` at positions `[N, d]` in units of the box, `[N, d]`."""
        m, d = self.size, self.dimensions
        index, weight = cells(x * m, m)
        delta = deposit(index, weight, m, d) * (m**d / len(x)) - 1
        hat = torch.fft.rfftn(delta)
        k = waves(m, d)
        k2 = sum((a**2 for a in k), torch.zeros(()))
        potential = -hat / k2.masked_fill(k2 == 0, math.inf)
        fields = [torch.fft.irfftn(-1.5j * _odd(a, m) * potential, s=(m,) * d) for a in k]
        return gather(torch.stack(fields), index, weight)

    def run(self, x: Tensor, p: Tensor, eta: float, until: float) -> tuple[Tensor, Tensor]:
        """Positions and momenta `[N, d]` at `until`, in equal steps of at most `step` from `eta`; backwards if it is before.

        Positions are in units of the box and are not folded into it.
        """
        count = max(1, math.ceil(abs(until - eta) / self.step - 1e-9)) if until != eta else 0
        h = (until - eta) / max(count, 1)
        force = self.acceleration(x) if count else x
        for k in range(count):
            a, b, c = (eta + (k + s) * h for s in (0, 0.5, 1))
            p = p + _kick(a, b) * force
            x = x + _drift(a, c) * p
            force = self.acceleration(x)
            p = p + _kick(b, c) * force
        return x, p

    def power(self, k: Tensor) -> Tensor:
        """Δ²(k) of the linear density at a = 1, for k in h/Mpc."""
        return self._shape(k) * (self.sigma8 / self._sigma) ** 2

    def _shape(self, k: Tensor) -> Tensor:
        q = k / self.shape
        t = torch.log1p(2.34 * q) / (2.34 * q)
        t = t * (1 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4) ** -0.25
        return k ** (3 + self.slope) * t**2

    @cached_property
    def _sigma(self) -> float:
        k = torch.logspace(-4, 2, 4001, dtype=torch.float64)
        y = 8 * k
        window = 3 * (y.sin() - y * y.cos()) / y**3
        return float(torch.trapezoid(self._shape(k) * window**2, k.log())) ** 0.5

    def displacement(self, generator: torch.Generator) -> Tensor:
        """A random ψ on the lattice at a = 1, in units of the box, `[N, d]`."""
        n, d = self.bodies, self.dimensions
        shape = (n,) * d
        white = torch.fft.rfftn(torch.randn(shape, generator=generator, dtype=torch.float64))
        k = waves(n, d)
        k2 = sum((a**2 for a in k), torch.zeros(()))
        length = k2.sqrt()
        # of unit white noise each wave has variance n^d; per unit of ln k there are S_d k^d / (2π)^d waves
        sphere = {1: 2.0, 2: 2 * math.pi, 3: 4 * math.pi}[d]
        density = sphere * (length / (2 * math.pi)) ** d
        delta = self.power((length / self.box).clamp(min=1e-9)) / density.clamp(min=1e-300)
        hat = white * n ** (d / 2) * delta.sqrt()
        hat[(0,) * d] = 0
        potential = hat / k2.masked_fill(k2 == 0, math.inf)
        return torch.stack([torch.fft.irfftn(1j * _odd(a, n) * potential, s=shape).flatten() for a in k], -1)

    def start(self, psi: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Zel'dovich's positions and momenta at `eta` for a displacement ψ at a = 1, all `[N, d]`."""
        return self.lattice + math.exp(eta) * psi, math.exp(1.5 * eta) * psi

    def density(self, x: Tensor, grid: int | None = None) -> Tensor:
        """ρ/ρ̄ of positions `[N, d]`, `[grid, …]`: means over blocks of the mesh, so that its mean is 1."""
        m, d = self.size, self.dimensions
        grid = grid or m
        if grid < 1 or m % grid:
            raise PerrinError(f"expected a grid that divides the mesh of {m}, given {grid}")
        index, weight = cells(x * m, m)
        fine = deposit(index, weight, m, d) * (m**d / len(x))
        blocks = fine.reshape([n for _ in range(d) for n in (grid, m // grid)])
        return blocks.mean(tuple(range(1, 2 * d, 2)))


def waves(size: int, dimensions: int) -> list[Tensor]:
    """Wave numbers of a box of side 1 along each axis, each of a shape that broadcasts to a real transform's."""
    full = 2 * math.pi * torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    half = 2 * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64)
    lines = [full] * (dimensions - 1) + [half]
    return [
        line.reshape([-1 if k == axis else 1 for k in range(dimensions)]) for axis, line in enumerate(lines)
    ]


def _odd(k: Tensor, size: int) -> Tensor:
    """Wave numbers for a derivative: at the highest wave of an even grid it is not real."""
    return k.masked_fill((k.abs() - math.pi * size).abs() < 1e-6, 0.0)


def _kick(a: float, b: float) -> float:
    """∫ e^{η/2} dη."""
    return 2 * (math.exp(b / 2) - math.exp(a / 2))


def _drift(a: float, b: float) -> float:
    """∫ e^{−η/2} dη."""
    return 2 * (math.exp(-a / 2) - math.exp(-b / 2))
