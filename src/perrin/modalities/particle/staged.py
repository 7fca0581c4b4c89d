"""Models of two stages: a few numbers first (a jet's momentum, a shower's layer energies), then everything given those.

Both stages are denoisers of the core, kept in one module, trained in one task and written to one bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from perrin.bundle import Bundle, load_weights
from perrin.core import (
    SOLVERS,
    DenoisingLoss,
    GeneratorNoise,
    Layouts,
    NetworkDenoiser,
    Plan,
    PlanError,
    State,
    plan_steps,
)
from perrin.core.grids import logit_normal
from perrin.core.losses import sample_times_edm, stratified
from perrin.core.replay import Mode
from perrin.errors import PerrinError
from perrin.run.pool import one_thread
from perrin.train import BatchPlan

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample; a bundle's `config.json` gives the defaults under `sampling`.

    The grid is wider than the times that training sees most: jets and showers have rare, far values that are decided
    early. Mean distance of 60 top jets' angles from those of 128 steps, in radians: DPM-Solver++ 2M on `(-1.2, 1.6)`, 32
    steps, 0.025; UniPC 3 on `(-0.3, 2.3)`, 16 steps, 0.011, 24 steps 0.004.

    Arguments:
        steps: network evaluations of the second stage.
        first_steps: of the first stage.
        solver: a name in `perrin.core.SOLVERS`; of a model distilled to few steps, `consistency`.
        first_solver: of the first stage.
        mean, std: of the grid `perrin.core.grids.logit_normal`.
        start: the first time.
    """

    steps: int = 24
    first_steps: int = 64
    solver: str = "unipc-3"
    first_solver: str = "unipc-3"
    mean: float = -0.5
    std: float = 2.2
    start: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "first_steps"):
            if getattr(self, name) < 1:
                raise PerrinError(f"expected at least 1 step, given {getattr(self, name)}")
        for name in (self.solver, self.first_solver):
            if name not in SOLVERS:
                raise PerrinError(f"expected a solver ({', '.join(SOLVERS)}), given {name!r}")

    def plan(self, denoiser: NetworkDenoiser, first: bool = False) -> Plan:
        """The rows of one stage. Raises `PerrinError` where solver, schedule and grid do not go together."""
        steps, solver = (self.first_steps, self.first_solver) if first else (self.steps, self.solver)
        times = partial(logit_normal, mean=self.mean, std=self.std, start=self.start)
        try:
            return plan_steps(denoiser.process, SOLVERS[solver], steps, grid=times)
        except PlanError as error:
            raise PerrinError(str(error)) from error

    def changed(self, **changes: Any) -> SamplingOptions:
        """With some values changed; `None` leaves a value as it is."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Training times of the two stages: `ln(σ/α)` is normal with these means and deviations."""

    first_mean: float = -0.8
    first_std: float = 1.6
    mean: float = -1.2
    std: float = 1.4
    first_weight: float = 1.0
    t_min: float = 1e-4


class Staged(nn.Module):
    """The two denoisers in one module, by the names that the weights have."""

    def __init__(self, first: NetworkDenoiser, second: NetworkDenoiser) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, stage: str, *args: Any, **kwargs: Any) -> State:
        """Call one of them; training goes through here."""
        return self.first(*args, **kwargs) if stage == "first" else self.second(*args, **kwargs)


class StagedTask:
    """What the trainer trains: batches, corruption and loss of both stages (`perrin.train.Task`).

    Arguments:
        denoiser: both stages.
        config: what the bundle's `config.json` says of the model.
        data: tensors whose first axis is the sample.
        encode: `(rows of the data, generator) → (first state, second state)`, clean, with the fields of the processes;
            augmentation and dequantisation belong here.
        layouts: `second state → layouts` of both stages, `(first, second)`.
        batch: samples per step over all processes.
        seed: of the order.
        loss: times and weights.
    """

    def __init__(
        self,
        denoiser: Staged,
        config: Mapping[str, Any],
        data: Mapping[str, Tensor],
        encode: Callable[[dict[str, Tensor], torch.Generator], tuple[State, State]],
        layouts: Callable[[State, State], tuple[Layouts, Layouts]],
        *,
        batch: int,
        seed: int,
        loss: LossConfig | None = None,
        compiled: Callable[[], None] | None = None,
    ) -> None:
        self.denoiser, self.data, self.encode, self.layouts = denoiser, dict(data), encode, layouts
        self.loss_config = loss or LossConfig()
        count = len(next(iter(self.data.values())))
        self.config = {
            "model": dict(config),
            "loss": asdict(self.loss_config),
            "samples": count,
            "data": fingerprint(self.data),
        }
        self.plan = BatchPlan([count], batch, seed)
        self.criterion = DenoisingLoss()
        self._compiled = compiled

    def to(self, device: torch.device) -> None:
        """Move the data."""
        self.data = {k: v.to(device) for k, v in self.data.items()}

    def compile(self) -> None:
        """Compile the repeated blocks."""
        if self._compiled:
            self._compiled()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        c = self.loss_config
        _, index = self.plan(step)
        index = index.to(generator.device, non_blocking=True)
        with torch.no_grad():
            states = self.encode({k: v[index] for k, v in self.data.items()}, generator)
            layouts = self.layouts(*states)
            batch: dict[str, Tensor] = {}
            noise = GeneratorNoise(generator)
            for name, part, state, layout, mean, std in (
                ("first", self.denoiser.first, states[0], layouts[0], c.first_mean, c.first_std),
                ("second", self.denoiser.second, states[1], layouts[1], c.mean, c.std),
            ):
                u = torch.rand(len(index), generator=generator, device=generator.device)
                u = stratified(u)[torch.randperm(len(u), generator=generator, device=u.device)]
                schedule = part.process.schedule
                t = sample_times_edm(u, schedule, mean=mean, std=std, low=c.t_min, high=0.9999)
                x_t = part.process.corrupt_state(state, t, noise, layout)
                batch[f"{name}.t"] = t
                batch |= {f"{name}.x_0.{k}": v for k, v in state.items()}
                batch |= {f"{name}.x_t.{k}": v for k, v in x_t.items()}
        return "all", {k: v[rank::world].contiguous() for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        clean = [_part(batch, f"{name}.x_0.") for name in ("first", "second")]
        layouts = self.layouts(*clean)
        out: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch["first.t"].device)
        for k, (name, part, weight) in enumerate(
            (
                ("first", self.denoiser.first, self.loss_config.first_weight),
                ("second", self.denoiser.second, 1.0),
            )
        ):
            t = batch[f"{name}.t"]
            estimate = model(name, _part(batch, f"{name}.x_t."), t, layouts=layouts[k])
            found = self.criterion(part, clean[k], estimate, t, layouts[k])["loss"]
            out[name] = found
            total = total + weight * found
        return {"loss": total, **out}


def _part(batch: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}


def fingerprint(data: Mapping[str, Tensor]) -> str:
    """A hash of the training data, by which a run knows its own."""
    found = hashlib.sha256()
    for name in sorted(data):
        found.update(name.encode() + data[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def full_precision(x: Tensor) -> Any:
    """Within the block matrix products are of float32, whatever autocast says: coordinates need their digits."""
    return torch.autocast(x.device.type, enabled=False)


class ParticleModel(Generic[N, C]):
    """What all models of this modality share.

    Arguments:
        network: a denoiser, or both of a model of two stages, in evaluation mode, on its device.
        config: the model's.
        sampling: defaults.
        name, sha256: of the bundle.
        precision: `32-true` or `bf16-mixed`.
        mode: see `perrin.core.replay`.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        network: N,
        config: C,
        sampling: SamplingOptions,
        *,
        name: str = "",
        sha256: str = "",
        precision: str = "32-true",
        mode: Mode = "eager",
    ) -> None:
        self.network, self.config, self.sampling = network, config, sampling
        self.name, self.sha256, self.precision, self.mode = name, sha256, precision, mode

    @staticmethod
    def parts(data: Mapping[str, Any]) -> tuple[N, C]:
        """The network and the configuration that a bundle's `model` describes."""
        raise NotImplementedError

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> Self:
        """Build the networks of a bundle and load its weights.

        Raises:
            PerrinError: the configuration is not one of such a model, or the weights do not fit it.
        """
        try:
            network, config = cls.parts(bundle.config["model"])
            sampling = SamplingOptions(**bundle.config.get("sampling", {}))
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a configuration of {cls.kind} in {bundle.path}, given another: {error}"
            ) from error
        load_weights(network, bundle.weights(), source=str(bundle.path))
        network.eval().requires_grad_(False)
        return cls(network.to(device), config, sampling, name=bundle.path.name, sha256=bundle.sha256)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def _settings(self) -> Any:
        """One thread on a CPU, the precision elsewhere: what to sample inside of."""
        if self.device.type == "cpu":
            return one_thread()
        half = self.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()
