"""`evaluate`: the two protocols with standard errors, as one JSON-serialisable result and as a table.

Standard errors. With `k ≥ 2` groups (seeds) every metric is the mean over the groups and its error the standard
deviation of the groups over `√k`. With one group the error of a proportion is binomial, `√(p (1 − p) / n)`; atoms of
one molecule succeed and fail together, so `atom_stable` takes the error of a ratio of sums over molecules, `√(Σ_m
(s_m − p n_m)²) / Σ_m n_m`.

Uniqueness falls as a set grows and is counted within a group: compare it at equal `n` only. `novel` is the share of
the unique molecules that are not in the reference. QM9 enumerates nearly all molecules of its kind, so a novel one is
often a strained or wrong one: novelty is reported, and is not quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from perrin.errors import PerrinError
from perrin.modalities.molecule.metrics.measures import Measures, measure
from perrin.modalities.molecule.metrics.reference import Reference
from perrin.modalities.molecule.metrics.statistics import Metrics, combine, proportion
from perrin.modalities.molecule.structure import Molecule

PROTOCOLS = ("lookup", "bonds")

TITLES = {
    "lookup": "lookup protocol: bonds from distances (EDM table), validity of the largest fragment",
    "bonds": "bonds protocol: generated bonds and charges, strict valences, no distances",
}

NOTES = {
    "novel": "novelty is not quality: QM9 is a nearly exhaustive enumeration",
    "unique": "uniqueness depends on n: compare at equal n",
}

_METRICS = ("atom_stable", "molecule_stable", "valid")


def _published(name: str, n: str, *values: float) -> dict[str, Any]:
    return {"name": name, "n": n, **dict(zip(_METRICS, values))}


PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "lookup": [
        _published("QM9 data", "10,000 molecules", 0.9940, 0.9545, 0.9772),
        _published("EDM", "1000 evaluations", 0.987, 0.820, 0.919),
        _published("GeoLDM", "1000 evaluations", 0.989, 0.894, 0.938),
        _published("GeoBFN", "2000 evaluations", 0.993, 0.933, 0.969),
        _published("UniGEM+SEINT", "1000 evaluations", 0.993, 0.935, 0.969),
        _published("MolFLAE", "100 evaluations", 0.994, 0.920, 0.968),
        {"name": "Rapidash", "n": "evaluations unknown", "valid": 0.981},
    ],
    "bonds": [
        _published("SemlaFlow (lax valences)", "100 evaluations", 0.999, 0.997, 0.994),
        {"name": "JODO", "n": "1000 evaluations", "valid_connected": 0.990},
    ],
}
"""Published values for QM9. `n` says the network evaluations per molecule, or the molecules of the data."""

Rows = Sequence[Any]


def evaluate(
    molecules: Sequence[Molecule] | Sequence[Sequence[Molecule]],
    protocol: str = "both",
    reference: Collection[str] | None = None,
    groups: int | None = None,
    label: str = "these molecules",
    *,
    measures: Measures | None = None,
    data: Reference | None = None,
    workers: int = 1,
    show: bool = False,
) -> dict[str, Any]:
    """Metrics of a set of molecules.

    Arguments:
        molecules: the molecules, or one sequence of them per seed. In a flat sequence, molecules that all
            carry a property `group` are grouped by it (unless `groups` is given).
        protocol: `lookup`, `bonds` or `both`.
        reference: canonical SMILES of the training set, without stereochemistry (`QM9.smiles()`), for novelty.
        groups: cut a flat sequence into this many consecutive parts of equal size.
        label: name of this set in the table.
        measures: what else to measure (`metrics.measures`), which needs the packages of the extra `evaluate`.
        data: real molecules for those measures.
        workers: processes of one thread each; the numbers do not depend on it.
        show: their progress on standard error.

    Returns:
        `{"n", "groups", "standard_error", "label", "protocols": {name: {"title", "metrics": {metric: {"value",
        "error"}}}}}` with fractions from 0 to 1; `None` where a metric has no denominator. With `measures` also
        `"measures"`, and `"reference"`, the name of the data.

    Raises:
        PerrinError: no molecules, an unknown protocol, or too few molecules for the groups.
    """
    from perrin.modalities.molecule.metrics.bonds import bonds
    from perrin.modalities.molecule.metrics.lookup import lookup

    if protocol not in (*PROTOCOLS, "both"):
        raise PerrinError(f"expected the protocol lookup, bonds or both, given {protocol!r}")
    parts = split_groups(molecules, groups)
    costly = measure(parts, measures, data, workers=workers, show=show) if measures else {}
    judges: dict[str, tuple[Callable[[Sequence[Molecule]], Rows], Callable[[Rows, set[str] | None], Metrics]]]
    judges = {"lookup": (lookup, _lookup_metrics), "bonds": (bonds, _bonds_metrics)}
    known = None if reference is None else set(reference)
    result: dict[str, Any] = {
        "n": sum(map(len, parts)),
        "groups": len(parts),
        "standard_error": f"over {len(parts)} groups" if len(parts) > 1 else "binomial",
        "label": label,
        "protocols": {},
    }
    for name in PROTOCOLS if protocol == "both" else (protocol,):
        judge, summarise = judges[name]
        metrics = combine([summarise(_judged(judge, part, workers), known) for part in parts])
        notes = [NOTES[key] for key in ("unique", "novel") if key in metrics]
        result["protocols"][name] = {"title": TITLES[name], "metrics": metrics, "notes": notes}
    if measures:
        result |= {"measures": costly, "reference": data.name if data else None}
    return result


_CHUNK = 2000
_WORK: dict[str, Any] = {}


def _judged(judge: Callable[[Sequence[Molecule]], Rows], part: Sequence[Molecule], workers: int) -> Rows:
    """The protocol's rows, in several processes where that pays."""
    from perrin.run.pool import map_unordered

    if workers <= 1 or len(part) < 2 * _CHUNK:
        return judge(part)
    starts = range(0, len(part), _CHUNK)
    found = map_unordered(_run, starts, workers=workers, setup=_setup, arguments=(judge, part))
    try:
        rows = dict(found)
    except PerrinError:
        return judge(part)  # says which molecule of the whole part is wrong
    return [row for start in starts for row in rows[start]]


def _setup(judge: Callable[[Sequence[Molecule]], Rows], part: Sequence[Molecule]) -> None:
    _WORK.update(judge=judge, part=part)


def _run(start: int) -> Rows:
    rows: Rows = _WORK["judge"](_WORK["part"][start : start + _CHUNK])
    return rows


def split_groups(molecules: Sequence[Any], groups: int | None = None) -> list[list[Molecule]]:
    """The molecules of each group: see `evaluate`."""
    if not len(molecules):
        raise PerrinError("expected at least one molecule to evaluate, given none")
    if not isinstance(molecules[0], Molecule):
        parts = [list(part) for part in molecules]
    elif groups is not None:
        if not 1 <= groups <= len(molecules):
            raise PerrinError(
                f"expected 1 to {len(molecules)} groups for {len(molecules)} molecules, given {groups}"
            )
        cuts = [len(molecules) * i // groups for i in range(groups + 1)]
        parts = [list(molecules[a:b]) for a, b in zip(cuts, cuts[1:])]  # noqa: RUF007
    else:
        named: dict[Any, list[Molecule]] = {}
        for molecule in molecules:
            named.setdefault(molecule.properties.get("group"), []).append(molecule)
        parts = [list(molecules)] if None in named else list(named.values())
    if not all(parts):
        raise PerrinError("expected at least one molecule in every group, given an empty group")
    return parts


def _atoms(rows: Rows) -> tuple[float | None, float | None]:
    total = sum(row.atoms for row in rows)
    if total == 0:
        return None, None
    p = sum(row.stable_atoms for row in rows) / total
    return p, math.sqrt(sum((row.stable_atoms - p * row.atoms) ** 2 for row in rows)) / total


def _diversity(smiles: Sequence[str], n: int, known: set[str] | None) -> Metrics:
    distinct = set(smiles)
    p = len(distinct) / len(smiles) if smiles else None
    error = math.sqrt(p * (1 - p) / len(smiles)) if p is not None else None
    share = len(distinct) / n
    metrics: Metrics = {"unique": (p, error), "valid_unique": (share, math.sqrt(share * (1 - share) / n))}
    if known is not None:
        metrics["novel"] = proportion([s not in known for s in distinct])
    return metrics


def _lookup_metrics(rows: Rows, known: set[str] | None) -> Metrics:
    smiles = [row.smiles for row in rows if row.smiles is not None]
    return {
        "atom_stable": _atoms(rows),
        "molecule_stable": proportion([row.stable for row in rows]),
        "valid": proportion([row.smiles is not None for row in rows]),
        **_diversity(smiles, len(rows), known),
    }


def _bonds_metrics(rows: Rows, known: set[str] | None) -> Metrics:
    smiles = [row.smiles for row in rows if row.smiles is not None]
    both = [row.valid and row.connected for row in rows]
    return {
        "atom_stable": _atoms(rows),
        "molecule_stable": proportion([row.stable for row in rows]),
        "valid": proportion([row.valid for row in rows]),
        "connected": proportion([row.connected for row in rows]),
        "valid_connected": proportion(both),
        "neutral": proportion([row.neutral for row in rows]),
        "sound": proportion([ok and row.stable and row.neutral for ok, row in zip(both, rows)]),
        **_diversity(smiles, len(rows), known),
    }


def tables(result: Mapping[str, Any], *, published: bool = True) -> list[Any]:
    """A `rich.table.Table` per protocol, in per cent with standard errors and published rows; then one per measure."""
    from rich.table import Table

    built = []
    for protocol, content in result["protocols"].items():
        names = list(content["metrics"])
        caption = f"% ± standard error ({result['standard_error']}). " + ". ".join(content["notes"])
        table = Table(title=content["title"], caption=caption, title_justify="left", caption_justify="left")
        table.add_column("")
        table.add_column("n")
        for name in names:
            table.add_column(name.replace("_", "\n"), justify="right")
        cells = [_percent(**content["metrics"][name]) for name in names]
        table.add_row(result["label"], f"{result['n']:,}", *cells, style="bold")
        for row in PUBLISHED[protocol] if published else ():
            table.add_row(
                f"{row['name']} (published)", row["n"], *(_percent(row.get(name), None) for name in names)
            )
        built.append(table)
    return [*built, *(_measure_table(m, result) for m in result.get("measures", {}).values())]


def _measure_table(content: Mapping[str, Any], result: Mapping[str, Any]) -> Any:
    """One row per metric: this set, and real molecules if they were measured."""
    from rich.table import Table

    table = Table(
        title=content["title"],
        caption=". ".join(content["notes"]),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column(result["label"], justify="right", style="bold")
    if content["floor"]:
        table.add_column(f"real {result['reference']}", justify="right")
    table.add_column("")
    for name, entry in content["metrics"].items():
        sets = [entry, *([content["floor"][name]] if content["floor"] else [])]
        unit = "%" if entry["unit"] == "fraction" else entry["unit"]
        table.add_row(name.replace("_", " "), *map(_measured, sets), unit)
    return table


def _measured(entry: Mapping[str, Any]) -> str:
    value, error = entry["value"], entry["error"]
    if value is None:
        return "–"
    scale, digits = (100, 2) if entry["unit"] == "fraction" else (1, 3 if abs(value) >= 0.1 else 4)
    text = f"{scale * value:.{digits}f}"
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"


def format_table(result: Mapping[str, Any], width: int = 132) -> str:
    """The tables as plain text."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in tables(result):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def _percent(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if error is None else f"{100 * value:.2f}\n±{100 * error:.2f}"
