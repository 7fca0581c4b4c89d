"""Options that a command does not know: whose they are, or which one was meant."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from perrin.errors import PerrinError

_SAME = {"-n": "--members", "--samples": "-n", "--output": "--out", "--input": "--file", "--from": "--file"}
"""What one verb calls otherwise than another, or other tools do."""

Build = Callable[[str], ArgumentParser]


def check_options(
    parser: ArgumentParser, words: Sequence[str], verbs: Iterable[str], build: Build, given: str = ""
) -> None:
    """Raise a `PerrinError` for the first option that a parser does not know.

    Arguments:
        parser: of the command.
        words: what follows the verb.
        verbs: all verbs with modalities.
        build: the parser of a verb, without the options of modalities.
        given: the bundle or file that the command is for.
    """
    known = parser._option_string_actions
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if not re.fullmatch(r"--?[a-zA-Z][\w-]*", name) or name in known:
            continue
        if not name.startswith("--") and name[:2] in known:  # -n5
            continue
        verb = parser.prog.partition(" ")[2]
        command = f"{parser.prog} {given}".strip()
        near = [_SAME[name]] if _SAME.get(name) in known else get_close_matches(name, known, 1, 0.75)
        if near:
            raise PerrinError(
                f"expected an option of '{command}', given {name}: did you mean {near[0]}? See 'perrin {verb} --help'"
            )
        found = owners(name, verbs, build)
        whose = f", which {_listed(found)} take{'s' if len(found) == 1 else ''}" if found else ""
        raise PerrinError(
            f"expected an option of '{command}', given {name}{whose}: leave it out, or see 'perrin {verb} --help'"
        )


def owners(option: str, verbs: Iterable[str], build: Build) -> list[str]:
    """The verbs that know an option, with the modalities where it is theirs: `'perrin sample' (molecule)`."""
    from perrin.modalities import modalities

    out = []
    for verb in verbs:
        if option in build(verb)._option_string_actions:
            out.append(f"'perrin {verb}'")
            continue
        names = []
        for modality in modalities().values():
            parser = ArgumentParser(add_help=False, conflict_handler="resolve")
            modality.add_arguments(verb, parser)
            if option in parser._option_string_actions:
                names.append(modality.name)
        if names:
            out.append(f"'perrin {verb}' ({', '.join(names)})")
    return out


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
