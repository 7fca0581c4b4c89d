"""Both protocols on molecules small enough to count by hand, and on a second, scalar implementation of the table."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rdkit")

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.metrics import evaluate, format_table
from perrin.modalities.molecule.metrics.bonds import VALENCES, bonds
from perrin.modalities.molecule.metrics.lookup import lookup, lookup_orders
from perrin.modalities.molecule.structure import Molecule

SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

# pm, typed from the published table: pair: single, double, triple (0 where there is none)
PUBLISHED = """
HH 74 0 0   HC 109 0 0  HN 101 0 0  HO 96 0 0   HF 92 0 0
CC 154 134 120  CN 147 129 116  CO 143 120 113  CF 135 0 0
NN 145 125 110  NO 140 121 0    NF 136 0 0
OO 148 121 0    OF 142 0 0      FF 142 0 0
"""
TABLE = {
    (SYMBOLS[pair[0]], SYMBOLS[pair[1]]): tuple(map(int, rest))
    for pair, *rest in zip(*[iter(PUBLISHED.split())] * 4)
}


def made(smiles: str) -> Molecule:
    return add_geometry(smiles)


def molecule(
    numbers: list[int],
    rows: list[tuple[int, int, int]],
    charges: list[int] | None = None,
    spread: float = 5.0,
) -> Molecule:
    positions = np.zeros((len(numbers), 3))
    positions[:, 0] = spread * np.arange(len(numbers))
    return Molecule(
        numbers=np.array(numbers),
        positions=positions,
        bonds=np.array(rows, dtype=np.int64).reshape(-1, 3),
        charges=np.array(charges or [0] * len(numbers)),
    )


def scalar_order(a: int, b: int, pm: float) -> int:
    single, double, triple = TABLE[min(a, b), max(a, b)]
    if pm >= single + 10:
        return 0
    if not double or pm >= double + 5:
        return 1
    if not triple or pm >= triple + 3:
        return 2
    return 3


@pytest.mark.parametrize("pair", TABLE)
def test_thresholds_of_every_pair(pair: tuple[int, int]) -> None:
    for length, margin in zip(TABLE[pair], (10, 5, 3)):
        for pm in (length + margin - 0.01, length + margin + 0.01) if length else ():
            for numbers in (pair, pair[::-1]):
                positions = np.array([[[0.0, 0.0, 0.0], [0.0, pm / 100, 0.0]]])
                orders = lookup_orders(np.array([numbers]), positions)
                assert orders[0].tolist() == [[0, scalar_order(*pair, pm)], [scalar_order(*pair, pm), 0]]


@pytest.mark.parametrize(
    ("pm", "order"), [(163.9, 1), (164.1, 0), (138.9, 2), (139.1, 1), (122.9, 3), (123.1, 2)]
)
def test_carbon_carbon_by_hand(pm: float, order: int) -> None:
    orders = lookup_orders(np.array([[6, 6]]), np.array([[[0.0, 0, 0], [pm / 100, 0, 0]]]))
    assert orders[0, 0, 1] == order


def test_padded_batches_agree_with_the_scalar_table() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 12, size=40)
    numbers = np.zeros((40, 12), dtype=np.int64)
    positions = np.zeros((40, 12, 3))
    for row, n in enumerate(sizes):
        numbers[row, :n] = generator.choice([1, 6, 7, 8, 9], size=n)
        positions[row, :n] = generator.uniform(0, 3, size=(n, 3))
    orders = lookup_orders(numbers, positions)
    for row in range(40):
        for i in range(12):
            for j in range(12):
                real = i != j and numbers[row, i] and numbers[row, j]
                pm = 100 * float(np.linalg.norm(positions[row, i] - positions[row, j]))
                assert orders[row, i, j] == (
                    scalar_order(numbers[row, i], numbers[row, j], pm) if real else 0
                )


def test_lookup_of_hand_made_molecules() -> None:
    methane, broken = made("C"), made("C")
    broken.positions[4] += 5.0  # one hydrogen leaves: itself and the carbon lack a bond
    oxide = made(
        "[C-]#[O+]"
    )  # 1.13 Å: order 3, no charges in this protocol: both atoms have the wrong valence
    oxide.positions[:] = [[0, 0, 0], [1.13, 0, 0]]
    rows = lookup([methane, broken, oxide])
    assert [(row.atoms, row.stable_atoms, row.stable) for row in rows] == [
        (5, 5, True),
        (5, 3, False),
        (2, 0, False),
    ]
    assert [row.smiles for row in rows] == ["C", "C", None]


def test_lookup_takes_the_largest_fragment_and_ignores_generated_bonds() -> None:
    pair = made("CCO.C")
    pair.positions[[i for i in range(len(pair)) if _fragment(pair)[i]]] += 20.0
    (row,) = lookup([replace(pair, bonds=None)])
    assert row.stable
    assert row.smiles == "CCO"


def _fragment(pair: Molecule) -> list[bool]:
    """Whether each atom is bonded (directly or not) to the last heavy atom, the methane."""
    assert pair.bonds is not None
    last = int(np.flatnonzero(pair.numbers > 1)[-1])
    members = {last}
    for _ in range(len(pair)):
        members |= {a for i, j, _ in pair.bonds.tolist() for a in (i, j) if {i, j} & members}
    return [i in members for i in range(len(pair))]


@pytest.mark.parametrize(
    "smiles",
    [
        "C",
        "[C-]#[O+]",
        "C[N+](=O)[O-]",
        "c1ccccc1",
        "C[NH3+]",
        "C1CC1",
        "C[NH-]",
        "CN(=C)C",
        "C[O-]",
        "C[N-][N+]#N",
    ],
)
def test_bonds_protocol_accepts_sound_molecules(smiles: str) -> None:
    if smiles == "CN(=C)C":
        four = made("C[N+](=C)C")
        (row,) = bonds(
            [replace(four, charges=np.zeros_like(four.charges))]
        )  # the same bonds without the charge
        assert (row.atoms - row.stable_atoms, row.valid) == (1, False)
        return
    (row,) = bonds([made(smiles)])
    assert row.stable
    assert row.valid
    assert row.connected
    assert row.neutral == (smiles not in ("C[NH3+]", "C[NH-]", "C[O-]"))


@pytest.mark.parametrize(
    ("numbers", "rows", "charges", "stable_atoms", "valid", "connected"),
    [
        ([6, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)], None, 5, False, True),  # five-valent carbon
        (
            [6, 1, 1, 1],
            [(0, i, 1) for i in range(1, 4)],
            None,
            3,
            True,
            True,
        ),  # methyl radical: valid to RDKit
        ([6, 1, 1, 1], [(0, i, 1) for i in range(1, 4)], [1, 0, 0, 0], 4, True, True),  # methyl cation
        (
            [8, 1, 1, 8, 1, 1],
            [(0, 1, 1), (0, 2, 1), (3, 4, 1), (3, 5, 1)],
            None,
            6,
            True,
            False,
        ),  # two waters
        ([6, 8], [(0, 1, 3)], [-1, 1], 2, True, True),  # carbon monoxide
        ([6, 8], [(0, 1, 3)], None, 0, False, True),  # the same without charges
        ([9, 9], [(0, 1, 2)], None, 0, False, True),
        ([1, 1], [(0, 1, 1)], None, 2, True, True),
    ],
)
def test_bonds_protocol_by_hand(
    numbers: list[int],
    rows: list[tuple[int, int, int]],
    charges: list[int] | None,
    stable_atoms: int,
    valid: bool,
    connected: bool,
) -> None:
    (row,) = bonds([molecule(numbers, rows, charges)])
    assert (row.stable_atoms, row.valid, row.connected) == (stable_atoms, valid, connected)
    assert (row.smiles is not None) == (valid and connected)


def test_valence_table_is_the_octet_rule() -> None:
    for element, electrons in {6: 4, 7: 5, 8: 6, 9: 7}.items():
        for charge in (-1, 0, 1):
            allowed = VALENCES.get((element, charge))
            if allowed is not None:
                remaining = electrons - charge
                assert allowed == ((8 - remaining) if remaining >= 4 else remaining,)


def test_metrics_by_hand() -> None:
    methane, water = made("C"), made("O")
    radical = molecule([6, 1, 1, 1], [(0, i, 1) for i in range(1, 4)])
    broken = molecule([6, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)])
    pair = molecule([8, 1, 1, 8, 1, 1], [(0, 1, 1), (0, 2, 1), (3, 4, 1), (3, 5, 1)])
    result = evaluate([methane, methane, water, radical, broken, pair], "bonds", reference={"C"})
    metrics = {name: entry["value"] for name, entry in result["protocols"]["bonds"]["metrics"].items()}
    assert metrics == {
        "atom_stable": (5 + 5 + 3 + 3 + 5 + 6) / 29,
        "molecule_stable": 4 / 6,
        "valid": 5 / 6,
        "connected": 5 / 6,
        "valid_connected": 4 / 6,
        "neutral": 1.0,
        "sound": 3 / 6,
        "unique": 3 / 4,  # C, C, O, [CH3]
        "valid_unique": 3 / 6,
        "novel": 2 / 3,
    }
    assert list(result["protocols"]) == ["bonds"]
    json.dumps(result)


def test_binomial_errors() -> None:
    good, bad = made("C"), molecule([6, 1], [(0, 1, 1)])
    result = evaluate([good] * 3 + [bad], "bonds")
    metrics = result["protocols"]["bonds"]["metrics"]
    assert result["standard_error"] == "binomial"
    assert metrics["molecule_stable"]["value"] == 0.75
    assert metrics["molecule_stable"]["error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    p = 16 / 17
    clusters = 3 * (5 - 5 * p) ** 2 + (1 - 2 * p) ** 2
    assert metrics["atom_stable"]["error"] == pytest.approx(math.sqrt(clusters) / 17)


def test_errors_over_groups() -> None:
    good, bad = made("C"), molecule([6, 1], [(0, 1, 1)])
    expected = {"value": 0.75, "error": pytest.approx(math.sqrt(2 * 0.25**2) / math.sqrt(2))}
    flat = [good, good, good, bad]
    tagged = [replace(m, properties={"group": i // 2}) for i, m in enumerate(flat)]
    for result in (
        evaluate([flat[:2], flat[2:]], "bonds"),
        evaluate(flat, "bonds", groups=2),
        evaluate(tagged, "bonds"),
    ):
        assert (result["n"], result["groups"], result["standard_error"]) == (4, 2, "over 2 groups")
        assert result["protocols"]["bonds"]["metrics"]["molecule_stable"] == expected


def test_protocols_are_named_and_not_mixed() -> None:
    result = evaluate([made("C")] * 2, "both", reference=[], label="ours")
    assert list(result["protocols"]) == ["lookup", "bonds"]
    text = format_table(result)
    lookup_part, bonds_part = text.split("bonds protocol")
    assert "lookup protocol" in lookup_part
    assert "EDM (published)" in lookup_part
    assert "SemlaFlow" not in lookup_part
    assert "SemlaFlow" in bonds_part
    assert "EDM" not in bonds_part
    assert text.count("novelty is not quality") == 2
    assert "ours" in text


def test_nothing_valid_has_no_uniqueness() -> None:
    metrics = evaluate([molecule([9, 9], [(0, 1, 2)])], "bonds", reference=[])["protocols"]["bonds"][
        "metrics"
    ]
    assert metrics["unique"] == {"value": None, "error": None}
    assert metrics["novel"] == {"value": None, "error": None}
    assert metrics["valid_unique"]["value"] == 0.0


@pytest.mark.parametrize(
    ("molecules", "options", "message"),
    [
        ([], {}, "at least one molecule"),
        ([[]], {}, "empty group"),
        ("one", {"protocol": "edm"}, "expected the protocol lookup, bonds or both, given 'edm'"),
        ("one", {"groups": 2}, "expected 1 to 1 groups"),
        ("xyz", {"protocol": "bonds"}, "lookup protocol"),
        ("silicon", {"protocol": "lookup"}, "atomic number 14 in molecule 1"),
    ],
)
def test_bad_input(molecules, options, message: str) -> None:  # type: ignore[no-untyped-def]
    known = {
        "one": molecule([1, 1], [(0, 1, 1)]),
        "xyz": replace(molecule([1, 1], []), bonds=None),
        "silicon": molecule([14], []),
    }
    given = [known[molecules]] if isinstance(molecules, str) else molecules
    with pytest.raises(PerrinError, match=message):
        evaluate(given, **options)


def test_rdkit_stays_silent(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate([molecule([6, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)], spread=0.9)], "both")
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""
