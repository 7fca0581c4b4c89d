"""The verification as one HTML file: scorecard, scores by lead, spectra, rank histograms, plumes and maps.

Everything is in the file: curves as SVG, maps as PNG (colour by palette, one pixel a cell or more), no script, no download.
Maps are equirectangular, north up, 0° to 360°.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.modalities.weather.fields import Fields
from perrin.run.atomic import write_text

Array = NDArray[np.float64]

Scale = tuple[tuple[int, int, int], ...]
"""Colours, evenly spaced."""
_COLOURS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e6bbf", "#7f7f7f")
BOTH: Scale = ((20, 70, 140), (120, 175, 220), (247, 247, 247), (240, 165, 120), (160, 30, 40))
ONE: Scale = ((252, 252, 245), (190, 225, 190), (70, 165, 175), (35, 90, 150), (30, 20, 80))
"""For what starts at zero: the more the darker."""
VIRIDIS: Scale = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)
"""Matplotlib's, for the rest: the higher the brighter."""
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}h3{font-size:1em;margin:1.2em 0 .3em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15em .6em;text-align:right;border:1px solid #e5e5e5}
th{background:#f6f6f6;font-weight:600}figure{display:inline-block;margin:.3em .6em .6em 0;vertical-align:top}
figcaption{font-size:12px;color:#555}img{image-rendering:pixelated;border:1px solid #ccc;display:block}
.map{position:relative;display:inline-block;font-size:11px;color:#555}.map.placed{margin:8px 20px 16px 40px}
.map span{position:absolute;white-space:nowrap}.map .row{right:100%;padding-right:3px;transform:translateY(-50%)}
.map .column{top:100%;transform:translateX(-50%)}.bar{height:9px;max-width:340px;border:1px solid #ccc}
.ends{display:flex;justify-content:space-between;max-width:342px;font-size:11px;margin-bottom:2px}"""


def write_page(
    path: str | Path, result: dict[str, Any], forecast: Fields, truth: Fields, place: tuple[float, float]
) -> None:
    """Write the page.

    Arguments:
        path: where to.
        result: what `verify` returned.
        forecast, truth: what was verified.
        place: latitude and longitude of the plumes, degrees.
    """
    parts = [
        f"<h1>{html.escape(result['forecast'])} against {html.escape(result['truth'])}</h1>",
        f"<p>{_members(result['members'])}.</p>",
        scorecard(result),
    ]
    for name, variable in result["variables"].items():
        unit = variable["units"]
        parts.append(f"<h2>{html.escape(name)}{f' ({html.escape(unit)})' if unit else ''}</h2>")
        parts += [curves(variable["leads"], unit), spectra(variable["leads"]), ranks(variable["leads"])]
        parts += [
            plume(name, unit, variable["leads"], forecast, truth, place),
            maps(name, unit, forecast, truth),
        ]
    write_html(path, "perrin verify", parts)


def write_html(path: str | Path, by: str, parts: Sequence[str]) -> None:
    """A page of these parts, with the style of all, that says which command made it."""
    body = "\n".join(p for p in parts if p)
    write_text(
        Path(path),
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="{by}">'
        f"<title>{by}</title><style>{_STYLE}</style>"
        f"<body>{body}</body></html>\n",
    )


def _members(count: int) -> str:
    return f"{count} members, fair CRPS" if count > 1 else "one member, CRPS = absolute error"


def _value(scores: dict[str, Any], name: str) -> float:
    found = (scores.get(name) or {}).get("value")
    return math.nan if found is None else float(found)


def scorecard(result: dict[str, Any]) -> str:
    """CRPS, SSR and skill of every variable and lead; skill is coloured, blue for better than the reference."""
    names = list(next(iter(result["variables"].values()))["leads"][0]["references"])
    heads = ["variable", "lead", "n", "CRPS", "RMSE", "SSR", *(f"CRPS skill, {n}" for n in names)]
    rows = []
    for name, variable in result["variables"].items():
        for lead in variable["leads"]:
            cells = [html.escape(name), lead["lead"], str(lead["initial_times"])]
            cells += [number(_value(lead["scores"], k)) for k in ("crps", "rmse", "ssr")]
            row = "".join(f"<td>{c}</td>" for c in cells)
            for n in names:
                s = _value(lead["references"].get(n, {}).get("skill", {}), "crps")
                r, g, b = _colour(BOTH, 0.5 - 0.5 * s) if math.isfinite(s) else (255, 255, 255)
                ink = "#fff" if r + g + b < 330 else "#222"
                row += f'<td style="background:rgb({r},{g},{b});color:{ink}">{number(s)}</td>'
            rows.append(f"<tr>{row}</tr>")
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    return f"<h2>Scorecard</h2><table><tr>{head}</tr>{''.join(rows)}</table>"


def number(x: float) -> str:
    return f"{x:.3g}" if math.isfinite(x) else "–"


def curves(leads: Sequence[dict[str, Any]], unit: str) -> str:
    """CRPS beside its references', and RMSE beside the spread, by lead."""
    if len(leads) < 2:
        return ""
    x = np.arange(len(leads))
    ticks = [(float(i), lead["lead"]) for i, lead in enumerate(leads)]
    crps = {"forecast": [_value(lead["scores"], "crps") for lead in leads]}
    for n in leads[0]["references"]:
        crps[n] = [_value(lead["references"].get(n, {}).get("scores", {}), "crps") for lead in leads]
    error = {
        "RMSE of the mean": [_value(lead["scores"], "rmse") for lead in leads],
        "spread": [_value(lead["scores"], "spread") for lead in leads],
    }
    y = f" ({unit})" if unit else ""
    return plot(f"CRPS{y}", x, crps, ticks=ticks, low=0) + plot(
        f"error and spread{y}", x, error, ticks=ticks, low=0
    )


def spectra(leads: Sequence[dict[str, Any]]) -> str:
    """Power by degree of the last lead, of members and truth."""
    found = leads[-1].get("spectrum")
    if not found:
        return ""
    members, truth = (np.asarray(found[k], dtype=float)[1:] for k in ("forecast", "truth"))
    x = np.arange(1, len(truth) + 1)
    series = {"members": members.tolist(), "truth": truth.tolist()}
    return plot(f"power spectrum, {leads[-1]['lead']}, by degree", x, series, logarithmic=True)


def ranks(leads: Sequence[dict[str, Any]]) -> str:
    """Rank histograms of the first and the last lead; flat is reliable."""
    out = ""
    for lead in dict.fromkeys((0, len(leads) - 1)):
        share = np.asarray(leads[lead].get("rank_histogram") or [], dtype=float)
        if len(share) < 3 or not share.sum() > 0:
            continue
        share = share / share.sum() * len(share)
        top, width, height = max(2.0, float(share.max())), 300, 150
        step = (width - 30) / len(share)
        bars = "".join(
            f'<rect x="{30 + i * step:.1f}" y="{height - 20 - s / top * (height - 30):.1f}" width="{step * 0.9:.1f}" '
            f'height="{s / top * (height - 30):.1f}" fill="{_COLOURS[0]}"/>'
            for i, s in enumerate(share)
        )
        flat = height - 20 - (height - 30) / top
        line = f'<line x1="30" x2="{width}" y1="{flat:.1f}" y2="{flat:.1f}" stroke="#222" stroke-dasharray="4 3"/>'
        out += _figure(
            f'<svg width="{width}" height="{height}">{bars}{line}</svg>',
            f"rank of the truth, {leads[lead]['lead']}",
        )
    return out


def plume(
    name: str,
    unit: str,
    leads: Sequence[dict[str, Any]],
    forecast: Fields,
    truth: Fields,
    place: tuple[float, float],
) -> str:
    """Members and truth at one place, of the first initial time."""
    i = int(np.abs(truth.latitude - place[0]).argmin())
    j = int(np.abs((truth.longitude - place[1] + 180) % 360 - 180).argmin())
    start = forecast.references[0]
    members, seen, ticks = [], [], []
    for k, lead in enumerate(forecast.leads):
        at = truth.find(lead.after(start))
        members.append(forecast.forecast(name, 0, k, slice(i, i + 1))[:, 0, j])
        seen.append(math.nan if at is None else float(truth.read(name, slice(i, i + 1), time=at)[0, j]))
        ticks.append((float(k), str(lead)))
    if len(ticks) < 2 or not np.isfinite(members).any():
        return ""
    many = np.array(members).T
    series = {"truth": seen, "mean": many.mean(0).tolist()}
    x = np.arange(len(ticks))
    title = f"{name}{f' ({unit})' if unit else ''} at {truth.latitude[i]:.0f}°, {truth.longitude[j]:.0f}°, from {start}"
    return plot(title, x, series, ticks=ticks, faint=many)


def maps(name: str, unit: str, forecast: Fields, truth: Fields) -> str:
    """Truth, mean, error and spread of the first initial time at the first and the last lead that the truth has."""
    start = forecast.references[0]
    there = [k for k, lead in enumerate(forecast.leads) if truth.find(lead.after(start)) is not None]
    out = ""
    for k in dict.fromkeys(there[:1] + there[-1:]):
        lead = forecast.leads[k]
        y = truth.read(name, time=truth.find(lead.after(start)))
        x = forecast.forecast(name, 0, k)
        both = np.concatenate([y.ravel(), x.mean(0).ravel()])
        if not np.isfinite(both).any():
            continue
        low, high = (float(v) for v in np.nanquantile(both, [0.005, 0.995]))
        error = x.mean(0) - y
        size = top(np.abs(error))
        words = f"{lead} from {start}" if forecast.has_leads else str(start)
        out += f"<h3>{html.escape(words)}</h3>"
        at = (truth.latitude, truth.longitude)
        out += picture(y, low, high, VIRIDIS, "truth", unit, at)
        out += picture(x.mean(0), low, high, VIRIDIS, "mean of the members, the same colours", unit, at)
        out += picture(error, -size, size, BOTH, "mean − truth", unit, at)
        if len(x) > 1:
            spread = x.std(0, ddof=1)
            most = top(spread)
            out += picture(spread, 0, most, ONE, "spread", unit, at)
    return out


def top(x: Array) -> float:
    """Where the colours of values above 0 end: nearly the largest."""
    return float(np.nanquantile(x, 0.995)) or float(np.nanmax(x)) or 1.0


def _figure(inner: str, caption: str) -> str:
    return f"<figure>{inner}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _colour(scale: Sequence[tuple[int, int, int]], at: float) -> tuple[int, int, int]:
    """A colour of a scale, 0 to 1."""
    x = min(max(at, 0.0), 1.0) * (len(scale) - 1)
    i = min(int(x), len(scale) - 2)
    a, b = scale[i], scale[i + 1]
    return tuple(round(p + (x - i) * (q - p)) for p, q in zip(a, b))  # type: ignore[return-value]


def picture(
    x: Array,
    low: float,
    high: float,
    scale: Sequence[tuple[int, int, int]],
    caption: str,
    unit: str = "",
    at: tuple[Array, Array] | None = None,
) -> str:
    """A field `[rows from south to north, columns]` as PNG with a palette, over a bar of its colours.

    Arguments:
        x: the field; what is missing is grey.
        low, high: ends of the colours.
        scale: the colours, from low to high.
        caption: below.
        unit: of the values, for the bar.
        at: latitudes and longitudes of rows and columns, degrees, which are then written beside it.
    """
    palette = bytes(c for i in range(255) for c in _colour(scale, i / 254)) + bytes((200, 200, 200))
    level = np.clip((x - low) / ((high - low) or 1.0), 0, 1) * 254
    index = np.where(np.isfinite(x), np.nan_to_num(level).round(), 255).astype(np.uint8)[::-1]
    zoom = max(1, round(340 / index.shape[1]))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in index)
    png = b"\x89PNG\r\n\x1a\n"
    png += chunk(b"IHDR", struct.pack(">IIBBBBB", index.shape[1], index.shape[0], 8, 3, 0, 0, 0))
    png += chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    data = base64.b64encode(png).decode()
    words = html.escape(caption)
    size = f'width="{index.shape[1] * zoom}" height="{index.shape[0] * zoom}"'
    image = f'<img {size} alt="{words}" src="data:image/png;base64,{data}">'
    image = f'<div class="map{" placed" if at else ""}">{image}{_degrees(*at) if at else ""}</div>'
    return _figure(image + _bar(low, high, scale, unit), caption)


def _bar(low: float, high: float, scale: Sequence[tuple[int, int, int]], unit: str) -> str:
    """Colours from left to right, with what they mean at both ends and in the middle."""
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in scale)
    ends = [number(low), number((low + high) / 2), f"{number(high)} {html.escape(unit)}".strip()]
    words = "".join(f"<span>{w}</span>" for w in ends)
    return f'<div class="bar" style="background:linear-gradient(to right,{stops})"></div><div class="ends">{words}</div>'


def _degrees(latitude: Array, longitude: Array) -> str:
    """Some round latitudes and longitudes, where they are on a map, from its upper left corner in percent."""
    out = ""
    for kind, places in (("row", latitude), ("column", longitude)):
        if len(places) < 2:
            continue
        step = next(
            (s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 90) if np.ptp(places) / s <= 4.5), 90
        )
        for mark in np.arange(math.ceil(places[0] / step), math.floor(places[-1] / step) + 1) * step:
            share = (np.interp(mark, places, np.arange(len(places))) + 0.5) / len(places)
            degrees = mark if kind == "row" else 180 - (180 - mark) % 360  # above -180, up to 180
            side = "" if degrees in (0, 180) else ("SN" if kind == "row" else "WE")[int(degrees > 0)]
            place = f"top:{100 * (1 - share):.1f}%" if kind == "row" else f"left:{100 * share:.1f}%"
            out += f'<span class="{kind}" style="{place}">{abs(degrees):.4g}° {side}</span>'.replace(
                "° <", "°<"
            )
    return out


def plot(
    title: str,
    x: Any,
    series: dict[str, list[float]],
    *,
    ticks: Sequence[tuple[float, str]] = (),
    low: float | None = None,
    logarithmic: bool = False,
    faint: Array | None = None,
) -> str:
    """Curves over x as SVG; both axes logarithmic if asked for; `faint` are thin curves behind, `[n, points]`."""
    left, right, top, bottom, width, height = 52, 8, 8, 34, 480, 240
    move = np.log10 if logarithmic else np.asarray
    with np.errstate(divide="ignore", invalid="ignore"):
        xs = move(np.asarray(x, dtype=float))
        ys = {k: move(np.asarray(v, dtype=float)) for k, v in series.items()}
        behind = [] if faint is None else [move(v) for v in faint]
    values = np.concatenate([*ys.values(), *behind])
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    y0, y1 = float(values.min()) if low is None else low, float(values.max())
    y1 = y1 if y1 > y0 else y0 + 1
    y1 += 0.05 * (y1 - y0)
    x0, x1 = float(xs.min()), float(xs.max())

    def place(a: float, b: float) -> str:
        across = left + (a - x0) / ((x1 - x0) or 1) * (width - left - right)
        return f"{across:.1f},{height - bottom - (b - y0) / (y1 - y0) * (height - top - bottom):.1f}"

    def curve(y: Any, words: str) -> str:
        points = " ".join(place(a, b) for a, b in zip(xs, y) if math.isfinite(b))
        return f'<polyline points="{points}" fill="none" {words}/>'

    out = [curve(y, f'stroke="{_COLOURS[0]}" stroke-opacity=".25"') for y in behind]
    for i, y in enumerate(ys.values()):
        out.append(curve(y, f'stroke="{_COLOURS[(i + bool(behind)) % 5]}" stroke-width="2"'))
    marks = _marks(y0, y1)
    for m in marks:
        px, py = place(x0, m).split(",")
        word = f"1e{m:.0f}" if logarithmic else f"{m:.4g}"
        out.append(f'<line x1="{px}" x2="{width - right}" y1="{py}" y2="{py}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 5}" y="{float(py) + 4:.1f}" text-anchor="end">{word}</text>')
    if logarithmic:
        ticks = [
            (math.log10(v), str(v)) for v in (1, 2, 5, 10, 20, 50, 100, 200) if x0 <= math.log10(v) <= x1
        ]
    for a, word in ticks[:: max(1, len(ticks) // 8)]:
        px, anchor = place(a, y0).split(",")[0], "end" if a == x1 > x0 else "middle"
        out.append(
            f'<text x="{px}" y="{height - bottom + 15}" text-anchor="{anchor}">{html.escape(word)}</text>'
        )
    for i, name in enumerate(ys):
        at, colour = left + 4 + 130 * i, _COLOURS[(i + bool(behind)) % 5]
        out.append(f'<text x="{at}" y="{height - 4}" fill="{colour}">— {html.escape(name)}</text>')
    inner = f'<svg width="{width}" height="{height}" font-size="11" font-family="system-ui,sans-serif">{"".join(out)}</svg>'
    return _figure(inner, title)


def _marks(low: float, high: float) -> list[float]:
    """Round numbers between two."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(size * k for k in (1, 2, 5, 10) if (high - low) / (size * k) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
