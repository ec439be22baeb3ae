"""Arguments and options that commands share, and the consoles they print to."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)


class Attention(StrEnum):
    EAGER = "eager"
    SDPA = "sdpa"


TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A Hugging Face config.json or local folder, a torch.export .pt2 file, or "
        "package.module:function returning (model, args, kwargs).",
    ),
]
Seq = Annotated[
    int | None,
    typer.Option(help="Sequence length: tokens, an image's side, audio samples or frames."),
]
Batch = Annotated[int | None, typer.Option(help="Batch size.")]
Attn = Annotated[Attention | None, typer.Option(help="Attention of a Hugging Face model.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N, or meta: plan without weights.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Budget above weights and inputs, outputs included: 512MiB, 1.5GiB, a number of "
        "bytes, 0.2 (of the baseline's peak) or min. Without it: the fastest plan.",
    ),
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="One module for every length up to SEQ.")]
