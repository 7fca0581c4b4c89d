"""The scheduler core: schedules, processes, predictions, solvers, guides, noise. Imports torch and nothing else.

Conventions: time `t ∈ [0, 1]`, 0 is data and 1 is noise; `x_t = α_t x_0 + σ_t z`; `λ = log(α/σ)`; guidance scale 1 is off;
arrays are batch-first.
"""

from perrin.core.denoiser import Denoiser, EDMHead, Head, LogitsHead, NetworkDenoiser, PredictionHead
from perrin.core.guides import ClassifierFree, classifier_free
from perrin.core.layout import Dense, Layout, Layouts, Padded, Pairs, Ragged
from perrin.core.losses import DenoisingLoss
from perrin.core.noise import CounterNoise, GeneratorNoise, Noise, sample_seeds
from perrin.core.plan import Affine, Jump, Plan, PlanError, Stage, make_plan, plan_steps
from perrin.core.predictions import EPS, FLOW, PREDICTIONS, SCORE, X0, Prediction, V
from perrin.core.processes import Categorical, Composite, Gaussian, Process, State
from perrin.core.sampling import sample
from perrin.core.schedules import (
    EDM,
    SCHEDULES,
    VE,
    Cosine,
    Discrete,
    LinearVP,
    Polynomial,
    Power,
    RectifiedFlow,
    ScaledLinear,
    Schedule,
    Shifted,
    ZeroTerminalSNR,
)
from perrin.core.solvers import DDIM, DDPM, SOLVERS, DPMSolverPP2M, Euler, Heun, Solver

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "EPS",
    "FLOW",
    "PREDICTIONS",
    "SCHEDULES",
    "SCORE",
    "SOLVERS",
    "VE",
    "X0",
    "Affine",
    "Categorical",
    "ClassifierFree",
    "Composite",
    "Cosine",
    "CounterNoise",
    "DPMSolverPP2M",
    "Denoiser",
    "DenoisingLoss",
    "Dense",
    "Discrete",
    "EDMHead",
    "Euler",
    "Gaussian",
    "GeneratorNoise",
    "Head",
    "Heun",
    "Jump",
    "Layout",
    "Layouts",
    "LinearVP",
    "LogitsHead",
    "NetworkDenoiser",
    "Noise",
    "Padded",
    "Pairs",
    "Plan",
    "PlanError",
    "Polynomial",
    "Power",
    "Prediction",
    "PredictionHead",
    "Process",
    "Ragged",
    "RectifiedFlow",
    "ScaledLinear",
    "Schedule",
    "Shifted",
    "Solver",
    "Stage",
    "State",
    "V",
    "ZeroTerminalSNR",
    "classifier_free",
    "make_plan",
    "plan_steps",
    "sample",
    "sample_seeds",
]
