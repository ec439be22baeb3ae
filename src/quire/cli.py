"""The command line: `quire chunk`, `tradeoff`, `shard`, `prove`, `verify`, `machine`."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import attrs
import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch.utils import _pytree as pytree

import quire
from quire import cli_proof, cli_shard
from quire.budget import parse_budget, parse_memory
from quire.capture.options import Options
from quire.capture.target import Target, load_target
from quire.cli_options import (
    Attention,
    Attn,
    Batch,
    Device,
    Dtype,
    Dynamic,
    Memory,
    Seq,
    TargetArgument,
    err,
    out,
)
from quire.cli_proof import dynamic_shapes
from quire.errors import BudgetError, QuireError
from quire.fuse_cli import Files, compile_target, parse_dims
from quire.measure import environment, peak_rise
from quire.plan.plan import Plan
from quire.report.progress import Bar
from quire.report.text import print_plan
from quire.report.units import bytes_text, seconds_text

USER_ERROR = 2  # exit status

app = typer.Typer(
    name="quire",
    help="Run PyTorch models on long sequences within a byte budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


Command = TypeVar("Command", bound=Callable[..., Any])


def reported(command: Command) -> Command:
    """`command`, with a QuireError printed as what, where, allowed and fix instead of raised."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        # What torch logs when it fails is in the error, or is for its authors.
        before = logging.root.manager.disable
        if "TORCH_LOGS" not in os.environ:
            logging.disable(logging.ERROR)
        try:
            return command(*args, **kwargs)
        except QuireError as error:
            print_error(error)
            raise typer.Exit(USER_ERROR) from None
        finally:
            logging.disable(before)

    return run  # type: ignore[return-value]


def print_error(error: QuireError) -> None:
    err.print(f"[bold red]error[/] {escape(error.found)}", soft_wrap=True)
    parts = [("at", error.where), ("allowed", error.allowed), ("to fix", error.fix)]
    for name, text in parts:
        if text:
            err.print(f"  [bold]{name}[/]  {escape(text)}", soft_wrap=True)
    if isinstance(error, BudgetError):
        for tensor in error.binding:
            err.print(f"  [bold]binds[/]  {escape(tensor)}", soft_wrap=True)
        if isinstance(error.best, Plan):
            err.print(f"  [bold]best[/]  {bytes_text(error.best.peak_bytes)}", soft_wrap=True)


@app.callback(invoke_without_command=True)
def face(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if show_version:
        out.print(f"quire {version('quire')}, torch {torch.__version__}", highlight=False)
        raise typer.Exit


@app.command()
@reported
def chunk(
    target: TargetArgument,
    seq: Seq = None,
    batch: Batch = None,
    memory: Memory = None,
    attn: Attn = None,
    dtype: Dtype = None,
    device: Device = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Run once and write a Chrome trace for Perfetto here.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Write the result, a .pt2.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Plan; do not run the model.")
    ] = False,
    dynamic: Dynamic = False,
    verify: Annotated[bool, typer.Option(help="Prove the result equal to the model.")] = True,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Take a result that could not be proved.")
    ] = False,
) -> None:
    """Split a model's long dims into parts, so that it runs within a byte budget."""
    options = _options(seq, batch, attn, dtype, device)
    _writable(report, trace, output)
    parse_budget(parse_memory(memory), 1)  # refused before the work, not after it
    with Bar(err) as bar:
        bar.step("loading the model", 0, 0)
        loaded = load_target(target, options)
        shapes = dynamic_shapes(loaded) if dynamic else None
        started = time.perf_counter()
        small = quire.chunk(
            loaded.model,
            loaded.args,
            loaded.kwargs,
            memory=parse_memory(memory),
            dynamic_shapes=shapes,
            verify=verify,
            allow_unknown=allow_unknown,
            progress=bar.step,
        )
        took = time.perf_counter() - started
        measured = None
        if not plan_only and options.device != "meta":
            bar.step("running it", 0, 0)
            measured = _measure(small, loaded, target, options, memory, dynamic)
        if report is not None:
            bar.step("writing the report", 0, 0)
            small.report(report)
        if trace is not None:
            bar.step("tracing a run", 0, 0)
            small.trace(trace, *loaded.args, **loaded.kwargs)
        if output is not None:
            bar.step("writing the .pt2", 0, 0)
            small.save(output)
    shown = ", ".join(_shapes(loaded))
    out.print(f"[bold]{escape(loaded.name)}[/]  {escape(shown)}", highlight=False)
    done = "captured, planned and proved" if verify else "captured and planned"
    out.print(f"{done} in {seconds_text(took)}")
    print_plan(small.plan, out)
    if small.certificate is not None:
        cli_proof.print_verdict(small.certificate)
    if measured is not None:
        _print_measured(small.plan, measured)
    for path in (report, trace, output):
        if path is not None:
            out.print(
                f"wrote {path} ({bytes_text(path.stat().st_size)})", highlight=False, soft_wrap=True
            )


@app.command()
@reported
def tradeoff(
    target: TargetArgument,
    seq: Seq = None,
    batch: Batch = None,
    attn: Attn = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Show the peak against the predicted time, for a range of budgets."""
    with Bar(err) as bar:
        bar.step("loading the model", 0, 0)
        loaded = load_target(target, _options(seq, batch, attn, dtype, device))
        bar.step("planning for a range of budgets", 0, 0)
        points = quire.tradeoff(loaded.model, loaded.args, loaded.kwargs)
    table = Table(box=None, pad_edge=False, title=f"{loaded.name}: predicted", title_justify="left")
    for name in ("budget", "peak", "time"):
        table.add_column(name, justify="right")
    for point in points:
        budget = "none" if point.budget is None else bytes_text(point.budget)
        table.add_row(budget, bytes_text(point.peak_bytes), seconds_text(point.seconds))
    out.print(table)


app.command()(reported(cli_proof.prove))
app.command()(reported(cli_proof.verify))


@app.command()
@reported
def run(
    folder: Annotated[Path, typer.Argument(help="A local Hugging Face folder of a causal LM.")],
    prompt: Annotated[str, typer.Option(help="What the model continues.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 128,
    max_length: Annotated[int, typer.Option(help="Prompt and continuation, in tokens.")] = 2048,
    weights: Annotated[
        str | None, typer.Option(help="lossless: bf16 in 12.5 bits; int8 or int4: quantise.")
    ] = None,
    dtype: Dtype = "bfloat16",
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy.")] = False,
    threads: Annotated[int | None, typer.Option(help="Worker threads.")] = None,
) -> None:
    """Continue a prompt with the whole model as one native function a token."""
    # transformers is optional: only this command needs it.
    importlib.import_module("quire.decode_cli").stream(
        folder, prompt, max_new_tokens, max_length, weights, dtype, sample, threads, out, err
    )


@app.command()
@reported
def fuse(
    target: TargetArgument,
    seq: Seq = None,
    batch: Batch = None,
    attn: Attn = None,
    dtype: Dtype = None,
    weights: Annotated[
        str | None, typer.Option(help="lossless: bf16 in 12.5 bits; int8 or int4: quantise.")
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="NAME=SIZE: the largest size of an ONNX file's dim.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Write a shared library, weights inside.")
    ] = None,
    header: Annotated[Path | None, typer.Option(help="Write the library's C header.")] = None,
    source: Annotated[Path | None, typer.Option(help="Write the C++ source here.")] = None,
) -> None:
    """Compile a model's graph to one native function, and compare with the original."""
    _writable(output, header, source)
    compile_target(
        target,
        _options(seq, batch, attn, dtype, None),
        Files(output, header, source),
        weights=weights,
        dims=parse_dims(dim or ()),
        out=out,
        err=err,
    )


@app.command()
@reported
def machine() -> None:
    """Show what this machine was measured to do; measures it the first time."""
    with Bar(err) as bar:
        bar.step("measuring this machine", 0, 0)
        measured = quire.machine()
    table = Table(box=None, pad_edge=False, show_header=False)
    for field in attrs.fields(type(measured)):
        table.add_row(field.name.replace("_", " "), str(getattr(measured, field.name)))
    out.print(table)


app.command()(reported(cli_shard.shard))
app.command()(reported(cli_shard.mesh))


@app.command("measured-peak", hidden=True)
@reported
def measured_peak(
    target: TargetArgument,
    options: Annotated[str, typer.Option(help="Options as JSON.")],
    memory: Memory = None,
    dynamic: Dynamic = False,
) -> None:
    """Print the measured peak of the chunked module's call in this process, as JSON.

    `quire chunk` starts it as a fresh process, in the environment that `quire.measure` asks for.
    """
    loaded = load_target(target, Options(**json.loads(options)))
    small = quire.chunk(
        loaded.model,
        loaded.args,
        loaded.kwargs,
        memory=parse_memory(memory),
        dynamic_shapes=dynamic_shapes(loaded) if dynamic else None,
        verify=False,
    )
    with torch.inference_mode():
        peak = peak_rise(lambda: small(*loaded.args, **loaded.kwargs), _device_of(loaded))
    print(json.dumps({"peak_bytes": peak}))


@attrs.frozen
class Measured:
    peak_bytes: int
    seconds: float


def _options(
    seq: int | None,
    batch: int | None,
    attn: Attention | None,
    dtype: str | None,
    device: str | None,
) -> Options:
    return Options(seq, batch, attn.value if attn else None, dtype, device)


def _writable(*paths: Path | None) -> None:
    """Refuse a path that cannot be written before the work, not after it."""
    for path in paths:
        if path is not None and path.is_dir():
            raise QuireError("this is a folder", where=str(path), fix="name a file in it")
        if path is not None and not path.absolute().parent.is_dir():
            raise QuireError(
                "no such folder", where=str(path), fix=f"mkdir -p {path.absolute().parent}"
            )


def _shapes(target: Target) -> list[str]:
    """The inputs' names and shapes: they may be the target's own choice."""
    leaves = pytree.tree_leaves(target.args)
    named = [("", x) for x in leaves] + [(f"{k} ", x) for k, x in target.kwargs.items()]
    return [f"{name}{list(x.shape)}" for name, x in named if isinstance(x, torch.Tensor)]


def _device_of(target: Target) -> torch.device:
    weights = list(target.model.parameters())
    tensors = weights or pytree.tree_leaves((target.args, target.kwargs))
    return next((t.device for t in tensors if isinstance(t, torch.Tensor)), torch.device("cpu"))


def _measure(
    small: torch.nn.Module,
    loaded: Target,
    spec: str,
    options: Options,
    memory: str | None,
    dynamic: bool,
) -> Measured:
    """One call's peak and time. On a CPU the peak is from a fresh process (see quire.measure)."""
    device = _device_of(loaded)

    def call() -> Any:
        return small(*loaded.args, **loaded.kwargs)

    with torch.inference_mode():
        call()
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        if device.type == "cuda":
            return Measured(peak_rise(call, device), seconds)
    command = [sys.executable, "-m", "quire.cli", "measured-peak", spec]
    command += ["--options", json.dumps(attrs.asdict(options))]
    command += ["--memory", memory] if memory is not None else []
    command += ["--dynamic"] if dynamic else []
    child = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if child.returncode:
        raise QuireError(
            f"the process that measures memory ended with status {child.returncode}: "
            f"{child.stderr.strip()[-2000:]}",
            where=" ".join(command),
            fix="use --plan-only to leave the measurement out",
        )
    return Measured(json.loads(child.stdout.splitlines()[-1])["peak_bytes"], seconds)


def _print_measured(plan: Plan, measured: Measured) -> None:
    line = f"measured: peak {bytes_text(measured.peak_bytes)}"
    if plan.budget is not None:
        kept = measured.peak_bytes <= plan.budget
        line += ", [green]budget kept[/]" if kept else ", [bold red]budget not kept[/]"
    out.print(f"{line}, time {seconds_text(measured.seconds)}")


if __name__ == "__main__":
    app()
