"""`perrin sample particle/…`: showers and jets into a file, resumable, in as many processes as there are cores."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, counted
from perrin.run.device import choose_device

_STATE: dict[str, Any] = {}
"""The work of this process: set once per worker by `_setup`."""


def parse_range(text: str | None, option: str, *, mev: bool = False) -> tuple[float, float] | None:
    """`1..50GeV`, `900..1000`, `1TeV` or, for energies, `500MeV` as numbers in GeV.

    Raises:
        PerrinError: it is something else, or the second number is below the first.
    """
    if text is None:
        return None
    number = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
    match = re.fullmatch(rf"\s*{number}\s*(?:\.\.\s*{number})?\s*(TeV|GeV|MeV)?\s*", text)
    if not match or (match[2] and float(match[2]) < float(match[1])) or (match[3] == "MeV" and not mev):
        raise PerrinError(
            f"expected {option} such as 1..50GeV or 10GeV, given {text!r}: give one number or two, ascending, in GeV"
        )
    scale = {"TeV": 1e3, "MeV": 1e-3}.get(match[3], 1.0)
    low = float(match[1]) * scale
    return low, float(match[2]) * scale if match[2] else low


def sample(a: Namespace) -> None:
    """See the module's text."""
    from perrin.core.plan import plan_table
    from perrin.modalities import find_bundle, load
    from perrin.run.outputs import record_path
    from perrin.run.partial import PartialStore
    from perrin.run.pool import cpu_count, map_unordered
    from perrin.run.progress import progress
    from perrin.run.record import record, write_record

    energy = parse_range(a.energy, "--energy", mev=True)
    pt, mass = parse_range(a.pt, "--pt"), parse_range(a.mass, "--mass")
    device = choose_device(a.device)
    model = load(str(find_bundle(a.target)), device=device)
    check_options(model.kind, energy=energy, kind=a.kind, pt=pt, mass=mass)
    model.precision, model.mode = a.precision, a.mode
    options = model.sampling.changed(steps=a.steps, solver=a.solver)
    plan = options.plan(model.network.second)
    first = options.plan(model.network.first, first=True)
    output = Path(a.out)
    wish: Any
    if model.kind == "showers":
        from perrin.modalities.particle.showers.files import check_suffix

        wish = energy
        model.incident(range(1), a.seed, energy)
    else:
        from perrin.modalities.particle.jets.files import check_suffix
        from perrin.modalities.particle.jets.model import Wish

        wish = Wish(kind=a.kind or model.config.classes[0], pt=pt, mass=mass)
        model.check(wish)
    check_suffix(output)
    if a.dry_run:
        print(plan_table(first) + "\n" + plan_table(plan))
        return
    key = {"weights": model.sha256, "seed": a.seed, "wish": str(wish), "sampling": options.to_json()}
    key |= {} if a.precision == "32-true" else {"precision": a.precision}
    store = PartialStore(output, key)
    rows: dict[int, tuple[np.ndarray, ...]] = {}
    for indices, part in store.load():
        rows |= {i: (x, y) for i, x, y in zip(indices, part["first"], part["second"]) if i < a.n}
    done = len(rows)
    workers = a.workers or (cpu_count() if device == "cpu" else 1)
    batch = a.batch or ((50 if model.kind == "showers" else 250) if device == "cpu" else 1000)
    left = [i for i in range(a.n) if i not in rows]
    if device == "cpu" and workers > 1:
        batch = min(batch, max(4, -(-len(left) // (4 * workers))))
    units = [tuple(left[k : k + batch]) for k in range(0, len(left), batch)]
    begin = time.perf_counter()
    work = map_unordered(
        _run,
        units,
        workers=workers if len(left) >= 16 else 1,
        setup=_setup,
        arguments=(model, a.seed, wish, options),
    )
    with progress(f"sampling {a.target}", a.n) as advance:
        advance(done)
        for unit, (x, y) in work:
            store.save(unit, {"first": x, "second": y})
            rows |= dict(zip(unit, zip(x, y)))
            advance(len(unit))
    seconds = time.perf_counter() - begin
    columns = [np.stack([rows[i][k] for i in range(a.n)]) for k in (0, 1)]
    words = {"generator": f"perrin sample {a.target}, seed {a.seed}", "model_sha256": model.sha256}
    _write(model.kind, output, columns, words)
    result = {
        "samples": a.n,
        "made": len(left),  # in these seconds; the rest is from unfinished work
        "evaluations": plan.nfe,
        "first_evaluations": first.nfe,
        "seconds": round(seconds, 2),
    }
    result |= {"workers": workers, "device": device}
    content = record(
        "sample",
        a,
        bundle={"path": a.target, "sha256": model.sha256},
        sampling=options.to_json(),
        result=result,
    )
    write_record(record_path(output), content)
    store.remove()
    rate = f", {1000 * seconds / len(left):.3g} ms each" if left else ", all from unfinished work"
    print(
        f"{counted(a.n, model.kind)} in {output}: {seconds:.1f} s{rate}, {first.nfe} + {plan.nfe} evaluations"
    )
    if a.view:
        from perrin.modalities.particle.view import write_page

        write_page(a.view, output, None)
        print(f"plots in {a.view}")


def check_options(model: str, *, energy: Any, kind: Any, pt: Any, mass: Any) -> None:
    """Raise a `PerrinError` for an option of the other kind of model."""
    given = {"--class": kind, "--pt": pt, "--mass": mass} if model == "showers" else {"--energy": energy}
    for option, value in given.items():
        if value is not None:
            raise PerrinError(f"expected options of {model}, given {option}: leave it out")


def _setup(model: Any, seed: int, wish: Any, options: Any) -> None:
    _STATE.update(model=model, seed=seed, wish=wish, options=options)


def _run(unit: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    model = _STATE["model"]
    run: Callable[..., Any] = model.run
    found = run(unit, _STATE["seed"], _STATE["wish"], _STATE["options"])
    return (found.incident, found.voxels) if model.kind == "showers" else (found.particles, found.jets)


def _write(kind: str, output: Path, columns: list[np.ndarray], words: dict[str, str]) -> None:
    if kind == "showers":
        from perrin.modalities.particle.showers.files import Showers, check_showers, write_showers

        write_showers(output, check_showers(Showers(columns[0], columns[1]), "the samples"), words)
    else:
        from perrin.modalities.particle.jets.files import Jets, check_jets, write_jets

        write_jets(output, check_jets(Jets(columns[0], columns[1]), "the samples"), words)
