"""What is wished for, in words: `gap<0.2 Ha`, `mu=2..3 D`, `alpha=75 bohr^3`.

    wish  =  NAME OP NUMBER [UNIT]  |  NAME = LOW..HIGH [UNIT]        OP: < <= > >= =

Nothing is evaluated: a text is matched against this grammar. A number is in the property's own unit, or converted into it.
Wishes for one property hold together. What the training data have to say about a wish is said before anything is sampled.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perrin.bundle import read_config
from perrin.errors import PerrinError
from perrin.modalities.molecule import MODALITY
from perrin.modalities.molecule.properties import Range, Table
from perrin.modalities.molecule.qm9_prepare import PROPERTIES
from perrin.modalities.molecule.units import convert, known_unit

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WISH = re.compile(
    rf"\s*(?P<name>[^\s<>=]+)\s*(?P<op><=|>=|<|>|=)\s*"
    rf"(?:(?P<low>{_NUMBER})\s*\.\.\s*(?P<high>{_NUMBER})|(?P<value>{_NUMBER}))"
    rf"\s*(?P<unit>[^\d\s.,<>=].*?)?\s*"
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """An interval of one property.

    Arguments:
        name: the property.
        unit: its own, of the numbers below.
        low, high: the ends; one that is open is infinite.
        shown: the unit that the user named, if any.
        said: what the user said, one text for each wish that was put together.
    """

    name: str
    unit: str
    low: float = -math.inf
    high: float = math.inf
    shown: str = ""
    said: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The unit to speak in: the user's, else the property's own."""
        return self.shown or self.unit

    def show(self, value: float) -> float:
        """A value in the property's own unit, in the unit to speak in."""
        if not self.shown or not math.isfinite(value):
            return value
        return float(f"{convert(value, self.unit, self.shown, self.name):.12g}")

    def quote(self, *values: float, digits: int = 5) -> str:
        """Values in the property's own unit as text, with the unit to speak in."""
        text = " to ".join(f"{self.show(value):.{digits}g}" for value in values)
        return f"{text} {self.told}" if self.told else text

    def __str__(self) -> str:
        if self.said:
            return " and ".join(self.said)
        low, high = (self.quote(value, digits=6) for value in (self.low, self.high))
        if self.low == self.high:
            return f"{self.name} = {low}"
        if math.isinf(self.low):
            return f"{self.name} < {high}"
        if math.isinf(self.high):
            return f"{self.name} > {low}"
        return f"{self.name} = {self.show(self.low):.6g}..{high}"


def parse_wish(text: str, ranges: Sequence[Range]) -> Wish:
    """A wish from text, for one of the properties of a model.

    Raises:
        PerrinError: it is no wish, the property is unknown, the unit does not fit, or a range is the wrong way round.
    """
    match = _WISH.fullmatch(text)
    if match is None:
        raise PerrinError(
            f"expected a wish such as 'gap<0.2 Ha', 'mu=2..3 D' or 'alpha=75', given {text!r}: write NAME, one of "
            "< <= > >= =, and a number or LOW..HIGH"
        )
    known = {r.name.lower(): r for r in ranges}
    found = known.get(match["name"].lower())
    if found is None:
        near = difflib.get_close_matches(match["name"].lower(), list(known), 1)
        hint = f"did you mean {known[near[0]].name}?" if near else "choose one of them"
        raise PerrinError(
            f"expected a property that the model knows ({', '.join(r.name for r in ranges)}), "
            f"given {match['name']!r}: {hint}"
        )

    unit = match["unit"] or ""
    if unit.startswith(("-", "–")):
        raise PerrinError(
            f"expected a range such as {found.name}=2..3, given {text!r}: write it with two points"
        )
    if "," in unit:
        raise PerrinError(f"expected one wish in each --want, given {text!r}: give --want several times")

    def number(key: str) -> float:
        value = convert(float(match[key]), unit, found.unit, found.name)
        if not math.isfinite(value):
            raise PerrinError(f"expected a finite number, given {text!r}: correct it")
        return value

    op = match["op"]
    shown = known_unit(unit, found.unit, found.name) if unit else ""
    if match["low"] is not None:
        low, high = number("low"), number("high")
        if op != "=" or low > high:
            raise PerrinError(
                f"expected a range such as {found.name}=1..2, the lower end first, given {text!r}"
            )
    else:
        low = number("value") if op in (">", ">=", "=") else -math.inf
        high = number("value") if op in ("<", "<=", "=") else math.inf
    words = match["value"] or f"{match['low']}..{match['high']}"
    said = " ".join(word for word in (found.name, op, words, shown or found.unit) if word)
    return Wish(name=found.name, unit=found.unit, low=low, high=high, shown=shown, said=(said,))


def parse_wishes(texts: Sequence[str], ranges: Sequence[Range]) -> tuple[Wish, ...]:
    """Wishes from texts, at most one for each property, in the order of the properties.

    Raises:
        PerrinError: as `parse_wish`; or wishes for one property exclude each other.
    """
    held: dict[str, Wish] = {}
    for text in texts:
        wish = parse_wish(text, ranges)
        before = held.get(wish.name, Wish(name=wish.name, unit=wish.unit))
        low, high = max(before.low, wish.low), min(before.high, wish.high)
        if low > high:
            raise PerrinError(
                f"expected wishes that can hold together, given {before} and {wish}: leave one of them out"
            )
        said = tuple(dict.fromkeys((*before.said, *wish.said)))
        held[wish.name] = replace(wish, low=low, high=high, shown=before.shown or wish.shown, said=said)
    return tuple(held[r.name] for r in ranges if r.name in held)


def unconditional(texts: Sequence[str], bundle: str) -> PerrinError:
    """What to say of wishes for a bundle that was trained with no properties: which bundle has some, and how to make one.

    Raises:
        PerrinError: as `parse_wishes`, by the properties of QM9; what is none of them may be a data item of the user's.
    """
    ranges = [
        Range(name=name, unit=unit, mean=0.0, std=1.0, low=-math.inf, high=math.inf)
        for name, (_, unit) in PROPERTIES.items()
        if name != "index"
    ]
    own = {}
    for text in texts:
        match = _WISH.fullmatch(text)
        if match and not difflib.get_close_matches(
            match["name"].lower(), [r.name.lower() for r in ranges], 1
        ):
            own[text] = match["name"]
    names = [wish.name for wish in parse_wishes([text for text in texts if text not in own], ranges)]
    names = list(dict.fromkeys([*names, *own.values()]))
    source = "molecule/mine --data mine.sdf" if own else "molecule/qm9"
    folder = MODALITY.bundle_folder()
    have = [name for name in MODALITY.bundles() if read_config(folder / name)["model"].get("ranges")]
    use = (
        f"use molecule/{' or molecule/'.join(have)}, or train one"
        if have
        else "none that ships was: train one"
    )
    return PerrinError(
        f"expected a bundle that was trained with properties for --want, given {bundle}, which was not; {use} (perrin train "
        f"{source} --from molecule/qm9 --conditions {','.join(names)} --out runs/wishes)"
    )


def intervals(wishes: Sequence[Wish], ranges: Sequence[Range]) -> Tensor:
    """Wishes in standard units, `[P, 2]`."""
    held = {w.name: w for w in wishes}
    rows = []
    for r in ranges:
        wish = held.get(r.name)
        rows.append([r.standard(wish.low), r.standard(wish.high)] if wish else [-math.inf, math.inf])
    return torch.tensor(rows, dtype=torch.float32)


def counsel(
    wishes: Sequence[Wish], ranges: Sequence[Range], table: Table | None
) -> tuple[list[str], list[str]]:
    """What the training data say: a line for each wish, and warnings about those that they do not meet."""
    held = {r.name: r for r in ranges}
    lines, warnings = [], []
    whole = intervals(wishes, ranges)
    for wish in wishes:
        r = held[wish.name]
        text = f"{wish}; training data {wish.quote(r.low, r.high)}"
        if table is not None:
            alone = torch.where(
                torch.tensor([x.name == r.name for x in ranges])[:, None], whole, _open(whole)
            )
            met = int(table.inside(alone).sum())
            text += f", {_share(met, len(table.sizes))} of them inside" + (
                " or near" if wish.low == wish.high else ""
            )
        lines.append(text)
        if wish.high < r.low or wish.low > r.high:
            warnings.append(
                f"{wish} is outside the training data, which have {wish.quote(r.low, r.high)}: expect molecules near that "
                "range, and many that are wrong"
            )
    if table is None or warnings:
        return lines, warnings
    if len(wishes) > 1 and not bool(table.inside(whole).any()):
        told = []
        for wish in wishes:
            r = held[wish.name]
            others = torch.where(
                torch.tensor([x.name == r.name for x in ranges])[:, None], _open(whole), whole
            )
            column = table.z[table.inside(others), [x.name for x in ranges].index(r.name)]
            column = column[torch.isfinite(column)] * r.std + r.mean
            told.append(
                f"{r.name} is {wish.quote(float(column.min()), float(column.max()))} where the others hold"
                if len(column)
                else f"none meets the others without {r.name}"
            )
        warnings.append(
            f"none of {len(table.sizes)} training molecules meets these wishes together ({'; '.join(told)})"
        )
    return lines, warnings


def _open(whole: Tensor) -> Tensor:
    return torch.tensor([-math.inf, math.inf]).expand_as(whole)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %" if part else f"none of {whole}"
