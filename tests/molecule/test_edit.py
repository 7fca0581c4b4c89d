"""Editing: what is kept is kept to the last bit, whatever is drawn around it; varying starts at the molecule itself."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

import perrin
from perrin.cli import main
from perrin.core import CounterNoise, sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry, sanitize, to_rdkit
from perrin.modalities.molecule.edit import ATTEMPT, Editor, Job, Travel, given
from perrin.modalities.molecule.edit_commands import similarity
from perrin.modalities.molecule.fields import POSITIONS, layouts_for
from perrin.modalities.molecule.files import read_sdf, write_sdf
from perrin.modalities.molecule.kept import addition_table, choose_atoms, keep, with_hydrogens
from perrin.modalities.molecule.model import MoleculeModel
from perrin.modalities.molecule.sources import training_data
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.vary import Varier

FURAN = "Cc1ccoc1"  # methyl, then the ring: atoms 2 to 6


@pytest.fixture(scope="module")
def model() -> MoleculeModel:
    return perrin.load("molecule/qm9")


@pytest.fixture(scope="module")
def furan() -> Molecule:
    molecule = add_geometry(FURAN)
    return replace(molecule, positions=np.round(molecule.positions + np.array([3.0, -20.0, 7.0]), 4))


def quick(model: MoleculeModel, molecule: Molecule, keep_: str, anchors: str | None = None) -> Editor:
    chosen = anchors if anchors in (None, "cut") else choose_atoms(anchors, molecule, "--anchors")
    kept = keep(molecule, choose_atoms(keep_, molecule, "--keep"), chosen)
    return Editor(model, kept, travel=Travel(repeats=1, repair=0.5, repair_repeats=1))


@pytest.mark.parametrize(
    ("smiles", "what", "anchors"),
    [
        (FURAN, "c1ccoc1", None),  # a scaffold
        (FURAN, "c1ccoc1", "cut"),  # an R-group replaced
        ("OCC", "1-3", "3"),  # growing at one place
        ("CC(=O)CCN", "1-3,6", None),  # two fragments to link
        ("[NH3+]CC(=O)[O-]", "2-5", None),  # charges; an amine replaced
    ],
)
def test_the_kept_part_is_the_inputs_to_the_last_bit(
    model: MoleculeModel, smiles: str, what: str, anchors: str | None
) -> None:
    molecule = add_geometry(smiles)
    editor = quick(model, molecule, what, anchors)
    options = model.options(steps=2)
    k, source = len(editor.kept.molecule), editor.kept.source
    inside = {tuple(b) for b in molecule.bonds.tolist() if b[0] in source and b[1] in source}  # type: ignore[union-attr]
    seen = 0
    for unit in editor.units(range(12), 0, batch=64):
        made = editor.run_unit(unit, 0, options)
        repaired = editor.run_unit(
            replace(unit, indices=tuple(i + ATTEMPT for i in unit.indices)), 0, options, made
        )
        for m in [*made, *repaired]:
            assert editor.kept.preserved_in(m)
            assert np.array_equal(m.positions[:k], molecule.positions[source])
            assert np.array_equal(m.numbers[:k], molecule.numbers[source])
            assert np.array_equal(m.charges[:k], molecule.charges[source])
            assert m.bonds is not None
            own = m.bonds[(m.bonds[:, :2] < k).all(1)].tolist()
            assert {(*sorted((source[i], source[j])), order) for i, j, order in own} == inside
            assert editor.fault(m) != "changed"
            seen += 1
    assert seen == 24


def test_what_is_no_longer_preserved_is_noticed(model: MoleculeModel, furan: Molecule) -> None:
    kept = quick(model, furan, "c1ccoc1", "cut").kept
    own = kept.molecule
    assert kept.preserved_in(own)
    moved, bonds, numbers = own.positions.copy(), own.bonds.copy(), own.numbers.copy()  # type: ignore[union-attr]
    moved[1, 2] = np.nextafter(moved[1, 2], np.inf)
    bonds[0, 2] = 3
    numbers[0] = 7
    assert not kept.preserved_in(replace(own, positions=moved))
    assert not kept.preserved_in(replace(own, bonds=bonds))
    assert not kept.preserved_in(replace(own, bonds=own.bonds[1:]))  # type: ignore[index]
    assert not kept.preserved_in(replace(own, numbers=numbers))
    assert not kept.preserved_in(replace(own, charges=own.charges + 1))


def test_anchors_decide_which_hydrogens_are_free(model: MoleculeModel, furan: Molecule) -> None:
    everywhere, cut = (quick(model, furan, "c1ccoc1", anchors).kept for anchors in (None, "cut"))
    assert (len(everywhere.molecule), int(everywhere.free.sum())) == (5, 4)  # three C–H and the lost methyl
    assert (len(cut.molecule), int(cut.free.sum())) == (8, 1)
    one = quick(model, furan, "c1ccoc1", "3").kept
    assert (len(one.molecule), int(one.free.sum()), one.anchors.sum()) == (7, 2, 1)
    draws = Editor(model, one, travel=Travel(repeats=1)).run_unit(
        Editor(model, one).units(range(4), 0, batch=4)[0], 0, model.options(steps=2)
    )
    place = int(np.flatnonzero(one.anchors)[0])
    for m in draws:
        assert m.bonds is not None
        for i, j, _ in m.bonds.tolist():
            if i < 7 <= j and m.numbers[j] != 1:
                assert i == place


def test_a_draw_is_a_function_of_its_number(model: MoleculeModel, furan: Molecule) -> None:
    editor, options = quick(model, furan, "c1ccoc1"), model.options(steps=3)
    together = {
        i: m
        for unit in editor.units(range(9), 5, batch=64)
        for i, m in zip(unit.indices, editor.run_unit(unit, 5, options), strict=True)
    }
    (alone,) = editor.units([4], 5, batch=1)
    m = editor.run_unit(alone, 5, options)[0]
    assert np.array_equal(m.positions, together[4].positions)
    assert np.array_equal(m.bonds, together[4].bonds)  # type: ignore[arg-type]


def test_the_guided_estimate_turns_with_the_input(model: MoleculeModel, furan: Molecule) -> None:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    turned = replace(furan, positions=furan.positions @ q.numpy().T)
    kept = [quick(model, m, "c1ccoc1").kept for m in (furan, turned)]
    jobs = [[Job(k, 2, 7)] * 4 for k in kept]
    guides = [given(model, j, 14, model.sampling) for j in jobs]
    layouts = layouts_for(guides[0][2])
    x = model.denoiser.process.prior_state(CounterNoise(sample_seeds(0, range(4))), layouts)
    t = torch.full((4,), 0.6)
    with torch.no_grad():
        here = guides[0][0](x, t, layouts=layouts)
        there = guides[1][0]({**x, POSITIONS: x[POSITIONS] @ q.float().T}, t, layouts=layouts)
    torch.testing.assert_close(there[POSITIONS], here[POSITIONS] @ q.float().T, atol=2e-4, rtol=0)
    for name in ("types", "bonds"):
        torch.testing.assert_close(
            torch.softmax(there[name], -1), torch.softmax(here[name], -1), atol=2e-4, rtol=0
        )


def test_additions_close_every_valence(model: MoleculeModel, furan: Molecule) -> None:
    """A new carbon brings 4 − 2 hydrogens at most, beside those of free valences; linking two fragments takes two."""
    vocabulary = model.config.vocabulary
    kept = quick(model, furan, "c1ccoc1").kept
    table = addition_table(kept, vocabulary, (1, 1))
    assert {a for a, _ in table} == {1}
    assert max(h for _, h in table) == 4 + 2
    assert sum(table.values()) == pytest.approx(1)
    linked = quick(model, add_geometry("CC(=O)CCN"), "1-3,6", "cut").kept
    assert linked.fragments == 2
    assert max(h for _, h in addition_table(linked, vocabulary, (1, 1))) == (1 + 3) + 2 - 2
    usual = addition_table(kept, vocabulary)
    assert {a for a, _ in usual} <= {1, 2, 3, 4}  # nine heavy atoms in all


def test_numbers_and_smarts(furan: Molecule) -> None:
    assert choose_atoms("2-4, 6", furan, "--keep") == [1, 2, 3, 5]
    assert choose_atoms("[CH3]", furan, "--keep") == [0]  # hydrogens are counted as chemists do
    for text, words in {
        "9-2": "atom numbers from 1",
        "0": "atom numbers from 1",
        "7": "the hydrogen 7",
        "c1ccoc1(": "correct it",
        "S": "nowhere in it",
        "c": "matches in 4 (atoms 2; 3; 4; 6)",
    }.items():
        with pytest.raises(PerrinError, match="expected") as error:
            choose_atoms(text, furan, "--keep")
        assert words in str(error.value)


def test_hydrogens_that_a_file_leaves_out() -> None:
    whole = add_geometry("CC(=O)[O-]")
    heavy = whole.numbers != 1
    bare = replace(
        whole,
        numbers=whole.numbers[heavy], positions=whole.positions[heavy], charges=whole.charges[heavy],
        bonds=np.array([b for b in whole.bonds.tolist() if heavy[b[0]] and heavy[b[1]]]),  # type: ignore[union-attr]
    )  # fmt: skip
    full, missing = with_hydrogens(bare)
    assert missing == 3
    assert np.array_equal(full.positions[:4], bare.positions)
    assert similarity(full, whole) == 1
    assert with_hydrogens(whole) == (whole, 0)


def test_varying_begins_at_the_molecule(model: MoleculeModel, furan: Molecule) -> None:
    options = model.options(steps=8)
    same = Varier(model, [furan], 2, strength=0.0)
    for unit in same.units(range(2), 0, batch=4):
        for m in same.run_unit(unit, 0, options):
            assert np.array_equal(m.positions, furan.positions)
    near, far = (Varier(model, [furan], 8, strength=s) for s in (0.05, 0.9))
    found = {}
    for varier in (near, far):
        (unit,) = varier.units(range(8), 0, batch=8)
        found[varier] = varier.run_unit(unit, 0, options)
        assert [len(m) for m in found[varier]] == [len(furan)] * 8
    assert [similarity(furan, m) for m in found[near]] == [1.0] * 8
    # in the same frame, which is 20 Å away; the methyl group may turn
    assert all(np.abs(m.positions - furan.positions).max() < 1.0 for m in found[near])
    likeness = [similarity(furan, m) for m in found[far]]
    assert sum(s == 1 for s in likeness) <= 1
    (alone,) = near.units([5], 0, batch=1)
    assert np.array_equal(near.run_unit(alone, 0, options)[0].positions, found[near][5].positions)
    with pytest.raises(PerrinError, match="from 0 to 1"):
        Varier(model, [furan], 1, strength=1.5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, furan: Molecule) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sdf("in.sdf", [furan])
    write_sdf("two.sdf", [furan, furan])
    write_sdf("thiophene.sdf", [add_geometry("Cc1ccsc1")])
    write_sdf("neopentane.sdf", [add_geometry("CC(C)(C)C")])
    write_sdf("large.sdf", [add_geometry("C" * 14)])
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("edit two.sdf --keep 2-6", "expected one molecule"),
        ("edit thiophene.sdf --keep 2-6", "given S in molecule 1 of thiophene.sdf"),
        ("vary thiophene.sdf", "given S in molecule 1 of thiophene.sdf"),
        ("edit in.sdf --keep 2-6 --anchors 1", "anchors among the kept atoms (2-6), given 1"),
        ("edit in.sdf --keep 2-6 --anchors 5", "given 5, which has no free valence"),
        ("edit in.sdf --keep 2-6 --add 0-2", "expected --add"),
        ("edit in.sdf --keep 2-6 --add 40", "keep fewer, or change --add"),
        ("edit in.sdf --keep [S]", "nowhere in it"),
        (
            "edit in.sdf --keep c1ccoc",
            "expected a SMARTS or atom numbers (1-6,9) for --keep, given 'c1ccoc': correct it",
        ),
        ("edit large.sdf --keep 1-13 --anchors 13", "given 38 kept atoms: keep fewer, or change --add"),
        ("edit in.sdf --keep 2-6 --tries 0", "expected --tries of at least 1"),
        ("vary in.sdf --strength 2", "from 0 to 1"),
        ("edit neopentane.sdf --keep 2 --anchors 1", "given 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    assert main([*command.split(), "-n", "2", "-o", "out.sdf"]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
    assert not list(here.glob("out.sdf*"))


def test_too_few_are_an_error_that_more_tries_mend(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["edit", "in.sdf", "--keep", "c1ccoc1", "-n", "3", "-o", "out.sdf", "--steps", "4", "--tries"]
    with monkeypatch.context() as patch:
        patch.setattr(Editor, "fault", lambda self, m: "invalid")
        assert main([*words, "2"]) == 2
        assert "expected 3 molecules, made 0 in 6 draws (rejected: 6 invalid)" in capsys.readouterr().err
        assert not Path("out.sdf").exists()
    calls = []
    real = Editor.run_unit
    monkeypatch.setattr(Editor, "run_unit", lambda self, *a: calls.append(a) or real(self, *a))
    monkeypatch.setattr(Editor, "fault", lambda self, m: "" if len(calls) else "invalid")
    assert main([*words, "3"]) == 0
    assert len(calls) >= 1
    original, edited = read_sdf("in.sdf")[0], read_sdf("out.sdf")
    assert len(edited) == 3
    for m in edited:
        assert m.properties["kept"] == "1-5"
        assert np.array_equal(m.positions[:5], original.positions[1:6])
        assert np.array_equal(m.numbers[:5], original.numbers[1:6])
    record = json.loads(Path("out.sdf.run.json").read_text())
    assert record["result"]["kept_preserved"] is True
    assert record["result"]["rejected"] == {"invalid": 6}
    assert not Path("out.sdf.partial").exists()


def test_vary_writes_similarities(here: Path) -> None:
    assert main(["vary", "two.sdf", "--strength", "0.05", "-n", "2", "-o", "out.sdf", "--steps", "8"]) == 0
    found = read_sdf("out.sdf")
    assert [m.properties["tanimoto"] for m in found] == [1.0] * 4
    assert all(sanitize(to_rdkit(m)) is not None for m in found)


def test_isotopes_and_atoms_in_one_place_are_told(
    here: Path, capsys: pytest.CaptureFixture[str], furan: Molecule
) -> None:
    near = furan.positions.copy()
    near[-1] = near[-2] + 0.05
    write_sdf("odd.sdf", [furan, replace(furan, isotopes=((0, 13),)), replace(furan, positions=near)])
    assert main(["vary", "odd.sdf", "-n", "1", "-o", "out.sdf", "--strength", "0"]) == 0
    said = [capsys.readouterr().err]
    training_data(Namespace(data="odd.sdf", limit=None, devices=1, out="run"), None)
    said.append(capsys.readouterr().err)
    for text in said:
        assert "1 of 3 molecules of odd.sdf have isotopes, which are dropped (record 2)" in text
        assert (
            "1 of 3 molecules of odd.sdf have atoms closer than 0.1 Å, which no molecule has (record 3)"
            in text
        )
    assert not any(m.isotopes for m in read_sdf("out.sdf"))
