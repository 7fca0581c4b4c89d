"""Similar molecules: noise a molecule up to time `s`, its strength, and denoise from there (SDEdit, Meng et al. 2022).

`x_s = α_s x_0 + σ_s z` for the positions, and each type, charge and bond is kept with probability `α_s`. At `s = 0` that is
the molecule itself; at `s = 1` nothing of it is left but its number of atoms, which is always that of the seed molecule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from perrin.core import Plan, sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.molecule.candidates import choose_state
from perrin.modalities.molecule.fields import decode, encode
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, Unit, filled, make_units
from perrin.modalities.molecule.structure import Molecule


class Varier:
    """Draws molecules like given ones: sample `i` starts from molecule `i // each`.

    Arguments:
        model: any molecule model.
        molecules: what to start from, with all hydrogens.
        each: samples of each molecule.
        strength: the time `s` to noise to, 0 to 1.

    Raises:
        PerrinError: a strength outside 0 to 1.
    """

    def __init__(
        self, model: MoleculeModel, molecules: Sequence[Molecule], each: int, *, strength: float
    ) -> None:
        if not 0 <= strength <= 1:
            raise PerrinError(f"expected --strength from 0 to 1, given {strength:g}")
        encode(
            molecules, model.config.vocabulary, width=max(map(len, molecules))
        )  # says what it cannot express
        self.model, self.molecules, self.each, self.strength = model, list(molecules), each, strength

    def units(self, numbers: Sequence[int], seed: int, *, batch: int) -> list[Unit]:
        """Samples of one width together, large ones first."""
        return make_units([(i, len(self.molecules[i // self.each])) for i in numbers], batch=batch)

    def plan(self, options: SamplingOptions) -> Plan:
        """The rows from time `s` on, as dense there as those of the whole way."""
        steps = max(1, math.ceil(options.steps * options.share(self.strength)))
        return replace(options, start=self.strength, steps=steps).plan(self.model.denoiser)

    def run_unit(self, unit: Unit, seed: int, options: SamplingOptions) -> list[Molecule]:
        """Sample one unit, each molecule in its seed molecule's frame."""
        seeds_of = [self.molecules[i // self.each] for i in unit.indices]
        if self.strength == 0:
            return [replace(m, properties={}) for m in seeds_of]
        model, count = self.model, len(unit.indices)
        rows = filled(count)
        x_0, mask = encode([seeds_of[i] for i in rows], model.config.vocabulary, width=unit.width)
        x_0, mask = {k: v.to(model.device) for k, v in x_0.items()}, mask.to(model.device)
        wishes = model.wished(options.want, len(rows))
        guided = model.guided(1.0 if wishes is None else options.guidance_scale)
        state = choose_state(
            model,
            options,
            self.plan(options),
            sample_seeds(seed, torch.tensor(unit.indices)[rows]).to(model.device),
            mask,
            lambda size: (guided, model.condition(options.want, size * len(rows))),
            wishes=wishes,
            x_0=x_0,
            self_condition=model.config.network.self_condition,
        )
        found = decode({k: v[:count] for k, v in state.items()}, mask[:count], model.config.vocabulary)
        centres = [m.positions.mean(axis=0) for m in seeds_of]
        return [replace(m, positions=m.positions + c) for m, c in zip(found, centres, strict=True)]
