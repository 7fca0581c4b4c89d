"""Conformers: the graph and the stereochemistry are those asked for, whatever the network draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from test_network import SMALL

import perrin
from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.modalities.molecule.chem import add_geometry, isomeric_smiles, sanitize, to_rdkit
from perrin.modalities.molecule.conformers import ConformerSampler, Query, each_query, is_broken, read_queries
from perrin.modalities.molecule.edit import ATTEMPT, Editor
from perrin.modalities.molecule.fields import Vocabulary
from perrin.modalities.molecule.files import read_sdf, write_sdf
from perrin.modalities.molecule.kept import choose_atoms, keep
from perrin.modalities.molecule.model import MoleculeModel
from perrin.modalities.molecule.network import MoleculeConfig, build_denoiser
from perrin.modalities.molecule.structure import Molecule

MIRROR = np.array([-1.0, 1.0, 1.0])
VOCABULARY = Vocabulary(
    elements=(1, 6, 7, 8),
    charges=(-1, 0, 1),
    position_scale=1.4,
    type_counts=(50.0, 35.0, 5.0, 10.0),
    charge_counts=(1.0, 98.0, 1.0),
    bond_counts=(80.0, 15.0, 4.0, 1.0),
    size_counts=tuple((n, 10) for n in range(3, 24)),
)


def random_bundle(folder: Path, *, parts: bool) -> Path:
    """A bundle with random weights."""
    torch.manual_seed(0)
    config = MoleculeConfig(vocabulary=VOCABULARY, network=replace(SMALL, depth=1, parts=parts))
    weights = dict(build_denoiser(config).named_parameters())
    write_bundle(
        folder, modality="molecule", model=config.to_json(), weights=weights, card="", sampling={"steps": 4}
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes parts."""
    return random_bundle(tmp_path_factory.mktemp("bundle") / "parts", parts=True)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that does not."""
    return random_bundle(tmp_path_factory.mktemp("bundle") / "plain", parts=False)


def embedded(smiles: str, seed: int = 1) -> np.ndarray:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=seed) == 0
    return np.array(mol.GetConformer().GetPositions())


def shown(molecule: Molecule) -> str | None:
    mol = sanitize(to_rdkit(molecule))
    return isomeric_smiles(mol) if mol is not None else None


def canonical(smiles: str) -> str:
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize(
    ("wanted", "drawn", "fate"),
    [
        ("C[C@H](O)CN", "C[C@H](O)CN", "same"),
        ("C[C@H](O)CN", "C[C@@H](O)CN", "mirrored"),
        ("C[C@](F)(O)N", "C[C@@](F)(O)N", "mirrored"),  # four neighbours without hydrogen
        ("C[C@@H](O)[C@H](N)C", "C[C@@H](O)[C@@H](N)C", None),  # the other diastereomer
        ("C[C@@H](O)[C@H](N)C", "C[C@H](O)[C@@H](N)C", "mirrored"),
        ("C/C=C/CO", "C/C=C/CO", "same"),
        ("C/C=C/CO", "C/C=C\\CO", None),
        ("C/C=C/[C@H](O)N", "C/C=C/[C@@H](O)N", "mirrored"),
        ("C/C=C/[C@H](O)N", "C/C=C\\[C@@H](O)N", None),
        ("C/N=C/C", "C/N=C\\C", None),
        ("CC(O)CN", "C[C@@H](O)CN", "same"),  # nothing is specified
        ("CC=CC", "C/C=C\\C", "same"),
        ("C[C@H]1CC[C@@H](O)C1", "C[C@H]1CC[C@H](O)C1", None),
    ],
)
def test_the_stereochemistry_asked_for_is_kept_mirrored_or_rejected(
    wanted: str, drawn: str, fate: str | None
) -> None:
    query = Query.from_smiles(wanted)
    for seed in (1, 2, 3):
        positions = embedded(drawn, seed)
        found = query.matched(positions)
        if fate is None:
            assert found is None
            continue
        assert found is not None
        assert np.array_equal(found, positions if fate == "same" else positions * MIRROR)
        if fate == "mirrored" or canonical(wanted) == canonical(drawn):
            assert shown(replace(query.molecule, positions=found)) == canonical(wanted)


def test_a_geometry_says_its_own_stereochemistry() -> None:
    molecule = add_geometry("C[C@@H](O)[C@H](N)C")
    query = Query.from_molecule(molecule)
    assert np.array_equal(query.matched(molecule.positions), molecule.positions)  # type: ignore[arg-type]
    assert np.array_equal(query.matched(molecule.positions * MIRROR), molecule.positions)  # type: ignore[arg-type]
    assert query.matched(embedded("C[C@@H](O)[C@@H](N)C")) is None


def test_real_geometries_are_not_broken_and_broken_ones_are() -> None:
    for smiles in ("CCO", "C12CC1C2", "C1C2CC1C2", "C#CC#N", "OCC(=O)[O-]", "O=C1NC=CC1=O", "FC(F)F"):
        molecule = add_geometry(smiles)
        assert not is_broken(molecule), smiles
        assert molecule.bonds is not None
        i, j, _ = molecule.bonds[0]
        for factor in (0.6, 1.5):
            moved = molecule.positions.copy()
            moved[i] = moved[j] + factor * (moved[i] - moved[j])
            assert is_broken(replace(molecule, positions=moved)), smiles
    clash = add_geometry("CCCCC")
    clash.positions[-1] = clash.positions[0] + 0.3
    assert is_broken(clash)
    assert is_broken(replace(clash, positions=clash.positions * np.nan))


@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_the_graph_is_the_querys_and_a_draw_is_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    model: MoleculeModel = perrin.load(request.getfixturevalue(kind))
    queries = [Query.from_smiles(s) for s in ("C[C@H](O)CN", "[NH3+]CC(=O)[O-]")]
    sampler = ConformerSampler(model, queries, 3)
    options = model.options(steps=4)
    made: dict[int, Molecule] = {}
    for unit in sampler.units(range(6), 0, batch=64):
        made |= zip(unit.indices, sampler.run_unit(unit, 0, options), strict=True)
    for i, m in made.items():
        own = sampler.query(i).molecule
        assert np.array_equal(m.numbers, own.numbers)
        assert np.array_equal(m.bonds, own.bonds)  # type: ignore[arg-type]
        assert np.array_equal(m.charges, own.charges)
        assert np.ptp(m.positions, axis=0).min() > 0.01
    (alone,) = sampler.units([4], 0, batch=1)
    assert np.array_equal(sampler.run_unit(alone, 0, options)[0].positions, made[4].positions)
    (again,) = sampler.units([4 + ATTEMPT], 0, batch=1)
    assert not np.allclose(sampler.run_unit(again, 0, options)[0].positions, made[4].positions)


def test_an_edit_by_a_network_with_parts_keeps_what_is_kept(trained: Path) -> None:
    model: MoleculeModel = perrin.load(trained)
    lead = add_geometry("Cc1ccoc1")
    kept = keep(lead, choose_atoms("c1ccoc1", lead, "--keep"))
    editor = Editor(model, kept)
    assert editor.travel.repeats == 1
    options = model.options(steps=3)
    for unit in editor.units(range(6), 0, batch=64):
        made = editor.run_unit(unit, 0, options)
        repaired = editor.run_unit(
            replace(unit, indices=tuple(i + ATTEMPT for i in unit.indices)), 0, options, made
        )
        for m in [*made, *repaired]:
            assert kept.preserved_in(m)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.smi").write_text("C[C@H](O)F first\nCO\n")
    out = tmp_path / "out.sdf"
    command = [
        "conformers",
        str(tmp_path / "in.smi"),
        "-n",
        "2",
        "-o",
        str(out),
        "--steps",
        "40",
        "--workers",
        "1",
    ]
    assert main([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "4 conformers of 2 molecules" in said.out
    assert "not trained with graphs given" not in said.err
    made = read_sdf(out)
    assert [m.name for m in made] == ["first-1", "first-2", "CO-1", "CO-2"]
    assert [m.properties["molecule"] for m in made] == [1, 1, 2, 2]
    assert [shown(m) for m in made] == [canonical("C[C@H](O)F")] * 2 + ["CO"] * 2
    assert not any(is_broken(m) for m in made)
    record = json.loads((tmp_path / "out.sdf.run.json").read_text())
    assert record["result"]["conformers"] == 4
    assert not (tmp_path / "out.sdf.partial").exists()
    assert (
        main(
            ["conformers", str(out), "-n", "1", "-o", str(tmp_path / "b.sdf"), "--dry-run", "--device", "cpu"]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.smi", "CC(\n", "line 1 of"),
        ("a.smi", "C.C\n", "in 2 pieces: split it (line 1 of"),
        ("a.smi", "CC(\nC.C\n", "line 1 of"),
        ("a.smi", "CCBr\n", "atomic numbers"),
        ("a.smi", "CCCCCCCCCCCCCC\n", "at most 29 atoms"),
        ("a.smi", "", "empty file"),
        ("a.xyz", "1\n\nC 0 0 0\n", "which says the bonds"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    out = tmp_path / "out.sdf"
    assert main(["conformers", str(tmp_path / name), "-n", "1", "-o", str(out), "--device", "cpu"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("perrin: note")]
    assert len(said) == 1
    assert message in said[0]
    assert not out.exists()
    assert not (tmp_path / "out.sdf.partial").exists()


def test_another_output_and_too_few_tries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Path, untrained: Path
) -> None:
    write_sdf(tmp_path / "a.sdf", [add_geometry("CCO")])
    assert len(read_queries(tmp_path / "a.sdf")) == 1
    start = ["conformers", str(tmp_path / "a.sdf"), "-n", "1", "--device", "cpu"]
    assert main([*start, "-o", str(tmp_path / "b.smi")]) == 2
    assert "suffix" in capsys.readouterr().err
    assert main([*start, "-o", str(tmp_path / "b.sdf"), "--model", str(trained), "--tries", "2"]) == 2
    said = capsys.readouterr().err
    assert "made none in 2 draws" in said
    assert "raise --tries" in said
    assert not (tmp_path / "b.sdf").exists()
    few = ["--steps", "4", "--tries", "1", "-o", str(tmp_path / "c.sdf")]
    assert main([*start, *few, "--model", str(untrained)]) == 2
    assert "not trained with graphs given" in capsys.readouterr().err


def test_a_molecule_that_the_model_does_not_know_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.smi").write_text("CCO a\nc1ccsc1 b\nCC=O c\n")
    out = tmp_path / "c.sdf"
    assert main(["conformers", str(tmp_path / "a.smi"), "-n", "1", "-o", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "warning: left out 1 of 3 molecules" in said
    assert "(number 2)" in said
    assert [m.properties["molecule"] for m in read_sdf(out)] == [1, 3]


def test_what_cannot_be_read_is_left_out_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.smi").write_text("CC( a\nCCO b\nC.C c\nnonsense d\nC1CC e\nC(C)(C)(C)(C)C f\nCC=O g\n")
    out = tmp_path / "c.sdf"
    assert main(["conformers", str(tmp_path / "a.smi"), "-n", "1", "-o", str(out), "--device", "cpu"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 4
    assert all(f"(line {k} of" in line for k, line in zip((1, 3, 4), said, strict=False))
    assert "left out 2 more of the 7 entries" in said[3]
    assert [m.properties["molecule"] for m in read_sdf(out)] == [2, 7]
    assert json.loads((tmp_path / "c.sdf.run.json").read_text())["result"]["left_out"] == [1, 3, 4, 5, 6]


def test_records_that_cannot_be_read_and_drawings(tmp_path: Path) -> None:
    """An entry of an SDF is left out like one of a SMILES file; wedges are the stereochemistry of a drawing."""
    mol = Chem.MolFromSmiles("C[C@H](O)F")
    rdDepictor.Compute2DCoords(mol)
    write_sdf(tmp_path / "b.sdf", [add_geometry("CCO")])
    text = (tmp_path / "b.sdf").read_text()
    (tmp_path / "a.sdf").write_text(f"a\n\n\ngarbage\n$$$$\n{Chem.MolToMolBlock(mol)}$$$$\n{text}")
    wrong, drawn, solid = each_query(tmp_path / "a.sdf")
    assert "record 1 of" in str(wrong)
    assert isinstance(drawn, Query)
    assert isinstance(solid, Query)
    assert Chem.MolToSmiles(Chem.RemoveHs(drawn.template)) == canonical("C[C@H](O)F")


def test_isotopes_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A centre that is one by its isotopes alone has the handedness asked for; an XYZ file says that it has none."""
    smiles = canonical("C[C@@H]([2H])O")
    (tmp_path / "a.smi").write_text(f"CO\n{smiles}\n")
    start = ["conformers", str(tmp_path / "a.smi"), "-n", "2", "--device", "cpu", "--workers", "1"]
    assert main([*start, "-o", str(tmp_path / "a.sdf")]) == 0
    assert "have isotopes" not in capsys.readouterr().err
    made = read_sdf(tmp_path / "a.sdf")
    assert [m.properties["smiles"] for m in made] == ["CO"] * 2 + [smiles] * 2
    theirs = [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier(str(tmp_path / "a.sdf"))]
    assert theirs == ["CO"] * 2 + [smiles] * 2
    assert main([*start, "-o", str(tmp_path / "a.xyz")]) == 0
    assert "1 of 2 molecules of" in (said := capsys.readouterr().err)
    assert "have isotopes, which are dropped (record 2)" in said


def test_wrong_valences_are_named(tmp_path: Path) -> None:
    methane = add_geometry("C")
    assert methane.bonds is not None
    write_sdf(tmp_path / "a.sdf", [methane, replace(methane, bonds=np.add(methane.bonds, [0, 0, 1]))])
    _, wrong = each_query(tmp_path / "a.sdf")
    assert "atom C1, 8, is greater than permitted" in str(wrong)
    assert "(record 2 of" in str(wrong)
