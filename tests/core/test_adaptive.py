"""Dormand–Prince: the error follows the tolerance, evaluations are counted, samples do not see each other."""

from __future__ import annotations

import pytest
import torch

from perrin.core import (
    Categorical,
    CounterNoise,
    Dense,
    Gaussian,
    LinearVP,
    PlanError,
    RectifiedFlow,
    sample_seeds,
)
from perrin.core.solvers.adaptive import sample_adaptive
from perrin.core.testing import CountedDenoiser, GaussianMixture

F64 = torch.float64


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP()], ids=repr)
def test_error_follows_the_tolerance(schedule) -> None:  # type: ignore[no-untyped-def]
    data, process = GaussianMixture.example(), Gaussian(features=(2,), schedule=schedule)
    start = torch.randn(16, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    truth = data.flow(start, schedule, 0.99, 0.02)
    gaps = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        counted = CountedDenoiser(data.denoiser(schedule))
        out = sample_adaptive(
            counted,
            process,
            {"x": Dense(16)},
            CounterNoise(sample_seeds(0, range(16)), F64),
            start={"x": start},
            start_time=0.99,
            stop=0.02,
            rtol=tolerance,
            atol=tolerance,
            denoise=False,
        )
        assert out.nfe == len(counted.times)
        gaps.append(float((out.state["x"] - truth).abs().max()))
        assert gaps[-1] < 30 * tolerance
    assert gaps[0] > gaps[1] > gaps[2]


def test_each_sample_has_its_own_steps() -> None:
    data, process = GaussianMixture.example(), Gaussian(features=(2,))

    def run(indices: range):  # type: ignore[no-untyped-def]
        noise = CounterNoise(sample_seeds(3, indices), F64)
        layouts = {"x": Dense(len(indices))}
        return sample_adaptive(data.denoiser(process.schedule), process, layouts, noise, rtol=1e-6, atol=1e-6)

    together = run(range(12))
    for i in (0, 5, 11):
        alone = run(range(i, i + 1))
        torch.testing.assert_close(alone.state["x"][0], together.state["x"][i], rtol=1e-12, atol=1e-12)
        assert int(alone.accepted) == int(together.accepted[i])
    assert len(together.accepted.unique()) > 1


def test_refuses_what_has_no_ode() -> None:
    noise = CounterNoise(sample_seeds(0, range(2)))
    with pytest.raises(PlanError, match="probability-flow ODE"):
        sample_adaptive(lambda x, t, **_: x, Categorical.uniform(3), {"x": Dense(2)}, noise)
