"""What the HTML page knows about one molecule: a plain dictionary that becomes JSON.

Nothing here raises for a bad molecule. RDKit is asked to sanitise the generated bonds as they are; when it refuses, the
record says why, and the drawing and the 3D view show the atoms and bonds that were given. Distances never make bonds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import from_one, graph, sanitize, to_rdkit, with_stereo
from perrin.modalities.molecule.structure import Molecule

_COLOURS: dict[int, str] = {
    1: "#e9edf1", 3: "#b07cf0", 5: "#f2a08e", 6: "#5d6670", 7: "#3f6ff0", 8: "#e5423f", 9: "#3fae5a", 11: "#9a63d8",
    14: "#d9b07f", 15: "#f08a24", 16: "#dcb81c", 17: "#27b33a", 34: "#e39a1f", 35: "#a8402f", 53: "#8a2fb0",
}  # fmt: skip
_OTHER_COLOUR = "#d267a8"
_WIDTH, _HEIGHT = 150, 110  # pixels of a 2D drawing
_LARGEST_DRAWING = 150  # heavy atoms; a larger skeleton is an unreadable and heavy drawing


def elements(molecules: Iterable[Molecule]) -> dict[str, dict[str, Any]]:
    """Symbol, colour and covalent radius (Å) of each element that occurs, keyed by atomic number as text."""
    numbers = sorted({int(z) for molecule in molecules for z in molecule.numbers})
    return {
        str(z): {"symbol": _symbol(z), "colour": _COLOURS.get(z, _OTHER_COLOUR), "radius": _radius(z)}
        for z in numbers
    }


def record(molecule: Molecule) -> dict[str, Any]:
    """The page's data of one molecule, JSON-safe: no NaN, no NumPy scalar.

    Returns:
        `name`, `formula`, `properties`; `z` `[n]`; `xyz` `[3n]` in Å, rounded to 1e-4, `None` where not finite;
        `bonds` `[3m]` or `None` when the source has none; `charges` `[n]` or `None` when all are zero; `valid`
        (`None` without bonds), `smiles` (`None` unless valid), `fragments`, `radicals`; `notes`, one sentence for
        each thing that is wrong; `svg`, a small drawing, or `""`; `camera`, the nine numbers of the flattest view.
    """
    xyz = np.asarray(molecule.positions, dtype=float).reshape(-1, 3)
    bonds = None if molecule.bonds is None else np.asarray(molecule.bonds).reshape(-1, 3)
    charges = [int(q) for q in molecule.charges]
    lost = int((~np.isfinite(xyz).all(axis=1)).sum())
    data: dict[str, Any] = {
        "name": str(molecule.name),
        "formula": formula(molecule),
        "z": [int(z) for z in molecule.numbers],
        "xyz": [round(float(v), 4) if math.isfinite(v) else None for v in xyz.ravel()],
        "bonds": None if bonds is None else [int(v) for v in bonds.ravel()],
        "charges": charges if any(charges) else None,
        "properties": {str(k): plain(v) for k, v in molecule.properties.items()},
        "camera": _camera(xyz),
        **_chemistry(molecule, xyz, bonds),
    }
    if molecule.flat:
        data["notes"].append("a flat drawing, shown in its plane")
    if lost:
        data["notes"].append(f"{lost} of {len(xyz)} positions are not finite numbers")
    return data


def formula(molecule: Molecule) -> str:
    """Hill formula with the net charge, such as `C3H7NO` or `C2H8N+`."""
    counts = Counter(_symbol(int(z)) for z in molecule.numbers)
    first = ["C", "H"] if "C" in counts else []
    order = [s for s in first if s in counts] + sorted(s for s in counts if s not in first)
    charge = int(sum(int(q) for q in molecule.charges))
    sign = "" if charge == 0 else ("+" if charge > 0 else "-") + (str(abs(charge)) if abs(charge) > 1 else "")
    return "".join(s + (str(counts[s]) if counts[s] > 1 else "") for s in order) + sign


def plain(value: Any) -> Any:
    """`value` as JSON knows it; a number that is not finite becomes `None`, an unknown object its text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def _chemistry(molecule: Molecule, xyz: np.ndarray, bonds: np.ndarray | None) -> dict[str, Any]:
    """Validity, SMILES, fragments and drawing, as far as RDKit goes."""
    out: dict[str, Any] = {
        "valid": None, "smiles": None, "fragments": None, "radicals": 0, "notes": [], "svg": "",
    }  # fmt: skip
    if bonds is None:
        out["notes"].append("the source has no bonds")
        return out
    with rdBase.BlockLogs():
        try:
            mol = graph(molecule.numbers, bonds, molecule.charges, molecule.isotopes, implicit=False).GetMol()
            out["fragments"] = len(Chem.GetMolFrags(mol))
        except (PerrinError, ValueError, RuntimeError, OverflowError) as error:
            return {**out, "valid": False, "notes": [f"does not sanitise: {_line(error)}"]}
        sane = Chem.Mol(mol)
        try:
            Chem.SanitizeMol(sane)
            out["valid"] = len(molecule) > 0
            if not out["valid"]:
                out["notes"].append("no atoms")
        except (ValueError, RuntimeError) as error:
            out["valid"] = False
            out["notes"].append(f"does not sanitise: {_line(error)}")
        try:
            if out["valid"]:
                out["radicals"] = sum(atom.GetNumRadicalElectrons() for atom in sane.GetAtoms())
                drawn = sanitize(to_rdkit(molecule)) if molecule.flat else None
                mol = _skeleton(sane, xyz) if drawn is None else Chem.RemoveHs(with_stereo(drawn))
                out["smiles"] = Chem.MolToSmiles(mol)
            else:
                mol = Chem.RemoveHs(mol, sanitize=False)
            out["svg"] = _drawing(mol, sane=bool(out["valid"]))
        except (ValueError, RuntimeError):  # the page still builds; the cell stays empty
            pass
    return out


def _skeleton(mol: Chem.Mol, xyz: np.ndarray) -> Chem.Mol:
    """Heavy atoms of a sanitised molecule, with the stereochemistry of its geometry where that is known."""
    if len(xyz) and np.isfinite(xyz).all():
        conformer = Chem.Conformer(len(xyz))
        conformer.SetPositions(np.ascontiguousarray(xyz))
        mol.AddConformer(conformer)
        Chem.AssignStereochemistryFrom3D(mol)
    return Chem.RemoveHs(mol)


def _drawing(mol: Chem.Mol, *, sane: bool) -> str:
    if not 0 < mol.GetNumAtoms() <= _LARGEST_DRAWING:
        return ""
    draw = rdMolDraw2D.MolDraw2DSVG(_WIDTH, _HEIGHT, -1, -1, True)
    options = draw.drawOptions()
    options.clearBackground = False
    options.padding = 0.06
    options.fixedBondLength = 24
    options.bondLineWidth = 1.5
    options.prepareMolsBeforeDrawing = False
    palette = {z: tuple(int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)) for z, c in _COLOURS.items()}
    options.setAtomPalette({**palette, -1: (0.0, 0.0, 0.0), 1: (0.0, 0.0, 0.0), 6: (0.0, 0.0, 0.0)})
    mol.RemoveAllConformers()
    if not sane:
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
    mol = rdMolDraw2D.PrepareMolForDrawing(mol, kekulize=sane, addChiralHs=False, wedgeBonds=sane)
    draw.DrawMolecule(mol)
    draw.FinishDrawing()
    return compact_svg(draw.GetDrawingText())


def compact_svg(text: str) -> str:
    """RDKit's drawing at about a fifth of its size: one path for each colour and width, black as `currentColor`."""
    paths: dict[str, list[str]] = {}
    labels: list[str] = []
    for node in ElementTree.fromstring(text.split("?>", 1)[-1]):
        tag = node.tag.rpartition("}")[2]
        style = dict(item.split(":", 1) for item in node.get("style", "").split(";") if ":" in item)
        look = {k.strip(): v.strip() for k, v in {**node.attrib, **style}.items()}
        fill, stroke = _ink(look.get("fill", "none")), _ink(look.get("stroke", "none"))
        paint = f'fill="{fill}" stroke="{stroke}"'
        if stroke != "none":
            paint += f' stroke-width="{look.get("stroke-width", "1").removesuffix("px")}"'
        if "stroke-dasharray" in look:
            paint += f' stroke-dasharray="{look["stroke-dasharray"]}"'
        if tag == "path":
            paths.setdefault(paint, []).append(
                " ".join(look["d"].replace("M ", "M").replace(" L ", "L").split())
            )
        elif tag == "ellipse":
            labels.append(
                f"<ellipse {paint} " + " ".join(f'{k}="{look[k]}"' for k in ("cx", "cy", "rx", "ry")) + "/>"
            )
        elif tag == "text":
            size = look.get("font-size", "10").removesuffix("px")
            glyph = (node.text or "").replace("&", "&amp;").replace("<", "&lt;")
            labels.append(
                f'<text x="{look["x"]}" y="{look["y"]}" font-size="{size}" fill="{fill}">{glyph}</text>'
            )
    lines = "".join(f'<path {paint} d="{"".join(d)}"/>' for paint, d in paths.items())
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{lines}{"".join(labels)}</svg>'


def _ink(colour: str) -> str:
    return "currentColor" if colour == "#000000" else colour


def _camera(xyz: np.ndarray) -> list[float] | None:
    """Centre, unit vector to the eye and unit vector up, such that the two longest principal axes face the reader."""
    known = xyz[np.isfinite(xyz).all(axis=1)]
    if len(known) == 0 or np.abs(known).max() > 1e6:
        return None
    centre = (known.min(axis=0) + known.max(axis=0)) / 2
    _, spread, axes = np.linalg.svd(known - known.mean(axis=0), full_matrices=True)
    if len(spread) < 2 or spread[1] < 1e-3:  # one atom or a line: lay the line across
        up = np.eye(3)[np.argmin(np.abs(axes[0]))]
        up = up - axes[0] * (axes[0] @ up)
        axes = np.stack([axes[0], up / np.linalg.norm(up), np.cross(axes[0], up / np.linalg.norm(up))])
    eye, up = (axis * (1.0 if axis[np.abs(axis).argmax()] > 0 else -1.0) for axis in (axes[2], axes[1]))
    return [round(float(v), 4) for v in (*centre, *eye, *up)]


def _symbol(z: int) -> str:
    return str(Chem.GetPeriodicTable().GetElementSymbol(z)) if 0 < z <= 118 else "X"


def _radius(z: int) -> float:
    return float(Chem.GetPeriodicTable().GetRcovalent(z)) if 0 < z <= 118 else 0.7


def _line(error: Exception) -> str:
    """RDKit's reason in one line, without its C++ file and line number; atoms counted from 1, as in the 3D view."""
    lines = [s.strip() for s in str(error).splitlines() if s.strip()] or [type(error).__name__]
    wanted = [
        s
        for s in lines
        if not s.startswith(("Pre-condition", "Invariant", "Violation", "Failed", "RDKIT", "BOOST"))
    ]
    return from_one((wanted or lines)[0])
