"""Candidates around a kept part: it stays to the last bit, a draw is a function of its number, and a choice is a choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

import perrin
from perrin.cli import main
from perrin.core import State
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.edit import ATTEMPT, Editor, Travel
from perrin.modalities.molecule.fields import TYPES
from perrin.modalities.molecule.files import read_sdf, write_sdf
from perrin.modalities.molecule.kept import choose_atoms, keep
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, filled
from perrin.modalities.molecule.properties import Table
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.vary import Varier

WISH = (("gap", None, 0.2),)


@pytest.fixture(scope="module")
def model() -> MoleculeModel:
    return perrin.load("molecule/qm9")


@pytest.fixture(scope="module")
def real(model: MoleculeModel) -> Any:
    return perrin.load("molecule/qm9-properties")


def chosen_by(
    model: MoleculeModel, real: Any, monkeypatch: pytest.MonkeyPatch, value: Callable[[State, Tensor], Tensor]
) -> None:
    """The model with another judge of its candidates."""
    judge = SimpleNamespace(config=real.config, log_density=lambda intervals, mask: value)
    monkeypatch.setattr(model, "guide", judge)


def editor(model: MoleculeModel, smiles: str, what: str, anchors: str | None = None) -> Editor:
    molecule = add_geometry(smiles)
    ends = choose_atoms(anchors, molecule, "--anchors") if anchors not in (None, "cut") else anchors
    kept = keep(molecule, choose_atoms(what, molecule, "--keep"), ends)
    return Editor(model, kept, travel=Travel(repeats=1, repair=0.5, repair_repeats=1))


def drawn(maker: Any, numbers: list[int], options: SamplingOptions, batch: int = 64) -> dict[int, Molecule]:
    return {
        i: m
        for unit in maker.units(numbers, 3, batch=batch)
        for i, m in zip(unit.indices, maker.run_unit(unit, 3, options), strict=True)
    }


def equal(a: Molecule, b: Molecule) -> bool:
    assert a.bonds is not None
    assert b.bonds is not None
    return (
        np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.bonds, b.bonds)
        and np.array_equal(a.charges, b.charges)
    )


@pytest.mark.parametrize(
    ("smiles", "what", "anchors"),
    [
        ("Cc1ccoc1", "c1ccoc1", "cut"),
        ("CC(=O)CCN", "1-3,6", None),  # two fragments to link
        ("[NH3+]CC(=O)[O-]", "2-5", None),  # charges
    ],
)
def test_the_kept_part_is_the_inputs_to_the_last_bit(
    model: MoleculeModel,
    real: Any,
    monkeypatch: pytest.MonkeyPatch,
    smiles: str,
    what: str,
    anchors: str | None,
) -> None:
    monkeypatch.setattr(model, "guide", real)
    own, molecule = editor(model, smiles, what, anchors), add_geometry(smiles)
    options = model.options(steps=4, want=WISH, candidates=4, guidance_scale=1.5)
    k, source = len(own.kept.molecule), own.kept.source
    seen = 0
    for unit in own.units(range(6), 0, batch=64):
        made = own.run_unit(unit, 0, options)
        again = replace(unit, indices=tuple(i + ATTEMPT for i in unit.indices))
        for m in [*made, *own.run_unit(again, 0, options, made)]:
            assert own.kept.preserved_in(m)
            assert np.array_equal(m.positions[:k], molecule.positions[source])
            assert np.array_equal(m.numbers[:k], molecule.numbers[source])
            assert np.array_equal(m.charges[:k], molecule.charges[source])
            assert own.fault(m) != "changed"
            seen += 1
    assert seen == 12


def test_a_draw_is_a_function_of_its_number(
    model: MoleculeModel, real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "guide", real)
    options = model.options(steps=4, want=WISH, candidates=4)
    furan = add_geometry("Cc1ccoc1")
    for maker in (editor(model, "Cc1ccoc1", "c1ccoc1"), Varier(model, [furan], 9, strength=0.6)):
        together = drawn(maker, list(range(7)), options)
        assert all(equal(together[i], m) for i, m in drawn(maker, list(range(7)), options, batch=2).items())
        assert equal(together[4], drawn(maker, [4], options)[4])


def test_candidate_0_is_the_molecule_without_a_choice(
    model: MoleculeModel, real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a judge who hears nobody else, edits, repairs and variations are those of one candidate."""

    groups = [0]

    def first(x: State, t: Tensor) -> Tensor:
        return torch.where(torch.arange(len(t)) % (len(t) // groups[0]) == 0, 0.0, -1e9)

    chosen_by(model, real, monkeypatch, first)
    options = model.options(steps=6, want=WISH, candidates=8)
    alone = replace(options, candidates=1)
    compared = 0
    own = editor(model, "Cc1ccoc1", "c1ccoc1", "cut")
    for maker in (own, Varier(model, [add_geometry("Cc1ccoc1")], 5, strength=0.6)):
        for unit in maker.units(range(5), 3, batch=64):
            groups[0] = len(filled(len(unit.indices)))
            one = maker.run_unit(unit, 3, alone)
            pairs = list(zip(maker.run_unit(unit, 3, options), one, strict=True))
            if isinstance(maker, Editor):
                again = replace(unit, indices=tuple(i + ATTEMPT for i in unit.indices))
                repairs = (maker.run_unit(again, 3, o, one) for o in (options, alone))
                pairs += zip(*repairs, strict=True)
            assert all(same(a, b) for a, b in pairs)
            compared += len(pairs)
    assert compared == 15


def same(a: Molecule, b: Molecule) -> bool:
    """Equal graphs, and positions to rounding: the batches are of different sizes."""
    return (
        np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.bonds, b.bonds)  # type: ignore[arg-type]
        and float(np.abs(a.positions - b.positions).max()) < 1e-3
    )


def test_the_judge_decides_what_grows(
    model: MoleculeModel, real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one who likes nitrogen there is more of it, and the kept ring is still there."""
    nitrogen = model.config.vocabulary.elements.index(7)
    chosen_by(model, real, monkeypatch, lambda x, t: 20.0 * (x[TYPES] == nitrogen).sum(1).float())
    own = editor(model, "Cc1ccoc1", "c1ccoc1")
    found = {}
    for count in (1, 8):
        options = model.options(steps=6, want=(("gap", 0.0, None),), candidates=count)
        made = drawn(own, list(range(24)), options)
        assert all(own.kept.preserved_in(m) for m in made.values())
        found[count] = [int((m.numbers == 7).sum()) for m in made.values()]
    assert all(many >= few for few, many in zip(found[1], found[8], strict=True))
    assert sum(found[8]) > 1.25 * sum(found[1])


def test_sizes_are_those_at_which_wishes_are_met(model: MoleculeModel) -> None:
    """Bayes' rule with the training data's own shares, counted by hand; an open wish changes nothing."""
    plain = editor(model, "Cc1ccoc1", "c1ccoc1", "cut")
    kept, table = plain.kept, model.table
    assert table is not None
    column = [r.name for r in model.config.ranges].index("alpha")
    r = model.config.ranges[column]
    value = table.z[:, column].double() * r.std + r.mean
    want = (("alpha", 60.0, 70.0),)
    told = Editor(model, kept, want=want).table
    expected = {}
    for (a, h), p in plain.table.items():
        inside = [60 <= v <= 70 for v in value[table.sizes == len(kept.molecule) + a + h].tolist()]
        expected[a, h] = p * (sum(inside) / len(inside) if inside else 0.0)
    total = sum(expected.values())
    for pair, p in expected.items():
        assert told.get(pair, 0.0) == pytest.approx(
            p / total, abs=0.02
        )  # what is nearly inside counts in part
    mean = [sum((a + h) * p for (a, h), p in t.items()) for t in (told, plain.table)]
    assert mean[0] < mean[1]
    same_ = Editor(model, kept, want=(("alpha", -1e6, 1e6),)).table
    assert same_ == pytest.approx(plain.table)


def test_an_edit_with_wishes_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sdf("in.sdf", [add_geometry("Cc1ccoc1")])
    original = read_sdf("in.sdf")[0]
    words = ["edit", "in.sdf", "--keep", "c1ccoc1", "-n", "4", "--steps", "8", "--workers", "1"]
    wish = ["--want", "gap<5 eV", "--want", "mu=2 D"]
    assert main([*words, *wish, "--candidates", "4", "-o", "a.sdf"]) == 0
    said = capsys.readouterr().out
    assert "wanted: gap < 5 eV; training data" in said
    assert "gap < 5 eV: met by" in said
    made = read_sdf("a.sdf")
    record = json.loads(Path("a.sdf.run.json").read_text())
    assert record["result"]["evaluations"] > 8
    assert record["result"]["kept_preserved"] is True
    assert record["result"]["wishes"]["gap"]["unit"] == "eV"
    std = {r.name: r.std for r in perrin.load("molecule/qm9-properties").config.ranges}
    for m in made:
        assert np.array_equal(m.positions[:5], original.positions[1:6])
        assert m.properties["wanted"] == "gap < 5 eV; mu = 2 D"
        gap, mu = m.properties["predicted_gap_eV"], m.properties["predicted_mu_D"]
        assert m.properties["wishes_met"] == int(gap <= 5 and abs(mu - 2) <= Table.soft * std["mu"])
    # in any batch
    assert main([*words, *wish, "--candidates", "4", "--batch", "1", "-o", "b.sdf"]) == 0
    assert Path("a.sdf").read_bytes() == Path("b.sdf").read_bytes()
    capsys.readouterr()
    for options, message in (
        (["--candidates", "4"], "expected --want with --candidates"),
        ([*wish, "--candidates", "0"], "expected 1 to 256 candidates, given 0"),
        ([*wish, "--guide", "molecule/qm9"], "expected a property network"),
    ):
        assert main([*words, *options, "-o", "c.sdf"]) == 2
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
        assert not Path("c.sdf").exists()
    assert (
        main(["vary", "in.sdf", "-n", "2", "--steps", "8", *wish[:2], "--candidates", "2", "-o", "d.sdf"])
        == 0
    )
    assert "predicted_gap_eV" in read_sdf("d.sdf")[0].properties
