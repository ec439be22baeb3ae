"""Memory in large pages where the system grants them: weights stream with fewer page walks."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch

LARGE = 1 << 21
"""Bytes of a large page: those of x86-64, and of arm64 with 4 KiB pages."""


def allocate(size: int) -> torch.Tensor:
    """`size` bytes, zeros, that begin on a large page where they would fill one."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
    if advice is None or size < LARGE:
        return torch.zeros(size, dtype=torch.uint8)
    room = mmap.mmap(-1, size + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages: small ones do
        room.madvise(advice)
    whole = torch.frombuffer(room, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE
    return whole[start : start + size]


def tensors(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Zeros of these shapes side by side in one block, each at a multiple of 64 bytes."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    room, at = allocate(sum(-(-n // 64) * 64 for n in sizes)), 0
    made = []
    for shape, size in zip(shapes, sizes, strict=True):
        made.append(room[at : at + size].view(dtype).view(*shape))
        at += -(-size // 64) * 64
    return made
