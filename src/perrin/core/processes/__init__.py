"""Processes: how one field is corrupted, and how one row of a plan moves it back.

| process | space | corruption | estimate of a denoiser |
| --- | --- | --- | --- |
| `Gaussian` | real numbers, or a subspace | `x_t = α_t x_0 + σ_t z` | mean `E[x_0 | x_t]` |
| `Categorical` | K categories | kept with probability `α_t`, else prior | logits over clean categories |
| `Torus` | `[0, 1)^d`, wrapped | `x_t = x_0 + σ_t z mod 1` | tangent `σ_t² ∇ log p_t(x_t)` |
| `Rotation` | SO(3), unit quaternions | `x_t = x_0 Exp(v)`, `v` from IGSO(3) at σ_t | tangent `σ_t² ∇ log p_t(x_t)` |
| `Clean` | any | none: a condition | none |
| `Composite` | a dict of these | field by field, with a clock for each | a dict of these |
"""

from perrin.core.processes.base import PRIOR_STEP, Process, State
from perrin.core.processes.categorical import Categorical
from perrin.core.processes.clean import Clean
from perrin.core.processes.clocks import Clock, Clocked, PowerClock, RationalClock
from perrin.core.processes.composite import Composite
from perrin.core.processes.gaussian import Gaussian, Masked, Subspace, Symmetric
from perrin.core.processes.rotation import Rotation
from perrin.core.processes.torus import Torus

__all__ = [
    "PRIOR_STEP",
    "Categorical",
    "Clean",
    "Clock",
    "Clocked",
    "Composite",
    "Gaussian",
    "Masked",
    "PowerClock",
    "Process",
    "RationalClock",
    "Rotation",
    "State",
    "Subspace",
    "Symmetric",
    "Torus",
]
