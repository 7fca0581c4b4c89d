"""What U-Nets share (Ronneberger et al. 2015, arXiv:1505.04597), whatever their norms and convolutions are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """`x + conv(silu(norm(conv(silu(norm(x)))) (1 + a) + b))` with a and b from the noise level; the identity at first.

    Arguments:
        inputs, outputs: channels.
        time: size of what it is told.
        dropout: before the second convolution.
        norms: of the inputs, and of what the noise level scales, given the channels.
        convolution: of 3 x 3 cells that keeps the grid, given the channels in and out.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time: int,
        dropout: float,
        *,
        norms: tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]],
        convolution: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.norm_a = norms[0](inputs)
        self.conv_a = convolution(inputs, outputs)
        self.norm_b = norms[1](outputs)
        self.time = nn.Linear(time, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_b = convolution(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        for p in self.conv_b.parameters():
            if p.ndim > 1:  # not the bias
                nn.init.zeros_(p)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """`[B, inputs, rows, columns]` and `[B, time]` to `[B, outputs, rows, columns]`."""
        scale, shift = self.time(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_a(F.silu(self.norm_a(x)))
        h = F.silu(self.norm_b(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv_b(self.dropout(h))


def levels_of(
    block: Callable[[int, int], nn.Module], first: int, widths: Sequence[int], blocks: int
) -> tuple[nn.ModuleList, nn.Module, nn.ModuleList]:
    """The blocks down, in the middle and up, each of (channels in, out), for `down_and_up`.

    Arguments:
        first: channels that come in.
        widths: on each level, the finest first, which is also what goes out.
        blocks: on each level, down and up.
    """
    down, up = nn.ModuleList(), nn.ModuleList()
    at, kept = first, []
    for w in widths:
        for _ in range(blocks):
            down.append(block(at, w))
            at = w
            kept.append(w)
    middle = block(at, at)
    for w in reversed(widths):
        for _ in range(blocks):
            up.append(block(at + kept.pop(), w))
            at = w
    return down, middle, up


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
