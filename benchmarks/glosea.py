"""How far members of an operational seasonal ensemble differ, beside those of `weather/sst` and of the climatology.

    pip install iris-sample-data
    perrin data weather/sst --file cobe_sst_2deg_1950_2009.nc -o sst5.nc
    perrin data weather/ensemble --file GloSea4 --like sst5.nc -o glosea5.nc       # the folder in iris_sample_data.path
    perrin forecast weather/sst --file cobe_sst_2deg_1950_2009.nc --start 2009-07 --members 50 --months 6 -o ours.nc
    python benchmarks/glosea.py glosea5.nc ours.nc sst5.nc

GloSea4's members of July 2011 are of months that the record, which ends in 2009, has not seen: what can be measured without
a truth is half the mean difference of two members, which is the fair CRPS that an ensemble would have were the truth one of
its own (*potential* CRPS), and its spread. Cells are those from `--south` to `--north` that have sea all around, where the
surface's temperature is the sea's and no ice is. The drift is the members' mean less the record's of the same month in
`--years`: that of a free-running ocean model and that of the year in one, which hindcasts would tell apart.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.sst import celsius_offset

Array = NDArray[np.float64]


def celsius(fields: Fields, lead: int) -> Array:
    """Members of the first variable, `[M, latitude, longitude]`, °C."""
    part = next(iter(fields.parts))
    return fields.forecast(part, 0, lead) - celsius_offset(fields, part)


def surrounded(sea: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells whose neighbours are sea too, in eight directions, around the globe."""
    out = sea.copy()
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            out[1:-1] &= np.roll(np.roll(sea, i, 0), j, 1)[1:-1]
    return out


def potential(x: Array, weight: Array) -> tuple[float, float]:
    """Half the mean difference of two members and the spread, of `[M, points]`."""
    m = len(x)
    rank = 2 * np.arange(1, m + 1) - m - 1
    pairs = rank @ np.sort(x, 0) / (m * (m - 1))
    return float(pairs @ weight), float(np.sqrt(x.var(0, ddof=1) @ weight))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ensemble")
    p.add_argument("ours")
    p.add_argument("record")
    p.add_argument("--south", type=float, default=-30)
    p.add_argument("--north", type=float, default=30)
    p.add_argument("--years", type=int, nargs=2, default=(1980, 2009))
    a = p.parse_args()
    ensemble, ours, record = (open_fields(f) for f in (a.ensemble, a.ours, a.record))
    sst = next(iter(record.parts))
    rows = (record.latitude >= a.south) & (record.latitude <= a.north)
    use = surrounded(np.isfinite(record.read(sst, time=0))) & rows[:, None]
    weight = record.area[use] / record.area[use].sum()
    print(
        f"{use.sum()} cells; {ensemble.members} members, {ours.members} of ours; potential CRPS and spread, K"
    )
    print(f"{'month':>9} {ensemble.label:>16} {ours.label:>16} {'climatology':>16} {'drift':>7}")
    for j, lead in enumerate(ensemble.leads):
        valid = lead.after(ensemble.references[0])
        same = [
            i
            for i, t in enumerate(record.times)
            if t.month == valid.month and a.years[0] <= t.year <= a.years[1]
        ]
        states = record.read(sst, time=same)[:, use] - celsius_offset(record, sst)
        members = celsius(ensemble, j)[:, use]
        found = [potential(x, weight) for x in (members, celsius(ours, j)[:, use], states)]
        drift = (members.mean(0) - states.mean(0)) @ weight
        cells = " ".join(f"{f'{c:.3f}, {s:.3f}':>16}" for c, s in found)
        print(f"{valid.year}-{valid.month:02d}   {cells} {drift:+7.2f}")


if __name__ == "__main__":
    main()
