"""What a field is to the model of the next state: how it is encoded, what its dynamics conserves, and its symmetries.

A field moves on by a change `x`, of about unit variance, of its encoding `e`: `ω′ = e⁻¹(e(ω) + s x)`, followed by what the
dynamics conserves. Vorticity is its own encoding, and keeps its mean (and lacks the grid's highest wave, so that its
velocity is a field of the grid). A density's is `ln(ρ + c)`; the result is cut at 0 and scaled to the mean it had, so that
mass is conserved to rounding and nothing is negative. Phase space has a step of Vlasov's equation first (`phase_space.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.modalities.particle.flow.phase_space import PhaseSpace
from perrin.modalities.particle.flow.solver import project


class Field(Protocol):
    """A kind of field.

    Attributes:
        name: as in files.
        parameters: attributes of a file that a model is tied to.
        nonnegative: whether values below 0 are refused.
        channels: of what the network sees.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    nonnegative: ClassVar[bool]
    channels: ClassVar[int]

    @classmethod
    def of(cls, words: Mapping[str, Any], interval: float) -> Self:
        """That of a file, by its attributes."""

    def encode(self, w: Tensor) -> Tensor:
        """Fields `[..., n, n]` as the network's numbers, before they are scaled."""

    def expected(self, now: Tensor) -> tuple[Tensor, Tensor | float]:
        """The encoded fields that a change is counted from, `[..., n, n]`, and its unit, `[..., 1, 1]`."""

    def seen(self, now: Tensor, scale: float) -> Tensor:
        """What the network is told of the fields `[B, n, n]`: `[B, channels, n, n]`."""

    def held(self, y: Tensor) -> Tensor:
        """The network's output `[B, 1, n, n]` without what a change cannot have."""

    def advance(self, now: Tensor, x: Tensor, size: float) -> Tensor:
        """The fields `[B, n, n]` after a change `size · x` of their encoding."""

    def moved(self, pair: Tensor, generator: torch.Generator, wave: int) -> Tensor:
        """Pairs of states `[B, 2, n, n]` under a random symmetry each."""


class Plain:
    """What a field does that is not told otherwise: changes are counted from the state itself."""

    channels: ClassVar[int] = 1

    @classmethod
    def of(cls, words: Mapping[str, Any], interval: float) -> Self:
        """See `Field`."""
        return cls()

    def encode(self, w: Tensor) -> Tensor:
        """See `Field`."""
        return w

    def expected(self, now: Tensor) -> tuple[Tensor, float]:
        """See `Field`."""
        return self.encode(now), 1.0

    def seen(self, now: Tensor, scale: float) -> Tensor:
        """See `Field`."""
        return (self.encode(now) / scale).unsqueeze(1)


class Vorticity(Plain):
    """ω of a flow that is forced at a wave number along y."""

    name: ClassVar[str] = "vorticity"
    parameters: ClassVar[tuple[str, ...]] = ("viscosity", "friction", "force", "wave")
    nonnegative: ClassVar[bool] = False

    def held(self, y: Tensor) -> Tensor:
        """See `Field`."""
        return y - y.mean((2, 3), keepdim=True)

    def advance(self, now: Tensor, x: Tensor, size: float) -> Tensor:
        """See `Field`."""
        return now + size * project(x).to(x)

    def moved(self, pair: Tensor, generator: torch.Generator, wave: int) -> Tensor:
        """Along x by any number of points, along y by whole periods of the force."""
        n = pair.shape[-1]
        return shifted(pair, generator, n // wave if n % wave == 0 else n)


class Density(Plain):
    """ρ/ρ̄ of bodies that attract each other, in a periodic box that has no direction."""

    name: ClassVar[str] = "density"
    parameters: ClassVar[tuple[str, ...]] = ("dimensions", "box", "sigma8", "slope", "shape")
    nonnegative: ClassVar[bool] = True
    floor = 0.1

    def encode(self, w: Tensor) -> Tensor:
        """See `Field`."""
        return (w + self.floor).log()

    def held(self, y: Tensor) -> Tensor:
        """See `Field`."""
        return y

    def advance(self, now: Tensor, x: Tensor, size: float) -> Tensor:
        """See `Field`."""
        whole = now.double().mean((-2, -1), keepdim=True)
        later = ((self.encode(now) + size * x).double().exp() - self.floor).clamp(min=0)
        mean = later.mean((-2, -1), keepdim=True)
        return (later * whole / mean.clamp(min=1e-12)).to(now)

    def moved(self, pair: Tensor, generator: torch.Generator, wave: int) -> Tensor:
        """By any number of points, turned and mirrored."""
        pair = shifted(pair, generator, 1)
        turn = torch.rand(3, len(pair), 1, 1, 1, generator=generator, device=generator.device) < 0.5
        for chosen, other in zip(turn, (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT)):
            pair = torch.where(chosen, other(pair), pair)
        return pair


def shifted(pair: Tensor, generator: torch.Generator, period: int) -> Tensor:
    """Pairs `[B, 2, n, n]` moved along the last axis by any number of points, along the one before by whole periods."""
    count, n, device = len(pair), pair.shape[-1], generator.device
    along = torch.randint(0, n, (count, 1), generator=generator, device=device)
    across = period * torch.randint(0, n // period, (count, 1), generator=generator, device=device)
    line = torch.arange(n, device=device)
    rows, columns = (line + across) % n, (line + along) % n
    pair = pair.gather(2, rows[:, None, :, None].expand_as(pair))
    return pair.gather(3, columns[:, None, None].expand_as(pair))


FIELDS: dict[str, type[Field]] = {f.name: f for f in (Vorticity, Density, PhaseSpace)}
"""The kinds of fields that can be modelled."""


def field_of(name: str, words: Mapping[str, Any], interval: float) -> Field:
    """The kind of that name, of a file's attributes. Raises `PerrinError` where there is none."""
    if name not in FIELDS:
        raise PerrinError(f"expected a field of {', '.join(FIELDS)}, given {name}: there is no model of it")
    return FIELDS[name].of(words, interval)
