"""Showers, jets, flows, densities and plasmas against their targets, beside published values and truth against truth.

    perrin sample particle/showers -n 3160 -o showers.h5
    perrin sample particle/showers-fast --steps 1 -n 3160 -o single.h5
    perrin sample particle/jets --class top -n 10000 -o top.h5
    perrin simulate particle/kolmogorov --from test.h5 -n 16 --intervals 20 -o flow.h5
    python benchmarks/particle.py --showers showers.h5 geant4_test.h5 --single-shot single.h5 geant4_test.h5 \\
        --jets top top.h5 pythia_top.h5 --flow flow.h5 test.h5 --density runs.h5 densities.h5 \\
        --plasma plasma.h5 plasmas.h5 [--emulator emulator.h5] [--splits 3] [--break-even] [--json FILE]

What is compared with what is written in `docs/particle/metrics.md`. Times are read from the `.run.json` beside each file.
`--emulator` gives files of `benchmarks/emulator.py`, of the same starts; each is scored beside the model of its field.
Published rows are on other data (CaloChallenge data set 2: 100,000 showers of 1 to 1000 GeV; JetNet30: 50,000 real jets), so
they say what is possible, not who is better.

`--break-even` says after how many samples a model has paid for the simulator's time that its training data took,
`N = n s / (s − m)` for n samples of s each and m for one of the model's. Training itself, minutes on one GPU or core, is not
counted. The simulator is timed here by its CPU time on one core, but Geant4, which is not here: its time is a parameter.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perrin.errors import PerrinError
from perrin.modalities.particle.commands import compare, kind_of
from perrin.modalities.particle.metrics.report import print_lines, table_of
from perrin.run.atomic import write_json

SHOWERS = (
    ("CaloDREAM", "0.531", "0.521", "74 ms at batch 100"),
    ("CaloDiffusion", "0.577", "0.591", "100 ms, 0.52 M parameters"),
    ("CaloScore, one step", "0.747", "0.902", "2.5 ms"),
    ("Geant4 against itself", "0.4996", "–", "FPD·10³ 10.8"),
    ("classical parameterisation against Geant4", "1.000", "1.000", "–"),
)
"""Published for CaloChallenge data set 2: AUC low, AUC high, time per shower."""
JETS = (
    ("MPGAN, gluon", "0.117", "measured at 3,000 jets"),
    ("this recipe of Pythia, gluon", "0.18", "at 10,000 jets; sampling error about 0.1"),
    ("this recipe of Pythia, top", "0.26", "likewise"),
    ("this recipe of Pythia, quark", "0.76", "likewise"),
)
"""FPND to the real JetNet30."""
TRAINED = {"showers": 12_640, "jets": 72_000, "flow": 128 * 61, "density": 800 * 9, "plasma": 160 * 41}
"""Samples or states that the bundles that ship were trained on."""
GEANT4 = (100.0, 1000.0, 10_000.0)
"""Milliseconds of a shower for which the break-even count is told."""


def value(result: dict[str, Any], name: str) -> tuple[float, float]:
    """A metric of ours and of truth against truth."""
    found = result["metrics"][name]
    return found["value"], found["truth_value"]


def recorded(file: str) -> dict[str, Any]:
    """What `perrin sample` or `perrin simulate` wrote down of its work."""
    path = Path(file + ".run.json")
    return dict(json.loads(path.read_text()).get("result", {})) if path.is_file() else {}


def milliseconds(file: str) -> float | None:
    """Per sample, of one process."""
    result = recorded(file)
    count = result.get("made", result.get("samples"))
    return 1000 * result["seconds"] * (result.get("workers") or 1) / count if count else None


def showers(
    ours: str, truth: str, splits: int, rows: list[tuple[str, ...]], name: str = "showers", goal: float = 0.60
) -> dict[str, Any]:
    """Metrics and targets of showers; `goal` is the largest AUC."""
    result = compare("showers", ours, truth, splits=splits)
    print_lines(f"{name}: {ours} like {truth}", table_of(result), [f"{result['samples']} of each"])
    for metric in ("AUC low (voxels)", "AUC high (features)"):
        a, b = value(result, metric)
        rows.append((f"{name}, {metric}", f"≤ {goal:.2f}", f"{a:.3f}", f"{b:.3f}", verdict(a <= goal)))
    a, b = value(result, "response, from truth's")
    rows.append((f"{name}, response", "within 1 %", f"{a:+.2f} %", f"{b:+.2f} %", verdict(abs(a) <= 1)))
    gpu = str(recorded(ours).get("device", "cpu")).startswith("cuda")
    rows.append(timed(f"{name}, {'GPU' if gpu else 'CPU'} time of a shower", ours, 5 if gpu else 100))
    return result


def jets(kind: str, ours: str, truth: str, splits: int, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    """Metrics and targets of a class of jets."""
    result = compare("jets", ours, truth, jet=kind, splits=splits)
    print_lines(f"{kind} jets: {ours} like {truth}", table_of(result), [f"{result['samples']} of each"])
    a, b = value(result, "FPND (real JetNet30)")
    rows.append((f"{kind}, FPND above truth's", "≤ 0.10", f"{a:.3f}", f"{b:.3f}", verdict(a - b <= 0.10)))
    a, b = value(result, "W1M (relative mass)")
    rows.append(
        (f"{kind}, W1M · 10³", "≤ 1.5 × floor", f"{1e3 * a:.2f}", f"{1e3 * b:.2f}", verdict(a <= 1.5 * b))
    )
    row = timed(f"{kind}, time of a jet (0.1 ms is for an H100)", ours, 0.1)
    gpu = str(recorded(ours).get("device", "cpu")).startswith("cuda")
    rows.append(row if gpu else (*row[:-1], "a CPU's"))
    return result


def forecasts(
    kind: str, result: dict[str, Any], emulator: dict[str, Any] | None, rows: list[tuple[str, ...]]
) -> None:
    """Rows on the fair CRPS beside the emulator's, or the best reference's where there is none."""
    for name in (n for n in result["metrics"] if n.startswith("fair CRPS / σ")):
        a = value(result, name)[0]
        if emulator is not None:
            best, whose = value(emulator, name)[0], "the emulator's"
        else:
            tail = name.removeprefix("fair CRPS")
            others = [v["value"] for n, v in result["metrics"].items() if n.endswith(tail) and n != name]
            best, whose = min(others), "references"
        rows.append((f"{kind}, {name}", f"< {best:.4f}, {whose}", f"{a:.4f}", "–", verdict(a < best)))


def field(
    kind: str, ours: str, truth: str, emulator: str | None, rows: list[tuple[str, ...]]
) -> dict[str, Any]:
    """Metrics and targets of a `flow`, a `density` or `phase space`."""
    result = compare(kind, ours, truth)
    print_lines(f"{kind}: {ours} like {truth}", table_of(result), [f"{result['samples']} trajectories"])
    for metric, what, goal in TARGETS[kind]:
        a, b = value(result, metric)
        percent = "ratio" in metric
        wanted = f"within {goal:g} %" if percent else f"≤ {goal:.0e}".replace("e-0", "e-")
        form = "{:.1f} %" if percent else "{:.1e}"
        rows.append((f"{kind}, {what}", wanted, form.format(a), form.format(b), verdict(a <= goal)))
    other = None
    if emulator:
        other = compare(kind, emulator, truth)
        print_lines(f"{kind}: emulator {emulator}", table_of(other), [f"{other['samples']} trajectories"])
        result["emulator"] = other
    forecasts(kind, result, other, rows)
    return result


TARGETS = {
    "flow": (
        ("spectrum, mean |ratio − 1|", "spectrum", 10),
        ("divergence, largest / largest gradient", "divergence (float32)", 1e-6),
    ),
    "density": (
        ("power, mean |ratio − 1|", "power", 10),
        ("mass, largest relative change", "mass (float32)", 1e-6),
    ),
    "phase space": (
        ("field energy, |ratio − 1| of its mean", "field energy", 10),
        ("charge, largest relative change", "charge (float32)", 1e-6),
        ("momentum, largest change", "momentum (float32)", 1e-6),
        ("energy on the grid, largest relative change", "energy (float32)", 1e-6),
    ),
}
"""Metric, its name in the table, and the largest value: in per cent, or of a quantity that is conserved."""


def state_milliseconds(file: str) -> float | None:
    """Of a state, from what `perrin simulate` recorded: CPU time where it ran on one, which others do not lengthen."""
    from perrin.modalities.particle.flow.files import read_flow

    result = recorded(file)
    seconds = result.get("cpu_seconds" if result.get("device") == "cpu" else "seconds", result.get("seconds"))
    if seconds is None:
        return None
    found = read_flow(file).values
    return 1000 * float(seconds) / (found.shape[0] * (found.shape[1] - 1))


def solver_milliseconds(kind: str, truth: str) -> float | None:
    """Of a jet or a state, on one core; `None` where the simulator is not here."""
    import torch

    torch.set_num_threads(1)
    if kind == "jets":
        try:
            from perrin.modalities.particle.jets.pythia import CHUNK, check_packages, make_chunk

            check_packages()
        except PerrinError:
            return None
        begin = time.process_time()
        make_chunk("gluon", 1_000, 0)
        return 1000 * (time.process_time() - begin) / CHUNK
    from perrin.modalities.particle.flow.files import read_flow

    data = read_flow(truth)
    states = data.values.shape[1]
    if kind == "flow":
        from perrin.modalities.particle.flow.solver import Flow, resample

        names = ("size", "viscosity", "friction", "force", "wave", "dt")
        solver = Flow(**{k: data.words[k] for k in names})
        start = resample(torch.from_numpy(data.values[:8, 0]), solver.size)
        begin = time.process_time()
        solver.run(start, data.interval)
        return 1000 * (time.process_time() - begin) / len(start)
    from perrin.modalities.particle.bodies import commands
    from perrin.modalities.particle.bodies.nbody import Gravity
    from perrin.modalities.particle.bodies.plasma import Plasma
    from perrin.modalities.particle.chunks import STATE

    grid = data.values.shape[-1]
    begin = time.process_time()
    if kind == "density":
        gravity = Gravity(**{k: data.words[k] for k in Gravity.__dataclass_fields__ if k in data.words})
        times = [data.begin + k * data.interval for k in range(states)]
        STATE["arguments"] = (gravity, 0, times, grid, False)
        commands._make_nbody(0)
    else:
        plasma = Plasma(**{k: data.words[k] for k in Plasma.__dataclass_fields__ if k in data.words})
        case = commands.CASES[data.words["case"]] | {"thermal": data.words["thermal"]}
        STATE["arguments"] = (plasma, data.words["case"], case, 0, states, data.interval, grid, False)
        commands._make_plasma(0)
    return 1000 * (time.process_time() - begin) / states


def break_even(kind: str, model: float | None, solver: float | None, rows: list[tuple[str, ...]]) -> None:
    """See the module's text."""
    n = TRAINED[kind]
    if model is None:
        rows.append((kind, "not recorded", "–", "–"))
    elif kind == "showers":
        told = "; ".join(f"{_paid(n, g, model)} at {g / 1000:g} s" for g in GEANT4)
        rows.append((kind, f"{model:.3g} ms", "Geant4: not here", told))
    elif solver is None:
        rows.append((kind, f"{model:.3g} ms", "not here", "–"))
    else:
        rows.append((kind, f"{model:.3g} ms", f"{solver:.3g} ms", _paid(n, solver, model)))


def _paid(n: int, solver: float, model: float) -> str:
    return f"{n * solver / (solver - model):,.0f}" if solver > model else "none: the simulator is faster"


def timed(name: str, file: str, target: float) -> tuple[str, ...]:
    """A row on time per sample on the machine that made the file."""
    ms = milliseconds(file)
    if ms is None:
        return (name, f"≤ {target:g} ms", "not recorded", "–", "–")
    return (name, f"≤ {target:g} ms", f"{ms:.3g} ms", "–", verdict(ms <= target))


def verdict(good: bool) -> str:
    """`met` or `missed`."""
    return "met" if good else "missed"


def table(title: str, columns: tuple[str, ...], rows: Any) -> None:
    """Print rows."""
    out = Table(title=title, title_justify="left")
    for column in columns:
        out.add_column(column)
    for row in rows:
        out.add_row(*row)
    Console(width=120).print(out)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--showers", nargs=2, metavar=("OURS", "TRUTH"))
    parser.add_argument("--single-shot", nargs=2, metavar=("OURS", "TRUTH"), help="showers of one evaluation")
    parser.add_argument("--jets", nargs=3, action="append", default=[], metavar=("CLASS", "OURS", "TRUTH"))
    parser.add_argument("--flow", nargs=2, metavar=("OURS", "TRUTH"))
    parser.add_argument("--density", nargs=2, metavar=("OURS", "TRUTH"))
    parser.add_argument("--plasma", nargs=2, metavar=("OURS", "TRUTH"))
    parser.add_argument(
        "--emulator", action="append", default=[], metavar="FILE", help="of benchmarks/emulator.py"
    )
    parser.add_argument("--break-even", action="store_true", help="time the simulators")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    paid: list[tuple[str, ...]] = []
    results: dict[str, Any] = {}
    if a.showers:
        results["showers"] = showers(*a.showers, a.splits, rows)
    if a.single_shot:
        results["single-shot"] = showers(*a.single_shot, a.splits, rows, "single shot", 0.70)
    if a.showers or a.single_shot:
        table("published, CaloChallenge data set 2", ("model", "AUC low", "AUC high", "time"), SHOWERS)
    for kind, ours, truth in a.jets:
        results[kind] = jets(kind, ours, truth, a.splits, rows)
    if a.jets:
        table("FPND to the real JetNet30, published or measured before", ("jets", "FPND", "note"), JETS)
    emulators = {kind_of(file): file for file in a.emulator}
    fields = {"flow": a.flow, "density": a.density, "phase space": a.plasma}
    for kind, files in fields.items():
        if files:
            results[kind] = field(kind, *files, emulators.get(kind), rows)
    if a.break_even:
        for files in (a.showers, a.single_shot):
            if files:
                break_even("showers", milliseconds(files[0]), None, paid)
        if a.jets:
            solver = solver_milliseconds("jets", "")
            for _, ours, _ in a.jets:
                break_even("jets", milliseconds(ours), solver, paid)
        for kind, files in fields.items():
            if files:
                name = "plasma" if kind == "phase space" else kind
                solver = solver_milliseconds(name, files[1])
                break_even(name, state_milliseconds(files[0]), solver, paid)
        table("break-even", ("what", "one of the model's", "of the simulator's", "paid after"), paid)
    table("targets", ("what", "target", "ours", "truth vs truth", ""), rows)
    if a.json:
        write_json(a.json, results)


if __name__ == "__main__":
    main()
