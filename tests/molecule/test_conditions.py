"""Wishes and given parts: what is drawn in training follows the stated law, and what the network is told is told exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

import networkx
from ase import units as ase_units
from test_network import SMALL, VOCABULARY

import perrin
from perrin.bundle import read_bundle, write_bundle
from perrin.cli import main
from perrin.core import DenoisingLoss, GeneratorNoise, NetworkDenoiser, State
from perrin.core.guides import Given
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.conditions import with_inputs
from perrin.modalities.molecule.dataset import buckets_from_molecules
from perrin.modalities.molecule.edit import Editor
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, encode, layouts_for
from perrin.modalities.molecule.files import read_molecules, write_sdf
from perrin.modalities.molecule.kept import keep
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, split_weights
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.parts import (
    FLAGS,
    PartsLaw,
    corrected,
    everything,
    grow,
    none_given,
    two_core,
)
from perrin.modalities.molecule.predictor import Predictor, PredictorConfig
from perrin.modalities.molecule.properties import (
    TABLE,
    IntervalLaw,
    Range,
    Table,
    measure,
    nothing,
    standardise,
)
from perrin.modalities.molecule.task import MoleculeTask
from perrin.modalities.molecule.units import convert
from perrin.modalities.molecule.wants import counsel, intervals, parse_wish, parse_wishes
from perrin.modalities.molecule.widen import widen
from perrin.train import Trainer, TrainOptions

INF = math.inf
RANGES = (
    Range(name="gap", unit="hartree", mean=0.25, std=0.05, low=0.02, high=0.62),
    Range(name="mu", unit="D", mean=2.7, std=1.5, low=0.0, high=29.6),
)
FULL = replace(SMALL, conditions=("gap", "mu"), parts=True)
SMILES = ("CCO", "c1ccoc1C", "C1CC1CC1CC1", "[NH3+]CC(=O)[O-]", "CC#N", "OCC(O)CO", "C1CC1")


def random_denoiser(network: NetworkConfig = FULL) -> tuple[NetworkDenoiser, MoleculeConfig]:
    torch.manual_seed(3)
    config = MoleculeConfig(
        vocabulary=VOCABULARY, network=network, ranges=RANGES if network.conditions else ()
    )
    denoiser = build_denoiser(config).double()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
    return denoiser.requires_grad_(False), config


@pytest.fixture(scope="module")
def batch() -> tuple[State, Tensor]:
    molecules = [add_geometry(s) for s in SMILES]
    state, mask = encode(molecules, VOCABULARY, width=max(map(len, molecules)))
    return {k: v.double() if k == POSITIONS else v for k, v in state.items()}, mask


def noised(denoiser: NetworkDenoiser, state: State, mask: Tensor, seed: int = 0) -> tuple[State, Tensor]:
    t = torch.linspace(0.05, 0.9, len(mask), dtype=torch.float64)
    noise = GeneratorNoise(torch.Generator().manual_seed(seed), dtype=torch.float64)
    return denoiser.process.corrupt_state(state, t, noise, layouts_for(mask)), t


# wishes in training


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [(IntervalLaw(dropped=0, single=1, point=0, band=1, narrow=1, wide=1.0001), 0.3, 1.3),
     (IntervalLaw(dropped=0, single=1, point=0, band=0), 0.3, INF),
     (IntervalLaw(dropped=0, single=1, point=0, band=0), -INF, 0.3)],
)  # fmt: skip
def test_what_comes_with_an_interval_is_the_data_cut_off_there(
    law: IntervalLaw, low: float, high: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2_000_000, 1, generator=generator)
    drawn = law.draw(z, generator)[:, 0]
    near = torch.ones(len(z), dtype=torch.bool)
    for column, end in enumerate((low, high)):
        near &= (drawn[:, column] - end).abs() < 0.02 if math.isfinite(end) else drawn[:, column] == end
    held = z[near, 0].double()

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    mass = 0.5 * (math.erf(high / 2**0.5) - math.erf(low / 2**0.5))
    mean = (density(low) - density(high)) / mass  # of a normal cut off at low and high
    assert len(held) > 3000
    assert float(held.mean()) == pytest.approx(mean, abs=0.015)


def test_wishes_hold_and_come_in_the_stated_shares() -> None:
    law = IntervalLaw(dropped=0.2, single=0.5, point=0.4, band=0.3)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100_000, 4, generator=generator)
    z[:1000, 2] = torch.nan
    drawn = law.draw(z, generator)
    asked = torch.isfinite(drawn).any(-1)
    inside = (z >= drawn[..., 0]) & (z <= drawn[..., 1])
    assert bool(inside[asked].all())
    assert not asked[:1000, 2].any()
    rest = asked[1000:]
    empty = 0.2 + 0.8 * 0.5 * 0.5**4
    assert float((~rest.any(1)).float().mean()) == pytest.approx(empty, abs=0.005)
    assert float((rest.sum(1) == 4).float().mean()) == pytest.approx(0.8 * 0.5 * 0.5**4, abs=0.005)
    points = (drawn[..., 0] == drawn[..., 1])[asked]
    assert float(points.float().mean()) == pytest.approx(0.4, abs=0.005)
    assert float((~torch.isfinite(drawn).all(-1))[asked].float().mean()) == pytest.approx(0.3, abs=0.005)


def test_no_wish_is_the_unconditional_network_and_a_wish_is_not(batch: tuple[State, Tensor]) -> None:
    denoiser, _ = random_denoiser()
    x, t = noised(denoiser, *batch)
    layouts = layouts_for(batch[1])
    plain = denoiser(x, t, layouts=layouts)
    open_ = denoiser(x, t, layouts=layouts, condition={"intervals": nothing(len(t), 2)})
    assert all(torch.equal(plain[k], open_[k]) for k in plain)
    told = nothing(len(t), 2)
    told[:, 1, 0] = 0.5
    other = denoiser(x, t, layouts=layouts, condition={"intervals": told})
    assert float((plain[POSITIONS] - other[POSITIONS]).abs().max()) > 1e-3
    # each row has its own wish
    told[1:] = nothing(len(t) - 1, 2)
    first = denoiser(x, t, layouts=layouts, condition={"intervals": told})
    assert torch.allclose(first[TYPES][1:], plain[TYPES][1:], atol=1e-12)
    assert torch.allclose(first[TYPES][0], other[TYPES][0], atol=1e-12)


# widening


@pytest.mark.parametrize(
    "source", ["shipped", "without self-conditioning", "with one condition", "with parts", "sparse"]
)
def test_a_widened_network_is_the_same_function(source: str) -> None:
    if source == "shipped":
        bundle = read_bundle(Path(perrin.__file__).parent / "modalities/molecule/bundles/qm9")
        old = MoleculeConfig.from_json(bundle.config["model"])
        weights = {k: v.double() for k, v in split_weights(bundle.weights())[0].items()}
        before = build_denoiser(old).double().requires_grad_(False)
        for k, p in before.named_parameters():
            p.copy_(weights[k])
    else:
        was = {
            "without self-conditioning": replace(SMALL, self_condition=False),
            "with one condition": replace(SMALL, conditions=("gap",)),
            "with parts": replace(SMALL, parts=True, self_condition=False),
            "sparse": replace(SMALL, backbone="sparse", neighbours=5),
        }[source]
        torch.manual_seed(0)
        old = MoleculeConfig(vocabulary=VOCABULARY, network=was, ranges=RANGES[: len(was.conditions)])
        before = build_denoiser(old).double().requires_grad_(False)
        for p in before.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
        weights = dict(before.named_parameters())
    ranges = RANGES if len(old.ranges) < 2 else (*old.ranges, replace(RANGES[0], name="new"))
    names = tuple(r.name for r in ranges)
    network = replace(old.network, conditions=names, parts=True, self_condition=True)
    new = replace(old, network=network, ranges=ranges)
    after = build_denoiser(new).double().requires_grad_(False)
    widen(after, new, weights, old, source="somewhere")
    molecules = [add_geometry(s) for s in ("CCO", "c1ccoc1C")]
    state, mask = encode(molecules, old.vocabulary, width=14)
    state[POSITIONS] = state[POSITIONS].double()
    x, t = noised(before, state, mask)
    layouts = layouts_for(mask)
    wish, known = nothing(2, len(ranges)), len(old.ranges)
    if known:  # a wish that the old network knows, too
        wish[:, 0] = torch.tensor([-1.0, INF])
    else:  # one that only the new one can be told, and whose embedding is still zero
        wish[:, 1] = torch.tensor([0.5, 1.0])
    own = {"intervals": wish[:, :known]} if known else None
    first = before(x, t, layouts=layouts, condition=own)
    second = after(x, t, layouts=layouts, condition={"intervals": wish})
    for k in first:
        assert torch.allclose(first[k], second[k], rtol=0, atol=1e-11), k
    if old.network.self_condition:
        again = before(x, t, layouts=layouts, previous=first, condition=own)
        wide = after(x, t, layouts=layouts, previous=first, condition={"intervals": wish})
        assert all(torch.allclose(again[k], wide[k], rtol=0, atol=1e-11) for k in again)


def test_what_cannot_be_widened_is_refused() -> None:
    denoiser, config = random_denoiser()
    weights = dict(denoiser.named_parameters())
    smaller = replace(config, network=replace(SMALL, conditions=("mu",)), ranges=RANGES[1:])
    with pytest.raises(PerrinError, match="conditions of somewhere first"):
        widen(build_denoiser(smaller), smaller, weights, config, source="somewhere")
    without = replace(config, network=replace(FULL, parts=False))
    with pytest.raises(PerrinError, match="without parts"):
        widen(build_denoiser(without), without, weights, config, source="somewhere")
    deeper = replace(config, network=replace(FULL, depth=4))
    with pytest.raises(PerrinError, match="sizes and inputs"):
        widen(build_denoiser(deeper), deeper, weights, config, source="somewhere")


# parts


def some_parts(state: State, mask: Tensor, seed: int = 0, **shares: float) -> dict[str, Tensor]:
    law = replace(PartsLaw(), **shares)
    generator = torch.Generator().manual_seed(seed)
    return law.draw(state, mask, hydrogen=VOCABULARY.elements.index(1), most=9, generator=generator)


def only(name: str) -> dict[str, float]:
    shares = dict.fromkeys(("none", "graph", "fragment", "complement", "scaffold", "heavy"), 0.0)
    return shares | {name: 1.0}


def graphs(state: State, mask: Tensor) -> list[Any]:
    out = []
    for b in range(len(mask)):
        heavy = [i for i in range(int(mask[b].sum())) if VOCABULARY.elements[int(state[TYPES][b, i])] != 1]
        g = networkx.Graph()
        g.add_nodes_from(heavy)
        g.add_edges_from((i, j) for i in heavy for j in heavy if i < j and state[BONDS][b, i, j] > 0)
        out.append(g)
    return out


def test_fragments_are_connected_and_of_the_size_asked_for(batch: tuple[State, Tensor]) -> None:
    state, mask = batch
    heavy = mask & (state[TYPES] != VOCABULARY.elements.index(1))
    adjacent = (state[BONDS] > 0) & heavy.unsqueeze(1) & heavy.unsqueeze(2)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(1, 4, (len(mask),), generator=generator)
        made = grow(heavy, adjacent, target, torch.rand(mask.shape, generator=generator), steps=9)
        for b, g in enumerate(graphs(state, mask)):
            chosen = made[b].nonzero()[:, 0].tolist()
            assert len(chosen) == min(int(target[b]), len(g))
            assert networkx.is_connected(g.subgraph(chosen))


def test_scaffolds_are_two_cores(batch: tuple[State, Tensor]) -> None:
    state, mask = batch
    heavy = mask & (state[TYPES] != VOCABULARY.elements.index(1))
    adjacent = (state[BONDS] > 0) & heavy.unsqueeze(1) & heavy.unsqueeze(2)
    made = two_core(heavy, adjacent, steps=9)
    found = [set(made[b].nonzero()[:, 0].tolist()) for b in range(len(mask))]
    assert found == [set(networkx.k_core(g, 2).nodes) for g in graphs(state, mask)]
    assert [len(s) for s in found] == [0, 5, 7, 0, 0, 0, 3]


def test_each_kind_of_part_is_what_it_says(batch: tuple[State, Tensor]) -> None:
    state, mask = batch
    hydrogen = (state[TYPES] == VOCABULARY.elements.index(1)) & mask
    nothing_ = some_parts(state, mask, **only("none"))
    assert not any(bool(v.any()) for v in nothing_.values())
    graph = some_parts(state, mask, **only("graph"), pinned=0.0)
    assert torch.equal(graph["typed"], mask)
    assert torch.equal(graph["bonded"], mask)
    assert not graph["placed"].any()
    heavy = some_parts(state, mask, **only("heavy"), hydrogens=0.0)
    assert all(torch.equal(v, mask & ~hydrogen) for v in heavy.values())
    elements = some_parts(state, mask, **dict.fromkeys(only("none"), 0.0))
    assert torch.equal(elements["typed"], mask)
    assert not elements["bonded"].any()
    for name in ("fragment", "complement", "scaffold"):
        seen = torch.zeros_like(mask)
        for seed in range(30):
            flags = some_parts(state, mask, seed, **only(name))
            assert torch.equal(flags["bonded"], flags["placed"])
            assert bool((flags["typed"] | ~flags["bonded"]).all())
            assert bool((mask | ~flags["typed"]).all())
            extra = flags["typed"] & ~flags["bonded"]
            assert bool((hydrogen | ~extra).all())
            own = flags["bonded"] & hydrogen  # hydrogens come with the atom they sit on
            bonds = (state[BONDS] > 0) & flags["bonded"].unsqueeze(1)
            assert bool((bonds.any(2) | ~own).all())
            seen |= flags["bonded"]
        assert bool(seen.any(1).all())
        assert not bool(torch.equal(seen, torch.zeros_like(seen)))


def test_the_noise_of_what_is_given_is_not_seen(batch: tuple[State, Tensor]) -> None:
    """Two states that differ in the noise of given categories and of a given shape are one to the network."""
    denoiser, _ = random_denoiser()
    state, mask = batch
    condition = {"known": state} | some_parts(state, mask, 2, **only("complement"))
    x, t = noised(denoiser, state, mask)
    layouts = layouts_for(mask)
    y, _ = noised(denoiser, state, mask, seed=9)
    placed = condition["placed"].unsqueeze(-1)
    count = placed.sum(1, keepdim=True).clamp(min=1)
    shape = y[POSITIONS] - (y[POSITIONS] * placed).sum(1, keepdim=True) / count
    centroid = (x[POSITIONS] * placed).sum(1, keepdim=True) / count
    both = condition["bonded"].unsqueeze(1) & condition["bonded"].unsqueeze(2)
    other = {
        POSITIONS: torch.where(placed, shape + centroid, x[POSITIONS]),
        TYPES: torch.where(condition["typed"], y[TYPES], x[TYPES]),
        CHARGES: torch.where(condition["typed"], y[CHARGES], x[CHARGES]),
        BONDS: torch.where(both, y[BONDS], x[BONDS]),
    }
    assert any(not torch.equal(other[k], x[k]) for k in (TYPES, BONDS))
    first = corrected(denoiser(x, t, layouts=layouts, condition=condition), condition)
    second = corrected(denoiser(other, t, layouts=layouts, condition=condition), condition)
    for k in first:
        assert torch.allclose(first[k], second[k], atol=1e-9), k
    # without the flags they are two
    plain = [denoiser(z, t, layouts=layouts) for z in (x, other)]
    assert float((plain[0][POSITIONS] - plain[1][POSITIONS]).abs().max()) > 1e-3


def test_the_network_with_parts_commutes_with_rotations_and_permutations(batch: tuple[State, Tensor]) -> None:
    denoiser, _ = random_denoiser()
    state, mask = batch
    wish = nothing(len(mask), 2)
    wish[:, 0] = torch.tensor([-0.3, 0.8])
    condition: dict[str, Any] = {"known": state, "intervals": wish} | some_parts(state, mask, 4, none=0.0)
    x, t = noised(denoiser, state, mask)
    layouts = layouts_for(mask)
    plain = denoiser(x, t, layouts=layouts, condition=condition)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    turned = denoiser(
        {**x, POSITIONS: x[POSITIONS] @ q},
        t,
        layouts=layouts,
        # the known part has a frame of its own, up to a shift
        condition=condition | {"known": {**state, POSITIONS: state[POSITIONS] @ q + 4.0}},
    )
    assert torch.allclose(plain[POSITIONS] @ q, turned[POSITIONS], atol=1e-9)
    assert all(torch.allclose(plain[k], turned[k], atol=1e-9) for k in (TYPES, CHARGES, BONDS))
    order = torch.arange(mask.shape[1])
    order[:4] = torch.tensor([2, 0, 3, 1])  # all have four atoms

    def permuted(s: State) -> State:
        return {k: v[:, order][:, :, order] if k == BONDS else v[:, order] for k, v in s.items()}

    moved = denoiser(
        permuted(x),
        t,
        layouts=layouts,
        condition={"known": permuted(state), "intervals": wish} | {k: condition[k][:, order] for k in FLAGS},
    )
    expected = permuted(plain)
    assert all(torch.allclose(moved[k], expected[k], atol=1e-9) for k in moved)


def test_nothing_given_is_as_if_there_were_no_parts(batch: tuple[State, Tensor]) -> None:
    denoiser, _ = random_denoiser()
    x, t = noised(denoiser, *batch)
    layouts = layouts_for(batch[1])
    plain = denoiser(x, t, layouts=layouts)
    empty = denoiser(x, t, layouts=layouts, condition=none_given(batch[0], batch[1]))
    assert all(torch.equal(plain[k], empty[k]) for k in plain)


def test_what_is_given_has_no_loss(batch: tuple[State, Tensor]) -> None:
    denoiser, config = random_denoiser()
    state, mask = batch
    x, t = noised(denoiser, state, mask)
    layouts = layouts_for(mask)
    condition = dict.fromkeys(FLAGS, mask) | {"known": state}
    estimate = corrected(denoiser(x, t, layouts=layouts, condition=condition), condition)
    losses = DenoisingLoss()(denoiser, state, estimate, t, layouts)
    assert all(float(v) < 1e-9 for v in losses.values())  # the centroid of everything is known: zero
    given = Given(
        denoiser=denoiser,
        process=denoiser.process,
        known={POSITIONS: state[POSITIONS]},
        keep={POSITIONS: condition["placed"]},
    )
    same = given(x, t, layouts=layouts, condition=condition)[
        POSITIONS
    ]  # what the sampler does is what was trained
    assert torch.allclose(same, estimate[POSITIONS], atol=1e-12)
    graph = everything(state, mask)
    part = DenoisingLoss()(
        denoiser, state, corrected(denoiser(x, t, layouts=layouts, condition=graph), graph), t, layouts
    )
    assert float(part[BONDS]) < 1e-9 < float(part[POSITIONS])
    assert config.network.parts


def test_the_task_trains_both_and_its_batches_do_not_depend_on_the_ranks() -> None:
    molecules = [
        replace(add_geometry(s), properties={"gap": 0.1 * k, "mu": 1.0 + k % 3})
        for k, s in enumerate(SMILES * 3)
    ]
    buckets = buckets_from_molecules(molecules, VOCABULARY, ("gap", "mu"))
    ranges = measure(("gap", "mu"), {}, torch.cat([b.values for b in buckets if b.values is not None]))
    config = MoleculeConfig(vocabulary=VOCABULARY, network=FULL, ranges=ranges)
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    task = MoleculeTask(denoiser, config, buckets, batch=16, seed=0)
    for step in range(4):
        key, whole = task.prepare(step, generator=torch.Generator().manual_seed(step), rank=0, world=1)
        halves = [
            task.prepare(step, generator=torch.Generator().manual_seed(step), rank=r, world=2)[1]
            for r in (0, 1)
        ]
        for k in whole:
            assert torch.equal(whole[k][0::2], halves[0][k])
            assert torch.equal(whole[k][1::2], halves[1][k])
        losses = task.loss(denoiser, key, whole)
        losses["loss"].backward()
    assert {"intervals", *FLAGS} <= set(whole)
    names = [k for k, p in denoiser.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # the last layer of the embedding is zero, so that nothing reaches the layers before it in the first steps
    assert all(k.startswith("network.condition_in.") and ".last." not in k for k in names)
    with pytest.raises(ValueError, match="values of 2 properties"):
        MoleculeTask(denoiser, config, buckets_from_molecules(molecules, VOCABULARY), batch=4, seed=0)


# wishes in words


def test_units_are_those_of_ase() -> None:
    for value, unit, own, expected in (
        (1.0, "eV", "hartree", 1 / ase_units.Hartree),
        (250.0, "meV", "hartree", 0.25 / ase_units.Hartree),
        (2.0, "Å^3", "bohr^3", 2 / ase_units.Bohr**3),
        (1.0, "e*Å", "D", 1 / ase_units.Debye),
        (10.0, "J/mol/K", "cal/(mol K)", 10 * ase_units.kJ / ase_units.kcal),
        (3.0, "", "D", 3.0),
        (0.5, "HA", "hartree", 0.5),
    ):
        assert convert(value, unit, own, "x") == pytest.approx(expected, rel=1e-6)


def test_wishes_are_read() -> None:
    def ends(text: str) -> tuple[float, float]:
        wish = parse_wish(text, RANGES)
        return wish.low, wish.high

    assert ends("gap<0.2 Ha") == (-INF, 0.2)
    assert ends(" GAP >= 5.4422772491976 eV") == (pytest.approx(0.2), INF)
    assert ends("mu=2..3 D") == (2, 3)
    assert ends("mu=2") == (2, 2)
    both = parse_wishes(["mu>1", "gap<0.3", "mu<=2 D"], RANGES)
    assert [str(w) for w in both] == ["gap < 0.3 hartree", "mu > 1 D and mu <= 2 D"]
    found = intervals(both, RANGES)
    assert torch.allclose(found, torch.tensor([[-INF, 1.0], [(1 - 2.7) / 1.5, (2 - 2.7) / 1.5]]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["gapp<1"], "did you mean gap"),
        (["logP<1"], "that the model knows .gap, mu., given 'logP'"),
        (["gap<1 D"], "a unit of gap"),
        (["gap<1 MeV"], "a unit of gap"),
        (["mu=3..2"], "lower end first"),
        (["mu>1..2"], "lower end first"),
        (["mu"], "expected a wish such as"),
        (["mu<__import__('os')"], "expected a wish such as"),
        (["mu>1e999"], "finite"),
        (["mu>3", "mu<2"], "can hold together"),
    ],
)
def test_a_mistaken_wish_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(PerrinError, match=message) as caught:
        parse_wishes(texts, RANGES)
    assert "\n" not in str(caught.value)


def test_what_the_data_do_not_have_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(500, generator=generator) * 4
    values = torch.stack((0.5 - mu / 10, mu), dim=1)  # one decides the other
    ranges = measure(("gap", "mu"), {"gap": "hartree", "mu": "D"}, values)
    table = Table(sizes=torch.full((500,), 5), z=standardise(values, ranges))
    _, warnings = counsel(parse_wishes(["mu=50 D"], ranges), ranges, table)
    assert len(warnings) == 1
    assert "training data, which have" in warnings[0]
    assert "to 3.99" in warnings[0]
    lines, warnings = counsel(parse_wishes(["mu>2 D"], ranges), ranges, table)
    assert not warnings
    assert "5" in lines[0]
    _, warnings = counsel(parse_wishes(["mu>3", "gap>0.4"], ranges), ranges, table)
    assert len(warnings) == 1
    assert "together" in warnings[0]
    assert "gap is 0.1" in warnings[0]


def test_sizes_are_those_of_molecules_that_meet_the_wish() -> None:
    sizes = torch.arange(3, 13).repeat(200)
    z = (sizes - 7.5)[:, None] / 3 + torch.tensor([0.0, 1.0])
    table = Table.unpack(Table(sizes=sizes, z=z).pack().half().float())
    assert torch.equal(table.sizes, sizes)

    def found(low: float, high: float, column: int = 0) -> set[int]:
        wish = nothing(1, 2)[0]
        wish[column] = torch.tensor([low, high])
        return set(sizes[table.weights(wish) > 0.5].tolist())

    assert found(0.0, INF) == set(range(8, 13))
    assert found(1 / 6, 1 / 6) == {8}
    assert found(0.8, 1.2, 1) == {7, 8}
    assert found(50.0, 60.0) == {12}  # beyond all: the nearest


# the command line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bundle with conditions and parts."""
    network = replace(FULL, depth=1)
    denoiser, config = random_denoiser(network)
    sizes = torch.randint(5, 10, (300,), generator=torch.Generator().manual_seed(0))
    table = Table(sizes=sizes, z=torch.stack(((sizes - 7.0), torch.randn(300)), 1))
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    vocabulary = replace(VOCABULARY, size_counts=tuple((n, 10) for n in range(5, 10)))
    write_bundle(
        folder, modality="molecule", model=replace(config, vocabulary=vocabulary).to_json(),
        weights=dict(denoiser.named_parameters()) | {TABLE: table.pack()}, card="", sampling={"steps": 3},
    )  # fmt: skip
    return folder


def test_sampling_with_wishes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.sdf"
    command = ["sample", str(tiny), "-n", "6", "--workers", "1", "--device", "cpu"]
    wish = ["--want", "gap>0.3 Ha", "--want", "mu=2..3 D", "--guidance-scale", "2"]
    assert main([*command, *wish, "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "wanted: gap > 0.3 Ha; training data 0.02 to 0.62 Ha" in said.out
    made = read_molecules(out)
    assert all(len(m) >= 8 for m in made)  # sizes of molecules that have it
    assert made[0].properties["wanted"] == "gap > 0.3 Ha; mu = 2..3 D"
    model = perrin.load(tiny)
    alone = model.sample(6, want=("gap>0.3 Ha", "mu=2..3 D"), guidance_scale=2.0, batch=2)
    for a, b in zip(alone, made, strict=True):
        assert a.numbers.tolist() == b.numbers.tolist()
        assert abs(a.positions - b.positions).max() < 1e-4  # SDF has four decimals
    plain = model.sample(6, want=("gap>0.3 Ha", "mu=2..3 D"))
    assert any(
        len(a) != len(b) or abs(a.positions - b.positions).max() > 1e-3
        for a, b in zip(alone, plain, strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--want", "mu=3..2"], "lower end first"),
        (["--want", "mu=2-3 D"], "with two points"),
        (["--want", "mu=2..3 D, gap<0.2"], "several times"),
        (["--want", "mu>3", "--want", "mu<2"], "can hold together"),
        (["--want", "colour=2"], "that the model knows"),
        (["--guidance-scale", "2"], "--want"),
        (["--want", "gap>0.35", "--atoms", "5"], "atoms for such wishes"),
    ],
)
def test_mistakes_end_with_2_and_no_file(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    out = tmp_path / "a.sdf"
    assert main(["sample", str(tiny), "-n", "2", "-o", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained property network of gap and mu."""
    torch.manual_seed(0)
    sizes = {
        "depth": 1,
        "width": 32,
        "vectors": 8,
        "pair_width": 16,
        "heads": 4,
        "sets": 4,
        "pair_hidden": 16,
        "gathered": 4,
    }
    config = PredictorConfig(
        vocabulary=VOCABULARY, ranges=RANGES[:2], noisy=True, radial=8, time_width=16, **sizes
    )
    folder = tmp_path_factory.mktemp("guide") / "guide"
    write_bundle(
        folder, modality="molecule", model=config.to_json(), weights=dict(Predictor(config).named_parameters()),
        card="", training={"errors": {"gap": 0.001}},
    )  # fmt: skip
    return folder


def test_candidates_are_the_same_in_any_batch(
    tiny: Path, guide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.sdf"
    command = ["sample", str(tiny), "--workers", "1", "-n", "12", "--want", "mu=0.05 D", "-o", str(out)]
    more = ["--candidates", "16", "--guide", str(guide)]
    assert main([*command, *more]) == 0
    assert "away on average, says the property network" in capsys.readouterr().out
    record = json.loads((tmp_path / "a.sdf.run.json").read_text())["result"]
    assert record["wishes"]["mu"]["mean distance"] >= 0
    assert record["evaluations"] > 3 * 4
    model = perrin.load(tiny)
    model.guide = perrin.load(guide)
    few = model.sample(5, want=("mu=0.05 D",), candidates=16, batch=2)
    for a, b in zip(few, read_molecules(out), strict=False):
        assert a.numbers.tolist() == b.numbers.tolist()
        assert abs(a.positions - b.positions).max() < 1e-4


def test_the_bundle_that_ships_meets_wishes_by_candidates() -> None:
    """6.9 % of QM9 have such a gap; by the network that chooses. A wish alone is met by fewer than half of what is drawn."""
    model, network = perrin.load("molecule/qm9"), perrin.load("molecule/qm9-properties")
    gap = [r.name for r in network.config.ranges].index("gap")
    met = {}
    for count in (1, 16):
        made = model.sample(16, seed=3, want=("gap=0.18..0.20 Ha",), candidates=count, steps=10)
        y = network.of(made)[:, gap]
        met[count] = int(((y >= 0.18) & (y <= 0.20)).sum())
    assert met[16] >= 8 > met[1]
    plain, wished = (
        model.options(steps=10),
        model.options(steps=10, want=(("gap", 0.18, 0.2),), candidates=16),
    )
    assert plain.evaluations(plain.plan(model.denoiser)) == 10  # without wishes there is nothing to choose by
    assert wished.evaluations(wished.plan(model.denoiser)) > 100


def test_candidates_want_a_guide_that_knows_the_wish(
    tiny: Path, guide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny), "-n", "2", "-o", str(tmp_path / "a.sdf")]
    wish = ["--want", f"{RANGES[0].name}>{RANGES[0].mean:g}"]
    for options, message in (
        (["--candidates", "4"], "expected --want with --candidates"),
        (["--guide", str(guide)], "expected --want with --guide"),
        ([*wish, "--candidates", "4"], "name one by --guide"),
        ([*wish, "--candidates", "0"], "expected 1 to 256 candidates, given 0"),
        ([*wish, "--candidates", "4", "--guide", str(tiny)], "expected a property network"),
    ):
        assert main([*command, *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert main(["sample", str(guide), "-n", "2", "-o", str(tmp_path / "a.sdf")]) == 2
    assert "a bundle that 'perrin sample' works with" in capsys.readouterr().err
    assert not (tmp_path / "a.sdf").exists()


def test_a_wish_out_of_reach_warns(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", str(tiny), "-n", "1", "-o", str(tmp_path / "a.sdf"), "--workers", "1"]
    assert main([*command, "--want", "mu=50 D"]) == 0
    assert "outside the training data, which have 0 to 29.6 D" in capsys.readouterr().err


def test_a_bundle_without_conditions_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, config = random_denoiser(SMALL)
    folder = tmp_path / "bare"
    write_bundle(
        folder, modality="molecule", model=config.to_json(), weights=dict(bare.named_parameters()), card=""
    )

    def told(*wishes: str) -> str:
        words = [word for wish in wishes for word in ("--want", wish)]
        assert main(["sample", str(folder), "-n", "1", "-o", str(tmp_path / "a.sdf"), *words]) == 2
        return capsys.readouterr().err

    text = told("mu>1", "gap<0.2 Ha")
    assert "trained with properties" in text
    assert "--conditions mu,gap " in text
    assert "molecule/mine --data mine.sdf" in told("logS>1 mol/l")  # an item of the user's own data
    for wish, message in (  # a wish that no bundle could understand is mended first
        ("mu", "expected a wish such as"),
        ("mu>1 parsec", "a unit of mu"),
        ("gpa<0.2 Ha", "did you mean gap"),
        ("mu=3..2", "lower end first"),
    ):
        assert message in told(wish)


def test_training_from_a_bundle_adds_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, config = random_denoiser(replace(SMALL, depth=1))
    write_bundle(
        tmp_path / "bare",
        modality="molecule",
        model=config.to_json(),
        weights=dict(bare.named_parameters()),
        card="",
    )
    molecules = [replace(add_geometry(s), properties={"colour": float(k)}) for k, s in enumerate(SMILES)]
    write_sdf(tmp_path / "mine.sdf", molecules)
    command = [
        "train",
        "molecule/mine",
        "--data",
        str(tmp_path / "mine.sdf"),
        "--from",
        str(tmp_path / "bare"),
    ]
    more = ["--steps", "2", "--batch", "4", "--parts", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, *more, "--conditions", "colour"]) == 0
    model: MoleculeModel = perrin.load(tmp_path / "run")
    assert [r.name for r in model.config.ranges] == ["colour"]
    assert model.config.network.parts
    assert model.table is not None
    assert len(model.table.sizes) == len(SMILES)
    assert len(model.sample(2, want=("colour>3",), steps=2)) == 2
    capsys.readouterr()
    assert main([*command, *more, "--conditions", "taste", "--out", str(tmp_path / "no")]) == 2
    assert "data item taste" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_an_edit_takes_wishes_and_keeps_what_is_kept(tiny: Path) -> None:
    model: MoleculeModel = perrin.load(tiny)
    lead = add_geometry("CCO")
    kept = keep(lead, [1, 2], [1])
    editor = Editor(model, kept, added=(1, 1))
    units = editor.units(range(4), 0, batch=8)
    plain = [m for u in units for m in editor.run_unit(u, 0, model.options())]
    options = model.options(want=(("mu", 3.0, None),), guidance_scale=2.0)
    wished = [m for u in units for m in editor.run_unit(u, 0, options)]
    assert all(kept.preserved_in(m) for m in [*plain, *wished])
    assert [len(m) for m in plain] == [len(m) for m in wished]
    assert any(abs(a.positions - b.positions).max() > 1e-3 for a, b in zip(plain, wished, strict=True))


@pytest.mark.slow
def test_a_small_network_learns_what_is_wished_for(tmp_path: Path) -> None:
    """Ammonia and hydrogen peroxide have four atoms each, so nothing but the wish tells them apart."""
    molecules = [
        replace(add_geometry(s, seed=k), properties={"nitrogen": v})
        for k in range(8)
        for s, v in (("OO", 0.0), ("N", 1.0))
    ]
    buckets = buckets_from_molecules(molecules, VOCABULARY, ("nitrogen",))
    vocabulary = replace(VOCABULARY, type_counts=(5.0, 0.1, 1.0, 2.0), size_counts=((4, 1),))
    start = MoleculeConfig(vocabulary=vocabulary, network=replace(SMALL, self_condition=False, depth=2))
    config, table = with_inputs(start, buckets, ("nitrogen",), parts=True, data=True)
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    task = MoleculeTask(denoiser, config, buckets, batch=32, seed=0)
    options = TrainOptions(steps=300, batch=32, lr=4e-3, warmup=20, cooldown=0.5, ema=0.98, log_every=100)
    Trainer(task, options, tmp_path, accelerator="cpu").run()
    model = MoleculeModel(denoiser.eval(), config, SamplingOptions(steps=30), table=table)
    share = {
        wish: sum(7 in m.numbers for m in model.sample(40, want=(wish,))) / 40
        for wish in ("nitrogen>0.5", "nitrogen<0.5", "nitrogen=1", "nitrogen=0")
    }
    assert min(share["nitrogen>0.5"], share["nitrogen=1"]) > 0.7
    assert max(share["nitrogen<0.5"], share["nitrogen=0"]) < 0.3
