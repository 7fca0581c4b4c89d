"""The way through a U-Net (Ronneberger et al. 2015, arXiv:1505.04597), whatever its blocks are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def down_and_up(
    h: Tensor, e: Tensor, down: nn.ModuleList, middle: nn.Module, up: nn.ModuleList, *, levels: int
) -> Tensor:
    """Down by means over 2 x 2 cells, through the middle, and up by copies, with what was on each level beside.

    Arguments:
        h: `[B, C, rows, columns]`.
        e: what every block is told, `[B, E]`.
        down, up: as many blocks on each level.
        levels: rows and columns are halved and doubled `levels - 1` times.
    """
    blocks = len(down) // levels
    stack = []
    for k in range(levels):
        if k:
            h = F.avg_pool2d(h, 2)
        for j in range(blocks):
            h = down[k * blocks + j](h, e)
            stack.append(h)
    h = middle(h, e)
    for k in range(levels):
        for j in range(blocks):
            h = up[k * blocks + j](torch.cat([h, stack.pop()], 1), e)
        if k < levels - 1:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
    return h
