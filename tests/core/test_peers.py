"""Shared-noise trajectories against diffusers (float32), k-diffusion and azula (float64).

`make peers` installs the libraries and runs these tests. Every library starts from the same state and, where it draws noise,
is handed ours. Differences known and not compared:

- diffusers' DPM-Solver++ 3M and k-diffusion's 3M SDE halve the curvature term (`curvature=0.5` here): second order.
- diffusers' SDE form of the third order has `− 0.5` where `+ 0.5` is right; it is not compared.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core import peers

from perrin.core import (
    DDIM,
    DDPM,
    EDM,
    CounterNoise,
    Dense,
    Discrete,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    ExpAB,
    Gaussian,
    Heun,
    LinearVP,
    RectifiedFlow,
    SASolver,
    Schedule,
    Solver,
    UniPC,
    make_plan,
    sample,
    sample_seeds,
)
from perrin.core.grids import checked, karras, uniform
from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.testing import GaussianMixture

pytestmark = pytest.mark.peers
B, SHAPE = 16, (2,)


class Recorded(Noise):
    """Another noise that remembers what it gave, in order."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.given: list[torch.Tensor] = []

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> torch.Tensor:
        self.given.append(self.noise.normal(layout, features, field=field, step=step))
        return self.given[-1]

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> torch.Tensor:
        raise NotImplementedError


class Given(Noise):
    """Noise that was drawn before, in order."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        self.given = iter(given)

    def normal(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> torch.Tensor:
        return next(self.given)

    def uniform(self, layout: Layout, features: tuple[int, ...], *, field: str, step: int) -> torch.Tensor:
        raise NotImplementedError


def ours(
    solver: Solver,
    schedule: Schedule,
    times: torch.Tensor,
    dtype: torch.dtype,
    data: GaussianMixture | None = None,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The end, the start, and the noise of each row."""
    process = Gaussian(features=SHAPE, schedule=schedule)
    noise = Recorded(CounterNoise(sample_seeds(0, range(B)), dtype))
    start = process.prior(noise, Dense(B), name="x", time=float(times[0]))
    noise.given.clear()
    plan = make_plan(process, solver, times)
    denoiser = (data or GaussianMixture.example(dtype)).denoiser(schedule)
    out = sample(denoiser, process, plan, {"x": Dense(B)}, noise, start={"x": start})["x"]
    return out, start, list(noise.given)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------------------ k-diffusion


@pytest.mark.parametrize(
    ("solver", "function", "options"),
    [
        (Euler(), "sample_euler", {}),
        (DDIM(), "sample_euler", {}),
        (DDPM(), "sample_euler_ancestral", {}),
        (DDIM(eta=0.5), "sample_euler_ancestral", {"eta": 0.5}),
        (Heun(), "sample_heun", {}),
        (DPMSolverPP2S(), "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
        (DPMSolverPP2S(), "sample_dpmpp_sde", {"eta": 0.0}),
        (DPMSolverPP2M(), "sample_dpmpp_2m", {}),
        (DPMSolverPP2M(sde=True), "sample_dpmpp_2m_sde", {}),
        (DPMSolverPP3M(sde=True, startup="plain", curvature=0.5), "sample_dpmpp_3m_sde", {}),
        (DPMSolverPP3M(startup="plain", curvature=0.5), "sample_dpmpp_3m_sde", {"eta": 0.0}),
    ],
    ids=repr,
)
def test_k_diffusion(solver: Solver, function: str, options: dict[str, Any]) -> None:
    module = peers.need("k_diffusion")
    schedule = EDM()
    times = karras(20, schedule, sigma_min=0.01)
    out, start, noises = ours(solver, schedule, times, torch.float64)
    data = GaussianMixture.example()
    draws = iter(noises)
    if "ancestral" in function or "sde" in function:
        options = {**options, "noise_sampler": lambda *_: next(draws) if noises else torch.zeros_like(start)}
    theirs = getattr(module, function)(
        lambda x, sigma, **_: data.posterior_mean(x, 1.0, sigma),
        start,
        schedule.sigma(times),
        disable=True,
        **options,
    )
    assert gap(out, theirs) <= 1e-12


# ------------------------------------------------------------------------------------------------------------ azula


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP(), EDM()], ids=repr)
@pytest.mark.parametrize(
    ("solver", "sampler", "options"),
    [
        (DDIM(), "EulerSampler", {}),
        (DDIM(eta=0.5**0.5), "DDIMSampler", {"eta": 0.5}),
        (DDPM(), "DDPMSampler", {}),
        (Heun(), "HeunSampler", {}),
        (ExpAB(1), "xEABSampler", {"order": 1}),
        (ExpAB(2, startup="plain"), "xEABSampler", {"order": 2}),
        (ExpAB(3, startup="plain"), "xEABSampler", {"order": 3}),
        (ExpAB(4, startup="plain"), "xEABSampler", {"order": 4}),
    ],
    ids=repr,
)
def test_azula(
    schedule: Schedule, solver: Solver, sampler: str, options: dict[str, Any], monkeypatch: Any
) -> None:
    module = peers.need("azula.sample")
    if isinstance(solver, Heun) and not isinstance(schedule, EDM):
        pytest.skip("azula's Heun is Heun in σ/α, ours in t: the same only where σ/α is linear in t")
    times = uniform(20, start=0.9, stop=0.02)
    out, start, noises = ours(solver, schedule, times, torch.float64)
    data, draws = GaussianMixture.example(), iter(noises)
    denoiser = peers.AzulaDenoiser(
        lambda x, t: data.posterior_mean(x, schedule.alpha(t), schedule.sigma(t)), schedule
    )
    made = getattr(module, sampler)(
        denoiser, start=0.9, stop=0.02, steps=20, silent=True, dtype=torch.float64, **options
    )
    monkeypatch.setattr(torch, "randn_like", lambda x: next(draws) if noises else torch.zeros_like(x))
    if options.get("order", 0) > 2:
        # azula's coefficients have errors up to 1e-11 (see `peers.adams_bashforth`); its loop is given its own formula's
        # values in 60 digits
        monkeypatch.setattr(
            module.xEABSampler, "_exponential_adams_bashforth", staticmethod(peers.adams_bashforth)
        )
    assert gap(out, made(start)) <= 1e-12 * max(1.0, float(start.abs().max()))


# -------------------------------------------------------------------------------------------------------- diffusers

COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
DDIM_ = {"set_alpha_to_one": True, "clip_sample": False, "timestep_spacing": "leading"}
MULTI = {**COMMON, "prediction_type": "sample", "timestep_spacing": "linspace"}


@pytest.mark.parametrize(
    ("solver", "name", "options"),
    [
        (DDIM(), "DDIMScheduler", DDIM_),
        (DDIM(eta=1.0), "DDIMScheduler", {**DDIM_, "_eta": 1.0}),
        (DDIM(), "DPMSolverMultistepScheduler", {"solver_order": 1}),
        (DPMSolverPP2M(), "DPMSolverMultistepScheduler", {"solver_order": 2}),
        (
            DPMSolverPP2M(sde=True),
            "DPMSolverMultistepScheduler",
            {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        ),
        (
            DPMSolverPP3M(startup="plain", curvature=0.5),
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "solver_type": "heun"},
        ),
        (UniPC(1, taper=True), "UniPCMultistepScheduler", {"solver_order": 1}),
        (UniPC(2, taper=True), "UniPCMultistepScheduler", {"solver_order": 2}),
        (UniPC(3, taper=True), "UniPCMultistepScheduler", {"solver_order": 3}),
        (
            SASolver(predictor=2, corrector=2, tau=1.0, taper=True),
            "SASolverScheduler",
            {"predictor_order": 2, "corrector_order": 2, "tau_func": lambda t: torch.tensor(1.0)},
        ),
    ],
    ids=repr,
)
def test_diffusers(solver: Solver, name: str, options: dict[str, Any], monkeypatch: Any) -> None:
    diffusers = peers.need("diffusers")
    options = dict(options)
    eta = options.pop("_eta", None)
    scheduler = getattr(diffusers, name)(**{**MULTI, **options})
    scheduler.set_timesteps(20)
    schedule = Discrete()
    steps = [*scheduler.timesteps.tolist()]
    last = 0.0  # σ = 0 after the last timestep
    if getattr(scheduler.config, "final_sigmas_type", "zero") == "sigma_min" or name == "SASolverScheduler":
        last = schedule.time_of(0)
    times = torch.tensor([*map(schedule.time_of, steps), last], dtype=torch.float64)
    times = checked(torch.unique(times).flip(0))
    example = GaussianMixture.example(torch.float32)
    # components so near that no path runs along a watershed, where the rounding of either library would grow
    data = GaussianMixture(0.5 * example.means, example.stds, example.weights)
    out, start, noises = ours(solver, schedule, times, torch.float32, data)
    draws = iter(noises)

    def denoise(x: torch.Tensor, t: Any) -> torch.Tensor:
        u = torch.full((B,), schedule.time_of(int(t)), dtype=torch.float32)
        return data.posterior_mean(x, schedule.alpha(u), schedule.sigma(u))

    monkeypatch.setattr(
        f"diffusers.schedulers.{_module(name)}.randn_tensor",
        lambda shape, **_: next(draws, torch.zeros(shape)),
        raising=False,
    )
    x = start
    for t in scheduler.timesteps:
        more = {} if eta is None else {"eta": eta}
        x = scheduler.step(denoise(x, t), t, x, return_dict=False, **more)[0]
    assert gap(out, x) <= 3e-6


def _module(name: str) -> str:
    return {
        "DDIMScheduler": "scheduling_ddim",
        "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
        "UniPCMultistepScheduler": "scheduling_unipc_multistep",
        "SASolverScheduler": "scheduling_sasolver",
    }[name]
