"""The shower networks: a perceptron for the energies of the layers, and a cylindrical network for the voxels given those.

Voxels pass a convolution that is periodic in angle, become one token for a patch of layers × angles × radii, meet in a
transformer, go back to voxels, and pass two more convolutions beside what came in. Tokens know their place along the axis,
their radius and, as sine and cosine, their angle.

Reference for the patches and the two stages: Favaro et al., CaloDREAM, arXiv:2405.09629; for periodic convolutions: Amram
and Pedro, CaloDiffusion, arXiv:2308.03876.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perrin.core import Clean, Composite, Dense, EDMHead, Gaussian, Layouts, NetworkDenoiser, State
from perrin.modalities.particle.showers.geometry import ANGLES, LAYERS, RADII
from perrin.modalities.particle.staged import Staged, full_precision
from perrin.nets import TimeEmbedding
from perrin.nets.linear import linear
from perrin.nets.transformer import AdaptiveTransformer, ResidualMLP

LAYER, VOXEL, ENERGY, TOLD = "layers", "voxels", "energy", "told"
FEATURES = LAYERS + 1
"""The response, and the share of each layer."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes: of the voxel network, its patch (layers, angles, radii), and (`first_…`) of the perceptron for layers."""

    depth: int = 6
    width: int = 192
    heads: int = 6
    condition: int = 128
    channels: int = 8
    patch: tuple[int, int, int] = (3, 16, 1)
    first_depth: int = 5
    first_width: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        if any(n % k for n, k in zip((LAYERS, ANGLES, RADII), self.patch, strict=True)):
            raise ValueError(
                f"expected a patch that divides {LAYERS} × {ANGLES} × {RADII}, given {self.patch}"
            )


@dataclass(frozen=True, kw_only=True)
class ShowerConfig:
    """Everything that a bundle's `config.json` says about a shower model.

    Arguments:
        energy: range of the incident energy in the training data, GeV.
        response: mean of deposited over incident energy, and √GeV times its relative deviation.
        share_mean, share_std: of the logarithms of the layers' shares, `[45]`.
        voxel_mean: of the logarithms of the voxels' energies over the cut, by layer and radius, `[45][9]`.
        voxel_std: of their deviations from those means.
        network: sizes.
    """

    energy: tuple[float, float]
    response: tuple[float, float]
    share_mean: tuple[float, ...]
    share_std: tuple[float, ...]
    voxel_mean: tuple[Any, ...]
    voxel_std: float
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShowerConfig:
        """The inverse. Raises `TypeError` or `KeyError` when a name is unknown or missing."""
        more = {k: v for k, v in data.items() if k not in ("network", "kind")}
        for name in ("energy", "response", "share_mean", "share_std", "voxel_mean"):
            more[name] = tuple(data[name])
        return cls(network=NetworkConfig(**data["network"]), **more)


class LayerNetwork(nn.Module):
    """`(46 features at noise t, log energy, t) → output`."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.time = TimeEmbedding(c.condition)
        self.energy = EnergyEmbedding(c.condition)
        self.inner = nn.Linear(FEATURES, c.first_width)
        self.body = ResidualMLP(c.first_depth, c.first_width, c.condition)
        self.outer = nn.Linear(c.first_width, FEATURES)

    def forward(
        self, fields: State, t: Tensor, *, condition: Any, layouts: Layouts, previous: Any = None
    ) -> State:
        x = fields[LAYER]
        with full_precision(x):
            h = self.inner(x)
            c = F.silu(self.time(t) + self.energy(fields[ENERGY]))
        h = self.body(h, c)
        with full_precision(x):
            return {LAYER: self.outer(h.float())}


class EnergyEmbedding(nn.Module):
    """A perceptron of the scaled log energy `[B, 1]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, energy: Tensor) -> Tensor:
        return self.mlp(energy)


class CylinderConv(nn.Module):
    """A 3 × 3 × 3 convolution of `[B, C, layers, angles, radii]`: periodic in angle, zeros beyond the other two ends."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inside, outside, 3, padding=(1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat((x[..., -1:, :], x, x[..., :1, :]), dim=3))


class VoxelNetwork(nn.Module):
    """`(voxels at noise t, layers, log energy, t) → output`."""

    place: Tensor

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.patch, self.channels = c.patch, c.channels
        inside = c.channels * math.prod(c.patch)
        grid = [n // k for n, k in zip((LAYERS, ANGLES, RADII), c.patch, strict=True)]
        self.grid = tuple(grid)
        self.time = TimeEmbedding(c.condition)
        self.energy = EnergyEmbedding(c.condition)
        self.told = nn.Linear(FEATURES, c.condition)
        self.stem = CylinderConv(3, c.channels)
        self.embed = nn.Linear(inside, c.width)
        self.along = nn.Parameter(0.02 * torch.randn(grid[0], 1, 1, c.width))
        self.around = nn.Linear(2, c.width, bias=False)
        self.across = nn.Parameter(0.02 * torch.randn(1, 1, grid[2], c.width))
        self.trunk = AdaptiveTransformer(c.depth, c.width, c.heads, c.condition)
        self.unembed = nn.Linear(c.width, inside)
        self.mix = CylinderConv(2 * c.channels, c.channels)
        self.outer = CylinderConv(c.channels, 1)
        angle = 2 * math.pi * torch.arange(grid[1], dtype=torch.float64) / grid[1]
        turn = torch.stack([angle.cos(), angle.sin()], -1).float() * float(grid[1] > 1)
        self.register_buffer("place", turn.reshape(1, grid[1], 1, 2), persistent=False)

    def forward(
        self, fields: State, t: Tensor, *, condition: Any, layouts: Layouts, previous: Any = None
    ) -> State:
        x, layers = fields[VOXEL], fields[TOLD]
        with full_precision(x):
            shape = x.shape
            radius = torch.linspace(-1, 1, RADII, device=x.device, dtype=x.dtype).expand(shape)
            shares = layers[:, 1:, None, None].expand(shape)
            stem = self.stem(torch.stack((x, shares, radius), 1))
            c = F.silu(self.time(t) + self.energy(fields[ENERGY]) + self.told(layers))
        h = linear(self.embed, self._split(F.gelu(stem)))
        h = h + (self.along + self.around(self.place) + self.across).reshape(1, -1, h.shape[-1])
        h = linear(self.unembed, self.trunk(h, c))
        y = torch.cat((self._join(h), stem.to(h.dtype)), 1)
        if y.device.type == "cpu":  # the wide convolution is twice as fast there with the channels last
            y = y.contiguous(memory_format=torch.channels_last_3d)
        y = F.gelu(self.mix(y))
        with full_precision(x):
            return {VOXEL: self.outer(y.float()).squeeze(1)}

    def _split(self, x: Tensor) -> Tensor:
        """`[B, C, 45, 16, 9]` to tokens `[B, P, C · patch]`."""
        b, c = x.shape[:2]
        (gl, ga, gr), (pl, pa, pr) = self.grid, self.patch
        x = x.reshape(b, c, gl, pl, ga, pa, gr, pr).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return x.reshape(b, gl * ga * gr, c * pl * pa * pr)

    def _join(self, h: Tensor) -> Tensor:
        """The inverse of `_split`."""
        b, c = len(h), self.channels
        (gl, ga, gr), (pl, pa, pr) = self.grid, self.patch
        x = h.reshape(b, gl, ga, gr, c, pl, pa, pr).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(b, c, LAYERS, ANGLES, RADII)


def build(config: ShowerConfig) -> Staged:
    """A fresh model, on the CPU in float32."""
    n = config.network
    first = Composite(fields={LAYER: Gaussian(features=(FEATURES,)), ENERGY: Clean()})
    second = Composite(
        fields={VOXEL: Gaussian(features=(LAYERS, ANGLES, RADII)), TOLD: Clean(), ENERGY: Clean()}
    )
    return Staged(
        NetworkDenoiser(LayerNetwork(n), first, {LAYER: EDMHead()}),
        NetworkDenoiser(VoxelNetwork(n), second, {VOXEL: EDMHead()}),
    )


def layouts_for(first: State, second: State) -> tuple[Layouts, Layouts]:
    """Layouts of both stages."""
    energy = (first or second)[ENERGY]
    dense = Dense(len(energy), energy.device)
    return {LAYER: dense, ENERGY: dense}, {VOXEL: dense, TOLD: dense, ENERGY: dense}
