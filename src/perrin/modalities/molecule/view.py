"""One self-contained HTML page of molecules: a table with 2D drawings, one 3D view, metrics and provenance.

The page opens without network and stays that way: a content security policy forbids every connection and runs only the
two scripts whose hashes it names (plotly's library, inlined from the installed package, and the page's own), so text in
a file of molecules can never become code. Data sit in JSON blocks; drawings and rows are built when they scroll into view.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError, install
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.view_properties import page_properties
from perrin.modalities.molecule.view_records import elements, plain, record
from perrin.run.atomic import write_text

_SCRIPTS = ("formats.js", "mesh.js", "page.js", "histograms.js", "stage.js")


def render_page(
    molecules: Sequence[Molecule],
    *,
    title: str,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
) -> str:
    """The page as text.

    Arguments:
        molecules: what to show, in the order of the file; broken molecules are welcome.
        title: heading and document title, plain text.
        metrics: protocol → metric → `{value, stderr, unit}`; bare numbers and missing levels are accepted.
        provenance: the content of `run.json`.
        properties: columns and histograms, from `view_properties.page_properties`.

    Raises:
        PerrinError: plotly is not installed.
    """
    records = [record(molecule) for molecule in molecules]
    library = _library()
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in _SCRIPTS) + "})();\n"
    parts = {
        "title": html.escape(title),
        "policy": html.escape(_policy(script, library)),
        "style": _asset("page.css"),
        "summary": html.escape(_summary(records)),
        "metrics": _metrics_table(metrics),
        "provenance": _provenance(provenance),
        "elements": _json(elements(molecules)),
        "molecules": _json(records),
        "properties": _json(properties or page_properties(molecules)),
        "script": script,
        "library": library,
    }
    # One pass, so that a marker inside somebody's data is never filled in.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def write_page(
    path: str | os.PathLike[str],
    molecules: Sequence[Molecule],
    *,
    title: str,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
) -> Path:
    """Write `render_page` to `path`, whole or not at all; folders on the way are created.

    Raises:
        PerrinError: `path` is a directory, or cannot be written (no permission, full disk).
    """
    text = render_page(molecules, title=title, metrics=metrics, provenance=provenance, properties=properties)
    write_text(Path(path), text.encode(errors="replace").decode())
    return Path(path)


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise PerrinError(
            f"the HTML page needs plotly, which is not installed: {install('molecule')}"
        ) from error
    return "\n" + str(get_plotlyjs()).replace("\r\n", "\n").replace("</script", "<\\/script") + "\n"


def _asset(name: str) -> str:
    return (
        (resources.files(__package__) / "view_assets" / name)
        .read_text(encoding="utf-8")
        .replace("\r\n", "\n")
    )


def _policy(*scripts: str) -> str:
    """Content security policy: no connection at all, and only the scripts with these hashes."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that cannot end its own script element: `<`, `>` and `&` are written as escapes, which JSON reads back."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _summary(records: list[dict[str, Any]]) -> str:
    parts = [f"{len(records)} molecule{'' if len(records) == 1 else 's'}"]
    if any(r["valid"] is not None for r in records):
        valid = [r for r in records if r["valid"]]
        parts += [
            f"{len(valid)} sanitise",
            f"{sum(r['fragments'] == 1 for r in valid)} of them in one piece",
            f"{len({r['smiles'] for r in valid})} distinct",
        ]
    return " · ".join(parts)


def _provenance(provenance: dict[str, Any] | None) -> str:
    if provenance is None:
        return ""
    text = json.dumps(plain(provenance), indent=2, ensure_ascii=False)
    return f"<details><summary>Provenance</summary><pre tabindex='0'>{html.escape(text)}</pre></details>"


def _metrics_table(metrics: dict[str, Any] | None) -> str:
    rows = list(_leaves(plain(metrics), ())) if metrics else []
    if not rows:
        return ""
    groups: dict[str, str] = {}
    for path, leaf in rows:
        row = f"<tr><th scope='row'>{html.escape(path[-1])}</th><td>{html.escape(_quantity(leaf))}</td></tr>"
        group = " / ".join(path[:-1])
        groups[group] = groups.get(group, "") + row
    tables = "\n".join(
        f"<table class='metrics'><caption>{html.escape(group)}</caption><tbody>{body}</tbody></table>"
        for group, body in groups.items()
    )
    return (
        f"<details id='metrics' open><summary>Metrics</summary><div class='groups'>{tables}</div></details>"
    )


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every `(path, {value, stderr, unit})` of a nested dictionary."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict) and "value" not in value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value if isinstance(value, dict) else {"value": value}


def _quantity(leaf: dict[str, Any]) -> str:
    """`97.72 ± 0.15 %`: as many decimals as the standard error supports."""
    value, stderr, unit = leaf.get("value"), leaf.get("stderr"), leaf.get("unit")
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    elif isinstance(stderr, int | float) and stderr > 0:
        decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 8)
        text = f"{value:.{decimals}f} ± {stderr:.{decimals}f}"
    else:
        text = str(value) if isinstance(value, int) else f"{value:.4g}"
    return f"{text} {unit}" if unit else text
