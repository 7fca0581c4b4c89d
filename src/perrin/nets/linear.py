"""`y = x Wᵀ + b`, and GELU of it, by whichever library is fast.

torch multiplies float32 matrices by MKL on a CPU, which on processors of AMD runs at about half the speed of oneDNN (46
against 100 GFLOP/s on one core of an EPYC 9005). oneDNN is there in the same torch, takes the activation along, and adds
in the same precision: results agree to rounding. Where gradients, another precision or another device are asked for,
torch's own `linear` does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(layer: nn.Module, x: Tensor, *, gelu: bool = False) -> Tensor:
    """The layer's output.

    Arguments:
        layer: an `nn.Linear`.
        x: `[..., inside]`.
        gelu: GELU of it, in the form with tanh.
    """
    if (
        _ONEDNN
        and isinstance(layer, nn.Linear)
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        how: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, *how)
        return found
    y: Tensor = layer(x)
    return F.gelu(y, approximate="tanh") if gelu else y
