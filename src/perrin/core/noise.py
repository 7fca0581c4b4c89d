"""Noise as a pure function of (seed of the sample, step, field, purpose, element).

There is no state: nothing is drawn "next", so batch size, order, rank and restart cannot change a sample. Each 64-bit word,
two elements' worth, is the hash of a key and a counter. With `fold(z)`: the low half of z xor its high half, and all
arithmetic modulo 2^64,

    z ← k ⊕ c_i,    z ← fold(M₁ z + k′),    z ← fold(M₂ z + k),    z ← fold(M₃ z).

`(k, k′)` is the sample's key, two words of SplitMix64 from its seed, xor two words that name step, field and purpose; `c_i`
is the i-th word of SplitMix64 from 0. The rounds are those of SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators") with shifts of half a word, one round more, and keys between them (Even and
Mansour 1997). A round is two passes over memory in any tensor library; Philox takes ninety in all. Interleaved by element,
sample or step, the words pass `dieharder` 3.31 (22 tests, three interleavings, 153 p-values from 0.010 to 0.9998).

Normal numbers are made of words by Box and Muller's transformation. Both uniform numbers that enter it are words rounded to
float32, whatever the dtype asked for; so dtypes differ by the rounding of the transformation alone.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

from perrin.core.layout import Layout

_MASK = 0xFFFFFFFF
_WORD = 0xFFFFFFFFFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_NORMAL, _UNIFORM, _SEED = 0, 1, 2
_STEP = 0x9E3779B97F4A7C15  # SplitMix64's: 2^64 by the golden ratio
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)


def philox4x32(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), for seeds.

    All arguments are int64 tensors of 32-bit words that broadcast together.
    """
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


def signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def splitmix64(state: int, number: int) -> int:
    """Output `number` (from 1) of SplitMix64 that starts in `state`: both words of 64 bits."""
    z = (state + number * _STEP) & _WORD
    z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & _WORD
    z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & _WORD
    return z ^ (z >> 31)


def splitmix64_tensor(state: Tensor, number: Tensor | int) -> Tensor:
    """`splitmix64` of int64 tensors."""
    add = number * signed(_STEP) if isinstance(number, Tensor) else signed(number * _STEP & _WORD)
    z = state + add
    for shift, multiplier in ((30, _MULTIPLIERS[0]), (27, _MULTIPLIERS[1]), (31, 1)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * signed(multiplier)
    return z


def field_id(name: str) -> int:
    """A stable 32-bit number for a field's name (CRC-32 of its UTF-8 bytes)."""
    return zlib.crc32(name.encode())


@lru_cache(maxsize=4096)
def address(field: str, step: int, purpose: int) -> tuple[int, int]:
    """Two words, as int64, that name a field, a step and what numbers are for."""
    name = splitmix64(field_id(field) | purpose << 32, 1)
    place = splitmix64(name ^ (step & _WORD), 1)
    return signed(splitmix64(place, 1)), signed(splitmix64(place, 2))


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
    """Counter-based noise for samples with the given seeds: the same integers on every device, in any batch.

    Arguments:
        seeds: one seed per sample, `[B]`, int64; any numbers, such as `sample_seeds` or 0, 1, 2, ….
        dtype: of the numbers returned. Uniform numbers are computed in float64 and then rounded; normal ones are computed in
            float64 for float64 and in float32 otherwise, from the same words: they differ by less than 3e-6.
    """

    seeds: Tensor
    dtype: torch.dtype = torch.float32

    @cached_property
    def _keys(self) -> tuple[Tensor, Tensor]:
        """Two words for each sample, `[B, 1]`."""
        seeds = self.seeds.to(torch.int64)[:, None]
        return splitmix64_tensor(seeds, 1), splitmix64_tensor(seeds, 2)

    @cached_property
    def _counters(self) -> dict[int, Tensor]:
        return {}

    def _counter(self, size: int) -> Tensor:
        """`c_i`, `[1, size]`: made once for each size, and a sampler asks for few."""
        if size not in self._counters:
            number = torch.arange(1, size + 1, device=self.seeds.device)
            self._counters[size] = splitmix64_tensor(torch.zeros_like(number), number)[None]
        return self._counters[size]

    def _count(self, layout: Layout, features: tuple[int, ...]) -> int:
        if self.seeds.shape[0] != layout.batch:
            raise ValueError(
                f"expected a seed for each of {layout.batch} samples, given {self.seeds.shape[0]} seeds"
            )
        return layout.count(prod(features))

    def words(self, count: int, *, field: str, step: int, purpose: int) -> Tensor:
        """At least `count` words of 32 bits, as int32, `[B, ⌈count / 2⌉, 2]`."""
        (key, key_), (name, name_) = self._keys, address(field, step, purpose)
        key, key_ = key ^ name, key_ ^ name_
        z = key ^ self._counter((count + 1) // 2)
        halves = z.view(torch.int32).unflatten(1, (-1, 2))  # the low half comes first
        low, high = halves.unbind(-1)
        for k, multiplier in zip((key_, key, None), _MULTIPLIERS, strict=True):
            if k is None:
                z.mul_(signed(multiplier))
            else:
                torch.add(k, z, alpha=signed(multiplier), out=z)
            low.bitwise_xor_(high)
        return halves

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        count = self._count(layout, features)
        halves = self.words(count, field=field, step=step, purpose=_NORMAL)
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        angle, u = (w.to(torch.float32) for w in halves.unbind(-1))
        u.add_(0.5).abs_().mul_(
            2.0**-31
        )  # in (0, 1], finest near 0, where the tail is; in float32, where it cannot pass 1
        angle, u = angle.to(dtype).mul_(math.pi * 2.0**-31), u.to(dtype)
        radius = u.log_().mul_(-2.0).sqrt_()
        pairs = torch.empty(halves.shape, dtype=dtype, device=halves.device)
        x, y = pairs.unbind(-1)
        torch.mul(radius, torch.cos(angle), out=x)
        torch.mul(radius, angle.sin_(), out=y)
        return layout.place(pairs.flatten(1)[:, :count].to(self.dtype), features)

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> Tensor:
        count = self._count(layout, features)
        words = self.words(count, field=field, step=step, purpose=_UNIFORM).flatten(1)[:, :count]
        # the largest number below one, so that a rounded uniform never reaches it
        below_one = 1.0 - torch.finfo(self.dtype).eps / 2
        flat = words.to(torch.float64).add_(2.0**31 + 0.5).mul_(2.0**-32).clamp_(max=below_one)
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
