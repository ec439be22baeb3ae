"""bf16 weights in blocks of 12.5 bits a weight, exactly (kernel/rt/types.hpp).

The upper byte of a bf16 number is its sign and seven bits of its exponent. Of the latter a block
of 32 rows by 32 columns has few: that of the largest number and the six below it are looked up by
three bits, and the seventh below or that of zero. What is left, of normally distributed weights
one in ten thousand, is listed. That exponents of trained weights take few values is what DFloat11
(Zhang and others, 2025) uses, with a Huffman code that is decoded on a GPU.
"""

from __future__ import annotations

import torch

from quire.kernel.ir import BLOCKS, SPAN

FEW = 7
"""Exponents below one another that every block can have."""
HERE = 9
"""Numbers that are listed in the block itself."""
ODD = 4
"""Bytes of a number in the list: row, column, value."""
SIZE = BLOCKS["lossless"]


def packed(blocks: torch.Tensor) -> torch.Tensor:
    """Bytes that hold bf16 `blocks` [.., 32 rows, 32 columns], and lists too long for a block."""
    blocks = blocks.flatten(0, -3)
    lower, upper = _bytes(blocks)
    codes, table = _codes(upper & 127)
    block, row, column = listed = (codes > FEW).nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=len(blocks))
    codes = (codes & FEW | upper >> 7 << 3).unflatten(2, (-1, 2, 2))  # columns by fours
    codes = _laid(codes[..., 0, :]) | _laid(codes[..., 1, :]) << 4

    long = torch.where(counts > HERE, counts, 0)
    place = torch.arange(len(blocks)) * SIZE
    beyond = len(blocks) * SIZE + (long.cumsum(0) - long) * ODD
    at = torch.where(long > 0, beyond - place, SIZE - HERE * ODD)
    odd = [row.to(torch.uint8), column.to(torch.uint8), lower[listed], upper[listed]]
    odd = torch.stack(odd, 1)
    far = long[block] > 0
    nth = torch.arange(len(block)) - (counts.cumsum(0) - counts)[block]
    here = torch.zeros(len(blocks), HERE, ODD, dtype=torch.uint8)
    here[block[~far], nth[~far]] = odd[~far]
    held = [
        _laid(lower.unflatten(2, (-1, 2))), codes, table, at[:, None].view(torch.uint8),
        counts.to(torch.int32)[:, None].view(torch.uint8), here.flatten(1),
    ]  # fmt: skip
    return torch.cat([torch.cat(held, 1).flatten(), odd[far].flatten()])


def packed_size(blocks: torch.Tensor) -> int:
    """Bytes of `packed(blocks)`."""
    blocks = blocks.flatten(0, -3)
    codes, _ = _codes(_bytes(blocks)[1] & 127)
    counts = torch.bincount((codes > FEW).nonzero()[:, 0], minlength=len(blocks))
    return len(blocks) * SIZE + int(counts[counts > HERE].sum()) * ODD


def _bytes(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower and the upper byte of every number."""
    both = blocks.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
    return both[..., 0].contiguous(), both[..., 1].contiguous()


def _codes(exponents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each is in its block's table, more than FEW if it is not there; and the tables."""
    most = exponents.amax((1, 2), keepdim=True)
    codes = most - exponents
    zeros = exponents == 0
    some = zeros.flatten(1).any(1)  # which have the place of the last exponent
    last = torch.where(some, FEW, FEW + 1).to(torch.uint8)[:, None, None]
    codes = torch.where(zeros, FEW, torch.where(codes < last, codes, FEW + 1))
    table = (most[:, 0].int() - torch.arange(FEW + 1)).clamp(min=0)
    table[:, FEW] *= ~some
    return codes, torch.cat([table, table + 128], 1).to(torch.uint8)


def _laid(pairs: torch.Tensor) -> torch.Tensor:
    """[blocks, 32 rows, pairs of columns, 2] as blocks have them: by lane, half, row, column."""
    lanes = pairs.unflatten(1, (2, SPAN // 8, 4))
    return lanes.permute(0, 4, 2, 1, 3, 5).flatten(1)
