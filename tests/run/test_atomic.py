"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perrin.errors import PerrinError
from perrin.run.atomic import atomic_path, write_json, write_tensors, write_text
from perrin.run.signals import Interrupted


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def fill(path: Path, text: str, error: BaseException | None = None, link: str | None = None) -> None:
    with atomic_path(path) as temporary:
        if link:
            temporary.symlink_to(link)
        temporary.write_text(text)
        if error:
            raise error


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses to write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert listed(path.parent) == ["text.txt"]


def test_text_json_and_tensors_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Ångström\n")
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Ångström\n"
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.arange(3))
    assert listed(tmp_path) == ["a.json", "a.safetensors", "a.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), Interrupted(15, "x"), SystemExit(1)])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        fill(path, "half", error)
    assert path.read_text() == "old"
    assert listed(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("place", ["write", "replace"])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "replace":
        monkeypatch.setattr(os, "replace", full)
    (tmp_path / "a.txt").write_text("old")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if place == "write" else None
    with pytest.raises(PerrinError, match=r"^expected to write .*a\.txt, met: No space left on device; free"):
        fill(tmp_path / "a.txt", "half", error)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert listed(tmp_path) == ["a.txt"]


def test_a_device_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(PerrinError, match="No space left"):
        fill(tmp_path / "a.txt", "x" * 100_000, link="/dev/full")
    assert listed(tmp_path) == []


def test_no_room_for_text_or_tensors(tmp_path: Path) -> None:
    with small_disk(1000):
        with pytest.raises(PerrinError, match=r"^expected to write"):
            write_text(tmp_path / "a.txt", "x" * 100_000)
        with pytest.raises(PerrinError, match=r"^expected to write"):
            write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(100_000)})
    assert listed(tmp_path) == []


def test_paths_that_cannot_be_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(PerrinError, match="expected an output file, given the directory"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(PerrinError, match="expected to write"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(PerrinError, match="expected to write"):
        write_text(tmp_path / ("n" * 300), "x")
    assert listed(tmp_path) == ["file", "folder"]


def test_tensors_have_the_mode_of_other_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in listed(tmp_path)}
    assert len(modes) == 1
