"""Ranked molecules in files: SDF (data items), CSV, Parquet.

CSV and Parquet have one row for each molecule: the columns of the ranking, `name` and the other data items of the
file. A missing value is an absent data item, an empty field, or null. Parquet states the unit of a column in its
field's metadata.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError, install
from perrin.modalities.molecule.files import write_sdf
from perrin.modalities.molecule.ranking.columns import column_of
from perrin.modalities.molecule.structure import Molecule
from perrin.run.atomic import atomic_path, write_text

SUFFIXES = (".sdf", ".csv", ".parquet")


def check_table(path: str | Path) -> None:
    """Raise a `PerrinError` unless a table of this suffix can be written, before any work is done."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise PerrinError(
            f"expected an output file with one of the suffixes {', '.join(SUFFIXES)}, given {path}: change it"
        )
    if Path(path).is_dir():
        raise PerrinError(f"expected an output file, given the directory {path}: add a file name")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise PerrinError(
            f"expected the package pyarrow for {path}, given an environment without it: {install('parquet')}; "
            "or write .csv"
        )


def write_table(path: str | Path, molecules: Sequence[Molecule], columns: Sequence[str]) -> None:
    """Write ranked molecules in the format of the suffix, whole or not at all.

    Arguments:
        path: `.sdf`, `.csv` or `.parquet`.
        molecules: with their columns as properties.
        columns: names that come first, even where no molecule has a value.
    """
    check_table(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".sdf":
        write_sdf(path, molecules)
        return
    names, rows = _rows(molecules, columns)
    if suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([["" if row.get(n) is None else row[n] for n in names] for row in rows])
        write_text(path, buffer.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field(n, _kind(pa, n, rows), metadata=_about(n)) for n in names]
    arrays = [pa.array([_cell(row.get(f.name), f, pa) for row in rows], f.type) for f in fields]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), temporary)


def _rows(molecules: Sequence[Molecule], columns: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    rows = [{"name": m.name} | dict(m.properties) for m in molecules]
    first = list(dict.fromkeys(["name", *columns]))
    rest = sorted({k for row in rows for k in row} - set(first))
    return first + rest, rows


def _kind(pa: Any, name: str, rows: Sequence[dict[str, Any]]) -> Any:
    column = column_of(name)
    if column is not None:
        return {"float": pa.float64(), "int": pa.int64(), "flag": pa.bool_(), "text": pa.string()}[
            column.kind
        ]
    kinds = {type(row[name]) for row in rows if row.get(name) is not None}
    if kinds and kinds <= {int, bool}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def _cell(value: Any, field: Any, pa: Any) -> Any:
    if value is None:
        return None
    if field.type == pa.bool_():
        return bool(value)
    return str(value) if field.type == pa.string() else value


def _about(name: str) -> dict[str, str] | None:
    column = column_of(name)
    return {"meaning": column.meaning, "unit": column.unit} if column else None
