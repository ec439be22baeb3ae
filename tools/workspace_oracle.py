"""Measures the scratch memory of CPU kernels and compares it with `cost.workspace`.

    python tools/workspace_oracle.py            allocator's and resident-set peak, all cases
    python tools/workspace_oracle.py --fast     allocator's only, in this process
    python tools/workspace_oracle.py conv sdpa  the cases whose name contains one of these words

The first oracle is `torch.profiler` with `profile_memory=True`: the running maximum of the
allocator's events within one call, less the outputs. The second sees what bypasses that allocator
(oneDNN, MKL): the rise of the resident set over a warmed-up call in a fresh process (see
`quire.measure`), outputs subtracted. It is in pages and noisy: read it for what
exceeds a few hundred kB. A case fails if the bound is below a measurement, or, where more than
1 MiB is predicted, more than 10 % above the larger one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
from workspace_cases import CASES, LOOSE, OUTSIDE, Call

from quire.capture.program import Op, Operand, TensorInfo, Where
from quire.cost.workspace import workspace_bytes
from quire.measure import environment, rise

SLACK = 64 << 10
"""Bytes below which the two oracles are not told apart from noise."""

RSS_NOISE = 384 << 10
"""Bytes by which VmHWM may exceed the allocator's peak: pages, stacks, per-thread arenas."""


def op_of(call: Call) -> tuple[Op, list[TensorInfo]]:
    """The `Op` of a concrete call, with the facts of its operands."""
    target, args, kwargs = call
    graph = fx.Graph()
    operands: list[Operand] = []

    def bind(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            node = graph.placeholder(f"x{len(operands)}")
            operands.append(Operand(len(operands), node, info_of(value)))
            return operands[-1]
        return [bind(v) for v in value] if isinstance(value, list | tuple) else value

    arguments: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        given = (
            args[position]
            if position < len(args)
            else kwargs.get(argument.name, argument.default_value)
        )
        arguments[argument.name] = bind(given)
    node = graph.call_function(target, tuple(o.node for o in operands))
    outputs = tuple(info_of(t) for t in tensors_of(target(*args, **kwargs)))
    op = Op(node, target, arguments, tuple(operands), outputs, Where())
    return op, [o.info for o in operands]


def info_of(t: torch.Tensor) -> TensorInfo:
    return TensorInfo(tuple(t.shape), t.dtype, tuple(t.stride()), t.device)


def tensors_of(result: Any) -> list[torch.Tensor]:
    leaves: Iterable[Any] = result if isinstance(result, list | tuple) else [result]
    return [t for t in leaves if isinstance(t, torch.Tensor)]


def predicted(call: Call, threads: int) -> int:
    op, operands = op_of(call)
    return workspace_bytes(op, operands, op.outputs, threads)


def allocated(run: Callable[[], Any]) -> int:
    """Peak bytes that `run` allocates beyond what is left when it returns."""
    run()
    with (
        redirect_stderr(StringIO()),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof,
    ):
        result = run()
    kineto: Any = prof.profiler.kineto_results  # type: ignore[union-attr]
    events = [(e.start_ns(), e.nbytes()) for e in kineto.events() if e.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        live += change
        peak = max(peak, live)
    del result
    return peak - live


def resident(run: Callable[[], Any]) -> int:
    """Rise of VmHWM over a warmed-up `run`, less the bytes of its outputs (Linux)."""
    for _ in range(2):
        kept = sum(t.untyped_storage().nbytes() for t in tensors_of(run()))
    return max(0, rise(run)[0] - kept)


def call_of(name: str) -> tuple[Call, Callable[[], Any]]:
    torch.manual_seed(0)
    target, args, kwargs = call = CASES[name]()
    return call, lambda: target(*args, **kwargs)


def resident_of(names: list[str], threads: int) -> dict[str, int]:
    """`resident` of each case, each in a process of its own."""
    found = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, __file__, "--resident", "--threads", str(threads), "--", name],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout)
    return found


def verdict(bound: int, measured: int, rss: int | None = None, *, hidden: bool = False) -> str:
    """`hidden` memory does not show unless the resident set was measured."""
    real = max(measured, (rss or 0) - RSS_NOISE)
    if bound + SLACK < real:
        return "BELOW"
    if hidden and rss is None:
        return "ok"
    if bound > (1 << 20) and bound > 1.1 * max(measured, rss or 0) + SLACK:
        return "LOOSE"
    return "ok"


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.resident:
        _, run = call_of(options.words[0])
        print(json.dumps(resident(run)))
        return 0
    names = [n for n in CASES if not options.words or any(w in n for w in options.words)]
    rss = {} if options.fast else resident_of(names, options.threads)
    bad = 0
    print(f"{'case':44s} {'bound':>9s} {'alloc':>9s} {'resident':>9s}  kB")
    for name in names:
        call, run = call_of(name)
        bound, measured = predicted(call, options.threads), allocated(run)
        word = verdict(bound, measured, rss.get(name), hidden=name in OUTSIDE)
        bad += word != "ok" and not (word == "LOOSE" and name in LOOSE)
        shown = f"{rss[name] / 1e3:9.0f}" if name in rss else "        –"
        print(f"{name:44s} {bound / 1e3:9.0f} {measured / 1e3:9.0f} {shown}  {word}")
    print(f"{len(names)} cases, {bad} outside")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
