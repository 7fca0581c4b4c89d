r"""Phase space of electrons as a field of the model of the next state: what is expected of it, and what it keeps.

`f(x, v)` over its mean, on `n × n` points, x periodic and v from −top to top, obeys Vlasov's equation,

    ∂f/∂t + v ∂f/∂x − E ∂f/∂v = 0,    ∂E/∂x = 1 − n,    n = ∫ f dv

(units of `bodies/plasma.py`). Its step on this grid, split and spectral (Cheng and Knorr 1976), is what the model starts
from: the network's change is counted from there, in `ln(1 + f)`, in units of how far that step has moved the state.
Filaments that are finer than the grid make such a step wrong and the next state uncertain.

Charge, momentum and energy are those of the state before, to rounding, as the grid shows them: the result is multiplied by
`exp(b v + c v²)` and divided by what keeps the density at each place. The truth keeps them exactly as well, but its energy
on 32² points varies by 1 % with filaments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from perrin.errors import PerrinError

STEP = 0.25
"""Longest step of the expected state, in 1/ω_p."""
ROUNDS = 9
"""Of Newton's method; six reach rounding from states that are 10 % off."""


@dataclass(frozen=True)
class PhaseSpace:
    """See the module's text, and `perrin.modalities.particle.flow.fields.Field`.

    Arguments:
        box: length, in v₀/ω_p.
        top: largest velocity of the grid, in v₀.
        interval: between two states, in 1/ω_p.
    """

    box: float
    top: float
    interval: float

    name: ClassVar[str] = "phase_space"
    parameters: ClassVar[tuple[str, ...]] = ("box", "top", "thermal", "streams", "wave")
    nonnegative: ClassVar[bool] = True
    channels: ClassVar[int] = 4

    @classmethod
    def of(cls, words: Mapping[str, Any], interval: float) -> Self:
        """By a file's attributes. Raises `PerrinError` where one is missing."""
        if not ("box" in words and "top" in words):
            raise PerrinError("expected phase space with attributes box and top, given one without")
        return cls(float(words["box"]), float(words["top"]), interval)

    def velocity(self, like: Tensor) -> Tensor:
        """v of the rows, `[n, 1]`, float64."""
        n = like.shape[-1]
        line = (2 * torch.arange(n, dtype=torch.float64, device=like.device) + 1) / n - 1
        return self.top * line[:, None]

    def electric(self, f: Tensor) -> Tensor:
        """E on the grid, `[..., 1, n]`, float64."""
        n = f.shape[-1]
        k = 2 * math.pi / self.box * torch.arange(n // 2 + 1, dtype=torch.float64, device=f.device)
        k[0] = k[-1] = math.inf
        charge = torch.fft.rfft(1 - f.double().mean(-2, keepdim=True))
        return torch.fft.irfft(-1j * charge / k, n=n)

    def energies(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Kinetic energy and that of the field, over the box's length, each `[...]`."""
        kinetic = 0.5 * (f.double() * self.velocity(f) ** 2).mean((-2, -1))
        return kinetic, 0.5 * self.electric(f).square().mean((-2, -1))

    def step(self, f: Tensor) -> Tensor:
        """Vlasov's equation over one interval on this grid, cut at 0, `[..., n, n]`, float64."""
        n, f = f.shape[-1], f.double()
        count = max(1, math.ceil(self.interval / STEP - 1e-9))
        h = self.interval / count
        line = torch.arange(n // 2 + 1, dtype=torch.float64, device=f.device)
        half = torch.exp(-0.5j * h * (2 * math.pi / self.box) * line * self.velocity(f))
        for _ in range(count):
            f = torch.fft.irfft(torch.fft.rfft(f) * half, n=n)
            turn = torch.exp(1j * h * (math.pi / self.top) * line[:, None] * self.electric(f))
            f = torch.fft.irfft(torch.fft.rfft(f, dim=-2) * turn, n=n, dim=-2)
            f = torch.fft.irfft(torch.fft.rfft(f) * half, n=n)
        return f.clamp(min=0)

    def encode(self, w: Tensor) -> Tensor:
        """See `Field`."""
        return w.log1p()

    def expected(self, now: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        base = self.encode(self.step(now))
        moved = (base - self.encode(now.double())).square().mean((-2, -1), keepdim=True).sqrt()
        return base, moved + 1e-3

    def seen(self, now: Tensor, scale: float) -> Tensor:
        """The state, the one that is expected, v and E; see `Field`."""
        base = self.encode(self.step(now)) / scale
        row = (self.velocity(now) / self.top).expand(now.shape)
        field = self.electric(now).expand(now.shape)
        return torch.stack([self.encode(now.double()) / scale, base, row, field], 1).to(now)

    def held(self, y: Tensor) -> Tensor:
        """See `Field`."""
        return y

    def advance(self, now: Tensor, x: Tensor, size: float) -> Tensor:
        """See `Field`."""
        base, unit = self.expected(now)
        later = (base + size * unit * x.double()).clamp(max=20.0).expm1().clamp(min=0)
        return self.kept(later, now.double()).to(now)

    def kept(self, f: Tensor, before: Tensor) -> Tensor:
        """`n(x) f exp(b v + c v²)/Z(x)` with charge, momentum and energy of the state before, `[..., n, n]`, float64.

        The density n(x) is that of `f`, scaled to the charge, so that the field and its energy stay as they are while
        Newton's method finds b and c, of a convex problem.
        """
        v = self.velocity(f) / self.top
        moments = torch.stack([v, v**2])  # [2, n, 1]
        before, f = before.double(), f.double().clamp(min=1e-12)
        f = f * (before.mean((-2, -1), keepdim=True) / f.mean((-2, -1), keepdim=True))
        density = f.mean(-2, keepdim=True)
        left = (sum(self.energies(before)) - self.energies(f)[1]).clamp(min=0.01)
        wanted = torch.stack([(before * v).mean((-2, -1)), 2 * left / self.top**2], -1)
        logs, tilt = f.log(), torch.zeros_like(wanted)
        share = f
        for _ in range(ROUNDS):
            share = torch.softmax(logs + (tilt[..., None, None] * moments).sum(-3), -2)
            first = (share.unsqueeze(-3) * moments).sum(-2)  # [..., 2, n]
            second = (share[..., None, None, :, :] * (moments[:, None] * moments[None])).sum(-2)
            spread = second - first.unsqueeze(-2) * first.unsqueeze(-3)
            missing = wanted - (density * first).mean(-1)
            change = torch.linalg.solve((density.unsqueeze(-2) * spread).mean(-1), missing)
            tilt = tilt + change * (10 / change.abs().amax(-1, keepdim=True).clamp(min=1.0)).clamp(max=1.0)
        return share * density * f.shape[-2]

    def moved(self, pair: Tensor, generator: torch.Generator, wave: int) -> Tensor:
        """Along x by any number of points, and mirrored in x and v together; see `Field`."""
        n, device = pair.shape[-1], generator.device
        along = torch.randint(0, n, (len(pair), 1), generator=generator, device=device)
        columns = (torch.arange(n, device=device) + along) % n
        pair = pair.gather(3, columns[:, None, None].expand_as(pair))
        turn = torch.rand(len(pair), 1, 1, 1, generator=generator, device=device) < 0.5
        return torch.where(turn, pair.flip((2, 3)), pair)
