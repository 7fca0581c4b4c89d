"""The peer of the model of flows and densities: a deterministic emulator of its size, fine-tuned by the fair CRPS of two
draws.

    python benchmarks/emulator.py train.h5 test.h5 -o emulator.h5 [--steps 20000] [--members 16] [--intervals 20]
    perrin evaluate emulator.h5 --like test.h5

For the first half of the steps the network predicts the change over one interval by least squares, without noise. For the
second half it is given a channel of white noise and trained by `½ Σ|x_i − y| − ½|x_1 − x_2|`, the fair CRPS of two draws, so
that its ensembles spread. Network, data, shifts and learning rates are those of `perrin train particle/kolmogorov`,
or `particle/nbody` where the file holds densities; one evaluation makes a state, where the diffusion model needs its number
of steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perrin.core.scores import fair_crps
from perrin.modalities.particle.flow.fields import Field
from perrin.modalities.particle.flow.files import Trajectories, read_flow, write_flow
from perrin.modalities.particle.flow.model import FlowConfig, FlowTask, NetworkConfig, build, flow_config
from perrin.nets.periodic import PeriodicUNet
from perrin.train import Trainer, TrainOptions


class Emulator(nn.Module):
    """`(encoded state / σ, noise) → change / s`, less what a change cannot have."""

    def __init__(self, c: NetworkConfig, kind: Field) -> None:
        super().__init__()
        self.kind = kind
        self.body = PeriodicUNet(1 + kind.channels, 1, c.widths, c.blocks, c.condition)
        self.told = nn.Parameter(torch.zeros(1, c.condition))

    def forward(self, now: Tensor, noise: Tensor) -> Tensor:
        """Both `[B, 1, n, n]`."""
        y = self.body(torch.cat((now, noise), 1), self.told.expand(len(now), -1)).float()
        return self.kind.held(y)


class EmulatorTask(FlowTask):
    """Least squares up to step `turn`, then the fair CRPS of two members."""

    def __init__(
        self, emulator: Emulator, config: FlowConfig, data: Trajectories, *, batch: int, turn: int
    ) -> None:
        super().__init__(build(config), config, data, batch=batch, seed=0)
        self.emulator, self.turn = emulator, turn
        self.process, self.denoiser = self.denoiser.process, emulator  # type: ignore[assignment]
        self.config |= {"turn": turn}

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict]:
        """See `perrin.train.Task`."""
        self.denoiser = _Holder(self.process)  # type: ignore[assignment]
        _, batch = super().prepare(step, generator=generator, rank=rank, world=world)
        self.denoiser = self.emulator  # type: ignore[assignment]
        now, shape = batch["now"], batch["now"].shape
        noise = torch.randn(2, len(now), 1, *shape[2:], generator=generator, device=generator.device)
        return ("crps" if step >= self.turn else "mse"), {
            "now": batch["now"],
            "clean": batch["clean"],
            "noise": noise,
        }

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        now, clean = batch["now"], batch["clean"]
        if key == "mse":
            return {"loss": (model(now, torch.zeros_like(clean)) - clean).square().mean()}
        members = torch.stack([model(now, noise) for noise in batch["noise"]])
        return {"loss": fair_crps(members, clean).mean()}


class _Holder:
    """What `FlowTask.prepare` asks of a denoiser."""

    def __init__(self, process: Any) -> None:
        self.process = process


@torch.no_grad()
def simulate(
    model: Emulator, c: FlowConfig, start: np.ndarray, intervals: int, members: int, device: str
) -> np.ndarray:
    """Trajectories `[N · members, intervals + 1, n, n]`."""
    generator = torch.Generator().manual_seed(0)
    now = torch.from_numpy(np.repeat(start, members, 0)).float().to(device)
    out = [now.cpu()]
    for _ in range(intervals):
        parts = []
        for part in now.split(256):
            seen = c.kind.seen(part, c.scale)
            noise = torch.randn(len(part), 1, *part.shape[1:], generator=generator).to(device)
            parts.append(c.kind.advance(part, model(seen, noise).squeeze(1), c.change))
        now = torch.cat(parts)
        out.append(now.cpu())
    return torch.stack(out, 1).numpy()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--intervals", type=int, default=20)
    parser.add_argument("--widths", default="48,96,128", help="of the U-Net, as the model's")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--condition", type=int, default=128)
    a = parser.parse_args()
    data, test = read_flow(a.train), read_flow(a.test)
    widths = tuple(int(w) for w in a.widths.split(","))
    config = flow_config(data, NetworkConfig(widths=widths, blocks=a.blocks, condition=a.condition))
    torch.manual_seed(0)
    model = Emulator(config.network, config.kind)
    cuda = torch.cuda.is_available()
    options = TrainOptions(
        steps=a.steps,
        batch=a.batch,
        lr=1e-3,
        warmup=min(400, a.steps // 10 + 1),
        cooldown=0.5,
        ema=0.999,
        precision="bf16-mixed" if cuda else "32-true",
        cuda_graphs=cuda,
        optimizer="muon" if cuda else "adamw",
    )
    task = EmulatorTask(model, config, data, batch=a.batch, turn=a.steps // 2)
    Trainer(task, options, Path(a.out + ".run"), accelerator="cuda" if cuda else "cpu", devices=1).run()  # type: ignore[arg-type]
    found = simulate(model, config, test.values[:, 0], a.intervals, a.members, "cuda" if cuda else "cpu")
    words = test.words | {"members": a.members, "title": "emulator"}
    write_flow(a.out, Trajectories(found, data.interval, words, test.name, test.begin))
    print(f"{a.members} runs from each of {len(test)} states in {a.out}")


if __name__ == "__main__":
    main()
