"""Backbones of the molecule denoiser side by side, at the parameter count of the transformer.

    python benchmarks/backbones.py speed                      forward and training step per molecule of QM9's size
    python benchmarks/backbones.py scaling                    time and memory against the number of atoms
    python benchmarks/backbones.py quality --steps 300        validation loss after the same steps
    python benchmarks/backbones.py quality --seconds 40       … after the same time
    python benchmarks/backbones.py all --device cuda --size full --data train.safetensors --json out.json

Widths of e3nn and sparse are chosen so that the number of parameters is that of the transformer (`--size small`: 0.6 M,
for a CPU; `full`: 5.8 M). On a CPU everything runs on one thread.

QM9 comes from qm9pack through Perrin, or without RDKit from `--data`, a safetensors file with `sizes`, `numbers`, `charges`,
`positions`, `bond_counts` and `bonds` (the arguments of `buckets_from_ragged`), which `export --data FILE` writes.

Memory is what one training step needs above weights and inputs: on CUDA the peak of the allocator, on a CPU the bytes
that autograd keeps for the backward pass (counted exactly, each storage once).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perrin.core import GeneratorNoise, NetworkDenoiser, State
from perrin.modalities.molecule import BACKBONES
from perrin.modalities.molecule.dataset import Bucket, buckets_from_ragged, count_vocabulary
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, Vocabulary, layouts_for
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.task import MoleculeTask

SIZES = {
    "small": NetworkConfig(
        depth=4,
        width=112,
        vectors=16,
        pair_width=32,
        heads=4,
        sets=8,
        pair_hidden=64,
        gathered=8,
        time_width=64,
    ),
    "full": NetworkConfig(),
}
ATOMS = (18, 32, 64, 128, 256, 512)
KEYS = ("sizes", "numbers", "charges", "positions", "bond_counts", "bonds")
TRAIN, VALIDATION = 2000, 256
QM9_LIKE = Vocabulary(  # for what needs no data: frequencies as in QM9, rounded
    elements=(1, 6, 7, 8, 9),
    charges=(-1, 0, 1),
    position_scale=1.4,
    type_counts=(51.0, 35.0, 6.0, 8.0, 0.1),
    charge_counts=(1.0, 98.0, 1.0),
    bond_counts=(88.0, 11.0, 0.8, 0.2),
    size_counts=((18, 1),),
)


def parameters(denoiser: NetworkDenoiser) -> int:
    """How many there are."""
    return sum(p.numel() for p in denoiser.parameters())


def matched(size: str, vocabulary: Vocabulary) -> dict[str, MoleculeConfig]:
    """A configuration for each backbone, with the width that comes nearest to the transformer's parameter count."""
    base = MoleculeConfig(vocabulary=vocabulary, network=SIZES[size])
    goal = parameters(build_denoiser(base))
    out = {}
    for backbone in BACKBONES:
        found = {}
        first, step = base.network.width, max(8, base.network.width // 128 * 8)
        widths = range(first * 3 // 4 // 8 * 8, first * 5 // 4, step)
        for width in widths if backbone != "transformer" else (first,):
            config = replace(base, network=replace(base.network, backbone=backbone, width=width))
            found[abs(parameters(build_denoiser(config)) - goal)] = config
        out[backbone] = found[min(found)]
    return out


# data


def arrays(path: str | None) -> dict[str, Tensor]:
    """QM9's training split, ragged."""
    if path and Path(path).is_file():
        from safetensors.torch import load_file

        found = load_file(path)
        return {k: found[k].long() if k in ("sizes", "bond_counts") else found[k] for k in KEYS}
    from perrin.modalities.molecule.qm9 import load_qm9

    data = load_qm9()
    index = data.split()["train"]
    part = data.subset(index[data.has_bonds[index]])
    values = (part.sizes, part.numbers, part.charges, part.positions, part.bond_offsets.diff(), part.bonds)
    return dict(zip(KEYS, values, strict=True))


def chosen(data: dict[str, Tensor], index: Tensor) -> tuple[Tensor, ...]:
    """The molecules numbered `index`, ragged."""

    def rows(counts: Tensor) -> Tensor:
        first = counts.cumsum(0) - counts
        n = counts[index]
        start = n.cumsum(0) - n
        return torch.arange(int(n.sum())) + torch.repeat_interleave(first[index] - start, n)

    atoms, bonds = rows(data["sizes"]), rows(data["bond_counts"])
    return (
        data["sizes"][index],
        *(data[k][atoms] for k in ("numbers", "charges", "positions")),
        data["bond_counts"][index],
        data["bonds"][bonds],
    )


def made_up(batch: int, atoms: int, device: str) -> tuple[State, Tensor]:
    """Chains of atoms, at a molecule's density: times and memory depend on sizes only."""
    generator = torch.Generator().manual_seed(atoms)
    mask = torch.ones(batch, atoms, dtype=torch.bool)
    x = torch.randn(batch, atoms, 3, generator=generator) * (atoms / 18) ** (1 / 3)
    bonds = torch.zeros(batch, atoms, atoms, dtype=torch.int64)
    row = torch.arange(atoms - 1)
    bonds[:, row, row + 1] = bonds[:, row + 1, row] = 1
    types = torch.randint(5, (batch, atoms), generator=generator)
    state = {
        POSITIONS: x - x.mean(1, keepdim=True),
        TYPES: types,
        CHARGES: torch.ones_like(types),
        BONDS: bonds,
    }
    return {k: v.to(device) for k, v in state.items()}, mask.to(device)


def batch_of(denoiser: NetworkDenoiser, x_0: State, mask: Tensor, t: Tensor, seed: int) -> dict[str, Tensor]:
    """As `MoleculeTask.prepare` makes it."""
    noise = GeneratorNoise(torch.Generator(device=mask.device).manual_seed(seed))
    x_t = denoiser.process.corrupt_state(x_0, t, noise, layouts_for(mask))
    batch = {"t": t, "mask": mask}
    return batch | {f"x_0.{k}": v for k, v in x_0.items()} | {f"x_t.{k}": v for k, v in x_t.items()}


# time and memory


def seconds(work: Callable[[], Any], device: str, budget: float) -> float:
    """The median of the times of as many calls as fit the budget, at least three."""
    times: list[float] = []
    work()
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def wait(device: str) -> None:
    """Until the device has done its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Case:
    """A task of one made-up batch: one forward pass, and one training step."""

    def __init__(self, config: MoleculeConfig, a: argparse.Namespace, batch: int, atoms: int) -> None:
        torch.manual_seed(0)
        x_0, mask = made_up(batch, atoms, a.device)
        self.device = a.device
        self.denoiser = build_denoiser(config).to(a.device)
        self.task = MoleculeTask(self.denoiser, config, [Bucket(x_0, mask)], batch=batch, seed=0)
        if a.compile:
            self.task.compile()
        t = torch.full((batch,), 0.3, device=a.device)
        self.batch = batch_of(self.denoiser, x_0, mask, t, 0)
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=0.0)

    def autocast(self) -> Any:
        cuda = self.device.startswith("cuda")
        return torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=cuda)

    def loss(self) -> Tensor:
        with self.autocast():
            return self.task.loss(self.denoiser, (0, False), self.batch)["loss"]

    def forward(self) -> None:
        with torch.no_grad():
            self.loss()

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def memory(self) -> int:
        """Bytes; see the module."""
        if self.device.startswith("cuda"):
            self.step()
            wait(self.device)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            wait(self.device)
            return torch.cuda.max_memory_allocated() - before
        known = {x.untyped_storage().data_ptr() for x in (*self.denoiser.parameters(), *self.batch.values())}
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = self.loss()
        del loss
        return sum(kept.values())


def speed(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Molecules of 18 atoms, in batches."""
    batch = a.batch or (512 if a.device.startswith("cuda") else 16)
    rows = []
    for backbone, config in matched(a.size, QM9_LIKE).items():
        case = Case(config, a, batch, 18)
        rows.append(
            {
                "backbone": backbone,
                "width": config.network.width,
                "parameters": parameters(case.denoiser),
                "forward_ms": 1e3 * seconds(case.forward, a.device, a.budget) / batch,
                "step_ms": 1e3 * seconds(case.step, a.device, a.budget) / batch,
                "kept_MB": case.memory() / 1e6 / batch,
            }
        )
    return show(f"per molecule of 18 atoms, batches of {batch}", rows)


def scaling(a: argparse.Namespace) -> list[dict[str, Any]]:
    """One molecule of more and more atoms; e3nn and sparse with at most 32 edges into an atom."""
    rows = []
    for backbone, config in matched(a.size, QM9_LIKE).items():
        for atoms in ATOMS:
            case = Case(config, a, 1, atoms)
            try:
                row = {"backbone": backbone, "atoms": atoms, "kept_MB": case.memory() / 1e6}
                row["forward_ms"] = 1e3 * seconds(case.forward, a.device, a.budget / 4)
                row["step_ms"] = 1e3 * seconds(case.step, a.device, a.budget / 4)
            except torch.OutOfMemoryError:
                row = {"backbone": backbone, "atoms": atoms, "kept_MB": float("inf")}
            rows.append(row)
            del case
    return show("one molecule, training step", rows)


# quality


def quality(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Train each backbone on the same molecules within the same budget; losses on held-out molecules.

    A validation loss is the mean over the same held-out molecules, times and noise for all backbones, without
    self-conditioning. Adam with 5 % of warm-up and a linear fall to zero over the last 45 %; the last weights are judged.
    """
    data = arrays(a.data)
    order = torch.randperm(len(data["sizes"]), generator=torch.Generator().manual_seed(0))
    train, held_out = chosen(data, order[:TRAIN]), chosen(data, order[TRAIN : TRAIN + VALIDATION])
    vocabulary = count_vocabulary(*train)
    buckets = buckets_from_ragged(*train, vocabulary)
    judged = [b.to(torch.device(a.device)) for b in buckets_from_ragged(*held_out, vocabulary)]
    batch = a.batch or (256 if a.device.startswith("cuda") else 16)
    rows = []
    for backbone, config in matched(a.size, vocabulary).items():
        for seed in range(a.seeds):
            rows.append(
                {"backbone": backbone, "seed": seed, **learn(config, buckets, judged, batch, seed, a)}
            )
    if a.seeds > 1:
        show(f"means over {a.seeds} seeds, with standard errors", averaged(rows))
    return show(f"{TRAIN} molecules of QM9, batches of {batch}; validation losses", rows)


def learn(
    config: MoleculeConfig,
    buckets: list[Bucket],
    judged: list[Bucket],
    batch: int,
    seed: int,
    a: argparse.Namespace,
) -> dict[str, Any]:
    """Train one network and judge it."""
    torch.manual_seed(seed)
    denoiser = build_denoiser(config).to(a.device)
    task = MoleculeTask(denoiser, config, buckets, batch=batch, seed=seed)
    task.to(torch.device(a.device))
    if a.compile:
        task.compile()
    cuda = a.device.startswith("cuda")
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=a.lr, betas=(0.9, 0.99))
    generator = torch.Generator(device=a.device)
    wait(a.device)
    begin, step, used = time.perf_counter(), 0, 0.0
    while used < 1:
        rate = min(1.0, (used + 1e-3) / 0.05, (1 - used) / 0.45)
        for group in optimizer.param_groups:
            group["lr"] = a.lr * rate
        generator.manual_seed(1_000_003 * seed + step)
        key, given = task.prepare(step, generator=generator, rank=0, world=1)
        with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=cuda):
            loss = task.loss(denoiser, key, given)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if a.seconds:
            wait(a.device)
            used = (time.perf_counter() - begin) / a.seconds
        else:
            used = step / a.steps
    wait(a.device)
    spent = time.perf_counter() - begin
    return {"steps": step, "seconds": round(spent, 1), **judge(task, judged)}


@torch.no_grad()
def judge(task: MoleculeTask, judged: list[Bucket]) -> dict[str, float]:
    """Losses by field, at times even in [0, 1]."""
    total: dict[str, float] = {}
    count = sum(map(len, judged))
    for number, bucket in enumerate(judged):
        x_0, mask = bucket.take(torch.arange(len(bucket), device=bucket.mask.device))
        t = (torch.arange(len(bucket), device=mask.device) + 0.5) / len(bucket)
        given = batch_of(task.denoiser, x_0, mask, t, number)
        for k, v in task.loss(task.denoiser, (0, False), given).items():
            total[k] = total.get(k, 0.0) + float(v) * len(bucket) / count
    return total


def averaged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds, as text."""
    out = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        part = [row for row in rows if row["backbone"] == backbone]
        values = {
            k: torch.tensor([float(row[k]) for row in part]) for k in part[0] if k not in ("backbone", "seed")
        }
        error = len(part) ** -0.5
        texts = {k: f"{float(x.mean()):.4g} ± {float(x.std()) * error:.1g}" for k, x in values.items()}
        out.append({"backbone": backbone, **texts})
    return out


def show(title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a table in Markdown."""
    names = list(rows[0])
    print(f"\n{title}\n\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for row in rows:
        cells = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in (row.get(k, "") for k in names))
        print(f"| {' | '.join(cells)} |", flush=True)
    return rows


def export(a: argparse.Namespace) -> None:
    """Write QM9's training split for machines without RDKit."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in arrays(None).items()}, a.data)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "scaling", "quality", "all", "export"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--data", help="safetensors file with QM9")
    parser.add_argument("--steps", type=int, default=300, help="of training, for quality")
    parser.add_argument("--seconds", type=float, help="of training, in place of steps")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each backbone, for quality")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each time that is measured")
    parser.add_argument("--compile", action="store_true", help="torch.compile where the backbone can")
    parser.add_argument("--json", help="also write the numbers here")
    a = parser.parse_args()
    if a.what == "export":
        export(a)
        return
    torch.set_num_threads(1)
    parts = {"speed": speed, "scaling": scaling, "quality": quality}
    result: dict[str, Any] = {k: f(a) for k, f in parts.items() if a.what in (k, "all")}
    where = torch.cuda.get_device_name() if a.device.startswith("cuda") else platform.processor()
    result["machine"] = f"{where or platform.machine()}, torch {torch.__version__}"
    print(f"\n{result['machine']}")
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
