"""A file of fields as one HTML page, with nothing beside it: what it has, means by time, maps.

Of an ensemble the maps are means of the members, and at the last time the spread and two members; of forecasts from
several starts, the first. Amounts, which are never negative and often zero, are mapped from zero, in colours of what falls.
Long curves are of means over blocks of whole years or days, so that no cycle of the seasons or the day is taken for another.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import counted
from perrin.modalities.weather.fields import Fields, Lead
from perrin.modalities.weather.page import BOTH, ONE, VIRIDIS, Scale, number, picture, plot, top, write_html

Array = NDArray[np.float64]
FRAMES = 400
"""Points of a curve at most."""
VALUES = 1e9
"""Values of a variable that are read at most, if of `FRAMES` times."""
PARTS = 12
"""Variables (and levels) that are shown at most."""
_MAPS = 5


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The times of a page.

    Arguments:
        words: what each is called.
        ticks: the same for an axis.
        at: which it is in the file.
        leads: whether they are periods of one forecast.
        every: how many the file has.
        cycle: how many are a year, where they are months, or a day; 1 where neither is known.
    """

    words: list[str]
    ticks: list[str]
    at: list[int]
    leads: bool
    every: int
    cycle: int = 1

    @property
    def block(self) -> int:
        """How many are one point of a curve."""
        least = -(-len(self.words) // FRAMES)
        return 1 if least == 1 else -(-least // self.cycle) * self.cycle

    def read(self, fields: Fields, part: str, k: int) -> Array:
        """Members at one of them, `[members, rows, columns]`."""
        if not self.at:
            x = fields.read(part)
            return x if x.ndim == 3 else x[None]
        i = self.at[k]
        return fields.forecast(part, 0, i) if self.leads else fields.forecast(part, i, 0)


def frames(fields: Fields) -> Frames:
    """What a file has by time, or by period of its first forecast; one frame where it has neither."""
    leads = fields.is_forecast or ("time" in fields.dataset.coords and len(fields.leads) > 1)
    cycle = 1
    if leads:
        start = fields.references[0]
        ticks = valid(start, fields.leads)
        words = [f"{lead} ({tick})" for lead, tick in zip(fields.leads, ticks)]
    elif "time" in fields.dataset.coords:
        words = ticks = dates(fields.times)
        cycle = cycle_of(fields.times)
    else:
        return Frames(words=[""], ticks=[""], at=[], leads=False, every=1)
    room = max(FRAMES, int(VALUES / (fields.area.size * fields.members)))
    at = np.unique(np.linspace(0, len(words) - 1, min(room, len(words))).round().astype(int)).tolist()
    if len(at) < len(words):
        cycle = 1
    return Frames(
        words=[words[i] for i in at],
        ticks=[ticks[i] for i in at],
        at=at,
        leads=leads,
        every=len(words),
        cycle=cycle,
    )


def valid(start: Any, leads: Sequence[Lead]) -> list[str]:
    """The months, or times, that a forecast is of."""
    if any(lead.months for lead in leads):
        months = [divmod(12 * start.year + start.month - 1 + lead.months, 12) for lead in leads]
        return [f"{year:04d}-{month + 1:02d}" for year, month in months]
    return dates([lead.after(start) for lead in leads])


def cycle_of(times: Sequence[Any]) -> int:
    """How many of them are a year, if they are consecutive months, or a day, if they are hours that make it up; else 1."""
    months = np.array([12 * t.year + t.month for t in times])
    if (np.diff(months) == 1).all():
        return 12
    gaps = {round((b - a).total_seconds()) for a, b in itertools.pairwise(times)}
    each = gaps.pop() if len(gaps) == 1 else 0
    return 86400 // each if each > 0 and 86400 % each == 0 else 1


def dates(times: Sequence[Any]) -> list[str]:
    """Times as text, with hours where they have any."""
    days = all(t.hour == t.minute == 0 for t in times)
    return [t.strftime("%Y-%m-%d" if days else "%Y-%m-%d %H:%M") for t in times]


def write_look(path: str | Path, fields: Fields) -> None:
    """Write the page.

    Arguments:
        path: where to.
        fields: the file.
    """
    found, names = frames(fields), list(fields.parts)
    rows, columns = len(fields.latitude), len(fields.longitude)
    south, north = fields.latitude[0], fields.latitude[-1]
    west, east = fields.longitude[0], fields.longitude[-1]
    times = counted(found.every, "times")
    if found.leads:
        times = f"forecast from {dates(fields.references[:1])[0]}, {counted(found.every, 'periods')}"
    about = [
        counted(fields.members, "members"),
        f"{times}, {found.words[0]} to {found.words[-1]}" if found.at else "no times",
        f"{rows} × {columns} cells, {south:g}° to {north:g}° north, {west:g}° to {east:g}° east",
    ]
    if len(found.at) < found.every and found.at:
        about.append(
            f"{len(found.at)} of the times are read, evenly chosen: what changes faster than these follow one another, "
            "seasons say, looks slower than it is"
        )
    if len(names) > PARTS:
        about.append(f"not shown: {', '.join(names[PARTS:])}")
    title = str(fields.dataset.attrs.get("title", ""))
    parts = [
        f"<h1>{html.escape(fields.label)}</h1>",
        f"<p>{html.escape(title)}</p>" if title else "",
        f"<p>{html.escape('; '.join(about))}.</p>",
        *(variable(fields, found, name) for name in names[:PARTS]),
    ]
    write_html(path, "perrin view", parts)


def variable(fields: Fields, found: Frames, name: str) -> str:
    """Numbers, a curve and maps of one variable."""
    unit = fields.units(name)
    means, largest, low, high, known, zero, cells = [], [], np.inf, -np.inf, 0, 0, 0
    for k in range(len(found.words)):
        x = found.read(fields, name, k)
        there = np.isfinite(x)
        weight = np.where(there, fields.area, 0.0)
        with np.errstate(invalid="ignore"):
            means.append((np.where(there, x, 0.0) * weight).sum((1, 2)) / weight.sum((1, 2)))
        values = x[there]
        largest.append(float(values.max()) if len(values) else np.nan)
        low, high = min(low, float(values.min(initial=np.inf))), max(high, float(values.max(initial=-np.inf)))
        known, zero, cells = known + len(values), zero + int((values == 0).sum()), cells + x.size
    head = f"<h2>{html.escape(name)}{f' ({html.escape(unit)})' if unit else ''}</h2>"
    if not known:
        return head + "<p>No values.</p>"
    amounts = low >= 0 and zero > 0.1 * known
    mean = np.array(means).T  # [members, times]
    table: dict[str, Any] = {"least": low, "mean over area and times": np.nanmean(mean), "largest": high}
    cells_of = [(k, number(float(v))) for k, v in table.items()]
    cells_of.append(("missing", f"{100 * (1 - known / cells):.3g} %"))
    if amounts:
        cells_of.append(("zero", f"{100 * zero / known:.3g} % of the rest"))
    out = head + "<table>" + "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in cells_of) + "</table>"
    if len(found.words) > 1:
        size = found.block
        count = len(found.words) // size  # what is left at the end is no whole block
        steps = np.arange(count)
        some = np.unique(np.linspace(0, count - 1, 4).round().astype(int)).tolist()
        ticks = [(float(k), found.ticks[k * size]) for k in some]
        y, each = f" ({unit})" if unit else "", ""
        if size > 1:
            each = "12 months" if found.cycle == size == 12 else f"{size} times"
        curve = mean[:, : count * size].reshape(len(mean), count, size).mean(2)
        series = {"mean of the members" if len(mean) > 1 else "mean": curve.mean(0).tolist()}
        faint = curve if len(mean) > 1 else None
        out += plot(
            f"mean over the area{y}{each and ', means of ' + each}", steps, series, ticks=ticks, faint=faint
        )
        if amounts:
            most = np.reshape(largest[: count * size], (count, size)).max(1).tolist()
            out += plot(
                f"largest value{y}{each and ', of ' + each}", steps, {"largest": most}, ticks=ticks, low=0
            )
    return out + maps(fields, found, name, unit, mean, amounts=amounts)


def maps(fields: Fields, found: Frames, name: str, unit: str, mean: Array, *, amounts: bool) -> str:
    """Some times, evenly chosen, and the one of the largest mean, all in the same colours."""
    count = len(found.words)
    shown = {round(k) for k in np.linspace(0, count - 1, _MAPS)}
    if np.isfinite(both := mean.mean(0)).any():
        shown.add(int(np.nanargmax(both)))
    means = {}
    for k in sorted(shown):
        last = found.read(fields, name, k)  # one time of all members in memory
        means[k] = last.mean(0)
    drawn = np.concatenate([x.ravel() for x in means.values()])
    drawn = drawn[np.isfinite(drawn)]
    if amounts:
        drawn = drawn[drawn > 0]
    if not len(drawn):
        return "<p>Nothing but zeros or missing values at these times.</p>"
    low, high = (float(v) for v in np.quantile(drawn, [0.005, 0.995]))
    scale: Scale = VIRIDIS
    if amounts:
        low, scale = 0.0, ONE
    elif low < 0 < high and min(-low, high) > 0.25 * max(-low, high):
        low, high, scale = -max(-low, high), max(-low, high), BOTH
    out = f"<p>Colours: {number(low)} to {number(high)} {html.escape(unit)} in all maps; grey is missing.</p>"
    at = (fields.latitude, fields.longitude)
    what = "mean of the members, " if len(last) > 1 else ""
    for k, x in means.items():
        out += picture(x, low, high, scale, what + found.words[k], unit, at)
    if len(last) > 1 and np.isfinite(last).any():
        spread = last.std(0, ddof=1)
        most = top(spread)
        word = found.words[-1]
        out += picture(spread, 0, most, ONE, f"spread, {word}", unit, at)
        for i in (0, 1):
            out += picture(last[i], low, high, scale, f"member {i}, {word}", unit, at)
    return out
