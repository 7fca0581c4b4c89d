"""A choice among samples brings them to the data: shares by the exact formula, weights that are ratios of densities."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

from test_network import SMALL

import perrin
from perrin.bundle import read_bundle, write_bundle
from perrin.cli import main
from perrin.core import CounterNoise, State, sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.molecule.balance import PREFIX, Balance, common_surroundings, features, fit
from perrin.modalities.molecule.candidates import choose_state
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.dataset import Bucket
from perrin.modalities.molecule.fields import POSITIONS, TYPES, encode
from perrin.modalities.molecule.files import write_sdf
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, Unit, filled
from perrin.modalities.molecule.network import MoleculeConfig, build_denoiser
from perrin.modalities.molecule.properties import Range
from perrin.modalities.molecule.sources import from_files
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.vary import Varier

SMILES = ("CO", "CN", "C1CC1", "C#N", "CC(=O)O", "[NH3+]CC(=O)[O-]", "c1ccoc1")
MOLECULES = [add_geometry(s) for s in SMILES]
VOCABULARY, BUCKETS, _ = from_files(MOLECULES, None, source="test")


def rows(kinds: Tensor) -> tuple[State, Tensor]:
    """A batch of molecules by their numbers in `SMILES`, as int8."""
    state, mask = encode(MOLECULES, VOCABULARY, width=max(map(len, MOLECULES)))
    return {k: v[kinds] if k == POSITIONS else v[kinds].to(torch.int8) for k, v in state.items()}, mask[kinds]


def wide(state: State) -> State:
    return {k: v if k == POSITIONS else v.long() for k, v in state.items()}


def share_after(p: float, r: float, many: int) -> float:
    """Of the kind with weight r and share p, after one of `many` is kept: the sum over how many of them there are."""
    w = r ** (many / (many - 1))
    return sum(
        math.comb(many, k) * p**k * (1 - p) ** (many - k) * k * w / (k * w + many - k)
        for k in range(1, many + 1)
    )


def oxygens(weight: float) -> Balance:
    """Each oxygen counts by a factor."""
    theta = torch.zeros(1, features(*_one(), VOCABULARY, torch.zeros(0)).shape[1])
    theta[0, VOCABULARY.elements.index(8)] = math.log(weight)
    return Balance(labels=torch.zeros(0, dtype=torch.int64), evaluations=torch.tensor([5]), theta=theta)


def _one() -> tuple[State, Tensor]:
    state, mask = rows(torch.zeros(1, dtype=torch.int64))
    return wide(state), mask


@pytest.mark.parametrize(("many", "r"), [(2, 1.5), (3, 4.0), (8, 0.5)])
def test_shares_are_those_of_the_exact_formula(many: int, r: float) -> None:
    """Methanol and methylamine, 30 % and 70 %, methanol with weight r."""
    p, groups = 0.3, 20_000
    draws = torch.rand(groups * many, generator=torch.Generator().manual_seed(many)) < p
    state, mask = rows(torch.where(draws, 0, 1))
    noise = CounterNoise(sample_seeds(1, range(groups * many)))
    kept = oxygens(r).choose(wide(state), mask, VOCABULARY, steps=5, many=many, noise=noise)
    assert torch.equal(kept // many, torch.arange(groups))
    found, expected = float(draws[kept].float().mean()), share_after(p, r, many)
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / groups)
    assert abs(expected - p) > 0.05


@pytest.mark.parametrize("many", [2, 4, 8])
def test_the_exponent_leads_to_the_target_to_first_order(many: int) -> None:
    """`p r / (p r + 1 − p)` is met but for a term in `(ln r)²`: half of `ln r`, a quarter of the error."""
    p = 0.3

    def error(log_r: float) -> float:
        r = math.exp(log_r)
        return share_after(p, r, many) - p * r / (p * r + 1 - p)

    assert abs(error(0.2)) < 0.004  # the share itself goes up by 0.044
    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.1)


def test_what_is_not_sound_is_kept_where_there_is_nothing_else() -> None:
    state, mask = rows(torch.tensor([0, 0, 1, 1]))
    state = wide(state)
    state["bonds"][[0, 2, 3]] = 0
    kept = oxygens(1.0).choose(state, mask, VOCABULARY, steps=5, many=2, noise=CounterNoise(torch.arange(4)))
    assert kept[0] == 1
    assert kept[1] in (2, 3)


def test_a_fit_finds_the_ratio_of_the_densities() -> None:
    """Every kind has surroundings of its own, so weights with the data's means are the ratios of the shares."""
    data = torch.tensor([40, 30, 20, 25, 10, 8, 30])
    drawn = {10: torch.tensor([20, 60, 25, 25, 10, 4, 20]), 40: torch.tensor([40, 33, 20, 20, 12, 8, 27])}
    kinds = torch.arange(len(SMILES))
    samples = {}
    for steps, counts in drawn.items():
        state, mask = rows(torch.cat([kinds.repeat_interleave(counts), torch.tensor([0, 0, 0])]))
        state["bonds"][-3:] = 0  # not sound: not counted
        half = len(mask) // 2
        samples[steps] = [
            ({k: v[s] for k, v in state.items()}, mask[s]) for s in (slice(half), slice(half, None))
        ]
    balance = fit(samples, iter([rows(kinds.repeat_interleave(data))]), VOCABULARY, ridge=1e-8)
    assert balance.evaluations.tolist() == [10, 40]
    state, mask = rows(kinds)
    for steps, near in ((10, 10), (19, 10), (21, 40), (1000, 40)):
        ratio = (data / data.sum()) / (drawn[near] / drawn[near].sum())
        found = balance.log_weight(wide(state), mask, VOCABULARY, steps)
        expected = ratio.double().log()
        assert torch.allclose(found - found[0], expected - expected[0], atol=2e-3)


def test_a_fit_gives_the_samples_the_means_of_the_data() -> None:
    """Of the contents alone, with fewer numbers than kinds, means are met all the same."""
    data, drawn = torch.tensor([40, 30, 20, 25, 10, 8, 30]), torch.tensor([20, 60, 25, 25, 10, 4, 20])
    kinds = torch.arange(len(SMILES))
    real, made = (rows(kinds.repeat_interleave(counts)) for counts in (data, drawn))
    balance = fit({5: [made]}, [real], VOCABULARY, share=0.5, ridge=1e-8)
    assert 0 < len(balance.labels) < 5
    weights = balance.log_weight(wide(made[0]), made[1], VOCABULARY, 5).softmax(0)
    found, wanted = (features(wide(s), m, VOCABULARY, balance.labels).double() for s, m in (made, real))
    assert torch.allclose(weights @ found, wanted.mean(0), atol=1e-5)
    assert not torch.allclose(found.mean(0), wanted.mean(0), atol=0.05)


def test_what_cannot_be_fitted_is_refused() -> None:
    made = rows(torch.tensor([0, 1]))
    for samples, data in (({}, [made]), ({5: [made]}, [])):
        with pytest.raises(PerrinError, match="expected samples and data"):
            fit(samples, data, VOCABULARY)
    with pytest.raises(PerrinError, match="expected at least 2 sound samples of 5 evaluations"):
        fit({5: [rows(torch.tensor([0]))]}, [made], VOCABULARY)


# in a bundle


def config(conditions: tuple[str, ...] = ()) -> MoleculeConfig:
    ranges = tuple(Range(name=n, unit="", mean=0.0, std=1.0, low=-9.0, high=9.0) for n in conditions)
    return MoleculeConfig(
        vocabulary=replace(VOCABULARY, size_counts=((6, 1), (9, 2))),
        network=replace(SMALL, conditions=conditions),
        ranges=ranges,
    )


def some_balance() -> Balance:
    """Of an untrained network's samples: it likes oxygen and dislikes rings."""
    labels = common_surroundings([_int64(b) for b in BUCKETS], VOCABULARY, 0.1)
    count = features(*_one(), VOCABULARY, labels).shape[1]
    theta = torch.randn(2, count, generator=torch.Generator().manual_seed(0)) * 0.3
    return Balance(labels=labels, evaluations=torch.tensor([4, 1000]), theta=theta)


def _int64(bucket: Bucket) -> tuple[State, Tensor]:
    return bucket.take(torch.arange(len(bucket)))


def write(
    folder: Path, balance: Balance | None, conditions: tuple[str, ...] = (), *, default: int = 1
) -> Path:
    torch.manual_seed(0)
    own = config(conditions)
    weights = dict(build_denoiser(own).named_parameters()) | (balance.pack() if balance else {})
    options = SamplingOptions(steps=3, decode=False, balance=default).to_json()
    return write_bundle(
        folder, modality="molecule", model=own.to_json(), weights=weights, card="", sampling=options
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoleculeModel:
    return perrin.load(write(tmp_path_factory.mktemp("bundle") / "own", some_balance()))


def test_a_bundle_holds_it(model: MoleculeModel) -> None:
    """Labels to the last bit, though a bundle's tensors are read as float32; theta in half precision."""
    expected, found = some_balance(), model.balance
    assert found is not None
    assert int(expected.labels.abs().max()) > 2**60
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.evaluations, expected.evaluations)
    assert torch.allclose(found.theta, expected.theta, rtol=1e-3)


def equal(a: Molecule, b: Molecule) -> bool:
    return (
        np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.bonds, b.bonds)  # type: ignore[arg-type]
        and np.array_equal(a.charges, b.charges)
    )


def test_a_molecule_is_the_same_in_any_batch(model: MoleculeModel) -> None:
    whole = model.sample(12, seed=3, balance=3)
    for count, batch in ((12, 1), (12, 5), (7, 4)):
        assert all(map(equal, model.sample(count, seed=3, batch=batch, balance=3), whole[:count]))


def test_every_molecule_is_one_of_its_candidates(model: MoleculeModel) -> None:
    """Candidate c is what the molecule's seed plus c gives without a balance; candidate 0 the molecule itself."""
    indices, many = tuple(range(40)), 4
    unit = Unit(indices, (9,) * len(indices))
    options = model.options()
    balanced, mask = model.run_state(unit, 7, replace(options, balance=many))
    plain, _ = model.run_state(unit, 7, options)
    seeds = sample_seeds(7, torch.tensor(indices))
    assert filled(len(indices)) == list(indices)
    each = []
    for c in range(many):
        state = choose_state(
            model, options, options.plan(model.denoiser), seeds + c, mask,
            lambda size: (model.denoiser, None), wishes=None, balance=model.balance, self_condition=SMALL.self_condition,
        )  # fmt: skip
        each.append(state[POSITIONS])
    assert torch.equal(each[0], plain[POSITIONS])
    same = torch.stack([torch.isclose(x, balanced[POSITIONS], atol=1e-4).flatten(1).all(1) for x in each])
    assert torch.equal(same.sum(0), torch.ones(len(indices), dtype=torch.int64))
    assert int(same.sum(1).min()) > 2, "each has its turn"


def test_a_balance_moves_what_is_held(model: MoleculeModel) -> None:
    """By one who likes oxygen alone, there is more of it."""
    judge = MoleculeModel(model.denoiser, model.config, model.sampling, balance=oxygens(2.0))
    oxygen = VOCABULARY.elements.index(8)
    unit = Unit(tuple(range(200)), (9,) * 200)
    counts = [
        float(
            (judge.run_state(unit, 0, judge.options(balance=many))[0][TYPES] == oxygen).sum(1).float().mean()
        )
        for many in (1, 2, 8)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_wishes_and_given_molecules_leave_it_aside(tmp_path: Path) -> None:
    """A bundle's default holds for what is drawn freely only, and is counted there only."""
    whole = perrin.load(write(tmp_path / "whole", some_balance(), ("gap",), default=4))
    plain = perrin.load(write(tmp_path / "plain", None, ("gap",)))
    assert (whole.sampling.balance, plain.sampling.balance) == (4, 1)
    wished = [m.sample(6, seed=1, want=["gap<0"]) for m in (whole, plain)]
    assert all(map(equal, *wished))
    made = [
        Varier(m, MOLECULES[:1], 6, strength=0.9).run_unit(Unit(tuple(range(6)), (6,) * 6), 0, m.options())
        for m in (whole, plain)
    ]
    assert all(map(equal, *made))
    options = whole.options()
    plan = options.plan(whole.denoiser)
    assert options.evaluations(plan) == 4 * plan.nfe
    assert options.to_json()["balance"] == 4
    asked = replace(options, want=(("gap", None, 0.0),))
    assert asked.evaluations(plan) == plan.nfe
    assert "balance" not in asked.to_json()
    assert "balance" not in plain.options().to_json()


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "whole", some_balance(), ("gap",))
    write(tmp_path / "plain", None, ("gap",))
    words = ["-n", "5", "--workers", "1", "-o"]
    assert main(["sample", "whole", *words, "a.sdf", "--balance", "3"]) == 0
    assert main(["sample", "whole", *words, "b.sdf", "--balance", "3", "--batch", "2"]) == 0
    assert Path("a.sdf").read_bytes() == Path("b.sdf").read_bytes()
    made = json.loads(Path("a.sdf.run.json").read_text())
    assert made["result"]["evaluations"] == 9
    assert made["sampling"]["balance"] == 3
    assert (
        main(["sample", "whole", *words, "d.sdf", "--balance", "2", "--solver", "heun"]) == 0
    )  # any solver will do
    capsys.readouterr()
    for bundle, options, message in (
        ("whole", ["--balance", "9"], "expected 1 to 8 molecules to draw for one, given a balance of 9"),
        ("whole", ["--balance", "0"], "expected 1 to 8 molecules"),
        (
            "plain",
            ["--balance", "2"],
            "expected a bundle with a balance to draw 2 molecules for one, given plain",
        ),
        ("whole", ["--balance", "2", "--want", "gap<0"], "expected --balance without --want"),
    ):
        assert main(["sample", bundle, *words, "c.sdf", *options]) == 2
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
        assert not Path("c.sdf").exists()


def test_a_trained_network_has_none_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "whole", some_balance(), default=4)
    write_sdf("own.sdf", MOLECULES)
    words = ["--data", "own.sdf", "--from", "whole", "--steps", "1", "--batch", "4", "--device", "cpu"]
    assert main(["train", "molecule/own", *words, "--out", "tuned"]) == 0
    tuned = read_bundle("tuned")
    assert not [k for k in tuned.weights() if k.startswith(PREFIX)]
    assert "balance" not in tuned.config["sampling"]
    assert perrin.load("tuned").balance is None
