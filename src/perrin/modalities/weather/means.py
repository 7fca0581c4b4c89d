"""Time means of a rollout, so that years of it fit on a disk.

A mean over (a, b] is that of the model's states at leads a + 1 … b: `5d` cuts the rollout into pieces of five days from its
start, `month` at the calendar's months. What is left of a piece at either end is rolled out, but not written.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError

SEGMENT = 64
"""Steps that are made and written together, about: what is lost when work is killed, and a shard of the store."""


@dataclass(frozen=True)
class Bins:
    """Pieces of a rollout that are written together, as one number each where they are means.

    Arguments:
        edges: leads, ascending: mean j is over (edges[j], edges[j + 1]]; none where every step is written.
        leads: how many steps there are to roll out.
    """

    edges: tuple[int, ...] | None
    leads: int

    @property
    def count(self) -> int:
        """Values along the forecast period."""
        return self.leads if self.edges is None else len(self.edges) - 1

    @property
    def whole(self) -> int:
        """Steps that are in one of the pieces."""
        return self.leads if self.edges is None else self.edges[-1] - self.edges[0]

    @property
    def group(self) -> int:
        """Of them, how many are in a segment."""
        if self.edges is None:
            return min(SEGMENT, self.leads)
        return min(self.count, max(1, round(SEGMENT * self.count / self.whole)))

    @property
    def cuts(self) -> tuple[int, ...]:
        """Leads at which segments end, the last of all included: where a rollout may be taken up again."""
        edges = range(self.leads + 1) if self.edges is None else self.edges
        found = [edges[j] for j in range(0, self.count, self.group)] + [edges[-1]]
        return tuple(c for c in found if c)

    def periods(self, step: float) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Forecast periods in the unit of `step`, `[count]`, and where they are means their bounds, `[count, 2]`."""
        if self.edges is None:
            return step * np.arange(1, self.leads + 1, dtype=np.float64), None
        bounds = step * np.stack([self.edges[:-1], self.edges[1:]], 1).astype(np.float64)
        return bounds.mean(1), bounds

    def reduce(self, x: NDArray[np.float32], first: int) -> tuple[slice, NDArray[np.float32]]:
        """Where a segment belongs along the forecast period, and what.

        Arguments:
            x: states of leads `first` + 1 …, `[members, n, rows, columns]`.
            first: the lead before.
        """
        last = first + x.shape[1]
        if self.edges is None:
            return slice(first, last), x
        pairs = enumerate(zip(self.edges, self.edges[1:]))
        inside = [(j, a - first, b - first) for j, (a, b) in pairs if first <= a and b <= last]
        if not inside:
            return slice(0, 0), x[:, :0]
        means = np.stack([x[:, a:b].mean(1, dtype=np.float64) for _, a, b in inside], 1)
        return slice(inside[0][0], inside[-1][0] + 1), means.astype(np.float32)


def bins(every: str | None, times: Sequence[Any], leads: int, hours: int) -> Bins:
    """What `--every` asks for.

    Arguments:
        every: `5d`, `month`, or nothing for every step.
        times: starts of the rollouts, cftime objects.
        leads: steps.
        hours: of a step.

    Raises:
        PerrinError: it is neither, no piece is whole, or months of the starts are not equally long.
    """
    if every is None:
        return Bins(None, leads)
    days = days_of(every)
    if days and days * 24 % hours == 0:
        length = days * 24 // hours
        edges = tuple(range(0, leads + 1, length))
    elif every == "month":
        each = {_months(time, leads, hours) for time in times}
        if len(each) > 1:
            raise PerrinError(
                f"expected starts whose months are equally long for --every month, given {times[0]} and others: give "
                "one --start at a time"
            )
        (edges,) = each
    else:
        raise PerrinError(
            f"expected --every 5d, some days that steps of {hours} hours make up, or month, given {every!r}"
        )
    if len(edges) < 2:
        raise PerrinError(
            f"expected a forecast of at least one whole mean, given {leads * hours / 24:g} days and --every {every}: "
            "ask for more days"
        )
    return Bins(edges, edges[-1])


def days_of(every: str) -> int | None:
    """5 of `5d`; `None` of what is not of this form."""
    match = re.fullmatch(r"(\d+)d", every)
    return int(match[1]) if match else None


def _months(time: Any, leads: int, hours: int) -> tuple[int, ...]:
    """The last steps that are not after the first of a month, 0:00."""
    edges: list[int] = []
    year, month = time.year, time.month
    while True:
        first = type(time)(year, month, 1, calendar=time.calendar)
        at = (first - time) // datetime.timedelta(hours=hours)
        if at > leads:
            return tuple(edges)
        if at >= 0:
            edges.append(at)
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
