"""Which class answers for a bundle: `kind` in its configuration is `showers`, `jets` or `flow`."""

from __future__ import annotations

from typing import Any

from perrin.bundle import Bundle
from perrin.errors import PerrinError


def load(bundle: Bundle, *, device: str = "cpu") -> Any:
    """The model of a bundle.

    Raises:
        PerrinError: its configuration is not one of a particle model.
    """
    kind = bundle.config["model"].get("kind")
    if kind == "showers":
        from perrin.modalities.particle.showers.model import ShowerModel

        return ShowerModel.from_bundle(bundle, device=device)
    if kind == "jets":
        from perrin.modalities.particle.jets.model import JetModel

        return JetModel.from_bundle(bundle, device=device)
    if kind == "flow":
        from perrin.modalities.particle.flow.model import FlowModel

        return FlowModel.from_bundle(bundle, device=device)
    raise PerrinError(
        f"expected a model of showers, jets or a flow in {bundle.path}, given {kind!r}: update perrin"
    )


def choose_device(name: str | None) -> str:
    """`auto` is a GPU where there is one.

    Raises:
        PerrinError: the device is not here.
    """
    import torch

    name = name or "auto"
    here = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if here else "cpu"
    if name == "cpu" or (name.startswith("cuda") and here):
        return name
    raise PerrinError(f"expected a device that is here (auto, cpu{', cuda' if here else ''}), given {name!r}")


def check_counts(**values: int | None) -> None:
    """Raise a `PerrinError` for a given option below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            option = "-n" if name == "n" else "--" + name.replace("_", "-")
            raise PerrinError(f"expected {option} of at least 1, given {value}")
