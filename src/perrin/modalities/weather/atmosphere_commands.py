"""The commands for an atmosphere of the user's own: its record on the model's grid, and a model."""

from __future__ import annotations

import shlex
import shutil
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from perrin.bundle import read_bundle
from perrin.errors import PerrinError, counted, warn
from perrin.modalities.weather.atmosphere_data import BLOCK, Record
from perrin.modalities.weather.atmosphere_model import AtmosphereModel
from perrin.modalities.weather.atmosphere_train import (
    MEMBERS,
    SEASON,
    AtmosphereOptions,
    markdown,
    plain,
    read_states,
    score,
    split,
    train_atmosphere,
)
from perrin.modalities.weather.commands import parse_years
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.modalities.weather.training import begin, options_of, ship
from perrin.nets.sphere import gauss_latitudes
from perrin.run.device import choose_device
from perrin.run.progress import progress
from perrin.run.record import record, write_record

CARD = """# {name}

{fields}, on a Gauss grid of {rows} × {columns}, {hours} hours a step: `perrin forecast {name} --file FILE`.

Data: {source}, {times} times from {first} to {last}; kept apart: {apart}.

Made by `{command}`.

Metrics: {metrics}
"""
_LOSSES = ("crps", "diffusion")


def files(given: str | list[str]) -> list[str]:
    """One or more, as the command line has them."""
    return [given] if isinstance(given, str) else given


def open_record(a: Namespace, given: str | list[str]) -> Record:
    """The record of a command's files."""
    names = [n for n in a.variables.split(",") if n] if a.variables else []
    static = open_fields(a.static) if a.static else None
    found = Record([open_fields(f) for f in files(given)], names, a.rows, static)
    if found.lacking:
        warn(found.lacking)
    return found


def data(a: Namespace) -> None:
    """`perrin data weather/atmosphere --file FILE [FILE …] -o OUT`: a record on the model's grid, to train on, start from
    and verify against."""
    if not a.file:
        raise PerrinError("expected --file with fields by time, given none")
    found, out = open_record(a, a.file), Path(a.out)
    names = ("time", "latitude", "longitude")
    grid = {
        "latitude": gauss_latitudes(found.rows)[0].numpy(),
        "longitude": np.arange(2 * found.rows) * 180 / found.rows,
    }
    constants = {"orog": ("surface_altitude", "m", 3000), "sftlf": ("land_area_fraction", "1", 1)}
    fixed = {
        name: (names[1:], x * factor, {"standard_name": standard, "units": unit})
        for there, x, (name, (standard, unit, factor)) in zip(found.has, found.constants, constants.items())
        if there
    }
    folder = out.with_name(out.name + ".partial")
    try:
        store = folder / "data.zarr"
        folder.mkdir(parents=True, exist_ok=True)
        create_store(
            store,
            xr.Dataset(fixed, {"time": found.times} | grid),
            found.attributes,
            names,
            {"title": f"states on a Gauss grid of {found.rows} rows", "source": found.label},
            chunks={"time": BLOCK},
        )
        with progress("states", len(found.times)) as advance:
            for times, x in found.blocks():
                for c, name in enumerate(found.names):
                    write_region(store, name, (times,), x[:, c])
                advance(len(x))
        finish(store, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = f"{counted(len(found.names), 'fields')} on {found.rows} x {2 * found.rows} points"
    print(f"{counted(len(found.times), 'states')} of {size} in {out}")


def train(a: Namespace) -> None:
    """`perrin train weather/atmosphere --data FILE [FILE …] --out DIR`: 20 minutes on a CPU."""
    out = begin(a, "fields by time of the whole sphere", "width", "hours", "leads")
    if a.loss not in _LOSSES:
        raise PerrinError(f"expected --loss {' or '.join(_LOSSES)}, given {a.loss!r}")
    if a.loss == "diffusion" and a.leads > 1:
        raise PerrinError(f"expected --leads 1 with --loss diffusion, given {a.leads}: leave it out")
    years, choose = (parse_years(x) if x else None for x in (a.years, a.choose))
    device = choose_device(a.device)
    gpu = device != "cpu"
    found = open_record(a, a.data)
    found.stride(a.hours)  # before the reading, which may take long
    used, chosen = split(found, years, choose)
    sizes: dict[str, Any] = (
        {} if gpu else {"width": 32, "levels": 3 if found.rows > 16 else 2, "blocks": 1, "dropout": 0.0}
    )
    if a.width:
        sizes["width"] = a.width
    options = AtmosphereOptions(hours=a.hours, loss=a.loss, leads=a.leads, **sizes)
    pairs = 2 if a.loss == "crps" else 1  # two members of each case
    if a.minutes is None and a.steps is None:
        a.minutes = 10.0 if gpu else 20.0
    how = options_of(
        a,
        steps=10**7,
        batch=(96 if gpu else 8) // pairs,
        lr=1.2e-3,
        warmup=500 if gpu else 100,
        log_every=250 if gpu else 50,
        cooldown=0.5,
        weight_decay=0.02,
        ema=0.9995 if gpu else 0.995,
        precision="bf16-mixed" if gpu else "32-true",
        cuda_graphs=gpu,
    )
    states = read_states(found)
    write_record(out / "run.json", record("train", a, options=how.to_json()))
    model, losses = train_atmosphere(
        found, states, used, options, how, out, accelerator="cuda" if gpu else "cpu"
    )
    at = np.flatnonzero(used)
    apart = [found.times[i] for i in np.flatnonzero(chosen)]
    words = {
        "name": out.name,
        "fields": ", ".join(found.names),
        "rows": found.rows,
        "columns": 2 * found.rows,
        "hours": options.hours,
        "source": found.label,
        "times": len(at),
        "first": found.times[at[0]],
        "last": found.times[at[-1]],
        "apart": f"{apart[0]} to {apart[-1]}" if apart else "none",
        "command": shlex.join(["perrin", *a.argv]),
    }
    training: dict[str, Any] = {"options": how.to_json(), "loss": options.loss, "losses": losses}
    ship(out, model, CARD.format(metrics="none measured yet.", **words), training)
    model = AtmosphereModel.from_bundle(read_bundle(out), device=device)
    rows, starts = score(model, found, states, used, chosen)
    if rows:
        head = (
            f"fair CRPS (± standard error), spread over error and RMSE of the mean of {MEMBERS} members from "
            f"{counted(starts, 'starts')} of what was kept apart; persistence; climatology: training states within {SEASON} "
            "days of the time of the year"
        )
        metrics = f"{head}.\n\n{markdown(rows)}"
        training["scores"] = [asdict(r) for r in rows]
        ship(out, model, CARD.format(metrics=metrics, **words), training)
        print(f"{head}\n\n{plain(rows)}\n")
    print(
        f"bundle in {out}: perrin forecast {out} --file {files(a.data)[0]} --members 10 --days 5 -o ens.zarr"
    )
