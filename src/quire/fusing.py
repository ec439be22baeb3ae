"""The fused path: capture → lower → schedule → render → build → bind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.capture.decode import capture_decode
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.errors import CaptureError, QuireError
from quire.fused import Fused
from quire.kernel.compile import KernelPlan, compile_program
from quire.kernel.ir import BLOCKS
from quire.runtime.native import NativeKernel
from quire.verify.certificate import Certificate
from quire.verify.claims import RefutedError
from quire.verify.kernel.prove import prove_kernel
from quire.verify.kernel.tables import Tables

PREFILL_MEMORY = 256 << 20
"""Bytes of intermediates that a prompt's part may need, by default."""

Progress = Callable[[str, int, int], None]

SCHEMES = {None: "", **{name: name for name in BLOCKS}}


def fuse(
    model: nn.Module | ExportedProgram | str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    max_length: int = 4096,
    max_batch: int = 8,
    weights: str | None = None,
    sampling: bool = False,
    threads: int | None = None,
    dynamic_shapes: Any = None,
    dims: Mapping[str, int] | None = None,
    prefill_memory: int = PREFILL_MEMORY,
    verify: bool = True,
    exact: bool = False,
    progress: Progress = lambda *_: None,
) -> Any:
    """`model` as one native function on this machine's CPU.

    A Hugging Face causal LM gives a `FusedCausalLM`: `generate` as users know it, one kernel call
    a token, for up to `max_batch` rows of up to `max_length` tokens. Any other module (with the
    `args` and `kwargs` of one call), a `torch.export` program, or a `.pt2` or `.onnx` file gives a
    `Fused` to be called like the original; `dynamic_shapes` is spelled as for torch.export and
    needs an upper end for each dim. `dims` gives the largest size of each dim that an ONNX file
    names without a size.

    `weights`: None as they are; "lossless", a copy of bf16 weights in 12.5 bits each, with the same
    values; "int8" or "int4", a scale for each 32 (the kernel then equals the graph with the
    dequantised weights). `sampling`: of a causal LM, the kernel picks the next token
    too, and the result has `sample`. `threads`: default all that this process may use.

    With `verify` the emitted source is proved to compute the captured graph; the result's
    `certificate` says "proved", or "unknown" with the reason. Without, it is None. With `exact` the
    whole kernel is run in a finite field beside the graph as well, up to 8 million weights.

    Raises CaptureError, MissingRuleError, QuireError (no compiler), or RefutedError.
    """
    if weights not in SCHEMES:
        allowed = ", ".join(map(repr, SCHEMES))
        raise QuireError(f"weights={weights!r}", allowed=allowed)
    scheme = SCHEMES[weights]
    if isinstance(model, str | Path):
        model = _from_file(Path(model), dims)
    if isinstance(model, nn.Module) and not args and not kwargs:
        if not (hasattr(model, "generate") and hasattr(model, "config")):
            raise CaptureError(
                f"no arguments for a call of {type(model).__name__}",
                allowed="a Hugging Face causal LM alone, or a module with the inputs of one call",
                fix="quire.fuse(model, args, kwargs)",
            )
        if max_length < 2 or max_batch < 1:
            raise QuireError(
                f"max_length={max_length}, max_batch={max_batch}", allowed="2 and 1 up"
            )
        progress("capturing a decode step", 0, 0)
        step = capture_decode(model, max_length, max_batch, sampling)
        _check_weights(step.program, scheme)
        progress("planning phases", 0, 0)
        longest = {s.name: max_batch for s in step.program.symbols}
        plan = compile_program(step.program, scheme, type(model).__name__, longest)
        certificate = certified(plan, progress, exact) if verify else None
        progress("compiling C++", 0, 0)
        kernel = NativeKernel(plan, threads=threads)
        # transformers is optional; whoever holds such a model has it.
        generate = importlib.import_module("quire.runtime.generate")
        return generate.FusedCausalLM(
            model, step, kernel, prefill_memory=prefill_memory, certificate=certificate
        )
    if sampling:
        raise QuireError(
            f"sampling=True for {type(model).__name__} with inputs",
            allowed="a Hugging Face causal LM alone",
        )
    progress("capturing", 0, 0)
    exported = (
        model if isinstance(model, ExportedProgram) else export(model, args, kwargs, dynamic_shapes)
    )
    program = from_exported(exported, writes=True)
    for s in program.symbols:
        if s.hi is None:
            raise CaptureError(
                f"the dim {s.name} of {s.source.name} has no upper end",
                allowed="dims with a range",
                fix="dynamic_shapes with torch.export.Dim(name, max=…)",
            )
    _check_weights(program, scheme)
    progress("planning phases", 0, 0)
    plan = compile_program(program, scheme, type(model).__name__)
    certificate = certified(plan, progress, exact) if verify else None
    progress("compiling C++", 0, 0)
    return Fused(program, NativeKernel(plan, threads=threads), certificate)


def _check_weights(program: Program, scheme: str) -> None:
    dtypes = {weight.dtype for weight in program.state.values() if weight.is_floating_point()}
    if scheme == "lossless" and torch.bfloat16 not in dtypes:
        raise QuireError(
            f"weights='lossless' of weights in {', '.join(sorted(map(str, dtypes))) or 'no dtype'}",
            allowed="bf16 weights",
            fix="load the model with dtype='bfloat16', or leave weights out",
        )


def tables_of(plan: KernelPlan) -> Tables:
    """What a kernel's source is run with, as the prover reads it."""
    rendered = plan.rendered
    return Tables(
        slots=tuple(b for row in rendered.slots for b in row),
        offsets=plan.arena.offsets,
        arena=plan.arena.size,
        repeats=rendered.repeats,
        scratch=rendered.scratch,
        longest={str(s): n for s, n in plan.most.items()},
        origin=plan.lowered.origin,
        private=rendered.private,
        holds=plan.lowered.holds,
    )


def certified(
    plan: KernelPlan, progress: Progress = lambda *_: None, exact: bool = False
) -> Certificate:
    """The certificate of a kernel. Raises RefutedError, with a script that fails when run if a
    call that differs was found."""
    progress("proving", 0, 0)
    found = prove_kernel(plan.program, plan.source, tables_of(plan), exact=exact)
    if found.verdict == "refuted":
        raise RefutedError(
            f"the kernel does not compute the model: {found.reason}",
            certificate=found,
            witness=next((c.rule for c in found.claims if c.kind == "witness"), ""),
            fix="this is a fault of Quire's: please report it; quire.chunk does not need kernels",
        )
    return found


def _from_file(path: Path, dims: Mapping[str, int] | None) -> ExportedProgram:
    if not path.is_file():
        raise QuireError("no such file", where=str(path), fix="check the path")
    if path.suffix == ".pt2":
        return torch.export.load(path)
    if path.suffix == ".onnx":
        try:
            # onnx is optional; whoever holds such a file can install it.
            onnx_graph = importlib.import_module("quire.capture.onnx_graph")
        except ModuleNotFoundError as error:
            raise QuireError(
                f"reading ONNX needs the package {error.name}",
                where=str(path),
                fix="pip install 'quire[onnx]'",
            ) from error
        return onnx_graph.import_onnx(path, dims)
    raise QuireError(
        f"a {path.suffix or 'nameless'} file",
        where=str(path),
        allowed=".pt2 and .onnx files",
        fix="export it",
    )
