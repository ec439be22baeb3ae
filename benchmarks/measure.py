"""One measurement: one model, one way of running it, in a process of its own.

    python -m benchmarks.measure '{"case": "gpt2", "mode": "chunk", "memory": 0.1, "what": "speed"}'

Memory and speed never share a process: the malloc setting that makes memory readable distorts
time up to threefold. `run` starts the process and reads its answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch.utils import _pytree as pytree

import quire
from benchmarks.tolerance import tolerance
from benchmarks.zoo import Attention, Built, Size, build
from quire.measure import SETTINGS, cuda_rise, noise, prepared, rise

Mode = Literal["graph", "eager", "sdpa", "chunk", "expert"]
MARK = "RESULT "
ROOT = Path(__file__).parents[1]


@attrs.frozen
class Job:
    """What to measure.

    `mode`: `eager` and `sdpa` call the model itself with that attention; `graph` runs the graph
    that `torch.export` makes of the `attn` model; `chunk` is Quire on that same graph within
    `memory`; `expert` is the model with its own `chunk_size`.
    `what`: `speed` (seconds), `memory` (bytes), `plan` (no call), `equal` (largest difference
    between the model's outputs and Quire's, over the model's largest output, and what is allowed).
    """

    case: str
    mode: Mode = "graph"
    what: Literal["memory", "speed", "plan", "equal"] = "speed"
    size: Size = "real"
    attn: Attention = "eager"
    length: int | None = None
    layers: int | None = None
    memory: int | float | str | None = None
    chunk_size: int | None = None
    runs: int = 3
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"

    def title(self) -> str:
        more = f" {self.memory}" if self.mode == "chunk" else ""
        more += f" {self.chunk_size}" if self.mode == "expert" else ""
        return f"{self.case} {self.mode}{more} {self.what}"


def _attention(job: Job) -> Attention:
    return "sdpa" if job.mode == "sdpa" else "eager" if job.mode == "eager" else job.attn


def prepare(job: Job, built: Built) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call to measure, and the facts known before it runs."""
    model, args, kwargs = built
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    if job.mode == "chunk":
        runner: Any = quire.chunk(model, args, kwargs, memory=job.memory)
        facts["plan"] = plan_facts(runner.plan)
    elif job.mode == "graph":
        with torch.no_grad():
            runner = torch.export.export(model, args, kwargs, strict=False).module()
    else:
        runner = model
        if job.mode == "expert":
            kwargs = {**kwargs, "chunk_size": job.chunk_size}
    facts["prepare_seconds"] = time.perf_counter() - start
    return lambda: runner(*args, **kwargs), facts


def plan_facts(plan: Any) -> dict[str, Any]:
    """The numbers of a plan that results keep."""
    return {
        "budget": plan.budget,
        "baseline_bytes": plan.baseline_bytes,
        "peak_bytes": plan.peak_bytes,
        "predicted_slowdown": plan.predicted_slowdown,
        "regions": len(plan.regions),
    }


def seconds(call: Callable[[], Any], runs: int, device: str) -> list[float]:
    """Wall time of each of `runs` calls, after one to warm up."""
    samples = []
    for turn in range(runs + 1):
        start = time.perf_counter()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            samples.append(time.perf_counter() - start)
        del result
    return samples


def peaks(call: Callable[[], Any], runs: int, device: str) -> list[int]:
    """Bytes that each of `runs` calls adds at its peak, after one to warm up."""
    measure = cuda_rise if device == "cuda" else rise
    call()
    return [measure(call)[0] for _ in range(runs)]


def difference(got: Any, want: Any) -> float:
    """The largest difference between two results, over the largest value wanted of that tensor.

    Raises AssertionError where structure, shapes or dtypes differ.
    """
    leaves = pytree.tree_flatten
    (a, spec_a), (b, spec_b) = leaves(got), leaves(want)
    assert spec_a == spec_b, f"results differ in structure: {spec_a} and {spec_b}"
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, torch.Tensor):
            assert x == y
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype), (x.shape, x.dtype, y.shape, y.dtype)
        if y.numel():
            gap = (x.double() - y.double()).abs().max().item()
            worst = max(worst, gap / max(y.double().abs().max().item(), 1e-30))
    return worst


def measure(job: Job) -> dict[str, Any]:
    """Do `job` in this process."""
    if job.what == "memory" and job.device == "cpu" and not prepared():
        raise RuntimeError(f"memory is measured with {SETTINGS} in the environment")
    torch.set_num_threads(job.threads)
    device = "hollow" if job.what == "plan" else job.device
    built = build(
        job.case, job.size, _attention(job), length=job.length, layers=job.layers, device=device
    )
    if job.dtype != "float32":
        built = _cast(built, getattr(torch, job.dtype))
    call, facts = prepare(job, built)
    if job.what == "plan":
        return facts
    with torch.inference_mode():
        if job.what == "speed":
            facts["samples"] = seconds(call, job.runs, job.device)
        elif job.what == "memory":
            facts["noise_bytes"] = noise() if job.device == "cpu" else 0
            facts["samples"] = peaks(call, job.runs, job.device)
        else:
            facts["difference"] = difference(call(), built.model(*built.args, **built.kwargs))
            facts["tolerance"] = allowed(built, job)
    return facts


def allowed(built: Built, job: Job) -> float:
    """The difference that dtype and reductions account for."""
    with torch.no_grad():
        exported = torch.export.export(*built, strict=False)
    return tolerance(exported.graph, getattr(torch, job.dtype))


def _cast(built: Built, dtype: torch.dtype) -> Built:
    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    args, kwargs = pytree.tree_map(cast, (built.args, built.kwargs))
    return Built(built.model.to(dtype), args, kwargs)


def run(job: Job, *, timeout: float = 3600) -> dict[str, Any]:
    """Do `job` in a fresh process. A failure comes back as `{"error": "Type: text"}`."""
    environment = dict(os.environ)
    for key in SETTINGS:
        environment.pop(key, None)
    if job.what == "memory":
        environment |= SETTINGS
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.measure",
        json.dumps(attrs.asdict(job)),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"TimeoutExpired: no answer within {timeout:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return {"error": f"exit {done.returncode}: {last[0]}"}


def main(text: str) -> None:
    """Entry of the process that measures: one job as JSON in, one line of JSON out."""
    try:
        answer = measure(Job(**json.loads(text)))
    except Exception as error:
        if os.environ.get("QUIRE_BENCH_TRACE"):
            raise
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
