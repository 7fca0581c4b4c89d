"""Unfinished work: parts that are done, kept beside the output until it is whole.

`out.sdf.partial/` holds `key.json`, which says what the work is, and one safetensors file per part. Work that was stopped
goes on from there when the same command is given again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, counted
from perrin.run.atomic import write_json, write_tensors


class PartialStore:
    """Parts of one output.

    Arguments:
        output: the file that is being made.
        key: what the work is; parts made under another key are not touched.

    Raises:
        PerrinError: there is unfinished work of another key.
    """

    def __init__(self, output: str | Path, key: Mapping[str, Any]) -> None:
        output = Path(output)
        if os.path.isdir(output):
            raise PerrinError(f"expected an output file, given the directory {output}: add a file name")
        self.folder = output.with_name(output.name + ".partial")
        self.key = json.loads(json.dumps(dict(key)))
        read_key(self.folder, self.key)

    def save(self, indices: tuple[int, ...], tensors: Mapping[str, np.ndarray]) -> None:
        """Keep one part, atomically."""
        import torch

        data = {"indices": np.array(indices, dtype=np.int64), **tensors}
        name = hashlib.sha256(data["indices"].tobytes()).hexdigest()[:16]
        parts = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in data.items()}
        write_tensors(self.folder / f"{name}.safetensors", parts)

    def load(self) -> list[tuple[tuple[int, ...], dict[str, np.ndarray]]]:
        """The parts that are there; a damaged one is left out and made again."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        out = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                data = load_file(str(path))
            except (SafetensorError, OSError):
                continue
            out.append((tuple(data.pop("indices").tolist()), data))
        return out

    def remove(self) -> None:
        """Delete the parts, when the output is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_key(folder: Path, key: Mapping[str, Any]) -> bool:
    """Say what the work in a folder is, or check that it is this: whether there was some already.

    Raises:
        PerrinError: there is unfinished work of another key.
    """
    path = folder / "key.json"
    key = json.loads(json.dumps(dict(key)))
    if not os.path.isfile(path):
        write_json(path, key)
        return False
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if found == key:
        return True
    if any(p.name != path.name for p in folder.iterdir()):
        raise PerrinError(
            f"expected to go on with the work in {folder}, which was started with other settings "
            f"({_difference(found, key)}): give those, or delete the folder"
        )
    write_json(path, key)  # nothing was done yet
    return False


def _difference(found: Any, given: Mapping[str, Any]) -> str:
    """The settings that differ, short enough for one line."""
    if not isinstance(found, dict):
        return "its key.json is unreadable"
    one, other = _flat(found), _flat(given)
    differ = [k for k in sorted({*one, *other}) if one.get(k) != other.get(k)]
    told = [f"{name} {_short(one.get(name))}, given {_short(other.get(name))}" for name in differ[:3]]
    return "; ".join(told + ([f"and {len(differ) - 3} more"] if len(differ) > 3 else []))


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of entries under their own names, which are those of options: `steps`, not `sampling.steps`."""
    out: dict[str, Any] = {}
    for name, value in key.items():
        out |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return out


def _short(value: Any) -> str:
    """A value in few letters: a hash by its first digits, a long list by its length."""
    if isinstance(value, list):
        text = ", ".join(map(_short, value))
        return text if 0 < len(text) <= 40 else counted(len(value), "entries")
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
