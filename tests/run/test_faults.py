"""Processes killed at random while they sample, merge and save: `benchmarks/faults.py`, for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rdkit")

from benchmarks.faults import SCENARIOS, run


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_or_twice_or_unreadable(tmp_path: Path, name: str) -> None:
    report = run(name, kills=12, seed=1, root=tmp_path)
    assert report["kills"] >= 12
    assert report["rounds"] >= 2
    assert (report["lost"], report["duplicated"], report["unreadable"]) == (0, 0, 0)
