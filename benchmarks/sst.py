"""Monthly sea surface temperature at 5°: climatology, anomaly persistence, the linear inverse model, and a bundle.

    python benchmarks/sst.py cobe_sst_2deg_1950_2009.nc [--bundle weather/sst --test 2000-2009] [--members 50] [--json FILE]

Trained on 1950–1994; forecasts start in every month from which the lead falls in the test years. The bundle's width was
chosen on 1995–1999, so 2000–2009 are the years that nothing has seen. The number of a linear inverse model's empirical
orthogonal functions is chosen on 1985–1994 with models of 1950–1984: the least error at 3 months. "Damped rest" adds to
the model of the paper the decay of what its functions leave out. "10-year level" moreover is a model of departures from
the mean of the last 120 months, to which its forecasts go back, as the bundle's do: what such a level alone is worth.
Scores are those of `perrin verify`, area-weighted over the sea, with standard errors from blocks of 12 consecutive
months. RMSE and ACC of linear inverse models are those of the exact expectation; all else is of the members.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from perrin.bundle import read_bundle
from perrin.modalities import find_bundle
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.forecast import member_seeds
from perrin.modalities.weather.lim import LinearInverseModel
from perrin.modalities.weather.seasonal import LEAST, past_means
from perrin.modalities.weather.sources import Climatology
from perrin.modalities.weather.sst import SeaSurface, read_sst
from perrin.modalities.weather.sst_model import SSTModel
from perrin.modalities.weather.verify import VerifyOptions, verify
from perrin.run.atomic import write_json

LEADS = (1, 3, 6)
MODELS = ("LIM", "LIM, damped rest", "LIM, 10-year level")
MODES = (5, 10, 15, 20, 25, 30, 40)


def fit(x: np.ndarray, weight: np.ndarray, modes: int, name: str) -> LinearInverseModel:
    """A model by its name in `MODELS`."""
    model = LinearInverseModel.fit(x, weight, modes)
    return model if name != "LIM" else replace(model, damping=0 * model.damping)


def level_of(x: np.ndarray, name: str) -> np.ndarray:
    """What a model's forecasts go back to: 0, or the mean of the last 120 months."""
    level = np.zeros_like(x)
    if name == "LIM, 10-year level":
        level[LEAST - 1 :] = past_means(x, np.arange(LEAST - 1, len(x)))[:, -1]
    return level


def choose_modes(x: np.ndarray, weight: np.ndarray, years: np.ndarray, name: str) -> int:
    """The number of functions with the least error at 3 months in 1985–1994, of models that know 1950–1984."""
    level = level_of(x, name)
    train, test = (x - level)[years <= 1984], (years >= 1985) & (years <= 1994)
    d, target = (x - level)[test][:-3], x[test][3:] - level[test][:-3]
    w = weight / weight.sum()
    errors = {}
    for modes in MODES:
        error = fit(train, weight, modes, name).mean(d, 3) - target
        errors[modes] = float(np.sqrt((error**2 @ w).mean()))
    print(
        f"{name}, RMSE (K) at 3 months in 1985–1994:", ", ".join(f"{k}: {v:.4f}" for k, v in errors.items())
    )
    return min(errors, key=lambda k: errors[k])


def lim_forecast(
    sst: SeaSurface,
    model: LinearInverseModel,
    level: np.ndarray,
    lead: int,
    members: int,
    first: int,
    last: int,
) -> xr.Dataset:
    """Forecasts from every month whose valid time is from index `first` to `last`; the mean where members is 1."""
    sea, anomaly = sst.sea, sst.anomaly
    starts = range(first - lead, last + 1 - lead)
    out = np.full((members, len(starts), 1, *sea.shape), np.nan, dtype=np.float32)
    for i, t in enumerate(starts):
        x = anomaly[t][sea] - level[t]
        y = model.mean(x, lead)[None] if members == 1 else model.ensemble(x, lead, members, 0, t)
        out[:, i, 0, sea] = y + level[t] + sst.climatology[sst.months[t + lead]][sea]
    dims = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")
    return xr.Dataset(
        {"sst": (dims, out, {"units": sst.units})},
        {
            "forecast_reference_time": sst.times[starts.start : starts.stop],
            "forecast_period": ("forecast_period", [lead], {"units": "months"}),
            "latitude": sst.latitude,
            "longitude": sst.longitude,
        },
    )


def bundle_forecasts(
    file: str, bundle: str, first: int, last: int, sst: SeaSurface, members: int
) -> dict[int, xr.Dataset]:
    """Forecasts of a bundle at each lead, from the months whose forecasts fall in the months `first` to `last`."""
    model = SSTModel.from_bundle(read_bundle(find_bundle(bundle)))
    times = sst.times[first - max(LEADS) : last + 1 - min(LEADS)]
    starts = model.starts(open_fields(file), [(t.year, t.month) for t in times])
    out = np.full((len(LEADS), members, len(starts), *sst.sea.shape), np.nan, dtype=np.float32)
    for i, start in enumerate(starts):
        for k in range(members):
            ((found, _),) = model.members(start, member_seeds(0, start, [k]), [max(LEADS)], [k])
            out[:, k, i] = found["sst"][0, [lead - 1 for lead in LEADS]]
    dims = ("realization", "forecast_reference_time", "forecast_period", "latitude", "longitude")
    sets = {}
    for j, lead in enumerate(LEADS):
        own = slice(max(LEADS) - lead, len(starts) - lead + min(LEADS))
        sets[lead] = xr.Dataset(
            {"sst": (dims, out[j][:, own, None], {"units": sst.units})},
            {
                "forecast_reference_time": times[own],
                "forecast_period": ("forecast_period", [lead], {"units": "months"}),
                "latitude": sst.latitude,
                "longitude": sst.longitude,
            },
        )
    return sets


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--bundle", help="such as weather/sst")
    parser.add_argument("--test", default="1995-2009", metavar="YYYY-YYYY")
    parser.add_argument("--json")
    a = parser.parse_args()
    sst = read_sst(open_fields(a.file))
    truth = Fields(sst.dataset()[["sst"]], "the record")
    climatology = Climatology(truth, (1950, 1994))
    years = np.array([t.year for t in sst.times])
    x, weight = sst.anomaly[:, sst.sea], sst.area[sst.sea]
    levels = {name: level_of(x, name) for name in MODELS}
    models = {
        name: fit((x - level)[years <= 1994], weight, choose_modes(x, weight, years, name), name)
        for name, level in levels.items()
    }
    sizes = ", ".join(f"{name} {len(m.G)}" for name, m in models.items())
    print(f"{int(sst.sea.sum())} cells of sea; functions: {sizes}; {a.members} members\n")
    begin, end = map(int, a.test.split("-"))
    first, last = np.flatnonzero((years >= begin) & (years <= end))[[0, -1]].tolist()
    ours = bundle_forecasts(a.file, a.bundle, first, last, sst, a.members) if a.bundle else {}
    options = VerifyOptions(against=("climatology", "anomaly-persistence"), block=12, degrees=0)
    results = {}
    print(
        f"{'lead (months)':>13}  {'forecast':<20} {'RMSE (K)':>16} {'fair CRPS (K)':>16} {'SSR':>6} {'ACC':>6}"
    )
    for lead in LEADS:
        rows: dict[str, Any] = {}
        for name, model in models.items():
            found, exact = (
                verify(
                    Fields(lim_forecast(sst, model, levels[name], lead, m, first, last)),
                    truth,
                    options,
                    climatology,
                )
                for m in (a.members, 1)
            )
            many, one = (r["variables"]["sst"]["leads"][0] for r in (found, exact))
            rows = {n: r["scores"] for n, r in many["references"].items()} | rows
            rows[name] = many["scores"] | {k: one["scores"][k] for k in ("rmse", "acc")}
        if ours:
            found = verify(Fields(ours[lead]), truth, options, climatology)
            rows[a.bundle] = found["variables"]["sst"]["leads"][0]["scores"]
        results[str(lead)] = rows
        for name, s in rows.items():
            cells = (f"{s[k]['value']:.3f} ± {s[k]['error']:.3f}" for k in ("rmse", "crps"))
            more = (
                f"{s[k]['value']:.2f}" if s.get(k, {}).get("value") is not None else ""
                for k in ("ssr", "acc")
            )
            print(
                f"{lead:>13}  {name:<20} "
                + " ".join(f"{c:>16}" for c in cells)
                + "".join(f" {c:>6}" for c in more)
            )
    if a.json:
        write_json(a.json, results)


if __name__ == "__main__":
    main()
