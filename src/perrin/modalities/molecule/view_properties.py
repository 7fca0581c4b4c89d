"""The properties of a page: which columns its table has, and histograms beside a reference.

A histogram has bins of equal width over the molecules and the reference together (one for each whole number where the
values are whole). The page counts the molecules that are shown; of the reference it holds only the shares of the bins and
the median: 2,000 molecules of it, drawn at random by a fixed seed, or all where there are fewer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import rdBase

from perrin.errors import PerrinError
from perrin.modalities.molecule.predicted import MET, read_name
from perrin.modalities.molecule.qm9_cache import cache_dir
from perrin.modalities.molecule.ranking.columns import COLUMNS, DESCRIPTORS, column_of, descriptors, prepare
from perrin.modalities.molecule.ranking.identity import parse, reference_texts
from perrin.modalities.molecule.ranking.rank import describe_all
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.units import convert
from perrin.run.atomic import write_json
from perrin.run.pool import map_unordered

DRAWN = 2000
"""Molecules of the reference."""
BINS = 24
SHOWN, MOST = 5, 8
"""Columns of the table: as a rule, and where predictions ask for more."""
USUAL = ("QED", "SA", "logP", "TPSA", "MW")
_PLAIN = {"index", "seed", "rank", "pick", "duplicate_of"}
"""Numbers that count or name a molecule: no histogram."""

_WORK: dict[str, Any] = {}


def with_properties(molecules: Sequence[Molecule], workers: int = 1) -> list[Molecule]:
    """The molecules with RDKit's descriptors as further properties; what the file says stays as it is."""
    names = {c.name for c in DESCRIPTORS}
    bare = [
        i for i, m in enumerate(molecules) if not names <= set(m.properties)
    ]  # others come from a ranking
    out = list(molecules)
    for i, values in zip(bare, describe_all([molecules[i] for i in bare], workers), strict=True):
        values = {k: v for k, v in values.items() if k not in ("valid", "smiles") and v != ""}
        out[i] = dataclasses.replace(out[i], properties={**values, **out[i].properties})
    return out


def page_properties(
    molecules: Sequence[Molecule],
    *,
    reference: str | None = None,
    first: Sequence[str] = (),
    workers: int = 1,
) -> dict[str, Any]:
    """What the page knows about properties, JSON-safe.

    Arguments:
        molecules: with their properties.
        reference: `qm9`, or a file, see `ranking.identity.read_known`.
        first: columns to show before the usual ones.

    Returns:
        `columns`: name, unit and meaning of each property with numbers; `shown`: names of the columns of the table;
        `histograms`: name, low, high, bins, and of the reference `shares` and `median`; `reference`: its name and count.

    Raises:
        PerrinError: the reference cannot be read.
    """
    values: dict[str, list[float]] = {}
    for molecule in molecules:
        for name, value in molecule.properties.items():
            if isinstance(value, int | float | np.number) and math.isfinite(value):
                values.setdefault(str(name), []).append(float(value))
    known = [name for name in COLUMNS if name in values]
    names = known + sorted(set(values) - set(known))
    label, others = reference_values(reference, workers) if reference and values else ("", {})
    columns = [
        {
            "name": n,
            "unit": column.unit if column and not read_name(n) else "",  # the name of a prediction has it
            "meaning": column.meaning if column else "",
        }
        for n in names
        for column in [column_of(n)]
    ]
    first = list(dict.fromkeys([*first, *predictions_first(molecules, names)]))
    usual = [n for n in USUAL if n in values]
    shown = list(dict.fromkeys([*(n for n in first if n in values), *usual]))
    shown = shown[: max(SHOWN, min(len(first), MOST))]
    if reference == "qm9" and others:
        others = {**others, **qm9_values([n for n in names if read_name(n)])}
    drawn = [
        n for n in names if n not in _PLAIN and (n not in COLUMNS or COLUMNS[n].kind in ("float", "int"))
    ]
    histograms = [h for n in drawn if (h := _histogram(n, values[n], others.get(n)))]
    count = len(next(iter(others.values()), []))
    return {
        "columns": columns,
        "shown": shown,
        "histograms": histograms,
        "reference": {"name": label, "count": count} if count else None,
    }


def predictions_first(molecules: Sequence[Molecule], names: Sequence[str]) -> list[str]:
    """Predictions to show at once: of what was wished for, if anything was, and whether the wishes are met."""
    wanted = {
        wish.split()[0]
        for text in {str(m.properties.get("wanted", "")) for m in molecules}
        for wish in re.split(r"; | and ", text)
        if wish.strip()
    }
    found = [n for n in names if (pair := read_name(n)) and (not wanted or pair[0] in wanted)]
    return found + [n for n in names if n == MET]


def qm9_values(items: Sequence[str]) -> dict[str, list[float]]:
    """What QM9's calculations say of the same molecules as `reference_values`, under the names of predictions."""
    from perrin.modalities.molecule.qm9 import load_qm9

    pairs = {item: pair for item in items if (pair := read_name(item)) is not None}
    if not pairs:
        return {}
    data = load_qm9()
    rows = data.split()["train"]
    chosen = rows[np.random.default_rng(0).permutation(len(rows))[:DRAWN].tolist()]
    return {
        item: [convert(v, data.units[name], unit, name) for v in data.property(name)[chosen].tolist()]
        for item, (name, unit) in pairs.items()
        if name in data.property_names
    }


def reference_values(reference: str, workers: int = 1) -> tuple[str, dict[str, list[float]]]:
    """A name for a reference, and the descriptors of `DRAWN` of its molecules.

    Raises:
        PerrinError: it cannot be read.
    """
    if reference == "qm9":
        label = "QM9, training split"
        kept = cache_dir() / f"descriptors-{DRAWN}-rdkit-{rdBase.rdkitVersion}.json"
        if (values := _read(kept)) is not None:
            return label, values
        from perrin.modalities.molecule.qm9 import load_qm9

        data = load_qm9()
        rows = data.split()["train"]
        chosen = np.random.default_rng(0).permutation(len(rows))[:DRAWN].tolist()
        texts, kind = data.subset(rows[chosen]).smiles(), "smiles"
    else:
        texts, kind = reference_texts(reference)
        chosen = np.random.default_rng(0).permutation(len(texts))[:DRAWN].tolist()
        label, texts = Path(reference).name, [texts[i] for i in chosen]
    prepare()
    found: list[dict[str, Any] | None] = [None] * len(texts)
    chunks = [range(i, min(i + 100, len(texts))) for i in range(0, len(texts), 100)]
    for chunk, part in map_unordered(
        _describe_part, chunks, workers=workers, setup=_setup, arguments=(texts, kind)
    ):
        found[chunk.start : chunk.stop] = part
    good = [values for values in found if values is not None]
    out = {c.name: [float(v[c.name]) for v in good] for c in DESCRIPTORS} if good else {}
    if reference == "qm9":
        with suppress(PerrinError):  # a cache that cannot be written is none
            write_json(kept, out)
    return label, out


def _read(path: Path) -> dict[str, list[float]] | None:
    """Cached descriptors, unless the file is missing, damaged or of another set of columns."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        good = set(values) == {c.name for c in DESCRIPTORS} and all(len(v) == DRAWN for v in values.values())
        return {k: [float(x) for x in v] for k, v in values.items()} if good else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _histogram(name: str, values: list[float], others: list[float] | None) -> dict[str, Any] | None:
    both = values + (others or [])
    low, high = min(both), max(both)
    if low == high:
        return None
    if all(v == int(v) for v in both) and high - low <= 40:
        low, high, bins = low - 0.5, high + 0.5, int(high - low) + 1
    else:
        bins = BINS
    out: dict[str, Any] = {"name": name, "low": low, "high": high, "bins": bins}
    if others:
        counts, _ = np.histogram(others, bins=bins, range=(low, high))
        out["shares"] = [round(float(c), 5) for c in counts / len(others)]
        out["median"] = float(np.median(others))
    return out


def _setup(texts: list[str], kind: str) -> None:
    _WORK.update(texts=texts, kind=kind)


def _describe_part(chunk: range) -> list[dict[str, Any] | None]:
    mols = [parse(_WORK["texts"][i], _WORK["kind"]) for i in chunk]
    return [None if mol is None else descriptors(mol) for mol in mols]
