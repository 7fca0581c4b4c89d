"""A trained atmosphere: starts from files, members step by step.

A step's result keeps its spherical harmonics of degree below L alone, which are all that the states of the training data
have: a grid of L × 2L points has twice as many numbers, most of the others near the poles, where without this they grow from
step to step until after a year they are all there is. It is rounded to float32 in the file's units, and the next step starts
from that: what is on disk is the trajectory.

A start is one analysis or an ensemble of them; with K analyses, member k starts from number k mod K. The model was trained
on exact states, so that the error of the analysis is in a forecast's spread only if the analyses have it in theirs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.bundle import Bundle, tuples
from perrin.core import SOLVERS, CounterNoise, Dense, NetworkDenoiser, plan_steps, sample
from perrin.core.grids import logit_normal
from perrin.errors import PerrinError
from perrin.modalities.weather.atmosphere import (
    FIELD,
    AtmosphereConfig,
    Normalisation,
    build_denoiser,
    extra_channels,
    harmonics,
)
from perrin.modalities.weather.names import named
from perrin.modalities.weather.regrid import to_gauss
from perrin.nets.sphere import gauss_latitudes

if TYPE_CHECKING:  # the model runs where there is no xarray
    from perrin.modalities.weather.fields import Fields


@dataclass(frozen=True, kw_only=True, eq=False)
class AtmosphereStart:
    """The time of the state, and it and the one before, in the file's units, `[K, 2, C, rows, columns]`, the later first."""

    time: Any
    states: NDArray[np.float32]


class AtmosphereModel:
    """See the module's text.

    Arguments:
        denoiser: in evaluation mode, on its device.
        config: its sizes.
        norm: of states and changes.
        constants: `[2, rows, columns]`.
        attributes: of each field.
        sample_states: of a simulated start, `[K, 2, C, rows, columns]`, or `[2, …]` for one analysis; or none.
        sample_day: of the year.
        sample_truth: the states that the simulation went through, from the one before the start on, `[T, C, …]`, or none.
        steps: network evaluations for a step.
    """

    kind = "atmosphere"
    unit = "hours"
    longest = None

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: AtmosphereConfig,
        norm: Normalisation,
        constants: Tensor,
        attributes: dict[str, dict[str, str]],
        sample_states: Tensor | None = None,
        sample_day: float = 0.0,
        *,
        steps: int = 16,
        sample_truth: Tensor | None = None,
        name: str = "",
        sha256: str = "",
    ) -> None:
        self.denoiser, self.config, self.norm, self.constants = denoiser, config, norm, constants
        self.attributes, self.sample_day, self.sample_truth = attributes, sample_day, sample_truth
        if sample_states is not None and sample_states.ndim == 4:
            sample_states = sample_states[None]
        self.sample_states = sample_states
        self.steps, self.name, self.sha256 = steps, name, sha256
        self.latitude = gauss_latitudes(config.rows)[0].numpy()
        self.longitude = np.arange(config.columns) * 360 / config.columns
        self.plan = plan_steps(
            denoiser.process,
            SOLVERS["dpmpp-2m"],
            steps,
            grid=lambda n: logit_normal(n, mean=0.2, std=1.6, start=0.999),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.mean.device

    @property
    def together(self) -> int:
        """Members made at once: one on a CPU, where a member's bits are then its own; as many as make a GPU busy."""
        return 1 if self.device.type == "cpu" else 25

    def fields(self, start: AtmosphereStart) -> dict[str, dict[str, str]]:
        """The variables of a forecast and their attributes."""
        return self.attributes

    def weights(self) -> dict[str, Tensor]:
        """All that a bundle keeps as tensors; statistics as logarithms of what may be large or small."""
        n = self.norm
        out = {
            "norm.mean_over_std": n.mean / n.std,
            "norm.log_std": n.std.log(),
            "norm.log_change": n.change.log(),
            "constants": self.constants,
        }
        if self.sample_states is not None:
            out["sample_states"] = n.normalise(self.sample_states)
        if self.sample_truth is not None:
            out["sample_truth"] = n.normalise(self.sample_truth)
        return out | {f"network.{k}": v for k, v in self.denoiser.named_parameters()}

    def to_json(self) -> dict[str, Any]:
        """The configuration of a bundle."""
        return {
            "kind": self.kind,
            "network": self.config.to_json(),
            "attributes": self.attributes,
            "sample_day": self.sample_day,
            "steps": self.steps,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> AtmosphereModel:
        """Read one.

        Raises:
            PerrinError: it is not a model of this kind, or incomplete.
        """
        try:
            model, w = bundle.config["model"], bundle.weights()
            config = AtmosphereConfig(**tuples(model["network"]))
            denoiser = build_denoiser(config)
            with torch.no_grad():
                for k, p in denoiser.named_parameters():
                    p.copy_(w[f"network.{k}"])
            std = w["norm.log_std"].exp()
            norm = Normalisation(w["norm.mean_over_std"] * std, std, w["norm.log_change"].exp()).to(
                torch.device(device)
            )
            return cls(
                denoiser.eval().requires_grad_(False).to(device),
                config,
                norm,
                w["constants"].to(device),
                model["attributes"],
                norm.restore(w["sample_states"].to(device)) if "sample_states" in w else None,
                float(model["sample_day"]),
                steps=int(model["steps"]),
                sample_truth=norm.restore(w["sample_truth"].to(device)) if "sample_truth" in w else None,
                name=bundle.path.name,
                sha256=bundle.sha256,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a model of an atmosphere in {bundle.path}, given another ({error}): get it again"
            ) from error

    def sample_starts(self) -> list[AtmosphereStart]:
        """The simulated state that comes with the model; its year is made up.

        Raises:
            PerrinError: it has none.
        """
        if self.sample_states is None:
            raise PerrinError(
                f"expected --file with states to start from, given none: {self.name} has no sample of its own"
            )
        states = (
            self.sample_states.cpu().numpy().copy()
        )  # a view would dangle when the model is sent to a worker
        return [AtmosphereStart(time=self._sample_time(), states=states)]

    def _sample_time(self) -> Any:
        import cftime

        return cftime.datetime(2001, 1, 1) + datetime.timedelta(days=self.sample_day)

    def sample_run(self) -> Any:
        """What the simulation went through, an xarray dataset over `time`: the truth of forecasts from the sample.

        Raises:
            PerrinError: the bundle has none.
        """
        import xarray as xr

        if self.sample_truth is None:
            raise PerrinError(
                f"expected a bundle with a sample and its truth, given {self.name} without: use --file"
            )
        step = datetime.timedelta(hours=self.config.hours)
        times = [self._sample_time() + k * step for k in range(-1, len(self.sample_truth) - 1)]
        x = self.sample_truth.cpu().numpy()
        dims = ("time", "latitude", "longitude")
        fields = {n: (dims, x[:, i], self.attributes[n]) for i, n in enumerate(self.config.fields)}
        return xr.Dataset(fields, {"time": times, "latitude": self.latitude, "longitude": self.longitude})

    def starts(self, fields: Fields, times: Sequence[Any] | None = None) -> list[AtmosphereStart]:
        """The starts of a file.

        Arguments:
            fields: with all the model's fields on a grid of the whole sphere, by time and perhaps by realization.
            times: of the starts; the last by default.

        Raises:
            PerrinError: a field, the state before, or some place is missing.
        """
        parts = named(fields) | {part: part for part in fields.parts}
        lacking = [name for name in self.config.fields if name not in parts]
        if lacking:
            raise PerrinError(
                f"expected the fields {', '.join(self.config.fields)}, given {', '.join(named(fields))} in {fields.label}: "
                f"rename or add {lacking[0]}"
            )
        if not fields.is_global:
            raise PerrinError(f"expected a grid of the whole sphere, given a part of it in {fields.label}")
        out = []
        for time in times or [fields.times[-1]]:
            pair = []
            for at in (time, time - datetime.timedelta(hours=self.config.hours)):
                i = fields.find(at)
                if i is None:
                    raise PerrinError(
                        f"expected states at {time} and {self.config.hours} hours before, given none at {at} in "
                        f"{fields.label}"
                    )
                each = [self._regrid(fields, parts[name], i) for name in self.config.fields]
                pair.append(np.stack([x if x.ndim == 3 else x[None] for x in each], 1))
            out.append(AtmosphereStart(time=time, states=np.stack(pair, 1)))
        return out

    def _regrid(self, fields: Fields, name: str, i: int) -> NDArray[np.float32]:
        """A field on the model's grid, by its spherical harmonics, `[rows, columns]` or one for each realization."""
        x = fields.read(name, time=i)
        if not np.isfinite(x).all():
            raise PerrinError(
                f"expected {name} everywhere, given missing values in {fields.label}: fill them first"
            )
        return to_gauss(x, fields.latitude, fields.longitude, self.config.rows, self.config.columns)

    @torch.no_grad()
    def step(self, now: Tensor, before: Tensor, day: float, noise: CounterNoise) -> Tensor:
        """The state after, of normalised states `[B, C, rows, columns]`."""
        count = len(now)
        days = torch.full((count,), day, device=self.device)
        more = extra_channels(self.constants, torch.from_numpy(self.latitude).to(self.device), days)
        state = sample(
            self.denoiser,
            self.denoiser.process,
            self.plan,
            {FIELD: Dense(count, self.device)},
            noise,
            condition=torch.cat([now, before, more], 1),
        )
        transform = harmonics(self.config.rows, self.config.columns, self.config.rows).to(self.device)
        found = transform(now + self.norm.change[:, None, None] * state[FIELD])
        if self.config.bound:
            climatology = self.denoiser.network.climatology
            found = climatology.bound(found, transform(climatology.mean), self.config.bound)  # type: ignore[operator, union-attr]
        held = [self.config.fields.index(name) for name in self.config.holds]
        if held:
            found[:, held, 0, 0] = transform(now[:, held])[..., 0, 0]
        return transform.inverse(found)

    def members(
        self,
        start: AtmosphereStart,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """Members, in segments of steps, with the last two states of each segment.

        Arguments:
            start: see `starts`.
            seeds: of the members, `[B]`, int64.
            cuts: steps at which segments end.
            numbers: of the members, `[B]`: which analysis each starts from.
            at: the step that `states` are of, where a rollout goes on.
            states: `now` and `before`, `[B, C, rows, columns]` each, in the file's units.
        """
        if states is None:
            which = np.asarray(numbers) % len(start.states)
            now, before = (torch.from_numpy(start.states[which, k]).to(self.device) for k in (0, 1))
        else:
            now, before = (states[name].to(self.device) for name in ("now", "before"))
        for cut in cuts:
            part: list[NDArray[np.float32]] = []
            for lead in range(at, cut):
                time = start.time + datetime.timedelta(hours=self.config.hours * lead)
                day = (time - type(time)(time.year, 1, 1, calendar=time.calendar)).total_seconds() / 86400
                step_seeds = (
                    seeds * 1_000_003 + lead + 1
                )  # of this step: noise has no step's number of its own
                found = self.step(
                    self.norm.normalise(now),
                    self.norm.normalise(before),
                    day,
                    CounterNoise(step_seeds.to(self.device)),
                )
                before, now = now, self.norm.restore(found).float()
                part.append(now.cpu().numpy())
            at = cut
            whole = np.stack(part, 2)  # [B, C, n, rows, columns]
            fields = {name: whole[:, i] for i, name in enumerate(self.config.fields)}
            yield fields, {"now": now.cpu(), "before": before.cpu()}
