"""Allocations of known size, measured in this process; prints the readings as JSON. Started by
test_measure.py in `quire.measure.environment()`."""

from __future__ import annotations

import json
from typing import Any

import torch

from quire.measure import noise, prepared, rise

MIB = 1 << 20
SIZES = [k * MIB // 2 for k in range(1, 17)]


def filled(nbytes: int) -> torch.Tensor:
    return torch.ones(nbytes, dtype=torch.uint8)


def holes() -> list[Any]:
    """Leave a free block in the heap for each of `SIZES`, as capture and planning do: many small
    allocations that are freed, between others that stay."""
    kept = []
    for size in SIZES:
        small = [filled(32 << 10) for _ in range(size // (32 << 10) + 2)]
        kept.append([filled(1024) for _ in range(100)])
        del small
    return kept


def one_after_the_other() -> None:
    for size in SIZES:
        filled(size)


def both() -> list[torch.Tensor]:
    temporary = filled(5 * MIB)
    kept = [filled(2 * MIB)]
    del temporary
    return kept


filled(SIZES[-1])
kept = holes()
readings = {
    "prepared": prepared(),
    "nothing": noise(),
    "one after the other": rise(one_after_the_other)[0],
    "all at once": rise(lambda: [filled(size) for size in SIZES])[0],
    "temporary and result": rise(both)[0],
    "small": rise(lambda: [filled(16 << 10) for _ in range(256)])[0],
}
print(json.dumps(readings))
