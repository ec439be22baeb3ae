"""`quire fuse`: a model's graph, a decode step or an ONNX file as one native function."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.markup import escape

import quire
from quire.capture.options import Options
from quire.capture.target import load_target
from quire.errors import QuireError
from quire.report.progress import Bar
from quire.report.units import seconds_text


@attrs.frozen
class Files:
    """What to write, where given: the library, its C header, and the C++ source."""

    library: Path | None
    header: Path | None
    source: Path | None


def parse_dims(given: Sequence[str]) -> dict[str, int]:
    """`name=size` → sizes by name. Raises QuireError for anything else."""
    found = {}
    for text in given:
        name, _, size = text.rpartition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise QuireError(f"--dim {text}", allowed="name=size, such as --dim batch=8")
        found[name] = int(size)
    return found


def compile_target(
    target: str,
    options: Options,
    files: Files,
    *,
    weights: str | None,
    dims: Mapping[str, int],
    out: Console,
    err: Console,
) -> None:
    """Compile `target`, run it beside the original where there is one, and write `files`."""
    if files.header is not None and files.library is None:
        raise QuireError("a header without its library", fix="give --out as well")
    with Bar(err) as bar:
        if Path(target).suffix == ".onnx":
            name, beside = Path(target).stem, None
            started = time.perf_counter()
            fast = quire.fuse(target, weights=weights, dims=dims, progress=bar.step)
            took = time.perf_counter() - started
        else:
            bar.step("loading the model", 0, 0)
            loaded = load_target(target, options)
            name = loaded.name
            started = time.perf_counter()
            fast = quire.fuse(
                loaded.model, loaded.args, loaded.kwargs, weights=weights, progress=bar.step
            )
            took = time.perf_counter() - started
            bar.step("running both", 0, 0)
            fast(*loaded.args, **loaded.kwargs)
            beside = [_seconds(c, loaded.args, loaded.kwargs) for c in (loaded.model, fast)]
        if files.library is not None:
            bar.step("writing the library", 0, 0)
            fast.export(files.library, header=files.header)
    out.print(f"[bold]{escape(name)}[/]  compiled in {seconds_text(took)}")
    if fast.certificate is not None:
        out.print(f"proof: {escape(fast.certificate.verdict)}: {escape(fast.certificate.about)}")
    for phase in fast.kernel.phases:
        out.print(str(phase), highlight=False, markup=False)
    if beside is not None:
        out.print(f"original {seconds_text(beside[0])}, fused {seconds_text(beside[1])}")
    if files.source is not None:
        files.source.write_text(fast.kernel.source)
    for path in (files.library, files.header, files.source):
        if path is not None:
            out.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _seconds(call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        call(*args, **kwargs)
        return time.perf_counter() - started
