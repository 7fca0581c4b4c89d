"""Properties of whole molecules, wished for as intervals.

A wish about a property is an interval `[lo, hi]` in standard units `z = (value − mean) / std`; a point has `lo = hi`, an
inequality one end at ±inf, and no wish both. One network serves every subset of the properties (`IntervalEmbedding`).

For training, intervals are drawn that hold the molecule's value, in such a way that the molecules that come with an
interval follow the data's law, cut off there: `p(x | lo, hi) ∝ p(x) 1[lo ≤ z ≤ hi]`.

- *point*: `lo = hi = z`;
- *band* of width w: `lo = z − u w`, u uniform, so that all values inside are equally likely to have drawn it;
- *side*: a threshold τ drawn without a look at z, then `[τ, ∞)` or `(−∞, τ]`, whichever holds z.

All wishes of a molecule are dropped at times, for classifier-free guidance; else either one property is wished for, or a
random subset. A value that is not known (NaN) is never wished for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perrin.errors import PerrinError

STANDARD = ("alpha", "gap", "homo", "lumo", "mu", "cv")
"""The six properties of QM9 that conditional models are compared on (EDM, Hoogeboom et al. 2022)."""
TABLE = "table"
"""The name, among a bundle's tensors, of the molecules that sizes are drawn from (`Table`)."""
TABLE_SIZE = 20_000
"""Molecules in it."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """A property of the training data.

    Arguments:
        name: as in the data.
        unit: of the numbers below.
        mean, std: over the training data.
        low, high: the smallest and the largest value there.
    """

    name: str
    unit: str
    mean: float
    std: float
    low: float
    high: float

    def standard(self, value: float) -> float:
        """In standard units."""
        return (value - self.mean) / self.std


def measure(names: Sequence[str], units: Mapping[str, str], values: Tensor) -> tuple[Range, ...]:
    """Ranges of the columns of `values` `[M, P]`; NaN is left out.

    Raises:
        PerrinError: a property has fewer than two different values.
    """
    out = []
    for name, column in zip(names, values.double().unbind(1), strict=True):
        known = column[torch.isfinite(column)]
        if len(known) < 2 or float(known.std()) == 0:
            raise PerrinError(
                f"expected at least two different values of {name} to learn from, given {len(known)} molecules with it: "
                "leave it out of --conditions"
            )
        out.append(
            Range(
                name=name, unit=units.get(name, ""), mean=float(known.mean()), std=float(known.std()),
                low=float(known.min()), high=float(known.max()),
            )
        )  # fmt: skip
    return tuple(out)


def standardise(values: Tensor, ranges: Sequence[Range]) -> Tensor:
    """`z` of `values` `[M, P]`, in float32."""
    mean = torch.tensor([r.mean for r in ranges], dtype=torch.float64, device=values.device)
    std = torch.tensor([r.std for r in ranges], dtype=torch.float64, device=values.device)
    return ((values.double() - mean) / std).float()


@dataclass(frozen=True, kw_only=True)
class IntervalLaw:
    """How intervals are drawn in training; see the module.

    Arguments:
        dropped: share of molecules without any wish.
        single: share of the rest with a wish for one property; the others have a random subset.
        point, band: shares of points and of bands among wishes; the rest are one-sided.
        narrow, wide: smallest and largest width of a band, log-uniform between.
        spread: standard deviation of the thresholds.
    """

    dropped: float = 0.15
    single: float = 0.45
    point: float = 0.5
    band: float = 0.25
    narrow: float = 0.03
    wide: float = 4.0
    spread: float = 1.5

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Intervals `[B, P, 2]` for values `[B, P]`."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=z.device)

        batch, count = z.shape
        kind, place = uniform(batch, count), uniform(batch, count)
        width = self.narrow * (self.wide / self.narrow) ** uniform(batch, count)
        low = z - place * width
        threshold = self.spread * torch.randn(batch, count, generator=generator, device=z.device)
        above = z >= threshold
        inf = torch.full_like(z, math.inf)
        point = torch.stack((z, z), -1)
        # z itself stays inside whatever rounding does
        band = torch.stack((torch.minimum(low, z), torch.maximum(low + width, z)), -1)
        side = torch.stack((torch.where(above, threshold, -inf), torch.where(above, inf, threshold)), -1)
        kinds = kind.unsqueeze(-1)
        out = torch.where(kinds < self.point, point, torch.where(kinds < self.point + self.band, band, side))
        how = uniform(batch, 1)
        one = torch.nn.functional.one_hot((uniform(batch) * count).long().clamp(max=count - 1), count).bool()
        some = uniform(batch, count) < 0.5
        asked = torch.where(uniform(batch, 1) < self.single, one, some) & (how >= self.dropped)
        asked &= torch.isfinite(z)
        whole = torch.tensor([-math.inf, math.inf], device=z.device)
        return torch.where(asked.unsqueeze(-1), out, whole)


def nothing(batch: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Intervals `[B, P, 2]` that ask for nothing."""
    return torch.tensor([-math.inf, math.inf], device=device).repeat(batch, count, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Random molecules of the training data: their numbers of atoms `[M]` and properties in standard units `[M, P]`.

    Numbers of atoms are drawn from those of its molecules that meet a wish, so for any subset of the properties:
    `p(n | wishes)`. EDM keeps a histogram `p(property | n)` of one property in its place.
    """

    sizes: Tensor
    z: Tensor
    soft: float = 0.05

    @classmethod
    def choose(cls, sizes: Tensor, z: Tensor, *, count: int = TABLE_SIZE, seed: int = 0) -> Table:
        """`count` molecules at random."""
        pick = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))[:count]
        return cls(sizes=sizes[pick].long(), z=z[pick].float())

    def pack(self) -> Tensor:
        """One tensor `[M, 1 + P]` for a bundle; half precision has three digits, which is finer than `soft`."""
        return torch.cat((self.sizes[:, None].float(), self.z), dim=1)

    @classmethod
    def unpack(cls, packed: Tensor) -> Table:
        """The inverse of `pack`."""
        return cls(sizes=packed[:, 0].round().long(), z=packed[:, 1:].float())

    def inside(self, intervals: Tensor) -> Tensor:
        """Which molecules meet intervals `[P, 2]`, bool `[M]`; a point is met within `soft`."""
        wide = torch.where(intervals[:, :1] == intervals[:, 1:], self.soft, 0.0) * torch.tensor([-1.0, 1.0])
        low, high = (intervals + wide).T
        known = torch.isfinite(self.z) | torch.isinf(intervals).all(1)
        return (((self.z >= low) & (self.z <= high)) | torch.isinf(intervals).all(1)).all(1) & known.all(1)

    def weights(self, intervals: Tensor) -> Tensor:
        """`exp(−d² / 2 soft²)` with the distance `d` of each molecule to the intervals `[P, 2]`, `[M]`; beyond all
        molecules, those nearest to the wish."""
        asked = ~torch.isinf(intervals).all(1)
        low, high = intervals[asked].T
        z = self.z[:, asked]
        apart = torch.clamp(low - z, min=0) + torch.clamp(z - high, min=0)
        d2 = torch.where(torch.isfinite(z), apart, 1e3).double().square().sum(1)
        return torch.exp(-(d2 - d2.min()) / (2 * self.soft**2))


def ranges_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Range, ...]:
    """The inverse of `asdict`."""
    return tuple(Range(**r) for r in data)
