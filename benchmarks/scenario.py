"""Emulation of climate scenarios beside pattern scaling: fit on one, score on another.

    python benchmarks/scenario.py E1_north_america.nc A1B_north_america.nc      # of the package iris-sample-data

Scored are the years from `--from` on, which the scenarios do not share, given the 11-year running mean of the second file's
own area mean. "White" is pattern scaling with independent normal noise of the training run's variance at every point.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from perrin.core import sample_seeds
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.scenario import area_mean, at_years, fit_scenario, read_scenario
from perrin.modalities.weather.scores import crps
from perrin.train import TrainOptions


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("fit")
    p.add_argument("score")
    p.add_argument("--from", dest="first", type=int, default=2010)
    p.add_argument("--members", type=int, default=50)
    p.add_argument("--steps", type=int, default=600)
    a = p.parse_args()
    fields, other = open_fields(a.fit), open_fields(a.score)
    known, new = read_scenario(fields), read_scenario(other)
    options = TrainOptions(
        steps=a.steps,
        batch=64,
        lr=1e-3,
        warmup=60,
        weight_decay=0.1,
        ema=0.98,
        log_every=10**9,
        save_every=10**9,
    )
    with tempfile.TemporaryDirectory() as folder:
        every = np.ones(len(known.times), dtype=bool)
        model, losses = fit_scenario(fields, known, area_mean(fields, known), every, options, folder)
    print(f"loss on the last years: untrained {losses['normal']:.3f}, trained {losses['trained']:.3f}")
    late = np.array([t.year >= a.first for t in new.times])
    G = at_years(area_mean(other, new), new.times, other.label)[late]
    x, parts = new.values[late], new.parts[late]
    weight = other.area[new.keep] / other.area[new.keep].sum()
    mean = model.mean(G, parts)
    rng = np.random.default_rng(0)
    ensembles = {
        "emulator": model.draw(G, parts, sample_seeds(0, range(a.members))),
        "white": mean + model.variability.scale[parts] * rng.standard_normal((a.members, *mean.shape)),
    }

    def told(values: np.ndarray) -> str:
        """A mean over years, and its standard error."""
        return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"

    square = (mean - x) ** 2 @ weight
    print(
        f"pattern scaling: RMSE {square.mean() ** 0.5:.3f}, MAE {told(np.abs(mean - x) @ weight)}; of the area's mean",
        end=" ",
    )
    print(told(np.abs((mean - x) @ weight)))
    for name, d in ensembles.items():
        fair = crps(d, x)[0] @ weight
        area = crps((d @ weight)[..., None], (x @ weight)[:, None])[0][:, 0]
        spread = (d.var(0, ddof=1) @ weight).mean() * (a.members + 1) / a.members
        ratio = (spread / ((d.mean(0) - x) ** 2 @ weight).mean()) ** 0.5
        print(f"{name}: fair CRPS {told(fair)}, SSR {ratio:.2f}; of the area's mean, CRPS {told(area)}")


if __name__ == "__main__":
    main()
