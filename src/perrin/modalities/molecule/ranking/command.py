"""`perrin rank FILE`."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from perrin.errors import PerrinError, counted, note, warn
from perrin.modalities.molecule import ranked_beside
from perrin.modalities.molecule.files import read_sound
from perrin.modalities.molecule.kept import note_coinciding
from perrin.modalities.molecule.predicted import DEFAULT, read_name
from perrin.modalities.molecule.ranking.columns import COLUMNS, column_of
from perrin.modalities.molecule.ranking.identity import read_known
from perrin.modalities.molecule.ranking.rank import Ranked, RankOptions, rank, understood
from perrin.modalities.molecule.ranking.table import check_table, write_table
from perrin.run.outputs import read_record, record_path
from perrin.run.pool import cpu_count
from perrin.run.progress import progress
from perrin.run.record import file_digest, record, write_record

SHOWN = 10
TOLD = ("gap", "homo", "lumo", "mu")
"""Predictions in the table, as many as fit; the file has all."""


def run(a: Namespace) -> None:
    """Read, rank, write, and show the best."""
    source = Path(a.file)
    output = Path(a.out) if a.out else ranked_beside(source)
    check_table(output)
    options = RankOptions(
        by="qed,-sa" if a.by is None else a.by,
        where=tuple(a.where or ()),
        duplicates=a.duplicates,
        known=a.known,
        predict=a.predict_by or (DEFAULT if a.predict else ""),
        xtb=a.xtb,
        diverse=a.diverse,
        top=a.top,
        workers=a.workers if a.workers is not None else cpu_count(),
    )
    molecules, numbers, left_out = read_sound(source, flat=True)
    note_coinciding(molecules, source, numbers)
    understood(options, molecules)  # said before a reference is read, which may take long
    known = read_known(a.reference, options.workers) if a.reference else None
    if known is not None and known.skipped:
        print(
            f"left out {counted(known.skipped, 'records')} of {known.name} that RDKit rejects",
            file=sys.stderr,
        )

    with ExitStack() as stack:
        ranked = rank(molecules, options, known=known, numbers=numbers, advance=_Progress(stack))
    if not ranked.molecules:
        steps = "; ".join(f"{n} after {text}" for text, n in ranked.counts.items() if text in options.where)
        raise PerrinError(
            f"expected molecules that pass, given none of {len(molecules)} ({steps or 'all dropped'}): loosen a filter"
        )
    if ranked.added[0]:
        print(
            f"added {counted(ranked.added[0], 'hydrogens')} that {source} leaves out in {ranked.added[1]} of "
            f"{counted(len(molecules), 'molecules')}, placed by RDKit",
            file=sys.stderr,
        )
    if ranked.flat:
        note(
            f"{ranked.flat} of {counted(len(molecules), 'molecules')} of {source} have flat coordinates: GFN2-xTB, "
            "predictions and all else of 3D is left out for them; perrin conformers makes 3D ones"
        )
    if ranked.strange:
        warn(ranked.strange)
    write_table(output, ranked.molecules, ranked.columns)
    content = record(
        "rank",
        a,
        source={"path": str(source), "sha256": file_digest(source), "run": read_record(source) or None},
        reference=None if known is None else {"name": known.name, "molecules": known.count},
        units={c: column.unit for c in ranked.columns if (column := column_of(c)) and column.unit},
        predicted=None if ranked.predicted is None else asdict(ranked.predicted),
        result=ranked.counts | {"left_out": left_out},
    )
    write_record(record_path(output), content)
    _show(ranked, output)


class _Progress:
    """A progress bar for each stage, one at a time."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.stage, self.done = stack, "", 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stack.close()
            self.tell = self.stack.enter_context(progress(stage, total))
            self.stage, self.done = stage, 0
        self.tell(done - self.done)
        self.done = done


def _show(ranked: Ranked, output: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    keys = [key.name for key in ranked.keys]
    told: list[str] = []
    if ranked.predicted is not None and ranked.predicted.again:
        items = ranked.predicted.items
        told = [items[name] for name in TOLD if name in items] or list(items.values())[: len(TOLD)]
    names = list(
        dict.fromkeys(["rank", *keys, *told, "QED", "SA", "logP", "MW", "wishes_met", "duplicate", "known"])
    )
    names = [n for n in names if n in ranked.columns or n in keys]
    table = Table(title=f"by {', then '.join(map(str, ranked.keys))}")
    for name in (*names, "SMILES"):
        unit = COLUMNS[name].unit if name in COLUMNS else ""
        head = f"{name}, {unit}" if unit else name
        if (
            name in told and (pair := read_name(name)) is not None
        ):  # in two lines, which leaves room for the SMILES
            head = f"predicted\n{pair[0]}" + (f", {pair[1]}" if pair[1] else "")
        table.add_column(head, justify="left" if name == "SMILES" else "right")
    for molecule in ranked.molecules[:SHOWN]:
        values = molecule.properties
        cells = ["–" if values.get(n) is None else f"{values[n]:.5g}" if isinstance(values[n], float) else str(values[n])
                 for n in names]  # fmt: skip
        table.add_row(*cells, escape(str(values.get("smiles", "does not sanitise"))))
    console = Console() if sys.stdout.isatty() else Console(width=132)
    console.print(table)
    if len(ranked.molecules) > SHOWN:
        print(f"the first {SHOWN} of {len(ranked.molecules)}; all are in {output}")
    if ranked.predicted is not None:
        print(ranked.predicted.about)
    counts = ranked.counts
    about = [f"{counts['invalid']} invalid", f"{counted(counts['duplicates'], 'duplicates')}"]
    about += [f"{counts['known']} known"] if "known" in counts else []
    print(
        f"{counts['kept']} of {counted(counts['read'], 'molecules')} in {output} ({', '.join(about)} among those read)"
    )
