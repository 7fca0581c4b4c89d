"""What is said of wishes: by the training data before anything is sampled, by the property network afterwards."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perrin.errors import PerrinError, warn
from perrin.modalities.molecule.predicted import MET, item_name, predict, units_for, without
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.wants import Wish, counsel

if TYPE_CHECKING:
    from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions


def tell_wishes(a: Namespace, model: MoleculeModel, options: SamplingOptions) -> None:
    """Print what the training data have to say about `--want`, before anything is sampled.

    Raises:
        PerrinError: there is a `--guidance-scale` and no wish.
    """
    if a.guidance_scale is not None and not options.want:
        raise PerrinError(
            "expected --want with --guidance-scale, given none: add a wish, such as --want 'mu=2..3 D'"
        )
    if not a.want:
        return
    lines, warnings = counsel(model.wishes(a.want), model.config.ranges, model.table)
    for line in lines:
        print(f"wanted: {line}")
    for line in warnings:
        warn(line)


def check_choice(a: Namespace, options: SamplingOptions) -> None:
    """Raise a `PerrinError` if there is to be a choice among candidates, and no wish to choose by."""
    if (a.candidates is not None or a.guide) and not options.want:
        given = "--guide" if a.candidates is None else "--candidates"
        raise PerrinError(f"expected --want with {given}, given none: add a wish, such as --want 'mu=2..3 D'")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the property network says of molecules with wishes.

    Arguments:
        molecules: with the data items `wanted`, `predicted_…` and `wishes_met`, as far as there are any.
        lines: for the user.
        strange: a warning on molecules that the network has not learnt from; empty where there are none.
        record: for the run's record.
    """

    molecules: list[Molecule]
    lines: list[str]
    record: dict[str, Any]
    strange: str = ""


def judge(
    model: MoleculeModel,
    options: SamplingOptions,
    want: Sequence[str],
    molecules: Sequence[Molecule],
    *,
    workers: int = 1,
) -> Verdict:
    """Predictions for molecules that were wished for, in the units of the wishes, and which wishes are met by them.

    A wish for a value is met within the distance that training data count as there (`properties.Table.soft`). Without
    wishes nothing is said, without a property network nothing is predicted.

    Arguments:
        model: with its property network, if it has one.
        options: with wishes.
        want: the wishes in the user's words, if any.
        molecules: in their order.
        workers: processes for the predictions.
    """
    wishes = spoken(model, options, want)
    rows: dict[str, dict[str, Any]] = {w.name: row_of(w) for w in wishes}
    if not wishes:
        return Verdict(molecules=list(molecules), lines=[], record={})
    guide = model.guide
    wanted = {"wanted": "; ".join(map(str, wishes))} if want else {}
    if guide is None:
        told = [replace(m, properties=m.properties | wanted) for m in molecules]
        return Verdict(molecules=told, lines=[], record=rows)
    ranges = {r.name: r for r in guide.config.ranges}
    units = units_for(
        {r.name: r.unit for r in guide.config.ranges}, {w.name: w.told for w in wishes if w.shown}
    )
    found = predict(guide, molecules, units, complete=True, workers=workers)
    out, together, columns = [], [], {}
    known = [w for w in wishes if w.name in ranges]
    for wish in known:
        item = item_name(wish.name, units[wish.name])
        columns[wish.name] = [items[item] for items in found.items if items]
    for molecule, items in zip(molecules, found.items, strict=True):
        more: dict[str, Any] = dict(wanted)
        if items:
            more |= items
            if len(known) == len(wishes):
                all_met = all(
                    _met(w, items[item_name(w.name, units[w.name])], ranges[w.name].std) for w in wishes
                )
                more[MET] = int(all_met)
                together.append(all_met)
        out.append(replace(molecule, properties=molecule.properties | more))
    lines = [
        _line(w, columns[w.name], ranges[w.name].std, guide.errors.get(w.name), rows[w.name])
        for w in known
        if columns[w.name]
    ]
    if together:
        rows["all"] = {"met": sum(together) / len(together)}
        if len(wishes) > 1:
            lines.append(f"these together: met by {100 * rows['all']['met']:.3g} %")
    strange = without(found.strange)
    return Verdict(
        molecules=out,
        lines=lines,
        record={
            "by": options.guide,
            "sha256": guide.sha256,
            **rows,
            "lines": [*lines, *([strange] if strange else [])],
        },
        strange=strange,
    )


def spoken(model: MoleculeModel, options: SamplingOptions, want: Sequence[str]) -> list[Wish]:
    """The wishes in the user's words, or those of the options."""
    return list(model.wishes(want)) if want else model.wishes_of(options.want)


def row_of(wish: Wish) -> dict[str, Any]:
    """A wish for a record, in the unit to speak in."""
    low, high = (None if math.isinf(v) else wish.show(v) for v in (wish.low, wish.high))
    return {"wish": str(wish), "unit": wish.told, "low": low, "high": high}


def _near(wish: Wish, std: float) -> float:
    """How far from a value still counts, in the unit to speak in."""
    from perrin.modalities.molecule.properties import Table

    return Table.soft * wish.show(std)


def _met(wish: Wish, value: float, std: float) -> bool:
    """Whether a value meets a wish, both in the unit to speak in."""
    low, high = wish.show(wish.low), wish.show(wish.high)
    if wish.low == wish.high:
        return abs(value - low) <= _near(wish, std)
    return low <= value <= high


def _line(wish: Wish, values: Sequence[float], std: float, error: float | None, row: dict[str, Any]) -> str:
    share = sum(_met(wish, v, std) for v in values) / len(values)
    row["met"] = share
    unit = f" {wish.told}" if wish.told else ""
    if wish.low == wish.high:
        row["mean distance"] = sum(abs(v - wish.show(wish.low)) for v in values) / len(values)
        text = (
            f"{wish}: met within {_near(wish, std):.2g}{unit} by {100 * share:.3g} %, "
            f"{row['mean distance']:.3g}{unit} away on average"
        )
    else:
        text = f"{wish}: met by {100 * share:.3g} %"
    if error:
        row["network error"] = wish.show(error)
    own = f", which errs by {wish.show(error):.2g}{unit} on QM9" if error else ""
    return f"{text}, says the property network{own}"
