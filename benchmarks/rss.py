"""How much memory one call takes: the rise of the resident set, exact to some ten kilobytes.

Linux keeps the high-water mark of a process's resident set. Writing 5 to `/proc/self/clear_refs`
sets it back to the present size, so that its rise over one call is that call's peak, however short
the peak was: nothing is sampled. Four things make the number mean bytes of tensors:

- `MALLOC_MMAP_THRESHOLD_=65536` in the environment: tensors of 64 KiB or more are mapped when made
  and unmapped when freed, so pages of dead tensors do not stay resident. glibc does so only where
  no free block of the heap is large enough, and capture and planning leave many behind: tensors
  that land there cost nothing where the block is resident, and stay resident where it is not.
  Readings were off by up to 11 MB either way. So
- `plug` takes all free blocks of the heap that could hold a tensor of 64 KiB;
- `malloc_trim` hands back what smaller tensors left, so that a call is charged for these too;
- a warm-up: the first run of a process adds 7 to 16 MB that stay (kernels' code pages, thread
  pools, workspaces that libraries keep).

What is left is noise. A call that does nothing reads as 0 to 4 KiB (`noise()`). Where peaks are
small, `allocated` counts what torch's allocator hands out, to the byte; it sees no scratch memory
of the libraries below it.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: measure on Linux")


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = [ctypes.c_size_t]
_LIBC.mallinfo2.restype = _Heap
PLUG = 32 << 10


def plug(limit: int = 1 << 17) -> int:
    """Take every free block of the heap larger than 32 KiB, for good; the bytes taken.

    They are not written, so they cost no memory. Growth of the heap tells that none is left.
    """
    size = _LIBC.mallinfo2().arena
    for taken in range(limit):
        _LIBC.malloc(PLUG)
        if _LIBC.mallinfo2().arena > size:
            return taken * PLUG
    return limit * PLUG


def rise(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the resident set rose above where it stood, at the highest, and the result.

    The result is alive when the mark is read: outputs are counted.
    """
    gc.collect()
    plug()
    _LIBC.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    before = _status("VmRSS")
    result = call()
    return max(0, _status("VmHWM") - before), result


def allocated(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that torch's CPU allocator had handed out above the start, at the highest."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    assert recorded.profiler is not None
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()  # pyright: ignore
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]
    live = top = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        live += nbytes
        top = max(top, live)
    return top, result


def cuda_rise(call: Callable[[], Any]) -> tuple[int, Any]:
    """The same on a GPU, from the allocator's own count."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def noise(runs: int = 5) -> int:
    """The largest rise over calls that allocate nothing, in bytes."""
    return max(rise(lambda: None)[0] for _ in range(runs))


def exact() -> bool:
    """Whether this process was started with the settings that make the rise mean tensors."""
    return all(os.environ.get(key) == value for key, value in ENVIRONMENT.items())
