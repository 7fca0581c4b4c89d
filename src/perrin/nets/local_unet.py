"""A U-Net whose output at a place depends on its surroundings alone, and its exact evaluation by tiles.

With 3 × 3 convolutions, pooling by 2 and features normalised at each place over channels alone (no statistics over the
map, as group normalisation takes them), the output at a cell is a function of the inputs within `halo` cells:

    halo = 1 + Σ_k 2^k c_k + 2^(L−1),        c_k = number of convolutions on grid k, + 1 for the last one

So a map is cut into tiles, each is evaluated with a margin of `halo` cells of its true surroundings, and the margin is
thrown away: what is left is the output of the whole map, whatever the tiles. Maps of any size need the memory of one tile.
A plane ends with zeros; around a circle of longitude the margin is taken from the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.errors import PerrinError
from perrin.nets.features import Waves
from perrin.nets.unet import ResidualBlock, down_and_up, levels_of


@dataclass(frozen=True, kw_only=True)
class LocalUNetConfig:
    """Sizes.

    Arguments:
        inputs, outputs: channels.
        width: channels on the finest grid, a multiple of 4; doubled on the coarser ones.
        levels: grids, each half as fine as the one before.
        blocks: on each grid, down and up.
        dropout: in the blocks.
    """

    inputs: int
    outputs: int
    width: int = 48
    levels: int = 3
    blocks: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % 4 or min(self.width, self.levels, self.blocks) < 1:
            raise PerrinError(
                "expected a width that 4 divides, one level and one block or more, given "
                f"{self.width}, {self.levels}, {self.blocks}"
            )

    @property
    def stride(self) -> int:
        """What divides the rows and columns of an input, and the tiles' corners."""
        return 2 ** (self.levels - 1)

    @property
    def halo(self) -> int:
        """How far the output sees, rounded up to a multiple of `stride`."""
        each = [4 * self.blocks] * self.levels  # two convolutions in each block, down and up
        each[-1] += 2  # the block in the middle
        reach = 2 + sum(2**k * c for k, c in enumerate(each)) + self.stride
        return -(-reach // self.stride) * self.stride

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Norm(nn.Module):
    """Root mean square over channels, at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.float().square().mean(1, keepdim=True) + 1e-6).rsqrt()
        return x * scale.to(x.dtype) * self.gain[:, None, None].to(x.dtype)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class LocalUNet(nn.Module):
    """See the module's text.

    Arguments:
        config: sizes.
    """

    def __init__(self, config: LocalUNetConfig) -> None:
        super().__init__()
        c = self.config = config
        time = 4 * c.width
        self.waves = Waves(c.width)
        self.time = nn.Sequential(nn.Linear(c.width, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = _convolution(c.inputs, c.width)
        widths = [c.width * min(2**k, 2) for k in range(c.levels)]

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(
                inputs, outputs, time, c.dropout, norms=(_Norm, _Norm), convolution=_convolution
            )

        self.down, middle, self.up = levels_of(block, c.width, widths, c.blocks)
        self.middle = middle
        self.norm = _Norm(widths[0])
        self.leave = _convolution(widths[0], c.outputs)
        for p in self.leave.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Outputs `[B, outputs, rows, columns]`.

        Arguments:
            x: `[B, inputs, rows, columns]`, rows and columns multiples of `config.stride`.
            level: what the noise level is told by, of order one, `[B]`.
        """
        e = self.time(self.waves(level))
        h = self.enter(x)
        h = down_and_up(h, e, self.down, self.middle, self.up, levels=self.config.levels)
        return self.leave(F.silu(self.norm(h)))


def tiles(length: int, size: int, halo: int, *, circle: bool = False) -> Iterator[tuple[slice, Tensor, int]]:
    """Pieces of an axis: what is kept, the indices of what is looked at, and where in them the kept part starts.

    Arguments:
        length: of the axis.
        size: of what is kept of a piece.
        halo: how much more is looked at, on both sides; less at the ends, unless the axis is a circle.
        circle: whether the axis closes.
    """
    for start in range(0, length, size):
        stop = min(start + size, length)
        low, high = start - halo, stop + halo
        if not circle:
            low, high = max(low, 0), min(high, length)
        yield slice(start, stop), torch.arange(low, high) % length, start - low


def tiled_work(rows: int, columns: int, size: int, halo: int, *, circle: bool = False) -> float:
    """Cells that are looked at, tile by tile with margins, for each one of the map; see `tiles`."""
    down = sum(len(i) for _, i, _ in tiles(rows, size, halo))
    across = sum(len(j) for _, j, _ in tiles(columns, size, halo, circle=circle))
    return down * across / (rows * columns)


def by_tiles(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    size: int,
    halo: int,
    stride: int,
    circle: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """A network's output for a map, from its outputs for tiles: the same for all sizes if it sees no further than `halo`.

    Arguments:
        network: `[B, C, rows, columns]` to `[B, K, rows, columns]`.
        x: the map, `[B, C, rows, columns]`.
        size: of the tiles without their margins, a multiple of `stride`.
        halo: the margin, a multiple of `stride`.
        stride: rows and columns that the network is given are multiples of it, by zeros beyond the end.
        circle: whether columns close.
        where: cells that are wanted, `[rows, columns]`: tiles without any are left zero.

    Raises:
        PerrinError: the sizes are no multiples.
    """
    if size < 1 or size % stride or halo % stride:
        raise PerrinError(
            f"expected tiles of a multiple of {stride} cells, given {size} and a margin of {halo}"
        )
    rows, columns = x.shape[-2:]
    out: Tensor | None = None
    for row, i, up in tiles(rows, size, halo):
        for column, j, left in tiles(columns, size, halo, circle=circle):
            height, width = row.stop - row.start, column.stop - column.start
            if where is not None and not where[row, column].any():
                continue
            piece = x.index_select(-2, i.to(x.device)).index_select(-1, j.to(x.device))
            y = network(F.pad(piece, (0, -len(j) % stride, 0, -len(i) % stride)))
            if out is None:
                out = y.new_zeros(*y.shape[:-2], rows, columns)
            out[..., row, column] = y[..., up : up + height, left : left + width]
    if out is None:
        raise PerrinError("expected cells that are wanted, given none: leave the field out")
    return out
