"""Assimilation in two-layer quasi-geostrophic flow: a diffusion prior of pieces beside optimal interpolation.

    perrin data weather/qg --days 3600 -o qg.zarr
    perrin train weather/qg --data qg.zarr --steps 1500 --out my-qg
    python benchmarks/qg.py my-qg

Truths are of other seeds than the data. Each state of a piece is seen at `--points` random places, in the upper layer
alone, with errors of `--error` of its standard deviation; the lower layer is seen nowhere. Optimal interpolation has all
covariances of the same training data in space, time and between the layers (`qg_model.optimal_interpolation`), and is the
best linear estimate; "one time" is given the last state's observations alone.
"""

from __future__ import annotations

import argparse
import time

import torch

from perrin.bundle import read_bundle
from perrin.modalities.weather.qg import DAY, TwoLayer
from perrin.modalities.weather.qg_model import FIELD, QGModel, QGObservations, optimal_interpolation


def truths(model: QGModel, count: int, seed: int, spinup: int) -> torch.Tensor:
    """Pieces of runs of their own, `[count, T, 2, n, n]`."""
    c, flow = model.config, TwoLayer(size=model.config.size, length=model.config.length)
    q = flow.advance(flow.first(count, seed), round(spinup * DAY / flow.step))
    out = []
    for _ in range(c.states):
        out.append(flow.streamfunction(q))
        q = flow.advance(q, round(c.hours * 3600 / flow.step))
    return torch.stack(out, 1)


def observe(psi: torch.Tensor, model: QGModel, points: int, error: float, seed: int) -> QGObservations:
    """Values of the upper layer at cells drawn anew for every state."""
    c, generator = model.config, torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(c.size**2, generator=generator)[:points] for _ in range(c.states)])
    value = psi[:, 0].flatten(1).gather(1, cells).flatten()
    sigma = error * c.scale[0]
    place = [(k + 0.5) * c.length / c.size for k in (cells.flatten() // c.size, cells.flatten() % c.size)]
    return QGObservations(
        state=torch.arange(c.states).repeat_interleave(points),
        layer=torch.zeros(len(value), dtype=torch.long),
        y=place[0].double(),
        x=place[1].double(),
        value=value + sigma * torch.randn(len(value), generator=generator, dtype=torch.float64),
        error=torch.full((len(value),), sigma, dtype=torch.float64),
    )


def learned(model: QGModel, psi: torch.Tensor) -> None:
    """What the network takes off the square error of the normal estimate, at several noises."""
    x = (psi / torch.tensor(model.config.scale)[:, None, None]).float()
    schedule = model.denoiser.process.fields[FIELD].schedule
    for t in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7):
        times = torch.full((len(x),), t)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        x_t = schedule.alpha(times)[0] * x + schedule.sigma(times)[0] * noise
        W = model.denoiser.normal(x_t.flatten(1, 2), times)[0].reshape(x.shape)
        D = model.denoiser({FIELD: x_t}, times)[FIELD]
        ratio = ((D - x) ** 2).mean((0, 1, 3, 4)) / ((W - x) ** 2).mean((0, 1, 3, 4))
        print(
            f"noise {t / (1 - t):.2f}: square error / the normal estimate's, by layer",
            [round(float(r), 3) for r in ratio],
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle")
    p.add_argument("--cases", type=int, default=8)
    p.add_argument("--members", type=int, default=16)
    p.add_argument("--points", type=int, nargs="+", default=[20, 60])
    p.add_argument("--error", type=float, default=0.05)
    p.add_argument("--seed", type=int, default=1000, help="of the truths")
    p.add_argument("--spinup", type=int, default=900)
    p.add_argument("--steps", type=int, default=16)
    a = p.parse_args()
    model = QGModel.from_bundle(read_bundle(a.bundle))
    model.steps = a.steps
    psi = truths(model, a.cases, a.seed, a.spinup)
    learned(model, psi)
    last = model.config.states - 1
    for points in a.points:
        squares: dict[str, list[torch.Tensor]] = {}
        begin = time.perf_counter()
        for k, truth in enumerate(psi):
            seen = observe(truth, model, points, a.error, a.seed + k)
            late = seen.only(seen.state == last)
            draws = model.posterior(seen, a.members, seed=k)
            found = {
                "climatology": torch.zeros_like(truth),
                "optimal interpolation, one time": optimal_interpolation(model.denoiser, late)[0],
                "optimal interpolation, all times": optimal_interpolation(model.denoiser, seen)[0],
                "diffusion prior": draws.double().mean(0),
            }
            for name, estimate in found.items():
                squares.setdefault(name, []).append(((estimate - truth) ** 2).mean((-2, -1)))
            squares.setdefault("spread", []).append(draws.double().var(0).mean((-2, -1)))
        print(
            f"{points} points at each of {last + 1} times, {time.perf_counter() - begin:.0f} s; RMSE in standard deviations:"
        )
        scale = torch.tensor(model.config.scale)
        best = torch.stack(squares["optimal interpolation, all times"])
        for name, parts in squares.items():
            e = torch.stack(parts)
            shown = [f"{float(v):.3f}" for v in (e[:, last].mean(0).sqrt() / scale)]
            every = [f"{float(v):.3f}" for v in (e.mean((0, 1)).sqrt() / scale)]
            gain = e.mean(1) / best.mean(1)
            text = (
                f"  {name}: last state, upper {shown[0]}, lower {shown[1]}; all states {every[0]}, {every[1]}"
            )
            if name == "diffusion prior":
                mean, se = gain.log().mean(0), gain.log().std(0) / len(gain) ** 0.5
                text += "; MSE / optimal interpolation's " + ", ".join(
                    f"{float(m.exp()):.2f} ± {float(m.exp() * s):.2f}" for m, s in zip(mean, se)
                )
            print(text, flush=True)


if __name__ == "__main__":
    main()
