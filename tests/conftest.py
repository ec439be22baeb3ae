"""What every test shares: seeded random numbers, and one thread for each test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks import Ranks

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Four Gloo ranks; see tests/ranks.py."""
    found = Ranks()
    yield found
    found.close()
