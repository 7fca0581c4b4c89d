"""One option for compiled and replayed denoisers; on a CPU, replay runs the denoiser as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perrin.core import CounterNoise, Dense, DPMSolverPP2M, Gaussian, State, plan_steps, sample, sample_seeds
from perrin.core.guides import classifier_free
from perrin.core.replay import GraphedDenoiser, accelerated
from perrin.core.testing import CountedDenoiser, GaussianMixture


def run(denoiser: Any, mode: str, device: str = "cpu") -> torch.Tensor:
    process, seeds = Gaussian(features=(2,)), sample_seeds(0, range(8)).to(device)
    plan = plan_steps(process, DPMSolverPP2M(sde=True), 6)
    return sample(denoiser, process, plan, {"x": Dense(8, device)}, CounterNoise(seeds), mode=mode)["x"]  # type: ignore[arg-type]


def test_graph_mode_on_a_cpu_is_eager_bitwise() -> None:
    exact = CountedDenoiser(GaussianMixture.example(torch.float32).denoiser(Gaussian(features=(2,)).schedule))
    assert torch.equal(run(exact, "graph"), run(exact, "eager"))
    assert len(exact.times) == 12


def test_what_was_made_is_kept_and_modes_are_checked() -> None:
    def denoiser(x: State, t: torch.Tensor, **_: Any) -> State:
        return x

    assert accelerated(denoiser, "eager") is denoiser
    graphed = accelerated(denoiser, "graph")
    assert isinstance(graphed, GraphedDenoiser)
    assert accelerated(denoiser, "graph") is graphed
    assert accelerated(graphed, "graph") is graphed
    with pytest.raises(ValueError, match="expected mode 'eager', 'compile', 'graph', given 'fast'"):
        accelerated(denoiser, "fast")  # type: ignore[arg-type]


@pytest.mark.slow
def test_compile_mode_agrees_with_eager() -> None:
    exact = GaussianMixture.example(torch.float32).denoiser(Gaussian(features=(2,)).schedule)
    torch.testing.assert_close(run(exact, "compile"), run(exact, "eager"), rtol=1e-4, atol=1e-5)


def test_compile_mode_compiles_the_repeated_block_alone_also_under_guidance() -> None:
    class Trunk(torch.nn.Module):
        compiled = 0

        def compile_blocks(self) -> None:
            self.compiled += 1

    class Denoising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()

        def forward(self, x: State, t: torch.Tensor, **_: Any) -> State:
            return x

    plain, guided = Denoising(), Denoising()
    assert isinstance(accelerated(plain, "compile"), GraphedDenoiser)
    assert isinstance(accelerated(classifier_free(guided, 2.0), "compile"), GraphedDenoiser)
    assert plain.trunk.compiled == guided.trunk.compiled == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graph_mode_on_a_gpu_agrees_with_eager() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)).cuda()

    def denoiser(x: State, t: torch.Tensor, **_: Any) -> State:
        return {"x": network(torch.cat((x["x"], t[:, None]), dim=1))}

    with torch.no_grad():
        torch.testing.assert_close(run(denoiser, "graph", "cuda"), run(denoiser, "eager", "cuda"))
