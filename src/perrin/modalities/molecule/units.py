"""Units of the quantities that molecules have, and numbers between them."""

from __future__ import annotations

from collections.abc import Mapping

from perrin.errors import PerrinError

UNITS: dict[str, dict[str, float]] = {
    "energy": {
        "Ha": 1.0, "Eh": 1.0, "hartree": 1.0, "eV": 1 / 27.211386245988, "meV": 1 / 27211.386245988,
        "kcal/mol": 1 / 627.5094740631, "kJ/mol": 1 / 2625.4996394799,
    },
    "dipole": {"D": 1.0, "debye": 1.0, "e*Å": 4.80320471, "e*A": 4.80320471, "e*a0": 2.541746473},
    "area": {"Å²": 1.0, "Å^2": 1.0, "A^2": 1.0, "A2": 1.0, "Å2": 1.0, "nm^2": 100.0, "nm²": 100.0},
    "polarisability": {
        "bohr^3": 1.0, "bohr³": 1.0, "a0^3": 1.0, "a0³": 1.0, "au": 1.0,
        "Å^3": 6.74833449, "Å³": 6.74833449, "A^3": 6.74833449,
    },
    "heat capacity": {
        "cal/(mol K)": 1.0, "cal/mol/K": 1.0, "cal/mol K": 1.0, "cal/(mol*K)": 1.0,
        "J/(mol K)": 1 / 4.184, "J/mol/K": 1 / 4.184, "J/mol K": 1 / 4.184, "J/(mol*K)": 1 / 4.184,
    },
    "mass": {"Da": 1.0, "u": 1.0, "amu": 1.0, "g/mol": 1.0, "kDa": 1000.0},
    "charge": {"e": 1.0},
}  # fmt: skip
"""Sizes of units, by quantity (CODATA 2018; thermochemical calorie)."""


def known_unit(unit: str, own: str, name: str) -> str:
    """A unit of the property `name`, whose own unit is `own`, as `UNITS` spells it; case matters only for meV and MeV.

    Raises:
        PerrinError: the property has no unit, or one of another quantity.
    """
    sizes: Mapping[str, float] = next((sizes for sizes in UNITS.values() if own in sizes), {})
    if unit in sizes or unit == own:
        return unit
    fold = {known.lower(): known for known in sizes if known.lower() != "mev"}  # MeV is another unit
    if unit.lower() not in fold or unit.lower() == "mev":
        wanted = f"a unit of {name} ({', '.join(sizes)})" if sizes else f"no unit for {name}"
        raise PerrinError(f"expected {wanted}, given {unit!r}: correct it or leave it out")
    return fold[unit.lower()]


def convert(value: float, unit: str, own: str, name: str) -> float:
    """A number with a unit in the unit `own` of the property `name`; without a unit it is taken to be in that already.

    Raises:
        PerrinError: the property has no unit, or one of another quantity.
    """
    if not unit or unit == own:
        return value
    sizes: Mapping[str, float] = next((sizes for sizes in UNITS.values() if own in sizes), {})
    return value * sizes[known_unit(unit, own, name)] / sizes[own]
