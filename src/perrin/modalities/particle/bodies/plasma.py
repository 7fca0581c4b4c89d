r"""Electrons in one dimension over a fixed, neutralising background, by the particle-in-cell method.

Time is in units of `1/ω_p`, velocity in units of a speed `v₀` (of the streams, or the thermal one), length in `v₀/ω_p`:

    x′ = v,    v′ = −E,    ∂E/∂x = 1 − n.

Charges are shared among cells and the field is read with the same cloud-in-cell weights (`cloud.py`), Poisson's equation is
solved by a Fourier transform, and time goes by a leapfrog, kick–drift–kick (Birdsall and Langdon 1985). Momentum is
conserved to rounding, energy to the error of the mesh and the step. Everything is float64.

Starts are quiet: every velocity, a quantile of the distribution, is given to 4 electrons at even distances, so that waves up
to the third hold no noise until something presses electrons together; the sets of 4 are offset by a bit-reversed sequence,
and moved by the seed. Waves of given amplitude are then pressed upon them. What theory says of small waves of wave number k:

- two cold streams of velocities ±v₀ with half the electrons each: `1 = ½/(ω − k v₀)² + ½/(ω + k v₀)²`; with `K = k v₀ < 1`
  they grow at `γ² = ½ (√(8 K² + 1) − 2 K² − 1)`, at most `γ = 1/√8` at `K = √(3/8)`;
- a Maxwellian of thermal velocity 1: Langmuir waves `ω² ≈ 1 + 3 k²` (Bohm and Gross), damped as Landau found, for k = 0.5
  with `ω = 1.4157 − 0.1533 i`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.modalities.particle.bodies.cloud import cells, deposit, gather

EVEN = 4
"""Electrons of one velocity at the start."""


@dataclass(frozen=True, kw_only=True)
class Plasma:
    """A plasma's parameters.

    Arguments:
        wave: k of the longest wave; the box is 2π/k long.
        bodies: electrons.
        size: cells of the mesh.
        step: of time.
    """

    wave: float = 0.5
    bodies: int = 65536
    size: int = 64
    step: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.wave < math.inf and 0 < self.step <= 1):
            raise PerrinError(
                f"expected a wave number above 0 and a step from 0 to 1, given {self.wave:g} and {self.step:g}"
            )
        if self.bodies < 1 or self.bodies % (2 * EVEN) or self.size < 8 or self.size % 2:
            raise PerrinError(
                f"expected a multiple of {2 * EVEN} electrons and an even mesh of at least 8 cells, given {self.bodies} "
                f"and {self.size}"
            )

    @property
    def box(self) -> float:
        """Length, `2π/k`."""
        return 2 * math.pi / self.wave

    def electric(self, x: Tensor) -> Tensor:
        """E on the mesh, `[m]`, of electrons at `[N]`."""
        return self._electric(*self._cells(x))

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return cells((x * (self.size / self.box))[:, None], self.size)

    def _electric(self, index: Tensor, weight: Tensor) -> Tensor:
        m = self.size
        charge = torch.fft.rfft(1 - deposit(index, weight, m, 1) * (m / self.bodies))
        k = self.wave * torch.arange(m // 2 + 1, dtype=torch.float64)
        k[0] = k[-1] = math.inf  # no mean field; the highest wave has no derivative
        return torch.fft.irfft(-1j * charge / k, n=m)

    def acceleration(self, x: Tensor) -> Tensor:
        """−E at the electrons, `[N]`."""
        index, weight = self._cells(x)
        return -gather(self._electric(index, weight)[None], index, weight)[:, 0]

    def run(self, x: Tensor, v: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Positions, not folded into the box, and velocities `[N]` after `time`, in equal steps of at most `step`; backwards
        if it is negative."""
        count = math.ceil(abs(time) / self.step - 1e-9)
        h = time / max(count, 1)
        force = self.acceleration(x) if count else x
        for _ in range(count):
            v = v + 0.5 * h * force
            x = x + h * v
            force = self.acceleration(x)
            v = v + 0.5 * h * force
        return x, v

    def energies(self, x: Tensor, v: Tensor) -> tuple[float, float]:
        """Kinetic energy and that of the field, over the length of the box."""
        return 0.5 * float(v.square().mean()), 0.5 * float(self.electric(x).square().mean())

    def start(
        self,
        generator: torch.Generator,
        *,
        streams: float,
        thermal: float,
        amplitudes: tuple[float, ...],
    ) -> tuple[Tensor, Tensor]:
        """Positions and velocities `[N]` of a quiet start.

        Arguments:
            streams: velocity of the two halves, one each way; 0 for a plasma at rest.
            thermal: standard deviation of velocities about it.
            amplitudes: of the waves k, 2k, … in the density, over its mean; their phases are random.
        """
        speeds = self.bodies // (2 * EVEN)
        shift = torch.rand((), generator=generator, dtype=torch.float64)
        offset = bit_reversed(speeds)[:, None] + shift + torch.arange(EVEN, dtype=torch.float64)
        x = (self.box / EVEN * offset).flatten()
        quantile = (torch.arange(speeds, dtype=torch.float64) + 0.25) / speeds  # mirrored: + 0.75
        spread = thermal * torch.special.ndtri(quantile).repeat_interleave(EVEN)
        x, v = torch.cat([x, x]), torch.cat([streams + spread, -streams - spread])
        moved = x.clone()
        for number, amplitude in enumerate(amplitudes, 1):
            k = number * self.wave
            phase = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
            moved = moved - amplitude / k * torch.sin(k * x + phase)
        return moved, v

    def phase_space(self, x: Tensor, v: Tensor, grid: int, top: float) -> Tensor:
        """Density in velocity and position over its mean, `[grid, grid]`, rows from −top to top, without what is beyond."""
        row = (v / top + 1) * (grid / 2) - 0.5
        kept = (row >= 0) & (row < grid - 1)
        place = torch.stack([row, x * (grid / self.box)], -1)[kept]
        return deposit(*cells(place, grid), grid, 2) * (grid**2 / self.bodies)


def bit_reversed(count: int) -> Tensor:
    """Van der Corput's sequence in base 2: 0, 1/2, 1/4, 3/4, …, `[count]`, float64."""
    left, out, place = torch.arange(count), torch.zeros(count, dtype=torch.float64), 0.5
    while bool((left > 0).any()):
        out += place * (left % 2)
        left, place = left // 2, place / 2
    return out


def cold_growth(wave: float) -> float:
    """γ of two cold streams with `K = k v₀`; 0 where they are stable."""
    square = 0.5 * (math.sqrt(8 * wave**2 + 1) - 2 * wave**2 - 1)
    return math.sqrt(max(square, 0.0))
