"""Predictions in files are the network's numbers in the unit that their name says, and wishes are judged by these."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from ase import units as ase_units

import perrin
from perrin.bundle import read_config
from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities import find_bundle
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.files import read_molecules, read_sdf, write_sdf
from perrin.modalities.molecule.predicted import (
    DEFAULT,
    PREDICTED,
    asked,
    item_name,
    predict,
    read_name,
    strange,
    units_for,
    without,
)
from perrin.modalities.molecule.predictor import Predictor
from perrin.modalities.molecule.properties import Table
from perrin.modalities.molecule.ranking import RankOptions, parse_where, rank
from perrin.modalities.molecule.ranking.columns import column_of
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.telling import judge
from perrin.modalities.molecule.units import UNITS, convert
from perrin.modalities.molecule.view_properties import page_properties
from perrin.modalities.molecule.wants import parse_wishes

SMILES = (
    "CCO",
    "c1ccccc1",
    "CC(C)=O",
    "OCC(O)CO",
    "C1CC1",
    "O=C1C=CC(=O)C=C1",
    "CCCCCC",
    "CCN",
    "c1ccoc1C",
    "CCC#N",
)
OWN = {
    "alpha": "bohr^3",
    "gap": "hartree",
    "homo": "hartree",
    "lumo": "hartree",
    "mu": "D",
    "cv": "cal/(mol K)",
}


@pytest.fixture(scope="module")
def network() -> Predictor:
    return perrin.load(DEFAULT)


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    return [replace(add_geometry(s), name=s) for s in SMILES]


# names


def test_a_name_says_property_and_unit() -> None:
    for sizes in UNITS.values():
        for unit, size in sizes.items():
            name = item_name("some_thing", unit)
            assert re.fullmatch(r"[A-Za-z0-9_]+", name)
            pair = read_name(name)
            assert pair is not None
            assert pair[0] == "some_thing"
            assert sizes[pair[1]] == size  # the same unit, maybe in another spelling
    assert [item_name(n, u) for n, u in OWN.items()] == [
        "predicted_alpha_bohr3", "predicted_gap_Ha", "predicted_homo_Ha", "predicted_lumo_Ha", "predicted_mu_D",
        "predicted_cv_cal_per_mol_K",
    ]  # fmt: skip
    assert read_name("predicted_logS") == ("logS", "")
    assert read_name("xtb_gap") is None
    column = column_of("predicted_gap_kcal_per_mol")
    assert column is not None
    assert column.unit == "kcal/mol"


def test_units_are_the_users_then_those_of_like_properties() -> None:
    assert units_for(OWN, {}) == OWN
    assert units_for(OWN, {"gap": "eV"}) == OWN | dict.fromkeys(("gap", "homo", "lumo"), "eV")
    assert units_for(OWN, {"gap": "eV", "homo": "meV"})["lumo"] == "eV"
    assert units_for(OWN, {"homo": "meV"})["mu"] == "D"


# numbers


def test_what_the_network_says_does_not_depend_on_company(
    network: Predictor, molecules: list[Molecule]
) -> None:
    together = network.of(molecules)
    assert torch.equal(network.of(molecules, batch=2), together)
    for i, molecule in enumerate(molecules):
        assert torch.equal(network.of([molecule])[0], together[i])
    strange_one = add_geometry("CS")
    mixed = network.of([strange_one, *molecules])
    assert bool(mixed[0].isnan().all())
    assert torch.equal(mixed[1:], together)


def test_items_are_the_networks_numbers_in_their_units(network: Predictor, molecules: list[Molecule]) -> None:
    units = {"alpha": "Å^3", "gap": "eV", "homo": "kJ/mol", "lumo": "hartree", "mu": "e*Å", "cv": "J/(mol K)"}
    factors = {
        "alpha": ase_units.Bohr**3, "gap": ase_units.Hartree, "homo": ase_units.Hartree / (ase_units.kJ / ase_units.mol),
        "lumo": 1.0, "mu": ase_units.Debye, "cv": ase_units.kcal / ase_units.kJ,
    }  # fmt: skip
    found = predict(network, molecules, units)
    assert found == predict(network, molecules, units, workers=2)
    values = network.of(molecules)
    for k, r in enumerate(network.config.ranges):
        item = item_name(r.name, units[r.name])
        told = [items[item] for items in found.items]
        assert told == pytest.approx((values[:, k] * factors[r.name]).tolist(), rel=2e-5)


def test_the_network_that_ships_knows_its_chemistry(network: Predictor, molecules: list[Molecule]) -> None:
    """Orders that no calculation disputes: gaps fall with conjugation, polarisability grows, benzene has no dipole."""
    found = dict(zip(SMILES, network.of(molecules).tolist(), strict=True))
    names = [r.name for r in network.config.ranges]
    gap, alpha, mu = ({s: v[names.index(k)] for s, v in found.items()} for k in ("gap", "alpha", "mu"))
    assert gap["CCCCCC"] > gap["c1ccccc1"] > gap["O=C1C=CC(=O)C=C1"]
    assert alpha["CCCCCC"] > alpha["c1ccccc1"] > alpha["C1CC1"]
    assert mu["c1ccccc1"] < 0.3 < 1 < mu["CC(C)=O"]


def test_molecules_unlike_the_training_data_are_told_apart(network: Predictor) -> None:
    vocabulary = network.config.vocabulary
    good = add_geometry("CCO")
    heavy = good.numbers != 1
    assert good.bonds is not None
    bare = replace(
        good,
        numbers=good.numbers[heavy],
        positions=good.positions[heavy],
        charges=good.charges[heavy],
        bonds=np.array([b for b in good.bonds.tolist() if heavy[b[0]] and heavy[b[1]]]),
    )
    nan = replace(good, positions=np.full_like(good.positions, np.nan))
    for molecule, words in (
        (good, ""),
        (replace(good, bonds=None), ""),
        (add_geometry("CCS"), "other elements than H, C, N, O, F"),
        (add_geometry("CCCCCCCCCCCC"), "more than 29 atoms"),
        (add_geometry("O"), "fewer than 9 atoms"),
        (add_geometry("CC(=O)[O-]"), "net charge"),
        (add_geometry("[NH3+]CC(=O)[O-]"), ""),
        (bare, "lack hydrogens"),
        (replace(good, positions=good.positions * [1.0, 1.0, 0.0]), "drawn flat"),
        (nan, "without a geometry"),
        (replace(good, positions=0 * good.positions), "without a geometry"),
        (add_geometry("c1ccccc1"), ""),  # flat, and rightly so
    ):
        reason = strange(molecule, vocabulary)
        assert (words in reason) if words else not reason, reason
    assert without(["", ""]) == ""
    assert without(["a", "", "b", "a"]).endswith(
        "for 3 of 4 molecules, which the property network has not learnt from: 2 a (records 1, 4), 1 b (record 3)"
    )
    assert without(["a"] * 4, [2, 3, 5, 7]).endswith("4 a (records 2, 3, 5, …)")


# wishes are echoed and judged


def test_wishes_speak_the_users_unit(network: Predictor) -> None:
    texts = ["GAP<=5 ev", "mu>1", "mu < 2 D", "cv=120..150 J/mol/K", "homo>-0.25 Ha"]
    wishes = {w.name: w for w in parse_wishes(texts, network.config.ranges)}
    assert {k: str(w) for k, w in wishes.items()} == {
        "gap": "gap <= 5 eV", "mu": "mu > 1 D and mu < 2 D", "cv": "cv = 120..150 J/mol/K", "homo": "homo > -0.25 Ha",
    }  # fmt: skip
    gap, cv = wishes["gap"], wishes["cv"]
    assert gap.high == pytest.approx(5 / ase_units.Hartree, rel=1e-7)
    assert gap.show(gap.high) == 5  # and not 4.99…
    assert (cv.show(cv.low), cv.show(cv.high), cv.told) == (120, 150, "J/mol/K")
    assert gap.quote(0.25, 0.5) == "6.8028 to 13.606 eV"
    with pytest.raises(PerrinError, match=r"given gap <= 5 eV and gap > 6 eV"):
        parse_wishes(["gap<=5 eV", "gap>6 eV"], network.config.ranges)


def test_the_verdict_is_that_of_the_files_numbers(network: Predictor, molecules: list[Molecule]) -> None:
    model = perrin.load("molecule/qm9")
    model.guide = network
    want = ["gap<6.5 eV", "mu=1.7", "alpha>40"]
    options = model.options(want=tuple((w.name, None, None) for w in model.wishes(want)))
    verdict = judge(model, options, want, molecules)
    by_hand = []
    std = {r.name: r.std for r in network.config.ranges}
    for m in verdict.molecules:
        v = m.properties
        assert v["wanted"] == "alpha > 40 bohr^3; gap < 6.5 eV; mu = 1.7 D"
        assert {"predicted_homo_eV", "predicted_lumo_eV", "predicted_cv_cal_per_mol_K"} <= set(v)
        by_hand.append(
            (
                v["predicted_alpha_bohr3"] > 40,
                v["predicted_gap_eV"] < 6.5,
                abs(v["predicted_mu_D"] - 1.7) <= Table.soft * std["mu"],
            )
        )
        assert v["wishes_met"] == int(all(by_hand[-1]))
    shares = np.array(by_hand).mean(0)
    found = verdict.record
    assert [found[k]["met"] for k in ("alpha", "gap", "mu")] == pytest.approx(shares.tolist())
    assert found["all"]["met"] == np.mean([all(row) for row in by_hand])
    assert 0 < shares[1] < 1
    assert (found["gap"]["wish"], found["gap"]["unit"], found["gap"]["high"]) == ("gap < 6.5 eV", "eV", 6.5)
    assert found["gap"]["low"] is None
    if (error := network.errors.get("gap")) is not None:
        assert found["gap"]["network error"] == pytest.approx(error * ase_units.Hartree)
    assert any(line.startswith("gap < 6.5 eV: met by") and "Ha" not in line for line in verdict.lines)
    apart = np.mean([abs(m.properties["predicted_mu_D"] - 1.7) for m in verdict.molecules])
    assert found["mu"]["mean distance"] == pytest.approx(apart)

    shown = page_properties(verdict.molecules)
    assert shown["shown"][:4] == ["predicted_alpha_bohr3", "predicted_gap_eV", "predicted_mu_D", "wishes_met"]
    drawn = {h["name"] for h in shown["histograms"]}
    assert "predicted_cv_cal_per_mol_K" in drawn
    assert "wishes_met" not in drawn

    model.guide = None  # nothing to predict by: the wishes are still told
    alone = judge(model, options, want, molecules)
    assert alone.molecules[0].properties["wanted"] == verdict.molecules[0].properties["wanted"]
    assert not any(k.startswith("predicted") for k in alone.molecules[0].properties)
    assert alone.record["gap"]["wish"] == "gap < 6.5 eV"


def test_a_sampled_file_holds_what_the_network_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.sdf"
    command = [
        "sample",
        "molecule/qm9",
        "-n",
        "6",
        "--steps",
        "4",
        "--candidates",
        "2",
        "--workers",
        "1",
        "-o",
        str(out),
    ]
    assert main([*command, "--want", "gap<0.25 Ha", "--want", "mu<70 e*a0"]) == 0
    said = capsys.readouterr().out
    assert "wanted: gap < 0.25 Ha; training data" in said
    assert "gap < 0.25 Ha: met by" in said
    assert "hartree" not in said
    made = read_sdf(out)
    record = json.loads((tmp_path / "a.sdf.run.json").read_text())["result"]["wishes"]
    network: Predictor = perrin.load(DEFAULT)
    values = network.of(made)  # four decimals of the positions are in the file
    names = [r.name for r in network.config.ranges]
    for m, row in zip(made, values.tolist(), strict=True):
        gap, mu = m.properties["predicted_gap_Ha"], m.properties["predicted_mu_ea0"]
        assert gap == pytest.approx(row[names.index("gap")], abs=2e-3)
        assert mu * ase_units.Bohr / ase_units.Debye == pytest.approx(row[names.index("mu")], abs=0.02)
        assert m.properties["wishes_met"] == int(gap < 0.25 and mu < 70)
    assert record["all"]["met"] == pytest.approx(np.mean([m.properties["wishes_met"] for m in made]))
    assert record["gap"]["wish"] == "gap < 0.25 Ha"

    ranked = tmp_path / "r.sdf"
    assert (
        main(["rank", str(out), "--by", "-predicted_gap", "--where", "predicted_mu<9 D", "-o", str(ranked)])
        == 0
    )
    kept = read_sdf(ranked)
    assert [m.properties["predicted_gap_Ha"] for m in kept] == sorted(
        m.properties["predicted_gap_Ha"]
        for m in made
        if convert(m.properties["predicted_mu_ea0"], "e*a0", "D", "mu") < 9
    )
    assert all("wishes_met" in m.properties for m in kept)
    assert parse_where("wishes_met=yes", {"wishes_met"})({"wishes_met": 1})


def test_a_wish_for_molecules_that_the_network_does_not_know(network: Predictor) -> None:
    model = perrin.load("molecule/qm9")
    model.guide = network
    options = model.options(want=tuple((w.name, None, None) for w in model.wishes(["gap<6 eV"])))
    small = [add_geometry("O"), add_geometry("CC=O")]
    verdict = judge(model, options, ["gap<6 eV"], small)
    assert verdict.strange.endswith("2 of fewer than 9 atoms (records 1, 2)")
    assert not any("no predictions" in line for line in verdict.lines)
    with pytest.raises(PerrinError, match="given one without: the property network has not learnt from such"):
        rank(verdict.molecules, RankOptions(where=("wishes_met=yes",)))


def test_shards_hold_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "sample molecule/qm9 -n 6 --steps 3 --candidates 2 --want gap<0.25 --seed 4"
    sample = words.split()
    assert main([*sample, "--workers", "1", "-o", "a.sdf.gz"]) == 0
    assert (
        main(["submit", *sample, "--shards", "2", "--engine", "local", "--processes", "1", "-o", "run"]) == 0
    )
    assert main(["run", "merge", "run", "-o", "b.sdf.gz"]) == 0
    assert Path("a.sdf.gz").read_bytes() == Path("b.sdf.gz").read_bytes()
    one, other = (json.loads(Path(f"{x}.sdf.gz.run.json").read_text())["result"]["wishes"] for x in "ab")
    assert one["all"] == other["all"]
    assert one["gap"]["wish"] == other["gap"]["wish"] == "gap < 0.25 hartree"


# ranking


def test_rank_predicts_for_any_file(network: Predictor, molecules: list[Molecule]) -> None:
    thiol = replace(add_geometry("CCS"), name="CCS")
    stale = [replace(m, properties={"predicted_gap_eV": -1.0, "predicted_own_D": 3.0}) for m in molecules]
    ranked = rank([thiol, *stale], RankOptions(by="-predicted_gap", predict=DEFAULT))
    values = {m.name: m.properties for m in ranked.molecules}
    assert ranked.molecules[-1].name == "CCS"  # without the value
    assert not any(k.startswith("predicted") for k in values["CCS"])
    assert ranked.strange.startswith("no predictions for 1 of 11 molecules")
    gap = [r.name for r in network.config.ranges].index("gap")
    expected = dict(zip(SMILES, (network.of(molecules)[:, gap] * ase_units.Hartree).tolist(), strict=True))
    for name, v in expected.items():
        assert values[name]["predicted_gap_eV"] == pytest.approx(v, rel=1e-5)
        assert values[name]["predicted_own_D"] == 3.0  # not the network's to renew
    assert [m.name for m in ranked.molecules[:-1]] == sorted(expected, key=expected.__getitem__)
    assert "predicted_gap_eV" in ranked.columns
    two = rank([thiol, *stale], RankOptions(by="-predicted_gap", predict=DEFAULT, workers=2))
    assert two == ranked


def test_a_name_asks_for_a_prediction_and_a_unit_chooses_it(molecules: list[Molecule]) -> None:
    ev, ha = (
        rank(molecules, RankOptions(by="qed", where=(text,)))
        for text in ("predicted_gap<6.9 eV", f"predicted_gap_Ha<{6.9 / ase_units.Hartree:.9f}")
    )
    assert [m.name for m in ev.molecules] == [m.name for m in ha.molecules]
    assert 0 < len(ev.molecules) < len(molecules)
    assert "predicted_homo_eV" in ev.molecules[0].properties
    assert "predicted_gap_Ha" in ha.molecules[0].properties
    assert rank(molecules, RankOptions(by="Predicted_GAP_ev")).molecules[0].properties["predicted_gap_eV"] > 9
    # what the file has is taken as it is
    own = [replace(m, properties={"predicted_gap_eV": float(k)}) for k, m in enumerate(molecules)]
    ranked = rank(own, RankOptions(by="predicted_gap_EV"))
    assert ranked.predicted is None
    assert [m.properties["predicted_gap_eV"] for m in ranked.molecules] == list(range(len(own)))[::-1]


def test_what_a_file_says_is_kept_in_its_units(
    tmp_path: Path, molecules: list[Molecule], capsys: pytest.CaptureFixture[str]
) -> None:
    write_sdf(tmp_path / "a.sdf", molecules)
    names = ("a.sdf", "b.sdf", "c.sdf", "d.sdf")
    a, b, c, d = (str(tmp_path / name) for name in names)
    assert main(["rank", a, "--predict", "-o", b]) == 0
    capsys.readouterr()
    assert main(["rank", b, "--by", "-predicted_gap_eV", "--where", "predicted_gap_eV<7", "-o", c]) == 0
    assert "predicted by" not in capsys.readouterr().out
    before = {m.name: {k: v for k, v in m.properties.items() if k.startswith("pred")} for m in read_sdf(b)}
    limit = 7 / ase_units.Hartree
    gaps = sorted(v["predicted_gap_Ha"] for v in before.values() if v["predicted_gap_Ha"] < limit)
    found = read_sdf(c)
    assert [m.properties["predicted_gap_Ha"] for m in found] == gaps
    assert 0 < len(found) < len(molecules)
    for m in found:
        assert {k: v for k, v in m.properties.items() if k.startswith("pred")} == before[m.name]
    # asked for again, all of a kind are in the unit that is named
    assert main(["rank", b, "--predict", "--by", "-predicted_gap_eV", "-o", d]) == 0
    items = {k for m in read_sdf(d) for k in m.properties}
    assert {f"predicted_{k}_eV" for k in ("gap", "homo", "lumo")} <= items
    assert not any(k.endswith("_Ha") and k.startswith("predicted") for k in items)
    assert main(["rank", b, "--by", "predicted_gap_D"]) == 2
    assert "a unit of predicted_gap_Ha" in capsys.readouterr().err
    # only what is missing
    own = [replace(m, properties={"predicted_gap_eV": float(k)}) for k, m in enumerate(molecules)]
    ranked = rank(own, RankOptions(by="predicted_homo_Ha"))
    assert sorted(m.properties["predicted_gap_eV"] for m in ranked.molecules) == list(range(len(own)))
    assert "predicted_homo_eV" in ranked.columns


def test_the_hint_to_a_property_is_to_what_the_file_says(network: Predictor) -> None:
    with pytest.raises(PerrinError, match=r"given 'gap': did you mean predicted_gap_eV\?"):
        parse_where("gap<5", {"predicted_gap_eV", "predicted_homo_eV"})
    assert tuple(r.name for r in network.config.ranges) == PREDICTED


def test_what_is_asked_is_known_before_the_network_is(network: Predictor) -> None:
    found = asked(DEFAULT, ["predicted_mu_eA"], [("predicted_gap_eV", ""), ("qed", "Da")])
    assert found.units == OWN | {"mu": "e*Å", "gap": "eV", "homo": "eV", "lumo": "eV"}
    config = read_config(find_bundle(DEFAULT))
    for name, error in (config.get("training", {}).get("errors") or {}).items():
        assert found.errors[name] == pytest.approx(convert(error, OWN[name], found.units[name], name))
        assert found.items[name] in found.about


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--by", "predicted_gp"], "did you mean predicted_gap_Ha?"),
        (["--by", "predicted_gap_D"], "a unit of gap"),
        (["--by", "gap"], "did you mean predicted_gap?"),
        (["--where", "predicted_gap<1 D"], "a unit of gap"),
        (["--predict-by", "molecule/qm9"], "a property network, such as molecule/qm9-properties"),
        (["--predict-by", "molecule/none"], "expected a bundle"),
        (
            ["--by", "wishes_met"],
            "expected a file with wishes_met, given one without: it is of molecules that",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    molecules: list[Molecule],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    write_sdf(tmp_path / "a.sdf", molecules[:2])
    assert main(["rank", str(tmp_path / "a.sdf"), "-o", str(tmp_path / "b.sdf"), *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "b.sdf").exists()


def test_rank_and_view_of_a_file_with_what_the_network_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.smi").write_text("CCO a\nCCS b\n")
    out = tmp_path / "m.csv"
    assert main(["rank", str(tmp_path / "m.smi"), "--predict", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "warning: no predictions for 1 of 2 molecules" in said.err
    assert "predicted by molecule/qm9-properties" in said.out
    table = said.out.split("predicted by")[0]
    for name, (item, row) in zip(
        ("gap", "homo", "lumo", "mu"),
        ((k, next(csv.DictReader(out.open()))) for k in ("gap_Ha", "homo_Ha", "lumo_Ha", "mu_D")),
        strict=True,
    ):
        assert f"{name}, {item.split('_')[1]}" in table
        assert f"{float(row['predicted_' + item]):.5g}" in table
    record = json.loads((tmp_path / "m.csv.run.json").read_text())
    assert record["units"]["predicted_gap_Ha"] == "Ha"
    assert record["predicted"]["reference"] == DEFAULT
    assert main(["rank", str(tmp_path / "m.smi"), "--predict", "-o", str(tmp_path / "m.sdf")]) == 0
    assert main(["view", str(tmp_path / "m.sdf"), "-o", str(tmp_path / "m.html")]) == 0  # sulfur and all
    assert '"predicted_gap_Ha"' in (tmp_path / "m.html").read_text()
    assert len(read_molecules(tmp_path / "m.sdf")) == 2
