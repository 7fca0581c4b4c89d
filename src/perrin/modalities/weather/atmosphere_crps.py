"""An atmosphere in one evaluation a step: the same network, trained on the fair CRPS of its own ensemble.

The denoiser at t = T, near 1, sees noise and hardly anything of the change. Its estimate there is taken as the change
itself, a function of that noise: a member is one evaluation. With two members of noise of their own, r_1 and r_2, and truth
y, both terms of

    CRPS = (|r_1 − y| + |r_2 − y|) / 2 − |r_1 − r_2| / 2

are unbiased (Ferro 2014), so its mean is least where members and truth are draws of one distribution, at every point
(Lang et al. 2024, arXiv:2412.15832; Alet et al. 2025, arXiv:2506.10772). Points alone would not make fields: the same score
of the coefficients of spherical harmonics, each in units of its degree's deviation of a day's change, asks for the right
variance on every scale (Bonev et al. 2025, arXiv:2507.12144). Members go on from their own states for `leads` steps, and
are scored at each, so that the network learns from what it does to itself; lead k has the weight 1/k.

The estimate of a regression, which is what a denoiser gives at t = T, is where such a training begins: the spread comes by
itself, as the second term falls with it at first order and the first one rises at second. What is trained is an
`AtmosphereModel` of one evaluation; nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from perrin.core import Dense, GeneratorNoise, NetworkDenoiser
from perrin.errors import PerrinError
from perrin.modalities.weather.atmosphere import (
    FIELD,
    AtmosphereConfig,
    AtmosphereTask,
    extra_channels,
    harmonics,
)
from perrin.nets.sphere import power

START = 0.999
"""T: the first time of an `AtmosphereModel`'s grid, and the only one of its steps of one evaluation."""
FLOOR = 0.03
"""Of the degrees' deviations, as a share of the largest: a degree that the data do not have would count for all of them."""


class CRPSTask(AtmosphereTask):
    """Consecutive states, and two members that go through them, for the trainer.

    Arguments:
        leads: steps that members go.
        spectral: the weight of the coefficients' score beside the points'.
        batch: cases of two members each.
        others: see `AtmosphereTask`; `jitter` is of the states that members start from, the same for both.

    Raises:
        PerrinError: runs are too short for the leads.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: AtmosphereConfig,
        states: Tensor,
        days: Tensor,
        stride: int,
        constants: Tensor,
        change: Tensor,
        *,
        batch: int,
        seed: int,
        jitter: float = 0.0,
        leads: int = 1,
        spectral: float = 0.1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if leads < 1:
            raise PerrinError(f"expected leads of at least 1, given {leads}")
        super().__init__(
            denoiser,
            config,
            states,
            days,
            stride,
            constants,
            change,
            batch=batch,
            seed=seed,
            jitter=jitter,
            leads=leads,
            lengths=lengths,
        )
        self.sizes, self.spectral = config, spectral
        self.held = torch.zeros(len(config.fields), config.rows, config.rows, dtype=torch.bool)
        self.held[[config.fields.index(name) for name in config.holds], 0, 0] = True  # of coefficients
        self.config |= {"leads": leads, "spectral": spectral, "criterion": "crps"}
        some = self.ends[torch.linspace(0, len(self.ends) - 1, min(512, len(self.ends))).long()] - stride
        device = self.states.device
        a = harmonics(config.rows, config.columns, config.rows).to(device)(
            (self.states[some + stride].float() - self.states[some].float())
            / change.to(device)[:, None, None]
        )
        l = torch.arange(config.rows)
        scale = (4 * torch.pi * power(a).mean(0).cpu() / (2 * l + 1)).sqrt()  # of |a_lm|, [C, L]
        self.scale = scale.clamp(min=FLOOR * float(scale.max()))
        parts = torch.tril(torch.ones(config.rows, config.rows))  # of each degree: 2 l + 1 numbers
        self.share = parts / (2 * l + 1)[:, None] / config.rows

    def to(self, device: torch.device) -> None:
        """Move the data."""
        super().to(device)
        self.scale, self.share, self.held = (x.to(device) for x in (self.scale, self.share, self.held))
        self.area = self.root.square()

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """See `perrin.train.Task`."""
        index = self.last(step)  # of the last lead
        at = [index - k * self.stride for k in range(self.leads + 1, -1, -1)]
        before, now = self.states[at[0]].float(), self.states[at[1]].float()
        noise, count = GeneratorNoise(generator), len(index)
        if self.jitter:
            before, now = self._err(before, now, noise, Dense(count, now.device), generator)
        process = self.denoiser.process.fields[FIELD]
        both = Dense(2 * count, now.device)
        drawn = [process.prior(noise, both, name=FIELD, time=START) for _ in range(self.leads)]
        batch = {
            "before": before,
            "now": now,
            "truth": torch.stack([self.states[i].float() for i in at[2:]], 1),
            "more": torch.stack(
                [extra_channels(self.constants, self.latitude, self.days[i]) for i in at[1:-1]], 1
            ),
            "noise": torch.stack(drawn, 1).unflatten(0, (2, count)).transpose(0, 1),
        }
        return 0, {k: v[rank::world] for k, v in batch.items()}

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        device = batch["now"].device
        transform = harmonics(self.sizes.rows, self.sizes.columns, self.sizes.rows)
        layouts = {FIELD: Dense(2 * len(batch["now"]), device)}
        t = torch.full((2 * len(batch["now"]),), START, device=device)
        before, now = (torch.cat([batch[k]] * 2) for k in ("before", "now"))
        out: dict[str, Tensor] = {}
        total, weights = torch.zeros((), device=device), 0.0
        for k in range(self.leads):
            noise = batch["noise"][:, :, k].transpose(0, 1).flatten(0, 1)
            more = torch.cat([batch["more"][:, k]] * 2)
            r = model({FIELD: noise}, t, condition=torch.cat([now, before, more], 1), layouts=layouts)[FIELD]
            with torch.autocast(device.type, enabled=False):
                found = transform(now + self.change[:, None, None] * r.float())
                if self.sizes.holds:
                    found = torch.where(self.held, transform(now), found)
                before, now = now, transform.inverse(found)
                points, scales = self._scores(now, found, batch["truth"][:, k], transform)
            out[f"crps_{k + 1}"], out[f"spectral_{k + 1}"] = points, scales
            total, weights = total + (points + self.spectral * scales) / (k + 1), weights + 1 / (k + 1)
        return {"loss": total / weights} | out

    def _scores(
        self, members: Tensor, coefficients: Tensor, truth: Tensor, transform: Any
    ) -> tuple[Tensor, Tensor]:
        """Of points and of coefficients, in units of the changes."""
        unit = self.change[:, None, None]
        one, two = (x for x in ((members - torch.cat([truth] * 2)) / unit).chunk(2))
        points = (_fair(one, two) * self.area).mean()
        parts = (
            torch.view_as_real((coefficients - torch.cat([transform(truth)] * 2)) / unit)
            / self.scale[..., None, None]
        )
        one, two = (x for x in parts.chunk(2))
        return points, (_fair(one, two).sum(-1) * self.share).sum((-2, -1)).mean()


def _fair(one: Tensor, two: Tensor) -> Tensor:
    """The fair CRPS of two members, given their errors."""
    return (one.abs() + two.abs() - (one - two).abs()) / 2
