"""Plans are made for the reference machine, so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import quire.pipeline
from quire.cost.machine import REFERENCE


@pytest.fixture(autouse=True, scope="module")
def _reference_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
        yield
