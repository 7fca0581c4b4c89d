"""Noise as a pure function of (seed of the sample, step, field, element).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a bijection of a 128-bit counter
under a 64-bit key. The key is the sample's seed; the counter is (block of four elements, step, field, purpose). There is
no state: nothing is drawn "next", so batch size, order, rank and restart cannot change a sample.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from perrin.core.layout import Layout

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_NORMAL, _UNIFORM, _SEED = 0, 1, 2


def philox4x32(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32. All arguments are int64 tensors of 32-bit words that broadcast together."""
    for _ in range(10):
        # 64-bit products; int64 wraps, and only their bits are used. The low words c1 and c3 go unmasked into the next
        # round, which only looks at their low 32 bits.
        p0, p1 = c0 * _M0, c2 * _M1
        n0, n2 = _mixed(p1 >> 32, c1 ^ k0), _mixed(p0 >> 32, c3 ^ k1)
        c0, c1, c2, c3 = n0, p1, n2, p0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def _mixed(high: Tensor, low: Tensor) -> Tensor:
    """`(high ^ low) & 0xFFFFFFFF`, in place where `high` has the shape of the result already."""
    if high.dim() >= low.dim() and all(
        h == n or n == 1 for h, n in zip(high.shape[high.dim() - low.dim() :], low.shape, strict=True)
    ):
        return high.bitwise_xor_(low).bitwise_and_(_MASK)
    return (high ^ low).bitwise_and_(_MASK)


def field_id(name: str) -> int:
    """A stable 32-bit number for a field's name (CRC-32 of its UTF-8 bytes)."""
    return zlib.crc32(name.encode())


def sample_seeds(seed: int, indices: Tensor | range) -> Tensor:
    """The seeds of samples `indices` (`[B]`, int64) of the run with seed `seed`: 63-bit numbers, `[B]`, int64."""
    if isinstance(indices, range):
        indices = torch.arange(indices.start, indices.stop, indices.step)
    i = indices.to(torch.int64)
    zero = torch.zeros_like(i)
    words = philox4x32(
        i & _MASK, (i >> 32) & _MASK, zero + _SEED, zero, zero + (seed & _MASK), zero + ((seed >> 32) & _MASK)
    )
    return (words[0] >> 1 << 32) | words[1]


class Noise(ABC):
    """Where a process takes its random numbers from."""

    @abstractmethod
    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        """Standard normal numbers for every row of `layout`, `features` each."""

    @abstractmethod
    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        """Uniform numbers in (0, 1) for every row of `layout`, `features` each."""


@dataclass(frozen=True, eq=False)
class CounterNoise(Noise):
    """Philox noise for samples with the given seeds.

    Arguments:
        seeds: one seed per sample, `[B]`, int64.
        dtype: of the numbers returned. They are computed in float64 and then rounded, so that float32 and float64 runs
            see the same noise.
    """

    seeds: Tensor
    dtype: torch.dtype = torch.float32

    def _count(self, layout: Layout, features: tuple[int, ...]) -> int:
        if self.seeds.shape[0] != layout.batch:
            raise ValueError(
                f"expected a seed for each of {layout.batch} samples, given {self.seeds.shape[0]} seeds"
            )
        return layout.count(prod(features))

    def words(self, count: int, *, field: str, step: int, purpose: int) -> Tensor:
        """`[B, count]` words of 32 bits, as int64."""
        blocks = torch.arange(-(-count // 4), device=self.seeds.device, dtype=torch.int64)[None]
        seeds = self.seeds[:, None]
        step_, field_ = torch.full_like(blocks, step & _MASK), torch.full_like(blocks, field_id(field))
        out = philox4x32(
            blocks, step_, field_, torch.full_like(blocks, purpose), seeds & _MASK, (seeds >> 32) & _MASK
        )
        return torch.stack(out, dim=-1).reshape(self.seeds.shape[0], 4 * blocks.shape[1])

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        count = self._count(layout, features)
        words = self.words(count, field=field, step=step, purpose=_NORMAL).to(torch.float64)
        u = ((words + 0.5) * 2.0**-32).reshape(words.shape[0], words.shape[1] // 2, 2)
        radius, angle = torch.sqrt(-2.0 * torch.log(u[..., 0])), 2.0 * math.pi * u[..., 1]
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)  # Box and Muller
        flat = pairs.reshape(words.shape)[:, :count]
        return layout.place(flat.to(self.dtype), features)

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        count = self._count(layout, features)
        words = self.words(count, field=field, step=step, purpose=_UNIFORM).to(torch.float64)
        # the largest number below one, so that a rounded uniform never reaches it
        below_one = 1.0 - torch.finfo(self.dtype).eps / 2
        flat = ((words + 0.5) * 2.0**-32)[:, :count].clamp(max=below_one)
        return layout.place(flat.to(self.dtype), features)


@dataclass(frozen=True, eq=False)
class GeneratorNoise(Noise):
    """Noise from a `torch.Generator`, for training: fast, reproducible for a fixed batch, not batch-invariant.

    `Pairs` fields are symmetric here too.
    """

    generator: torch.Generator
    dtype: torch.dtype = torch.float32

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        shape = (layout.batch, layout.count(prod(features)))
        flat = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=self.dtype)
        return layout.place(flat, features)

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        shape = (layout.batch, layout.count(prod(features)))
        flat = torch.rand(shape, generator=self.generator, device=self.generator.device, dtype=self.dtype)
        return layout.place(flat, features)
