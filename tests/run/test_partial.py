"""Unfinished work: parts come back, other work is not touched, damaged parts are made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perrin.errors import PerrinError
from perrin.run.partial import PartialStore

KEY = {"weights": "abc", "seed": 1, "sampling": {"steps": 3, "range": (1, 2)}}


def part(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full((2, 3), value), "n": np.arange(2, dtype=np.int64)}


def test_parts_come_back_bit_by_bit(tmp_path: Path) -> None:
    store = PartialStore(tmp_path / "out.sdf", KEY)
    store.save((4, 1), part(1 / 3))
    store.save((0, 2), part(np.nextafter(1.0, 2.0)))
    store.save((), {"x": np.zeros((0, 3))})
    found = dict(PartialStore(tmp_path / "out.sdf", KEY).load())
    assert set(found) == {(4, 1), (0, 2), ()}
    assert found[4, 1]["x"].dtype == np.float64
    assert np.array_equal(found[4, 1]["x"], part(1 / 3)["x"])
    assert found[0, 2]["x"][0, 0] == np.nextafter(1.0, 2.0)
    assert np.array_equal(found[4, 1]["n"], [0, 1])


def test_saving_again_replaces(tmp_path: Path) -> None:
    store = PartialStore(tmp_path / "out.sdf", KEY)
    store.save((1,), part(1.0))
    store.save((1,), part(2.0))
    [(indices, data)] = store.load()
    assert indices == (1,)
    assert data["x"][0, 0] == 2.0


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    store = PartialStore(tmp_path / "out.sdf", KEY)
    store.save((1,), part(1.0))
    store.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": 2}, {"weights": "xyz"}, {"sampling": {}}, {"more": 1}])
def test_other_work_is_refused_and_kept(tmp_path: Path, change: dict[str, object]) -> None:
    PartialStore(tmp_path / "out.sdf", KEY).save((1,), part(1.0))
    with pytest.raises(
        PerrinError, match=r"expected to go on .* other settings \(.*\): give those, or delete"
    ):
        PartialStore(tmp_path / "out.sdf", {**KEY, **change})
    assert len(PartialStore(tmp_path / "out.sdf", KEY).load()) == 1


def test_other_work_that_has_done_nothing_is_forgotten(tmp_path: Path) -> None:
    PartialStore(tmp_path / "out.sdf", KEY)
    store = PartialStore(tmp_path / "out.sdf", {**KEY, "seed": 2})
    store.save((1,), part(1.0))
    with pytest.raises(PerrinError):
        PartialStore(tmp_path / "out.sdf", KEY)


def test_a_damaged_key_is_another_key(tmp_path: Path) -> None:
    store = PartialStore(tmp_path / "out.sdf", KEY)
    store.save((1,), part(1.0))
    (store.folder / "key.json").write_text('{"weights"')
    with pytest.raises(PerrinError):
        PartialStore(tmp_path / "out.sdf", KEY)


def test_a_damaged_part_is_left_out(tmp_path: Path) -> None:
    store = PartialStore(tmp_path / "out.sdf", KEY)
    store.save((1,), part(1.0))
    store.save((2,), part(2.0))
    first, second = sorted(store.folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-4])
    assert len(store.load()) == 1
    second.write_bytes(b"")
    assert store.load() == []


def test_two_outputs_do_not_meet(tmp_path: Path) -> None:
    PartialStore(tmp_path / "a.sdf", KEY).save((1,), part(1.0))
    assert PartialStore(tmp_path / "b.sdf", {**KEY, "seed": 2}).load() == []


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PerrinError, match="given the directory"):
        PartialStore(tmp_path, KEY)
