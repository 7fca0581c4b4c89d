"""What is verified, and what it is verified against: a forecast, climatology, persistence.

A source gives an ensemble for a valid time. Climatology's members are the states of other years at the same time of the
year: of the same month where the data are monthly, else of the days within a window around the day, at the same hour.
Persistence has one member, the truth at the initial time; anomaly persistence carries over its departure from the
climatological mean instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields, Lead, stamp

Array = NDArray[np.float64]
REFERENCES = ("climatology", "persistence", "anomaly-persistence")
_YEAR = 365.2425


class Source(ABC):
    """A forecast in the widest sense."""

    members: int

    @abstractmethod
    def ensemble(self, part: str, reference: Any, lead: Lead, rows: slice) -> Array:
        """The members, `[M, rows, columns]`.

        Arguments:
            part: a variable of the truth.
            reference: the initial time.
            lead: the forecast period.
            rows: latitudes.
        """

    def has(self, reference: Any, lead: Lead) -> bool:
        """Whether there is one."""
        return True


class Ensemble(Source):
    """The forecast of a file.

    Arguments:
        fields: the file.
        names: its name of each variable of the truth.
    """

    def __init__(self, fields: Fields, names: dict[str, str]) -> None:
        self.fields, self.names = fields, names
        self.members = fields.members
        self._init = {stamp(t): i for i, t in enumerate(fields.references)}
        self._lead = {lead: i for i, lead in enumerate(fields.leads)}

    def ensemble(self, part: str, reference: Any, lead: Lead, rows: slice) -> Array:
        """See `Source`."""
        return self.fields.forecast(self.names[part], self._init[stamp(reference)], self._lead[lead], rows)

    def member(self, part: str, reference: Any, lead: Lead, k: int) -> Array:
        """Member k alone, `[rows, columns]`."""
        place = self._init[stamp(reference)], self._lead[lead]
        return self.fields.forecast(self.names[part], *place, members=slice(k, k + 1))[0]


class Climatology(Source):
    """States of the same time of the year.

    Arguments:
        fields: a record of the truth.
        years: the first and last year to use; all by default.
        window: days before and after the day of the year, where data are not monthly.

    Raises:
        PerrinError: the record has no time in those years.
    """

    def __init__(self, fields: Fields, years: tuple[int, int] | None = None, window: int = 10) -> None:
        self.fields, self.window = fields, window
        every = [(i, t) for i, t in enumerate(fields.times)]
        self.times = [(i, t) for i, t in every if years is None or years[0] <= t.year <= years[1]]
        if not self.times:
            first, last = fields.times[0].year, fields.times[-1].year
            raise PerrinError(
                f"expected a record of {years[0]} to {years[1]} for the climatology, given {fields.label} with {first} to "
                f"{last}: choose other --climatology-years or give --climatology FILE"
                if years and years[0] <= years[1]
                else f"expected years before the first forecast in {fields.label}, for the climatology that a reference or "
                f"quantile needs, given {first} to {last}: give --climatology FILE"
            )
        steps = [(b - a).total_seconds() / 86400 for (_, a), (_, b) in zip(self.times, self.times[1:])]
        self.monthly = bool(steps) and float(np.median(steps)) > 27
        self._found: dict[Any, list[int]] = {}
        self._kept: OrderedDict[Any, Array] = OrderedDict()
        self.members = max(len(self._indices(t)) for _, t in self.times[:: max(1, len(self.times) // 24)])

    def _indices(self, time: Any) -> list[int]:
        key = time.month if self.monthly else (time.month, time.day, time.hour, time.minute)
        if key not in self._found:
            self._found[key] = [i for i, t in self.times if self._near(t, time)]
        return self._found[key]

    def _near(self, a: Any, b: Any) -> bool:
        if self.monthly:
            return bool(a.month == b.month)
        apart = abs(_day(a) - _day(b))
        same_hour = (a.hour, a.minute) == (b.hour, b.minute)
        return same_hour and min(apart, _YEAR - apart) <= self.window

    def at(self, part: str, time: Any, rows: slice) -> Array:
        """All states of that time of the year, `[years, rows, columns]`; those read last are kept, up to 256 MB."""
        found = self._indices(time)
        key = (part, tuple(found), rows.start, rows.stop)
        if key not in self._kept:
            if not found:
                raise PerrinError(
                    f"expected states of {time.strftime('%m-%d %H:%M')} in {self.fields.label}, given none: "
                    "give a longer record with --climatology FILE"
                )
            self._kept[key] = self.fields.read(part, rows, time=found)
            while sum(x.nbytes for x in self._kept.values()) > 2**28 and len(self._kept) > 1:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def mean(self, part: str, time: Any, rows: slice) -> Array:
        """The climatological mean, `[rows, columns]`; NaN where a state is missing."""
        return np.asarray(self.at(part, time, rows).mean(0))

    def ensemble(self, part: str, reference: Any, lead: Lead, rows: slice) -> Array:
        """See `Source`."""
        return self.at(part, lead.after(reference), rows)


def _day(time: Any) -> float:
    """The day of the year, counted as in a leap year so that dates have the same number in every calendar."""
    return 30.4368 * (time.month - 1) + time.day


class Persistence(Source):
    """The truth at the initial time.

    Arguments:
        truth: the record.
        climatology: with one, the anomaly persists in place of the state.
    """

    members = 1

    def __init__(self, truth: Fields, climatology: Climatology | None = None) -> None:
        self.truth, self.climatology = truth, climatology

    def has(self, reference: Any, lead: Lead) -> bool:
        """Whether the truth is known at the initial time."""
        return self.truth.find(reference) is not None

    def ensemble(self, part: str, reference: Any, lead: Lead, rows: slice) -> Array:
        """See `Source`."""
        state = self.truth.read(part, rows, time=self.truth.find(reference))
        if self.climatology is not None:
            state = state + self.climatology.mean(part, lead.after(reference), rows)
            state = state - self.climatology.mean(part, reference, rows)
        return state[None]
