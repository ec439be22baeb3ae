"""Budgets as users write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.budget import parse_budget
from quire.errors import QuireError

BASELINE = 1_000_000


@pytest.mark.parametrize(
    ("memory", "want"),
    [
        (None, None),
        ("min", "min"),
        (1, 1),
        (512 << 20, 512 << 20),
        ("512MiB", 512 << 20),
        ("512 mib", 512 << 20),
        (" 1.5GiB ", 3 << 29),
        ("2GB", 2 * 10**9),
        ("2G", 2 << 30),
        ("3k", 3 << 10),
        ("1TiB", 1 << 40),
        ("100", 100),
        ("100B", 100),
        (0.2, 200_000),
        (1.0, BASELINE),
        (2e6, 2_000_000),
    ],
)
def test_accepted(memory: Any, want: Any) -> None:
    assert parse_budget(memory, BASELINE) == want


@pytest.mark.parametrize(
    "memory",
    [
        0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, False, "", "MiB", "12XB",
        "1.2.3MiB", "min MiB", "-5MiB", "1e9", [512], b"512",
    ],
    ids=repr,
)  # fmt: skip
def test_refused(memory: Any) -> None:
    with pytest.raises(QuireError, match="is no budget") as error:
        parse_budget(memory, BASELINE)
    assert "512MiB" in error.value.allowed


@given(st.integers(1, 1 << 50))
def test_bytes_in_any_spelling(count: int) -> None:
    assert parse_budget(count, 1) == count
    assert parse_budget(f"{count}KiB", 1) == count << 10
