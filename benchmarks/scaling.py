"""docs/scaling.md: predicted memory, overhead and scaling of long training steps.

    python -m benchmarks.scaling            all; --fit prints the calibration only

Every figure here is *predicted* by the planner's cost model, but for those in the columns headed
"published". At one million tokens whole models without weights go through what quire.shard does, on
torch's fake process group. At the other lengths two layers are captured and repeated: layers are
equal. Parameters, gradients and Adam's states are spread over all devices (FSDP).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.scaling_points import best_fit
from benchmarks.scaling_points import rows as calibration
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
from quire.runtime.sharded import shard_tree
from quire.sharding import built, plan_shards

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


@contextlib.contextmanager
def fake_group(ranks: int) -> Iterator[DeviceMesh]:
    """A mesh of `ranks` ranks in this process alone: torch's fake process group."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,), mesh_dim_names=("sp",))
    finally:
        dist.destroy_process_group()


def model(shape: dict[str, int], size: int, layers: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """A Llama of that shape without weights, and a batch."""
    config = LlamaConfig(
        **{**shape, "num_hidden_layers": layers},
        vocab_size=128256,
        max_position_embeddings=size,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device("meta"):
        made = LlamaForCausalLM(config).to(torch.bfloat16).train()
        ids = torch.zeros(1, size, dtype=torch.int64)
    return made, {"input_ids": ids, "labels": ids.clone()}


def captured(made: Any, batch: dict[str, torch.Tensor]) -> Program:
    return only_losses(from_exported(export_training(made, (), batch)))


def sharded(
    made: Any, batch: dict[str, torch.Tensor], program: Program, ranks: int
) -> tuple[ShardPlan | None, float]:
    """What rank 0 of `ranks` gets from quire.shard but for the capture, which all counts share:
    the plan (None: nothing fits), and the seconds of planning, writing and building the module."""
    with fake_group(ranks) as mesh:
        started = time.perf_counter()

        def build(*_: Any) -> Any:
            return built(made, program, plan_shards(program, ranks, H100, budget=BUDGET))

        try:
            small: Any = shard_tree(made, mesh, build, (), batch)
        except BudgetError as error:
            print(error, flush=True)
            return None, time.perf_counter() - started
        return small.plan, time.perf_counter() - started


def planned(
    program: Program, layers: int, ranks: int, topology: Topology
) -> tuple[ShardPlan, Any, StepTime]:
    """The plan, memory and time of `layers` layers like those of `program`; memory is a text where
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
        memory: Any = fit(deep, BUDGET, topology.host)
    except BudgetError as error:
        memory = f"needs {int(str(error).split('needs ')[1].split()[0]) / 1e9:.0f} GB"
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
        again=0.0 if isinstance(memory, str) else memory.extra_seconds,
    )


def eight() -> list[str]:
    """Rows at 8 devices."""
    rows = []
    for name, shape in MODELS.items():
        layers = shape["num_hidden_layers"]
        for label, size in LENGTHS.items():
            program = captured(*model(shape, size, CAPTURED))
            plan, memory, step = planned(program, layers, 8, H100)
            way = describe(plan.chosen[0], 8)
            if isinstance(memory, str):
                rows.append(f"| {name} | {label} | {way} | {memory} | – | – | – |")
            else:
                rows.append(
                    f"| {name} | {label} | {way} | {memory.peak / 1e9:.0f} GB | {_kept(memory)} | "
                    f"{step.total:.1f} s | {100 * step.overhead:.1f} % |"
                )
            print(rows[-1], flush=True)
    return rows


def scaling() -> tuple[list[str], list[tuple[str, int, float]]]:
    """Rows at one million tokens, whole models on the fake process group; points of the plot."""
    rows, points = [], []
    for name, shape in MODELS.items():
        made, batch = model(shape, LENGTHS["1 M"], shape["num_hidden_layers"])
        started = time.perf_counter()
        program = captured(made, batch)
        capture = time.perf_counter() - started
        for ranks in COUNTS:
            plan, took = sharded(made, batch, program, ranks)
            if plan is None:
                free = plan_shards(program, ranks, H100)
                way, room, kept = describe(free.chosen[0], ranks), "does not fit", "–"
                step = free.time
            else:
                way = describe(plan.chosen[0], ranks)
                room, kept = f"{plan.memory.peak / 1e9:.0f} GB", _kept(plan.memory)
                step = plan.time
            rows.append(
                f"| {name} | {ranks} | {way} | {room} | {kept} | {100 * step.efficiency:.1f} % | "
                f"{took:.1f} s + {capture:.0f} s |"
            )
            points.append((name, ranks, 100 * step.efficiency))
            print(rows[-1], flush=True)
    return rows, points


def _kept(memory: Any) -> str:
    counts: dict[str, int] = {}
    for _, how in memory.regions:
        counts[how] = counts.get(how, 0) + 1
    layers = ", ".join(f"{n} {how}" for how, n in sorted(counts.items()))
    rows = f", rows in {memory.parts}" if memory.parts > 1 else ""
    states = "; states on the host" if memory.on_host else ""
    return f"{layers}{rows}; scores in {memory.head_parts}{states}"


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


def main() -> None:
    print(f"best fit {best_fit():.1f} bytes, in use {MERGE_BYTES}")
    print("\n".join(calibration()))
    if "--fit" in sys.argv:
        return
    at_eight = eight()
    scaled, points = scaling()
    plot(points, ROOT / "docs" / "scaling.svg")
    page = (ROOT / "benchmarks" / "scaling.md").read_text(encoding="utf-8")
    tables = {"CALIBRATION": calibration(), "EIGHT": at_eight, "SCALING": scaled}
    for key, rows in tables.items():
        page = page.replace(f"<!-- {key} -->", "\n".join(rows))
    (ROOT / "docs" / "scaling.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
