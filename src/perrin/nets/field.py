"""A network of one field, with the arguments that a `perrin.core.NetworkDenoiser` calls it with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from perrin.core import State


class FieldNetwork(nn.Module):
    """A subclass names its field and maps it, without layouts or an estimate before.

    Class attributes:
        field: its name in the state.
    """

    field: str

    def output(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The output for a field `x`, scaled by its head, at times `t`, `[B]`."""
        raise NotImplementedError

    def forward(
        self,
        fields: State,
        t: Tensor,
        *,
        condition: Any = None,
        layouts: Any = None,
        previous: State | None = None,
    ) -> State:
        """See `perrin.core.NetworkDenoiser`."""
        return {self.field: self.output(fields[self.field], t, condition)}
