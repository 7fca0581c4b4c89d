"""Quality and speed of a molecule bundle, on this machine.

    python benchmarks/molecules.py quality --seeds 3 -n 1000     the README's table
    python benchmarks/molecules.py data                          the evaluator on all of QM9
    python benchmarks/molecules.py speed                         100 molecules at 50 evaluations

Quality is measured by both protocols over several seeds, with the standard error over them, and beside it what the same
evaluator says of as many real QM9 molecules (the test split). Speed is wall-clock time of the command that a user
types, start-up and writing included, and of the sampling alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def perrin(*words: str) -> float:
    """Run the command line; seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "perrin", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def quality(a: argparse.Namespace) -> dict[str, object]:
    """Both protocols over seeds, and the data under the same evaluator."""
    from perrin.modalities.molecule.files import read_molecules
    from perrin.modalities.molecule.metrics import evaluate, format_table
    from perrin.modalities.molecule.qm9 import load_qm9

    data = load_qm9()
    split = data.split()
    train = data.subset(split["train"]).smiles()
    parts, seconds = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, a.seeds + 1):
            path = Path(folder) / f"{seed}.sdf"
            options = ["--steps", str(a.steps)] if a.steps else []
            seconds += perrin(
                "sample", a.bundle, "-n", str(a.n), "-o", str(path), "--seed", str(seed), *options
            )
            parts.append(read_molecules(path))
    ours = evaluate(parts, "both", reference=train, label=a.bundle)
    test = split["test"][data.has_bonds[split["test"]]][: a.n * a.seeds]
    real = evaluate(
        [data.molecule(i) for i in test.tolist()],
        "both",
        reference=train,
        groups=a.seeds,
        label="QM9 test split",
    )
    print(format_table(ours, width=150))
    print(format_table(real, width=150))
    return {"ours": ours, "data": real, "seconds": round(seconds, 1)}


def data(a: argparse.Namespace) -> dict[str, object]:
    """What the evaluator says of all of QM9."""
    from perrin.modalities.molecule.metrics import evaluate, format_table
    from perrin.modalities.molecule.qm9 import load_qm9

    everything = load_qm9()
    molecules = [everything.molecule(i) for i in range(len(everything))]
    result = evaluate(molecules, "lookup", label="QM9, all of it")
    print(format_table(result, width=150))
    with_bonds = [m for m in molecules if m.bonds is not None]
    bonds = evaluate(with_bonds, "bonds", label="QM9, all with bonds")
    print(format_table(bonds, width=150))
    return {"lookup": result, "bonds": bonds}


def speed(a: argparse.Namespace) -> dict[str, object]:
    """Time of `perrin sample -n 100 --steps 50`, best of three."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(3):
            path = Path(folder) / f"{k}.sdf"
            steps = ["--steps", str(a.steps or 50)]
            total = perrin("sample", a.bundle, "-n", "100", "-o", str(path), "--seed", str(k), *steps)
            record = json.loads(path.with_name(path.name + ".run.json").read_text())
            rows.append(
                {"total_s": round(total, 1), "sampling_s": record["result"]["seconds"], **record["result"]}
            )
    best = min(rows, key=lambda row: row["total_s"])
    print(
        f"100 molecules at {best['evaluations']} evaluations: {best['total_s']} s in all, {best['sampling_s']} s sampling"
    )
    return {"runs": rows, "best": best}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("quality", "speed", "data"))
    parser.add_argument("--bundle", default="molecule/qm9")
    parser.add_argument("-n", type=int, default=1000, help="molecules per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="network evaluations (default: the bundle's)")
    parser.add_argument("--json", help="also write the numbers here")
    a = parser.parse_args()
    result = {"quality": quality, "speed": speed, "data": data}[a.what](a)
    result |= {"machine": f"{platform.processor() or platform.machine()}, {platform.platform()}"}
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
