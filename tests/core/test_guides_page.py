"""The examples of `docs/guides.md` run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides.md"


@pytest.mark.slow
def test_the_page_runs() -> None:
    space: dict[str, Any] = {}
    for code in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(compile(code, str(PAGE), "exec"), space)
    assert space["x"].shape == (4000, 2)
    for picture in re.findall(r"\]\((images/[^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / picture).stat().st_size < 60_000
