"""How much memory one call takes: the rise of the resident set, exact to some ten kilobytes.

Linux keeps the high-water mark of a process's resident set. Writing 5 to `/proc/self/clear_refs`
sets it back to the present size (proc(5)), so that its rise over one call is that call's peak,
however short the peak was: nothing is sampled. Four things make the number mean bytes of tensors:

- `MALLOC_MMAP_THRESHOLD_=65536` in the environment: tensors of 64 KiB or more are mapped when made
  and unmapped when freed, so pages of dead tensors do not stay resident. glibc does so only where
  no free block of the heap is large enough, and capture and planning leave many behind: tensors
  that land there cost nothing where the block is resident, and stay resident where it is not.
  Readings were off by up to 11 MB either way. So
- `plug` takes all free blocks of the heap that could hold a tensor of 64 KiB;
- `malloc_trim` hands back what smaller tensors left, so that a call is charged for these too;
- a warm-up: the first run of a process adds 7 to 16 MB that stay (kernels' code pages, thread
  pools, workspaces that libraries keep).

What is left is noise: a call that does nothing reads as 0 to 4 KiB (`noise()`). The setting slows
allocations down, so time is measured in another process. Where peaks are small, `allocated` counts
what torch's allocator hands out, to the byte; it sees no scratch memory of the libraries below it.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from quire.errors import QuireError

SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}
PLUG = 32 << 10  # bytes; with malloc's own few on top, half of the smallest block that is mapped


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """This process's environment for a child that measures memory."""
    return {**os.environ, **SETTINGS}


def prepared() -> bool:
    """Whether this process was started in `environment()`, without which a rise says little."""
    return all(os.environ.get(key) == value for key, value in SETTINGS.items())


def peak_rise(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `call()` allocates at its worst moment above what is allocated before it, its
    result included, weights and inputs not. `call` runs twice: the first run warms up.
    """
    call()
    return cuda_rise(call, device)[0] if device.type == "cuda" else rise(call)[0]


def rise(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the resident set rose above where it stood, at the highest, and the result.

    The result is alive when the mark is read: outputs are counted. Raises QuireError on systems
    without /proc.
    """
    gc.collect()
    plug()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise QuireError(
            f"the peak of memory cannot be read: {error}",
            allowed="Linux, with /proc/self/clear_refs writable",
            fix="plan without measuring, as quire chunk --plan-only does",
        ) from error
    before = _status("VmRSS")
    result = call()
    return max(0, _status("VmHWM") - before), result


def cuda_rise(call: Callable[[], Any], device: torch.device | None = None) -> tuple[int, Any]:
    """The same on a GPU, the current one if none is given, from the allocator's own count."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, result


def allocated(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that torch's CPU allocator had handed out above the start, at the highest, and the
    result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    profiler: Any = recorded.profiler
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]
    live = top = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        live += nbytes
        top = max(top, live)
    return top, result


def plug(limit: int = 1 << 17) -> int:
    """Take every free block of the heap larger than 32 KiB, for good; the bytes taken.

    They are not written, so they cost no memory. Growth of the heap tells that none is left. C
    libraries other than glibc 2.33 or later cannot tell: 0 there.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.mallinfo2.restype = _Heap
    size = libc.mallinfo2().arena
    for taken in range(limit):
        libc.malloc(PLUG)
        if libc.mallinfo2().arena > size:
            return taken * PLUG
    return limit * PLUG


def noise(runs: int = 5) -> int:
    """The largest rise over calls that allocate nothing, in bytes."""
    return max(rise(lambda: None)[0] for _ in range(runs))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
