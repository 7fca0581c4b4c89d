"""The one exception that users see: a single line that says what was expected, what was given and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence


class PerrinError(Exception):
    """An error the user can mend. The command line prints its text as one line and exits with code 2."""


def check_count(value: int, name: str) -> int:
    """The value, or a `PerrinError` unless it is at least 1."""
    if value < 1:
        raise PerrinError(f"expected {name} of at least 1, given {value}")
    return value


def check_counts(**values: int | None) -> None:
    """Raise a `PerrinError` for a given command-line option below 1; `log_every=…` is called `--log-every`."""
    for name, value in values.items():
        if value is not None:
            check_count(value, "-n" if name == "n" else "--" + name.replace("_", "-"))


def install(extra: str) -> str:
    """How to install an extra of this package, from an index or in a clone."""
    return f"install the extra {extra}: pip install 'perrin[{extra}]', or '.[{extra}]' in a clone"


def listed(numbers: Sequence[int]) -> str:
    """The first three: `1, 4, 9, …`."""
    return ", ".join(map(str, numbers[:3])) + (", …" if len(numbers) > 3 else "")


def records(numbers: Sequence[int]) -> str:
    """`record 3`, `records 1, 4, 9, …`."""
    return f"record{'' if len(numbers) == 1 else 's'} {listed(numbers)}"


def counted(number: int, things: str) -> str:
    """`1 molecule`, `2 molecules`, of a regular plural."""
    one = things.removesuffix("ies") + "y" if things.endswith("ies") else things.removesuffix("s")
    return f"{number} {one if number == 1 else things}"


def note(text: str) -> None:
    """One line on standard error, for what the user should know."""
    print(f"perrin: note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """One line on standard error, for what the user may not have meant."""
    print(f"perrin: warning: {text}", file=sys.stderr)
