"""The jet networks: a perceptron for a jet's six numbers, and a permutation-equivariant transformer for its particles.

Particles attend to each other with a bias that a small perceptron makes of Δη, Δφ and Δ log pT of each pair, so that the
network sees angles between particles as they are at that noise. Padding is neither seen nor changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perrin.core import Clean, Composite, Dense, EDMHead, Gaussian, Layouts, NetworkDenoiser, Padded, State
from perrin.modalities.particle.jets.files import CLASSES, WIDTH
from perrin.modalities.particle.staged import Staged, full_precision
from perrin.nets import TimeEmbedding
from perrin.nets.linear import linear
from perrin.nets.transformer import AdaptiveTransformer, ResidualMLP

FEATURES = 6
"""pT, η, mass, constituents, relative mass and relative pT of the hardest 30."""
PARTICLES, JET, KIND, MASK = "particles", "jet", "class", "mask"
_BLOCKED = -1e4


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes: of the transformer over particles, and (`first_…`) of the perceptron for the jet."""

    depth: int = 6
    width: int = 128
    heads: int = 8
    condition: int = 128
    pair: int = 32
    first_depth: int = 4
    first_width: int = 192


@dataclass(frozen=True, kw_only=True)
class JetConfig:
    """Everything that a bundle's `config.json` says about a jet model.

    Arguments:
        classes: of jets, in the order of the condition.
        knots: quantiles of the six features, class by class, `[classes][6][K]`; see `quantiles`.
        angle_scale: what η_rel and φ_rel are divided by.
        log_pt: mean and deviation of log pT_rel.
        network: sizes.
    """

    classes: tuple[str, ...]
    knots: tuple[Any, ...]
    angle_scale: float = 0.1
    log_pt: tuple[float, float] = (-4.0, 1.0)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JetConfig:
        """The inverse. Raises `TypeError` or `KeyError` when a name is unknown or missing."""
        more = {k: v for k, v in data.items() if k not in ("network", "classes", "log_pt", "kind")}
        config = cls(
            classes=tuple(data["classes"]),
            log_pt=tuple(data["log_pt"]),
            network=NetworkConfig(**data["network"]),
            **more,
        )
        if not set(config.classes) <= set(CLASSES):
            raise KeyError(f"classes {config.classes}")
        return config


class JetNetwork(nn.Module):
    """`(z_t of the six features, class, t) → output`."""

    def __init__(self, c: NetworkConfig, classes: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(c.condition)
        self.kind = nn.Linear(classes, c.condition)
        self.inner = nn.Linear(FEATURES, c.first_width)
        self.body = ResidualMLP(c.first_depth, c.first_width, c.condition)
        self.outer = nn.Linear(c.first_width, FEATURES)

    def forward(
        self, fields: State, t: Tensor, *, condition: Any, layouts: Layouts, previous: Any = None
    ) -> State:
        x = fields[JET]
        with full_precision(x):
            h = self.inner(x)
            c = torch.nn.functional.silu(self.time(t) + self.kind(fields[KIND]))
        h = self.body(h, c)
        with full_precision(x):
            return {JET: self.outer(h.float())}


class ParticleNetwork(nn.Module):
    """`(particles at noise t, jet's features, class) → output`; commutes with permutations of the particles."""

    def __init__(self, c: NetworkConfig, classes: int) -> None:
        super().__init__()
        self.heads = c.heads
        self.time = TimeEmbedding(c.condition)
        self.told = nn.Sequential(
            nn.Linear(FEATURES + classes, c.condition), nn.SiLU(), nn.Linear(c.condition, c.condition)
        )
        self.inner = nn.Linear(3, c.width)
        self.pairs = nn.Sequential(
            nn.Linear(4, c.pair), nn.GELU(approximate="tanh"), nn.Linear(c.pair, c.heads)
        )
        self.trunk = AdaptiveTransformer(c.depth, c.width, c.heads, c.condition)
        self.outer = nn.Linear(c.width, 3)

    def forward(
        self, fields: State, t: Tensor, *, condition: Any, layouts: Layouts, previous: Any = None
    ) -> State:
        x, mask = fields[PARTICLES], fields[MASK]
        with full_precision(x):
            h = self.inner(x)
            difference = x.unsqueeze(2) - x.unsqueeze(1)
            apart = torch.log(difference[..., :2].square().sum(-1, keepdim=True) + 1e-4)
            seen = torch.cat((difference, apart), -1)
            c = torch.nn.functional.silu(self.time(t) + self.told(torch.cat((fields[JET], fields[KIND]), -1)))
        up, _, down = self.pairs
        bias = linear(down, linear(up, seen, gelu=True)).permute(0, 3, 1, 2).float()
        bias = bias.masked_fill(~mask[:, None, None, :], _BLOCKED)
        h = self.trunk(h, c, bias)
        with full_precision(x):
            y = self.outer(h.float())
        return {PARTICLES: torch.where(mask.unsqueeze(-1), y, torch.zeros_like(y))}


def build(config: JetConfig) -> Staged:
    """A fresh model, on the CPU in float32."""
    n = config.network
    first = Composite(fields={JET: Gaussian(features=(FEATURES,)), KIND: Clean()})
    second = Composite(
        fields={PARTICLES: Gaussian(features=(3,)), JET: Clean(), KIND: Clean(), MASK: Clean()}
    )
    count = len(config.classes)
    return Staged(
        NetworkDenoiser(JetNetwork(n, count), first, {JET: EDMHead()}),
        NetworkDenoiser(ParticleNetwork(n, count), second, {PARTICLES: EDMHead()}),
    )


def layouts_for(first: State, second: State) -> tuple[Layouts, Layouts]:
    """Layouts of both stages for given states (that of particles by the mask)."""
    mask = second[MASK]
    dense = Dense(len(mask), mask.device)
    return {JET: dense, KIND: dense}, {PARTICLES: Padded(mask), JET: dense, KIND: dense, MASK: dense}


__all__ = [
    "FEATURES",
    "JET",
    "KIND",
    "MASK",
    "PARTICLES",
    "WIDTH",
    "JetConfig",
    "NetworkConfig",
    "build",
    "layouts_for",
]
