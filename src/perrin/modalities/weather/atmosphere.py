"""An atmosphere, a day at a time: conditional diffusion of the change from one state to the next.

With states x_t of C fields, normalised by mean and standard deviation,

    x_{t+1} = x_t + d ⊙ r,        r ~ p(r | x_t, x_{t−1}, orography, land, season),

d the standard deviation of the change of each field. r has variance one and is diffused on the sphere: its noise is
isotropic, with the same power in every component of degree below L (`SphereGaussian`), where noise that is independent
from cell to cell would crowd at the poles. Fields lie on the Gauss grid of L rows that resolves these degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from perrin.core import (
    Composite,
    DenoisingLoss,
    Dense,
    EDMHead,
    Gaussian,
    GeneratorNoise,
    NetworkDenoiser,
)
from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.errors import PerrinError
from perrin.modalities.weather.training import noised
from perrin.nets.field import FieldNetwork
from perrin.nets.sphere import SphericalHarmonics, gauss_latitudes, isotropic
from perrin.nets.sphere_unet import SphereUNet, SphereUNetConfig
from perrin.train import BatchPlan

FIELD = "change"
EXTRA = 7
"""Channels of a condition beside the two states: orography, land, sine and cosine of latitude, season twice, insolation."""


@lru_cache(maxsize=8)
def harmonics(rows: int, columns: int, degree: int) -> SphericalHarmonics:
    """Those of a Gauss grid."""
    return SphericalHarmonics(gauss_latitudes(rows)[0], columns, degree=degree)


@dataclass(frozen=True, kw_only=True)
class SphereGaussian(Gaussian):
    """Gaussian corruption with isotropic noise of degree below L and of variance one at every point.

    Arguments:
        degree: L.
    """

    degree: int = 32

    def _noise(self, noise: Noise, layout: Layout, *, name: str, step: int) -> Tensor:
        channels, rows, columns = self.features
        white = noise.normal(layout, (channels, self.degree**2), field=name, step=step)
        l = torch.arange(self.degree, dtype=torch.float64)
        spectrum = (2 * l + 1) / self.degree**2
        transform = harmonics(rows, columns, self.degree).to(white.device)
        return transform.inverse(isotropic(white, spectrum.to(white.device)))


@dataclass(frozen=True, kw_only=True)
class AtmosphereConfig:
    """A model's fields and sizes.

    Arguments:
        fields: names.
        vectors: which of them are components of vectors.
        rows, columns: of the Gauss grid.
        width, levels, blocks, dropout: of the network.
        hours: of a step.
        climatology: whether the network is told, in place of x_{t−1}, the tendency in units of the changes' standard
            deviation, and x_t's anomaly from the mean of the training states in units of its own (`Climatology`). Where a
            mean that varies over the sphere is much of a field, as orography is of surface pressure, what is small beside it
            is seen better.
        bound: how many standard deviations a coefficient of a step's result may be away from its mean over the training
            states, with `climatology`; 0 for any number.
        holds: fields whose mean over the sphere no step changes, as that of surface pressure where the mass of air is fixed.
    """

    fields: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    rows: int = 32
    columns: int = 64
    width: int = 96
    levels: int = 3
    blocks: int = 2
    dropout: float = 0.1
    hours: int = 24
    climatology: bool = False
    bound: float = 0.0
    holds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bound < 0 or (self.bound and not self.climatology):
            raise PerrinError(
                f"expected a bound of at least 0, and a climatology with it, given {self.bound:g}, {self.climatology}"
            )
        unknown = [name for name in self.holds if name not in self.fields]
        if unknown:
            raise PerrinError(f"expected fields to hold among {', '.join(self.fields)}, given {unknown[0]}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Climatology(nn.Module):
    """What training states are like: kept with a network's weights, and not trained.

    Arguments:
        config: sizes.
    """

    def __init__(self, config: AtmosphereConfig) -> None:
        super().__init__()
        count, degree = len(config.fields), config.rows

        def kept(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape), requires_grad=False)

        self.mean = kept(count, config.rows, config.columns)
        self.log_spread, self.log_change = kept(count, 1, 1), kept(count, 1, 1)
        self.log_scale = kept(count, degree, degree)  # of coefficients

    @torch.no_grad()
    def fit(self, states: Tensor, change: Tensor) -> None:
        """From normalised states `[T, C, rows, columns]` and the changes' standard deviations, `[C]`; rounded as a bundle
        keeps them."""
        count = len(states)
        parts = states.split(512)
        mean = sum(x.double().sum(0) for x in parts) / count
        self.mean.copy_(mean.half())
        transform = harmonics(*states.shape[-2:], states.shape[-2]).to(states.device)
        square, scale = torch.zeros_like(mean), torch.zeros(self.log_scale.shape, dtype=torch.float64)
        scale = scale.to(states.device)
        for x in parts:
            rest = x.float() - self.mean.to(x.device)
            square += rest.double().square().sum(0)
            scale += transform(rest).abs().double().square().sum(0)
        weight = gauss_latitudes(states.shape[-2])[1].to(square)[:, None] / (2 * states.shape[-1])
        self.log_spread.copy_(((square / count * weight).sum((-2, -1)).log() / 2).half()[:, None, None])
        self.log_change.copy_(change.log().half()[:, None, None])
        self.log_scale.copy_(((scale / count).clamp(min=1e-12).log() / 2).half())

    def forward(self, now: Tensor, before: Tensor) -> Tensor:
        """States, tendencies, anomalies, `[B, 3 C, rows, columns]`."""
        tendency = (now - before) / self.log_change.exp()
        return torch.cat([now, tendency, (now - self.mean) / self.log_spread.exp()], 1)

    def bound(self, coefficients: Tensor, mean: Tensor, most: float) -> Tensor:
        """Coefficients no further than `most` standard deviations from their `mean`: what is inside stays as it is."""
        rest = coefficients - mean
        ratio = most * self.log_scale.exp() / rest.abs()
        return torch.where(ratio < 1, mean + rest * ratio, coefficients)


class AtmosphereNetwork(FieldNetwork):
    """The U-Net with what a `NetworkDenoiser` hands it."""

    field = FIELD

    def __init__(self, config: AtmosphereConfig) -> None:
        super().__init__()
        count = len(config.fields)
        vectors = [i for i, name in enumerate(config.fields) if name in config.vectors]
        self.climatology = Climatology(config) if config.climatology else None
        told = 4 if config.climatology else 3
        self.count = count
        self.net = SphereUNet(
            SphereUNetConfig(
                inputs=told * count + EXTRA,
                outputs=count,
                vectors=tuple(i + k * count for k in range(told) for i in vectors),
                width=config.width,
                levels=config.levels,
                blocks=config.blocks,
                dropout=config.dropout,
            )
        )

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """`condition`: `[B, 2 C + EXTRA, rows, columns]`."""
        if self.climatology is not None:
            now, before, more = condition.split([self.count, self.count, EXTRA], 1)
            condition = torch.cat([self.climatology(now, before), more], 1)
        level = torch.logit(t.clamp(1e-4, 1 - 1e-4)) / 4
        return self.net(torch.cat([x, condition], 1), level)


def build_denoiser(config: AtmosphereConfig) -> NetworkDenoiser:
    """The network with its process and head."""
    shape = (len(config.fields), config.rows, config.columns)
    process = Composite(fields={FIELD: SphereGaussian(features=shape, degree=config.rows)})
    return NetworkDenoiser(AtmosphereNetwork(config), process, {FIELD: EDMHead(sigma_data=1.0)})


def extra_channels(constants: Tensor, latitude: Tensor, day: Tensor) -> Tensor:
    """The condition beside the states, `[B, EXTRA, rows, columns]`.

    Insolation is the daily mean at the top of the atmosphere for a circular orbit, relative to the solar constant
    (Hartmann 1994, eq. 2.17).

    Arguments:
        constants: orography / 3000 m and land, `[2, rows, columns]`.
        latitude: of the rows, degrees.
        day: of the year, `[B]`.
    """
    rows, columns = constants.shape[-2:]
    phi = torch.deg2rad(latitude).to(constants)[:, None].expand(rows, columns)
    angle = (2 * torch.pi * day / 365.2425).to(constants)[:, None, None].expand(-1, rows, columns)
    declination = -0.4091 * torch.cos(angle + 2 * torch.pi * 10 / 365.2425)
    h = torch.acos((-torch.tan(phi) * torch.tan(declination)).clamp(-1, 1))
    light = (h * phi.sin() * declination.sin() + phi.cos() * declination.cos() * h.sin()) / torch.pi
    fixed = torch.cat([constants, torch.stack([phi.sin(), phi.cos()])]).expand(len(day), -1, -1, -1)
    return torch.cat([fixed, torch.stack([angle.cos(), angle.sin(), light], 1)], 1)


def last_states(lengths: Sequence[int], span: int) -> Tensor:
    """The numbers of states that have `span` others of their own run before them, where runs follow one another."""
    firsts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return torch.cat(
        [torch.arange(a + span, a + n) if n > span else torch.arange(0) for a, n in zip(firsts, lengths)]
    )


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Of states and of changes: `mean`, `std`, `change`, `[C]` each."""

    mean: Tensor
    std: Tensor
    change: Tensor

    @staticmethod
    def fit(
        states: Tensor, stride: int, weight: Tensor, lengths: Sequence[int] | None = None
    ) -> Normalisation:
        """From states `[T, C, rows, columns]`, a step being `stride` of them, the rows' area weights, and the lengths of the
        runs that the states are of; rounded as a bundle keeps them."""
        w = (weight / weight.sum() / states.shape[-1]).double()[:, None]

        def average(f: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
            parts = (f(i).double().sum(0) for i in index.split(256))
            return (sum(parts) / len(index) * w).sum((-2, -1))

        every = torch.arange(len(states))
        ends = last_states([len(states)] if lengths is None else lengths, stride)
        mean = average(lambda i: states[i], every)
        std = average(lambda i: (states[i].double() - mean[:, None, None]) ** 2, every).sqrt()
        change = average(lambda i: (states[i].double() - states[i - stride].double()) ** 2, ends).sqrt() / std
        std, change = (x.log().half().float().exp() for x in (std, change))
        return Normalisation((mean / std).half().float() * std, std, change)

    def to(self, device: torch.device) -> Normalisation:
        """On another device."""
        return Normalisation(self.mean.to(device), self.std.to(device), self.change.to(device))

    def normalise(self, x: Tensor) -> Tensor:
        """States of variance one."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x * self.std[:, None, None] + self.mean[:, None, None]


class AtmosphereTask:
    """Consecutive states, for the trainer.

    Arguments:
        denoiser: made by `build_denoiser`.
        config: its sizes.
        states: normalised, `[T, C, rows, columns]`, evenly spaced; may be float16. Or several runs, `[R, T, …]`.
        days: of the year, `[T]` or `[R, T]`.
        stride: how many of them make a step.
        constants: `[2, rows, columns]`.
        change: the changes' standard deviations, `[C]`.
        batch, seed: of the order of the samples.
        jitter: the size of random errors in the two past states, as of the steps before: isotropic, with the same power
            in every degree, half of it common to both. A sample's have u² of this size, u uniform, in units of the changes'
            standard deviation. The target is the change from the state with its error to the true next one: the network
            learns to return.
        leads: steps that a sample has after the two past states.
        lengths: of the runs that follow one another in `states`, `[T, …]`; no sample reaches from one into the next.

    Raises:
        PerrinError: no run is long enough for a sample.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: AtmosphereConfig,
        states: Tensor,
        days: Tensor,
        stride: int,
        constants: Tensor,
        change: Tensor,
        *,
        batch: int,
        seed: int,
        jitter: float = 0.0,
        leads: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        runs, length = (1, len(states)) if states.ndim == 4 else states.shape[:2]
        lengths = [length] * runs if lengths is None else lengths
        self.denoiser, self.states, self.days = denoiser, states.flatten(0, -4), days.flatten()
        self.constants, self.change = constants, change
        self.stride, self.jitter, self.leads = stride, jitter, leads
        self.latitude, weight = gauss_latitudes(config.rows)
        self.root = (weight / weight.mean()).sqrt().float()[:, None]  # of each row's area
        self.config = {"model": config.to_json(), "states": sum(lengths), "jitter": jitter}
        self.ends = last_states(lengths, (1 + leads) * stride)
        if not len(self.ends):
            raise PerrinError(
                f"expected runs of more than {(1 + leads) * stride} states for {leads} leads, given {max(lengths)} at most: "
                "fewer leads, or a longer record"
            )
        self.plan = BatchPlan([len(self.ends)], batch, seed)
        self.criterion = DenoisingLoss()

    def to(self, device: torch.device) -> None:
        """Move the data."""
        for name in ("states", "days", "constants", "change", "latitude", "root"):
            setattr(self, name, getattr(self, name).to(device))
        for process in self.denoiser.process.fields.values():
            if isinstance(process, SphereGaussian):
                harmonics(process.features[1], process.features[2], process.degree).to(device)

    def compile(self) -> None:
        """Compile the blocks."""
        net = self.denoiser.network.net
        for block in [*net.down, *net.up, net.middle]:  # type: ignore[union-attr, misc]
            block.compile()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        index = self.last(step)
        before, now, after = (self.states[index - k * self.stride].float() for k in (2, 1, 0))
        if self.jitter:
            noise, layout = GeneratorNoise(generator), Dense(len(index), now.device)
            before, now = self._err(before, now, noise, layout, generator)
        x_0 = (after - now) / self.change[:, None, None]
        batch = noised(self.denoiser.process, FIELD, x_0, generator, mean=0.2, std=1.4)
        more = extra_channels(self.constants, self.latitude, self.days[index - self.stride])
        batch["condition"] = torch.cat([now, before, more], 1)
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def last(self, step: int) -> Tensor:
        """The numbers of the last states of the samples of a step."""
        _, index = self.plan(step)
        return self.ends[index].to(self.states.device)

    def _err(
        self, before: Tensor, now: Tensor, noise: Noise, layout: Layout, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """States with errors."""
        count, rows, columns = now.shape[1:]
        spectrum = torch.full((rows,), 1 / rows, device=now.device)
        transform = harmonics(rows, columns, rows).to(now.device)
        size = self.jitter * torch.rand(len(now), 1, 1, 1, generator=generator, device=generator.device) ** 2
        size = size.to(now.device) * self.change[:, None, None]
        white = (noise.normal(layout, (count, rows**2), field=FIELD, step=k) for k in (1, 2, 3))
        common, *own = (transform.inverse(isotropic(w, spectrum)) for w in white)
        first, second = (x + size * (common + e) / 2**0.5 for x, e in zip((before, now), own, strict=True))
        return first, second

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        estimate = model({FIELD: batch["x_t"]}, batch["t"], condition=batch["condition"], layouts=layouts)
        truth, estimate = {FIELD: batch["x_0"] * self.root}, {FIELD: estimate[FIELD] * self.root}
        return self.criterion(self.denoiser, truth, estimate, batch["t"], layouts)
