"""Assimilation in windows of time: a diffusion model of short pieces of trajectory is the prior, the dynamics in it learned.

With x = (x_1 … x_T) a piece of T states, y the observations in the window after its first state, and N(b, B) the analysis of
that state, which has seen the observations up to its time,

    p(x | y, b) ∝ p(x) · N(x_1; b, B) / p(x_1) · Π_{t>1} N(y_t; h(x_t), R),

sampled by a guide (`perrin.core.guides.posterior.MMPS`). This is score-based data assimilation (Rozet & Louppe 2023) with
windows tied by a background in place of one long trajectory, so that a cycle's cost does not grow; nothing counts twice.
The analysis of x_T is the ensemble of the last states; its covariance is tapered with distance (Houtekamer & Mitchell 2001)
and is the B of a window T − 1 steps later. p(x_1) is taken as normal with the covariance C. For a normal p(x) and a linear
h this is the Kalman filter.

The guide needs the network's Jacobian as a covariance, and h linearised. `WindowSmoother` needs neither: it samples long
pieces, without a background, by split Gibbs sampling (`perrin.core.guides.split`) in groups of members that compete, for h
that act site by site and may fold or saturate.
"""

from __future__ import annotations

from collections import deque
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
    NetworkDenoiser,
    State,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import logit_normal
from perrin.core.guides.operators import Map, Operator
from perrin.core.guides.posterior import MMPS, Measurement
from perrin.core.guides.split import Pointwise, falling, split_gibbs
from perrin.core.layout import Layouts
from perrin.modalities.weather.training import noised
from perrin.nets.features import Waves
from perrin.nets.field import FieldNetwork

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


class WindowNetwork(FieldNetwork):
    """A network on the circle whose channels are the times of the window; it commutes with rotations."""

    field = FIELD

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.waves = Waves(config.width)
        self.level = nn.Sequential(nn.Linear(config.width, config.width), nn.SiLU())
        self.enter = nn.Linear(3 * config.length, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, config.length)
        nn.init.zeros_(self.leave.weight)

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """`x`: `[B, T, n]`."""
        e = self.level(self.waves(torch.logit(t.clamp(1e-5, 1 - 1e-5)) / 4))
        h = self.enter(_neighbours(x.transpose(1, 2)))
        for block in self.blocks:
            h = block(h, e)
        return self.leave(h).transpose(1, 2)


def build_denoiser(config: WindowConfig) -> NetworkDenoiser:
    """The network with its process and head, for windows of mean zero and variance one."""
    process = Composite(fields={FIELD: Gaussian(features=(config.length, config.sites))})
    return NetworkDenoiser(WindowNetwork(config), process, {FIELD: EDMHead(sigma_data=1.0)})


class Chained(nn.Module):
    """A denoiser of longer pieces, `[B, L, n]`, from one of windows `[B, T, n]`.

    Each state's estimate is that of the window in which it is nearest to the middle: of a Markov chain the states far away
    in time add little to what the near ones say (Rozet & Louppe 2023, section 3.1).

    Arguments:
        denoiser: of windows.
        length: T.
        stride: between windows; the last one ends where the piece does.
    """

    def __init__(self, denoiser: Denoiser, length: int, stride: int) -> None:
        super().__init__()
        self.denoiser, self.length, self.stride = denoiser, length, stride

    def forward(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        """See `perrin.core.Denoiser`."""
        whole = x[FIELD]
        batch, count = whole.shape[:2]
        starts = [*range(0, count - self.length, self.stride), count - self.length]
        windows = torch.cat([whole[:, s : s + self.length] for s in starts])
        within = {FIELD: Dense(len(windows), whole.device)}
        found = self.denoiser({FIELD: windows}, t.repeat(len(starts)), condition=condition, layouts=within)[
            FIELD
        ]
        parts = found.split(batch)
        middle = (self.length - 1) / 2
        out = []
        for i in range(count):
            k = min(
                range(len(starts)),
                key=lambda k: (not 0 <= i - starts[k] < self.length, abs(i - starts[k] - middle)),
            )
            out.append(parts[k][:, i - starts[k]])
        return {FIELD: torch.stack(out, 1)}


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
        batch = noised(self.denoiser.process, FIELD, x_0, generator, mean=-1.2, std=1.6)
        return 0, {k: v[rank::world] for k, v in batch.items()}

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
class Observed(Operator):
    """The observations of a window, each divided by its error, and the background's parts: numbers of unit noise.

    Arguments:
        sight: what is seen.
        at: the steps of the window at which it is.
        shift, scale: the window is of `(x − shift) / scale`.
        background: rows of what the first state's background sees of it, `[k, n]`.
    """

    sight: Sight
    at: tuple[int, ...]
    shift: float
    scale: float
    background: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        parts = [self.sight.h(x[:, k] * self.scale + self.shift) / self.sight.error for k in self.at]
        if self.background is not None:
            parts.append(x[:, 0] @ self.background.T)
        return torch.cat(parts, 1)

    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        value, back = torch.func.vjp(self, x)[:2]
        return value, lambda v: torch.func.jvp(self, (x,), (v,))[1], lambda w: back(w)[0]


def gaspari_cohn(sites: int, radius: float) -> Tensor:
    """The taper that is zero from `2 · radius` on, between sites on a circle, `[n, n]` (Gaspari & Cohn 1999, eq. 4.10)."""
    d = torch.arange(sites, dtype=torch.float64)
    d = torch.minimum(d, sites - d) / radius
    near = 1 - 5 / 3 * d**2 + 5 / 8 * d**3 + d**4 / 2 - d**5 / 4
    safe = d.clamp(min=1)
    far = 4 - 5 * safe + 5 / 3 * safe**2 + 5 / 8 * safe**3 - safe**4 / 2 + safe**5 / 12 - 2 / (3 * safe)
    row = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    return torch.stack([row.roll(k) for k in range(sites)])


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowFilter:
    """Cycles of analyses; see the module's text.

    Arguments:
        denoiser, process: the prior of windows `[T, n]` of `(x − shift) / scale`.
        length: T.
        climate: C, the covariance of one state of the prior, `[n, n]`.
        taper: of the analysis' covariance, `[n, n]`; ones leave it as it is.
        shift, scale: of the states.
        members: of the ensemble.
        steps: evaluations of the denoiser in a cycle.
        iterations: of conjugate gradients in each; few, for the same reason.
        inflation: of the background's standard deviation, for what the prior and the sample leave out.
        floor: the least standard deviation of a background, in units of `scale`.
        grid: mean and width of the logits of the times at which the denoiser is evaluated.
        start: the first of them. A learned Jacobian is no covariance where there is little signal: late is safe.
    """

    denoiser: Denoiser
    process: Composite
    length: int
    climate: Tensor
    taper: Tensor
    shift: float = 0.0
    scale: float = 1.0
    members: int = 20
    steps: int = 16
    iterations: int = 2
    inflation: float = 1.0
    floor: float = 0.01
    grid: tuple[float, float] = (-1.0, 1.4)
    start: float = 0.97

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
        analyses: list[Tensor] = []
        for now in range(len(observations)):
            first = max(0, now - self.length + 1)
            at = tuple(k for k in range(bool(first), now - first + 1) if observations[first + k] is not None)
            y = [torch.as_tensor(observations[first + k]).to(self.climate) for k in at]
            background = analyses[first] if first else None
            window = self.window(
                y, at, sight, background, seeds=sample_seeds(seed * 1_000_003 + now, range(self.members))
            )
            analyses.append(window[:, now - first])
        x = torch.stack(analyses) * self.scale + self.shift
        return x.mean(1), x.std(1)

    def window(
        self,
        y: Sequence[Tensor],
        at: tuple[int, ...],
        sight: Sight,
        background: Tensor | None,
        *,
        seeds: Tensor,
    ) -> Tensor:
        """Members of one window, `[M, T, n]`, of `(x − shift) / scale`.

        Arguments:
            y: observations, `[m]` each, in the model's units.
            at: the steps of the window that they are of, from 0.
            sight: what they are of.
            background: members of the analysis of the first state, `[M, n]`, of `(x − shift) / scale`.
            seeds: of the members.
        """
        values, matrix = [v / sight.error for v in y], None
        if background is not None:
            matrix, value = self._background(background)
            values.append(value)
        guide: Denoiser = self.denoiser
        if values:
            seen = Observed(sight, at, self.shift, self.scale, matrix)
            guide = MMPS(
                denoiser=self.denoiser,
                schedule=self.process.fields[FIELD].schedule,
                measurement=Measurement(seen, torch.cat(values)[None], std=1.0),
                field=FIELD,
                iterations=self.iterations,
            )
        mean, std = self.grid
        plan = plan_steps(
            self.process,
            SOLVERS["dpmpp-2m"],
            self.steps,
            grid=lambda n: logit_normal(n, mean=mean, std=std, start=self.start),
        )
        layouts = {FIELD: Dense(len(seeds))}
        noise = CounterNoise(seeds, dtype=self.climate.dtype)
        return sample(guide, self.process, plan, layouts, noise)[FIELD]

    def _background(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Rows √Λ Qᵀ and what they should see, of B⁻¹ − C⁻¹ = Q Λ Qᵀ and the mean that goes with it."""
        x = members.double()
        n = x.shape[1]
        B = self.inflation**2 * torch.cov(x.T) * self.taper + self.floor**2 * torch.eye(n, dtype=x.dtype)
        inverse = torch.linalg.inv(B)
        values, Q = torch.linalg.eigh(inverse - torch.linalg.inv(self.climate.double()))
        root = values.clamp(min=0).sqrt()
        seen = torch.where(root > 1e-6, (Q.T @ (inverse @ x.mean(0))) / root.clamp(min=1e-6), 0.0)
        return (root[:, None] * Q.T).to(members), seen.to(members)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowSmoother:
    """Posterior draws of pieces of trajectory, each from its own observations alone.

    Arguments:
        denoiser, process: the prior of pieces `[L, n]` of `(x − shift) / scale`, `Chained` where they are long.
        shift, scale: of the states.
        members: of a group, which compete for the piece that they share.
        rho: the blur of the observations at the beginning and at the end, in the states' units: from wider than what is
            not known to well below the error of the observations.
        levels, hold: falling values of the blur, and repetitions of the last.
        keep: how many of the last levels' draws are returned.
        evaluations: of the denoiser in each level.
    """

    denoiser: Denoiser
    process: Composite
    shift: float = 0.0
    scale: float = 1.0
    members: int = 8
    rho: tuple[float, float] = (8.0, 0.4)
    levels: int = 100
    hold: int = 10
    keep: int = 10
    evaluations: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.levels + self.hold:
            raise ValueError(f"expected keep from 1 to {self.levels + self.hold}, given {self.keep}")

    def run(self, y: Tensor, at: Sequence[int], sight: Sight, *, seed: int = 0) -> Tensor:
        """Draws, `[pieces, keep · members, L, n]`.

        Arguments:
            y: observations of each piece, `[pieces, times, n]`.
            at: the steps of the piece that they are of, rising.
            sight: what they are of; h acts site by site, its error is a number or `[n]`.
            seed: of the members.
        """
        length, n = (int(k) for k in self.process.fields[FIELD].features)  # type: ignore[attr-defined]
        pieces = len(y)
        seen = torch.zeros(length, n, dtype=torch.bool)
        seen[list(at)] = True
        likelihood = Pointwise(
            lambda z: sight.h(z * self.scale + self.shift),
            y.flatten(1).repeat_interleave(self.members, 0),
            torch.as_tensor(sight.error).expand(len(at), n).flatten(),
            seen,
        )
        batch = pieces * self.members
        start, stop = (r / self.scale for r in self.rho)
        draws = split_gibbs(
            self.denoiser,
            self.process,
            likelihood,
            CounterNoise(sample_seeds(seed, range(batch)), dtype=y.dtype),
            batch,
            rhos=falling(start, stop, self.levels, self.hold),
            evaluations=self.evaluations,
            members=self.members,
        )
        kept = deque((draw.x for draw in draws), maxlen=self.keep)
        x = torch.stack(list(kept)) * self.scale + self.shift
        x = x.reshape(len(kept), pieces, self.members, length, n)
        return x.transpose(0, 1).flatten(1, 2)
