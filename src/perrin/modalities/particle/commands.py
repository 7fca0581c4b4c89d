"""The particle side of `perrin evaluate`, `perrin view` and `perrin data`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, check_counts, counted
from perrin.modalities.particle.chunks import STATE, chunks, finish, settled

_NAMES = (
    ("showers", "showers"),
    ("particle_features", "jets"),
    ("vorticity", "flow"),
    ("density", "density"),
    ("phase_space", "phase space"),
    ("positions", "bodies"),
)
"""Datasets by which a file is known."""


def kind_of(path: str | Path) -> str:
    """What a file holds, such as `showers`, `jets` or `flow`, by the names in it.

    Raises:
        PerrinError: none of them.
    """
    if Path(path).suffix.lower() == ".npz":
        return "jets"
    if Path(path).suffix.lower() == ".root":
        from perrin.modalities.particle.root import trees

        found = trees(path)
        for name in ("showers", "jets"):
            if name in found:
                return name
        raise PerrinError(f"expected a tree showers or jets in {path}, given {', '.join(found) or 'no tree'}")
    from perrin.modalities.particle.hdf5 import open_hdf5

    with open_hdf5(path) as file:
        for name, kind in _NAMES:
            if name in file:
                return kind
        names = ", ".join(list(file)[:5]) or "nothing"
    known = ", ".join(name for name, _ in _NAMES)
    raise PerrinError(
        f"expected a file of showers, jets, flows or bodies ({known}), given {path} with {names}"
    )


def evaluate(a: Namespace) -> None:
    """`perrin evaluate FILE --like TRUTH`: the table on the terminal, the numbers as JSON."""
    from perrin.modalities.particle.metrics.report import print_lines, table_of
    from perrin.run.atomic import write_json

    check_counts(splits=a.splits)
    kind = kind_of(a.file)
    if not a.like:
        plural = {"flow": "flows", "density": "densities"}.get(kind, kind)
        raise PerrinError(
            f"expected --like with a file of true {plural}, given none: name one, for the metrics compare two files"
        )
    other = kind_of(a.like)
    if other != kind:
        raise PerrinError(f"expected {kind} in {a.like} as in {a.file}, given {other}")
    result = compare(kind, a.file, a.like, jet=a.kind, classifier=not a.no_classifier, splits=a.splits)
    notes = [f"{result['samples']} samples of each; truth vs truth is what a perfect model would get"]
    print_lines(f"{Path(a.file).name} like {Path(a.like).name}", table_of(result), notes)
    if a.json:
        write_json(a.json, result)


def compare(
    kind: str, file: str, truth: str, *, jet: str | None = None, classifier: bool = True, splits: int = 1
) -> dict[str, Any]:
    """All metrics of a file against a truth's."""
    if kind == "showers":
        from perrin.modalities.particle.showers.evaluate import evaluate_showers
        from perrin.modalities.particle.showers.files import read_showers

        return evaluate_showers(read_showers(file), read_showers(truth), classifier=classifier, splits=splits)
    if kind == "jets":
        from perrin.modalities.particle.jets.evaluate import check_kind, evaluate_jets, guess_class
        from perrin.modalities.particle.jets.files import read_jets

        check_kind(jet)
        return evaluate_jets(
            read_jets(file),
            read_jets(truth),
            kind=jet or guess_class(Path(file).name, Path(truth).name),
            classifier=classifier,
            splits=splits,
        )
    from perrin.modalities.particle.flow.densities import evaluate_densities
    from perrin.modalities.particle.flow.evaluate import evaluate_flow
    from perrin.modalities.particle.flow.files import read_flow
    from perrin.modalities.particle.flow.plasmas import evaluate_plasmas

    measures = {"flow": evaluate_flow, "density": evaluate_densities, "phase space": evaluate_plasmas}
    if kind not in measures:
        raise PerrinError(
            f"expected showers, jets, flows, densities or phase space, given {kind} in {file}: there are no metrics of it"
        )
    return measures[kind](read_flow(file), read_flow(truth))


def view(a: Namespace) -> None:
    """`perrin view FILE`: one HTML page of plots beside it."""
    from perrin.modalities import page_beside
    from perrin.modalities.particle.view import write_page

    out = a.out or page_beside(a.file)
    write_page(out, Path(a.file), a.beside)
    print(f"plots in {out}")


def data(a: Namespace) -> None:
    """`perrin data particle/NAME -o FILE`, for the names of `chunks.DATA`."""
    preset = a.target.partition("/")[2]
    if a.seed < 0:
        raise PerrinError(f"expected --seed of at least 0, given {a.seed}")
    from perrin.modalities.particle.bodies import commands as bodies

    makers = {"jets": _jets, "kolmogorov": _kolmogorov, "showers": _showers} | bodies.MAKERS
    if preset not in makers:
        raise PerrinError(f"expected particle/{', particle/'.join(makers)}, given {a.target!r}")
    makers[preset](a, settled(a, preset))


def _jets(a: Namespace, b: Namespace) -> None:
    from perrin.modalities.particle.jets.files import CLASSES, Jets, check_suffix, write_jets
    from perrin.modalities.particle.jets.pythia import CHUNK, check_packages

    if a.file:
        _jets_of_events(a, b.n)
        return
    if a.pt or a.radius:
        raise PerrinError(
            "expected --pt and --radius with --file and its events only: the recipe has its own"
        )
    if a.kind not in CLASSES:
        raise PerrinError(
            f"expected --class with one of {', '.join(CLASSES)}, given {a.kind or 'none'}: choose one of them"
        )
    check_suffix(a.out)
    check_packages()
    count = -(-b.n // CHUNK)
    key = {"what": "jets", "class": a.kind, "seed": a.seed}
    parts = chunks(a, key, count, _make_jets, (a.kind, a.seed))
    whole = Jets(
        *(np.concatenate([parts[k][name] for k in range(count)])[: b.n] for name in ("particles", "jets"))
    )
    words = {"generator": "Pythia 8, Monash, 13 TeV, and FastJet, anti-kT R = 0.4", "class": a.kind}
    write_jets(a.out, whole, words | {"seed": str(a.seed)})
    finish(a, key)
    print(f"{counted(b.n, a.kind + ' jets')} in {a.out}")


def _jets_of_events(a: Namespace, n: int) -> None:
    from perrin.modalities.particle.jets.events import clustered
    from perrin.modalities.particle.jets.files import check_suffix, write_jets
    from perrin.modalities.particle.jets.pythia import HIGH, LOW, RADIUS
    from perrin.modalities.particle.sampling import parse_range
    from perrin.run.outputs import record_path
    from perrin.run.record import record, write_record

    if len(a.file) > 1:
        raise PerrinError(f"expected one --file of events, given {len(a.file)}: make a file of jets for each")
    if a.kind:
        raise PerrinError("expected --class without --file only: what events hold is not known")
    radius = RADIUS if a.radius is None else a.radius
    if not 0 < radius < 10:
        raise PerrinError(f"expected --radius above 0, given {radius:g}")
    pt = parse_range(a.pt, "--pt") or (LOW, HIGH)
    check_suffix(a.out)
    jets, events = clustered(a.file[0], n, pt=pt, radius=radius, seed=a.seed)
    words = {"source": Path(a.file[0]).name, "clustering": f"FastJet, anti-kT R = {radius:g}"}
    write_jets(a.out, jets, words)
    write_record(record_path(a.out), record("data", a))
    fewer = f", the {n} asked for are not there" if len(jets) < a.n else ""
    print(f"{len(jets)} jets of {events} events in {a.out}{fewer}")


def _kolmogorov(a: Namespace, b: Namespace) -> None:
    from perrin.modalities.particle.flow.data import CHUNK, check, trajectories
    from perrin.modalities.particle.flow.files import Trajectories, check_suffix, write_flow
    from perrin.modalities.particle.flow.solver import Flow

    check_suffix(a.out)
    flow = Flow(viscosity=b.viscosity, size=max(64, b.grid))
    check(flow, times=b.times, interval=b.interval, grid=b.grid)
    count = -(-b.n // CHUNK)
    key = {"what": "kolmogorov", "seed": a.seed, "times": b.times, "interval": b.interval, "grid": b.grid}
    key["viscosity"] = b.viscosity
    parts = chunks(a, key, count, _make_flow, (flow, a.seed, b.times, b.interval, b.grid))
    made = trajectories(flow, [parts[k]["vorticity"] for k in range(count)], b.interval)
    write_flow(a.out, Trajectories(made.values[: b.n], made.interval, made.words))
    finish(a, key)
    print(f"{counted(b.n, 'trajectories')} of {counted(b.times, 'states')} in {a.out}")


def _showers(a: Namespace, b: Namespace) -> None:
    from perrin.modalities.particle.showers.files import Showers, check_suffix, read_showers, write_showers

    if not a.file:
        raise PerrinError("expected --file with CaloChallenge HDF5 files (data set 2), given none")
    check_suffix(a.out)
    sets = [read_showers(path) for path in a.file]
    whole = Showers(np.concatenate([s.incident for s in sets]), np.concatenate([s.voxels for s in sets]))
    write_showers(a.out, whole, {"source": ", ".join(Path(f).name for f in a.file)})
    low, high = whole.incident.min() / 1000, whole.incident.max() / 1000
    print(f"{counted(len(whole), 'showers')} of {low:.3g} to {high:.3g} GeV in {a.out}")


def _make_jets(chunk: int) -> dict[str, np.ndarray]:
    from perrin.modalities.particle.jets.pythia import make_chunk

    kind, seed = STATE["arguments"]
    jets = make_chunk(kind, seed, chunk)
    return {"particles": jets.particles, "jets": jets.jets}


def _make_flow(chunk: int) -> dict[str, np.ndarray]:
    from perrin.modalities.particle.flow.data import make_chunk

    flow, seed, times, interval, grid = STATE["arguments"]
    return {"vorticity": make_chunk(flow, seed, chunk, times=times, interval=interval, grid=grid)}
