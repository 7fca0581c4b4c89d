"""`perrin conformers FILE -n N -o OUT`."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, check_count, counted, listed, note, warn
from perrin.modalities.molecule.commands import _labelled, _unpack
from perrin.modalities.molecule.edit_commands import DEFAULT_MODEL, _draw, _fingerprint, _finish
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.textfile import kind
from perrin.run.device import choose_device

KCAL = 627.5094740631
"""kcal/mol in one hartree."""


def conformers(a: Namespace) -> None:
    """Draw until every molecule has N conformers that nothing is wrong with, at most `--tries` times each."""
    from perrin.modalities.molecule.conformers import ConformerSampler, each_query, unfit
    from perrin.modalities.molecule.edit import ATTEMPT, edit_options
    from perrin.modalities.molecule.files import tell_left_out
    from perrin.modalities.molecule.kept import without_isotopes
    from perrin.modalities.molecule.model import load_model
    from perrin.run.partial import PartialStore
    from perrin.run.progress import progress

    tries = check_count(a.tries, "--tries")
    output = Path(a.out)
    if a.xtb:
        from perrin.modalities.molecule.metrics.packages import require

        require("tblite", "GFN2-xTB")
    entries = each_query(a.file)
    bad = [entry for entry in entries if isinstance(entry, PerrinError)]
    tell_left_out(bad, len(entries), a.file)
    model = load_model(a.model or DEFAULT_MODEL, device=choose_device(a.device))
    read = {k: entry for k, entry in enumerate(entries, 1) if not isinstance(entry, PerrinError)}
    faulty = {k: unfit(query.molecule, model.config.vocabulary) for k, query in read.items()}
    if all(faulty.values()):
        raise PerrinError(next(iter(faulty.values())))
    places = [k for k, fault in faulty.items() if fault]
    if places:
        warn(
            f"left out {len(places)} of {counted(len(entries), 'molecules')} of {a.file}, which the model cannot express "
            f"(number {listed(places)}): {faulty[places[0]]}"
        )
    numbers_in_file = [k for k, fault in faulty.items() if not fault]
    queries = [read[k] for k in numbers_in_file]
    options = edit_options(model, model.options(steps=a.steps, solver=a.solver, balance=1), a.steps)
    if not model.config.network.parts:
        note(
            "the model was not trained with graphs given; conformers are slower and worse than they could be"
        )
    if kind(output) != ".sdf":
        without_isotopes([q.molecule for q in queries], a.file, numbers_in_file)
    sampler = ConformerSampler(model, queries, a.n)
    plan = sampler.plan(options)
    if a.dry_run:
        from perrin.core.plan import plan_table

        print(plan_table(plan))
        return
    key = {
        "verb": "conformers", "weights": model.sha256, "seed": a.seed, "sampling": options.to_json(), "n": a.n,
        "molecules": [_fingerprint(q.molecule) for q in queries],
    }  # fmt: skip
    store = PartialStore(output, key)
    seen: dict[int, Molecule] = {}
    for indices, part in store.load():
        seen |= zip(indices, _unpack(part, model.name, a.seed, indices), strict=True)
    total = a.n * len(queries)
    found: list[Molecule | None] = [None] * total
    faults: Counter[str] = Counter()
    drawn = 0
    begin = time.perf_counter()
    with progress(f"conformers of {a.file}", total) as advance:
        for attempt in range(tries):
            open_ = [i for i, m in enumerate(found) if m is None]
            numbers = [i + attempt * ATTEMPT for i in open_]
            _draw(a, sampler, options, [i for i in numbers if i not in seen], store, seen)
            for i, number in zip(open_, numbers, strict=True):
                drawn += 1
                own = sampler.query(i).molecule
                molecule, fault = sampler.checked(
                    number, replace(seen[number], bonds=own.bonds, isotopes=own.isotopes)
                )
                faults[fault or "good"] += 1
                if not fault:
                    found[i] = molecule
                    advance(1)
            if all(m is not None for m in found):
                break
    rejected = ", ".join(f"{n} {why}" for why, n in sorted(faults.items()) if why != "good") or "none"
    groups = [[m for m in found[k * a.n : (k + 1) * a.n] if m is not None] for k in range(len(queries))]
    short = [k for k, group in enumerate(groups) if len(group) < a.n]
    if not any(groups):
        raise PerrinError(
            f"expected conformers, made none in {counted(drawn, 'draws')} (rejected: {rejected}): raise --tries, "
            "which goes on from here"
        )
    for k in short:
        print(
            f"perrin: warning: {len(groups[k])} of {counted(a.n, 'conformers')} of {queries[k].molecule.name} "
            f"(molecule {numbers_in_file[k]} of {a.file}) in {counted(tries, 'tries')}: raise --tries",
            file=sys.stderr,
        )
    whole: list[Molecule] = []
    for k, group in enumerate(groups):
        name = queries[k].molecule.name or f"{Path(a.file).stem}-{numbers_in_file[k]}"
        whole += _described([replace(m, name=name) for m in group], a, k, numbers_in_file[k])
    result = {
        "molecules": len(queries), "conformers": len(whole), "draws": drawn, "evaluations": plan.nfe,
        "rejected": {why: n for why, n in faults.items() if why != "good"},
        "incomplete": [numbers_in_file[k] for k in short],
        "left_out": sorted(set(range(1, len(entries) + 1)) - set(numbers_in_file)),
    }  # fmt: skip
    _finish(a, "conformers", output, model, options, whole, result, begin, store)
    seconds = time.perf_counter() - begin
    print(
        f"{counted(len(whole), 'conformers')} of {counted(len(queries), 'molecules')} in {output}: {seconds:.1f} s, "
        f"{counted(drawn, 'draws')}, rejected: {rejected}"
    )


def _described(group: list[Molecule], a: Namespace, number: int, place: int) -> list[Molecule]:
    """With data items, `place` the molecule's number in the file; with `--xtb`, sorted by energy."""
    bundle = a.model or DEFAULT_MODEL
    out = [_labelled(m, bundle, a.seed, number * a.n + k) for k, m in enumerate(group)]
    if a.xtb:
        from perrin.modalities.molecule.ranking.xtb import single_point

        energies = np.array([single_point(m).get("xtb_energy", np.nan) for m in out])
        low = np.nanmin(energies) if np.isfinite(energies).any() else np.nan
        items: list[dict[str, Any]] = [
            {"xtb_energy": float(e), "relative_energy_kcal_mol": round(float(e - low) * KCAL, 3)}
            if np.isfinite(e)
            else {}
            for e in energies
        ]
        out = [replace(m, properties=m.properties | more) for m, more in zip(out, items, strict=True)]
        out = [out[i] for i in np.argsort(energies, kind="stable")]
    return [
        replace(
            m,
            name=f"{m.name}-{k + 1}",
            properties=m.properties | {"molecule": place, "conformer": k + 1},
        )
        for k, m in enumerate(out)
    ]
