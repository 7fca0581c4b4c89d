"""What linear models of monthly sea surface temperature reach, by forward chaining: where `weather/sst` was chosen.

    python benchmarks/sst_linear.py cobe_sst_2deg_1950_2009.nc

Each model is fitted to all years before a span of five and scored in it, by the RMSE (K) of its exact expectation at 1, 3
and 6 months; climatologies and functions, too, are of the years before. 1975–1999 is what models were chosen on;
2000–2009, with models of 1950–1994, shows what that choice is worth in a warmer decade. "Past of N months" is the
regression of `perrin forecast weather/sst` from files that begin N months before the start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from perrin.modalities.weather import seasonal
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.sst import read_sst, weights_of
from sst import fit, level_of

LEADS = (1, 3, 6)
SPANS = ((1975, 1979), (1980, 1984), (1985, 1989), (1990, 1994), (1995, 1999))
MODES = 10
"""Of the linear inverse models, the best of 5 to 40 over the five spans."""

Forecast = Callable[[np.ndarray, int], np.ndarray]


def models(x: np.ndarray, months: np.ndarray, weight: np.ndarray, n: int) -> dict[str, Forecast]:
    """Forecasts of anomalies x from starts t, by models of the first n months."""
    regression, _, _ = seasonal.fit(x[:n], months[:n], weight, leads=max(LEADS))
    level = level_of(x, "LIM, 10-year level")

    def inverse(name: str) -> Forecast:
        base = level_of(x, name)
        model = fit((x - base)[:n], weight, MODES, name)
        return lambda t, lead: base[t] + model.mean((x - base)[t], lead)

    def ours(past: int) -> Forecast:
        def forecast(t: np.ndarray, lead: int) -> np.ndarray:
            given = [
                seasonal.past_means(x[max(0, i + 1 - past) : i + 1], np.array([min(i, past - 1)])) for i in t
            ]
            return np.stack([regression.mean(g[0], months[i])[lead - 1] for g, i in zip(given, t)])

        return forecast

    return {
        "climatology": lambda t, lead: 0 * x[t],
        "mean of the last 120 months": lambda t, lead: level[t],
        "LIM, damped rest": inverse("LIM, damped rest"),
        "LIM, 10-year level": inverse("LIM, 10-year level"),
    } | {f"regression, past of {past} months": ours(past) for past in (12, 24, 60, 120)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    a = parser.parse_args()
    fields = open_fields(a.file)
    squares: dict[str, list[list[float]]] = {}
    for begin, end in (*SPANS, (2000, 2009)):
        last = min(begin - 1, 1994)
        sst = read_sst(fields, training=(1950, last))
        x, weight = sst.anomaly[:, sst.sea], weights_of(sst.sea)
        years = np.array([t.year for t in sst.times])
        valid = np.flatnonzero((years >= begin) & (years <= end))
        for name, forecast in models(x, sst.months, weight, int((years <= last).sum())).items():
            row = [float(((forecast(valid - lead, lead) - x[valid]) ** 2 @ weight).mean()) for lead in LEADS]
            squares.setdefault(name, []).append(row)
    print(f"{'RMSE (K) at 1, 3 and 6 months':<32} {'1975–1999':>24} {'2000–2009':>24}")
    for name, rows in squares.items():
        chosen, later = np.mean(rows[:-1], 0) ** 0.5, np.array(rows[-1]) ** 0.5
        print(f"{name:<32} " + " ".join(" ".join(f"{v:7.3f}" for v in part) for part in (chosen, later)))


if __name__ == "__main__":
    main()
