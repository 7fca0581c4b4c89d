"""The commands for scenarios: a model of one run, and fields of another given its temperature."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from perrin.errors import PerrinError, counted
from perrin.modalities.weather.commands import parse_months
from perrin.modalities.weather.downscale_model import inside, parse_spans
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.forecast import Rollout
from perrin.modalities.weather.rolled import rolled
from perrin.modalities.weather.scenario import (
    ScenarioModel,
    area_mean,
    fit_scenario,
    read_forcing,
    read_scenario,
)
from perrin.modalities.weather.training import begin, options_of, ship
from perrin.run.pool import cpu_count
from perrin.run.record import record, write_record

CARD = """# {name}

Fields of {field} given the temperature of a year: pattern scaling and internal variability, for `perrin forecast --forcing`.

Data: {source}, {times} times{held}.

Network: {network}.

Metrics: none measured yet; `python benchmarks/scenario.py` of Perrin's repository scores such a model on another scenario.
"""
_FAR = 20.0
"""No scenario is so much warmer or colder, kelvins: such temperatures are Celsius for kelvins, or anomalies."""


def train(a: Namespace) -> None:
    """`perrin train weather/scenario --data RUN.nc --out DIR`: a minute on a CPU."""
    out = begin(a, "fields of a climate run by month or year")
    fields = open_fields(a.data)
    found = read_scenario(fields, a.variables)
    forcing = read_forcing(a.forcing) if a.forcing else area_mean(fields, found)
    used = ~inside(found.times, parse_spans(a.hold_out, "--hold-out"))
    options = options_of(
        a, steps=600, batch=64, lr=1e-3, warmup=60, log_every=200, weight_decay=0.1, ema=0.98
    )
    write_record(out / "run.json", record("train", a, options=options.to_json()))
    model, losses = fit_scenario(fields, found, forcing, used, options, out / "variability")
    kept = losses["trained"] < losses["normal"]
    network = (
        f"{'kept' if kept else 'not kept'}, on the last fifth of the times its loss is {losses['trained']:.3f}, that of the "
        f"normal law that it starts from {losses['normal']:.3f}"
    )
    card = CARD.format(
        name=out.name,
        field=found.name,
        source=Path(a.data).name,
        times=int(used.sum()),
        held=f"; held out: {', '.join(a.hold_out)}" if a.hold_out else "",
        network=network,
    )
    more = {"hold_out": a.hold_out, "losses": losses, "network_kept": kept}
    ship(out, model, card, {"options": options.to_json()} | more)
    print(f"network {network}")
    print(f"bundle in {out}: perrin forecast {out} --forcing temperatures.csv --members 50 -o fields.nc")


def forecast(a: Namespace, model: ScenarioModel) -> None:
    """`perrin forecast BUNDLE --forcing FILE --members M -o FILE`: every year that FILE has, or those of `--start`."""
    if not a.forcing:
        raise PerrinError("expected --forcing with the scenario's temperatures by year, given none")
    for name in ("file", "months", "days", "years", "every"):
        if getattr(a, name) is not None:
            raise PerrinError(f"expected --forcing and --start for a scenario, given --{name}: leave it out")
    forcing = read_forcing(a.forcing)
    if a.start:
        asked = parse_months(a.start)
        forcing = {y: G for y, G in forcing.items() if asked[0][0] <= y <= asked[-1][0]}
        if not forcing:
            raise PerrinError(f"expected --start within the years of {a.forcing}, given {a.start}")
    start = model.scenario(forcing)
    if float(np.abs(start.G - model.centre[0]).max()) > _FAR:
        raise PerrinError(
            f"expected temperatures about {model.centre[0]:.4g}, which the training run has on average, given "
            f"{start.G.min():.4g} to {start.G.max():.4g} in {a.forcing}: use the same unit and the same mean"
        )
    count = len(start.times)
    workers = cpu_count() if a.members * count > 5_000 else 1  # where starting a process costs more
    options = Rollout(members=a.members, leads=count, step=0, seed=a.seed, workers=a.workers or workers)
    words = {
        "title": f"fields of a scenario by {model.name}",
        "comment": f"temperatures of {Path(a.forcing).name}",
    }
    done = rolled("forecast", a, model, [start], options, words, model.template(start, a.members))
    print(f"{counted(a.members, 'members')} of {counted(count, 'times')} in {a.out}: {done}")
