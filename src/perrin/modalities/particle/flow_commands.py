"""`perrin simulate` and `perrin invert` of flows and of densities of bodies."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

import numpy as np

from perrin.errors import PerrinError, check_counts, counted
from perrin.run.device import choose_device


def _model(a: Namespace) -> Any:
    from perrin.modalities import find_bundle, load

    model = load(str(find_bundle(a.target)), device=choose_device(a.device))
    model.precision, model.mode = a.precision, a.mode
    return model


def _read(path: str, model: Any) -> Any:
    """A file of fields of the model's kind."""
    from perrin.modalities.particle.flow.files import read_flow

    given = read_flow(path)
    if given.name != model.config.field:
        raise PerrinError(f"expected {model.config.field} in {path}, as the model has, given {given.name}")
    return given


def simulate(a: Namespace) -> None:
    """`perrin simulate particle/kolmogorov --from FILE -n MEMBERS --intervals N -o FILE`."""
    from perrin.core.plan import plan_table
    from perrin.modalities.particle.flow.files import Trajectories, check_suffix, write_flow
    from perrin.modalities.particle.flow.plasmas import energy_variables

    check_counts(intervals=a.intervals)
    if not a.start:
        raise PerrinError(
            "expected --from with states to start from, given none: 'perrin data particle/kolmogorov', nbody or plasma "
            "makes some"
        )
    check_suffix(a.out)
    model = _model(a)
    options = model.sampling.changed(steps=a.steps, solver=a.solver)
    if a.dry_run:
        print(plan_table(options.plan(model.network)))
        return
    given = _read(a.start, model)
    model.check(given.values[:, 0], given.interval, given.words)
    begin, busy = time.perf_counter(), time.process_time()
    found = model.simulate(
        given.values[:, 0],
        a.intervals,
        members=a.n,
        seed=a.seed,
        batch=a.batch or 64,
        steps=options.steps,
        solver=options.solver,
    )
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    words = {**model.config.words, "members": a.n, "generator": f"perrin simulate {a.target}, seed {a.seed}"}
    runs = found.reshape(-1, *found.shape[2:])
    made = Trajectories(runs, model.config.interval, words, given.name, given.begin)
    write_flow(a.out, made, energy_variables(made) if made.name == "phase_space" else None)
    _record(a, model, options, seconds, busy)
    each = 1000 * seconds / (found.shape[0] * found.shape[1] * a.intervals)
    print(
        f"{counted(a.n, 'runs')} from each of {counted(len(found), 'states')} in {a.out}: "
        f"{seconds:.1f} s, {each:.3g} ms for a state"
    )


def invert(a: Namespace) -> None:
    """`perrin invert particle/kolmogorov --measured FILE -n SAMPLES -o FILE`: the state at the last time, given the one
    before it and a sparse or blurred, noisy measurement."""
    import torch

    from perrin.core import sample_seeds
    from perrin.core.plan import plan_table
    from perrin.modalities.particle.flow.files import Trajectories, check_suffix, write_flow
    from perrin.modalities.particle.flow.invert import posterior
    from perrin.run.pool import one_thread

    check_counts(every=a.every)
    if not a.measured:
        raise PerrinError(
            "expected --measured with fields of at least two times, given none: name an HDF5 file, NaN where nothing was "
            "measured"
        )
    if not (a.noise > 0 and (a.blur is None or a.blur > 0)):
        raise PerrinError(f"expected --noise and --blur above 0, given {a.noise:g} and {a.blur or 'none'}")
    check_suffix(a.out)
    model = _model(a)
    options = model.sampling.changed(steps=a.steps, solver=a.solver or "sde-dpmpp-2m", start=0.999)
    if a.dry_run:
        print(plan_table(options.plan(model.network)))
        return
    given = _read(a.measured, model)
    if given.values.shape[1] < 2:
        raise PerrinError(
            f"expected at least two times in {a.measured}, given 1: the state before and the measured one"
        )
    model.check(given.values[:, -1], given.interval, given.words)
    before = torch.from_numpy(np.repeat(given.values[:, -2], a.n, 0))
    truth = torch.from_numpy(np.repeat(given.values[:, -1], a.n, 0))
    seeds = sample_seeds(a.seed, range(len(before)))
    begin, busy = time.perf_counter(), time.process_time()
    batch, parts = a.batch or 64, []
    with one_thread():
        for k in range(0, len(before), batch):
            part = slice(k, k + batch)
            numbers = torch.arange(len(before))[part] // a.n
            made = posterior(
                model, before[part], truth[part], seeds[part], numbers, options, every=a.every, blur=a.blur,
                noise=a.noise, seed=a.seed,
            )  # fmt: skip
            parts.append(made.cpu())
    found = torch.stack([before, torch.cat(parts)], 1).float().numpy()
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    words = {**model.config.words, "members": a.n, "generator": f"perrin invert {a.target}, seed {a.seed}"}
    begin_at = given.begin + (given.values.shape[1] - 2) * given.interval
    write_flow(a.out, Trajectories(found, model.config.interval, words, given.name, begin_at))
    _record(a, model, options, seconds, busy)
    e = model.config.kind.encode
    error = (e(torch.cat(parts)) - e(truth)).square().mean().sqrt() / model.config.scale
    print(
        f"{counted(a.n, 'fields')} for each of {counted(len(given), 'measurements')} in {a.out}: "
        f"{seconds:.1f} s; error of a sample {error:.3f} σ"
    )


def _record(a: Namespace, model: Any, options: Any, seconds: float, busy: float) -> None:
    from perrin.run.outputs import record_path
    from perrin.run.record import record, write_record

    content = record(
        a.argv[0],
        a,
        bundle={"path": a.target, "sha256": model.sha256},
        sampling=options.to_json(),
        result={"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2), "device": str(model.device)},
    )
    write_record(record_path(a.out), content)
