"""The climate of a long rollout beside that of the simulation it was learned from.

    perrin forecast weather/speedy --members 1 --years 10 -o decade.zarr
    perrin data weather/speedy --days 3650 -o truth.zarr
    python benchmarks/climate.py decade.zarr truth.zarr [--json FILE]
    python benchmarks/climate.py decade.zarr truth/             # the runs of benchmarks/speedy_truth.py: decades of truth

All numbers are root mean squares over the sphere. A time mean is that of the twelve calendar months' means, so that months
that one of the two has more often do not count more. Internal variability is the standard deviation of means as long as the
rollout's between independent pieces of truth. The truth is seldom that long, so it is computed from the variance between
years of each month's mean, Σ_m v_m / (144 Y) for Y years: months of SPEEDY under the same sea every year are nearly
independent (the table says how nearly). The error contains that of the truth's own mean; `of bias` is without it and the
rollout's, √(error² − noise²). Bias correction learns from the first half of the truth and is measured on the second, whose
own distance from the first is the best that it can reach.

A folder of `benchmarks/speedy_truth.py` has many runs of a season each. Every part of a month with ten days or more of a run
counts for its length, states of noon and midnight together; variances are between the runs that have 28 days of it.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perrin.modalities.weather.correction import CorrectionOptions, correct
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.nets.sphere import SphericalHarmonics, power
from perrin.run.atomic import write_json

NAMES = ("zg510", "ta835", "hus835", "ua835", "va835", "ua340", "ps")
"""Of the fields of `speedy_truth.py`."""
TARGET = 1.5
Means = dict[int, np.ndarray]


class Series:
    """A field's states at one place of the day, on the rollout's grid: `[n, rows, columns]`, with years and months."""

    def __init__(self, file: Fields, part: str, grid: Fields) -> None:
        if "forecast_period" in file.dataset.dims:
            x = file.read(part)
            x = x.reshape(-1, *x.shape[-3:])[0]
            times = [lead.after(file.references[0]) for lead in file.leads]
        else:
            x, times = file.read(part), file.times
        # what is not there yet is missing: a rollout that is under way may be looked at
        known = [i for i, t in enumerate(times) if t.hour == times[0].hour and np.isfinite(x[i]).all()]
        x, times = x[known], [times[i] for i in known]
        if x.shape[1:] != (grid.latitude.size, grid.longitude.size):
            degree = min(grid.latitude.size, file.latitude.size - 1)
            there = SphericalHarmonics(torch.from_numpy(file.latitude), file.longitude.size, degree=degree)
            here = SphericalHarmonics(torch.from_numpy(grid.latitude), grid.longitude.size, degree=degree)
            x = np.concatenate(
                [
                    here.inverse(there(torch.from_numpy(v))).numpy()
                    for v in np.array_split(x, len(x) // 50 + 1)
                ]
            )
        self.x = x
        self.month = np.array([t.month - 1 for t in times])
        self.year = np.array([t.year for t in times])

    def half(self, which: int) -> Series:
        """The first or the second half of it."""
        out = object.__new__(Series)
        n = len(self.x) // 2
        for name in ("x", "month", "year"):
            setattr(out, name, getattr(self, name)[:n] if which == 0 else getattr(self, name)[n:])
        return out

    def means(self) -> Means:
        """Of each month that it has, the means in each year with at least 25 days of it."""
        out = {}
        for m in range(12):
            parts = [self.x[(self.year == y) & (self.month == m)] for y in np.unique(self.year)]
            if found := [x.mean(0) for x in parts if len(x) >= 25]:
                out[m] = np.stack(found)
        return out


class Runs:
    """A field of the training runs of `speedy_truth.py`: calendar months of runs in place of years."""

    def __init__(self, folder: Path, field: int) -> None:
        ends = np.cumsum([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
        days = np.load(folder / "train_days.npy")
        months = np.minimum(np.searchsorted(ends, np.floor(days), side="right"), 11)
        found: dict[int, list[tuple[np.ndarray, int]]] = {m: [] for m in range(12)}
        for x, which in zip(np.load(folder / "train_states.npy", mmap_mode="r"), months, strict=True):
            for m in np.unique(which):
                at = np.flatnonzero(which == m)
                if len(at) >= 20:  # twice a day
                    found[m].append((x[at, field].astype("f8").mean(0), len(at)))
        self.months = [(np.stack([x for x, _ in v]), np.array([k for _, k in v])) for v in found.values()]
        self.years = sum(k.sum() for _, k in self.months) / 2 / 365.25

    def mean(self) -> np.ndarray:
        """The mean of the months' means."""
        return np.mean([np.average(x, 0, k) for x, k in self.months], 0)

    def variances(self) -> list[np.ndarray]:
        """Of each month's means."""
        return [x[k >= 56].var(0, ddof=1) for x, k in self.months]

    def noise(self) -> np.ndarray:
        """The variance of `mean`."""
        parts = zip(self.variances(), self.months, strict=True)
        return np.mean([v * 61 / k.sum() for v, (_, k) in parts], 0) / 12  # a month has 61 states


def beside_runs(rollout: Fields, folder: Path) -> dict[str, Any]:
    """A rollout's time mean beside that of runs, printed."""
    area = rollout.area / rollout.area.sum()
    results: dict[str, Any] = {}
    print(f"{'field':>11} {'error':>11} {'variab.':>11} {'own':>11} {'error / v.':>11} {'perfect':>11}")
    for field, part in enumerate(NAMES):
        truth, ours = Runs(folder, field), Series(rollout, part, rollout).means()
        if len(ours) < 12:
            raise SystemExit(
                f"expected every calendar month of {part}, given {len(ours)}: roll out a year or more"
            )
        years = float(np.mean([len(x) for x in ours.values()]))
        error = np.mean([ours[m].mean(0) for m in range(12)], 0) - truth.mean()
        v, own = np.mean(truth.variances(), 0) / 12 / years, variance(ours) / years
        rms, internal, mine = (float(np.sqrt((x * area).sum())) for x in (error**2, v, own))
        perfect = float(np.sqrt(((v + truth.noise()) * area).sum())) / internal
        results[part] = {"years": years, "truth_years": truth.years, "error": rms, "internal_variability": internal,
                         "rollout_variability": mine, "ratio": rms / internal, "perfect": perfect}  # fmt: skip
        cells = [
            part,
            *(f"{x:.3g}" for x in (rms, internal, mine)),
            f"{rms / internal:.2f}",
            f"{perfect:.2f}",
        ]
        print(" ".join(f"{x:>11}" for x in cells), flush=True)
    worst = max(r["ratio"] for r in results.values())
    print(
        f"\nerror / variability: target up to {TARGET}, found up to {worst:.2f}; {truth.years:.0f} years of truth"
    )
    return results


def time_mean(means: Means, months: list[int]) -> np.ndarray:
    """Of the year, or of those of its months."""
    return np.mean([means[m].mean(0) for m in months], 0)


def variance(means: Means) -> np.ndarray:
    """Of the mean of one year, from that between years of each month."""
    found = [x.var(0, ddof=1) for x in means.values() if len(x) > 1]
    return np.mean(found, 0) / 12


def persistence(means: Means, area: np.ndarray) -> float:
    """Correlation of anomalies of a month with those of the month after, in the years that have both."""
    product = square = 0.0
    for a, b in pairwise(range(12)):
        n = min(len(means.get(a, ())), len(means.get(b, ())))
        if n > 1:
            p, q = (means[m][:n] - means[m][:n].mean(0) for m in (a, b))
            product += (p * q * area).sum()
            square += np.sqrt((p**2 * area).sum() * (q**2 * area).sum())
    return float(product / square) if square else float("nan")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rollout", type=Path)
    p.add_argument("truth", type=Path)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    rollout = open_fields(a.rollout)
    if (a.truth / "train_states.npy").exists():
        found = beside_runs(rollout, a.truth)
        if a.json:
            write_json(a.json, found)
        return
    truth = open_fields(a.truth)
    area = rollout.area / rollout.area.sum()
    transform = SphericalHarmonics(
        torch.from_numpy(rollout.latitude), rollout.longitude.size, degree=rollout.latitude.size
    )

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt((x**2 * area).sum()))

    results: dict[str, Any] = {}
    heads = ("field", "error", "variab.", "noise", "error / v.", "of bias", "1st year", "last year", "std", "spectrum",
             "halves", "mean", "m.-var.", "q.-delta")  # fmt: skip
    for part in rollout.parts:
        one, other = Series(rollout, part, rollout), Series(truth, part, rollout)
        ours, theirs = one.means(), other.means()
        months = [m for m in ours if m in theirs]
        if len(months) < 12:
            raise SystemExit(
                f"expected every calendar month in both, given {len(months)} of {part} in common: roll out a year or more"
            )
        years, known = (float(np.mean([len(x[m]) for m in months])) for x in (ours, theirs))
        v = variance(theirs)
        truth_mean = time_mean(theirs, months)
        error = time_mean(ours, months) - truth_mean
        internal = float(np.sqrt((v * area).sum() / years))
        noise = float(np.sqrt((v * area).sum() * (1 / years + 1 / known)))
        whole = [y for y in np.unique(one.year) if (one.year == y).sum() >= 360]
        drift = [float(((one.x[one.year == y].mean(0) - truth_mean) * area).sum()) for y in whole]
        spread = [
            np.sqrt(sum((s.x[s.month == m].var(0) * area).sum() for m in range(12)) / 12)
            for s in (one, other)
        ]
        spectra = [power(transform(torch.from_numpy(s.x[::10]))).mean(0).numpy()[1:] for s in (one, other)]
        ratio = spectra[0] / spectra[1]
        past, future = other.half(0), other.half(1)
        after, before = future.means(), past.means()
        both = [m for m in after if m in before and m in ours]
        target = time_mean(after, both)
        fixed = {}
        for method in ("mean", "mean-variance", "quantile-delta"):
            x = one.x.copy()
            for m in range(12):
                now, then = one.x[one.month == m], past.x[past.month == m]
                if len(then) > 1:
                    x[one.month == m] = correct(now, then, now, CorrectionOptions(method=method))
            again = object.__new__(Series)
            again.x, again.month, again.year = x, one.month, one.year
            fixed[method] = rms(time_mean(again.means(), both) - target)
        halves = rms(time_mean(before, both) - target)
        units = rollout.units(part)
        results[part] = {
            "units": units,
            "years": years,
            "truth_years": known,
            "error": rms(error),
            "global_mean_error": float((error * area).sum()),
            "internal_variability": internal,
            "noise": noise,
            "ratio": rms(error) / internal,
            "bias_ratio": max(rms(error) ** 2 - noise**2, 0) ** 0.5 / internal,
            "yearly_global_mean_error": drift,
            "std_ratio": float(spread[0] / spread[1]),
            "spectrum_ratio": ratio.tolist(),
            "truth_month_correlation": persistence(theirs, area),
            "rollout_month_correlation": persistence(ours, area),
            "rollout_variability_ratio": float(np.sqrt((variance(ours) * area).sum() / (v * area).sum())),
            "finite": bool(np.isfinite(one.x).all()),
            "halves": halves,
            "corrected": fixed,
        }
        if len(results) == 1:
            print(
                f"{a.rollout.name}: {len(one.x)} states, {years:.2f} years; {a.truth.name}: {known:.2f} years\n"
            )
            print(" ".join(f"{h:>11}" for h in heads))
        r = results[part]
        cells = [part, *(f"{r[k]:.3g}" for k in ("error", "internal_variability", "noise"))]
        cells += [f"{r['ratio']:.1f}", f"{r['bias_ratio']:.1f}", *(f"{drift[i]:+.3g}" for i in (0, -1))]
        cells += [f"{r['std_ratio']:.3f}", f"{ratio.min():.2f}-{ratio.max():.2f}", f"{halves:.3g}"]
        cells += [f"{x:.3g}" for x in fixed.values()]
        print(" ".join(f"{x:>11}" for x in cells), flush=True)
    worst = max(r["ratio"] for r in results.values())
    print(f"\nerror / variability: target up to {TARGET}, found up to {worst:.1f}; finite: "
          f"{all(r['finite'] for r in results.values())}; correlation of months, truth's: "
          f"{min(r['truth_month_correlation'] for r in results.values()):.2f} to "
          f"{max(r['truth_month_correlation'] for r in results.values()):.2f}; the rollout's: "
          f"{max(r['rollout_month_correlation'] for r in results.values()):.2f} at most")  # fmt: skip
    if a.json:
        write_json(a.json, results)


if __name__ == "__main__":
    main()
