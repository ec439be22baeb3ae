"""`quire shard`: the plan of a training step over devices that need not be there."""

from __future__ import annotations

import inspect
import json
import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh

from quire.capture.options import Options
from quire.capture.target import load_target
from quire.cost.collectives import TOPOLOGIES
from quire.cost.links import measure_mesh, mesh_file, save_mesh
from quire.errors import QuireError
from quire.plan.shard.head import only_losses
from quire.report.progress import Bar
from quire.report.shard_html import write_shard_html
from quire.report.units import seconds_text
from quire.sharding import (
    built,
    captured,
    device_budget,
    plan_shards,
    prove_built,
    topology_of,
)

out = Console()
err = Console(stderr=True)

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20}


def parse_length(text: str) -> int:
    """Tokens: a number, with K for 1024 and M for 1024². Raises QuireError."""
    found = re.fullmatch(r"(\d+)([KM]?)", text.strip().upper())
    if found is None:
        raise QuireError(f"--seq {text}", allowed="a number of tokens, or such as 128K and 1M")
    return int(found[1]) * _SUFFIXES[found[2]]


def parse_mesh(text: str) -> tuple[int, str]:
    """Devices and preset of their links: `8xH100`. Raises QuireError."""
    found = re.fullmatch(r"(\d+)x([\w-]+)", text.strip())
    if found is None or int(found[1]) < 1:
        raise QuireError(
            f"--mesh {text}", allowed=f"a number, x, and one of {', '.join(TOPOLOGIES)}: 8xH100"
        )
    return int(found[1]), found[2].lower()


def shard(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="As for quire chunk.")],
    mesh: Annotated[str, typer.Option(help="Devices and their links: 8xH100, 64xA100, 4xcpu.")],
    seq: Annotated[str | None, typer.Option(help="Tokens: 131072, 128K, 1M.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.")] = None,
    memory: Annotated[str | None, typer.Option(help="Budget per device: 80GiB.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Plan without devices and weights.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Write the plan, JSON.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--cert", help="Prove the plan, and write the certificate here.")
    ] = None,
) -> None:
    """Plan how a sequence is spread over devices: forward and backward, all figures predicted."""
    if not plan_only:
        raise QuireError(
            "quire shard plans; ranks run a program of yours",
            allowed="--plan-only",
            fix="torchrun your training script, with model = quire.shard(model, batch, mesh=mesh)",
        )
    ranks, links = parse_mesh(mesh)
    topology = topology_of(links, "meta")
    size = None if seq is None else parse_length(seq)
    budget, found = device_budget(memory), None
    with Bar(err) as bar:
        bar.step("loading the model, without weights", 0, 0)
        loaded = load_target(target, Options(size, batch, "sdpa", dtype, "meta"))
        if not isinstance(loaded.model, torch.nn.Module):
            raise QuireError("a .pt2 file", where=target, allowed="a model that can be trained")
        model, kwargs = loaded.model.train(), with_labels(loaded.model, loaded.kwargs)
        bar.step("capturing the training step", 0, 0)
        started = time.perf_counter()
        program = only_losses(captured(model, loaded.args, kwargs))
        capturing = time.perf_counter() - started
        bar.step("planning", 0, 0)
        started = time.perf_counter()
        plan = plan_shards(program, ranks, topology, budget=budget)
        planned = time.perf_counter() - started
        if certificate is not None:
            bar.step("proving", 0, 0)
            found = prove_built(model, built(model, program, plan))
            found.save(certificate)
    out.print(
        f"{loaded.name}: captured in {seconds_text(capturing)}, planned in {seconds_text(planned)}",
        highlight=False,
    )
    out.print(plan.explain(), highlight=False, soft_wrap=True, markup=False)
    if found is not None:
        out.print(
            f"{found.verdict} in {seconds_text(found.seconds)}: {found.about}",
            highlight=False,
            markup=False,
        )
        out.print(f"wrote {certificate}", highlight=False)
    if report is not None:
        write_shard_html(plan, report, title=loaded.name)
        out.print(f"wrote {report}", highlight=False)
    if output is not None:
        output.write_text(json.dumps(attrs.asdict(plan), indent=1, default=str))
        out.print(f"wrote {output}", highlight=False)


def mesh(
    output: Annotated[Path | None, typer.Option("--out", help="Write the figures here.")] = None,
) -> None:
    """Measure the links between ranks, for the planner: torchrun … --no-python quire mesh."""
    if "RANK" not in os.environ:
        raise QuireError(
            "quire mesh measures the links between ranks, and this is not one",
            fix="torchrun --nproc-per-node 8 --no-python quire mesh",
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        ranks = dist.get_world_size()
        found = measure_mesh(init_device_mesh(kind, (ranks,)))
        if local == 0:  # each node keeps the same figures
            path = output or mesh_file(kind, ranks)
            save_mesh(found, path)
        if dist.get_rank() == 0:
            for link in dict.fromkeys((found.near, found.far, found.exchange)):
                assert link is not None
                out.print(
                    f"{link.name}: {1e6 * link.latency:.1f} µs, {link.bandwidth / 1e9:.2f} GB/s",
                    highlight=False,
                )
            out.print(
                f"hidden behind compute: {100 * found.hidden:.0f} %; products "
                f"{found.flops / 1e12:.3f} TFLOP/s, attention {found.attention / 1e12:.3f}",
                highlight=False,
            )
            out.print(f"wrote {path}", highlight=False, soft_wrap=True)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def with_labels(model: torch.nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with labels, for models of tokens that take them: a training step has a loss."""
    ids = kwargs.get("input_ids")
    takes = "labels" in inspect.signature(model.forward).parameters
    if ids is None or not takes or "labels" in kwargs:
        return kwargs
    return {**kwargs, "labels": ids.clone()}
