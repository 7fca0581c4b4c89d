"""A diffusion prior of pieces of two-layer flow, and their posterior given scattered observations of streamfunctions.

A piece x has T states of two layers on a doubly periodic grid, each layer divided by its standard deviation. As statistics
do not change from place to place, its Gaussian part is one Hermitian matrix S_k of T · 2 channels for every wave k, and

    W(x_t) = α S (α² S + σ²)⁻¹ x_t,        s² = diag mean_k S σ² (α² S + σ²)⁻¹

are the mean and the variance of the clean piece if it were normal. The denoiser is `D = W + s F([x_t, W], t)` with a
network F that is 0 at first: an untrained model assimilates as optimal interpolation does (Gandin 1963), in space and
time with all covariances of the data, and what is learned is what flow adds to that.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from perrin.bundle import Bundle, load_weights, tuples
from perrin.core import (
    SOLVERS,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.grids import logit_normal
from perrin.core.guides.operators import Map, Matrix
from perrin.core.guides.posterior import Measurement, Posterior
from perrin.errors import PerrinError
from perrin.modalities.weather.precise import halves, take
from perrin.modalities.weather.qg import PSI, coordinates
from perrin.modalities.weather.tables import read_observed
from perrin.modalities.weather.training import noised
from perrin.nets.features import Waves
from perrin.nets.field import FieldNetwork
from perrin.nets.periodic import PeriodicUNet, downsampled

FIELD = "window"


@dataclass(frozen=True, kw_only=True)
class QGConfig:
    """What a model is of.

    Arguments:
        states: T, of a piece.
        size: n, cells each way.
        hours: between states.
        length: of the square, m.
        scale: standard deviations of ψ in the two layers, m² s⁻¹.
        widths, blocks: of the network's levels.
    """

    states: int = 4
    size: int = 32
    hours: float = 192.0
    length: float = 5e5
    scale: tuple[float, float] = (1.0, 1.0)
    widths: tuple[int, ...] = (32, 48)
    blocks: int = 1

    def __post_init__(self) -> None:
        if self.states < 1 or not downsampled(self.widths, self.size):
            raise ValueError(f"expected states of at least 1 and a size that the levels halve, given {self}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a piece: `(T, 2, n, n)`."""
        return (self.states, 2, self.size, self.size)


def spectrum(x: Tensor) -> Tensor:
    """S_k of pieces `[N, T, 2, n, n]`: mean outer products of their orthonormal Fourier coefficients, `[n, n/2+1, C, C]`."""
    a = torch.fft.rfft2(x.flatten(1, 2), norm="ortho")
    return torch.einsum("bcyx,bdyx->yxcd", a, a.conj()) / len(x)


class QGDenoiser(FieldNetwork):
    """`E[x_0 | x_t]` of pieces `[B, T, 2, n, n]`; see the module's text.

    Arguments:
        config: sizes.
        covariance: S_k, `[n, n / 2 + 1, 2T, 2T]`, complex.
    """

    field = FIELD

    def __init__(self, config: QGConfig, covariance: Tensor) -> None:
        super().__init__()
        self.config = config
        self.process = Composite(fields={FIELD: Gaussian(features=config.shape)})
        values, vectors = torch.linalg.eigh(covariance)
        self.covariance = nn.Buffer(covariance)
        self.values = nn.Buffer(values.clamp(min=0))
        self.vectors = nn.Buffer(vectors)
        n, m = config.size, values.shape[1]
        twice = torch.full((m,), 2.0)
        twice[0] = twice[-1] = 1.0  # waves that have no conjugate of their own
        self.share = nn.Buffer(twice.expand(n, -1) / n**2)
        channels, width = 2 * config.states, 64
        self.level = nn.Sequential(Waves(width), nn.Linear(width, width), nn.SiLU())
        self.network = PeriodicUNet(2 * channels, channels, config.widths, config.blocks, width)
        for p in self.network.outer.parameters():
            nn.init.zeros_(p)

    def normal(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """W, `[B, 2T, n, n]`, and s, `[B, 2T]`, of `x_t` `[B, 2T, n, n]`."""
        schedule = self.process.fields[FIELD].schedule
        alpha, sigma = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
        over = alpha**2 * self.values + sigma**2
        a = torch.einsum("yxcj,bcyx->byxj", self.vectors.conj(), torch.fft.rfft2(x_t, norm="ortho"))
        b = torch.einsum("yxcj,byxj->bcyx", self.vectors, a * (alpha * self.values / over))
        left = torch.einsum(
            "yx,yxcj,byxj->bc", self.share, self.vectors.abs() ** 2, self.values * sigma**2 / over
        )
        return torch.fft.irfft2(b, s=x_t.shape[-2:], norm="ortho"), left.sqrt()

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The estimate."""
        x_t = x.flatten(1, 2)
        W, s = self.normal(x_t, t)
        schedule = self.process.fields[FIELD].schedule
        alpha, sigma = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
        e = self.level(torch.logit(t.clamp(1e-5, 1 - 1e-5)) / 4)
        seen = x_t / (alpha**2 + sigma**2).sqrt()
        D = W + s[:, :, None, None] * self.network(torch.cat([seen, W], 1), e)
        return D.reshape(x.shape)


class QGTask:
    """Pieces of runs, moved by whole cells at random, for the trainer.

    Arguments:
        denoiser: what is trained.
        states: divided by the scale, `[runs, times, 2, n, n]`.
        batch: pieces in a step.
        stride: states of a run from one of a piece to the next.
    """

    def __init__(self, denoiser: QGDenoiser, states: Tensor, *, batch: int, stride: int = 1) -> None:
        self.denoiser, self.states, self.batch, self.stride = denoiser, states, batch, stride
        self.config = {"model": asdict(denoiser.config), "states": list(states.shape), "stride": stride}

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.states = self.states.to(device)

    def compile(self) -> None:
        """Compile the levels."""
        for level in (*self.denoiser.network.down, *self.denoiser.network.up):
            level.compile()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[int, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        runs, times, n = *self.states.shape[:2], self.states.shape[-1]
        device, T = self.states.device, self.denoiser.config.states

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, (self.batch, *shape), generator=generator, device=device)

        first = draw(times - (T - 1) * self.stride, 1) + self.stride * torch.arange(T, device=device)
        x_0 = self.states[draw(runs, 1), first]
        cells = torch.arange(n, device=device)
        y, x = (((cells + draw(n, 1)) % n)[:, None, None] for _ in range(2))
        x_0 = x_0.gather(3, y[..., None].expand_as(x_0)).gather(4, x[..., None, :].expand_as(x_0))
        batch = noised(self.denoiser.process, FIELD, x_0, generator, mean=-1.2, std=1.6)
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The square error of D in units of what the normal estimate leaves: 1 where nothing is learned."""
        D = model({FIELD: batch["x_t"]}, batch["t"])[FIELD]
        s = self.denoiser.normal(batch["x_t"].flatten(1, 2), batch["t"])[1]
        error = (D - batch["x_0"]).flatten(1, 2) / s[:, :, None, None]
        return {"loss": error.square().mean()}


@dataclass(frozen=True, kw_only=True)
class QGObservations:
    """Values of ψ at places and times.

    Arguments:
        state: which state of the piece, from 0, `[m]`.
        layer: 0 or 1, `[m]`.
        y, x: m, `[m]`; a value is of the four cells around it, by linear interpolation.
        value, error: m² s⁻¹, `[m]`.
        first: hours of state 0.
    """

    state: Tensor
    layer: Tensor
    y: Tensor
    x: Tensor
    value: Tensor
    error: Tensor
    first: float = 0.0

    @property
    def time(self) -> Any:
        """Of state 0, in the made-up calendar of `perrin.modalities.weather.qg.coordinates`."""
        return cftime.datetime(2000, 1, 1) + datetime.timedelta(hours=self.first)

    def only(self, wanted: Tensor) -> QGObservations:
        """Some of them, by a mask `[m]`."""
        each: dict[str, Any] = {k: v[wanted] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **each)

    def matrix(self, config: QGConfig) -> Tensor:
        """Rows of `H x / ε` for `x` divided by its scale, `[m, T · 2 · n · n]`, float64."""
        n, m = config.size, len(self.value)
        out = torch.zeros(m, *config.shape, dtype=torch.float64)
        row, scale = torch.arange(m), torch.tensor(config.scale, dtype=torch.float64)[self.layer]
        at = [p / config.length * n - 0.5 for p in (self.y, self.x)]
        low = [a.floor() for a in at]
        for i in (0, 1):
            for j in (0, 1):
                part = [(1 - (a - b - k).abs()) for a, b, k in zip(at, low, (i, j))]
                cell = [(b.long() + k) % n for b, k in zip(low, (i, j))]
                out[row, self.state, self.layer, cell[0], cell[1]] += part[0] * part[1] * scale / self.error
        return out.flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalGuide(Posterior):
    """`D + C Hᵀ (1 + H C Hᵀ)⁻¹ (y − H D)`, with `C = S σ² (α² S + σ²)⁻¹`, the covariance of x_0 given x_t in the normal law.

    MMPS would have the Jacobian of D in place of C. A network's is no covariance, neither symmetric nor positive, and with
    many exact observations the sampler then blows up. This one is exact before anything is learned, and needs no
    derivative afterwards.

    Arguments:
        prior: the model, whose S is the normal law's.
        rows: H, `[m, T · 2 · n · n]`.
    """

    prior: QGDenoiser
    rows: Tensor
    differentiates = False

    def shift(
        self, residual: Tensor, alpha: Tensor, sigma: Tensor, forward: Map, adjoint: Map, covariance: Map
    ) -> Tensor:
        d, n = self.prior, self.prior.config.size
        a, s = (v.reshape(-1)[0] for v in (alpha, sigma))  # all samples are at one time
        left = d.values * s**2 / (a**2 * d.values + s**2)
        C = torch.einsum("yxcj,yxj,yxdj->yxcd", d.vectors, left.to(d.vectors.dtype), d.vectors.conj())
        H = torch.fft.rfft2(self.rows.reshape(len(self.rows), -1, n, n), norm="ortho")
        CH = torch.fft.irfft2(torch.einsum("yxcd,mdyx->mcyx", C, H), s=(n, n), norm="ortho").flatten(1)
        P = CH.double() @ self.rows.T.double()
        P = (P + P.T) / 2 + torch.eye(len(P), dtype=P.dtype)
        w = torch.linalg.solve(P, residual.double().T).T.to(residual.dtype)
        return (w @ CH).reshape(alpha.shape[0], *self.prior.config.shape)


class QGModel:
    """A prior and its posterior, which `perrin.modalities.weather.forecast.rollout` writes: a lead for each state.

    Arguments:
        denoiser: of pieces.
        steps: evaluations of the network.
        name, sha256: of the bundle.
    """

    kind = "qg"
    together = 8

    def __init__(
        self,
        denoiser: QGDenoiser,
        *,
        steps: int = 16,
        name: str = "qg",
        sha256: str = "",
    ) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.config, self.steps = denoiser.config, steps
        self.name, self.sha256 = name, sha256

    def to_json(self) -> dict[str, Any]:
        """The configuration of a bundle."""
        return {"kind": self.kind, "steps": self.steps} | asdict(self.config)

    def weights(self) -> dict[str, Tensor]:
        """Of a bundle, which keeps half precision: the covariance is in two parts, as correlations and logarithms."""
        S = self.denoiser.covariance
        depth = S.diagonal(dim1=2, dim2=3).real.clamp(min=1e-20)
        root = depth.sqrt()
        parts = {
            "variance": depth.log(),
            "correlation": torch.view_as_real(S / (root[..., :, None] * root[..., None, :])),
        }
        return dict(self.denoiser.named_parameters()) | halves(parts)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> QGModel:
        """Read what `weights` and `to_json` gave.

        Raises:
            PerrinError: the bundle does not fit together.
        """
        words = dict(bundle.config["model"])
        steps = words.pop("steps")
        words.pop("kind")
        tensors = bundle.weights()
        config = QGConfig(**tuples(words))
        shape = (config.size, config.size // 2 + 1, 2 * config.states, 2 * config.states)
        source = str(bundle.path)
        variance = take(tensors, "variance", shape[:3], source)
        correlation = torch.view_as_complex(take(tensors, "correlation", (*shape, 2), source))
        root = (variance / 2).exp()
        covariance = correlation * root[..., :, None] * root[..., None, :]
        denoiser = QGDenoiser(config, covariance)
        load_weights(denoiser, tensors, source=source)
        return cls(denoiser, steps=steps, name=bundle.path.name, sha256=bundle.sha256)

    def posterior(self, seen: QGObservations, members: int, *, seed: int = 0, batch: int = 8) -> Tensor:
        """Draws of ψ given observations, `[members, T, 2, n, n]`, m² s⁻¹; member k is the same whatever their number.

        Arguments:
            seen: see there.
            members: how many.
            seed: of the run.
            batch: how many are made together, a matter of memory and speed.
        """
        return torch.cat(
            [self.draw(seen, seeds) for seeds in sample_seeds(seed, range(members)).split(batch)]
        )

    def draw(self, seen: QGObservations, seeds: Tensor) -> Tensor:
        """As `posterior`, of members with these seeds, `[B]`, all at once."""
        process, H = self.denoiser.process, seen.matrix(self.config)
        guide = NormalGuide(
            prior=self.denoiser,
            rows=H.float(),
            denoiser=self.denoiser,
            schedule=process.fields[FIELD].schedule,
            measurement=Measurement(
                Matrix(H.float(), self.config.shape), (seen.value / seen.error).float()[None], std=1.0
            ),
            field=FIELD,
        )
        plan = plan_steps(
            process,
            SOLVERS["dpmpp-2m"],
            self.steps,
            grid=lambda n: logit_normal(n, mean=-0.6, std=1.6, start=0.995),
        )
        x = sample(guide, process, plan, {FIELD: Dense(len(seeds))}, CounterNoise(seeds))[FIELD]
        return x * torch.tensor(self.config.scale)[:, None, None]

    def fields(self, start: QGObservations) -> dict[str, dict[str, str]]:
        """The variable and its attributes."""
        return {"psi": PSI}

    def template(self, start: QGObservations, members: int) -> xr.Dataset:
        """Coordinates of a piece."""
        c = self.config
        return coordinates(members, start.first + np.arange(c.states) * c.hours, c.size, c.length)

    def members(
        self,
        start: QGObservations,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """All states of a piece at once, `[B, T, 2, n, n]`, and so without states between."""
        yield {"psi": self.draw(start, seeds).numpy()}, {}


def optimal_interpolation(
    denoiser: QGDenoiser, seen: QGObservations, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mean and the variance given observations if pieces were normal with the covariances S, `[T, 2, n, n]` each.

    Arguments:
        denoiser: has S.
        seen: the observations.
        at: elements of a piece whose variance is asked for (all cost memory); none unless given.

    Returns:
        The mean, m² s⁻¹, and the variances at `at`.
    """
    config = denoiser.config
    H, n = seen.matrix(config), config.size
    S = denoiser.covariance.to(torch.complex128)
    rows = torch.fft.rfft2(H.reshape(-1, 2 * config.states, n, n), norm="ortho")
    CH = torch.fft.irfft2(torch.einsum("yxcd,mdyx->mcyx", S, rows), s=(n, n), norm="ortho").flatten(1)
    R = CH @ H.T + torch.eye(len(H), dtype=torch.float64)
    mean = CH.T @ torch.linalg.solve(R, (seen.value / seen.error).double())
    scale = torch.tensor(config.scale, dtype=torch.float64)[:, None, None]
    variance = torch.zeros(0)
    if at is not None:
        own = torch.fft.irfft2(S.diagonal(dim1=2, dim2=3).permute(2, 0, 1), s=(n, n))[:, 0, 0].real
        c = CH[:, at]
        full = own.repeat_interleave(n * n)[at] - (c * torch.linalg.solve(R, c)).sum(0)
        each = scale.expand(config.shape).flatten()[at]
        variance = full * each**2
    return mean.reshape(config.shape) * scale, variance


def read_qg_observations(path: str | Path, config: QGConfig, error: float | None = None) -> QGObservations:
    """Read a CSV file with the columns `time` (hours), `layer` (1 or 2), `y`, `x` (m), `value` and, perhaps, `error`.

    The piece begins at the first time; every time is a state of the model after it.

    Raises:
        PerrinError: a column is missing, a line cannot be read, a place or a time is outside, or no error is known.
    """
    names = {name: (name,) for name in ("time", "layer", "y", "x", "value")}
    table = []
    for row in read_observed(path, names, error):
        values = row.numbers(*names, "error")
        if values is None or values[1] not in (1, 2) or not values[5] > 0:
            raise PerrinError(
                f"expected numbers, a layer 1 or 2 and an error above 0 in {row.place}, given {row.text}"
            )
        if not (0 <= values[2] <= config.length and 0 <= values[3] <= config.length):
            raise PerrinError(
                f"expected y and x from 0 to {config.length:g} m in {row.place}, given {values[2]:g}, {values[3]:g}: give "
                "them in m from the square's corner"
            )
        table.append(values)
    found = torch.tensor(table, dtype=torch.float64)
    first = float(found[:, 0].min())
    step = (found[:, 0] - first) / config.hours
    if bool(((step - step.round()).abs() > 1e-6).any()) or bool((step.round() >= config.states).any()):
        raise PerrinError(
            f"expected times of at most {config.states} states, {config.hours:g} hours apart, given others in {path}: "
            "cut the table into pieces"
        )
    return QGObservations(
        state=step.round().long(),
        layer=found[:, 1].long() - 1,
        y=found[:, 2],
        x=found[:, 3],
        value=found[:, 4],
        error=found[:, 5],
        first=first,
    )
