"""The HTML page: everything is in it, nothing of it comes from elsewhere, and no text in it becomes code."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit")
pytest.importorskip("plotly")

from rdkit import Chem, rdBase
from rdkit.Chem import AllChem

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.molecule import view
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.view import render_page, write_page
from perrin.modalities.molecule.view_records import formula, plain, record

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
SMILES = [
    "CC(C)C1CC(=O)N1",
    "C#CC1CC1O",
    "[NH3+]CC(=O)[O-]",
    "c1ccncc1",
    "FC(F)(F)CCO",
    "C[C@H](O)[C@@H](N)C#N",
]


def from_smiles(smiles: str, **extra: Any) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    Chem.Kekulize(mol, clearAromaticFlags=True)
    bonds = [
        (*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), int(b.GetBondTypeAsDouble()))
        for b in mol.GetBonds()
    ]
    return Molecule(
        numbers=np.array([a.GetAtomicNum() for a in mol.GetAtoms()], dtype=np.int64),
        positions=mol.GetConformer().GetPositions(),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 3),
        charges=np.array([a.GetFormalCharge() for a in mol.GetAtoms()], dtype=np.int64),
        **extra,
    )


def broken() -> dict[str, Molecule]:
    """One molecule for each way to be wrong."""
    ring, acid = from_smiles("C1CC1"), from_smiles("OC=O")
    assert ring.bonds is not None
    assert acid.bonds is not None
    holes = ring.positions.copy()
    holes[1] = np.nan
    two = Molecule(
        numbers=np.concatenate([ring.numbers, acid.numbers]),
        positions=np.vstack([ring.positions, acid.positions + 4]),
        bonds=np.vstack([ring.bonds, np.add(acid.bonds, [len(ring), len(ring), 0])]),
        charges=np.concatenate([ring.charges, acid.charges]),
    )
    empty = np.zeros(0, dtype=np.int64)
    return {
        "valence": replace(ring, bonds=np.add(ring.bonds, [0, 0, 1])),
        "outside": replace(ring, bonds=np.array([[0, 77, 1]])),
        "order": replace(ring, bonds=np.array([[0, 1, 5]])),
        "twice": replace(ring, bonds=np.array([[0, 1, 1], [0, 1, 1]])),
        "two": two,
        "radical": replace(ring, bonds=ring.bonds[:-1]),
        "some NaN": replace(ring, positions=holes),
        "all inf": replace(ring, positions=np.full_like(ring.positions, np.inf)),
        "no bonds": replace(ring, bonds=None),
        "no atoms": Molecule(
            numbers=empty, positions=np.zeros((0, 3)), bonds=np.zeros((0, 3), dtype=np.int64), charges=empty
        ),
        "element 200": replace(ring, numbers=np.array([200, *ring.numbers[1:]])),
        "one atom": Molecule(
            numbers=np.array([9]), positions=np.ones((1, 3)), bonds=None, charges=np.array([-1])
        ),
    }


class Page(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data

    def data(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[1])


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    good = [from_smiles(s, name=f"m{k}", properties={"gap": 0.1 * k}) for k, s in enumerate(SMILES)]
    return [*good, *broken().values()]


@pytest.fixture(scope="module")
def text(molecules: list[Molecule]) -> str:
    named = [replace(molecules[0], name=EVIL, properties={EVIL: EVIL, "gap": float("nan")}), *molecules[1:]]
    return render_page(
        named,
        title=f"run {EVIL}",
        metrics={EVIL: {EVIL: {"value": 1.0, "stderr": 0.1, "unit": EVIL}}},
        provenance={"command": EVIL, "seed": np.int64(7), "path": Path("a/b"), "loss": float("nan")},
    )


def without_library(text: str) -> str:
    library = view._library()
    assert library in text
    return text.replace(library, "")


def test_nothing_is_loaded(text: str) -> None:
    page = Page(text)
    own = without_library(text).replace(EVIL, "")
    assert "http://" not in own
    assert "https://" not in own
    assert not re.search(r"@import|url\(|\bimport\(|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", own)
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "audio", "video"}
        assert not {"src", "srcset", "href", "xlink:href", "action"} & set(attributes)


def test_policy_allows_only_the_page_s_two_scripts(text: str) -> None:
    page = Page(text)
    policy = next(
        str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    run = page.scripts[3:]
    types = [a.get("type") for tag, a in page.elements if tag == "script"]
    assert types == ["application/json"] * 3 + [None, None]
    for script in run:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == len(run)
    assert policy.startswith("default-src 'none';")
    assert "script-src 'unsafe-inline'" not in policy
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_names_cannot_become_markup(text: str) -> None:
    page = Page(text)
    assert len(page.scripts) == 5
    assert "alert(1)</script>" not in text
    assert not any(a.get("onerror") for _, a in page.elements)
    first = page.data()[0]
    assert first["name"] == EVIL
    assert first["properties"] == {EVIL: EVIL, "gap": None}


def test_a_marker_in_the_data_is_not_filled_in(molecules: list[Molecule]) -> None:
    page = Page(render_page([replace(molecules[0], name="{{library}}")], title="{{molecules}}"))
    assert page.data()[0]["name"] == "{{library}}"
    assert len(page.scripts) == 5


def test_all_molecules_round_trip(molecules: list[Molecule], text: str) -> None:
    data = Page(text).data()
    assert len(data) == len(molecules)
    for molecule, got in zip(molecules, data, strict=True):
        assert got["z"] == molecule.numbers.tolist()
        xyz = np.array(got["xyz"], dtype=float).reshape(-1, 3)  # None becomes NaN
        known = np.isfinite(molecule.positions)
        np.testing.assert_array_equal(np.isfinite(xyz), known)
        np.testing.assert_allclose(xyz[known], molecule.positions[known], atol=5.1e-5)
        if molecule.bonds is None:
            assert got["bonds"] is None
        else:
            assert got["bonds"] == molecule.bonds.ravel().tolist()
        assert (got["charges"] or [0] * len(molecule)) == molecule.charges.tolist()
    elements = json.loads(Page(text).scripts[0])
    assert set(elements) == {str(int(z)) for m in molecules for z in m.numbers}


@pytest.mark.parametrize("smiles", SMILES)
def test_a_good_molecule_keeps_its_smiles(smiles: str) -> None:
    got = record(from_smiles(smiles))
    assert got["valid"] is True
    assert (got["fragments"], got["radicals"], got["notes"]) == (1, 0, [])
    flat = [Chem.MolToSmiles(Chem.MolFromSmiles(s), isomericSmiles=False) for s in (smiles, got["smiles"])]
    assert flat[0] == flat[1]
    if "@" in smiles:
        assert got["smiles"] == Chem.CanonSmiles(smiles)
    assert got["svg"].startswith("<svg viewBox=")
    assert "NaN" not in got["svg"]
    assert len(got["svg"]) < 4000


@pytest.mark.parametrize(
    ("kind", "valid", "fragments", "note"),
    [
        ("valence", False, 1, "does not sanitise: Explicit valence for atom "),
        ("outside", False, None, "bond 1-78 names an atom that is not there"),
        ("order", False, None, "expected bond orders 1, 2 or 3, given 5"),
        ("twice", False, None, "does not sanitise"),
        ("two", True, 2, ""),
        ("radical", True, 2, ""),
        ("some NaN", True, 1, "1 of 9 positions are not finite"),
        ("all inf", True, 1, "9 of 9 positions are not finite"),
        ("no bonds", None, None, "the source has no bonds"),
        ("no atoms", False, 0, "no atoms"),
        ("element 200", False, 1, "does not sanitise"),
        ("one atom", None, None, "the source has no bonds"),
    ],
)
def test_a_broken_molecule_says_why(kind: str, valid: bool | None, fragments: int | None, note: str) -> None:
    got = record(broken()[kind])
    assert got["valid"] is valid
    assert got["fragments"] == fragments
    assert (got["smiles"] is not None) is bool(valid)
    assert note in "; ".join(got["notes"])
    assert all("\n" not in line for line in got["notes"])
    assert bool(got["radicals"]) is (kind == "radical")
    assert (got["camera"] is None) is (kind in {"all inf", "no atoms"})
    json.dumps(got, allow_nan=False)


def test_rdkit_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    rdBase.LogToCppStreams()
    record(broken()["valence"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [("OCC", "C2H6O"), ("[NH4+]", "H4N+"), ("O=C([O-])C(=O)[O-]", "C2O4-2"), ("O", "H2O")],
)
def test_formula_is_hill(smiles: str, expected: str) -> None:
    assert formula(from_smiles(smiles)) == expected


@pytest.mark.parametrize("positions", [[[0, 0, 0]], [[0, 0, 0], [0, 0, 1.1]], np.eye(3), np.zeros((3, 3))])
def test_the_camera_is_orthonormal(positions: Any) -> None:
    xyz = np.array(positions, dtype=float)
    zeros = np.zeros(len(xyz), dtype=np.int64)
    camera = record(Molecule(numbers=zeros + 6, positions=xyz, bonds=None, charges=zeros))["camera"]
    eye, up = np.array(camera[3:6]), np.array(camera[6:9])
    np.testing.assert_allclose([eye @ eye, up @ up, eye @ up], [1, 1, 0], atol=1e-3)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"bonds": {"valid": {"value": 97.7251, "stderr": 0.153, "unit": "%"}}}, ["bonds", "97.73 ± 0.15 %"]),
        ({"bonds": {"valid": {"value": 97.7251}}}, ["97.73"]),
        ({"valid": 3, "x": None, "y": "text", "z": [1, 2]}, ["<td>3</td>", "<td>–</td>", "text", "1, 2"]),
        ({"a": {"b": {"c": {"value": float("nan"), "stderr": float("nan")}}}}, ["a / b", "<td>–</td>"]),
        ({"bonds": {"valid": {"value": 100.0, "stderr": 0.0, "unit": "%"}}}, ["<td>100 %</td>"]),
        ({"bonds": {"n": {"value": np.int64(12345678)}}}, ["12345678"]),
    ],
)
def test_metrics_are_read_with_tolerance(metrics: dict[str, Any], expected: list[str]) -> None:
    table = view._metrics_table(metrics)
    for piece in expected:
        assert piece in table
    assert table in render_page([], title="t", metrics=metrics)


def test_no_metrics_no_provenance_no_molecules() -> None:
    text = render_page([], title="nothing")
    assert "<summary>Metrics" not in text
    assert "<summary>Provenance" not in text
    assert "0 molecules" in text
    assert Page(text).data() == []


def test_plain_makes_json_of_anything() -> None:
    value = {1: np.float64("nan"), "a": np.arange(2), "b": (Path("x"), {2}), "c": np.bool_(True)}
    assert plain(value) == {"1": None, "a": [0, 1], "b": ["x", [2]], "c": True}


def test_the_page_stays_small(molecules: list[Molecule]) -> None:
    good = molecules[: len(SMILES)]
    sizes = [len(render_page(good * k, title="t")) for k in (1, 11)]
    each = (sizes[1] - sizes[0]) / (10 * len(good))
    assert each < 3500  # bytes: 1,000 molecules add 3.5 MB
    assert sizes[1] < 8e6


def test_write_is_whole_and_replaces(tmp_path: Path, molecules: list[Molecule]) -> None:
    target = tmp_path / "new" / "view.html"
    assert write_page(target, molecules[:1], title="first") == target
    write_page(str(target), molecules[:2], title="second \udc80")
    text = target.read_text(encoding="utf-8")
    assert "second" in text
    assert len(Page(text).data()) == 2
    assert os.listdir(target.parent) == ["view.html"]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PerrinError, match=r"expected an output file.*directory") as error:
        write_page(tmp_path, [], title="t")
    assert "\n" not in str(error.value)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PerrinError, match="expected to write"):
        write_page(tmp_path / "file" / "view.html", [], title="t")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_page(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "view.html"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(PerrinError, match="No space left on device") as error:
        write_page(target, [], title="t")
    assert "\n" not in str(error.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["view.html"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_page(tmp_path / "view.html", [], title="t")
    assert os.listdir(tmp_path) == []


def dom(page: Path, profile: Path) -> str:
    """The document of a page after its scripts ran in headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"]
    flags += ["--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", "--no-first-run", f"--user-data-dir={profile}", "--virtual-time-budget=8000"]
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="needs chromium"
)
def test_in_a_browser(tmp_path: Path, molecules: list[Molecule], text: str) -> None:
    (tmp_path / "view.html").write_text(text, encoding="utf-8", errors="replace")
    document = dom(tmp_path / "view.html", tmp_path / "profile")
    assert len(re.findall(r'<tr [^>]*aria-selected="', document)) == len(molecules)
    assert "<canvas" in document  # the 3D view is drawn
    assert "alert(1)" in document  # as text

    formats = (resources.files("perrin.modalities.molecule") / "view_assets" / "formats.js").read_text()
    odd = replace(molecules[2], name="two\nlines", properties={"a>b": "x\n\n$$$$\ny", "n": 3})
    data = [record(m) for m in [*molecules[: len(SMILES)], odd]]
    symbols = {str(z): {"symbol": s} for z, s in {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}.items()}
    script = f"{formats}\nconst e = {json.dumps(symbols)};\n" + (
        f"document.body.textContent = {json.dumps(data)}.map((r) => sdfBlock(r, e)).join('');"
    )
    (tmp_path / "sdf.html").write_text(f"<body><script>{script}</script></body>")
    body = dom(tmp_path / "sdf.html", tmp_path / "profile").split("<body>")[1].split("</body>")[0]
    supplier = Chem.SDMolSupplier()
    supplier.SetData(body.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    mols = list(supplier)
    assert [Chem.MolToSmiles(m) for m in mols] == [r["smiles"] for r in data]
    assert mols[-1].GetProp("_Name") == "two lines"
    assert mols[-1].GetPropsAsDict() == {"a_b": "x\n $$$$\ny", "n": 3}


def test_drawings_are_shown_in_their_plane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the hydrogens that they leave out and the stereochemistry of their wedges; nothing is taken from distances."""
    drawn = "C[C@H](O)/C=C/F"
    mol = Chem.MolFromSmiles(drawn)
    AllChem.Compute2DCoords(mol)
    solid = Chem.AddHs(Chem.MolFromSmiles("[2H]CO"))
    AllChem.EmbedMolecule(solid, randomSeed=7)
    (tmp_path / "a.sdf").write_text("".join(Chem.MolToMolBlock(m) + "$$$$\n" for m in (mol, solid)))
    assert main(["view", str(tmp_path / "a.sdf")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 of 2 molecules of" in said
    assert "flat drawings, shown in their plane" in said
    text = (tmp_path / "a.html").read_text()
    flat, other = Page(text).data()
    assert flat["smiles"] == Chem.CanonSmiles(drawn)
    assert flat["formula"] == "C4H7FO"
    assert flat["valid"]
    assert flat["radicals"] == 0
    assert flat["notes"] == ["a flat drawing, shown in its plane"]
    xyz = np.array(flat["xyz"]).reshape(-1, 3)
    assert np.allclose(xyz[:6, :2], mol.GetConformer().GetPositions()[:, :2], atol=1e-4)
    assert not xyz[:, 2].any()
    assert flat["camera"][3:6] == [0, 0, 1]  # from the front: seen from behind, a drawing is its mirror image
    assert (other["smiles"], other["notes"]) == ("[2H]CO", [])
    assert "lookup" not in without_library(text).partition("</main>")[0].split("<script")[0]
