"""The shipped molecule model on a GPU: the CPU's estimate, no waiting, the same molecules in every batch, and the CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perrin.core import CounterNoise, Padded, sample, sample_seeds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def models() -> Any:
    """From the folder, so that perrin need not be installed."""
    pytest.importorskip("safetensors")
    model = pytest.importorskip("perrin.modalities.molecule.model")
    from perrin.bundle import read_bundle

    folder = Path(model.__file__).parent / "bundles" / "qm9"
    return {d: model.MoleculeModel.from_bundle(read_bundle(folder), device=d) for d in ("cpu", "cuda")}


def prepared(model: Any, indices: torch.Tensor) -> tuple[Any, ...]:
    """Everything that `sample` wants, on the device."""
    from perrin.modalities.molecule.fields import layouts_for

    seeds = sample_seeds(0, indices).to(model.device)
    mask = Padded.from_sizes(indices % 12 + 8, 20).mask.to(model.device)
    plan = model.options(steps=10).plan(model.denoiser)
    return model.denoiser, model.denoiser.process, plan, layouts_for(mask), CounterNoise(seeds)


def test_one_estimate_is_the_cpus(models: Any) -> None:
    from perrin.modalities.molecule.fields import layouts_for

    out = {}
    for d, model in models.items():
        seeds = sample_seeds(0, range(6)).to(d)
        layouts = layouts_for(Padded.from_sizes(torch.arange(6) + 5, 12).mask.to(d))
        x = model.denoiser.process.prior_state(CounterNoise(seeds), layouts)
        with torch.no_grad():
            out[d] = model.denoiser(x, torch.full((6,), 0.6, device=d), layouts=layouts)
    for k, v in out["cpu"].items():
        torch.testing.assert_close(out["cuda"][k].cpu(), v, rtol=1e-3, atol=1e-3)


def test_batch_and_replay_change_nothing_and_nothing_waits(models: Any) -> None:
    """Categories are drawn against thresholds, so that a rounding may turn one in thousands: one sample may differ."""
    every, part = torch.arange(32), torch.arange(5, 9)
    arguments, few = prepared(models["cuda"], every), prepared(models["cuda"], part)
    whole = sample(*arguments, self_condition=True)
    sample(*arguments, self_condition=True, mode="graph")  # captured: this waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = sample(*arguments, self_condition=True)
        replayed = sample(*arguments, self_condition=True, mode="graph")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    fewer = sample(*few, self_condition=True)
    for k, v in whole.items():
        assert torch.equal(v, eager[k])
    for other, rows in ((replayed, every), (fewer, part)):
        same = [
            bool((other["positions"][i] - whole["positions"][r]).abs().max() < 1e-3)
            and all(torch.equal(other[k][i], whole[k][r]) for k in ("types", "charges", "bonds"))
            for i, r in enumerate(rows.tolist())
        ]
        assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_capture_serves_every_mask_of_a_shape(models: Any, precision: str) -> None:
    """Also within autocast, whose cast weights a graph must not lose."""
    from perrin.core.replay import accelerated
    from perrin.modalities.molecule.fields import layouts_for

    denoiser = models["cuda"].denoiser
    graphed: Any = accelerated(denoiser, "graph")
    before = set(graphed._captures)
    for first in (5, 7, 9):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"), torch.no_grad():
            layouts = layouts_for(Padded.from_sizes(torch.arange(6) + first, 16).mask.to("cuda"))
            x = denoiser.process.prior_state(CounterNoise(sample_seeds(first, range(6)).to("cuda")), layouts)
            t = torch.full((6,), 0.4, device="cuda")
            eager, replayed = (d(x, t, layouts=layouts, previous=None) for d in (denoiser, graphed))
        for k, v in eager.items():
            torch.testing.assert_close(replayed[k], v, rtol=1e-4, atol=1e-4)
    assert len(set(graphed._captures) - before) == 1


def test_the_command_writes_molecules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit")
    from perrin.cli import main
    from perrin.modalities.molecule.files import read_molecules

    out = tmp_path / "out.sdf"
    assert main(["sample", "molecule/qm9", "-n", "8", "--device", "cuda", "-o", str(out)]) == 0
    fast = ["--precision", "bf16-mixed", "--mode", "graph", "-o", str(tmp_path / "fast.sdf")]
    assert main(["sample", "molecule/qm9", "-n", "8", "--device", "cuda", *fast]) == 0
    molecules = read_molecules(out)
    assert len(molecules) == 8
    assert all(len(m.positions) > 1 for m in molecules)
