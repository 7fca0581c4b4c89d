r"""Distributions of bond lengths, angles and dihedrals against those of real molecules, as Wasserstein distances.

Every bond, angle and dihedral that the given bonds define has a type:

    length    elements and order            C=O
    angle     elements and orders, a–b–c    H–C–C, O=C–N
    dihedral  the same of a–b–c–d           H–C–C=O

read from the end that sorts first. For each type `W_1` compares the two samples exactly, without bins, in Å or
degrees; the metric is the mean over types, weighted by their share `p_k` in the reference,

    W = Σ_k p_k W_1(k) / Σ_k p_k,

over the types with at least `LEAST` values in the reference and one in the sample; `covered` says which share of the
reference that is. A dihedral counts by its size, 0° to 180°: a mirror image is as good; those with nearly straight
angles, which have none, are left out. Orders are of the Kekulé form that the file has.

MiDi (Vignac et al., arXiv:2302.09048, `midi/metrics/molecular_metrics.py`) and EQGAT-diff (Le et al.,
arXiv:2309.17296) use coarser types: the order alone for lengths, the central element for angles.
`bond_length_by_order` and `angle_by_element` have those types, but are not MiDi's numbers: no bins (MiDi: 0.01 Å and
0.1°), Kekulé orders (MiDi: aromatic ones apart), and weights that are shares of the bonds and of the angles (MiDi: of
all pairs of atoms, bonded or not, and of the atoms). JODO compares typed lengths, angles and dihedrals by a kernel
distance (MMD) instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.molecule.metrics.statistics import Metrics, wasserstein
from perrin.modalities.molecule.structure import Molecule

LEAST = 20
"""Values of a type in the reference below which it is left out."""

STRAIGHT = 5.0
"""Degrees. A dihedral over an angle this near to 0° or 180° is not defined."""

BONDS = {1: "-", 2: "=", 3: "#"}
_CHUNK = 2000

Values = dict[int, np.ndarray]
"""Values of each type, by its code."""


class Geometry:
    """Lengths (Å), angles and dihedrals (degrees) of a set of molecules, by type.

    Arguments:
        molecules: with bonds.

    Raises:
        PerrinError: a molecule has no bonds (`None`).
    """

    def __init__(self, molecules: Sequence[Molecule]) -> None:
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
            "lengths": [],
            "angles": [],
            "dihedrals": [],
        }
        for start in range(0, len(molecules), _CHUNK):
            for name, codes, values in _measure(molecules[start : start + _CHUNK], start):
                parts[name].append((codes, values))
        self.lengths, self.angles, self.dihedrals = (_grouped(parts[name]) for name in parts)


def geometry_metrics(sample: Geometry, reference: Geometry) -> tuple[Metrics, dict[str, Any]]:
    """The weighted distances, and the distance of every type with its share in the reference."""
    metrics: Metrics = {}
    details: dict[str, Any] = {}
    for name, own, real, label in (
        ("bond_length", sample.lengths, reference.lengths, _length_name),
        ("angle", sample.angles, reference.angles, _angle_name),
        ("dihedral", sample.dihedrals, reference.dihedrals, _dihedral_name),
    ):
        value, covered, rows = _weighted(own, real)
        metrics[name] = (value, None)
        details[name] = {
            "covered": covered,
            "types": {label(k): {"share": share, "w1": w1} for k, share, w1 in rows},
        }
    by_order = [_merged(g.lengths, lambda code: code & 3) for g in (sample, reference)]
    by_element = [_merged(g.angles, lambda code: code >> 18) for g in (sample, reference)]
    metrics["bond_length_by_order"] = (_weighted(*by_order)[0], None)
    metrics["angle_by_element"] = (_weighted(*by_element)[0], None)
    return metrics, details


def _weighted(own: Values, real: Values) -> tuple[float | None, float, list[tuple[int, float, float]]]:
    total = sum(map(len, real.values()))
    shared = [k for k, values in real.items() if len(values) >= LEAST and k in own]
    rows = [(k, len(real[k]) / total, wasserstein(own[k], real[k])) for k in shared]
    rows.sort(key=lambda row: -row[1])
    covered = sum(share for _, share, _ in rows)
    value = sum(share * w1 for _, share, w1 in rows) / covered if covered else None
    return value, covered, rows


def _merged(values: Values, kind: Any) -> Values:
    out: dict[int, list[np.ndarray]] = {}
    for code, array in values.items():
        out.setdefault(kind(code), []).append(array)
    return {code: np.concatenate(arrays) for code, arrays in out.items()}


def _grouped(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Values:
    codes = np.concatenate([codes for codes, _ in parts]) if parts else np.zeros(0, dtype=np.int64)
    values = np.concatenate([values for _, values in parts]) if parts else np.zeros(0)
    order = np.argsort(codes, kind="stable")
    kinds, starts = np.unique(codes[order], return_index=True)
    return dict(zip(kinds.tolist(), np.split(values[order], starts[1:]))) if len(kinds) else {}


def _measure(molecules: Sequence[Molecule], start: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, codes and values of the lengths, the angles and the dihedrals of some molecules."""
    numbers, positions, ends, orders = _joined(molecules, start)
    i, j = ends.T
    z_low, z_high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    yield (
        "lengths",
        (z_low << 9) | (z_high << 2) | orders,
        np.linalg.norm(positions[i] - positions[j], axis=1),
    )

    neighbours, degrees, weights = _neighbours(len(numbers), ends, orders)
    near = [*range(neighbours.shape[1])]
    centre = np.flatnonzero(degrees >= 2)
    codes, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for m in near:
        for n in near[m + 1 :]:
            b = centre[degrees[centre] > n]
            a, c = neighbours[b, m], neighbours[b, n]
            left, right = (numbers[a] << 2) | weights[b, m], (numbers[c] << 2) | weights[b, n]
            codes.append((numbers[b] << 18) | (np.minimum(left, right) << 9) | np.maximum(left, right))
            values.append(_angle(positions[a] - positions[b], positions[c] - positions[b]))
    yield "angles", np.concatenate(codes), np.concatenate(values)

    codes, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for m in near:
        for n in near:
            rows = (degrees[i] > m) & (degrees[j] > n)
            b, c, order = i[rows], j[rows], orders[rows]
            a, d = neighbours[b, m], neighbours[c, n]
            apart = (a != c) & (d != b) & (a != d)  # a == d: a ring of three
            a, b, c, d, order = a[apart], b[apart], c[apart], d[apart], order[apart]
            first, last = weights[b, m], weights[c, n]
            code = _path(numbers[a], first, numbers[b], order, numbers[c], last, numbers[d])
            back = _path(numbers[d], last, numbers[c], order, numbers[b], first, numbers[a])
            angle, defined = _dihedral(positions[a], positions[b], positions[c], positions[d])
            codes.append(np.minimum(code, back)[defined])
            values.append(angle[defined])
    yield "dihedrals", np.concatenate(codes), np.concatenate(values)


def _joined(
    molecules: Sequence[Molecule], start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All atoms one after another: numbers `[A]`, positions `[A, 3]`, ends of the bonds `[B, 2]` and their orders `[B]`."""
    shift, rows = 0, []
    for number, molecule in enumerate(molecules, start + 1):
        if molecule.bonds is None:
            raise PerrinError(
                f"expected bonds for the distributions of lengths and angles, given none in molecule {number} (an XYZ "
                "file has none): give an SDF"
            )
        rows.append(np.asarray(molecule.bonds).reshape(-1, 3) + np.array([shift, shift, 0]))
        shift += len(molecule)
    bonds = np.concatenate(rows).astype(np.int64)
    numbers = np.concatenate([m.numbers for m in molecules]).astype(np.int64)
    positions = np.concatenate([m.positions for m in molecules]).astype(np.float64)
    return numbers, positions, bonds[:, :2], bonds[:, 2]


def _neighbours(
    atoms: int, ends: np.ndarray, orders: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bonded atoms of each atom and the bonds' orders, `[A, K]`, filled from the left, and how many there are, `[A]`."""
    source, target = np.concatenate([ends, ends[:, ::-1]]).T
    weight = np.concatenate([orders, orders])
    order = np.argsort(source, kind="stable")
    source, target, weight = source[order], target[order], weight[order]
    degrees = np.bincount(source, minlength=atoms)
    column = np.arange(len(source)) - np.repeat(degrees.cumsum() - degrees, degrees)
    table = np.zeros((2, atoms, int(degrees.max(initial=0))), dtype=np.int64)
    table[0, source, column], table[1, source, column] = target, weight
    return table[0], degrees, table[1]


def _angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Degrees between vectors; exact near 0° and 180° too."""
    cross = np.linalg.norm(np.cross(u, v), axis=1)
    return np.asarray(np.degrees(np.arctan2(cross, (u * v).sum(1))))


def _dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size of the dihedral in degrees, and whether it is defined."""
    left, right = np.cross(a - b, c - b), np.cross(b - c, d - c)
    bends = np.stack([_angle(a - b, c - b), _angle(b - c, d - c)])
    defined = np.all((bends > STRAIGHT) & (bends < 180 - STRAIGHT), axis=0)
    return _angle(left, right), np.asarray(defined)


def _path(*parts: np.ndarray) -> np.ndarray:
    """Code of a–b–c–d: elements in 7 bits, orders in 2."""
    code = parts[0]
    for k, part in enumerate(parts[1:]):
        code = (code << (2 if k % 2 == 0 else 7)) | part
    return code


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return str(chemical_symbols[number])


def _length_name(code: int) -> str:
    return f"{_symbol(code >> 9)}{BONDS[code & 3]}{_symbol(code >> 2 & 127)}"


def _angle_name(code: int) -> str:
    left, right = code >> 9 & 511, code & 511
    return (
        f"{_symbol(left >> 2)}{BONDS[left & 3]}{_symbol(code >> 18)}{BONDS[right & 3]}{_symbol(right >> 2)}"
    )


def _dihedral_name(code: int) -> str:
    d, third, c, second, b, first, a = (
        code & 127,
        code >> 7 & 3,
        code >> 9 & 127,
        code >> 16 & 3,
        code >> 18 & 127,
        code >> 25 & 3,
        code >> 27,
    )
    return f"{_symbol(a)}{BONDS[first]}{_symbol(b)}{BONDS[second]}{_symbol(c)}{BONDS[third]}{_symbol(d)}"
