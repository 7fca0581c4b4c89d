"""Overhead of the sampling loop: µs per step with a trivial denoiser, against diffusers, k-diffusion and azula in one run.

    make peers ARGS=--co && PYTHONPATH=src:.:.peers .venv/bin/python benchmarks/core.py --json core.json

Every library runs the same number of steps from the same state with a denoiser that returns one fixed tensor, so that what
is timed is the library. Rounds are interleaved; the median is reported. Noise: the peers draw `torch.randn`; `perrin` draws
the same with `GeneratorNoise`, and `perrin counter` draws `CounterNoise`, which no batch can change. A ratio is our time
by a peer's: below 1 is faster. Planning is included in both (`make_plan`; `set_timesteps`). A peer that is not installed is
left out. `--device cuda` runs everything on a GPU and waits for it at the end of each run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from tests.core.peers import AzulaDenoiser, k_sampling

from perrin import core
from perrin.core.grids import karras

SHAPES = ((64, 3, 32, 32), (4096, 2))


def perrin(
    solver: core.Solver, schedule: core.Schedule, times: torch.Tensor, x: torch.Tensor, counter: bool
) -> Any:
    process = core.Gaussian(features=tuple(x.shape[1:]), schedule=schedule)
    d = {"x": 0.1 * x}
    layouts = {"x": core.Dense(len(x), x.device)}
    seeds = core.sample_seeds(0, range(len(x))).to(x.device)
    generator = torch.Generator(x.device).manual_seed(0)

    def run() -> None:
        noise = core.CounterNoise(seeds) if counter else core.GeneratorNoise(generator)
        plan = core.make_plan(process, solver, times)
        core.sample(lambda *_, **__: d, process, plan, layouts, noise, start={"x": x})

    return run


def diffusers_run(name: str, options: dict[str, Any], x: torch.Tensor, steps: int) -> Any:
    import diffusers

    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "sample",
    }
    scheduler = getattr(diffusers, name)(**common, **options)
    d = 0.1 * x

    def run() -> None:
        scheduler.set_timesteps(steps, device=x.device)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(d, t, y, return_dict=False)[0]

    return run


def k_run(function: str, options: dict[str, Any], sigmas: torch.Tensor, x: torch.Tensor) -> Any:
    method, d = getattr(k_sampling(), function), 0.1 * x
    if "ancestral" in function or "sde" in function:  # torch.randn in place of its much slower Brownian tree
        options = {**options, "noise_sampler": lambda *_: torch.randn_like(x)}
    return lambda: method(lambda *_, **__: d, x, sigmas, disable=True, **options)


def azula_run(
    name: str, options: dict[str, Any], schedule: core.Schedule, x: torch.Tensor, steps: int
) -> Any:
    import azula.sample

    d = 0.1 * x
    denoiser = AzulaDenoiser(lambda *_: d, schedule)
    sampler = getattr(azula.sample, name)(
        denoiser, start=0.99, stop=0.01, steps=steps, silent=True, **options
    )
    return lambda: sampler(x)


DPM = "DPMSolverMultistepScheduler"
METHODS: dict[str, tuple[core.Solver, tuple[str, dict[str, Any]] | None, Any, Any]] = {
    "DDIM / Euler": (
        core.DDIM(),
        ("DDIMScheduler", {"clip_sample": False}),
        ("sample_euler", {}),
        ("EulerSampler", {}),
    ),
    "DDPM": (
        core.DDPM(),
        ("DDPMScheduler", {"clip_sample": False}),
        ("sample_euler_ancestral", {}),
        ("DDPMSampler", {}),
    ),
    "Heun": (core.Heun(), None, ("sample_heun", {}), ("HeunSampler", {})),
    "DPM++ 2M": (
        core.DPMSolverPP2M(),
        (DPM, {"solver_order": 2}),
        ("sample_dpmpp_2m", {}),
        ("xEABSampler", {"order": 2}),
    ),
    "DPM++ 3M": (core.DPMSolverPP3M(), (DPM, {"solver_order": 3}), None, ("xEABSampler", {"order": 3})),
    "SDE-DPM++ 2M": (
        core.DPMSolverPP2M(sde=True),
        (DPM, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
        ("sample_dpmpp_2m_sde", {}),
        None,
    ),
    "UniPC-2": (core.UniPC(2), ("UniPCMultistepScheduler", {"solver_order": 2}), None, None),
    "UniPC-3": (core.UniPC(3), ("UniPCMultistepScheduler", {"solver_order": 3}), None, None),
    "SA-Solver": (core.SASolver(), ("SASolverScheduler", {}), None, None),
}


def contestants(method: str, x: torch.Tensor, steps: int) -> dict[str, Callable[[], None]]:
    solver, d, k, a = METHODS[method]
    schedule = core.EDM()
    times = karras(steps, schedule)
    out = {"perrin": perrin(solver, schedule, times, x, False)}
    if solver.stochastic:
        out["perrin counter"] = perrin(solver, schedule, times, x, True)
    peers: dict[str, Callable[[], Callable[[], None]]] = {}
    if d:
        peers["diffusers"] = lambda: diffusers_run(*d, x, steps)
    if k:
        peers["k-diffusion"] = lambda: k_run(*k, schedule.sigma(times).float().to(x.device), x)
    if a:
        peers["azula"] = lambda: azula_run(*a, core.LinearVP(), x, steps)
    for name, make in peers.items():
        with suppress(ImportError):
            out[name] = make()
    return out


def markdown(results: list[dict[str, Any]], shape: list[int]) -> str:
    """The table of one shape, as in `docs/speed.md`."""
    peers = ("diffusers", "k-diffusion", "azula")
    lines = [
        f"| `{shape}` | Perrin | with `CounterNoise` | "
        + " | ".join(peers)
        + " | by the fastest | by diffusers |",
        "| --- " * (5 + len(peers)) + "|",
    ]
    for r in (r for r in results if r["shape"] == shape):
        us, ratios = r["us_per_step"], r["ratios"]
        cells = [f"{us['perrin']:.0f}", f"{us['perrin counter']:.0f}" if "perrin counter" in us else "–"]
        cells += [f"{us[p]:.0f}" if p in us else "–" for p in peers]
        best = f"{max(ratios.values()):.2f}" if ratios else "–"
        if r["counter_ratios"]:
            best += f" ({max(r['counter_ratios'].values()):.2f})"
        cells += [best, f"{ratios['diffusers']:.2f}" if "diffusers" in ratios else "–"]
        lines.append(f"| {r['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    parser.add_argument("--markdown", action="store_true", help="end with the tables of docs/speed.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        print(
            f"\n{list(shape)}, {options.steps} steps, median of {options.rounds}: µs per step (Perrin by peer)"
        )
        for method in METHODS:
            runs = contestants(method, x, options.steps)
            taken: dict[str, list[float]] = {name: [] for name in runs}
            for r in range(options.rounds + 1):
                for name, run in runs.items():
                    began = time.perf_counter()
                    run()
                    if x.is_cuda:
                        torch.cuda.synchronize()
                    if r:  # the first round warms up
                        taken[name].append((time.perf_counter() - began) / options.steps * 1e6)
            us = {name: statistics.median(v) for name, v in taken.items()}
            ratios = {n: us["perrin"] / v for n, v in us.items() if not n.startswith("perrin")}
            counter = {
                n: us["perrin counter"] / v for n, v in us.items() if n in ratios and "perrin counter" in us
            }
            results.append(
                {
                    "shape": list(shape),
                    "method": method,
                    "us_per_step": us,
                    "ratios": ratios,
                    "counter_ratios": counter,
                }
            )
            shown = [
                f"{n} {v:.0f}"
                + (
                    f" ({ratios[n]:.2f}" + (f", counter {counter[n]:.2f}" if counter else "") + ")"
                    if n in ratios
                    else ""
                )
                for n, v in us.items()
            ]
            print(f"  {method:14}" + "   ".join(shown), flush=True)
    if options.markdown:
        print(*(markdown(results, list(shape)) for shape in SHAPES), sep="\n\n")
    if options.json:
        machine = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": 1,
            "device": options.device,
        }
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
