"""Ranking: describe, filter, mark, sort, pick.

In this order, so that what is costly is done for few: RDKit descriptors and identity of all molecules; filters on
them; predictions and GFN2-xTB of what is left, and the filters on those; the sort; `diverse`; `top`. Every number of a
molecule depends on that molecule alone, so the result does not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from perrin.errors import PerrinError
from perrin.modalities.molecule.kept import completed
from perrin.modalities.molecule.metrics.packages import require
from perrin.modalities.molecule.predicted import DEFAULT, MET, Asked, asked, predict, read_name, without
from perrin.modalities.molecule.ranking.columns import (
    CARRIED,
    COLUMNS,
    STRAIN,
    XTB,
    describe,
    prepare,
    sanitized,
)
from perrin.modalities.molecule.ranking.diverse import pick_diverse
from perrin.modalities.molecule.ranking.identity import Keys, Known, duplicates, keys_of
from perrin.modalities.molecule.ranking.wishes import (
    Key,
    Where,
    in_items,
    name_of,
    order,
    parse_keys,
    parse_where,
)
from perrin.modalities.molecule.ranking.xtb import single_point, strain
from perrin.modalities.molecule.structure import Molecule
from perrin.run.pool import map_unordered

_WORK: dict[str, Any] = {}
_OWN = ("rank", "pick", "duplicate_of")
_XTB = {c.name for c in XTB}
CHUNK = 16
FEW = 200
"""Up to this many molecules, what takes milliseconds for each is done before processes have started."""


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """What is asked.

    Arguments:
        by: sort keys, see `wishes.parse_keys`.
        where: filters, all of which must hold, see `wishes.parse_where`.
        duplicates, known: `mark` (a column) or `drop`.
        predict: the bundle of a property network, whose predictions are added after the other filters; the one that ships if
            a key or filter names a prediction that the file does not have. Named here, it predicts again what the file has.
        xtb: compute the columns `XTB` of all that pass the other filters, even if no key or filter names one.
        diverse: keep this many, picked by MaxMin from the best one on.
        top: keep this many of the best.
        workers: processes of one thread each.
    """

    by: str = "qed,-sa"
    where: tuple[str, ...] = ()
    duplicates: str = "mark"
    known: str = "mark"
    predict: str = ""
    xtb: bool = False
    diverse: int | None = None
    top: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("diverse", "top", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PerrinError(f"expected --{name} of at least 1, given {value}")
        for name in ("duplicates", "known"):
            if getattr(self, name) not in ("mark", "drop"):
                raise PerrinError(f"expected --{name} mark or drop, given {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Molecules from best to worst, with their columns as properties, and what happened to the others.

    Arguments:
        molecules: the properties are `rank` (from 1), the columns, and the data items of the file.
        keys: what they were sorted by.
        columns: names of the columns that were added.
        counts: how many were read, are invalid, duplicate, known, left by each filter, and kept.
        predicted: by which network and in which units, if by any.
        strange: one line on molecules that it has nothing to say of.
        added: how many hydrogens were added to molecules that write none, or none on carbon, and to how many molecules.
        flat: how many are drawings, without what needs a geometry.
    """

    molecules: tuple[Molecule, ...]
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    counts: dict[str, int]
    predicted: Asked | None = None
    strange: str = ""
    added: tuple[int, int] = (0, 0)
    flat: int = 0


def understood(
    options: RankOptions, molecules: Sequence[Molecule]
) -> tuple[tuple[Key, ...], list[Where], Asked | None]:
    """Sort keys, filters and predictions that are asked for.

    Raises:
        PerrinError: one of them cannot be understood.
    """
    items = {k for m in molecules for k, v in m.properties.items() if isinstance(v, int | float)} - {*_OWN}
    words = [(word.strip().lstrip("+-"), "") for word in options.by.split(",")]
    words += [name_of(text) for text in options.where]
    if MET not in items and any(word.lower() == MET for word, _ in words):
        wanted = any("wanted" in m.properties for m in molecules)
        why = (
            "the property network has not learnt from such molecules, or not from such a wish"
            if wanted
            else "it is of molecules that perrin sample, edit or vary made with --want"
        )
        raise PerrinError(f"expected a file with {MET}, given one without: {why}; leave {MET} out")
    predictions = None
    if options.predict or any(read_name(word) and not in_items(word, items) for word, _ in words):
        predictions = asked(options.predict or DEFAULT, items, words, again=bool(options.predict))
        if predictions.again:
            items = {item for item in items if (read_name(item) or ("",))[0] not in predictions.units}
        items |= set(predictions.items.values())
    return parse_keys(options.by, items), [parse_where(text, items) for text in options.where], predictions


def rank(
    molecules: Sequence[Molecule],
    options: RankOptions | None = None,
    *,
    known: Known | None = None,
    numbers: Sequence[int] | None = None,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Ranked:
    """Rank molecules.

    Arguments:
        molecules: with bonds; those that leave hydrogens out get them (`kept.completed`), and have them in the result.
            Drawings (`Molecule.flat`) get no predictions and no xTB.
        options: what is asked.
        known: molecules to flag, from `identity.read_known`.
        numbers: of each molecule in its file, from 1; its place, if `None`.
        advance: called with the stage, how many are done and of how many.

    Raises:
        PerrinError: a molecule has no bonds, a wish cannot be understood, xTB is asked for and `tblite` is missing, or what
            needs a geometry is asked for and no molecule has one.
    """
    options = options or RankOptions()
    numbers = numbers or range(1, len(molecules) + 1)
    bare = next((i for i, m in zip(numbers, molecules, strict=True) if m.bonds is None), None)
    if bare is not None:
        raise PerrinError(
            f"expected molecules with bonds, given molecule {bare} without (an XYZ file has none): give an SDF or SMILES"
        )
    keys, wheres, predictions = understood(options, molecules)
    named = {key.name for key in keys} | {where.name for where in wheres}
    if options.known == "drop" and known is None:
        raise PerrinError(
            "expected --reference with --known drop, given none: name the molecules that are known"
        )
    if "known" in named and known is None:
        raise PerrinError("expected --reference with the property known, given none: name the molecules")
    predicted = set(predictions.items.values()) if predictions else set()
    costly = [w for w in wheres if w.name in (*_XTB, STRAIN.name, *predicted)]
    wants_xtb, wants_strain = options.xtb or bool(named & _XTB), STRAIN.name in named
    has = {name for m in molecules for name in m.properties}
    solid = [name for name in (*_XTB, STRAIN.name) if name in named]
    solid += ["GFN2-xTB"] if options.xtb and not solid else []
    solid += [name for name in sorted(predicted) if name in named and (name not in has or options.predict)]
    solid += ["predictions"] if options.predict and not solid else []
    if solid and molecules and all(m.flat for m in molecules):
        raise PerrinError(
            f"expected 3D coordinates for {', '.join(solid)}, given flat ones in every molecule: make some by perrin "
            "conformers, or ask for what needs none"
        )
    if wants_xtb or wants_strain:
        require("tblite", "GFN2-xTB")

    prepare()
    whole = [completed(m) for m in molecules]
    molecules, missing = [m for m, _ in whole], [count for _, count in whole]
    rows: list[dict[str, Any]] = []
    found: list[Keys] = []
    parts = _spread(_describe, molecules, options.workers, lambda n: advance("describing", n, len(molecules)))
    for molecule, (values, pair) in zip(molecules, parts, strict=True):
        rows.append({k: v for k, v in molecule.properties.items() if not _renewed(k, predictions)} | values)
        found.append(pair)
    first = duplicates(found)
    for row, pair, origin in zip(rows, found, first, strict=True):
        row["duplicate"] = int(origin is not None)
        if origin is not None:
            row["duplicate_of"] = numbers[origin]
        if known is not None:
            row["known"] = int(pair in known)

    counts = {"read": len(rows), "invalid": sum(not r["valid"] for r in rows)}
    counts["duplicates"] = sum(r["duplicate"] for r in rows)
    if known is not None:
        counts["known"] = sum(r["known"] for r in rows)
    left = [
        i
        for i, row in enumerate(rows)
        if not (options.duplicates == "drop" and row["duplicate"])
        and not (options.known == "drop" and row.get("known"))
    ]
    for where in wheres:
        if where not in costly:
            left = [i for i in left if where(rows[i])]
            counts[where.text] = len(left)
    strange = ""
    if predictions is not None:
        chosen = [
            i for i in left if rows[i]["valid"] and not predicted <= set(rows[i]) and not molecules[i].flat
        ]
        strange = (
            _predict(predictions, molecules, rows, chosen, numbers, advance, options.workers)
            if chosen
            else ""
        )
        for where in [w for w in costly if w.name in predicted]:
            left = [i for i in left if where(rows[i])]
            counts[where.text] = len(left)
    for wanted, work, stage in (
        (wants_xtb, _single_point, "GFN2-xTB"),
        (wants_strain, _strain, "relaxing"),
    ):
        if not wanted:
            continue
        chosen = [i for i in left if rows[i]["valid"] and not molecules[i].flat]
        total = len(chosen)
        results = _spread(
            work,
            [molecules[i] for i in chosen],
            options.workers,
            lambda n, s=stage, t=total: advance(s, n, t),  # type: ignore[misc]
        )
        for i, more in zip(chosen, results, strict=True):
            rows[i] |= more
        stage_names = _XTB if work is _single_point else {STRAIN.name}
        for where in [w for w in costly if w.name in stage_names]:
            left = [i for i in left if where(rows[i])]
            counts[where.text] = len(left)
    left = [left[i] for i in order([rows[i] for i in left], keys)]
    for place, i in enumerate(left, 1):
        rows[i]["rank"] = place
    if options.diverse is not None:
        pairs = [(i, mol) for i in left if (mol := sanitized(molecules[i])) is not None]
        picked = [pairs[k][0] for k in pick_diverse([mol for _, mol in pairs], options.diverse)]
        for place, i in enumerate(picked, 1):
            rows[i]["pick"] = place
        left = [i for i in left if i in set(picked)]
    left = left[: options.top]
    counts["kept"] = len(left)
    columns = [
        name
        for name in ("rank", "pick", *COLUMNS, "duplicate_of")
        if any(name in rows[i] for i in left) or name in named
    ]
    columns += sorted(predicted) if predictions else []
    return Ranked(
        molecules=tuple(
            dataclasses.replace(molecules[i], properties=_sorted(rows[i], columns)) for i in left
        ),
        keys=keys,
        columns=tuple(columns),
        counts=counts,
        predicted=predictions,
        strange=strange,
        added=(sum(missing), sum(count > 0 for count in missing)),
        flat=sum(m.flat for m in molecules),
    )


def _renewed(item: str, predictions: Asked | None) -> bool:
    """Whether a data item of the file is computed again."""
    if predictions is not None and (pair := read_name(item)) is not None:
        return predictions.again and pair[0] in predictions.units
    return item in _OWN or (item in COLUMNS and COLUMNS[item] not in CARRIED)


def _predict(
    predictions: Asked,
    molecules: Sequence[Molecule],
    rows: Sequence[dict[str, Any]],
    chosen: Sequence[int],
    numbers: Sequence[int],
    advance: Callable[[str, int, int], None],
    workers: int,
) -> str:
    """Add predictions to the rows of the chosen molecules; one line on those that get none."""
    from perrin.modalities.molecule.candidates import load_guide

    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        advance("predicting", done, len(chosen))

    network = load_guide(predictions.reference, device="cpu")
    few = len(chosen) <= FEW
    found = predict(
        network, [molecules[i] for i in chosen], predictions.units, workers=1 if few else workers, told=told
    )
    for i, items in zip(chosen, found.items, strict=True):
        rows[i] |= {name: value for name, value in items.items() if name not in rows[i]}
    return without(found.strange, [numbers[i] for i in chosen])


def describe_all(molecules: Sequence[Molecule], workers: int = 1) -> list[dict[str, Any]]:
    """`columns.describe` of every molecule, in order."""
    if molecules:
        prepare()
    return [values for values, _ in _spread(_describe, molecules, workers, lambda n: None)]


def _sorted(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {k: row[k] for k in columns if k in row} | {k: v for k, v in row.items() if k not in columns}


def _spread(
    work: Callable[[range], list[Any]],
    molecules: Sequence[Molecule],
    workers: int,
    told: Callable[[int], None],
) -> list[Any]:
    """`work` of every molecule, in order, spread over processes in chunks."""
    chunks = [range(i, min(i + CHUNK, len(molecules))) for i in range(0, len(molecules), CHUNK)]
    results: list[Any] = [None] * len(molecules)
    done = 0
    for chunk, values in map_unordered(
        work,
        chunks,
        workers=1 if work is not _strain and len(molecules) <= FEW else workers,
        setup=_setup,
        arguments=(list(molecules),),
    ):
        results[chunk.start : chunk.stop] = values
        done += len(chunk)
        told(done)
    return results


def _setup(molecules: list[Molecule]) -> None:
    _WORK.update(molecules=molecules)


def _describe(chunk: range) -> list[tuple[dict[str, Any], Keys]]:
    return [(describe(m), keys_of(sanitized(m))) for m in (_WORK["molecules"][i] for i in chunk)]


def _single_point(chunk: range) -> list[dict[str, Any]]:
    return [single_point(_WORK["molecules"][i]) for i in chunk]


def _strain(chunk: range) -> list[dict[str, Any]]:
    return [strain(_WORK["molecules"][i]) for i in chunk]
