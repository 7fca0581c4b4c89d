"""Showers, jets, flows and densities against their targets, beside published values and truth against truth in the same run.

    perrin sample particle/showers -n 3160 -o showers.h5
    perrin sample particle/showers-fast --steps 1 -n 3160 -o single.h5
    perrin sample particle/jets --class top -n 10000 -o top.h5
    perrin simulate particle/kolmogorov --from test.h5 -n 16 --intervals 20 -o flow.h5
    python benchmarks/particle.py --showers showers.h5 geant4_test.h5 --single-shot single.h5 geant4_test.h5 \\
        --jets top top.h5 pythia_top.h5 --flow flow.h5 test.h5 --density runs.h5 densities.h5 \\
        [--splits 3] [--break-even] [--json FILE]

What is compared with what is written in `docs/particle/metrics.md`. Times are read from the `.run.json` beside each file.
Published rows are on other data (CaloChallenge data set 2: 100,000 showers of 1 to 1000 GeV; JetNet30: 50,000 real jets), so
they say what is possible, not who is better.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perrin.modalities.particle.commands import compare
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


def value(result: dict[str, Any], name: str) -> tuple[float, float]:
    """A metric of ours and of truth against truth."""
    found = result["metrics"][name]
    return found["value"], found["truth_value"]


def milliseconds(file: str) -> float | None:
    """Per sample, from what `perrin sample` recorded."""
    path = Path(file + ".run.json")
    if not path.is_file():
        return None
    result = json.loads(path.read_text()).get("result", {})
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
    rows.append(timed(f"{name}, CPU time of a shower", ours, 100))
    table("published, CaloChallenge data set 2", ("model", "AUC low", "AUC high", "time"), SHOWERS)
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
    rows.append(timed(f"{kind}, time of a jet (0.1 ms is for an H100)", ours, 0.1))
    return result


def flow(ours: str, truth: str, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    """Metrics and targets of a flow."""
    result = compare("flow", ours, truth)
    print_lines(f"flow: {ours} like {truth}", table_of(result), [f"{result['samples']} trajectories"])
    a, b = value(result, "spectrum, mean |ratio − 1|")
    rows.append(("flow, spectrum", "within 10 %", f"{a:.1f} %", f"{b:.1f} %", verdict(a <= 10)))
    a, b = value(result, "divergence, largest / largest gradient")
    rows.append(("flow, divergence (float32)", "≤ 1e-6", f"{a:.1e}", f"{b:.1e}", verdict(a <= 1e-6)))
    return result


def density(ours: str, truth: str, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    """Metrics and targets of a density of bodies."""
    result = compare("density", ours, truth)
    print_lines(f"density: {ours} like {truth}", table_of(result), [f"{result['samples']} trajectories"])
    a, b = value(result, "power, mean |ratio − 1|")
    rows.append(("density, power", "within 10 %", f"{a:.1f} %", f"{b:.1f} %", verdict(a <= 10)))
    a, b = value(result, "mass, largest relative change")
    rows.append(("density, mass (float32)", "≤ 1e-6", f"{a:.1e}", f"{b:.1e}", verdict(a <= 1e-6)))
    for name in (n for n in result["metrics"] if n.startswith("fair CRPS / σ")):
        a = value(result, name)[0]
        best = min(
            value(result, name.replace("CRPS", f"CRPS of {k}"))[0] for k in ("persistence", "linear theory")
        )
        wanted = f"< {best:.3f}, references"
        rows.append((f"density, {name}", wanted, f"{a:.3f}", "–", verdict(a < best)))
    return result


def break_even(file: str, truth: str) -> None:
    """After how many states the model has paid for its training data, if a state of it is cheaper than the solver's."""
    import torch

    from perrin.modalities.particle.flow.files import read_flow
    from perrin.modalities.particle.flow.solver import Flow, resample

    record = json.loads(Path(file + ".run.json").read_text())
    found = read_flow(file).values
    states = found.shape[0] * (found.shape[1] - 1)
    model = record["result"]["seconds"] / states
    data = read_flow(truth)
    names = ("size", "viscosity", "friction", "force", "wave", "dt")
    solver = Flow(**{k: data.words[k] for k in names})
    start = resample(torch.from_numpy(data.values[:8, 0]), solver.size)
    begin = time.perf_counter()
    solver.run(start, data.interval)
    cost = (time.perf_counter() - begin) / len(start)
    ratio = f"{cost / model:.2g} times the model's" if model else ""
    print(
        f"one state: solver {1000 * cost:.2f} ms, model {1000 * model:.2f} ms; the solver's cost is {ratio}"
    )
    if cost > model:
        print(f"break-even after {len(data) * data.values.shape[1] * cost / (cost - model):.0f} states")
    else:
        print("no break-even on this machine: the solver of this small flow is the faster one")


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
    parser.add_argument("--break-even", action="store_true", help="time the flow's solver")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    results: dict[str, Any] = {}
    if a.showers:
        results["showers"] = showers(*a.showers, a.splits, rows)
    if a.single_shot:
        results["single-shot"] = showers(*a.single_shot, a.splits, rows, "single shot", 0.70)
    for kind, ours, truth in a.jets:
        results[kind] = jets(kind, ours, truth, a.splits, rows)
    if a.jets:
        table("FPND to the real JetNet30, published or measured before", ("jets", "FPND", "note"), JETS)
    if a.flow:
        results["flow"] = flow(*a.flow, rows)
        if a.break_even:
            break_even(*a.flow)
    if a.density:
        results["density"] = density(*a.density, rows)
    table("targets", ("what", "target", "ours", "truth vs truth", ""), rows)
    if a.json:
        write_json(a.json, results)


if __name__ == "__main__":
    main()
