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
