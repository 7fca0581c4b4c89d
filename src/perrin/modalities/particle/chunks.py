"""What the simulators' commands share: options of a data set of their own, work in chunks that goes on, the record."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from perrin.errors import PerrinError

DATA: dict[str, dict[str, Any]] = {
    "jets": {"n": 1000, "kind": None, "file": None, "pt": None, "radius": None},
    "showers": {"n": 1000, "file": None},
    "kolmogorov": {"n": 1000, "grid": 32, "times": 41, "interval": 0.2, "viscosity": 5e-3},
    "nbody": {
        "n": 100, "grid": 32, "times": 9, "interval": 0.2, "dimensions": 2, "bodies": None, "box": 128.0,
        "sigma8": 0.8, "particles": False,
    },
    "plasma": {
        "n": 100, "grid": 32, "times": 41, "interval": 1.0, "case": "two-stream", "bodies": 32768, "wave": None,
        "thermal": None, "particles": False,
    },
    "md": {
        "n": 10, "times": 41, "interval": 50.0, "system": "argon", "bodies": 108, "temperature": None,
        "ensemble": "nve",
    },
}  # fmt: skip
"""Options of each data set and what they are where they are not given, by their names in the parsed arguments."""
FLAGS = {"kind": "--class", "n": "-n"}


def settled(a: Namespace, preset: str) -> Namespace:
    """The options of a data set, with its own values where none are given.

    Raises:
        PerrinError: an option of another data set is given, or a number is out of the range that all share.
    """
    own, found = DATA[preset], {}
    for name in sorted({n for options in DATA.values() for n in options}):
        value = getattr(a, name, None)
        given = value is not None and value is not False
        flag = FLAGS.get(name, "--" + name)
        if given and name not in own:
            others = ", ".join(f"particle/{k}" for k, options in DATA.items() if name in options)
            raise PerrinError(f"expected {flag} with {others}, given it with {a.target}: leave it out")
        if name in own:
            found[name] = value if given else own[name]
    return Namespace(**found)


def chunks(
    a: Namespace, key: dict[str, Any], count: int, work: Any, arguments: tuple[Any, ...]
) -> dict[int, Any]:
    """The parts of a data set by number, those of unfinished work among them.

    Arguments:
        key: what the work is.
        count: how many parts.
        work: `number → arrays by name`, of a module; it finds `arguments` in `STATE["arguments"]`.
    """
    from perrin.run.partial import PartialStore
    from perrin.run.pool import cpu_count, map_unordered
    from perrin.run.progress import progress

    store = PartialStore(a.out, key)
    parts = {k[0]: v for k, v in store.load() if k[0] < count}
    left = [k for k in range(count) if k not in parts]
    made = map_unordered(work, left, workers=a.workers or cpu_count(), setup=_setup, arguments=arguments)
    with progress(f"making {a.target}", count) as advance:
        advance(count - len(left))
        for number, part in made:
            store.save((number,), part)
            parts[number] = part
            advance(1)
    return parts


STATE: dict[str, Any] = {}
"""What the processes of `chunks` work with."""


def _setup(*arguments: Any) -> None:
    STATE["arguments"] = arguments


def finish(a: Namespace, key: dict[str, Any]) -> None:
    """Write the record and remove the parts, when the output is whole."""
    from perrin.run.outputs import record_path
    from perrin.run.partial import PartialStore
    from perrin.run.record import record, write_record

    write_record(record_path(a.out), record("data", a))
    PartialStore(a.out, key).remove()
