"""On a GPU: the same numbers as on the CPU, replay and compilation equal to eager, and no waiting in the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from perrin.core import (
    SOLVERS,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    DPMSolverPP2M,
    Gaussian,
    Heun,
    Layouts,
    Padded,
    Pairs,
    Ragged,
    Rotation,
    Solver,
    State,
    Torus,
    UniPC,
    classifier_free,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.guides import MMPS, Mask, Measurement, steer
from perrin.core.replay import GraphedDenoiser
from perrin.core.solvers.adaptive import sample_adaptive
from perrin.core.testing import GaussianMixture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
F64 = torch.float64
B, D = 24, 3
PROCESS = Gaussian(features=(D,))
CHOSEN: dict[str, Solver] = {
    "multistep": DPMSolverPP2M(),
    "corrected": UniPC(2),
    "stochastic": DPMSolverPP2M(sde=True),
    "two evaluations": Heun(churn=4.0),
}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that makes the host wait for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Toy(torch.nn.Module):
    """A small network with smooth outputs of the data's size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2 * D + 2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.Tanh()
        )
        self.out = torch.nn.Linear(64, D)
        self.calls = 0

    def forward(
        self,
        x: State,
        t: torch.Tensor,
        *,
        condition: Any = None,
        layouts: Layouts,
        previous: State | None = None,
    ) -> State:
        before = torch.zeros_like(x["x"]) if previous is None else previous["x"]
        c = torch.zeros_like(t) if condition is None else condition.expand_as(t)
        return {"x": self.out(self.net(torch.cat((x["x"], before, t[:, None], c[:, None]), dim=1)))}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy().cuda().requires_grad_(False)


def draw(
    denoiser: Any, solver: Solver, mode: str = "eager", indices: Any = range(B), **more: Any
) -> torch.Tensor:
    seeds = sample_seeds(1, indices).cuda()
    plan = plan_steps(PROCESS, solver, 9, start=0.99)
    layouts = {"x": Dense(len(seeds), "cuda")}
    return sample(denoiser, PROCESS, plan, layouts, CounterNoise(seeds), mode=mode, **more)["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", CHOSEN.values(), ids=CHOSEN.keys())
@pytest.mark.parametrize("self_condition", [False, True])
def test_graph_is_eager(toy: Toy, solver: Solver, self_condition: bool) -> None:
    eager = draw(toy, solver, self_condition=self_condition)
    for _ in range(2):  # captured, and replayed from the start
        torch.testing.assert_close(
            draw(toy, solver, "graph", self_condition=self_condition), eager, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("solver", CHOSEN.values(), ids=CHOSEN.keys())
def test_compiled_is_eager(toy: Toy, solver: Solver) -> None:
    torch.testing.assert_close(draw(toy, solver, "compile"), draw(toy, solver), rtol=1e-5, atol=1e-5)


def test_a_graph_follows_its_condition_its_batch_and_its_guide(toy: Toy) -> None:
    graphed = GraphedDenoiser(toy)
    solver = DPMSolverPP2M()
    for condition in (None, torch.tensor(0.5).cuda(), torch.tensor(-2.0).cuda()):
        for n in (B, 7):
            torch.testing.assert_close(
                draw(graphed, solver, condition=condition, indices=range(n)),
                draw(toy, solver, condition=condition, indices=range(n)),
                rtol=1e-5,
                atol=1e-5,
            )
    condition = torch.tensor(0.5).cuda()
    guide = classifier_free(toy, 3.0)
    torch.testing.assert_close(
        draw(guide, solver, "graph", condition=condition),
        draw(guide, solver, condition=condition),
        rtol=1e-5,
        atol=1e-5,
    )
    measured = Measurement(
        operator=Mask(keep=torch.tensor([True, False, True]).cuda()), y=torch.ones(1, D).cuda(), std=0.3
    )
    want = draw(MMPS(denoiser=toy, schedule=PROCESS.schedule, measurement=measured), solver)
    outside = MMPS(
        denoiser=graphed, schedule=PROCESS.schedule, measurement=measured
    )  # differentiates a graph's input
    torch.testing.assert_close(draw(outside, solver), want, rtol=1e-4, atol=1e-4)


def test_equal_dense_layouts_share_a_capture(toy: Toy) -> None:
    graphed = GraphedDenoiser(toy)
    for _ in range(3):
        draw(graphed, DPMSolverPP2M())
    assert len(graphed._captures) == 1


@pytest.mark.parametrize("purpose", ["normal", "uniform"])
def test_counter_noise_is_the_same_on_both_devices(purpose: str) -> None:
    seeds = sample_seeds(3, range(33))
    mask = torch.arange(7) < torch.arange(33)[:, None] % 7 + 1
    index = torch.arange(33).repeat_interleave(3)
    layouts = (Dense(33), Padded(mask), Pairs(mask), Ragged(index, 33))
    for dtype, within in ((F64, 1e-12), (torch.float32, 3e-6)):
        for layout in layouts:
            for step, name in ((0, "x"), (17, "positions")):
                here, there = (
                    getattr(CounterNoise(seeds.to(d), dtype), purpose)(
                        layout.to(d), (5,), field=name, step=step
                    ).cpu()
                    for d in ("cpu", "cuda")
                )
                gap = float((here - there).abs().max())
                assert gap <= (0.0 if purpose == "uniform" else within)
    for size in (1, 2, 9, 4097):
        here, there = (
            CounterNoise(seeds.to(d)).words(size, field="x", step=5, purpose=0).cpu() for d in ("cpu", "cuda")
        )
        assert torch.equal(here, there)
    assert torch.equal(sample_seeds(3, torch.arange(33).cuda()).cpu(), seeds)


def mixture(device: str) -> GaussianMixture:
    data = GaussianMixture.example()
    tensors = {k: v.to(device) for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
    return dataclasses.replace(data, **tensors)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_every_solver_ends_where_it_does_on_the_cpu(solver: Solver) -> None:
    process = Gaussian(features=(2,))
    plan = plan_steps(process, solver, 11, start=0.99)
    here, there = (
        sample(
            mixture(d).denoiser(process.schedule),
            process,
            plan,
            {"x": Dense(16, d)},
            CounterNoise(sample_seeds(0, range(16)).to(d), F64),
        )["x"].cpu()
        for d in ("cpu", "cuda")
    )
    torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)


def test_the_adaptive_solver_and_steering_end_where_they_do_on_the_cpu() -> None:
    process = Gaussian(features=(2,))
    plan = plan_steps(process, SOLVERS["ddpm"], 12, start=0.99)
    ends = []
    for d in ("cpu", "cuda"):
        noise, layouts = CounterNoise(sample_seeds(0, range(16)).to(d), F64), {"x": Dense(16, d)}
        denoiser = mixture(d).denoiser(process.schedule)
        found = sample_adaptive(denoiser, process, layouts, noise, start_time=0.99)
        steered = steer(
            denoiser,
            process,
            plan,
            layouts,
            noise,
            potential=lambda x, t: -x["x"].square().sum(1),
            particles=8,
        )
        ends.append((found.state["x"].cpu(), steered.state["x"].cpu(), steered.log_evidence.cpu()))
    for here, there in zip(*ends, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)


def everything() -> tuple[Composite, Layouts, Any]:
    """Every process at once, with estimates that depend on the state."""
    mask = (torch.arange(5) < torch.arange(B)[:, None] % 5 + 1).cuda()
    rows, pairs = Padded(mask), Pairs(mask)
    process = Composite(
        fields={
            "positions": Gaussian(features=(3,), zero_com=True),
            "types": Categorical.uniform(4),
            "masked": Categorical.absorbing(3),
            "bonds": Categorical.marginal((5.0, 2.0, 1.0)),
            "torsions": Torus(features=(2,)),
            "frames": Rotation(),
        }
    )
    layouts = {k: pairs if k == "bonds" else rows for k in process.fields}

    def denoiser(x: State, t: torch.Tensor, **_: Any) -> State:
        time = rows.expand(t, x["positions"])
        return {
            "positions": 0.5 * x["positions"] * time,
            "types": torch.nn.functional.one_hot(x["types"], 4).float(),
            "masked": torch.nn.functional.one_hot(x["masked"], 4)[..., :3].float(),
            "bonds": torch.nn.functional.one_hot(x["bonds"], 3).float(),
            "torsions": 0.1 * torch.sin(x["torsions"]),
            "frames": 0.1 * x["frames"][..., 1:],
        }

    return process, layouts, denoiser


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("solver", CHOSEN.values(), ids=CHOSEN.keys())
def test_nothing_in_the_loop_waits(solver: Solver, mode: str) -> None:
    process, layouts, denoiser = everything()
    noise = CounterNoise(sample_seeds(0, range(B)).cuda())
    plan = plan_steps(process, solver, 7, start=0.99)
    first = sample(denoiser, process, plan, layouts, noise, mode=mode)  # type: ignore[arg-type]
    with no_waiting():
        again = sample(denoiser, process, plan, layouts, noise, mode=mode)  # type: ignore[arg-type]
    for k, v in first.items():
        assert torch.equal(v, again[k]), k
        assert bool(torch.isfinite(v.double()).all()), k


def test_guides_do_not_wait(toy: Toy) -> None:
    measured = Measurement(
        operator=Mask(keep=torch.tensor([True, False, True]).cuda()), y=torch.ones(1, D).cuda(), std=0.3
    )
    for guide in (
        classifier_free(toy, 3.0, interval=(0.2, 0.8), rescale=0.5),
        MMPS(denoiser=toy, schedule=PROCESS.schedule, measurement=measured),
    ):
        condition = torch.tensor(0.5).cuda()
        seeds = sample_seeds(1, range(B)).cuda()
        plan = plan_steps(PROCESS, DPMSolverPP2M(), 6, start=0.99)
        arguments = (guide, PROCESS, plan, {"x": Dense(B, "cuda")}, CounterNoise(seeds))
        sample(*arguments, condition=condition)
        with no_waiting():
            sample(*arguments, condition=condition)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_sample_does_not_depend_on_its_batch(toy: Toy, mode: str) -> None:
    whole = draw(toy, DPMSolverPP2M(sde=True), mode)
    for part in (torch.tensor([3]), torch.tensor([23, 0, 11, 5]), torch.arange(B).flip(0)):
        torch.testing.assert_close(
            draw(toy, DPMSolverPP2M(sde=True), mode, indices=part), whole[part.cuda()], rtol=1e-5, atol=1e-5
        )
