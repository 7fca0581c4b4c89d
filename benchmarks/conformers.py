"""Conformers of held-out molecules of QM9, beside RDKit's ETKDG.

    python benchmarks/conformers.py -n 100 --each 20              all ways, and the table
    python benchmarks/conformers.py -n 100 --each 20 --model runs/cond

The reference is the DFT geometry (B3LYP/6-31G(2df,p)) of molecules of QM9's test split, one for each molecule; its
stereochemistry is given to every way. With the best RMSD over heavy atoms and their symmetries (RDKit's `GetBestRMS`), d:

- COV-R, AMR-R (recall): share of molecules with a conformer within δ of the reference; mean of the smallest d;
- COV-P, AMR-P (precision): share of conformers within δ; mean d. With one reference for each molecule, which may have
  several conformers, this is not an error rate: read it beside the other ways' only.

Energies are GFN2-xTB single points, relative to that of the DFT geometry, kcal/mol: median over all conformers, and median
over molecules of the lowest one. ETKDG is RDKit's ETKDGv3 with its defaults, as many conformers; +MMFF relaxes them with
MMFF94 (UFF where it has no parameters). Standard errors are over molecules.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign
from rdkit.Geometry import Point3D

import perrin
from perrin.modalities.molecule.chem import sanitize, to_rdkit
from perrin.modalities.molecule.conformers import ConformerSampler, Query
from perrin.modalities.molecule.edit import ATTEMPT, Travel, edit_options
from perrin.modalities.molecule.qm9 import load_qm9
from perrin.modalities.molecule.ranking.xtb import single_point
from perrin.modalities.molecule.structure import Molecule

KCAL = 627.5094740631
Ensembles = list[list[np.ndarray]]


def references(part: str, seed: int, count: int) -> list[Molecule]:
    """Random molecules of a part of QM9 that RDKit accepts, with at least two heavy atoms."""
    data = load_qm9()
    out = []
    for i in np.random.default_rng(seed).permutation(data.split()[part].numpy()):
        molecule = data.molecule(int(i))
        if (
            molecule.bonds is not None
            and sanitize(to_rdkit(molecule)) is not None
            and (molecule.numbers > 1).sum() > 1
        ):
            out.append(replace(molecule, properties={}))
        if len(out) == count:
            break
    return out


def ours(
    model: Any,
    queries: Sequence[Query],
    each: int,
    seed: int,
    tries: int,
    steps: int | None,
    repeats: int | None,
) -> tuple[Ensembles, dict[str, Any]]:
    """Conformers that are not rejected, and how many were."""
    travel = None if repeats is None else Travel(repeats=repeats)
    sampler = ConformerSampler(model, queries, each, travel=travel)
    options = edit_options(model, model.options(steps=steps, balance=1), steps)
    found: list[Any] = [None] * (each * len(queries))
    faults: dict[str, int] = {}
    drawn = 0
    for attempt in range(tries):
        numbers = [i + attempt * ATTEMPT for i, m in enumerate(found) if m is None]
        for unit in sampler.units(numbers, seed, batch=64):
            for number, molecule in zip(unit.indices, sampler.run_unit(unit, seed, options), strict=True):
                drawn += 1
                good, fault = sampler.checked(number, molecule)
                faults[fault or "good"] = faults.get(fault or "good", 0) + 1
                if not fault:
                    found[number % ATTEMPT] = good.positions
    groups = [[x for x in found[k * each : (k + 1) * each] if x is not None] for k in range(len(queries))]
    return groups, {"draws": drawn, "evaluations": sampler.plan(options).nfe, **faults}


def etkdg(queries: Sequence[Query], each: int, seed: int, *, relax: bool) -> Ensembles:
    """RDKit's."""
    out = []
    for query in queries:
        mol = Chem.Mol(query.template)
        options: Any = rdDistGeom.ETKDGv3()
        options.randomSeed = seed + 1  # of conformer k it takes (k + 1) times this: with 0 all are the same
        with rdBase.BlockLogs():
            if not rdDistGeom.EmbedMultipleConfs(mol, each, options):
                options.useRandomCoords = True
                rdDistGeom.EmbedMultipleConfs(mol, each, options)
            if relax and mol.GetNumConformers():
                if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
                    rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=1000)
                else:
                    rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, maxIters=1000)
        out.append([c.GetPositions() for c in mol.GetConformers()])
    return out


def distances(reference: Molecule, conformers: Sequence[np.ndarray]) -> np.ndarray:
    """Best heavy-atom RMSD of each conformer to the reference, Å."""

    def heavy(positions: np.ndarray) -> Chem.Mol:
        mol = Chem.Mol(base)
        conformer = Chem.Conformer(mol.GetNumAtoms())
        for i, (x, y, z) in enumerate(positions.tolist()):
            conformer.SetAtomPosition(i, Point3D(x, y, z))
        mol.RemoveAllConformers()
        mol.AddConformer(conformer)
        return Chem.RemoveHs(mol)

    base = sanitize(to_rdkit(reference))
    assert base is not None
    with rdBase.BlockLogs():
        target = heavy(reference.positions)
        return np.array([rdMolAlign.GetBestRMS(heavy(x), target) for x in conformers])


def scores(
    refs: Sequence[Molecule], ensembles: Ensembles, deltas: Sequence[float], energies: bool
) -> dict[str, Any]:
    """The table's row."""
    d = [distances(r, c) for r, c in zip(refs, ensembles, strict=True)]
    best = np.array([x.min() if len(x) else np.nan for x in d])
    mean = np.array([x.mean() if len(x) else np.nan for x in d])

    def told(values: np.ndarray, factor: float = 1.0) -> list[float]:
        fine = factor * values[np.isfinite(values)]
        return [round(float(fine.mean()), 3), round(float(fine.std(ddof=1) / len(fine) ** 0.5), 3)]

    row: dict[str, Any] = {"molecules": len(refs), "without any": int(np.isnan(best).sum())}
    row |= {"AMR-R, Å": told(best), "AMR-P, Å": told(mean)}
    for delta in deltas:
        hit = np.where(np.isnan(best), 0.0, best <= delta)
        row[f"COV-R {delta}, %"] = told(hit, 100)
        row[f"COV-P {delta}, %"] = told(np.array([(x <= delta).mean() if len(x) else 0.0 for x in d]), 100)
    if energies:
        above, lowest = [], []
        for reference, group in zip(refs, ensembles, strict=True):
            base = single_point(reference).get("xtb_energy", np.nan)
            found = [
                single_point(replace(reference, positions=x)).get("xtb_energy", np.nan) - base for x in group
            ]
            above += [KCAL * e for e in found]
            lowest += [KCAL * np.nanmin(found)] if np.isfinite(found).any() else []
        row["xTB above DFT geometry, median, kcal/mol"] = round(float(np.nanmedian(above)), 2)
        row["… 90 % quantile"] = round(float(np.nanquantile(above, 0.9)), 2)
        row["… lowest, median"] = round(float(np.nanmedian(lowest)), 2)
    return row


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=100, help="molecules (default 100)")
    parser.add_argument("--each", type=int, default=20, help="conformers of each (default 20)")
    parser.add_argument("--part", default="test", help="of QM9: test, or valid for choices (default test)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, help="of each interval (default: the model's)")
    parser.add_argument("--model", default="molecule/qm9")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help="ways, with commas: perrin,etkdg,mmff")
    parser.add_argument("--no-energies", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    torch.set_num_threads(1)
    refs = references(a.part, a.seed, a.n)
    queries = [Query.from_molecule(r) for r in refs]
    told: dict[str, Any] = {}

    def perrins() -> Ensembles:
        groups, about = ours(
            perrin.load(a.model, device=a.device), queries, a.each, a.seed, a.tries, a.steps, a.repeats
        )
        told.update(about)
        return groups

    ways: dict[str, Callable[[], Ensembles]] = {
        "perrin": perrins,
        "etkdg": lambda: etkdg(queries, a.each, a.seed, relax=False),
        "mmff": lambda: etkdg(queries, a.each, a.seed, relax=True),
    }
    result: dict[str, Any] = {}
    for name in (a.only or "perrin,etkdg,mmff").split(","):
        begin = time.perf_counter()
        ensembles = ways[name]()
        seconds = time.perf_counter() - begin
        result[name] = scores(refs, ensembles, (0.1, 0.25, 0.5), not a.no_energies) | {
            "seconds": round(seconds, 1)
        }
        if name == "perrin":
            result[name] |= told
        print(name, json.dumps(result[name], ensure_ascii=False), flush=True)
    if a.json:
        with open(a.json, "w") as file:
            json.dump(result, file, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
