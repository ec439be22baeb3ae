"""Which sizes of a call are lengths, found from what differs between calls."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.runtime.programs import Free, kind_of


def batch(rows: int, size: int, width: int = 64) -> list[Tensor]:
    return [torch.empty(rows, size, width), torch.empty(rows, size)]


def test_sizes_that_never_differ_are_no_lengths() -> None:
    """A batch of as many sequences as they have tokens, of as many channels too."""
    first = Free.of(batch(64, 64), {64})
    assert [d[:2] for d in first.dims] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert first.only_varied().dims == ()
    found = first.after(batch(64, 48)).only_varied()
    assert [d[:2] for d in found.dims] == [(0, 1), (1, 1)]
    assert found.lengths(batch(64, 48)) == (48,) and found.first == (64,)
    again = first.after(batch(64, 48)).after(batch(64, 64)).only_varied()
    assert again == found and again.lengths(batch(64, 64)) == (64,)


def test_two_sequences_of_one_length_come_apart() -> None:
    first = Free.of([torch.empty(2, 29), torch.empty(2, 29)], {29})
    one = first.after([torch.empty(2, 13), torch.empty(2, 13)])
    assert one.only_varied().lengths([torch.empty(2, 7), torch.empty(2, 7)]) == (7,)
    calls = [torch.empty(2, 29), torch.empty(2, 13)]
    two = one.after(calls)
    assert two.only_varied().lengths(calls) == (29, 13)
    assert two.first == (29, 29)


def test_calls_of_one_program_differ_in_their_lengths_only() -> None:
    free = Free.of(batch(2, 37), {37}).after(batch(2, 22)).only_varied()
    assert free.rest(batch(2, 37)) == free.rest(batch(2, 5))
    assert free.rest(batch(2, 37)) != free.rest(batch(3, 37))
    assert free.rest(batch(2, 37)) != free.rest(batch(2, 37, 32))
    _, spec = torch.utils._pytree.tree_flatten(batch(2, 37))
    kinds = {
        kind_of([torch.empty(2, dtype=d), x], spec, (True, t))
        for d in (torch.float32, torch.float64)
        for x in (True, None)
        for t in (True, False)
    }
    assert len(kinds) == 8
