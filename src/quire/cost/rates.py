"""Look-up tables of inverse rates: what `time.op_seconds` multiplies with."""

from __future__ import annotations

from bisect import bisect_right
from math import exp, log
from typing import NamedTuple

import torch

GEMM_ROWS = (1, 16, 64, 256, 1024)
ATTENTION_ROWS = (1, 32, 96, 191, 192, 512, 1024)
"""Query rows; ATen's CPU kernel takes wider blocks from 192 and from 768 rows on."""
PAGE = 4096
LONGEST = GEMM_ROWS[-1]


class Rates(NamedTuple):
    """Seconds per byte, per FLOP or per call; `gemm` and `attention` by dtype and row count."""

    read: float
    write: float
    cache_bytes: float
    cache: float
    fault: float
    overhead: dict[str, float]
    gemm: dict[torch.dtype, list[float]]
    attention: dict[torch.dtype, list[float]]
    conv: float
    transcendental: float
    reduce: float


def by_dtype(
    rows: tuple[int, ...], single: tuple[float, ...], half: tuple[float, ...]
) -> dict[torch.dtype, list[float]]:
    """Seconds per FLOP at 0 … LONGEST rows. float64 takes twice as long as float32."""
    full, low = (
        [1 / interpolated(max(r, 1), rows, table) for r in range(LONGEST + 1)]
        for table in (single, half)
    )
    return {
        torch.float32: full,
        torch.float64: [2 * seconds for seconds in full],
        torch.bfloat16: low,
        torch.float16: low,
    }


def interpolated(rows: int, at: tuple[int, ...], figures: tuple[float, ...]) -> float:
    """`figures`, known at the row counts `at`, at `rows`: linear in log-log, flat outside."""
    if rows <= at[0]:
        return figures[0]
    if rows >= at[-1]:
        return figures[-1]
    right = bisect_right(at, rows)
    (x0, x1), (y0, y1) = at[right - 1 : right + 1], figures[right - 1 : right + 1]
    share = log(rows / x0) / log(x1 / x0)
    return exp(log(y0) + share * log(y1 / y0))
