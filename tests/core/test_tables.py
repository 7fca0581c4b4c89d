"""The documentation's table of solvers is what the code says today."""

from __future__ import annotations

from pathlib import Path

from perrin.core.tables import page


def test_the_page_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m perrin.core.tables > docs/solvers.md"
