"""Properties on request by EDM's protocol (Hoogeboom et al. 2022): one generator, one evaluator, two halves of QM9.

    python benchmarks/properties.py train-evaluator --out runs/evaluator --minutes 8
    python benchmarks/properties.py train-generator --out runs/generator --minutes 10 [--from molecule/qm9]
    python benchmarks/properties.py score --generator runs/generator --evaluator runs/evaluator --json out.json
    python benchmarks/properties.py xtb --samples out.json.samples.safetensors -n 500
    python benchmarks/properties.py pack --out qm9.xz      all of it in one small file, for machines without qm9pack

EDM's split, which later work keeps: `numpy.random.seed(0)`, a permutation of the 130,831 molecules, the first 100,000
for training; of these, by `numpy.random.seed(42)` and another permutation, half A for the evaluator and half B for the
generator.

- *MAE*: for each property, pairs (number of atoms, value) of random molecules of half B are asked for as points; of what is
  generated, the evaluator's prediction against the wish. EDM's evaluators are EGNNs, one for each property; ours is one
  network for all, from elements and positions alone, so its errors on real molecules stand beside (the floor).
- *band*: intervals of half a standard deviation that hold a random molecule's value; *tail*: beyond the 5 or 95 % quantile.
  Hit rate: share whose prediction is inside; the floor is that of real molecules which are inside.
- *all six*: the six values of one molecule asked for together.
- *stable*: molecules whose every atom has its valence by EDM's table of distances.
- *xtb*: GFN2-xTB gap and dipole of the generated geometry against the wish, after a linear map fitted to real molecules; the
  floor is the error of that map on other real molecules. It has nothing to do with the evaluator.

A generator that starts from `molecule/qm9` has seen the structures of half A (not their properties) in unconditional
training, and is outside the strict protocol; --from none is inside.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perrin.bundle import read_bundle, write_bundle
from perrin.core import State
from perrin.modalities.molecule.conditions import with_inputs
from perrin.modalities.molecule.dataset import Bucket, buckets_from_ragged, count_vocabulary
from perrin.modalities.molecule.fields import CHARGES, POSITIONS, TYPES, Vocabulary
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, make_units, split_weights
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.predictor import (
    Predictor,
    PredictorConfig,
    PredictorLoss,
    PredictorTask,
    mean_absolute_errors,
)
from perrin.modalities.molecule.properties import STANDARD, TABLE, measure, nothing, standardise
from perrin.modalities.molecule.task import LossConfig, MoleculeTask
from perrin.modalities.molecule.widen import widen
from perrin.train import Trainer, TrainOptions

SHOWN = {"alpha": ("bohr^3", 1.0), "gap": ("meV", 27211.386), "homo": ("meV", 27211.386), "lumo": ("meV", 27211.386),
         "mu": ("D", 1.0), "cv": ("cal/(mol K)", 1.0)}  # fmt: skip
"""Units of the tables, and their number in QM9's unit."""

PUBLISHED: dict[str, tuple[float, ...]] = {
    "EDM, properties shuffled": (9.01, 1470, 645, 1457, 1.616, 6.857),
    "EDM, from the number of atoms": (3.86, 866, 426, 813, 1.053, 1.971),
    "EDM": (2.76, 655, 356, 584, 1.111, 1.101),
    "NExT-Mol (best diffusion, issue 5)": (1.16, 297, 205, 235, 0.507, 0.512),
    "sequence models (issue 5)": (0.46, 98, 57, 71, 0.164, 0.275),
    "EDM's evaluators on real molecules": (0.10, 64, 39, 36, 0.043, 0.040),
}
"""alpha, gap, homo, lumo, mu, Cv; their own evaluators."""

COUNT, TRAIN = 130_831, 100_000


@dataclass(frozen=True)
class Arrays:
    """All of QM9 as ragged arrays, in the order of the original, and the six properties `[M, 6]` in its units."""

    sizes: Tensor
    numbers: Tensor
    charges: Tensor
    positions: Tensor
    bond_counts: Tensor
    bonds: Tensor
    has_bonds: Tensor
    values: Tensor

    def subset(self, rows: Tensor) -> Arrays:
        """Molecules by number; those whose bonds are not known are left out."""
        rows = rows[self.has_bonds[rows]]

        def gather(counts: Tensor) -> Tensor:
            ends = counts.cumsum(0)
            own = counts[rows]
            shift = (ends - counts)[rows] - (own.cumsum(0) - own)
            return torch.arange(int(own.sum())) + torch.repeat_interleave(shift, own)

        atoms, edges = gather(self.sizes), gather(self.bond_counts)
        return Arrays(
            self.sizes[rows], self.numbers[atoms], self.charges[atoms], self.positions[atoms], self.bond_counts[rows],
            self.bonds[edges], self.has_bonds[rows], self.values[rows],
        )  # fmt: skip

    @property
    def ragged(self) -> tuple[Tensor, ...]:
        """As `buckets_from_ragged` takes them."""
        return (self.sizes, self.numbers, self.charges, self.positions, self.bond_counts, self.bonds)

    def buckets(self, vocabulary: Vocabulary) -> list[Bucket]:
        """Padded, with values."""
        return buckets_from_ragged(*self.ragged, vocabulary, self.values)


def load(path: str | None) -> Arrays:
    """From QM9's cache, or from the file that `pack` wrote."""
    if path is None:
        from perrin.modalities.molecule.qm9 import load_qm9

        data = load_qm9()
        values = torch.stack([data.property(k) for k in STANDARD], 1)
        return Arrays(
            data.sizes,
            data.numbers,
            data.charges,
            data.positions,
            data.bond_offsets.diff(),
            data.bonds,
            data.has_bonds,
            values,
        )
    from safetensors.torch import load as read

    d = read(lzma.decompress(Path(path).read_bytes()))
    return Arrays(
        d["sizes"].long(),
        d["numbers"],
        d["charges"],
        d["positions"].T.contiguous().float() / GRID,
        d["bond_counts"].long(),
        d["bonds"].T.contiguous(),
        d["has_bonds"],
        d["values"].T.double() / DECIMALS,
    )


GRID = 3200.0
"""Steps in one Å of packed positions: rounding of 1.6e-4 Å, a hundredth of the least noise in training."""
DECIMALS = 10_000.0
"""QM9 gives its properties with four decimals at most (alpha 2, cv 3)."""


def pack(a: argparse.Namespace) -> None:
    """Write the data as one file."""
    from safetensors.torch import save

    data = load(None)
    owner = torch.repeat_interleave(torch.arange(len(data.sizes)), data.sizes)
    mean = torch.zeros(len(data.sizes), 3).index_add_(0, owner, data.positions) / data.sizes[:, None]
    quantised = ((data.positions - mean[owner]) * GRID).round()
    assert float(quantised.abs().max()) < 2**15
    scaled = (data.values * DECIMALS).round()
    assert float((scaled / DECIMALS - data.values).abs().max()) < 1e-6
    tensors = {
        "sizes": data.sizes.to(torch.uint8), "numbers": data.numbers, "charges": data.charges,
        "positions": quantised.to(torch.int16).T.contiguous(), "bond_counts": data.bond_counts.to(torch.uint8),
        "bonds": data.bonds.T.contiguous(), "has_bonds": data.has_bonds, "values": scaled.to(torch.int32).T.contiguous(),
    }  # fmt: skip
    Path(a.out).write_bytes(lzma.compress(save(tensors), preset=6))
    print(f"{Path(a.out).stat().st_size / 1e6:.1f} MB in {a.out}")


def parts(count: int) -> dict[str, Tensor]:
    """EDM's halves and test part, and this project's training part, as numbers of molecules.

    With fewer molecules than QM9 has, for trials, in the same proportions.
    """
    train = TRAIN * count // COUNT
    order = np.random.RandomState(0).permutation(count)
    inner = np.random.RandomState(42).permutation(train)
    test = int(0.1 * count)
    own = torch.randperm(count, generator=torch.Generator().manual_seed(42))
    return {
        "A": torch.from_numpy(order[:train][inner[: train // 2]]),
        "B": torch.from_numpy(order[:train][inner[train // 2 :]]),
        "test": torch.from_numpy(order[count - test :]),
        "train": own[:train],
    }


def vocabulary_of(arrays: Arrays) -> Vocabulary:
    """Of the part that is trained on."""
    return count_vocabulary(*arrays.ragged)


def options_of(a: argparse.Namespace, cuda: bool) -> TrainOptions:
    """A large batch and Muon on a GPU."""
    return TrainOptions(
        steps=a.steps or (10**9 if a.minutes else 2000), minutes=a.minutes, batch=a.batch or (512 if cuda else 32),
        optimizer="muon" if cuda else "adamw", lr=a.lr or (2e-3 if cuda else 1e-3),
        warmup=min(400, (a.steps or 10**9) // 10 + 1),
        cooldown=a.cooldown, ema=0.9995 if cuda else 0.99, precision="bf16-mixed" if cuda else "32-true", compile=cuda,
        cuda_graphs=cuda, log_every=100 if cuda else 10, save_every=10**9 if a.minutes else 1000, seed=a.seed,
    )  # fmt: skip


def small(a: argparse.Namespace) -> dict[str, int]:
    """Sizes for trials on a CPU."""
    if not a.tiny:
        return {}
    return {"depth": 1, "width": 32, "vectors": 8, "pair_width": 16, "heads": 4, "sets": 4, "pair_hidden": 16, "gathered": 4,
            "radial": 8, "time_width": 16}  # fmt: skip


def train_evaluator(a: argparse.Namespace) -> dict[str, Any]:
    """On half A, or on `--part`, with `--noisy` as a guide of the generator `--from`; goes on from --out."""
    data = loaded(a)
    split = parts(len(data.sizes))
    half = data.subset(split[a.part or "A"])
    vocabulary = vocabulary_of(data)
    if a.start != "none":  # a guide sees noise as its generator does
        vocabulary = MoleculeConfig.from_json(read_bundle(found_bundle(a.start)).config["model"]).vocabulary
    ranges = measure(STANDARD, UNITS, half.values)
    config = PredictorConfig(vocabulary=vocabulary, ranges=ranges, noisy=a.noisy, **small(a))
    torch.manual_seed(a.seed)
    model = Predictor(config)
    cuda = a.device.startswith("cuda")
    options = options_of(a, cuda)
    loss = PredictorLoss(jitter=a.jitter)
    task = PredictorTask(model, config, half.buckets(vocabulary), batch=options.batch, seed=a.seed, loss=loss)
    trainer = Trainer(task, options, a.out, accelerator="cuda" if cuda else "cpu", devices=a.devices)
    last = trainer.run()
    if trainer.fabric.global_rank:
        return {}
    model.eval()
    seen = a.part or "A"
    card = (
        f"# Property network\n\nProperties of QM9 molecules from elements and positions, trained on {seen}.\n"
    )

    def write(**more: Any) -> None:
        write_bundle(
            a.out, modality="molecule", model=config.to_json(), weights=dict(model.named_parameters()),
            card=card,
            training={"options": options.to_json(), "last": last, **more},
        )  # fmt: skip

    write()  # what comes now takes its time too
    result = {
        name: as_shown(mean_absolute_errors(model, data.subset(split[name]).buckets(vocabulary)))
        for name in ("B", "test")
    }
    write(**{"mean absolute errors": result})
    for name, errors in result.items():
        print(f"MAE on {name}:", json.dumps(errors))
    return result


def train_generator(a: argparse.Namespace) -> dict[str, Any]:
    """On half B, or on `--part train` for a bundle to ship; goes on from --out."""
    data = loaded(a)
    half = data.subset(parts(len(data.sizes))[a.part or "B"])
    base = None if a.start == "none" else read_bundle(found_bundle(a.start))
    old = MoleculeConfig.from_json(base.config["model"]) if base else None
    if old is None:
        old = MoleculeConfig(
            vocabulary=vocabulary_of(half), network=NetworkConfig(**small(a)),  # type: ignore[arg-type]
            bond_exponent=a.exponent, type_exponent=a.exponent,
        )  # fmt: skip
    vocabulary = replace(
        old.vocabulary,
        size_counts=tuple(zip(*(x.tolist() for x in half.sizes.unique(return_counts=True)), strict=True)),
    )
    buckets = half.buckets(vocabulary)
    config, table = with_inputs(
        replace(old, vocabulary=vocabulary), buckets, STANDARD, parts=not a.no_parts, data=False
    )
    torch.manual_seed(a.seed)
    denoiser = build_denoiser(config)
    if base is not None:
        widen(denoiser, config, split_weights(base.weights())[0], old, source=a.start)
    cuda = a.device.startswith("cuda")
    options = options_of(a, cuda)
    task = MoleculeTask(
        denoiser, config, buckets, batch=options.batch, seed=a.seed, loss=LossConfig(self_condition=0.7)
    )
    trainer = Trainer(task, options, a.out, accelerator="cuda" if cuda else "cpu", devices=a.devices)
    last = trainer.run()
    if trainer.fabric.global_rank:
        return {}
    sampling = dict(base.config.get("sampling", {})) if base else SamplingOptions(steps=50).to_json()
    sampling.pop("balance", None)  # it was of other samples
    weights = dict(denoiser.named_parameters()) | ({TABLE: table.pack()} if table else {})
    write_bundle(
        a.out, modality="molecule", model=config.to_json(), weights=weights, sampling=sampling,
        card=f"# Molecules with properties and parts\n\nTrained on {a.part or 'B'}, from {a.start}.\n",
        training={"options": options.to_json(), "last": last, "part": a.part or "B", "from": a.start},
    )  # fmt: skip
    print("trained", json.dumps(last))
    return dict(last)


UNITS = {
    "alpha": "bohr^3",
    "gap": "hartree",
    "homo": "hartree",
    "lumo": "hartree",
    "mu": "D",
    "cv": "cal/(mol K)",
}


def found_bundle(reference: str) -> Path:
    """A path, or a bundle's name."""
    from perrin.modalities import find_bundle

    return Path(reference) if Path(reference).exists() else Path(find_bundle(reference))


def loaded(a: argparse.Namespace) -> Arrays:
    """The data, or the first `--limit` of a random order for trials."""
    data = load(a.data)
    if a.limit:
        data = data.subset(
            torch.randperm(len(data.sizes), generator=torch.Generator().manual_seed(1))[: a.limit]
        )
    return data


def as_shown(errors: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    """In the units of the tables."""
    return {k: [round(SHOWN[k][1] * x, 4) for x in v] for k, v in errors.items()}


@torch.no_grad()
def generate(
    model: MoleculeModel, sizes: Tensor, wishes: Tensor, seed: int, options: SamplingOptions, batch: int
) -> list[tuple[Tensor, State, Tensor]]:
    """Samples `(numbers, state, mask)`, one for each size and wish `[M, P, 2]` in standard units."""
    out = []
    for unit in make_units(list(enumerate(sizes.tolist())), batch=batch):
        index = torch.tensor(unit.indices)
        state, mask = model.run_state(unit, seed, options, wishes[index])
        out.append((index, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, mask))
    return out


def stable(state: State, mask: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """By EDM's table of distances, and by the generated bonds with strict valences in one piece, `[B]` each."""
    from perrin.modalities.molecule.metrics.lookup import THRESHOLDS, VALENCE
    from perrin.modalities.molecule.metrics.tensors import connected, stable_atoms

    device, n = mask.device, mask.shape[1]
    z = torch.tensor(vocabulary.elements, device=device)[state[TYPES]] * mask
    x = state[POSITIONS] * vocabulary.position_scale
    eye = torch.eye(n, device=device)
    d = torch.linalg.norm(x[:, :, None] - x[:, None], dim=-1) + 99 * eye
    limits = torch.tensor(THRESHOLDS, dtype=torch.float32, device=device)[:, z[:, :, None], z[:, None]]
    single = d < limits[0]
    double = single & (d < limits[1])
    order = single.int() + double.int() + (double & (d < limits[2])).int()
    valence = torch.zeros(10, dtype=torch.long, device=device)
    for element, v in VALENCE.items():
        valence[element] = v
    by_table = ((order.sum(-1) == valence[z]) | ~mask).all(1)
    return by_table, stable_atoms(state, mask, vocabulary).all(1) & connected(state, mask)


def score(a: argparse.Namespace) -> dict[str, Any]:
    """The table."""
    data = loaded(a)
    split = parts(len(data.sizes))
    half = data.subset(split["B"])
    model = MoleculeModel.from_bundle(read_bundle(found_bundle(a.generator)), device=a.device)
    evaluator = Predictor.from_bundle(read_bundle(found_bundle(a.evaluator)), device=a.device)
    ranges, vocabulary = model.config.ranges, model.config.vocabulary
    if a.device.startswith("cuda"):
        model.precision = "bf16-mixed"
        if a.compile:
            model.denoiser.network.trunk.compile_blocks()  # type: ignore[union-attr, operator]
    options = model.options(
        steps=a.steps, guidance_scale=a.guidance_scale, temperature=a.temperature, candidates=a.candidates
    )
    if a.guide:
        model.guide = Predictor.from_bundle(read_bundle(found_bundle(a.guide)), device=a.device)
    if evaluator.config.vocabulary.elements != vocabulary.elements:
        raise SystemExit("expected an evaluator and a generator of the same elements")
    if tuple(r.name for r in ranges) != STANDARD:
        raise SystemExit(f"expected a generator with the conditions {', '.join(STANDARD)}")
    z = standardise(half.values, ranges)
    rescale = vocabulary.position_scale / evaluator.config.vocabulary.position_scale
    names = [r.name for r in ranges]
    columns = [[r.name for r in evaluator.config.ranges].index(k) for k in names]
    floor = mean_absolute_errors(evaluator, half.buckets(evaluator.config.vocabulary))
    predicted_real = torch.cat(
        list(predictions(evaluator, half.buckets(evaluator.config.vocabulary), columns))
    )
    real = torch.cat([b.values for b in half.buckets(evaluator.config.vocabulary) if b.values is not None])
    result: dict[str, Any] = {"evaluator on half B, MAE": as_shown(floor)}
    generator = torch.Generator().manual_seed(a.seed)
    kept: dict[str, Tensor] = {}

    def run(label: str, rows: Tensor, wishes: Tensor, property_: str | None) -> tuple[Tensor, dict[str, Any]]:
        """Predictions `[M, P]` in QM9's units, and shares of stable molecules."""
        begin = time.perf_counter()
        out = torch.full((len(rows), len(names)), torch.nan, dtype=torch.float64)
        fine = torch.zeros(len(rows), 2)
        for index, state, mask in generate(model, half.sizes[rows], wishes, a.seed, options, a.batch or 1000):
            seen = {**state, POSITIONS: state[POSITIONS] * rescale}
            out[index] = evaluator.predict(seen, mask)[:, columns].cpu()
            fine[index] = torch.stack([s.float().cpu() for s in stable(state, mask, vocabulary)], 1)
            if property_ in ("gap", "mu") and label == "point":
                for b, i in enumerate(index.tolist()):
                    if i < a.keep:
                        n = int(mask[b].sum())
                        elements = torch.tensor(vocabulary.elements)
                        kept[f"{property_}.{i}.numbers"] = elements[state[TYPES][b, :n].cpu()]
                        kept[f"{property_}.{i}.charge"] = torch.tensor(vocabulary.charges)[
                            state[CHARGES][b, :n].cpu()
                        ].sum()
                        kept[f"{property_}.{i}.positions"] = (
                            state[POSITIONS][b, :n] * vocabulary.position_scale
                        ).cpu()
                        kept[f"{property_}.{i}.target"] = half.values[rows[i]]
        about = {
            "stable by distances, %": percent(fine[:, 0]),
            "right bonds and connected, %": percent(fine[:, 1]),
        }
        return out, about | {"seconds": round(time.perf_counter() - begin, 1)}

    for name in a.properties.split(","):
        k = names.index(name)
        _, factor = SHOWN[name]
        rows = torch.randint(len(half.sizes), (a.n,), generator=generator)
        wishes = nothing(a.n, len(names))
        wishes[:, k] = z[rows, k, None]
        found, about = run("point", rows, wishes, name)
        error = (found[:, k] - half.values[rows, k]).abs() * factor
        row: dict[str, Any] = {"MAE": with_error(error), "median": round(float(error.median()), 4), **about}
        if a.bands:
            few = a.bands
            for label in ("band", "tail"):
                rows = torch.randint(len(half.sizes), (few,), generator=generator)
                wishes = nothing(few, len(names))
                if label == "band":
                    low = z[rows, k] - 0.5 * torch.rand(few, generator=generator)
                    wishes[:, k] = torch.stack((low, low + 0.5), 1)
                else:
                    ends = torch.quantile(z[:, k].double(), torch.tensor([0.05, 0.95]).double()).float()
                    above = torch.arange(few) % 2 == 0
                    wishes[above, k, 0], wishes[~above, k, 1] = ends[1], ends[0]
                    inside = [
                        torch.nonzero(z[:, k] <= ends[0])[:, 0],
                        torch.nonzero(z[:, k] >= ends[1])[:, 0],
                    ]
                    pick = [i[torch.randint(len(i), (few,), generator=generator)] for i in inside]
                    rows = torch.where(above, pick[1], pick[0])  # their numbers of atoms
                found, about = run(label, rows, wishes, name)
                std, mean = ranges[k].std, ranges[k].mean

                def hits(values: Tensor, w: Tensor, std: float = std, mean: float = mean) -> Tensor:
                    s = (values - mean) / std
                    return ((s >= w[:, 0]) & (s <= w[:, 1])).float()

                at = torch.randint(len(real), (20_000,), generator=generator)
                own = (real[at][:, k] - mean) / std
                if label == "band":
                    low = own - 0.5 * torch.rand(len(own), generator=generator)
                    same = torch.stack((low, low + 0.5), 1)
                else:
                    same = torch.tensor([[-torch.inf, float(ends[0])]]).repeat(len(own), 1)
                    same[own >= ends[1]] = torch.tensor([float(ends[1]), torch.inf])
                met = (own >= same[:, 0]) & (own <= same[:, 1])
                row[label] = {
                    "hit, %": percent(hits(found[:, k], wishes[:, k])),
                    "real molecules inside, seen by the evaluator, %": percent(
                        hits(predicted_real[at, k], same)[met]
                    ),
                    **about,
                }
        result[name] = row
        print(name, json.dumps(row), flush=True)
    if a.together:
        rows = torch.randint(len(half.sizes), (a.together,), generator=generator)
        wishes = z[rows, :, None].repeat(1, 1, 2)
        found, about = run("all", rows, wishes, None)
        errors = (found - half.values[rows]).abs()
        result["all six"] = {k: with_error(errors[:, i] * SHOWN[k][1]) for i, k in enumerate(names)} | about
        print("all six", json.dumps(result["all six"]), flush=True)
    if a.json and kept:
        from safetensors.torch import save_file

        save_file({k: v.clone().contiguous() for k, v in kept.items()}, f"{a.json}.samples.safetensors")
    table(result)
    return result


def predictions(evaluator: Predictor, buckets: Sequence[Bucket], columns: Sequence[int]) -> list[Tensor]:
    """Of real molecules, in the order of the buckets."""
    device = next(evaluator.parameters()).device
    out = []
    with torch.no_grad():
        for bucket in buckets:
            own = bucket.to(device)
            for index in torch.arange(len(bucket), device=device).split(1024):
                x, mask = own.take(index)
                out.append(evaluator.predict(x, mask)[:, columns].cpu())
    return out


def percent(x: Tensor) -> list[float]:
    """Mean and standard error."""
    return [round(100 * float(x.mean()), 2), round(100 * float(x.std() / len(x) ** 0.5), 2)]


def with_error(x: Tensor) -> list[float]:
    """Mean and standard error."""
    return [round(float(x.mean()), 4), round(float(x.std() / len(x) ** 0.5), 4)]


def table(result: dict[str, Any]) -> None:
    """Ours beside the published rows."""
    print("MAE in " + ", ".join(f"{k} {SHOWN[k][0]}" for k in STANDARD))
    print(f"{'':<40}" + "".join(f"{k:>12}" for k in STANDARD))
    for name, row in PUBLISHED.items():
        print(f"{name:<40}" + "".join(f"{x:>12g}" for x in row))
    floor = result["evaluator on half B, MAE"]
    print(f"{'our evaluator on real molecules':<40}" + "".join(f"{floor[k][0]:>12g}" for k in STANDARD))
    ours = [result[k]["MAE"][0] if k in result else float("nan") for k in STANDARD]
    print(f"{'ours, one wish':<40}" + "".join(f"{x:>12g}" for x in ours))
    if "all six" in result:
        print(
            f"{'ours, six wishes together':<40}"
            + "".join(f"{result['all six'][k][0]:>12g}" for k in STANDARD)
        )


def xtb(a: argparse.Namespace) -> dict[str, Any]:
    """Independent of the evaluator; needs tblite and a file of `score`."""
    from safetensors.torch import load_file

    from perrin.modalities.molecule.ranking.xtb import single_point
    from perrin.modalities.molecule.structure import Molecule

    data = loaded(a)
    half = data.subset(parts(len(data.sizes))["A"][: 2 * a.n])
    held = load_file(a.samples)
    out: dict[str, Any] = {}
    starts = half.sizes.cumsum(0) - half.sizes
    for name, key in (("gap", "xtb_gap"), ("mu", "xtb_dipole")):
        k = STANDARD.index(name)
        factor = 1 / 27.211386 if name == "gap" else 1.0
        real = []
        for i, (start, n) in enumerate(zip(starts.tolist(), half.sizes.tolist(), strict=True)):
            part = slice(start, start + n)
            molecule = Molecule(
                numbers=half.numbers[part].long().numpy(), positions=half.positions[part].double().numpy(), bonds=None,
                charges=half.charges[part].long().numpy(),
            )  # fmt: skip
            value = single_point(molecule).get(key)
            if value is not None:
                real.append((value * factor, float(half.values[i, k])))
        x, y = np.array(real).T
        fit = np.arange(len(x)) % 2 == 0
        line = np.polyfit(x[fit], y[fit], 1)
        floor = np.abs(np.polyval(line, x[~fit]) - y[~fit])
        errors = []
        numbers = sorted(
            int(n.split(".")[1]) for n in held if n.startswith(f"{name}.") and n.endswith(".numbers")
        )
        for i in numbers[: a.n]:
            get = f"{name}.{i}."
            z = held[get + "numbers"].numpy()
            charges = np.zeros(len(z), dtype=np.int64)
            charges[0] = int(held[get + "charge"])
            molecule = Molecule(
                numbers=z, positions=held[get + "positions"].double().numpy(), bonds=None, charges=charges
            )
            value = single_point(molecule).get(key)
            errors.append(
                np.nan
                if value is None
                else abs(np.polyval(line, value * factor) - float(held[get + "target"][k]))
            )
        found = np.array(errors)
        fine = found[np.isfinite(found)] * SHOWN[name][1]
        target = np.abs(y[~fit] - np.median(y)) * SHOWN[name][1]
        out[name] = {
            "wish against xTB, MAE": with_error(torch.from_numpy(fine)), "median": round(float(np.median(fine)), 4),
            "real molecules, MAE": with_error(torch.from_numpy(floor * SHOWN[name][1])),
            "always the median, MAE": with_error(torch.from_numpy(target)),
            "without a value": int(np.isnan(found).sum()), "line": line.tolist(), "unit": SHOWN[name][0],
        }  # fmt: skip
        print(name, json.dumps(out[name]), flush=True)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs: dict[str, Callable[[argparse.Namespace], Any]] = {
        "train-evaluator": train_evaluator, "train-generator": train_generator, "score": score, "xtb": xtb, "pack": pack,
    }  # fmt: skip
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("--out", metavar="DIR")
    parser.add_argument("--data", metavar="FILE", help="written by pack; by default QM9's cache")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--devices", default="1")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int, help="of training, or evaluations of sampling")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--cooldown", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="molecules, for trials")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, for trials")
    parser.add_argument("--noisy", action="store_true", help="an evaluator that is a guide too")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="of positions in the evaluator's training, Å"
    )
    parser.add_argument(
        "--from", dest="start", default="none",
        help="a bundle for the generator to start from, or whose generator an evaluator is to guide",
    )  # fmt: skip
    parser.add_argument(
        "--part", choices=("A", "B", "train"),
        help="to train on: train, to ship, in place of the protocol's A for an evaluator and B for a generator",
    )  # fmt: skip
    parser.add_argument("--no-parts", action="store_true")
    parser.add_argument(
        "--exponent", type=float, default=1.5, help="of types and bonds, of a generator from none"
    )
    parser.add_argument("--generator")
    parser.add_argument("--evaluator")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--properties", default=",".join(STANDARD))
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--candidates", type=int, default=1, help="of each molecule, chosen among by --guide")
    parser.add_argument(
        "--guide",
        help="a property network of train-evaluator --noisy, that has not seen the evaluator's data",
    )
    parser.add_argument("--bands", type=int, default=2000, help="samples of each kind of interval")
    parser.add_argument("--together", type=int, default=2000, help="samples with six wishes")
    parser.add_argument("--keep", type=int, default=500, help="samples to keep for xtb")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--samples")
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args(arguments)
    result = verbs[a.verb](a)
    if a.json and result:
        Path(a.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
