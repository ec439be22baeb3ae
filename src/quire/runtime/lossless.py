"""bf16 weights in blocks of 12.5 bits a weight, exactly (kernel/rt/types.hpp).

The upper byte of a bf16 number is its sign and seven bits of its exponent. Of the latter a block of
32 rows by 32 columns has few: those of the largest number and the six below it are looked up by
three bits, with the seventh below or that of zero. What is left, of normally distributed weights one
in ten thousand, is listed. That exponents of trained weights need no more than that is observed by
DFloat11 (Zhang and others, 2025), which holds them in a Huffman code.
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
LIST = BLOCKS["lossless"] - HERE * ODD


def packed(blocks: torch.Tensor) -> torch.Tensor:
    """Bytes that hold bf16 `blocks` [.., 32 rows, 32 columns], and lists too long for a block."""
    blocks = blocks.flatten(0, -3)
    lower, upper = _bytes(blocks)
    codes, table = _codes(upper & 127)
    listed = codes > FEW
    counts = listed.sum((1, 2))
    codes = (codes * ~listed | upper >> 7 << 3).unflatten(2, (-1, 2, 2))  # columns by fours
    codes = _laid(codes[..., 0, :]) | _laid(codes[..., 1, :]) << 4

    size = BLOCKS["lossless"]
    long = torch.where(counts > HERE, counts, 0)
    place = torch.arange(len(blocks)) * size
    beyond = len(blocks) * size + (long.cumsum(0) - long) * ODD
    at = torch.where(long > 0, beyond - place, LIST)
    block, row, column = listed.nonzero(as_tuple=True)
    odd = torch.stack(
        [row.to(torch.uint8), column.to(torch.uint8), lower[listed], upper[listed]], 1
    )
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
    counts = (_codes(_bytes(blocks)[1] & 127)[0] > FEW).sum((1, 2))
    return len(blocks) * BLOCKS["lossless"] + int(counts[counts > HERE].sum()) * ODD


def _bytes(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower and the upper byte of every number."""
    both = blocks.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
    return both[..., 0], both[..., 1]


def _codes(exponents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each is in its block's table, more than FEW if it is not there; and the tables."""
    most = exponents.amax((1, 2), keepdim=True)
    codes = most - exponents
    zeros = exponents == 0
    keep = (zeros.sum((1, 2)) > (codes == FEW).sum((1, 2)))[:, None, None]
    codes = torch.where(keep & (codes == FEW), FEW + 1, codes)
    codes = torch.where(keep & zeros, FEW, codes)
    table = (most[:, 0].int() - torch.arange(FEW + 1)).clamp(min=0)
    table[:, FEW] *= ~keep[:, 0, 0]
    return codes, torch.cat([table, table + 128], 1).to(torch.uint8)


def _laid(pairs: torch.Tensor) -> torch.Tensor:
    """[blocks, 32 rows, pairs of columns, 2] as blocks have them: by lane, half, row, column."""
    lanes = pairs.unflatten(1, (2, SPAN // 8, 4))
    return lanes.permute(0, 4, 2, 1, 3, 5).flatten(1)
