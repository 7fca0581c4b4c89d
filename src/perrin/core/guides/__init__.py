"""Guides, constraints and steering: ways to make a model sample what it was not trained for.

- A **guide** maps a denoiser to a denoiser: `contrast` (classifier-free, auto-guidance), `posterior` (DPS, ΠGDM, MMPS,
  DiffPIR over the measurement `operators`), `gradients` (energies, regressors). Guides nest.
- A **constraint** acts on the state after a row: `constraints` (inpainting, fixed rows; `Given`, on the estimate).
- **Steering** resamples particles inside groups: `steering`, with weights, ancestors and log-evidence; `winnowing`, with
  fewer and fewer particles.
- **Split Gibbs sampling** alternates between a measurement, however nonlinear, and the prior: `split`.
"""

from perrin.core.guides.constraints import Fixed, Given, Inpaint, Shown, together
from perrin.core.guides.contrast import AutoGuidance, ClassifierFree, classifier_free
from perrin.core.guides.gradients import EnergyGuide, RegressorGuide
from perrin.core.guides.operators import (
    Blur,
    Chain,
    Downsample,
    LinearOperator,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    assert_adjoint,
)
from perrin.core.guides.posterior import DPS, MMPS, DiffPIR, Measurement, PiGDM, Posterior, conjugate_gradient
from perrin.core.guides.split import Draw, Likelihood, Linear, Pointwise, falling, split_gibbs
from perrin.core.guides.steering import Steered, steer, systematic
from perrin.core.guides.winnowing import Places, evaluations, winnow

__all__ = [
    "DPS",
    "MMPS",
    "AutoGuidance",
    "Blur",
    "Chain",
    "ClassifierFree",
    "DiffPIR",
    "Downsample",
    "Draw",
    "EnergyGuide",
    "Fixed",
    "Given",
    "Inpaint",
    "Likelihood",
    "Linear",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Measurement",
    "Nonlinear",
    "Operator",
    "PiGDM",
    "Places",
    "Pointwise",
    "Posterior",
    "RegressorGuide",
    "Shown",
    "Steered",
    "assert_adjoint",
    "classifier_free",
    "conjugate_gradient",
    "evaluations",
    "falling",
    "split_gibbs",
    "steer",
    "systematic",
    "together",
    "winnow",
]
