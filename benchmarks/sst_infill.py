"""A month's sea surface temperature from 5 % of its points: a bundle's posterior and optimal interpolation.

    python benchmarks/sst_infill.py cobe_sst_2deg_1950_2009.nc [--bundle weather/sst --test 2000-2009] [--members 50]

The points of every fifth month of the test years are seen at random with errors of 0.1 K, the others are scored, weighted
by area, with standard errors over months. Optimal interpolation has the variance of 1950–1994 at each point and month,
times a factor, and the correlation exp(−d/L): L is chosen on 1995–1999 by the least RMSE, then the factor by 90 % of
points in 90 % intervals, as the bundle's own width was. Its CRPS is that of its normal distribution.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from perrin.bundle import read_bundle
from perrin.core import sample_seeds
from perrin.modalities import find_bundle
from perrin.modalities.weather.fields import open_fields
from perrin.modalities.weather.infill import nearest, optimal_interpolation
from perrin.modalities.weather.scores import crps
from perrin.modalities.weather.sst import SeaSurface, read_sst
from perrin.modalities.weather.sst_model import SSTInfill, SSTModel
from perrin.modalities.weather.sst_train import hide

LENGTHS = (1200, 1800, 2500, 3500, 5000, 7000)  # km
FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
NORMAL_90 = 1.6448536269514722


def normal_crps(mean: np.ndarray, deviation: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gneiting & Raftery 2007, equation 21."""
    z = (y - mean) / deviation
    erf = np.vectorize(math.erf)(z / math.sqrt(2))
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(deviation * (z * erf + 2 * density - 1 / math.sqrt(math.pi)))


def scored(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> list[float]:
    """Mean square error, fair CRPS and share in 90 % intervals of members `[M, points]`."""
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    return [float(v @ w) for v in ((x.mean(0) - y) ** 2, crps(x, y)[0], (y >= low) & (y <= high))]


def interpolated(
    model: SSTModel, sst: SeaSurface, t: int, variance: np.ndarray, length: float
) -> tuple[np.ndarray, ...]:
    """Mean, variance, truth and weights at the hidden points of a month."""
    start, hidden = hide(model, sst, t)
    at = nearest(model.places, (start.latitude, start.longitude))
    value = start.value - sst.climatology[sst.months[t]][sst.sea][at]
    mean, var = optimal_interpolation(model.places, variance, length, at, value, start.error)
    w = model.regression.weight[hidden]
    return mean[hidden], var[hidden], sst.anomaly[t][sst.sea][hidden], w / w.sum()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--bundle", default="weather/sst")
    parser.add_argument("--test", default="2000-2009", metavar="YYYY-YYYY")
    parser.add_argument("--members", type=int, default=50)
    a = parser.parse_args()
    sst = read_sst(open_fields(a.file))
    model = SSTModel.from_bundle(read_bundle(find_bundle(a.bundle)))
    years = np.array([t.year for t in sst.times])
    x = sst.anomaly[:, sst.sea]
    known = years <= 1994
    variances = np.stack([(x[known & (sst.months == m)] ** 2).mean(0) for m in range(12)])
    variances = np.maximum(variances, 0.01**2)  # under ice the sea is always at its freezing point

    chosen = np.flatnonzero((years >= 1995) & (years <= 1999))[::5]
    errors = {}
    for length in LENGTHS:
        found = [interpolated(model, sst, t, variances[sst.months[t]], length) for t in chosen]
        errors[length] = math.sqrt(np.mean([(m - y) ** 2 @ w for m, _, y, w in found]))
    best = min(errors, key=lambda k: errors[k])
    print("RMSE (K) in 1995–1999 by L (km):", ", ".join(f"{k}: {v:.3f}" for k, v in errors.items()))
    covered = []
    for factor in FACTORS:
        found = [interpolated(model, sst, t, factor * variances[sst.months[t]], best) for t in chosen]
        covered.append(np.mean([(np.abs(m - y) <= NORMAL_90 * np.sqrt(v)) @ w for m, v, y, w in found]))
    factor = float(np.interp(0.9, covered, FACTORS))
    print(f"optimal interpolation: L = {best} km, variance × {factor:.2f}\n")

    begin, end = map(int, a.test.split("-"))
    months = np.flatnonzero((years >= begin) & (years <= end))[::5]
    ours, theirs = [], []
    for t in months:
        start, hidden = hide(model, sst, int(t))
        members = SSTInfill(model).infill(start).members(sample_seeds(int(t), range(a.members)), batch=10)
        mean, var, y, w = interpolated(model, sst, int(t), factor * variances[sst.months[t]], best)
        ours.append(scored(members[:, hidden], y, w))
        inside = np.abs(mean - y) <= NORMAL_90 * np.sqrt(var)
        theirs.append([v @ w for v in ((mean - y) ** 2, normal_crps(mean, np.sqrt(var), y), inside)])
    print(f"{len(months)} months of {a.test}, {a.members} members")
    print(f"{'':<24} {'RMSE (K)':>16} {'CRPS (K)':>16} {'in 90 %':>16}")
    for name, rows in ((a.bundle, np.array(ours)), ("optimal interpolation", np.array(theirs))):
        value, error = rows.mean(0), rows.std(0, ddof=1) / math.sqrt(len(rows))
        root = math.sqrt(value[0])
        cells = [(root, error[0] / (2 * root)), (value[1], error[1]), (value[2], error[2])]
        print(f"{name:<24} " + " ".join(f"{f'{v:.3f} ± {e:.3f}':>16}" for v, e in cells))


if __name__ == "__main__":
    main()
