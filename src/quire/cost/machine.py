"""What the hardware does per second, measured once and kept in a file.

All figures are minima over repeats, so that a busy machine distorts them little; FLOP/s count
multiply and add apart, bandwidths count bytes read plus bytes written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs
import torch

from quire.cost.measure import figures
from quire.cost.rates import ATTENTION_ROWS, GEMM_ROWS, PAGE, Rates, by_dtype


@attrs.frozen
class Machine:
    """One device as the cost model sees it. Bandwidths in bytes/s, times in seconds.

    `gemm_*` and `attention_*` are FLOP/s at `GEMM_ROWS` and `ATTENTION_ROWS` rows.
    """

    name: str
    device: str
    threads: int
    read_bandwidth: float
    copy_bandwidth: float
    cache_bytes: int
    cache_bandwidth: float
    fault_seconds: float
    """Time to touch a fresh 4 KiB page for the first time."""
    dispatch_seconds: float
    view_seconds: float
    gemm_seconds: float
    norm_seconds: float
    attention_seconds: float
    conv_seconds: float
    gemm_float32: tuple[float, ...]
    gemm_bfloat16: tuple[float, ...]
    attention_float32: tuple[float, ...]
    attention_bfloat16: tuple[float, ...]
    conv_flops: float
    transcendental_rate: float
    """Elements/s of the slowest of exp, tanh and gelu, in cache."""
    reduce_rate: float
    """FLOP/s of a normalisation in cache, 8 FLOP per element."""
    busy: bool = False
    """Whether other programs held the cores while this was measured: estimates, then."""

    @cached_property
    def rates(self) -> Rates:
        """The same figures as `time.op_seconds` looks them up."""
        write = 2 / self.copy_bandwidth - 1 / self.read_bandwidth
        return Rates(
            read=1 / self.read_bandwidth,
            write=max(write, 0.5 / self.copy_bandwidth),
            cache_bytes=float(self.cache_bytes),
            cache=1 / self.cache_bandwidth,
            fault=self.fault_seconds / PAGE,
            overhead={
                "gemm": self.gemm_seconds,
                "attention": self.attention_seconds,
                "conv": self.conv_seconds,
                "reduce": self.norm_seconds,
                "view": self.view_seconds,
                "pointwise": self.dispatch_seconds,
                "transcendental": self.dispatch_seconds,
                "copy": self.dispatch_seconds,
            },
            gemm=by_dtype(GEMM_ROWS, self.gemm_float32, self.gemm_bfloat16),
            attention=by_dtype(ATTENTION_ROWS, self.attention_float32, self.attention_bfloat16),
            conv=1 / self.conv_flops,
            transcendental=1 / self.transcendental_rate,
            reduce=1 / self.reduce_rate,
        )

    def table(self) -> list[tuple[str, str]]:
        """Rows (what, value with unit) for people."""
        busy = ", measured while other programs ran" if self.busy else ""
        rows = [
            ("machine", self.name),
            ("device", f"{self.device}, {self.threads} threads" + busy),
            ("memory read", f"{self.read_bandwidth / 1e9:.1f} GB/s"),
            ("memory copy", f"{self.copy_bandwidth / 1e9:.1f} GB/s"),
            ("cache", f"{self.cache_bytes / 2**20:.1f} MiB"),
            ("in cache", f"{self.cache_bandwidth / 1e9:.1f} GB/s"),
            ("fresh page", f"{self.fault_seconds * 1e6:.2f} µs per 4 KiB"),
        ]
        calls = ("dispatch", "view", "gemm", "norm", "attention", "conv")
        rows += [(f"call: {c}", f"{getattr(self, c + '_seconds') * 1e6:.1f} µs") for c in calls]
        for what, at in (("gemm", GEMM_ROWS), ("attention", ATTENTION_ROWS)):
            for dtype in ("float32", "bfloat16"):
                flops = getattr(self, f"{what}_{dtype}")
                rows += [
                    (f"{what} {dtype}, {r} rows", f"{f / 1e9:.0f} GFLOP/s")
                    for r, f in zip(at, flops, strict=True)
                ]
        return [
            *rows,
            ("conv float32", f"{self.conv_flops / 1e9:.0f} GFLOP/s"),
            ("exp, tanh, gelu", f"{self.transcendental_rate / 1e9:.2f} G elements/s"),
            ("norms", f"{self.reduce_rate / 1e9:.1f} GFLOP/s"),
        ]


REFERENCE = Machine(
    name="reference",
    device="cpu",
    threads=2,
    read_bandwidth=12e9,
    copy_bandwidth=11e9,
    cache_bytes=32 << 20,
    cache_bandwidth=48e9,
    fault_seconds=1.5e-6,
    dispatch_seconds=1.5e-6,
    view_seconds=1e-6,
    gemm_seconds=4e-6,
    norm_seconds=4e-6,
    attention_seconds=20e-6,
    conv_seconds=30e-6,
    gemm_float32=(18e9, 90e9, 150e9, 170e9, 180e9),
    gemm_bfloat16=(18e9, 33e9, 38e9, 40e9, 40e9),
    attention_float32=(10e9, 100e9, 120e9, 122e9, 135e9, 140e9, 142e9),
    attention_bfloat16=(2e9, 90e9, 115e9, 117e9, 128e9, 132e9, 134e9),
    conv_flops=150e9,
    transcendental_rate=2.5e9,
    reduce_rate=10e9,
)
"""A modest two-core machine, fixed, so that plans made with it are the same everywhere."""


def measure_machine(
    device: str = "cpu", threads: int | None = None, seconds: float = 7.0
) -> Machine:
    """Measures `device` with `threads` threads (CPU; default: torch's own number).

    It takes about `seconds`: with fewer, the minima are over fewer repeats.
    """
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", place.index or 0)
    count = threads or torch.get_num_threads()
    return Machine(
        name=_name_of(place), device=place.type, threads=count, **figures(place, count, seconds)
    )


def _name_of(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} × {os.cpu_count()}"
    return f"{platform.processor() or platform.machine()} × {os.cpu_count()}"


# Keeping --------------------------------------------------------------------------------------


BUSY_LASTS = 3600.0
"""Seconds after which figures taken on a busy machine are measured again."""


def cache_file(device: str, threads: int) -> Path:
    """Where the figures of this host are kept: `$QUIRE_CACHE`, or `~/.cache/quire`."""
    root = os.environ.get("QUIRE_CACHE") or Path.home() / ".cache" / "quire"
    place = torch.device(device)
    host = hashlib.sha256(f"{platform.node()} {_name_of(place)}".encode()).hexdigest()[:12]
    kind = device.replace(":", "")
    return Path(root) / f"machine-{host}-{kind}-{threads}-{torch.__version__}.json"


@lru_cache(maxsize=8)
def _machine(device: str, threads: int, path: Path) -> Machine:
    # An unreadable or outdated file is measured anew: the figures can always be had again.
    with suppress(OSError, ValueError, TypeError, AttributeError):
        stored = json.loads(path.read_text())
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        found = Machine(**fields)
        if not found.busy or time.time() - path.stat().st_mtime < BUSY_LASTS:
            return found
    found = measure_machine(device, threads)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(attrs.asdict(found), indent=1))
        partial.replace(path)
    return found


def machine(device: str = "cpu", threads: int | None = None) -> Machine:
    """The figures of `device`, from the cache file; measured (a few seconds) if there is none."""
    count = threads or torch.get_num_threads()
    return _machine(device, count, cache_file(device, count))
