"""Training of `perrin.modalities.weather.atmosphere_model` on a record of the user's own, and what it is worth.

The years to choose on are kept apart: ensembles that start there are scored beside persistence, the state that stays as it
is, and climatology, an ensemble of training states within `SEASON` days of the time of the year. What is scored is what the
bundle holds, rounded as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import sample_seeds
from perrin.errors import PerrinError, warn
from perrin.modalities.weather.atmosphere import (
    AtmosphereConfig,
    AtmosphereTask,
    Normalisation,
    build_denoiser,
    harmonics,
)
from perrin.modalities.weather.atmosphere_data import BLOCK, Record
from perrin.modalities.weather.atmosphere_model import AtmosphereModel, AtmosphereStart
from perrin.modalities.weather.scores import crps
from perrin.nets.sphere import gauss_latitudes
from perrin.run.progress import progress
from perrin.train import Trainer, TrainOptions

LEADS = (1, 3, 5)
"""Days of the table."""
MEMBERS = 10
STARTS = 8
SEASON = 15
FEWEST = 30
"""Steps to learn from, at least."""
HELD = 0.02
"""A mean over the sphere that varies by less than this share of the changes is that of something conserved."""


@dataclass(frozen=True, kw_only=True)
class AtmosphereOptions:
    """What to train.

    Arguments:
        hours: of a step.
        loss: `crps` or `diffusion`.
        leads: steps that members go with `crps`.
        width, levels, blocks, dropout: of the network.
        jitter: see `AtmosphereTask`.
    """

    hours: int = 24
    loss: str = "crps"
    leads: int = 1
    width: int = 48
    levels: int = 3
    blocks: int = 2
    dropout: float = 0.1
    jitter: float = 0.3


def split(
    record: Record, years: tuple[int, int] | None, choose: tuple[int, int] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which times are trained on and which are kept apart: by default the last tenth of those there are.

    Raises:
        PerrinError: they overlap, or one has no times.
    """
    used = np.ones(len(record.times), dtype=bool) if years is None else record.inside(years)
    if choose is None:
        at = np.flatnonzero(used)
        chosen = np.zeros_like(used)
        chosen[at[len(at) - len(at) // 10 :]] = True
    else:
        chosen = record.inside(choose)
    if years and choose and (used & chosen).any():
        raise PerrinError(
            f"expected --choose apart from --years, given {choose[0]}-{choose[1]} and {years[0]}-{years[1]}: leave years out"
        )
    first, last = record.times[0].year, record.times[-1].year
    for name, given, span in (("--years", used, years), ("--choose", chosen, choose)):
        if span and not given.any():
            raise PerrinError(
                f"expected {name} within {first} to {last}, the years of {record.label}, given {span[0]}-{span[1]}"
            )
    return used & ~chosen, chosen


def read_states(record: Record) -> Tensor:
    """All of them, `[T, C, rows, columns]`, in the files' units, of no degree that the grid does not resolve.

    Raises:
        PerrinError: see `Record.read`.
    """
    transform = harmonics(record.rows, 2 * record.rows, record.rows)
    out = torch.empty(len(record.times), len(record.names), record.rows, 2 * record.rows)
    with progress("reading, states", len(record.times)) as advance:
        for times, x in record.blocks():
            out[times] = transform.inverse(transform(torch.from_numpy(x).double())).float()
            advance(len(x))
    for name, one in zip(record.names, out.unbind(1)):
        if bool((one == one[:1]).all()):
            raise PerrinError(
                f"expected fields that vary, given {name} of {record.label}, which is the same at all times: leave it out "
                "(--variables)"
            )
    return out


def held(record: Record, states: Tensor, norm: Normalisation) -> tuple[str, ...]:
    """Pressures of the surface whose mean over the sphere hardly varies, so that the model keeps it."""
    weight = (gauss_latitudes(record.rows)[1] / (4 * record.rows))[:, None]
    out = []
    for c, name in enumerate(record.names):
        if record.attributes[name].get("standard_name") != "surface_air_pressure":
            continue
        means = torch.cat([(x[:, c].double() * weight).sum((-2, -1)) for x in states.split(BLOCK)])
        if float(means.std()) < HELD * float(norm.change[c] * norm.std[c]):
            out.append(name)
    return tuple(out)


def train_atmosphere(
    record: Record,
    states: Tensor,
    used: NDArray[np.bool_],
    options: AtmosphereOptions,
    how: TrainOptions,
    folder: Path,
    *,
    accelerator: str = "cpu",
) -> tuple[AtmosphereModel, dict[str, float]]:
    """Fit normalisation and climatology, and train the network; it goes on from where its folder says it is.

    Arguments:
        record: of the states.
        states: see `read_states`.
        used: which of them are trained on.
        options, how: see there.
        folder: of the run.
        accelerator: `cpu` or `cuda`.

    Returns:
        The model and the last losses.

    Raises:
        PerrinError: there is too little to train on.
    """
    stride, lengths = record.stride(options.hours), record.runs(used)
    steps = sum(max(0, n - (1 + options.leads) * stride) for n in lengths)
    if steps < FEWEST:
        raise PerrinError(
            f"expected {FEWEST} or more steps of {options.hours} hours with the state before to train on, given {steps} in "
            f"{int(used.sum())} times of {record.label}: give a longer record, or more --years"
        )
    at = torch.from_numpy(np.flatnonzero(used))
    x = states[at[0] : at[-1] + 1] if len(at) == at[-1] - at[0] + 1 else states[at]
    norm = Normalisation.fit(x, stride, gauss_latitudes(record.rows)[1], lengths)
    config = AtmosphereConfig(
        fields=record.names,
        vectors=record.vectors,
        rows=record.rows,
        columns=2 * record.rows,
        width=options.width,
        levels=options.levels,
        blocks=options.blocks,
        dropout=options.dropout,
        hours=options.hours,
        climatology=True,
        bound=6.0,
        holds=held(record, x, norm),
    )
    x = norm.normalise(x)
    constants = torch.from_numpy(record.constants).half().float()  # as a bundle keeps them
    torch.manual_seed(how.seed)
    denoiser = build_denoiser(config)
    denoiser.network.climatology.fit(x, norm.change)  # type: ignore[union-attr, operator]
    task = _task(options.loss)(
        denoiser,
        config,
        x,
        record.days[at],
        stride,
        constants,
        norm.change,
        batch=how.batch,
        seed=how.seed,
        jitter=options.jitter,
        leads=options.leads,
        lengths=lengths,
    )
    losses = Trainer(task, how, folder, accelerator=accelerator, devices=1).run()
    model = AtmosphereModel(
        denoiser.cpu().eval().requires_grad_(False),
        config,
        norm,
        constants,
        {name: _of_forecasts(words) for name, words in record.attributes.items()},
        steps=1 if options.loss == "crps" else 16,
        name=folder.name,
    )
    return model, losses


def _of_forecasts(words: dict[str, str]) -> dict[str, str]:
    """Attributes of a field by period, where the record's is by time."""
    return {
        k: re.sub(r"\btime:", "forecast_period:", v) if k == "cell_methods" else v for k, v in words.items()
    }


def _task(loss: str) -> Callable[..., AtmosphereTask]:
    """What is minimised."""
    if loss == "diffusion":
        return AtmosphereTask
    from perrin.modalities.weather.atmosphere_crps import CRPSTask

    return CRPSTask


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one field and day, in the field's unit: fair CRPS with its standard error over starts, SSR and RMSE of the
    mean; RMSE and mean absolute error of persistence, fair CRPS and RMSE of climatology."""

    field: str
    unit: str
    day: float
    crps: float
    error: float
    ssr: float
    rmse: float
    persistence_mae: float
    persistence_rmse: float
    climatology_crps: float
    climatology_rmse: float


def score(
    model: AtmosphereModel,
    record: Record,
    states: Tensor,
    used: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    *,
    members: int = MEMBERS,
    starts: int = STARTS,
) -> tuple[list[Row], int]:
    """Ensembles from a few states of those that are kept apart.

    Returns:
        The rows, of the leads of `LEADS` that there are states for, and the number of starts.
    """
    hours = model.config.hours
    leads = [day * 24 // hours for day in LEADS if day * 24 % hours == 0] or list(LEADS)
    while leads and not (found := _starts(record, chosen, hours, leads)):
        leads.pop()
    if not leads:
        warn(f"the {int(chosen.sum())} times to choose on are too few to score a forecast: no table")
        return [], 0
    cases = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, starts).astype(int))]
    weight = (gauss_latitudes(record.rows)[1] / (4 * record.rows)).numpy()[:, None]

    def area(x: Any) -> Any:
        return (x * weight).sum((-2, -1))

    table = np.zeros((len(cases), len(leads), 7, len(record.names)))
    with progress("scoring, starts", len(cases)) as advance:
        for n, (before, now, *after) in enumerate(cases):
            start = AtmosphereStart(time=record.times[now], states=states[[now, before]].numpy()[None])
            made = _roll_out(model, start, members, leads)
            for k, i in enumerate(after):
                truth, e = states[i].double().numpy(), made[k]
                like = states[_season(record, used, i)].double().numpy()
                still = states[now].double().numpy() - truth
                table[n, k] = [
                    area(crps(e, truth)[0]),
                    area(e.var(0, ddof=1)),
                    area((e.mean(0) - truth) ** 2),
                    area(np.abs(still)),
                    area(still**2),
                    area(crps(like, truth)[0]),
                    area((like.mean(0) - truth) ** 2),
                ]
            advance(1)
    rows = []
    for c, name in enumerate(record.names):
        for k, lead in enumerate(leads):
            v = table[:, k, :, c]
            m = v.mean(0)
            rows.append(
                Row(
                    field=name,
                    unit=record.attributes[name].get("units", ""),
                    day=lead * hours / 24,
                    crps=float(m[0]),
                    error=float(v[:, 0].std(ddof=1) / len(v) ** 0.5) if len(v) > 1 else float("nan"),
                    ssr=float(np.sqrt((members + 1) / members * m[1] / m[2])),
                    rmse=float(m[2] ** 0.5),
                    persistence_mae=float(m[3]),
                    persistence_rmse=float(m[4] ** 0.5),
                    climatology_crps=float(m[5]),
                    climatology_rmse=float(m[6] ** 0.5),
                )
            )
    return rows, len(cases)


def _starts(record: Record, chosen: NDArray[np.bool_], hours: int, leads: list[int]) -> list[list[int]]:
    """The numbers of the state before, the state, and those of the leads, wherever all are kept apart."""
    out = []
    for i in np.flatnonzero(chosen).tolist():
        found = [record.after(i, k * hours) for k in (-1, 0, *leads)]
        if all(k is not None and chosen[k] for k in found):
            out.append([k for k in found if k is not None])
    return out


def _roll_out(
    model: AtmosphereModel, start: AtmosphereStart, members: int, leads: list[int]
) -> list[NDArray[np.float64]]:
    """Members at the leads, `[M, C, rows, columns]` each; one at a time on a CPU, as a forecast makes them."""
    each = members if model.together > 1 else 1
    parts = []
    for k in range(0, members, each):
        numbers = range(k, k + each)
        segments = model.members(start, sample_seeds(0, torch.tensor(list(numbers))), leads, numbers)
        parts.append([np.stack([x[:, -1] for x in found.values()], 1) for found, _ in segments])
    return [np.concatenate(x).astype(np.float64) for x in zip(*parts)]


def _season(record: Record, used: NDArray[np.bool_], i: int) -> NDArray[np.intp]:
    """Up to 50 training states of the time of the year and of the day; of any time of the year where there are too few."""
    days = record.days.numpy()
    year = 365.2425
    hour = np.abs((days - days[i] + 0.5) % 1 - 0.5) < 1e-3
    near = np.abs((days - days[i] + year / 2) % year - year / 2) <= SEASON
    at = np.flatnonzero(used & near & hour)
    if len(at) < MEMBERS:
        at = np.flatnonzero(used)
    return at[np.unique(np.linspace(0, len(at) - 1, 50).astype(int))]


HEADS = ("field", "unit", "day", "CRPS", "SSR", "RMSE", "persistence MAE", "RMSE", "climatology CRPS", "RMSE")


def cells(row: Row) -> list[str]:
    """A row in words."""
    numbers = (row.persistence_mae, row.persistence_rmse, row.climatology_crps, row.climatology_rmse)
    return [
        row.field,
        row.unit or "?",
        f"{row.day:g}",
        f"{row.crps:.3g} ± {row.error:.1g}",
        f"{row.ssr:.2f}",
        f"{row.rmse:.3g}",
        *(f"{x:.3g}" for x in numbers),
    ]


def plain(rows: list[Row]) -> str:
    """The table for a terminal."""
    lines = [list(HEADS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{x:>{w}}" for x, w in zip(line, widths)) for line in lines)


def markdown(rows: list[Row]) -> str:
    """The table for a card."""
    lines = [list(HEADS), ["---"] * len(HEADS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
