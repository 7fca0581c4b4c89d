"""What a property network says of molecules, as data items: `predicted_gap_eV`, `predicted_cv_cal_per_mol_K`.

The unit is in the name, because it may be any of the property, such as the one that the user wished in, and a file travels
without its record. A molecule that is unlike all that the network has learnt from gets no items (`strange`): other
elements or sizes, a net charge, hydrogens left out, a flat drawing in place of a geometry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perrin.errors import PerrinError, records
from perrin.modalities.molecule.structure import SYMBOLS, Molecule
from perrin.modalities.molecule.units import UNITS, convert, known_unit
from perrin.run.pool import map_unordered

if TYPE_CHECKING:
    from perrin.modalities.molecule.fields import Vocabulary
    from perrin.modalities.molecule.predictor import Predictor

PREFIX = "predicted_"
MET = "wishes_met"
"""The data item that says whether all wishes are met: 1 or 0."""
DEFAULT = "molecule/qm9-properties"
"""The network, unless told."""
PREDICTED = ("alpha", "gap", "homo", "lumo", "mu", "cv")
"""What it says, known before it is read."""
DIGITS = 6
"""Significant digits of a data item."""
RARE = 1e-3
"""Share of the training molecules, the smallest of all, that a network has not learnt enough from: of QM9 those of up to
eight atoms, where polarisabilities are off by 0.2 (eight) to 4 (three atoms) of their standard deviation, against 0.02."""
CHUNK = 64
"""Molecules of like size that are predicted together."""

_WORK: dict[str, Any] = {}


def _canonical(unit: str) -> str:
    """The first spelling of a unit in `UNITS`: `Ha` for `hartree`."""
    for sizes in UNITS.values():
        if unit in sizes:
            return next(known for known, size in sizes.items() if size == sizes[unit])
    return unit


def _word(unit: str) -> str:
    """A unit in letters, digits and underscores: `cal_per_mol_K`."""
    text = _canonical(unit).replace("/", "_per_")
    for sign, letters in {"Å": "A", "²": "2", "³": "3", "^": "", "*": ""}.items():
        text = text.replace(sign, letters)
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


_UNITS = {_word(unit).lower(): _canonical(unit) for sizes in UNITS.values() for unit in sizes}


def item_name(name: str, unit: str) -> str:
    """The data item of a property in a unit."""
    return PREFIX + "_".join(word for word in (name, _word(unit)) if word)


def read_name(item: str) -> tuple[str, str] | None:
    """The property and the unit of a data item, whatever its case; `None` for another item."""
    if not item.lower().startswith(PREFIX) or len(item) == len(PREFIX):
        return None
    rest = item[len(PREFIX) :]
    words = rest.split("_")
    for k in range(1, len(words)):
        if (unit := _UNITS.get("_".join(words[k:]).lower())) is not None:
            return "_".join(words[:k]), unit
    return rest, ""


def units_for(own: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """The unit of each property: the one that was named for it, else one named for a property of the same own unit, else
    its own.

    Arguments:
        own: the properties' own units.
        named: units that were named, by property.
    """
    alike = {own[name]: unit for name, unit in list(named.items())[::-1] if name in own and unit}
    return {name: named.get(name) or alike.get(unit, unit) for name, unit in own.items()}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of molecules, in their order.

    Arguments:
        items: data items; none of a molecule that is strange to the network.
        strange: why, or an empty text.
    """

    items: tuple[dict[str, float], ...]
    strange: tuple[str, ...]


def predict(
    network: Predictor,
    molecules: Sequence[Molecule],
    units: Mapping[str, str],
    *,
    complete: bool = False,
    workers: int = 1,
    told: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """What the network says, each number a function of its molecule alone.

    Arguments:
        network: of properties.
        molecules: with all hydrogens.
        units: of each property, see `units_for`.
        complete: whether it is known that no hydrogens are left out.
        workers: processes of one thread each, on a CPU.
        told: called with so many molecules whenever they are done.
    """
    ranges, vocabulary = network.config.ranges, network.config.vocabulary
    reasons = tuple(strange(m, vocabulary, complete=complete) for m in molecules)
    good = sorted((i for i, reason in enumerate(reasons) if not reason), key=lambda i: len(molecules[i]))
    chunks = [good[k : k + CHUNK] for k in range(0, len(good), CHUNK)]
    items: list[dict[str, float]] = [{} for _ in molecules]
    names = [item_name(r.name, units[r.name]) for r in ranges]
    told(len(molecules) - len(good))
    for chunk, found in map_unordered(
        _values, chunks, workers=workers, setup=_setup, arguments=(network, list(molecules))
    ):
        for i, values in zip(chunk, found, strict=True):
            for name, r, value in zip(names, ranges, values, strict=True):
                items[i][name] = float(f"{convert(value, r.unit, units[r.name], r.name):.{DIGITS}g}")
        told(len(chunk))
    return Predictions(items=tuple(items), strange=reasons)


def _setup(network: Predictor, molecules: list[Molecule]) -> None:
    _WORK.update(network=network, molecules=molecules)


def _values(chunk: list[int]) -> list[list[float]]:
    found: list[list[float]] = _WORK["network"].of([_WORK["molecules"][i] for i in chunk]).tolist()
    return found


def strange(molecule: Molecule, vocabulary: Vocabulary, *, complete: bool = False) -> str:
    """Why a network that has learnt from such molecules has nothing to say of this one, or an empty text."""
    sizes = [n for n, _ in vocabulary.size_counts]
    least = smallest(vocabulary)
    others = sorted(set(molecule.numbers.tolist()) - set(vocabulary.elements))
    if others:
        known = ", ".join(SYMBOLS.get(z, str(z)) for z in vocabulary.elements)
        return f"of other elements than {known}"
    if not np.isfinite(molecule.positions).all() or (len(molecule) > 1 and not np.ptp(molecule.positions)):
        return "without a geometry"
    if len(molecule) and int(np.sum(molecule.charges)):
        return "with a net charge"
    if molecule.bonds is not None and len(molecule) and not complete:
        if molecule.flat or _flat(molecule):
            return "drawn flat, not in 3D"
        if _lacks_hydrogens(molecule):
            return "that lack hydrogens"
    if len(molecule) > max(sizes):
        return f"of more than {max(sizes)} atoms"
    return f"of fewer than {least} atoms" if len(molecule) < least else ""


def smallest(vocabulary: Vocabulary) -> int:
    """Atoms of the smallest molecules that training data have enough of: the `RARE` smallest of all do not count."""
    total, seen = sum(count for _, count in vocabulary.size_counts), 0
    for size, count in sorted(vocabulary.size_counts):
        seen += count
        if seen > RARE * total:
            return size
    return 1


def without(reasons: Sequence[str], numbers: Sequence[int] | None = None) -> str:
    """One line on the molecules without predictions; empty where there are none.

    Arguments:
        reasons: of each molecule, empty where it has predictions.
        numbers: of its record in the file, from 1; its place, if `None`.
    """
    places: dict[str, list[int]] = {}
    for number, reason in zip(numbers or range(1, len(reasons) + 1), reasons, strict=True):
        if reason:
            places.setdefault(reason, []).append(number)
    if not places:
        return ""
    told = ", ".join(
        f"{len(found)} {reason} ({records(found)})"
        for reason, found in sorted(places.items(), key=lambda pair: -len(pair[1]))
    )
    return (
        f"no predictions for {sum(map(len, places.values()))} of {len(reasons)} molecules, which the property network "
        f"has not learnt from: {told}"
    )


def _flat(molecule: Molecule) -> bool:
    """Whether an atom with four neighbours lies in one plane with all others."""
    assert molecule.bonds is not None
    degree = np.bincount(np.asarray(molecule.bonds)[:, :2].ravel(), minlength=1)
    x = molecule.positions - molecule.positions.mean(axis=0)
    return bool(degree.max() >= 4) and bool(np.linalg.svd(x, compute_uv=False)[-1] < 1e-2)


def _lacks_hydrogens(molecule: Molecule) -> bool:
    from perrin.modalities.molecule.kept import with_hydrogens

    try:
        return with_hydrogens(molecule)[1] > 0
    except PerrinError:  # of wrong valence, which is said elsewhere
        return False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Predictions that somebody asked for.

    Arguments:
        reference: the network's bundle.
        units: of each property that it knows.
        errors: its mean absolute errors on molecules that it never saw, in these units.
        again: whether what the file says already is predicted again.
    """

    reference: str
    units: Mapping[str, str]
    errors: Mapping[str, float]
    again: bool = True

    @property
    def items(self) -> dict[str, str]:
        """The data item of each property."""
        return {name: item_name(name, unit) for name, unit in self.units.items()}

    @property
    def about(self) -> str:
        """One line on the network and how far off it is."""
        told = ", ".join(
            item + (f" ± {self.errors[name]:.2g}" if name in self.errors else "")
            for name, item in self.items.items()
        )
        return f"predicted by {self.reference} (± its mean error on QM9's own geometries): {told}"


def asked(
    reference: str, items: Iterable[str], words: Iterable[tuple[str, str]], *, again: bool = True
) -> Asked:
    """What a network predicts for a file, found out without loading it.

    Properties of the same own unit share one, so that a file is in one: that of the words if all is predicted again, else
    that of the file.

    Arguments:
        reference: the network's bundle.
        items: data items of the file.
        words: names that the user wrote, each with the unit beside it, if any.
        again: whether what the file says already is predicted again.

    Raises:
        PerrinError: there is no such bundle, it is none of properties, or a unit does not fit.
    """
    from perrin.bundle import read_config
    from perrin.modalities import find_bundle

    config = read_config(find_bundle(reference))
    if config["model"].get("kind") != "properties":
        raise PerrinError(
            f"expected a property network, such as {DEFAULT}, given {reference}: name one of that kind"
        )
    own = {str(r["name"]): str(r["unit"]) for r in config["model"]["ranges"]}
    of_file: dict[str, str] = {}
    for item in items:
        pair = read_name(item)
        of_file |= {pair[0]: pair[1]} if pair and pair[1] and pair[0] in own else {}
    of_words: dict[str, str] = {}
    for word, unit in words:
        pair = read_name(word)
        name = next((name for name in own if pair and name.lower() == pair[0].lower()), "")
        if pair and name and (unit := pair[1] or unit):
            of_words[name] = known_unit(unit, own[name], name)
    units = dict(own)
    for named in (of_file, of_words) if again else (of_words, of_file):
        found = units_for(own, named)
        alike = {own[name] for name in named}
        units |= {name: found[name] for name in own if own[name] in alike}
    errors = config.get("training", {}).get("errors") or {}
    errors = {k: convert(float(v), own[k], units[k], k) for k, v in errors.items() if k in own}
    return Asked(reference=reference, units=units, errors=errors, again=again)
