"""`perrin list` and `perrin rerun`."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError
from perrin.modalities import modalities


def list_installed(a: Namespace) -> int:
    """Modalities and the bundles that ship with them."""
    for name, modality in modalities().items():
        print(f"{name:<12} {modality.summary}")
        for bundle in modality.bundles():
            print(f"  {name}/{bundle}")
    return 0


def rerun(a: Namespace) -> int:
    """Run the command that a `run.json` records."""
    from perrin.cli import main

    try:
        content = json.loads(Path(a.file).read_text(encoding="utf-8"))
        argv = [str(word) for word in content["argv"]]
    except OSError as error:
        raise PerrinError(
            f"expected a run.json that Perrin wrote, given {a.file} ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PerrinError(
            f"expected a run.json that Perrin wrote, given another file, {a.file}: name the FILE.run.json beside an output"
        ) from error
    if argv[:1] == ["rerun"]:
        raise PerrinError(f"expected a run.json with a command to run, given {a.file}, which names itself")
    command = "perrin " + shlex.join(argv)
    source = content.get("source")
    if isinstance(source, dict) and "sha256" in source and not _is_same(source):
        raise PerrinError(
            f"expected {source.get('path')} as it was when {a.file} was written (SHA-256 {source['sha256'][:12]}…), given "
            f"another or none: put it back, or start anew with {command}"
        )
    print(command, flush=True)
    return main(argv)


def _is_same(source: Mapping[str, Any]) -> bool:
    """Whether the file `path` still has the hash `sha256`."""
    from perrin.run.record import file_digest

    try:
        return file_digest(str(source["path"])) == source["sha256"]
    except (OSError, KeyError):
        return False
