"""A trained network as a larger one that computes the same function, to go on training from.

New inputs get columns of zeros: the estimate before (`self_condition`), the flags of given parts (`parts`), further
properties (`conditions`, whose embedding ends in zeros when it is new). So a network without wishes and parts becomes one
with them and loses nothing on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from perrin.bundle import load_weights
from perrin.core import NetworkDenoiser
from perrin.errors import PerrinError
from perrin.modalities.molecule.fields import BOND_ORDERS
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig

_GROWS = ("network.node_in.weight", "network.pair_in.0.weight", "network.condition_in.first.weight")
"""Matrices whose last columns are for flags and properties."""


def widen(
    denoiser: NetworkDenoiser,
    config: MoleculeConfig,
    weights: Mapping[str, Tensor],
    old: MoleculeConfig,
    *,
    source: str,
) -> None:
    """Copy the weights of a network `old` into the denoiser of `config`, which has the same sizes and maybe more inputs.

    Arguments:
        source: where the weights are from, for messages.

    Raises:
        PerrinError: the new network lacks an input, differs otherwise, or the weights do not fit `old`.
    """
    new, was = config.network, old.network
    _check(new, was, source)
    whole = dict(weights)
    if new.self_condition and not was.self_condition:
        _second_look(
            whole,
            types=len(config.vocabulary.elements),
            charges=len(config.vocabulary.charges),
            radial=new.radial,
        )
    for name, p in denoiser.named_parameters():
        if name.startswith("network.condition_in.") and not was.conditions:
            whole[name] = p.detach().clone()
        elif name in _GROWS and name in whole and whole[name].shape[1] < p.shape[1]:
            whole[name] = _moved(whole[name], [(0, 0, whole[name].shape[1])], p.shape[1])
    load_weights(denoiser, whole, source=source)


def _check(new: NetworkConfig, was: NetworkConfig, source: str) -> None:
    if new.conditions[: len(was.conditions)] != was.conditions:
        raise PerrinError(
            f"expected the conditions of {source} first ({', '.join(was.conditions)}), given "
            f"{', '.join(new.conditions) or 'none'}: add to them, and leave none out"
        )
    lost = [k for k in ("parts", "self_condition") if getattr(was, k) and not getattr(new, k)]
    inputs: dict[str, Any] = {
        "parts": was.parts,
        "self_condition": was.self_condition,
        "conditions": was.conditions,
    }
    if lost or replace(new, **inputs) != was:
        raise PerrinError(
            f"expected a network with the sizes and inputs of {source}, given another one"
            + (f" (without {lost[0]})" if lost else "")
        )


def _second_look(whole: dict[str, Tensor], *, types: int, charges: int, radial: int) -> None:
    """Make room for the estimate before, in place; flags of parts stay last."""
    both, r, b = types + charges, radial, BOND_ORDERS
    node, pair = both + 1, b + r + 1  # columns of one look
    moves: dict[str, tuple[list[tuple[int, int, int]], int]] = {
        "network.node_in.weight": ([(0, 0, both), (both, 2 * both + 1, 1)], 2 * node),
        "network.vector_in.weight": ([(0, 0, 1)], 2),
        "network.pair_in.0.weight": ([(0, 0, b), (b, 2 * b, r), (b + r, 2 * (b + r), 1)], 2 * pair),
    }
    for name, (parts, total) in moves.items():
        used = sum(n for *_, n in parts)
        flags = whole[name].shape[1] - used
        whole[name] = _moved(whole[name], [*parts, (used, total, flags)], total + flags)


def _moved(matrix: Tensor, parts: Sequence[tuple[int, int, int]], columns: int) -> Tensor:
    """A matrix of zeros with runs of columns (from, to, how many) of the given one."""
    out = matrix.new_zeros(len(matrix), columns)
    for start, place, length in parts:
        out[:, place : place + length] = matrix[:, start : start + length]
    return out
