"""Measured peak memory of one call.

On a CPU it is the rise of the resident set, so it belongs in a fresh process with
`MALLOC_MMAP_THRESHOLD_` set (see `environment`): otherwise malloc keeps freed memory and the
rise says little. That setting slows the call down, so time is measured elsewhere.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MMAP_THRESHOLD = 65536  # bytes; larger blocks go back to the system when freed
RESET_PEAK = "5"  # see proc(5), clear_refs


def environment() -> dict[str, str]:
    """This process's environment for a child that measures memory."""
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}


def peak_rise(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `call()` allocates at its worst moment above what is allocated before it, its
    result included, weights and inputs not. `call` runs twice: the first run warms up.
    """
    call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)  # so that the call is charged for small blocks too
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        before = _resident("VmRSS")
        result = call()
        peak = _resident("VmHWM")
    del result
    return peak - before


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
