"""Ranking: values against the literature and other implementations, filters without evaluation, sorts that keep order."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdDepictor, rdFingerprintGenerator
from rdkit.Chem import rdDistGeom as geometry
from rdkit.SimDivFilters import rdSimDivPickers

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities import Modality
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.conformers import Query
from perrin.modalities.molecule.files import read_molecules, write_sdf
from perrin.modalities.molecule.ranking import (
    Key,
    RankOptions,
    descriptors,
    parse_keys,
    parse_where,
    pick_diverse,
    rank,
    read_known,
)
from perrin.modalities.molecule.ranking.columns import describe
from perrin.modalities.molecule.ranking.identity import duplicates, keys_of
from perrin.modalities.molecule.ranking.wishes import order
from perrin.modalities.molecule.structure import Molecule

needs_tblite = pytest.mark.skipif(importlib.util.find_spec("tblite") is None, reason="needs tblite")

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMILES = ["CCO", "CCN", ASPIRIN, "c1ccccc1O", "CC(C)C", "OCC", "C1CCCCC1", "N#CC=O"]


def mol(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    return [
        replace(add_geometry(s), name=s, properties={"index": i, "rank": 99}) for i, s in enumerate(SMILES)
    ]


@pytest.fixture
def sdf(tmp_path: Path, molecules: list[Molecule]) -> Path:
    write_sdf(tmp_path / "in.sdf", molecules)
    return tmp_path / "in.sdf"


# values


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        # PubChem (CID 2244): 180.16 g/mol, 63.6 Å², 1 donor, 3 rotatable bonds; QED 0.55 is the usual value of RDKit's
        # implementation, Crippen logP 1.31; SA 1.58
        (ASPIRIN, {"MW": 180.16, "TPSA": 63.6, "HBD": 1, "QED": 0.55, "logP": 1.31, "SA": 1.58, "pains": 0}),
        # PubChem (CID 2519), caffeine: 194.19 g/mol, 58.4 Å² with the aromatic nitrogens as RDKit sees them 61.8
        ("Cn1cnc2c1c(=O)n(C)c(=O)n2C", {"MW": 194.19, "TPSA": 61.8, "HBD": 0, "rings": 2, "lipinski": 0}),
        # cyclosporin A, 1202.6 g/mol: breaks the rule by weight and acceptors (23 N and O), not by donors (5)
        (
            "CCC1C(=O)N(CC(=O)N(C(C(=O)NC(C(=O)N(C(C(=O)NC(C(=O)NC(C(=O)N(C(C(=O)N(C(C(=O)N(C(C(=O)N(C(C(=O)N1)"
            "C(C(C)CC=CC)O)C)C(C)C)C)CC(C)C)C)CC(C)C)C)C)C)CC(C)C)C)C(C)C)CC(C)C)C)C",
            {"MW": 1202.6, "HBD": 5, "fragments": 1},
        ),
        ("[NH3+]CC(=O)[O-]", {"MW": 75.07, "charge": 0, "heavy": 5}),
        ("[Na+].[Cl-]", {"fragments": 2, "charge": 0}),
    ],
)
def test_values_of_the_literature(smiles: str, expected: dict[str, float]) -> None:
    found = descriptors(mol(smiles))
    for name, value in expected.items():
        digits = len(str(value).partition(".")[2])
        assert found[name] == pytest.approx(value, abs=0.6 * 10**-digits), name


def test_lipinski_counts_as_lipinski_did() -> None:
    found = descriptors(mol("CCCCCCCCCCCCCCCCCCCC(=O)OCC(O)COC(=O)CCCCCCCCCCCCCCCCCCC"))  # a diglyceride
    assert found["MW"] > 500
    assert found["logP"] > 5
    assert found["lipinski"] == 2


@pytest.mark.parametrize(
    ("smiles", "alert"),
    [  # classes of Baell and Holloway's tables
        ("Oc1ccccc1O", "catechol_A(92)"),
        ("O=C1C=CC(=O)C=C1", "quinone_A(370)"),
        ("O=C1NC(=S)SC1=Cc1ccccc1", "ene_rhod_A(235)"),
    ],
)
def test_a_known_pains(smiles: str, alert: str) -> None:
    found = descriptors(mol(smiles))
    assert (found["pains"], found["pains_alerts"]) == (1, alert)


def test_explicit_hydrogens_and_the_geometry_do_not_matter() -> None:
    molecule = add_geometry(ASPIRIN)
    found = describe(molecule)
    assert {k: found[k] for k in descriptors(mol(ASPIRIN))} == descriptors(mol(ASPIRIN))
    assert found["smiles"] == Chem.CanonSmiles(ASPIRIN)


def test_an_invalid_molecule_has_no_values() -> None:
    methane = add_geometry("C")
    assert methane.bonds is not None
    assert describe(replace(methane, bonds=np.add(methane.bonds, [0, 0, 1]))) == {"valid": 0}


@needs_tblite
def test_xtb_of_water() -> None:
    """The program xtb's own output for the minimum of water: −5.070544443 Ha, 2.217 D, HOMO −12.1467 and LUMO 2.2442 eV."""
    from perrin.modalities.molecule.ranking.xtb import BOHR, single_point

    z = np.array(
        [[0, 0, -0.71677520925432], [1.45926122846511, 0, 0.35838760458144], [0, 0, 0.35838760458144]]
    )
    z[2, 0] = -z[1, 0]
    water = Molecule(
        numbers=np.array([8, 1, 1]),
        positions=BOHR * z,
        bonds=np.array([[0, 1, 1], [0, 2, 1]]),
        charges=np.zeros(3, dtype=np.int64),
    )
    found = single_point(water)
    assert found["xtb_energy"] == pytest.approx(-5.070544443464, abs=2e-6)
    assert found["xtb_dipole"] == pytest.approx(2.217, abs=2e-3)
    assert found["xtb_homo"] == pytest.approx(-12.1467, abs=2e-3)
    assert found["xtb_lumo"] == pytest.approx(2.2442, abs=2e-3)
    assert found["xtb_gap"] == pytest.approx(14.390891673350, abs=2e-3)
    # an ion has no dipole, a radical no gap, atoms on top of each other nothing
    ion = replace(water, numbers=np.array([7, 1, 1]), charges=np.array([-1, 0, 0]))
    assert set(single_point(ion)) == {"xtb_energy", "xtb_homo", "xtb_lumo", "xtb_gap"}
    assert set(single_point(replace(water, numbers=np.array([7, 1, 1])))) == {"xtb_energy", "xtb_dipole"}
    assert single_point(replace(water, positions=np.zeros((3, 3)))) == {}


# identity


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("OCC", "CCO", True),
        ("CN=[N+]=[N-]", "C[N-][N+]#N", True),  # resonance forms with different SMILES
        ("C[C@H](O)F", "C[C@@H](O)F", True),  # stereoisomers
        ("F/C=C/F", "F/C=C\\F", True),
        ("Oc1ccccn1", "O=c1cccc[nH]1", False),  # tautomers, which the standard InChI merges
        ("CC(=O)C", "CC(O)=C", False),
        ("CCO", "COC", False),
    ],
)
def test_what_counts_as_the_same(one: str, other: str, same: bool) -> None:
    pair = [keys_of(Chem.AddHs(mol(s))) for s in (one, other)]
    assert duplicates(pair) == [None, 0 if same else None]


def test_the_standard_inchi_would_merge_tautomers() -> None:
    assert len({Chem.MolToInchiKey(mol(s)) for s in ("Oc1ccccn1", "O=c1cccc[nH]1")}) == 1


def test_duplicates_name_the_first() -> None:
    keys = [
        ("a", "A"),
        ("b", None),
        ("a", "B"),
        (None, "B"),
        (None, None),
        (None, None),
        ("b", "C"),
        ("c", "C"),
    ]
    assert duplicates(keys) == [None, None, 0, 0, None, None, 1, 1]


def test_known_molecules(tmp_path: Path, molecules: list[Molecule], sdf: Path) -> None:
    (tmp_path / "known.smi").write_text("C[N-][N+]#N azide\nc1ccccc1O\nnonsense\nCCN\n")
    known = read_known(str(tmp_path / "known.smi"))
    assert (known.count, known.skipped, known.name) == (3, 1, "known.smi")
    assert keys_of(mol("CN=[N+]=[N-]")) in known
    assert keys_of(mol("CCO")) not in known
    assert (None, None) not in known
    (tmp_path / "known.csv").write_text("id,smiles\n1,OCC\n")
    ranked = rank(
        molecules, RankOptions(by="index", known="drop"), known=read_known(str(tmp_path / "known.csv"))
    )
    assert sorted(m.name for m in ranked.molecules) == sorted(set(SMILES) - {"CCO", "OCC"})
    # a file knows itself, and 2D records are fine
    assert all(keys_of(mol(s)) in read_known(str(sdf)) for s in SMILES)
    (tmp_path / "flat.sdf").write_text(Chem.MolToMolBlock(mol("CCO")) + "$$$$\n")
    assert read_known(str(tmp_path / "flat.sdf")).count == 1


# wishes


@pytest.mark.parametrize(
    ("text", "value", "passes"),
    [
        ("QED>0.5", {"QED": 0.51}, True),
        ("QED>0.5", {"QED": 0.5}, False),
        ("qed >= .5", {"QED": 0.5}, True),
        ("MW<0.15 kDa", {"MW": 149.9}, True),
        ("mw <= 150g/mol", {"MW": 150.1}, False),
        ("logP=-1..2", {"logP": -1.0}, True),
        ("logP=-1..2", {"logP": 2.1}, False),
        ("xtb_gap>0.3 Ha", {"xtb_gap": 8.17}, True),  # 8.1634 eV
        ("xtb_gap>0.3 Ha", {"xtb_gap": 8.16}, False),
        ("xtb_gap>8000 meV", {"xtb_gap": 8.01}, True),
        ("xtb_dipole<1 e*A", {"xtb_dipole": 4.80}, True),
        ("xtb_dipole<1 e*A", {"xtb_dipole": 4.81}, False),
        ("xtb_strain<=10 kJ/mol", {"xtb_strain": 2.39}, True),
        ("xtb_strain<=10 kJ/mol", {"xtb_strain": 2.40}, False),
        ("TPSA<0.6 nm^2", {"TPSA": 59.0}, True),
        ("known=no", {"known": 0}, True),
        ("known != no", {"known": 0}, False),
        ("pains=0", {"pains": 1}, False),
        ("index<3", {"index": 2}, True),
        ("QED>0.5", {}, False),
        ("QED<0.5", {"QED": float("nan")}, False),
        ("index<3", {"index": "2"}, False),
    ],
)
def test_filters(text: str, value: dict[str, Any], passes: bool) -> None:
    assert parse_where(text, {"index"})(value) is passes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("QED", "expected a filter such as"),
        ("QED>", "expected a filter such as"),
        ("__import__('os').system('true')>0", "expected a property|expected a filter"),
        ("QED>0.5 and MW<3", "expected no unit|expected a filter"),
        ("QED>1e", "expected no unit|expected a filter"),
        ("foo>1", "given 'foo'"),
        ("qad>1", "did you mean QED"),
        ("smiles>1", "given 'smiles'"),
        ("QED>0.5 eV", "expected no unit for QED"),
        ("MW<150 eV", r"expected a unit of MW \(Da"),
        ("logP=2..1", "lower end first"),
        ("logP<1..2", "lower end first"),
        ("QED=yes", "expected a number after QED"),
        ("known>yes", "expected a number after known"),
    ],
)
def test_filters_that_are_none(text: str, words: str) -> None:
    with pytest.raises(PerrinError, match=words) as error:
        parse_where(text)
    assert "\n" not in str(error.value)


def test_keys() -> None:
    assert parse_keys("qed, -sa") == (Key(name="QED", smallest=False), Key(name="SA", smallest=True))
    for text in ("", "qed,", "qed,-qed", "-", "smiles"):
        with pytest.raises(PerrinError, match="expected"):
            parse_keys(text)


def test_the_sort_is_stable_and_puts_the_missing_last() -> None:
    rng = np.random.default_rng(0)
    rows = [{"QED": float(q), "SA": float(s)} for q, s in rng.integers(0, 4, (200, 2))]
    rows[7] = {}
    rows[9] = {"QED": float("nan"), "SA": 1.0}
    for text, signs in (("qed,-sa", (-1, 1)), ("-qed,sa", (1, -1)), ("sa", (0, -1))):
        found = order(rows, parse_keys(text))
        whole = [i for i in range(200) if i not in (7, 9)]
        first, second = signs
        expected = sorted(whole, key=lambda i: (first * rows[i]["QED"], second * rows[i]["SA"], i))
        assert [i for i in found if i not in (7, 9)] == expected
        if first:
            assert set(found[-2:]) == {7, 9}


# diversity


def test_maxmin_is_what_the_definition_says() -> None:
    texts = [*SMILES, "CCCl", "c1ccncc1", "CC(=O)N", "OC1CCCCC1", "CCCCCC", "C1CO1", "FC(F)F", "CS(=O)C"]
    mols = [mol(s) for s in texts]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(m) for m in mols]
    distance = np.array([[1 - DataStructs.TanimotoSimilarity(a, b) for b in prints] for a in prints])
    for count in (1, 2, 5, 9, 16, 30):
        expected = [0]
        while len(expected) < min(count, len(mols)):
            rest = [i for i in range(len(mols)) if i not in expected]
            expected.append(max(rest, key=lambda i: (min(distance[i, j] for j in expected), -i)))
        assert pick_diverse(mols, count) == expected
    assert pick_diverse([], 3) == []

    # RDKit's picker makes a set that is spread as far
    def spread(picks: list[int]) -> float:
        return min(distance[i, j] for i, j in itertools.combinations(picks, 2))

    theirs = list(rdSimDivPickers.MaxMinPicker().LazyBitVectorPick(prints, len(prints), 6, [0]))
    assert spread(pick_diverse(mols, 6)) == pytest.approx(spread(theirs))


# the whole


def test_rank_marks_sorts_and_numbers(molecules: list[Molecule]) -> None:
    ranked = rank(molecules, RankOptions(by="-mw"))
    values = [m.properties for m in ranked.molecules]
    assert [v["rank"] for v in values] == list(range(1, 9))
    assert [v["MW"] for v in values] == sorted(v["MW"] for v in values)
    assert {m.name: m.properties.get("duplicate_of") for m in ranked.molecules}["OCC"] == 1
    assert [m.name for m in ranked.molecules if m.properties["duplicate"]] == ["OCC"]
    assert ranked.counts == {"read": 8, "invalid": 0, "duplicates": 1, "kept": 8}
    names = [m.name for m in ranked.molecules]
    assert names.index("CCO") < names.index("OCC")  # equals stay in their order


def test_rank_filters_drops_and_picks(molecules: list[Molecule]) -> None:
    options = RankOptions(by="qed", where=("MW<0.1 kDa", "rings=0..1"), duplicates="drop", diverse=3, top=2)
    ranked = rank(molecules, options)
    assert ranked.counts["MW<0.1 kDa"] == 6
    assert ranked.counts["kept"] == 2
    assert all(m.properties["MW"] < 100 for m in ranked.molecules)
    assert ranked.molecules[0].properties["pick"] == 1
    assert "pick" in ranked.columns


def test_rank_does_not_depend_on_the_workers(molecules: list[Molecule]) -> None:
    many = molecules * 30
    one, two = (rank(many, RankOptions(workers=n)) for n in (1, 2))
    assert [m.properties for m in one.molecules] == [m.properties for m in two.molecules]
    assert one.counts["duplicates"] == 233


@needs_tblite
def test_xtb_is_computed_where_it_is_named(molecules: list[Molecule]) -> None:
    ranked = rank(molecules[:2], RankOptions(by="-xtb_gap", where=("xtb_dipole>0.5 D",)))
    assert ranked.counts["kept"] == 2
    assert "xtb_energy" in ranked.molecules[0].properties
    relaxed = rank(molecules[:1], RankOptions(by="-xtb_strain"))
    assert (
        0 < relaxed.molecules[0].properties["xtb_strain"] < 10
    )  # MMFF94's ethanol is near, and not at, the minimum


def test_hydrogens_that_a_file_leaves_out_are_added(
    tmp_path: Path, molecules: list[Molecule], capsys: pytest.CaptureFixture[str]
) -> None:
    """An SDF as RDKit's readers and writers leave it ranks as the molecules that it is of."""
    write_sdf(tmp_path / "h.sdf", [replace(m, properties={}) for m in molecules])
    with Chem.SDWriter(str(tmp_path / "noh.sdf")) as writer:
        for mol in Chem.SDMolSupplier(str(tmp_path / "h.sdf")):
            writer.write(mol)
    bare = read_molecules(tmp_path / "noh.sdf")
    assert not any((m.numbers == 1).any() for m in bare)
    whole, found = (rank(ms, RankOptions(by="qed,-sa")).molecules for ms in (molecules, bare))
    for m, other in zip(whole, found, strict=True):
        assert {k: v for k, v in m.properties.items() if k != "index"} == other.properties
        assert sorted(m.numbers.tolist()) == sorted(other.numbers.tolist())
    capsys.readouterr()
    out = tmp_path / "r.sdf"
    assert main(["rank", str(tmp_path / "noh.sdf"), "-o", str(out), "--workers", "1"]) == 0
    count = sum(int((m.numbers == 1).sum()) for m in molecules)
    assert f"added {count} hydrogens that" in capsys.readouterr().err
    assert sum(int((m.numbers == 1).sum()) for m in read_molecules(out)) == count
    for verb in (["view", "-o", str(tmp_path / "a.html")], ["evaluate"]):
        assert main([verb[0], str(tmp_path / "noh.sdf"), *verb[1:]]) == 0
        assert "warning: 8 of 8 molecules" in capsys.readouterr().err
    # a generated molecule that lacks one is a radical, and stays one
    hydrogen = int(np.flatnonzero(molecules[0].numbers == 1)[0])
    rest = [i for i in range(len(molecules[0])) if i != hydrogen]
    place = {i: k for k, i in enumerate(rest)}
    assert molecules[0].bonds is not None
    radical = replace(
        molecules[0],
        numbers=molecules[0].numbers[rest],
        positions=molecules[0].positions[rest],
        charges=molecules[0].charges[rest],
        bonds=np.array(
            [[place[i], place[j], o] for i, j, o in molecules[0].bonds.tolist() if hydrogen not in (i, j)]
        ),
    )
    ranked = rank([radical])
    assert ranked.added == (0, 0)
    assert ranked.molecules[0].properties["MW"] == pytest.approx(46.069 - 1.008, abs=1e-3)


def without_hydrogens_on_carbon(mol: Chem.Mol) -> Chem.Mol:
    """As docking programs write molecules."""
    out = Chem.RWMol(mol)
    Chem.Kekulize(out, clearAromaticFlags=True)
    for atom in list(mol.GetAtoms())[::-1]:
        if atom.GetAtomicNum() == 1 and atom.GetNeighbors()[0].GetAtomicNum() == 6:
            out.RemoveAtom(atom.GetIdx())
    return out.GetMol()


def test_polar_hydrogens_alone_leave_the_others_out(
    tmp_path: Path, molecules: list[Molecule], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with hydrogens on N and O only is of the same molecules, and is predicted in one go."""
    write_sdf(tmp_path / "h.sdf", [replace(m, properties={}) for m in molecules])
    with Chem.SDWriter(str(tmp_path / "polar.sdf")) as writer:
        for mol in Chem.SDMolSupplier(str(tmp_path / "h.sdf"), removeHs=False):
            writer.write(without_hydrogens_on_carbon(mol))
    polar = read_molecules(tmp_path / "polar.sdf")
    assert sum((m.numbers == 1).any() for m in polar) == 5  # aldehyde, cyclohexane and isobutane have none
    whole, found = (rank(ms).molecules for ms in (molecules, polar))
    for m, other in zip(whole, found, strict=True):
        assert {k: v for k, v in m.properties.items() if k != "index"} == other.properties
        assert sorted(m.numbers.tolist()) == sorted(other.numbers.tolist())
    assert main(["view", str(tmp_path / "polar.sdf"), "-o", str(tmp_path / "a.html")]) == 0
    assert "warning: 8 of 8 molecules" in capsys.readouterr().err
    out = tmp_path / "r.sdf"
    assert main(["rank", str(tmp_path / "polar.sdf"), "--predict", "-o", str(out), "--workers", "1"]) == 0
    assert main(["rank", str(out), "--predict", "-o", str(tmp_path / "twice.sdf"), "--workers", "1"]) == 0
    once, twice = read_molecules(out), read_molecules(tmp_path / "twice.sdf")
    pairs = [
        (a.properties["predicted_gap_Ha"], b.properties["predicted_gap_Ha"])
        for a, b in zip(once, twice, strict=True)
        if len(a) > 8 and len(a) < 22
    ]
    assert len(pairs) >= 6
    for gap, again in pairs:  # coordinates of the file have four decimals
        assert gap == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize(
    ("smiles", "weight"),
    [
        ("C[CH2]", 29.062),  # ethyl
        ("OC[CH]C", 59.088),
        ("CC(C)(C)N([O])C(C)(C)C", 144.238),  # di-tert-butyl nitroxide
    ],
)
@pytest.mark.parametrize("written", ["none", "polar"])
def test_what_a_file_calls_a_radical_stays_one(
    smiles: str, weight: float, written: str, tmp_path: Path
) -> None:
    """`M  RAD` or a valence in the atom block (weights are the radicals' own)."""
    full = Chem.AddHs(mol(smiles))
    geometry.EmbedMolecule(full, randomSeed=1)
    short = without_hydrogens_on_carbon(full) if written == "polar" else Chem.RemoveHs(full)
    block = Chem.MolToMolBlock(short)
    radicals = [line for line in block.splitlines() if line.startswith("M  RAD")]
    assert len(radicals) == 1
    (tmp_path / "a.sdf").write_text(block + "$$$$\n")
    (found,) = rank(read_molecules(tmp_path / "a.sdf")).molecules
    assert found.properties["MW"] == pytest.approx(weight, abs=0.002)
    write_sdf(tmp_path / "b.sdf", [found])
    (again,) = rank(read_molecules(tmp_path / "b.sdf")).molecules
    assert again.properties["MW"] == pytest.approx(weight, abs=0.002)


# broken records, isotopes


def test_broken_records_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], molecules: list[Molecule]
) -> None:
    """As by `perrin conformers`: the others are ranked, under their numbers in the file."""
    write_sdf(tmp_path / "b.sdf", [replace(m, properties={}) for m in molecules])
    blocks = (tmp_path / "b.sdf").read_text().split("$$$$\n")
    (tmp_path / "a.sdf").write_text(
        "$$$$\n".join(["broken\n\n\ngarbage\n", *blocks[:7], "cut\n\n\n  9\n", ""])
    )
    out = tmp_path / "r.sdf"
    start = ["rank", str(tmp_path / "a.sdf"), "--workers", "1", "-o", str(out)]
    assert main([*start, "--predict"]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: left out") == 2
    assert "record 1 of" in said
    assert "'broken': Cannot convert 'gar'" in said
    assert "record 9 of" in said
    found = {m.name: m.properties for m in read_molecules(out)}
    assert len(found) == 7
    assert found["OCC"]["duplicate_of"] == 2  # CCO, the second record
    assert json.loads((tmp_path / "r.sdf.run.json").read_text())["result"]["left_out"] == [1, 9]
    report = tmp_path / "a.json"
    assert main(["evaluate", str(tmp_path / "a.sdf"), "--json", str(report)]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: left out") == 2
    assert "all below is of the 7 molecules that could be read" in said
    result = json.loads(report.read_text())
    assert result["left_out"] == [1, 9]
    assert result["n"] == 7
    assert main(["evaluate", str(tmp_path / "a.sdf"), "--groups", "2"]) == 2  # they would be other groups
    assert main(["view", str(tmp_path / "a.sdf"), "-o", str(tmp_path / "a.html")]) == 0
    (tmp_path / "a.sdf").write_text("broken\n\n\ngarbage\n$$$$\n" * 2)
    out.unlink()
    capsys.readouterr()
    assert main(start) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_isotopes_are_kept_and_weighed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Methanol-d3 weighs 12.011 + 3 · 2.0141 + 15.999 + 1.008 = 35.06 Da; all its other values are methanol's."""
    (tmp_path / "a.smi").write_text("CO light\n[2H]C([2H])([2H])O heavy\n[13CH4] carbon\n")
    (tmp_path / "known.smi").write_text("[2H]C([2H])([2H])[18O][2H]\n")
    out = tmp_path / "r.sdf"
    words = ["rank", str(tmp_path / "a.smi"), "--workers", "1", "--reference", str(tmp_path / "known.smi")]
    assert main([*words, "-o", str(out)]) == 0
    assert "have isotopes" not in capsys.readouterr().err
    found = {m.name: m for m in read_molecules(out)}
    light, heavy, carbon = (found[name].properties for name in ("light", "heavy", "carbon"))
    assert sorted(mass for _, mass in found["heavy"].isotopes) == [2, 2, 2]
    assert heavy["smiles"] == "[2H]C([2H])([2H])O"
    assert heavy["MW"] == pytest.approx(35.06, abs=0.005)
    assert carbon["MW"] == pytest.approx(17.035, abs=0.005)
    assert {k: v for k, v in light.items() if k in ("QED", "SA", "logP", "TPSA", "HBD", "heavy")} == {
        k: v for k, v in heavy.items() if k in ("QED", "SA", "logP", "TPSA", "HBD", "heavy")
    }
    assert heavy["duplicate_of"] == 1
    assert (light["known"], heavy["known"], carbon["known"]) == (1, 1, 0)
    assert main(["evaluate", str(out)]) == 0
    assert "2 of 3 molecules of" in capsys.readouterr().err


def test_atoms_in_one_place_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], molecules: list[Molecule]
) -> None:
    ethanol = molecules[0]
    near = ethanol.positions.copy()
    near[1] = near[0] + [0.09, 0, 0]
    write_sdf(tmp_path / "a.sdf", [ethanol, replace(ethanol, positions=near), ethanol])
    for words in (
        ["rank", "-o", str(tmp_path / "r.sdf")],
        ["evaluate"],
        ["view", "-o", str(tmp_path / "a.html")],
    ):
        assert main([words[0], str(tmp_path / "a.sdf"), *words[1:]]) == 0
        said = capsys.readouterr().err
        assert said.count("note:") == 1
        assert "1 of 3 molecules of" in said
        assert "closer than 0.1 Å, which no molecule has (record 2)" in said
    (tmp_path / "flat.sdf").write_text(drawing("CCO"))
    assert main(["rank", str(tmp_path / "flat.sdf")]) == 0
    assert "closer" not in capsys.readouterr().err


# flat drawings


DRAWN = ["C[C@H](O)/C=C/F", "C[C@@H](N)C(=O)O", "F/C=C\\C(C)C", "C[C@]1(O)CC[C@@H](Cl)C1", "FC=CC", ASPIRIN]


def drawing(smiles: str, hydrogens: bool = False) -> str:
    molecule = Chem.AddHs(mol(smiles)) if hydrogens else mol(smiles)
    rdDepictor.Compute2DCoords(molecule)
    return Chem.MolToMolBlock(molecule) + "$$$$\n"


@pytest.mark.parametrize("hydrogens", [False, True])
def test_flat_drawings_rank_by_what_needs_no_geometry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hydrogens: bool
) -> None:
    """Descriptors are those of the SMILES, and wedges survive, here and in the file that is written."""
    (tmp_path / "a.sdf").write_text("".join(drawing(s, hydrogens) for s in DRAWN))
    (tmp_path / "known.smi").write_text(f"{ASPIRIN}\n")
    out = tmp_path / "r.sdf"
    words = ["--by", "index", "--diverse", "6", "--reference", str(tmp_path / "known.smi"), "--workers", "1"]
    text = (tmp_path / "a.sdf").read_text().split("$$$$\n")[:-1]
    (tmp_path / "a.sdf").write_text(
        "".join(f"{block}> <index>\n{-i}\n\n$$$$\n" for i, block in enumerate(text))
    )
    assert main(["rank", str(tmp_path / "a.sdf"), *words, "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("flat coordinates") == 1
    assert "6 of 6 molecules" in said
    assert "perrin conformers" in said
    found = read_molecules(out, flat=True)
    for smiles, m in zip(DRAWN, found, strict=True):
        assert m.flat
        assert Chem.CanonSmiles(m.properties["smiles"]) == Chem.CanonSmiles(smiles)
        assert m.properties["QED"] == pytest.approx(descriptors(mol(smiles))["QED"])
        assert m.properties["known"] == (smiles == ASPIRIN)
        assert Chem.MolToSmiles(Query.from_molecule(m).template) == Chem.MolToSmiles(Chem.AddHs(mol(smiles)))
    for smiles, theirs in zip(DRAWN, Chem.SDMolSupplier(str(out)), strict=True):
        assert Chem.MolToSmiles(theirs) == Chem.CanonSmiles(smiles)
    again = [m.properties["smiles"] for m in rank(found, RankOptions(by="index")).molecules]
    assert again == [m.properties["smiles"] for m in found]


def test_what_needs_a_geometry_is_refused_where_no_molecule_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], molecules: list[Molecule]
) -> None:
    (tmp_path / "a.sdf").write_text(drawing("CCCCO") + drawing("c1ccccc1O"))
    out = tmp_path / "r.sdf"
    start = ["rank", str(tmp_path / "a.sdf"), "--workers", "1", "-o", str(out)]
    for words, what in (
        (["--by", "xtb_gap"], "xtb_gap"),
        (["--where", "xtb_strain<3"], "xtb_strain"),
        (["--xtb"], "GFN2-xTB"),
        (["--predict"], "predictions"),
        (["--by", "predicted_mu"], "predicted_mu_D"),
    ):
        assert main([*start, *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"expected 3D coordinates for {what}, given flat ones in every molecule" in said
        assert not out.exists()
    write_sdf(tmp_path / "b.sdf", [replace(m, properties={}) for m in molecules])
    with open(tmp_path / "a.sdf", "a") as file:
        file.write((tmp_path / "b.sdf").read_text())
    assert main([*start, "--predict"]) == 0  # phenol is in both, and is a duplicate
    assert "2 of 10 molecules" in capsys.readouterr().err
    found = {
        m.flat: m.properties for m in read_molecules(out, flat=True) if m.properties["smiles"] == "Oc1ccccc1"
    }
    assert "predicted_mu_D" in found[False]
    assert "predicted_mu_D" not in found[True]
    assert found[False]["duplicate"] + found[True]["duplicate"] == 1


def test_files(tmp_path: Path, sdf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(sdf), "--by", "-sa", "--workers", "1"]) == 0
    assert "8 of 8 molecules" in capsys.readouterr().out
    found = read_molecules(tmp_path / "in.ranked.sdf")
    assert [m.properties["rank"] for m in found] == list(range(1, 9))
    assert [m.properties["SA"] for m in found] == sorted(m.properties["SA"] for m in found)
    record = json.loads((tmp_path / "in.ranked.sdf.run.json").read_text())
    assert record["argv"][0] == "rank"
    assert record["units"]["MW"] == "Da"
    assert record["result"]["kept"] == 8
    assert main(["rank", str(sdf), "-o", str(tmp_path / "a.csv"), "--top", "3", "--workers", "1"]) == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [r["rank"] for r in rows] == ["1", "2", "3"]
    assert {r["smiles"] for r in rows} <= {Chem.CanonSmiles(s) for s in SMILES}
    assert set(read_molecules(tmp_path / "a.csv")[0].numbers.tolist()) <= {
        1,
        6,
        7,
        8,
    }  # a table can be read again


def test_parquet(tmp_path: Path, sdf: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    assert main(["rank", str(sdf), "-o", str(tmp_path / "a.parquet"), "--workers", "1"]) == 0
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 8
    assert table.column("rank").to_pylist() == list(range(1, 9))
    assert str(table.schema.field("duplicate").type) == "bool"
    assert table.schema.field("MW").metadata[b"unit"] == b"Da"
    assert table.column("duplicate_of").to_pylist().count(None) == 7


def test_parquet_without_pyarrow(
    tmp_path: Path, sdf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else here(name, *a)
    )
    assert main(["rank", str(sdf), "-o", str(tmp_path / "a.parquet")]) == 2
    assert "pip install 'perrin[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--by", "foo"], "given 'foo'"),
        (["--where", "QED>2"], "given none of 8 (0 after QED>2): loosen a filter"),
        (["--top", "0"], "expected --top of at least 1"),
        (["-o", "x.txt"], "suffixes .sdf, .csv, .parquet"),
        (["-o", "in.sdf"], "expected another file than the input"),
        (["--reference", "nope.smi"], "does not exist"),
        (["--reference", "nope.txt"], "expected a reference"),
        (["--where", "known=no"], "expected --reference"),
        (["--known", "drop"], "expected --reference with --known drop"),
        (["--duplicates", "hide"], "expected --duplicates mark or drop"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    line: str,
    tmp_path: Path,
    sdf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["rank", "in.sdf", "--workers", "1", *words]) == 2
    error = [s for s in capsys.readouterr().err.splitlines() if s.startswith("perrin:")]
    assert len(error) == 1
    assert line in error[0]
    assert [p.name for p in tmp_path.iterdir()] == ["in.sdf"]


def test_a_file_without_bonds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.xyz").write_text("1\n\nHe 0 0 0\n")
    assert main(["rank", str(tmp_path / "a.xyz")]) == 2
    assert "expected molecules with bonds" in capsys.readouterr().err


def test_a_modality_without_ranking_says_so() -> None:
    class Other(Modality):
        name = "other"

        def bundle_folder(self) -> Path:
            return Path()

        def add_arguments(self, verb: str, parser: Any) -> None: ...

        def load(self, bundle: Any, *, device: str = "cpu") -> Any: ...

    with pytest.raises(PerrinError, match=r"that 'perrin rank' works with .*given other"):
        Other().rank(None)  # type: ignore[arg-type]
