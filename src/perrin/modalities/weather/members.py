"""An ensemble whose members are files: one file of them by CF, which every verb reads.

Operational ensembles come as a file for each member. Their numbers are those that the files say, else the last ones in their
names, else 0, 1, …. Members are of the same times, or the ensemble is *lagged*: members started one after another, and the
forecast is there when the last has started. Then that is its reference time, its times are those that all members have, and
the members' own starts stay beside them as `member_start`. Means of calendar months are forecasts by months from that of
the start, as all monthly forecasts are here: what is of the month after it has the period of 1 month.

With a file of another grid, fields become means over its cells (`grid.coarsen`), missing where that file's first field is.
"""

from __future__ import annotations

import glob
import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr

from perrin.errors import PerrinError, counted
from perrin.modalities.weather.fields import Array, Fields, Lead, Stamp, open_fields, stamp
from perrin.modalities.weather.grid import coarsen, latitude_edges, longitude_edges
from perrin.modalities.weather.outputs import check_path
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.modalities.weather.verify import check_grids

_BLOCK = 32
"""Times that are read at once."""


@dataclass(frozen=True)
class Member:
    """A member: the file that it is in, and its place there."""

    number: int
    fields: Fields
    index: int = 0

    @property
    def start(self) -> Any:
        """When it starts: a member of a lagged ensemble by itself."""
        own = self.fields.dataset.coords.get("member_start")
        return self.fields.references[0] if own is None else own.values[self.index]


def find_files(where: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a folder, of a pattern with `*`, `?` or `[…]`, or the one that is named, in the order of their names.

    Raises:
        PerrinError: there is none.
    """
    path = Path(where)
    if path.is_dir() and path.suffix != ".zarr":
        found = [p for p in path.iterdir() if p.suffix.lower() in suffixes]
    elif path.exists() or not glob.has_magic(str(where)):
        return [path]
    else:
        found = [Path(p) for p in glob.glob(str(where))]
    if not found:
        raise PerrinError(
            f"expected files of members ({', '.join(suffixes)}) in {where}, given none: check the path"
        )
    return sorted(found)


def read_members(paths: Sequence[Path]) -> list[Member]:
    """The members of files, by their numbers.

    Raises:
        PerrinError: a file cannot be read, or they differ in grid.
    """
    files = [(path, open_fields(path)) for path in paths]
    for _, fields in files[1:]:
        check_grids(fields, files[0][1])
    own: list[int | None] = []
    named: list[int | None] = []
    places = []
    for path, fields in files:
        written = fields.dataset.coords.get("realization")
        digits = re.findall(r"\d+", path.stem)
        for k in range(fields.members):
            places.append((fields, k))
            own.append(None if written is None else int(np.atleast_1d(written.values)[k]))
            named.append(int(digits[-1]) if digits and fields.members == 1 else None)
    count: list[int | None] = list(range(len(places)))
    numbers = next(n for n in (own, named, count) if None not in n and len(set(n)) == len(n))
    return sorted((Member(int(n or 0), *p) for n, p in zip(numbers, places)), key=lambda m: m.number)


class Gathered:
    """Members of common times.

    Arguments:
        members: see `read_members`.

    Raises:
        PerrinError: some are forecasts and some are not, they have no time in common, or those of a lagged ensemble have
            more than one start.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        files = list({id(m.fields): m.fields for m in members}.values())
        first = files[0]
        forecasts = ["forecast_reference_time" in f.dataset.coords for f in files]
        if len(set(forecasts)) > 1:
            odd = files[forecasts.index(not forecasts[0])]
            raise PerrinError(
                f"expected forecasts alone or states by time alone, given one kind in {first.label} and the other in "
                f"{odd.label}: leave one kind out"
            )
        self.is_forecast = forecasts[0]
        self.starts: list[Any] = []
        self.leads: list[Lead] = []
        self._place: dict[tuple[int, Stamp, Stamp], tuple[int, int]] = {}
        if not self.is_forecast:
            common = set.intersection(*({stamp(t) for t in f.times} for f in files))
            self.times = [t for t in first.times if stamp(t) in common]
            self.dropped = max(len(f.times) for f in files) - len(self.times)
            self._check(self.times)
            return
        starts, leads = first.references, first.leads
        apart = any([*map(stamp, f.references)] != [*map(stamp, starts)] for f in files)
        if apart:
            if odd_ones := [f for f in files if len(f.references) > 1]:
                raise PerrinError(
                    f"expected one start in each file, or the same ones in all, given {len(odd_ones[0].references)} in "
                    f"{odd_ones[0].label} and others elsewhere: split it by starts"
                )
            start = max((f.references[0] for f in files), key=stamp)
            valid = [[lead.after(f.references[0]) for lead in f.leads] for f in files]
            common = set.intersection(*({stamp(t) for t in v} for v in valid))
            times = [t for t in valid[0] if stamp(t) in common and stamp(t) >= stamp(start)]
            starts, leads = [start], [Lead(seconds=(t - start).total_seconds()) for t in times]
        else:
            common_leads = set.intersection(*(set(f.leads) for f in files))
            leads = [lead for lead in leads if lead in common_leads]
            times = [lead.after(starts[0]) for lead in leads]
        self._check(times)
        self.lagged = len(starts) == 1 and len({stamp(m.start) for m in members}) > 1
        self.dropped = max(len(f.leads) for f in files) - len(leads)
        self.starts, self.leads = list(starts), list(leads)
        for f in files:
            for i, own in enumerate(f.references):
                for j, lead in enumerate(f.leads):
                    reference = starts[0] if apart else own
                    self._place[id(f), stamp(reference), stamp(lead.after(own))] = i, j
        self.monthly = any(lead.months for lead in leads)
        if not self.monthly and is_monthly(first, times):
            self.monthly = True
            self._count_months(times)

    def _check(self, times: Sequence[Any]) -> None:
        if not times:
            raise PerrinError("expected times that all members have, given none: leave files of others out")

    def _count_months(self, times: Sequence[Any]) -> None:
        """Periods of calendar months, from the first of the month of the start."""
        old, starts = dict(self._place), self.starts
        self.starts = [cftime.datetime(t.year, t.month, 1, calendar=t.calendar) for t in starts]
        number = 12 * starts[0].year + starts[0].month
        months = [Lead(months=12 * t.year + t.month - number) for t in times]
        self._place = {}
        for (file, start, valid), place in old.items():
            i = [stamp(s) for s in starts].index(start)
            for month, lead in zip(months, self.leads):
                if stamp(lead.after(starts[i])) == valid:
                    self._place[file, stamp(self.starts[i]), stamp(month.after(self.starts[i]))] = place
        self.leads = months

    def read(self, member: Member, part: str, start: int, lead: int) -> Array:
        """A field of a forecast, `[latitude, longitude]`."""
        reference = self.starts[start]
        place = self._place[id(member.fields), stamp(reference), stamp(self.leads[lead].after(reference))]
        return member.fields.forecast(part, *place, members=slice(member.index, member.index + 1))[0]

    def read_times(self, member: Member, part: str, times: slice) -> Array:
        """States by time, `[time, latitude, longitude]`."""
        where = [member.fields.find(t) for t in self.times[times]]
        return member.fields.read(part, realization=member.index, time=where)

    @cached_property
    def coordinates(self) -> dict[str, Any]:
        """Of all dimensions but space, for `create_store`."""
        numbers = np.array([m.number for m in self.members], np.int32)
        out: dict[str, Any] = {"realization": ("realization", numbers)}
        if not self.is_forecast:
            return out | {"time": ("time", self.times)}
        values = [lead.months if self.monthly else lead.seconds / 3600 for lead in self.leads]
        words = {"units": "months" if self.monthly else "hours"}
        out["forecast_reference_time"] = ("forecast_reference_time", self.starts)
        out["forecast_period"] = (
            "forecast_period",
            np.array(values, np.int32 if self.monthly else float),
            words,
        )
        if self.lagged:
            own = [m.start for m in self.members]
            standard = own[0].calendar in ("standard", "gregorian")
            more = {"units_metadata": "leap_seconds: none"} if standard else {}
            out["member_start"] = ("realization", own, {"long_name": "start of each member"} | more)
        return out


def is_monthly(fields: Fields, times: Sequence[Any]) -> bool:
    """Whether times are of consecutive calendar months, by their bounds, else by their distances."""
    time = fields.dataset.coords.get("time")
    bounds = None if time is None else fields.dataset.get(time.attrs.get("bounds", ""))
    if bounds is not None:
        low, high = np.atleast_2d(bounds.values).T
        months = [12 * (b.year - a.year) + b.month - a.month for a, b in zip(low, high)]
        return all(
            m == 1 and (a.day, a.hour) == (1, 0) == (b.day, b.hour) for m, a, b in zip(months, low, high)
        )
    months = [12 * t.year + t.month for t in times]
    days = [(b - a).total_seconds() / 86400 for a, b in itertools.pairwise(times)]
    return len(times) > 1 and set(np.diff(months)) == {1} and all(28 <= d <= 31 for d in days)


def remapping(fields: Fields, like: Fields) -> Callable[[Array], Array]:
    """A function from fields of one grid, `[…, latitude, longitude]`, to those of another."""
    ours, theirs = ((latitude_edges(f.latitude), longitude_edges(f.longitude)) for f in (fields, like))
    part = next(iter(like.parts))
    missing = np.isnan(like.read(part, realization=0, forecast_reference_time=0, forecast_period=0, time=0))
    return lambda x: np.where(missing, np.nan, coarsen(x, *ours, *theirs))


def gather(members: Sequence[Member], out: str | Path, like: Fields | None = None) -> Gathered:
    """Write members as one ensemble, a field in memory at a time.

    Arguments:
        members: see `read_members`.
        out: .nc or .zarr.
        like: a file of the grid to write on; by default the members' own.

    Raises:
        PerrinError: see `Gathered`; or a member lacks a variable of the first one.
    """
    check_path(out)
    found, first, out = Gathered(members), members[0].fields, Path(out)
    for m in members:
        if lacking := [p for p in first.parts if p not in m.fields.parts]:
            raise PerrinError(
                f"expected {lacking[0]} in {m.fields.label}, given {', '.join(m.fields.parts)}: add it"
            )
    grid, remap = (like, remapping(first, like)) if like else (first, lambda x: x)
    time = ("forecast_reference_time", "forecast_period") if found.is_forecast else ("time",)
    coords = found.coordinates | {n: (n, getattr(grid, n)) for n in ("latitude", "longitude")}
    template = xr.Dataset(coords=coords)
    moving = {  # not what is constant, such as an orography
        part: p for part, p in first.parts.items() if {"time", *time} & {*first.dataset[p.variable].dims}
    } or first.parts
    kept = ("standard_name", "long_name", "units", "cell_methods")
    fields = {}
    for part, p in moving.items():
        words = {k: str(v) for k, v in first.dataset[p.variable].attrs.items() if k in kept}
        if found.is_forecast:  # CF's word for what has been averaged
            methods = {
                k: re.sub(r"\btime:", "forecast_period:", v) for k, v in words.items() if k == "cell_methods"
            }
            words |= methods | ({"coordinates": "member_start"} if found.lagged else {})
        fields[part] = words
    folder = out.with_name(out.name + ".partial")
    store = folder / "data.zarr"
    folder.mkdir(parents=True, exist_ok=True)
    names = {part: part.replace("@", "") for part in moving}
    try:
        create_store(
            store,
            template,
            {names[p]: words for p, words in fields.items()},
            ("realization", *time, "latitude", "longitude"),
            {
                "title": f"an ensemble of {counted(len(members), 'members')}",
                "source": ", ".join(sorted({m.fields.label for m in members})),
            },
            chunks={"time": _BLOCK},
        )
        for k, m in enumerate(members):
            for part, name in names.items():
                if not found.is_forecast:
                    for at in range(0, len(found.times), _BLOCK):
                        piece = slice(at, min(at + _BLOCK, len(found.times)))
                        write_region(store, name, (k, piece), remap(found.read_times(m, part, piece)))
                    continue
                for i, j in np.ndindex(len(found.starts), len(found.leads)):
                    write_region(store, name, (k, i, j), remap(found.read(m, part, i, j)))
        finish(store, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found
