"""Training of `perrin.modalities.weather.sst_model` on a monthly record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import NetworkDenoiser, sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.weather import seasonal
from perrin.modalities.weather.residual import fit_modes
from perrin.modalities.weather.scores import crps
from perrin.modalities.weather.sst import SeaSurface, weights_of
from perrin.modalities.weather.sst_model import (
    ObservedMonth,
    SSTInfill,
    SSTModel,
    SSTStart,
    conditions,
    season,
)
from perrin.modalities.weather.sst_network import AmplitudeConfig, AmplitudeTask, build_denoiser
from perrin.nets.sphere import SphericalHarmonics
from perrin.train import Trainer, TrainOptions

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SSTOptions:
    """What to fit, and on what.

    Arguments:
        training: first and last year of the fit.
        choice: first and last year on which γ is chosen.
        leads: months.
        modes, predicted, ridge: of the regression.
        amplitudes: of residuals that are diffused.
        field_amplitudes, field_degree: of the prior for observations.
        degree: L of the rest's spectrum.
        dropout: of the network.
    """

    training: tuple[int, int] = (1950, 1994)
    choice: tuple[int, int] = (1995, 1999)
    leads: int = 12
    modes: int = 20
    predicted: int = 60
    ridge: float = 3.0
    amplitudes: int = 24
    field_amplitudes: int = 100
    field_degree: int = 36
    degree: int = 30
    dropout: float = 0.3


def train_sst(
    sst: SeaSurface, options: SSTOptions, train: TrainOptions, folder: str | Path
) -> tuple[SSTModel, dict[str, Any]]:
    """Fit the regression and the modes, train the network, choose γ; the training goes on from where its folder says it is.

    Arguments:
        sst: with a climatology of the training years.
        options, train: see there.
        folder: of the run.

    Returns:
        The model and what it was measured to do.

    Raises:
        PerrinError: the record is too short for those years.
    """
    numbers = [t.year for t in sst.times]
    if sum(options.choice[0] <= year <= options.choice[1] for year in numbers) < options.leads + 12:
        raise PerrinError(
            f"expected {options.leads + 12} months or more in {options.choice[0]}-{options.choice[1]} to choose on, given "
            f"a record of {numbers[0]} to {numbers[-1]}: choose other years with --choose"
        )
    sea, months = sst.sea, sst.months
    x = sst.anomaly[:, sea]
    years = np.array([t.year for t in sst.times])
    weight = weights_of(sea)
    known = (years >= options.training[0]) & (years <= options.training[1])
    regression, starts, r = seasonal.fit(
        x[known],
        months[known],
        weight,
        leads=options.leads,
        modes=options.modes,
        predicted=options.predicted,
        ridge=options.ridge,
    )
    offset = int(np.argmax(known))
    starts = starts + offset
    harmonics = SphericalHarmonics(torch.from_numpy(sst.latitude), len(sst.longitude), degree=options.degree)
    residuals = fit_modes(
        r.astype(np.float64), months[starts], weight, sea, harmonics, count=options.amplitudes
    )
    past = seasonal.past_means(x, starts)
    seen = conditions(regression, past)
    scale = seen.std(0)
    condition = np.concatenate([seen / scale, season(months[starts])], 1)
    amplitudes = residuals.amplitudes(r.astype(np.float64), months[starts], weight)
    held = np.flatnonzero((years >= options.choice[0]) & (years <= options.choice[1]))
    late = held[(held >= seasonal.LEAST - 1) & (held < len(x) - options.leads)]
    late = late[np.isin(late + options.leads, held)]
    before = seasonal.past_means(x, late)
    errors = np.stack(
        [x[t + 1 : t + 1 + options.leads] - regression.mean(p, months[t]) for t, p in zip(late, before)]
    )
    denoiser, loss = _train(
        (amplitudes, condition),
        (
            residuals.amplitudes(errors, months[late], weight),
            np.concatenate([conditions(regression, before) / scale, season(months[late])], 1),
        ),
        options,
        train,
        Path(folder) / "residuals",
    )
    columns = len(sst.longitude)
    wide = SphericalHarmonics(torch.from_numpy(sst.latitude), columns, degree=options.field_degree)
    field = fit_modes(x[known][:, None], months[known], weight, sea, wide, count=options.field_amplitudes)
    # The prior's network stays as it begins, exact for normal amplitudes: 45 years teach it nothing more (its held-out loss
    # hardly falls), and the derivatives of a trained one, which the guide needs, made the sampling diverge.
    torch.manual_seed(train.seed)
    field_config = AmplitudeConfig(count=field.count, condition=2, dropout=options.dropout)
    field_denoiser = build_denoiser(field_config).eval().requires_grad_(False)
    model = SSTModel(
        regression,
        residuals,
        denoiser,
        scale,
        sst.climatology[:, sea] - sst.offset,
        sea,
        np.ones(options.leads),
        np.zeros((24, x.shape[1])),
        field,
        field_denoiser,
    )
    inflation, table = choose_inflation(model, sst, options.choice)
    model = model.with_inflation(inflation)
    model.sample_months = simulate(model, 24, seed=1)
    model.field_scale, table["field"] = choose_field_scale(model, sst, options.choice)
    return model, {"held_out_loss": loss, "choice": table}


def _train(
    known: tuple[Array, Array],
    held: tuple[Array, Array],
    options: SSTOptions,
    train: TrainOptions,
    folder: Path,
) -> tuple[NetworkDenoiser, dict[str, float]]:
    """A denoiser trained on `known` (amplitudes, conditions); the untrained one, exact for normal amplitudes, where it
    is better on `held`.

    Returns:
        It, and the losses of both on `held`.
    """
    amplitudes, condition = (torch.from_numpy(v).float() for v in known)
    config = AmplitudeConfig(count=amplitudes.shape[1], condition=condition.shape[1], dropout=options.dropout)
    torch.manual_seed(train.seed)
    fresh, denoiser = build_denoiser(config), build_denoiser(config)
    task = AmplitudeTask(denoiser, config, amplitudes, condition, batch=train.batch, seed=train.seed)
    Trainer(task, train, folder, accelerator="cpu").run()
    losses = {}
    for name, one in (("normal", fresh), ("trained", denoiser)):
        one.eval().requires_grad_(False)
        losses[name] = held_out_loss(one, config, *(torch.from_numpy(v).float() for v in held))
    return (fresh if losses["normal"] <= losses["trained"] else denoiser), losses


def held_out_loss(
    denoiser: NetworkDenoiser, config: AmplitudeConfig, amplitudes: Tensor, condition: Tensor
) -> float:
    """The training loss on other samples, the mean over 50 draws of times and noise that are always the same."""
    task = AmplitudeTask(denoiser, config, amplitudes, condition, batch=len(amplitudes), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = [
            float(task.loss(denoiser, *task.prepare(k, generator=generator, rank=0, world=1))["loss"])
            for k in range(50)
        ]
    return float(np.mean(found))


def choose_field_scale(
    model: SSTModel, sst: SeaSurface, years: tuple[int, int], members: int = 40
) -> tuple[float, dict[str, Any]]:
    """The factor of the prior's spread with which 90 % of hidden points fall in 90 % intervals, where 5 % are seen.

    Every 5th month is looked at, and the factor interpolated between a few.
    """
    x, weight = sst.anomaly[:, sst.sea], model.regression.weight
    numbers = np.array([t.year for t in sst.times])
    inside = np.flatnonzero((numbers >= years[0]) & (numbers <= years[1]))[::5]
    scales = np.array([1.0, 1.2, 1.4, 1.7, 2.2])
    covered = np.zeros(len(scales))
    for i, scale in enumerate(scales):
        model.field_scale = float(scale)
        for t in inside:
            start, hidden = hide(model, sst, int(t))
            found = (
                SSTInfill(model).infill(start).members(sample_seeds(int(t), range(members)), batch=members)
            )
            low, high = np.quantile(found[:, hidden], [0.05, 0.95], axis=0)
            hit = (x[t, hidden] >= low) & (x[t, hidden] <= high)
            covered[i] += hit @ weight[hidden] / weight[hidden].sum() / len(inside)
    table = {f"{s:g}": round(float(c), 3) for s, c in zip(scales, covered)}
    return float(np.interp(0.9, np.maximum.accumulate(covered), scales)), table


def hide(
    model: SSTModel, sst: SeaSurface, t: int, share: float = 0.05, error: float = 0.1
) -> tuple[ObservedMonth, NDArray[np.intp]]:
    """A month with a share of its points observed, at random, with normal errors (K); and the others' numbers."""
    state = sst.temperature[t][sst.sea]
    rng = np.random.default_rng(t)
    at = rng.choice(len(state), max(1, int(share * len(state))), replace=False)
    start = ObservedMonth(
        time=sst.times[t],
        latitude=model.places[0][at],
        longitude=model.places[1][at],
        value=state[at] + error * rng.standard_normal(len(at)),
        error=np.full(len(at), error),
    )
    return start, np.setdiff1d(np.arange(len(state)), at)


def choose_inflation(
    model: SSTModel, sst: SeaSurface, years: tuple[int, int], members: int = 20
) -> tuple[Array, dict[str, Any]]:
    """γ of each lead by the least mean fair CRPS of forecasts that start and verify in these years, smoothed over leads."""
    x, leads = sst.anomaly[:, sst.sea], model.longest
    numbers = np.array([t.year for t in sst.times])
    inside = np.flatnonzero((numbers >= years[0]) & (numbers <= years[1]))
    inside = inside[inside >= seasonal.LEAST]
    candidates = np.arange(0.9, 1.61, 0.05)
    total = np.zeros((len(candidates), leads))
    for t in range(inside[0] - 1, inside[-1] - leads + 1, 3):
        start = SSTStart(
            time=sst.times[t], past=seasonal.past_means(x, np.array([t]))[0], offset=0.0, units="degC"
        )
        mean = model.regression.mean(start.past, start.time.month - 1)
        seeds = sample_seeds(1_000_000 + t, range(members))
        drawn = np.stack([model.anomalies(start, seeds[k : k + 1]) for k in range(members)]) - mean
        for i, gamma in enumerate(candidates):
            fair, _ = crps(mean + gamma * drawn, x[t + 1 : t + 1 + leads])
            total[i] += fair @ model.regression.weight
    best = np.asarray(candidates[total.argmin(0)], dtype=np.float64)
    log = np.log(np.arange(1, leads + 1))
    smooth = np.asarray(np.polyval(np.polyfit(log, best, 1), log), dtype=np.float64)
    return smooth, {"inflation": [round(float(g), 3) for g in smooth], "years": list(years)}


def simulate(model: SSTModel, months: int, seed: int) -> Array:
    """A record made by the model itself from no anomaly, a year at a time, `[months, points]`: a start that is nobody's
    data."""
    past = [np.zeros(model.climatology.shape[1])] * seasonal.LEAST
    n = 0
    while n < months + 24:
        record = np.stack(past)
        time = cftime.datetime(2000, (n - 1) % 12 + 1, 1, calendar="standard")
        start = SSTStart(
            time=time,
            past=seasonal.past_means(record, np.array([len(record) - 1]))[0],
            offset=0.0,
            units="degC",
        )
        found = model.anomalies(start, sample_seeds(seed, range(n, n + 1)))
        past += list(found)
        n += model.longest
    return np.stack(past[-months:])
