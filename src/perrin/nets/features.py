"""Embeddings of scalars: time and distance, which everything depends on, and intervals that are asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of `t ∈ [0, 1]` at geometric frequencies, then a two-layer perceptron.

    Arguments:
        width: size of the embedding.
        frequencies: number of frequencies, from `1` to `max_frequency` radians over the unit interval.
    """

    frequency: Tensor

    def __init__(self, width: int, frequencies: int = 32, max_frequency: float = 1000.0) -> None:
        super().__init__()
        steps = torch.arange(frequencies, dtype=torch.float64) / max(frequencies - 1, 1)
        self.register_buffer(
            "frequency", torch.exp(steps * math.log(max_frequency)).float(), persistent=False
        )
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        """`[B]` to `[B, width]`."""
        angle = t[:, None] * self.frequency.to(t.dtype)
        return self.mlp(torch.cat((angle.sin(), angle.cos()), dim=-1))


class RadialBasis(nn.Module):
    """Bumps in `exp(−d)` (Unke and Meuwly 2019, PhysNet): fine where bonds are, coarse far away.

    `φ_k(d) = exp(−β (e^{−d} − μ_k)²)` with centres even in `e^{−d}` between 0 and 1.

    Arguments:
        size: number of basis functions.
    """

    centre: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer(
            "centre", torch.linspace(0, 1, size, dtype=torch.float64).float(), persistent=False
        )
        self.beta = (2.0 / size) ** -2

    def forward(self, d: Tensor) -> Tensor:
        """`[...]` distances to `[..., size]`."""
        return torch.exp(-self.beta * (torch.exp(-d).unsqueeze(-1) - self.centre.to(d.dtype)) ** 2)


class Waves(nn.Module):
    """Cosines and sines of a number of order one (a noise level, say), at geometric frequencies from 0.2 to 20. No weights.

    Arguments:
        width: numbers in all, even.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(torch.exp(torch.linspace(-1.5, 3.0, width // 2)), persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """`[B]` to `[B, width]`."""
        angle = level[:, None] * self.frequencies.to(level)
        return torch.cat([angle.cos(), angle.sin()], 1)


class IntervalEmbedding(nn.Module):
    """Intervals `[lo, hi]` of several quantities as one vector; zero at first, so that what it is added to stays itself.

    An end is described by whether it is closed, by `z / limit`, and by sines and cosines of `z` at wavelengths from
    `2 limit` down, each half the one before; an open end (±inf) by zeros. So the whole line, which asks for nothing, is
    all zeros. A quantity has a flag for being asked for at all, and one for a single point.

    Arguments:
        count: quantities, in standard units.
        width: size of the vector.
        hidden: width of the layer between.
        octaves: wavelengths.
        limit: ends are cut off at ± this.
    """

    frequency: Tensor

    def __init__(
        self, count: int, width: int, *, hidden: int = 256, octaves: int = 7, limit: float = 8.0
    ) -> None:
        super().__init__()
        self.count, self.limit = count, limit
        wavelength = 2 * limit * 0.5 ** torch.arange(octaves, dtype=torch.float64)
        self.register_buffer("frequency", (2 * math.pi / wavelength).float(), persistent=False)
        self.features = 2 + 2 * (2 + 2 * octaves)  # of each quantity
        self.first = nn.Linear(count * self.features, hidden)
        self.time = nn.Linear(width, hidden, bias=False)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.last = nn.Linear(hidden, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, intervals: Tensor, time: Tensor) -> Tensor:
        """`[B, count, 2]` and the embedded time `[B, width]` to `[B, width]`; in full precision, for the last octave"""
        with torch.autocast(device_type=intervals.device.type, enabled=False):
            dtype = self.frequency.dtype
            closed = torch.isfinite(intervals)
            z = torch.where(closed, intervals, 0.0).to(dtype).clamp(-self.limit, self.limit)
            angle = z.unsqueeze(-1) * self.frequency
            ends = torch.cat((z.unsqueeze(-1) / self.limit, angle.sin(), angle.cos()), dim=-1)
            flag = closed.to(dtype).unsqueeze(-1)
            ends = torch.cat((flag, ends * flag), dim=-1).flatten(2)  # [B, count, 2 · …]
            asked = closed.any(-1)
            point = asked & (intervals[..., 0] == intervals[..., 1])
            x = torch.cat((asked.to(dtype).unsqueeze(-1), point.to(dtype).unsqueeze(-1), ends), dim=-1)
            h = self.first(x.flatten(1)) + self.time(time.to(dtype))
            out: Tensor = self.last(self.mlp(h)) * asked.any(-1, keepdim=True).to(dtype)
        return out
