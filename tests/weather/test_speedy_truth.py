"""`benchmarks/speedy_truth.py`: the growth of errors of ensembles whose truth is known; what does not go together."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr")

from benchmarks import speedy_truth as bench


def draws(days: int = 7, dates: int = 6, members: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """States of variance 4, and truth, centre and members whose errors have s² = 0.01 · 2^(d / 2) on day d."""
    rng = np.random.default_rng(0)
    x = 2 * rng.standard_normal((5, 40, 7, 16, 32)).astype(np.float32)
    size = 0.1 * 2 ** (np.arange(-1, days) / 4)
    e = rng.standard_normal((dates, members + 2, days + 1, 7, 16, 32)) * size[:, None, None, None]
    e[:, 2:] += e[:, 1:2]  # members about the centre, which is about the truth
    e[:, 0] = 0
    return x, (50 + e).astype(np.float32)


def test_errors_grow_as_they_were_made_to() -> None:
    """The centre is s² from the truth, the mean s² (1 + 1 / M): shares of 4; the error doubles in four days."""
    x, y = draws()
    found = bench.grown(x, y)
    expected = 0.01 * 2 ** (np.arange(7) / 2) / 4
    np.testing.assert_allclose(found["centre"], np.repeat(expected[:, None], 7, 1), rtol=0.1)
    np.testing.assert_allclose(found["mean"], 1.1 * np.repeat(expected[:, None], 7, 1), rtol=0.1)
    np.testing.assert_allclose(found["ssr"], 1, rtol=0.05)  # √((M + 1) / M) s / √(s² (M + 1) / M)


def test_the_table_says_in_which_time_errors_double(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = draws()
    np.save(tmp_path / "train_states.npy", x)
    np.save(tmp_path / "truth00_states.npy", y[:4])
    np.save(tmp_path / "truth01_states.npy", y[4:])
    bench.growth(tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("6 dates, 10 members")
    times = [float(part.split()[-1]) for part in told[-1].split(": ")[1].split(",")]
    np.testing.assert_allclose(times, 4, atol=0.2)
    with pytest.raises(SystemExit, match="expected truth ensembles"):
        bench.growth(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "expected --states"),
        ("--states s --batch 100", "multiple of --members + 2 = 52"),
        ("--states s --tests 2", "expected --tests from 3"),
        ("--states s --days 4", "expected --days"),
        ("--states s --checkpoints 2", "expected --checkpoints 3"),
    ],
)
def test_numbers_that_do_not_go_together(
    words: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["speedy_truth.py", str(tmp_path / "out"), *words.split()])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_days_of_the_year() -> None:
    """1 March of a leap year is day 60 from 0, at noon half a day more."""
    days = (np.datetime64("1972-03-01") - np.datetime64("1970-01-01")).astype(int)
    np.testing.assert_allclose(bench.day_of_year(np.array([days]), np.array([43200])), [60.5])
