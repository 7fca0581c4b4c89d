"""The commands for scenarios: a model of one run, and fields of another given its temperature."""

from __future__ import annotations

import shutil
import time
from argparse import Namespace
from pathlib import Path

import cftime
import numpy as np
import xarray as xr

from perrin.errors import PerrinError, counted
from perrin.modalities.weather.downscale_model import inside, parse_spans
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.scenario import (
    ScenarioModel,
    area_mean,
    fit_scenario,
    read_forcing,
    read_scenario,
)
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.modalities.weather.training import begin, options_of, ship
from perrin.run.outputs import record_path
from perrin.run.record import record, write_record

CARD = """# {name}

Fields of {field} given the temperature of a year: pattern scaling and internal variability, for `perrin forecast --forcing`.

Data: {source}, {times} times{held}.

Metrics: none measured yet; `python benchmarks/scenario.py` of Perrin's repository scores such a model on another scenario.
"""
_FAR = 20.0
"""No scenario is so much warmer or colder, kelvins: such temperatures are Celsius for kelvins, or anomalies."""
_TOGETHER = 10
"""Members that are always made together, so that their bits do not depend on how many are asked for."""


def train(a: Namespace) -> None:
    """`perrin train weather/scenario --data RUN.nc --out DIR`: a minute on a CPU."""
    if not a.data:
        raise PerrinError("expected --data with fields of a climate run by month or year, given none")
    if a.start:
        raise PerrinError("expected no --from for weather/scenario, which is fitted anew: leave it out")
    out = begin(a)
    fields = open_fields(a.data)
    found = read_scenario(fields, a.variables)
    forcing = read_forcing(a.forcing) if a.forcing else area_mean(fields, found)
    used = ~inside(found.times, parse_spans(a.hold_out, "--hold-out"))
    options = options_of(
        a, steps=600, batch=64, lr=1e-3, warmup=60, log_every=200, weight_decay=0.1, ema=0.98
    )
    write_record(out / "run.json", record("train", a, options=options.to_json()))
    model, losses = fit_scenario(fields, found, forcing, used, options, out / "variability")
    card = CARD.format(
        name=out.name,
        field=found.name,
        source=Path(a.data).name,
        times=int(used.sum()),
        held=f"; held out: {', '.join(a.hold_out)}" if a.hold_out else "",
    )
    ship(out, model, card, {"options": options.to_json(), "hold_out": a.hold_out, "losses": losses})
    print(f"bundle in {out}: perrin forecast {out} --forcing temperatures.csv --members 50 -o fields.nc")


def forecast(a: Namespace, model: ScenarioModel) -> None:
    """`perrin forecast BUNDLE --forcing FILE --members M -o FILE`: every year that FILE has, or those of `--start`."""
    if not a.forcing:
        raise PerrinError("expected --forcing with the scenario's temperatures by year, given none")
    for name in ("file", "months", "days", "years", "every"):
        if getattr(a, name) is not None:
            raise PerrinError(f"expected --forcing and --start for a scenario, given --{name}: leave it out")
    forcing, words = read_forcing(a.forcing), model.words
    years = sorted(forcing)
    if a.start:
        from perrin.modalities.weather.models import parse_months

        asked = parse_months(a.start)
        years = [y for y in years if asked[0][0] <= y <= asked[-1][0]]
        if not years:
            raise PerrinError(f"expected --start within the years of {a.forcing}, given {a.start}")
    months = range(1, 13) if words["parts"] == 12 else [words["month"]]
    times = [cftime.datetime(y, m, words["day"], calendar=words["calendar"]) for y in years for m in months]
    G = np.array([forcing[t.year] for t in times])
    if float(np.abs(G - model.centre[0]).max()) > _FAR:
        raise PerrinError(
            f"expected temperatures about {model.centre[0]:.4g}, which the training run has on average, given "
            f"{G.min():.4g} to {G.max():.4g} in {a.forcing}: use the same unit and the same mean"
        )
    parts = np.array([t.month - 1 if words["parts"] == 12 else 0 for t in times])
    begin = time.perf_counter()
    out = Path(a.out)
    store = out.with_name(out.name + ".partial")
    dims = ("realization", "time", "latitude", "longitude")
    template = xr.Dataset(
        coords={
            "realization": np.arange(a.members, dtype=np.int32),
            "time": times,
            "latitude": words["latitude"],
            "longitude": words["longitude"],
        }
    )
    attributes = {
        "title": f"fields of a scenario by {model.name}",
        "source": f"perrin, bundle {a.target} ({model.sha256[:12]}), seed {a.seed}",
        "comment": f"temperatures of {Path(a.forcing).name}",
    }
    try:
        create_store(store, template, {words["name"]: words["attributes"]}, dims, attributes)
        for first in range(0, a.members, _TOGETHER):
            x = model.members(G, parts, range(first, first + _TOGETHER), seed=a.seed)
            whole = np.full((*x.shape[:2], *model.keep.shape), np.nan, dtype=np.float32)
            whole[..., model.keep] = x
            last = min(first + _TOGETHER, a.members)
            write_region(store, words["name"], (slice(first, last),), whole[: last - first])
        finish(store, out)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    write_record(record_path(a.out), record("forecast", a, bundle={"path": a.target, "sha256": model.sha256}))
    seconds = time.perf_counter() - begin
    print(f"{counted(a.members, 'members')} of {counted(len(times), 'times')} in {a.out}: {seconds:.1f} s")
