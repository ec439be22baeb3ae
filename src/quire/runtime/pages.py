"""Memory in large pages where the system grants them: weights stream with fewer page walks."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Iterable, Sequence

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


def enlarge(held: Iterable[torch.Tensor]) -> None:
    """Moves the memory of these tensors to large pages, where the system can.

    Addresses and values stay; so does what is mapped from a file.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _neighbours(t.untyped_storage() for t in held):
        first, last = -(-start // LARGE) * LARGE, end // LARGE * LARGE
        if first < last and madvise(first, last - first, advice) == 0:
            madvise(first, last - first, _COLLAPSE)  # before Linux 6.1 it happens in its own time


_COLLAPSE = 25
"""MADV_COLLAPSE of linux/mman.h."""


def _neighbours(storages: Iterable[torch.UntypedStorage]) -> list[tuple[int, int]]:
    """The small pages they lie in, from and to, as few ranges: weights side by side may share a
    large page."""
    small, joined = mmap.PAGESIZE, list[tuple[int, int]]()
    for at, size in sorted({(s.data_ptr(), s.nbytes()) for s in storages}):
        start, end = at // small * small, -(-(at + size) // small) * small
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def tensors(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Zeros of these shapes side by side in one block, each at a multiple of 64 bytes."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    room, at = allocate(sum(-(-n // 64) * 64 for n in sizes)), 0
    made = []
    for shape, size in zip(shapes, sizes, strict=True):
        made.append(room[at : at + size].view(dtype).view(*shape))
        at += -(-size // 64) * 64
    return made
