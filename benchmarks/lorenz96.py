"""Assimilation in Lorenz's model of 1996 (Sakov & Oke 2008): windows with a diffusion prior beside dapper's filters.

    python benchmarks/lorenz96.py --minutes 1.5 --save prior.safetensors      # trains the prior: 90 s on a GPU
    python benchmarks/lorenz96.py --prior prior.safetensors

40 sites, steps of 0.05, errors of variance 1. An analysis is of the last state of a window of `--window` steps, from the
observations in it alone, without a background: the prior has the dynamics, no analysis knows another. Cycles are a filter
of pieces that the same prior forecasts (`perrin.modalities.weather.cycles`), from all observations before. dapper's have
the equations and all observations before; they are run if dapper is installed (it needs Python 3.12), each with several
inflations and radii, and the best of these is printed. Where one diverges that is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from perrin.core import (
    Composite,
    Gaussian,
    NetworkDenoiser,
)
from perrin.modalities.weather.cycles import PieceFilter
from perrin.modalities.weather.lorenz import MEAN, STD, trajectories
from perrin.modalities.weather.windows import (
    FIELD,
    Chained,
    Sight,
    WindowConfig,
    WindowSmoother,
    WindowTask,
    build_denoiser,
    gaspari_cohn,
)
from perrin.train import Trainer, TrainOptions

CASES: dict[str, tuple[Callable[[Any], Any], int, tuple[int, int]]] = {
    "x, every step": (lambda x: x, 1, (40, 20)),
    "3 arctan(x/2), every 2nd": (
        lambda x: 3 * (torch if isinstance(x, Tensor) else np).arctan(x / 2),
        2,
        (50, 10),
    ),
    "x²/10, every 2nd": (lambda x: x**2 / 10, 2, (100, 10)),
}
"""What is seen, at which steps, and the sampler's levels: falling ones, more for what folds, and repetitions of the last."""
TUNING = ((1.04, 4.0), (1.04, 6.0), (1.15, 4.0), (1.4, 3.0), (1.02, 8.0))


def train(minutes: float, save: Path | None) -> tuple[NetworkDenoiser, WindowConfig]:
    """A prior of windows of ten states."""
    cuda = torch.cuda.is_available()
    config = WindowConfig(length=10, width=96 if cuda else 32, blocks=6)
    states = (trajectories(4000 if cuda else 400, 100, seed=1) - MEAN) / STD
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    batch = 1024 if cuda else 64
    options = TrainOptions(
        steps=10**9,
        minutes=minutes,
        batch=batch,
        lr=2e-3,
        warmup=300,
        cooldown=0.5,
        ema=0.999,
        weight_decay=0.001,
        cuda_graphs=cuda,
        log_every=500,
        save_every=10**9,
    )
    task = WindowTask(denoiser, config, states, batch=batch)
    print(Trainer(task, options, Path("lorenz96-run"), devices=1).run())
    denoiser = denoiser.cpu()
    if save:
        weights = {k: p.detach().contiguous() for k, p in denoiser.named_parameters()}
        save_file(weights, save, metadata={"config": json.dumps(config.to_json())})
    return denoiser, config


def read(path: Path) -> tuple[NetworkDenoiser, WindowConfig]:
    """A prior that was saved."""
    with safe_open(path, "pt") as file:
        config = WindowConfig(**json.loads(file.metadata()["config"]))
    denoiser = build_denoiser(config)
    found = load_file(path)
    with torch.no_grad():
        for k, p in denoiser.named_parameters():
            p.copy_(found[k])
    return denoiser, config


def windows(
    denoiser: NetworkDenoiser,
    config: WindowConfig,
    h: Callable[[Any], Any],
    every: int,
    levels: tuple[int, int],
    a: argparse.Namespace,
) -> tuple[float, float, float]:
    """RMSE of the analyses, its standard error over them, and the draws' spread."""
    length, n = a.window, config.sites
    process = Composite(fields={FIELD: Gaussian(features=(length, n))})
    x = trajectories(a.analyses, length, seed=a.seed, spinup=600)
    at = tuple(k for k in range(length) if (length - 1 - k) % every == 0)
    y = torch.stack([h(x[:, k]) for k in at], 1)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    smoother = WindowSmoother(
        denoiser=Chained(denoiser.eval().requires_grad_(False), config.length, a.stride),
        process=process,
        shift=MEAN,
        scale=STD,
        members=a.members,
        levels=levels[0],
        hold=levels[1],
        keep=levels[1],
    )
    draws = smoother.run(y, at, Sight(h=h))[:, :, -1]
    error = ((draws.mean(1) - x[:, -1]) ** 2).mean(1)
    rmse = float(error.mean().sqrt())
    spread = float(draws.var(1).mean().sqrt())
    return rmse, float(error.std() / len(error) ** 0.5 / (2 * rmse)), spread


def cycles(
    denoiser: NetworkDenoiser,
    config: WindowConfig,
    h: Callable[[Any], Any],
    every: int,
    a: argparse.Namespace,
    truths: int = 4,
    burn_in: int = 40,
) -> tuple[float, float, float]:
    """The time mean of the RMSE of a filter of pieces, its standard error over truths, and the members' spread.

    As dapper's filters it begins about the truth, with departures of 0.15 of the climate's, and has all observations before.
    """
    T, n = config.length, config.sites
    x = trajectories(truths, a.cycles + T, seed=a.seed, spinup=600)
    g = torch.Generator().manual_seed(1)
    y = [
        h(x[:, k]) + torch.randn(truths, n, generator=g) if k % every == 0 else None
        for k in range(a.cycles + T)
    ]
    others = trajectories(truths * 32, T, seed=a.seed + 1, spinup=600).unflatten(0, (truths, 32))
    model = PieceFilter(
        denoiser=denoiser.eval().requires_grad_(False),
        process=Composite(fields={FIELD: Gaussian(features=(T, n))}),
        taper=gaspari_cohn(n, 6.0).float(),
        shift=MEAN,
        scale=STD,
        inflation=1.01,
    )
    pieces = x[:, None, :T] + 0.15 * (others - others.mean(1, keepdim=True))
    found = model.run(y[T:], Sight(h=h), pieces=pieces)
    e = ((found.mean - x[:, T:].transpose(0, 1)) ** 2).mean(-1).sqrt()[burn_in:].mean(0)
    return float(e.mean()), float(e.std() / truths**0.5), float(found.std[burn_in:].mean())


def peers(h: Callable[[Any], Any], every: int, steps: int) -> dict[str, str]:
    """dapper's filters on one run: the best of `TUNING`."""
    import dapper.da_methods as da
    import dapper.mods as modelling
    import dapper.tools.progressbar as bar
    from dapper.mods.Lorenz96 import dstep_dx, step
    from dapper.tools.localization import nd_Id_localization
    from dapper.tools.seeding import set_seed

    bar.disable_progbar = bar.disable_user_interaction = True
    first = trajectories(1, 1, seed=7)[0, 0].double().numpy()
    clock = modelling.Chronology(0.05, dko=every, Ko=steps // every, BurnIn=5)
    Dyn = modelling.Operator(M=40, model=step, linear=dstep_dx, noise=0)
    near = nd_Id_localization((40,), (2,))
    Obs = modelling.Operator(M=40, model=h, linear=lambda x: np.eye(40), noise=1, localizer=near)
    H = modelling.HiddenMarkovModel(Dyn, Obs, clock, modelling.GaussRV(mu=first, C=3.0))
    out = {}
    kinds = {
        "LETKF, 7 members": lambda i, r: da.LETKF(N=7, infl=i, rot=True, loc_rad=r),
        "LETKF, 20 members": lambda i, r: da.LETKF(N=20, infl=i, rot=True, loc_rad=r),
        "EnKF (sqrt), 40 members": lambda i, r: da.EnKF("Sqrt", N=40, infl=i, rot=True),
    }
    for name, make in kinds.items():
        scores = []
        for i, r in TUNING:
            set_seed(3)
            xx, yy = H.simulate()
            method = make(i, r)
            method.assimilate(H, xx, yy)
            method.stats.average_in_time()
            scores.append(float(method.avrgs.err.rms.a.val))
        lost = sum(s > 2 for s in scores)
        out[name] = f"{min(scores):.2f}" + (f" (lost with {lost} of {len(scores)} settings)" if lost else "")
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prior", type=Path)
    p.add_argument("--minutes", type=float, default=1.5)
    p.add_argument("--save", type=Path)
    p.add_argument("--analyses", type=int, default=16)
    p.add_argument("--members", type=int, default=8)
    p.add_argument("--window", type=int, default=20)
    p.add_argument("--stride", type=int, default=5)
    p.add_argument("--cycles", type=int, default=300, help="of the filter of pieces")
    p.add_argument("--seed", type=int, default=99, help="of the truth")
    a = p.parse_args()
    denoiser, config = read(a.prior) if a.prior else train(a.minutes, a.save)
    for name, (h, every, levels) in CASES.items():
        begin = time.perf_counter()
        rmse, error, spread = windows(denoiser, config, h, every, levels, a)
        took = time.perf_counter() - begin
        print(
            f"{name}: windows, RMSE {rmse:.3f} ± {error:.3f}, spread {spread:.3f}, {took:.0f} s", flush=True
        )
        begin = time.perf_counter()
        rmse, error, spread = cycles(denoiser, config, h, every, a)
        took = time.perf_counter() - begin
        print(f"{name}: cycles, RMSE {rmse:.3f} ± {error:.3f}, spread {spread:.3f}, {took:.0f} s", flush=True)
        if importlib.util.find_spec("dapper"):
            for peer, found in peers(h, every, 400).items():
                print(f"{name}: {peer}, RMSE {found}", flush=True)
    print(
        "published (Sakov & Oke 2008; Bocquet 2011), x at every step: 3D-Var 0.41, EnKF N40 0.22, LETKF N7 0.22"
    )


if __name__ == "__main__":
    main()
