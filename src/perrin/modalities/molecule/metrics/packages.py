"""Packages of the extra `evaluate`: needed by some measures only, so imported when asked for."""

from __future__ import annotations

from importlib import metadata, util

from perrin.errors import PerrinError, install

ELSEWHERE = {"tblite": " (not on Linux x86_64: conda install -c conda-forge tblite-python)"}


def require(package: str, measure: str) -> str:
    """The version of a package that a measure needs.

    Raises:
        PerrinError: it is not installed.
    """
    if util.find_spec(package) is None:
        raise PerrinError(
            f"expected the package {package} for {measure}, given an environment without it: "
            f"{install('evaluate')}{ELSEWHERE.get(package, '')}"
        )
    return metadata.version(package)
