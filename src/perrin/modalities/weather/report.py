"""The tables that `perrin verify` prints. Standard errors are in units of the last digit: 0.559(17) is 0.559 ± 0.017."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_MAIN = {"crps": "CRPS", "rmse": "RMSE", "spread": "spread", "ssr": "SSR", "bias": "bias", "acc": "ACC"}
_MORE = {"crps_biased": "biased CRPS", "mae": "MAE", "energy": "energy", "log_spectrum_error": "log S"}
_EVENT = {
    "rate": "rate",
    "brier_fair": "fair Brier",
    "brier": "Brier",
    "brier_skill": "skill",
    "csi": "CSI",
    "frequency_bias": "freq. bias",
    "twcrps": "twCRPS",
}


def print_report(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what `verify` returned: for each variable its scores, then those of references and events."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    members = result["members"]
    kind = f"{members} members, fair CRPS" if members > 1 else "one member, CRPS = absolute error"
    for name, variable in result["variables"].items():
        title = name + (f" ({variable['units']})" if variable["units"] else "")
        leads = variable["leads"]
        for heads, text in ((_MAIN, f"{title}: {kind}"), (_MORE, f"{title}: more scores")):
            shown = {k: v for k, v in heads.items() if any(_cell(lead["scores"].get(k)) for lead in leads)}
            rows = [
                [
                    lead["lead"],
                    str(lead["initial_times"]),
                    *(_cell(_rounded(lead["scores"], k)) for k in shown),
                ]
                for lead in leads
            ]
            _print(console, text, ["lead", "n", *shown.values()], rows)
        rows = [
            [
                lead["lead"],
                reference,
                *(_cell(found[t][k]) for t in ("scores", "skill") for k in ("crps", "rmse")),
            ]
            for lead in leads
            for reference, found in lead["references"].items()
        ]
        _print(
            console,
            f"{title}: against",
            ["lead", "reference", "CRPS", "RMSE", "CRPS skill", "RMSE skill"],
            rows,
        )
        rows = [
            [lead["lead"], _limit(event), *(_cell(event["scores"][k]) for k in _EVENT)]
            for lead in leads
            for event in lead["events"]
        ]
        _print(console, f"{title}: events", ["lead", "above", *_EVENT.values()], rows)


def _print(console: Console, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print(table)


def _limit(event: dict[str, Any]) -> str:
    return f"{event['threshold']:g}" if "threshold" in event else f"q{event['quantile']:g}"


def _rounded(scores: dict[str, Any], name: str) -> dict[str, float | None] | None:
    """A score; a bias that is nothing but rounding beside the error is 0."""
    found: dict[str, float | None] | None = scores.get(name)
    size = (scores.get("rmse") or {}).get("value")
    if name != "bias" or not found or not size or found["value"] is None:
        return found
    if max(abs(found["value"]), found["error"] or 0.0) < 1e-6 * size:
        return {"value": 0.0, "error": None}
    return found


def _cell(score: dict[str, float | None] | None) -> str:
    """A value with two digits of its standard error; empty where there is no value."""
    if score is None or score["value"] is None:
        return ""
    value, error = score["value"], score["error"]
    if not error or abs(error) < 1e-9 * abs(value):  # nothing but rounding
        return f"{value:.4g}"
    digits = 1 - math.floor(math.log10(error))
    power = math.floor(math.log10(max(abs(value), error)))
    if power < -4:  # 1.23(45)e-07
        return f"{value / 10.0**power:.{digits + power}f}({round(error * 10**digits)})e{power:03d}"
    if digits > 0:
        return f"{value:.{digits}f}({round(error * 10**digits)})"
    return f"{value:.0f}({error:.0f})"
