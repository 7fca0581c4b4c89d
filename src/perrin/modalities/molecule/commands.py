"""The molecule side of the command line's verbs."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perrin.errors import PerrinError, check_counts, counted, note, warn
from perrin.modalities.molecule.structure import Molecule
from perrin.run.device import choose_device

if TYPE_CHECKING:
    from perrin.core import Plan
    from perrin.modalities.molecule.metrics import Measures
    from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions

_STATE: dict[str, Any] = {}
"""The model of this process, and how to run it: set once per worker by `_setup`."""


def sample(a: Namespace) -> None:
    """`perrin sample molecule/… -n N -o FILE`: resumable, in as many processes as the machine has cores."""
    from perrin.core.plan import plan_table
    from perrin.modalities.molecule.files import write_molecules
    from perrin.modalities.molecule.telling import judge, tell_wishes
    from perrin.run.outputs import record_path
    from perrin.run.partial import PartialStore
    from perrin.run.pool import cpu_count, map_unordered
    from perrin.run.progress import progress
    from perrin.run.record import record, write_record

    output = Path(a.out)
    work = prepare_sampling(a)
    model, options, plan, batch, device, key = (
        work.model, work.options, work.plan, work.batch, work.device, work.key,
    )  # fmt: skip
    tell_wishes(a, model, options)
    if a.dry_run:
        print(plan_table(plan))
        if (each := options.evaluations(plan)) != plan.nfe:
            print(f"{each} evaluations a molecule, with what is drawn to choose from")
        return

    sizes = model.sizes(a.seed, a.n, work.atoms, options.want)
    store = PartialStore(output, key)
    molecules: list[Molecule | None] = [None] * a.n
    for indices, part in store.load():
        for i, molecule in zip(indices, _unpack(part, model.name, a.seed, indices), strict=True):
            if i < a.n:
                molecules[i] = molecule
    done = [i for i, m in enumerate(molecules) if m is not None]
    workers = a.workers or (cpu_count() if device == "cpu" else 1)
    if device == "cpu" and workers > 1:  # enough units for every worker, if need be smaller ones
        batch = min(batch, max(4, -(-a.n // (4 * workers)) // 2 * 2))
    units = model.units(sizes, batch=batch, done=done)
    if a.n - len(done) < 16:
        workers = 1  # starting a process costs more
    begin = time.perf_counter()
    settings = (model, a.seed, options, 1 if device == "cpu" else None)
    results = map_unordered(_run, units, workers=workers, setup=_setup, arguments=settings)
    with progress(f"sampling {a.target}", a.n) as advance:
        advance(len(done))
        for unit, found in results:
            store.save(unit.indices, _pack(found))
            for i, molecule in zip(unit.indices, found, strict=True):
                molecules[i] = molecule
            advance(len(unit.indices))
    seconds = time.perf_counter() - begin
    labelled = [_labelled(m, a.target, a.seed, i) for i, m in enumerate(molecules) if m is not None]
    verdict = judge(model, options, a.want or (), labelled, workers=workers)
    whole = verdict.molecules
    if output.suffix.lower() in (".smi", ".smiles"):  # has no way to say what RDKit rejects
        kept = [m for m in whole if "smiles" in m.properties]
        if len(kept) < len(whole):
            print(
                f"left out {counted(len(whole) - len(kept), 'invalid molecules')}, which have no SMILES",
                file=sys.stderr,
            )
    else:
        kept = whole
    write_molecules(output, kept)
    evaluations = options.evaluations(plan)
    content = record(
        "sample",
        a,
        bundle={"path": a.target, "sha256": model.sha256},
        sampling=options.to_json(),
        result={
            "molecules": a.n,
            "evaluations": evaluations,
            "seconds": round(seconds, 2),
            "workers": workers,
            "device": device,
            **({"wishes": verdict.record} if verdict.record else {}),
        },
    )
    write_record(record_path(output), content)
    store.remove()
    if a.n > len(done):
        rate = (a.n - len(done)) / seconds
        print(
            f"{counted(len(kept), 'molecules')} in {output}: {seconds:.1f} s, {rate:.1f} molecules/s, "
            f"{counted(evaluations, 'evaluations')} each"
        )
    else:
        print(f"{counted(len(kept), 'molecules')} in {output}, all from unfinished work")
    for line in verdict.lines:
        print(line)
    if verdict.strange:
        warn(verdict.strange)
    metrics = _evaluate(whole, label=a.target) if a.evaluate else None
    if a.view:
        _page(a.view, whole, f"{a.target}, {counted(a.n, 'molecules')}", metrics, content)
        print(f"3D views in {a.view}")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the arguments of `perrin sample` mean.

    Arguments:
        model: on its device.
        options, plan: how to sample.
        atoms: smallest and largest number of atoms, if given.
        batch: molecules at a time.
        device: `cpu` or another.
        key: what makes molecule i what it is, but for i.
    """

    model: MoleculeModel
    options: SamplingOptions
    plan: Plan
    atoms: tuple[int, int] | None
    batch: int
    device: str
    key: dict[str, Any]


def prepare_sampling(a: Namespace) -> Sampling:
    """Check the arguments and load the model.

    Raises:
        PerrinError: an argument is wrong, or there is no such bundle.
    """
    from perrin.modalities import find_bundle, load
    from perrin.modalities.molecule.model import wanted
    from perrin.modalities.molecule.telling import check_choice

    atoms = _atoms(a.atoms)
    device = choose_device(a.device)
    model = load(str(find_bundle(a.target)), device=device)
    model.precision, model.mode = a.precision, a.mode
    options = model.options(
        steps=a.steps,
        solver=a.solver,
        temperature=a.temperature,
        self_condition=None if a.self_condition is None else a.self_condition == "on",
        want=wanted(model.wishes(a.want or ())) or None,
        guidance_scale=a.guidance_scale,
        candidates=a.candidates,
        guide=a.guide,
        balance=a.balance,
    )
    check_choice(a, options)
    model.check_balance(options, asked=a.balance is not None)
    model.take_guide(options)
    plan = options.plan(model.denoiser)
    model.sizes(a.seed, 1, atoms, options.want)  # says what is wrong with them
    key = {"weights": model.sha256, "seed": a.seed, "atoms": a.atoms, "sampling": options.to_json()}
    key |= {} if a.precision == "32-true" else {"precision": a.precision}
    batch = a.batch or (64 if device == "cpu" else 1024)
    if options.want and options.candidates > 1:
        assert model.guide is not None
        key["guide"] = model.guide.sha256
        batch = a.batch or max(4, batch // options.candidates)
    elif not options.want:
        batch = a.batch or max(4, batch // options.balance)
    return Sampling(model, options, plan, atoms, batch, device, key)


def _labelled(molecule: Molecule, bundle: str, seed: int, index: int) -> Molecule:
    """With data items that say where it comes from and, where RDKit accepts it, its SMILES."""
    from perrin.modalities.molecule.chem import isomeric_smiles, sanitize, to_rdkit

    sane = sanitize(to_rdkit(molecule))
    smiles = isomeric_smiles(sane) if sane is not None else None
    items: dict[str, Any] = {"bundle": bundle, "seed": seed, "index": index}
    return dataclasses.replace(molecule, properties=items | ({"smiles": smiles} if smiles else {}))


def _setup(model: Any, seed: int, options: Any, threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
    _STATE.update(model=model, seed=seed, options=options)


def _run(unit: Any) -> list[Molecule]:
    return _STATE["model"].run_unit(unit, _STATE["seed"], _STATE["options"])


def train(a: Namespace) -> None:
    """`perrin train molecule/qm9 --out DIR`: QM9 or own molecules, from scratch or from a bundle."""
    import torch

    from perrin.bundle import read_bundle, write_bundle
    from perrin.modalities import find_bundle
    from perrin.modalities.molecule.conditions import with_inputs
    from perrin.modalities.molecule.dataset import size_counts
    from perrin.modalities.molecule.model import SamplingOptions, split_weights
    from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
    from perrin.modalities.molecule.properties import TABLE
    from perrin.modalities.molecule.rollouts import RolloutLaw, RolloutTask
    from perrin.modalities.molecule.sources import training_data
    from perrin.modalities.molecule.task import MoleculeTask
    from perrin.modalities.molecule.widen import widen
    from perrin.run.record import record, write_record
    from perrin.train import Trainer, TrainOptions

    counts = ("steps", "batch", "accumulate", "threads", "log_every", "save_every")
    check_counts(**{name: getattr(a, name) for name in counts})
    if a.threads:
        torch.set_num_threads(a.threads)
    preset = a.target.partition("/")[2]
    if preset != "qm9" and not a.data:
        raise PerrinError(f"expected molecule/qm9, or --data with your own molecules, given {a.target!r}")
    if a.rollouts is not None and not (a.start and 0 < a.rollouts < 1):
        raise PerrinError(
            f"expected a share between 0 and 1 for --rollouts and a bundle for --from, given {a.rollouts:g} and "
            f"{a.start or 'none'}: a network learns from its own samples when most of them are sound"
        )
    base = read_bundle(find_bundle(a.start)) if a.start else None
    config = MoleculeConfig.from_json(base.config["model"]) if base else None
    if config and a.backbone not in (None, config.network.backbone):
        raise PerrinError(
            f"expected the backbone of {a.start} ({config.network.backbone}), given {a.backbone}: leave out "
            "--backbone or --from"
        )
    vocabulary = config.vocabulary if config else None
    held = config.network.conditions if config else ()
    asked = _names(a.conditions)
    names = list(dict.fromkeys([*held, *asked]))
    vocabulary, buckets, skipped = training_data(a, vocabulary, names, spared=set(held) - set(asked))
    if skipped:
        print(f"left out {counted(skipped, 'molecules')} that the model cannot express", file=sys.stderr)
    vocabulary = dataclasses.replace(
        vocabulary, size_counts=size_counts(buckets)
    )  # it samples sizes like the new data
    old = config
    config = (
        dataclasses.replace(config, vocabulary=vocabulary)
        if config
        else MoleculeConfig(
            vocabulary=vocabulary, network=NetworkConfig(backbone=a.backbone or "transformer")
        )
    )
    config, table = with_inputs(config, buckets, names, parts=a.parts, data=bool(a.data))
    device = choose_device(a.device)
    cuda = device.startswith("cuda")
    steps = a.steps or (10**9 if a.minutes else 2000 if a.data else 30000)
    optimizer = a.optimizer or ("muon" if cuda else "adamw")
    fresh_lr = 2e-3 if optimizer == "muon" else 1e-3
    options = TrainOptions(
        steps=steps,
        minutes=a.minutes,
        batch=a.batch or (512 if cuda else 32),
        accumulate=a.accumulate,
        optimizer=optimizer,
        lr=a.lr if a.lr is not None else (fresh_lr if base is None else 2e-4),
        warmup=min(400, max(1, steps // 10)),
        cooldown=0.45,
        ema=0.999,
        ema_std=_widths(a.ema_std),
        seed=a.seed,
        precision="bf16-mixed" if cuda else "32-true",
        log_every=a.log_every or (50 if cuda else 10),
        save_every=a.save_every,
        compile=cuda and steps > 2000,
        cuda_graphs=cuda,
    )
    torch.manual_seed(a.seed)
    denoiser = build_denoiser(config)
    if base is not None and old is not None:
        weights, _ = split_weights(base.weights())
        widen(denoiser, config, weights, old, source=str(base.path))
    task: MoleculeTask
    if a.rollouts is not None:
        sampling = base.config.get("sampling", {}) if base else {}
        law = RolloutLaw(share=a.rollouts)
        if not cuda:  # sixty thousand molecules would take hours
            law = dataclasses.replace(law, molecules=640, every=500)
            print(
                f"drawing {law.molecules} molecules to learn from every {law.every} steps: minutes each time on a CPU; "
                "a GPU draws sixty thousand in half a minute",
                file=sys.stderr,
            )
        task = RolloutTask(
            denoiser,
            config,
            buckets,
            batch=options.batch,
            seed=options.seed,
            law=law,
            sampling=SamplingOptions(**sampling),
            half=cuda,
        )
    else:
        task = MoleculeTask(denoiser, config, buckets, batch=options.batch, seed=options.seed)
    out = Path(a.out)
    if out.exists() and not out.is_dir():
        raise PerrinError(f"expected a folder for --out, given the file {out}: choose another name")
    content = record("train", a, options=options.to_json())
    trainer = Trainer(task, options, out, accelerator="cuda" if cuda else "cpu", devices=a.devices)
    trainer.check()
    write_record(out / "run.json", content)
    last = trainer.run()
    if trainer.fabric.global_rank == 0:
        sampling = SamplingOptions(**base.config.get("sampling", {})) if base else SamplingOptions()
        sampling = dataclasses.replace(sampling, balance=1)  # the bundle's was of other samples
        source = Path(a.data).name if a.data else "QM9"
        card = (
            f"# {out.name}\n\nA molecule model trained on {counted(sum(map(len, buckets)), 'molecules')} of {source}"
            f"{', from ' + a.start if a.start else ''}, {options.steps} steps of {options.batch}.\n\n"
            "Metrics: none measured yet; `perrin sample` it and `perrin evaluate` the file.\n"
        )
        training = {"options": options.to_json(), "last": last}
        weights = dict(denoiser.named_parameters()) | ({TABLE: table.pack()} if table else {})
        write_bundle(
            out,
            modality="molecule",
            model=config.to_json(),
            weights=weights,
            card=card,
            sampling=sampling.to_json(),
            training=training,
        )
        print(f"bundle in {out}: perrin sample {out} -n 100 -o molecules.sdf")


def _names(text: str | None) -> list[str]:
    """`alpha,gap` as names, each once."""
    names = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(names) or len(set(names)) < len(names):
        raise PerrinError(
            f"expected names with commas for --conditions, each once, given {text!r}: write alpha,gap,mu"
        )
    return names


def _widths(text: str | None) -> tuple[float, ...]:
    """`0.05,0.10` as numbers."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise PerrinError(
            f"expected numbers with commas for --ema-std, given {text!r}: write 0.05,0.10"
        ) from error


def evaluate(a: Namespace) -> None:
    """`perrin evaluate FILE`: the table on the terminal, the numbers as JSON."""
    from perrin.modalities.molecule.files import read_molecules, read_sound
    from perrin.modalities.molecule.kept import note_coinciding, warn_bare, without_isotopes
    from perrin.modalities.molecule.metrics import qm9_reference
    from perrin.run.atomic import write_json
    from perrin.run.pool import cpu_count

    check_counts(groups=a.groups)
    if a.like not in (None, "qm9"):
        raise PerrinError(f"expected --like qm9, given {a.like!r}: it is the only reference so far")
    measures = _measures(a)
    if a.groups:
        read_molecules(a.file)  # stops at a wrong record, without which the groups would be cut elsewhere
    molecules, numbers, left_out = read_sound(a.file)
    if left_out:
        note(f"all below is of the {counted(len(molecules), 'molecules')} that could be read")
    note_coinciding(molecules, a.file, numbers)
    molecules = without_isotopes(molecules, a.file, numbers)
    warn_bare(molecules, a.file)
    data = qm9_reference() if a.like or a.all or measures.needs_reference else None
    result = _evaluate(
        molecules,
        label=Path(a.file).name,
        protocol=a.protocol,
        reference=list(data.train_smiles) if data else None,
        groups=a.groups,
        measures=measures if measures.any else None,
        data=data,
        workers=a.workers or cpu_count(),
    )
    result["left_out"] = left_out
    if a.json:
        write_json(a.json, result)


def _measures(a: Namespace) -> Measures:
    """What the options of `perrin evaluate` ask for."""
    from perrin.modalities.molecule.metrics import Measures, RelaxOptions

    count = a.relax if a.relax is not None else 500 if a.all else None
    if a.subset_seed < 0:
        raise PerrinError(f"expected --subset-seed of at least 0, given {a.subset_seed}")
    if a.fmax is not None and count is None:
        raise PerrinError("expected --relax with --fmax, given --fmax alone: add --relax")
    fmax = a.fmax if a.fmax is not None else 0.01
    measures = Measures(
        relax=None if count is None else RelaxOptions(count=count, seed=a.subset_seed, fmax=fmax),
        posebusters=a.posebusters if a.posebusters is not None else 0 if a.all else None,
        fcd=a.fcd or a.all,
        geometry=a.geometry or a.all,
        floor=a.floor,
        seed=a.subset_seed,
    )
    if a.floor and not measures.any:
        raise PerrinError(
            "expected a measure with --floor, given none: add --relax, --posebusters, --fcd, --geometry or --all"
        )
    return measures


def view(a: Namespace) -> None:
    """`perrin view FILE`: one HTML page beside it."""
    from perrin.modalities import page_beside
    from perrin.modalities.molecule.files import read_sound
    from perrin.modalities.molecule.kept import completed, note_coinciding, note_of, warn_bare
    from perrin.modalities.molecule.metrics import evaluate as judge
    from perrin.modalities.molecule.metrics.lookup import VALENCE
    from perrin.run.outputs import read_record

    molecules, numbers, _ = read_sound(a.file, flat=True)
    flat = [m.flat for m in molecules]
    note_of(flat, numbers, a.file, "are flat drawings, shown in their plane; perrin conformers makes 3D ones")
    note_coinciding(molecules, a.file, numbers)
    molecules = [completed(m)[0] if m.flat else m for m in molecules]
    warn_bare(molecules, a.file)
    target = Path(a.out) if a.out else page_beside(a.file)
    protocol = _protocol(molecules, None)
    elements = {z for m in molecules for z in m.numbers.tolist()}
    if any(flat) or not elements <= set(VALENCE):  # the other one knows more, and needs no distances
        protocol = "bonds" if protocol == "both" else ""
    metrics = judge(molecules, protocol, label=Path(a.file).name) if protocol else None
    _page(target, molecules, Path(a.file).name, metrics, read_record(a.file) or None, reference=a.reference)
    print(f"{counted(len(molecules), 'molecules')} in {target}")


def _page(
    path: str | Path,
    molecules: Sequence[Molecule],
    title: str,
    metrics: dict[str, Any] | None,
    provenance: dict[str, Any] | None,
    reference: str | None = None,
) -> None:
    """A page with descriptors, and histograms beside a reference: by default QM9, if a bundle of it made the molecules."""
    from perrin.modalities.molecule.view import write_page
    from perrin.modalities.molecule.view_properties import page_properties, with_properties
    from perrin.run.pool import cpu_count

    if reference is None and made_by_qm9(provenance):
        from perrin.modalities.molecule.qm9_cache import FILE, cache_dir

        if (cache_dir() / FILE).is_file():  # to prepare it would take longer than the page
            reference = "qm9"
    described = with_properties(molecules, cpu_count())
    arguments = (provenance or {}).get("arguments")
    keys = str(arguments.get("by") or "").lower().split(",") if isinstance(arguments, dict) else []
    named = {str(name).lower(): str(name) for m in described for name in m.properties}
    properties = page_properties(
        described,
        reference=None if reference == "none" else reference,
        first=[named[key.strip().lstrip("+-")] for key in keys if key.strip().lstrip("+-") in named],
        workers=cpu_count(),
    )
    write_page(
        path,
        described,
        title=title,
        metrics=_page_metrics(metrics),
        provenance=provenance,
        properties=properties,
    )


def made_by_qm9(provenance: dict[str, Any] | None) -> bool:
    """Whether the record says that the bundle `molecule/qm9` made the molecules, if need be by what a ranking records."""
    source: Any = provenance
    while isinstance(source, dict) and source.get("verb") == "rank":
        source = source.get("source")
        source = source.get("run") if isinstance(source, dict) else None
    bundle = source.get("bundle") if isinstance(source, dict) else None
    return isinstance(bundle, dict) and bundle.get("path") == "molecule/qm9"


def _evaluate(
    molecules: Sequence[Molecule],
    *,
    label: str,
    protocol: str | None = None,
    reference: list[str] | None = None,
    groups: int | None = None,
    **costly: Any,
) -> dict[str, Any]:
    from rich.console import Console

    from perrin.modalities.molecule.metrics import evaluate as judge
    from perrin.modalities.molecule.metrics import tables

    result = judge(
        molecules, _protocol(molecules, protocol), reference, groups, label, show=bool(costly), **costly
    )
    console = Console() if sys.stdout.isatty() else Console(width=132)
    for table in tables(result):
        console.print(table)
    return result


def _protocol(molecules: Sequence[Molecule], asked: str | None) -> str:
    """Both protocols where the file has bonds, else lookup."""
    return asked or ("both" if all(m.bonds is not None for m in molecules) else "lookup")


def _page_metrics(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """The table of the page: per cent with standard errors."""
    if result is None:
        return None
    percent = {"unit": "%"}
    out: dict[str, Any] = {}
    for protocol, content in result["protocols"].items():
        out[protocol] = {
            name: {
                "value": None if m["value"] is None else 100 * m["value"],
                "stderr": None if m["error"] is None else 100 * m["error"],
                **percent,
            }
            for name, m in content["metrics"].items()
        }
    return out


def _atoms(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 1 <= low <= high:
        raise PerrinError(f"expected --atoms N or N-M, such as 18 or 12-20, given {text!r}")
    return low, high


def _pack(molecules: Sequence[Molecule]) -> dict[str, np.ndarray]:
    """Molecules as ragged arrays."""
    bonds = [m.bonds for m in molecules if m.bonds is not None]
    return {
        "atoms": np.array([len(m) for m in molecules]),
        "bond_counts": np.array([len(b) for b in bonds]),
        "numbers": np.concatenate([m.numbers for m in molecules]),
        "positions": np.concatenate([m.positions for m in molecules]),
        "charges": np.concatenate([m.charges for m in molecules]),
        "bonds": np.concatenate(bonds),
    }


def _unpack(part: dict[str, np.ndarray], name: str, seed: int, indices: Sequence[int]) -> list[Molecule]:
    atoms, bonds = part["atoms"].cumsum()[:-1], part["bond_counts"].cumsum()[:-1]
    columns = [np.split(part[k], atoms) for k in ("numbers", "positions", "charges")] + [
        np.split(part["bonds"], bonds)
    ]
    return [
        Molecule(numbers=z, positions=x, charges=q, bonds=b, name=f"{name}-{seed}-{index}")
        for z, x, q, b, index in zip(*columns, indices, strict=True)
    ]
