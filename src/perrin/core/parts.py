"""Parts of batches: one sample's rows, one sample alone, a batch repeated. For tests, and for those who split work."""

from __future__ import annotations

import torch
from torch import Tensor

from perrin.core.layout import Dense, Layout, Padded, Pairs, Ragged


def split(layout: Layout, x: Tensor) -> list[Tensor]:
    """A field's real rows, sample by sample."""
    if isinstance(layout, Padded):
        return [v[m] for v, m in zip(x, layout.mask, strict=True)]
    if isinstance(layout, Pairs):
        return [v[m][:, m] for v, m in zip(x, layout.mask, strict=True)]
    if isinstance(layout, Ragged):
        return [x[layout.index == i] for i in range(layout.batch)]
    return list(x)


def take(layout: Layout, i: int) -> Layout:
    """The layout of sample `i` alone; padding is kept."""
    if isinstance(layout, Padded | Pairs):
        return type(layout)(layout.mask[i : i + 1])
    if isinstance(layout, Ragged):
        return Ragged(torch.zeros_like(layout.index[layout.index == i]), 1)
    return Dense(1)


def take_field(layout: Layout, x: Tensor, i: int) -> Tensor:
    """Sample `i` of a field, as a batch of one."""
    return x[layout.index == i] if isinstance(layout, Ragged) else x[i : i + 1]


def tile(layout: Layout, copies: int) -> Layout:
    """The layout of the batch repeated `copies` times."""
    if isinstance(layout, Padded | Pairs):
        return type(layout)(layout.mask.repeat(copies, 1))
    if isinstance(layout, Ragged):
        shift = torch.arange(copies).repeat_interleave(len(layout.index)) * layout.batch
        return Ragged(layout.index.repeat(copies) + shift, layout.batch * copies)
    return Dense(layout.batch * copies)


def tile_field(layout: Layout, x: Tensor, copies: int) -> Tensor:
    """A field repeated `copies` times along its first axis."""
    return x.repeat(copies, *([1] * (x.ndim - 1)))
