"""Sampling with the shipped bundle: a molecule is a function of (seed, its number) and of nothing else."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

import perrin
from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.commands import _pack, _unpack
from perrin.modalities.molecule.dataset import (
    buckets_from_molecules,
    buckets_from_ragged,
    count_vocabulary,
    widths_for,
)
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, Vocabulary, decode, encode
from perrin.modalities.molecule.files import read_molecules
from perrin.modalities.molecule.metrics import evaluate
from perrin.modalities.molecule.model import MoleculeModel
from perrin.modalities.molecule.structure import Molecule

STEPS = 3
HAND_MADE = ("C", "CCO", "[O-][N+](=O)c1ccccc1", "C#N", "[NH3+]CC(=O)[O-]", "OCC(O)C(O)C(O)C(O)CO", "FC(F)F")
"""Methane; a nitro group and a zwitterion for charges; aromatic, triple; a large one."""


@pytest.fixture(scope="module")
def model() -> MoleculeModel:
    return perrin.load("molecule/qm9")


@pytest.fixture(scope="module")
def sixty_four(model: MoleculeModel) -> list[Molecule]:
    return model.sample(64, seed=7, batch=64, steps=STEPS)


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    return [add_geometry(smiles) for smiles in HAND_MADE]


def vocabulary_of(molecules: list[Molecule]) -> Vocabulary:
    return count_vocabulary(*ragged(molecules))


def ragged(molecules: list[Molecule]) -> tuple[torch.Tensor, ...]:
    bonds = [m.bonds for m in molecules if m.bonds is not None]
    return (
        torch.tensor([len(m) for m in molecules]),
        torch.from_numpy(np.concatenate([m.numbers for m in molecules])),
        torch.from_numpy(np.concatenate([m.charges for m in molecules])),
        torch.from_numpy(np.concatenate([m.positions for m in molecules])).float(),
        torch.tensor([len(b) for b in bonds]),
        torch.from_numpy(np.concatenate(bonds)),
    )


def same(a: Molecule, b: Molecule) -> bool:
    """Equal to the last bit, name included."""
    return (
        a.name == b.name
        and np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.charges, b.charges)
        and np.array_equal(a.bonds, b.bonds)  # type: ignore[arg-type]
    )


def all_same(a: list[Molecule], b: list[Molecule]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


@pytest.mark.parametrize("batch", [5, 16])
def test_the_batch_changes_no_bit(model: MoleculeModel, sixty_four: list[Molecule], batch: int) -> None:
    assert all_same(model.sample(64, seed=7, batch=batch, steps=STEPS), sixty_four)


def test_one_at_a_time_changes_no_bit(model: MoleculeModel, sixty_four: list[Molecule]) -> None:
    assert all_same(model.sample(10, seed=7, batch=1, steps=STEPS), sixty_four[:10])


def test_every_number_of_neighbours_changes_no_bit(model: MoleculeModel) -> None:
    """One small, one odd and one large size, in batches of every length."""
    for atoms, batches in ((5, range(1, 9)), (18, (1, 3, 7)), (29, (2, 5))):
        expected = model.sample(9, seed=3, batch=9, atoms=(atoms, atoms), steps=2)
        for batch in batches:
            assert all_same(model.sample(9, seed=3, batch=batch, atoms=(atoms, atoms), steps=2), expected), (
                atoms,
                batch,
            )


def test_how_many_are_asked_for_changes_no_bit(model: MoleculeModel, sixty_four: list[Molecule]) -> None:
    twelve = model.sample(12, seed=7, steps=STEPS)
    assert all_same(twelve, model.sample(20, seed=7, steps=STEPS)[:12])
    assert all_same(twelve, sixty_four[:12])


def test_seeds_and_steps_matter(model: MoleculeModel, sixty_four: list[Molecule]) -> None:
    other = model.sample(6, seed=8, steps=STEPS)
    finer = model.sample(6, seed=7, steps=STEPS + 1)
    assert not any(
        np.array_equal(a.positions, b.positions) for a, b in zip(other, sixty_four[:6], strict=True)
    )
    assert not any(
        np.array_equal(a.positions, b.positions) for a, b in zip(finer, sixty_four[:6], strict=True)
    )
    first = {m.positions.tobytes() for m in sixty_four}
    assert len(first) == 64


def test_what_is_generated_is_well_formed(model: MoleculeModel, sixty_four: list[Molecule]) -> None:
    sizes = model.sizes(7, 64).tolist()
    assert [len(m) for m in sixty_four] == sizes
    assert [m.name for m in sixty_four] == [f"qm9-7-{i}" for i in range(64)]
    for m in sixty_four:
        assert m.positions.dtype == np.float64
        assert np.abs(m.positions.mean(0)).max() < 1e-5
        assert set(m.numbers.tolist()) <= {1, 6, 7, 8, 9}
        assert set(m.charges.tolist()) <= {-1, 0, 1}
        assert m.bonds is not None
        assert (m.bonds[:, 0] < m.bonds[:, 1]).all()
        assert set(m.bonds[:, 2].tolist()) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("n", "more", "word"),
    [
        (0, {}, "n of at least 1"),
        (-3, {}, "-3"),
        (2, {"batch": 0}, "batch"),
        (2, {"steps": 0}, "1 step"),
        (2, {"solver": "magic"}, "magic"),
        (2, {"atoms": (40, 50)}, "3 to 29 atoms"),
    ],
)
def test_wrong_questions(model: MoleculeModel, n: int, more: dict[str, object], word: str) -> None:
    with pytest.raises(PerrinError, match=r"^expected ") as caught:
        model.sample(n, **more)  # type: ignore[arg-type]
    assert word in str(caught.value)


def chi_square(drawn: torch.Tensor, expected: dict[int, float]) -> tuple[float, int]:
    """Statistic and degrees of freedom, categories of expectation below 5 taken together."""
    total, rare, rare_drawn, bins = 0.0, 0.0, 0, 0
    for value, mean in expected.items():
        count = int((drawn == value).sum())
        if mean < 5:
            rare, rare_drawn = rare + mean, rare_drawn + count
            continue
        total, bins = total + (count - mean) ** 2 / mean, bins + 1
    if rare > 1:
        total, bins = total + (rare_drawn - rare) ** 2 / rare, bins + 1
    return total, bins - 1


@pytest.mark.parametrize("atoms", [None, (12, 15), (9, 20), (18, 18)])
def test_sizes_follow_the_training_data(model: MoleculeModel, atoms: tuple[int, int] | None) -> None:
    n = 20_000
    low, high = atoms or (1, 99)
    table = {k: c for k, c in model.config.vocabulary.size_counts if low <= k <= high}
    drawn = model.sizes(1, n, atoms)
    assert set(drawn.tolist()) <= set(table)
    assert sum(table.values()) > 100
    expected = {k: n * c / sum(table.values()) for k, c in table.items()}
    statistic, freedom = chi_square(drawn, expected)
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom)
    assert torch.equal(model.sizes(1, 50, atoms), drawn[:50])
    if freedom:
        assert not torch.equal(model.sizes(2, 50, atoms), drawn[:50])


def test_the_command_line_makes_the_same_bytes(
    model: MoleculeModel, sixty_four: list[Molecule], tmp_path: Path
) -> None:
    """Workers, batches and the Python interface agree."""
    outputs = []
    for workers, batch in ((1, 64), (2, 64), (2, 5)):
        out = tmp_path / f"{workers}-{batch}.sdf"
        command = f"sample molecule/qm9 -n 64 --seed 7 --steps {STEPS} --workers {workers} --batch {batch}"
        assert main([*command.split(), "-o", str(out)]) == 0
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    for i, (a, b) in enumerate(zip(read_molecules(tmp_path / "2-5.sdf"), sixty_four, strict=True)):
        assert a.name == b.name
        assert a.properties["index"] == i
        assert np.array_equal(a.numbers, b.numbers)
        assert np.array_equal(a.charges, b.charges)
        assert np.array_equal(a.bonds, b.bonds)  # type: ignore[arg-type]
        assert np.abs(a.positions - b.positions).max() < 6e-5


def test_parts_of_unfinished_work_keep_every_bit(sixty_four: list[Molecule]) -> None:
    rows = (3, 1, 2)
    chosen = [sixty_four[i] for i in rows]
    assert all_same(_unpack(_pack(chosen), "qm9", 7, rows), chosen)
    bare = Molecule(
        numbers=np.array([2]),
        positions=np.zeros((1, 3)),
        bonds=np.zeros((0, 3), dtype=np.int64),
        charges=np.array([0]),
        name="x-0-0",
    )
    assert all_same(_unpack(_pack([bare]), "x", 0, (0,)), [bare])


def test_encoding_and_back(molecules: list[Molecule]) -> None:
    vocabulary = vocabulary_of(molecules)
    state, mask = encode(molecules, vocabulary, width=40)
    assert mask.sum(1).tolist() == [len(m) for m in molecules]
    assert torch.equal(state[BONDS], state[BONDS].transpose(1, 2))
    assert not state[POSITIONS][~mask].any()
    for before, after in zip(molecules, decode(state, mask, vocabulary), strict=True):
        assert np.array_equal(before.numbers, after.numbers)
        assert np.array_equal(before.charges, after.charges)
        assert before.bonds is not None
        assert after.bonds is not None
        assert sorted(before.bonds.tolist()) == sorted(after.bonds.tolist())
        assert np.allclose(before.positions - before.positions.mean(0), after.positions, atol=1e-5)


def test_the_vocabulary_counts_by_hand() -> None:
    methane, cyanide = add_geometry("C"), add_geometry("[C-]#N")
    v = vocabulary_of([methane, methane, cyanide])
    assert v.elements == (1, 6, 7)
    assert v.type_counts == (8.0, 3.0, 1.0)
    assert v.charges == (-1, 0, 1)
    assert v.charge_counts == (1.0, 11.0, 0.0)
    assert v.bond_counts == (12.0, 8.0, 0.0, 1.0)
    assert v.size_counts == ((2, 1), (5, 2))
    centred = [m.positions - m.positions.mean(0) for m in (methane, methane, cyanide)]
    assert v.position_scale == pytest.approx(np.concatenate(centred).std(), abs=2e-6)


def test_what_the_vocabulary_lacks_is_an_error(molecules: list[Molecule]) -> None:
    vocabulary = vocabulary_of([add_geometry("CCO")])
    for smiles, word in (("CN", "elements with the atomic numbers"), ("[CH2-2]", "formal charges")):
        with pytest.raises(PerrinError, match=f"expected {word}"):
            encode([add_geometry(smiles)], vocabulary, width=30)
    with pytest.raises(PerrinError, match="more than 4"):
        encode([add_geometry("C")], vocabulary, width=4)


@pytest.mark.parametrize("larger", [False, True])
def test_both_ways_to_buckets_agree(molecules: list[Molecule], larger: bool) -> None:
    """The fast way of QM9 and the plain way of the user's file, also for a vocabulary of smaller molecules."""
    vocabulary = vocabulary_of(molecules)
    if larger:
        from dataclasses import replace

        vocabulary = replace(vocabulary, size_counts=((3, 1), (5, 2)))
    fast = buckets_from_ragged(*ragged(molecules), vocabulary)
    plain = buckets_from_molecules(molecules, vocabulary)
    assert [len(b) for b in fast] == [len(b) for b in plain]
    assert sum(map(len, fast)) == len(molecules)
    for a, b in zip(fast, plain, strict=True):
        assert torch.equal(a.mask, b.mask)
        for key in (TYPES, CHARGES, BONDS):
            assert a.state[key].dtype == b.state[key].dtype == torch.int8
            assert torch.equal(a.state[key], b.state[key])
        assert torch.allclose(a.state[POSITIONS], b.state[POSITIONS], atol=1e-6)
        index = torch.tensor([len(b) - 1, 0])
        (left, left_mask), (right, right_mask) = a.take(index), b.take(index)
        assert torch.equal(left_mask, right_mask)
        assert left[TYPES].dtype == torch.int64
        assert torch.equal(left[BONDS], right[BONDS])


def test_bucket_widths_hold_every_size() -> None:
    for largest in (1, 5, 17, 18, 19, 21, 29, 30, 50, 200):
        widths = widths_for(largest)
        assert list(widths) == sorted(set(widths))
        assert widths[-1] == largest
    assert widths_for(29) == (18, 21, 29)


@pytest.mark.slow
def test_the_shipped_bundle_makes_molecules(model: MoleculeModel) -> None:
    """Acceptance: of 100 molecules at the default settings at least 80 % are valid and in one piece."""
    result = evaluate(model.sample(100, seed=0), "bonds")
    metrics = result["protocols"]["bonds"]["metrics"]
    assert metrics["valid_connected"]["value"] >= 0.80, metrics


def test_tensors_need_no_rdkit() -> None:
    """A lent GPU machine has the sources and torch: `benchmarks/qm9.py speed --device cuda` runs there."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['rdkit', 'ase', 'plotly', 'qm9pack', 'rich', 'lightning_fabric']))\n"
        "sys.path.insert(0, 'benchmarks')\n"
        "import qm9\n"
        "model = qm9.load_model('molecule/qm9', 'cpu')\n"
        "unit = model.units(model.sizes(1, 4), batch=4)[0]\n"
        "import torch\n"
        "with torch.inference_mode():\n"
        "    state, mask = model.run_state(unit, 1, model.options(steps=2))\n"
        "print(state['positions'][mask].square().sum().item(), len(model.run_unit(unit, 1, model.options(steps=2))))"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) > 0
