"""A record of the user's own for `perrin.modalities.weather.atmosphere`: fields of files, on a Gauss grid.

Files hold one field or many, one year or all: a time counts where all fields have it. Variables on levels become a field
for each level, `zg500` of `zg` at 500 hPa (`perrin.modalities.weather.names`). Where times are missing the record is cut
into runs, and no step reaches over the gap. Orography and land, by standard name, are constants.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.errors import PerrinError, warn
from perrin.modalities.weather.fields import Fields, stamp
from perrin.modalities.weather.names import attributes, is_vector, named
from perrin.modalities.weather.regrid import resolved, to_gauss

MOST = 32
"""Rows of a Gauss grid, unless told: more take longer than an hour."""
BLOCK = 64
"""Times that are read at once, at most."""
_POINTS = 2**23
"""Of a field that are read at once."""
_STATIC = {
    "surface_altitude": (0, 1 / 3000),
    "surface_geopotential": (0, 1 / (9.80665 * 3000)),
    "land_binary_mask": (1, 1.0),
    "land_area_fraction": (1, 1.0),
}
"""Standard names of constants: which of the two, and a factor."""
_WORDS = {"orog": "surface_altitude", "sftlf": "land_area_fraction", "lsm": "land_binary_mask"}
"""What they are called where they have no standard name."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a field is: a file and its part there."""

    fields: Fields
    part: str


class Record:
    """Fields of files by time, on a Gauss grid of `rows` × 2 `rows`.

    Arguments:
        files: analyses by time, all of the whole sphere, in one calendar.
        variables: names of fields, or of variables for all their levels; all that have a time by default.
        rows: a multiple of 8; by default the largest that all grids resolve, at most `MOST`.
        static: a further file with orography or land.

    Raises:
        PerrinError: something of this is not so.
    """

    def __init__(
        self,
        files: Sequence[Fields],
        variables: Sequence[str] = (),
        rows: int | None = None,
        static: Fields | None = None,
    ) -> None:
        self.sources, self.static = _sort(files, static)
        self._choose(variables)
        used = list({id(s.fields): s.fields for one in self.sources.values() for s in one}.values())
        for f in [*used, *(s.fields for s in self.static.values())]:
            if not f.is_global:
                raise PerrinError(f"expected a grid of the whole sphere, given a part of it in {f.label}")
        if members := [f for f in used if f.members > 1]:
            raise PerrinError(
                f"expected one state a time, given {members[0].members} members in {members[0].label}: choose one of them"
            )
        calendars = {f.times[0].calendar: f.label for f in used}
        if len(calendars) > 1:
            (one, a), (two, b) = list(calendars.items())[:2]
            raise PerrinError(f"expected one calendar, given {one} in {a} and {two} in {b}: convert one")
        self.rows = _rows(used, rows)
        self.label = ", ".join(f.label for f in used[:3]) + (", …" if len(used) > 3 else "")
        self.names = tuple(self.sources)
        self.attributes = {n: attributes(one[0].fields, one[0].part) for n, one in self.sources.items()}
        self.vectors = tuple(n for n in self.names if is_vector(n, self.attributes[n]))
        self._find_times()

    def _choose(self, variables: Sequence[str]) -> None:
        """Those fields that are asked for."""
        if not variables:
            return
        chosen: dict[str, list[Source]] = {}
        for word in variables:
            found = {
                n: one
                for n, one in self.sources.items()
                if word in (n, one[0].part, one[0].fields.parts[one[0].part].variable)
            }
            if not found:
                raise PerrinError(
                    f"expected --variables among {', '.join(self.sources)}, which the files have by time, given {word!r}"
                )
            chosen |= found
        self.sources = chosen

    def _find_times(self) -> None:
        """The times that all fields have, where each of them is, and the hours from one to the next."""
        self._place: dict[str, dict[Any, tuple[Fields, str, int]]] = {}
        known: dict[Any, Any] = {}
        for name, one in self.sources.items():
            place: dict[Any, tuple[Fields, str, int]] = {}
            for s in one:
                for i, t in enumerate(s.fields.times):
                    place.setdefault(stamp(t), (s.fields, s.part, i))
                    known.setdefault(stamp(t), t)
            self._place[name] = place
        common = set.intersection(*(set(p) for p in self._place.values()))
        self.times = [known[t] for t in sorted(common)]
        if len(self.times) < 3:
            raise PerrinError(
                f"expected three times or more that all fields have, given {len(self.times)} in {self.label}"
            )
        if left := len(known) - len(self.times):
            warn(f"{left} of {len(known)} times left out, which not all fields have")
        gaps = Counter((b - a).total_seconds() / 3600 for a, b in pairwise(self.times))
        self.interval = gaps.most_common(1)[0][0]

    def stride(self, hours: int) -> int:
        """How many states make a step.

        Raises:
            PerrinError: none do.
        """
        ratio = hours / self.interval
        if hours < 1 or abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
            raise PerrinError(
                f"expected --hours that the record's interval of {self.interval:g} hours divides, given {hours}"
            )
        return round(ratio)

    def runs(self, used: NDArray[np.bool_]) -> list[int]:
        """Lengths of the runs of those times that are used, between which some are missing."""
        at = np.flatnonzero(used)
        apart = [
            b - a > 1 or abs((self.times[b] - self.times[a]).total_seconds() / 3600 - self.interval) > 1e-6
            for a, b in pairwise(at)
        ]
        cuts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(at)]
        return [b - a for a, b in pairwise(cuts)]

    def read(self, times: slice) -> NDArray[np.float32]:
        """States, `[n, C, rows, 2 rows]`.

        Raises:
            PerrinError: a value is missing.
        """
        wanted = self.times[times]
        out = np.empty((len(wanted), len(self.names), self.rows, 2 * self.rows), np.float32)
        for c, name in enumerate(self.names):
            place = [self._place[name][stamp(t)] for t in wanted]
            for first, last in _together(place):
                fields, part, i = place[first]
                x = fields.read(part, time=slice(i, i + last - first)).reshape(
                    last - first, len(fields.latitude), len(fields.longitude)
                )
                known = np.isfinite(x).all((1, 2))
                if not known.all():
                    when = wanted[first + int(np.argmin(known))]
                    raise PerrinError(
                        f"expected {name} everywhere, given missing values at {when} in {fields.label}: fill them, or leave "
                        f"{name} out (--variables)"
                    )
                out[first:last, c] = to_gauss(x, fields.latitude, fields.longitude, self.rows, 2 * self.rows)
        return out

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All states, some at a time."""
        largest = max(
            len(s.fields.latitude) * len(s.fields.longitude) for one in self.sources.values() for s in one
        )
        size = max(1, min(BLOCK, _POINTS // largest))
        for at in range(0, len(self.times), size):
            times = slice(at, min(at + size, len(self.times)))
            yield times, self.read(times)

    @cached_property
    def days(self) -> Tensor:
        """Of the year, `[T]`."""
        starts = (type(t)(t.year, 1, 1, calendar=t.calendar) for t in self.times)
        return torch.tensor([(t - s).total_seconds() / 86400 for t, s in zip(self.times, starts)])

    @cached_property
    def constants(self) -> NDArray[np.float32]:
        """Orography / 3000 m and land, `[2, rows, 2 rows]`; zero where there is none."""
        out = np.zeros((2, self.rows, 2 * self.rows), np.float32)
        for standard, s in self.static.items():
            k, factor = _STATIC[standard]
            x = s.fields.read(s.part, time=0, realization=0)
            x = np.nan_to_num(x.reshape(len(s.fields.latitude), len(s.fields.longitude)))
            if s.fields.units(s.part) == "%":
                factor /= 100
            out[k] = factor * to_gauss(x, s.fields.latitude, s.fields.longitude, self.rows, 2 * self.rows)
        return out

    @property
    def has(self) -> tuple[bool, bool]:
        """Whether there are orography and land."""
        there = {_STATIC[name][0] for name in self.static}
        return 0 in there, 1 in there

    @property
    def lacking(self) -> str:
        """What is not there of orography and land: a line, or nothing."""
        what = ("orography (surface_altitude)", "land (land_area_fraction)")
        words = [w for w, there in zip(what, self.has) if not there]
        return (
            f"no {' and no '.join(words)} in the files: zeros in their place (--static FILE)" if words else ""
        )

    def inside(self, years: tuple[int, int]) -> NDArray[np.bool_]:
        """Which times are in these years."""
        return np.array([years[0] <= t.year <= years[1] for t in self.times])

    def after(self, i: int, hours: float) -> int | None:
        """The number of the state some hours after another, if there is one."""
        return self._numbers.get(stamp(self.times[i] + datetime.timedelta(hours=hours)))

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {stamp(t): i for i, t in enumerate(self.times)}


def _sort(
    files: Sequence[Fields], static: Fields | None
) -> tuple[dict[str, list[Source]], dict[str, Source]]:
    """What moves, by name, and what is constant, by standard name."""
    moving: dict[str, list[Source]] = {}
    constant: dict[str, Source] = {}
    for fields in [*([static] if static else []), *files]:
        for name, part in named(fields).items():
            variable = fields.dataset[fields.parts[part].variable]
            standard = str(variable.attrs.get("standard_name", "")) or _WORDS.get(name, "")
            if standard in _STATIC:
                constant.setdefault(standard, Source(fields, part))
            elif "time" in variable.dims and fields is not static:
                moving.setdefault(name, []).append(Source(fields, part))
    if not moving:
        raise PerrinError(
            f"expected fields by time, latitude and longitude, given none in {', '.join(f.label for f in files)}"
        )
    for other in ("surface_geopotential", "land_binary_mask"):  # the one that is meant wins
        if {"surface_geopotential": "surface_altitude", "land_binary_mask": "land_area_fraction"}[
            other
        ] in constant:
            constant.pop(other, None)
    return moving, constant


def _rows(files: Sequence[Fields], rows: int | None) -> int:
    """Of the Gauss grid."""
    most, label = min((resolved(f.latitude, len(f.longitude)), f.label) for f in files)
    if most < 8:
        raise PerrinError(f"expected a grid that resolves 8 degrees of harmonics, given {most} in {label}")
    if rows is None:
        return min(MOST, most // 8 * 8)
    if rows < 8 or rows % 8 or rows > most:
        raise PerrinError(
            f"expected --rows as a multiple of 8 up to {most // 8 * 8}, which the grid of {label} resolves, given {rows}"
        )
    return rows


def _together(place: Sequence[tuple[Any, str, int]]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive times of one file."""
    first = 0
    for k in range(1, len(place) + 1):
        if k == len(place) or place[k][0] is not place[k - 1][0] or place[k][2] != place[k - 1][2] + 1:
            yield first, k
            first = k
