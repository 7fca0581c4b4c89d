"""Embeddings of the two scalars that everything depends on: time and distance."""

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
