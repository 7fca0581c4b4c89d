"""The denoiser of residual amplitudes: a residual multilayer perceptron, small because 45 years are few.

It sees the noised amplitudes, log σ/α, the amplitudes of the past states and the season. With `EDMHead` and an output
that starts at zero it is exact, before any training, for amplitudes that are standard normal; training teaches how
their distribution depends on the past, and where it is not normal. Dropout acts in the blocks and on whole groups of
conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perrin.core import (
    Composite,
    DenoisingLoss,
    Dense,
    EDMHead,
    Gaussian,
    NetworkDenoiser,
    RectifiedFlow,
)
from perrin.modalities.weather.training import noised
from perrin.nets.field import FieldNetwork
from perrin.train import BatchPlan

FIELD = "amplitudes"


@dataclass(frozen=True, kw_only=True)
class AmplitudeConfig:
    """Sizes.

    Arguments:
        count: amplitudes that are diffused.
        condition: numbers of the condition.
        width, depth: of the perceptron.
        dropout: in its blocks.
        condition_dropout: the chance that a training sample's condition is hidden.
    """

    count: int
    condition: int
    width: int = 32
    depth: int = 1
    dropout: float = 0.3
    condition_dropout: float = 0.1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class AmplitudeNetwork(FieldNetwork):
    """See the module's text."""

    field = FIELD

    def __init__(self, config: AmplitudeConfig) -> None:
        super().__init__()
        c = self.config = config
        self.condition_dropout = c.condition_dropout
        self.enter = nn.Linear(c.count + c.condition + 1 + 16, c.width)
        self.frequencies = nn.Parameter(torch.randn(8), requires_grad=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(c.width),
                nn.Linear(c.width, 2 * c.width),
                nn.SiLU(),
                nn.Dropout(c.dropout),
                nn.Linear(2 * c.width, c.width),
            )
            for _ in range(c.depth)
        )
        self.leave = nn.Linear(c.width, c.count)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """`x`: `[B, K]`; `condition`: `[B, C]`."""
        given = torch.cat([condition, torch.ones_like(condition[:, :1])], 1)
        if self.training and self.condition_dropout:
            keep = torch.rand(len(x), 1, device=x.device) >= self.condition_dropout
            given = given * keep
        angle = torch.logit(t.clamp(1e-4, 1 - 1e-4))[:, None] * self.frequencies
        h = self.enter(torch.cat([x, given, angle.cos(), angle.sin()], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)


def build_denoiser(config: AmplitudeConfig) -> NetworkDenoiser:
    """The network with its process and head."""
    process = Composite(fields={FIELD: Gaussian(features=(config.count,), schedule=RectifiedFlow())})
    return NetworkDenoiser(AmplitudeNetwork(config), process, {FIELD: EDMHead(sigma_data=1.0)})


class AmplitudeTask:
    """Amplitudes with their conditions, for the trainer.

    Arguments:
        denoiser: made by `build_denoiser`.
        config: its sizes.
        amplitudes: `[n, K]`.
        condition: `[n, C]`.
        batch, seed: of the order of the samples.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: AmplitudeConfig,
        amplitudes: Tensor,
        condition: Tensor,
        *,
        batch: int,
        seed: int,
    ) -> None:
        self.denoiser, self.amplitudes, self.condition = denoiser, amplitudes, condition
        self.config = {"model": config.to_json(), "samples": len(amplitudes)}
        self.plan = BatchPlan([len(amplitudes)], batch, seed)
        self.criterion = DenoisingLoss()

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.amplitudes, self.condition = self.amplitudes.to(device), self.condition.to(device)

    def compile(self) -> None:
        """Nothing repeats often enough."""

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        _, index = self.plan(step)
        x_0, condition = self.amplitudes[index], self.condition[index]
        batch = noised(self.denoiser.process, FIELD, x_0, generator, mean=0.0, std=1.4)
        batch["condition"] = condition
        torch.manual_seed((step * 2654435761 + rank) % 2**63)  # of the dropout
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        estimate = model({FIELD: batch["x_t"]}, batch["t"], condition=batch["condition"], layouts=layouts)
        return self.criterion(self.denoiser, {FIELD: batch["x_0"]}, estimate, batch["t"], layouts)
