"""Outputs: none is lost, and none goes where nobody would look for it.

A file that is there is replaced by the command that made it, as its record `FILE.run.json` says, or with `--overwrite`.
"The command that made it" has the same arguments, but for those that change speed alone or add a page. A file that is newer
than its record has been changed since by somebody else. Unfinished work (`FILE.partial`) goes on: it has its own check. A
page of plots that Perrin made is only a look at something, and is replaced by another.

The folder of an output has to be there. What is itself a folder (a training run, a submitted one) is made with all above.
"""

from __future__ import annotations

import json
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError

PAGE = b'<meta name="generator" content="perrin '
"""What such a page has in its head."""

INDIFFERENT = ("argv", "overwrite", "workers", "batch", "dry_run", "view", "html", "evaluate", "json")
"""Arguments that do not change what the main output holds."""


def check_outputs(paths: Sequence[str | Path], a: Namespace) -> None:
    """Look at a command's outputs before any work.

    Arguments:
        paths: the main one first, whose record speaks for all.
        a: the command's, with `argv` and perhaps `overwrite`.

    Raises:
        PerrinError: one of them is in the way, or cannot be written.
    """
    for i, path in enumerate(map(Path, paths)):
        check_place(path)
        if any(path.exists() and path.samefile(given) for given in _inputs(a)):
            raise PerrinError(
                f"expected another file than the input to write to, given {path}: choose another name"
            )
        # the same settings may have made no page yet, or another one
        ours = partial(_is_by, a=a, exactly=i > 0)
        check_free(path, ours, record=paths[0], overwrite=getattr(a, "overwrite", False))


def check_place(path: Path) -> None:
    """Raise a `PerrinError` unless `path` may name an output: its folder is there and can be written."""
    folder = path.parent
    if os.path.isdir(path) and path.suffix != ".zarr":
        raise PerrinError(f"expected an output file, given the directory {path}: add a file name")
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise PerrinError(f"expected an output file, given {path}, which is a device: choose another name")
    if not os.path.exists(folder):
        raise PerrinError(
            f"expected the folder of {path} to be there, given none: mkdir -p {shlex.quote(str(folder))}"
        )
    if not os.path.isdir(folder):
        raise PerrinError(f"expected a folder for {path}, given the file {folder}: choose another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PerrinError(
            f"expected a folder that you may write to for {path}, given {folder}: choose another"
        )


def check_free(
    path: Path,
    ours: Callable[[Mapping[str, Any]], bool],
    *,
    record: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Raise a `PerrinError` if `path` is there and was not made by this command.

    Arguments:
        ours: whether a record is one of this command.
        record: the output whose record is asked; `path` by default.
        overwrite: never mind.
    """
    if overwrite or not os.path.lexists(path) or is_page(path):
        return
    main = Path(record or path)
    content = read_record(main)
    if path == main and os.path.exists(path.with_name(path.name + ".partial")):
        return
    if not content:
        who = "which this command did not make"
    elif not ours(content):
        who = f"which 'perrin {_command(content)}' made"
    elif _changed(main):
        who = "which has changed since this command made it"
    else:
        return
    raise PerrinError(
        f"expected a new file or --overwrite, given {path}, {who}: choose another name or add --overwrite"
    )


def is_page(path: Path) -> bool:
    """Whether a file is a page that `perrin view` or `perrin verify` made, by its head."""
    if path.suffix != ".html" or not path.is_file():
        return False
    with path.open("rb") as file:
        return PAGE in file.read(1000)


def is_recorded(path: Path, a: Namespace) -> bool:
    """Whether the record beside an output tells of this command and of the output as it is now."""
    return _is_by(read_record(path), a) and not _changed(path)


def record_path(path: str | Path) -> Path:
    """Where the record of an output is."""
    return Path(path).with_name(Path(path).name + ".run.json")


def read_record(path: str | Path) -> dict[str, Any]:
    """The record beside an output; empty where there is none that can be read."""
    try:
        content = json.loads(record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_by(content: Mapping[str, Any], a: Namespace, *, exactly: bool = False) -> bool:
    """Whether a record is one of this command: word for word or, unless `exactly`, with the same settings."""
    if content.get("argv") == a.argv:
        return True
    arguments = content.get("arguments")
    if exactly or content.get("verb") != a.argv[0] or not isinstance(arguments, dict):
        return False
    return bool(_telling(arguments) == _telling(vars(a)))


def _inputs(a: Namespace) -> list[str]:
    """Arguments that are names of files, but for the outputs."""
    given = (value for name, value in vars(a).items() if name not in ("out", "view", "html", "json", "argv"))
    words = (word for value in given for word in (value if isinstance(value, list) else [value]))
    return [word for word in words if isinstance(word, str) and os.path.exists(word)]


def _telling(arguments: Mapping[str, Any]) -> Any:
    """Arguments that change the output, as a record has them."""
    return json.loads(json.dumps({k: v for k, v in arguments.items() if k not in INDIFFERENT}, default=str))


def _changed(path: Path) -> bool:
    """Whether an output is newer than its record, which is written after it."""
    try:
        return path.stat().st_mtime_ns > record_path(path).stat().st_mtime_ns
    except OSError:
        return True


def _command(content: Mapping[str, Any]) -> str:
    argv = content.get("argv")
    text = shlex.join(map(str, argv)) if isinstance(argv, list) else "…"
    return text if len(text) <= 100 else text[:99] + "…"
