"""Making each of a few features normal by its own quantiles, so that a network has only their dependence to learn.

With knots q_0 … q_K, the quantiles of the training data at even probabilities, `u = F(x)` is piecewise linear between
them and `z = Φ⁻¹(ε + (1 − 2ε) u)`. The inverse gives back what lies between the smallest and largest training value.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EDGE = 1e-4


def knots(x: Tensor, count: int = 257) -> Tensor:
    """Quantiles of `[N, d]` at `count` even probabilities, `[d, count]`, rising strictly."""
    q = torch.quantile(x.double(), torch.linspace(0, 1, count, dtype=torch.float64), dim=0).T.contiguous()
    rise = 1e-9 * (1 + q.abs().amax(1, keepdim=True)) * torch.arange(count, dtype=torch.float64)
    return (torch.cummax(q, dim=1).values + rise).contiguous()


def to_normal(x: Tensor, q: Tensor) -> Tensor:
    """z of features; see the module's text.

    Arguments:
        x: `[N, d]`.
        q: knots, `[d, K]`, or one set for each row, `[N, d, K]`.
    """
    x, q = x.double(), q.double()
    table = q.expand(*x.shape, q.shape[-1]).contiguous()
    place = torch.searchsorted(table, x.unsqueeze(-1).contiguous()).clamp(1, q.shape[-1] - 1)
    low, high = (table.gather(-1, place + k).squeeze(-1) for k in (-1, 0))
    part = ((x - low) / (high - low)).clamp(0, 1)
    u = (place.squeeze(-1) - 1 + part) / (q.shape[-1] - 1)
    return torch.special.ndtri(_EDGE + (1 - 2 * _EDGE) * u).float()


def from_normal(z: Tensor, q: Tensor) -> Tensor:
    """The inverse of `to_normal`, float64."""
    q = q.double()
    u = ((torch.special.ndtr(z.double()) - _EDGE) / (1 - 2 * _EDGE)).clamp(0, 1) * (q.shape[-1] - 1)
    place = u.floor().long().clamp(max=q.shape[-1] - 2)
    table = q.expand(*z.shape, q.shape[-1])
    low, high = (table.gather(-1, (place + k).unsqueeze(-1)).squeeze(-1) for k in (0, 1))
    return low + (u - place) * (high - low)
