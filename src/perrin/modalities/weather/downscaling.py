"""Downscaling: a fine field from its means over coarse cells, as a mean and diffusion of the residual.

A coarse cell is split into f × f cells, and c is the mean of the fine field y over it, by area, over the cells that have
data. Two networks that see only their surroundings (`perrin.nets.local_unet`) give

    ŷ = b + s ⊙ μ(b, c, …)          the conditional mean, trained by squared error
    y = T⁻¹( T(ŷ) + γ σ r ),  r ~ p(r | b, c, ŷ, …)   by diffusion (CorrDiff: Mardani et al. 2023)

and then the means over coarse cells are made equal to c again (`conserve`). b is a first guess: the bilinear
interpolation of c; with places, the regression of each fine cell on 3 × 3 coarse ones. For amounts, such as rain, T(y) =
log(1 + y/y₀) and s = c + y₀, a function of the condition alone, so that ŷ is still the mean of y itself, not of its
logarithm; what falls below zero is none, and means are restored by a factor. For other fields T is the identity and
means are restored by a term; with places (`static`), fields are departures from the fine climatology of the calendar
month, and s is the root mean square of y − b at each cell. γ is one number, chosen on times that were not trained on:
their residuals may be larger.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perrin.core import Composite, Dense, EDMHead, Gaussian, NetworkDenoiser
from perrin.errors import PerrinError
from perrin.modalities.weather.training import noised
from perrin.nets.field import FieldNetwork
from perrin.nets.local_unet import LocalUNet, LocalUNetConfig
from perrin.train import BatchPlan

FIELD = "residual"


@dataclass(frozen=True, kw_only=True)
class DownscaleConfig:
    """A model's fields and sizes.

    Arguments:
        fields: names.
        factor: f.
        amounts: whether the fields are never negative, with many zeros.
        static: whether the model is of one region, whose climatology it knows; else it is of any.
        cell: size of the fine cells it was trained on, degrees of latitude.
        unit: y₀, in the fields' unit.
        width, levels, blocks, dropout: of each network.
    """

    fields: tuple[str, ...]
    factor: int = 4
    amounts: bool = False
    static: bool = False
    cell: float = 1.0
    unit: float = 0.1
    width: int = 48
    levels: int = 3
    blocks: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise PerrinError(f"expected a factor of 2 or more, given {self.factor}")
        if self.amounts and self.static:
            raise PerrinError("expected amounts without a climatology, given both: choose one")

    @property
    def channels(self) -> int:
        """Of the condition of the mean."""
        count = len(self.fields)
        return 2 * count + 3 + (2 * count + 4 if self.static else 0)

    def network(self, *, residual: bool) -> LocalUNetConfig:
        """Of the mean, or of the residual, which is given its noised state and the mean as well."""
        count = len(self.fields)
        return LocalUNetConfig(
            inputs=self.channels + (2 * count if residual else 0),
            outputs=count,
            width=self.width,
            levels=self.levels,
            blocks=self.blocks,
            dropout=self.dropout,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


# ---- between grids; fields are [..., rows, columns], missing values NaN


def spread(c: Tensor, factor: int) -> Tensor:
    """Every cell's value on its f × f cells."""
    return c.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def block_sum(y: Tensor, factor: int) -> Tensor:
    """Sums over f × f cells."""
    rows, columns = y.shape[-2] // factor, y.shape[-1] // factor
    return y.reshape(*y.shape[:-2], rows, factor, columns, factor).sum((-3, -1))


def block_mean(y: Tensor, area: Tensor, factor: int, *, whole: bool) -> Tensor:
    """The area-weighted mean over f × f cells, NaN left out.

    Arguments:
        y: fine field.
        area: of its cells, `[rows, columns]`.
        factor: f.
        whole: a coarse cell is missing where any cell is; else only where all are.
    """
    known = y.isfinite()
    share = block_sum(known * area, factor)
    total = block_sum(torch.where(known, y, 0) * area, factor)
    enough = block_sum(known.to(area), factor) == factor**2 if whole else share > 0
    return torch.where(enough, total / share, torch.nan)


def interpolate(c: Tensor, factor: int, *, circle: bool, mode: str = "bilinear") -> Tensor:
    """Bilinear in cells' numbers, missing neighbours left out; constant beyond the outermost centres.

    Arguments:
        c: coarse field.
        factor: f.
        circle: whether columns close.
        mode: `bilinear` or `bicubic`.
    """
    known = c.isfinite()
    flat = torch.stack([torch.where(known, c, 0), known.to(c)]).reshape(2, -1, *c.shape[-2:])
    edge = min(2, c.shape[-1])
    wide = torch.cat([flat[..., -edge:], flat, flat[..., :edge]], -1) if circle else flat
    fine = F.interpolate(wide, scale_factor=factor, mode=mode, align_corners=False)
    if circle:
        fine = fine[..., edge * factor : -edge * factor]
    value, weight = fine.reshape(2, *c.shape[:-2], *fine.shape[-2:])
    return torch.where(spread(known, factor), value / weight.clamp(min=1e-6), torch.nan)


def neighbours(c: Tensor, *, circle: bool) -> Tensor:
    """3 × 3 values around every cell, `[..., 9, rows, columns]`; missing ones, and those beyond the end, are as the cell
    itself."""
    rows, columns = c.shape[-2:]
    x = c.reshape(-1, 1, rows, columns)
    x = torch.cat([x[..., -1:], x, x[..., :1]], -1) if circle else F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = F.pad(x, (0, 0, 1, 1), mode="replicate")
    found = torch.cat([x[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)], 1)
    found = found.reshape(*c.shape[:-2], 9, rows, columns)
    return torch.where(found.isfinite(), found, c.unsqueeze(-3))


def fine_of(x: Tensor, factor: int) -> Tensor:
    """`[..., f², rows, columns]` as `[..., f rows, f columns]`."""
    *lead, _, rows, columns = x.shape
    parts = x.reshape(*lead, factor, factor, rows, columns).movedim((-4, -3), (-3, -1))
    return parts.reshape(*lead, rows * factor, columns * factor)


def cells_of(y: Tensor, factor: int) -> Tensor:
    """The inverse of `fine_of`."""
    *lead, rows, columns = y.shape
    parts = y.reshape(*lead, rows // factor, factor, columns // factor, factor)
    return parts.movedim((-3, -1), (-4, -3)).flatten(-4, -3)


def fit_regression(c: Tensor, y: Tensor, factor: int, *, circle: bool) -> Tensor:
    """Least squares of y − c in each fine cell on 3 × 3 coarse cells, with a little ridge, `[rows, columns, 9, f²]`.

    Arguments:
        c: coarse departures, `[T, rows, columns]`.
        y: fine ones.
        factor: f.
        circle: whether columns close.
    """
    A = neighbours(c, circle=circle).nan_to_num(0).permute(2, 3, 0, 1)
    B = cells_of(y - spread(c, factor), factor).nan_to_num(0).permute(2, 3, 0, 1)
    gram = A.mT @ A
    ridge = 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-9)
    return torch.linalg.solve(gram + ridge[..., None, None] * torch.eye(9).to(A), A.mT @ B)


def regress(c: Tensor, weight: Tensor, factor: int, *, circle: bool) -> Tensor:
    """Fine departures by `fit_regression`'s weights, `[..., f rows, f columns]` of `[..., rows, columns]`."""
    x = neighbours(c, circle=circle).nan_to_num(0)
    return fine_of(torch.einsum("...krc,rckj->...jrc", x, weight), factor) + spread(c, factor)


def conserve(y: Tensor, c: Tensor, area: Tensor, factor: int, *, amounts: bool) -> Tensor:
    """The field nearest to y whose means over coarse cells are c: by a factor for amounts, else by a term.

    Arguments:
        y: fine field, NaN where there is none.
        c: coarse field.
        area: of the fine cells.
        factor: f.
        amounts: where all of y is zero in a cell that has an amount, it is spread evenly.
    """
    mean = block_mean(y, area, factor, whole=False)
    if not amounts:
        return y + spread(c - mean, factor)
    ratio = torch.where(mean > 0, c / mean, 0)
    even = torch.where(mean > 0, 0, c)
    return y * spread(ratio, factor) + spread(even, factor)


# ---- the two networks


class ResidualNetwork(FieldNetwork):
    """The U-Net with what a `NetworkDenoiser` hands it; evaluated by tiles where `tile` is given."""

    field = FIELD

    def __init__(self, config: LocalUNetConfig) -> None:
        super().__init__()
        self.net = LocalUNet(config)
        self.evaluate: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """`condition`: `[B, inputs − C, rows, columns]`."""
        level = torch.logit(t.clamp(1e-4, 1 - 1e-4)) / 4
        x = torch.cat([x, condition], 1)
        if self.evaluate is None:
            return self.net(x, level)
        return self.evaluate(lambda piece: self.net(piece, level), x)


def residual_denoiser(network: ResidualNetwork, rows: int, columns: int) -> NetworkDenoiser:
    """The network with its process and head, for maps of one size."""
    shape = (network.net.config.outputs, rows, columns)
    return NetworkDenoiser(
        network, Composite(fields={FIELD: Gaussian(features=shape)}), {FIELD: EDMHead(sigma_data=1.0)}
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scales:
    """What fields are scaled by.

    Arguments:
        mean, std: of the coarse fields (of their departures, with places), `[C]`; for the networks' inputs.
        detail: s, `[C, 1, 1]`, or `[C, rows, columns]` with places; not for amounts.
        residual: σ, `[C]`.
    """

    mean: Tensor
    std: Tensor
    detail: Tensor
    residual: Tensor

    def to(self, device: torch.device | str) -> Scales:
        """On another device."""
        return Scales(**{k: v.to(device) for k, v in vars(self).items()})


def transform(y: Tensor, config: DownscaleConfig) -> Tensor:
    """T."""
    return torch.log1p(y / config.unit) if config.amounts else y


def inverse(z: Tensor, config: DownscaleConfig) -> Tensor:
    """T⁻¹; amounts below zero are none."""
    return config.unit * torch.expm1(z.clamp(min=0, max=12)) if config.amounts else z


def inputs(b: Tensor, c: Tensor, mask: Tensor, config: DownscaleConfig, scales: Scales) -> Tensor:
    """What the networks see of the coarse field: b and c in units of order one, and where they are known.

    Arguments:
        b, c: on the fine grid, `[B, C, rows, columns]`; zero where there is none.
        mask: `[B, 1, rows, columns]`.
    """
    if config.amounts:
        parts = [transform(b, config), transform(c, config)]
    else:
        parts = [(v - scales.mean[:, None, None]) / scales.std[:, None, None] for v in (b, c)]
    return torch.cat([*(p * mask for p in parts), mask], 1)


def places(rows: int, columns: int, factor: int) -> Tensor:
    """Where in its coarse cell a fine cell is, from −½ to ½, `[2, rows, columns]`."""
    y, x = ((torch.arange(n) % factor + 0.5) / factor - 0.5 for n in (rows, columns))
    return torch.stack([y[:, None].expand(rows, columns), x.expand(rows, columns)])


def mean_field(u: Tensor, b: Tensor, c: Tensor, detail: Tensor, config: DownscaleConfig) -> Tensor:
    """ŷ from the network's output."""
    if config.amounts:
        return (b + (c + config.unit) * u).clamp(min=0)
    return b + detail * u


def mean_input(y_hat: Tensor, b: Tensor, detail: Tensor, config: DownscaleConfig) -> Tensor:
    """What the residual's network is told of ŷ."""
    if config.amounts:
        return transform(y_hat, config) - transform(b, config)
    return (y_hat - b) / detail


# ---- training


class Patches:
    """Pieces of fields for training, on the device.

    Arguments:
        config: the model's.
        scales: `residual` is set by the second task.
        b, c, y: on the fine grid, `[T, C, rows, columns]`, zero where there is none; departures with places.
        mask: where the loss counts, `[T, 1, rows, columns]`, bool.
        known: where there are data, likewise.
        static: `[S, rows, columns]`: where in the cell, and what else is the same at all times.
        seasonal: `[12, C + 2, rows, columns]`, or of no channels.
        months: of the times, 0 for January.
        size: of the pieces, a multiple of f and of the network's stride.
        circle: whether columns close.
        share: least share of a piece in which the loss counts.
    """

    def __init__(
        self,
        config: DownscaleConfig,
        scales: Scales,
        b: Tensor,
        c: Tensor,
        y: Tensor,
        mask: Tensor,
        known: Tensor,
        static: Tensor,
        seasonal: Tensor,
        months: Tensor,
        *,
        size: int,
        circle: bool,
        share: float = 0.2,
    ) -> None:
        self.config, self.scales, self.size, self.circle = config, scales, size, circle
        self.planes = torch.cat([b, c, y, mask.to(b), known.to(b)], 1)
        self.static, self.seasonal, self.months = static, seasonal, months
        rows, columns = y.shape[-2:]
        f = config.factor
        wide = torch.cat([mask, mask[..., : size - f]], -1) if circle else mask
        if min(rows, wide.shape[-1]) < size:
            raise PerrinError(f"expected a grid of {size} cells each way or more, given {rows} x {columns}")
        found = F.avg_pool2d(wide.float(), size, stride=f)[:, 0] >= share
        self.corners = found.nonzero() * torch.tensor([1, f, f])
        if not len(self.corners):
            raise PerrinError("expected data to train on, given none: all is missing or without an amount")

    def to(self, device: torch.device) -> None:
        """Move the data."""
        for name in ("planes", "static", "seasonal", "months", "corners", "scales"):
            setattr(self, name, getattr(self, name).to(device))

    def take(self, index: Tensor, flip: Tensor) -> dict[str, Tensor]:
        """The pieces with these numbers: `b`, `c`, `y`, `mask`, `detail` and the mean's `condition`.

        Arguments:
            index: `[B]`.
            flip: of rows and of columns, bool, `[B, 2]`; not with places.
        """
        t, row, column = self.corners[index.to(self.corners.device)].unbind(1)
        columns = self.planes.shape[-1]
        run = torch.arange(self.size, device=t.device)
        back = self.size - 1 - run
        i = row[:, None] + torch.where(flip[:, :1], back, run)
        j = (column[:, None] + torch.where(flip[:, 1:], back, run)) % columns
        at = (slice(None), i[:, :, None], j[:, None, :])
        planes = self.planes[t[:, None, None], :, i[:, :, None], j[:, None, :]].movedim(-1, 1).float()
        count = len(self.config.fields)
        b, c, y = planes[:, : 3 * count].split(count, 1)
        mask, known = planes[:, -2:-1], planes[:, -1:]
        fixed = self.static[at].movedim(0, 1)
        fixed = torch.cat([fixed[:, :2] * torch.where(flip, -1.0, 1.0)[:, :, None, None], fixed[:, 2:]], 1)
        parts = [inputs(b, c, known, self.config, self.scales), fixed]
        if self.config.static:
            s = self.seasonal[self.months[t][:, None, None], :, i[:, :, None], j[:, None, :]]
            parts.append(s.movedim(-1, 1).float())
            detail = self.scales.detail[at].movedim(0, 1)
        else:
            detail = self.scales.detail.expand(len(t), -1, -1, -1)
        return {"b": b, "c": c, "y": y, "mask": mask, "detail": detail, "condition": torch.cat(parts, 1)}

    def random_flips(self, count: int, generator: torch.Generator) -> Tensor:
        """Either way with even chance; none with places."""
        coin = torch.rand(count, 2, generator=generator, device=generator.device) < 0.5
        return coin & (not self.config.static)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the batch where the mask is one."""
    return (x * mask).sum() / (mask.expand_as(x).sum() + 1e-6)


class MeanTask:
    """Squared error of the mean, in units of s; see `perrin.train.Task`.

    Arguments:
        network: of the mean.
        patches: the data.
        batch, seed: of the order of the pieces.
    """

    def __init__(self, network: LocalUNet, patches: Patches, *, batch: int, seed: int) -> None:
        self.denoiser, self.patches = network, patches
        self.config = {"part": "mean", "model": patches.config.to_json(), "pieces": len(patches.corners)}
        self.plan = BatchPlan([len(patches.corners)], batch, seed)

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.patches.to(device)

    def compile(self) -> None:
        """Compile the network."""
        self.denoiser.compile()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        _, index = self.plan(step)
        p = self.patches.take(index, self.patches.random_flips(len(index), generator))
        scale = p["c"] + self.patches.config.unit if self.patches.config.amounts else p["detail"]
        batch = {"target": (p["y"] - p["b"]) / scale, "mask": p["mask"], "condition": p["condition"]}
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        u = model(batch["condition"], batch["condition"].new_zeros(len(batch["condition"])))
        return {"loss": masked_mean((u.float() - batch["target"]) ** 2, batch["mask"])}


class ResidualTask:
    """Denoising of what the mean leaves; see `perrin.train.Task`.

    Arguments:
        network: of the residual.
        mean: trained, in evaluation mode.
        patches: the data.
        batch, seed: of the order of the pieces.
    """

    def __init__(
        self, network: ResidualNetwork, mean: LocalUNet, patches: Patches, *, batch: int, seed: int
    ) -> None:
        self.denoiser = residual_denoiser(network, patches.size, patches.size)
        self.mean, self.patches = mean, patches
        self.config = {"part": "residual", "model": patches.config.to_json(), "pieces": len(patches.corners)}
        self.plan = BatchPlan([len(patches.corners)], batch, seed)

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.patches.to(device)
        self.mean.to(device)

    def compile(self) -> None:
        """Compile the network."""
        self.denoiser.network.compile()

    @torch.no_grad()
    def residual(self, index: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """T(y) − T(ŷ), what the network is told of ŷ, and the pieces."""
        p, config = self.patches.take(index, flip), self.patches.config
        u = self.mean(p["condition"], p["condition"].new_zeros(len(p["condition"]))).float()
        y_hat = mean_field(u, p["b"], p["c"], p["detail"], config)
        told = mean_input(y_hat, p["b"], p["detail"], config)
        scale = 1 if config.amounts else p["detail"]
        return (transform(p["y"], config) - transform(y_hat, config)) / scale, told, p

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        _, index = self.plan(step)
        r, told, p = self.residual(index, self.patches.random_flips(len(index), generator))
        x_0 = r / self.patches.scales.residual[:, None, None] * p["mask"]
        batch = noised(self.denoiser.process, FIELD, x_0, generator, mean=0.2, std=1.4) | {"mask": p["mask"]}
        batch["condition"] = torch.cat([p["condition"], told], 1)
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        t, layouts = batch["t"], {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        estimate = model({FIELD: batch["x_t"]}, t, condition=batch["condition"], layouts=layouts)[FIELD]
        schedule = self.denoiser.process.fields[FIELD].schedule
        weight = self.denoiser.heads[FIELD].weight(t, schedule)[:, None, None, None]
        return {"loss": masked_mean(weight * (estimate.float() - batch["x_0"]) ** 2, batch["mask"])}
