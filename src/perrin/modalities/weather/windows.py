"""Assimilation in windows of time: a diffusion model of short pieces of trajectory is the prior, the dynamics in it learned.

With x = (x_1 … x_T) a piece of T states, observations in the window and a background b of its first state from the
observations before,

    p(x | y, b) ∝ p(x) · N(b; x_1, B) · Π_t N(y_t; h(x_t), R),

sampled by a guide (`perrin.core.guides.posterior.MMPS`); score-based data assimilation (Rozet & Louppe 2023) with windows
that are tied by a background in place of one long trajectory, so that the cost of a cycle does not grow. b and the diagonal
B are the mean and the variance of the analysis of the time of x_1, which has seen the observations up to that time and
none of those that the window holds: nothing counts twice. The ensemble of the last states is the analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perrin.core import (
    SOLVERS,
    Composite,
    CounterNoise,
    Denoiser,
    DenoisingLoss,
    Dense,
    EDMHead,
    Gaussian,
    GeneratorNoise,
    NetworkDenoiser,
    Process,
    State,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import logit_normal
from perrin.core.guides.operators import Map, Operator
from perrin.core.guides.posterior import MMPS, Measurement
from perrin.core.losses import sample_times_edm, stratified

FIELD = "window"


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Sizes of the network.

    Arguments:
        length: T, states in a window.
        sites: n, on a circle.
        width, blocks: of the network, which sees `2 · blocks` sites to either side.
    """

    length: int = 8
    sites: int = 40
    width: int = 64
    blocks: int = 6

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Block(nn.Module):
    """`x + W₂ (a ⊙ SiLU(b))`, `(a, b) = W₁` of a site's and its neighbours' features: products, as advection has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.level = nn.Linear(width, 2 * width)
        self.first = nn.Linear(3 * width, 4 * width)
        self.second = nn.Linear(3 * 2 * width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.level(e)[:, None].chunk(2, -1)
        h = self.norm(x) * (1 + scale) + shift
        a, b = self.first(_neighbours(h)).chunk(2, -1)
        return x + self.second(_neighbours(a * nn.functional.silu(b)))


def _neighbours(x: Tensor) -> Tensor:
    return torch.cat([x.roll(1, 1), x, x.roll(-1, 1)], -1)


class WindowNetwork(nn.Module):
    """A network on the circle whose channels are the times of the window; it commutes with rotations."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(
            torch.exp(torch.linspace(-1.5, 3.0, config.width // 2)), persistent=False
        )
        self.level = nn.Sequential(nn.Linear(config.width, config.width), nn.SiLU())
        self.enter = nn.Linear(3 * config.length, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, config.length)
        nn.init.zeros_(self.leave.weight)

    def forward(
        self,
        fields: State,
        t: Tensor,
        *,
        condition: Any = None,
        layouts: Any = None,
        previous: State | None = None,
    ) -> State:
        """`fields["window"]`: `[B, T, n]`."""
        angle = (torch.logit(t.clamp(1e-5, 1 - 1e-5)) / 4)[:, None] * self.frequencies.to(t)
        e = self.level(torch.cat([angle.cos(), angle.sin()], 1))
        h = self.enter(_neighbours(fields[FIELD].transpose(1, 2)))
        for block in self.blocks:
            h = block(h, e)
        return {FIELD: self.leave(h).transpose(1, 2)}


def build_denoiser(config: WindowConfig) -> NetworkDenoiser:
    """The network with its process and head, for windows of mean zero and variance one."""
    process = Composite(fields={FIELD: Gaussian(features=(config.length, config.sites))})
    return NetworkDenoiser(WindowNetwork(config), process, {FIELD: EDMHead(sigma_data=1.0)})


class WindowTask:
    """Windows of long runs, for the trainer.

    Arguments:
        denoiser: made by `build_denoiser`.
        config: its sizes.
        states: normalised, `[runs, steps, n]`.
        batch: windows in a step.
    """

    def __init__(
        self, denoiser: NetworkDenoiser, config: WindowConfig, states: Tensor, *, batch: int
    ) -> None:
        self.denoiser, self.states, self.batch, self.length = denoiser, states, batch, config.length
        self.config = {"model": config.to_json(), "states": list(states.shape[:2])}
        self.criterion = DenoisingLoss()

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.states = self.states.to(device)

    def compile(self) -> None:
        """Compile the blocks."""
        for block in self.denoiser.network.blocks:  # type: ignore[union-attr]
            block.compile()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[int, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        runs, steps = self.states.shape[:2]
        device = self.states.device
        which = torch.randint(runs, (self.batch, 1), generator=generator, device=device)
        first = torch.randint(steps - self.length + 1, (self.batch, 1), generator=generator, device=device)
        x_0 = self.states[which, first + torch.arange(self.length, device=device)]
        u = stratified(torch.rand(self.batch, generator=generator, device=device))
        process = self.denoiser.process
        t = sample_times_edm(u, process.fields[FIELD].schedule, mean=-1.2, std=1.6, low=1e-3, high=0.999)
        noise, layouts = GeneratorNoise(generator), {FIELD: Dense(self.batch, device)}
        x_t = process.corrupt_state({FIELD: x_0}, t, noise, layouts)[FIELD]
        return 0, {k: v[rank::world] for k, v in {"t": t, "x_0": x_0, "x_t": x_t}.items()}

    def loss(self, model: Callable[..., Any], key: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        estimate = model({FIELD: batch["x_t"]}, batch["t"], layouts=layouts)
        return self.criterion(self.denoiser, {FIELD: batch["x_0"]}, estimate, batch["t"], layouts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What is observed of a state: `y = h(x) + ε`, ε normal.

    Arguments:
        h: of states in the model's units, `[..., n]`, to `[..., m]`; differentiable.
        error: standard deviation, a number or `[m]`.
    """

    h: Callable[[Tensor], Tensor]
    error: Tensor | float = 1.0


@dataclass(frozen=True, eq=False)
class _Seen(Operator):
    """The window's background and observations in one vector, each divided by its error."""

    sight: Sight
    at: tuple[int, ...]
    shift: Tensor
    scale: Tensor
    spread: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.shift
        parts = [(self.sight.h(x[:, k]) / self.sight.error) for k in self.at]
        if self.spread is not None:
            parts.append(x[:, 0] / self.spread)
        return torch.cat([p.flatten(1) for p in parts], 1)

    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        value, back = torch.func.vjp(self, x)
        return value, lambda v: torch.func.jvp(self, (x,), (v,))[1], lambda w: back(w)[0]


@dataclass(frozen=True, kw_only=True)
class WindowFilter:
    """Cycles of analyses; see the module's text.

    Arguments:
        denoiser, process: the prior of windows `[T, n]`, of variance near one after `(x − shift) / scale`.
        length: T.
        shift, scale: of the states.
        members: of the ensemble.
        steps: evaluations of the denoiser in a cycle.
        iterations: of conjugate gradients in each.
        inflation: of the background's standard deviation, for what the prior and the diagonal B leave out.
        floor: its least value, in the model's units.
    """

    denoiser: Denoiser
    process: Process
    length: int
    shift: float = 0.0
    scale: float = 1.0
    members: int = 16
    steps: int = 16
    iterations: int = 6
    inflation: float = 1.0
    floor: float = 0.05

    def run(
        self, observations: Sequence[Tensor | None], sight: Sight, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Analyses at every time.

        Arguments:
            observations: `[m]` for each time, or `None`.
            sight: what they are of.
            seed: of the members.

        Returns:
            Mean and standard deviation of the ensemble, `[times, n]`. Where nothing is seen they are forecasts.
        """
        means, spreads = [], []
        for now in range(len(observations)):
            first = max(0, now - self.length + 1)
            at = tuple(
                k
                for k in range(now - first + 1)
                if observations[first + k] is not None and (first + k or k == 0)
            )
            background = (means[first], spreads[first]) if first else None
            if first:
                at = tuple(k for k in at if k)  # the background has seen the first
            x = self.window(observations, first, at, background, sight, seed=seed, cycle=now)
            last = x[:, now - first]
            means.append(last.mean(0)), spreads.append(last.std(0))
        return torch.stack(means), torch.stack(spreads)

    def window(
        self,
        observations: Sequence[Tensor | None],
        first: int,
        at: tuple[int, ...],
        background: tuple[Tensor, Tensor] | None,
        sight: Sight,
        *,
        seed: int,
        cycle: int,
    ) -> Tensor:
        """Members of one window, `[M, T, n]`, in the model's units."""
        spread = None
        y = [torch.as_tensor(observations[first + k]) / sight.error for k in at]
        if background is not None:
            spread = (self.inflation * background[1]).clamp(min=self.floor)
            y.append(background[0] / spread)
        shift, scale = torch.tensor(self.shift), torch.tensor(self.scale)
        guide = self.denoiser
        composite = (
            self.process if isinstance(self.process, Composite) else Composite(fields={FIELD: self.process})
        )
        if y:
            guide = MMPS(
                denoiser=self.denoiser,
                schedule=composite.fields[FIELD].schedule,
                measurement=Measurement(_Seen(sight, at, shift, scale, spread), torch.cat(y)[None], std=1.0),
                field=FIELD,
                iterations=self.iterations,
            )
        plan = plan_steps(
            composite,
            SOLVERS["dpmpp-2m"],
            self.steps,
            grid=lambda n: logit_normal(n, mean=-1.5, std=1.6, start=0.999),
        )
        seeds = sample_seeds(seed * 1_000_003 + cycle, range(self.members))
        layouts = {FIELD: Dense(self.members)}
        found = sample(guide, composite, plan, layouts, CounterNoise(seeds))
        return found[FIELD] * scale + shift
