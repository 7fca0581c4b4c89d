"""Candidates: of each molecule with wishes several are started, and a property network says on the way which go on.

Candidate c of a molecule has the molecule's seed plus c, so candidate 0 is the molecule that is drawn without a choice. How
they are thinned out is `perrin.core.guides.winnow`'s; here is what it asks: `log p(wishes | x_t)` by the network, and at the
end that what is not sound goes if anything else is there. Without wishes, all candidates may be drawn to the end, and one
is kept so that a set of molecules holds what the data hold (`perrin.modalities.molecule.balance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perrin.core import CounterNoise, Plan, State, sample
from perrin.core.denoiser import Denoiser
from perrin.core.guides import Places, winnow
from perrin.core.replay import Mode
from perrin.errors import PerrinError
from perrin.modalities.molecule.balance import BROKEN, Balance
from perrin.modalities.molecule.fields import POSITIONS, layouts_for
from perrin.modalities.molecule.network import MoleculeConfig

if TYPE_CHECKING:  # it can train, which sampling need not load
    from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions
    from perrin.modalities.molecule.predictor import Predictor

Setting = Callable[[int], tuple[Denoiser, Any]]
"""The denoiser and its condition for so many candidates of each molecule of a batch."""


def choose_state(
    model: MoleculeModel,
    options: SamplingOptions,
    plan: Plan,
    seeds: Tensor,
    mask: Tensor,
    setting: Setting,
    *,
    wishes: Tensor | None,
    x_0: State | None = None,
    balance: Balance | None = None,
    self_condition: bool = False,
    mode: Mode = "eager",
) -> State:
    """Draw a batch of molecules, each the one left of its candidates where there are wishes and several candidates, or
    where there is a balance and several are drawn for one.

    Arguments:
        model: whose property network chooses.
        options, plan: how many candidates, and the rows.
        seeds: of the molecules, `[B]`.
        mask: their atoms, `[B, N]`.
        setting: for so many candidates of each, those of a molecule one after the other.
        wishes: intervals in the model's standard units, `[B, P, 2]`.
        x_0: molecules to start from, each candidate with its own noise, at the plan's first time; the prior without.
        balance: what one of `options.balance` is kept by where there are no wishes.
        self_condition, mode: as in `perrin.core.sample`.

    Raises:
        PerrinError: there is no property network to choose by.
    """
    several = wishes is not None and options.candidates > 1
    many = options.balance if wishes is None and balance is not None else 1
    process = model.denoiser.process

    def places(size: int) -> Places:
        each = mask.repeat_interleave(size, 0)
        denoiser, condition = setting(size)
        likely: Callable[[State, Tensor], Tensor] = _indifferent
        if several:
            assert wishes is not None
            likely = potential(model, wishes.repeat_interleave(size, 0), each)
        own = (seeds[:, None] + torch.arange(size, device=seeds.device)).reshape(-1)
        return Places(
            layouts=layouts_for(each),
            noise=CounterNoise(own),
            condition=condition,
            potential=likely,
            denoiser=denoiser,
        )

    def start(here: Places) -> State | None:
        if x_0 is None:
            return None
        count = here.layouts[POSITIONS].batch
        x = {k: v.repeat_interleave(count // len(mask), 0) for k, v in x_0.items()}
        return process.corrupt_state(
            x, torch.full((count,), plan.start, device=mask.device), here.noise, here.layouts
        )

    if several:
        return winnow(
            model.denoiser,
            process,
            plan,
            places,
            cuts=options.cuts,
            start=start,
            self_condition=self_condition,
            mode=mode,
        )
    all_of = places(many)
    assert all_of.denoiser is not None
    state = sample(
        all_of.denoiser,
        process,
        plan,
        all_of.layouts,
        all_of.noise,
        condition=all_of.condition,
        start=start(all_of),
        self_condition=self_condition,
        mode=mode,
    )
    if balance is None or many == 1:
        return state
    kept = balance.choose(
        state,
        mask.repeat_interleave(many, 0),
        model.config.vocabulary,
        steps=options.steps,
        many=many,
        noise=all_of.noise,
    )
    return {k: v[kept] for k, v in state.items()}


def potential(model: MoleculeModel, wishes: Tensor, mask: Tensor) -> Callable[[State, Tensor], Tensor]:
    """`log p(wishes | x_t)` by the property network, for intervals in the model's standard units `[B, P, 2]`; at the end,
    what is not sound is left out if anything else is there.

    Raises:
        PerrinError: there is none, or it does not know what is wished for.
    """
    from perrin.modalities.molecule.metrics.tensors import sound

    guide = check_guide(model.guide, model.config)
    vocabulary = model.config.vocabulary
    names = [r.name for r in guide.config.ranges]
    theirs = torch.full((len(wishes), len(names), 2), math.inf, device=wishes.device)
    theirs[..., 0] = -math.inf
    for k, own in enumerate(model.config.ranges):
        if own.name in names:
            r = guide.config.ranges[names.index(own.name)]
            theirs[:, names.index(own.name)] = (wishes[:, k] * own.std + (own.mean - r.mean)) / r.std
    value = guide.log_density(theirs, mask)
    scale = vocabulary.position_scale / guide.config.vocabulary.position_scale

    def log_g(x: State, t: Tensor) -> Tensor:
        with torch.autocast(mask.device.type, enabled=False):
            likely = value({**x, POSITIONS: x[POSITIONS].float() * scale}, t)
        broken = (t == 0) & ~sound(x, mask, vocabulary)
        return torch.where(broken, likely - BROKEN, likely)

    return log_g


def _indifferent(x: State, t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def check_guide(guide: Predictor | None, config: MoleculeConfig, wishes: Sequence[str] = ()) -> Predictor:
    """The property network of a model, if it can choose among its candidates.

    Arguments:
        wishes: names of the properties that it must know.

    Raises:
        PerrinError: there is none, it knows no noise, other elements, or not all of them.
    """
    if guide is None:
        raise PerrinError(
            "expected a property network to choose among candidates, given none: name one by --guide, or leave out "
            "--candidates"
        )
    if not guide.config.noisy:
        raise PerrinError(
            "expected a property network trained on noised molecules for --guide, given another one"
        )
    if guide.config.vocabulary.elements != config.vocabulary.elements:
        raise PerrinError(
            "expected a property network of the model's elements for --guide, given one of others"
        )
    if lost := [name for name in wishes if name not in {r.name for r in guide.config.ranges}]:
        raise PerrinError(
            f"expected a property network that knows {', '.join(lost)}, given one that knows "
            f"{', '.join(r.name for r in guide.config.ranges)}: leave out --candidates or name another --guide"
        )
    return guide


def load_guide(reference: str, *, device: str) -> Predictor:
    """A property network by its bundle's name or path.

    Raises:
        PerrinError: there is no such bundle, or it is another one.
    """
    from perrin.bundle import read_bundle
    from perrin.modalities import find_bundle
    from perrin.modalities.molecule.predictor import Predictor

    return Predictor.from_bundle(read_bundle(find_bundle(reference)), device=device)
