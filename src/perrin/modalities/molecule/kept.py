"""The part of a molecule that an edit keeps, and how much is added to it.

Named are heavy atoms. A kept atom's hydrogens are kept with it, unless the atom is an *anchor*, where something may grow:
an anchor's hydrogens are let go and made anew. Bonds from kept to other atoms are cut. So each kept atom has a free valence
`f_i`: the orders of its cut bonds and, at an anchor, the number of its hydrogens. New heavy atoms bind to anchors alone, new
hydrogens to any atom with free valence, and no other bond of a kept atom changes.

How many atoms are added. Let `a` new heavy atoms of valences `v_i` and `d` further bonds (rings, double bonds) join the `c`
fragments kept, with `F = Σ f_i`. Every bond uses up two valences, `a + c − 1` bonds make one molecule, and what is left are
hydrogens:

    h = F + Σ_i (v_i − 2) − 2 (c − 1) − 2 d.

Elements are drawn as in the training data and `d` from a Poisson distribution of mean `a δ`, with `δ` the data's rings and
multiple bonds for each heavy atom; pairs `(a, h)` are then weighted by how frequent molecules of that many atoms are in the
data. Unless told otherwise, `a` is such that the heavy atoms are no more than the mean of the data, rounded up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rdkit import Chem, rdBase

from perrin.errors import PerrinError, counted, note, records, warn
from perrin.modalities.molecule.chem import from_rdkit, graph, rejection, sanitize, to_rdkit, with_stereo
from perrin.modalities.molecule.fields import Vocabulary
from perrin.modalities.molecule.metrics.bonds import VALENCES
from perrin.modalities.molecule.structure import Molecule

COINCIDING = 0.1
"""Å: what is closer is one place written twice; no bond is shorter than 0.7 Å."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept.

    Arguments:
        molecule: the kept atoms alone, heavy atoms first, in the input's order and with the input's coordinates.
        source: each kept atom's number in the input, from 0, `[k]`.
        free: free valence of each kept atom, `[k]`.
        anchors: bool, `[k]`: where heavy atoms may be added.
        fragments: how many pieces the kept part is in.
    """

    molecule: Molecule
    source: np.ndarray
    free: np.ndarray
    anchors: np.ndarray
    fragments: int

    @property
    def heavy(self) -> int:
        """Kept heavy atoms."""
        return int((self.molecule.numbers != 1).sum())

    def preserved_in(self, molecule: Molecule) -> bool:
        """Whether the first atoms of a molecule are the kept part: same elements, charges, bonds and the very coordinates,
        and whether nothing else was added where nothing may be."""
        k, own = len(self.molecule), self.molecule
        if len(molecule) < k or molecule.bonds is None or own.bonds is None:
            return False
        inside = (molecule.bonds[:, :2] < k).all(axis=1)
        for i, j, _ in molecule.bonds[~inside].tolist():  # i < j
            if i < k and (not self.free[i] or (molecule.numbers[j] != 1 and not self.anchors[i])):
                return False
        return (
            np.array_equal(molecule.numbers[:k], own.numbers)
            and np.array_equal(molecule.charges[:k], own.charges)
            and np.array_equal(molecule.positions[:k], own.positions)
            and sorted(molecule.bonds[inside].tolist()) == sorted(own.bonds.tolist())
        )


def with_hydrogens(molecule: Molecule, stated: Iterable[tuple[int, int]] = ()) -> tuple[Molecule, int]:
    """The molecule with the hydrogens that its valences lack, placed by RDKit behind the other atoms, and their number.

    Arguments:
        molecule: with bonds.
        stated: pairs (atom, hydrogens to add to it) of those that are not judged by their valence, as `Molecule.stated`.

    Raises:
        PerrinError: it has no bonds, or RDKit rejects its valences.
    """
    mol = to_rdkit(molecule)  # says so where there are no bonds
    assert molecule.bonds is not None
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    for i, count in stated:
        mol.GetAtomWithIdx(i).SetNoImplicit(True)
        mol.GetAtomWithIdx(i).SetNumExplicitHs(count)
    sane = sanitize(mol)
    if sane is None:
        raise PerrinError(
            f"expected a molecule with right valences, given {molecule.name or 'one'} that RDKit rejects "
            f"({rejection(mol)}): mend it, or leave such molecules out with perrin rank"
        )
    with rdBase.BlockLogs():
        if molecule.flat:
            sane = with_stereo(sane)
        full = Chem.AddHs(sane, addCoords=True)
        if molecule.flat:
            Chem.WedgeMolBonds(
                full, full.GetConformer()
            )  # with four neighbours, other bonds may have to be wedges
    missing = full.GetNumAtoms() - len(molecule)
    if not missing:
        return molecule, 0
    added = from_rdkit(full, flat=molecule.flat)
    assert added.bonds is not None
    new = added.bonds[(added.bonds[:, :2] >= len(molecule)).any(axis=1)]  # old bonds keep their Kekulé form
    positions = np.concatenate((molecule.positions, added.positions[len(molecule) :]))
    whole = replace(added, bonds=np.concatenate((molecule.bonds, new)), positions=positions)
    if molecule.wedges is not None and added.wedges is not None:  # what is left open stays open
        solid = (int(Chem.BondDir.BEGINWEDGE), int(Chem.BondDir.BEGINDASH))
        old = [w for w in molecule.wedges if w[2] not in solid]
        whole = replace(whole, wedges=(*(w for w in added.wedges if w[2] in solid), *old))
    return replace(whole, name=molecule.name, properties=molecule.properties), missing


def completed(molecule: Molecule) -> tuple[Molecule, int]:
    """`with_hydrogens` of a molecule that writes no hydrogen on carbon: none at all, as RDKit's readers leave it, or polar
    ones alone, as docking programs do; any other as it is.

    A drawing may write some, at stereocentres, and leave out the rest. Another that writes some is taken at its word:
    what it lacks makes it a radical, and a generated one is not mended here. So is an atom whose number of hydrogens
    or electrons the file states.
    """
    if molecule.bonds is None or not len(molecule):
        return molecule, 0
    ends = molecule.numbers[molecule.bonds[:, :2]]
    on_carbon = ((ends == 1).any(axis=1) & (ends == 6).any(axis=1)).any()
    if not molecule.flat and (molecule.numbers == 1).any() and (on_carbon or 6 not in molecule.numbers):
        return molecule, 0
    try:
        return with_hydrogens(molecule, molecule.stated)
    except (
        PerrinError,
        ValueError,
        RuntimeError,
        OverflowError,
    ):  # of wrong valence, which is said elsewhere
        return molecule, 0


def warn_bare(molecules: Sequence[Molecule], file: object) -> None:
    """One line on standard error if molecules leave their hydrogens out, where that is not mended."""
    bare = sum(completed(m)[1] > 0 for m in molecules)
    if bare:
        warn(
            f"{bare} of {counted(len(molecules), 'molecules')} of {file} leave their hydrogens out and are taken as they "
            "are, as radicals: perrin rank adds what is left out"
        )


def without_isotopes(
    molecules: Sequence[Molecule], file: object, numbers: Sequence[int] | None = None
) -> list[Molecule]:
    """The molecules with atoms of natural masses, for where isotopes are not known, and one note if that changes any.

    Arguments:
        numbers: of each in the file, from 1; its place, if `None`.
    """
    note_of([bool(m.isotopes) for m in molecules], numbers, file, "have isotopes, which are dropped")
    return [replace(m, isotopes=()) for m in molecules]


def note_coinciding(
    molecules: Sequence[Molecule], file: object, numbers: Sequence[int] | None = None
) -> None:
    """One note if molecules have atoms closer than `COINCIDING`; drawings may. Arguments as of `without_isotopes`."""
    note_of(
        [not m.flat and _coincide(m.positions) for m in molecules],
        numbers,
        file,
        f"have atoms closer than {COINCIDING} Å, which no molecule has",
    )


def _coincide(positions: np.ndarray) -> bool:
    gaps = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.fill_diagonal(gaps, np.inf)
    return bool((gaps < COINCIDING).any())


def note_of(which: Sequence[bool], numbers: Sequence[int] | None, file: object, what: str) -> None:
    """One note of how many molecules of a file are so, and which; `numbers` as of `without_isotopes`."""
    found = [k for k, yes in zip(numbers or range(1, len(which) + 1), which, strict=True) if yes]
    if found:
        note(f"{len(found)} of {counted(len(which), 'molecules')} of {file} {what} ({records(found)})")


def choose_atoms(text: str, molecule: Molecule, option: str) -> list[int]:
    """Heavy atoms named by numbers from 1 (`1-6,9`) or by a SMARTS, as numbers from 0, sorted.

    A SMARTS is matched with hydrogens implicit; it must match in one place.

    Raises:
        PerrinError: a number that is no heavy atom; a SMARTS that cannot be read, or matches nowhere or in several places.
    """
    if re.fullmatch(r"[\d,\-\s]+", text):
        return _by_number(text, molecule, option)
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(text)
    if pattern is None or not pattern.GetNumAtoms():
        raise PerrinError(
            f"expected a SMARTS or atom numbers (1-6,9) for {option}, given {text!r}: correct it"
        )
    places = matches(pattern, molecule)
    if not places:
        raise PerrinError(
            f"expected a SMARTS that matches the molecule for {option}, given {text!r}, which is nowhere in it: correct "
            "it, or give atom numbers such as 1-6"
        )
    if len(places) > 1:
        shown = "; ".join(number_list(p) for p in places[:4]) + ("; …" if len(places) > 4 else "")
        raise PerrinError(
            f"expected a SMARTS that matches in one place for {option}, given {text!r}, which matches in {len(places)} "
            f"(atoms {shown}): give the atom numbers"
        )
    return places[0]


def matches(pattern: Chem.Mol, molecule: Molecule) -> list[list[int]]:
    """The different sets of heavy atoms that a pattern matches, hydrogens implicit."""
    mol = sanitize(to_rdkit(molecule))
    if mol is None:
        return []
    for atom in mol.GetAtoms():
        atom.SetIntProp("number", atom.GetIdx())
    with rdBase.BlockLogs():
        mol = Chem.RemoveHs(mol)
    numbers = [atom.GetIntProp("number") for atom in mol.GetAtoms()]
    found = mol.GetSubstructMatches(pattern, uniquify=True, maxMatches=1000)
    sets = {tuple(sorted(numbers[i] for i in match if molecule.numbers[numbers[i]] != 1)) for match in found}
    return [list(s) for s in sorted(sets) if s]


def number_list(atoms: Iterable[int]) -> str:
    """Atoms counted from 0, as text that counts from 1: `1-3,7`."""
    out: list[list[int]] = []
    for i in sorted(atoms):
        if out and i == out[-1][1]:
            out[-1][1] = i + 1
        else:
            out.append([i + 1, i + 1])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def _by_number(text: str, molecule: Molecule, option: str) -> list[int]:
    chosen: set[int] = set()
    for word in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 1 <= low <= high <= len(molecule):
            raise PerrinError(
                f"expected atom numbers from 1 to {len(molecule)} for {option}, such as 1-6,9, given {text!r}"
            )
        chosen |= set(range(low - 1, high))
    light = sorted(i for i in chosen if molecule.numbers[i] == 1)
    if light:
        raise PerrinError(
            f"expected heavy atoms for {option}, given the hydrogen {light[0] + 1}: name the atom that it sits on"
        )
    return sorted(chosen)


def keep(molecule: Molecule, atoms: Iterable[int], anchors: Iterable[int] | str | None = None) -> Kept:
    """Keep some heavy atoms of a molecule.

    Arguments:
        molecule: with all its hydrogens.
        atoms: heavy atoms, from 0.
        anchors: those of them where something may grow; `"cut"` for those that a bond was cut at; `None` for each that has a
            hydrogen or a cut bond.

    Raises:
        PerrinError: an anchor is not kept, or has no free valence; no anchor is left.
    """
    assert molecule.bonds is not None
    heavy = sorted(set(atoms))
    cut = np.zeros(len(molecule), dtype=np.int64)
    hydrogens: dict[int, list[int]] = {i: [] for i in heavy}
    for i, j, order in molecule.bonds.tolist():
        for a, b in ((i, j), (j, i)):
            if a not in hydrogens:
                continue
            if molecule.numbers[b] == 1:
                hydrogens[a].append(b)
            elif b not in hydrogens:
                cut[a] += order
    able = {i for i in heavy if cut[i] or hydrogens[i]}
    if anchors is None:
        chosen = able
    elif isinstance(anchors, str):
        chosen = {i for i in heavy if cut[i]}
    else:
        chosen = set(anchors)
        if strange := sorted(chosen - set(heavy)):
            raise PerrinError(
                f"expected anchors among the kept atoms ({number_list(heavy)}), given {strange[0] + 1}"
            )
        if full := sorted(chosen - able):
            raise PerrinError(
                f"expected anchors with a hydrogen or a cut bond ({number_list(able) or 'none'}), given {full[0] + 1}, "
                "which has no free valence: name another"
            )
    if not chosen:
        raise PerrinError(
            "expected a kept part with a hydrogen or a cut bond to grow from, given one without: keep fewer atoms"
        )
    free = {i: int(cut[i]) + (len(hydrogens[i]) if i in chosen else 0) for i in heavy}
    source = heavy + [h for i in heavy if i not in chosen for h in hydrogens[i]]
    place = {i: k for k, i in enumerate(source)}
    bonds = [
        (*sorted((place[i], place[j])), order)
        for i, j, order in molecule.bonds.tolist()
        if i in place and j in place
    ]
    part = Molecule(
        numbers=molecule.numbers[source],
        positions=molecule.positions[source],
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 3),
        charges=molecule.charges[source],
        name=molecule.name,
    )
    mol = graph(part.numbers, part.bonds if part.bonds is not None else np.zeros((0, 3)), implicit=False)
    return Kept(
        molecule=part,
        source=np.array(source),
        free=np.array([free.get(i, 0) for i in source]),
        anchors=np.array([i in chosen for i in source]),
        fragments=len(Chem.GetMolFrags(mol)),
    )


def addition_table(
    kept: Kept, vocabulary: Vocabulary, added: tuple[int, int] | None = None
) -> dict[tuple[int, int], float]:
    """Probability of each pair (new heavy atoms, new hydrogens); see the module.

    Arguments:
        added: smallest and largest number of new heavy atoms.

    Raises:
        PerrinError: no molecule of the training data is as large as the kept part with such additions.
    """
    heavy = {z: c for z, c in zip(vocabulary.elements, vocabulary.type_counts, strict=True) if z != 1}
    valence = {z: VALENCES.get((z, 0), (2,))[0] for z in heavy}
    total = sum(heavy.values())
    molecules = sum(c for _, c in vocabulary.size_counts)
    light = sum(vocabulary.type_counts) - total
    unsaturation = 2 * molecules + sum(c * (valence[z] - 2) for z, c in heavy.items()) - light
    delta = max(0.0, unsaturation / 2 / total)  # rings and multiple bonds for each heavy atom
    spread = {
        v - 2: sum(c for z, c in heavy.items() if valence[z] == v) / total for v in set(valence.values())
    }
    usual = math.ceil(total / molecules)
    low, high = added or (1, max(1, usual - kept.heavy))
    sizes = dict(vocabulary.size_counts)
    open_ = int(kept.free.sum()) - 2 * (kept.fragments - 1)
    table: dict[tuple[int, int], float] = {}
    law = {open_: 1.0}
    for a in range(1, min(high, max(sizes)) + 1):
        law = _convolve(law, spread)
        if a < low:
            continue
        mean = a * delta
        bonds = {-2 * d: math.exp(-mean) * mean**d / math.factorial(d) for d in range(4 * a + 3)}
        for h, p in _convolve(law, bonds).items():
            weight = p * sizes.get(len(kept.molecule) + a + h, 0)
            if h >= 0 and weight > 0:
                table[a, h] = weight
    if not table:
        room = low if low == high else f"{low} to {high}"
        raise PerrinError(
            f"expected a kept part that leaves room for {room} more heavy atoms and all hydrogens in molecules of "
            f"{min(sizes)} to {max(sizes)} atoms, the sizes the model knows, given "
            f"{counted(len(kept.molecule), 'kept atoms')}: keep fewer, or change --add"
        )
    norm = sum(table.values())
    return {pair: weight / norm for pair, weight in sorted(table.items())}


def _convolve(p: dict[int, float], q: dict[int, float]) -> dict[int, float]:
    out: dict[int, float] = {}
    for a, x in p.items():
        for b, y in q.items():
            out[a + b] = out.get(a + b, 0.0) + x * y
    return out
