"""Functions of rows, run on some of a rank's rows at a time: for memory, no collective.

A tile of activations at a time, made again in backward, is what ALST calls TiledMLP (Bekman et al.,
2025); here for any ops that treat each row by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Where = tuple[int, int, int]
"""A dim that holds blocks of a rank's rows: the dim, its blocks, elements of a row."""


def in_parts(
    function: Callable[..., Any],
    rows: int,
    some: int,
    given: Sequence[Tensor],
    reads: Sequence[Where],
    makes: Sequence[Where],
    *others: Tensor,
) -> Any:
    """`function(*given, *others)` on `some` of this rank's `rows` at a time, joined: each row of
    its results is of that row of `given` alone. In backward it runs again, a part at a time, so
    that only one part's activations are there at once.

    The last part ends at the last row; rows it shares with the part before are taken from there.
    """
    found: list[list[Tensor]] = []
    alone = False
    for first in range(0, rows, some):
        start = min(first, rows - some)
        cut = [_some_rows(x, at, rows, start, some) for x, at in zip(given, reads, strict=True)]
        made = checkpoint(function, *cut, *others, use_reentrant=False)
        alone = isinstance(made, Tensor)
        parts = [made] if alone else list(made)
        new = some - (first - start)
        found.append(
            [
                _some_rows(x, at, some, first - start, new)
                for x, at in zip(parts, makes, strict=True)
            ]
        )
    results = zip(*found, strict=True)
    joined = tuple(_joined_rows(list(xs), at) for xs, at in zip(results, makes, strict=True))
    return joined[0] if alone else joined


def _some_rows(x: Tensor, at: Where, rows: int, start: int, count: int) -> Tensor:
    if count == rows:
        return x
    dim, outer, scale = at
    blocks = x.unflatten(dim, (outer, rows, scale)).narrow(dim + 1, start, count)
    return blocks.flatten(dim, dim + 2)


def _joined_rows(xs: list[Tensor], at: Where) -> Tensor:
    dim, outer, scale = at
    blocks = [x.unflatten(dim, (outer, x.shape[dim] // (outer * scale), scale)) for x in xs]
    return torch.cat(blocks, dim + 1).flatten(dim, dim + 2)
