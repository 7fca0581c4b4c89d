"""What is asked of molecules, in words: filters and sort keys.

    filter  =  NAME OP NUMBER [UNIT]  |  NAME = LOW..HIGH [UNIT]        OP: < <= > >= = !=
    keys    =  KEY, KEY, …            KEY: NAME (largest first) or -NAME (smallest first)

Names are those of `columns.COLUMNS`, or any data item of the file whose values are numbers. Nothing is evaluated: a text
is matched against this grammar, or it is an error. A unit is converted into that of the property.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perrin.errors import PerrinError
from perrin.modalities.molecule.predicted import PREDICTED, PREFIX, read_name
from perrin.modalities.molecule.ranking.columns import (
    CARRIED,
    COLUMNS,
    DESCRIPTORS,
    IDENTITY,
    STRAIN,
    XTB,
    column_of,
)
from perrin.modalities.molecule.units import convert

_FLAGS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FILTER = re.compile(
    rf"\s*(?P<name>[^\s<>=!]+)\s*(?P<op><=|>=|==|!=|<|>|=)\s*"
    rf"(?:(?P<low>{_NUMBER})\s*\.\.\s*(?P<high>{_NUMBER})|(?P<value>{_NUMBER})|(?P<flag>yes|no|true|false))"
    rf"\s*(?P<unit>[^\d\s.,<>=].*?)?\s*"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Where:
    """One filter, its numbers in the unit of the property.

    Arguments:
        name: the property.
        op: a comparison, or `..` for a range with both ends in.
        low, high: the number (twice), or the ends of the range.
        text: as it was given.
    """

    name: str
    op: str
    low: float
    high: float
    text: str

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Whether a molecule passes. One without the property does not."""
        value = values.get(self.name)
        if isinstance(value, str) or value is None or not math.isfinite(value):
            return False
        if self.op == "..":
            return bool(self.low <= value <= self.high)
        return _COMPARE[self.op](value, self.low)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One sort key: a property, and whether the smallest value is the best."""

    name: str
    smallest: bool

    def __str__(self) -> str:
        return f"{self.name} ({'smallest' if self.smallest else 'largest'} first)"


def parse_where(text: str, items: Collection[str] = ()) -> Where:
    """A filter from text, such as `QED>0.5`, `MW <= 150 Da`, `xtb_gap=8..12 eV` or `known=no`.

    Arguments:
        text: the filter.
        items: data items of the file, which are allowed beside the known properties.

    Raises:
        PerrinError: it is no filter, the property is unknown or no number, or the unit does not fit.
    """
    match = _FILTER.fullmatch(text)
    if match is None:
        raise PerrinError(
            f"expected a filter such as 'QED>0.5', 'MW<=150 Da' or 'logP=-1..2', given {text!r}: write NAME, one of "
            "< <= > >= = !=, and a number or LOW..HIGH"
        )
    name, op = find_name(match["name"], items), match["op"]
    column = COLUMNS.get(name)
    if match["flag"]:
        if column is None or column.kind != "flag" or op not in ("=", "==", "!="):
            raise PerrinError(f"expected a number after {name} {op}, given {match['flag']!r}: write {name}>1")
        value = _FLAGS[match["flag"]]
        return Where(name=name, op=op, low=value, high=value, text=text)
    unit = match["unit"] or _other_unit(match["name"], name)
    if match["low"] is not None:
        low, high = (to_unit(float(match[k]), unit, name) for k in ("low", "high"))
        if op not in ("=", "==") or low > high:
            raise PerrinError(f"expected a range such as {name}=1..2, the lower end first, given {text!r}")
        return Where(name=name, op="..", low=low, high=high, text=text)
    value = to_unit(float(match["value"]), unit, name)
    return Where(name=name, op=op, low=value, high=value, text=text)


def parse_keys(text: str, items: Collection[str] = ()) -> tuple[Key, ...]:
    """Sort keys from text: `qed,-sa` is the largest QED first and, among equals, the smallest SA.

    Raises:
        PerrinError: a key is empty, given twice, unknown or no number.
    """
    keys: list[Key] = []
    for word in text.split(","):
        word = word.strip()
        if not word.lstrip("+-"):
            raise PerrinError(f"expected properties with commas, such as qed,-sa, given {text!r}")
        key = Key(name=find_name(word.lstrip("+-"), items), smallest=word.startswith("-"))
        to_unit(
            0.0, _other_unit(word.lstrip("+-"), key.name), key.name
        )  # raises where it is none of that property
        if key.name in (k.name for k in keys):
            raise PerrinError(f"expected each property once, given {key.name} twice in {text!r}")
        keys.append(key)
    return tuple(keys)


def find_name(word: str, items: Collection[str] = ()) -> str:
    """The name of a property, whatever its case; a data item of the file where no property has that name.

    Raises:
        PerrinError: there is none, or it is a text.
    """
    known = {c.name.lower(): c for c in COLUMNS.values() if c not in CARRIED or c.name in items}
    known |= {alias.lower(): c for c in COLUMNS.values() for alias in c.aliases}
    column = known.get(word.lower())
    if column is not None and column.kind != "text":
        return column.name
    if column is None and word in items:
        return word
    folded = [item for item in items if item.lower() == word.lower()]
    if column is None and len(folded) == 1:
        return folded[0]
    if column is None and (bare := in_items(word, items)):
        return bare
    names = [c.name for c in (*DESCRIPTORS, *XTB, STRAIN, *IDENTITY)] + sorted(set(items) - set(COLUMNS))
    near = difflib.get_close_matches(word.lower(), [n.lower() for n in names], 1)
    predictions = {n.lower(): PREFIX + n for n in PREDICTED}
    predictions |= {pair[0].lower(): item for item in items if (pair := read_name(item)) is not None}
    if (meant := predictions.get(word.lower())) is not None:
        names = list(dict.fromkeys([*names, meant]))
        near = [meant.lower()]
    hint = next((f"did you mean {n}?" for n in names if near and n.lower() == near[0]), "choose one of them")
    raise PerrinError(f"expected a property with numbers ({', '.join(names)}), given {word!r}: {hint}")


def in_items(word: str, items: Collection[str]) -> str:
    """The data item that a prediction's name is, or the only one of its property, in that or another unit, with which it is
    then compared; else an empty text."""
    same = [item for item in items if item == word] or [i for i in items if i.lower() == word.lower()]
    pairs = {item: pair for item in items if (pair := read_name(item)) is not None}
    name, unit = read_name(word) or (word.lower().removeprefix(PREFIX), "")
    alike = [
        item for item, (other, own) in pairs.items()
        if other.lower() == name.lower() and (own or not unit) and word.lower().startswith(PREFIX)
    ]  # fmt: skip
    found = same or alike
    return found[0] if len(found) == 1 else ""


def name_of(text: str) -> tuple[str, str]:
    """The name in a filter and the unit beside its number, as they were written; empty where there are none."""
    match = _FILTER.fullmatch(text)
    return (match["name"], match["unit"] or "") if match else ("", "")


def _other_unit(word: str, name: str) -> str:
    """The unit in the name of a prediction that the file has in another one; empty where the names are the same."""
    pair = read_name(word)
    return pair[1] if pair is not None and word.lower() != name.lower() else ""


def to_unit(value: float, unit: str, name: str) -> float:
    """A number with a unit in the unit of a property; without one it is taken to be in that already.

    Raises:
        PerrinError: the property has no unit, or one of another quantity.
    """
    column = column_of(name)
    return convert(value, unit, column.unit if column else "", name)


def order(rows: Sequence[Mapping[str, Any]], keys: Sequence[Key]) -> list[int]:
    """Indices of the rows from best to worst. Equals stay in their order; a row without a value comes last."""
    indices = list(range(len(rows)))
    for key in reversed(keys):  # stable sorts, least important first

        def rank(i: int, key: Key = key) -> tuple[bool, float]:
            value = rows[i].get(key.name)
            if value is None or isinstance(value, str) or not math.isfinite(value):
                return (True, 0.0)
            return (False, value if key.smallest else -value)

        indices.sort(key=rank)
    return indices
