"""Conditions, subspaces and clocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perrin.core import (
    DDIM,
    DDPM,
    EDM,
    X0,
    Categorical,
    Clean,
    Clock,
    Clocked,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    LinearVP,
    Masked,
    NetworkDenoiser,
    Pairs,
    Power,
    PowerClock,
    RationalClock,
    RectifiedFlow,
    Rotation,
    Symmetric,
    TangentHead,
    Torus,
    make_plan,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.denoiser import PredictionHead
from perrin.core.grids import uniform
from perrin.core.plan import Jump
from perrin.core.testing import assert_batch_invariant, assert_denoiser, assert_process, assert_schedule

from .test_processes import LAYOUTS, clean

F64 = torch.float64
CLOCKS = [PowerClock(2.0), PowerClock(0.5), RationalClock(3.0), RationalClock(0.2)]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.int64], ids=str)
def test_clean(kind: str, dtype: torch.dtype) -> None:
    categories = 4 if dtype == torch.int64 else None
    assert_process(Clean(), LAYOUTS[kind], clean(kind, (2,), categories, torch.float32).to(dtype))


SPACES = {
    "symmetric": Symmetric(),
    "masked": Masked(((True, False, True), (True, True, False), (False,) * 3)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_subspaces(kind: str, space: str, dtype: torch.dtype) -> None:
    process = Gaussian(features=(3, 3), subspace=SPACES[space])
    assert_process(process, LAYOUTS[kind], clean(kind, (3, 3), None, dtype), draws=500)


def test_an_asymmetric_denoiser_cannot_break_the_symmetry_of_pairs() -> None:
    layout, process = LAYOUTS["pairs"], Gaussian(features=())
    assert isinstance(layout, Pairs)
    noise = CounterNoise(sample_seeds(0, range(3)))
    wrong = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = plan_steps(process, DDPM(), 4)
    x = sample(lambda *_, **__: {"x": wrong}, process, plan, {"x": layout}, noise)["x"]
    assert torch.equal(x, x.mT)
    assert bool((x[~layout.pair_mask()] == 0).all())


@pytest.mark.parametrize("clock", CLOCKS, ids=repr)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP(), EDM(), Power(exponent=2.0)], ids=repr)
def test_clocked_schedules(clock: Clock, schedule: RectifiedFlow) -> None:
    """Closed-form rates and `t(λ)` hold through the chain rule."""
    assert_schedule(Clocked(schedule, clock), times=torch.linspace(0.1, 0.95, 30, dtype=F64))


@pytest.mark.parametrize("clock", CLOCKS, ids=repr)
def test_processes_on_clocks(clock: Clock) -> None:
    """A process on a clock is a process: forward and reverse agree, and its chain ends at the data."""
    x = clean("dense", (2,), None)
    assert_process(Gaussian(features=(2,), schedule=Clocked(RectifiedFlow(), clock)), Dense(3), x)
    process = Categorical.uniform(4, Clocked(Power(), clock))  # type: ignore[arg-type]
    assert_process(process, Dense(3), torch.tensor([0, 1, 3]))


def test_a_composite_with_a_clock_per_field() -> None:
    """The bonds' rows are those of their own time, and a field ahead of the others has less noise at every time."""
    bonds = Categorical.uniform(3, Power())
    process = Composite(
        fields={"x": Gaussian(features=(2,)), "bonds": bonds}, clocks={"bonds": PowerClock(2.0)}
    )
    plan = make_plan(process, DDPM(), uniform(4))
    want = [Jump(1 - t**2, 1 - s**2) for t, s in ((1, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0))]
    got = [row for row in plan.rows["bonds"] if isinstance(row, Jump)]
    for a, b in zip(got, want, strict=True):
        assert (a.alpha_start, a.alpha_stop) == pytest.approx((b.alpha_start, b.alpha_stop))
    again = Composite(fields=process.fields, clocks=process.clocks)
    assert again == process  # a clock is set once
    with pytest.raises(ValueError, match="among"):
        Composite(fields={"x": bonds}, clocks={"y": PowerClock(2.0)})

    class Backwards(PowerClock):
        def time(self, t: torch.Tensor) -> torch.Tensor:
            return 1 - t

    with pytest.raises(ValueError, match="rises strictly"):
        Composite(fields={"x": bonds}, clocks={"x": Backwards(1.0)})


class Net(nn.Module):
    """Reads the condition, and gives every noised field something."""

    def forward(self, fields, t, *, condition=None, layouts, previous=None):  # type: ignore[no-untyped-def]
        c = fields["c"].to(fields["x"].dtype)[:, None]
        return {"x": c + 0.1 * fields["x"], "a": 0.1 * fields["a"], "q": c * fields["q"][..., 1:]}


def conditional() -> tuple[Composite, NetworkDenoiser]:
    process = Composite(
        fields={"c": Clean(), "x": Gaussian(features=(2,)), "a": Torus(features=(2,)), "q": Rotation()},
        clocks={"a": RationalClock(2.0)},
    )
    heads = {"x": PredictionHead(prediction=X0), "a": TangentHead(), "q": TangentHead()}
    return process, NetworkDenoiser(Net(), process, heads)


def test_conditions_tangents_and_means_together() -> None:
    process, denoiser = conditional()

    def layouts_of(indices: torch.Tensor) -> dict[str, Dense]:
        return dict.fromkeys(process.fields, Dense(len(indices)))

    def start_of(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"c": indices % 3}

    assert_denoiser(denoiser, process, layouts_of, start_of=start_of)
    plan = plan_steps(process, DDIM(0.5), 5)
    assert_batch_invariant(denoiser, process, plan, layouts_of, start_of=start_of, count=16)
    indices = torch.arange(6)
    noise = CounterNoise(sample_seeds(0, indices))
    out = sample(denoiser, process, plan, layouts_of(indices), noise, start=start_of(indices))
    assert torch.equal(out["c"], indices % 3)
    assert plan.rows["c"] == (None,) * 5
    assert process.clock is process.fields["x"]
    torch.testing.assert_close(out["q"].norm(dim=-1), torch.ones(6))
    with pytest.raises(ValueError, match="start="):
        sample(denoiser, process, plan, layouts_of(indices), noise)
    with pytest.raises(ValueError, match="head"):
        NetworkDenoiser(Net(), process, {"x": PredictionHead(prediction=X0)})


def test_start_gives_some_fields_and_the_prior_the_others() -> None:
    process, denoiser = conditional()
    layouts, noise = dict.fromkeys(process.fields, Dense(4)), CounterNoise(sample_seeds(0, range(4)))
    c = {"c": torch.zeros(4, dtype=torch.int64)}
    prior = process.prior_state(noise, layouts, start=c)
    plan = plan_steps(process, DDPM(), 3)
    a = sample(denoiser, process, plan, layouts, noise, start={**c, "x": prior["x"]})
    b = sample(denoiser, process, plan, layouts, noise, start=c)
    assert all(torch.equal(a[k], b[k]) for k in b)
