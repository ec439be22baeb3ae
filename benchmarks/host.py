"""The machine a measurement ran on, and its limits measured in the same run."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from typing import Any

import diffusers
import psutil
import torch
import transformers


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """CPU, cores, memory and versions. What stands in every result file."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def slug(device: str = "cpu") -> str:
    """The hardware as part of a file name: `intel-xeon-2.50ghz-2c`."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else _cpu()
    name = re.sub(r"\((r|tm)\)|processor|cpu|@", " ", name, flags=re.IGNORECASE).lower()
    words = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    return words if device == "cuda" else f"{words}-{os.cpu_count()}c"


def _best(work: Callable[[], object], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def limits() -> dict[str, float]:
    """What the machine can do at most: GEMM rate and read bandwidth, both in fp32."""
    side, words = 1024, 1 << 26
    a, b = torch.randn(side, side), torch.randn(side, side)
    out = torch.empty(side, side)
    big = torch.ones(words)
    gemm = _best(lambda: torch.mm(a, b, out=out))
    read = _best(big.sum)
    return {"gemm_gflops": 2 * side**3 / gemm / 1e9, "read_gb_s": 4 * words / read / 1e9}
