"""How much memory one call takes: the rise of the resident set, exact to some ten kilobytes.

Linux keeps the high-water mark of a process's resident set. Writing 5 to `/proc/self/clear_refs`
sets it back to the present size, so that its rise over one call is that call's peak, however short
the peak was: nothing is sampled. Three things make the number mean bytes of tensors:

- `MALLOC_MMAP_THRESHOLD_=65536` in the environment: every tensor of 64 KiB or more is mapped when
  made and unmapped when freed, so pages of dead tensors do not stay resident;
- `malloc_trim` before each call hands back what small tensors left in the heap, so that a call is
  charged for the small ones too;
- a warm-up: the first run of a process adds 7 to 16 MB that stay (kernels' code pages, thread
  pools, workspaces that libraries keep).

What is left is noise. A call that does nothing reads as 0 to 4 KiB (`noise()`); small models read
up to 1 MiB above what they allocate, for tensors below 64 KiB share pages with others and libraries
keep scratch of their own. Where peaks are that small, `allocated` counts what torch's allocator
hands out, to the byte, and sees no scratch.
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


def rise(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the resident set rose above where it stood, at the highest, and the result.

    The result is alive when the mark is read: outputs are counted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
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
