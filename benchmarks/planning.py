"""How long planning takes, torch's own capture shown apart.

    python -m benchmarks.planning

GPT-2 with 12 layers at 4096 tokens, 48 ESMFold trunk blocks at 256 residues, and a model of
Llama-70B's shapes at 4096 tokens. No weight is ever written: Llama-70B is on the meta device, the
others have weights that were allocated and not touched. GPT-2 is planned with twice and four times
the layers as well: time should grow with distinct layers, not with all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

import quire
from benchmarks import workers
from benchmarks.measure import plan_facts
from benchmarks.record import save, table
from benchmarks.zoo import Built, build
from quire.capture.export import export, from_exported
from quire.pipeline import Planning


class Trunk(nn.Module):
    """`depth` ESMFold trunk blocks, one after the other."""

    def __init__(self, block: Callable[[], nn.Module], depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, sequence: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for block in self.blocks:
            sequence, pairs = block(sequence, pairs)
        return sequence, pairs


def _gpt2(layers: int) -> Built:
    return build("gpt2", "real", "eager", layers=layers, device="hollow")


def _evoformer(layers: int) -> Built:
    one = build("esmfold", "real", device="hollow")
    config = one.model.config
    with torch.device("meta"):
        trunk = Trunk(lambda: type(one.model)(config), layers)  # pyright: ignore
    return Built(trunk.to_empty(device="cpu").eval().requires_grad_(False), one.args, one.kwargs)


def _llama70b(layers: int) -> Built:
    attention: Any = {"attn_implementation": "eager"}
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
        num_hidden_layers=layers, vocab_size=128256, max_position_embeddings=8192,
        **attention,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
        ids = torch.zeros(1, 4096, dtype=torch.long)
    return Built(model, (ids,), {"use_cache": False, "logits_to_keep": 1})


MODELS: dict[str, tuple[Callable[[int], Built], int, float]] = {
    "gpt2": (_gpt2, 12, 5.0),
    "evoformer": (_evoformer, 48, 20.0),
    "llama-70b": (_llama70b, 80, 30.0),
}
"""Builder, layers, and the seconds that planning may take."""


def timed(item: workers.Item) -> workers.Item:
    """Seconds of torch's capture, of planning, and of all that `quire.chunk` does after capture.

    The machine's rates, measured once a machine and kept, are not counted.
    """
    model, args, kwargs = MODELS[item["model"]][0](item["layers"])
    quire.machine()
    start = time.perf_counter()
    exported = export(model, args, kwargs)
    captured = from_exported(exported)
    ready = time.perf_counter()
    plan, _ = Planning(captured).plan(item["memory"])
    planned = time.perf_counter()
    quire.chunk(exported, memory=item["memory"], verify=False)
    done = time.perf_counter()
    return {
        "capture_seconds": ready - start,
        "planning_seconds": planned - ready,
        "chunk_seconds": done - planned,
        "plan": plan_facts(plan),
    }


HEAD = ("model", "layers", "capture s", "planning s", "allowed s", "peak")


def summary(row: dict[str, Any]) -> list[object]:
    if "error" in row:
        return [row["model"], row["layers"], None, row["error"], row["allowed"], None]
    plan = row["plan"]
    return [
        row["model"], row["layers"], f"{row['capture_seconds']:.1f}",
        f"{row['planning_seconds']:.1f}", row["allowed"],
        f"{plan['peak_bytes'] / plan['baseline_bytes'] - 1:+.0%}",
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}")
    options.add_argument("--layers", type=int, nargs="+", help="instead of the model's own depth")
    options.add_argument("--memory", default="0.25")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        workers.serve(given.worker, timed)
        return
    memory = float(given.memory) if given.memory[0].isdigit() else given.memory
    items = []
    for name in given.models or MODELS:
        _, depth, allowed = MODELS[name]
        for layers in given.layers or (
            [depth, 2 * depth, 4 * depth] if name == "gpt2" else [depth]
        ):
            item = {"model": name, "layers": layers, "memory": memory, "allowed": allowed}
            items.append({"key": f"{name} {layers}"} | item)
    rows = []
    for row in workers.answers("benchmarks.planning", items):
        rows.append(row)
        print(summary(row), flush=True)
    save("planning", rows, {"memory": given.memory})
    print(table(HEAD, [summary(row) for row in rows]))


if __name__ == "__main__":
    main()
