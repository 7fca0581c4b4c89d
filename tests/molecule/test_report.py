"""The page's properties: histograms that add up, and the whole in a browser, without errors and without a network."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit")
pytest.importorskip("plotly")

from browser import CHROMIUM, Browser
from rdkit import Chem

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.commands import made_by_qm9
from perrin.modalities.molecule.files import write_sdf
from perrin.modalities.molecule.ranking import descriptors
from perrin.modalities.molecule.ranking.columns import DESCRIPTORS
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.view import write_page
from perrin.modalities.molecule.view_properties import DRAWN, _read, page_properties, with_properties

SMILES = ["CCO", "CCN", "CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1O", "CC(C)C", "C1CCCCC1", "N#CC=O", "Oc1ccccc1O"]
REFERENCE = ["CCCO", "CC(=O)N", "c1ccncc1", "OCCO", "CCCCC", "not a molecule", "C1CC1", "CS(C)=O"]

if CHROMIUM is None and os.environ.get("CI"):
    warnings.warn("no chromium on this machine of CI: THE PAGE IS NOT CHECKED IN A BROWSER", stacklevel=1)


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    return [replace(add_geometry(s), name=f"m{i}", properties={"gap": 0.1 * i}) for i, s in enumerate(SMILES)]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.smi"
    path.write_text("\n".join(REFERENCE) + "\n")
    return path


def test_descriptors_join_what_the_file_says(molecules: list[Molecule]) -> None:
    own = replace(molecules[0], properties={"QED": 7.0, "note": "mine"})
    first, second = with_properties([own, molecules[1]])
    assert first.properties["QED"] == 7.0  # the file's
    assert first.properties["note"] == "mine"
    assert second.properties["MW"] == descriptors(Chem.MolFromSmiles("CCN"))["MW"]
    assert not {"valid", "smiles"} & set(second.properties)


def test_histograms_are_those_of_the_reference(molecules: list[Molecule], reference: Path) -> None:
    described = with_properties(molecules)
    found = page_properties(described, reference=str(reference), first=("gap",))
    json.dumps(found, allow_nan=False)
    assert found["reference"] == {"name": "reference.smi", "count": 7}
    assert found["shown"] == ["gap", "QED", "SA", "logP", "TPSA"]
    others = [descriptors(m) for s in REFERENCE if (m := Chem.MolFromSmiles(s)) is not None]
    for h in found["histograms"]:
        ours = [m.properties[h["name"]] for m in described]
        assert h["low"] <= min(ours)
        assert max(ours) <= h["high"]
        if h["name"] == "gap":  # no property of the reference
            assert "shares" not in h
            continue
        theirs = [v[h["name"]] for v in others]
        edges = np.linspace(h["low"], h["high"], h["bins"] + 1)
        counts, _ = np.histogram(theirs, bins=edges)
        np.testing.assert_allclose(h["shares"], counts / 7, atol=1e-5)
        assert sum(h["shares"]) == pytest.approx(1, abs=1e-4)
        assert h["median"] == np.median(theirs)
    whole = next(h for h in found["histograms"] if h["name"] == "heavy")
    assert (whole["low"], whole["high"], whole["bins"]) == (2.5, 13.5, 11)
    units = {c["name"]: c["unit"] for c in found["columns"]}
    assert (units["MW"], units["TPSA"], units["QED"]) == ("Da", "Å²", "")


def test_no_reference_and_no_properties(molecules: list[Molecule]) -> None:
    assert page_properties([]) == {"columns": [], "shown": [], "histograms": [], "reference": None}
    found = page_properties(with_properties(molecules))
    assert found["reference"] is None
    assert all("shares" not in h for h in found["histograms"])
    with pytest.raises(PerrinError, match="does not exist"):
        page_properties(molecules, reference="nope.smi")


def test_a_damaged_cache_is_none(tmp_path: Path) -> None:
    good = {c.name: [1.0] * DRAWN for c in DESCRIPTORS}
    kept = tmp_path / "kept.json"
    assert _read(kept) is None
    for text in (
        "",
        "[1]",
        "{}",
        json.dumps(good | {"QED": [1.0]}),
        json.dumps(good | {"QED": [None] * DRAWN}),
    ):
        kept.write_text(text)
        assert _read(kept) is None
    kept.write_text(json.dumps(good))
    assert _read(kept) == good


@pytest.mark.parametrize(
    ("provenance", "ours"),
    [
        (None, False),
        ({"verb": "sample", "bundle": {"path": "molecule/qm9"}}, True),
        ({"verb": "sample", "bundle": {"path": "runs/a"}}, False),
        ({"verb": "rank", "source": {"run": {"verb": "sample", "bundle": {"path": "molecule/qm9"}}}}, True),
        ({"verb": "rank", "source": {"run": None}}, False),
        ({"verb": "rank"}, False),
        ({"verb": "rank", "source": "text"}, False),
        ({"bundle": [1]}, False),
    ],
)
def test_where_the_molecules_come_from(provenance: dict[str, Any] | None, ours: bool) -> None:
    assert made_by_qm9(provenance) is ours


def test_view_takes_a_reference(
    tmp_path: Path, molecules: list[Molecule], reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sdf(tmp_path / "a.sdf", molecules)
    assert main(["rank", str(tmp_path / "a.sdf"), "--by=-tpsa", "--workers", "1"]) == 0
    ranked = str(tmp_path / "a.ranked.sdf")
    assert main(["view", ranked, "--reference", str(reference)]) == 0
    text = (tmp_path / "a.ranked.html").read_text()
    assert '"reference":{"name":"reference.smi","count":7}' in text
    assert '"shown":["TPSA","QED","SA","logP","MW"]' in text
    assert "sha256" in text  # the ranking's record
    assert main(["view", ranked, "--reference", "none", "-o", str(tmp_path / "b.html")]) == 0
    assert '"reference":null' in (tmp_path / "b.html").read_text()
    assert main(["view", ranked, "--reference", "nope.smi", "-o", str(tmp_path / "c.html")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser(tmp_path: Path, molecules: list[Molecule], reference: Path) -> None:
    flags = [{"duplicate": int(i % 8 == 1), "duplicate_of": i, "known": int(i % 8 == 2)} for i in range(1000)]
    many = [replace(m, properties={"gap": 0.001 * i, **flags[i]}) for i, m in enumerate(molecules * 125)]
    described = with_properties(many)
    properties = page_properties(described, reference=str(reference))
    target = write_page(tmp_path / "page.html", described, title="1,000 molecules", properties=properties)
    assert target.stat().st_size < 9e6
    with Browser(target) as browser:
        for _ in range(50):
            if browser.evaluate("document.querySelector('#plot canvas') !== null"):
                break
            time.sleep(0.2)
        see = browser.evaluate
        assert see("document.querySelectorAll('#rows tr').length") < 200  # rows are built as they are needed
        assert (
            see("document.querySelectorAll('.gl-container').length") == 1
        )  # and one 3D view, of what is chosen
        drawn = see("[...document.querySelectorAll('#bars figcaption')].map((c) => c.firstChild.textContent)")
        assert drawn == [
            f"{h['name']}" + {"TPSA": ", Å²", "MW": ", Da"}.get(h["name"], "")
            for h in properties["histograms"]
        ]
        assert "7 molecules of reference.smi" in see("document.getElementById('against').textContent")

        def typed(words: str) -> str:
            box = "document.getElementById('filter')"
            see(f"{box}.value = {json.dumps(words)}; {box}.dispatchEvent(new Event('input'))")
            return str(see("document.getElementById('count').textContent"))

        def column(name: str) -> list[float]:
            where = f"[...document.querySelectorAll('#rows td.extra')].filter((c) => c.dataset.label === {name!r})"
            return [float(v) for v in see(f"{where}.map((c) => c.textContent)")]

        values = [m.properties for m in described]
        expected = sum(v["MW"] > 90 and v["logP"] <= 1.5 for v in values)
        assert typed("MW>90 logp<=1.5") == f"{expected} of 1000"
        assert typed("gap<0.01") == "10 of 1000"
        assert typed("C=O") == "125 of 1000"  # a word that is no property is a piece of SMILES
        assert typed("") == ""
        see("[...document.querySelectorAll('#heads button')].find((b) => b.textContent === 'MW').click()")
        assert column("MW") == sorted(column("MW"))
        assert column("MW")[0] == min(v["MW"] for v in values)
        see("[...document.querySelectorAll('#heads button')].find((b) => b.textContent === 'MW ↑').click()")
        assert column("MW")[0] == max(v["MW"] for v in values)
        see(
            "const s = document.getElementById('status'); s.value = 'new'; s.dispatchEvent(new Event('change'))"
        )
        assert see("document.getElementById('count').textContent") == "750 of 1000"
        see("s.value = 'all'; s.dispatchEvent(new Event('change'))")
        # the bars count what is shown; a click on one filters by it
        heavy = next(i for i, h in enumerate(properties["histograms"]) if h["name"] == "heavy")
        bars = f"document.querySelectorAll('#bars figure')[{heavy}].querySelectorAll('.bar-of')"
        titles = see(f"[...{bars}].map((b) => b.querySelector('title').textContent)")
        assert [int(t.rpartition(":")[2]) for t in titles] == [
            sum(v["heavy"] == n for v in values) for n in range(3, 14)
        ]
        see(f"{bars}[10].dispatchEvent(new MouseEvent('click'))")
        assert see("document.getElementById('filter').value") == "heavy=13"
        assert see("document.getElementById('count').textContent") == "125 of 1000"
        see("document.querySelectorAll('#choices input')[5].click()")
        assert "lipinski" in see("document.getElementById('heads').textContent")
        assert browser.logged == []
        assert browser.requested == [target.resolve().as_uri()]
