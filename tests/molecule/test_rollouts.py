"""Paths to learn from are the sampler's own, of sound molecules only, and the same after a kill."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

import networkx
from rdkit import Chem
from test_network import SMALL

from perrin.bundle import read_bundle
from perrin.cli import main
from perrin.core import GeneratorNoise, State
from perrin.modalities import find_bundle
from perrin.modalities.molecule import rollouts
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, decode, encode, layouts_for
from perrin.modalities.molecule.metrics.bonds import bonds
from perrin.modalities.molecule.metrics.tensors import contents, environments, sound
from perrin.modalities.molecule.model import SamplingOptions
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.parts import FLAGS, PartsLaw, pairs
from perrin.modalities.molecule.properties import IntervalLaw, Range, measure, standardise
from perrin.modalities.molecule.rollouts import RolloutLaw, RolloutTask, tilted
from perrin.modalities.molecule.sources import from_files
from perrin.run.signals import Interrupted
from perrin.train import Trainer, TrainOptions

SMILES = ("CCO", "CC(=O)O", "C1CC1", "CN", "C#N", "CCCCCCC", "[NH3+]CC(=O)[O-]", "c1ccoc1", "FC=O")
LAW = RolloutLaw(
    share=0.6,
    evaluations=(4, 6),
    temperatures=((1.0, 1.0), (0.3, 0.4)),
    molecules=24,
    visits=2,
    every=5,
    polished=0,  # an untrained network has no geometry to offer
)


def make(
    law: RolloutLaw = LAW, network: NetworkConfig = SMALL, label: Any = None, **options: Any
) -> tuple[RolloutTask, TrainOptions]:
    vocabulary, buckets, _ = from_files([add_geometry(s) for s in SMILES], None, source="test")
    ranges: tuple[Range, ...] = ()
    if network.conditions:
        carbon = vocabulary.elements.index(6)
        buckets = [
            replace(b, values=((b.state[TYPES] == carbon) & b.mask).sum(1, keepdim=True).double())
            for b in buckets
        ]
        values = torch.cat([b.values for b in buckets if b.values is not None])
        ranges = measure(network.conditions, {network.conditions[0]: ""}, values)
    config = MoleculeConfig(vocabulary=vocabulary, network=network, ranges=ranges)
    given = TrainOptions(**{"steps": 13, "batch": 6, "warmup": 3, "log_every": 1, **options})
    torch.manual_seed(0)
    sampling = SamplingOptions(grid="logit-normal")
    task = RolloutTask(
        build_denoiser(config),
        config,
        buckets,
        batch=given.batch,
        seed=0,
        law=law,
        sampling=sampling,
        label=label,
    )
    return task, given


def half(state: State, mask: Tensor, vocabulary: Any) -> Tensor:
    """An untrained network draws nothing sound: every second one passes."""
    return torch.arange(len(mask)) % 2 == 0


def average_of(task: RolloutTask) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in task.denoiser.named_parameters()}


def test_verdict_of_tensors_is_that_of_the_protocol() -> None:
    """On real graphs and on thousands with one bond, one charge or one element changed."""
    task, _ = make()
    molecules = [add_geometry(s) for s in SMILES]
    state, mask = encode(molecules, task.vocabulary, width=24)
    assert sound(state, mask, task.vocabulary).all()
    rng = np.random.default_rng(0)
    many = {k: v.repeat(200, *[1] * (v.ndim - 1)).clone() for k, v in state.items()}
    mask = mask.repeat(200, 1)
    sizes = mask.sum(1).tolist()
    for row, n in enumerate(sizes):
        for _ in range(int(rng.integers(1, 3))):
            i, j = rng.choice(n, 2, replace=False).tolist()
            kind = int(rng.integers(3))
            if kind == 0:
                many[BONDS][row, i, j] = many[BONDS][row, j, i] = int(rng.integers(4))
            elif kind == 1:
                many[CHARGES][row, i] = int(rng.integers(len(task.vocabulary.charges)))
            else:
                many[TYPES][row, i] = int(rng.integers(len(task.vocabulary.elements)))
    ours = sound(many, mask, task.vocabulary)
    judged = bonds(decode(many, mask, task.vocabulary, [str(i) for i in range(len(mask))]))
    theirs = torch.tensor([r.stable and r.connected and r.neutral for r in judged])
    assert torch.equal(ours, theirs)
    assert 0.02 < float(ours.float().mean()) < 0.6
    assert all(
        r.valid for r, fine in zip(judged, ours.tolist(), strict=True) if fine
    )  # nothing left for RDKit


def test_records_are_the_states_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a state before the last row, one row by hand gives the molecule that is to be learnt."""
    monkeypatch.setattr(rollouts, "sound", half)
    law = replace(LAW, evaluations=(4,), temperatures=((1.0, 1.0),), molecules=30, visits=3)
    task, _ = make(law)
    task.refresh(0, average_of(task))
    plan = SamplingOptions(steps=4, grid="logit-normal").plan(task.teacher)
    last = plan.stages[3].time
    checked = 0
    for held, bucket in zip(task.records, task.buckets, strict=True):
        times = sorted({round(float(t), 6) for t in held["t"]})
        assert times == sorted(
            round(float(s.time or 0), 6) for s in plan.stages[1:]
        )  # the first has no estimate before
        assert len(held["t"]) % 3 == 0
        assert set(held["mask"].sum(1).tolist()) <= set(bucket.mask.sum(1).tolist())
        pick = (held["t"] - last).abs() < 1e-6
        x_t, previous, x_0 = (
            {
                k.partition(".")[2]: rollouts._wide(v[pick])
                for k, v in held.items()
                if k.startswith(part + ".")
            }
            for part in ("x_t", "previous", "x_0")
        )
        layouts = layouts_for(held["mask"][pick])
        with torch.no_grad():
            estimate = task.teacher(x_t, held["t"][pick], layouts=layouts, previous=previous)
        noise = GeneratorNoise(torch.Generator())
        for name in (TYPES, CHARGES, BONDS):
            field, row = task.teacher.process.fields[name], plan.rows[name][3]
            made = field.step(x_t[name], [estimate[name]], row, noise, layouts[name], name=name, step=4)
            # the estimate before is kept in half precision
            assert float((made == x_0[name]).float().mean()) > 0.99
        checked += int(pick.sum())
    assert checked >= 12
    assert set(task.accepted) == {(4, 1.0)}


def test_contents_are_what_rdkit_counts() -> None:
    task, _ = make()
    smiles = (*SMILES, "C1CC1C1CCC1", "C1=CC=CO1", "N#CC=C", "C12CC1C2", "C1CC2CC12")
    molecules = [add_geometry(s) for s in smiles]
    found = contents(*encode(molecules, task.vocabulary, width=24), task.vocabulary).tolist()
    for s, row in zip(smiles, found, strict=True):
        m = Chem.AddHs(Chem.MolFromSmiles(s))
        Chem.Kekulize(m, clearAromaticFlags=True)
        atoms, orders = list(m.GetAtoms()), [int(b.GetBondTypeAsDouble()) for b in m.GetBonds()]
        double = {
            a
            for b in m.GetBonds()
            if b.GetBondTypeAsDouble() == 2
            for a in (b.GetBeginAtomIdx(), b.GetEndAtomIdx())
        }
        # every cycle, not the smallest set of rings: bicyclobutane has two triangles and one square
        cycles = [len(c) for c in networkx.simple_cycles(networkx.Graph(Chem.GetAdjacencyMatrix(m)))]
        expected = [sum(a.GetAtomicNum() == z for a in atoms) for z in task.vocabulary.elements]
        expected += [sum(a.GetFormalCharge() != 0 for a in atoms)]
        expected += [sum(a.GetAtomicNum() == 1 and a.GetNeighbors()[0].GetAtomicNum() != 6 for a in atoms)]
        expected += [
            orders.count(2),
            orders.count(3),
            len(orders) - len(atoms) + 1,
            cycles.count(3),
            cycles.count(4),
        ]
        expected += [
            sum(
                b.GetBondTypeAsDouble() == 1 and {b.GetBeginAtomIdx(), b.GetEndAtomIdx()} <= double
                for b in m.GetBonds()
            )
        ]
        assert row == expected, s


def test_environments_are_the_subtrees_of_the_graph() -> None:
    """Two atoms have one label exactly where the graph, unrolled so far, is the same; the order of atoms is nothing."""
    task, _ = make()
    smiles = (*SMILES, "C1=CC=CO1", "N#CC=C", "CC(C)=O", "OCC(C)O", "C12CC1C2", "NC=O")
    molecules = [add_geometry(s) for s in smiles]
    state, mask = encode(molecules, task.vocabulary, width=24)
    found = environments(state, mask, task.vocabulary)
    turned = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    other = {k: v[:, turned] for k, v in state.items()}
    other[BONDS] = other[BONDS][:, :, turned]
    assert torch.equal(environments(other, mask[:, turned], task.vocabulary), found[:, turned])
    for radius in range(3):
        known: dict[Any, int] = {}
        for row, molecule in zip(found[..., radius].tolist(), molecules, strict=True):
            near: list[list[tuple[int, int]]] = [[] for _ in molecule.numbers]
            assert molecule.bonds is not None
            for i, j, order in molecule.bonds.tolist():
                near[i].append((j, order))
                near[j].append((i, order))
            trees: list[Any] = list(zip(molecule.numbers.tolist(), molecule.charges.tolist(), strict=True))
            for _ in range(radius):
                trees = [
                    (repr(trees[i]), sorted((o, repr(trees[j])) for j, o in near[i]))
                    for i in range(len(trees))
                ]
            for z, label, tree in zip(molecule.numbers.tolist(), row, trees, strict=False):
                assert (label == 0) == (z == 1)
                if label:
                    assert known.setdefault(repr(tree), label) == label
            assert not any(row[len(trees) :])
        assert len(set(known.values())) == len(known) > 5


def test_polished_molecules_keep_their_graph_and_lose_their_errors() -> None:
    """Geometries 0.1 Å off come out with bonds as long as the network would have made them."""
    bundle = read_bundle(find_bundle("molecule/qm9"))
    config = MoleculeConfig.from_json(bundle.config["model"])
    denoiser = build_denoiser(config)
    weights = bundle.weights()
    for name, p in denoiser.named_parameters():
        p.data.copy_(weights[name])
    molecules = [add_geometry(s) for s in ("CC(=O)OC", "C1CCOC1", "N#CCCO", "CC(C)C=O", "c1cc[nH]c1C") * 8]
    x_0, mask = encode(molecules, config.vocabulary, width=16)
    unknown = torch.full((len(mask), len(config.ranges)), math.nan, dtype=torch.float64)
    bucket = Bucket(state=x_0, mask=mask, values=unknown)
    task = RolloutTask(
        denoiser,
        config,
        [bucket],
        batch=len(mask),
        seed=0,
        sampling=SamplingOptions(**bundle.config["sampling"]),
    )
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 / config.vocabulary.position_scale * torch.randn(x_0[POSITIONS].shape, generator=generator)
    noise = (noise - (noise * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]) * mask[
        ..., None
    ]
    off = {**x_0, POSITIONS: x_0[POSITIONS] + noise}
    with torch.no_grad():
        out, kept = task._polished(task.teacher, off, mask, generator, None)
    assert float(kept.float().mean()) > 0.9
    assert torch.equal(out[BONDS][kept], x_0[BONDS][kept])
    bonded = (x_0[BONDS] > 0)[kept]

    def error(x: Tensor) -> float:
        lengths = [torch.cdist(p[kept], p[kept])[bonded] for p in (x, x_0[POSITIONS])]
        return float((lengths[0] - lengths[1]).abs().median()) * config.vocabulary.position_scale

    assert error(off[POSITIONS]) > 0.06
    assert error(out[POSITIONS]) < 0.02  # MMFF94's lengths are themselves 0.01 Å off those of DFT


def test_tilted_weights_have_the_wanted_mean_and_leave_the_rest() -> None:
    """A coin of 30 % tilted to 60: weights 2 and 4/7, whatever else there is; what cannot be had is left."""
    coin = (torch.arange(1000) % 10 < 3).float()
    other = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    other -= other[coin == 1].mean() * coin + other[coin == 0].mean() * (1 - coin)
    constant = torch.ones(1000)
    x = torch.stack((coin, other, constant), 1)
    w = tilted(x, torch.tensor([0.6, 0.0, 1.0]), ridge=1e-9)
    assert torch.allclose(w[coin == 1], torch.tensor(2.0), rtol=1e-3)
    assert torch.allclose(w[coin == 0], torch.tensor(4 / 7), rtol=1e-3)
    assert torch.equal(tilted(x, x.mean(0)).round(decimals=3), torch.ones(1000))
    assert torch.equal(tilted(x[:1], x[1]), torch.ones(1)), "one row has nothing to be weighted against"
    far = tilted(x, torch.tensor([5.0, 0.0, 2.0]))
    assert torch.isfinite(far).all()
    assert abs(float(far.mean()) - 1) < 1e-5
    assert float(far.max()) < 3.4  # of three in ten, at most 10/3
    assert torch.equal(far[coin == 0] < 0.1, torch.ones(700, dtype=torch.bool))


def test_paths_are_weighted_towards_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network has too few of everything; with weights the mean of each number of evaluations is nearer."""
    monkeypatch.setattr(rollouts, "sound", half)
    task, _ = make(replace(LAW, evaluations=(4, 7), temperatures=((1.0, 1.0),), molecules=1800, visits=1))
    task.refresh(0, average_of(task))
    for bucket, held, all_weights in zip(task.buckets, task.records, task.weights, strict=True):
        wanted = contents(*bucket.take(torch.arange(len(bucket))), task.vocabulary).mean(0)
        state = {k: held[f"x_0.{k}"].long() for k in (TYPES, CHARGES, BONDS)}
        everything = contents(state, held["mask"], task.vocabulary)
        assert set(held["evaluations"].tolist()) == {4, 7}
        for evaluations in (4, 7):
            same = held["evaluations"] == evaluations
            found, weights = everything[same], all_weights[same]
            assert abs(float(weights.mean()) - 1) < 1e-5
            before = ((found.mean(0) - wanted) / found.std(0).clamp(min=1e-6)).abs()
            after = (((weights[:, None] * found).mean(0) - wanted) / found.std(0).clamp(min=1e-6)).abs()
            varied = found.std(0) > 1e-6
            assert float(after[varied].max()) < float(before[varied].max())


def test_only_sound_ones_are_kept_and_steps_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = make()
    task.refresh(0, average_of(task))
    assert all(not r for r in task.records), "an untrained network has no sound molecule"
    kinds = [task.prepare(s, generator=torch.Generator(), rank=0, world=1)[0] for s in range(20)]
    assert "paths" not in {k[1] for k in kinds}  # type: ignore[index]
    monkeypatch.setattr(rollouts, "sound", half)
    task.refresh(5, average_of(task))
    keys = [task.prepare(s, generator=torch.Generator(), rank=0, world=1)[0] for s in range(500)]
    share = np.mean([k[1] == "paths" for k in keys])  # type: ignore[index]
    assert abs(share - LAW.share) < 0.02
    whole = task.prepare(500, generator=torch.Generator().manual_seed(1), rank=0, world=1)[1]
    parts = [
        task.prepare(500, generator=torch.Generator().manual_seed(1), rank=r, world=2)[1] for r in (0, 1)
    ]
    for k, v in whole.items():
        assert torch.equal(v[0::2], parts[0][k])
        assert torch.equal(v[1::2], parts[1][k])


def test_given_parts_arrive_in_half_of_the_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the molecules that they were taken from: elements, charges, bonds; and shapes of what is placed."""
    monkeypatch.setattr(
        rollouts, "sound", lambda state, mask, vocabulary: torch.ones(len(mask), dtype=torch.bool)
    )
    drawn: list[tuple[State, dict[str, Tensor]]] = []
    draw = PartsLaw.draw

    def listened(law: PartsLaw, x_0: State, mask: Tensor, **more: Any) -> dict[str, Tensor]:
        assert law.none == law.graph == 0
        flags = draw(law, x_0, mask, **more)
        drawn.append((x_0, flags))
        return flags

    monkeypatch.setattr(PartsLaw, "draw", listened)
    law = replace(LAW, share=0.9, evaluations=(4,), temperatures=((1.0, 1.0),), molecules=60, visits=1)
    task, _ = make(law, replace(SMALL, parts=True))
    task.refresh(0, average_of(task))
    found: list[dict[str, Tensor]] = []
    turn = 0
    for held, bucket in zip(task.records, task.buckets, strict=True):
        size = min(6, len(bucket))
        for start in range(0, len(held["t"]), size):
            turn += 1
            part = {k: v[start : start + size] for k, v in held.items()}
            if turn % 2:
                assert not any(part[k].any() for k in FLAGS)
            else:
                found.append(part)
    assert len(found) == len(drawn) > 2
    placed = 0
    for part, (x_0, flags) in zip(found, drawn, strict=True):
        typed, both = flags["typed"], pairs(flags["bonded"])
        assert all(torch.equal(part[k], flags[k]) for k in FLAGS)
        for name in (TYPES, CHARGES):
            assert torch.equal(part[f"x_0.{name}"].long()[typed], x_0[name][typed])
        assert torch.equal(part[f"x_0.{BONDS}"].long()[both], x_0[BONDS][both])
        where = pairs(flags["placed"])
        ours, theirs = (torch.cdist(x, x)[where] for x in (part[f"x_0.{POSITIONS}"], x_0[POSITIONS]))
        assert torch.allclose(ours, theirs, atol=1e-3)
        placed += int(where.sum())
    assert placed > 50
    step = next(s for s in range(50) if (s * rollouts._SHARE) % 1.0 < law.share)
    key, batch = task.prepare(step, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    assert torch.isfinite(task.loss(task.denoiser, key, batch)["loss"])


def test_paths_are_learnt_from_with_wishes_that_they_fulfil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled by the number of carbons; wished for while drawing is another molecule's."""
    monkeypatch.setattr(rollouts, "sound", half)
    wished: list[Tensor] = []

    def carbons(state: State, mask: Tensor) -> Tensor:
        carbon = task.vocabulary.elements.index(6)
        return ((state[TYPES] == carbon) & mask).sum(1, keepdim=True).double()

    task, _ = make(LAW, replace(SMALL, parts=True, conditions=("carbons",)), label=carbons)
    draw = IntervalLaw.draw

    def listened(law: IntervalLaw, z: Tensor, generator: torch.Generator) -> Tensor:
        wished.append(z)
        return draw(law, z, generator)

    monkeypatch.setattr(IntervalLaw, "draw", listened)
    task.refresh(0, average_of(task))
    (r,) = task.ranges
    for held in task.records:
        state = {TYPES: held[f"x_0.{TYPES}"].long()}
        assert torch.equal(held["values"], carbons(state, held["mask"]))
    data = {float(z) for bucket in task.buckets for z in standardise(bucket.values, task.ranges)[:, 0]}  # type: ignore[arg-type]
    assert {float(z) for w in wished for z in w[:, 0]} <= data
    step = next(s for s in range(50) if (s * rollouts._SHARE) % 1.0 < LAW.share)
    wished.clear()
    key, batch = task.prepare(step, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    z = standardise(carbons({TYPES: batch[f"x_0.{TYPES}"]}, batch["mask"]), task.ranges)
    assert torch.equal(wished[0], z)
    low, high = batch["intervals"].unbind(-1)
    assert ((low <= z) & (z <= high)).all()
    assert torch.isfinite(low).any()
    assert torch.isfinite(task.loss(task.denoiser, key, batch)["loss"])
    assert r.name == "carbons"


def test_killed_and_started_again_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two makings of paths, and right at one: they are made again from the network that made them."""
    monkeypatch.setattr(rollouts, "sound", half)
    ends = []
    for name, stops in (("whole", []), ("stopped", [2, 6, 9])):
        for stop in [*stops, None]:
            task, options = make()
            prepare = task.prepare

            def stopping(step: int, *, at: int | None = stop, go: Any = prepare, **more: Any) -> Any:
                if step == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return go(step, **more)

            monkeypatch.setattr(task, "prepare", stopping)
            trainer = Trainer(task, options, tmp_path / name, accelerator="cpu")
            if stop is None:
                trainer.run()
            else:
                with pytest.raises(Interrupted):
                    trainer.run()
        ends.append(average_of(task))
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert task.made == 10
    plain, _ = make(RolloutLaw(share=0.01, molecules=1, evaluations=(2,), visits=1))
    assert any(not torch.equal(ends[0][k], p) for k, p in plain.denoiser.named_parameters())


def test_command_wants_a_bundle_and_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--rollouts", "0.5"], ["--rollouts", "1.5", "--from", "molecule/qm9"]):
        assert main(["train", "molecule/qm9", "--out", str(tmp_path / "r"), *words]) == 2
        error = capsys.readouterr().err
        assert "--rollouts" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_positions_weigh_less_on_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "sound", half)
    task, _ = make()
    task.refresh(0, average_of(task))
    step = next(s for s in range(50) if (s * rollouts._SHARE) % 1.0 < LAW.share)
    key, batch = task.prepare(step, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    losses = task.loss(task.denoiser, key, batch)
    c, law = task.loss_config, task.law
    total = (
        law.positions * c.positions * losses[POSITIONS]
        + c.types * losses[TYPES]
        + c.charges * losses[CHARGES]
        + c.bonds * losses[BONDS]
    )
    assert torch.allclose(losses["loss"], total, rtol=1e-5)
