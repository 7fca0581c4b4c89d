"""A U-Net on latitude–longitude grids: convolutions padded as the sphere continues the grid.

Rows are padded over the poles and columns around the circle (`perrin.nets.sphere.pad_sphere`); components of vectors
among the inputs change sign over a pole. Down and up by a factor of two: means of 2 × 2 cells, and nearest neighbours.
The noise level enters as scale and shift of every block's normalised features (Perez et al. 2018; Dhariwal & Nichol
2021).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.errors import PerrinError
from perrin.nets.features import Waves
from perrin.nets.sphere import pad_sphere
from perrin.nets.unet import down_and_up


@dataclass(frozen=True, kw_only=True)
class SphereUNetConfig:
    """Sizes.

    Arguments:
        inputs, outputs: channels.
        vectors: numbers of the inputs that are components of vectors.
        width: channels on the finest grid; doubled on the coarser ones.
        levels: grids, each half as fine as the one before.
        blocks: on each grid, down and up.
        dropout: in the blocks.
    """

    inputs: int
    outputs: int
    vectors: tuple[int, ...] = ()
    width: int = 96
    levels: int = 3
    blocks: int = 2
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(pad_sphere(x, 1, 1))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int, dropout: float) -> None:
        super().__init__()
        self.norm_a = nn.GroupNorm(min(16, inputs // 4), inputs)
        self.conv_a = _Convolution(inputs, outputs)
        self.norm_b = nn.GroupNorm(min(16, outputs // 4), outputs, affine=False)
        self.time = nn.Linear(time, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_b = _Convolution(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv_b.inner.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.time(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_a(F.silu(self.norm_a(x)))
        h = F.silu(self.norm_b(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv_b(self.dropout(h))


class SphereUNet(nn.Module):
    """See the module's text.

    Arguments:
        config: sizes.

    Raises:
        PerrinError: the widths do not fit the normalisation.
    """

    signs: Tensor

    def __init__(self, config: SphereUNetConfig) -> None:
        super().__init__()
        c = config
        if c.width % 16 or c.levels < 1:
            raise PerrinError(
                f"expected a width that 16 divides and one grid or more, given {c.width}, {c.levels}"
            )
        self.config = config
        vectors = torch.zeros(c.inputs, dtype=torch.bool)
        vectors[list(c.vectors)] = True
        self.register_buffer("signs", vectors, persistent=False)
        time = 4 * c.width
        self.waves = Waves(c.width)
        self.time = nn.Sequential(nn.Linear(c.width, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(c.inputs, c.width, 3)
        widths = [c.width * min(2**k, 4) for k in range(c.levels)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        at, kept = c.width, [c.width]
        for w in widths:
            for _ in range(c.blocks):
                self.down.append(_Block(at, w, time, c.dropout))
                at = w
                kept.append(w)
        self.middle = _Block(at, at, time, c.dropout)
        for w in reversed(widths):
            for _ in range(c.blocks):
                self.up.append(_Block(at + kept.pop(), w, time, c.dropout))
                at = w
        self.norm = nn.GroupNorm(16, at)
        self.leave = _Convolution(at, c.outputs)
        for p in self.leave.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Outputs `[B, outputs, rows, columns]`.

        Arguments:
            x: `[B, inputs, rows, columns]`; rows and columns are divided by two `levels − 1` times.
            level: what the noise level is told by, of order one, `[B]`.
        """
        e = self.time(self.waves(level))
        plain = pad_sphere(x, 1, 1)
        h = self.enter(torch.where(self.signs[:, None, None], pad_sphere(x, 1, 1, vector=True), plain))
        h = down_and_up(h, e, self.down, self.middle, self.up, levels=self.config.levels)
        return self.leave(F.silu(self.norm(h)))
