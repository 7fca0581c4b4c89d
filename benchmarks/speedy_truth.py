"""Truth for `benchmarks/speedy.py`: many runs of SPEEDY side by side, and truth ensembles of held-out dates.

    pip install 'perrin[speedy]'                                       # jcm and JAX; jax[cuda12] too for a GPU
    python benchmarks/speedy_truth.py truth/ --states states/          # full size: a GPU, 200 s for 20 000 model days
    python benchmarks/speedy_truth.py truth/ --states states/ --batch 20 --tests 2 --members 8 --days 8 --spinup 6 --leads 6
                                                                       # small: 10 minutes on 2 busy CPU cores
    python benchmarks/speedy_truth.py truth/ --states new/ --batch 8 --tests 2 --members 2 --days 8 --spinup 4 --leads 2 \
        --rest 5 --checkpoints 3                                       # whether it runs: 4 minutes, no climate yet
    python benchmarks/speedy_truth.py truth/ --growth                  # the growth of errors of what is there

`--states` is a folder of checkpoints through a year (`perrin.modalities.weather.speedy.Speedy.save`); what is missing is
made, from rest: two years of model time, half an hour to an hour on one core, and on from the last one after a stop.
jcm's step is batched with `jax.vmap`: in float32 a run in a batch and the same run alone differ by 1e-7 to 9e-6 of a
field's largest number after 6 steps, and so does one state in two places of a batch.

A run starts from a checkpoint plus 0.3 times the difference of two others of its season. The last `--tests` runs are
held out. On day `--spinup` of each an error is put into the whole state: a normal combination of the season's
anomalies, `--size` of their standard deviation. Truth x, centre c = x + e_0 and members c + e_k are then draws of one
distribution; the analysis is theirs of two days later. Written are arrays for numpy, in the model's units, of seven
fields on the Gauss grid of 32 × 64.

Then the growth of errors is told, by days from the analysis: the RMSE of the centre, which is a forecast by the true model,
that of the members' mean, and SSR, which is 1 where truth and members are draws of one distribution; the centre's square
error ends at twice the climate's variance, and the mean's at the variance.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perrin.modalities.weather.speedy import FIELDS, Speedy
from perrin.nets.sphere import SphericalHarmonics, gauss_latitudes

NAMES = ("zg510", "ta835", "hus835", "ua835", "va835", "ua340", "ps")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--states", type=Path, help="a folder of checkpoints")
    p.add_argument("--growth", action="store_true", help="of errors in OUT; simulate nothing")
    p.add_argument("--batch", type=int, default=156, help="runs side by side, a multiple of members + 2")
    p.add_argument("--members", type=int, default=50)
    p.add_argument("--tests", type=int, default=24, help="runs that are held out")
    p.add_argument("--days", type=int, default=45)
    p.add_argument("--spinup", type=int, default=28)
    p.add_argument("--leads", type=int, default=10)
    p.add_argument("--size", type=float, default=0.1)
    p.add_argument("--checkpoints", type=int, default=25, help="15 days apart, if there are none yet")
    p.add_argument("--rest", type=int, default=365, help="days from rest to the first of them")
    a = p.parse_args()
    if not a.growth:
        check(p, a)
        a.out.mkdir(parents=True, exist_ok=True)
        Runs(a).write()
    growth(a.out)


def check(p: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """Say which numbers do not go together."""
    group = a.members + 2
    if a.states is None:
        p.error("expected --states with a folder of checkpoints or one to fill, given none")
    if a.members < 2 or a.batch % group:
        p.error(f"expected --batch as a multiple of --members + 2 = {group}, given {a.batch}")
    if a.tests < a.batch // group or a.tests >= a.batch:
        p.error(
            f"expected --tests from {a.batch // group} to {a.batch - 1} of {a.batch} runs, given {a.tests}"
        )
    if not 0 < a.spinup < a.days or a.days < 6:
        p.error(f"expected --days of at least 6 with --spinup within, given {a.days} and {a.spinup}")
    if a.checkpoints < 3 or a.leads < 1:
        p.error(f"expected --checkpoints 3 and --leads 1 at least, given {a.checkpoints} and {a.leads}")


def grown(x: Any, y: Any) -> dict[str, Any]:
    """Growth of errors, `[days, C]` each from the analysis on.

    Arguments:
        x: states of runs, `[R, T, C, rows, columns]`.
        y: truth, centre and members of dates, `[D, 2 + M, 1 + days, C, rows, columns]`, from the day before the analysis on.

    Returns:
        Square errors of the centre and of the members' mean as shares of the variance of x, and SSR.
    """
    weight = gauss_latitudes(y.shape[-2])[1].numpy()[:, None]
    weight = weight / weight.sum() / y.shape[-1]

    def area(v: Any) -> Any:
        return (v * weight).sum((-2, -1))

    y = y[:, :, 1:].astype("f8")
    climate, members = area(x.astype("f8").var((0, 1))), y.shape[1] - 2
    centre, mean = (area((f - y[:, 0]) ** 2).mean(0) for f in (y[:, 1], y[:, 2:].mean(1)))
    spread = area(y[:, 2:].var(1, ddof=1)).mean(0)
    ssr = np.sqrt((members + 1) / members * spread / mean)
    return {"centre": centre / climate, "mean": mean / climate, "ssr": ssr}


def growth(out: Path) -> None:
    """Print the growth of errors of the truth ensembles."""
    files = sorted(out.glob("truth*_states.npy"))
    if not files or not (out / "train_states.npy").exists():
        raise SystemExit(f"expected truth ensembles in {out}, given none: make them first, without --growth")
    y = np.concatenate([np.load(f) for f in files])
    found = grown(np.load(out / "train_states.npy"), y)
    print(
        f"{len(y)} dates, {y.shape[1] - 2} members; square errors as shares of the runs' variance over the year"
    )
    for c, name in enumerate(NAMES):
        print(f"{name:>8}  day  centre    mean   SSR")
        for day, (one, mean, ssr) in enumerate(zip(*(found[k][:, c] for k in ("centre", "mean", "ssr")))):
            print(f"{day:>13} {one:7.4f} {mean:7.4f} {ssr:5.2f}")
    if y.shape[2] > 5:
        rate = np.log(found["centre"][4] / found["centre"][0]) / 8  # of the error itself, a day
        times = ", ".join(f"{n} {np.log(2) / r:.1f}" if r > 0 else f"{n} –" for n, r in zip(NAMES, rate))
        print(f"days in which the centre's error doubles, from day 0 to 4: {times}")


class Runs:
    """The batched model and its runs."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.group = a, a.members + 2
        os.environ.setdefault("JAX_PLATFORMS", "")  # a GPU if JAX finds one
        self.speedy = Speedy(12, step=30)
        import jax

        each = a.batch // self.group
        total = a.batch * (a.days + (a.leads + 2) * (a.tests // each))
        print(f"{a.batch} runs side by side on {jax.devices()[0]}, {total} model days in all", flush=True)

        jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's default has ten bits
        self.jax = jax
        self.seeds = self.checkpoints()
        self.rng = np.random.default_rng(0)
        self.advance = jax.jit(self.make())

    def checkpoints(self) -> list[tuple[list[Any], Any]]:
        """Dynamical states and clocks through a year."""
        a, model, out = self.a, self.speedy, []
        a.states.mkdir(parents=True, exist_ok=True)
        paths, key = sorted(a.states.glob("*.state")), a.states / "rest.json"
        if paths and len(paths) < a.checkpoints and not key.exists():
            raise SystemExit(
                f"expected {a.checkpoints} checkpoints in {a.states}, given {len(paths)}: --checkpoints"
            )
        if key.exists() and json.loads(key.read_text()) != a.rest:
            raise SystemExit(
                f"expected --rest {key.read_text()} as in {a.states}, given {a.rest}: take another folder"
            )
        if not paths:
            key.write_text(json.dumps(a.rest))
        for k in range(len(paths), a.checkpoints):  # on from the last
            if k:
                model.restore(a.states / f"{k - 1:02d}.state")
            model.run(15 if k else a.rest)
            model.save(a.states / f"{k:02d}.state")
            print(f"checkpoint {k + 1} of {a.checkpoints}", flush=True)
        paths = sorted(a.states.glob("*.state"))
        for path in paths:
            model.restore(path)
            leaves = [np.asarray(x) for x in self.jax.tree_util.tree_leaves(model.state())]
            out.append((leaves, model.model.run_state.time))
        return out

    def make(self) -> Any:
        """12 hours of every run: `(dynamics, physics, days, seconds, step) → the same, fields`."""
        import jax.numpy as jnp
        import jax_datetime as jdt
        from jcm.date import DateData

        jax, model = self.jax, self.speedy.model
        tree = jax.tree_util
        self.fresh, self.physics = tree.tree_flatten(model.initial_physics_carry())
        self.dynamics = tree.tree_structure(model.dycore_state)
        step, dt = model._get_op_split_step_fn(self.speedy.forcing), int(model.dt_si.m)
        axes = tree.tree_unflatten(self.physics, [None if x.ndim == 0 else 0 for x in self.fresh])
        regrid = regridding(self.speedy.latitude)

        def fields(d: Any, q: Any) -> Any:
            x = model._post_process(d, q, False).dynamics
            out = []
            for name in NAMES:
                source, level, factor, _, _ = FIELDS[name]
                f = getattr(x, source)
                out.append(jnp.swapaxes(f if level is None else f[level], -1, -2) * factor)
            return jnp.stack(out)

        def one(d: Any, q: Any, days: Any, seconds: Any, n: Any) -> Any:
            return step(d, q, DateData(jdt.Datetime(jdt.Timedelta(days, seconds)), n, dt))

        every = jax.vmap(one, in_axes=(0, axes, 0, 0, None), out_axes=(0, axes))

        def body(c: Any, _: Any) -> Any:
            d, q, days, seconds, n = c
            d, q = every(d, q, days, seconds, n)
            seconds = seconds + dt
            return (d, q, days + seconds // 86400, seconds % 86400, n + 1), None

        def advance(d: Any, q: Any, days: Any, seconds: Any, n: Any) -> Any:
            start = (
                tree.tree_unflatten(self.dynamics, d),
                tree.tree_unflatten(self.physics, q),
                days,
                seconds,
                n,
            )
            (d, q, days, seconds, n), _ = jax.lax.scan(body, start, None, length=43200 // dt)
            found = regrid(jax.vmap(fields, in_axes=(0, axes))(d, q))
            return tree.tree_leaves(d), tree.tree_leaves(q), days, seconds, n, found

        return advance

    def write(self) -> None:
        """All of it."""
        import jax.numpy as jnp

        a, began = self.a, time.time()
        fresh = [x if x.ndim == 0 else jnp.broadcast_to(x, (a.batch, *x.shape)) for x in self.fresh]
        kinds = np.arange(a.batch) % len(self.seeds)
        states = [self.start(int(k)) for k in kinds]
        d = [jnp.asarray(np.stack(leaf)) for leaf in zip(*states)]
        clocks = [self.seeds[k][1].delta for k in kinds]
        days = jnp.asarray([int(c.days) for c in clocks], jnp.int32)
        seconds = jnp.asarray([int(c.seconds) for c in clocks], jnp.int32)
        n, q = jnp.int32(0), fresh
        fields, times, kept = [], [], []
        for half in range(2 * a.days):
            if half == 2 * a.spinup:
                base = (d, days, seconds)
            d, q, days, seconds, n, found = self.advance(d, q, days, seconds, n)
            fields.append(np.asarray(found))
            times.append(day_of_year(days, seconds))
            if half >= min(40, a.days) and half % 6 == 5:
                kept.append((d, times[-1]))
        x = np.stack(fields, 1)
        train = np.arange(a.batch - a.tests)
        skip = 4 if a.days > 10 else 0  # what is not balanced yet
        np.save(a.out / "train_states.npy", x[train, skip:])
        np.save(a.out / "train_days.npy", np.stack(times, 1)[train, skip:])
        np.save(a.out / "constants.npy", self.constants())
        print(f"{len(train)} runs of {a.days} days: {time.time() - began:.0f} s", flush=True)
        each = a.batch // self.group
        tests = np.arange(a.batch - a.tests, a.batch)
        tests = (
            tests[: len(tests) // each * each].reshape(each, -1).T
        )  # the dates of a batch are seasons apart
        for number, dates in enumerate(tests):
            self.ensembles(number, dates, base, kept, train, fresh)
        facts = {k: v for k, v in vars(a).items() if not isinstance(v, Path)}
        (a.out / "facts.json").write_text(json.dumps(facts | {"seconds": time.time() - began}, indent=1))

    def start(self, k: int) -> list[Any]:
        """A season's state and three tenths of the difference of two others near it; the clock inside is left alone."""
        near = [j for j in range(k - 3, k + 4) if 0 <= j < len(self.seeds) and j != k]
        i, j = self.rng.choice(near, 2, replace=False)
        zipped = zip(self.seeds[k][0], self.seeds[i][0], self.seeds[j][0])
        return [x if x.ndim == 0 else x + np.float32(0.3) * (y - z) for x, y, z in zipped]

    def ensembles(self, number: int, dates: Any, base: Any, kept: Any, train: Any, fresh: Any) -> None:
        """Truth, centre and members of some dates, by day from the one after the errors on."""
        import jax.numpy as jnp

        a, (d0, days0, seconds0) = self.a, base
        parts, days, seconds = [], [], []
        for c in dates:
            today = day_of_year(days0[c : c + 1], seconds0[c : c + 1])[0]
            pool: list[tuple[int, int]] = []
            for wide in (15, 25, 40, 400):
                apart = [np.abs((t - today + 182.6) % 365.2425 - 182.6) <= wide for _, t in kept]
                pool = [(s, b) for s in range(len(kept)) for b in train if apart[s][b]]
                if len(pool) >= 60:
                    break
            chosen = [pool[i] for i in self.rng.choice(len(pool), min(len(pool), 120), replace=False)]
            s, b = np.array(chosen).T
            w = self.rng.standard_normal((self.group, len(chosen))).astype("f4") / np.sqrt(len(chosen) - 1)
            w -= w.mean(1, keepdims=True)  # of anomalies
            part = []
            for i, leaf in enumerate(d0):
                x = leaf[c]
                if x.ndim == 0:
                    part.append(jnp.broadcast_to(x, (self.group,)))
                    continue
                e = sum(
                    jnp.einsum(
                        "gk,k...->g...",
                        jnp.asarray(w[:, s == t]),
                        kept[t][0][i][b[s == t]],
                        precision="highest",
                    )
                    for t in np.unique(s)
                )
                e = a.size * e
                part.append(x + jnp.concatenate([jnp.zeros_like(e[:1]), e[:1], e[:1] + e[2:]]))
            parts.append(part)
            days.append(jnp.full(self.group, days0[c]))
            seconds.append(jnp.full(self.group, seconds0[c]))
        d = [jnp.concatenate(leaf) for leaf in zip(*parts)]
        q, t, u, n = fresh, jnp.concatenate(days), jnp.concatenate(seconds), jnp.int32(0)
        fields, times = [], []
        for half in range(2 * (a.leads + 2)):
            d, q, t, u, n, found = self.advance(d, q, t, u, n)
            if half % 2:
                fields.append(np.asarray(found))
                times.append(day_of_year(t, u))
        y = np.stack(fields, 1).reshape(len(dates), self.group, a.leads + 2, *fields[0].shape[1:])
        np.save(a.out / f"truth{number:02d}_states.npy", y)
        np.save(
            a.out / f"truth{number:02d}_days.npy",
            np.stack(times, 1).reshape(len(dates), self.group, -1)[:, 0],
        )
        print(f"truth ensembles of {len(dates) * (number + 1)} dates", flush=True)

    def constants(self) -> Any:
        """Orography / 3000 m and land."""
        there, here = harmonics(self.speedy.latitude)
        both = self.speedy.constants
        x = torch.from_numpy(np.stack([both["orog"] / 3000, both["sftlf"]])).double()
        return here.inverse(there(x)).float().numpy()


def harmonics(latitude: Any) -> tuple[SphericalHarmonics, SphericalHarmonics]:
    """Of SPEEDY's grid and of ours."""
    rows = torch.from_numpy(latitude)
    return SphericalHarmonics(rows, 96, degree=32), SphericalHarmonics(gauss_latitudes(32)[0], 64, degree=32)


def regridding(latitude: Any) -> Any:
    """`[…, 48, 96] → […, 32, 64]` through degrees below 32, in JAX: a matrix of rows for each zonal wavenumber."""
    import jax.numpy as jnp

    there, here = harmonics(latitude)
    m = np.arange(32)
    rows = np.zeros((32, 32, 48), "f4")
    for k in m:
        waves = np.eye(48)[:, :, None] * np.cos(2 * np.pi * k * np.arange(96) / 96)
        found = here.inverse(there(torch.from_numpy(waves))).numpy()
        rows[k] = (np.fft.rfft(found, axis=-1)[..., k].real / 64 * (2 if k else 1)).T
    angle = 2 * np.pi * np.outer(np.arange(96), m) / 96
    forth = [np.cos(angle) * np.where(m > 0, 2, 1) / 96, np.sin(angle) * 2 / 96]
    angle = 2 * np.pi * np.outer(m, np.arange(64)) / 64
    back = [np.cos(angle), np.sin(angle)]
    P, forth, back = (jnp.asarray(rows), *([jnp.asarray(x, jnp.float32) for x in y] for y in (forth, back)))

    def regrid(x: Any) -> Any:
        parts = [jnp.einsum("mry,...ym->...rm", P, x @ f) for f in forth]
        return parts[0] @ back[0] + parts[1] @ back[1]

    return regrid


def day_of_year(days: Any, seconds: Any) -> Any:
    """From days since 1970."""
    d = np.asarray(days).astype("datetime64[D]")
    return ((d - d.astype("datetime64[Y]")).astype(float) + np.asarray(seconds) / 86400).astype("f4")


if __name__ == "__main__":
    main()
