"""Checkpoints: the state of a run comes back bit by bit; a damaged file is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from perrin.errors import PerrinError
from perrin.train import Checkpoint
from perrin.train.checkpoint import FILE

CONFIG = {"model": {"width": 3, "name": "é"}, "options": {"lr": 0.1}}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01
    )


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def state(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def averages(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.detach() * 0.5 for k, p in model.named_parameters()}


def test_going_on_from_a_file_changes_no_bit(tmp_path: Path) -> None:
    model = network(0)
    optimizer = optimizer_of(model)
    steps(model, optimizer, 0, 5)
    saved = Checkpoint.capture(5, model, averages(model), [optimizer], CONFIG)
    at_five = state(model)
    steps(model, optimizer, 5, 9)
    assert all(torch.equal(a, b) for a, b in zip(saved.part("model").values(), at_five, strict=True)), (
        "a copy"
    )

    assert saved.save(tmp_path) == tmp_path / FILE
    found = Checkpoint.load(tmp_path)
    assert found is not None
    assert (found.step, found.config) == (5, CONFIG)
    other = network(1)
    other_optimizer, ema = optimizer_of(other), averages(network(2))
    found.restore(other, ema, [other_optimizer])
    for k, value in found.part("ema").items():
        assert torch.equal(ema[k], value)
    assert all(torch.equal(a, b) for a, b in zip(state(other), at_five, strict=True))
    steps(other, other_optimizer, 5, 9)
    assert all(torch.equal(a, b) for a, b in zip(state(other), state(model), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    model = network(0)
    Checkpoint.capture(0, model, averages(model), [optimizer_of(model)], CONFIG).save(tmp_path)
    found = Checkpoint.load(tmp_path)
    assert found is not None
    assert found.part("exp_avg") == {}
    other = network(1)
    optimizer = optimizer_of(other)
    found.restore(other, averages(other), [optimizer])
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(state(other), state(model), strict=True))


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path) is None
    assert Checkpoint.load(tmp_path / "nowhere") is None


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other_file(data: bytes) -> bytes:
    from safetensors.torch import save

    return save({"x": torch.zeros(1)})  # well made, but no checkpoint


@pytest.mark.parametrize("spoil", [cut, other_file, lambda _: b"", lambda _: b"x" * 100])
def test_a_damaged_file_is_one_line(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    model = network(0)
    path = Checkpoint.capture(1, model, averages(model), [optimizer_of(model)], CONFIG).save(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(PerrinError, match=r"^expected a checkpoint in .* delete it to start over$") as caught:
        Checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)
