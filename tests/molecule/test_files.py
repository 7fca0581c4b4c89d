"""Files: what is written comes back, and each bad file gives its own line."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")
pytest.importorskip("ase")

from rdkit import Chem
from rdkit.Chem import AllChem

from perrin.errors import PerrinError
from perrin.modalities.molecule import files
from perrin.modalities.molecule.chem import add_geometry, from_rdkit, isomeric_smiles, sanitize, to_rdkit
from perrin.modalities.molecule.kept import completed
from perrin.modalities.molecule.structure import Molecule

GOOD = ["C", "[C-]#[O+]", "C[N+](=O)[O-]", "c1ccccc1", "C[NH3+]", "C1CC1", "C.O"]

BAD = {
    "five bonds on carbon": ([6, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)], [0] * 6),
    "a lone methyl": ([6, 1, 1, 1], [(0, i, 1) for i in range(1, 4)], [0] * 4),
    "triple bonds around oxygen": ([8, 6, 6], [(0, 1, 3), (0, 2, 3)], [0] * 3),
    "no bonds at all": ([6, 7, 8], [], [0] * 3),
    "odd charges": ([6, 8], [(0, 1, 1)], [-2, 3]),
    "bonded hydrogens in a ring": ([1, 1, 1], [(0, 1, 2), (0, 2, 1), (1, 2, 3)], [0, 1, -1]),
}


def molecule(numbers: list[int], bonds: list[tuple[int, int, int]], charges: list[int]) -> Molecule:
    generator = np.random.default_rng(0)
    return Molecule(
        numbers=np.array(numbers),
        positions=generator.normal(size=(len(numbers), 3)).round(4),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 3),
        charges=np.array(charges),
    )


def assert_same(a: Molecule, b: Molecule, tolerance: float) -> None:
    assert np.array_equal(a.numbers, b.numbers)
    assert np.array_equal(a.charges, b.charges)
    assert (a.bonds is None) == (b.bonds is None)
    if a.bonds is not None and b.bonds is not None:
        assert np.array_equal(a.bonds, b.bonds)
    assert np.allclose(a.positions, b.positions, rtol=0, atol=tolerance)


def test_sdf_round_trip(tmp_path: Path) -> None:
    written = [
        replace(
            add_geometry(smiles), name=f"m {i}", properties={"seed": i, "gap": -0.25, "note": "two\nlines"}
        )
        for i, smiles in enumerate(GOOD)
    ]
    files.write_sdf(tmp_path / "a.sdf", written)
    read = files.read_sdf(tmp_path / "a.sdf")
    assert len(read) == len(written)
    for i, (a, b) in enumerate(zip(written, read)):
        assert_same(a, b, 5.1e-5)
        assert b.name == f"m {i}"
        assert b.properties == {"seed": i, "gap": -0.25, "note": "two lines"}
    assert os.listdir(tmp_path) == ["a.sdf"]


def test_sdf_means_the_same_to_rdkit(tmp_path: Path) -> None:
    files.write_sdf(tmp_path / "a.sdf", [add_geometry(smiles) for smiles in GOOD])
    assert "V2000" in (tmp_path / "a.sdf").read_text()
    supplier = Chem.SDMolSupplier(str(tmp_path / "a.sdf"))
    assert [Chem.MolToSmiles(mol) for mol in supplier] == [Chem.CanonSmiles(smiles) for smiles in GOOD]


@pytest.mark.parametrize("case", BAD)
def test_wrong_molecules_survive_sdf(case: str, tmp_path: Path) -> None:
    bad = molecule(*BAD[case])
    files.write_sdf(tmp_path / "bad.sdf", [bad, bad])
    for again in files.read_sdf(tmp_path / "bad.sdf"):
        assert_same(bad, again, 1e-9)


def test_sdf_with_aromatic_bonds_is_kekulized(tmp_path: Path) -> None:
    benzene = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    from rdkit.Chem import rdDistGeom

    rdDistGeom.EmbedMolecule(benzene, randomSeed=1)
    block = Chem.MolToMolBlock(benzene, kekulize=False)
    assert "  4  0" in block
    (tmp_path / "a.sdf").write_text(block + "$$$$\n")
    (read,) = files.read_sdf(tmp_path / "a.sdf")
    assert read.bonds is not None
    assert sorted(order for i, j, order in read.bonds.tolist() if j < 6) == [1, 1, 1, 2, 2, 2]


def test_xyz_round_trip_has_no_bonds(tmp_path: Path) -> None:
    written = [
        replace(add_geometry(smiles), name=f"m {i}", properties={"gap": 0.5 * i})
        for i, smiles in enumerate(GOOD)
    ]
    files.write_molecules(tmp_path / "a.xyz", written)
    read = files.read_molecules(tmp_path / "a.xyz")
    assert len(read) == len(written)
    for a, b in zip(written, read):
        assert b.bonds is None
        assert_same(replace(a, bonds=None), b, 1e-8)
        assert (b.name, b.properties) == (a.name, a.properties)


def test_plain_xyz_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("3\nwater, from 'somewhere\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    (read,) = files.read_xyz(tmp_path / "a.xyz")
    assert read.numbers.tolist() == [8, 1, 1]
    assert read.charges.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["a.smi", "a.csv"])
def test_smiles_get_a_geometry(name: str, tmp_path: Path) -> None:
    text = "CO methanol\n\nc1ccccc1\n" if name == "a.smi" else "id,SMILES\n1,CO\n2,c1ccccc1\n"
    (tmp_path / name).write_text(text)
    methanol, benzene = files.read_molecules(tmp_path / name)
    assert methanol.numbers.tolist() == [6, 8, 1, 1, 1, 1]
    assert methanol.name == ("methanol" if name == "a.smi" else "")
    assert len(benzene) == 12
    assert np.ptp(benzene.positions, axis=0).max() > 4.0


def test_smiles_are_written_canonically(tmp_path: Path) -> None:
    files.write_molecules(tmp_path / "a.smi", [replace(add_geometry("OC"), name="x y")])
    assert (tmp_path / "a.smi").read_text() == "CO x y\n"
    with pytest.raises(PerrinError, match="wrong valence in molecule 1"):
        files.write_molecules(tmp_path / "b.smi", [molecule(*BAD["five bonds on carbon"])])


def methane_block() -> str:
    return Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("C"))).replace("2D", "3D")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.sdf", "", "given an empty file"),
        ("a.sdf", "\n \n", "given an empty file"),
        ("a.sdf", "$$$$\n", "given none"),
        ("a.sdf", "this is not\nan SDF\n", "record 1 of"),
        ("a.sdf", "{methane}$$$$\n\n\n\ngarbage\n$$$$\n", "record 2 of"),
        ("a.sdf", "{methane}$$$$\n{cut}", "record 2 of"),
        ("a.sdf", "{silane}$$$$\n", "expected the elements H, C, N, O, F, given Si in record 1"),
        ("a.sdf", "{unknown}$$$$\n", "given 'Xq' in record 1 of"),
        ("a.xyz", "", "given an empty file"),
        ("a.xyz", "2\n\nC 0 0 0\n", "frame 1 of"),
        ("a.xyz", "1\n\nC 0 0 0\n1\n\nXq 0 0 0\n", "given 'Xq' in frame 2 of"),
        ("a.xyz", "1\n\nSi 0 0 0\n", "given Si in frame 1"),
        ("a.xyz", "1\n\nC nan 0 0\n", "NaN"),
        ("a.smi", "CO\nC((\n", "line 2 of"),
        ("a.smi", "C[SiH3]\n", "given Si in line 1"),
        ("a.csv", "id,name\n1,a\n", "column 'smiles'"),
        ("a.csv", "smiles\nnonsense\n", "line 2 of"),
        ("a.pdb", "x", "one of the suffixes"),
    ],
)
def test_bad_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    block = methane_block()
    text = text.replace("{methane}", block).replace("{cut}", block[:150])
    text = text.replace("{silane}", block.replace(" C  ", " Si ")).replace(
        "{unknown}", block.replace(" C  ", " Xq ")
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(PerrinError, match=message) as caught:
        files.read_molecules(tmp_path / name, elements=(1, 6, 7, 8, 9))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_binary_missing_and_directory(tmp_path: Path) -> None:
    (tmp_path / "a.sdf").write_bytes(bytes(range(256)))
    with pytest.raises(PerrinError, match="not a text file"):
        files.read_sdf(tmp_path / "a.sdf")
    with pytest.raises(PerrinError, match="does not exist"):
        files.read_sdf(tmp_path / "none.sdf")
    with pytest.raises(PerrinError, match=r"a readable file|is a directory"):
        files.read_sdf(tmp_path)


def test_output_path_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "d.sdf").mkdir()
    with pytest.raises(PerrinError, match="given the directory"):
        files.write_sdf(tmp_path / "d.sdf", [add_geometry("C")])
    with pytest.raises(PerrinError, match="suffixes"):
        files.write_molecules(tmp_path / "a.mol3", [add_geometry("C")])


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(PerrinError, match="expected to write"):
        files.write_sdf(tmp_path / "x" / "a.sdf", [add_geometry("C")])


@pytest.mark.parametrize("suffix", ["sdf", "xyz", "smi"])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / f"a.{suffix}"
    target.write_text("old")
    monkeypatch.setattr("perrin.run.atomic.os.replace", full)
    with pytest.raises(PerrinError, match="No space left on device; free some space") as caught:
        files.write_molecules(target, [add_geometry("C")])
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [target.name]
    assert target.read_text() == "old"


def test_xyz_molecules_cannot_become_sdf(tmp_path: Path) -> None:
    with pytest.raises(PerrinError, match="expected a molecule with bonds"):
        files.write_sdf(tmp_path / "a.sdf", [replace(add_geometry("C"), bonds=None)])
    assert os.listdir(tmp_path) == []


def test_double_bonds_keep_their_geometry_for_other_readers(tmp_path: Path) -> None:
    for smiles in ("C/C=C/F", r"C/C=C\F"):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
        files.write_sdf(tmp_path / "out.sdf", [from_rdkit(mol)])
        (back,) = Chem.SDMolSupplier(str(tmp_path / "out.sdf"))
        assert Chem.MolToSmiles(back) == Chem.CanonSmiles(smiles)


def test_a_drawing_that_writes_the_hydrogen_of_a_stereocentre_has_the_others_too(tmp_path: Path) -> None:
    lactic = "C[C@H](O)C(=O)O"
    mol = Chem.AddHs(Chem.MolFromSmiles(lactic), onlyOnAtoms=[1])
    AllChem.Compute2DCoords(mol)
    (tmp_path / "drawn.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    (drawn,) = files.read_molecules(tmp_path / "drawn.sdf", flat=True)
    whole, added = completed(drawn)
    assert added == 5
    assert isomeric_smiles(sanitize(to_rdkit(whole))) == Chem.CanonSmiles(lactic)


LABELLED = "[2H]C([2H])([2H])[13C@@H](F)O"


def test_isotopes_stay(tmp_path: Path) -> None:
    """Through SMILES, SDF and a change of the atoms' order, by RDKit's own reading; an XYZ file has none."""
    mol = Chem.AddHs(Chem.MolFromSmiles(LABELLED))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    (tmp_path / "a.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    (tmp_path / "a.smi").write_text(LABELLED + "\n")
    for name in ("a.sdf", "a.smi"):
        (read,) = files.read_molecules(tmp_path / name)
        assert sorted(mass for _, mass in read.isotopes) == [2, 2, 2, 13]
        for k, molecule in enumerate((read, read.heavy_first())):
            files.write_sdf(tmp_path / f"{k}.sdf", [molecule])
            (theirs,) = Chem.SDMolSupplier(str(tmp_path / f"{k}.sdf"))
            assert Chem.MolToSmiles(theirs) == Chem.CanonSmiles(LABELLED)
            assert isomeric_smiles(sanitize(to_rdkit(molecule))) == Chem.CanonSmiles(LABELLED)
    files.write_xyz(tmp_path / "a.xyz", [read])
    assert files.read_xyz(tmp_path / "a.xyz")[0].isotopes == ()


def test_hydrogens_are_added_beside_isotopes() -> None:
    mol = Chem.MolFromSmiles("[13CH3]CO")
    AllChem.EmbedMolecule(mol, randomSeed=1)
    whole, added = completed(from_rdkit(mol))
    assert added == 6
    assert whole.isotopes == ((0, 13),)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("  5  4  0", "gar", "Cannot convert 'gar' to unsigned int on line 4 of the record"),
        ("  5  4  0", "  9  4  0", "on line 10 of the record"),  # more atoms than there are
        ("    0.0000", "     abc.0", "Cannot process coordinates on line 5 of the record"),
        ("  1  3  1", "  1 99  1", "a bond or property of an atom that is not there"),
        ("  1  3  1", "  1  2  1", "two bonds between the same atoms"),
        (" C  ", " Xq ", "given 'Xq' in record 2 of"),
    ],
)
def test_a_broken_record_says_what_is_broken(old: str, new: str, what: str, tmp_path: Path) -> None:
    good = "methane" + methane_block()
    wrong = good.replace(old, new, 1).replace("methane", "second")
    assert wrong.count("second") == 1
    (tmp_path / "a.sdf").write_text(f"{good}$$$$\n{wrong}$$$$\n")
    with pytest.raises(PerrinError) as caught:
        files.read_sdf(tmp_path / "a.sdf")
    said = str(caught.value)
    assert what in said
    assert "record 2 of" in said
    assert "'second'" in said
    assert "\n" not in said


def test_what_can_be_read_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.smi").write_text("CO\nC(\nCC(\n# a remark\nCCO b\nN(\nO(\n")
    found, numbers, left_out = files.read_sound(tmp_path / "a.smi")
    assert [len(m) for m in found] == [6, 9]
    assert (numbers, left_out) == ([1, 4], [2, 3, 5, 6])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert all(f"(line {k} of" in line for k, line in zip((2, 3, 6), said, strict=False))
    assert "left out 1 more of the 6 entries" in said[3]
    (tmp_path / "b.smi").write_text("C(\nN(\n")
    with pytest.raises(PerrinError, match="line 1 of"):
        files.read_sound(tmp_path / "b.smi")
    assert capsys.readouterr().err == ""
