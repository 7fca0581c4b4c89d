"""The costlier measures, each as one JSON-serialisable result beside the two protocols.

`relax` (GFN2-xTB), `posebusters`, `fcd`, `geometry` and `composition`: see the modules of these names for what they
are. Each result holds

    title, settings, notes, details, metrics {name: {value, error, unit}},
    and floor: the same metrics of real molecules, or None.

Groups (seeds) are measured one by one; the value is their mean and the error its standard error. With one group the
error is that of the statistic itself where it has one (a share, a median), else `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from perrin.errors import PerrinError, counted
from perrin.modalities.molecule.metrics.reference import Reference
from perrin.modalities.molecule.metrics.relax import RelaxOptions
from perrin.modalities.molecule.metrics.statistics import Metrics, combine
from perrin.modalities.molecule.structure import Molecule

UNITS = {
    "energy_drop": "kcal/mol", "mean_energy_drop": "kcal/mol", "rmsd": "Å", "rmsd_heavy": "Å", "mean_rmsd": "Å",
    "fcd": "", "bond_length": "Å", "bond_length_by_order": "Å", "angle": "°", "angle_by_element": "°", "dihedral": "°",
    "atoms_per_molecule": "atoms", "rings_per_molecule": "rings",
}  # fmt: skip
"""Units of the metrics; one that is not here is a fraction, 0 to 1."""

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to measure.

    Arguments:
        relax: how to relax molecules of each group; `None` for not at all.
        posebusters: how many molecules of each group PoseBusters looks at, at random; 0 for all, `None` for none.
        fcd: the Fréchet ChemNet distance.
        geometry: distributions of lengths, angles and dihedrals, and the composition.
        floor: also measure real molecules.
        seed: of the draws.
    """

    relax: RelaxOptions | None = None
    posebusters: int | None = None
    fcd: bool = False
    geometry: bool = False
    floor: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.posebusters is not None and self.posebusters < 0:
            raise PerrinError(
                f"expected a number of molecules for PoseBusters, 0 for all, given {self.posebusters}"
            )

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.relax or self.posebusters is not None or self.fcd or self.geometry)

    @property
    def needs_reference(self) -> bool:
        """Whether real molecules are needed."""
        return self.fcd or self.geometry or (self.floor and self.any)


def measure(
    parts: Sequence[Sequence[Molecule]],
    options: Measures,
    reference: Reference | None = None,
    *,
    workers: int = 1,
    show: bool = False,
) -> dict[str, Any]:
    """Take the measures.

    Arguments:
        parts: the molecules of each group.
        options: which.
        reference: real molecules.
        workers: processes, of one thread each; the numbers do not depend on it.
        show: progress on standard error.

    Raises:
        PerrinError: a package is missing, or molecules have no bonds (`None`) where they are needed.
    """
    if options.needs_reference and reference is None:
        raise PerrinError("expected reference data for these measures, given none: name some, such as qm9")
    if (options.posebusters is not None or options.fcd or options.geometry) and any(
        m.bonds is None for part in parts for m in part
    ):
        raise PerrinError(
            "expected bonds for PoseBusters, FCD and geometry, given molecules without (an XYZ file has none): give an SDF"
        )
    _check_packages(options)
    size = max(map(len, parts))
    results: dict[str, Any] = {}
    if options.relax:
        results["relax"] = _relax(parts, options, reference, workers, show)
    if options.posebusters is not None:
        results["posebusters"] = _posebusters(parts, options, reference, workers, show)
    if options.fcd and reference:
        results["fcd"] = _fcd(parts, options, reference, workers, show)
    if options.geometry and reference:
        floor = reference.floor(size, options.seed) if options.floor else None
        results["geometry"] = _geometry(parts, reference, floor)
        results["composition"] = _composition(parts, reference, floor)
    return results


def _check_packages(options: Measures) -> None:
    """Say what is missing before the work starts."""
    from perrin.modalities.molecule.metrics.packages import require

    for wanted, package in (
        (options.relax is not None, "tblite"),
        (options.posebusters is not None, "posebusters"),
        (options.fcd, "fcd"),
    ):
        if wanted:
            require(package, "this measure")


def _relax(
    parts: Sequence[Sequence[Molecule]],
    options: Measures,
    reference: Reference | None,
    workers: int,
    show: bool,
) -> dict[str, Any]:
    from perrin.modalities.molecule.metrics.relax import relax, relax_metrics, settings

    assert options.relax is not None
    groups, examined, eligible = [], 0, 0
    for part in parts:
        chosen, looked_at = _eligible(part, options.relax)
        groups.append(chosen)
        examined, eligible = examined + looked_at, eligible + len(chosen)
    if not all(groups):
        raise PerrinError("expected molecules that are valid and connected to relax, given none")
    flat = [molecule for group in groups for molecule in group]
    with _progress("relaxing", len(flat), show) as advance:
        found = iter(relax(flat, options.relax, workers=workers, advance=advance))
    results = [[next(found) for _ in group] for group in groups]
    floor = None
    if options.floor and reference:
        real, _ = _eligible(reference.test, options.relax)
        with _progress(f"relaxing {reference.name}", len(real), show) as advance:
            floor = relax_metrics(relax(real, options.relax, workers=workers, advance=advance))
    reasons: dict[str, int] = {}
    for result in (r for group in results for r in group if r.failure):
        reasons[result.failure] = reasons.get(result.failure, 0) + 1
    count = counted(len(flat), "molecules") + (f" in {len(parts)} groups" if len(parts) > 1 else "")
    return _result(
        f"GFN2-xTB relaxation of {count}: BFGS to {options.relax.fmax} eV/Å",
        [relax_metrics(group) for group in results],
        floor,
        settings=settings(options.relax),
        details={"examined": examined, "eligible": eligible, "failures": reasons},
        notes=[
            "medians; failures stand in them as the worst",
            f"drawn from the valid and connected ({eligible} of {examined} examined)",
            *(
                [f"failures: {', '.join(f'{n} × {reason}' for reason, n in reasons.items())}"]
                if reasons
                else []
            ),
        ],
    )


def _eligible(molecules: Sequence[Molecule], options: RelaxOptions) -> tuple[list[Molecule], int]:
    """The first `count` valid and connected molecules of a random order, and how many were looked at for them."""
    from perrin.modalities.molecule.metrics.bonds import bonds

    chosen: list[Molecule] = []
    examined = 0
    for i in np.random.default_rng(options.seed).permutation(len(molecules)).tolist():
        if len(chosen) == options.count:
            break
        molecule = molecules[i]
        examined += 1
        if molecule.bonds is None or bonds([molecule])[0].smiles is not None:
            chosen.append(molecule)
    return chosen, examined


def _posebusters(
    parts: Sequence[Sequence[Molecule]],
    options: Measures,
    reference: Reference | None,
    workers: int,
    show: bool,
) -> dict[str, Any]:
    from perrin.modalities.molecule.metrics.packages import require
    from perrin.modalities.molecule.metrics.posebusters import CONFIG, bust, bust_metrics

    chosen = [_drawn(part, options.posebusters or len(part), options.seed) for part in parts]
    flat = [molecule for part in chosen for molecule in part]
    with _progress("PoseBusters", len(flat), show) as advance:
        names, passed = bust(flat, workers=workers, advance=advance)
    cuts = np.cumsum([len(part) for part in chosen])[:-1]
    floor = None
    if options.floor and reference:
        real = _drawn(reference.test, min(1000, max(map(len, chosen))), options.seed)
        with _progress(f"PoseBusters of {reference.name}", len(real), show) as advance:
            floor = bust_metrics(*bust(real, workers=workers, advance=advance))
    version = require("posebusters", "the plausibility checks")
    return _result(
        f"PoseBusters {version}, {CONFIG}, {len(flat)} molecules: share that passes",
        [bust_metrics(names, rows) for rows in np.split(passed, cuts)],
        floor,
        settings={"config": CONFIG, "posebusters": version, "checks": list(names), "seed": options.seed},
        notes=[
            "all: every check made and passed; the others: among the molecules for which the check could be made"
        ],
    )


def _drawn(molecules: Sequence[Molecule], count: int, seed: int) -> list[Molecule]:
    if count >= len(molecules):
        return list(molecules)
    return [
        molecules[i] for i in sorted(np.random.default_rng(seed).permutation(len(molecules))[:count].tolist())
    ]


def _fcd(
    parts: Sequence[Sequence[Molecule]], options: Measures, reference: Reference, workers: int, show: bool
) -> dict[str, Any]:
    from perrin.modalities.molecule.metrics.fcd import fcd_smiles, frechet, statistics
    from perrin.modalities.molecule.metrics.packages import require

    def moments(smiles: Sequence[str], what: str, keep: bool = False) -> Any:
        with _progress(f"ChemNet of {what}", len(smiles), show) as advance:
            return statistics(
                smiles, workers=workers, advance=advance, cache=reference.cache if keep else None
            )

    real = moments(sorted(set(reference.smiles)), f"{reference.name}'s test split", keep=True)
    sets = [fcd_smiles(part) for part in parts]
    floor: Metrics | None = None
    if options.floor:
        others = fcd_smiles(reference.floor(max(map(len, parts)), options.seed))
        floor = {"fcd": (frechet(moments(others, "real molecules", keep=True), real), None)}
    counts = ", ".join(str(len(smiles)) for smiles in sets)
    return _result(
        f"Fréchet ChemNet distance to {reference.name}'s test split, protocol of JODO",
        [{"fcd": (frechet(moments(smiles, "the molecules"), real), None)} for smiles in sets],
        floor,
        settings={
            "fcd": require("fcd", "the Fréchet ChemNet distance"),
            "reference": len(set(reference.smiles)),
        },
        details={"different_smiles": [len(smiles) for smiles in sets]},
        notes=[
            f"{counts} different SMILES against {len(set(reference.smiles))}",
            "biased upwards for small sets: compare at equal n",
        ],
    )


def _geometry(
    parts: Sequence[Sequence[Molecule]], reference: Reference, floor: Sequence[Molecule] | None
) -> dict[str, Any]:
    from perrin.modalities.molecule.metrics.geometry import Geometry, geometry_metrics

    real = Geometry(reference.test)
    found = [geometry_metrics(Geometry(part), real) for part in parts]
    notes = ["mean over types by their share in the reference"]
    for name, content in found[0][1].items():
        worst = sorted(content["types"].items(), key=lambda item: -item[1]["share"] * item[1]["w1"])[:3]
        if worst:
            notes.append(f"{name} most of all " + ", ".join(f"{kind} {row['w1']:.3g}" for kind, row in worst))
    return _result(
        f"Wasserstein distances of lengths and angles to {reference.name}'s test split",
        [metrics for metrics, _ in found],
        geometry_metrics(Geometry(floor), real)[0] if floor is not None else None,
        settings={"reference": len(reference.test)},
        details={"groups": [details for _, details in found]},
        notes=notes,
    )


def _composition(
    parts: Sequence[Sequence[Molecule]], reference: Reference, floor: Sequence[Molecule] | None
) -> dict[str, Any]:
    from perrin.modalities.molecule.metrics.composition import Composition, composition_metrics

    real = Composition(reference.test)
    return _result(
        f"Composition: distances to {reference.name}'s test split",
        [composition_metrics(Composition(part), real) for part in parts],
        composition_metrics(Composition(floor), real) if floor is not None else None,
        settings={"reference": len(reference.test)},
        notes=["total variation; Wasserstein distance for numbers per molecule"],
    )


def _result(
    title: str,
    parts: Sequence[Metrics],
    floor: Metrics | None,
    *,
    settings: dict[str, Any],
    details: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    def with_units(metrics: dict[str, dict[str, float | None]]) -> dict[str, Any]:
        return {name: {**entry, "unit": UNITS.get(name, "fraction")} for name, entry in metrics.items()}

    return {
        "title": title,
        "settings": settings,
        "metrics": with_units(combine(parts)),
        "floor": with_units(combine([floor])) if floor is not None else None,
        "details": details or {},
        "notes": list(notes),
    }


def _progress(what: str, total: int, show: bool) -> Any:
    from perrin.run.progress import progress

    return progress(what, total) if show else nullcontext(lambda n: None)
