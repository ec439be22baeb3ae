"""How long a proof takes and how much memory, capture and planning shown apart.

    python -m benchmarks.proving
    python -m benchmarks.proving llama-70b --layers 1 2 4 8
    python -m benchmarks.proving --plot docs/proving.svg
    python -m benchmarks.proving --cases

GPT-2 with 12 layers and models of Llama-7B's, 70B's and 405B's shapes, for every length from 2 to
131072. No weight is written: the models are on the meta device. A proof should cost what its
distinct layers cost, and for the rest what it takes to walk the graph. `--cases` proves the plans
that `benchmarks.memory_speed`, `expert` and `longest` measure, at their length.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import workers
from benchmarks.record import save, table
from benchmarks.zoo import build
from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.pipeline import Planning
from quire.verify.prove import prove

LONGEST = 131072


def _llama(layers: int, width: int, inner: int, heads: int, groups: int) -> torch.nn.Module:
    attention: Any = {"attn_implementation": "sdpa"}
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=groups, num_hidden_layers=layers, vocab_size=128256,
        max_position_embeddings=LONGEST, **attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gpt2(layers: int) -> torch.nn.Module:
    attention: Any = {"attn_implementation": "eager"}
    config = transformers.GPT2Config(n_layer=layers, n_positions=LONGEST, **attention)
    return transformers.GPT2LMHeadModel(config)


MODELS: dict[str, tuple[Any, int, float]] = {
    "gpt2": (_gpt2, 12, 60.0),
    "llama-7b": (lambda n: _llama(n, 4096, 11008, 32, 32), 32, 60.0),
    "llama-70b": (lambda n: _llama(n, 8192, 28672, 64, 8), 80, 60.0),
    "llama-405b": (lambda n: _llama(n, 16384, 53248, 128, 8), 126, 120.0),
}
"""Builder, layers, and the seconds that the proof may take."""


CASES: tuple[tuple[str, str, int | None, float | int | None, int | None], ...] = (
    ("gpt2", "eager", None, 0.1, None),
    ("llama", "eager", None, 0.1, None),
    ("vit", "eager", None, 0.1, None),
    ("unet2d-condition", "eager", None, 0.1, None),
    ("esmfold", "eager", 256, 0.1, None),
    ("esmfold", "eager", 512, 0.1, None),
    ("gpt2", "sdpa", None, 0.25, None),
    ("llama", "sdpa", None, 0.25, None),
    ("vit", "sdpa", None, 0.25, None),
    ("gpt2", "eager", None, None, None),
    ("llama", "eager", None, None, None),
    ("vit", "eager", None, None, None),
    ("unet2d-condition", "eager", None, None, None),
    ("esmfold", "eager", 256, 160369664, None),
    ("gpt2", "eager", 65536, 1728251904, 2),
    ("esmfold", "eager", 820, 638494720, None),
    ("unet2d-condition", "eager", 320, 1078988800, None),
)
"""The plans that `benchmarks.memory_speed` measures, then those of `expert` and `longest`: case,
attention, length, budget, layers."""


def _exported(item: workers.Item) -> torch.export.ExportedProgram:
    """The model of `item`: of unwritten weights, at the length of a benchmark or at any."""
    if "attention" in item:
        attention, length = item["attention"], item["length"]
        made = build(
            item["model"], "real", attention, length=length, layers=item["layers"], device="hollow"
        )
        return export(made.model, made.args, made.kwargs, None)
    with torch.device("meta"):
        model = MODELS[item["model"]][0](item["layers"]).eval().requires_grad_(False)
        ids = torch.zeros(1, 4096, dtype=torch.long)
    length = torch.export.Dim("S", min=2, max=LONGEST)
    kwargs = {"use_cache": False, "logits_to_keep": 1}
    shapes = {"input_ids": {1: length}, "use_cache": None, "logits_to_keep": None}
    return export(model, (), {"input_ids": ids, **kwargs}, shapes)


def timed(item: workers.Item) -> workers.Item:
    """Seconds of capture, planning and proof, and the peak of resident memory before and after
    the proof, in bytes."""
    start = time.perf_counter()
    captured = from_exported(_exported(item))
    ready = time.perf_counter()
    plan, program = Planning(captured).plan(item["memory"])
    source = apply_chunks(program, plan).text
    planned = time.perf_counter()
    before, used = _peak(), time.process_time()
    found = prove(program, source, plan.to_json(), captured=captured, witness=False)
    return {
        "capture_seconds": ready - start,
        "planning_seconds": planned - ready,
        "proof_seconds": time.perf_counter() - planned,
        "proof_cpu_seconds": time.process_time() - used,
        "verdict": found.verdict,
        "reason": found.reason[:300],
        "claims": len(found.claims),
        "regions": len(plan.regions),
        "nodes": len(captured.ops),
        "peak_before_bytes": before,
        "peak_bytes": _peak(),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


HEAD = ("model", "layers", "capture s", "planning s", "proof s", "allowed s", "peak GiB", "verdict")


def summary(row: dict[str, Any]) -> list[object]:
    if "error" in row:
        return [row["key"], row["layers"], None, None, None, row["allowed"], None, row["error"]]
    name = row["model"] if "attention" not in row else row["key"]
    return [
        name, row["layers"], f"{row['capture_seconds']:.1f}",
        f"{row['planning_seconds']:.1f}", f"{row['proof_seconds']:.1f}", row["allowed"],
        f"{row['peak_bytes'] / 2**30:.1f}", row["verdict"],
    ]  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Proof seconds against layers, one line a model, as an SVG."""
    good = [r for r in rows if "error" not in r]
    wide = max(r["layers"] for r in good)
    high = max(r["proof_cpu_seconds"] for r in good) * 1.1
    marks, colours = [], ("#2563eb", "#b45309", "#15803d", "#9333ea")
    for k, name in enumerate(dict.fromkeys(r["model"] for r in good)):
        own = sorted((r["layers"], r["proof_cpu_seconds"]) for r in good if r["model"] == name)
        dots = [(60 + 520 * n / wide, 260 - 230 * s / high) for n, s in own]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        marks.append(f'<polyline points="{line}" fill="none" stroke="{colours[k]}"/>')
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[k]}"/>' for x, y in dots]
        marks.append(f'<text x="600" y="{40 + 18 * k}" fill="{colours[k]}">{name}</text>')
    axes = '<path d="M60 20V260H590" fill="none" stroke="#888"/>'
    words = (
        f'<text x="52" y="34" text-anchor="end">{high:.0f} s</text>'
        f'<text x="580" y="280" text-anchor="end">{wide} layers</text>'
        '<text x="52" y="264" text-anchor="end">0</text>'
    )
    style = "<style>text{font:13px sans-serif;fill:#888}</style>"
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 290">'
    path.write_text("\n".join([head, style, axes, words, *marks, "</svg>"]) + "\n")


def _models(names: list[str], depths: list[int] | None, memory: Any) -> list[workers.Item]:
    items = []
    for name in names:
        _, depth, allowed = MODELS[name]
        for layers in depths or [2, depth // 2, depth]:
            item = {"model": name, "layers": layers, "memory": memory, "allowed": allowed}
            items.append({"key": f"{name} {layers}"} | item)
    return items


def _cases() -> list[workers.Item]:
    names = ("model", "attention", "length", "memory", "layers")
    items = [dict(zip(names, case, strict=True)) for case in CASES]
    return [{"key": " ".join(map(str, i.values())), "allowed": None} | i for i in items]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}")
    options.add_argument("--layers", type=int, nargs="+", help="instead of the model's own depth")
    options.add_argument("--memory", default="0.25")
    options.add_argument("--cases", action="store_true", help="the plans of the benchmarks")
    options.add_argument("--plot", type=Path, help="write proof time against depth here, an SVG")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        workers.serve(given.worker, timed)
        return
    memory = float(given.memory) if given.memory[0].isdigit() else given.memory
    items = _cases() if given.cases else _models(given.models or list(MODELS), given.layers, memory)
    rows = []
    for row in workers.answers("benchmarks.proving", items):
        rows.append(row)
        print(summary(row), flush=True)
    save("proving-cases" if given.cases else "proving", rows, {"memory": given.memory})
    print(table(HEAD, [summary(row) for row in rows]))
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
