"""`quire prove` and `quire verify`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

import quire
from quire.budget import parse_memory
from quire.capture.options import Options
from quire.capture.target import Target, load_target
from quire.cli_options import Attn, Batch, Device, Dtype, Memory, TargetArgument, err, out
from quire.errors import QuireError
from quire.report.progress import Bar
from quire.report.units import seconds_text
from quire.verify.certificate import Certificate

COLOURS = {"proved": "green", "unknown": "yellow", "refuted": "red"}


class Solver(StrEnum):
    Z3 = "z3"
    CVC5 = "cvc5"
    BOTH = "both"


def verify(
    certificate: Annotated[Path, typer.Argument(help="A file that Certificate.save wrote.")],
    solver: Annotated[Solver, typer.Option(help="Who checks every claim again.")] = Solver.Z3,
) -> None:
    """Check a certificate again, from its file alone."""
    found = quire.verify(certificate, solver.value)
    out.print(escape(found.explain()), style=COLOURS[found.verdict], highlight=False)
    out.print(", ".join(f"{name} {number}" for name, number in found.solvers.items()))
    if found.verdict != "proved":
        raise typer.Exit(1)


def prove(
    target: TargetArgument,
    seq: Annotated[str | None, typer.Option(help="A length, or a range such as 2..65536.")] = None,
    batch: Batch = None,
    memory: Memory = None,
    attn: Attn = None,
    dtype: Dtype = None,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Write the certificate here.")
    ] = None,
) -> None:
    """Plan a model and prove the plan, for every length in a range; nothing is run."""
    low, high = parse_range(seq)
    options = Options(high, batch, attn.value if attn else None, dtype, device)
    with Bar(err) as bar:
        bar.step("loading the model", 0, 0)
        loaded = load_target(target, options)
        shapes = dynamic_shapes(loaded) if low is not None else None
        small = quire.chunk(
            loaded.model,
            loaded.args,
            loaded.kwargs,
            memory=parse_memory(memory),
            dynamic_shapes=_from(shapes, low, high),
            allow_unknown=True,
            progress=bar.step,
        )
    found = small.certificate
    assert found is not None
    out.print(f"[bold]{escape(loaded.name)}[/]", highlight=False)
    print_verdict(found)
    if output is not None:
        found.save(output)
        out.print(f"wrote {output}", highlight=False, soft_wrap=True)
    if found.verdict != "proved":
        raise typer.Exit(1)


def print_verdict(found: Certificate) -> None:
    """The verdict in its colour, what it rests on, and how long it took."""
    text = found.explain().splitlines()
    out.print(escape(text[0]), style=COLOURS[found.verdict], highlight=False, soft_wrap=True)
    for line in text[1:]:
        out.print(escape(line), style="dim", highlight=False, soft_wrap=True)
    out.print(f"in {seconds_text(found.seconds)}", style="dim")


def parse_range(text: str | None) -> tuple[int | None, int | None]:
    """`"2..64"` as (2, 64), `"64"` as (None, 64): one length."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(?:(\d+)\.\.)?(\d+)", text)
    if found is None:
        raise QuireError(f"--seq {text}", allowed="a length, or a range such as 2..65536")
    low = None if found[1] is None else int(found[1])
    if low is not None and low >= int(found[2]):
        raise QuireError(f"--seq {text} holds no range", allowed="LOW..HIGH with LOW < HIGH")
    return low, int(found[2])


def _from(shapes: Any, low: int | None, high: int | None) -> Any:
    """`shapes` with each free dim in the range asked for."""
    if low is None:
        return shapes

    def ranged(dim: Any) -> Any:
        return Dim(dim.__name__, min=low, max=high) if isinstance(dim, Dim) else dim

    return pytree.tree_map(ranged, shapes)


def dynamic_shapes(target: Target) -> Any:
    if isinstance(target.model, ExportedProgram):
        raise QuireError(
            "--dynamic does not apply here: a .pt2 keeps the dynamic dims it was exported with",
            where=target.name,
            fix="leave out --dynamic; export the model again with dynamic_shapes to free a dim",
        )
    if target.dynamic_shapes is None:
        raise QuireError(
            "--dynamic: this target does not say which dim is the sequence",
            where=target.name,
            allowed="Hugging Face models of text, and functions that return "
            "(model, args, kwargs, dynamic_shapes)",
            fix="leave out --dynamic, or return dynamic_shapes as the fourth value",
        )
    return target.dynamic_shapes
