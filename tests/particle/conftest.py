"""Toy data for the tests of particles."""

from __future__ import annotations

import pytest
from toys import toy_jets, toy_showers

from perrin.modalities.particle.jets.files import Jets
from perrin.modalities.particle.showers.files import Showers


@pytest.fixture(scope="session")
def jets() -> Jets:
    return toy_jets(300)


@pytest.fixture(scope="session")
def showers() -> Showers:
    return toy_showers(64)
