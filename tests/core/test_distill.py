"""Consistency distillation against the exact consistency function of Gaussian data, and a student that learns it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perrin.core import (
    SOLVERS,
    Categorical,
    Clean,
    Composite,
    CounterNoise,
    Dense,
    EDMHead,
    Gaussian,
    GeneratorNoise,
    NetworkDenoiser,
    RectifiedFlow,
    State,
    make_plan,
    sample_seeds,
)
from perrin.core.distill import ConsistencyLoss, PathLoss, few_step, paths, with_times
from perrin.core.grids import uniform
from perrin.core.testing import GaussianMixture

F64 = torch.float64
SCHEDULE, STD, MEAN = RectifiedFlow(), 0.6, 1.5
PROCESS = Composite(fields={"x": Gaussian(features=(1,), schedule=SCHEDULE)})
DATA = GaussianMixture.gaussian(STD, mean=MEAN)


def exact(x: State, t: Tensor, **_: Any) -> State:
    """The end of the path through `x_t`: `m + s (x − α m) / √(α² s² + σ²)`."""
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    return {"x": MEAN + STD * (x["x"] - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()}


def loss_of(student: Any, intervals: int) -> float:
    n, generator = 4000, torch.Generator().manual_seed(0)
    times = 0.999 * torch.linspace(0, 1, intervals + 1, dtype=F64)
    loss = ConsistencyLoss(teacher=DATA.denoiser(SCHEDULE), process=PROCESS, times=times)
    index = torch.randint(2, intervals + 1, (n,), generator=generator)
    x_0 = {"x": DATA.sample(n, generator)}
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    return float(loss(student, student, x_0, index, noise, {"x": Dense(n)}).mean())


def test_the_exact_function_is_consistent() -> None:
    """Its loss falls as the teacher's squared local error of order 3 or better; the teacher's own does not vanish so."""
    losses = [loss_of(exact, n) for n in (16, 32, 64)]
    assert losses[0] / losses[1] > 2**5
    assert losses[1] / losses[2] > 2**5
    assert loss_of(DATA.denoiser(SCHEDULE), 32) > 100 * losses[1]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3"])
def test_paths_lead_where_the_exact_function_says(solver: str) -> None:
    n, times = 500, [0.999, 0.6, 0.3]
    grid = with_times(uniform(200, start=0.999), times, apart=0.01)
    assert all(t in grid.tolist() for t in times)
    plan = make_plan(PROCESS, SOLVERS[solver], grid)
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    found = paths(DATA.denoiser(SCHEDULE), PROCESS, plan, times, {"x": Dense(n)}, noise)["x"]
    assert found.shape == (4, n, 1)
    tolerance = 0.02 if solver == "ddim" else 1e-3
    for x, time in zip(found, times, strict=False):
        t = torch.full((n,), time, dtype=F64)
        torch.testing.assert_close(exact({"x": x}, t)["x"], found[-1], atol=tolerance, rtol=0)
        loss = PathLoss(width=0.01)
        state, end, layouts = {"x": x}, {"x": found[-1]}, {"x": Dense(n)}
        assert float(loss(exact, state, t, end, layouts).max()) < tolerance
        if time > 0.5:
            assert float(loss(DATA.denoiser(SCHEDULE), state, t, end, layouts).mean()) > 0.05


def test_paths_need_a_plan_that_stops_there_and_draws_nothing() -> None:
    more = [0.5], {"x": Dense(2)}, CounterNoise(sample_seeds(0, range(2)), F64)
    for solver, grid, words in (("ddim", uniform(3), "stops"), ("ddpm", uniform(4, start=0.999), "no noise")):
        times = [0.7493] if solver == "ddpm" else more[0]
        plan = make_plan(PROCESS, SOLVERS[solver], with_times(grid, times) if solver == "ddpm" else grid)
        with pytest.raises(ValueError, match=words):
            paths(DATA.denoiser(SCHEDULE), PROCESS, plan, times, *more[1:])


@pytest.mark.parametrize("times", [[0.999], [0.999, 0.5], [0.999, 0.8, 0.5, 0.2]])
def test_few_steps_of_the_exact_function(times: list[float]) -> None:
    n = 20_000
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    x = few_step(exact, PROCESS, times, {"x": Dense(n)}, noise)["x"]
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)
    alone = few_step(exact, PROCESS, times, {"x": Dense(1)}, CounterNoise(noise.seeds[7:8], F64))["x"]
    torch.testing.assert_close(alone[0], x[7])


def test_clean_fields_are_told_and_stay() -> None:
    """With the mean as a clean field, which the denoisers read, both loss and samples are what they were."""
    process = Composite(fields={"x": Gaussian(features=(1,), schedule=SCHEDULE), "mean": Clean()})
    plain = DATA.denoiser(SCHEDULE)

    def told(denoiser: Any) -> Any:
        def call(x: State, t: Tensor, **more: Any) -> State:
            moved = {"x": x["x"] - SCHEDULE.alpha(t)[:, None] * (x["mean"] - MEAN)}
            return {"x": denoiser(moved, t, layouts={"x": Dense(len(t))})["x"] + x["mean"] - MEAN}

        return call

    n, generator = 500, torch.Generator().manual_seed(0)
    times = 0.999 * torch.linspace(0, 1, 9, dtype=F64)
    index = torch.randint(2, 9, (n,), generator=generator)
    x_0, shift = DATA.sample(n, generator), torch.full((n, 1), MEAN + 4, dtype=F64)
    noise, layouts = CounterNoise(sample_seeds(0, range(n)), F64), {"x": Dense(n), "mean": Dense(n)}
    want = ConsistencyLoss(teacher=plain, process=PROCESS, times=times)(
        exact, exact, {"x": x_0}, index, noise, layouts
    )
    found = ConsistencyLoss(teacher=told(plain), process=process, times=times)(
        told(exact), told(exact), {"x": x_0 + 4, "mean": shift}, index, noise, layouts
    )
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-9)
    a = few_step(exact, PROCESS, [0.999, 0.5], layouts, noise)["x"]
    b = few_step(told(exact), process, [0.999, 0.5], layouts, noise, start={"mean": shift})
    torch.testing.assert_close(b["x"] - 4, a, atol=0.02, rtol=0)  # both start from noise without a mean
    torch.testing.assert_close(b["mean"], shift)


def test_categorical_fields_are_refused() -> None:
    process = Composite(fields={"x": Categorical.uniform(3)})
    with pytest.raises(TypeError, match="Gaussian"):
        few_step(
            lambda x, t, **_: {"x": torch.zeros(2, 3)},
            process,
            [0.9, 0.5],
            {"x": Dense(2)},
            CounterNoise(sample_seeds(0, range(2))),
        )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: State, t: Tensor, **_: Any) -> State:
        return {"x": self.f(torch.cat((x["x"], torch.stack((t, t**0.5, t**3), dim=1)), dim=1))}


def test_a_student_learns_it() -> None:
    """400 updates; one evaluation then gives mean and spread of the data. The teacher's one evaluation gives no spread."""
    torch.manual_seed(0)
    generator, batch = torch.Generator().manual_seed(1), 256
    student = NetworkDenoiser(Net(), PROCESS, {"x": EDMHead(sigma_data=1.6)})
    target, noise = copy.deepcopy(student), GeneratorNoise(generator)
    data = GaussianMixture.gaussian(STD, mean=MEAN, dtype=torch.float32)
    times = 0.999 * torch.linspace(0, 1, 13)
    loss = ConsistencyLoss(teacher=data.denoiser(SCHEDULE), process=PROCESS, times=times)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(400):
        index = torch.randint(1, 13, (batch,), generator=generator)
        x_0 = {"x": data.sample(batch, generator)}
        value = loss(student, target, x_0, index, noise, {"x": Dense(batch)}).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(target.parameters(), student.parameters(), strict=True):
                a.lerp_(b, 0.1)
    n = 4000
    x = few_step(target, PROCESS, [0.999], {"x": Dense(n)}, CounterNoise(sample_seeds(0, range(n))))["x"]
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.1)
    assert float(x.std()) == pytest.approx(STD, rel=0.15)
