"""A small U-Net for fields on a torus: every convolution is periodic, so that it commutes with shifts by whole blocks."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F


class PeriodicBlock(nn.Module):
    """`x + Conv(SiLU((1 + γ) ⊙ Norm(Conv(x)) + β))`, with γ and β from the condition; at first the identity."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
        self.norm = nn.GroupNorm(min(8, channels), channels)
        self.modulation = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, C, n, n]`, `c` `[B, condition]`."""
        g, b = self.modulation(c)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.silu(self.norm(self.first(x)) * (1 + g) + b))


class PeriodicLevel(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, channels: int, blocks: int, condition: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PeriodicBlock(channels, condition) for _ in range(blocks))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """See `PeriodicBlock.forward`."""
        for block in self.blocks:
            x = block(x, c)
        return x


class PeriodicUNet(nn.Module):
    """Fields to fields of the same grid.

    Arguments:
        inside, outside: channels.
        widths: channels of the levels, each of half the resolution.
        blocks: in each level, down and up.
        condition: width of the condition.
    """

    def __init__(
        self, inside: int, outside: int, widths: tuple[int, ...], blocks: int, condition: int
    ) -> None:
        super().__init__()
        self.inner = nn.Conv2d(inside, widths[0], 3, padding=1, padding_mode="circular")
        self.down = nn.ModuleList(PeriodicLevel(w, blocks, condition) for w in widths)
        self.up = nn.ModuleList(PeriodicLevel(w, blocks, condition) for w in widths[:-1])
        pairs = list(itertools.pairwise(widths))
        self.narrow = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in pairs)
        self.widen = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.outer = nn.Conv2d(widths[0], outside, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`x` `[B, inside, n, n]`, `c` `[B, condition]`."""
        h = self.inner(x)
        kept = []
        for k, level in enumerate(self.down):
            h = level(h, c)
            if k < len(self.narrow):
                kept.append(h)
                h = self.narrow[k](F.pixel_unshuffle(h, 2))
        for k in reversed(range(len(self.widen))):
            h = kept[k] + F.pixel_shuffle(self.widen[k](h), 2)
            h = self.up[k](h, c)
        return self.outer(h)


def downsampled(widths: tuple[int, ...], size: int) -> bool:
    """Whether a grid of that size can be halved often enough."""
    return size % 2 ** (len(widths) - 1) == 0 and size >= 2 ** len(widths)


__all__ = ["PeriodicBlock", "PeriodicUNet", "downsampled"]
