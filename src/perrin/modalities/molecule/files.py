"""Molecules in files: SDF, extended XYZ, SMILES.

SDF keeps everything: Kekulé bonds, formal charges, a title, data items. Reading does not sanitise, so a
generated molecule with wrong valences comes back as it was written. XYZ has no bonds (`Molecule.bonds` is
then `None`). SMILES have no geometry: one is made on reading. All writing is atomic: a temporary file in
the same folder, then a rename. Coordinates are in Å; an SDF holds four decimals of them, an XYZ eight.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, warn
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.textfile import is_packed, kind, read_text
from perrin.run.atomic import atomic_path, write_text
from perrin.run.blocks import BlockWriter

READABLE = ".sdf, .sdf.gz, .xyz, .extxyz, .smi, .smiles, .csv"
SHOWN = 3
"""Entries that cannot be read and are named, one line each."""
WRITABLE_SUFFIXES = (".sdf", ".xyz", ".extxyz", ".smi", ".smiles")


def read_molecules(
    path: str | Path, elements: Collection[int] | None = None, *, flat: bool = False
) -> list[Molecule]:
    """The molecules of a file, by its suffix: SDF, (extended) XYZ, SMILES, or CSV with a column `smiles`.

    Arguments:
        path: the file.
        elements: the atomic numbers that are allowed; all, if `None`.
        flat: whether drawings without a z coordinate are allowed (`Molecule.flat`).

    Raises:
        PerrinError: the file is missing, empty, of another kind, or a record in it is wrong (which one is said).
    """
    return _all(each_molecule(path, elements, flat=flat), path)


def each_molecule(
    path: str | Path, elements: Collection[int] | None = None, *, flat: bool = False
) -> Iterator[tuple[int, Molecule | PerrinError]]:
    """The number of each entry of a file, from 1, and what `read_molecules` makes of it or says of it.

    An XYZ file is read whole or not at all: where its next frame begins is known from the last one alone.
    """
    suffix = kind(path)
    if suffix == ".sdf":
        return each_record(path, elements, flat=flat)
    if suffix in (".xyz", ".extxyz"):
        return iter(enumerate(read_xyz(path, elements), 1))
    if suffix in (".smi", ".smiles", ".csv"):
        return each_smiles(path, elements)
    raise PerrinError(f"expected a file with one of the suffixes {READABLE}, given {path}")


def read_sound(path: str | Path, *, flat: bool = False) -> tuple[list[Molecule], list[int], list[int]]:
    """The molecules of a file that can be read, the number of each in it, from 1, and the numbers of those that cannot,
    which `tell_left_out` warns of.

    Raises:
        PerrinError: see `read_molecules`; of wrong records only where all are.
    """
    entries = list(each_molecule(path, flat=flat))
    tell_left_out([entry for _, entry in entries if isinstance(entry, PerrinError)], len(entries), path)
    sound = {number: entry for number, entry in entries if not isinstance(entry, PerrinError)}
    left_out = [number for number, _ in entries if number not in sound]
    return _not_empty(list(sound.values()), path), list(sound), left_out


def tell_left_out(bad: Sequence[PerrinError], total: int, path: str | Path) -> None:
    """Warn of what is wrong with entries of a file, `SHOWN` of them by name; raise the first if no other entry is left."""
    if bad and len(bad) == total:
        raise bad[0]
    for error in bad[:SHOWN]:
        warn(f"left out: {error}")
    if len(bad) > SHOWN:
        warn(f"left out {len(bad) - SHOWN} more of the {total} entries of {path}")


def check_suffix(path: str | Path, suffixes: Sequence[str] = WRITABLE_SUFFIXES) -> None:
    """Raise a `PerrinError` unless a file can be written whose suffix is one of these, or `.sdf.gz`."""
    if kind(path) not in suffixes or (is_packed(path) and kind(path) != ".sdf"):
        known = ", ".join([".sdf", ".sdf.gz", *suffixes[1:]])
        raise PerrinError(
            f"expected an output file with one of the suffixes {known}, given {path}: change it"
        )


def write_molecules(path: str | Path, molecules: Sequence[Molecule]) -> None:
    """Write a file of the kind that the suffix names: SDF, (extended) XYZ, or SMILES."""
    check_suffix(path)
    suffix = kind(path)
    if suffix == ".sdf":
        write_sdf(path, molecules)
    elif suffix in (".xyz", ".extxyz"):
        write_xyz(path, molecules)
    else:
        write_smiles(path, molecules)


def write_sdf(path: str | Path, molecules: Iterable[Molecule]) -> None:
    """Write an SDF (V2000): Kekulé bonds, formal charges, the name as title, the properties as data items.

    A name that ends in `.gz` makes it compressed (`perrin.run.blocks`).
    """
    with atomic_path(path) as temporary:
        if is_packed(path):
            with BlockWriter(temporary) as packed:
                for record in sdf_records(molecules):
                    packed.write(record)
            return
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(sdf_records(molecules))


def sdf_records(molecules: Iterable[Molecule]) -> Iterator[str]:
    """The text of an SDF, one molecule after another."""
    from rdkit import Chem, rdBase

    from perrin.modalities.molecule.chem import to_rdkit, with_stereo

    for molecule in molecules:
        with rdBase.BlockLogs():
            mol = to_rdkit(replace(molecule, name=" ".join(molecule.name.split())[:80]))
            mol.UpdatePropertyCache(strict=False)
            if molecule.flat:  # or RDKit writes that double bonds may be either way
                Chem.FastFindRings(mol)
                for bond, known in zip(mol.GetBonds(), with_stereo(mol).GetBonds(), strict=True):
                    if len(ends := list(known.GetStereoAtoms())) == 2:
                        bond.SetStereoAtoms(*ends)
                        bond.SetStereo(known.GetStereo())
            block = Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False)
            lines = [block if molecule.flat else _shown(block)]
        for key, value in molecule.properties.items():
            text = " ".join(str(value).split()) or " "
            lines.append(f"> <{' '.join(str(key).split())}>\n{text}\n\n")
        lines.append("$$$$\n")
        yield "".join(lines)


def _shown(block: str) -> str:
    """A V2000 block of which no double bond says that it may be either way, as RDKit has it: the geometry says which."""
    lines = block.split("\n")
    if not lines[3].rstrip().endswith("V2000"):
        return block
    first = 4 + int(lines[3][:3])
    for k in range(first, first + int(lines[3][3:6])):
        lines[k] = f"{lines[k][:9]}  0{lines[k][12:]}"
    return "\n".join(lines)


def read_sdf(
    path: str | Path, elements: Collection[int] | None = None, *, flat: bool = False
) -> list[Molecule]:
    """The records of an SDF, not sanitised; aromatic bonds (type 4) are kekulized, hydrogens stay as written.

    Raises:
        PerrinError: see `read_molecules`.
    """
    return _all(each_record(path, elements, flat=flat), path)


def each_record(
    path: str | Path, elements: Collection[int] | None = None, *, flat: bool = False
) -> Iterator[tuple[int, Molecule | PerrinError]]:
    """The number of each record of an SDF, from 1, and what `read_sdf` makes of it or says of it."""
    for number, block, items in _sdf_records(read_text(path)):
        where = f"record {number} of {path}"
        try:
            molecule = _molecule(block, where, flat=flat)
            _check(molecule, elements, where + _named(block))
            yield number, replace(molecule, properties=items)
        except PerrinError as error:
            yield number, error


def _molecule(block: str, where: str, *, flat: bool) -> Molecule:
    from rdkit import Chem, rdBase

    from perrin.modalities.molecule.chem import from_rdkit, stated_hydrogens

    with rdBase.BlockLogs():
        try:
            mol = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False, strictParsing=True)
        except (ValueError, RuntimeError):
            mol = None
    if mol is None and (symbol := _unknown_symbol(block)):
        raise PerrinError(
            f"expected chemical elements, given {symbol!r} in {where}{_named(block)}: correct or remove it"
        )
    if mol is None or mol.GetNumAtoms() == 0:
        reason = _reason(block) if mol is None else "no atoms"
        raise PerrinError(
            f"expected an SDF record (MDL mol block with atoms), given something else in {where}{_named(block)}"
            + (f": {reason}" if reason else "")
        )
    if flat:
        Chem.ReapplyMolBlockWedging(mol)  # which reading takes away
    try:
        return replace(from_rdkit(mol, flat=flat), stated=stated_hydrogens(mol))
    except PerrinError as error:
        raise PerrinError(f"{error} ({where})") from error


def write_xyz(path: str | Path, molecules: Iterable[Molecule]) -> None:
    """Write extended XYZ through ASE: positions in Å, formal charges as a column, name and properties as keys."""
    import ase.io

    images = []
    for molecule in molecules:
        atoms = ase.Atoms(numbers=molecule.numbers, positions=molecule.positions)
        atoms.set_array("formal_charges", np.asarray(molecule.charges, dtype=np.int64))
        atoms.info = {"name": molecule.name} if molecule.name else {}
        atoms.info |= {str(key).replace(" ", "_"): value for key, value in molecule.properties.items()}
        images.append(atoms)
    buffer = io.StringIO()
    if images:
        ase.io.write(buffer, images, format="extxyz")
    write_text(path, buffer.getvalue())


def read_xyz(path: str | Path, elements: Collection[int] | None = None) -> list[Molecule]:
    """The frames of an (extended) XYZ file. They have no bonds: `bonds` is `None`.

    Raises:
        PerrinError: see `read_molecules`.
    """
    import ase.io

    buffer = io.StringIO(read_text(path))
    molecules: list[Molecule] = []
    try:
        for atoms in ase.io.iread(buffer, index=":", format="extxyz"):
            info: dict[str, Any] = {
                str(key): getattr(v, "item", lambda v=v: v)() for key, v in atoms.info.items()
            }
            charges = atoms.arrays.get("formal_charges", np.zeros(len(atoms)))
            molecule = Molecule(
                numbers=atoms.get_atomic_numbers().astype(np.int64),
                positions=atoms.get_positions().astype(np.float64),
                bonds=None,
                charges=np.asarray(charges).astype(np.int64),
                name=str(info.pop("name", "")),
                properties=info,
            )
            _check(molecule, elements, f"frame {len(molecules) + 1} of {path}")
            molecules.append(molecule)
    except PerrinError:
        raise
    except KeyError as error:  # a symbol that is not in ASE's table
        raise PerrinError(
            f"expected chemical elements, given {error} in frame {len(molecules) + 1} of {path}: correct or remove it"
        ) from error
    except Exception as error:  # ASE has no common class of parse errors
        raise PerrinError(
            f"expected an XYZ frame (count, comment, lines 'element x y z'), given something else in frame "
            f"{len(molecules) + 1} of {path}"
        ) from error
    return _not_empty(molecules, path)


def read_smiles(path: str | Path, elements: Collection[int] | None = None) -> list[Molecule]:
    """Molecules from `SMILES name` lines, or from the column `smiles` of a CSV file; the geometry is generated."""
    return _all(each_smiles(path, elements), path)


def each_smiles(
    path: str | Path, elements: Collection[int] | None = None
) -> Iterator[tuple[int, Molecule | PerrinError]]:
    """The number of each entry of a SMILES or CSV file, from 1, and what `read_smiles` makes of it or says of it."""
    from perrin.modalities.molecule.chem import add_geometry

    for number, (line, smiles, name) in enumerate(smiles_entries(path), 1):
        where = f"line {line} of {path}"
        try:
            molecule = add_geometry(smiles)
        except PerrinError as error:
            yield number, PerrinError(f"{error} ({where})")
            continue
        try:
            _check(molecule, elements, where)
            yield number, replace(molecule, name=name)
        except PerrinError as error:
            yield number, error


def smiles_entries(path: str | Path) -> list[tuple[int, str, str]]:
    """Line number, SMILES and name of every entry of a SMILES or CSV file, not parsed.

    Raises:
        PerrinError: the file is missing or empty, or a CSV without a column `smiles`.
    """
    text = read_text(path)
    entries: list[tuple[int, str, str]] = []
    if Path(path).suffix.lower() == ".csv":
        rows = csv.reader(io.StringIO(text))
        header = [name.strip().lower() for name in next(rows, [])]
        if "smiles" not in header:
            raise PerrinError(
                f"expected a CSV file with a column 'smiles', given {', '.join(header)} in {path}"
            )
        column = header.index("smiles")
        entries = [(rows.line_num, row[column].strip(), "") for row in rows if len(row) > column]
    else:
        for number, line in enumerate(text.splitlines(), 1):
            smiles, *rest = line.split(maxsplit=1) or [""]
            entries.append((number, smiles, rest[0].strip() if rest else ""))
    return [
        entry
        for entry in entries
        if entry[1] and not entry[1].startswith("#") and not (entry[0] == 1 and entry[1].lower() == "smiles")
    ]


def sdf_blocks(path: str | Path) -> list[str]:
    """The mol block of every record of an SDF, not parsed."""
    return [block for _, block, _ in _sdf_records(read_text(path))]


def write_smiles(path: str | Path, molecules: Iterable[Molecule]) -> None:
    """Write `SMILES name` lines; a molecule that RDKit rejects has none, and is an error."""
    from perrin.modalities.molecule.chem import canonical_smiles, sanitize, to_rdkit

    lines = []
    for number, molecule in enumerate(molecules, 1):
        mol = sanitize(to_rdkit(molecule))
        smiles = canonical_smiles(mol) if mol is not None else None
        if smiles is None:
            raise PerrinError(
                f"expected valid molecules for {path}, given a wrong valence in molecule {number}: use .sdf"
            )
        lines.append(f"{smiles} {' '.join(molecule.name.split())}".rstrip() + "\n")
    write_text(path, "".join(lines))


def _sdf_records(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Record number (from 1), mol block and data items of each record."""
    lines = text.splitlines()
    start, number = 0, 0
    stops = [i for i, line in enumerate(lines) if line.startswith("$$$$")] + [len(lines)]
    for stop in stops:
        record, start = lines[start:stop], stop + 1
        if not any(line.strip() for line in record):
            continue
        number += 1
        end = next((i for i, line in enumerate(record) if line.startswith("M  END")), None)
        items: dict[str, Any] = {}
        key: str | None = None
        for line in record[end + 1 :] if end is not None else []:
            if line.startswith(">") and "<" in line:
                key = line[line.index("<") + 1 : line.rindex(">")]
                items[key] = ""
            elif key is not None and line.strip():
                items[key] = f"{items[key]}\n{line}" if items[key] else line
            else:
                key = None
        block = "\n".join(record[: end + 1] if end is not None else record) + "\n"
        yield number, block, {key: _value(value) for key, value in items.items()}


def _named(block: str) -> str:
    """`, 'aspirin'`: the title of a mol block, as text to follow its number; empty where it has none."""
    title = " ".join(block.partition("\n")[0].split())[:80]
    return f", {title!r}" if title else ""


def _reason(block: str) -> str:
    """Why RDKit cannot read a mol block, from its log; empty where that is switched off."""
    from rdkit import Chem, rdBase

    log = io.StringIO()
    rdBase.LogToPythonStderr()
    try:
        with redirect_stderr(log):
            Chem.MolFromMolBlock(block, sanitize=False, removeHs=False, strictParsing=True)
    except (ValueError, RuntimeError) as error:
        log.write(str(error))
    finally:
        rdBase.LogToCppStreams()
    text = log.getvalue()
    if lines := re.findall(r"^\[[\d:]+\] *(\S.*)", text, re.MULTILINE):
        return re.sub(r"line ?(\d+)", r"line \1 of the record", lines[-1].rstrip(" ."))
    if "bond already exists" in text:
        return "two bonds between the same atoms"
    return "a bond or property of an atom that is not there" if "Range Error" in text else ""


def _unknown_symbol(block: str) -> str | None:
    """The first atom of a V2000 block whose symbol is no element, if that is what is wrong with it."""
    from ase.data import atomic_numbers

    lines = block.splitlines()
    count = lines[3][:3].strip() if len(lines) > 3 else ""
    symbols = [line[31:34].strip() for line in lines[4 : 4 + int(count)]] if count.isdigit() else []
    return next((symbol for symbol in symbols if symbol.isalpha() and symbol not in atomic_numbers), None)


def _value(text: str) -> Any:
    """The data item as an integer or a number, if it reads as one."""
    for number in (int, float) if "_" not in text else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _check(molecule: Molecule, elements: Collection[int] | None, where: str) -> None:
    unknown = sorted(set(molecule.numbers.tolist()) - set(elements)) if elements is not None else []
    if 0 in molecule.numbers or unknown:
        from ase.data import chemical_symbols

        known = (
            ", ".join(chemical_symbols[number] for number in sorted(elements or [])) or "the periodic table"
        )
        raise PerrinError(
            f"expected the elements {known}, given {chemical_symbols[(unknown or [0])[0]]} in {where}: remove the "
            "molecule or train on your own data"
        )
    if not np.isfinite(molecule.positions).all():
        raise PerrinError(f"expected finite coordinates, given NaN or infinity in {where}")


def _all(entries: Iterable[tuple[int, Molecule | PerrinError]], path: str | Path) -> list[Molecule]:
    """The molecules of a file; what is wrong with the first entry that is none is raised."""
    molecules = []
    for _, molecule in entries:
        if isinstance(molecule, PerrinError):
            raise molecule
        molecules.append(molecule)
    return _not_empty(molecules, path)


def _not_empty(molecules: list[Molecule], path: str | Path) -> list[Molecule]:
    if not molecules:
        raise PerrinError(f"expected molecules in {path}, given none")
    return molecules
