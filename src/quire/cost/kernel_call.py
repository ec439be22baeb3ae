"""One call of a kernel as the workspace formulas see it, and the copies kernels make."""

from __future__ import annotations

from functools import cached_property

import attrs
import torch

from quire.capture.program import Op, Operand, TensorInfo


@attrs.frozen(eq=False)
class Call:
    """An op with the concrete facts of its operands and outputs."""

    op: Op
    operands: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    threads: int

    @cached_property
    def name(self) -> str:
        return self.op.target._schema.name.split("::")[-1]

    @property
    def x(self) -> TensorInfo:
        """The first operand."""
        return self.operands[0]

    @property
    def out(self) -> TensorInfo:
        return self.outputs[0]

    def __getitem__(self, name: str) -> TensorInfo:
        """The operand that is the argument `name`."""
        return self.operands[self.op[name].index]

    def find(self, name: str) -> TensorInfo | None:
        value = self.op.get(name)
        return self.operands[value.index] if isinstance(value, Operand) else None


def numel(info: TensorInfo) -> int:
    count = 1
    for size in info.shape:
        count *= int(size)
    return count


def nbytes(info: TensorInfo) -> int:
    return numel(info) * info.dtype.itemsize


def is_low(dtype: torch.dtype) -> bool:
    """Whether `dtype` is one of the 16-bit floats."""
    return dtype in (torch.bfloat16, torch.float16)


def merges(info: TensorInfo, dims: range | tuple[int, ...]) -> bool:
    """Whether `dims` become one in a view: each stride is the next one's times its size."""
    step = None
    for dim in reversed(tuple(dims)):
        size, stride = int(info.shape[dim]), int(info.stride[dim])
        if size == 1:
            continue
        if step is not None and stride != step:
            return False
        step = stride * size
    return True


def is_contiguous(info: TensorInfo) -> bool:
    last = next((d for d in reversed(range(info.ndim)) if info.shape[d] != 1), None)
    return last is None or (info.stride[last] == 1 and merges(info, range(info.ndim)))


def lies_channels_last(info: TensorInfo) -> bool:
    """N, D…, C in memory, for N, C, D… in shape; 4 or 5 dims."""
    if info.ndim not in (4, 5):
        return False
    order = (0, *range(2, info.ndim), 1)
    turned = TensorInfo(
        tuple(info.shape[d] for d in order),
        info.dtype,
        tuple(info.stride[d] for d in order),
        info.device,
    )
    return is_contiguous(turned)


def is_channels_last(info: TensorInfo) -> bool:
    """Whether torch takes the layout for channels last, by strides alone, those of dims of size 1
    among them; kernels choose theirs by it (c10/core/MemoryFormat.h, is_channels_last_strides)."""
    if info.ndim not in (4, 5) or info.stride[1] == 0 or 0 in info.shape:
        return False
    least = 0
    for d in (1, *range(info.ndim - 1, 1, -1), 0):
        stride = int(info.stride[d])
        if stride < least or (d == 0 and least == info.stride[1]):
            return False
        least = stride * max(int(info.shape[d]), 1)
    return True


def copied(info: TensorInfo, itemsize: int = 0) -> int:
    """Bytes of the contiguous copy a kernel takes of `info`: 0 if that is contiguous."""
    return 0 if is_contiguous(info) else numel(info) * (itemsize or info.dtype.itemsize)


def copied_unless_channels_last(info: TensorInfo) -> int:
    return 0 if is_channels_last(info) else copied(info)


def recast(info: TensorInfo, dtype: torch.dtype) -> int:
    """Bytes of `info` in `dtype`: 0 if that is its own."""
    return 0 if info.dtype is dtype else numel(info) * dtype.itemsize


def on_matrix_unit(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this 16-bit dtype as it is: by AMX, or AVX-512 FP16."""
    if dtype is torch.bfloat16:
        return torch.cpu._is_amx_tile_supported()
    return dtype is torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
