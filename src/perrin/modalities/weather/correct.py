"""`perrin correct`: files in, a file of the same shape out (`correction` has the theory).

Values of all members and times of a part of the year are one distribution at each place. They are read, and corrected, in
bands of latitudes; what is corrected lies in a file beside the output until all bands are done.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from perrin.errors import PerrinError, warn
from perrin.modalities.weather.correction import Array, CorrectionOptions, correct
from perrin.modalities.weather.fields import DIMENSIONS, Fields
from perrin.modalities.weather.outputs import check_path
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.modalities.weather.verify import check_grids, match

_ORDER = (*DIMENSIONS[:3], "time", *DIMENSIONS[3:])
_BLOCK = 64
_FEW = 30
"""Values of a part of the year below which quantiles are hardly known: a month of daily values."""


class Samples:
    """A variable as values `[n, rows, columns]` and their valid times.

    Arguments:
        fields: the file.
        part: a key of its `parts`.
    """

    def __init__(self, fields: Fields, part: str) -> None:
        self.fields, self.part = fields, part
        field = fields.dataset[fields.parts[part].variable]
        fixed = dict(fields.parts[part].at)
        self.dims = tuple(d for d in _ORDER[:4] if d in field.dims and d not in fixed)
        self.shape = tuple(field.sizes[d] for d in self.dims)
        self._axes = [[str(d) for d in field.dims if d in self.dims].index(d) for d in self.dims]
        self.times = self._times()

    def _times(self) -> list[Any]:
        fields, starts = self.fields, "forecast_reference_time" in self.dims
        if "forecast_period" in self.dims or starts:
            references = fields.references if starts else fields.references[:1]
            leads = fields.leads if "forecast_period" in self.dims else fields.leads[:1]
            valid = [lead.after(t) for t in references for lead in leads]
        else:
            valid = fields.times if "time" in self.dims else fields.times[:1]
        return valid * (self.shape[0] if "realization" in self.dims else 1)

    def read(self, rows: slice) -> Array:
        """A band of latitudes."""
        x = self.fields.read(self.part, rows)
        x = x.transpose(*self._axes, -2, -1)
        return x.reshape(-1, *x.shape[-2:])


def correct_fields(
    simulation: Fields,
    reference: Fields,
    historical: Fields | None,
    out: str | Path,
    options: CorrectionOptions,
    words: Mapping[str, str],
) -> list[str]:
    """Write a corrected simulation; returns the names of its variables, those that the reference has.

    Arguments:
        simulation: an ensemble of forecasts, or fields by time.
        reference: observations or analyses on the same grid.
        historical: the simulation of the reference's period; the simulation itself by default, which then takes the
            reference's distribution as it is.
        out: .nc or .zarr.
        options: see there.
        words: attributes of the file.

    Raises:
        PerrinError: grids, units or variables do not match, or a part of the year is missing.
    """
    check_path(out)
    others = [reference] if historical is None else [reference, historical]
    for each in others:
        check_grids(simulation, each)
    names = match(simulation, reference)
    past = names if historical is None else match(historical, reference)
    if lacking := [part for part in names if part not in past]:
        raise PerrinError(
            f"expected {lacking[0]} in {historical.label if historical else ''}, given "
            f"{', '.join(past.values())}: rename or add it"
        )
    samples = {
        part: (
            Samples(simulation, own),
            Samples(reference, part),
            Samples(historical or simulation, past[part]),
        )
        for part, own in names.items()
    }
    for part, three in samples.items():
        _check_times(part, three, (simulation, reference, historical or simulation), options)
    now, then, _ = next(iter(samples.values()))
    if historical is None and (max(now.times) < min(then.times) or min(now.times) > max(then.times)):
        warn(
            f"{simulation.label} and {reference.label} are of different years, so what has changed between them counts as "
            "bias: --historical takes the simulation of the reference's years"
        )
    out = Path(out)
    folder = out.with_name(out.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        store = folder / "data.zarr"
        groups: dict[tuple[str, ...], list[str]] = {}
        for part, own in names.items():
            groups.setdefault(samples[part][0].dims, []).append(own)
        if len(groups) > 1:
            raise PerrinError(
                f"expected variables of the same dimensions, given {' and '.join(v[0] for v in groups.values())} with "
                "other ones: correct them one by one"
            )
        _create(store, simulation, next(iter(groups)), list(names.values()), words)
        for part, own in names.items():
            _correct_part(folder, store, own, samples[part], simulation, options)
        finish(store, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return list(names.values())


def _check_times(
    part: str, three: tuple[Samples, ...], files: tuple[Fields, ...], options: CorrectionOptions
) -> None:
    needed = set(options.groups(three[0].times).tolist())
    for each, file in zip(three[1:], files[1:]):
        counts = np.bincount(options.groups(each.times), minlength=12)
        for group in sorted(needed):
            if counts[group] < 2:
                word = {
                    "month": f"month {group + 1}",
                    "season": f"season {group + 1} of 4",
                    "all": "all times",
                }
                raise PerrinError(
                    f"expected at least 2 times of {word[options.group]} for {part}, given {counts[group]} in "
                    f"{file.label}: give a longer record, or --group all"
                )
        least = min(int(counts[g]) for g in needed)
        if least < _FEW:
            warn(
                f"{file.label} has only {least} values of {part} at a place and part of the year: their distribution is "
                "hardly known (a longer record, --group all or --method mean helps)"
            )


def _correct_part(
    folder: Path,
    store: Path,
    name: str,
    three: tuple[Samples, Samples, Samples],
    simulation: Fields,
    options: CorrectionOptions,
) -> None:
    """One variable, band by band, then block by block of times into the store."""
    x, reference, historical = three
    rows, columns = simulation.latitude.size, simulation.longitude.size
    values = np.memmap(folder / "values", np.float32, "w+", shape=(len(x.times), rows, columns))
    width = 8 * 3 * columns * sum(len(s.times) for s in three)
    step = max(1, int(options.megabytes * 2**20 / width))
    groups = [options.groups(s.times) for s in three]
    amounts, negative = True, 0
    for low in range(0, rows, step):
        band = slice(low, min(low + step, rows))
        read = [x.read(band), reference.read(band)]
        read.append(read[0] if historical.fields is x.fields else historical.read(band))
        least = min(float(np.nanmin(v, initial=np.inf)) for v in read)
        amounts = amounts and least >= 0
        if options.ratio and least < 0:
            raise PerrinError(
                f"expected no negative values of {name} for --ratio, given {least:.4g}: leave --ratio out"
            )
        for group in np.unique(groups[0]):
            now, then, past = (v[g == group] for v, g in zip(read, groups))
            past = now if historical.fields is x.fields else past
            values[groups[0] == group, band] = correct(now, then, past, options)
        negative += int((values[:, band] < 0).sum())
    if amounts and negative:
        warn(
            f"{name} is nowhere negative in the files, but {negative} of its corrected values are: --ratio corrects amounts"
        )
    whole = values.reshape(*x.shape, rows, columns)
    for where in np.ndindex(x.shape[:-1]):
        for at in range(0, x.shape[-1] if x.shape else 1, _BLOCK):
            piece = (*where, slice(at, min(at + _BLOCK, x.shape[-1])))
            write_region(store, name, piece, whole[piece])


def _create(
    store: Path, simulation: Fields, dims: tuple[str, ...], names: list[str], words: Mapping[str, str]
) -> None:
    """An empty store with the simulation's coordinates and attributes."""
    source = simulation.dataset
    coords: dict[str, Any] = {}
    for name in (*dims, "latitude", "longitude"):
        if name not in source.coords:
            continue
        bounds = source[name].attrs.get("bounds")
        keep = {k: v for k, v in source[name].attrs.items() if k != "bounds"}
        coords[name] = (name, source[name].values, keep)
        if name in ("time", "forecast_period") and bounds in source.variables:
            coords[f"{name}_bounds"] = ((name, "bound"), source[bounds].values)
            coords[name][2]["bounds"] = f"{name}_bounds"
    if "forecast_reference_time" in source.coords and "forecast_reference_time" not in dims:
        coords["forecast_reference_time"] = source["forecast_reference_time"].values
    kept = ("standard_name", "long_name", "units", "cell_methods")
    attributes = {n: source[simulation.parts[n].variable].attrs for n in names}
    create_store(
        store,
        xr.Dataset(coords=coords),
        {n: {k: str(v) for k, v in attributes[n].items() if k in kept} for n in names},
        (*dims, "latitude", "longitude"),
        dict(words),
        chunks={"time": _BLOCK},
        shards={"forecast_period": _BLOCK} if "forecast_period" in dims else None,
    )
