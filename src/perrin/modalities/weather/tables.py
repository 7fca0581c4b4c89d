"""Tables that users give: CSV with a header, a line each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from perrin.errors import PerrinError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Arguments:
        cells: by role.
        place: number of the line in the file, which is named, for messages.
        text: the line, not longer than a message should be.
    """

    cells: Mapping[str, str]
    place: str
    text: str

    def numbers(self, *roles: str) -> list[float] | None:
        """Cells as numbers; `None` where one is none, or not finite."""
        try:
            found = [float(self.cells[role]) for role in roles]
        except ValueError:
            return None
        return found if np.isfinite(found).all() else None


def read_table(
    path: str | Path,
    columns: Mapping[str, tuple[str, ...]],
    what: str,
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """The lines of a CSV file, without empty ones; cells that a line lacks are empty.

    Arguments:
        path: of the file.
        columns: names that the column of each role may have, in small letters.
        what: the table is of, in messages.
        defaults: cells of roles that need no column.

    Raises:
        PerrinError: there is no such table, a column is missing, or there are no lines.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = getattr(problem, "strerror", None) or "no text"
        raise PerrinError(
            f"expected a CSV table of {what}, given {path} ({reason}): check the path"
        ) from problem
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    at = {}
    for role, names in columns.items():
        found = [header.index(name) for name in names if name in header]
        if found:
            at[role] = found[0]
        elif role not in defaults:
            *most, last = (r for r in columns if r not in defaults)
            raise PerrinError(
                f"expected the columns {', '.join(most)} and {last} in {path}, given {', '.join(header) or 'none'}: "
                f"rename yours, for {role} is lacking"
            )
    rows = []
    for number, row in lines[1:]:
        cells = {role: row[i].strip() if i < len(row) else "" for role, i in at.items()}
        rows.append(
            Row(cells=dict(defaults) | cells, place=f"line {number} of {path}", text=repr(",".join(row)[:60]))
        )
    if not rows:
        raise PerrinError(f"expected {what} in {path}, given a table without lines")
    return rows


def read_observed(path: str | Path, columns: Mapping[str, tuple[str, ...]], error: float | None) -> list[Row]:
    """Observations, with the role `error`, their standard deviation: of a column, else the same for all.

    Raises:
        PerrinError: see `read_table`; or no error is known, or that for all is not above 0.
    """
    if error is not None and not error > 0:
        raise PerrinError(f"expected --error above 0, given {error}")
    word = "" if error is None else str(error)
    whole = dict(columns) | {"error": ("error", "std", "sigma")}
    rows = read_table(path, whole, "observations", {"error": word})
    if not any(row.cells["error"] for row in rows):
        raise PerrinError(
            f"expected the errors of the observations, given none in {path}: add a column error or --error"
        )
    return rows
