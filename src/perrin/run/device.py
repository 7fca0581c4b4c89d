"""Where to compute."""

from __future__ import annotations

from perrin.errors import PerrinError


def choose_device(name: str | None) -> str:
    """`auto` is a GPU where there is one.

    Raises:
        PerrinError: the device is not here.
    """
    import torch

    name, here = name or "auto", torch.cuda.is_available()
    if name == "auto":
        return "cuda" if here else "cpu"
    if name == "cpu" or (name.startswith("cuda") and here):
        return name
    raise PerrinError(f"expected a device that is here (auto, cpu{', cuda' if here else ''}), given {name!r}")
