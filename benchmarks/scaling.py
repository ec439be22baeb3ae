"""docs/scaling.md: predicted memory, overhead and scaling of long training steps.

    python -m benchmarks.scaling            all; --fit prints the calibration only

Every figure here is *predicted* by the planner's cost model, but for those in the columns headed
"published". Two layers are captured, without weights, and repeated: layers are equal. The plan is
that of quire.shard; parameters, gradients and Adam's states are spread over all devices (FSDP).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.cost.collectives import TOPOLOGIES, Topology
from quire.errors import BudgetError
from quire.plan.shard.cost import MERGE_BYTES
from quire.plan.shard.head import only_losses
from quire.plan.shard.keep import Region
from quire.plan.shard.memory import fit
from quire.plan.shard.plan import ShardPlan, describe
from quire.plan.shard.timing import StepTime
from quire.sharding import plan_shards

ROOT = Path(__file__).resolve().parent.parent
H100 = TOPOLOGIES["h100"]
BUDGET = 80 * 10**9
CAPTURED = 2
COUNTS = (8, 16, 32, 64, 128, 256, 1024)
LENGTHS = {"128 K": 1 << 17, "256 K": 1 << 18, "512 K": 1 << 19, "1 M": 1 << 20}
MODELS = {
    "8 B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "70 B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}

# README of zhuzilin/ring-flash-attention at 01c8baf: Llama 3.1 8 B's attention, causal, bf16, 8 K
# tokens a GPU, 8 GPUs. Iterations a second of zigzag ring, and of flash attention on one GPU with
# an 8th of the work, as printed there (already divided by 8).
PUBLISHED = (
    ("8 × H800", "batch", "forward", 63.0, 73.9, True),
    ("8 × H800", "batch", "both", 17.4, 19.3, True),
    ("8 × A100", "batch", "forward", 38.2, 46.7, True),
    ("8 × A100", "batch", "both", 10.6, 11.8, True),
    ("8 × H800", "variable length", "forward", 74.8, 106.6, False),
    ("8 × H800", "variable length", "both", 21.4, 28.2, False),
    ("8 × A100", "variable length", "forward", 47.9, 66.5, False),
    ("8 × A100", "variable length", "both", 13.4, 16.7, False),
)
NEAR = {
    "8 × H800": attrs.evolve(H100, near=attrs.evolve(H100.near, bandwidth=0.8 * 200e9)),
    "8 × A100": TOPOLOGIES["a100"],
}
BLOCK = 8192 * 32 * 128
"""Elements of one device's queries there."""


def calibration() -> list[tuple[Any, ...]]:
    """Device, API, pass, published share of the flash time, predicted share, whether fitted to."""
    rows = []
    for device, api, what, ring, flash, fitted in PUBLISHED:
        topology = NEAR[device]
        passes = 1 if what == "forward" else 2
        seconds = 1 / flash + passes * 8 * BLOCK * MERGE_BYTES / topology.bandwidth
        rows.append((device, api, what, ring / flash, 1 / flash / seconds, fitted))
    return rows


def best_fit() -> float:
    """Bytes an element and hop, by least squares of the seconds over the points fitted to."""
    top = bottom = 0.0
    for device, _, what, ring, flash, fitted in PUBLISHED:
        if fitted:
            unit = (1 if what == "forward" else 2) * 8 * BLOCK / NEAR[device].bandwidth
            # Relative to the time of the pass, so that short passes count as much as long ones.
            top += unit * (1 / ring - 1 / flash) * flash**2
            bottom += unit**2 * flash**2
    return top / bottom


def captured(shape: dict[str, int], size: int) -> Program:
    config = LlamaConfig(
        **{**shape, "num_hidden_layers": CAPTURED},
        vocab_size=128256,
        max_position_embeddings=size,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).train()
        ids = torch.zeros(1, size, dtype=torch.int64)
    exported = export_training(model, (), {"input_ids": ids, "labels": ids.clone()})
    return only_losses(from_exported(exported))


def planned(
    program: Program, layers: int, ranks: int, topology: Topology
) -> tuple[ShardPlan, Any, StepTime]:
    """The plan, memory and time of `layers` layers like those of `program`; memory is None where
    nothing fits."""
    plan = plan_shards(program, ranks, topology)
    needs = plan.memory.needs
    times = layers // CAPTURED
    named = [(n, p) for n, p in program.state.items() if isinstance(p, torch.nn.Parameter)]
    inside = sum(p.numel() for n, p in named if ".layers." in n)
    regions: tuple[Region, ...] = tuple(
        attrs.evolve(r, module=f"{r.module}#{k}") for k in range(times) for r in needs.regions
    )
    deep = attrs.evolve(needs, regions=regions, parameters=needs.parameters + (times - 1) * inside)
    try:
        memory = fit(deep, BUDGET, topology.host)
    except BudgetError:
        memory = None
    return plan, memory, _deeper(plan, times, deep.parameters, memory, ranks, topology)


def _deeper(
    plan: ShardPlan, times: int, parameters: int, memory: Any, ranks: int, topology: Topology
) -> StepTime:
    """Time of a plan whose layers are repeated; what is outside them, the head, counts once."""
    one: StepTime = plan.time
    head = 3 * plan.memory.needs.again
    layers = one.compute - head
    even = one.ideal - head
    compute = times * layers + head
    moved = 3 * topology.all_gather(2 * parameters / ranks, ranks)
    return StepTime(
        ideal=times * even + head,
        compute=compute,
        merge=times * one.merge,
        exposed=times * one.exposed,
        gradients=max(0.0, moved - compute),
        again=memory.extra_seconds if memory else 0.0,
    )


def table() -> tuple[list[str], list[str], list[tuple[str, int, float]]]:
    """Rows at 8 devices, rows of scaling, and points of the plot."""
    eight, scaling, points = [], [], []
    for name, shape in MODELS.items():
        for label, size in LENGTHS.items():
            program = captured(shape, size)
            counts = COUNTS if label == "1 M" else COUNTS[:1]
            for ranks in counts:
                started = time.perf_counter()
                plan, memory, step = planned(program, shape["num_hidden_layers"], ranks, H100)
                took = time.perf_counter() - started
                best = plan.chosen[0]
                way = describe(best, ranks)
                room = "does not fit" if memory is None else f"{memory.peak / 1e9:.0f} GB"
                kept = "–" if memory is None else _kept(memory)
                if ranks == 8:
                    eight.append(
                        f"| {name} | {label} | {way} | {room} | {kept} | {step.total:.1f} s | "
                        f"{100 * step.overhead:.1f} % |"
                    )
                if label == "1 M":
                    scaling.append(
                        f"| {name} | {ranks} | {way} | {room} | {100 * step.efficiency:.1f} % | "
                        f"{took:.1f} s |"
                    )
                    points.append((name, ranks, 100 * step.efficiency))
                print(name, label, ranks, way, room, f"{step.overhead:.3f}", flush=True)
    return eight, scaling, points


def _kept(memory: Any) -> str:
    counts: dict[str, int] = {}
    for _, how in memory.regions:
        counts[how] = counts.get(how, 0) + 1
    layers = ", ".join(f"{n} {how}" for how, n in sorted(counts.items()))
    return f"{layers}; scores in {memory.head_parts}"


def plot(points: list[tuple[str, int, float]], path: Path) -> None:
    import matplotlib  # noqa: PLC0415  (only for the page)

    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for name in MODELS:
        line = [(r, e) for n, r, e in points if n == name]
        axes.plot(*zip(*line, strict=True), marker="o", label=f"Llama {name}, predicted")
    axes.plot([64, 128], [90, 95], "k^", label="published claims (90 %, 95 %)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.set_ylim(0, 105)
    axes.set_xlabel("devices (1 M tokens, H100, 8 a node)")
    axes.set_ylabel("efficiency, %")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def _calibration_rows() -> list[str]:
    return [
        f"| {device} | {api} | {what} | {100 * published:.1f} % | {100 * found:.1f} % | "
        f"{100 * (found - published):+.1f} | {'yes' if fitted else 'no'} |"
        for device, api, what, published, found, fitted in calibration()
    ]


def main() -> None:
    print(f"best fit {best_fit():.1f} bytes, in use {MERGE_BYTES}")
    print("\n".join(_calibration_rows()))
    if "--fit" in sys.argv:
        return
    eight, scaling, points = table()
    plot(points, ROOT / "docs" / "scaling.svg")
    page = (ROOT / "benchmarks" / "scaling.md").read_text(encoding="utf-8")
    for key, rows in (("CALIBRATION", _calibration_rows()), ("EIGHT", eight), ("SCALING", scaling)):
        page = page.replace(f"<!-- {key} -->", "\n".join(rows))
    (ROOT / "docs" / "scaling.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
