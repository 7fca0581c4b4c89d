"""Tables of metrics: the generated sample and, beside it, truth against truth at the same number.

All comparisons are made at `m = min(generated, truth / 2)` samples: the generated ones against the first m of the truth,
and the next m of the truth against the same. So the second column is what a perfect model would get.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.metrics.distances import Measured

Array = NDArray[Any]


@dataclass(frozen=True)
class Line:
    """One metric: of the generated sample, and of truth against truth."""

    name: str
    ours: Measured
    floor: Measured
    unit: str = ""


def sizes(generated: int, truth: int) -> int:
    """m; see the module's text.

    Raises:
        PerrinError: there are fewer than 20 of either.
    """
    count = min(generated, truth // 2)
    if count < 20:
        raise PerrinError(
            f"expected at least 20 generated samples and 40 of the truth to compare, given {generated} and {truth}"
        )
    return count


def compared(
    name: str, measure: Callable[[Any, Any], Measured], three: Iterable[Any], unit: str = ""
) -> Line:
    """A metric of what was generated and of the truth again, each against the truth.

    Arguments:
        measure: `(truth, other) → number and error`.
        three: the truth, what was generated, the truth's second part.
    """
    truth, ours, other = three
    return Line(name, measure(truth, ours), measure(truth, other), unit)


def lined(name: str, two: Iterable[Measured], unit: str = "") -> Line:
    """The line of numbers of what was generated and of the truth's second part."""
    ours, floor = two
    return Line(name, ours, floor, unit)


def bootstrapped(measure: Callable[[Array, Array], float], x: Array, y: Array, draws: int = 8) -> Measured:
    """A metric of two samples, and the standard deviation over draws with replacement of both."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        first, second = rng.integers(len(x), size=len(x)), rng.integers(len(y), size=len(y))
        found.append(measure(x[first], y[second]))
    return Measured(measure(x, y), float(np.std(found, ddof=1)))


def to_json(kind: str, count: int, lines: Sequence[Line], **more: Any) -> dict[str, Any]:
    """Plain numbers; NaN as null."""

    def plain(x: float) -> float | None:
        return x if math.isfinite(x) else None

    table = {
        line.name: {
            "value": plain(line.ours.value),
            "error": plain(line.ours.error),
            "truth_value": plain(line.floor.value),
            "truth_error": plain(line.floor.error),
            "unit": line.unit,
        }
        for line in lines
    }
    return {"kind": kind, "samples": count, "metrics": table, **more}


def print_lines(title: str, lines: Sequence[Line], notes: Sequence[str] = ()) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(title=title, title_justify="left")
    for column in ("metric", "generated", "truth vs truth", "unit"):
        table.add_column(column, justify="left" if column in ("metric", "unit") else "right")
    for line in lines:
        table.add_row(line.name, number(line.ours), number(line.floor), line.unit)
    console.print(table)
    for note in notes:
        console.print(note)


def number(m: Measured) -> str:
    """`0.123 ± 0.004`."""
    if not math.isfinite(m.value):
        return "–"
    return f"{m.value:.4g}" + (f" ± {m.error:.1g}" if math.isfinite(m.error) else "")


def table_of(result: Mapping[str, Any]) -> list[Line]:
    """The lines of `to_json`'s answer."""

    def read(x: float | None) -> float:
        return float("nan") if x is None else x

    return [
        Line(
            name,
            Measured(read(m["value"]), read(m["error"])),
            Measured(read(m["truth_value"]), read(m["truth_error"])),
            m["unit"],
        )
        for name, m in result["metrics"].items()
    ]
