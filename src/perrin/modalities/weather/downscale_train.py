"""Training of a downscaling on a fine record: coarse fields are its own means over f × f cells.

Rows and columns beyond whole coarse cells are left out, evenly at both ends. Departures are from means of the calendar
months that are trained on, so that what is held out stays unseen. First the mean is trained, then the residual that it
leaves, each with its own run in the folder (`perrin.train.Trainer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import sample_seeds
from perrin.errors import PerrinError, counted, warn
from perrin.modalities.weather.downscale_model import DownscaleModel, Downscaling, Place, even_edges
from perrin.modalities.weather.downscaling import (
    DownscaleConfig,
    MeanTask,
    Patches,
    ResidualNetwork,
    ResidualTask,
    Scales,
    block_mean,
    fit_regression,
    interpolate,
    places,
    regress,
    spread,
)
from perrin.modalities.weather.grid import cell_areas, is_circle
from perrin.modalities.weather.names import attributes
from perrin.modalities.weather.scores import crps
from perrin.nets.local_unet import LocalUNet
from perrin.train import Trainer, TrainOptions

if TYPE_CHECKING:  # training runs where there is no xarray
    from perrin.modalities.weather.fields import Fields


@dataclass(frozen=True, kw_only=True, eq=False)
class FineRecord:
    """A record on a grid of whole coarse cells.

    Arguments:
        times: cftime objects.
        lat_edges, lon_edges: of the fine cells, degrees.
        values: `[T, C, rows, columns]`, float32, NaN where there is none.
        attributes: of each field.
        left_out: rows and columns of the file that make up no whole coarse cell.
    """

    times: list[Any]
    lat_edges: NDArray[np.float64]
    lon_edges: NDArray[np.float64]
    values: NDArray[np.float32]
    attributes: dict[str, dict[str, str]]
    left_out: tuple[int, int] = (0, 0)

    @property
    def circle(self) -> bool:
        """Whether columns close."""
        return is_circle((self.lon_edges[1:] + self.lon_edges[:-1]) / 2)

    @property
    def area(self) -> Tensor:
        """Of the fine cells, steradians."""
        return torch.from_numpy(cell_areas(self.lat_edges, self.lon_edges))

    def coarse(self, factor: int, *, whole: bool) -> Tensor:
        """Means over coarse cells, `[T, C, rows / f, columns / f]`, float64; see `block_mean`."""
        x = torch.from_numpy(self.values)
        return torch.stack([block_mean(v.double(), self.area, factor, whole=whole) for v in x])


def read_record(fields: Fields, factor: int, variables: Sequence[str] = ()) -> FineRecord:
    """Read a fine record.

    Arguments:
        fields: a file of analyses or observations by time, on a regular grid.
        factor: f.
        variables: names; the only one of the file by default.

    Raises:
        PerrinError: a variable is missing or not named where there are several, or the grid is not regular or too small.
    """
    names = list(variables) or list(fields.parts)
    if not variables and len(names) > 1:
        raise PerrinError(
            f"expected --variables with some of {', '.join(names)}, which {fields.label} has, given none"
        )
    if lacking := [n for n in names if n not in fields.parts]:
        raise PerrinError(
            f"expected variables of {fields.label} ({', '.join(fields.parts)}), given {lacking[0]!r}"
        )
    edges = []
    pieces = []
    for word, name, centres in (
        ("rows", "latitude", fields.latitude),
        ("columns", "longitude", fields.longitude),
    ):
        over = len(centres) % factor
        piece = slice(over // 2, len(centres) - (over - over // 2))
        if len(centres) < 2 * factor:
            raise PerrinError(f"expected {2 * factor} {word} or more, given {len(centres)} in {fields.label}")
        pieces.append(piece)
        edges.append(even_edges(centres[piece], name))
    rows, columns = pieces
    values = np.stack(
        [
            np.stack([fields.read(n, rows, time=i)[:, columns] for n in names])
            for i in range(len(fields.times))
        ]
    )
    return FineRecord(
        times=fields.times,
        lat_edges=edges[0],
        lon_edges=edges[1],
        values=values.astype(np.float32),
        attributes={n: attributes(fields, n) for n in names},
        left_out=(len(fields.latitude) % factor, len(fields.longitude) % factor),
    )


def tell_left_out(record: FineRecord, factor: int) -> None:
    """Warn of what is left out at the ends of a record, if anything is."""
    parts = [counted(n, word) for n, word in zip(record.left_out, ("rows", "columns")) if n]
    if parts:
        warn(
            f"{' and '.join(parts)} at the ends left out, which make up no whole cells of {factor} x {factor}"
        )


def prepare(
    record: FineRecord, config: DownscaleConfig, used: NDArray[np.bool_], *, patch: int
) -> tuple[Patches, Place | None]:
    """Pieces for training.

    Arguments:
        record: see there.
        config: the model's.
        used: which times are trained on, `[T]`.
        patch: size of the pieces.

    Raises:
        PerrinError: no times or data are left, or the pieces do not fit.
    """
    f, circle = config.factor, record.circle
    step = np.lcm(f, config.network(residual=True).stride)
    if patch < step or patch % step:
        raise PerrinError(f"expected pieces of a multiple of {step} cells, given {patch}")
    if not used.any():
        raise PerrinError("expected times to train on, given none: hold out less")
    y = torch.from_numpy(record.values[used])
    if config.amounts and float(np.nanmin(record.values)) < 0:
        raise PerrinError(
            f"expected amounts, given {np.nanmin(record.values):g}: set negative ones to 0, or leave --amounts out"
        )
    months = torch.tensor([t.month - 1 for t, u in zip(record.times, used) if u])
    count, rows, columns = y.shape[1:]
    area = record.area
    place = None
    usual = torch.zeros(12, count, rows, columns, dtype=torch.float64)
    if config.static:
        if lacking := sorted(set(range(12)) - set(months.tolist())):
            raise PerrinError(
                f"expected all calendar months in the times to train on, given none of month {lacking[0] + 1}: "
                "use --anywhere, which needs no climatology, or hold out less"
            )
        usual = torch.stack([y[months == m].double().mean(0) for m in range(12)])
        usual[:, ~usual.isfinite().all(0)] = torch.nan
    away = torch.stack([v.double() - usual[m] for v, m in zip(y, months)])
    c = torch.stack([block_mean(v, area, f, whole=not config.static) for v in away])
    if config.static:
        weight = torch.stack([fit_regression(c[:, k], away[:, k], f, circle=circle) for k in range(count)])
        place = Place(
            lat_edges=torch.from_numpy(record.lat_edges),
            lon_edges=torch.from_numpy(record.lon_edges),
            climatology=usual,
            regression=weight,
        )
        b = torch.stack([regress(c[:, k], w, f, circle=circle) for k, w in enumerate(weight)], 1)
    else:
        b = interpolate(c, f, circle=circle)
    near = spread(c, f)
    known = (near.isfinite() & away.isfinite()).all(1, keepdim=True)
    if not known.any():
        raise PerrinError("expected data to train on, given none: all is missing in every coarse cell")
    mask = known & (near > 0).all(1, keepdim=True) if config.amounts else known
    b, near, away = (torch.where(known, v, 0).float() for v in (b, near, away))
    detail = torch.ones(count, 1, 1)
    shares = known.sum((0, 2, 3))
    level = ((away - b) ** 2).sum((0, 2, 3)) / shares
    if not config.amounts:
        detail = level.sqrt().clamp(min=1e-6)[:, None, None]
    if config.static:
        each = ((away - b) ** 2).sum(0) / known.sum(0).clamp(min=1)
        detail = torch.maximum(each.sqrt(), 0.05 * detail)
    mean = near.sum((0, 2, 3)) / shares * (not config.static)
    std = (((near - mean[:, None, None]) ** 2 * known).sum((0, 2, 3)) / shares).sqrt().clamp(min=1e-6)
    scales = Scales(mean=mean, std=std, detail=detail, residual=torch.ones(count))
    fixed, seasonal = [places(rows, columns, f)], torch.zeros(12, 0, rows, columns)
    if place is not None:
        # the same planes as in use, by the same code
        model = DownscaleModel(
            config,
            LocalUNet(config.network(residual=False)),
            ResidualNetwork(config.network(residual=True)),
            scales,
            record.attributes,
            place,
        )
        coarse = [e[::f] for e in (record.lat_edges, record.lon_edges)]
        grid = Downscaling(model, *((e[1:] + e[:-1]) / 2 for e in coarse))
        fixed = [grid.static]
        seasonal = torch.stack(
            [grid.seasonal(usual[m], block_mean(usual[m], area, f, whole=False), m) for m in range(12)]
        )
    patches = Patches(
        config,
        scales,
        b,
        near,
        away,
        mask,
        known,
        torch.cat(fixed),
        seasonal,
        months,
        size=patch,
        circle=circle,
    )
    return patches, place


def train_downscale(
    record: FineRecord,
    config: DownscaleConfig,
    used: NDArray[np.bool_],
    train: TrainOptions,
    folder: str | Path,
    *,
    patch: int = 64,
    share: float = 0.35,
    accelerator: str = "cpu",
) -> tuple[DownscaleModel, dict[str, float]]:
    """Train both networks.

    Arguments:
        record: see there.
        config: the model's.
        used: which times are trained on, `[T]`.
        train: of the residual; the mean has a share of its steps and minutes.
        folder: of the runs.
        patch: size of the pieces, fine cells.
        share: of the budget that the mean has.
        accelerator: `cpu` or `cuda`.

    Returns:
        The model, on the CPU, and the last losses.

    Raises:
        PerrinError: see `prepare`.
    """
    patches, place = prepare(record, config, used, patch=patch)
    folder = Path(folder)
    torch.manual_seed(train.seed)
    mean, network = LocalUNet(config.network(residual=False)), ResidualNetwork(config.network(residual=True))
    parts = []
    for part in (share, 1 - share):
        minutes = part * train.minutes if train.minutes else None
        steps = max(1, round(part * train.steps))
        parts.append(
            replace(train, steps=steps, minutes=minutes, warmup=min(train.warmup, max(1, steps // 10)))
        )
    first = MeanTask(mean, patches, batch=train.batch, seed=train.seed)
    losses = Trainer(first, parts[0], folder / "mean", accelerator=accelerator, devices=1).run()
    mean.eval().requires_grad_(False)
    second = ResidualTask(network, mean, patches, batch=train.batch, seed=train.seed)
    device = next(mean.parameters()).device
    second.to(device)
    patches.scales = replace(patches.scales, residual=residual_scale(second))
    more = Trainer(second, parts[1], folder / "residual", accelerator=accelerator, devices=1).run()
    for net in (mean, network):
        net.cpu().eval().requires_grad_(False)
    model = DownscaleModel(
        config, mean, network, patches.scales.to("cpu"), record.attributes, place, name=folder.name
    )
    return model, {"mean_loss": float(losses["loss"]), "residual_loss": float(more["loss"])}


def choose_inflation(
    model: DownscaleModel, record: FineRecord, times: NDArray[np.intp], members: int = 8
) -> dict[str, float]:
    """Set γ to the one with the least fair CRPS at these times; returns the scores.

    Arguments:
        model: set to it.
        record: fine.
        times: numbers of times that were not trained on.
        members: for each.
    """
    f = model.config.factor
    centres = [(e[f::f] + e[:-f:f]) / 2 for e in (record.lat_edges, record.lon_edges)]
    grid = Downscaling(model, centres[0], centres[1])
    candidates = [round(0.8 + 0.1 * k, 1) for k in range(11)]
    total = dict.fromkeys(candidates, 0.0)
    for t in times:
        month = record.times[t].month - 1
        y = torch.from_numpy(record.values[t]).double().to(model.device)
        if grid.climatology is not None:
            y = torch.where(grid.climatology[month].isfinite(), y, torch.nan)
        c = block_mean(y, grid.area, f, whole=not model.config.static)
        seeds = sample_seeds(10**6 + int(t), range(members)).to(model.device)
        seen = grid.look(c, month)
        states = [grid.residual(seen, seed[None]) for seed in seeds]
        for gamma in candidates:
            model.inflation = gamma
            drawn = torch.cat([grid.compose(r, seen) for r in states])
            known = drawn[0].isfinite() & y.isfinite()
            fair, _ = crps(drawn[:, known].cpu().numpy(), y[known].cpu().numpy())
            weight = grid.area.expand(known.shape)[known].cpu().numpy()
            total[gamma] += float(fair @ weight / weight.sum()) / len(times)
    model.inflation = min(candidates, key=lambda gamma: total[gamma])
    return {f"{gamma:g}": round(v, 6) for gamma, v in total.items()}


@torch.no_grad()
def residual_scale(task: ResidualTask, batches: int = 16) -> Tensor:
    """σ: the residual's root mean square where the loss counts, `[C]`."""
    total, weight = torch.zeros(0), torch.zeros(())
    for k in range(batches):
        _, index = task.plan(k)
        r, _, p = task.residual(
            index, torch.zeros(len(index), 2, dtype=torch.bool, device=task.patches.corners.device)
        )
        square = (r**2 * p["mask"]).sum((0, 2, 3))
        total = square if k == 0 else total + square
        weight = weight.to(square) + p["mask"].sum()
    return (total / weight.clamp(min=1)).sqrt().clamp(min=1e-6)
