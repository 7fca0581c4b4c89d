"""The costlier measures against truth: other libraries' numbers, closed forms, and geometries whose flaw is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.metrics import (
    Measures,
    Reference,
    RelaxOptions,
    evaluate,
    format_table,
    measure,
)
from perrin.modalities.molecule.metrics.composition import Composition, composition_metrics
from perrin.modalities.molecule.metrics.geometry import Geometry, geometry_metrics
from perrin.modalities.molecule.metrics.statistics import median, total_variation, wasserstein
from perrin.modalities.molecule.structure import Molecule


def molecule(
    numbers: list[int], positions: object, rows: list[tuple[int, int, int]], charge: int = 0
) -> Molecule:
    charges = np.zeros(len(numbers), dtype=np.int64)
    charges[0] = charge
    return Molecule(
        numbers=np.array(numbers),
        positions=np.array(positions, dtype=np.float64),
        bonds=np.array(rows, dtype=np.int64).reshape(-1, 3),
        charges=charges,
    )


def water() -> Molecule:
    from ase.build import molecule as build

    atoms = build("H2O")
    return molecule([8, 1, 1], atoms.positions, [(0, 1, 1), (0, 2, 1)])


@pytest.fixture(scope="module")
def some() -> list[Molecule]:
    words = "CCO CC=O c1ccccc1 CC#N C1CC1 OCC(=O)N C1CCOC1 CNC CC(C)O C[N+](=O)[O-] FC=C N#CC1CO1"
    return [add_geometry(word) for word in words.split()]


@pytest.fixture(scope="module")
def reference(some: list[Molecule]) -> Reference:
    from perrin.modalities.molecule.metrics.fcd import fcd_smiles

    smiles = fcd_smiles(some)
    return Reference(
        name="a dozen",
        test=some,
        smiles=smiles,
        train_smiles=smiles,
        train_size=len(some),
        train=lambda rows: [some[i] for i in rows],
    )


# statistics


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (400, 90)])
def test_wasserstein_is_scipys(n: int, m: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=n), generator.normal(0.3, 2.0, size=m)
    assert wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-12)
    assert wasserstein(a, a + 0.25) == pytest.approx(0.25)
    assert wasserstein(np.repeat([0, 1], 3), np.array([1, 0])) == 0.0


def test_total_variation_by_hand() -> None:
    assert total_variation({1: 3, 2: 1}, {1: 1, 3: 1}) == pytest.approx(0.5)
    assert total_variation({1: 2}, {1: 7}) == 0.0
    assert total_variation({}, {1: 7}) is None


def test_median_and_its_error() -> None:
    values = np.random.default_rng(0).normal(size=4001)
    value, error = median(values)
    assert value == np.median(values)
    assert error == pytest.approx(np.sqrt(np.pi / 2 / len(values)), rel=0.1)  # of a normal distribution
    assert median([1.0, 2.0, 4.0, 9.0])[0] == 3.0
    assert median([1.0, 2.0, np.inf])[0] == 2.0  # a failure is the largest value
    assert median([1.0, np.inf, np.inf]) == (None, None)
    assert median([]) == (None, None)


# relaxation


def test_gfn2_energies_are_those_published_for_tblite() -> None:
    pytest.importorskip("tblite")
    from ase import Atoms

    from perrin.modalities.molecule.metrics.relax import METHOD, relax_one

    relax_one(water())  # loads tblite on one thread
    from tblite.ase import TBLite

    # tblite's manual, for ASE's H2O, neutral and as an anion, eV
    for charge, energy in ((0, -137.96777594361677), (-1, -131.50015843891816)):
        atoms = Atoms(numbers=water().numbers, positions=water().positions)
        atoms.calc = TBLite(method=METHOD, charge=charge, verbosity=0)
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)


def test_relaxation_of_relaxed_and_stretched_molecules() -> None:
    pytest.importorskip("tblite")
    from perrin.modalities.molecule.metrics.relax import relax_one

    first, end = relax_one(water())
    assert first.failure == ""
    assert 0 < first.drop < 5
    again, _ = relax_one(replace(water(), positions=end))
    assert again.drop == pytest.approx(0, abs=1e-3)
    assert again.rmsd == pytest.approx(0, abs=1e-3)
    stretched = end.copy()
    stretched[1] += 0.3 * (end[1] - end[0]) / np.linalg.norm(end[1] - end[0])
    third, back = relax_one(replace(water(), positions=stretched))
    assert third.drop > 20
    assert not third.broken
    assert np.linalg.norm(back[1] - back[0]) == pytest.approx(np.linalg.norm(end[1] - end[0]), abs=1e-3)
    # GFN2-xTB's water: 0.959 Å (Bannwarth et al. 2019: bond lengths of small molecules within 0.01 Å)
    assert np.linalg.norm(end[1] - end[0]) == pytest.approx(0.959, abs=0.003)


def test_relaxation_respects_charge_spin_and_failures() -> None:
    pytest.importorskip("tblite")
    from perrin.modalities.molecule.metrics.relax import Relaxed, relax_metrics, relax_one

    hydronium = add_geometry("[OH3+]")
    ion, end = relax_one(hydronium)
    neutral, other = relax_one(replace(hydronium, charges=np.zeros_like(hydronium.charges)))
    assert ion.failure == ""
    length = np.linalg.norm(end[1:] - end[0], axis=1)
    assert length == pytest.approx(np.full(3, 0.98), abs=0.03)  # the ion is symmetric; H3O is not bound so
    assert neutral.failure or not np.allclose(end, other, atol=0.01)
    apart = molecule([1, 1], [[0, 0, 0], [0, 0, 0.01]], [(0, 1, 1)])
    assert relax_one(apart)[0].failure == "atoms coincide"
    assert relax_one(water(), RelaxOptions(max_steps=1))[0].failure.startswith("forces above")
    metrics = relax_metrics([Relaxed(drop=1.0, rmsd=0.1), Relaxed(drop=2.0, rmsd=0.2), Relaxed(failure="x")])
    assert metrics["energy_drop"][0] == 2.0
    assert metrics["failed"][0] == pytest.approx(1 / 3)


def test_rmsd_after_alignment() -> None:
    from perrin.modalities.molecule.metrics.relax import aligned_rmsd

    generator = np.random.default_rng(1)
    x = generator.normal(size=(7, 3))
    q, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    q *= np.sign(np.linalg.det(q))
    assert aligned_rmsd(x, x @ q + 5) == pytest.approx(0, abs=1e-12)
    assert aligned_rmsd(x, -x) > 0.1  # a mirror image is another molecule
    assert aligned_rmsd(
        np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 0], [1.2, 0, 0]])
    ) == pytest.approx(0.1)


def test_relaxation_does_not_depend_on_workers(some: list[Molecule]) -> None:
    pytest.importorskip("tblite")
    from perrin.modalities.molecule.metrics.relax import relax

    options = RelaxOptions(fmax=0.1)
    assert (
        relax(some[:4], options, workers=2) == relax(some[:4], options) == relax(some[3::-1], options)[::-1]
    )


# PoseBusters


def test_posebusters_finds_what_is_wrong(some: list[Molecule]) -> None:
    pytest.importorskip("posebusters")
    from perrin.modalities.molecule.metrics.posebusters import bust, bust_metrics

    long = add_geometry("CCO")
    long.positions[2] += 1.0 * (long.positions[2] - long.positions[1])
    clash = add_geometry("CCCCCC")
    clash.positions[5] = clash.positions[0] + [0.9, 0.0, 0.0]
    bent = add_geometry("C=C")
    bent.positions[2] += [0.0, 0.0, 1.5]
    valence = molecule([6, 1, 1, 1, 1, 1], np.eye(6, 3) * 1.1, [(0, i, 1) for i in range(1, 6)])
    radical = molecule([6, 1, 1, 1], add_geometry("C").positions[:4], [(0, i, 1) for i in range(1, 4)])
    pieces = add_geometry("C.C")
    pieces.positions[[0, 2, 3, 4, 5]] += 9.0
    given = [*some, long, clash, valence, radical, pieces]
    names, passed = bust(given)
    column = {name: passed[len(some) :, k].tolist() for k, name in enumerate(names)}
    assert (passed[: len(some)] == 1).all()
    assert column["bond_lengths"][0] == 0
    assert column["internal_steric_clash"][1] == 0
    assert column["sanitization"] == [1, 1, 0, 1, 1]
    assert column["bond_lengths"][2] == -1
    assert column["no_radicals"][3] == 0
    assert column["all_atoms_connected"] == [1, 1, 1, 1, 0]
    metrics = bust_metrics(names, passed)
    assert metrics["all"][0] == pytest.approx(len(some) / len(given))
    assert metrics["bond_lengths"][0] < 1.0
    assert np.array_equal(bust(given * 6, workers=2)[1], np.tile(passed, (6, 1)))


def test_posebusters_and_tblite_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("posebusters")
    pytest.importorskip("tblite")
    from perrin.modalities.molecule.metrics.posebusters import bust
    from perrin.modalities.molecule.metrics.relax import relax_one

    bust([molecule([6, 1, 1, 1, 1, 1], np.eye(6, 3) * 1.1, [(0, i, 1) for i in range(1, 6)])])
    relax_one(water())
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


# FCD


def test_fcd_is_that_of_its_package_and_zero_for_itself(some: list[Molecule], tmp_path: Path) -> None:
    fcd = pytest.importorskip("fcd")
    pytest.importorskip("scipy")
    from perrin.modalities.molecule.metrics.fcd import fcd_smiles, frechet, statistics

    smiles = fcd_smiles([*some, some[0]])
    assert len(smiles) == len(some)  # different ones
    others = [s + "C" for s in smiles if s[-1] == "C"] + ["CCCCCCN", "CCCCCO", "CCCCF"]
    own = statistics(smiles, cache=tmp_path)
    assert frechet(own, own) == pytest.approx(0, abs=1e-6)
    far = statistics(others)
    activations = [
        fcd.get_predictions(fcd.load_ref_model(), s, n_jobs=0, device="cpu") for s in (smiles, others)
    ]
    assert own[0] == pytest.approx(activations[0].mean(0), abs=1e-6)
    expected = fcd.utils.calculate_frechet_distance(
        activations[0].mean(0), np.cov(activations[0].T), activations[1].mean(0), np.cov(activations[1].T)
    )
    assert frechet(own, far) == pytest.approx(expected, rel=1e-3)
    assert frechet(own, far) > 1
    kept = list(tmp_path.glob("*.npz"))
    assert len(kept) == 1
    assert np.array_equal(statistics(smiles[::-1], cache=tmp_path)[1], own[1])
    kept[0].write_bytes(b"damaged")
    assert np.array_equal(statistics(smiles, cache=tmp_path)[0], own[0])
    statistics(others, cache=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_frechet_distance_of_normals() -> None:
    from perrin.modalities.molecule.metrics.fcd import frechet

    generator = np.random.default_rng(0)
    q, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    a, b = np.array([1.0, 2, 0, 4, 5]), np.array([2.0, 0, 3, 4, 1])  # commuting: Σ (√a − √b)²
    left = np.zeros(5), q @ np.diag(a) @ q.T
    right = np.ones(5), q @ np.diag(b) @ q.T
    assert frechet(left, right) == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum())


# geometry


def test_lengths_angles_and_dihedrals_by_hand() -> None:
    peroxide = molecule(
        [1, 8, 8, 1],
        [[0.95, 0, 0], [0, 0, 0], [0, 1.45, 0], [0, 1.45, -0.95]],
        [(0, 1, 1), (1, 2, 1), (2, 3, 1)],
    )
    geometry = Geometry([peroxide, replace(peroxide, positions=peroxide.positions * [1, 1, -1])])
    same = Geometry([peroxide])
    metrics, details = geometry_metrics(same, Geometry([peroxide] * 20))
    assert details["bond_length"]["types"] == {
        "H-O": {"share": pytest.approx(2 / 3), "w1": pytest.approx(0, abs=1e-12)},
        "O-O": {"share": pytest.approx(1 / 3), "w1": pytest.approx(0, abs=1e-12)},
    }
    assert list(details["angle"]["types"]) == ["H-O-O"]
    assert list(details["dihedral"]["types"]) == ["H-O-O-H"]
    (angles,), (dihedrals,) = geometry.angles.values(), geometry.dihedrals.values()
    assert angles == pytest.approx(np.full(4, 90.0))
    assert dihedrals == pytest.approx(np.full(2, 90.0))  # a mirror image has the same
    assert metrics["dihedral"][0] == pytest.approx(0, abs=1e-9)


def test_geometry_is_rdkits(some: list[Molecule]) -> None:
    from rdkit.Chem import rdMolTransforms as transforms

    from perrin.modalities.molecule.chem import to_rdkit

    lengths, angles, dihedrals = [], [], []
    for m in some:
        mol = to_rdkit(m)
        conformer = mol.GetConformer()
        for bond in mol.GetBonds():
            b, c = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            lengths.append(transforms.GetBondLength(conformer, b, c))
            for a in mol.GetAtomWithIdx(b).GetNeighbors():
                for d in mol.GetAtomWithIdx(c).GetNeighbors():
                    path = a.GetIdx(), b, c, d.GetIdx()
                    if len(set(path)) == 4:
                        bends = [transforms.GetAngleDeg(conformer, *path[k : k + 3]) for k in (0, 1)]
                        if all(5 < bend < 175 for bend in bends):
                            dihedrals.append(abs(transforms.GetDihedralDeg(conformer, *path)))
        for atom in mol.GetAtoms():
            near = [n.GetIdx() for n in atom.GetNeighbors()]
            for k, a in enumerate(near):
                for c in near[k + 1 :]:
                    angles.append(transforms.GetAngleDeg(conformer, a, atom.GetIdx(), c))
    geometry = Geometry(some)
    for own, theirs in (
        (geometry.lengths, lengths),
        (geometry.angles, angles),
        (geometry.dihedrals, dihedrals),
    ):
        assert np.sort(np.concatenate(list(own.values()))) == pytest.approx(np.sort(theirs), abs=1e-4)


def test_geometry_distance_is_the_weighted_wasserstein_distance(some: list[Molecule]) -> None:
    stats = pytest.importorskip("scipy.stats")
    real = Geometry(some * 20)
    moved = [replace(m, positions=m.positions * 1.05) for m in some]
    metrics, details = geometry_metrics(Geometry(moved), real)
    mean = np.mean(np.concatenate(list(real.lengths.values())))
    assert metrics["bond_length"][0] == pytest.approx(0.05 * mean)  # every length grew by 5 %
    assert metrics["bond_length_by_order"][0] == pytest.approx(0.05 * mean)
    assert metrics["angle"][0] == pytest.approx(0, abs=1e-6)
    assert details["bond_length"]["covered"] == pytest.approx(1)
    before = np.concatenate([v for k, v in real.lengths.items() if k & 3 == 2])
    shrunk = Geometry([replace(m, positions=m.positions * 0.9) for m in some])
    double = np.concatenate([v for k, v in shrunk.lengths.items() if k & 3 == 2])
    assert stats.wasserstein_distance(double, before) == pytest.approx(wasserstein(double, before))
    shuffled = some[5:] + some[:5]
    assert geometry_metrics(Geometry(shuffled), real)[0] == geometry_metrics(Geometry(some), real)[0]


def test_composition_by_hand() -> None:
    methane, ring = add_geometry("C"), add_geometry("C1CC1")
    metrics = composition_metrics(Composition([methane, ring]), Composition([ring]))
    assert metrics["elements"][0] == pytest.approx(abs(4 / 14 - 3 / 9))
    assert metrics["atoms_per_molecule"][0] == pytest.approx(2.0)
    assert metrics["rings_per_molecule"][0] == pytest.approx(0.5)
    assert metrics["ring_sizes"][0] == metrics["charges"][0] == 0.0
    ethene = composition_metrics(Composition([add_geometry("C=C")]), Composition([methane]))
    assert ethene["bond_orders"][0] == pytest.approx(1 / 5)
    assert ethene["ring_sizes"][0] is None


# all together


def test_measures_in_one_result(some: list[Molecule], reference: Reference) -> None:
    for package in ("tblite", "posebusters", "fcd"):
        pytest.importorskip(package)
    options = Measures(
        relax=RelaxOptions(count=2, fmax=0.1), posebusters=0, fcd=True, geometry=True, floor=True
    )
    result = evaluate([some, some[::-1]], "bonds", measures=options, data=reference, label="ours")
    assert list(result["measures"]) == ["relax", "posebusters", "fcd", "geometry", "composition"]
    found = {name: content["metrics"] for name, content in result["measures"].items()}
    assert found["fcd"]["fcd"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["posebusters"]["all"] == {"value": 1.0, "error": 0.0, "unit": "fraction"}
    assert found["geometry"]["bond_length"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["relax"]["failed"]["value"] == 0.0
    assert found["relax"]["energy_drop"]["error"] is not None  # over the groups
    assert result["measures"]["relax"]["settings"]["fmax"] == 0.1
    assert result["measures"]["geometry"]["floor"]["angle"]["value"] == pytest.approx(0, abs=1e-9)
    json.dumps(result)
    text = format_table(result)
    assert "kcal/mol" in text
    assert "real a dozen" in text
    again = measure([some, some[::-1]], options, reference, workers=2)
    assert json.dumps(again) == json.dumps(result["measures"])


def test_protocols_do_not_depend_on_workers(some: list[Molecule]) -> None:
    broken = molecule([6, 1], [[0, 0, 0], [1, 0, 0]], [(0, 1, 3)])
    many = [*some, broken] * 320
    assert evaluate(many, workers=2) == evaluate(many)
    bare = [*many, replace(broken, bonds=None)]
    with pytest.raises(PerrinError, match=f"none in molecule {len(bare)} "):
        evaluate(bare, "bonds", workers=2)


def test_relaxation_draws_sound_molecules_by_its_seed(some: list[Molecule]) -> None:
    from perrin.modalities.molecule.metrics.measures import _eligible

    broken = molecule([6, 1], [[0, 0, 0], [1, 0, 0]], [(0, 1, 3)])
    given = [m for pair in zip(some, [broken] * len(some)) for m in pair]
    first = _eligible(given, RelaxOptions(count=5, seed=3))
    assert first == _eligible(given, RelaxOptions(count=5, seed=3))
    assert len(first[0]) == 5
    assert first[1] >= 5
    assert all(m is not broken for m in first[0])
    assert [id(m) for m in first[0]] != [id(m) for m in _eligible(given, RelaxOptions(count=5, seed=4))[0]]
    assert len(_eligible(given, RelaxOptions(count=99))[0]) == len(some)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fcd": True}, "reference data"),
        ({"posebusters": 0}, "bonds for PoseBusters"),
        ({"geometry": True}, "reference data"),
        ({"relax": {"count": 0}}, "at least 1 molecule"),
        ({"relax": {"fmax": 0.0}}, "force above 0"),
        ({"posebusters": -1}, "number of molecules"),
    ],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    bare = replace(water(), bonds=None)
    with pytest.raises(PerrinError, match=message):
        measure([[bare]], _measures(**options))


def _measures(relax: dict[str, float] | None = None, **others: object) -> Measures:
    return Measures(relax=RelaxOptions(**relax) if relax else None, **others)  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PerrinError, match=r"tblite.*pip install 'perrin\[evaluate\]'"):
        measure([[water()]], Measures(relax=RelaxOptions()))
    with pytest.raises(PerrinError, match="posebusters"):
        measure([[water()]], Measures(posebusters=0))
