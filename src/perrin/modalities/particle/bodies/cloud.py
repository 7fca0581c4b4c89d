"""Cloud-in-cell: particles on a periodic mesh, and the mesh at particles, with the same weights.

A particle at `x` (in cells, `0 ≤ x < m` along each axis) is shared among the `2^d` cells around it by
`Π_i (1 − |x_i − j_i|)` (Hockney and Eastwood 1988, §5-3). Weights add up to one, so the mesh holds the particles'
whole mass. A force that is made on the mesh by an odd kernel and read with these weights has no net force on all of
them.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def cells(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cells around particles and their weights.

    Arguments:
        x: positions in cells, `[..., N, d]`, of any period.
        size: m.

    Returns:
        Flat numbers of cells and weights, both `[..., N, 2^d]`.
    """
    low = x.floor()
    part = x - low
    corner = low.long().remainder(size)
    index, weight = [], []
    for step in itertools.product((0, 1), repeat=x.shape[-1]):
        flat, share = torch.zeros_like(corner[..., 0]), torch.ones_like(x[..., 0])
        for axis, up in enumerate(step):
            flat = flat * size + (corner[..., axis] + up) % size
            share = share * (part[..., axis] if up else 1 - part[..., axis])
        index.append(flat)
        weight.append(share)
    return torch.stack(index, -1), torch.stack(weight, -1)


def deposit(index: Tensor, weight: Tensor, size: int, dimensions: int) -> Tensor:
    """Particles of mass 1 per cell, `[m, …]` for `[N, 2^d]` of `cells`."""
    out = weight.new_zeros(size**dimensions)
    out.index_add_(0, index.flatten(), weight.flatten())
    return out.reshape((size,) * dimensions)


def gather(field: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Fields `[C, m, …]` at particles, `[N, C]`."""
    flat = field.reshape(len(field), -1)
    return (flat[:, index] * weight).sum(-1).T
