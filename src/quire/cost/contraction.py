"""Workspace of matrix products on the CPU: copies of operands no BLAS can read, and for bfloat16
the float32 accumulator of oneDNN, or the blocks that it lays out where the machine multiplies
bfloat16 as it is."""

from __future__ import annotations

from math import prod

import torch

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import Call, merges, nbytes, numel, on_matrix_unit


def _matrix_copy(info: TensorInfo) -> int:
    """Bytes of one matrix (the last two dims), if neither its rows nor its columns are dense."""
    if info.ndim < 2:
        return 0
    (rows, columns), (s0, s1) = info.shape[-2:], info.stride[-2:]
    by_rows = s1 == 1 and (s0 >= max(columns, 1) or rows == 1)  # type: ignore[operator]
    by_columns = s0 == 1 and (s1 >= max(rows, 1) or columns == 1)  # type: ignore[operator]
    if by_rows or by_columns or rows == 1 or columns == 1:
        return 0
    return int(rows) * int(columns) * info.dtype.itemsize


def relaid_bytes(operands: tuple[TensorInfo, ...]) -> float:
    """Traffic of copying every matrix that no BLAS can read: each element that lies alone in its
    cache line (64 bytes) brings the line, once for reading and once for what it evicts."""
    traffic = 0.0
    for info in operands:
        if _matrix_copy(info):
            apart = min(int(s) for s in info.stride[-2:])
            traffic += 2 * nbytes(info) * max(1, min(apart, 64 // info.dtype.itemsize))
    return traffic


BLOCK, BLOCK_DEPTH = 128 << 10, 2048
"""Bytes of a thread's blocks on a matrix unit, at most, and those for each element along the sum.
How oneDNN cuts a product into blocks is its own matter."""

SHORT, LONG = 208 << 10, 7 << 18
"""The same on AVX-512 BF16, for sums of less than 2048 elements and for others."""


def _blocks(dtype: torch.dtype, depth: int) -> int:
    """Bytes of a thread's blocks of the operands where the machine multiplies this 16-bit dtype
    as it is, else 0."""
    if on_matrix_unit(dtype):
        return BLOCK + BLOCK_DEPTH * depth
    if dtype is torch.bfloat16 and torch.cpu._is_avx512_bf16_supported():
        return SHORT if depth < 2048 else LONG
    return 0


def _accumulator(call: Call, depth: int, matrices: int = 1) -> int:
    """Blocks of the operands, or float32 sums of a bfloat16 product, one matrix per thread at a
    time. `depth` is the size that is summed over."""
    if blocks := _blocks(call.out.dtype, depth):
        return call.threads * blocks
    if call.out.dtype is not torch.bfloat16:
        return 0
    return 4 * numel(call.out) // matrices * min(matrices, call.threads)


def _packed(call: Call, weight: TensorInfo) -> int:
    """oneDNN lays out a bfloat16 weight anew when it adds a bias as well (seen in the resident
    set only); 10 % for the other operand's blocks."""
    rows = numel(call.out) // max(int(call.out.shape[-1]), 1)
    return nbytes(weight) * 11 // 10 if call.out.dtype is torch.bfloat16 and rows > 1 else 0


def _depth(info: TensorInfo) -> int:
    return int(info.shape[-1]) if info.ndim else 1


def mm(call: Call) -> int:
    return _accumulator(call, _depth(call.operands[0])) + sum(
        _matrix_copy(x) for x in call.operands
    )


def addmm(call: Call) -> int:
    matrices = (call["mat1"], call["mat2"])
    packed = _packed(call, call["mat2"])
    sums = _accumulator(call, _depth(matrices[0]))
    return sums + packed + sum(_matrix_copy(x) for x in matrices)


def linear(call: Call) -> int:
    """Without a copy for any input: one that does not flatten is multiplied batch by batch."""
    x, weight = call["input"], call["weight"]
    packed = _packed(call, weight) if call.find("bias") is not None else 0
    return _accumulator(call, _depth(x)) + packed + _matrix_copy(x) + _matrix_copy(weight)


def bmm(call: Call) -> int:
    """Matrices that BLAS cannot read are copied one after the other."""
    pair = call.operands[-2:]
    sums = _accumulator(call, _depth(pair[0]), int(call.out.shape[0]))
    return sums + sum(_matrix_copy(x) for x in pair)


def matmul(call: Call) -> int:
    """Batch dims are expanded and merged: an operand whose dims do not merge is copied whole."""
    left, right = call.operands
    if max(left.ndim, right.ndim) < 3:
        return mm(call) if min(left.ndim, right.ndim) == 2 else 0
    if min(left.ndim, right.ndim) <= 2:
        large, small = (left, right) if left.ndim > 2 else (right, left)
        sums = _accumulator(call, _depth(left))
        return sums + _matrix_copy(large) + _matrix_copy(small)
    batch = call.out.shape[: max(left.ndim, right.ndim) - 2]
    matrices = 1
    for size in batch:
        matrices *= int(size)
    copies = 0
    for info in (left, right):
        wide = _expanded(info, batch)
        merged = merges(wide, range(len(batch)))
        copies += _matrix_copy(info) if merged else nbytes(wide)
    return copies + _accumulator(call, _depth(left), max(matrices, 1))


def _expanded(info: TensorInfo, batch: tuple) -> TensorInfo:
    """`info` with the batch dims `batch`, repeated ones at stride 0."""
    shape = (1,) * (len(batch) + 2 - info.ndim) + info.shape
    stride = (0,) * (len(batch) + 2 - info.ndim) + info.stride
    strides = tuple(
        0 if n == 1 and b != 1 else s for n, b, s in zip(shape, batch, stride, strict=False)
    )
    return TensorInfo(
        (*batch, *info.shape[-2:]), info.dtype, (*strides, *info.stride[-2:]), info.device
    )


def einsum(call: Call) -> int:
    """Each operand is permuted to (shared, own, summed) and each group merged into one dim: it is
    copied if it is no view then. More than two operands: an intermediate of unknown size, taken
    to be as large as the largest operand."""
    inputs = str(call.op["equation"]).replace(" ", "").split("->")[0].split(",")
    output = str(call.op["equation"]).replace(" ", "").split("->")[-1]
    if len(inputs) != 2 or "." in str(call.op["equation"]):
        return sum(nbytes(x) for x in call.operands) + max(nbytes(x) for x in call.operands)
    if not (set(inputs[0]) & set(inputs[1])) - set(output):
        return 0
    copies = 0
    sizes = dict(zip(inputs[0], map(int, call.operands[0].shape), strict=True))
    depth = prod(size for letter, size in sizes.items() if letter not in output)
    for letters, other, info in zip(inputs, reversed(inputs), call.operands, strict=True):
        shared = [d for d in output if d in letters and d in other]
        own = [d for d in output if d in letters and d not in other]
        summed = [d for d in letters if d not in output]
        groups = [tuple(letters.index(d) for d in group) for group in (shared, own, summed)]
        if all(merges(info, group) for group in groups):
            copies += _grouped_copy(info, groups)
        else:
            copies += nbytes(info)
    return copies + _accumulator(call, depth)


def _grouped_copy(info: TensorInfo, groups: list[tuple[int, ...]]) -> int:
    """`_matrix_copy` of the merged (own, summed) matrix."""
    sizes, strides = [], []
    for group in groups[1:]:
        size, stride = 1, 1
        for dim in group:
            size *= int(info.shape[dim])
            stride = int(info.stride[dim]) if info.shape[dim] != 1 else stride
        sizes.append(size)
        strides.append(stride)
    return _matrix_copy(TensorInfo(tuple(sizes), info.dtype, tuple(strides), info.device))
