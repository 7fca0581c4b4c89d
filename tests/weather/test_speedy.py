"""`perrin data weather/speedy` with a small model in place of SPEEDY: runs that are stopped end with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr")

from perrin.cli import main
from perrin.modalities.weather import speedy
from perrin.modalities.weather.fields import open_fields


class Killed(BaseException):
    """Where a process would end."""


class Rotor:
    """A state of one number that turns by an angle each day; its fields are that number and a pattern."""

    def __init__(self, interval: int = 12) -> None:
        self.interval, self.day, self.x = interval, 0, 0.1
        self.latitude, self.longitude = np.arange(-80.0, 90, 20), np.arange(0.0, 360, 20)
        self.constants = {
            name: np.ones((len(self.latitude), len(self.longitude)), dtype=np.float32)
            for name in ("orog", "sftlf")
        }

    def run(self, days: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        steps = days * 24 // self.interval
        x = np.empty(steps)
        for i in range(steps):
            x[i] = self.x = 3.9 * self.x * (1 - self.x)  # chaotic: a state a bit off does not stay unseen
        start = np.datetime64("2000-01-01T00:00:00") + np.timedelta64(self.day, "D")
        times = start + (1 + np.arange(steps)) * np.timedelta64(self.interval, "h")
        self.day += days
        shape = (steps, len(self.latitude), len(self.longitude))
        fields = {
            name: np.broadcast_to((i + x)[:, None, None], shape).astype(np.float32)
            for i, name in enumerate(speedy.FIELDS)
        }
        return times, fields

    def save(self, path: str | Path) -> None:
        np.save(Path(path).with_suffix(".npy"), np.array([self.day, self.x]))
        Path(path).with_suffix(".npy").replace(path)

    def restore(self, path: str | Path) -> None:
        with Path(path).open("rb") as file:
            day, self.x = np.load(file)
        self.day = int(day)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.parametrize("where", ["run", "write_region", "_keep", "write_json", "after write_json"])
@pytest.mark.parametrize("spinup", [0, 25])
@pytest.mark.parametrize("call", [1, 3])
def test_stopped_anywhere(
    where: str, spinup: int, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in front of the n-th call of each step of the work, or behind it, and started again."""
    monkeypatch.setattr(speedy, "Speedy", Rotor)
    settings = {"days": 45, "spinup": spinup, "chunk": 10}
    speedy.produce(tmp_path / "whole.zarr", **settings)
    place, name = (Rotor, where) if where == "run" else (speedy, where.split()[-1])
    real, seen = getattr(place, name), 0

    def stopping(*words: object, **more: object) -> object:
        nonlocal seen
        seen += 1
        if seen == call and where == name:
            raise Killed
        found = real(*words, **more)
        if seen == call:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopping)
        with pytest.raises(Killed):
            speedy.produce(tmp_path / "a.zarr", **settings)
    assert not (tmp_path / "a.zarr").exists()
    assert speedy.produce(tmp_path / "a.zarr", **settings)["states"] == 90
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "whole.zarr")
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state in its place, whatever the chunks; times go on over them."""
    monkeypatch.setattr(speedy, "Speedy", Rotor)
    out = tmp_path / "a.zarr"
    words = ["data", "weather/speedy", "--days", "33", "--spinup", "7", "--interval", "6", "-o", str(out)]
    assert main(words) == 0
    model = Rotor(6)
    model.run(7)
    times, fields = model.run(33)
    found = open_fields(out)
    assert [str(t) for t in found.times] == [str(t).replace("T", " ") for t in times]
    for name, x in fields.items():
        np.testing.assert_array_equal([found.read(name, time=i) for i in range(len(times))], x)
