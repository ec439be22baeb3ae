"""Memory in large pages where the system grants them: weights stream with fewer page walks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil
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

    Addresses and values stay. What is mapped privately from a file (`from_pretrained` does so) is
    memory of the process from then on, and nobody else may write to it meanwhile; it moves where it
    takes at most half of what is available. What is shared with other processes stays as it is.
    """
    if sys.platform != "linux":
        return
    ranges = _neighbours(t for t in held if t.numel())
    files: list[tuple[int, int, bool]] = []
    for low, high, mode, inode in _mappings():
        for start, end in ranges:
            first = -(-max(start, low) // LARGE) * LARGE
            size = min(end, high) // LARGE * LARGE - first
            if size <= 0 or "p" not in mode:
                continue
            if inode == "0":
                _collapse(first, size)
            else:
                files.append((first, size, "w" in mode))
    if 2 * sum(size for _, size, _ in files) > _available():
        return
    for first, size, writable in files:
        for at in range(first, first + size, _AT_ONCE):
            _copy_over(at, min(_AT_ONCE, first + size - at), writable)


_AT_ONCE = 64 * LARGE
"""Bytes that a copy takes besides."""

_COLLAPSE, _FIXED = 25, 1 | 2
"""MADV_COLLAPSE, and MREMAP_MAYMOVE | MREMAP_FIXED, of linux/mman.h."""


def _mappings() -> list[tuple[int, int, str, str]]:
    """Begin, end, permissions and inode (0: no file) of this process's mappings."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, inode, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        found.append((low, high, mode, inode))
    return found


def _available() -> int:
    """Bytes that the process may still take, of the system's and of its control group's."""
    spare = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
        most, taken = ((_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        spare = min(spare, int(most) - int(taken))
    return spare


_GROUP = Path("/sys/fs/cgroup")


def _neighbours(held: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """The small pages they lie in, from and to, as few ranges: weights side by side may share a
    large page."""
    small, joined = mmap.PAGESIZE, list[tuple[int, int]]()
    for at, size in sorted({(t.data_ptr(), _extent(t)) for t in held}):
        start, end = at // small * small, -(-(at + size) // small) * small
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _extent(t: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last; the storage may hold far more."""
    last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
    return (1 + last) * t.element_size()


def _collapse(at: int, size: int) -> None:
    libc = _libc()
    if libc.madvise(at, size, mmap.MADV_HUGEPAGE) == 0:
        libc.madvise(at, size, _COLLAPSE)  # before Linux 6.1 it happens in its own time


def _copy_over(at: int, size: int, writable: bool) -> None:
    """Large pages with the same values in place of `size` bytes, whole large pages."""
    libc = _libc()
    access = mmap.PROT_READ | mmap.PROT_WRITE
    room = libc.mmap(None, size + LARGE, access, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if room == _FAILED:
        return
    start = -(-room // LARGE) * LARGE
    libc.munmap(room, start - room)
    libc.munmap(start + size, room + LARGE - start)
    libc.madvise(start, size, mmap.MADV_HUGEPAGE)
    ctypes.memmove(start, at, size)
    if not writable:
        libc.mprotect(start, size, mmap.PROT_READ)
    if libc.mremap(start, size, size, _FIXED, at) == _FAILED:
        libc.munmap(start, size)


_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    size, place = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.argtypes = [place, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mremap.argtypes = [place, size, size, ctypes.c_int, place]
    libc.munmap.argtypes = [place, size]
    libc.madvise.argtypes = libc.mprotect.argtypes = [place, size, ctypes.c_int]
    libc.mmap.restype = libc.mremap.restype = place
    return libc


def tensors(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Zeros of these shapes side by side in one block, each at a multiple of 64 bytes."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    room, at = allocate(sum(-(-n // 64) * 64 for n in sizes)), 0
    made = []
    for shape, size in zip(shapes, sizes, strict=True):
        made.append(room[at : at + size].view(dtype).view(*shape))
        at += -(-size // 64) * 64
    return made
