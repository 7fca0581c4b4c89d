"""An atmosphere, a day at a time: conditional diffusion of the change from one state to the next.

With states x_t of C fields, normalised by mean and standard deviation,

    x_{t+1} = x_t + d ⊙ r,        r ~ p(r | x_t, x_{t−1}, orography, land, season),

d the standard deviation of the change of each field. r has variance one and is diffused on the sphere: its noise is
isotropic, with the same power in every component of degree below L (`SphereGaussian`), where noise that is independent
from cell to cell would crowd at the poles. Fields lie on the Gauss grid of L rows that resolves these degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

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
from perrin.core.losses import sample_times_edm, stratified
from perrin.core.noise import Noise
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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class AtmosphereNetwork(FieldNetwork):
    """The U-Net with what a `NetworkDenoiser` hands it."""

    field = FIELD

    def __init__(self, config: AtmosphereConfig) -> None:
        super().__init__()
        count = len(config.fields)
        vectors = [i for i, name in enumerate(config.fields) if name in config.vectors]
        self.net = SphereUNet(
            SphereUNetConfig(
                inputs=3 * count + EXTRA,
                outputs=count,
                vectors=tuple(i + k * count for k in range(3) for i in vectors),
                width=config.width,
                levels=config.levels,
                blocks=config.blocks,
                dropout=config.dropout,
            )
        )

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """`condition`: `[B, 2 C + EXTRA, rows, columns]`."""
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


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Of states and of changes: `mean`, `std`, `change`, `[C]` each."""

    mean: Tensor
    std: Tensor
    change: Tensor

    @staticmethod
    def fit(states: Tensor, stride: int, weight: Tensor) -> Normalisation:
        """From states `[T, C, rows, columns]`, a step being `stride` of them, and the rows' area weights."""
        w = (weight / weight.sum() / states.shape[-1]).to(states)[:, None]
        mean = (states.mean(0) * w).sum((-2, -1))
        std = (((states - mean[:, None, None]) ** 2).mean(0) * w).sum((-2, -1)).sqrt()
        change = (((states[stride:] - states[:-stride]) ** 2).mean(0) * w).sum((-2, -1)).sqrt() / std
        return Normalisation(mean, std, change)

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
        jitter: the standard deviation of noise on the conditioning states, as errors of an analysis or of the step before.
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
    ) -> None:
        runs, length = (1, len(states)) if states.ndim == 4 else states.shape[:2]
        self.denoiser, self.states, self.days = denoiser, states.flatten(0, -4), days.flatten()
        self.length, self.constants, self.change = length, constants, change
        self.stride, self.jitter = stride, jitter
        self.latitude = gauss_latitudes(config.rows)[0]
        self.config = {"model": config.to_json(), "states": runs * length, "jitter": jitter}
        self.plan = BatchPlan([runs * (length - 2 * stride)], batch, seed)
        self.criterion = DenoisingLoss()

    def to(self, device: torch.device) -> None:
        """Move the data."""
        for name in ("states", "days", "constants", "change", "latitude"):
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
        _, index = self.plan(step)
        each = self.length - 2 * self.stride
        index = (index // each * self.length + index % each).to(self.states.device) + 2 * self.stride
        before, now, after = (self.states[index - k * self.stride].float() for k in (2, 1, 0))
        x_0 = (after - now) / self.change[:, None, None]
        noise = GeneratorNoise(generator)
        layouts = {FIELD: Dense(len(index), x_0.device)}
        process = self.denoiser.process
        u = stratified(torch.rand(len(index), generator=generator, device=generator.device))
        t = sample_times_edm(u, process.fields[FIELD].schedule, mean=0.2, std=1.4, low=1e-3, high=0.999)
        x_t = process.corrupt_state({FIELD: x_0}, t, noise, layouts)[FIELD]
        if self.jitter:
            field = process.fields[FIELD]
            assert isinstance(field, SphereGaussian)
            before, now = (
                x + self.jitter * field.draw(noise, layouts[FIELD], name=FIELD, step=k)
                for k, x in enumerate((before, now), 1)
            )
            x_0 = (after - now) / self.change[:, None, None]
            x_t = process.corrupt_state({FIELD: x_0}, t, noise, layouts)[FIELD]
        more = extra_channels(self.constants, self.latitude, self.days[index - self.stride])
        batch = {"t": t, "x_0": x_0, "x_t": x_t, "condition": torch.cat([now, before, more], 1)}
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        estimate = model({FIELD: batch["x_t"]}, batch["t"], condition=batch["condition"], layouts=layouts)
        return self.criterion(self.denoiser, {FIELD: batch["x_0"]}, estimate, batch["t"], layouts)
