"""Takes a machine's figures: small benchmarks, minima over repeats, six seconds in all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F

from quire.cost.rates import ATTENTION_ROWS, GEMM_ROWS, PAGE


@attrs.define
class _Clock:
    """Times calls by their minimum over repeats, within a total allowance of wall time."""

    device: torch.device
    threads: int
    ends: float
    busy: bool = False
    """Whether others held the cores during a measurement."""

    def seconds(
        self, call: Callable[[], Any], *, inner: int = 1, share: float = 0.08, scales: bool = False
    ) -> float:
        """The least time of one `call` found in `share` seconds.

        On a CPU, one thread is tried as well. Where others hold the cores, threads wait for each
        other and the minimum over many repeats still is too long, while one thread has undisturbed
        slices; work that `scales` is then taken to speed up by 0.8 per thread.
        """
        if self.device.type == "cuda" or self.threads == 1:
            return self._least(call, inner, share)[0]
        together, cores = self._least(call, inner, share)
        torch.set_num_threads(1)
        alone = self._least(call, inner, share / 2)[0]
        torch.set_num_threads(self.threads)
        if scales and cores < 0.85 * self.threads and alone < 0.6 * self.threads * together:
            self.busy = True
            return min(together, alone / (0.8 * self.threads))
        return min(together, alone)

    def _least(self, call: Callable[[], Any], inner: int, share: float) -> tuple[float, float]:
        """The least time, and how many cores this process held meanwhile."""
        call()
        begin, held = time.perf_counter(), time.process_time()
        best, stop = float("inf"), min(begin + share, self.ends)
        for _ in range(1000):
            best = min(best, self._once(call, inner) / inner)
            if time.perf_counter() > stop:
                break
        held = time.process_time() - held
        return max(best, 1e-9), held / (time.perf_counter() - begin)

    def _once(self, call: Callable[[], Any], inner: int) -> float:
        if self.device.type == "cuda":
            # Events on the stream, so that the host's own latency is not in the figure unless
            # the device waits for it, which is what a program meets as well.
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(inner):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        return time.perf_counter() - begin


def figures(place: torch.device, threads: int, seconds: float = 7.0) -> dict[str, Any]:
    """The fields of `Machine` from `read_bandwidth` on, for `place` with `threads` threads.

    Takes up to `seconds` (and, however few those are, two calls of each kernel) and 200 MB.
    torch's number of threads is as before when it returns.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), _on(place):
            clock = _Clock(place, threads, time.perf_counter() + seconds)
            found = {**_call_times(clock), **_memory(clock), **_compute(clock)}
            return {**found, "busy": clock.busy}
    finally:
        torch.set_num_threads(before)


def _on(place: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()


def _call_times(clock: _Clock) -> dict[str, Any]:
    """Seconds of a call on tensors so small that nothing else counts."""
    at = clock.device
    x, y, wide = (torch.ones(shape, device=at) for shape in ((8,), (8, 8), (1, 8, 4, 4)))
    heads, filters = torch.ones(1, 1, 8, 8, device=at), torch.ones(8, 8, 3, 3, device=at)
    calls: dict[str, Callable[[], Any]] = {
        "dispatch": lambda: torch.add(x, x, out=x),
        "view": lambda: y.narrow(0, 2, 3),
        "gemm": lambda: torch.addmm(x, y, y),
        "norm": lambda: F.layer_norm(x, (8,), x, x),
        "attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
        "conv": lambda: F.conv2d(wide, filters, None, 1, 1),
    }
    return {
        f"{name}_seconds": clock.seconds(call, inner=50, share=0.04) for name, call in calls.items()
    }


def _memory(clock: _Clock) -> dict[str, Any]:
    """Bandwidths outside and inside the last cache, and the price of fresh pages."""
    at, cache = clock.device, _cache_bytes(clock.device)
    # Four caches, and within limits: on a virtual machine the cache may be as large as its host's.
    count = min(max(2 * cache, 64 << 20), 256 << 20) // 4
    x, y = torch.ones(count, device=at), torch.ones(count, device=at)
    copy = clock.seconds(lambda: y.copy_(x), share=0.2)
    read = clock.seconds(x.sum, share=0.2)
    small = min(max(cache // 16, 1 << 18), 4 << 20) // 4
    a, b = x[:small], y[:small]
    cached = clock.seconds(lambda: b.copy_(a), inner=4)
    found = {
        # A sum may be held up by arithmetic: reading is at least as fast as copying.
        "read_bandwidth": max(4 * count / read, 8 * count / copy),
        "copy_bandwidth": 8 * count / copy,
        "cache_bytes": cache,
        "cache_bandwidth": max(8 * small / cached, 8 * count / copy),
        "fault_seconds": 0.0,
    }
    if at.type == "cpu":
        # 40 MiB: above the largest threshold (32 MiB) from which malloc takes fresh mappings.
        size = 10 << 20
        fresh = clock.seconds(lambda: torch.empty(size).fill_(1.0), share=0.2)
        again = clock.seconds(lambda: x[:size].fill_(1.0))
        found["fault_seconds"] = max(fresh - again, 0.0) / (4 * size / PAGE)
    return found


def _compute(clock: _Clock) -> dict[str, Any]:
    at = clock.device
    image, filters = torch.rand(1, 64, 48, 48, device=at), torch.rand(64, 64, 3, 3, device=at)
    conv = clock.seconds(lambda: F.conv2d(image, filters, None, 1, 1), scales=True)
    elements = (1 << 20) if at.type == "cpu" else (1 << 24)
    x = torch.rand(elements // 1024, 1024, device=at)
    y = torch.empty_like(x)
    functions = (
        lambda: torch.exp(x, out=y),
        lambda: torch.tanh(x, out=y),
        lambda: torch._C._nn.gelu(x, out=y),
    )
    slowest = max(clock.seconds(f, scales=True) for f in functions)
    norm = clock.seconds(lambda: F.layer_norm(x, (1024,)), scales=True)
    return {
        "gemm_float32": _gemm(clock, torch.float32),
        "gemm_bfloat16": _gemm(clock, torch.bfloat16),
        "attention_float32": _attention(clock, torch.float32),
        "attention_bfloat16": _attention(clock, torch.bfloat16),
        "conv_flops": 2 * 9 * 64 * 64 * 48 * 48 / conv,
        "transcendental_rate": elements / slowest,
        "reduce_rate": 8 * elements / norm,
    }


def _gemm(clock: _Clock, dtype: torch.dtype) -> tuple[float, ...]:
    """FLOP/s of `rows`×768 by 768×768 (milliseconds: short enough to run undisturbed once in a
    while on a busy machine); eight times as wide on a GPU."""
    k = 768 if clock.device.type == "cpu" else 6144
    weight, x = (torch.rand(n, k, device=clock.device).to(dtype) for n in (k, GEMM_ROWS[-1]))
    y = torch.empty_like(x)
    return _rising(
        clock,
        GEMM_ROWS,
        2.0 * k * k,
        lambda rows: lambda: torch.mm(x[:rows], weight.t(), out=y[:rows]),
    )


def _attention(clock: _Clock, dtype: torch.dtype) -> tuple[float, ...]:
    """FLOP/s of SDPA of `rows` queries on 1024 keys, heads of width 64, one or more a thread."""
    heads, keys, width = max(2, clock.threads) if clock.device.type == "cpu" else 64, 1024, 64
    q, k, v = (torch.rand(1, heads, keys, width, device=clock.device).to(dtype) for _ in range(3))
    return _rising(
        clock,
        ATTENTION_ROWS,
        4.0 * heads * keys * width,
        lambda rows: lambda: F.scaled_dot_product_attention(q[:, :, :rows], k, v),
    )


def _rising(
    clock: _Clock,
    at: tuple[int, ...],
    flops_per_row: float,
    make: Callable[[int], Callable[[], Any]],
) -> tuple[float, ...]:
    """FLOP/s at each row count, rising: what falls is noise.

    A dtype without hardware support may be a thousand times slower: the rest is taken to be like
    the last once one call needs a quarter of a second.
    """
    found: list[float] = []
    seconds = 0.0
    for rows in at:
        if seconds < 0.25:
            seconds = clock.seconds(make(rows), scales=True)
            found.append(max(flops_per_row * rows / seconds, *found[-1:], 0.0))
        else:
            found.append(found[-1])
    return tuple(found)


def _cache_bytes(place: torch.device) -> int:
    """Bytes of the last-level cache; 16 MiB where the system does not say."""
    if place.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(place), "L2_cache_size", 16 << 20))
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with suppress(OSError, ValueError):
            text = path.read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
            sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=16 << 20)
