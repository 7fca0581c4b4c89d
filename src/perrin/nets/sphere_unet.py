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
from perrin.nets.unet import ResidualBlock, down_and_up, levels_of


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


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(16, channels // 4), channels)


def _plain_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(16, channels // 4), channels, affine=False)


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

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(
                inputs, outputs, time, c.dropout, norms=(_norm, _plain_norm), convolution=_Convolution
            )

        self.down, middle, self.up = levels_of(block, c.width, widths, c.blocks)
        self.middle = middle
        self.norm = nn.GroupNorm(16, widths[0])
        self.leave = _Convolution(widths[0], c.outputs)
        for p in self.leave.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Outputs `[B, outputs, rows, columns]`.

        Arguments:
            x: `[B, inputs, rows, columns]`; rows and columns are divided by two `levels − 1` times.
            level: what the noise level is told by, of order one, `[B]`.
        """
        e = self.time(self.waves(level))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has no room for the smallest scales
            x = x.to(self.enter.weight.dtype)
            plain = pad_sphere(x, 1, 1)
            h = self.enter(torch.where(self.signs[:, None, None], pad_sphere(x, 1, 1, vector=True), plain))
        h = down_and_up(h, e, self.down, self.middle, self.up, levels=self.config.levels)
        return self.leave(F.silu(self.norm(h)))
