"""Training of `perrin.modalities.weather.sst_model` on a monthly record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
from numpy.typing import NDArray

from perrin.core import sample_seeds
from perrin.modalities.weather import seasonal
from perrin.modalities.weather.residual import fit_modes
from perrin.modalities.weather.scores import crps
from perrin.modalities.weather.sst import SeaSurface, weights_of
from perrin.modalities.weather.sst_model import SSTModel, SSTStart, conditions, season
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
        amplitudes: that are diffused.
        degree: L of the rest's spectrum.
        dropout: of the network.
    """

    training: tuple[int, int] = (1950, 1994)
    choice: tuple[int, int] = (1995, 1999)
    leads: int = 12
    modes: int = 20
    predicted: int = 60
    ridge: float = 10.0
    amplitudes: int = 24
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
    """
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
    seen = conditions(regression.amplitudes(past))
    scale = seen.std(0)
    condition = np.concatenate([seen / scale, season(months[starts])], 1)
    amplitudes = residuals.amplitudes(r.astype(np.float64), months[starts], weight)
    config = AmplitudeConfig(count=options.amplitudes, condition=condition.shape[1], dropout=options.dropout)
    torch.manual_seed(train.seed)
    denoiser = build_denoiser(config)
    task = AmplitudeTask(
        denoiser,
        config,
        torch.from_numpy(amplitudes).float(),
        torch.from_numpy(condition).float(),
        batch=train.batch,
        seed=train.seed,
    )
    last = Trainer(task, train, folder, accelerator="cpu").run()
    model = SSTModel(
        regression,
        residuals,
        denoiser.eval().requires_grad_(False),
        scale,
        sst.climatology[:, sea],
        sea,
        np.ones(options.leads),
        np.zeros((24, x.shape[1])),
    )
    inflation, table = choose_inflation(model, sst, options.choice)
    model = model.with_inflation(inflation)
    model.sample_months = simulate(model, 24, seed=1)
    return model, {"loss": last.get("loss"), "choice": table}


def choose_inflation(
    model: SSTModel, sst: SeaSurface, years: tuple[int, int], members: int = 20
) -> tuple[Array, dict[str, Any]]:
    """γ of each lead by the least mean fair CRPS of forecasts that start and verify in these years, smoothed over leads."""
    x, leads = sst.anomaly[:, sst.sea], model.longest
    numbers = np.array([t.year for t in sst.times])
    inside = np.flatnonzero((numbers >= years[0]) & (numbers <= years[1]))
    inside = inside[inside >= seasonal.PAST[-1]]
    if len(inside) <= leads + 6:
        return np.ones(leads), {}
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
    past = [np.zeros(model.climatology.shape[1])] * seasonal.PAST[-1]
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
