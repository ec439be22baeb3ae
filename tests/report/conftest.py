"""The plans that the report's tests draw."""

from __future__ import annotations

import pytest

from quire.plan.plan import Plan

from .plans import gpt2_plan


@pytest.fixture(scope="session")
def plan() -> Plan:
    """GPT-2 at 4096 tokens: 306 steps, 24 regions and 12 within them."""
    return gpt2_plan()
