"""`perrin edit` and `perrin vary`: molecules that start from a file."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.errors import PerrinError, check_count, counted, warn
from perrin.modalities.molecule.commands import _labelled, _pack, _unpack
from perrin.modalities.molecule.structure import SYMBOLS, Molecule
from perrin.run.device import choose_device

if TYPE_CHECKING:
    from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions
    from perrin.run.partial import PartialStore

DEFAULT_MODEL = "molecule/qm9"

_STATE: dict[str, Any] = {}
"""What draws in this process (an `Editor` or a `Varier`), and how: set once per worker by `_setup`."""


def edit(a: Namespace) -> None:
    """`perrin edit FILE --keep WHAT -n N -o OUT`: draws until there are N that nothing is wrong with."""
    from perrin.modalities.molecule.edit import ATTEMPT, Editor, edit_options
    from perrin.modalities.molecule.kept import choose_atoms, keep, number_list
    from perrin.run.partial import PartialStore
    from perrin.run.progress import progress

    added, tries = _range(a.add), check_count(a.tries, "--tries")
    output, model, options, molecules = _begin(a)
    if len(molecules) > 1:
        raise PerrinError(f"expected one molecule in {a.file}, given {len(molecules)}: give a file of one")
    whole = molecules[0]
    options = _with_wishes(a, model, edit_options(model, options, a.steps))
    atoms = choose_atoms(a.keep, whole, "--keep")
    anchors: Any = a.anchors
    if a.anchors not in (None, "cut"):
        anchors = choose_atoms(a.anchors, whole, "--anchors")
    kept = keep(whole, atoms, anchors)
    editor = Editor(model, kept, added=added, want=options.want)
    plan = editor.plan(options)
    if a.dry_run:
        from perrin.core.plan import plan_table

        print(plan_table(plan))
        return
    key = {
        "verb": "edit", "weights": model.sha256, "seed": a.seed, "sampling": options.to_json(), "add": a.add,
        "keep": atoms, "anchors": [i for i, yes in zip(kept.source.tolist(), kept.anchors.tolist(), strict=True) if yes],
        "molecule": _fingerprint(whole),
    } | _guided(model, options)  # fmt: skip
    store = PartialStore(output, key)
    seen: dict[int, Molecule] = {}
    for indices, part in store.load():
        seen |= zip(indices, _unpack(part, model.name, a.seed, indices), strict=True)

    found: list[Molecule | None] = [None] * a.n
    faults: Counter[str] = Counter()
    first = drawn = 0
    begin = time.perf_counter()
    with progress(f"editing {a.file}", a.n) as advance:
        for attempt in range(tries):
            open_ = [i for i, m in enumerate(found) if m is None]
            numbers = [i + attempt * ATTEMPT for i in open_]
            todo = [i for i in numbers if i not in seen]
            earlier = {i: seen[i - ATTEMPT] for i in todo if editor.is_repair(i)}
            _draw(a, editor, options, todo, store, seen, earlier=earlier)
            for i, number in zip(open_, numbers, strict=True):
                drawn += 1
                fault = editor.fault(seen[number])
                faults[fault or "good"] += 1
                if not fault:
                    found[i] = seen[number]
                    first += attempt == 0
                    advance(1)
            if all(m is not None for m in found):
                break
    good = [m for m in found if m is not None]
    rejected = ", ".join(f"{count} {why}" for why, count in sorted(faults.items()) if why != "good") or "none"
    if len(good) < a.n:
        raise PerrinError(
            f"expected {counted(a.n, 'molecules')}, made {len(good)} in {counted(drawn, 'draws')} (rejected: "
            f"{rejected}): raise --tries, which goes on from here, or change --add, --anchors or --keep"
        )
    labelled = []
    for i, molecule in enumerate(good):
        named = replace(molecule.heavy_first(), name=f"{whole.name or Path(a.file).stem}-{a.seed}-{i}")
        named = _labelled(named, a.model or DEFAULT_MODEL, a.seed, i)
        extra = {"kept": number_list(range(kept.heavy)), "kept_from": ",".join(str(i + 1) for i in atoms)}
        labelled.append(replace(named, properties=named.properties | extra))
    different = len({m.properties.get("smiles") for m in labelled})
    result = {
        "molecules": a.n, "different": different, "draws": drawn, "good_at_first_draw": first,
        "rejected": {k: v for k, v in faults.items() if k != "good"},
        "kept_preserved": all(editor.kept.preserved_in(m) for m in good),
    }  # fmt: skip
    result["evaluations"] = options.evaluations(plan)
    told = _finish(a, "edit", output, model, options, labelled, result, begin, store)
    print(
        f"{counted(a.n, 'molecules')} in {output}, {different} different; {counted(len(atoms), 'heavy atoms')} kept in all; "
        f"{counted(drawn, 'draws')}, rejected: {rejected}"
    )
    for line in told:
        print(line)


def _with_wishes(a: Namespace, model: MoleculeModel, options: SamplingOptions) -> SamplingOptions:
    """The options with wishes, and the model with the network that chooses; what the data say of the wishes is printed."""
    from perrin.modalities.molecule.model import wanted
    from perrin.modalities.molecule.telling import check_choice, tell_wishes

    changes = {"guidance_scale": a.guidance_scale, "candidates": a.candidates, "guide": a.guide}
    want = wanted(model.wishes(a.want or ())) or options.want
    options = replace(options, want=want, **{k: v for k, v in changes.items() if v is not None})
    check_choice(a, options)
    model.take_guide(options)
    tell_wishes(a, model, options)
    return options


def _guided(model: MoleculeModel, options: SamplingOptions) -> dict[str, Any]:
    """What of the property network makes a draw what it is."""
    if not options.want or options.candidates == 1:
        return {}
    assert model.guide is not None
    return {"guide": model.guide.sha256}


def vary(a: Namespace) -> None:
    """`perrin vary FILE --strength X -n N -o OUT`: N molecules like each of the file."""
    from perrin.modalities.molecule.vary import Varier
    from perrin.run.partial import PartialStore
    from perrin.run.progress import progress

    output, model, options, molecules = _begin(a)
    options = _with_wishes(a, model, options)
    varier = Varier(model, molecules, a.n, strength=a.strength)
    evaluations = options.evaluations(varier.plan(options)) if a.strength else 0
    if a.dry_run:
        from perrin.core.plan import plan_table

        print(
            plan_table(varier.plan(options))
            if a.strength
            else "nothing to run: strength 0 is the same molecule"
        )
        return
    key = {
        "verb": "vary", "weights": model.sha256, "seed": a.seed, "sampling": options.to_json(), "strength": a.strength,
        "n": a.n, "molecules": [_fingerprint(m) for m in molecules],
    } | _guided(model, options)  # fmt: skip
    store = PartialStore(output, key)
    seen: dict[int, Molecule] = {}
    for indices, part in store.load():
        seen |= zip(indices, _unpack(part, model.name, a.seed, indices), strict=True)
    total = a.n * len(molecules)
    begin = time.perf_counter()
    with progress(f"varying {a.file}", total) as advance:
        advance(len(seen))
        _draw(a, varier, options, [i for i in range(total) if i not in seen], store, seen, advance)
    labelled = []
    for i in range(total):
        origin = molecules[i // a.n]
        name = f"{origin.name or Path(a.file).stem}-{a.seed}-{i % a.n}"
        molecule = seen[i].heavy_first() if a.strength else seen[i]
        named = _labelled(replace(molecule, name=name), a.model or DEFAULT_MODEL, a.seed, i)
        items: dict[str, Any] = {"strength": a.strength}
        if (likeness := similarity(origin, named)) is not None:
            items["tanimoto"] = round(likeness, 3)
        labelled.append(replace(named, properties=named.properties | items))
    known = [m.properties["tanimoto"] for m in labelled if "tanimoto" in m.properties]
    mean = sum(known) / len(known) if known else float("nan")
    result = {"molecules": total, "valid": len(known), "mean_tanimoto": mean if known else None}
    result["evaluations"] = evaluations
    told = _finish(a, "vary", output, model, options, labelled, result, begin, store)
    print(
        f"{counted(total, 'molecules')} in {output}: {len(known)} valid, of mean Tanimoto similarity "
        f"{mean:.2f} to their seed"
    )
    for line in told:
        print(line)


def similarity(one: Molecule, other: Molecule) -> float | None:
    """Tanimoto similarity of Morgan fingerprints of radius 2 and 2048 bits; `None` where RDKit rejects a molecule."""
    from rdkit import DataStructs
    from rdkit.Chem import RemoveHs, rdFingerprintGenerator

    from perrin.modalities.molecule.chem import sanitize, to_rdkit

    both = [sanitize(to_rdkit(m)) for m in (one, other)]
    if any(m is None for m in both):
        return None
    make = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    try:
        prints = [make.GetFingerprint(RemoveHs(m)) for m in both]
    except (ValueError, RuntimeError):
        return None
    return float(DataStructs.TanimotoSimilarity(*prints))


def _begin(a: Namespace) -> tuple[Path, MoleculeModel, SamplingOptions, list[Molecule]]:
    """What both verbs need: output, model, options, and the molecules with their hydrogens."""
    from perrin.modalities.molecule.fields import unsupported
    from perrin.modalities.molecule.files import read_molecules
    from perrin.modalities.molecule.kept import note_coinciding, with_hydrogens, without_isotopes
    from perrin.modalities.molecule.model import load_model

    output = Path(a.out)
    given = read_molecules(a.file)
    note_coinciding(given, a.file)
    molecules = []
    missing = 0
    for number, molecule in enumerate(without_isotopes(given, a.file), 1):
        try:
            full, count = with_hydrogens(molecule)
        except PerrinError as error:
            raise PerrinError(f"{error} (molecule {number} of {a.file})") from error
        molecules.append(full)
        missing += count
    model = load_model(a.model or DEFAULT_MODEL, device=choose_device(a.device))
    vocabulary = model.config.vocabulary
    for number, molecule in enumerate(molecules, 1):
        where = f"molecule {number} of {a.file}"
        if strange := sorted(set(molecule.numbers.tolist()) - set(vocabulary.elements)):
            from ase.data import chemical_symbols

            known = ", ".join(SYMBOLS.get(z, str(z)) for z in vocabulary.elements)
            raise PerrinError(
                f"expected the elements that the model knows ({known}), given {chemical_symbols[strange[0]]} in {where}: "
                "train a model on your own data"
            )
        if reason := unsupported(molecule, vocabulary):
            raise PerrinError(f"{reason} ({where})")
    if missing:
        print(f"added {counted(missing, 'hydrogens')} that {a.file} leaves out", file=sys.stderr)
    return output, model, model.options(steps=a.steps, solver=a.solver, balance=1), molecules


def _draw(
    a: Namespace,
    maker: Any,
    options: SamplingOptions,
    numbers: Sequence[int],
    store: PartialStore,
    seen: dict[int, Molecule],
    advance: Callable[[int], None] | None = None,
    earlier: dict[int, Molecule] | None = None,
) -> None:
    """Run `maker` (an `Editor` or a `Varier`) for these numbers, into `seen` and the store; repairs mend `earlier`."""
    from perrin.run.pool import cpu_count, map_unordered

    cpu = maker.model.device.type == "cpu"
    batch = a.batch or (64 if cpu else 1024)
    workers = a.workers or (cpu_count() if cpu else 1)
    if len(numbers) < 16:
        workers = 1  # starting a process costs more
    if options.want and not a.batch:
        batch = max(4, batch // options.candidates)
    if cpu and workers > 1:
        batch = min(batch, max(4, -(-len(numbers) // (4 * workers)) // 2 * 2))
    units = maker.units(numbers, a.seed, batch=batch)
    settings = (maker, a.seed, options, 1 if cpu else None, earlier)
    for unit, made in map_unordered(_run, units, workers=workers, setup=_setup, arguments=settings):
        store.save(unit.indices, _pack(made))
        seen |= zip(unit.indices, made, strict=True)
        if advance is not None:
            advance(len(made))


def _setup(maker: Any, seed: int, options: Any, threads: int | None, earlier: Any) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
    _STATE.update(maker=maker, seed=seed, options=options, earlier=earlier)


def _run(unit: Any) -> list[Molecule]:
    earlier = _STATE["earlier"]
    more = ([earlier[i] for i in unit.indices],) if earlier else ()
    made: list[Molecule] = _STATE["maker"].run_unit(unit, _STATE["seed"], _STATE["options"], *more)
    return made


def _finish(
    a: Namespace,
    verb: str,
    output: Path,
    model: MoleculeModel,
    options: SamplingOptions,
    molecules: Sequence[Molecule],
    result: dict[str, Any],
    begin: float,
    store: PartialStore,
) -> list[str]:
    """Write the molecules and the record; what there is to say of wishes."""
    from perrin.modalities.molecule.files import write_molecules
    from perrin.modalities.molecule.telling import judge
    from perrin.run.outputs import record_path
    from perrin.run.record import record, write_record

    want = getattr(a, "want", None) or ()  # conformers take no wishes
    verdict = judge(model, options, want, molecules)
    write_molecules(output, verdict.molecules)
    if verdict.record:
        result = result | {"wishes": verdict.record}
    content = record(
        verb,
        a,
        bundle={"path": a.model or DEFAULT_MODEL, "sha256": model.sha256},
        sampling=options.to_json(),
        result=result | {"seconds": round(time.perf_counter() - begin, 2), "device": str(model.device)},
    )
    write_record(record_path(output), content)
    store.remove()
    if verdict.strange:
        warn(verdict.strange)
    return verdict.lines


def _fingerprint(molecule: Molecule) -> str:
    import hashlib

    parts = (molecule.numbers, molecule.positions, molecule.bonds, molecule.charges)
    return hashlib.sha256(b"".join(x.tobytes() for x in parts if x is not None)).hexdigest()[:16]


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 1 <= low <= high:
        raise PerrinError(f"expected --add N or N-M heavy atoms, such as 4 or 3-9, given {text!r}")
    return low, high
